"""The exact architecture and files of google/ddpm-celebahq-256, with random weights: the real ones are not needed here.

The folder's small JSON files are 790 and 256 bytes on the hub; so are ours, which guards every value in them.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import gaussian_noise, relative_rms
from model_helpers import STEM, cpu, with_old_names
from safetensors.torch import save_file
from torch import Tensor

from ddim_edit.models import Model
from ddim_edit.models.base import weights_hash

NETWORK: Mapping[str, object] = {
    "_class_name": "UNet2DModel",
    "_diffusers_version": "0.0.4",
    "act_fn": "silu",
    "attention_head_dim": None,
    "block_out_channels": [128, 128, 256, 256, 512, 512],
    "center_input_sample": False,
    "down_block_types": [*["DownBlock2D"] * 4, "AttnDownBlock2D", "DownBlock2D"],
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "in_channels": 3,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-06,
    "norm_num_groups": 32,
    "out_channels": 3,
    "sample_size": 256,
    "time_embedding_type": "positional",
    "up_block_types": ["UpBlock2D", "AttnUpBlock2D", *["UpBlock2D"] * 4],
}
SCHEDULER: Mapping[str, object] = {
    "_class_name": "DDPMScheduler",
    "_diffusers_version": "0.1.1",
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "beta_start": 0.0001,
    "clip_sample": True,
    "num_train_timesteps": 1000,
    "trained_betas": None,
    "variance_type": "fixed_small",
}
NARROW = {**NETWORK, "block_out_channels": [32, 32, 32, 32, 64, 64], "sample_size": 64}
# Load, encode and decode in two steps with the network off; say what it took. Peak memory is that of a fresh process.
ROUND_TRIP = """
import json, pathlib, re, socket, sys, time
def refuse(*arguments): raise OSError("no network in this test")
socket.socket.connect = socket.getaddrinfo = refuse
import torch
torch.set_num_threads(1)
import ddim_edit as de, ddim_edit.inversion, diffusers.models.unets.unet_2d
def peak():  # MiB; getrusage would count the parent's memory at the fork
    return int(re.search(r"VmHWM:\\s*(\\d+)", pathlib.Path("/proc/self/status").read_text())[1]) / 1024
imported, started = peak(), time.perf_counter()
model = de.load_model(sys.argv[1], device="cpu")
loaded, ready = peak(), time.perf_counter()
side = model.image_size[1]
photo = torch.linspace(-1, 1, side).expand(1, 3, side, side)
latents = de.encode(model, photo, grid=2)
print(json.dumps({
    "weights": model.fingerprint, "shape": list(latents.x.shape), "finite": bool(latents.x.isfinite().all()),
    "psnr": latents.photos[0].quality.psnr, "parameters": model.facts["parameters"],
    "MiB imported": imported, "MiB loaded": loaded, "MiB peak": peak(),
    "s load": ready - started, "s round trip": time.perf_counter() - ready,
}))
"""


def exact_text(config: Mapping[str, object]) -> str:
    return json.dumps(config, indent=2, sort_keys=True) + "\n"


def random_weights(config: Mapping[str, object]) -> dict[str, Tensor]:
    """Small seeded numbers for every tensor of the architecture, without ever building it."""
    from diffusers.models.unets.unet_2d import UNet2DModel

    with torch.device("meta"):
        shapes = UNet2DModel.from_config(dict(config)).state_dict()  # pyright: ignore
    draw = torch.Generator().manual_seed(0)
    return {key: torch.randn(value.shape, generator=draw) / value[0].numel() ** 0.5 for key, value in shapes.items()}


def write_folder(folder: Path, config: Mapping[str, object], weights: dict[str, Tensor], *, safe: bool) -> Path:
    """As on the hub: everything at the root, and code that nobody asked for."""
    folder.mkdir()
    (folder / "config.json").write_text(exact_text(config))
    (folder / "scheduler_config.json").write_text(exact_text(SCHEDULER))
    (folder / "modeling_ddpm.py").write_text("raise SystemExit('executed')")
    index = {"_class_name": "DDPMPipeline", "scheduler": ["diffusers", "DDPMScheduler"], "unet": ["x", "UNet2DModel"]}
    (folder / "model_index.json").write_text(exact_text(index))
    if safe:
        save_file(weights, folder / f"{STEM}.safetensors")
    else:
        torch.save(with_old_names(weights), folder / f"{STEM}.bin")
    return folder


def test_the_files_are_those_of_the_hub_to_the_byte():
    assert (len(exact_text(NETWORK)), len(exact_text(SCHEDULER))) == (790, 256)


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """All settings and files of the real one, a quarter of its width and size."""
    folder = tmp_path_factory.mktemp("narrow") / "celebahq"
    return cpu(write_folder(folder, NARROW, random_weights(NARROW), safe=False))


def test_it_is_read_as_its_files_say(narrow: Model):
    assert (narrow.shape, narrow.size_multiple, str(narrow.prediction)) == ((3, 64, 64), 32, "epsilon")
    assert (len(narrow.schedule), narrow.schedule.clean_alpha_bar, narrow.schedule.steps_offset) == (1000, 1.0, 0)
    assert narrow.labels is None
    assert [note.partition(";")[0] for note in narrow.notes] == ["the scheduler file asks for clip_sample"]
    assert narrow.fingerprint == weights_hash(random_weights(NARROW))


def test_it_computes_what_diffusers_computes(narrow: Model, tmp_path: Path):
    from diffusers.models.unets.unet_2d import UNet2DModel

    theirs = UNet2DModel.from_pretrained(write_folder(tmp_path / "m", NARROW, random_weights(NARROW), safe=True))
    x, t = gaussian_noise(0, 1, 3, 32, 32).float(), torch.tensor([321.0])
    with torch.no_grad():
        assert relative_rms(narrow.network(x, t, None), theirs(x, t).sample) < 1e-6


def round_trip(folder: Path) -> dict[str, Any]:
    """The report of ROUND_TRIP, run in a process of its own."""
    done = subprocess.run([sys.executable, "-c", ROUND_TRIP, str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    print(report)
    return report


on_linux = pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")


@on_linux
def test_a_round_trip_needs_no_network(tmp_path: Path, narrow: Model):
    report = round_trip(write_folder(tmp_path / "m", NARROW, random_weights(NARROW), safe=True))
    assert (report["weights"], report["shape"], report["finite"]) == (narrow.fingerprint, [1, 3, 64, 64], True)


@on_linux
@pytest.mark.parametrize("safe", [False, True], ids=["bin", "safetensors"])
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_ddpm_celebahq_256_at_full_size(tmp_path: Path, safe: bool):
    """113,673,219 parameters, 455 MB a file, about 4 s a forward on one CPU core: run with `-m slow -s`."""
    weights = random_weights(NETWORK)
    expected = weights_hash(weights)
    folder = write_folder(tmp_path / "m", NETWORK, weights, safe=safe)
    del weights
    report = round_trip(folder)
    shutil.rmtree(folder)
    assert (report["weights"], report["parameters"]) == (expected, 113_673_219)
    assert (report["shape"], report["finite"]) == ([1, 3, 256, 256], True)
    assert report["MiB peak"] < 2500
