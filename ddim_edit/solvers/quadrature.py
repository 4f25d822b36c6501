"""The exact integral that a step of the ODE is, with eps replaced by a polynomial in log SNR.

With x_bar = x / signal and u = noise / signal the ODE is d x_bar / d u = eps (DDIM paper, eq. 14). eps changes evenly
in log SNR = -log u rather than in u, so polynomials are taken in log u and integrated exactly: the exponential
integrators of arXiv 2204.13902 and 2206.00927. A step to the clean end (u = 0) needs no special formula.
"""

import math
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from ddim_edit.schedule import Level


def advance(x: Tensor, here: Level, there: Level, eps: Sequence[tuple[Level, Tensor]]) -> Tensor:
    """Move x from one level to another along the polynomial through the given eps.

    Args:
        x: (B, C, h, w) at `here`.
        here: where x is; must have signal, as must all levels of `eps`, which must have noise too.
        there: where to go, toward clean or toward noise; must have signal.
        eps: one to three levels with the eps predicted there.
    """
    weights = _weights(here, there, [level for level, _ in eps])
    change = sum((w * value for w, (_, value) in zip(weights, eps, strict=True)), x.new_zeros(()))
    return there.signal * (x / here.signal + change)


def _weights(here: Level, there: Level, nodes: Sequence[Level]) -> list[float]:
    """Integrals over u, from `here` to `there`, of the Lagrange polynomials in log u of these nodes."""
    scale = _ratio(nodes[0])  # log(u / scale) is small, which keeps the system well conditioned
    logs = np.array([math.log(_ratio(node) / scale) for node in nodes])
    ends = [_antiderivatives(_ratio(level) / scale, len(nodes)) for level in (here, there)]
    moments = scale * (ends[1] - ends[0])
    return np.linalg.solve(np.vander(logs, increasing=True).T, moments).tolist()


def _antiderivatives(v: float, count: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Those of 1, log v and (log v)^2 that are 0 at v = 0."""
    if v == 0:
        return np.zeros(count)
    log = math.log(v)
    return np.array([v, v * (log - 1), v * (log * log - 2 * log + 2)][:count])


def _ratio(level: Level) -> float:
    return level.noise / level.signal
