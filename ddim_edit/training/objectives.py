"""What a network is trained to output and what it is punished for: pure functions of tensors.

Targets and bounds as in Improved DDPM (arXiv 2102.09672) and DDPM (2006.11239); weights: see `snr_weights`.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from torch import Tensor

from ddim_edit.denoiser import Prediction, PredictionType, interpret
from ddim_edit.models.previous import X_PREV
from ddim_edit.schedule import Array, NoiseSchedule
from ddim_edit.variational import Posterior, bound_terms, rows_of

TARGETS = (*(str(kind) for kind in PredictionType), X_PREV)
LOSSES = ("mse", "vb", "rescaled-vb", "hybrid")
# Weight of the bound beside the squared error, lambda of arXiv 2102.09672 section 3.1, for the bound as a sum over T.
HYBRID_WEIGHT = 1e-3
LEAST_SIGNAL = 4e-5  # alpha_bar at the end of a linear schedule of 1000 steps


class Noised(NamedTuple):
    """Photos and what was made of them: x0, eps and x_t (B, C, h, w); integer t (B,), on the CPU."""

    x0: Tensor
    eps: Tensor
    x_t: Tensor
    t: Tensor


class Losses(NamedTuple):
    """One number per photo, (B,): what is minimised, and the plain squared error of the target, which is reported."""

    total: Tensor
    mse: Tensor


@dataclass(frozen=True, eq=False)
class Objective:
    """The loss of a network's raw output.

    Args:
        schedule: the noise levels.
        target: one of TARGETS.
        loss: one of LOSSES. `vb` is the bound's term at t in bits per dimension, `rescaled-vb` the same times T, and
            `hybrid` the squared error plus the bound of the learned variance, whose mean gets no gradient.
        min_snr: gamma, or None.
        snr_floor: least weight of the error of x0, or None.
        high_noise: power of 1 / signal that weighs it further, or None.
        moments: weight of the errors of the noise's mean and size beside that, or None; see `moments_error`.
    """

    schedule: NoiseSchedule
    target: str
    loss: str = "mse"
    min_snr: float | None = None
    snr_floor: float | None = None
    high_noise: float | None = None
    moments: float | None = None

    @cached_property
    def posterior(self) -> Posterior:
        """q(x_{t-1} | x_t, x0)."""
        return Posterior.of(self.schedule)

    @cached_property
    def weights(self) -> Array | None:
        """(T,) factors of the squared error."""
        least, most, power = self.snr_floor or 0.0, self.min_snr or np.inf, self.high_noise or 0.0
        if (least, most, power) == (0.0, np.inf, 0.0):
            return None
        return snr_weights(self.schedule, self.target, most=most, least=least, power=power)

    def target_of(self, noised: Noised) -> Tensor:
        """What the network should have said, (B, C, h, w)."""
        x0, eps, x_t, t = noised
        if self.target == X_PREV:
            return self.posterior.mean(x0, x_t, t)
        if self.target == PredictionType.V:
            return self.schedule.velocity(x0, eps, t)
        return eps if self.target == PredictionType.EPSILON else x0

    def __call__(self, out: Tensor, noised: Noised) -> Losses:
        """Losses of an output (B, C, h, w), or (B, 2 C, h, w) with a learned sigma."""
        channels = noised.x0.shape[1]
        said, learned = out[:, :channels], out[:, channels:] if out.shape[1] > channels else None
        mse = (said - self.target_of(noised)).square().flatten(1).mean(1)
        T = len(self.schedule)
        if self.loss in ("vb", "rescaled-vb"):
            bound = self._bound(said, learned, noised)
            return Losses(bound * T if self.loss == "rescaled-vb" else bound, mse.detach())
        total = mse if self.weights is None else mse * rows_of(self.weights, noised.t, mse)
        if self.moments is not None:
            total = total + self.moments * self._moments(said, noised)
        if self.loss == "hybrid":
            total = total + HYBRID_WEIGHT * T * self._bound(said.detach(), learned, noised)
        return Losses(total, mse.detach())

    def _moments(self, said: Tensor, noised: Noised) -> Tensor:
        _, eps, x_t, t = noised
        snr = rows_of(np.exp(2 * self.schedule.half_log_snr), t, x_t)
        return moments_error(self._prediction(said, x_t, t).eps, eps, snr.flatten())

    def _bound(self, said: Tensor, learned: Tensor | None, noised: Noised) -> Tensor:
        x0, _, x_t, t = noised
        return bound_terms(self.posterior, x0, x_t, t, self._mean(said, x_t, t), learned)

    def _mean(self, said: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """Where the network expects x_{t-1}."""
        if self.target == X_PREV:
            return said
        return self.posterior.mean(self._prediction(said, x_t, t).x0, x_t, t)

    def _prediction(self, said: Tensor, x_t: Tensor, t: Tensor) -> Prediction:
        """What the network says of photo and noise; x_prev says it in another way."""
        signal, noise = self.schedule.signal_and_noise(t, x_t)
        return interpret(PredictionType(self.target), x_t, said, signal, noise)


def moments_error(said: Tensor, eps: Tensor, snr: Tensor) -> Tensor:
    """(B,) squared errors of the means of the channels and of the size of predicted noise, (B, C, h, w).

    Group norms take both away, so a U-Net hardly sees them, and the plain loss hardly asks: they are C + 1 of C h w
    numbers. But samples get their colours and their grain from them, because at T an error of eps is an error of x0
    1 / sqrt(alpha_bar) times as large. A mean counts in units of its standard deviation, the size in about 1.4 of its
    own. `snr` (B,) fades both where photos hide them: their mean colour varies by about 1/2 in [-1, 1].
    """
    pixels = eps[0, 0].numel()
    error = said - eps
    mean = pixels * error.mean((2, 3)).square().mean(1)
    size = (error * eps).flatten(1).sum(1).square() / eps.square().flatten(1).sum(1)
    return (mean + size) / (1 + pixels / 4 * snr)


def snr_weights(schedule: NoiseSchedule, target: str, *, most: float, least: float = 0.0, power: float = 0.0) -> Array:
    """(T,) weights that make every target's squared error clip(SNR, least, most) / signal^power times that of x0.

    `most` is gamma of min-SNR (arXiv 2303.09556), `least` the truncation of arXiv 2202.00512, section 4, which uses 1:
    at high noise a wrong colour of the whole picture is a tiny error of eps, and without it hardly learned. `power`
    does the same for shapes: of eps at high noise a network gets nearly all right, so the plain loss comes from low
    noise, but an error of eps is one of x0 1 / signal times as large. 2 makes the loss of eps that of v, and 1, between
    the two, has all levels count about alike, as the learned weights of EDM2 do (arXiv 2312.02696). Levels with less
    signal than a linear schedule ever has are weighed as its last: a cosine schedule's last would outweigh all others.
    """
    alpha_bar = np.maximum(schedule.alpha_bar, LEAST_SIGNAL)
    snr = alpha_bar / np.maximum(1 - alpha_bar, np.finfo(float).tiny)
    clipped = np.clip(snr, least, most) / alpha_bar ** (power / 2)
    if target == PredictionType.EPSILON:
        return clipped / snr
    return clipped / (snr + 1) if target == PredictionType.V else clipped
