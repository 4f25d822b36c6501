"""Checkpoints in diffusers' folder format with a `UNet2DModel`: google/ddpm-* and their like.

The network sits in `unet/` or at the root of the folder, and so does the scheduler config. Weights are read by us,
from safetensors or from a pickle restricted to tensors; nothing in the folder is ever executed.
"""

import json
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from ddim_edit.denoiser import Condition, Network, PredictionType
from ddim_edit.errors import ModelError, first_line
from ddim_edit.models.base import Labels, Model, weights_hash
from ddim_edit.models.previous import X_PREV, FromPrevious
from ddim_edit.schedule import NoiseSchedule

if TYPE_CHECKING:
    from diffusers.models.unets.unet_2d import UNet2DModel

WEIGHTS = "diffusion_pytorch_model"
POINTER = b"version https://git-lfs"
# Attention layers were renamed in diffusers 0.17; checkpoints from before keep the old names.
OLD_ATTENTION = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}


@dataclass(frozen=True)
class UNet2DNetwork:
    """A `UNet2DModel` as a network: runs in its own precision, answers in that of x."""

    module: "UNet2DModel"
    dtype: torch.dtype

    def __call__(self, x: Tensor, t: Tensor, condition: Condition | None) -> Tensor:
        """Run one forward; a label shared by the batch is repeated for each row."""
        labels = None if condition is None else condition.tensors["label"].expand(len(x))
        out = self.module(x.to(self.dtype), t, class_labels=labels, return_dict=False)[0]
        return out.to(x.dtype)

    def features(self, x: Tensor, t: Tensor, condition: Condition | None) -> list[Tensor]:
        """What each down block puts out, from fine to coarse: (B, C', h', w') each."""
        found: list[Tensor] = []

        def keep(_block: torch.nn.Module, _given: object, out: tuple[Tensor, ...]) -> None:
            found.append(out[0].to(x.dtype))

        hooks = [block.register_forward_hook(keep) for block in self.module.down_blocks]
        try:
            self(x, t, condition)
        finally:
            for hook in hooks:
                hook.remove()
        return found


def as_network(
    module: "UNet2DModel", dtype: torch.dtype, scheduler: Mapping[str, object], schedule: NoiseSchedule
) -> Network:
    """The network whose output is what `prediction_of` this scheduler config says."""
    network = UNet2DNetwork(module, dtype)
    return FromPrevious(network, schedule) if scheduler.get("prediction_type") == X_PREV else network


def prediction_of(scheduler: Mapping[str, object]) -> PredictionType:
    """What networks of this scheduler config predict, after `as_network`."""
    name = str(scheduler.get("prediction_type") or "epsilon")
    return PredictionType.EPSILON if name == X_PREV else PredictionType.parse(name)


def find_network_folder(folder: Path) -> Path | None:
    """Where the network's config.json is, or None if this is no diffusers folder."""
    return next((place for place in (folder / "unet", folder) if (place / "config.json").is_file()), None)


def load(folder: Path, *, name: str, device: torch.device, dtype: torch.dtype) -> Model:
    """Load a folder that `find_network_folder` knows.

    Args:
        folder: with the network and the scheduler config.
        name: for people.
        device: where the network goes.
        dtype: its precision; the weights' hash does not depend on it.

    Raises:
        ModelError: anything missing, damaged, unknown or unsafe; the message names the file.
    """
    network_folder = find_network_folder(folder)
    if network_folder is None:
        raise ModelError(f"{folder} has no config.json and no unet/config.json; give a diffusers folder")
    config = _read_json(network_folder / "config.json")
    kind = config.get("_class_name", "UNet2DModel")
    if kind != "UNet2DModel":
        raise ModelError(
            f"{network_folder / 'config.json'} describes a {kind}; this version loads UNet2DModel (pixel models) only"
        )
    scheduler_file = _find_scheduler(folder)
    scheduler = _read_json(scheduler_file)
    schedule, prediction = _parse_scheduler(scheduler, scheduler_file)
    weights_file, weights = _read_weights(network_folder)
    module = _build(config, weights, weights_file, device, dtype)
    return Model(
        network=as_network(module, dtype, scheduler, schedule),
        schedule=schedule,
        prediction=prediction,
        shape=_shape(config, network_folder),
        labels=_labels(config, network_folder, folder),
        name=name,
        fingerprint=weights_hash(weights),
        size_multiple=2 ** (len(cast(list[str], module.config["down_block_types"])) - 1),
        device=device,
        notes=_notes(scheduler),
        facts={
            "parameters": sum(value.numel() for value in weights.values()),
            "weights_file": weights_file.name,
            "dtype": str(dtype).removeprefix("torch."),
            "learned_sigma": module.config["out_channels"] == 2 * module.config["in_channels"],
            "scheduler": {key: value for key, value in scheduler.items() if key != "trained_betas"},
        },
        features=UNet2DNetwork(module, dtype).features,
    )


