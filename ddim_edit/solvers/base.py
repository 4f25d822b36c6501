"""What steps, and the state that it steps.

A `Stepper` is all that the loop needs. A `Solver` is one that users choose: a frozen dataclass whose fields are JSON
values. Neither keeps anything between steps: what a step needs to remember goes into the `State` that it returns, and
no tensor that it is given is ever changed in place.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from ddim_edit.denoiser import Denoiser, Prediction
from ddim_edit.grid import Grid

StepNoise = Callable[[int, Tensor], Tensor]
UndoneBy = Literal["solving", "itself", "refining"]


class Solved(NamedTuple):
    """How well an implicit step was solved, per photo.

    Args:
        residual: (B,) float64, RMS of what is left of the equation, in units of the photo ([-1, 1]).
        iterations: (B,) int64, how often the step was tried.
        stalled: (B,) bool, stopped because it no longer improved: the noise floor of the network's precision.
        first: (B,) float64, as residual, of the first try.
    """

    residual: Tensor
    iterations: Tensor
    stalled: Tensor
    first: Tensor


@dataclass(frozen=True)
class State:
    """Where a run is.

    Args:
        x: (B, C, h, w) float32 or float64, never half precision.
        evaluations: (B,) int64, network forwards spent on each photo so far.
        memory: what a multistep solver carries from step to step.
        noise: where random solvers (eta > 0) take the noise of a step: (index of the interval, like) -> tensor.
        solved: one entry for every implicit step so far.
    """

    x: Tensor
    evaluations: Tensor
    memory: tuple[Tensor, ...] = ()
    noise: StepNoise | None = None
    solved: tuple[Solved, ...] = ()

    @classmethod
    def start(cls, x: Tensor, noise: StepNoise | None = None, memory: tuple[Tensor, ...] = ()) -> "State":
        """The state at the beginning of a run.

        Convolutions round differently for other memory layouts, so x is laid out plainly: the same numbers in any
        layout give the same run, bit for bit.
        """
        return cls(x.contiguous(), torch.zeros(len(x), dtype=torch.int64), memory, noise)

    def moved(self, x: Tensor, cost: int | Tensor, memory: tuple[Tensor, ...] = ()) -> "State":
        """The state after a step that arrived at x and spent `cost` evaluations, (B,) or on every photo alike."""
        return replace(self, x=x, evaluations=self.evaluations + cost, memory=memory)

    def select(self, rows: Tensor) -> "State":
        """The state of these photos of the batch; without noise, which belongs to the batch."""
        return State(
            self.x[rows],
            self.evaluations[rows],
            tuple(value[rows] for value in self.memory),
            solved=tuple(Solved(*(value[rows] for value in step)) for step in self.solved),
        )

    @classmethod
    def join(cls, states: Sequence["State"]) -> "State":
        """All photos of several states of one run."""
        steps = zip(*(state.solved for state in states), strict=True)
        return cls(
            torch.cat([state.x for state in states]),
            torch.cat([state.evaluations for state in states]),
            tuple(torch.cat(values) for values in zip(*(state.memory for state in states), strict=True)),
            solved=tuple(Solved(*(torch.cat(values) for values in zip(*step, strict=True))) for step in steps),
        )


class Stepper(ABC):
    """Steps over one interval of a grid, in either direction. Interval i lies between grid[i - 1] and grid[i]."""

    @abstractmethod
    def toward_clean(self, denoise: Denoiser, grid: Grid, i: int, state: State) -> tuple[State, Prediction]:
        """From grid[i] to grid[i - 1]. Returns the new state and the prediction that the step was made with."""

    @abstractmethod
    def toward_noise(self, denoise: Denoiser, grid: Grid, i: int, state: State) -> tuple[State, Prediction]:
        """From grid[i - 1] to grid[i], explicitly: the prediction is made at the level that is left.

        At i = 1 that level is clean, which no network knows: the network is asked at grid[1] instead.
        """

    def resume(self, state: State) -> State:
        """Go on from a state that a callback put in place of the last step's: forget what no longer fits it."""
        return replace(state, memory=())


class Solver(Stepper):
    """A way to decode, and how it is undone."""

    name: ClassVar[str]
    order: ClassVar[int]
    # How its decoding is undone exactly: by solving each step (it needs nothing but x), by its own `toward_noise`, or
    # only as a whole, by correcting the photo that is encoded (inverse.py).
    undone_by: ClassVar[UndoneBy]
    pair: ClassVar[bool] = False  # whether the memory is part of the latent, and saved with it

    @property
    @abstractmethod
    def deterministic(self) -> bool:
        """Whether the steps draw no noise; only then can a photo be encoded."""

    def evaluations(self, steps: int) -> int:
        """How often the denoiser is asked on a walk over so many steps, at most; not of solvers that iterate."""
        return steps

    @property
    def settings(self) -> dict[str, object]:
        """JSON: the name and the fields, recorded with latents."""
        return {"name": self.name, **asdict(self)}  # pyright: ignore[reportArgumentType]
