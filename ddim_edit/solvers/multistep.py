"""Multistep solvers: one evaluation a step, the order from the evaluations before. The same in both directions.

The first steps of a run have fewer evaluations to build on and are of a lower order, as are steps at the clean end
(which no network knows) and where no signal is left: DDIM's.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ddim_edit.denoiser import Denoiser, Prediction
from ddim_edit.grid import Grid
from ddim_edit.schedule import Level
from ddim_edit.solvers.base import State, UndoneBy
from ddim_edit.solvers.quadrature import advance
from ddim_edit.solvers.runge_kutta import BetweenLevels, Heun


class _Multistep(BetweenLevels):
    """`State.memory` holds what the earlier steps predicted, the newest first."""

    undone_by: ClassVar[UndoneBy] = "refining"

    def step(self, denoise: Denoiser, grid: Grid, start: int, stop: int, state: State) -> tuple[State, Prediction]:
        """From grid[start] to grid[stop], with the predictions at the levels that were left before."""
        here, there, back = grid[start], grid[stop], start - stop
        if self.order == 3 and not state.memory:  # the other starts would spoil the third order
            moved, first = Heun().step(denoise, grid, start, stop, state)
            return state.moved(moved.x, 2 * denoise.cost, (self.remembered(first),)), first
        prediction = denoise(state.x, here)
        known = (self.remembered(prediction), *state.memory)[: self.order]
        levels = [grid[start + back * k] for k in range(len(known))]
        x = self.combined(state.x, here, there, list(zip(levels, known, strict=True)))
        return state.moved(x, denoise.cost, known), prediction

    def remembered(self, prediction: Prediction) -> Tensor:
        """What of a prediction is kept for the steps to come."""
        return prediction.eps

    def combined(self, x: Tensor, here: Level, there: Level, known: list[tuple[Level, Tensor]]) -> Tensor:
        """The end of the step from what is known, the newest first."""
        return advance(x, here, there, known)


@dataclass(frozen=True)
class AdamsBashforth2(_Multistep):
    """Adams-Bashforth of order 2 on eps, in log SNR with the exact weights of uneven grids."""

    name: ClassVar[str] = "ab2"
    order: ClassVar[int] = 2


@dataclass(frozen=True)
class AdamsBashforth3(_Multistep):
    """Adams-Bashforth of order 3; its first step is Heun's."""

    name: ClassVar[str] = "ab3"
    order: ClassVar[int] = 3

    def evaluations(self, steps: int) -> int:
        """One a step, and one more in Heun's."""
        return steps + (steps > 1)


@dataclass(frozen=True)
class DpmSolver2M(_Multistep):
    """DPM-Solver++ 2M (arXiv 2211.01095, algorithm 2): order 2 on the predicted photo instead of on eps."""

    name: ClassVar[str] = "dpm++2m"
    order: ClassVar[int] = 2

    def remembered(self, prediction: Prediction) -> Tensor:
        """The predicted photo."""
        return prediction.x0

    def combined(self, x: Tensor, here: Level, there: Level, known: list[tuple[Level, Tensor]]) -> Tensor:
        """The data-prediction step, with the photo extrapolated to the middle of the step."""
        h = there.half_log_snr - here.half_log_snr
        x0 = known[0][1]
        if len(known) == 2:
            before = here.half_log_snr - known[1][0].half_log_snr
            x0 = x0 + h / (2 * before) * (x0 - known[1][1])
        return there.noise / here.noise * x - there.signal * math.expm1(-h) * x0
