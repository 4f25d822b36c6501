"""Mixes of many latents: weighted means that stay Gaussian or stay on the sphere, grids of corners, analogies.

Chaining slerps of two gives another mix for every order (25 % apart for the same four weights); these do not depend on
the order. Tensors in, tensors out; float64 on the CPU (see `sphere`).
"""

from typing import Literal, get_args

import torch
from torch import Tensor

from ddim_edit.errors import ConfigError
from ddim_edit.interpolation import slerp
from ddim_edit.sphere import arc, check_latent, exponential, norm, polar

GridHow = Literal["slerp", "lol", "karcher"]

_TOLERANCE = 1e-12  # of the Karcher mean, in radians
_ITERATIONS = 200  # four Gaussian latents take about 15


def lol(latents: Tensor, weights: Tensor) -> Tensor:
    """Mix latents linearly so that a mix of independent Gaussian latents is Gaussian again.

    sum_i w_i x_i / |w|_2: the closed form of "Linear combinations of Gaussian latents" (arXiv:2408.08558), zero mean.
    Weights may be negative and need not add up to 1; only their ratios count. Latents that are not independent (the
    same one twice, say) come out longer than they are, or shorter where weights have both signs: for a mean of them
    use `karcher_mean`.

    Args:
        latents: (N, C, h, w).
        weights: (N,), or (M, N) for M mixes.

    Returns:
        (C, h, w), or (M, C, h, w); dtype and device of `latents`. Weights of a single latent return it bit for bit.

    Raises:
        ConfigError: shapes do not fit, or all weights of a mix are zero.
        NumericsError: a latent holds NaN or infinity.

    Example:
        >>> lol(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([1.0, 1.0]))
        tensor([0.7071, 0.7071])
    """
    w = _weights(latents, weights)
    lengths = torch.linalg.vector_norm(w, dim=1, keepdim=True)
    if not lengths.all():
        raise ConfigError("all weights of a mix are 0, which gives no direction; give one of them a weight")
    mixes = ((w / lengths) @ latents.detach().cpu().double().flatten(1)).view(-1, *latents.shape[1:])
    return _finished(latents, weights, w, mixes)


def karcher_mean(latents: Tensor, weights: Tensor) -> Tensor:
    """Mix latents on the sphere: the direction with the smallest weighted sum of squared angles to theirs.

    Found by m <- exp_m(sum_i w_i log_m u_i) until the step is below 1e-12. For two latents it is slerp. The norm is the
    weighted geometric mean, so it lies between those of the latents.

    Args:
        latents: (N, C, h, w), none of them zero.
        weights: (N,), or (M, N) for M mixes; not negative. Only their ratios count.

    Returns:
        (C, h, w), or (M, C, h, w); dtype and device of `latents`. Weights of a single latent return it bit for bit.

    Raises:
        ConfigError: shapes do not fit, weights are negative or all zero, or the mean is not determined, because the
            latents do not fit into half a sphere.
        NumericsError: a latent holds NaN or infinity.

    Example:
        >>> karcher_mean(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([1.0, 1.0]))
        tensor([0.7071, 0.7071])
    """
    w = _weights(latents, weights)
    if (w < 0).any() or not w.sum(1).all():
        raise ConfigError(f"weights={weights.tolist()}; a mean takes weights of 0 or more, one of them above 0")
    directions, norms = polar("latents", latents)
    shares = w / w.sum(1, keepdim=True)
    mixes = torch.stack([torch.exp(share @ norms.log()) * _mean_direction(directions, share) for share in shares])
    return _finished(latents, weights, w, mixes)


