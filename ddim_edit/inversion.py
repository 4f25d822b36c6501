"""From photos to latents: the ODE walked toward noise, with a self-check at the end."""

from dataclasses import replace

import torch
from torch import Tensor

from ddim_edit.decoding import require_repeatable, require_signal
from ddim_edit.denoiser import Denoiser
from ddim_edit.errors import ConfigError
from ddim_edit.grid import Grid
from ddim_edit.inverse import Inverse, default_inverse
from ddim_edit.latents import InversionReport, Latents, PhotoRecord
from ddim_edit.metrics import advice as health_advice
from ddim_edit.metrics import compare, latent_health
from ddim_edit.models.base import Model
from ddim_edit.ode import OnStep
from ddim_edit.recipe import STEPS, Recipe, default_spacing
from ddim_edit.schedule import NoiseSchedule
from ddim_edit.solvers import Ddim, Solver
from ddim_edit.task import Inverted, Restored, Task

OVERSHOOT = 5.0  # a drawn picture that was never rounded may leave [-1, 1]; 8-bit values are far beyond
GOOD_PSNR = 30.0  # dB; below it a difference is easily seen


def default_grid(schedule: NoiseSchedule, steps: int = STEPS) -> Grid:
    """Where photos are encoded unless told otherwise; see `recipe.default_spacing`."""
    return Grid.build(schedule, steps, default_spacing(schedule))


def encode(  # noqa: PLR0913
    model: Model,
    pixels: Tensor,
    *,
    grid: Grid | int | str = STEPS,
    solver: Solver = Ddim(),
    inverse: Inverse | None = None,
    denoiser: Denoiser | None = None,
    trajectory_every: int = 0,
    check: bool = True,
    on_step: OnStep | None = None,
) -> Latents:
    """Encode photos into latents, and decode them once more to see how well they come back.

    By default every step of plain DDIM is solved, until each 8-bit value of the photo comes back from x_T. At eta > 0
    the noise of every step is recorded, and the latents carry it.

    Args:
        model: any model.
        pixels: (B, 3, H, W) float32 or float64 in [-1, 1], at the model's size; see `images.read_image`.
        grid: the levels, a number of steps in `recipe.default_spacing`, or a respacing text. `grid.until(t)` encodes
            part of the way. Steps too large to be undone are split: `latents.how["timesteps"]` has what was walked.
        solver: the decoder that is undone. Of a random one (eta > 0) the noise of every step is recorded.
        inverse: how: `Exact`, `Explicit` or `Refine` with a goal and a budget, or `Recorded` at eta > 0. None: the one
            that brings photos back for this solver, with every 8-bit value as its goal.
        denoiser: condition and guidance; see `Model.denoiser`.
        trajectory_every: keep every so many intermediate x_t in the latents; 0 keeps none.
        check: decode the latents and record the quality per photo, where the inverse has not done so already.
        on_step: called after every step in either direction; may replace the state.

    Returns:
        Latents of B photos on the CPU, with one record per photo. All B are shown to the network at once: for many
        photos see `encode_photos`, or `Model.micro_batched`.

    Raises:
        ConfigError: pixels of the wrong shape, range or precision, or settings that cannot work.
        InversionError: a random solver with an inverse that records no noise.
        NumericsError: values that are not finite.
    """
    levels = Grid.of(model.schedule, grid, default_spacing(model.schedule))
    recipe = Recipe(levels, solver, denoiser or model.denoiser(), inverse or default_inverse(solver))
    return round_trip(model, pixels, recipe, trajectory_every=trajectory_every, check=check, on_step=on_step)[0]


def round_trip(
    model: Model,
    pixels: Tensor,
    recipe: Recipe,
    *,
    trajectory_every: int = 0,
    check: bool = True,
    on_step: OnStep | None = None,
) -> tuple[Latents, Restored | None]:
    """Encode photos by a recipe; returns the latents and what they decode to (None with `check` off, if not needed).

    Arguments and errors are those of `encode`.
    """
    _check_pixels(model, pixels)
    recipe = recipe.prepared()
    require_signal(model, recipe.grid)
    require_repeatable(model, recipe.solver)
    task = Task(
        model.codec.encode(pixels.to(model.device)),
        pixels.cpu(),
        lambda x: model.codec.decode(x).cpu(),
        recipe.grid,
        recipe.solver,
        recipe.denoiser,
        trajectory_every,
        on_step,
    )
    with torch.no_grad():
        found = recipe.inverse.run(task)
        restored = found.restored
        if check and restored is None:
            back = task.and_back(torch.arange(len(pixels)), found.walk.state)
            restored = Restored(task.to_pixels(back.x), back.evaluations)
            found = found._replace(reached=recipe.inverse.reached(task.pixels, restored.pixels))
    latents = with_health(_latents(model, recipe, found))
    return latents if restored is None else with_quality(latents, pixels, restored.pixels), restored


