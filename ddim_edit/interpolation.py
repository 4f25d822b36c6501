"""Paths between latents: slerp and lerp of two, a path along many, and the positions of the frames on it.

Tensors in, tensors out; no model and no files here. A latent is one tensor (C, h, w); the key latents of a path are
stacked (N, C, h, w). The arithmetic is float64 on the CPU whatever the inputs are (see `sphere`).
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor

from ddim_edit.errors import ConfigError
from ddim_edit.sphere import arc, check_latent, norm
from ddim_edit.splines import spline

Radius = Literal["geometric", "linear", "keep"]
How = Literal["slerp", "squad", "catmull-rom", "lerp", "lerp-norm"]


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
    r0, r1 = norm(x), norm(y)
    if r0 == 0 or r1 == 0:
        raise ConfigError(f"{'a' if r0 == 0 else 'b'} is all zeros and has no direction; use lerp, or another latent")
    circle = arc(x / r0, y / r1, None if radius == "keep" else seed)

    def between(s: float) -> Tensor:
        if radius == "keep":
            return _raw(x, y, circle.angle, s)
        length = r0 ** (1 - s) * r1**s if radius == "geometric" else (1 - s) * r0 + s * r1
        return length * circle.direction(s)

    return _frames(x, y, t, between).to(a.device, a.dtype)


def lerp(a: Tensor, b: Tensor, t: Tensor | float, *, correct_norm: bool = False) -> Tensor:
    """Interpolate on the straight line between two latents: for comparison, and rarely what a clip needs.

    Two independent latents are almost orthogonal, so the norm dips to 0.71 of theirs in the middle, where the model
    has seen nothing like it: the pictures go grey. `slerp` keeps the norm.

    Args:
        a: One latent (C, h, w), or any shape of one latent.
        b: The other latent, of the same shape.
        t: Position in [0, 1]: a number, or (F,) for F frames.
        correct_norm: Stretch every point of the line to the norm |a|^(1-t) |b|^t. The pictures stay vivid, and pass the
            middle faster than the ends.

    Returns:
        The latent, shaped like `a` for a number and (F, C, h, w) for (F,); dtype and device of `a`. t = 0 and t = 1
        return the inputs bit for bit.

    Raises:
        ConfigError: shapes differ, a batch is given, the values are not floats, t is outside [0, 1], or the norm is to
            be corrected where the line meets zero.
        NumericsError: an input holds NaN or infinity.

    Example:
        >>> lerp(torch.zeros(2), torch.ones(2), 0.25)
        tensor([0.2500, 0.2500])
    """
    x, y = _pair(a, b)
    r0, r1 = norm(x), norm(y)

    def between(s: float) -> Tensor:
        point = x + s * (y - x)
        if not correct_norm:
            return point
        if norm(point) == 0:
            raise ConfigError(f"at t={s:g} the line meets zero, which has no norm to correct; use slerp")
        return r0 ** (1 - s) * r1**s / norm(point) * point

    return _frames(x, y, t, between).to(a.device, a.dtype)


def along(keys: Tensor, u: Tensor, how: How = "slerp", *, closed: bool = False) -> Tensor:
    """Walk a path through key latents: 0 is the first key, 1 the second, 1.5 half way to the third.

    Args:
        keys: (N, C, h, w), N >= 1. A single key makes a constant path.
        u: (F,) positions in [0, N - 1], in any order; in [0, N] on a closed path, where N is the first key again.
        how: `squad` and `catmull-rom` are smooth at the keys (see `splines`); `slerp`, `lerp` and `lerp-norm` go piece
            by piece between neighbouring keys, and turn there.
        closed: whether the path goes on from the last key to the first.

    Returns:
        (F, C, h, w), dtype and device of `keys`. A whole number returns its key bit for bit.

    Raises:
        ConfigError: no keys, `u` is not (F,) or leaves the path, or two neighbours allow no slerp.
        NumericsError: a key holds NaN or infinity.

    Example:
        >>> along(torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]), torch.tensor([0.0, 1.5, 2.0]))
        tensor([[ 1.0000,  0.0000],
                [-0.7071,  0.7071],
                [-1.0000,  0.0000]])
    """
    if how not in get_args(How):
        raise ConfigError(f"how={how!r} is not known; choose {', '.join(get_args(How))}")
    if keys.ndim < 2 or len(keys) < 1:
        raise ConfigError(f"keys have shape {tuple(keys.shape)}; a path needs (N, C, h, w) with at least one key")
    check_latent("keys", keys)
    where = u.detach().cpu().double()
    _check_range("u", where, segments(len(keys), closed=closed))
    path = keys.detach()[(where.floor().long() % len(keys)).to(keys.device)]  # whole numbers are done with this
    between = where != where.floor()
    if len(keys) == 1 or not between.any():
        return path
    if how in ("slerp", "lerp", "lerp-norm"):
        made = _piecewise(keys, where[between], how)
    elif len(keys) == 2:  # a spline through two keys is their great circle, and on a closed path the same way back
        made = _piecewise(keys, where[between], "slerp")
    else:
        made = spline(keys, where[between], how, closed=closed)
    path[between.to(keys.device)] = made.to(keys.device, keys.dtype)
    return path


def segments(keys: int, *, closed: bool = False) -> int:
    """How many pieces a path through so many keys has; its positions run from 0 to this number."""
    return keys if closed else keys - 1


def _piecewise(keys: Tensor, u: Tensor, how: How) -> Tensor:
    """The path between neighbouring keys, in float64 on the CPU; no position is whole."""
    blend = slerp if how == "slerp" else partial(lerp, correct_norm=how == "lerp-norm")
    number = u.floor().long()
    path = torch.empty((len(u), *keys.shape[1:]), dtype=torch.float64)
    for i in number.unique().tolist():
        a, b = (keys[k % len(keys)].detach().cpu().double() for k in (i, i + 1))
        path[number == i] = blend(a, b, u[number == i] - i)
    return path


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
    check_latent("a", a)
    check_latent("b", b)
    return a.detach().cpu().double(), b.detach().cpu().double()


def _check_range(name: str, where: Tensor, last: int) -> None:
    if where.ndim != 1 or len(where) < 1:
        raise ConfigError(f"{name} has shape {tuple(where.shape)}; pass (F,) with at least one position")
    outside = where[~((where >= 0) & (where <= last))]
    if len(outside):
        raise ConfigError(f"{name}={outside[0]:g} is outside [0, {last}]; choose positions from 0 to {last}")
