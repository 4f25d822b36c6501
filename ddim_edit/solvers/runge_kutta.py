"""One-step solvers of the second order, the same in both directions: two evaluations a step.

At the clean end, which no network knows, and where no signal is left, a step is DDIM's.
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ddim_edit.denoiser import Denoiser, Prediction
from ddim_edit.grid import Grid
from ddim_edit.schedule import CLEAN_T, Level
from ddim_edit.solvers.base import Solver, State, UndoneBy
from ddim_edit.solvers.ddim import Ddim
from ddim_edit.solvers.quadrature import advance


def at_the_ends(here: Level, there: Level) -> bool:
    """Whether one of the levels is one where only DDIM's step is defined."""
    return CLEAN_T in (here.t, there.t) or 0 in (here.signal, there.signal)


class BetweenLevels(Solver):
    """A deterministic solver whose own steps run between levels that the network knows; at the ends, DDIM's do."""

    @property
    def deterministic(self) -> bool:
        """Always."""
        return True

    def toward_clean(self, denoise: Denoiser, grid: Grid, i: int, state: State) -> tuple[State, Prediction]:
        """From grid[i] to grid[i - 1]."""
        if at_the_ends(grid[i], grid[i - 1]):
            return Ddim().toward_clean(denoise, grid, i, state)
        return self.step(denoise, grid, i, i - 1, state)

    def toward_noise(self, denoise: Denoiser, grid: Grid, i: int, state: State) -> tuple[State, Prediction]:
        """From grid[i - 1] to grid[i]."""
        if at_the_ends(grid[i - 1], grid[i]):
            return self.end_toward_noise(denoise, grid, i, state)
        return self.step(denoise, grid, i - 1, i, state)

    def end_toward_noise(self, denoise: Denoiser, grid: Grid, i: int, state: State) -> tuple[State, Prediction]:
        """The step at an end; here DDIM's explicit one."""
        return Ddim().toward_noise(denoise, grid, i, state)

    @abstractmethod
    def step(self, denoise: Denoiser, grid: Grid, start: int, stop: int, state: State) -> tuple[State, Prediction]:
        """From grid[start] to its neighbour grid[stop], both of them known to the network."""


class _TwoStage(BetweenLevels):
    order: ClassVar[int] = 2
    undone_by: ClassVar[UndoneBy] = "solving"

    def evaluations(self, steps: int) -> int:
        """Two a step; one in the step at the clean end."""
        return 2 * steps - 1

    def step(self, denoise: Denoiser, grid: Grid, start: int, stop: int, state: State) -> tuple[State, Prediction]:
        """With a second evaluation on the way."""
        here, there = grid[start], grid[stop]
        first = denoise(state.x, here)
        x = self._second(denoise, grid, here, there, state.x, first.eps)
        return state.moved(x, 2 * denoise.cost), first

    @abstractmethod
    def _second(self, denoise: Denoiser, grid: Grid, here: Level, there: Level, x: Tensor, eps: Tensor) -> Tensor:
        """The end of the step, with a second evaluation; eps is that at `here`."""


@dataclass(frozen=True)
class Midpoint(_TwoStage):
    """The midpoint rule in log SNR (DPM-Solver-2, arXiv 2206.00927): the eps half way counts for all of the step."""

    name: ClassVar[str] = "midpoint"

    def _second(self, denoise: Denoiser, grid: Grid, here: Level, there: Level, x: Tensor, eps: Tensor) -> Tensor:
        middle = grid.between(here, there)
        half = denoise(advance(x, here, middle, [(here, eps)]), middle)
        return advance(x, here, there, [(middle, half.eps)])


@dataclass(frozen=True)
class Heun(_TwoStage):
    """Heun's method: a DDIM step, then the step again with eps taken at both of its ends."""

    name: ClassVar[str] = "heun"

    def _second(self, denoise: Denoiser, grid: Grid, here: Level, there: Level, x: Tensor, eps: Tensor) -> Tensor:
        guess = denoise(advance(x, here, there, [(here, eps)]), there)
        return advance(x, here, there, [(here, eps), (there, guess.eps)])
