"""What happens to bad input: the exit code, one line that says what is wrong, and nothing left behind."""

import errno
import json
import os
import pickle
import re
import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from cli_helpers import LABELS, SIDE, files_in, run_cli, save_photo, save_tiny_model
from PIL import Image
from safetensors.torch import load_file, save_file

from ddim_edit.grid import Grid
from ddim_edit.images import read_image
from ddim_edit.inversion import encode
from ddim_edit.latents import Latents
from ddim_edit.models import load_model
from ddim_edit.models.base import Model

WEIGHTS = Path("unet") / "diffusion_pytorch_model.safetensors"


class Case(NamedTuple):
    """`arguments`: {name} stands for a thing below, {out} for the output place. `fragment`: part of the message."""

    arguments: str
    code: int
    fragment: str
    patch: Callable[[pytest.MonkeyPatch], None] = lambda patch: None


class RunsCode:
    """Unpickling one of these creates a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


@pytest.fixture(scope="module")
def things(tmp_path_factory) -> dict[str, Path]:
    """Every good and bad file, folder and model that the cases name."""
    folder = tmp_path_factory.mktemp("things")
    named = {"folder": folder, "marker": folder / "marker", "missing": folder / "missing.jpg"}
    return named | _photos(folder) | _models(folder) | _configs(folder) | _latents(folder)


def _photos(folder: Path) -> dict[str, Path]:
    made = {name: save_photo(folder / f"{name}.png", seed) for seed, name in enumerate(("a", "b", "c"))}
    made["empty_folder"] = folder / "empty"
    made["empty_folder"].mkdir()
    made["text"] = folder / "text.jpg"
    made["text"].write_text("this is no photo\n")
    made["nothing"] = folder / "nothing.jpg"
    made["nothing"].touch()
    whole = save_photo(folder / "whole.jpg", size=(64, 64)).read_bytes()
    made["truncated"] = folder / "truncated.jpg"
    made["truncated"].write_bytes(whole[: len(whole) // 2])
    made["tiny_photo"] = save_photo(folder / "tiny.png", size=(1, 1))
    made["huge"] = folder / "huge.png"
    Image.new("1", (10000, 10001)).save(made["huge"])
    frames = [Image.new("RGB", (20, 20), colour) for colour in ("red", "green", "blue")]
    made["animation"] = folder / "animation.gif"
    frames[0].save(made["animation"], save_all=True, append_images=frames[1:])
    archives = {
        "no_images": {"pictures": np.zeros((1, SIDE, SIDE, 3), np.uint8)},
        "objects": {"images": np.array([RunsCode(folder / "marker")], dtype=object)},
        "floats": {"images": np.zeros((1, SIDE, SIDE, 3))},
    }
    for name, arrays in archives.items():
        made[name] = folder / f"{name}.npz"
        np.savez(made[name], **arrays)
    return made


def _models(folder: Path) -> dict[str, Path]:
    made = {"model": save_tiny_model(folder / "model"), "other": save_tiny_model(folder / "other", seed=1)}
    made["labelled"] = save_tiny_model(folder / "labelled", labels=LABELS)
    made["needs_label"] = save_tiny_model(folder / "needs_label", labels={**LABELS, "null": None})
    for name in ("no_weights", "no_config", "no_scheduler", "nan", "overflow", "pickled", "cut", "unfit", "diffusion"):
        made[name] = Path(shutil.copytree(made["model"], folder / name))
    (made["no_weights"] / WEIGHTS).unlink()
    (made["no_config"] / "unet" / "config.json").unlink()
    (made["no_scheduler"] / "scheduler" / "scheduler_config.json").unlink()
    _change_weights(made["nan"], lambda value: torch.full_like(value, torch.nan))
    _change_weights(made["overflow"], lambda value: value + 1e38)
    (made["pickled"] / WEIGHTS).unlink()
    torch.save({"conv_in.weight": RunsCode(folder / "marker")}, made["pickled"] / WEIGHTS.with_suffix(".bin"))
    (made["cut"] / WEIGHTS).write_bytes((made["model"] / WEIGHTS).read_bytes()[:1000])
    _change(made["unfit"] / "unet" / "config.json", block_out_channels=[8, 24])
    _change(made["diffusion"] / "model_index.json", _class_name="StableDiffusionPipeline")
    _change(made["diffusion"] / "unet" / "config.json", _class_name="UNet2DConditionModel")
    return made


def _change_weights(model: Path, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    weights = load_file(model / WEIGHTS)
    weights["conv_out.weight"] = change(weights["conv_out.weight"])
    save_file(weights, model / WEIGHTS)


def _change(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def _configs(folder: Path) -> dict[str, Path]:
    contents = {
        "config_text": "no JSON",
        "config_other": json.dumps({"steps": 50}),
        "config_list": json.dumps({"arguments": ["--steps", 50]}),
        "config_unknown": json.dumps({"arguments": {"photos": ["a.png"], "colour": "red"}}),
        "config_value": json.dumps({"arguments": {"seeds": [1, -2]}}),
    }
    made = {name: folder / f"{name}.json" for name in contents}
    for name, text in contents.items():
        made[name].write_text(text)
    return made


def _latents(folder: Path) -> dict[str, Path]:
    made: dict[str, Path] = {}
    for name, label in (("model", None), ("other", None), ("labelled", "dog")):
        model = load_model(folder / name, device="cpu")
        pixels = read_image(folder / "a.png", model.image_size)[None]
        made[f"{name}_latents"] = folder / f"{name}.safetensors"
        _encode(model, pixels, label).save(made[f"{name}_latents"])
    made["partial_latents"] = folder / "partial.safetensors"
    _encode(load_model(folder / "model"), pixels, None, until=300).save(made["partial_latents"])
    made["cut_latents"] = folder / "cut.safetensors"
    made["cut_latents"].write_bytes(made["model_latents"].read_bytes()[:-100])
    made["weights"] = folder / "model" / WEIGHTS
    return made


def _encode(model: Model, pixels: torch.Tensor, label: str | None, until: float = 999) -> Latents:
    grid = Grid.build(model.schedule, 4).until(until)
    return encode(model, pixels, grid=grid, denoiser=model.denoiser(label), check=False)


def _without_pyav(patch: pytest.MonkeyPatch) -> None:
    patch.setitem(sys.modules, "av", None)


def _full_disk(patch: pytest.MonkeyPatch) -> None:
    def write_some(path: Path, data: bytes) -> int:
        with path.open("wb") as file:
            file.write(data[:100])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    patch.setattr(Path, "write_bytes", write_some)


M = "--model {model}"
ENCODE = f"encode {{a}} -o {{out}} {M}"
SAMPLE = f"sample --seeds 0 -n 2 -o {{out}} {M}"
DECODE = f"decode {{model_latents}} -o {{out}} {M}"
MORPH = f"interpolate {{a}} {{b}} {{c}} -n 2 -o {{out}}/m.webp {M}"
TRAIN = "train -o {out} --steps 1 --size 8 --channels 8 --device cpu"

CASES = {
    # Photos
    "missing photo": Case(f"encode {{missing}} -o {{out}} {M}", 1, "missing.jpg does not exist; check the path"),
    "text named .jpg": Case(f"encode {{text}} -o {{out}} {M}", 1, "text.jpg is not an image"),
    "empty file": Case(f"roundtrip {{nothing}} {M}", 1, "nothing.jpg is empty (0 bytes)"),
    "truncated photo": Case(f"encode {{truncated}} -o {{out}} {M}", 1, "truncated.jpg is damaged or incomplete"),
    "photo of one pixel": Case(f"encode {{tiny_photo}} -o {{out}} {M}", 1, "is 1x1; the shorter side must be 8"),
    "100 megapixels": Case(f"encode {{huge}} -o {{out}} {M}", 1, "is 10000x10001, more than 64,000,000 pixels"),
    "animation": Case(f"encode {{animation}} -o {{out}} {M}", 1, "has 3 frames and a photo has one"),
    "empty folder": Case(f"encode {{empty_folder}} -o {{out}} {M}", 1, "has no image files"),
    "archive without images": Case(f"encode {{no_images}} -o {{out}} {M}", 1, "no array `images` (it has pictures)"),
    "archive of objects": Case(f"encode {{objects}} -o {{out}} {M}", 1, "is no .npz of plain arrays"),
    "archive of floats": Case(f"encode {{floats}} -o {{out}} {M}", 1, "it must be uint8 (N, H, W, 3)"),
    "no photo at all": Case(f"encode -o {{out}} {M}", 2, "Missing argument 'PHOTOS...'"),
    # Models
    "unknown model": Case("encode {a} -o {out} --model nonesuch", 1, "no folder, no hub id (owner/name) and not"),
    "hub model offline": Case(
        "encode {a} -o {out} --model nobody/nothing --local-files-only --cache-dir {empty_folder}",
        *(1, "nobody/nothing cannot be fetched and is not in the cache"),
    ),
    "no weights": Case("encode {a} -o {out} --model {no_weights}", 1, "has no weights: neither diffusion_pytorch"),
    "no config": Case("encode {a} -o {out} --model {no_config}", 1, "has no config.json and no unet/config.json"),
    "no scheduler": Case("encode {a} -o {out} --model {no_scheduler}", 1, "has no scheduler_config.json"),
    "NaN in the weights": Case("encode {a} -o {out} --model {nan}", 1, "'conv_out.weight' holds NaN or infinity"),
    "weights with code in them": Case("encode {a} -o {out} --model {pickled}", 1, "could run code"),
    "truncated weights": Case("info {cut}", 1, "cannot be read"),
    "weights of another shape": Case("info {unfit}", 1, "config.json"),
    "Stable Diffusion": Case("encode {a} -o {out} --model {diffusion}", 1, "UNet2DConditionModel"),
    "unknown device": Case(f"{ENCODE} --device tpu9", 2, "device 'tpu9' is not available here"),
    "device without values": Case(f"{ENCODE} --device meta", 2, "device 'meta' is not available here; choose auto"),
    "device of a plug-in": Case(f"{ENCODE} --device hpu", 2, "device 'hpu' is not available here"),
    "device that is not there": Case(f"{SAMPLE} --device cuda:99", 2, "device 'cuda:99' is not available here"),
    "unknown dtype": Case(f"{ENCODE} --dtype fp8", 2, "'fp8' is not one of 'fp32', 'bf16', 'fp16', 'fp64'"),
    "values overflow": Case("encode {a} -o {out} -n 2 --model {overflow}", 1, "not finite after step 1 of 5"),
    # Latents
    "latents of another model": Case(f"decode {{other_latents}} -o {{out}} {M}", 1, "differ in weights: "),
    "latents with another model's label": Case(f"decode {{labelled_latents}} -o {{out}} {M}", 1, "differ in weights: "),
    "latents of another size": Case(f"{DECODE} --size 32", 1, "differ in shape: [3, 16, 16] here, [3, 32, 32] there"),
    "truncated latents": Case(f"decode {{cut_latents}} -o {{out}} {M}", 1, "cannot be read as safetensors"),
    "safetensors that are no latents": Case(f"decode {{weights}} -o {{out}} {M}", 1, "no ddim_edit record"),
    "missing latents": Case(f"decode {{folder}}/none.safetensors -o {{out}} {M}", 1, "none.safetensors does not exist"),
    "folder without latents": Case(f"decode {{empty_folder}} -o {{out}} {M}", 1, "has no .safetensors files; subf"),
    "info of missing latents": Case("info {folder}/none.safetensors", 1, "none.safetensors does not exist"),
    "partial latents on another grid": Case(
        f"decode {{partial_latents}} -n 3 -o {{out}} {M}", 1, "t = 250, which is no level of this grid"
    ),
    "latents of two models": Case(
        f"interpolate {{model_latents}} {{other_latents}} -o {{out}}/m.webp {M}", 1, "the other latents differ in weigh"
    ),
    # Steps
    "no steps": Case(f"{ENCODE} -n 0", 2, "0 steps, but the schedule has 1000 timesteps; choose steps in [1, 1000]"),
    "too many steps": Case(f"{ENCODE} -n 1001", 2, "1001 steps, but the schedule has 1000 timesteps"),
    "steps in words": Case(f"{ENCODE} -n many", 2, "'many' is not a valid integer"),
    "impossible respacing": Case(f"{ENCODE} --timestep-respacing ddim37", 2, "nearest that work are ddim36 and ddim38"),
    "malformed respacing": Case(f"{ENCODE} --timestep-respacing 10,,5", 2, "not of the form ddim50 or 10,15,20"),
    "unknown spacing": Case(f"{ENCODE} --timestep-spacing cubic", 2, "'cubic' is not one of 'leading', 'trailing'"),
    "steps said twice": Case(
        f"{ENCODE} -n 5 --timestep-respacing ddim5", 2, "--num-inference-steps and --timestep-respacing say the same"
    ),
    "spacing of given timesteps": Case(f"{ENCODE} --timesteps 0,9 --spacing uniform", 2, "--timesteps fixes the times"),
    "timestep outside": Case(f"{ENCODE} --timesteps 0,1000", 2, "timestep 1000 is outside the schedule"),
    "timestep not a number": Case(f"{ENCODE} --timesteps 0,nan", 2, "timestep nan is outside the schedule"),
    "timesteps in words": Case(f"{ENCODE} --timesteps 0,x", 2, "'0,x' is no list of timesteps"),
    "timestep given twice": Case(f"{ENCODE} --timesteps 0,5,5", 2, "timestep 5 is given twice"),
    "clip that is no number": Case(f"{SAMPLE} --clip nan", 2, "clip limit nan must be above 0"),
    "photos among latents": Case("info {a}", 2, "is a file and holds no latents"),
    "until below the grid": Case(f"{ENCODE} --timesteps 100,500 --until 50", 2, "no level at or below timestep 50"),
    # Settings
    "size that does not fit": Case(f"{ENCODE} --size 19x33", 2, "needs multiples of 2; choose 20 x 32"),
    "size in words": Case(f"{ENCODE} --size large", 2, "'large' is no size"),
    "unknown fit": Case(f"{ENCODE} --fit squeeze", 2, "'squeeze' is not one of"),
    "label without classes": Case(f"{ENCODE} --label 1", 2, "model is not class-conditional; leave --label out"),
    "unknown label": Case("encode {a} -o {out} --model {labelled} --label bird", 2, "choose one of: cat, dog, none"),
    "label out of range": Case("encode {a} -o {out} --model {labelled} --label 7", 2, "label 7 is unknown"),
    "label needed": Case("encode {a} -o {out} --model {needs_label}", 2, "needs a label"),
    "guidance without label": Case(
        "encode {a} -o {out} --model {labelled} --guidance 2", 2, "guidance 2 needs a label"
    ),
    "guidance without classes": Case(f"{SAMPLE} --guidance 2", 2, "guidance 2 needs a label"),
    "eta above 1": Case(f"{SAMPLE} --eta 2", 2, "eta is 2; choose it in [0, 1]"),
    "eta not a number": Case(f"{DECODE} --eta nan", 2, "eta is nan; choose it in [0, 1]"),
    "eta in words": Case(f"{SAMPLE} --eta much", 2, "'much' is neither a number in [0, 1] nor sigma-hat"),
    "clip of 0": Case(f"{SAMPLE} --clip 0", 2, "clip limit 0 must be above 0"),
    "negative seed": Case(f"{SAMPLE} --seeds -1", 2, "'-1' is no list of seeds"),
    "negative seed of decode": Case(f"{DECODE} --eta 1 --seed -1", 2, "-1 is not in the range x>=0"),
    "malformed seeds": Case(f"{SAMPLE} --seeds 0,,4", 2, "'0,,4' is no list of seeds"),
    "seeds backwards": Case(f"{SAMPLE} --seeds 0,5-3", 2, "'0,5-3' is no list of seeds"),
    "seed given twice": Case(f"{SAMPLE} --seeds 5,5", 2, "seed 5 is given twice and always draws the same picture"),
    "seeds that overlap": Case(f"{SAMPLE} --seeds 0-4,9,3-6", 2, "seed 3 is given twice"),
    "no trajectory": Case(f"{ENCODE} --save-trajectory 0", 2, "0 is not in the range x>=1"),
    "resume of one file": Case(f"encode {{a}} -o {{out}}.safetensors --resume {M}", 2, "--resume needs a folder"),
    "limit of 0": Case(f"{ENCODE} --limit 0", 2, "0 is not in the range x>=1"),
    "unknown option": Case(f"{ENCODE} --stepz 4", 2, "--stepz"),
    "unknown command": Case("frobnicate {a}", 2, "No such command 'frobnicate'"),
    # Morphs: what can be said before a model is loaded is said then
    "one photo": Case("interpolate {a} -o {out}/m.webp --model nonesuch", 2, "a morph needs two photos or more, not 1"),
    "one latent": Case("interpolate {model_latents} -o {out}/m.webp --model nonesuch", 2, "two photos or more, not 1"),
    "a bad photo among three": Case(f"interpolate {{a}} {{text}} -n 2 -o {{out}}/m.webp {M}", 1, "is not an image"),
    "fewer frames than photos": Case(f"{MORPH} --frames 2 --model nonesuch", 2, "frames=2 but there are 3 keys"),
    "unknown video suffix": Case(f"interpolate {{a}} {{b}} -o {{out}}/m.avi {M}", 1, "unknown suffix .avi; use .mp4"),
    "too fast for a GIF": Case(f"interpolate {{a}} {{b}} --fps 60 -o {{out}}/m.gif {M}", 2, "choose fps <= 50"),
    "mp4 without PyAV": Case(
        f"interpolate {{a}} {{b}} -o {{out}}/m.mp4 {M}", 1, "pip install 'ddim-edit[video]'", _without_pyav
    ),
    "grid for latents": Case(
        f"interpolate {{model_latents}} {{model_latents}} -n 3 -o {{out}}/m.webp {M}", 2, "use --decode-steps"
    ),
    "label for latents": Case(
        f"interpolate {{model_latents}} {{model_latents}} --label 1 -o {{out}}/m.webp {M}", 2, "Latents keep the grid"
    ),
    "limit for latents": Case(
        f"interpolate {{model_latents}} {{model_latents}} --limit 1 -o {{out}}/m.webp {M}", 2, "these are latents"
    ),
    "fit for latents": Case(
        f"interpolate {{model_latents}} {{model_latents}} --fit pad -o {{out}}/m.webp {M}", 2, "these are latents"
    ),
    "loop and boomerang": Case(f"{MORPH} --loop --boomerang", 2, "give one"),
    "unknown curve": Case(f"{MORPH} --ease bouncy", 2, "--ease bouncy is not known; choose linear"),
    "curve of words": Case(f"{MORPH} --ease 0,a,1,1", 2, "is no curve; write a name"),
    "curve beyond the keys": Case(f"{MORPH} --ease 0,2,1,1 --model nonesuch", 2, "is no curve between two keys"),
    "odd boomerang": Case(f"{MORPH} --boomerang --frames 9 --model nonesuch", 2, "even number; choose 10"),
    "steps without a distance": Case(f"{MORPH} --pace none --max-step 1 --model nonesuch", 2, "needs a distance"),
    "step of 0": Case(f"{MORPH} --max-step 0 --model nonesuch", 2, "choose a distance above 0"),
    "exact latents": Case(
        "interpolate {model_latents} {model_latents} --endpoints exact -o {out}/m.webp --model nonesuch",
        2,
        "needs the photos themselves",
    ),
    "eta of latents": Case(
        "interpolate {model_latents} {model_latents} --eta 0.5 -o {out}/m.webp --model nonesuch",
        2,
        "Latents keep the grid",
    ),
    "photos and seeds": Case(f"{MORPH} --seeds 0-3 --model nonesuch", 2, "or --seeds instead of them"),
    "neither photos nor seeds": Case("interpolate -o {out}/m.webp --model nonesuch", 2, "or --seeds instead of them"),
    "format of another suffix": Case(f"{MORPH} --format gif --model nonesuch", 2, "do not agree"),
    "frames with a suffix": Case(f"{MORPH} --format png --model nonesuch", 2, "use --format apng"),
    # Output
    "output below a file": Case(f"encode {{a}} -o {{text}}/sub {M}", 1, "cannot write into"),
    "samples below a file": Case(f"sample --seeds 0 -o {{text}} {M}", 1, "cannot write into"),
    "morph below a file": Case(f"interpolate {{a}} {{b}} -o {{text}}/m.webp {M}", 1, "cannot write into"),
    "output that exists": Case(f"interpolate {{a}} {{b}} -o {{whole}} {M}", 1, "whole.webp exists; choose another"),
    "folder that exists": Case(f"interpolate {{a}} {{b}} -o {{folder}} {M}", 1, "holds something other than frames"),
    "full disk": Case(f"{ENCODE} -n 2", 1, "No space left on device; choose another --output", _full_disk),
    # Training and evaluation
    "training on no photos": Case(f"{TRAIN} {{empty_folder}}", 1, "has no image files (such as .jpg or .png)"),
    "training on what is no photo": Case(f"{TRAIN} {{text}}", 1, "none of 1 photos can be read"),
    "training on an archive of floats": Case(f"{TRAIN} {{floats}}", 1, "it must be uint8 (N, H, W, 3)"),
    "training without an end": Case("train {a} -o {out}", 2, "neither steps nor minutes were given"),
    "training below a file": Case("train {a} -o {text}/run --steps 1", 1, "cannot write into"),
    "training into a model": Case("train {a} -o {model} --steps 1", 1, "which is of no run"),
    "classes that are not there": Case(f"{TRAIN} {{a}} --class-cond", 2, "class_cond needs classes"),
    "a table that is not there": Case(f"{TRAIN} {{folder}} --class-cond --label-table {{missing}}", 2, "read as CSV"),
    "every photo set aside": Case(f"{TRAIN} {{a}} --set-aside 1", 2, "leave at least one to train on"),
    "fine-tuning what is not there": Case(f"{TRAIN} {{a}} --init nonesuch", 1, "no folder, no hub id (owner/name)"),
    "fine-tuning to another size": Case(f"{TRAIN} {{a}} --init {{model}}", 2, "size is 16 in"),
    "unknown channels": Case("train {a} -o {out} --steps 1 --channels huge", 2, "choose tiny, small, base, large"),
    "unknown target": Case("train {a} -o {out} --steps 1 --target score", 2, "'score' is not one of"),
    "evaluating at no timestep": Case("evaluate-model {model} {a} --timesteps 1000", 2, "choose it in [0, 999]"),
    "evaluating an unknown model": Case("evaluate-model nonesuch {a}", 1, "no folder, no hub id (owner/name)"),
    # Configs
    "missing config": Case("encode --config {missing} -o {out}", 2, "is no run.json"),
    "config of text": Case("encode --config {config_text} -o {out}", 2, "is no run.json"),
    "config without arguments": Case("encode --config {config_other} -o {out}", 2, "is no run.json"),
    "config with a list": Case("encode --config {config_list} -o {out}", 2, "is no run.json"),
    "config with an unknown key": Case("encode --config {config_unknown} -o {out}", 2, "colour is no option of encode"),
    "config with a bad value": Case("sample --config {config_value} -o {out}", 2, "[1, -2] is no list of seeds"),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_bad_input_ends_with_one_line_and_leaves_nothing(case, things, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    whole = save_photo(tmp_path / "whole.png").rename(tmp_path / "whole.webp")
    before = files_in(tmp_path), files_in(things["folder"])
    monkeypatch.chdir(tmp_path)
    case.patch(monkeypatch)
    arguments = [part.format(out=out, whole=whole, **things) for part in case.arguments.split()]
    outcome = run_cli(*arguments, capsys=capsys)
    assert outcome.code == case.code, outcome
    assert case.fragment in outcome.stderr
    assert "Traceback" not in outcome.stderr
    assert len(re.findall(r"^(?:error|Error|failed): .+", outcome.stderr, re.MULTILINE)) == 1
    if outcome.stderr.startswith("error: "):
        assert outcome.stderr.count("\n") == 1
    assert outcome.stdout == ""
    assert not out.exists()
    assert (files_in(tmp_path), files_in(things["folder"])) == before


def test_the_pickles_of_these_tests_would_run_code(things, tmp_path):
    marker = tmp_path / "marker"
    pickle.loads(pickle.dumps(RunsCode(marker)))
    assert marker.exists()


def test_a_failed_overwrite_keeps_the_old_file(things, tmp_path, capsys, monkeypatch):
    run = partial(run_cli, "encode", things["a"], "-o", tmp_path / "x.safetensors", "--model", things["model"])
    assert run("-n", 2, capsys=capsys).code == 0
    before = files_in(tmp_path)
    _full_disk(monkeypatch)
    assert run("-n", 3, "--overwrite", capsys=capsys).code == 1
    assert files_in(tmp_path) == before


@pytest.mark.parametrize("output", ["out", "out.safetensors"])
def test_a_bad_photo_among_good_ones_is_named_and_the_others_are_kept(things, tmp_path, capsys, output):
    given = [things[name] for name in ("a", "text", "b", "truncated", "c")]
    target = tmp_path / output
    outcome = run_cli("encode", *given, "-n", 2, "-o", target, "--model", things["model"], capsys=capsys)
    assert outcome.code == 3
    failed = [line for line in outcome.stderr.splitlines() if line.startswith("failed: ")]
    assert len(failed) == 2
    assert str(things["text"]) in failed[0]
    assert str(things["truncated"]) in failed[1]
    assert "3 done, 2 failed" in outcome.stderr
    record = target / "run.json" if target.is_dir() else tmp_path / "out.run.json"
    failures = json.loads(record.read_text())["failures"]
    assert [failure["source"] for failure in failures] == [str(things["text"]), str(things["truncated"])]
    files = [target] if target.is_file() else sorted(target.glob("*.safetensors"))
    assert [name for path in files for name in Latents.load(path).names] == ["a", "b", "c"]


def test_roundtrip_prints_rows_of_the_good_photos_only(things, capsys):
    given = [things[name] for name in ("a", "tiny_photo", "b")]
    outcome = run_cli("roundtrip", *given, "-n", 2, "--json", "--model", things["model"], capsys=capsys)
    assert outcome.code == 3
    assert [json.loads(line)["image"] for line in outcome.stdout.splitlines()] == ["a", "b"]
    assert "2 done, 1 failed" in outcome.stderr


def test_where_every_photo_is_bad_the_run_fails_and_leaves_no_record(things, tmp_path, capsys):
    given = [things["text"], things["truncated"]]
    target = tmp_path / "out"
    outcome = run_cli("encode", *given, "-n", 2, "-o", target, "--model", things["model"], capsys=capsys)
    assert outcome.code == 1
    assert "0 done, 2 failed" in outcome.stderr
    assert not target.exists()
