"""How far a picture is from its reference, and how Gaussian a latent is. Numbers only; no files, no models.

The reference is the 8-bit photo after crop and resize. Pictures arrive in [-1, 1] and are compared on [0, 1], as floats
and unclamped; only `changed_8bit` looks at what a file would hold. Everything is float64 on the CPU, one number per
photo. A table gives the mean MSE and the PSNR of that mean (`psnr_of_mean`), which is not the mean of the PSNRs.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from ddim_edit.errors import ConfigError, NumericsError

# What a good latent may show at most. A Gaussian has rms 1, excess kurtosis 0 and neighbour correlation 0.
RMS_RANGE = (0.93, 1.07)
MAX_EXCESS_KURTOSIS = 0.5
MAX_NEIGHBOUR_CORRELATION = 0.15

# The window of SSIM: a Gaussian of sigma 1.5, cut off at 5 pixels from its centre, so 11 wide.
_SSIM_SIGMA, _SSIM_RADIUS = 1.5, 5


@dataclass(frozen=True)
class Quality:
    """The five errors of one photo, on the scale [0, 1].

    Attributes:
        mse: Mean squared error.
        psnr: Peak signal-to-noise ratio in dB; infinite for equal pictures.
        ssim: Structural similarity, 1 for equal pictures.
        max_error: Largest error of one value.
        changed_8bit: Share in [0, 1] of the values that differ after rounding to 8 bits.
    """

    mse: float
    psnr: float
    ssim: float
    max_error: float
    changed_8bit: float


@dataclass(frozen=True)
class LatentHealth:
    """How one latent differs from Gaussian noise.

    Attributes:
        rms: Root mean square of the entries; a Gaussian has 1. Few steps shrink it.
        excess_kurtosis: Fourth moment over squared variance, minus 3; a Gaussian has 0.
        neighbour_correlation: Mean correlation of each entry with its right and its lower neighbour; noise of n entries
            has 0 to within about 1 / sqrt(n). Large values mean that the photo still shows in the latent.
    """

    rms: float
    excess_kurtosis: float
    neighbour_correlation: float


def compare(reference: Tensor, result: Tensor) -> list[Quality]:
    """Measure each result against its reference.

    Args:
        reference: (B, 3, H, W) in [-1, 1]: the 8-bit photos after crop and resize.
        result: (B, 3, H, W), meant for [-1, 1] but not clamped.

    Returns:
        One Quality per photo.

    Raises:
        ConfigError: shapes differ or are not (B, 3, H, W), or the values are not floats.
        NumericsError: a picture holds NaN or infinity.

    Example:
        >>> compare(torch.zeros(1, 3, 16, 16), torch.full((1, 3, 16, 16), 0.2))[0].max_error
        0.10000000149011612
    """
    measures = (mse, psnr, ssim, max_error, changed_8bit)
    columns = [measure(reference, result).tolist() for measure in measures]
    return [Quality(*row) for row in zip(*columns, strict=True)]


def mse(reference: Tensor, result: Tensor) -> Tensor:
    """Mean squared error per photo on the scale [0, 1], the unit of Table 2 of DDIM (arXiv:2010.02502).

    Args:
        reference: (B, 3, H, W) in [-1, 1].
        result: (B, 3, H, W), not clamped.

    Returns:
        (B,) float64.

    Raises:
        ConfigError: shapes differ or are not (B, 3, H, W), or the values are not floats.
        NumericsError: a picture holds NaN or infinity.
    """
    x, y = _pair(reference, result)
    return (x - y).square().mean(dim=(1, 2, 3))


def psnr(reference: Tensor, result: Tensor) -> Tensor:
    """Peak signal-to-noise ratio per photo in dB, -10 log10(mse) with data range 1; infinite for equal pictures.

    Arguments, result and errors are those of `mse`.
    """
    return -10 * mse(reference, result).log10()


def psnr_of_mean(errors: Tensor | Sequence[float]) -> float:
    """PSNR in dB of the mean of some MSEs: the figure for a table, infinite where every MSE is 0.

    Args:
        errors: (N,) MSEs of the photos, on the scale [0, 1].

    Raises:
        ConfigError: there are none, or one is negative.
        NumericsError: one is NaN or infinite.

    Example:
        >>> psnr_of_mean([0.01, 0.03])
        16.989700043360187
    """
    values = [float(error) for error in errors]
    if not all(map(math.isfinite, values)):
        raise NumericsError(f"errors={values} are not all finite; look for the photo that failed")
    if not values or min(values) < 0:
        raise ConfigError(f"errors={values}; PSNR needs at least one MSE, and none below 0")
    mean = math.fsum(values) / len(values)
    return -10 * math.log10(mean) if mean else math.inf


def ssim(reference: Tensor, result: Tensor) -> Tensor:
    """Structural similarity per photo in Wang's variant, as computed by scikit-image.

    `skimage.metrics.structural_similarity` with `gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
    data_range=1`: an 11 x 11 Gaussian window, K1 = 0.01, K2 = 0.03, a border of 5 pixels left out, the mean over
    positions and the three channels. (scikit-image's default, a flat 7 x 7 window, gives other numbers.)

    Where a side is under 11 pixels, the window is the widest odd one that fits, with sigma in proportion; such numbers
    compare with each other only.

    Returns:
        (B,) float64, 1 for equal pictures. Arguments and errors are those of `mse`.
    """
    x, y = _pair(reference, result)
    return torch.tensor([_ssim(p, q) for p, q in zip(x, y, strict=True)], dtype=torch.float64)


def max_error(reference: Tensor, result: Tensor) -> Tensor:
    """Largest absolute error per photo on the scale [0, 1]. Arguments, result and errors are those of `mse`."""
    x, y = _pair(reference, result)
    return (x - y).abs().amax(dim=(1, 2, 3))


def changed_8bit(reference: Tensor, result: Tensor) -> Tensor:
    """Share per photo of values that differ in an 8-bit file. Arguments, result and errors are those of `mse`.

    The values in a file are round(clamp((x + 1) * 127.5, 0, 255)).
    """
    x, y = ((p * 255).clamp(0, 255).round() for p in _pair(reference, result))
    return (x != y).double().mean(dim=(1, 2, 3))


def pixels_off(reference: Tensor, result: Tensor) -> Tensor:
    """Share per photo of pixels with a channel off by more than 1/255. Arguments, result and errors are those of `mse`.

    An error of exactly one 8-bit level does not count, and neither does a rounding of 1e-6 above it.
    """
    x, y = _pair(reference, result)
    return ((x - y).abs().amax(dim=1) > 1 / 255 + 1e-6).double().mean(dim=(1, 2))


def latent_health(x: Tensor) -> list[LatentHealth]:
    """Measure how Gaussian each latent is. What is not Gaussian shows as artefacts between keys of a morph.

    Args:
        x: (B, C, h, w) latents at the noisy end, h or w at least 2.

    Returns:
        One LatentHealth per latent; `advice` says what it means.

    Raises:
        ConfigError: x is not (B, C, h, w), or has no neighbours to compare.
        NumericsError: x holds NaN or infinity.
    """
    if x.ndim != 4 or x.shape[-2] * x.shape[-1] < 2:
        raise ConfigError(f"x has shape {tuple(x.shape)}; pass latents (B, C, h, w) with h or w at least 2")
    _check_finite("x", x)
    return [_health(latent) for latent in x.detach().cpu().double()]


def advice(health: LatentHealth) -> str | None:
    """Say in one line what is wrong with a latent and what to do, or None where it is healthy.

    Example:
        >>> advice(LatentHealth(rms=1.0, excess_kurtosis=0.0, neighbour_correlation=0.0)) is None
        True
    """
    low, high = RMS_RANGE
    found: list[str] = []
    if not low <= health.rms <= high:
        found.append(f"rms {health.rms:.2f} (a Gaussian has 1)")
    if abs(health.excess_kurtosis) > MAX_EXCESS_KURTOSIS:
        found.append(f"excess kurtosis {health.excess_kurtosis:+.2f} (0)")
    if abs(health.neighbour_correlation) > MAX_NEIGHBOUR_CORRELATION:
        found.append(f"neighbour correlation {health.neighbour_correlation:+.2f} (0)")
    if not found:
        return None
    remedy = "encode with more steps to bring it nearer; if that does not help, the photo is outside the model's domain"
    return f"the latent is far from Gaussian noise: {', '.join(found)}; {remedy}"


def _pair(reference: Tensor, result: Tensor) -> tuple[Tensor, Tensor]:
    """Both batches on [0, 1] in float64 on the CPU (MPS has no float64), unclamped, checked."""
    if reference.shape != result.shape or reference.ndim != 4 or reference.shape[1] != 3:
        raise ConfigError(
            f"reference has shape {tuple(reference.shape)} and result {tuple(result.shape)}; "
            "pass pictures of one shape (B, 3, H, W)"
        )
    for name, x in (("reference", reference), ("result", result)):
        if not x.is_floating_point():
            raise ConfigError(f"{name} holds {x.dtype}; pass floats in [-1, 1], that is, x / 127.5 - 1")
        _check_finite(name, x)
    x, y = ((p.detach().cpu().double() + 1) / 2 for p in (reference, result))
    return x, y


def _ssim(x: Tensor, y: Tensor) -> float:
    from skimage.metrics import structural_similarity

    radius = min(_SSIM_RADIUS, (min(x.shape[-2:]) - 1) // 2)
    value = structural_similarity(
        x.numpy(),
        y.numpy(),
        channel_axis=0,
        data_range=1,
        gaussian_weights=True,
        sigma=_SSIM_SIGMA * radius / _SSIM_RADIUS,  # scikit-image derives the width from it
        use_sample_covariance=False,
    )
    return float(cast(float, value))


def _health(x: Tensor) -> LatentHealth:
    """Health of one latent (C, h, w), float64."""
    centred = x - x.mean()
    # A constant latent has no variance; it then reads as kurtosis -3, correlation 0: far from Gaussian, and no NaN.
    variance = centred.square().mean().clamp(min=torch.finfo(torch.float64).tiny)
    right = centred[..., :-1] * centred[..., 1:]
    below = centred[..., :-1, :] * centred[..., 1:, :]
    return LatentHealth(
        rms=float(x.square().mean().sqrt()),
        excess_kurtosis=float((centred / variance.sqrt()).pow(4).mean() - 3),
        neighbour_correlation=float(torch.cat([right.flatten(), below.flatten()]).mean() / variance),
    )


def _check_finite(name: str, x: Tensor) -> None:
    if not x.isfinite().all():
        count = int((~x.isfinite()).sum())
        raise NumericsError(f"{name} holds {count} values that are not finite; look for the step that made them")
