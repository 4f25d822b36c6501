"""Solvers that follow the ODE itself and undo themselves: the trapezoid rule, and an adaptive Runge-Kutta reference.

At the clean end and where no signal is left a step is DDIM's, and its exact inverse.
"""

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from ddim_edit.denoiser import Denoiser, Prediction, select_rows
from ddim_edit.errors import NumericsError
from ddim_edit.grid import Grid
from ddim_edit.schedule import Level
from ddim_edit.solvers.base import State, UndoneBy
from ddim_edit.solvers.ddim import Ddim
from ddim_edit.solvers.fixed_point import solve
from ddim_edit.solvers.implicit import Implicit
from ddim_edit.solvers.quadrature import advance
from ddim_edit.solvers.runge_kutta import BetweenLevels

ITERATIONS = 40


class _Symmetric(BetweenLevels):
    undone_by: ClassVar[UndoneBy] = "itself"
    tolerance: float

    def end_toward_noise(self, denoise: Denoiser, grid: Grid, i: int, state: State) -> tuple[State, Prediction]:
        """The exact inverse of DDIM's step."""
        implicit = Implicit(Ddim(), torch.tensor([self.tolerance], dtype=torch.float64))
        return implicit.toward_noise(denoise, grid, i, state)


@dataclass(frozen=True)
class Trapezoid(_Symmetric):
    """The implicit trapezoid rule in log SNR: eps counts at both ends, so the same equation serves both directions.

    Args:
        tolerance: RMS in units of the photo at which a step is solved.
    """

    tolerance: float = 1e-5
    name: ClassVar[str] = "trapezoid"
    order: ClassVar[int] = 2

    def step(self, denoise: Denoiser, grid: Grid, start: int, stop: int, state: State) -> tuple[State, Prediction]:
        """From grid[start] to grid[stop]."""
        here, there = grid[start], grid[stop]
        prediction = denoise(state.x, here)

        def residual(rows: Tensor, x: Tensor) -> Tensor:
            eps = select_rows(denoise, rows)(x, there).eps
            return advance(state.x[rows], here, there, [(here, prediction.eps[rows]), (there, eps)]) - x

        x, found, _ = solve(
            residual,
            advance(state.x, here, there, [(here, prediction.eps)]),
            enough=lambda row, rms, looks: rms <= self.tolerance * there.signal or looks >= ITERATIONS,
        )
        unit = there.signal  # of the residual, for an error of 1 in the photo
        found = found._replace(residual=found.residual / unit, first=found.first / unit)
        state = state.moved(x, (found.iterations + 1) * denoise.cost)
        return replace(state, solved=(*state.solved, found)), prediction


@dataclass(frozen=True)
class Dop853(_Symmetric):
    """scipy's adaptive Runge-Kutta method of order 8: the true ODE, whatever the grid. A reference; it is slow.

    Args:
        tolerance: relative and absolute, of x / signal.
    """

    tolerance: float = 1e-6
    name: ClassVar[str] = "dop853"
    order: ClassVar[int] = 8

    def step(self, denoise: Denoiser, grid: Grid, start: int, stop: int, state: State) -> tuple[State, Prediction]:
        """From grid[start] to grid[stop]."""
        here, there = grid[start], grid[stop]
        runs = [
            self._photo(select_rows(denoise, torch.tensor([row])), grid, here, there, state.x[row : row + 1])
            for row in range(len(state.x))
        ]
        x = torch.cat([x for x, _ in runs])
        calls = torch.tensor([count for _, count in runs])
        return state.moved(x, (calls + 1) * denoise.cost), denoise(state.x, here)

    def _photo(self, denoise: Denoiser, grid: Grid, here: Level, there: Level, x: Tensor) -> tuple[Tensor, int]:
        from scipy.integrate import solve_ivp

        def slope(half_log_snr: float, x_bar: np.ndarray) -> np.ndarray:
            level = grid.level_at(half_log_snr)
            at = (level.signal * torch.from_numpy(x_bar).view_as(x)).to(x)
            return -math.exp(-half_log_snr) * denoise(at, level).eps.double().cpu().numpy().ravel()

        span = [level.half_log_snr for level in (here, there)]
        start = (x.double() / here.signal).cpu().numpy().ravel()
        run = solve_ivp(slope, span, start, method="DOP853", rtol=self.tolerance, atol=self.tolerance)
        if not run.success:
            raise NumericsError(f"dop853 stopped before t = {there.t:g} ({run.message}); loosen its tolerance")
        return (there.signal * torch.from_numpy(run.y[:, -1]).view_as(x)).to(x), int(run.nfev)
