"""What to expect of solving the steps of a grid, and so how to spend a budget of evaluations on them."""

import math

from ddim_edit.errors import ConfigError
from ddim_edit.grid import Grid
from ddim_edit.solvers import Solver

MAX_H = 5.0  # step size, in the plan of a budget
SHRINK = 0.6  # contraction over tanh(h / 2), as the bundled model's steps have it
AT_THE_ENDS = 0.3  # contraction, in the plan of a budget, of a step to the photo or from pure noise


def contractions(grid: Grid) -> list[float | None]:
    """What one evaluation is expected to leave of an error in each step, the cleanest first; None at the ends.

    SHRINK tanh(h / 2) for a step of size h in log SNR: tanh(h / 2) is what a relaxed fixed point has in theory where
    the denoiser keeps between none and all of an error.
    """
    return [SHRINK * math.tanh(h / 2) if math.isfinite(h) else None for h in grid.step_sizes()]


def planned(grid: Grid, budget: int) -> tuple[int, ...]:
    """How a budget of evaluations is best spent on the steps of a grid: one each, and more where they help most.

    A step of size h in log SNR at noise / signal u starts with an error of about h^2 u / (1 + u) in the photo, of which
    less reaches the end where u is large (fitted to the bundled model on training photos). Every evaluation shrinks it
    by the step's contraction, and each one goes where it takes most of the sum of squares away.
    """
    sizes = [min(h, MAX_H) if math.isfinite(h) else 1.0 for h in grid.step_sizes()]
    ratios = [level.noise / max(level.signal, 1e-3) for level in grid.levels[1:]]
    error = [h * h * u / ((1 + u) * (1 + u / 20)) for u, h in zip(ratios, sizes, strict=True)]
    shrink = [AT_THE_ENDS if rate is None else rate for rate in contractions(grid)]
    counts = [1] * grid.steps
    for _ in range(budget - grid.steps):
        gain = [(e * r**n) ** 2 * (1 - r * r) for e, r, n in zip(error, shrink, counts, strict=True)]
        counts[gain.index(max(gain))] += 1
    return tuple(counts)


def require_budget(budget: int | None, solver: Solver, grid: Grid, cost: int) -> None:
    """Refuse a budget that does not suffice for `cost` forwards of every evaluation of one walk.

    Raises:
        ConfigError: it is too small, or of a solver whose walks cost what they cost.
    """
    if budget is None:
        return
    if solver.undone_by == "itself":
        raise ConfigError(f"solver {solver.name} takes what it takes; leave the budget out, or choose another solver")
    least = solver.evaluations(grid.steps) * cost
    if budget < least:
        raise ConfigError(f"budget {budget} is too small for {grid.steps} steps; give {least} or more")
