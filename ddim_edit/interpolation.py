"""Paths between latents: slerp and lerp of two, a path along many, and the positions of the frames on it.

Tensors in, tensors out; no model and no files here. A latent is one tensor (C, h, w); the key latents of a path are
stacked (N, C, h, w). The arithmetic is float64 on the CPU whatever the inputs are: float16 norms overflow, MPS has no
float64, and this way a path has the same bits on every device that made its keys.
"""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ddim_edit.errors import ConfigError, NumericsError

Radius = Literal["geometric", "linear", "keep"]
How = Literal["slerp", "lerp"]

# Unit directions whose sum is shorter than this are opposite: rounding to float32 alone leaves about 1e-7.
_OPPOSITE = 1e-6
# Keeps the draw below apart from every other use of the same seed. Were it x_T's own draw, a path from that x_T to its
# opposite would look for a great circle through x_T itself.
_STREAM = 0x51E4


def slerp(a: Tensor, b: Tensor, t: Tensor | float, *, radius: Radius = "geometric", seed: int | None = None) -> Tensor:
    """Interpolate along the great circle between two latents, which keeps the norm of Gaussian noise.

    With u = a / |a|, v = b / |b| and theta = 2 atan2(|v - u|, |u + v|) the angle between them, the direction at t is
    cos((t - 1/2) theta) m + sin((t - 1/2) theta) q, m and q being u + v and v - u made unit vectors. That equals
    [sin((1 - t) theta) u + sin(t theta) v] / sin(theta), the formula of DDIM (arXiv:2010.02502, appendix D.5), without
    its division by zero at theta = 0 and its loss of digits near pi. t = 0 and t = 1 return the inputs bit for bit.

    Args:
        a: One latent (C, h, w), or any shape of one latent; no batch, as each pair has its own angle.
        b: The other latent, of the same shape.
        t: Position in [0, 1]: a number, or (F,) for F frames.
        radius: The norm at t. `geometric`: |a|^(1-t) |b|^t. `linear`: (1-t) |a| + t |b|. `keep`: DDIM's formula
            with a and b themselves for u and v, as other tools do it; its norm is unbounded where latents of different
            norms are nearly opposite.
        seed: For latents exactly opposite: take the great circle through a random direction drawn from this seed.

    Returns:
        The latent, shaped like `a` for a number and (F, C, h, w) for (F,); dtype and device of `a`.

    Raises:
        ConfigError: shapes differ, a batch is given, the values are not floats, t is outside [0, 1], an input is zero,
            or the two are opposite and `seed` is not given (or `radius` is `keep`, undefined there).
        NumericsError: an input holds NaN or infinity.

    Example:
        >>> slerp(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]), 0.5)
        tensor([0.7071, 0.7071])
    """
    if radius not in ("geometric", "linear", "keep"):
        raise ConfigError(f"radius={radius!r} is not known; choose geometric, linear or keep")
    x, y = _pair(a, b)
    r0, r1 = _norm(x), _norm(y)
    if r0 == 0 or r1 == 0:
        raise ConfigError(f"{'a' if r0 == 0 else 'b'} is all zeros and has no direction; use lerp, or another latent")
    arc = _arc(x / r0, y / r1, None if radius == "keep" else seed)

    def between(s: float) -> Tensor:
        if radius == "keep":
            return _raw(x, y, arc.angle, s)
        norm = r0 ** (1 - s) * r1**s if radius == "geometric" else (1 - s) * r0 + s * r1
        return norm * arc.direction(s)

    return _frames(x, y, t, between).to(a.device, a.dtype)


def lerp(a: Tensor, b: Tensor, t: Tensor | float) -> Tensor:
    """Interpolate on the straight line between two latents: for comparison, and rarely what a clip needs.

    Two independent latents are almost orthogonal, so the norm dips to 0.71 of theirs in the middle, where the model
    has seen nothing like it: the pictures go grey. `slerp` keeps the norm.

    Args:
        a: One latent (C, h, w), or any shape of one latent.
        b: The other latent, of the same shape.
        t: Position in [0, 1]: a number, or (F,) for F frames.

    Returns:
        The latent, shaped like `a` for a number and (F, C, h, w) for (F,); dtype and device of `a`. t = 0 and t = 1
        return the inputs bit for bit.

    Raises:
        ConfigError: shapes differ, a batch is given, the values are not floats, or t is outside [0, 1].
        NumericsError: an input holds NaN or infinity.

    Example:
        >>> lerp(torch.zeros(2), torch.ones(2), 0.25)
        tensor([0.2500, 0.2500])
    """
    x, y = _pair(a, b)
    return _frames(x, y, t, lambda s: x + s * (y - x)).to(a.device, a.dtype)


def along(keys: Tensor, u: Tensor, how: How = "slerp") -> Tensor:
    """Walk a path through key latents, piece by piece: 0 is the first key, 1 the second, 1.5 half way to the third.

    Args:
        keys: (N, C, h, w), N >= 1. A single key makes a constant path.
        u: (F,) positions in [0, N - 1], in any order.
        how: `slerp` or `lerp` between neighbouring keys.

    Returns:
        (F, C, h, w), dtype and device of `keys`. A whole number returns its key bit for bit.

    Raises:
        ConfigError: no keys, `u` is not (F,) or leaves [0, N - 1], or two neighbours allow no slerp.
        NumericsError: a key holds NaN or infinity.

    Example:
        >>> along(torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]), torch.tensor([0.0, 1.5, 2.0]))
        tensor([[ 1.0000,  0.0000],
                [-0.7071,  0.7071],
                [-1.0000,  0.0000]])
    """
    if how not in ("slerp", "lerp"):
        raise ConfigError(f"how={how!r} is not known; choose slerp or lerp")
    if keys.ndim < 2 or len(keys) < 1:
        raise ConfigError(f"keys have shape {tuple(keys.shape)}; a path needs (N, C, h, w) with at least one key")
    _check_latent("keys", keys)
    where = u.detach().cpu().double()
    _check_range("u", where, len(keys) - 1)
    segment = where.floor().long()
    t = where - segment
    path = keys.detach()[segment.to(keys.device)]  # whole numbers are done with this
    blend = slerp if how == "slerp" else lerp
    for i in segment[t > 0].unique().tolist():
        inside = segment == i
        path[inside.to(keys.device)] = blend(keys[i], keys[i + 1], t[inside])
    return path


