"""From latents or noise to pictures: the loop toward clean."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor

from ddim_edit.denoiser import Denoiser, PredictionType
from ddim_edit.errors import ConfigError, LatentsError
from ddim_edit.grid import Grid
from ddim_edit.inverse import Recorded
from ddim_edit.latents import Latents, PhotoRecord
from ddim_edit.models.base import MicroBatched, Model
from ddim_edit.noise import GivenNoise, SeededNoise, gaussian, seed_name
from ddim_edit.ode import OnStep, integrate
from ddim_edit.recipe import Recipe
from ddim_edit.solvers import Ddim, Lattice, Solver, State
from ddim_edit.solvers.base import StepNoise

SHOWS = 0.5  # signal / noise above which a photo shows through its noise


def decode(
    model: Model,
    latents: Latents,
    *,
    grid: Grid | int | str | None = None,
    solver: Solver | None = None,
    denoiser: Denoiser | None = None,
    noise: StepNoise | None = None,
    force: bool = False,
    on_step: OnStep | None = None,
) -> Tensor:
    """Decode latents into pictures, by default exactly the way they were encoded, walked back.

    Args:
        model: the model that encoded them.
        latents: B of them, whole or encoded part of the way.
        grid: another grid, number of steps (spread as theirs are) or respacing than they were encoded with.
        solver: another solver; a random one (eta > 0) needs `noise`, unless the latents carry their own.
        denoiser: another condition, guidance or clipping than they were encoded with.
        noise: the step noise of a random solver, instead of the latents' own: `SeededNoise` or `GivenNoise`.
        force: decode although the latents come from another model.
        on_step: called after every step; may replace the state.

    Returns:
        (B, 3, H, W) float, around [-1, 1] and not clamped, on the CPU.

    Raises:
        LatentsError: another model's latents, or settings that this version cannot restore.
        NumericsError: values that are not finite.
    """
    recipe, state = prepared(model, latents, grid=grid, solver=solver, denoiser=denoiser, noise=noise, force=force)
    return _to_pixels(model, recipe, state, on_step)


def prepared(
    model: Model,
    latents: Latents,
    *,
    grid: Grid | int | str | None = None,
    solver: Solver | None = None,
    denoiser: Denoiser | None = None,
    noise: StepNoise | None = None,
    force: bool = False,
) -> tuple[Recipe, State]:
    """How latents will be decoded, and from where: what `decode` refuses is refused here, before any work.

    Arguments and errors are those of `decode`.
    """
    if not len(latents):
        raise LatentsError("there are no latents; give one or more")
    if not force:
        latents.require_same(model.space, of=f"model {model.name}")
    recipe = Recipe.of(latents, model, grid=grid, solver=solver, denoiser=denoiser)
    recipe = replace(recipe, grid=_reaching(recipe.grid, latents))
    require_repeatable(model, recipe.solver)
    memory = tuple(value.to(model.device) for value in latents.memory) if recipe.solver.pair else ()
    if noise is None and latents.noises is not None:
        noise = _own_noise(latents.noises, latents.how, recipe)
    state = State.start(latents.x.to(model.device), noise, memory)
    _require_start(model, recipe, state)
    return recipe, state


def sample(
    model: Model,
    start: Sequence[int] | Tensor,
    *,
    grid: Grid | int | str = 50,
    solver: Solver = Ddim(),
    denoiser: Denoiser | None = None,
    noise: StepNoise | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """Draw pictures from noise.

    Args:
        model: any model.
        start: one seed per picture, or x_T itself (B, C, h, w).
        grid: the levels, a number of steps in the model's own spacing, or a respacing text. Photos are encoded in
            another spacing: x_T of theirs is for `decode`, which knows it (see `Latents.with_x`).
        solver: `Ddim(eta=1.0)` is DDPM-like; its step noise comes from the seeds, or from `noise`.
        denoiser: condition, guidance, clipping; see `Model.denoiser`.
        noise: the step noise of a random solver, instead of the seeds': `SeededNoise` or `GivenNoise`.
        on_step: called after every step; may replace the state.

    Returns:
        (B, 3, H, W) float, around [-1, 1] and not clamped, on the CPU. All B are shown to the network at once, unless
        the model is `micro_batched`.

    Raises:
        ConfigError: settings that cannot work together; NumericsError: values that are not finite.
    """
    if isinstance(start, Tensor):
        x = start
    else:
        seeds = [int(seed) for seed in start]
        x = gaussian(seeds, model.shape)
        noise = noise or SeededNoise(tuple(seeds))
    recipe = Recipe(Grid.of(model.schedule, grid), solver, denoiser or model.denoiser())
    state = State.start(x.to(model.device), noise)
    _require_start(model, recipe, state)
    return _to_pixels(model, recipe, state, on_step)


def seed_latents(
    model: Model,
    seeds: Sequence[int],
    *,
    grid: Grid | int | str = 50,
    solver: Solver = Ddim(),
    denoiser: Denoiser | None = None,
) -> Latents:
    """The latents of pictures that `sample` would draw, to move between them as between photos.

    At eta > 0 a picture is its x_T and the noise of every step, so the latents carry both.

    Args:
        model: any model.
        seeds: one per picture.
        grid: the levels, a number of steps in the model's own spacing, or a respacing text.
        solver: as of `sample`.
        denoiser: condition, guidance, clipping; see `Model.denoiser`.

    Returns:
        Latents that `decode` turns into what `sample` draws from the same seeds.

    Raises:
        ConfigError: no seeds, or a negative one.
    """
    seeds = [int(seed) for seed in seeds]
    recipe = Recipe(Grid.of(model.schedule, grid), solver, denoiser or model.denoiser())
    x, draw = gaussian(seeds, model.shape), SeededNoise(tuple(seeds))
    return Latents(
        x=x,
        level=recipe.grid[recipe.grid.steps],
        space=model.space,
        how=recipe.to_json(),
        photos=tuple(PhotoRecord(seed_name(seed), {"seed": seed}) for seed in seeds),
        noises=None if solver.deterministic else torch.stack([draw(i + 1, x) for i in range(recipe.grid.steps)]),
    )


def require_signal(model: Model, grid: Grid) -> None:
    """Refuse, before any work, a grid that an epsilon model cannot walk.

    Raises:
        ConfigError: the noisiest level keeps no signal (zero terminal SNR).
    """
    top = grid[grid.steps]
    if model.prediction is PredictionType.EPSILON and top.signal == 0:
        raise ConfigError(f"an epsilon model cannot use t = {top.t:g}, where no signal is left; choose leading spacing")


def require_repeatable(model: Model, solver: Solver) -> None:
    """Refuse, before any work, a bit-exact solver with a network whose last bits depend on the batch.

    Raises:
        ConfigError: the lattice without micro-batches, or on a device without float64.
    """
    if isinstance(solver, Lattice) and model.device.type == "mps":
        raise ConfigError("solver lattice needs float64, which mps lacks; use device cpu, or another solver")
    if isinstance(solver, Lattice) and not isinstance(model.network, MicroBatched):
        raise ConfigError("solver lattice needs a network that sees batches of one size; use model.micro_batched(4)")


def _reaching(grid: Grid, latents: Latents) -> Grid:
    """The grid from clean up to the level of the latents: partial encodings start below its top.

    Whole ones may be decoded from a lower level as well, as long as that is mostly noise; pairs may not.
    """
    t = latents.level.t
    part = grid if grid.timesteps[-1] <= t else grid.until(t)
    if part.timesteps[-1] != t and not latents.whole:
        raise LatentsError(f"the latents are at t = {t:g}, which is no level of this grid; leave the grid as encoded")
    top = part[part.steps]
    if latents.whole and top.signal > SHOWS * top.noise:
        raise LatentsError(
            f"the latents are noise (t = {t:g}), and this grid begins at t = {top.t:g}, where photos show "
            "through; take more steps, or trailing spacing"
        )
    if latents.memory and part.timesteps != latents.how.get("timesteps"):
        raise LatentsError("the latents are pairs, whose second half belongs to their grid; leave the grid as encoded")
    return part


def _own_noise(noises: Tensor, how: Mapping[str, object], recipe: Recipe) -> StepNoise:
    if recipe.solver.deterministic:
        return GivenNoise(noises)
    if len(noises) != recipe.grid.steps:
        raise LatentsError(
            f"the latents carry noise for {len(noises)} steps, but this grid has {recipe.grid.steps}; "
            "leave the grid as it was, or give other noise"
        )
    ours = recipe.to_json()
    if recorded(how) and any(ours[key] != how.get(key) for key in ("timesteps", "solver")):
        raise LatentsError(
            "the latents carry noise that was recorded on another grid or at another eta; leave both as encoded, "
            "or give other noise"
        )
    return GivenNoise(noises)


def recorded(how: Mapping[str, object]) -> bool:
    """Whether latents that were made like this carry noise that was recorded from photos."""
    inverse = how.get("inverse")
    return isinstance(inverse, Mapping) and cast(Mapping[str, object], inverse).get("name") == Recorded.name


def _require_start(model: Model, recipe: Recipe, state: State) -> None:
    if state.x.shape[1:] != torch.Size(model.shape):
        raise ConfigError(f"x_T is {tuple(state.x.shape[1:])}, but the model takes {model.shape}; give matching noise")
    if state.x.dtype not in (torch.float32, torch.float64):  # rounding to half precision adds up over the steps
        raise ConfigError(f"x_T is {state.x.dtype}; give float32 or float64, whatever the precision of the network")
    require_signal(model, recipe.grid)


def _to_pixels(model: Model, recipe: Recipe, state: State, on_step: OnStep | None) -> Tensor:
    with torch.no_grad():
        x = integrate(recipe.denoiser, recipe.solver, recipe.grid, state, toward="clean", on_step=on_step).x
        return model.codec.decode(x).cpu()
