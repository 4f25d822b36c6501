"""Options that several commands share, packed into small objects. Importing this must stay free of torch."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ddim_edit.cli import values
from ddim_edit.cli.packing import Decorator, packed

if TYPE_CHECKING:
    from ddim_edit.batch import PhotoBatches
    from ddim_edit.denoiser import Denoiser
    from ddim_edit.grid import Grid
    from ddim_edit.images import Photo
    from ddim_edit.models.base import Model
    from ddim_edit.schedule import NoiseSchedule
    from ddim_edit.solvers import Solver

# Written out, because reading them from the modules that define them would import torch; a test compares them.
SPACINGS = ("leading", "trailing", "linspace", "uniform", "quadratic", "quadratic-full", "logsnr")
DTYPES = ("fp32", "bf16", "fp16", "fp64")
FITS = ("crop", "pad", "stretch")
DEFAULT_STEPS, ENCODE_STEPS = 50, 20


@dataclass(frozen=True)
class ModelChoice:
    """Which model, where and how."""

    model: str
    size: tuple[int, int] | None
    device: str
    dtype: str
    micro_batch: int | None
    revision: str | None
    cache_dir: str | None
    local_files_only: bool

    def load(self) -> "Model":
        """Load it, and say once what of its settings is not applied."""
        from ddim_edit.models import load_model

        model = load_model(
            self.model,
            device=self.device,
            dtype=self.dtype,
            revision=self.revision,
            cache_dir=self.cache_dir,
            local_files_only=self.local_files_only,
        )
        for note in model.notes:
            click.echo(f"note: {note}", err=True)
        if self.size is not None:
            model = model.resized(*self.size)
        return model.micro_batched(self.micro_batch) if self.micro_batch else model


_PLACE_AND_PRECISION = (
    click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, mps."),
    click.option("--dtype", type=click.Choice(DTYPES), default="fp32", show_default=True, help="Of the network."),
    click.option(
        "--micro-batch",
        type=click.IntRange(1),
        help="Show the network exactly N photos at a time (4 or more): results no longer depend on --batch-size.",
    ),
    click.option("--revision", help="Branch, tag or commit of a hub id."),
    click.option("--cache-dir", type=click.Path(file_okay=False), help="Where downloads are kept."),
    click.option("--local-files-only", is_flag=True, help="Never download."),
)
_SIZE = click.option(
    "--size",
    type=values.size,
    metavar="H[xW]",
    help="Photo size, 64 or 96x64 (height x width).  [default: the model's]",
)
model_options = packed(
    "choice",
    ModelChoice,
    click.option("--model", default="small", show_default=True, help="'small', a diffusers folder, or a hub id."),
    _SIZE,
    *_PLACE_AND_PRECISION,
)
# For commands that are about a model.
model_argument = packed("choice", ModelChoice, click.argument("model"), _SIZE, *_PLACE_AND_PRECISION)


@dataclass(frozen=True)
class GridChoice:
    """Which levels a run visits; at most one way of saying how many."""

    num_inference_steps: int | None
    timestep_spacing: str | None
    timestep_respacing: str | None
    timesteps: list[float] | None

    def __post_init__(self) -> None:
        given = [
            flag
            for flag, value in (
                ("--num-inference-steps", self.num_inference_steps),
                ("--timestep-respacing", self.timestep_respacing),
                ("--timesteps", self.timesteps),
            )
            if value is not None
        ]
        if len(given) > 1:
            raise click.UsageError(f"{' and '.join(given)} say the same thing twice; give one of them.")
        if self.timestep_spacing and given and given != ["--num-inference-steps"]:
            raise click.UsageError(f"{given[0]} fixes the timesteps, so --timestep-spacing has no meaning; drop one.")

    @property
    def given(self) -> bool:
        """Whether the user asked for any grid."""
        return any(value is not None for value in vars(self).values())

    def build(self, schedule: "NoiseSchedule", steps: int = DEFAULT_STEPS, spacing: str | None = None) -> "Grid":
        """The grid asked for; without a wish, so many steps of this spacing (None: the model's own)."""
        from ddim_edit.grid import Grid

        if self.timesteps is not None:
            return Grid.from_timesteps(schedule, self.timesteps)
        if self.timestep_respacing is not None:
            return Grid.respaced(schedule, self.timestep_respacing)
        steps = steps if self.num_inference_steps is None else self.num_inference_steps
        return Grid.build(schedule, steps, self.timestep_spacing or spacing)  # pyright: ignore[reportArgumentType]


grid_options = packed(
    "grid",
    GridChoice,
    click.option(
        "--num-inference-steps",
        "-n",
        type=int,
        help=f"Number of steps.  [default: {DEFAULT_STEPS}; {ENCODE_STEPS} to encode exactly]",
    ),
    click.option(
        "--timestep-spacing",
        "--spacing",
        type=click.Choice(SPACINGS),
        help="[default: the model's; a quadratic one to encode exactly]",
    ),
    click.option("--timestep-respacing", help="As in improved-diffusion: ddim50, or 10,15,20 for three sections."),
    click.option(
        "--timesteps", type=values.timesteps, metavar="T,T,...", help="The timesteps themselves, like 0,40,80."
    ),
    rivals={
        "num_inference_steps": ("timestep_respacing", "timesteps"),
        "timestep_spacing": ("timestep_respacing", "timesteps"),
        "timestep_respacing": ("num_inference_steps", "timestep_spacing", "timesteps"),
        "timesteps": ("num_inference_steps", "timestep_spacing", "timestep_respacing"),
    },
)


@dataclass(frozen=True)
class Condition:
    """What the network is told besides the photo."""

    label: str | None
    guidance: float

    @property
    def given(self) -> bool:
        """Whether the user asked for any condition."""
        return self.label is not None or self.guidance != 1

    def denoiser(self, model: "Model") -> "Denoiser":
        """The model's network under this condition."""
        return model.denoiser(self.label, guidance=self.guidance)


condition_options = packed(
    "condition",
    Condition,
    click.option("--label", help="Class of a class-conditional model, by number or name (see info)."),
    click.option("--guidance", type=float, default=1.0, show_default=True, help="Classifier-free guidance scale."),
)


def read_config(ctx: click.Context, _param: click.Parameter, path: str | None) -> None:
    """Take the arguments of an earlier run (its run.json) as defaults; flags on the command line win."""
    if path is None:
        return
    try:
        arguments = dict(json.loads(Path(path).read_text(encoding="utf-8"))["arguments"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise click.UsageError(f"--config {path} is no run.json ({error}).") from error
    known = {param.name for param in ctx.command.params}
    if unknown := sorted(set(arguments) - known):
        raise click.UsageError(f"--config {path}: {', '.join(unknown)} is no option of {ctx.info_name}.")
    ctx.default_map = arguments


@dataclass(frozen=True)
class Running:
    """How a run behaves, whatever it does."""

    overwrite: bool
    progress: bool


config_option = click.option(
    "--config",
    callback=read_config,
    is_eager=True,
    expose_value=False,
    metavar="RUN.JSON",
    help="Repeat an earlier run; other options given here win.",
)
progress_option = click.option(
    "--progress/--no-progress", default=True, help="Bar on stderr; never where stderr is no terminal."
)
running_options = packed(
    "running",
    Running,
    click.option("--overwrite", is_flag=True, help="Replace files that exist."),
    progress_option,
    config_option,
)


@dataclass(frozen=True)
class Source:
    """Which photos, and how they get the model's shape."""

    photos: tuple[Path, ...]
    fit: str
    limit: int | None
    batch_size: int

    @property
    def chosen(self) -> bool:
        """Whether the user asked for some of the photos only, or for another way of fitting them."""
        return self.limit is not None or self.fit != FITS[0]

    def find(self) -> "list[Photo]":
        """List the photos; nothing is decoded yet. Says which subfolders are left out."""
        from ddim_edit.datasets import first_names
        from ddim_edit.images import find_photos

        for path in self.photos:
            inner = sorted(f"{child.name}/" for child in path.iterdir() if child.is_dir()) if path.is_dir() else []
            if shown := [name for name in inner if not name.startswith(".")]:
                click.echo(f"note: subfolders of {path} are not searched: {first_names(shown)}", err=True)
        return find_photos(self.photos)[: self.limit]

    def batches(self, found: "list[Photo]", model: "Model") -> "PhotoBatches":
        """The photos in batches of pixels at the model's size."""
        from ddim_edit.batch import PhotoBatches

        return PhotoBatches(found, model.image_size, self.fit, self.batch_size)  # pyright: ignore[reportArgumentType]


batch_option = click.option(
    "--batch-size", type=click.IntRange(1), default=8, show_default=True, help="Pictures at once."
)


def _photo_options(*, required: bool) -> Decorator[Any]:
    return packed(
        "source",
        Source,
        click.argument("photos", nargs=-1, required=required, type=click.Path(path_type=Path)),
        click.option(
            "--fit",
            type=click.Choice(FITS),
            default=FITS[0],
            show_default=True,
            help="How photos get the model's shape.",
        ),
        click.option("--limit", type=click.IntRange(1), help="Only the first N photos."),
        batch_option,
    )


photo_options, optional_photo_options = _photo_options(required=True), _photo_options(required=False)


json_option = click.option("--json", "as_json", is_flag=True, help="Machine-readable lines on stdout.")
metadata_option = click.option("--metadata/--no-metadata", default=True, help="Settings inside the PNG files.")
resume_option = click.option(
    "--resume", is_flag=True, help="Leave out pictures that an earlier run with these settings finished."
)


def check_resume(resume: bool, metadata: bool) -> None:
    """Refuse what `resume_option` cannot do."""
    if resume and not metadata:
        raise click.UsageError("--resume knows finished pictures by their metadata; leave --no-metadata away.")


@dataclass(frozen=True)
class Randomness:
    """How much noise the steps toward clean add, and where it comes from."""

    eta: float | str | None

    def solver(self) -> "Solver | None":
        """DDIM with this eta, or None where none was given."""
        from ddim_edit.solvers import Ddim

        if self.eta is None:
            return None
        return Ddim(1.0, sigma_hat=True) if isinstance(self.eta, str) else Ddim(self.eta)


NOT_RANDOM = Randomness(None)
eta_options = packed(
    "randomness",
    Randomness,
    click.option("--eta", type=values.eta, help="Noise added in each step: 0 to 1, or sigma-hat.  [default: 0]"),
)


def output_option(default: str, text: str) -> Decorator[Any]:
    """`--output` with a default that names the command's product."""
    return click.option(
        "--output", "-o", "--outdir", type=click.Path(path_type=Path), default=default, show_default=True, help=text
    )
