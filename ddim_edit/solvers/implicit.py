"""The exact inverse of a one-step solver: find the noisier x that its step toward clean takes to the given one.

For DDIM with eps this is x = A y + B eps(x, t) with A = signal_t / signal_s and B = noise_t - A noise_s (y at the
cleaner level s). Every "DDIM inversion" that is not this is one guess of eps: at (y, s), the DDIM paper's; or at
(y, t), diffusers', which is the first iterate here. Written as x + A (y - step(x)) the same iteration inverts any
one-step solver and any prediction type, because only the step itself is ever computed.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ddim_edit.denoiser import Denoiser, Prediction, select_rows
from ddim_edit.grid import Grid
from ddim_edit.schedule import Level
from ddim_edit.solvers.base import Solver, State, Stepper
from ddim_edit.solvers.ddim import Ddim
from ddim_edit.solvers.fixed_point import Enough, Moves, solve
from ddim_edit.solvers.spending import hardness, outlooks, worth_another_look

ITERATIONS = 60  # in one step, where no budget says fewer
KEPT_MOVES = 2  # of a step's search, for the next step's
AHEAD = 0.75  # how much of the change of the predicted photo is expected to go on in the next step


@dataclass(frozen=True)
class Implicit(Stepper):
    """Toward clean the inner solver, toward noise its exact inverse, solved photo by photo.

    Args:
        inner: a one-step solver without randomness.
        tolerance: (B,) or (1,) float64: RMS of a step's residual in units of the photo, at which it is solved.
        budget: (B,) or (1,) int64: looks at the network on the whole walk; one at each step, and more where they
            help most. None: as many as it takes.
        limit: looks at one step, at most.
        warm: start from where the predictions so far lead (the step of DPM-Solver++ 2M) instead of from y, and with
            what the network answered to the last moves of the step before.
    """

    inner: Solver
    tolerance: Tensor
    budget: Tensor | None = None
    limit: int = ITERATIONS
    warm: bool = True

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
        x, found, moves = solve(
            residual,
            self._guess(grid, i, state),
            enough=self._enough(grid, i, state, unit),
            relax=_relaxation(here, there) if self.warm else 1.0,
            hints=_hints(here, there, state) if self.warm else None,
            keep=KEPT_MOVES if self.warm else 0,
        )
        found = found._replace(residual=found.residual / unit, first=found.first / unit)
        prediction = _implied(here, there, y, x)
        before = state.memory[0] if state.memory else prediction.x0
        memory = (prediction.x0, before, moves.dx, (moves.dr + moves.dx) / _fixed_share(here, there))
        state = state.moved(x, found.iterations * cost, memory)
        return replace(state, solved=(*state.solved, found)), prediction

    def _enough(self, grid: Grid, i: int, state: State, unit: float) -> Enough:
        """When the step to grid[i] is solved well enough, photo by photo."""
        tolerance = (self.tolerance * unit).expand(len(state.x)).tolist()
        spent = None if self.budget is None else _spent(self.budget, grid, i, state, unit)

        def enough(row: int, residual: float, looks: int) -> bool:
            if residual <= tolerance[row] or looks >= self.limit:
                return True
            return spent is not None and spent(row, residual, looks)

        return enough

    def _guess(self, grid: Grid, i: int, state: State) -> Tensor:
        """Where the predicted photo, extrapolated in log SNR, leads; y itself where nothing was predicted yet."""
        here, there, y = grid[i - 1], grid[i], state.x
        if not (self.warm and state.memory):
            return y
        x0, before, *_ = state.memory
        if i > 2 and there.signal:
            ratio = (here.half_log_snr - there.half_log_snr) / (grid[i - 2].half_log_snr - here.half_log_snr)
            x0 = x0 + AHEAD * ratio * (x0 - before)
        return there.signal * x0 + there.noise / here.noise * (y - here.signal * x0)


def _spent(budget: Tensor, grid: Grid, i: int, state: State, unit: float) -> Enough:
    """When the budget of a photo does more in later steps than in the one to grid[i]."""
    steps = outlooks(grid)
    used = sum((found.iterations for found in state.solved), torch.zeros(len(state.x), dtype=torch.int64))
    left = (budget - used).tolist()
    firsts = [[float(found.first[row]) for found in state.solved] for row in range(len(state.x))]

    def spent(row: int, residual: float, looks: int) -> bool:
        if looks == 1:
            firsts[row].append(residual / unit)
        scale = hardness(firsts[row], steps)
        return not worth_another_look(steps, i - 1, residual / unit, scale, left[row] - looks)

    return spent


def first_noisy(denoise: Denoiser, grid: Grid, i: int, state: State, looks: int) -> tuple[State, Prediction]:
    """The x at grid[i] from which DDIM decodes to state.x, as well as so many looks solve it.

    For solvers whose walks begin there: a photo has no other x that it comes back from.
    """
    solver = Implicit(Ddim(), torch.zeros(1, dtype=torch.float64), limit=looks)
    return solver.toward_noise(denoise, grid, i, state)


def _hints(here: Level, there: Level, state: State) -> Moves | None:
    """How r answers moves at `there`, from how it did in the step before.

    r(x + dx) - r(x) = -dx + (1 - exp(-h)) e, where e is what the network takes for noise of dx, scaled by the level's
    noise; e changes little from level to level, and h is known.
    """
    if not state.memory:
        return None
    *_, dx, taken = state.memory
    return Moves(dx, _fixed_share(here, there) * taken - dx)


def _fixed_share(here: Level, there: Level) -> float:
    """1 - exp(-h), h being the step in log SNR: the share of the noise in x that the step removes."""
    return 1 - here.noise * there.signal / (here.signal * there.noise)


def _gain(here: Level, there: Level) -> float:
    """How far x must move at `there` for its step to land 1 further: signal_t / signal_s where eps does not change.

    With no signal left at `there` nothing of the photo is in x, and it is the noise that is handed on.
    """
    gain = there.signal / here.signal
    return gain if gain > 1e-3 else there.noise / (here.noise or 1.0)


def _relaxation(here: Level, there: Level) -> float:
    """The step that contracts best without history.

    The iteration shrinks errors by (1 - exp(-h)) (1 - kappa), h the step in log SNR and kappa the share of an error
    that the denoiser keeps. For kappa in [0, 1] the best step is 2 / (1 + exp(-h)); where the noise is low, kappa
    lies around 1 and the best step is 1.
    """
    h = here.half_log_snr - there.half_log_snr if here.noise and there.signal else 0.0
    return 1 + (2 / (1 + math.exp(-h)) - 1) * there.noise**4


def _implied(here: Level, there: Level, y: Tensor, x: Tensor) -> Prediction:
    """The prediction with which DDIM steps from x to y."""
    shrink = there.signal / here.signal
    eps = (x - shrink * y) / (there.noise - shrink * here.noise)
    return Prediction((y - here.noise * eps) / here.signal, eps)
