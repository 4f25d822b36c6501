"""The batches of a run, each a function of the seed and its number alone: a resumed run needs no state of a loader."""

from dataclasses import dataclass, field
from functools import lru_cache

import torch
from torch import Tensor

from ddim_edit.datasets import NO_CLASS, PhotoSet
from ddim_edit.errors import ConfigError
from ddim_edit.models.base import Labels
from ddim_edit.noise import generator
from ddim_edit.schedule import NoiseSchedule
from ddim_edit.training.objectives import Noised
from ddim_edit.training.timesteps import TimestepSampler


@dataclass(frozen=True)
class Batch:
    """What one forward and one loss need.

    Attributes:
        noised: the photos and what was made of them.
        labels: (B,) on the network's device, or None.
        weights: (B,) of the losses, from the timestep sampler.
    """

    noised: Noised
    labels: Tensor | None
    weights: Tensor


@dataclass(frozen=True)
class Batches:
    """Draws noised batches from photos in memory.

    Photos come in a random order without repetition, epoch after epoch; `position` counts the photos seen before.

    Args:
        pixels: (N, 3, H, W) uint8, on the network's device.
        labels: (N,) int64 on that device, or None.
        null: the label that replaces others at the rate of `dropout`.
        schedule: the noise levels.
        size: photos in a batch.
        seed: of everything.
        flip: mirror every second photo.
        dropout: how often a label is replaced.
    """

    pixels: Tensor
    labels: Tensor | None
    null: int
    schedule: NoiseSchedule
    size: int
    seed: int = 0
    flip: bool = True
    dropout: float = 0.1
    _order: "Order" = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_order", Order(len(self.pixels), self.seed))

    def draw(self, number: int, position: int, sampler: TimestepSampler) -> Batch:
        """Batch `number`, whose first photo is the one at `position`."""
        draw, device = generator(self.seed, "training", number), self.pixels.device
        flip = torch.rand(self.size, generator=draw) < 0.5
        unlabelled = torch.rand(self.size, generator=draw) < self.dropout
        t, weights = sampler.draw(self.size, draw)
        rows = self._order.rows(position, self.size).to(device)
        x0 = self.pixels[rows].float() / 127.5 - 1
        if self.flip:
            x0 = torch.where(flip.to(device).view(-1, 1, 1, 1), x0.flip(-1), x0)
        labels = self.labels
        if labels is not None:
            labels = labels[rows].masked_fill(unlabelled.to(device), self.null)
        # Large, so drawn where it is needed; the CPU could not keep up with a GPU.
        if device.type != "cpu":
            draw = generator(self.seed, "training", number, device)
        eps = torch.randn(x0.shape, generator=draw, device=device)
        return Batch(Noised(x0, eps, self.schedule.add_noise(x0, eps, t), t), labels, weights.to(device))


class Order:
    """The order in which photos are seen: a new permutation each epoch, the same for a seed."""

    def __init__(self, count: int, seed: int) -> None:
        """Of `count` photos."""
        self._count = count
        self._seed = seed
        self._epoch = lru_cache(maxsize=2)(self._permutation)

    def rows(self, position: int, size: int) -> Tensor:
        """The photos at `position` and after, (size,); epochs run into each other."""
        found: list[Tensor] = []
        while size > 0:
            epoch, start = divmod(position, self._count)
            found.append(self._epoch(epoch)[start : start + size])
            position, size = position + len(found[-1]), size - len(found[-1])
        return torch.cat(found)

    def _permutation(self, epoch: int) -> Tensor:
        # Epoch 0 of the stream is the choice of what is set aside.
        return torch.randperm(self._count, generator=generator(self._seed, "order", epoch + 1))


def set_aside(photos: PhotoSet, count: int, seed: int) -> tuple[PhotoSet, PhotoSet | None]:
    """Split photos into those to train on and `count` others, chosen by the seed.

    Raises:
        ConfigError: nothing would be left to train on.
    """
    if count >= len(photos):
        raise ConfigError(f"set_aside is {count} of {len(photos)} photos; leave at least one to train on")
    if count == 0:
        return photos, None
    order = torch.randperm(len(photos), generator=generator(seed, "order")).tolist()
    return photos.select(sorted(order[count:])), photos.select(sorted(order[:count]))


def labels_of(photos: PhotoSet, known: Labels) -> Tensor:
    """The photos' classes by number, (N,) int64; photos without classes get the null class.

    Raises:
        ConfigError: a class that the model does not know, or none where it has no null class.
    """
    if photos.classes is None:
        if known.null is None:
            raise ConfigError("the model has no class for 'no class'; train with --class-cond, on photos with classes")
        return torch.full((len(photos),), known.null)
    null = known.null  # whatever the model calls it
    return torch.tensor(
        [null if name == NO_CLASS and null is not None else known.index(name) for name in photos.classes]
    )
