"""How differently a model's own encoder sees two pictures: a distance to pace morphs by that needs no downloads."""

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ddim_edit.denoiser import Condition
from ddim_edit.errors import ConfigError
from ddim_edit.models.base import Model

LEVEL = 0.05  # of the schedule: where the network's features are taken


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

    @torch.no_grad()
    def _features(self, picture: Tensor) -> list[Tensor]:
        model, show = self.model, self.model.features
        assert show is not None
        level = model.schedule.level(LEVEL * len(model.schedule))
        x = level.signal * model.codec.encode(picture[None].float().to(model.device))
        self.evaluations += 1
        t = torch.full((1,), level.t, device=x.device)
        return [normalize(value, dim=1) for value in show(x, t, self._condition)]
