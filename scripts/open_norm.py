"""Let the mean and the size of the noise through a U-Net's last group norm.

python scripts/open_norm.py RUN ../shared/data/garments64_train.npz OUT

A group norm subtracts the mean of each group of channels and divides by its spread. When the channels of one colour
share a group, what is subtracted is the mean colour of the picture; when nothing but noise makes up the spread, what
is divided by is the size of the noise. These few numbers decide the colours and the grain of a sample, and are such a
small part of the squared error that training hardly finds them.

Both are mended without training. Which channels share a group is arbitrary: simulated annealing finds groups that let
the mean through. And the spread of a group can be made up of constants: to each channel one is added that is as large
at every t as the norm needs, so that it keeps its gain and hides the size no longer. The constants are a least-squares
readout of what enters the last convolution, which knows t, but, for the norm before it, not the size of the noise; they
lie where they hide the mean the least. The norm's scale and shift then take both back out. What this changes otherwise,
some hundred steps of `ddim-edit train --init OUT --moments 0.05` repair.
"""

import argparse
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import unfold

import ddim_edit as de
from ddim_edit.datasets import read_photo_set
from ddim_edit.models.unet2d import UNet2DNetwork

Array = NDArray[np.float64]
Groups = NDArray[np.int_]
PHOTOS = 16
# At the first the norm is matched.
TIMESTEPS = (950, 999, 900, 800, 700, 600, 500, 400, 325, 250, 200, 150, 115, 80, 60, 40, 25, 15, 8, 3)
SHARE = 0.8  # of a group's variance that is to come from constants
SHIFT = 0.05  # of a channel's mean, to see what it does
EVERY = 7  # pixel is used for the readout
RIDGE = 1e-4
RESTARTS, SWAPS, TEMPERATURE = 4, 5000, 0.03
MEAN_WEIGHT = 3.0  # of the mean against changes of the norm's gain


@dataclass(frozen=True)
class Seen:
    """What was measured around the norm of n channels at T timesteps.

    Args:
        mean, variance: (T, n) of each channel before the norm; the variance without the mean.
        response: (n, 3) of each channel's mean to the mean of each colour of x_t, at the first timestep.
        readout: (3, n) of the predicted colours to each channel after the norm, at the first timestep.
        scale, shift: (n,) of the norm.
        entering: (T, pixels, 9 n) neighbourhoods of what enters the last convolution.
        groups: how many there are.
    """

    mean: Array
    variance: Array
    response: Array
    readout: Array
    scale: Array
    shift: Array
    entering: Tensor
    groups: int

    @property
    def dealt(self) -> Groups:
        """(n,) group of each channel: neighbours are together."""
        return np.arange(len(self.scale)) // (len(self.scale) // self.groups)

    def averaged(self, values: Array, group: Groups) -> Array:
        """(T, n) mean of the values over the group that each channel is in."""
        return values @ (group[:, None] == group[None, :]) / (group == 0).sum()

    def normed(self) -> tuple[Array, Array]:
        """(T, n) mean of each channel in units of its group's spread, and that spread."""
        middle = self.averaged(self.mean, self.dealt)
        spread = np.sqrt(self.averaged(self.variance + (self.mean - middle) ** 2, self.dealt))
        return (self.mean - middle) / spread, spread

    def gain(self) -> Array:
        """(3, n) of the predicted colours to each channel before the norm."""
        return self.readout * self.scale / self.normed()[1][0]


def constants(seen: Seen, group: Groups) -> Array:
    """(n,) unit vector for each group, orthogonal to the group's mean: where its constants hide the mean the least."""
    found = np.empty(len(group))
    gain = seen.gain()
    for number in range(seen.groups):
        own = group == number
        free = np.linalg.svd(np.eye(own.sum()) - 1 / own.sum())[0][:, :-1]
        response, read = free.T @ seen.response[own], gain[:, own] @ free
        least = [np.linalg.svd(values)[0][:, -1] for values in (response, read.T)]
        found[own] = free @ min(least, key=lambda v: float(np.linalg.norm(read @ v) * np.linalg.norm(v @ response)))
    return found


