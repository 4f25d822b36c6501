"""What the commands of `experiment` share: their options, and the run around the work of any of them."""

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ddim_edit.cli import method, options, run, values
from ddim_edit.cli.packing import Command, packed

if TYPE_CHECKING:
    from torch import Tensor

    from ddim_edit.batch import Failure, PhotoBatch
    from ddim_edit.experiments.base import Experiment, Unit
    from ddim_edit.experiments.interpolate import Take
    from ddim_edit.experiments.reconstruct import Method
    from ddim_edit.experiments.store import Store
    from ddim_edit.grid import Grid
    from ddim_edit.images import Photo
    from ddim_edit.models.base import Model
    from ddim_edit.ode import OnStep
    from ddim_edit.recipe import Recipe
    from ddim_edit.schedule import NoiseSchedule
    from ddim_edit.solvers import Solver

HIDDEN = {"output", "overwrite", "progress", "dry_run", "export"}  # what rows do not depend on


@dataclass(frozen=True)
class Setup:
    """Where an experiment goes and how it is run."""

    output: Path
    show: int
    dry_run: bool


setup_options = packed(
    "setup",
    Setup,
    options.output_option("experiment", "Folder of the experiment; a run that was stopped goes on where it was."),
    click.option("--show", type=click.IntRange(0), default=8, show_default=True, help="Images drawn on sheets."),
    click.option("--dry-run", is_flag=True, help="Say what it would cost, and stop."),
)
steps_option = click.option(
    "--steps-list",
    "--steps",
    "-n",
    type=values.counts,
    default="10,20,50,100",
    show_default=True,
    help="Numbers of steps.",
)
seeds_option = click.option("--seeds", type=values.seeds, default="0-7", show_default=True, help="One x_T a seed.")
etas_option = click.option(
    "--etas", type=values.etas, default="0,0.2,0.5,1,sigma-hat", show_default=True, help="Noise added in each step."
)
spacings_option = click.option(
    "--spacings",
    "--spacing",
    type=values.choices(options.SPACINGS, {"linear": "uniform"}),
    default="leading",
    show_default=True,
    help=f"linear (that is, uniform) or any of: {', '.join(options.SPACINGS)}.",
)


@dataclass(frozen=True)
class Methods:
    """Rival ways of encoding: every solver by every inverse, on every spacing and number of steps."""

    solvers: list[str]
    inverses: list[str]
    spacings: list[str]
    steps_list: list[int]

    def build(self, model: "Model", condition: options.Condition) -> "list[Method]":
        """With the names that rows give them."""
        from ddim_edit.experiments.reconstruct import Method

        return [
            Method(
                {"solver": solver, "inverse": inverse, "spacing": spacing, "steps": str(steps)},
                method.Method(solver, inverse).on(grid, model, condition),
            )
            for solver in self.solvers
            for inverse in self.inverses
            for spacing in self.spacings
            for steps, grid in grids_of(model.schedule, spacing, self.steps_list).items()
        ]


methods_options = packed(
    "methods",
    Methods,
    click.option(
        "--solvers", type=values.choices(method.SOLVERS), default="ddim", show_default=True, help="How to step."
    ),
    click.option(
        "--inverses",
        type=values.choices(method.INVERSES),
        default="explicit",
        show_default=True,
        help="How to invert.",
    ),
    spacings_option,
    steps_option,
)


@dataclass(frozen=True)
class Common:
    """What every experiment is given."""

    condition: options.Condition
    choice: options.ModelChoice
    setup: Setup
    running: options.Running

    @property
    def store(self) -> "Store":
        """The folder."""
        from ddim_edit.experiments.store import Store

        return Store(self.setup.output)


def common_options(command: Command) -> Command:
    """The options of every experiment, handed over as one `common`."""
    packs = options.running_options, setup_options, options.model_options, options.condition_options
    for decorate in (packed("common", Common), *packs):
        command = decorate(command)
    return command


@dataclass(frozen=True)
class Job:
    """An experiment with its work.

    Args:
        experiment: what is measured and shown.
        store: the folder.
        model: the one that is measured.
        units: the work.
        images: what the rows are about: names, and hashes or seeds.
        grids: the timesteps of every setting.
        failures: photos that could not be read.
        after: makes what is no row, at a cost of `extra` steps.
        extra: see `after`.
    """

    experiment: "Experiment"
    store: "Store"
    model: "Model"
    units: "Sequence[Unit]"
    images: Sequence[Mapping[str, object]]
    grids: "Mapping[str, Grid]"
    failures: "Sequence[Failure]" = ()
    after: "Callable[[OnStep], None]" = lambda on_step: None
    extra: int = 0


def carry_out(job: Job, common: Common) -> int:
    """Run what is not done yet, render the folder, and give the exit code."""
    from ddim_edit import experiments

    setup, running = common.setup, common.running
    total = sum(unit.cost for unit in job.units) + job.extra
    click.echo(f"{job.experiment.name}: {total} steps, counted picture by picture", err=True)
    ctx = click.get_current_context()
    description = _describe(ctx, job, total - job.extra)
    if setup.dry_run:
        job.store.check(description, overwrite=running.overwrite)
        return 0
    record = run.Record(run.describe_run(ctx, job.model), failures=job.failures, outputs=[setup.output])
    job.store.begin(description, overwrite=running.overwrite)
    with run.Progress(job.experiment.name, total, shown=running.progress) as bar:
        experiments.run(job.experiment, job.units, job.store, bar)
        job.after(bar)
    job.store.describe({**description, "complete": True})
    experiments.render(job.experiment, setup.output)
    return run.finish(record, setup.output, job.failures, done=len(job.images), running=running)


