"""The exact inverse of a one-step solver: find the noisier x that its step toward clean takes to the given one.

For DDIM with eps this is x = A y + B eps(x, t) with A = signal_t / signal_s and B = noise_t - A noise_s (y at the
cleaner level s). Every "DDIM inversion" that is not this is one guess of eps: at (y, s), the DDIM paper's; or at
(y, t), diffusers', which is the first iterate here. Written as x + A (y - step(x)) the same iteration inverts any
one-step solver and any prediction type, because only the step itself is ever computed.
"""

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from ddim_edit.denoiser import Denoiser, Prediction, select_rows
from ddim_edit.grid import Grid
from ddim_edit.schedule import Level
from ddim_edit.solvers.base import Solver, State, UndoneBy
from ddim_edit.solvers.fixed_point import solve

ITERATIONS = 60  # in one step, where no plan says fewer


@dataclass(frozen=True)
class Implicit(Solver):
    """Toward clean the inner solver, toward noise its exact inverse, solved photo by photo.

    Args:
        inner: a one-step solver without randomness.
        tolerance: (B,) or (1,) float64: RMS of a step's residual in units of the photo, at which it is solved.
        plan: (B, steps) or (1, steps) int64: iterations of each step, the cleanest first; what a photo does not need,
            its later steps may use. None: as many as it takes, within `ITERATIONS`.
        warm: start from where the predictions so far lead (the step of DPM-Solver++ 2M) instead of from y.
    """

    inner: Solver
    tolerance: Tensor
    plan: Tensor | None = None
    warm: bool = True
    name: ClassVar[str] = "implicit"
    order: ClassVar[int] = 1
    undone_by: ClassVar[UndoneBy] = "itself"

    @property
    def deterministic(self) -> bool:
        """As the inner solver."""
        return self.inner.deterministic

    def toward_clean(self, denoise: Denoiser, grid: Grid, i: int, state: State) -> tuple[State, Prediction]:
        """The inner solver's step."""
        return self.inner.toward_clean(denoise, grid, i, state)

    def toward_noise(self, denoise: Denoiser, grid: Grid, i: int, state: State) -> tuple[State, Prediction]:
        """Solve for the x at grid[i] whose step toward clean arrives at state.x."""
        here, there, y = grid[i - 1], grid[i], state.x
        gain = _gain(here, there)
        cost = 0

        def residual(rows: Tensor, x: Tensor) -> Tensor:
            nonlocal cost
            landed, _ = self.inner.toward_clean(select_rows(denoise, rows), grid, i, State.start(x))
            cost = int(landed.evaluations[0])
            return gain * (y[rows] - landed.x)

        unit = gain * here.signal  # of r, for an error of 1 in the photo
        x, found = solve(
            residual,
            self._guess(grid, i, state),
            tolerance=self.tolerance.expand(len(y)) * unit,
            limit=self._limit(i, state),
            relax=_relaxation(here, there) if self.warm else 1.0,
        )
        found = found._replace(residual=found.residual / unit)
        prediction = _implied(here, there, y, x)
        state = state.moved(x, found.iterations * cost, (prediction.x0, *state.memory[:1]))
        return replace(state, solved=(*state.solved, found)), prediction

    def _limit(self, i: int, state: State) -> Tensor:
        if self.plan is None:
            return torch.full((len(state.x),), ITERATIONS)
        spent = sum((found.iterations for found in state.solved), torch.zeros(len(state.x), dtype=torch.int64))
        return self.plan[:, :i].sum(1) - spent

    def _guess(self, grid: Grid, i: int, state: State) -> Tensor:
        """Where the predicted photo, extrapolated in log SNR, leads; y itself where nothing was predicted yet."""
        here, there, y = grid[i - 1], grid[i], state.x
        if not (self.warm and state.memory):
            return y
        x0, *before = state.memory
        if before and there.signal:
            x0 = x0 + (x0 - before[0]) * (here.log_snr - there.log_snr) / (grid[i - 2].log_snr - here.log_snr)
        return there.signal * x0 + there.noise / here.noise * (y - here.signal * x0)


def _gain(here: Level, there: Level) -> float:
    """How far x must move at `there` for its step to land 1 further: signal_t / signal_s where eps does not change.

    With no signal left at `there` nothing of the photo is in x, and it is the noise that is handed on.
    """
    gain = there.signal / here.signal
    return gain if gain > 1e-3 or not here.noise else there.noise / here.noise


def _relaxation(here: Level, there: Level) -> float:
    """The step that contracts best without history.

    The iteration shrinks errors by (1 - exp(-h)) (1 - kappa), h the step in log SNR and kappa the share of an error
    that the denoiser keeps. For kappa in [0, 1] the best step is 2 / (1 + exp(-h)); where the noise is low, kappa
    lies around 1 and the best step is 1.
    """
    h = here.log_snr - there.log_snr if here.noise and there.signal else 0.0
    return 1 + (2 / (1 + math.exp(-h)) - 1) * there.noise**4


def _implied(here: Level, there: Level, y: Tensor, x: Tensor) -> Prediction:
    """The prediction with which DDIM steps from x to y."""
    shrink = there.signal / here.signal
    eps = (x - shrink * y) / (there.noise - shrink * here.noise)
    return Prediction((y - here.noise * eps) / here.signal, eps)
