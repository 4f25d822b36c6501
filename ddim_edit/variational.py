"""The variational bound of a diffusion model, term by term: what `evaluation` reports and `training` may minimise.

Everything is in bits per dimension, one number per photo (DDPM, arXiv 2006.11239, section 2 and 3.3; learned variances:
Improved DDPM, arXiv 2102.09672, eq. 15). Tensors in, tensors out.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ddim_edit.schedule import Array, NoiseSchedule

BIN = 1 / 255  # half the distance of two 8-bit values on [-1, 1]
TINY = 1e-12


@dataclass(frozen=True, eq=False)
class Posterior:
    """q(x_{t-1} | x_t, x0) at every timestep: a Gaussian of mean `of_x0 * x0 + of_x_t * x_t` (DDPM eq. 6 and 7).

    Args:
        of_x0: (T,) float64.
        of_x_t: (T,) float64.
        log_small: (T,) log of the posterior's variance; at t = 0, where that is 0, the one of t = 1.
        log_large: (T,) log beta, the other extreme that a learned variance lies between.
    """

    of_x0: Array
    of_x_t: Array
    log_small: Array
    log_large: Array

    @classmethod
    def of(cls, schedule: NoiseSchedule) -> "Posterior":
        """The posterior of this schedule's noising process, which starts at the photo itself."""
        alpha_bar = schedule.alpha_bar
        previous = np.append(1.0, alpha_bar[:-1])
        beta = schedule.betas
        small = beta * (1 - previous) / (1 - alpha_bar)
        small[0] = small[1] if len(small) > 1 else beta[0]
        return cls(
            of_x0=np.sqrt(previous) * beta / (1 - alpha_bar),
            of_x_t=np.sqrt(alpha_bar / previous) * (1 - previous) / (1 - alpha_bar),
            log_small=np.log(small),
            log_large=np.log(beta),
        )

    def mean(self, x0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The mean of x_{t-1} (B, C, h, w) for integer t (B,)."""
        return rows_of(self.of_x0, t, x0) * x0 + rows_of(self.of_x_t, t, x_t) * x_t

    def log_variance(self, learned: Tensor | None, t: Tensor, like: Tensor) -> Tensor:
        """Log variance of the model's step: the posterior's, or what a learned-sigma network asks for (eq. 15).

        Args:
            learned: (B, C, h, w), the network's second half, where -1 means `log_small` and 1 `log_large`; or None.
            t: (B,) integer timesteps.
            like: gives shape, dtype and device.
        """
        small = rows_of(self.log_small, t, like)
        if learned is None:
            return small.expand_as(like)
        share = (learned + 1) / 2
        return share * rows_of(self.log_large, t, like) + (1 - share) * small


def rows_of(table: Array, t: Tensor, like: Tensor) -> Tensor:
    """The entries of a table at integer t (B,), shaped to multiply `like` (B, ...), in its dtype and place."""
    return torch.from_numpy(table[t.cpu().numpy()]).view(-1, *[1] * (like.ndim - 1)).to(like)


def bound_terms(
    posterior: Posterior, x0: Tensor, x_t: Tensor, t: Tensor, mean: Tensor, learned: Tensor | None = None
) -> Tensor:
    """The bound's term of each row's timestep: KL for t > 0, and the likelihood of the 8-bit photo at t = 0.

    Args:
        posterior: of the model's schedule.
        x0: (B, C, h, w) in [-1, 1], on the 8-bit grid.
        x_t: (B, C, h, w), x0 noised to t.
        t: (B,) integer timesteps.
        mean: (B, C, h, w), where the model expects x_{t-1}.
        learned: (B, C, h, w), the second half of a learned-sigma network, or None for the posterior's variance.

    Returns:
        (B,) bits per dimension. The sum over all t, plus `prior_term`, bounds the negative log-likelihood.
    """
    log_variance = posterior.log_variance(learned, t, x_t)
    truth, log_truth = posterior.mean(x0, x_t, t), posterior.log_variance(None, t, x_t)
    step = gaussian_kl(truth, log_truth, mean, log_variance)
    photo = -discrete_log_likelihood(x0, mean, log_variance)
    nats = torch.where((t == 0).to(x0.device), photo.flatten(1).mean(1), step.flatten(1).mean(1))
    return nats / math.log(2)


def prior_term(schedule: NoiseSchedule, x0: Tensor) -> Tensor:
    """KL of q(x_T | x0) from N(0, 1), for the photo still showing at the top: (B,) bits per dimension."""
    top = schedule.level(len(schedule) - 1)
    zero = torch.zeros_like(x0)
    nats = gaussian_kl(top.signal * x0, zero + 2 * math.log(top.noise), zero, zero)
    return nats.flatten(1).mean(1) / math.log(2)


def gaussian_kl(mean: Tensor, log_variance: Tensor, other_mean: Tensor, other_log_variance: Tensor) -> Tensor:
    """KL(N(mean, variance) || N(other_mean, other_variance)) of every entry, in nats."""
    difference = log_variance - other_log_variance
    apart = (mean - other_mean).square() * (-other_log_variance).exp()
    return 0.5 * (difference.exp() - 1 - difference + apart)


def discrete_log_likelihood(x0: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """Log probability in nats of each 8-bit value under a Gaussian cut into 256 bins (DDPM eq. 13).

    The first and the last bin reach to infinity.
    """
    scale = (-0.5 * log_variance).exp()
    above = torch.special.ndtr((x0 - mean + BIN) * scale)
    below = torch.special.ndtr((x0 - mean - BIN) * scale)
    above = torch.where(x0 > 1 - BIN, torch.ones_like(above), above)
    below = torch.where(x0 < -1 + BIN, torch.zeros_like(below), below)
    return (above - below).clamp(min=TINY).log()
