"""Leapfrog: a solver that is undone exactly, whatever the network, because its steps only add.

The latent is a pair of neighbours (x_S, x_(S-1)); `State.memory` holds the second. With d(x_i) the change that the
prediction at level i makes between the two levels beside it,

    x_(i+1) = x_(i-1) + d(x_i)        toward noise
    x_(i-1) = x_(i+1) - d(x_i)        toward clean, with the same d(x_i)

(BDIA with gamma = 1, arXiv 2307.10829). One evaluation a step. Grids whose steps grow evenly (quadratic) suit it.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from ddim_edit.denoiser import Denoiser, Prediction
from ddim_edit.grid import Grid
from ddim_edit.solvers.base import Solver, State, UndoneBy
from ddim_edit.solvers.ddim import Ddim
from ddim_edit.solvers.implicit import first_noisy

FIRST_STEP = 4  # evaluations for the one implicit step, from the photo to x_1
LATTICE = 2.0**24  # points per unit: sums and differences of lattice points are exact in float64


@dataclass(frozen=True)
class Leapfrog(Solver):
    """Exact up to the rounding of its sums, at one evaluation a step; the latent is a pair."""

    name: ClassVar[str] = "leapfrog"
    order: ClassVar[int] = 2
    undone_by: ClassVar[UndoneBy] = "itself"
    pair: ClassVar[bool] = True

    @property
    def deterministic(self) -> bool:
        """Always."""
        return True

    def toward_noise(self, denoise: Denoiser, grid: Grid, i: int, state: State) -> tuple[State, Prediction]:
        """From (x_(i-1), x_(i-2)) to (x_i, x_(i-1)); the first x_1 is the one from which DDIM decodes to the photo."""
        x = self.rounded(state.x)
        if not state.memory:
            moved, prediction = first_noisy(denoise, grid, i, replace(state, x=x, solved=()), FIRST_STEP)
            return replace(moved, x=self.rounded(moved.x), memory=(x,), solved=()), prediction
        prediction = denoise(x, grid[i - 1])
        x_next = state.memory[0] + self.rounded(_change(prediction, grid, i - 1))
        return state.moved(x_next, denoise.cost, (x,)), prediction

    def toward_clean(self, denoise: Denoiser, grid: Grid, i: int, state: State) -> tuple[State, Prediction]:
        """From (x_i, x_(i-1)) to (x_(i-1), x_(i-2)). Without a pair, as when sampling, x_(i-1) is DDIM's."""
        x = self.rounded(state.x)
        if not state.memory:
            moved, prediction = Ddim().toward_clean(denoise, grid, i, state)
            state = replace(moved, memory=(self.rounded(moved.x),))
        cleaner = state.memory[0]
        if i == 1:  # the photo itself, which asks nothing of the network
            eps = (x - grid[1].signal * cleaner) / grid[1].noise
            return state.moved(cleaner, 0), Prediction(cleaner, eps)
        prediction = denoise(cleaner, grid[i - 1])
        before = x - self.rounded(_change(prediction, grid, i - 1))
        return state.moved(cleaner, denoise.cost, (before,)), prediction

    def rounded(self, x: Tensor) -> Tensor:
        """Where x is kept; here, as it is."""
        return x


@dataclass(frozen=True)
class Lattice(Leapfrog):
    """Leapfrog on the multiples of 2^-24, in float64: the photo comes back bit for bit.

    The network may run in any precision, but must give the same numbers for the same photo both times; that takes
    the same machine and a network that always sees batches of one size (`Model.micro_batched`).
    """

    name: ClassVar[str] = "lattice"

    def rounded(self, x: Tensor) -> Tensor:
        """The nearest point of the lattice."""
        return (x.double() * LATTICE).round() / LATTICE


def _change(prediction: Prediction, grid: Grid, i: int) -> Tensor:
    """What the prediction at grid[i] changes between the neighbours of grid[i]."""
    cleaner, noisier = prediction.at(grid[i - 1]), prediction.at(grid[i + 1])
    return noisier - cleaner
