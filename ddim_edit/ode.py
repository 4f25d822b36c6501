"""The only loop of the package: walk a grid with a solver, toward noise or toward clean.

`walk` is a generator that yields every step, for those who want to watch or to stop; `integrate` runs it to the end.
Neither prints, saves or draws: the caller does, from the steps.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch

from ddim_edit.denoiser import Denoiser, Prediction
from ddim_edit.errors import NumericsError
from ddim_edit.grid import Grid
from ddim_edit.schedule import Level
from ddim_edit.solvers.base import State, Stepper

Direction = Literal["clean", "noise"]


@dataclass(frozen=True)
class Step:
    """One step of a run, after it was made.

    Args:
        index: 1 for the first step of the run.
        of: the number of steps of the run.
        level: the level arrived at.
        state: the state there; `state.x` is x_t.
        prediction: what the step was made with; `prediction.x0` is the predicted photo.
    """

    index: int
    of: int
    level: Level
    state: State
    prediction: Prediction


OnStep = Callable[[Step], State | None]


def walk(
    denoise: Denoiser,
    stepper: Stepper,
    grid: Grid,
    state: State,
    *,
    toward: Direction,
    on_step: OnStep | None = None,
) -> Iterator[Step]:
    """Yield every step from one end of the grid to the other.

    Args:
        denoise: predicts from (x, level).
        stepper: makes the steps; a `Solver`, as a rule.
        grid: the levels; `toward="clean"` starts at grid[grid.steps], `toward="noise"` at grid[0].
        state: where to start.
        toward: the direction.
        on_step: called after every step; a state that it returns takes the place of the step's own.

    Raises:
        NumericsError: a value is not finite; the message names the step.
    """
    steps = grid.steps
    intervals = range(steps, 0, -1) if toward == "clean" else range(1, steps + 1)
    make_step = stepper.toward_clean if toward == "clean" else stepper.toward_noise
    for index, i in enumerate(intervals, start=1):
        state, prediction = make_step(denoise, grid, i, state)
        step = Step(index, steps, grid[i - 1] if toward == "clean" else grid[i], state, prediction)
        if not torch.isfinite(state.x).all():
            raise NumericsError(
                f"values are not finite after step {index} of {steps} (t = {step.level.t:g}); "
                "run the network in fp32 and check its weights and the input"
            )
        if on_step and (replaced := on_step(step)) is not None:
            state = stepper.resume(replaced)
            step = replace(step, state=state)
        yield step


def integrate(
    denoise: Denoiser,
    stepper: Stepper,
    grid: Grid,
    state: State,
    *,
    toward: Direction,
    on_step: OnStep | None = None,
) -> State:
    """Run `walk` to its end and return the last state. Arguments and errors are those of `walk`."""
    for step in walk(denoise, stepper, grid, state, toward=toward, on_step=on_step):
        state = step.state
    return state
