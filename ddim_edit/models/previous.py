"""Networks that predict the mean of x_{t-1}, told as predictions of eps, so that nobody else needs to know of them."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from ddim_edit.denoiser import Condition, Network
from ddim_edit.schedule import Array, NoiseSchedule

X_PREV = "x_prev"  # in `prediction_type`; diffusers has no word for it


@dataclass(frozen=True, eq=False)
class FromPrevious:
    """Wraps a network that outputs the mean of q(x_{t-1} | x_t, x0) (`x_prev` in OpenAI's code).

    DDPM (arXiv 2006.11239) eq. 11 solved for eps: (x_t - sqrt(alpha_t) mean) sqrt(1 - alpha_bar_t) / beta_t. A second
    half of the output, a learned sigma, passes through. Timesteps between whole ones are rounded.
    """

    inner: Network
    schedule: NoiseSchedule

    @cached_property
    def _tables(self) -> tuple[Array, Array]:
        beta = self.schedule.betas
        return np.sqrt(1 - beta), np.sqrt(1 - self.schedule.alpha_bar) / beta

    def __call__(self, x: Tensor, t: Tensor, condition: Condition | None) -> Tensor:
        """Run one forward and solve for eps."""
        whole = t.round().long().clamp(0, len(self.schedule) - 1).cpu().numpy()
        root, scale = (torch.from_numpy(table[whole]).view(-1, 1, 1, 1).to(x) for table in self._tables)
        out = self.inner(x, t, condition)
        mean, rest = out[:, : x.shape[1]], out[:, x.shape[1] :]
        return torch.cat([(x - root * mean) * scale, rest], dim=1)
