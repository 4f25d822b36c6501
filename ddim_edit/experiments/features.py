"""Statistics of the model's own encoder: a distance between sets of pictures that needs no download.

It is *not* FID: the features are spatial means of the down blocks of the very network that is measured, so numbers of
different models cannot be compared. Features are whitened on reference photos, of which they then have mean 0 and
covariance 1; the distance of a set is the Frechet distance of its Gaussian fit from that of the photos.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ddim_edit.denoiser import Condition
from ddim_edit.errors import ConfigError
from ddim_edit.experiments.base import Array
from ddim_edit.models.base import Model
from ddim_edit.perception import picture_features

COMPONENTS = 16


def encoder_features(model: Model, pixels: Tensor, condition: Condition | None) -> Array:
    """Spatial means of `perception.picture_features`: (B, D) float64."""
    found = picture_features(model, pixels, condition)
    return torch.cat([values.double().mean((-2, -1)).cpu() for values in found], dim=1).numpy()


@dataclass(frozen=True)
class Whitening:
    """Maps features to the principal components of reference photos, each of variance 1 there."""

    mean: Array
    components: Array

    @classmethod
    def of(cls, features: Array) -> "Whitening":
        """Fit to the features (N, D) of reference photos.

        Raises:
            ConfigError: fewer photos than twice the components, or photos that differ in fewer ways.
        """
        require_enough(len(features))
        mean = features.mean(0)
        _, sizes, directions = np.linalg.svd(features - mean, full_matrices=False)
        if (ways := int((sizes > sizes[0] * 1e-9).sum())) < COMPONENTS:
            raise ConfigError(
                f"features of the reference photos differ in {ways} ways, and {COMPONENTS} are needed; give more "
                "different photos, or a larger network"
            )
        sizes, directions = sizes[:COMPONENTS], directions[:COMPONENTS]
        signs = np.sign(directions[np.arange(COMPONENTS), np.abs(directions).argmax(1)])  # svd leaves them open
        return cls(mean, (signs * np.sqrt(len(features) - 1) / sizes)[:, None] * directions)

    def __call__(self, features: Array) -> Array:
        """(N, D) -> (N, COMPONENTS)."""
        return (features - self.mean) @ self.components.T


def require_enough(photos: int) -> None:
    """Refuse to whiten by fewer reference photos than twice the components."""
    if photos < 2 * COMPONENTS:
        raise ConfigError(f"{photos} reference photos; {2 * COMPONENTS} or more are needed for statistics")


def frechet_from_reference(*columns: Array) -> Array:
    """Frechet distance of a Gaussian fitted to whitened features from N(0, 1), which is that of the reference.

    |m|^2 + sum of (sqrt(eigenvalue of the covariance) - 1)^2; the columns are (..., N) each, one per component.
    """
    features = np.stack(columns, axis=-2)
    centre = features.mean(-1)
    away = features - centre[..., None]
    covariance = away @ np.swapaxes(away, -1, -2) / (features.shape[-1] - 1)
    spread = np.sqrt(np.linalg.eigvalsh(covariance).clip(min=0))
    return (centre**2).sum(-1) + ((spread - 1) ** 2).sum(-1)


def names_of(count: int = COMPONENTS) -> Sequence[str]:
    """The columns that hold whitened features."""
    return [f"f{number:02d}" for number in range(count)]
