"""From photos to latents: the ODE walked toward noise, with a self-check at the end."""

from dataclasses import replace

import torch
from torch import Tensor

from ddim_edit.decoding import decode, require_signal
from ddim_edit.denoiser import Denoiser
from ddim_edit.errors import ConfigError, InversionError
from ddim_edit.grid import Grid
from ddim_edit.latents import Latents, PhotoRecord
from ddim_edit.metrics import advice as health_advice
from ddim_edit.metrics import compare, latent_health
from ddim_edit.models.base import Model
from ddim_edit.ode import OnStep, walk
from ddim_edit.recipe import Recipe
from ddim_edit.solvers import Ddim, Solver, State

GOOD_PSNR = 30.0  # dB; below it a difference is easily seen


def encode(
    model: Model,
    pixels: Tensor,
    *,
    grid: Grid | int | str = 50,
    solver: Solver = Ddim(),
    denoiser: Denoiser | None = None,
    trajectory_every: int = 0,
    check: bool = True,
    on_step: OnStep | None = None,
) -> Latents:
    """Encode photos into latents, and decode them once more to see how well they come back.

    Args:
        model: any model.
        pixels: (B, 3, H, W) float32 or float64 in [-1, 1], at the model's size; see `images.read_image`.
        grid: the levels, a number of steps in the model's own spacing, or a respacing text. `grid.until(t)` encodes
            part of the way.
        solver: must be deterministic.
        denoiser: condition and guidance; see `Model.denoiser`.
        trajectory_every: keep every so many intermediate x_t in the latents; 0 keeps none.
        check: decode the latents and record the quality per photo. Costs as many evaluations again.
        on_step: called after every step of encoding and of the self-check; may replace the state.

    Returns:
        Latents of B photos on the CPU, with one record per photo.

    Raises:
        ConfigError: pixels of the wrong shape, range or precision, or settings that cannot work.
        InversionError: a random solver.
        NumericsError: values that are not finite.
    """
    if not solver.deterministic:
        raise InversionError(f"{solver.settings} is random, so nothing can be encoded with it; encode with eta = 0")
    _check_pixels(model, pixels)
    recipe = Recipe(Grid.of(model.schedule, grid), solver, denoiser or model.denoiser())
    require_signal(model, recipe.grid)
    kept: list[tuple[float, Tensor]] = []
    with torch.no_grad():
        state = State.start(model.codec.encode(pixels.to(model.device)))
        for step in walk(recipe.denoiser, solver, recipe.grid, state, toward="noise", on_step=on_step):
            state = step.state
            if trajectory_every and step.index % trajectory_every == 0:
                kept.append((step.level.t, state.x.cpu()))
    latents = Latents(
        x=state.x.cpu(),
        level=recipe.grid[recipe.grid.steps],
        space=model.space,
        how=recipe.to_json(),
        photos=tuple(PhotoRecord(evaluations=int(count)) for count in state.evaluations),
        memory=tuple(value.cpu() for value in state.memory),
        trajectory=torch.stack([x for _, x in kept]) if kept else None,
        trajectory_t=tuple(t for t, _ in kept),
    )
    latents = with_health(latents)
    if not check:
        return latents
    restored = decode(model, latents, grid=recipe.grid, solver=solver, denoiser=recipe.denoiser, on_step=on_step)
    return with_quality(latents, pixels, restored)


def with_quality(latents: Latents, pixels: Tensor, restored: Tensor) -> Latents:
    """Latents with the quality of these reconstructions (B, 3, H, W) in their records."""
    quality = compare(pixels.cpu(), restored)
    photos = tuple(replace(record, quality=q) for record, q in zip(latents.photos, quality, strict=True))
    return replace(latents, photos=photos)


def with_health(latents: Latents) -> Latents:
    """Latents with statistics in their records, where they are whole; see `metrics.latent_health`."""
    if not latents.whole:
        return latents
    health = latent_health(latents.x)
    photos = tuple(replace(record, health=h) for record, h in zip(latents.photos, health, strict=True))
    return replace(latents, photos=photos)


def advice(record: PhotoRecord) -> list[str]:
    """What a user should know about an encoded photo: one line per problem, with the remedy; empty when all is well."""
    lines: list[str] = []
    if record.quality and record.quality.psnr < GOOD_PSNR:
        lines.append(
            f"the photo comes back with {record.quality.psnr:.1f} dB, visibly changed; "
            "use more steps (-n), or photos like those the model was trained on"
        )
    if record.health and (line := health_advice(record.health)):
        lines.append(line)
    return lines


def _check_pixels(model: Model, pixels: Tensor) -> None:
    height, width = model.image_size
    if pixels.ndim != 4 or pixels.shape[1:] != (3, height, width) or len(pixels) == 0:
        raise ConfigError(
            f"pixels are {tuple(pixels.shape)}, but {model.name} takes (B, 3, {height}, {width}); resize them"
        )
    if pixels.dtype not in (torch.float32, torch.float64):
        raise ConfigError(f"pixels are {pixels.dtype}; give float32 or float64 in [-1, 1] (images.to_tensor converts)")
    if not torch.isfinite(pixels).all() or pixels.abs().max() > 1 + 1e-4:
        raise ConfigError("pixels are not finite or not in [-1, 1]; scale 8-bit values by x / 127.5 - 1")
