"""Latents as points of a sphere: the great circle between two directions, its logarithm and exponential.

What every path through latents is made of, and the checks that they share. Directions are unit vectors of any shape;
all is float64 on the CPU, because float16 norms overflow, MPS has no float64, and this way a path has the same bits on
every device that made its keys.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ddim_edit.errors import ConfigError, NumericsError

# Unit directions whose sum is shorter than this are opposite: rounding to float32 alone leaves about 1e-7.
_OPPOSITE = 1e-6
# Keeps the draw below apart from every other use of the same seed. Were it x_T's own draw, a path from that x_T to its
# opposite would look for a great circle through x_T itself.
_STREAM = 0x51E4


class Arc(NamedTuple):
    """A piece of a great circle from u to v: its middle and its chord as orthogonal unit vectors, and its angle."""

    middle: Tensor
    chord: Tensor
    angle: float

    def direction(self, s: float) -> Tensor:
        """The unit vector at s: u at 0, v at 1."""
        phi = (s - 0.5) * self.angle
        return math.cos(phi) * self.middle + math.sin(phi) * self.chord

    @property
    def log(self) -> Tensor:
        """The velocity with which the arc leaves u: the logarithm of v at u, as long as the angle."""
        return self.angle * (math.sin(self.angle / 2) * self.middle + math.cos(self.angle / 2) * self.chord)


def arc(u: Tensor, v: Tensor, seed: int | None = None) -> Arc:
    """The shorter great circle from unit vector u to unit vector v; for opposite ones, one chosen by the seed.

    The angle is 2 atan2(|v - u|, |u + v|), which loses no digits at 0 or at pi, as acos does.

    Raises:
        ConfigError: u and v are opposite and no seed is given.
    """
    middle, chord = u + v, v - u
    angle = 2 * math.atan2(norm(chord), norm(middle))
    if norm(middle) < _OPPOSITE:
        if seed is None:
            raise ConfigError(
                "two latents are exactly opposite, so the great circle between them is not determined; change one of "
                'them, or call slerp with seed= (and radius "geometric" or "linear") to go through a random direction'
            )
        draw = _draw(u.shape, seed)
        middle = draw - (draw * chord).sum() / norm(chord) ** 2 * chord
    # Identical inputs have a zero chord: it stays zero, and nothing is divided by zero.
    return Arc(middle / norm(middle), chord / (norm(chord) or 1.0), angle)


def exponential(u: Tensor, tangent: Tensor) -> Tensor:
    """Where one arrives after leaving unit vector u with velocity `tangent`, orthogonal to it, for a unit of time."""
    angle = norm(tangent)
    return math.cos(angle) * u + (math.sin(angle) / angle if angle else 1.0) * tangent


def norm(x: Tensor) -> float:
    """The length of a vector of any shape."""
    return float(torch.linalg.vector_norm(x))


def polar(name: str, x: Tensor) -> tuple[Tensor, Tensor]:
    """Latents (N, ...) as directions (N, ...) and norms (N,), float64 on the CPU.

    Raises:
        ConfigError: the values are not floats, or one of the latents is zero.
        NumericsError: a value is NaN or infinite.
    """
    check_latent(name, x)
    vectors = x.detach().cpu().double()
    norms = torch.linalg.vector_norm(vectors.flatten(1), dim=1)
    if not norms.all():
        row = int((norms == 0).nonzero()[0])
        raise ConfigError(f"{name}[{row}] is all zeros and has no direction; use lerp, or another latent")
    return vectors / norms.view(-1, *[1] * (x.ndim - 1)), norms


def check_latent(name: str, x: Tensor) -> None:
    """Refuse what no path can be made of.

    Raises:
        ConfigError: the values are not floats.
        NumericsError: a value is NaN or infinite.
    """
    if not x.is_floating_point():
        raise ConfigError(f"{name} holds {x.dtype}; latents are floats, and rounding a path to integers would ruin it")
    if not x.isfinite().all():
        count = int((~x.isfinite()).sum())
        raise NumericsError(f"{name} holds {count} values that are not finite; encode it again, in float32")


def _draw(shape: torch.Size, seed: int) -> Tensor:
    if seed < 0:
        raise ConfigError(f"seed={seed} is negative; choose seed >= 0")
    return torch.from_numpy(np.random.default_rng((seed, _STREAM)).standard_normal(tuple(shape)))