def _read_json(path: Path) -> dict[str, object]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read as JSON ({error}); fetch the file again") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path} is no JSON object; fetch the file again")
    return cast(dict[str, object], value)


def _find_scheduler(folder: Path) -> Path:
    for path in (folder / "scheduler" / "scheduler_config.json", folder / "scheduler_config.json"):
        if path.is_file():
            return path
    raise ModelError(
        f"{folder} has no scheduler_config.json, which fixes the noise schedule; add the one it was trained with"
    )


def _parse_scheduler(scheduler: Mapping[str, object], path: Path) -> tuple[NoiseSchedule, PredictionType]:
    if not scheduler.keys() & {"beta_schedule", "beta_start", "trained_betas"}:  # a score SDE or a flow, say
        raise ModelError(f"{path}: {scheduler.get('_class_name')} has no betas; only schedules made of betas are read")
    try:
        schedule = NoiseSchedule.from_config(scheduler)
        return schedule, prediction_of(scheduler)
    except (TypeError, ValueError) as error:
        raise ModelError(f"{path}: {error}") from error


def _read_weights(folder: Path) -> tuple[Path, dict[str, Tensor]]:
    """The file and its tensors as float32, under today's names, checked to be finite."""
    candidates = [folder / f"{WEIGHTS}.safetensors", folder / f"{WEIGHTS}.bin"]
    path = next((path for path in candidates if path.is_file()), None)
    if path is None:
        others = ", ".join(sorted(file.name for file in folder.glob(f"{WEIGHTS}*")))
        found = f"; it has {others}, which is to be saved under the first name" if others else ""
        raise ModelError(f"{folder} has no weights: neither {candidates[0].name} nor {candidates[1].name}{found}")
    with path.open("rb") as file:
        if file.read(len(POINTER)) == POINTER:
            raise ModelError(f"{path} is a pointer of git LFS, not the weights; run 'git lfs pull' in its folder")
    weights = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
    renamed: dict[str, Tensor] = {}
    for key, value in weights.items():
        if not torch.isfinite(value).all():
            raise ModelError(f"{path}: tensor {key!r} holds NaN or infinity; the file is damaged, fetch it again")
        for old, new in OLD_ATTENTION.items():
            key = key.replace(old, new) if ".attentions." in key else key
        renamed[key] = value.float()
    return path, renamed


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read ({error}); fetch the file again") from error


def _read_pickle(path: Path) -> dict[str, Tensor]:
    """Tensors of a .bin file. Older torch can be made to run code, or to corrupt memory, even by a restricted load."""
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 10):
        raise ModelError(
            f"{path} is a pickle, which torch {torch.__version__} does not read safely (CVE-2025-32434, "
            "CVE-2026-24747); install torch 2.10 or later, or convert the file to safetensors"
        )
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"{path} holds Python objects besides tensors, and loading them could run code; "
            "ask its author for safetensors"
        ) from error
    except (OSError, RuntimeError, EOFError, ValueError) as error:
        raise ModelError(f"{path} cannot be read ({first_line(error)}); fetch the file again") from error
    if not isinstance(weights, dict) or not all(
        isinstance(k, str) and isinstance(v, Tensor) for k, v in weights.items()
    ):
        raise ModelError(f"{path} is no table of tensors; re-save it with torch.save(module.state_dict(), ...)")
    return weights


