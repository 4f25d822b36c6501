"""What several test files need and no fixture gives: an exact denoiser, tiny networks, folders on disk."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor

from ddim_edit.denoiser import Condition, Denoiser, Prediction, PredictionType
from ddim_edit.schedule import Level, NoiseSchedule

if TYPE_CHECKING:
    from diffusers.models.unets.unet_2d import UNet2DModel

# What the scheduler file of google/ddpm-* says.
DDPM_CONFIG: Mapping[str, object] = {
    "_class_name": "DDPMScheduler",
    "num_train_timesteps": 1000,
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "prediction_type": "epsilon",
    "clip_sample": True,
}


class BareNetwork(Protocol):
    """A network that may be called without a condition."""

    def __call__(self, x: Tensor, t: Tensor, condition: Condition | None = None) -> Tensor: ...


@dataclass(frozen=True, eq=False)
class Mixture:
    """The exact denoiser of photos drawn from a mixture of K round Gaussians. It follows the Denoiser protocol.

    Args:
        means: (K, C, h, w) float64.
        stds: (K,) float64, of the components.
        weights: (K,) float64, adding up to 1.
    """

    means: Tensor
    stds: Tensor
    weights: Tensor
    cost: int = 1

    @classmethod
    def make(
        cls, shape: tuple[int, ...] = (2, 2, 2), components: int = 3, std: float = 0.5, seed: int = 0
    ) -> "Mixture":
        """Components of slightly different widths around `std`, at random places of unit variance."""
        draw = torch.Generator().manual_seed(seed)
        means = torch.randn((components, *shape), generator=draw, dtype=torch.float64)
        widths = torch.linspace(0.8, 1.2, components, dtype=torch.float64) if components > 1 else torch.ones(1).double()
        shares = torch.arange(1, components + 1, dtype=torch.float64)
        return cls(means, std * widths, shares / shares.sum())

    @property
    def settings(self) -> Mapping[str, object]:
        return {}

    def __call__(self, x: Tensor, level: Level) -> Prediction:
        """The posterior means of x0 and eps given x (B, C, h, w)."""
        return Prediction(*self.posterior(x, level.signal, level.noise))

    def posterior(self, x: Tensor, signal: float, noise: float) -> tuple[Tensor, Tensor]:
        """(x0, eps), finite at noise 0 and at signal 0 too."""
        means, stds, weights = (value.to(x) for value in (self.means, self.stds, self.weights))
        away = (x[:, None] - signal * means).flatten(2)  # (B, K, d)
        variance = (signal * stds) ** 2 + noise**2  # (K,)
        log_share = weights.log() - 0.5 * away.shape[2] * variance.log() - 0.5 * (away**2).sum(2) / variance
        share = log_share.softmax(dim=1)[:, :, None]
        x0 = (share * (means.flatten(1) + (signal * stds**2 / variance)[:, None] * away)).sum(1)
        eps = (share * (noise / variance)[:, None] * away).sum(1)
        return x0.view_as(x), eps.view_as(x)

    def photos(self, count: int, seed: int = 0) -> Tensor:
        """(count, C, h, w) float64, drawn from the mixture."""
        draw = np.random.default_rng(seed)
        k = draw.choice(len(self.stds), size=count, p=self.weights.numpy())
        noise = torch.from_numpy(draw.standard_normal((count, *self.means.shape[1:])))
        return self.means[k] + self.stds[k].view(-1, 1, 1, 1) * noise

    def network(self, schedule: NoiseSchedule, prediction: PredictionType = PredictionType.EPSILON) -> "BareNetwork":
        """A bare callable (x, t, condition=None) -> eps, x0 or v, as a trained network would give it."""

        def run(x: Tensor, t: Tensor, condition: Condition | None = None) -> Tensor:
            level = schedule.level(float(t.flatten()[0]))
            x0, eps = self.posterior(x, level.signal, level.noise)
            outputs = {"epsilon": eps, "sample": x0, "v_prediction": level.signal * eps - level.noise * x0}
            return outputs[prediction.value]

        return run


@dataclass(frozen=True)
class Constant:
    """A denoiser whose eps is the same everywhere: every solver integrates it without error."""

    eps: float
    cost: int = 1
    settings: Mapping[str, object] = field(default_factory=dict[str, object])

    def __call__(self, x: Tensor, level: Level) -> Prediction:
        eps = torch.full_like(x, self.eps)
        return Prediction((x - level.noise * eps) / level.signal, eps)


@dataclass(frozen=True)
class Recording:
    """Passes calls on to `inner` and keeps the levels at which it was asked, and for how many photos."""

    inner: Denoiser
    levels: list[Level] = field(default_factory=list[Level])
    photos: list[int] = field(default_factory=list[int])

    @property
    def cost(self) -> int:
        return self.inner.cost

    @property
    def settings(self) -> Mapping[str, object]:
        return self.inner.settings

    def __call__(self, x: Tensor, level: Level) -> Prediction:
        self.levels.append(level)
        self.photos.append(len(x))
        return self.inner(x, level)


def gaussian_noise(seed: int, *shape: int) -> Tensor:
    """Standard normal float64 noise that owes nothing to ddim_edit.noise."""
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


def relative_rms(a: Tensor, b: Tensor) -> float:
    """Root mean square of a - b, as a share of that of b."""
    return float((a.double() - b.double()).norm() / b.double().norm())


def tiny_unet(seed: int = 0, **overrides: object) -> "UNet2DModel":
    """A random unconditional U-Net for 8x8 RGB photos, about 45,000 parameters, in eval mode."""
    from diffusers.models.unets.unet_2d import UNet2DModel

    config: dict[str, object] = {
        "sample_size": 8,
        "in_channels": 3,
        "out_channels": 3,
        "layers_per_block": 1,
        "block_out_channels": (8, 16),
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": 8,
        "norm_num_groups": 8,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return UNet2DModel(**{**config, **overrides}).eval()  # pyright: ignore[reportArgumentType]


def save_pipeline_folder(
    folder: Path,
    unet: "UNet2DModel | None" = None,
    scheduler: Mapping[str, object] = DDPM_CONFIG,
    *,
    at_root: bool = False,
    safe_serialization: bool = True,
) -> Path:
    """Write a diffusers pipeline folder and return it.

    Args:
        folder: made if it is missing.
        unet: `tiny_unet()` by default.
        scheduler: what goes into scheduler_config.json.
        at_root: everything beside model_index.json, as in google/ddpm-*, rather than in unet/ and scheduler/.
        safe_serialization: safetensors, or else a .bin file.
    """
    unet_at, scheduler_at = (folder, folder) if at_root else (folder / "unet", folder / "scheduler")
    scheduler_at.mkdir(parents=True, exist_ok=True)
    (unet or tiny_unet()).save_pretrained(unet_at, safe_serialization=safe_serialization)
    name = str(scheduler.get("_class_name", "DDPMScheduler"))
    index = {
        "_class_name": name.replace("Scheduler", "Pipeline"),
        "_diffusers_version": "0.30.0",
        "scheduler": ["diffusers", name],
        "unet": ["diffusers", "UNet2DModel"],
    }
    _write_json(scheduler_at / "scheduler_config.json", scheduler)
    _write_json(folder / "model_index.json", index)
    return folder


def _write_json(path: Path, value: Mapping[str, object]) -> None:
    path.write_text(json.dumps(value, indent=2))
