"""`ddim-edit mix`: the picture is that of the mixed latent, and what cannot be mixed is refused first."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_helpers import LABELS, Run, refusal, run_cli, runner, save_tiny_model
from PIL import Image
from pytest import CaptureFixture, MonkeyPatch  # noqa: PT013

import ddim_edit as de
from ddim_edit.images import read_metadata, to_uint8
from ddim_edit.latents import Latents

PHOTOS = [f"in/{name}.png" for name in "abc"]
EXPLICIT = ("--inverse", "explicit", "-n", 3)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: MonkeyPatch, capsys: CaptureFixture[str]) -> Run:
    return runner(tmp_path, PHOTOS, monkeypatch, capsys)


def picture(path: str) -> np.ndarray:
    return np.asarray(Image.open(path))


@pytest.mark.parametrize(
    ("flags", "weights", "mean"),
    [
        ((), [1, 1, 1], de.karcher_mean),
        (("--weights", "2,1,0.5"), [2, 1, 0.5], de.karcher_mean),
        (("--weights", "2,1,0.5", "--mean", "lol"), [2, 1, 0.5], de.lol),
        (("--weights", "1,-1,1"), [1, -1, 1], de.lol),
        (("--weights", "-1,1,1"), [-1, 1, 1], de.lol),
    ],
)
def test_the_picture_is_that_of_the_mixed_latent(run: Run, flags: tuple[str], weights: list[float], mean: Callable):
    run("encode", *PHOTOS, *EXPLICIT, "-o", "all.safetensors")
    latents = Latents.load("all.safetensors")
    expected = mean(latents.x, torch.tensor([weights], dtype=torch.float64))
    run("mix", "all.safetensors", *flags, "-o", "mix.safetensors")
    made = Latents.load("mix.safetensors")
    assert made.x.equal(expected)
    assert made.names == ["mix"]
    run("mix", "all.safetensors", *flags)
    shown = to_uint8(de.decode(de.load_model("model"), made)[0])
    assert (picture("mix.png") == shown).all()


def test_photos_are_encoded_and_the_record_says_how(run: Run):
    run("encode", *PHOTOS, *EXPLICIT, "-o", "all.safetensors")
    run("mix", "all.safetensors", "-o", "of_latents.png")
    run("mix", *PHOTOS, *EXPLICIT, "-o", "of_photos.png")
    assert (picture("of_latents.png") == picture("of_photos.png")).all()
    assert read_metadata("of_photos.png").keys() == {"parameters", "ddim_edit"}
    record = json.loads(Path("of_photos.run.json").read_text())
    assert record["outputs"] == ["of_photos.png"]
    assert record["command"] == "mix"


def test_a_folder_of_latents_is_as_good_as_their_files(run: Run, capsys: CaptureFixture[str]):
    run("encode", *PHOTOS, *EXPLICIT, "-o", "each")
    run("mix", "each", "-o", "of_folder.png")
    run("mix", *(f"each/{name}.safetensors" for name in "abc"), "-o", "of_files.png")
    assert (picture("of_folder.png") == picture("of_files.png")).all()
    refused = run_cli("mix", "each", "in/a.png", "--model", "nonesuch", capsys=capsys)
    assert refused.code == 2
    assert "Some of these are latents and some are photos; encode the photos first." in refused.stderr


def test_decode_steps_are_those_of_the_picture(run: Run):
    run("encode", *PHOTOS, "--inverse", "explicit", "-n", 20, "-o", "all.safetensors")
    run("mix", "all.safetensors", "-o", "mix.safetensors")
    run("mix", "all.safetensors", "--decode-steps", 2)
    shown = to_uint8(de.decode(de.load_model("model"), Latents.load("mix.safetensors"), grid=2)[0])
    assert (picture("mix.png") == shown).all()


def test_seeds_are_drawn_under_the_condition(run: Run):
    save_tiny_model(Path("model"), labels=LABELS)
    run("mix", "--seeds", "1,2", "-n", 2, "--label", "dog", "-o", "mix.safetensors")
    assert Latents.load("mix.safetensors").how["denoiser"] == {"label": 1}


def test_no_metadata_leaves_the_picture_bare(run: Run):
    run("mix", "--seeds", "1,2", "-n", 2, "--no-metadata")
    assert read_metadata("mix.png") == {}


def test_a_folder_of_photos_and_latents_is_one_of_photos(run: Run):
    run("encode", *PHOTOS, *EXPLICIT, "-o", "in/all.safetensors")
    run("mix", "in", *EXPLICIT, "-o", "folder.png")  # how to encode is refused for latents
    run("mix", *PHOTOS, *EXPLICIT, "-o", "files.png")
    assert (picture("folder.png") == picture("files.png")).all()


def test_step_noises_are_mixed_too(run: Run):
    """With a weight for one seed alone, the mix is what that seed draws."""
    seeds = ("--seeds", "3,5", "-n", 3, "--eta", 1)
    run("sample", *seeds, "-o", "drawn")
    run("mix", *seeds, "--weights", "0,1")
    assert (picture("mix.png") == picture("drawn/seed0005.png")).all()
    run("mix", *seeds, "-o", "both.png")
    assert (picture("both.png") != picture("mix.png")).any()


def test_pairs_are_mixed_with_both_halves(run: Run):
    run("encode", *PHOTOS, *EXPLICIT, "--solver", "leapfrog", "-o", "pairs.safetensors")
    run("mix", "pairs.safetensors", "-o", "mix.safetensors")
    pairs, made = (Latents.load(f"{name}.safetensors") for name in ("pairs", "mix"))
    assert made.memory[0].equal(de.karcher_mean(pairs.memory[0], torch.ones(1, 3)))


def test_a_mix_leads_on(run: Run):
    run("encode", *PHOTOS, *EXPLICIT, "-o", "all.safetensors")
    run("mix", "all.safetensors", "-o", "mix.safetensors")
    run("interpolate", "all.safetensors", "mix.safetensors", "--frames", 4, "--pace", "none", "-o", "frames")
    assert len(list(Path("frames").glob("*.png"))) == 4


def test_an_odd_mix_is_named(run: Run):
    """The same latent twice is not independent: lol makes it too long."""
    model = de.load_model("model")
    de.seed_latents(model, [3], grid=50).save("a.safetensors")
    for mean, warned in (("lol", True), ("karcher", False)):
        told = run("mix", "a.safetensors", "a.safetensors", "--mean", mean, "-o", f"{mean}.png").stderr
        assert ("warning: the mix has rms 1.4" in told) is warned


def test_a_mean_of_short_latents_is_as_short_and_no_fault_of_the_mix(run: Run):
    latents = de.seed_latents(de.load_model("model"), [3, 4], grid=50)
    replace(latents, x=0.7 * latents.x).save("short.safetensors")
    assert "the mix has rms" not in run("mix", "short.safetensors").stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (PHOTOS[:1], 2, "1 is given, and a mix needs two or more"),
        ([*PHOTOS, "--weights", "1,1"], 2, "--weights has 2 numbers and 3 are given; give one for each"),
        ([*PHOTOS, "--weights", "0,0,0"], 2, "--weights are all 0"),
        ([*PHOTOS, "--weights", "1,a,1"], 2, "'1,a,1' is no list of numbers; write for example 2,1,1"),
        ([*PHOTOS, "--weights", "1,nan,1"], 2, "is no list of numbers"),
        ([*PHOTOS, "--weights", "1,-1,1", "--mean", "karcher"], 2, "--mean karcher takes nothing away"),
        ([*PHOTOS, "--seeds", "0-2"], 2, "or --seeds instead of them"),
        ([*PHOTOS, "-o", "mix.jpg"], 2, "is no .png and no .safetensors; name it mix.png"),
        ([*PHOTOS, "-o", "in/a.png"], 1, "exists; choose another --output"),
    ],
)
def test_what_cannot_be_mixed_is_refused_before_a_model_is_loaded(
    tmp_path: Path,
    monkeypatch: MonkeyPatch,
    capsys: CaptureFixture[str],
    arguments: list[str],
    code: int,
    message: str,
):
    outcome = refusal(tmp_path, PHOTOS, ["mix", *arguments], monkeypatch, capsys)
    assert outcome.code == code
    assert message in outcome.said


def test_recorded_noise_is_not_independent(run: Run, capsys: CaptureFixture[str]):
    run("encode", *PHOTOS, "-n", 3, "--eta", 0.5, "-o", "recorded.safetensors")
    refused = run_cli("mix", "recorded.safetensors", "--weights", "1,-1,1", "--model", "model", capsys=capsys)
    assert refused.code == 2
    assert "that of recorded photos is not; use karcher" in refused.stderr
    run("mix", "recorded.safetensors")
