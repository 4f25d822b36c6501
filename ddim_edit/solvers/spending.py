"""What to expect of solving the steps of a grid one by one, and so where a budget of evaluations is best spent.

The step of size h in log SNR to noise / signal u starts with an error of about h^2 u / (1 + u) in the photo, times a
number that differs from photo to photo and little from step to step. A look at the network leaves SHRINK tanh(h / 2)
of it (tanh(h / 2) is what a relaxed fixed point leaves in theory where the denoiser keeps between none and all of an
error), and the larger u is, the less of it reaches the decoded photo. Fitted to the bundled model on training photos.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from ddim_edit.grid import Grid

SHRINK = 0.8
MAX_H = 5.0  # a larger step is as hard as one of this size
END_H, END_RATE = 2.1, 0.1  # size and rate that a step to the photo, or from pure noise, behaves like
DAMPING = 12.0  # noise / signal at which half of an error reaches the decoded photo
USUAL = 0.09  # the number that differs from photo to photo; it counts like that of one step
SMALLEST = 1e-30  # in place of a residual of zero


class Outlook(NamedTuple):
    """What is expected of one step.

    Args:
        error: RMS in units of the photo before the first look, of a photo whose scale is 1.
        rate: share of an error that one look leaves.
        weight: share of an error that reaches the decoded photo.
    """

    error: float
    rate: float
    weight: float

    def gain(self, error: float) -> float:
        """What a look at this error takes away from the decoded photo's, RMS."""
        return error * self.weight * math.sqrt(1 - self.rate**2)

    def looks_worth(self, gain: float, scale: float) -> int:
        """How many looks after the first take away more than `gain`."""
        most = self.gain(scale * self.error * self.rate)
        return math.floor(math.log(gain / most) / math.log(self.rate)) + 1 if most > gain else 0


def outlooks(grid: Grid) -> tuple[Outlook, ...]:
    """For every step of a grid, the cleanest first."""
    sizes = [min(h, MAX_H) if math.isfinite(h) else END_H for h in grid.step_sizes()]
    ratios = [level.noise / max(level.signal, 1e-3) for level in grid.levels[1:]]
    rates = [END_RATE if rate is None else rate for rate in contractions(grid)]
    return tuple(
        Outlook(h * h * u / (1 + u), rate, 1 / (1 + u / DAMPING))
        for h, u, rate in zip(sizes, ratios, rates, strict=True)
    )


def contractions(grid: Grid) -> list[float | None]:
    """What one look is expected to leave of an error in each step, the cleanest first; None at the ends."""
    return [SHRINK * math.tanh(h / 2) if math.isfinite(h) else None for h in grid.step_sizes()]


def hardness(residuals: Sequence[float], steps: Sequence[Outlook]) -> float:
    """How hard a photo is: its residuals at first sight over the expected ones, as a geometric mean."""
    logs = [math.log(max(seen, SMALLEST) / step.error) for seen, step in zip(residuals, steps, strict=False)]
    return math.exp((math.log(USUAL) + sum(logs)) / (1 + len(logs)))


def worth_another_look(steps: Sequence[Outlook], i: int, residual: float, scale: float, left: int) -> bool:
    """Whether another look at step i (from 0) does more for a photo than the last of those that later steps would get.

    Every later step gets one look in any case.

    Args:
        steps: what is expected.
        i: the step that is being solved.
        residual: its last one, RMS in units of the photo.
        scale: of the photo.
        left: looks that are left.
    """
    spare = left - (len(steps) - 1 - i)
    gain = steps[i].gain(residual * steps[i].rate)
    return spare > 0 and gain > 0 and spare > sum(step.looks_worth(gain, scale) for step in steps[i + 1 :])
