"""Models for tests of whole runs: an analytic one that costs nothing, the bundled one, and the photos to feed them."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from helpers import Mixture
from safetensors.torch import load_file
from torch import Tensor

from ddim_edit.denoiser import PredictionType
from ddim_edit.grid import Grid
from ddim_edit.inverse import Explicit
from ddim_edit.inversion import encode
from ddim_edit.latents import Latents
from ddim_edit.models import Model, load_model
from ddim_edit.schedule import NoiseSchedule

STEM = "diffusion_pytorch_model"
# As diffusers' conversion script of 2022 wrote them, and as the google/ddpm-* files have them.
OLD_NAMES = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
SIZE = 12  # pixels a side


@dataclass
class Counted:
    """A bare network (x, t) that remembers the batch size of every call."""

    function: Callable[[Tensor, Tensor], Tensor]
    calls: list[int] = field(default_factory=list[int])

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        self.calls.append(len(x))
        return self.function(x, t)


@cache
def small_mixture() -> Mixture:
    """Pictures (3, 12, 12) of one kind in three shades, nearly all values within [-1, 1].

    The three overlap, so that a small error on the way does not end at another of them.
    """
    mixture = Mixture.make((3, SIZE, SIZE))
    means = 0.3 * mixture.means[:1] + 0.02 * mixture.means
    return Mixture(means, 0.4 * mixture.stds, mixture.weights)


def photos(count: int, seed: int = 0) -> Tensor:
    """(count, 3, 12, 12) float32 in [-1, 1], of the kind that `mixture_model` knows."""
    return small_mixture().photos(count, seed).clamp(-1, 1).float()


def mixture_model(prediction: str = "epsilon", schedule: NoiseSchedule | None = None) -> Model:
    """The exact network of `small_mixture`, on the schedule of the DDIM paper by default."""
    return counted_model(prediction, schedule)[0]


def counted_model(prediction: str = "epsilon", schedule: NoiseSchedule | None = None) -> tuple[Model, list[int]]:
    """`mixture_model`, and the list of the batch sizes that its network is going to see."""
    schedule = schedule or NoiseSchedule.from_config({})
    network = Counted(small_mixture().network(schedule, PredictionType(prediction)))
    model = Model.from_function(network, schedule, (3, SIZE, SIZE), prediction=prediction, name="mixture")
    return model, network.calls


@cache
def bundled_model() -> Model:
    """`small`, read once per process."""
    return load_model("small", device="cpu")


def cpu(folder: Path, dtype: str = "fp32") -> Model:
    """Load a folder onto the CPU."""
    return load_model(folder, device="cpu", dtype=dtype)


def encode_explicitly(model: Model, pixels: Tensor, *, grid: Grid | int | str = 50, **how: Any) -> Latents:
    """One evaluation a step, in the model's own spacing unless a grid is given: for tests of all but the inverse."""
    return encode(model, pixels, grid=Grid.of(model.schedule, grid), inverse=Explicit(), **how)


def edited(path: Path, **changes: object) -> None:
    """Change keys of a JSON file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def to_bin(folder: Path, change: Callable[[dict[str, Tensor]], object] = dict) -> Path:
    """Replace the safetensors file by a .bin file of the same tensors, changed."""
    source = next(folder.rglob(f"{STEM}.safetensors"))
    torch.save(change(load_file(source)), source.with_suffix(".bin"))
    source.unlink()
    return source.with_suffix(".bin")


def with_old_names(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The attention layers as checkpoints from before diffusers 0.17 call them."""
    renamed: dict[str, Tensor] = {}
    for key, value in weights.items():
        for new, old in OLD_NAMES.items():
            key = key.replace(f".{new}.", f".{old}.")
        renamed[key] = value
    assert renamed.keys() != weights.keys()
    return renamed
