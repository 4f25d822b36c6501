"""What `ddim-edit doctor` looks at: one function per thing that goes wrong on users' machines."""

import os
import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from ddim_edit.errors import DdimEditError, first_line


@dataclass(frozen=True)
class Check:
    """One finding. `optional` ones do not make the machine unfit."""

    name: str
    ok: bool
    detail: str
    optional: bool = False


def checks() -> Iterator[Check]:
    """Run every check, in the order in which a failure explains the later ones."""
    yield Check("python", True, f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    for package in ("torch", "diffusers", "numpy", "scipy", "pillow", "scikit-image", "safetensors"):
        yield _installed(package)
    yield _attempt("torchvision", _torchvision, optional=False)
    yield _attempt("device", _device)
    yield _attempt("bundled model", _bundled_model)
    yield _attempt("mp4", _mp4, optional=True)
    yield _attempt("hub", _hub, optional=True)


def _installed(package: str) -> Check:
    try:
        return Check(package, True, version(package))
    except PackageNotFoundError:
        return Check(package, False, f"not installed; pip install {package}")


def _attempt(name: str, look: Callable[[], str], *, optional: bool = False) -> Check:
    try:
        return Check(name, True, look(), optional)
    except (DdimEditError, ImportError, RuntimeError, OSError) as error:
        return Check(name, False, first_line(error), optional)


def _torchvision() -> str:
    """A torchvision built for another torch fails at import and takes diffusers' imports with it."""
    if find_spec("torchvision") is None:
        return "not installed, and not needed"
    try:
        import torchvision  # pyright: ignore[reportMissingImports]
    except (ImportError, RuntimeError, OSError) as error:
        remedy = "which breaks diffusers too: pip uninstall torchvision"
        raise RuntimeError(f"broken ({first_line(error)}), {remedy}") from error
    return f"{torchvision.__version__}, works"


def _device() -> str:
    import torch

    from ddim_edit.models import choose_device

    policy = os.environ.get("OMP_WAIT_POLICY", "unset")
    return f"{choose_device('auto')}, {torch.get_num_threads()} threads, OMP_WAIT_POLICY {policy}"


def _bundled_model() -> str:
    import torch

    from ddim_edit.decoding import sample
    from ddim_edit.models import load_model

    model = load_model("small", device="cpu")
    picture = sample(model, [0], grid=2)
    return f"loads and draws; {tuple(picture.shape[1:])}, finite: {bool(torch.isfinite(picture).all())}"


def _mp4() -> str:
    from ddim_edit.video import check_video_path

    check_video_path(Path("probe.mp4"))
    return f"PyAV {version('av')} with H.264"


def _hub() -> str:
    from huggingface_hub import constants

    mode = "offline" if constants.HF_HUB_OFFLINE else "downloads when a hub id is asked for"
    return f"{mode}; {'has' if Path(constants.HF_HUB_CACHE).is_dir() else 'no'} cache, endpoint {constants.ENDPOINT}"