def _latents(model: Model, recipe: Recipe, found: Inverted) -> Latents:
    state, path, noises = found.walk
    records = [PhotoRecord(evaluations=int(count)) for count in state.evaluations]
    if state.solved or found.reached is not None:
        records = [replace(record, inversion=_report(found, row)) for row, record in enumerate(records)]
    return Latents(
        x=state.x.cpu(),
        level=recipe.grid[recipe.grid.steps],
        space=model.space,
        how=recipe.to_json(),
        photos=tuple(records),
        memory=tuple(value.cpu() for value in state.memory) if recipe.solver.pair else (),
        trajectory=torch.stack([x for _, x in path]) if path else None,
        trajectory_t=tuple(t for t, _ in path),
        noises=noises,
    )


def _report(found: Inverted, row: int) -> InversionReport:
    solved = found.walk.state.solved
    return InversionReport(
        None if found.reached is None else bool(found.reached[row]),
        sum(int(step.stalled[row]) for step in solved),
        tuple(float(f"{step.residual[row]:.3g}") for step in solved),
        tuple(int(step.iterations[row]) for step in solved),
    )


def with_quality(latents: Latents, pixels: Tensor, restored: Tensor) -> Latents:
    """Latents with the quality of these reconstructions (B, 3, H, W) in their records."""
    quality = compare(pixels.cpu(), restored)
    photos = tuple(replace(record, quality=q) for record, q in zip(latents.photos, quality, strict=True))
    return replace(latents, photos=photos)


def with_health(latents: Latents) -> Latents:
    """Latents with statistics in their records, where they are whole; see `metrics.latent_health`."""
    if not latents.whole:
        return latents
    halves = [latent_health(x) for x in (latents.x, *latents.memory)]
    photos = tuple(
        replace(record, health=first, second_health=second[0] if second else None)
        for record, first, *second in zip(latents.photos, *halves, strict=True)
    )
    return replace(latents, photos=photos)


def advice(record: PhotoRecord) -> list[str]:
    """What a user should know about an encoded photo: one line per problem, with the remedy; empty when all is well."""
    lines: list[str] = []
    if record.inversion and record.inversion.reached is False:
        lines.append(
            "the photo does not come back as well as was asked for; use more steps (-n), --dtype fp32, or a larger "
            "--budget if there is one"
        )
    if record.quality and record.quality.psnr < GOOD_PSNR:
        lines.append(
            f"the photo comes back with {record.quality.psnr:.1f} dB, visibly changed; "
            "use more steps (-n), or photos like those the model was trained on"
        )
    found = [health_advice(health) for health in (record.health, record.second_health) if health]
    lines += dict.fromkeys(line for line in found if line)
    return lines


def named_advice(latents: Latents) -> list[str]:
    """The `advice` on every photo of some latents, behind its name."""
    return [
        f"{name}: {line}" for name, record in zip(latents.names, latents.photos, strict=True) for line in advice(record)
    ]


def _check_pixels(model: Model, pixels: object) -> None:
    height, width = model.image_size
    if not isinstance(pixels, Tensor):
        raise ConfigError(f"pixels are a {type(pixels).__name__}; give a tensor (images.to_tensor makes one)")
    if pixels.shape == (3, height, width):
        raise ConfigError(f"pixels are {tuple(pixels.shape)}, one photo; give a batch, as photo[None]")
    if pixels.ndim != 4 or pixels.shape[1:] != (3, height, width):
        raise ConfigError(
            f"pixels are {tuple(pixels.shape)}, but {model.name} takes (B, 3, {height}, {width}); resize them"
        )
    if len(pixels) == 0:
        raise ConfigError("there are no photos; give one or more")
    if pixels.dtype not in (torch.float32, torch.float64):
        raise ConfigError(f"pixels are {pixels.dtype}; give float32 or float64 in [-1, 1] (images.to_tensor converts)")
    if not torch.isfinite(pixels).all() or pixels.abs().max() > OVERSHOOT:
        raise ConfigError("pixels are not finite or not in [-1, 1]; scale 8-bit values by x / 127.5 - 1")
