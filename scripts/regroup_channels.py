"""Deal the channels before a U-Net's last group norm out to its groups anew, so that mean colours get through.

python scripts/regroup_channels.py RUN ../shared/data/garments64_train.npz OUT

A group norm subtracts the mean of each group of channels. A trained network likes to gather the channels of one colour
in one group; then what is subtracted is the mean colour of the picture, and of the mean of the noise hardly anything
is predicted. Which channels share a group is arbitrary. This searches, by simulated annealing, for groups that let the
mean through and whose spreads change with t as those of the old ones do; then it permutes the weights and rescales the
norm, so that at high noise the rest stays as it was. What changes at low noise, some hundred steps of
`ddim-edit train --init OUT --moments 0.05` repair.
"""

import argparse
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import ddim_edit as de
from ddim_edit.datasets import read_photo_set
from ddim_edit.models.unet2d import UNet2DNetwork

Array = NDArray[np.float64]
PHOTOS = 16
TIMESTEPS = (900, 600, 400, 250, 150, 80, 40, 15, 3)  # the norm is matched at the first
SHIFT = 0.02  # of a channel's mean, to see what it does
RESTARTS, SWAPS, TEMPERATURE = 6, 6000, 0.03
MEAN_WEIGHT = 3.0  # of the mean against changes of the norm's statistics


@dataclass(frozen=True)
class Seen:
    """What was measured before the norm: mean and variance of each channel (T, n), and the weights behind it.

    Args:
        mean, variance: at TIMESTEPS.
        response: (n, 3) of each channel's mean to the mean of each colour of x_t.
        readout: (3, n) of the predicted colours to each channel before the norm's scale and spread.
        scale: (n,) of the norm.
        groups: how many there are.
    """

    mean: Array
    variance: Array
    response: Array
    readout: Array
    scale: Array
    groups: int

    @property
    def dealt(self) -> Array:
        """(n,) group of each channel in the norm: neighbours are together."""
        return np.arange(len(self.scale)) // (len(self.scale) // self.groups)

    def statistics(self, group: Array) -> tuple[Array, Array]:
        """(T, n) mean and spread of the group that each channel is in."""
        mean, spread = np.empty_like(self.mean), np.empty_like(self.mean)
        for number in range(self.groups):
            own = group == number
            middle = self.mean[:, own].mean(1, keepdims=True)
            power = (self.variance[:, own] + self.mean[:, own] ** 2).mean(1, keepdims=True)
            mean[:, own], spread[:, own] = middle, np.sqrt(power - middle**2 + 1e-5)
        return mean, spread

    def passed(self, group: Array, spread: Array) -> Array:
        """(3, 3) of the predicted mean to that of x_t, at the first timestep; the unit matrix lets everything pass."""
        same = (group[:, None] == group[None, :]) / (group == group[0]).sum()
        return self.readout * self.scale / spread @ (self.response - same @ self.response)


def search(seen: Seen) -> Array:
    """(n,) new group of each channel."""
    start = seen.dealt
    mean, spread = seen.statistics(start)

    def cost(group: Array) -> float:
        new_mean, new_spread = seen.statistics(group)
        gain = np.log((new_spread[0] / new_spread) / (spread[0] / spread))
        moved = seen.scale * (mean - new_mean) / spread
        blind = seen.passed(group, spread[0]) - np.eye(3)
        return float(MEAN_WEIGHT * (blind**2).sum() + (gain**2).mean() + ((moved - moved[0]) ** 2).mean())

    draw = np.random.default_rng(0)
    found = [annealed(cost, draw.permutation(start) if restart else start.copy(), draw) for restart in range(RESTARTS)]
    best = min(found, key=cost)
    for name, group in (("before", start), ("after", best)):
        print(f"share of the mean that passes, {name}:", seen.passed(group, spread[0]).round(2).tolist())
    return best


