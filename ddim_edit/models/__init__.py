"""Models: `load_model` finds a checkpoint and hands it to the family that can read it."""

import re
from pathlib import Path

import torch

from ddim_edit.errors import ConfigError, ModelError
from ddim_edit.models import unet2d
from ddim_edit.models.base import Codec, Labels, Model, PixelCodec, choose_device

BUNDLED = {"small": Path(__file__).parent / "small"}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp64": torch.float64}

__all__ = ["BUNDLED", "Codec", "Labels", "Model", "PixelCodec", "choose_device", "load_model"]


def load_model(
    source: str | Path = "small",
    *,
    device: str = "auto",
    dtype: str = "fp32",
    revision: str | None = None,
    token: str | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> Model:
    """Load a model for encoding and decoding.

    Args:
        source: `small` (bundled: garments at 64 x 64), a diffusers folder, or a hub id like `google/ddpm-cat-256`.
        device: `auto`, `cpu`, `cuda`, `cuda:1`, `mps`.
        dtype: precision of the network: `fp32`, `bf16`, `fp16`, `fp64`. The state of a run stays in float32 or above.
            `fp32` switches torch's TF32 off for the process: it would cost three digits of every round trip.
        revision: branch, tag or commit of a hub id.
        token: access token for a hub id; by default the one that you logged in with.
        cache_dir: where downloads are kept; by default the hub's own cache.
        local_files_only: never touch the network.

    Raises:
        ModelError: the model is not found, cannot be fetched, is damaged, unknown or unsafe.
        ConfigError: a device that this machine does not have, or an unknown dtype.

    Example:
        >>> model = load_model("small", device="cpu")
        >>> model.image_size
        (64, 64)
    """
    if dtype not in DTYPES:
        raise ConfigError(f"dtype {dtype!r} is unknown; choose one of {', '.join(DTYPES)}")
    target = choose_device(device)
    if dtype == "fp32":
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
    name = str(source)
    if source in BUNDLED:
        folder = BUNDLED[str(source)]
    elif Path(source).is_dir():
        folder = Path(source)
        name = folder.resolve().name  # latents and pictures must not carry paths
    elif isinstance(source, str) and re.fullmatch(r"[\w.-]+/[\w.-]+", source) and not source.startswith("."):
        folder = _download(source, revision, token, cache_dir, local_files_only)
    else:
        raise ModelError(f"model {str(source)!r} is no folder, no hub id (owner/name) and not 'small'; check the path")
    return unet2d.load(folder, name=name, device=target, dtype=DTYPES[dtype])


def _download(repo: str, revision: str | None, token: str | None, cache_dir: str | Path | None, offline: bool) -> Path:
    """Fetch what we read of a hub repository, safetensors if it has them, and give the local folder."""
    from huggingface_hub import snapshot_download

    def fetch(*patterns: str) -> Path:
        try:
            return Path(
                snapshot_download(
                    repo,
                    revision=revision,
                    token=token,
                    cache_dir=cache_dir,
                    local_files_only=offline,
                    allow_patterns=[f"{place}{pattern}" for pattern in patterns for place in ("", "unet/")],
                )
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise ModelError(
                f"{repo} cannot be fetched and is not in the cache ({type(error).__name__}); "
                "check the name and the network, set HF_ENDPOINT, or give a folder"
            ) from error

    settings = "config.json", "scheduler_config.json", "scheduler/scheduler_config.json", "labels.json"
    folder = fetch(*settings, f"{unet2d.WEIGHTS}.safetensors")
    if not any(folder.rglob(f"{unet2d.WEIGHTS}.safetensors")):
        folder = fetch(f"{unet2d.WEIGHTS}.bin")
    return folder