def _build(
    config: Mapping[str, object], weights: dict[str, Tensor], path: Path, device: torch.device, dtype: torch.dtype
) -> "UNet2DModel":
    """The network of this config with these weights, every one of them used and none left to chance."""
    from diffusers.models.unets.unet_2d import UNet2DModel

    try:
        # On the meta device nothing is allocated: the checkpoint's tensors become the parameters.
        with torch.device("meta"):
            module = cast(UNet2DModel, UNet2DModel.from_config(dict(config)))
    except (TypeError, ValueError, KeyError, AttributeError, ArithmeticError) as error:
        raise ModelError(f"{path.parent / 'config.json'} makes no network ({error})") from error
    expected = module.state_dict()
    missing, unexpected = sorted(expected.keys() - weights), sorted(weights.keys() - expected)
    if missing or unexpected:
        raise ModelError(
            f"{path} does not fit its config.json: {len(missing)} tensors missing {missing[:3]}, "
            f"{len(unexpected)} unexpected {unexpected[:3]}; the two files are not of one model"
        )
    for key, value in weights.items():
        if value.shape != expected[key].shape:
            raise ModelError(f"{path}: {key} is {tuple(value.shape)}, config.json says {tuple(expected[key].shape)}")
    module.load_state_dict({key: value.to(device, dtype) for key, value in weights.items()}, assign=True)
    return module.eval().requires_grad_(False)


def _shape(config: Mapping[str, object], folder: Path) -> tuple[int, int, int]:
    channels, out, size = config.get("in_channels", 3), config.get("out_channels", 3), config.get("sample_size")
    if channels != 3 or out not in (3, 6):
        raise ModelError(
            f"{folder}/config.json: {channels} channels in and {out} out; "
            "photos need 3 in, and 3 or 6 (learned sigma) out"
        )
    sides = tuple(cast(list[object], size)) if isinstance(size, list | tuple) else (size, size)
    height, width = sides if len(sides) == 2 else (None, None)
    if not isinstance(height, int) or not isinstance(width, int):
        raise ModelError(
            f"{folder}/config.json: sample_size is {size!r}; it must be a number of pixels, or [height, width]"
        )
    return 3, height, width


def _labels(config: Mapping[str, object], network_folder: Path, folder: Path) -> Labels | None:
    """The classes, with names and null class from labels.json where the folder has one."""
    count = config.get("num_class_embeds")
    if config.get("class_embed_type") is not None:
        raise ModelError(
            f"{network_folder / 'config.json'}: class_embed_type {config['class_embed_type']!r} is not supported; "
            "only tables of labels (null) are"
        )
    if not isinstance(count, int):
        return None
    path = folder / "labels.json"
    if not path.is_file():
        return Labels(count)
    table = _read_json(path)
    names, null = table.get("names"), table.get("null")
    if not isinstance(names, list) or len(names) != count or not (null is None or null in range(count)):
        raise ModelError(f"{path}: it needs 'names', a list of {count}, and 'null', one of 0 to {count - 1} or null")
    return Labels(count, tuple(str(name) for name in names), cast(int | None, null))


def _notes(scheduler: Mapping[str, object]) -> tuple[str, ...]:
    """Settings of the scheduler file that change samples and that we leave alone."""
    notes: list[str] = []
    # DDIMScheduler and DDPMScheduler clip unless told otherwise.
    if scheduler.get("clip_sample", scheduler.get("_class_name") in ("DDIMScheduler", "DDPMScheduler")):
        notes.append("the scheduler file asks for clip_sample; it is not applied, because clipping cannot be inverted")
    if scheduler.get("thresholding"):
        notes.append("the scheduler file asks for dynamic thresholding; it is not applied unless you ask for it")
    return tuple(notes)
