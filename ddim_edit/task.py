"""What an inverse is given and what it finds: photos, how they will be decoded, and how well they must come back."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from ddim_edit.denoiser import Denoiser, select_rows
from ddim_edit.errors import ConfigError
from ddim_edit.grid import Grid
from ddim_edit.metrics import changed_8bit, mse
from ddim_edit.ode import OnStep, integrate, walk
from ddim_edit.solvers import Solver, State, Stepper

EVERY_BYTE_RMS = 3e-4  # on [0, 1]: small enough that the largest error of a photo usually stays below half a byte


@dataclass(frozen=True)
class Goal:
    """How well a photo must come back.

    Args:
        rms: error of the decoded photo, root mean square on the scale [0, 1].
        every_byte: the goal is instead that every 8-bit value is the photo's; `rms` is where its search begins.
    """

    rms: float
    every_byte: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.rms < 1:
            raise ConfigError(f"tolerance {self.rms:g} is no RMS error on [0, 1]; choose it between 0 and 1, like 1e-3")

    @classmethod
    def of_psnr(cls, decibels: float) -> "Goal":
        """At least this PSNR in dB."""
        return cls(10 ** (-decibels / 20))

    def measured(self, pixels: Tensor, restored: Tensor) -> tuple[Tensor, Tensor]:
        """(B,) RMS errors on [0, 1], and (B,) bool, whether the goal is reached."""
        rms = mse(pixels, restored).sqrt()
        return rms, changed_8bit(pixels, restored) == 0 if self.every_byte else rms <= self.rms


EIGHT_BIT = Goal(EVERY_BYTE_RMS, every_byte=True)


class Walk(NamedTuple):
    """Photos at the noisy end; timestep and x of every so many levels on the way; step noises, if recorded."""

    state: State
    path: list[tuple[float, Tensor]]
    noises: Tensor | None = None


class Restored(NamedTuple):
    """What latents decode to: pixels (B, 3, H, W), around [-1, 1], on the CPU; evaluations (B,) that it took."""

    pixels: Tensor
    evaluations: Tensor


@dataclass(frozen=True)
class Task:
    """What an inverse is given: photos at the clean end, and how they will be decoded.

    Args:
        x0: (B, C, h, w), the photos after the codec.
        pixels: (B, 3, H, W), the photos themselves, on the CPU.
        to_pixels: the codec's decoder, to (B, 3, H, W) on the CPU.
        grid: the levels.
        solver: the decoder's.
        denoise: the decoder's.
        keep_every: keep the x_t of every so many steps; 0 keeps none.
        on_step: called after every step in either direction.
    """

    x0: Tensor
    pixels: Tensor
    to_pixels: Callable[[Tensor], Tensor]
    grid: Grid
    solver: Solver
    denoise: Denoiser
    keep_every: int = 0
    on_step: OnStep | None = None

    @property
    def look(self) -> int:
        """Network forwards that one look at one step takes, at most."""
        return math.ceil(self.solver.evaluations(self.grid.steps) / self.grid.steps) * self.denoise.cost

    def to_noise(self, rows: Tensor, stepper: Stepper, x0: Tensor | None = None) -> Walk:
        """Walk these rows' photos, or x0 in their place, to noise with this stepper."""
        state = State.start(self.x0[rows] if x0 is None else x0)
        denoise = select_rows(self.denoise, rows)
        path: list[tuple[float, Tensor]] = []
        for step in walk(denoise, stepper, self.grid, state, toward="noise", on_step=self.on_step):
            state = step.state
            if self.keep_every and step.index % self.keep_every == 0:
                path.append((step.level.t, state.x.cpu()))
        return Walk(state, path)

    def and_back(self, rows: Tensor, state: State) -> State:
        """Decode these rows from where they were walked to."""
        start = State.start(state.x, state.noise, state.memory if self.solver.pair else ())
        denoise = select_rows(self.denoise, rows)
        return integrate(denoise, self.solver, self.grid, start, toward="clean", on_step=self.on_step)


class Inverted(NamedTuple):
    """What an inverse found.

    Args:
        walk: the photos at the noisy end; the evaluations of each include those of checking its goal.
        restored: what they decode to, where that was looked at.
        reached: (B,) bool, whether the goal was met, where there was one.
    """

    walk: Walk
    restored: Restored | None = None
    reached: Tensor | None = None