def positions(keys: int, frames: int) -> Tensor:
    """Spread frames over a path through keys so that every key is met exactly, and each photo really appears.

    Key i falls on frame round(i (frames - 1) / (keys - 1)); the frames between two keys are equally spaced, and
    segments differ by at most one frame. Frames spread over the whole path at once would step over the keys.

    Args:
        keys: Number of keys, N >= 1.
        frames: Number of frames, F >= N.

    Returns:
        (F,) float64, rising from 0 to N - 1 (all 0 for one key): what `along` takes as `u`.

    Raises:
        ConfigError: no keys, or fewer frames than keys.

    Example:
        >>> positions(keys=3, frames=6)
        tensor([0.0000, 0.5000, 1.0000, 1.3333, 1.6667, 2.0000], dtype=torch.float64)
    """
    if keys < 1:
        raise ConfigError(f"keys={keys} but a path needs at least one key")
    if frames < keys:
        raise ConfigError(f"frames={frames} but there are {keys} keys; choose frames >= {keys} so that each appears")
    key_frames = np.linspace(0, frames - 1, keys).round()
    return torch.from_numpy(np.interp(np.arange(frames), key_frames, np.arange(keys)))


class _Arc(NamedTuple):
    """A piece of a great circle: two orthogonal unit vectors, its middle and its chord, and its angle."""

    middle: Tensor
    chord: Tensor
    angle: float

    def direction(self, s: float) -> Tensor:
        phi = (s - 0.5) * self.angle
        return math.cos(phi) * self.middle + math.sin(phi) * self.chord


def _arc(u: Tensor, v: Tensor, seed: int | None) -> _Arc:
    """The shorter great circle from unit vector u to unit vector v; for opposite ones, one chosen by the seed."""
    middle, chord = u + v, v - u
    angle = 2 * math.atan2(_norm(chord), _norm(middle))
    if _norm(middle) < _OPPOSITE:
        if seed is None:
            raise ConfigError(
                "a and b are exactly opposite, so the great circle between them is not determined; change one of them, "
                'or pass seed= (with radius "geometric" or "linear") to go through a random direction'
            )
        draw = _draw(u.shape, seed)
        middle = draw - (draw * chord).sum() / _norm(chord) ** 2 * chord
    # Identical inputs have a zero chord: it stays zero, and nothing is divided by zero.
    return _Arc(middle / _norm(middle), chord / (_norm(chord) or 1.0), angle)


def _draw(shape: torch.Size, seed: int) -> Tensor:
    if seed < 0:
        raise ConfigError(f"seed={seed} is negative; choose seed >= 0")
    return torch.from_numpy(np.random.default_rng((seed, _STREAM)).standard_normal(tuple(shape)))


def _raw(x: Tensor, y: Tensor, angle: float, s: float) -> Tensor:
    """Slerp of vectors as they are, whatever their norms."""
    if angle == 0:
        return x + s * (y - x)
    return (math.sin((1 - s) * angle) * x + math.sin(s * angle) * y) / math.sin(angle)


def _frames(x: Tensor, y: Tensor, t: Tensor | float, between: Callable[[float], Tensor]) -> Tensor:
    """Frames at the positions t; the ends are the inputs themselves, with no arithmetic."""
    ends = {0.0: x, 1.0: y}
    where = t.detach().cpu().double() if isinstance(t, Tensor) else torch.tensor(t, dtype=torch.float64)
    times = where.reshape(1) if where.ndim == 0 else where
    _check_range("t", times, 1)
    frames = [ends[s] if s in ends else between(s) for s in times.tolist()]
    return frames[0].clone() if where.ndim == 0 else torch.stack(frames)


def _pair(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Both latents in float64 on the CPU, checked."""
    if a.shape != b.shape:
        raise ConfigError(f"a has shape {tuple(a.shape)} and b {tuple(b.shape)}; both must come from one model")
    if a.ndim > 3 and len(a) != 1:
        raise ConfigError(f"shape {tuple(a.shape)} looks like a batch; pass one latent (C, h, w) each, or use along")
    _check_latent("a", a)
    _check_latent("b", b)
    return a.detach().cpu().double(), b.detach().cpu().double()


def _check_latent(name: str, x: Tensor) -> None:
    if not x.is_floating_point():
        raise ConfigError(f"{name} holds {x.dtype}; latents are floats, and rounding a path to integers would ruin it")
    if not x.isfinite().all():
        count = int((~x.isfinite()).sum())
        raise NumericsError(f"{name} holds {count} values that are not finite; encode it again, in float32")


def _check_range(name: str, where: Tensor, last: int) -> None:
    if where.ndim != 1 or len(where) < 1:
        raise ConfigError(f"{name} has shape {tuple(where.shape)}; pass (F,) with at least one position")
    outside = where[~((where >= 0) & (where <= last))]
    if len(outside):
        raise ConfigError(f"{name}={outside[0]:g} is outside [0, {last}]; choose positions from 0 to {last}")


def _norm(x: Tensor) -> float:
    return float(torch.linalg.vector_norm(x))