def passed(seen: Seen, group: Groups) -> Array:
    """(3, 3) of the predicted mean to that of x_t, at the first timestep; the unit matrix lets everything pass."""
    direction = constants(seen, group)
    same = group[:, None] == group[None, :]
    hidden = same / (group == 0).sum() + SHARE * same * np.outer(direction, direction)
    return seen.gain() @ (seen.response - hidden @ seen.response)


def search(seen: Seen) -> Groups:
    """(n,) new group of each channel."""
    _, spread = seen.normed()

    def cost(group: Groups) -> float:
        noise = np.sqrt(seen.averaged(seen.variance, group))
        change = np.log((noise[0] / noise) / (spread[0] / spread))
        return float(MEAN_WEIGHT * ((passed(seen, group) - np.eye(3)) ** 2).sum() + (change**2).mean())

    draw = np.random.default_rng(0)
    starts = [draw.permutation(seen.dealt) if restart else seen.dealt for restart in range(RESTARTS)]
    return min((annealed(cost, start, draw) for start in starts), key=cost)


def annealed(cost: Callable[[Groups], float], group: Groups, draw: np.random.Generator) -> Groups:
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


def noised(model: de.Model, photos: Tensor, t: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """x_t and the noise in it."""
    eps = torch.randn(photos.shape, generator=torch.Generator().manual_seed(t + seed))
    return model.schedule.add_noise(photos, eps, torch.full((len(photos),), t)).float(), eps


def network(model: de.Model) -> tuple[Any, Callable[[Tensor, int], Tensor]]:
    """The module, and its answer without class."""
    module = cast(UNet2DNetwork, model.network).module
    null = model.labels.null or 0 if model.labels else None

    @torch.no_grad()
    def predict(x_t: Tensor, t: int) -> Tensor:
        label = None if null is None else torch.full((len(x_t),), null)
        return cast(Tensor, module(x_t, torch.full((len(x_t),), t), class_labels=label).sample)

    return module, predict


def look(model: de.Model, photos: Tensor) -> Seen:
    """Run the network on noised photos and watch its last norm."""
    module, predict = network(model)
    norm, convolution = module.conv_norm_out, module.up_blocks[-1].resnets[-1].conv2
    watched: dict[str, Tensor] = {}
    first: dict[str, Tensor] = {}  # what was watched at the first timestep

    def watch_norm(_: Any, given: tuple[Tensor], out: Tensor) -> None:
        watched.update(before=given[0], after=out)

    def watch_convolution(_: Any, given: tuple[Tensor], out: Tensor) -> None:
        watched.update(entering=given[0])

    hooks = [norm.register_forward_hook(watch_norm), convolution.register_forward_hook(watch_convolution)]
    mean: list[Tensor] = []
    variance: list[Tensor] = []
    entering: list[Tensor] = []
    for t in TIMESTEPS:
        predict(noised(model, photos, t)[0], t)
        mean.append(watched["before"].mean((0, 2, 3)))
        variance.append(watched["before"].var((2, 3)).mean(0))
        pixels = unfold(watched["entering"], 3, padding=1)[:, :, ::EVERY]
        entering.append(pixels.permute(0, 2, 1).flatten(0, 1))
        first = first or dict(watched)
    before, after = first["before"], first["after"]
    gate = after.sigmoid()
    slope = (gate * (1 + after * (1 - gate))).mean((0, 2, 3))  # of SiLU, where the norm puts the channels
    response: list[Tensor] = []
    x_t, _ = noised(model, photos, TIMESTEPS[0])
    for colour in SHIFT * torch.eye(3).view(3, 1, 3, 1, 1):
        predict(x_t + colour, TIMESTEPS[0])
        response.append((watched["before"] - before).mean((0, 2, 3)) / SHIFT)
    for hook in hooks:
        hook.remove()
    return Seen(
        mean=array(torch.stack(mean)),
        variance=array(torch.stack(variance)),
        response=array(torch.stack(response, 1)),
        readout=array(module.conv_out.weight.sum((2, 3)) * slope),
        scale=array(norm.weight),
        shift=array(norm.bias),
        entering=torch.stack(entering).double(),
        groups=norm.num_groups,
    )


def array(values: Tensor) -> Array:
    return values.detach().double().numpy()


@torch.no_grad()
def reform(module: Any, seen: Seen, group: Groups) -> None:
    """Add the constants, take them out again behind the norm, and put the channels of each group side by side."""
    norm, block = module.conv_norm_out, module.up_blocks[-1].resnets[-1]
    mean, old_spread = seen.normed()
    noise = np.sqrt(seen.averaged(seen.variance, group))
    spread = noise / np.sqrt(1 - SHARE)
    scale = seen.scale * spread[0] / old_spread[0]
    constant = constants(seen, group) * np.sqrt(SHARE * (group == 0).sum())  # in units of the spread, as mean is
    wanted = spread * (constant + seen.scale / scale * (mean - mean[0])) - seen.mean
    norm.weight.copy_(torch.from_numpy(scale))
    norm.bias.copy_(torch.from_numpy(seen.shift + seen.scale * mean[0] - scale * constant))
    weight, bias = readout(seen.entering, torch.from_numpy(wanted), torch.from_numpy(1 / noise.mean(1)))
    block.conv2.weight += weight.view_as(block.conv2.weight)
    block.conv2.bias += bias
    order = torch.from_numpy(np.argsort(group, kind="stable"))
    for values in (norm.weight, norm.bias, *block.conv2.parameters(), *block.conv_shortcut.parameters()):
        values.copy_(values[order].clone())
    module.conv_out.weight.copy_(module.conv_out.weight[:, order].clone())


def readout(entering: Tensor, wanted: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """(n, 9 n) weights and (n,) biases that make the wanted constants (T, n) of (T, pixels, 9 n), by least squares."""
    rows = torch.cat([entering, torch.ones_like(entering[..., :1])], 2) * weight[:, None, None]
    right = (wanted * weight[:, None])[:, None, :].expand(-1, rows.shape[1], -1).flatten(0, 1)
    rows = rows.flatten(0, 1)
    ridge = RIDGE * len(rows) * weight.square().mean() * torch.eye(rows.shape[1])
    solution = torch.linalg.solve(rows.T @ rows + ridge, rows.T @ right).float()
    return solution[:-1].T, solution[-1]


def report(model: de.Model, photos: Tensor) -> None:
    """Print what of a change of size and of mean the network predicts: 1 is all of it."""
    _, predict = network(model)
    for t in (950, 800, 600, 300, 100, 5):
        x_t, eps = noised(model, photos, t, seed=1)
        root = model.schedule.signal_and_noise(torch.full((len(photos),), t), photos)[1].float()
        out, change = predict(x_t, t), 0.02
        larger = (predict(x_t + root * change * eps, t) - out) / change
        shifted = (predict(x_t + root * change, t) - out) / change
        size, mean = float((larger * eps).mean() / eps.square().mean()), shifted.mean((0, 2, 3)).tolist()
        error = float((out - eps).square().mean())
        print(f"t = {t}: error {error:.5f}, size {size:.2f}, mean " + ", ".join(f"{value:.2f}" for value in mean))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("photos", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    if not (args.model / "model_index.json").exists():
        parser.error(f"{args.model} is no model folder")
    if args.out.exists():
        parser.error(f"{args.out} exists; choose another folder")
    model = de.load_model(str(args.model), device="cpu")
    module, _ = network(model)
    photos = read_photo_set(args.photos, model.image_size, limit=PHOTOS).scaled
    report(model, photos)
    seen = look(model, photos)
    reform(module, seen, search(seen))
    report(model, photos)
    shutil.copytree(args.model / "scheduler", args.out / "scheduler")
    for name in ("model_index.json", "labels.json"):
        if (args.model / name).exists():
            shutil.copy(args.model / name, args.out)
    module.save_pretrained(args.out / "unet")


if __name__ == "__main__":
    main()