def _describe(ctx: click.Context, job: Job, total: int) -> dict[str, object]:
    """What result.json says: the same for the same run, wherever and whenever it is made."""
    from ddim_edit.experiments.store import FORMAT

    about = run.describe_run(ctx, job.model)
    return {
        "format": FORMAT,
        "experiment": job.experiment.name,
        "command": _command(ctx),
        "settings": {name: value for name, value in run.arguments_of(ctx).items() if name not in HIDDEN},
        "images": list(job.images),
        "model": about["model"],
        "grids": {name: grid.timesteps for name, grid in job.grids.items()},
        "steps": total,
        **{name: about[name] for name in ("device", "threads", "versions")},
        "failures": [vars(failure) for failure in job.failures],
    }


def _command(ctx: click.Context) -> str:
    """The command line that makes these rows again, without what they do not depend on."""
    words = ["ddim-edit", "experiment", str(ctx.info_name)]
    for param in ctx.command.params:
        value, name = ctx.params.get(str(param.name)), param.name
        if name in HIDDEN or value is None or value is False or value == () or value == []:  # but 0 is a value
            continue
        texts = [values.text(item) for item in value] if isinstance(param, click.Argument) else [values.text(value)]
        if isinstance(param, click.Option):
            if value == param.default or values.text(value) == str(param.default):  # get_default would take --config's
                continue
            texts = [param.opts[0]] + ([] if value is True else texts)
        words += texts
    return shlex.join(words)


def read_photos(
    source: options.Source, found: "Sequence[Photo]", model: "Model"
) -> "tuple[PhotoBatch, Sequence[Failure]]":
    """All photos that can be read, and why the others cannot."""
    import torch

    from ddim_edit.batch import PhotoBatch
    from ddim_edit.errors import ImageError

    batches = source.batches(list(found), model)
    parts = list(batches)
    if not parts:
        raise ImageError(f"none of the {len(found)} photos could be read: {batches.failures[0].error}")
    records = [record for part in parts for record in part.records]
    return PhotoBatch(records, torch.cat([part.pixels for part in parts])), batches.failures


@dataclass(frozen=True)
class Waypoints:
    """What paths lead through: photos, or latents drawn from seeds; see `experiments.interpolate.Plan`."""

    images: Sequence[Mapping[str, object]]
    take: "Take"
    recipe: "Recipe"
    photos: "Tensor | None" = None
    failures: "Sequence[Failure]" = ()

    @classmethod
    def of(
        cls,
        source: options.Source,
        seeds: list[int] | None,
        model: "Model",
        grid: options.GridChoice,
        condition: options.Condition,
    ) -> "Waypoints":
        """Photos are read here, and encoded when they are needed; seeds 0 to 7 where nothing is given."""
        from ddim_edit.experiments.interpolate import Encoder
        from ddim_edit.noise import gaussian

        if source.photos and seeds:
            raise click.UsageError("Give photos or --seeds to lead paths through, not both.")
        if not source.photos:
            drawn = seeds or list(range(8))
            x = gaussian(drawn, model.shape)
            recipe = method.Method(inverse="explicit").recipe(model, grid, condition)
            return cls(seed_images(drawn), lambda rows, on_step: x[list(rows)], recipe)
        recipe = method.Method().recipe(model, grid, condition)
        photos, failures = read_photos(source, source.find(), model)
        take = Encoder(model, recipe, photos.pixels, source.batch_size)
        return cls(photo_images(photos), take, recipe, photos.pixels, failures)


def grids_of(schedule: "NoiseSchedule", spacing: str, steps_list: Sequence[int]) -> "dict[int, Grid]":
    """A grid for every number of steps."""
    from ddim_edit.grid import Grid

    return {
        steps: Grid.build(schedule, steps, spacing)  # pyright: ignore[reportArgumentType]
        for steps in sorted(steps_list)
    }


def solvers_of(etas: Sequence[str]) -> "dict[str, Solver]":
    """The solvers of these names, eta = 0 first, because the others are compared with it."""
    from ddim_edit.solvers import Ddim

    given = {name: options.Randomness(values.eta(name)).solver() or Ddim() for name in etas}
    return dict(sorted(given.items(), key=lambda item: item[0] != "0"))


def seed_images(seeds: Sequence[int]) -> list[Mapping[str, object]]:
    """What result.json says of images that are seeds."""
    from ddim_edit.noise import seed_name

    return [{"name": seed_name(seed), "seed": seed} for seed in seeds]


def photo_images(photos: "PhotoBatch") -> list[Mapping[str, object]]:
    """What result.json says of images that are photos."""
    return [{"name": record.name, **record.source} for record in photos.records]
