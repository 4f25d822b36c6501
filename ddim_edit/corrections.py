"""Corrections of latents on a path, for codes that are not quite Gaussian. Tensors in, tensors out; never the default.

A correction changes the key latents too, and a changed key no longer decodes to its photo: it trades fidelity for
pictures between the keys that look more like what the model knows.
"""

import math
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from ddim_edit.errors import ConfigError

Correction = Literal["none", "radius", "adain", "clip"]

CLIP = 2.0  # standard deviations, as in NoiseDiffusion


def corrected(x: Tensor, how: Correction, *, keys: Tensor, u: Tensor) -> Tensor:
    """Correct latents of a path.

    Args:
        x: (F, C, h, w), the latents at the positions `u`.
        how: `none`; `radius`: the norm sqrt(D) that D Gaussian numbers have (NAO, arXiv:2306.08687); `adain`: mean and
            standard deviation of every channel, interpolated between those of the keys (DiffMorpher, arXiv:2312.07409);
            `clip`: values to [-2, 2] (NoiseDiffusion, arXiv:2403.08840).
        keys: (N, C, h, w), the key latents of the path.
        u: (F,) positions as in `interpolation.along`; N is the first key again.

    Returns:
        (F, C, h, w), dtype of `x`.

    Raises:
        ConfigError: an unknown correction.
    """
    if how == "none":
        return x
    if how == "radius":
        norms = torch.linalg.vector_norm(x.double().flatten(1), dim=1)
        return (x.double() * (math.sqrt(x[0].numel()) / norms).view(-1, 1, 1, 1)).to(x.dtype)
    if how == "clip":
        return x.clamp(-CLIP, CLIP)
    if how == "adain":
        mean, std = _statistics(x)
        wanted_mean, wanted_std = (_between(values, u) for values in _statistics(keys))
        return ((x.double() - mean) / std * wanted_std + wanted_mean).to(x.dtype)
    raise ConfigError(f"correct={how!r} is not known; choose {', '.join(get_args(Correction))}")


def _statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of every channel: (B, C, 1, 1) each."""
    wide = x.double()
    return wide.mean((2, 3), keepdim=True), wide.std((2, 3), correction=0, keepdim=True)


def _between(values: Tensor, u: Tensor) -> Tensor:
    """Values at the keys (N, C, 1, 1), interpolated linearly at the positions: (F, C, 1, 1)."""
    loop = torch.cat([values, values[:1]]).flatten(1).numpy()
    columns = [np.interp(u.numpy(), np.arange(len(loop)), column) for column in loop.T]
    return torch.from_numpy(np.stack(columns, 1)).view(len(u), -1, 1, 1)
