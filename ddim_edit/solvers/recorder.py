"""Recorded noise: how a random solver is made to decode to a given photo.

CycleDiffusion's encoder (arXiv 2210.05559, section 3; edit-friendly noise, arXiv 2304.06140, is its kin): noisy
versions of the photo are drawn with the solver's own law, and the noise that the network needs to step from each to the
next is kept. With that noise, the solver decodes through the same versions.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ddim_edit.denoiser import Denoiser, Prediction
from ddim_edit.grid import Grid
from ddim_edit.schedule import Level
from ddim_edit.solvers.base import State, StepNoise, Stepper
from ddim_edit.solvers.ddim import Ddim
from ddim_edit.solvers.implicit import first_noisy

FIRST_STEP = 6  # evaluations for the step at the clean end, which adds no noise and is solved instead


@dataclass(frozen=True)
class Known:
    """The denoiser that knows the photos x0 (B, C, h, w), and asks no network."""

    x0: Tensor
    cost: int = 0

    @property
    def settings(self) -> Mapping[str, object]:
        """None."""
        return {}

    def __call__(self, x: Tensor, level: Level) -> Prediction:
        """The photo, and the noise that x has besides it."""
        return Prediction(self.x0, (x - level.signal * self.x0) / level.noise)


@dataclass(frozen=True)
class Recorder(Stepper):
    """Steps toward clean through noisy versions of photos; its memory is the noise of the steps so far.

    The noise of the cleanest step comes first: of a whole walk, it is what `noise.GivenNoise` takes.

    Args:
        inner: a random DDIM.
        x0: (B, C, h, w), the photos.
        x1: (B, C, h, w), the x at grid[1] from which its step, which adds no noise, arrives at the photos.
    """

    inner: Ddim
    x0: Tensor
    x1: Tensor

    @classmethod
    def of(cls, inner: Ddim, x0: Tensor, denoise: Denoiser, grid: Grid) -> "tuple[Recorder, State]":
        """The recorder of these photos, with x1 solved for, and what this took."""
        first, _ = first_noisy(denoise, grid, 1, State.start(x0), FIRST_STEP)
        return cls(inner, x0, first.x), first

    def start(self, grid: Grid, drawn: Tensor, noise: StepNoise) -> State:
        """The photos in `drawn` noise at the top of the grid; `noise` draws the versions below."""
        top = grid[grid.steps]
        x = top.signal * self.x0 + top.noise * drawn.to(self.x0) if grid.steps > 1 else self.x1
        return State.start(x, noise)

    def toward_clean(self, denoise: Denoiser, grid: Grid, i: int, state: State) -> tuple[State, Prediction]:
        """To the next version, which depends on photo and noise alone; the network is asked for what it lacks."""
        if i == 1:  # x is x1
            assert state.noise is not None
            unused = state.noise(1, state.x)  # for a place in the list that paths can lead through, as through the rest
            return state.moved(self.x0, 0, (unused, *state.memory)), Known(self.x0)(state.x, grid[1])
        version = self.x1
        if i > 2:
            version = self.inner.toward_clean(Known(self.x0), grid, i, state)[0].x
        silent, prediction = self.inner.toward_clean(denoise, grid, i, replace(state, noise=_silence))
        lacking = (version - silent.x) / self.inner.spread(grid, i)
        return replace(silent.moved(version, 0, (lacking, *state.memory)), noise=state.noise), prediction

    def toward_noise(self, denoise: Denoiser, grid: Grid, i: int, state: State) -> tuple[State, Prediction]:
        """As the inner solver: not possible."""
        return self.inner.toward_noise(denoise, grid, i, state)

    def resume(self, state: State) -> State:
        """The noise recorded so far stays; what lacks after a change is recorded by the next step."""
        return state


def _silence(_step: int, like: Tensor) -> Tensor:
    return torch.zeros_like(like)
