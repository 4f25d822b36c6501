"""DDIM (arXiv 2010.02502): the non-Markovian family with eta and sigma-hat, and its explicit inverse at eta = 0."""

import math
from dataclasses import dataclass
from typing import ClassVar

from ddim_edit.denoiser import Denoiser, Prediction
from ddim_edit.errors import ConfigError, InversionError
from ddim_edit.grid import Grid
from ddim_edit.schedule import Level
from ddim_edit.solvers.base import Solver, State, UndoneBy


@dataclass(frozen=True)
class Ddim(Solver):
    """First-order DDIM.

    Args:
        eta: how much of the ancestral noise each step adds (eq. 16), in [0, 1]: 0 is deterministic, 1 is DDPM-like.
        sigma_hat: add the larger noise of appendix D.3 while the direction term keeps sigma(1); needs eta = 1.
    """

    eta: float = 0.0
    sigma_hat: bool = False
    name: ClassVar[str] = "ddim"
    order: ClassVar[int] = 1
    undone_by: ClassVar[UndoneBy] = "solving"

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise ConfigError(f"eta is {self.eta:g}; choose it in [0, 1] (0 is deterministic)")
        if self.sigma_hat and self.eta != 1:
            raise ConfigError(f"sigma-hat replaces the noise of eta = 1, but eta is {self.eta:g}; set eta to 1")

    @property
    def deterministic(self) -> bool:
        """True at eta = 0."""
        return self.eta == 0

    def spread(self, grid: Grid, i: int) -> float:
        """Standard deviation of the noise that the step from grid[i] adds; the step to clean adds none."""
        if i == 1:
            return 0.0
        here, there = grid[i], grid[i - 1]
        return transition_std(here, there) if self.sigma_hat else self.eta * posterior_std(here, there)

    def toward_clean(self, denoise: Denoiser, grid: Grid, i: int, state: State) -> tuple[State, Prediction]:
        """Eq. 12: the prediction at the cleaner level, with part of its noise exchanged for fresh noise."""
        here, there = grid[i], grid[i - 1]
        prediction = denoise(state.x, here)
        scale = self.spread(grid, i)
        if scale == 0:
            return state.moved(prediction.at(there), denoise.cost), prediction
        if state.noise is None:
            raise ConfigError(f"eta is {self.eta:g}, so the steps need noise; give seeds, or noise=SeededNoise(seeds)")
        sigma = self.eta * posterior_std(here, there)
        direction = there._replace(noise=math.sqrt(there.noise**2 - sigma**2))
        x = prediction.at(direction) + scale * state.noise(i, state.x)
        return state.moved(x, denoise.cost), prediction

    def toward_noise(self, denoise: Denoiser, grid: Grid, i: int, state: State) -> tuple[State, Prediction]:
        """Eq. 14 walked toward noise, eps taken at the level that is left (the form behind the paper's Table 2)."""
        if not self.deterministic:
            raise InversionError(
                f"eta = {self.eta:g} is random, so nothing can be encoded with it; encode with eta = 0"
            )
        here, there = grid[i - 1], grid[i]
        prediction = denoise(state.x, there if i == 1 else here)
        if i == 1:  # x is the photo: only the noise is asked of the network
            prediction = prediction._replace(x0=(state.x - here.noise * prediction.eps) / here.signal)
        return state.moved(prediction.at(there), denoise.cost), prediction


def transition_std(noisy: Level, clean: Level) -> float:
    """Standard deviation of x at the noisier level given x at the cleaner one: sigma-hat of appendix D.3."""
    return math.sqrt(max(0.0, noisy.noise**2 - (noisy.signal / clean.signal * clean.noise) ** 2))


def posterior_std(noisy: Level, clean: Level) -> float:
    """sigma(eta = 1) of eq. 16: the ancestral (DDPM) noise of a step from the noisier to the cleaner level."""
    return clean.noise / noisy.noise * transition_std(noisy, clean)