def corner_grid(corners: Tensor, rows: int, columns: int, how: GridHow = "slerp") -> Tensor:
    """Fill a rectangle from the latents at its corners, as in figures 11 to 13 of the DDIM paper.

    Args:
        corners: (4, C, h, w): top left, top right, bottom left, bottom right.
        rows: 2 or more.
        columns: 2 or more.
        how: `slerp` is the paper's: along the top and the bottom edge, then from top to bottom. `lol` and `karcher` mix
            all four by bilinear weights, which treats rows and columns alike.

    Returns:
        (rows, columns, C, h, w), dtype and device of `corners`, whose values the corners have bit for bit. Edges are
        the paths between their corners.

    Raises:
        ConfigError: not four corners, fewer than two rows or columns, or an unknown `how`; the errors of the mix.
    """
    if len(corners) != 4 or rows < 2 or columns < 2:
        raise ConfigError(
            f"{len(corners)} corners, {rows} rows, {columns} columns; give 4 corners and 2 or more of both"
        )
    if how not in get_args(GridHow):
        raise ConfigError(f"how={how!r} is not known; choose {', '.join(get_args(GridHow))}")
    down, across = (torch.linspace(0, 1, count, dtype=torch.float64) for count in (rows, columns))
    if how == "slerp":
        wide = corners.detach().cpu().double()  # rounding the edges on the way would show inside
        top, bottom = slerp(wide[0], wide[1], across), slerp(wide[2], wide[3], across)
        made = torch.stack([slerp(a, b, down) for a, b in zip(top, bottom, strict=True)], dim=1)
        return made.to(corners.device, corners.dtype)
    sides = torch.stack([1 - across, across]), torch.stack([1 - down, down])
    weights = torch.einsum("ir,jc->rcij", sides[1], sides[0]).reshape(rows * columns, 4)
    mix = lol if how == "lol" else karcher_mean
    return mix(corners, weights).view(rows, columns, *corners.shape[1:])


def analogy(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """What is to c as a is to b: a - b + c, with the weights of `lol`, so that independent latents keep their law.

    Where a resembles b, as photos of one thing do, it comes out shorter than Gaussian noise: look at its
    `latent_health`, and lengthen it with `corrections.corrected`.

    Args:
        a: One latent (C, h, w).
        b: Another, of the same shape.
        c: Another, of the same shape.

    Returns:
        (C, h, w), dtype and device of `a`.

    Raises:
        ConfigError: shapes differ, or the values are not floats; NumericsError: NaN or infinity.
    """
    if not a.shape == b.shape == c.shape:
        raise ConfigError(f"shapes {[tuple(x.shape) for x in (a, b, c)]} differ; all must come from one model")
    return lol(torch.stack([a, b, c]), torch.tensor([1.0, -1.0, 1.0]))


def _weights(latents: Tensor, weights: Tensor) -> Tensor:
    """The weights as (M, N) float64 on the CPU, checked together with the latents."""
    check_latent("latents", latents)
    w = weights.detach().cpu().double()
    rows = w[None] if w.ndim == 1 else w
    if rows.ndim != 2 or rows.shape[1] != len(latents) or not rows.isfinite().all():
        raise ConfigError(f"weights are {tuple(w.shape)} for {len(latents)} latents; give finite (N,) or (M, N)")
    return rows


def _finished(latents: Tensor, weights: Tensor, w: Tensor, mixes: Tensor) -> Tensor:
    """Mixes in dtype and shape of what was given; those of one latent are that latent, with no arithmetic."""
    made = mixes.to(latents.device, latents.dtype)
    for row in range(len(w)):
        (used,) = w[row].nonzero(as_tuple=True)
        if len(used) == 1 and w[row, used] > 0:
            made[row] = latents[int(used)].detach()
    return made if weights.ndim == 2 else made[0]


def _mean_direction(directions: Tensor, shares: Tensor) -> Tensor:
    used = [(float(share), u) for share, u in zip(shares, directions, strict=True) if share > 0]
    mean = torch.stack([share * u for share, u in used]).sum(0)
    for _ in range(_ITERATIONS):
        if norm(mean) < 1e-6:
            break
        mean = mean / norm(mean)
        step = torch.stack([share * arc(mean, u).log for share, u in used]).sum(0)
        if norm(step) < _TOLERANCE:
            return mean
        mean = exponential(mean, step)
    raise ConfigError("the mean of these latents is not determined: they do not fit into half a sphere; use lol")
