"""How differently a model's own encoder sees two pictures: a distance to pace morphs by that needs no downloads."""

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ddim_edit.denoiser import Condition
from ddim_edit.errors import ConfigError
from ddim_edit.models.base import Model

LEVEL = 0.05  # of the schedule: early enough that details count, late enough that networks look at more than noise


def picture_features(model: Model, pixels: Tensor, condition: Condition | None) -> list[Tensor]:
    """What the down blocks of a network make of pictures, shown as x_t without noise at t = 0.05 T.

    Args:
        model: of a family that gives its `features`.
        pixels: (B, 3, H, W) in [-1, 1].
        condition: of the model.

    Returns:
        (B, C', h', w') for every block, from fine to coarse.

    Raises:
        ConfigError: the network does not show its features.
    """
    if model.features is None:
        raise ConfigError(f"{model.name} does not show its features; only a UNet2DModel does")
    level = model.schedule.level(LEVEL * len(model.schedule))
    x = level.signal * model.codec.encode(pixels.float().to(model.device))
    with torch.no_grad():
        return list(model.features(x, torch.full((len(x),), level.t, device=x.device), condition))


@dataclass
class FeatureDistance:
    """Distance of the features of a picture, without noise; like LPIPS (arXiv 1801.03924) without learned weights.

    The last picture is remembered, so that a sequence of them costs one evaluation each.

    Args:
        model: whose encoder looks.
        label: the class that it is told; None for the null class, or for none.
        evaluations: network forwards so far.

    Raises:
        ConfigError: the model shows no features, or needs a label.
    """

    model: Model
    label: int | str | None = None
    evaluations: int = 0
    _condition: Condition | None = field(init=False, repr=False)
    _last: tuple[Tensor, list[Tensor]] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.model.features is None:
            raise ConfigError(f"{self.model.name} shows no features to pace by; choose l2 or ssim")
        self._condition = self.model.condition(self.label)

    def __call__(self, a: Tensor, b: Tensor) -> float:
        """The distance of two pictures (3, H, W) in [-1, 1]; 0 for equal ones."""
        first = self._last[1] if self._last and self._last[0] is a else self._features(a)
        second = self._features(b)
        self._last = b, second
        squares = [(x - y).square().sum(1).mean() for x, y in zip(first, second, strict=True)]
        return float(torch.stack(squares).mean().sqrt())

    def _features(self, picture: Tensor) -> list[Tensor]:
        self.evaluations += 1
        found = picture_features(self.model, picture[None], self._condition)
        return [normalize(value, dim=1) for value in found]