def annealed(cost: Callable[[Array], float], group: Array, draw: np.random.Generator) -> Array:
    """Swap pairs of channels, and take swaps that make things worse ever more seldom."""
    value = cost(group)
    for swap in range(SWAPS):
        i, j = draw.integers(0, len(group), 2)
        if group[i] == group[j]:
            continue
        group[i], group[j] = group[j], group[i]
        new = cost(group)
        heat = TEMPERATURE * (1 - swap / SWAPS) ** 2 + 1e-9
        if new < value or draw.random() < np.exp((value - new) / heat):
            value = new
        else:
            group[i], group[j] = group[j], group[i]
    return group


def look(model: de.Model, module: Any, photos: Tensor) -> Seen:
    """Run the network on noised photos and watch its last norm."""
    watched: dict[str, Tensor] = {}
    hook = module.conv_norm_out.register_forward_hook(lambda _, given, out: watched.update(before=given[0], after=out))
    mean: list[Tensor] = []
    variance: list[Tensor] = []
    response: list[Tensor] = []
    label = torch.full((len(photos),), model.labels.null or 0) if model.labels else None
    with torch.no_grad():
        for t, x_t in noised(model, photos):
            steps = torch.full((len(photos),), t)
            module(x_t, steps, class_labels=label)
            before, after = watched["before"], watched["after"]
            mean.append(before.mean((0, 2, 3)))
            variance.append(before.var((0, 2, 3)))
            if t == TIMESTEPS[0]:
                gate = after.sigmoid()
                slope = (gate * (1 + after * (1 - gate))).mean((0, 2, 3))  # of SiLU, where the norm puts the channels
                for shift in SHIFT * torch.eye(3).view(3, 1, 3, 1, 1):
                    module(x_t + shift, steps, class_labels=label)
                    response.append((watched["before"] - before).mean((0, 2, 3)) / SHIFT)
    hook.remove()
    readout = module.conv_out.weight.sum((2, 3)) * slope  # pyright: ignore[reportPossiblyUnboundVariable]
    arrays = (torch.stack(mean), torch.stack(variance), torch.stack(response, 1), readout, module.conv_norm_out.weight)
    return Seen(*(value.detach().double().numpy() for value in arrays), module.conv_norm_out.num_groups)


def noised(model: de.Model, photos: Tensor) -> Iterator[tuple[int, Tensor]]:
    for t in TIMESTEPS:
        eps = torch.randn(photos.shape, generator=torch.Generator().manual_seed(t))
        yield t, model.schedule.add_noise(photos, eps, torch.full((len(photos),), t)).float()


def regroup(module: Any, seen: Seen, group: Array) -> None:
    """Put the channels of each group side by side, with the norm's outputs at the first timestep as they were."""
    (old_mean, old_spread), (mean, spread) = seen.statistics(seen.dealt), seen.statistics(group)
    order = torch.from_numpy(np.argsort(group, kind="stable"))
    norm, block = module.conv_norm_out, module.up_blocks[-1].resnets[-1]
    with torch.no_grad():
        norm.bias += torch.from_numpy(seen.scale * (mean - old_mean)[0] / old_spread[0])
        norm.weight *= torch.from_numpy(spread[0] / old_spread[0])
        for values in (norm.weight, norm.bias, *block.conv2.parameters(), *block.conv_shortcut.parameters()):
            values.copy_(values[order].clone())
        module.conv_out.weight.copy_(module.conv_out.weight[:, order].clone())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("photos", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    model = de.load_model(str(args.model), device="cpu")
    module = cast(UNet2DNetwork, model.network).module
    photos = read_photo_set(args.photos, model.image_size, limit=PHOTOS).scaled
    seen = look(model, module, photos)
    regroup(module, seen, search(seen))
    shutil.copytree(args.model, args.out, ignore=shutil.ignore_patterns("state.pt", "samples", "unet"))
    module.save_pretrained(args.out / "unet")  # pyright: ignore[reportUnknownMemberType]


if __name__ == "__main__":
    main()
