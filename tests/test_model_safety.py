"""Folders of strangers and damaged folders: nothing is executed, and every refusal is one line that names the file."""

import json
import pickle
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from helpers import save_pipeline_folder, tiny_unet
from model_helpers import STEM, cpu, edited, to_bin
from safetensors.torch import load_file, save_file
from torch import Tensor

from ddim_edit.errors import DdimEditError, ModelError
from ddim_edit.models.base import weights_hash


class Evil:
    """A pickle of it makes a file when it is opened by a loader that runs what it reads."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., None], tuple[Path]]:
        return Path.touch, (self.marker,)


class TestNothingIsExecuted:
    @pytest.fixture
    def marker(self, tmp_path: Path) -> Path:
        return tmp_path / "executed"

    def test_the_trap_works_where_pickles_are_trusted(self, tmp_path: Path, marker: Path):
        torch.save({"x": Evil(marker)}, tmp_path / "trap.bin")
        torch.load(tmp_path / "trap.bin", weights_only=False)
        assert marker.exists()

    @pytest.mark.parametrize("zipped", [True, False])
    def test_a_malicious_bin_is_refused_unopened(self, tmp_path: Path, marker: Path, zipped: bool):
        folder = save_pipeline_folder(tmp_path / "m")
        path = to_bin(folder)
        content = {**torch.load(path), "x": Evil(marker)}
        torch.save(content, path, _use_new_zipfile_serialization=zipped)
        with pytest.raises(ModelError, match=f"{STEM}\\.bin holds Python objects besides tensors"):
            cpu(folder)
        assert not marker.exists()

    def test_a_bare_pickle_is_refused_unopened(self, tmp_path: Path, marker: Path):
        folder = save_pipeline_folder(tmp_path / "m")
        to_bin(folder).write_bytes(pickle.dumps(Evil(marker), protocol=2))
        with pytest.raises(ModelError, match=f"{STEM}\\.bin holds Python objects"):
            cpu(folder)
        assert not marker.exists()

    def test_an_environment_variable_cannot_open_the_door(
        self, tmp_path: Path, marker: Path, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
        folder = save_pipeline_folder(tmp_path / "m")
        torch.save({"x": Evil(marker)}, to_bin(folder))
        with pytest.raises(ModelError):
            cpu(folder)
        assert not marker.exists()

    @pytest.mark.parametrize("version", ["2.4.1", "2.9.1+cu128"])
    def test_old_torch_opens_no_pickle_at_all(self, tmp_path: Path, version: str, monkeypatch: pytest.MonkeyPatch):
        folder = save_pipeline_folder(tmp_path / "m", safe_serialization=False)
        monkeypatch.setattr(torch, "__version__", version)
        with pytest.raises(ModelError, match=rf"{STEM}\.bin is a pickle.*CVE-2025-32434"):
            cpu(folder)

    @pytest.mark.parametrize("at_root", [False, True])
    def test_code_that_model_index_names_or_that_lies_about_is_never_imported(
        self, tmp_path: Path, marker: Path, at_root: bool
    ):
        folder = save_pipeline_folder(tmp_path / "m", at_root=at_root)
        code = f"from pathlib import Path\nPath({str(marker)!r}).touch()\nclass Net: ...\n"
        for place in (folder, folder / "unet"):
            place.mkdir(exist_ok=True)
            for stem in ("my_net", "modeling_ddpm", "pipeline", "unet", "__init__"):
                (place / f"{stem}.py").write_text(code)
        edited(folder / "model_index.json", _class_name=["pipeline", "Net"], unet=["my_net", "Net"])
        assert cpu(folder).fingerprint == weights_hash(tiny_unet().state_dict())
        assert not marker.exists()

    def test_model_index_is_not_needed(self, tmp_path: Path):
        folder = save_pipeline_folder(tmp_path / "m")
        (folder / "model_index.json").unlink()
        assert cpu(folder).fingerprint == weights_hash(tiny_unet().state_dict())


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_pipeline_folder(tmp_path_factory.mktemp("sound") / "m", tiny_unet())


def network_config(**changes: object) -> Callable[[Path], None]:
    return lambda folder: edited(folder / "unet" / "config.json", **changes)


def scheduler_config(**changes: object) -> Callable[[Path], None]:
    return lambda folder: edited(folder / "scheduler" / "scheduler_config.json", **changes)


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def text(name: str, content: str | bytes) -> Callable[[Path], object]:
    raw = content.encode() if isinstance(content, str) else content
    return lambda folder: (folder / name).write_bytes(raw)


def weights(change: Callable[[dict[str, Tensor]], Mapping[str, Tensor]]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        file = folder / "unet" / f"{STEM}.safetensors"
        save_file(dict(change(load_file(file))), file)

    return apply


def set_bias(value: float) -> Callable[[Path], None]:
    return weights(lambda w: {**w, "conv_in.bias": torch.tensor([0.0] * 7 + [value])})


def without_bias(w: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value for key, value in w.items() if key != "conv_in.bias"}


def cut(name: str, keep: float) -> Callable[[Path], None]:
    """Truncate a file; a .bin is made first."""

    def apply(folder: Path) -> None:
        path = to_bin(folder) if name.endswith(".bin") else folder / name
        path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])

    return apply


BIN, SAFE = f"unet/{STEM}.bin", f"unet/{STEM}.safetensors"
CONFIG, SCHEDULER = "unet/config.json", "scheduler/scheduler_config.json"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:00ff\nsize 14806470\n"
NOT_OF_BETAS = {"_class_name": "ScoreSdeVeScheduler", "num_train_timesteps": 2000, "sigma_max": 1348}
# What is wrong -> how to make it so, the file that the message must name, and what else it must say.
DAMAGE: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "no config": (without(CONFIG), "config.json", "give a diffusers folder"),
    "no scheduler config": (without(SCHEDULER), "scheduler_config.json", "fixes the noise schedule"),
    "no weights": (without(SAFE), f"{STEM}.safetensors", "has no weights"),
    "config is cut": (text(CONFIG, '{"sample_size": 8'), CONFIG, "cannot be read as JSON"),
    "config is binary": (text(CONFIG, b"\xff\xfe\x00"), CONFIG, "cannot be read as JSON"),
    "config is a list": (text(CONFIG, "[]"), CONFIG, "no JSON object"),
    "scheduler is cut": (text(SCHEDULER, "{"), SCHEDULER, "cannot be read as JSON"),
    "text-to-image network": (network_config(_class_name="UNet2DConditionModel"), CONFIG, "a UNet2DConditionModel"),
    "unknown network": (network_config(_class_name="MyNet"), CONFIG, "describes a MyNet"),
    "unknown block": (network_config(down_block_types=["MyBlock", "DownBlock2D"]), CONFIG, "MyBlock"),
    "impossible groups": (network_config(norm_num_groups=7), CONFIG, "makes no network"),
    "no groups": (network_config(norm_num_groups=0), CONFIG, "makes no network"),
    "blocks and widths": (network_config(block_out_channels=[8, 16, 16]), CONFIG, "makes no network"),
    "no size": (network_config(sample_size=None), CONFIG, "sample_size is None"),
    "three sizes": (network_config(sample_size=[8, 8, 8]), CONFIG, "sample_size is [8, 8, 8]"),
    "other class embedding": (network_config(class_embed_type="identity"), CONFIG, "'identity' is not supported"),
    "missing key": (weights(without_bias), SAFE, "1 tensors missing ['conv_in.bias']"),
    "unexpected key": (weights(lambda w: {**w, "extra": torch.zeros(1)}), SAFE, "1 unexpected ['extra']"),
    "mismatched key": (
        weights(lambda w: {**w, "conv_in.bias": torch.zeros(9)}),
        SAFE,
        "conv_in.bias is (9,), config.json says (8,)",
    ),
    "NaN": (set_bias(torch.nan), SAFE, "'conv_in.bias' holds NaN or infinity"),
    "infinity": (set_bias(-torch.inf), SAFE, "'conv_in.bias' holds NaN or infinity"),
    "cut safetensors": (cut(SAFE, 0.9), SAFE, "cannot be read"),
    "empty safetensors": (cut(SAFE, 0), SAFE, "cannot be read"),
    "cut bin": (cut(BIN, 0.5), BIN, "cannot be read"),
    "empty bin": (cut(BIN, 0), BIN, "cannot be read"),
    "pointer for safetensors": (text(SAFE, POINTER), SAFE, "git LFS"),
    "pointer for bin": (lambda folder: to_bin(folder).write_text(POINTER), BIN, "git LFS"),
    "bin of a list": (lambda folder: to_bin(folder, lambda w: list(w.values())), BIN, "no table of tensors"),
    "bin of numbers": (lambda folder: to_bin(folder, lambda w: {**w, "step": 3}), BIN, "no table of tensors"),
    "bin with other keys": (
        lambda folder: to_bin(folder, lambda w: dict(enumerate(w.values()))),
        BIN,
        "no table of tensors",
    ),
    "unknown betas": (scheduler_config(beta_schedule="mine"), SCHEDULER, "beta_schedule 'mine' is unknown"),
    "unknown prediction": (scheduler_config(prediction_type="flow"), SCHEDULER, "prediction_type 'flow' is unknown"),
    "unknown spacing": (scheduler_config(timestep_spacing="mine"), SCHEDULER, "timestep_spacing 'mine' is unknown"),
    "betas that are text": (scheduler_config(trained_betas=["a"]), SCHEDULER, "'a'"),
    "a beta that is text": (scheduler_config(beta_start="low"), SCHEDULER, "beta_start is 'low'"),
    "betas above 1": (scheduler_config(beta_end=3.0), SCHEDULER, "make no schedule"),
    "negative timesteps": (scheduler_config(num_train_timesteps=-1), SCHEDULER, "-1"),
    "no betas at all": (text(SCHEDULER, json.dumps(NOT_OF_BETAS)), SCHEDULER, "ScoreSdeVeScheduler has no betas"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damage_is_refused_in_one_line_that_names_the_file(sound: Path, tmp_path: Path, case: str):
    damage, file, reason = DAMAGE[case]
    folder = tmp_path / "m"
    shutil.copytree(sound, folder)
    damage(folder)
    with pytest.raises(DdimEditError) as caught:
        cpu(folder)
    message = str(caught.value)
    assert isinstance(caught.value, ModelError)
    assert str(folder) in message
    assert file in message
    assert reason in message
    assert "\n" not in message


@pytest.mark.parametrize("channels", [(1, 1), (4, 4), (3, 1)])
def test_networks_of_other_than_rgb_pictures_are_refused(tmp_path: Path, channels: tuple[int, int]):
    unet = tiny_unet(in_channels=channels[0], out_channels=channels[1])
    with pytest.raises(ModelError, match=rf"config\.json: {channels[0]} channels in and {channels[1]} out"):
        cpu(save_pipeline_folder(tmp_path / "m", unet))
