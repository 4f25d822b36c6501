"""From latents, noise or a path between latents to pictures: the deterministic loop toward clean."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ddim_edit.denoiser import Denoiser, PredictionType
from ddim_edit.errors import ConfigError, LatentsError
from ddim_edit.grid import Grid
from ddim_edit.interpolation import How, along, positions
from ddim_edit.latents import Latents
from ddim_edit.models.base import MicroBatched, Model
from ddim_edit.noise import SeededNoise, gaussian
from ddim_edit.ode import OnStep, integrate
from ddim_edit.recipe import Recipe
from ddim_edit.solvers import Ddim, Lattice, Solver, State
from ddim_edit.solvers.base import StepNoise


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
        grid: another grid, number of steps or respacing than they were encoded with.
        solver: another solver; a random one (eta > 0) needs `noise`.
        denoiser: another condition, guidance or clipping than they were encoded with.
        noise: the step noise of a random solver.
        force: decode although the latents come from another model.
        on_step: called after every step; may replace the state.

    Returns:
        (B, 3, H, W) float, around [-1, 1] and not clamped, on the CPU.

    Raises:
        LatentsError: another model's latents, or settings that this version cannot restore.
        NumericsError: values that are not finite.
    """
    if not force:
        latents.require_same(model.space, of=f"model {model.name}")
    recipe = Recipe.of(latents, model, grid=grid, solver=solver, denoiser=denoiser)
    recipe = replace(recipe, grid=_reaching(recipe.grid, latents))
    require_repeatable(model, recipe.solver)
    memory = tuple(value.to(model.device) for value in latents.memory) if recipe.solver.pair else ()
    state = State.start(latents.x.to(model.device), noise, memory)
    return _to_pixels(model, recipe, state, on_step)


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
        grid: the levels, a number of steps in the model's own spacing, or a respacing text.
        solver: `Ddim(eta=1.0)` is DDPM-like; its step noise comes from the seeds, or from `noise`.
        denoiser: condition, guidance, clipping; see `Model.denoiser`.
        noise: the step noise of a random solver, instead of the seeds'.
        on_step: called after every step; may replace the state.

    Returns:
        (B, 3, H, W) float, around [-1, 1] and not clamped, on the CPU.

    Raises:
        ConfigError: settings that cannot work together; NumericsError: values that are not finite.
    """
    if isinstance(start, Tensor):
        x = start
    else:
        x = gaussian(start, model.shape)
        noise = noise or SeededNoise(tuple(start))
    recipe = Recipe(Grid.of(model.schedule, grid), solver, denoiser or model.denoiser())
    return _to_pixels(model, recipe, State.start(x.to(model.device), noise), on_step)


def morph(
    model: Model,
    latents: Latents,
    frames: int = 60,
    *,
    how: How = "slerp",
    grid: Grid | int | str | None = None,
    batch_size: int = 8,
    on_step: OnStep | None = None,
) -> Iterator[Tensor]:
    """Yield the frames (3, H, W) of a morph through the photos, one batch in memory at a time.

    Args:
        model: the model that encoded them.
        latents: one per photo, in the order of the morph; two or more.
        frames: all frames together; every photo falls on a frame of its own, the first and last on the ends.
        how: `slerp` keeps the norm of the latents; `lerp` is there for comparison.
        grid: another grid or number of steps than they were encoded with; fewer are faster.
        batch_size: frames decoded at once.
        on_step: called after every step of every batch.

    Raises:
        ConfigError: fewer than two photos, or fewer frames than photos; and the errors of `decode`.
    """
    if len(latents) < 2:
        raise ConfigError(f"a morph needs two photos or more, not {len(latents)}")
    where = positions(len(latents), frames)
    for start in range(0, frames, batch_size):
        x = along(latents.x, where[start : start + batch_size], how)
        between = Latents(x, latents.level, latents.space, latents.how)
        yield from decode(model, between, grid=grid, on_step=on_step)


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
        ConfigError: the lattice without micro-batches.
    """
    if isinstance(solver, Lattice) and not isinstance(model.network, MicroBatched):
        raise ConfigError("solver lattice needs a network that sees batches of one size; use model.micro_batched(4)")


def _reaching(grid: Grid, latents: Latents) -> Grid:
    """The grid from clean up to the level of the latents: partial encodings start below its top.

    Whole ones may be decoded from a lower top as well, because noise is noise at both.
    """
    t = latents.level.t
    part = grid if grid.timesteps[-1] <= t else grid.until(t)
    if part.timesteps[-1] != t and (t < grid.timesteps[-1] or not latents.whole):
        raise LatentsError(f"the latents are at t = {t:g}, which is no level of this grid; leave the grid as encoded")
    return part


def _to_pixels(model: Model, recipe: Recipe, state: State, on_step: OnStep | None) -> Tensor:
    if state.x.shape[1:] != torch.Size(model.shape):
        raise ConfigError(f"x_T is {tuple(state.x.shape[1:])}, but the model takes {model.shape}; give matching noise")
    if state.x.dtype not in (torch.float32, torch.float64):  # rounding to half precision adds up over the steps
        raise ConfigError(f"x_T is {state.x.dtype}; give float32 or float64, whatever the precision of the network")
    require_signal(model, recipe.grid)
    with torch.no_grad():
        x = integrate(recipe.denoiser, recipe.solver, recipe.grid, state, toward="clean", on_step=on_step).x
        return model.codec.decode(x).cpu()
