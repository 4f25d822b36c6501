"""Smooth paths through keys on the sphere: squad and the spherical Catmull-Rom spline.

Random latents are almost orthogonal, so a path made of great circles turns by about 89 degrees at every key; these
turn by nothing. Both leave a key with the same velocity, half the difference of the arcs to its two neighbours; open
ends are reflected, and two keys give their great circle. Directions and norms go separate ways: the norm is the
monotone cubic (PCHIP) of log |x|, so it never leaves the interval between two neighbouring keys.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ddim_edit.sphere import Arc, arc, exponential, polar

Spline = Literal["squad", "catmull-rom"]
Segment = Callable[[float], Tensor]


@dataclass(frozen=True)
class _Key:
    """A direction on the path, and the logarithms there of the key after it and of the key before it."""

    at: Tensor
    after: Tensor
    before: Tensor


def spline(keys: Tensor, u: Tensor, how: Spline, *, closed: bool = False) -> Tensor:
    """Evaluate a smooth path through keys.

    `squad` (Shoemake 1987): between q_i and q_(i+1) it is slerp(slerp(q_i, q_(i+1), t), slerp(s_i, s_(i+1), t),
    2 t (1 - t)) with s_i = exp(-(log q_(i-1) + log q_(i+1)) / 4) at q_i. `catmull-rom`: the Bezier curve, by
    de Casteljau's construction of slerps, with the controls exp(T_i / 3) at q_i and exp(-T_(i+1) / 3) at q_(i+1), where
    T_i = (log q_(i+1) - log q_(i-1)) / 2.

    Args:
        keys: (N, C, h, w), none of them zero; N >= 2, and N >= 3 on a closed path.
        u: (F,) positions in [0, N - 1], or in [0, N] on a closed path; float64 on the CPU.
        how: `squad` or `catmull-rom`.
        closed: whether the path goes on from the last key to the first.

    Returns:
        (F, C, h, w) float64 on the CPU.

    Raises:
        ConfigError: a key is zero, or two neighbours are opposite.
        NumericsError: a key holds NaN or infinity.
    """
    directions, norms = polar("keys", keys)
    corners = _corners(list(directions), closed)
    make = _squad if how == "squad" else _catmull_rom
    last = len(corners) - (1 if closed else 2)  # the last position of an open path belongs to the segment before it
    number = u.floor().long().clamp(max=last)
    radius = _radius(norms.numpy(), u.numpy(), closed)
    path = torch.empty((len(u), *keys.shape[1:]), dtype=torch.float64)
    for i in number.unique().tolist():
        segment = make(corners[i], corners[(i + 1) % len(corners)])
        for frame in (number == i).nonzero().flatten().tolist():
            path[frame] = float(radius[frame]) * segment(float(u[frame]) - i)
    return path


def _corners(directions: list[Tensor], closed: bool) -> list[_Key]:
    arcs = [arc(u, v) for u, v in pairwise(directions)]
    if closed:
        arcs.append(arc(directions[-1], directions[0]))
    after = [piece.log for piece in arcs]
    before = [Arc(piece.middle, -piece.chord, piece.angle).log for piece in arcs]
    if closed:
        before = before[-1:] + before[:-1]
    else:  # reflected: as if the path came from, or went on to, the mirror image of the end's one neighbour
        after, before = [*after, -before[-1]], [-after[0], *before]
    return [_Key(*values) for values in zip(directions, after, before, strict=True)]


def _squad(start: _Key, end: _Key) -> Segment:
    inner, next_inner = (exponential(key.at, -(key.before + key.after) / 4) for key in (start, end))
    outside, inside = arc(start.at, end.at), arc(inner, next_inner)
    return lambda t: arc(outside.direction(t), inside.direction(t)).direction(2 * t * (1 - t))


def _catmull_rom(start: _Key, end: _Key) -> Segment:
    leaving = exponential(start.at, (start.after - start.before) / 6)
    arriving = exponential(end.at, (end.before - end.after) / 6)
    first, second, third = arc(start.at, leaving), arc(leaving, arriving), arc(arriving, end.at)

    def at(t: float) -> Tensor:
        left, middle, right = first.direction(t), second.direction(t), third.direction(t)
        return arc(arc(left, middle).direction(t), arc(middle, right).direction(t)).direction(t)

    return at


def _radius(norms: np.ndarray, u: np.ndarray, closed: bool) -> np.ndarray:
    from scipy.interpolate import PchipInterpolator

    logs, knots = np.log(norms), np.arange(len(norms))
    if closed:  # the slopes of PCHIP depend on three knots only, so two more on either side make it periodic
        knots = np.arange(-2, len(norms) + 3)
        logs = logs[knots % len(norms)]
    return np.exp(PchipInterpolator(knots, logs)(u))
