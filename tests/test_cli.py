import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import get_args

import click
import numpy as np
import pytest
import torch
from cli_helpers import LABELS, SIDE, files_in, run_cli, save_photo, save_tiny_model
from model_helpers import encode_explicitly as encode
from PIL import Image

from ddim_edit import batch, models
from ddim_edit.cli import cli as command_line
from ddim_edit.cli import main as command_line_main
from ddim_edit.cli import method, options
from ddim_edit.cli.corners import MIXES
from ddim_edit.cli.interpolate import CORRECTIONS, ENDPOINTS, OVERS, PACES, PATHS
from ddim_edit.cli.interpolate import EASES as EASE_NAMES
from ddim_edit.corrections import Correction
from ddim_edit.decoding import decode
from ddim_edit.doctor import Check
from ddim_edit.errors import NumericsError
from ddim_edit.grid import Grid
from ddim_edit.images import FITS, find_photos, read_image, read_metadata, to_uint8
from ddim_edit.interpolation import How
from ddim_edit.inverse import INVERSES
from ddim_edit.latents import Latents
from ddim_edit.mixing import GridHow
from ddim_edit.models import load_model
from ddim_edit.motion import Endpoints, Metric
from ddim_edit.pacing import EASES, Over
from ddim_edit.schedule import SPACINGS
from ddim_edit.solvers import SOLVERS

ROUNDTRIP_KEYS = [
    *("image", "steps", "solver", "inverse", "spacing", "mse", "psnr", "ssim", "max_error", "changed_8bit"),
    *("evaluations", "latent", "inversion", "seconds"),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("models") / "labelled", labels=LABELS)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    return [save_photo(folder / f"{name}.png", seed) for seed, name in enumerate("abc")]


@pytest.fixture
def run(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("DDIM_EDIT_")]:
        monkeypatch.delenv(name)
    return partial(run_cli, capsys=capsys)


@pytest.fixture
def tiny(run, model):
    """Run a command with the tiny model; the run must succeed.

    Photos are encoded with one evaluation a step, which is all that a random network deserves.
    """

    def go(command, *arguments):
        latents = any(".safetensors" in str(argument) or argument == "--seeds" for argument in arguments[:1])
        plain = command in ("encode", "roundtrip", "interpolate") and not latents and "--inverse" not in arguments
        outcome = run(command, "--model", model, *arguments, *(("--inverse", "explicit") if plain else ()))
        assert outcome.code == 0, outcome.stderr
        return outcome

    return go


def picture(path):
    return np.asarray(Image.open(path).convert("RGB"))


def record(path):
    return json.loads(Path(path).read_text())


# Choices


@pytest.mark.parametrize(
    ("written", "defined"),
    [
        (options.SPACINGS, SPACINGS),
        (options.DTYPES, models.DTYPES),
        (options.FITS, FITS),
        (method.SOLVERS, SOLVERS),
        (method.INVERSES, INVERSES),
        (PATHS, get_args(How)),
        (PACES, get_args(Metric)),
        (OVERS, get_args(Over)),
        (EASE_NAMES, EASES),
        (ENDPOINTS, get_args(Endpoints)),
        (CORRECTIONS, get_args(Correction)),
        (MIXES, get_args(GridHow)),
    ],
    ids=[
        "spacings",
        "dtypes",
        "fits",
        "solvers",
        "inverses",
        "paths",
        "paces",
        "overs",
        "eases",
        "endpoints",
        "corrections",
        "mixes",
    ],
)
def test_choices_written_out_equal_those_of_the_modules(written, defined):
    assert list(written) == list(defined)


@pytest.mark.parametrize("name", sorted(command_line.commands))
def test_every_command_explains_itself(run, name):
    outcome = run(name, "-h")
    assert outcome.code == 0
    assert outcome.stdout.startswith(f"Usage: ddim-edit {name}")
    assert outcome.stderr == ""


@pytest.mark.parametrize("command", command_line.commands.values(), ids=lambda command: command.name)
def test_every_option_can_be_written_with_dashes_only(command):
    spellings = [o for p in command.params if isinstance(p, click.Option) for o in (*p.opts, *p.secondary_opts)]
    assert not [spelling for spelling in spellings if "_" in spelling]


# encode


def test_encode_writes_a_file_a_photo_and_says_how_each_comes_back(tiny, photos, tmp_path):
    outcome = tiny("encode", *photos[:2], "-n", 4, "-o", "out")
    assert set(files_in(tmp_path / "out")) == {"a.safetensors", "b.safetensors", "run.json"}
    assert [line.split(":")[0] for line in outcome.stdout.splitlines() if not line.startswith(" ")] == ["a", "b"]
    latents = Latents.load(tmp_path / "out" / "b.safetensors")
    assert latents.names == ["b"]
    assert latents.how["timesteps"] == [0, 250, 500, 750]
    assert f"{latents.photos[0].quality.psnr:.1f} dB" in outcome.stdout.splitlines()[-3]


def test_encode_into_one_file_keeps_the_order(tiny, photos, tmp_path):
    tiny("encode", *reversed(photos), "-n", 2, "-o", "all.safetensors", "--batch-size", 2)
    assert Latents.load(tmp_path / "all.safetensors").names == ["c", "b", "a"]
    assert set(files_in(tmp_path)) == {"all.safetensors", "all.run.json"}


def test_encode_json_prints_one_object_a_photo_and_nothing_else(tiny, photos):
    rows = [json.loads(line) for line in tiny("encode", *photos, "-n", 4, "--json").stdout.splitlines()]
    assert [row["image"] for row in rows] == ["a", "b", "c"]
    assert all(row["steps"] == row["evaluations"] == 4 for row in rows)
    assert set(rows[0]["health"]) == {"rms", "excess_kurtosis", "neighbour_correlation"}
    assert set(rows[0]["quality"]) == {"mse", "psnr", "ssim", "max_error", "changed_8bit"}


def test_encode_takes_folders_and_archives(tiny, photos, tmp_path):
    np.savez(tmp_path / "set.npz", images=np.zeros((2, SIDE, SIDE, 3), np.uint8))
    tiny("encode", photos[0].parent, "set.npz", "-n", 2, "-o", "out.safetensors", "--no-check")
    assert Latents.load(tmp_path / "out.safetensors").names == ["a", "b", "c", "set_00000", "set_00001"]


def test_limit_takes_the_first_photos(tiny, photos, tmp_path):
    tiny("encode", *photos, "--limit", 2, "-n", 2, "-o", "out.safetensors")
    assert Latents.load(tmp_path / "out.safetensors").names == ["a", "b"]


def test_no_check_encodes_the_same_without_decoding(tiny, photos, tmp_path):
    tiny("encode", photos[0], "-n", 4, "-o", "checked")
    tiny("encode", photos[0], "-n", 4, "-o", "unchecked", "--no-check")
    checked, unchecked = (Latents.load(tmp_path / name / "a.safetensors") for name in ("checked", "unchecked"))
    assert checked.photos[0].quality is not None
    assert unchecked.photos[0].quality is None
    assert torch.equal(checked.x, unchecked.x)


def test_until_encodes_part_of_the_way_and_decodes_from_there(tiny, photos, model, tmp_path):
    outcome = tiny("encode", photos[0], "-n", 4, "--until", 300, "-o", "out")
    assert "encoded part of the way" in outcome.stdout
    latents = Latents.load(tmp_path / "out" / "a.safetensors")
    assert latents.level.t == 250
    assert latents.how["timesteps"] == [0, 250]
    tiny("decode", "out/a.safetensors", "-o", "back")
    assert (picture("back/a.png") == to_uint8(decode(load_model(model), latents))[0]).all()


@pytest.mark.parametrize(("every", "kept"), [(1, [0, 250, 500, 750]), (2, [250, 750]), (3, [500])])
def test_save_trajectory_keeps_every_kth_x(tiny, photos, tmp_path, every, kept):
    tiny("encode", photos[0], "-n", 4, "--save-trajectory", every, "-o", "out")
    latents = Latents.load(tmp_path / "out" / "a.safetensors")
    assert list(latents.trajectory_t) == kept
    assert latents.trajectory.shape == (len(kept), 1, 3, SIDE, SIDE)
    if kept[-1] == 750:
        assert torch.equal(latents.trajectory[-1], latents.x)


def test_size_changes_the_size_of_the_latents(tiny, photos, tmp_path):
    tiny("encode", photos[0], "--size", "16x20", "-n", 2, "-o", "out")
    assert Latents.load(tmp_path / "out" / "a.safetensors").x.shape == (1, 3, 16, 20)


@pytest.mark.parametrize("fit", FITS)
def test_fit_is_how_the_photo_gets_the_models_shape(tiny, photos, model, tmp_path, fit):
    tiny("encode", photos[0], "--fit", fit, "-n", 2, "--no-check", "-o", "out")
    pixels = read_image(photos[0], (SIDE, SIDE), fit)[None]
    assert torch.equal(
        Latents.load(tmp_path / "out" / "a.safetensors").x, encode(load_model(model), pixels, grid=2, check=False).x
    )


def test_a_label_and_guidance_are_recorded_and_used(run, labelled, photos, tmp_path):
    base = ("encode", photos[0], "--model", labelled, "-n", 2, "--no-check", "--inverse", "explicit")
    assert run(*base, "-o", "none").code == 0
    assert run(*base, "-o", "dog", "--label", "dog").code == 0
    assert run(*base, "-o", "guided", "--label", 1, "--guidance", 3).code == 0
    none, dog, guided = (Latents.load(tmp_path / n / "a.safetensors") for n in ("none", "dog", "guided"))
    assert [part.how["denoiser"] for part in (none, dog, guided)] == [{}, {"label": 1}, {"label": 1, "guidance": 3.0}]
    assert [part.photos[0].evaluations for part in (none, dog, guided)] == [2, 2, 4]
    assert not torch.equal(none.x, dog.x)
    assert not torch.equal(dog.x, guided.x)


def test_subfolders_are_not_skipped_in_silence(tiny, tmp_path):
    for name in ("a", ".hidden/b", "more/c", "other/d"):
        save_photo(tmp_path / "in" / f"{name}.png")
    told = tiny("encode", "in", "-n", 2, "-o", "out").stderr
    assert "note: subfolders of in are not searched: more/, other/\n" in told
    assert [path.stem for path in (tmp_path / "out").glob("*.safetensors")] == ["a"]


def test_resume_encodes_what_is_left_and_nothing_again(tiny, photos, tmp_path):
    arguments = ("encode", *photos, "-n", 2, "--micro-batch", 4)
    tiny(*arguments, "-o", "whole")
    tiny(*arguments, "--limit", 2, "-o", "part")
    (tmp_path / "part" / "a.safetensors").unlink()
    before = (tmp_path / "part" / "b.safetensors").stat().st_mtime_ns
    outcome = tiny(*arguments, "-o", "part", "--resume")
    assert outcome.stderr == "1 of 3 photos were encoded before\nwrote part (2 done)\n"
    assert [line.split(":")[0] for line in outcome.stdout.splitlines() if not line.startswith(" ")] == ["a", "c"]
    assert (tmp_path / "part" / "b.safetensors").stat().st_mtime_ns == before
    whole, part = files_in(tmp_path / "whole"), files_in(tmp_path / "part")
    assert all(part[f"{name}.safetensors"] == whole[f"{name}.safetensors"] for name in "abc")
    again = tiny(*arguments, "-o", "part", "--resume")
    assert (again.stdout, again.stderr) == ("", "3 of 3 photos were encoded before\n")
    assert files_in(tmp_path / "part") == part


OTHERWISE = {
    "steps": ("-n", 3),
    "fit": ("--fit", "pad"),
    "until": ("--until", 400),
    "trajectory": ("--save-trajectory", 1),
    "size": ("--size", 20),
    "model": ("--model", "other"),
    "photo": (),
}


@pytest.mark.parametrize("changed", OTHERWISE)
def test_resume_takes_nothing_for_done_that_was_made_otherwise(tiny, run, model, tmp_path, changed):
    photo = save_photo(tmp_path / "a.png")
    save_tiny_model(tmp_path / "other", seed=1)
    tiny("encode", photo, "-n", 2, "-o", "out")
    before = files_in(tmp_path / "out")
    if changed == "photo":
        save_photo(photo, seed=9)
    refused = run("encode", photo, "-n", 2, "-o", "out", "--resume", "--model", model, *OTHERWISE[changed])
    assert refused.code == 1
    assert "0 of 1 photos were encoded before" in refused.stderr
    assert "a.safetensors exists; choose another --output or pass --overwrite" in refused.stderr
    assert files_in(tmp_path / "out") == before


def test_resume_knows_files_with_a_trajectory(tiny, run, model, photos):
    arguments = ("encode", *photos, "-n", 4, "--save-trajectory", 2, "-o", "out")
    tiny(*arguments)
    again = run(*arguments, "--inverse", "explicit", "--resume", "--model", model)
    assert "3 of 3 photos were encoded before" in again.stderr


def test_the_manifest_counts_what_was_decoded(tiny, photos, tmp_path):
    """The frames of a boomerang that are shown twice are decoded once."""
    tiny("interpolate", *photos[:2], "-n", 2, "--frames", 6, "--boomerang", "--pace", "none", "-o", "frames")
    found = json.loads((tmp_path / "frames" / "manifest.json").read_text())
    assert found["evaluations"] == {"plan": 2 * 2, "frames": 4 * 2}


def test_resume_checks_what_was_not_checked(tiny, run, model, photos):
    tiny("encode", *photos, "-n", 2, "--no-check", "-o", "out")
    arguments = ("encode", *photos, "-n", 2, "--inverse", "explicit", "--model", model, "-o", "out", "--resume")
    assert "3 of 3 photos were encoded before" in run(*arguments, "--no-check").stderr
    checked = run(*arguments, "--overwrite")
    assert "0 of 3 photos were encoded before" in checked.stderr
    assert all(Latents.load(Path("out") / f"{name}.safetensors").photos[0].quality for name in "abc")


def test_resume_with_bad_photos_alone_has_not_failed(tiny, run, model, photos, tmp_path):
    tiny("encode", *photos, "-n", 2, "-o", "out")
    (tmp_path / "bad.jpg").write_text("no photo")
    arguments = ("encode", *photos, "bad.jpg", "-n", 2, "--inverse", "explicit", "--model", model, "-o", "out")
    assert run(*arguments, "--resume").code == 3


def test_resume_replaces_a_damaged_file_where_it_may_and_still_names_bad_photos(run, model, photos, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.safetensors").write_bytes(b"cut off")
    (tmp_path / "bad.jpg").write_text("no photo")
    outcome = run("encode", *photos[:1], "bad.jpg", "-n", 2, "-o", "out", "--resume", "--overwrite", "--model", model)
    assert outcome.code == 3
    assert "bad.jpg is not an image" in outcome.stderr
    assert Latents.load(tmp_path / "out" / "a.safetensors").names == ["a"]


# decode


def test_saved_latents_decode_bit_for_bit_like_those_in_memory(tiny, photos, model, tmp_path):
    tiny("encode", *photos, "-n", 3, "-o", "all.safetensors")
    tiny("decode", "all.safetensors", "-o", "back")
    network = load_model(model)
    pixels = torch.stack([photo.read(network.image_size) for photo in find_photos(photos)])
    latents = encode(network, pixels, grid=3)
    loaded = Latents.load(tmp_path / "all.safetensors")
    assert torch.equal(latents.x, loaded.x)
    restored = decode(network, latents)
    assert torch.equal(decode(network, loaded), restored)
    for name, expected in zip("abc", to_uint8(restored), strict=True):
        assert (picture(f"back/{name}.png") == expected).all()


def test_decode_numbers_names_that_repeat(tiny, photos, tmp_path):
    tiny("encode", photos[0], "-n", 2, "-o", "one")
    tiny("decode", "one/a.safetensors", "one/a.safetensors", "-o", "back")
    found = files_in(tmp_path / "back")
    assert set(found) == {"a.png", "a-2.png", "run.json"}
    assert found["a.png"] == found["a-2.png"]


def test_decode_takes_the_folder_that_encode_writes(tiny, photos, tmp_path):
    tiny("encode", *photos, "-n", 2)
    tiny("decode", "latents", "--no-metadata", "-o", "from-folder")
    tiny("decode", *(f"latents/{name}.safetensors" for name in "abc"), "--no-metadata", "-o", "from-files")
    whole, single = files_in(tmp_path / "from-folder"), files_in(tmp_path / "from-files")
    assert set(whole) == {"a.png", "b.png", "c.png", "run.json"}
    assert all(whole[name] == single[name] for name in ("a.png", "b.png", "c.png"))


def test_decode_resumes_what_is_left_of_it(tiny, run, model, photos, tmp_path):
    tiny("encode", *photos, "-n", 2)
    tiny("decode", "latents", "-o", "back")
    whole = files_in(tmp_path / "back")
    (tmp_path / "back" / "b.png").unlink()
    kept = (tmp_path / "back" / "a.png").stat().st_mtime_ns
    outcome = tiny("decode", "latents", "-o", "back", "--resume")
    assert "wrote back (1 done)" in outcome.said
    assert (tmp_path / "back" / "a.png").stat().st_mtime_ns == kept
    found = files_in(tmp_path / "back")
    assert {name: found[name] for name in whole if name != "run.json"} == {
        name: data for name, data in whole.items() if name != "run.json"
    }
    assert tiny("decode", "latents", "-o", "back", "--resume").stdout == ""
    other = run("decode", "latents", "--model", model, "-n", 3, "-o", "back", "--resume")
    assert other.code == 1
    assert "back/a.png exists; choose another --output or pass --overwrite" in other.said
    assert run("decode", "latents", "--model", model, "-o", "back", "--resume", "--no-metadata").code == 2


def test_a_resumed_decode_draws_the_noise_of_each_picture(tiny, photos, tmp_path):
    tiny("encode", *photos, "-n", 2)
    flags = ["--eta", 1, "--seed", 5]
    tiny("decode", "latents", *flags, "-o", "back")
    whole = picture("back/c.png")
    for name in "bc":
        (tmp_path / "back" / f"{name}.png").unlink()
    tiny("decode", "latents", *flags, "-o", "back", "--resume")
    assert (picture("back/c.png") == whole).all()


def test_decode_goes_on_where_a_file_is_damaged(run, tiny, model, photos, tmp_path):
    tiny("encode", *photos, "-n", 2)
    damaged = tmp_path / "latents" / "b.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:99])
    outcome = run("decode", "latents", "--model", model, "-o", "back")
    assert outcome.code == 3
    assert "failed: latents/b.safetensors cannot be read as safetensors" in outcome.said
    assert set(files_in(tmp_path / "back")) == {"a.png", "c.png", "run.json"}
    assert [failure["source"] for failure in record("back/run.json")["failures"]] == ["latents/b.safetensors"]
    outcome = run("decode", damaged, "--model", model, "-o", "none")
    assert outcome.code == 1
    assert not (tmp_path / "none").exists()
    outcome = run("decode", "latents", "nowhere.safetensors", "--model", model, "-o", "none")
    assert outcome.code == 1
    assert "nowhere.safetensors does not exist" in outcome.said


def test_latents_without_names_are_decoded_under_those_of_their_files(tiny, model, photos, tmp_path):
    network = load_model(model)
    pixels = torch.stack([read_image(path, network.image_size) for path in photos])
    for name, rows in (("cat", [0]), ("dogs", [1, 2])):
        encode(network, pixels[rows], grid=2).save(tmp_path / f"{name}.safetensors")
    tiny("decode", "cat.safetensors", "dogs.safetensors", "-o", "back")
    assert {*files_in(tmp_path / "back")} == {"cat.png", "dogs_00000.png", "dogs_00001.png", "run.json"}


def test_a_photo_whose_values_overflow_is_named_and_the_others_are_done(run, model, photos, tmp_path, monkeypatch):
    encoded = batch.round_trip
    bad = read_image(photos[1], (SIDE, SIDE))

    def overflowing(model, pixels, recipe, **settings):
        if any(photo.equal(bad) for photo in pixels):
            raise NumericsError("values are not finite after step 1 of 2 (t = 0)")
        return encoded(model, pixels, recipe, **settings)

    monkeypatch.setattr(batch, "round_trip", overflowing)
    for command, made in (("encode", "{}.safetensors"), ("roundtrip", "{}_recon.png")):
        outcome = run(command, *photos, "--model", model, "--inverse", "explicit", "-n", 2, "-o", command)
        assert outcome.code == 3
        assert "failed: b: values are not finite" in outcome.said
        assert {*files_in(tmp_path / command)} == {made.format("a"), made.format("c"), "run.json"}


def test_run_json_says_which_file_each_name_is_of(tiny, tmp_path):
    same = [save_photo(tmp_path / folder / "0001.png", seed) for seed, folder in enumerate(("cats", "dogs"))]
    tiny("encode", "cats", "dogs", "-n", 2, "-o", "out")
    assert record("out/run.json")["sources"] == {
        name: str(path.relative_to(tmp_path)) for name, path in zip(("0001", "0001-2"), same, strict=True)
    }


def test_decode_takes_another_number_of_steps(tiny, photos, model, tmp_path):
    tiny("encode", photos[0], "-n", 2, "--spacing", "trailing", "-o", "one")
    tiny("decode", "one/a.safetensors", "-n", 4, "-o", "back")
    latents = Latents.load(tmp_path / "one" / "a.safetensors")
    assert (picture("back/a.png") == to_uint8(decode(load_model(model), latents, grid=4))[0]).all()
    record = json.loads((tmp_path / "back" / "run.json").read_text())
    assert record["timesteps"] == Grid.build(load_model(model).schedule, 4, "trailing").timesteps


def test_no_step_at_all_is_refused_and_not_taken_for_the_default(run, model, photos, tmp_path):
    run("encode", photos[0], "--model", model, "-n", 2, "-o", "one.safetensors")
    refused = run("decode", "one.safetensors", "--model", model, "-n", 0)
    assert refused.code == 2
    assert "0 steps" in refused.stderr


@pytest.mark.parametrize("eta", ["1", "sigma-hat"])
def test_the_noise_of_decoding_belongs_to_the_picture_and_not_to_its_file(tiny, photos, tmp_path, eta):
    tiny("encode", *photos[:2], "-n", 3, "-o", "each")
    tiny("encode", *photos[:2], "-n", 3, "-o", "all.safetensors")
    noisy = ("--eta", eta, "--seed", 5, "--no-metadata", "--micro-batch", 4)
    tiny("decode", "each/a.safetensors", "each/b.safetensors", *noisy, "-o", "from-each")
    tiny("decode", "all.safetensors", *noisy, "-o", "from-all")
    tiny("decode", "all.safetensors", *noisy, "--seed", 6, "-o", "other-seed")
    tiny("decode", "all.safetensors", "--no-metadata", "-o", "no-noise")
    each, all_, other, none = (files_in(tmp_path / n) for n in ("from-each", "from-all", "other-seed", "no-noise"))
    for name in ("a.png", "b.png"):
        assert each[name] == all_[name] != other[name] != none[name]


def test_force_decodes_latents_of_another_model(run, tiny, photos, labelled):
    tiny("encode", photos[0], "-n", 2, "-o", "one")
    assert run("decode", "one/a.safetensors", "--model", labelled, "-o", "back").code == 1
    assert run("decode", "one/a.safetensors", "--model", labelled, "-o", "back", "--force").code == 0


# roundtrip


def test_roundtrip_prints_a_line_a_photo_and_the_mean(tiny, photos):
    outcome = tiny("roundtrip", *photos, "-n", 3)
    *lines, mean = outcome.stdout.splitlines()
    assert [line.split(":")[0] for line in lines] == ["a", "b", "c"]
    assert all(" dB, mse " in line and " ssim " in line for line in lines)
    assert mean.startswith("mean of 3: mse ")
    assert mean.endswith("3 steps, leading, top t = 666")
    assert outcome.stderr == ""


def test_roundtrip_json_has_exactly_the_promised_keys(tiny, photos):
    outcome = tiny("roundtrip", *photos, "-n", 4, "--json")
    rows = [json.loads(line) for line in outcome.stdout.splitlines()]
    assert [row["image"] for row in rows] == ["a", "b", "c"]
    for row in rows:
        assert list(row) == ROUNDTRIP_KEYS
        assert (row["steps"], row["solver"], row["inverse"], row["spacing"]) == (4, "ddim", "explicit", "leading")
        assert row["evaluations"] == {"encode": 4, "decode": 4}
        assert set(row["latent"]) == {"rms", "excess_kurtosis", "neighbour_correlation"}
        assert row["seconds"] > 0
        assert row["psnr"] == pytest.approx(-10 * np.log10(row["mse"]))
    assert outcome.stderr.startswith("mean of 3: ")


def test_roundtrip_measures_photos_of_8_pixels(tiny, photos):
    row = json.loads(tiny("roundtrip", photos[0], "-n", 2, "--size", 8, "--json").stdout)
    assert -1 <= row["ssim"] <= 1


def test_roundtrip_agrees_with_the_check_of_encode(tiny, photos):
    row = json.loads(tiny("roundtrip", photos[0], "-n", 3, "--json").stdout)
    quality = json.loads(tiny("encode", photos[0], "-n", 3, "--json").stdout)["quality"]
    assert {key: row[key] for key in quality} == quality


def test_roundtrip_writes_pictures_where_it_is_asked_to(tiny, photos, tmp_path):
    tiny("roundtrip", photos[0], "-n", 2)
    assert files_in(tmp_path) == {}
    tiny("roundtrip", photos[0], "-n", 2, "-o", "out")
    assert set(files_in(tmp_path / "out")) == {"a_recon.png", "run.json"}


# interpolate


def test_three_photos_make_an_mp4_of_exactly_90_frames(tiny, photos, tmp_path):
    av = pytest.importorskip("av")
    outcome = tiny("interpolate", *photos, "-n", 4, "--decode-steps", 2, "--frames", 90, "-o", "m.mp4")
    with av.open(str(tmp_path / "m.mp4")) as container:
        frames = list(container.decode(video=0))
    assert len(frames) == 90
    assert {(frame.format.name, frame.width, frame.height) for frame in frames} == {("yuv420p", 256, 256)}
    assert record(tmp_path / "m.run.json")["arguments"]["frames"] == 90
    assert outcome.stdout == ""
    with av.open(str(tmp_path / "m.mp4")) as container:
        notes = dict(container.metadata)
    assert notes["title"] == "a to b to c"
    assert json.loads(notes["comment"])["arguments"]["frames"] == 90
    assert str(tmp_path) not in notes["comment"]


def frames_of(folder, count):
    assert set(files_in(folder)) == {*(f"frame_{k:06d}.png" for k in range(count)), "manifest.json"}
    return record(Path(folder) / "manifest.json")


def test_photos_are_met_exactly_unless_they_are_to_be_decoded(tiny, photos, tmp_path):
    tiny("encode", *photos, "-n", 2, "-o", "all.safetensors")
    tiny("decode", "all.safetensors", "-o", "back")
    for endpoints in ("exact", "paste", "decoded"):
        flags = () if endpoints == "exact" else ("--endpoints", endpoints)
        tiny("interpolate", *photos, "-n", 2, "--frames", 5, "--scale", 2, *flags, "-o", endpoints)
        keys = frames_of(tmp_path / endpoints, 5)["keys"]
        assert [key["name"] for key in keys] == ["a", "b", "c"]
        assert [key["sha256"] for key in keys] == [hashlib.sha256(photo.read_bytes()).hexdigest() for photo in photos]
        for key, photo in zip(keys, photos, strict=True):
            shown = picture(f"{endpoints}/frame_{key['frame']:06d}.png")[::2, ::2].astype(int)
            if endpoints == "decoded":
                assert key["max_error"] is None
                assert abs(shown - picture(f"back/{key['name']}.png")).max() <= 1  # batches round differently
            else:
                assert key["max_error"] == 0
                assert (shown == to_uint8(read_image(photo, (SIDE, SIDE)))).all()


def test_a_loop_of_48_frames_as_a_folder(tiny, photos, tmp_path):
    arguments = ("interpolate", *photos, "-n", 2, "--loop", "--frames", 48, "--format", "png")
    outcome = tiny(*arguments, "-o", "frames", "--json")
    manifest = frames_of(tmp_path / "frames", 48)
    assert json.loads(outcome.stdout) == manifest["steps"]
    assert manifest["steps"]["repeated"] == 0
    assert 0.5 < manifest["steps"]["seam_over_median"] < 2
    assert manifest["path"] == "squad"
    assert record("frames.run.json")["steps"] == manifest["steps"]
    assert [frame["file"] for frame in manifest["frames"]] == [f"frame_{k:06d}.png" for k in range(48)]
    assert manifest["frames"][-1]["between"] == ["c", "a"]
    low, high = ((min, max)[k](frame["rms"] for frame in manifest["frames"] if frame["alpha"] == 0) for k in (0, 1))
    assert all(low - 1e-6 <= frame["rms"] <= high + 1e-6 for frame in manifest["frames"])
    assert str(tmp_path) not in json.dumps(manifest)
    tiny(*arguments, "-o", "again")
    assert files_in(tmp_path / "again") == files_in(tmp_path / "frames")


def test_motion_options_change_the_clip(tiny, photos, tmp_path):
    tiny("encode", *photos, "-n", 2, "-o", "all.safetensors")
    base = ("interpolate", "all.safetensors", "--frames", 8, "--pilot", 3)
    changes = {
        "plain": (),
        "slerp": ("--path", "slerp"),
        "catmull": ("--path", "catmull-rom"),
        "norm": ("--path", "lerp-norm"),
        "boomerang": ("--boomerang",),
        "loop": ("--loop",),
        "even": ("--pace", "none"),
        "ssim": ("--pace", "ssim"),
        "unet": ("--pace", "unet"),
        "segment": ("--pace-over", "segment"),
        "ease": ("--ease", "ease-in-out"),
        "curve": ("--ease", "0.2,0,0.5,1"),
        "adain": ("--correct", "adain"),
    }
    made = {}
    for name, flags in changes.items():
        warned = "warning: correct=" in tiny(*base, *flags, "-o", name).stderr
        assert warned is ("--correct" in flags)
        made[name] = tuple(data for file, data in files_in(tmp_path / name).items() if file.endswith(".png"))
        assert len(made[name]) == 8
    assert len(set(made.values())) == len(changes)
    assert made["boomerang"][1:4] == made["boomerang"][:4:-1]


def test_max_step_takes_as_many_frames_as_it_needs(tiny, photos, tmp_path):
    tiny("encode", *photos[:2], "-n", 2, "-o", "all.safetensors")
    counts = []
    for number, bound in enumerate((0.1, 0.05)):
        done = tiny("interpolate", "all.safetensors", "--max-step", bound, "--json", "-o", f"f{number}")
        steps = json.loads(done.stdout)
        assert steps["largest"] <= bound + 1e-3  # frames are rounded to 8 bits
        counts.append(steps["count"])
    assert counts[0] < counts[1]


@pytest.mark.parametrize("flag", ["--frames", "--pilot", "--settle"])
def test_max_step_refuses_what_it_would_ignore(run, model, photos, flag):
    refused = run("interpolate", *photos[:2], "--model", model, "--max-step", 0.1, flag, 5)
    assert refused.code == 2
    assert f"leave {flag} away" in refused.stderr


@pytest.mark.parametrize("eta", [0, 0.5])
def test_seeds_are_morphed_into_what_sample_draws(tiny, tmp_path, eta):
    tiny("sample", "--seeds", "3,5", "-n", 3, "--eta", eta, "-o", "drawn")
    tiny("interpolate", "--seeds", "3,5", "-n", 3, "--eta", eta, "--frames", 4, "--scale", 1, "-o", "frames")
    keys = frames_of(tmp_path / "frames", 4)["keys"]
    assert [key["name"] for key in keys] == ["seed0003", "seed0005"]
    for key in keys:
        shown = picture(f"frames/frame_{key['frame']:06d}.png").astype(int)
        assert abs(shown - picture(f"drawn/{key['name']}.png")).max() <= 1


@pytest.mark.parametrize(
    ("flags", "made"),
    [
        (("--format", "gif"), "morph.gif"),
        (("--format", "webp", "-o", "a"), "a.webp"),
        (("--format", "apng", "-o", "a.png"), "a.png"),
        (("--format", "png"), "morph"),
    ],
)
def test_the_format_names_the_file(tiny, photos, tmp_path, flags, made):
    tiny("interpolate", *photos[:2], "-n", 2, "--frames", 3, "--pilot", 2, *flags)
    assert (tmp_path / made).exists()
    assert {path.name for path in tmp_path.iterdir()} == {made, f"{Path(made).stem}.run.json"}


def test_captions_and_the_contact_sheet_say_what_each_picture_is(tiny, photos, tmp_path):
    flags = ("--caption", "--scale", 8, "--sheet", 4)
    tiny("interpolate", *photos, "-n", 2, "--frames", 10, "--pilot", 3, *flags, "-o", "a.webp")
    with Image.open(tmp_path / "a.webp") as image:
        assert image.size == (8 * SIDE, 8 * SIDE + 27)
    tiles = record("a.sheet.json")["tiles"]
    assert [tile["frame"] for tile in tiles] == [0, 3, 6, 9]
    assert tiles[0]["between"] == ["a", "b"]
    assert tiles[-1] | {"box": [], "rms": 0} == {
        "row": 0,
        "column": 3,
        "box": [],
        "frame": 9,
        "position": 2.0,
        "between": ["c", "c"],
        "alpha": 0.0,
        "rms": 0,
    }
    left, top, width, height = tiles[-1]["box"]
    tile = picture("a.sheet.png")[top : top + height, left : left + width]
    assert (tile[::4, ::4] == to_uint8(read_image(photos[2], (SIDE, SIDE)))).all()


def test_latents_files_make_the_morph_of_their_photos(tiny, photos, tmp_path):
    tiny("encode", *photos, "-n", 2, "-o", "each")
    flags = ("--endpoints", "decoded")
    tiny("interpolate", *photos, "-n", 2, "--frames", 4, "--micro-batch", 4, *flags, "-o", "photos.webp")
    latents = [f"each/{name}.safetensors" for name in "abc"]
    tiny("interpolate", *latents, "--frames", 4, "--micro-batch", 4, "-o", "latents.webp")
    with Image.open(tmp_path / "photos.webp") as one, Image.open(tmp_path / "latents.webp") as other:
        assert one.n_frames == other.n_frames == 4
        for frame in range(4):
            one.seek(frame)
            other.seek(frame)
            assert abs(np.asarray(one).astype(int) - np.asarray(other)).max() <= 1


def test_path_and_decode_steps_change_the_frames_between(tiny, photos, tmp_path):
    tiny("encode", *photos[:2], "-n", 4, "-o", "all.safetensors")
    for name, flags in {"plain": (), "lerp": ("--path", "lerp"), "fewer": ("--decode-steps", 2)}.items():
        tiny("interpolate", "all.safetensors", "--frames", 3, *flags, "-o", name)
    plain, lerp, fewer = (files_in(tmp_path / name) for name in ("plain", "lerp", "fewer"))
    middle = "frame_000001.png"
    assert plain[middle] != lerp[middle]
    assert plain["frame_000000.png"] == lerp["frame_000000.png"] != fewer["frame_000000.png"]


def test_a_folder_of_frames_holds_frames_only_and_can_be_replaced(tiny, run, photos, tmp_path):
    arguments = ("interpolate", *photos[:2], "-n", 2, "--frames", 3, "-o", "frames")
    tiny(*arguments)
    frames_of(tmp_path / "frames", 3)
    assert {path.name for path in tmp_path.iterdir()} == {"frames", "frames.run.json"}
    assert run(*arguments).code == 1
    tiny(*arguments, "--frames", 2, "--overwrite")
    frames_of(tmp_path / "frames", 2)


# sample


def test_sample_writes_a_picture_a_seed_and_a_sheet(tiny, tmp_path):
    tiny("sample", "--seeds", "3,5-6", "-n", 2, "-o", "out")
    assert set(files_in(tmp_path / "out")) == {
        *("seed0003.png", "seed0005.png", "seed0006.png", "sheet.png", "run.json")
    }
    assert picture("out/seed0003.png").shape == (SIDE, SIDE, 3)


def test_a_sheet_shows_the_first_pictures_of_many(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("ddim_edit.cli.pictures.SHEET", 3)
    outcome = tiny("sample", "--seeds", "0-4", "-n", 1, "--batch-size", 2, "-o", "out")
    assert "note: the sheet shows the first 3 of 5 pictures" in outcome.said
    assert len(list((tmp_path / "out").glob("seed*.png"))) == 5
    tiny("sample", "--seeds", "0-2", "-n", 1, "--batch-size", 2, "--no-metadata", "-o", "three")
    assert (picture("out/sheet.png") == picture("three/sheet.png")).all()


def test_sample_resumes_what_is_left_of_it(tiny, run, model, tmp_path):
    arguments = ("sample", "--seeds", "0-4", "-n", 2, "--eta", 1, "--batch-size", 2)
    tiny(*arguments, "-o", "out")
    whole = files_in(tmp_path / "out")
    for name in ("seed0001", "seed0004", "sheet"):
        (tmp_path / "out" / f"{name}.png").unlink()
    kept = (tmp_path / "out" / "seed0002.png").stat().st_mtime_ns
    assert "wrote out (3 done)" in tiny(*arguments, "-o", "out", "--resume").said  # in whole batches: 0, 1 and 4
    assert (tmp_path / "out" / "seed0002.png").stat().st_mtime_ns == kept
    found = files_in(tmp_path / "out")
    assert {name: found[name] for name in whole if name != "run.json"} == {
        name: data for name, data in whole.items() if name != "run.json"
    }
    assert "wrote" not in tiny(*arguments, "-o", "out", "--resume").said

    more = (
        "sample",
        "--model",
        model,
        "--seeds",
        "0-5",
        "-n",
        2,
        "--eta",
        1,
        "--batch-size",
        2,
        "-o",
        "out",
        "--resume",
    )
    assert "out/sheet.png exists; choose another --output or pass --overwrite" in run(*more).said
    assert "wrote out (2 done)" in run(*more, "--overwrite").said  # 4 and 5: the others say nothing of their company
    assert "out/seed0000.png exists" in run(*more, "--dtype", "fp64").said
    for changed, said in (
        (("-o", "out.npz"), "--resume needs a folder as --output"),
        (("--watch", 1), "--resume may leave out the pictures that --watch draws"),
        (("--no-metadata",), "--resume knows finished pictures by their metadata"),
    ):
        outcome = run(*more, *changed)
        assert (outcome.code, said in outcome.said) == (2, True), outcome


def test_a_sample_says_its_own_seed_and_not_all_others(tiny):
    tiny("sample", "--seeds", "0-999", "-n", 1, "-o", "out")
    said = read_metadata("out/seed0007.png")
    assert "seeds [7]," in said["parameters"]
    assert json.loads(said["ddim_edit"])["arguments"]["seeds"] == [7]
    assert json.loads(read_metadata("out/sheet.png")["ddim_edit"])["arguments"]["seeds"] == list(range(256))


def test_archives_of_samples_are_photos_again(tiny, run, model, tmp_path):
    tiny("sample", "--seeds", "0-2", "-n", 2, "-o", "out.npz")
    assert len(tiny("roundtrip", "out.npz", "-n", 2, "--json").stdout.splitlines()) == 3


def test_sample_writes_an_array_of_the_same_pictures(tiny, tmp_path):
    tiny("sample", "--seeds", "0-2", "-n", 2, "-o", "out")
    tiny("sample", "--seeds", "0-2", "-n", 2, "-o", "out.npz")
    with np.load(tmp_path / "out.npz") as archive:
        assert archive.files == ["arr_0"]
        array = archive["arr_0"]
    assert array.dtype == np.uint8
    assert (array == [picture(f"out/seed{seed:04d}.png") for seed in range(3)]).all()


def test_a_seed_draws_the_same_picture_in_any_batch(tiny, tmp_path):
    common = ("-n", 2, "--eta", 1, "--micro-batch", 4, "--no-metadata")
    tiny("sample", "--seeds", "0-5", *common, "--batch-size", 5, "-o", "many")
    tiny("sample", "--seeds", "4", *common, "-o", "one")
    assert (tmp_path / "many" / "seed0004.png").read_bytes() == (tmp_path / "one" / "seed0004.png").read_bytes()


def test_eta_and_sigma_hat_draw_different_pictures(tiny, tmp_path):
    drawn = {}
    for eta in ("0", "0.5", "1", "sigma-hat"):
        tiny("sample", "--seeds", 0, "-n", 4, "--eta", eta, "--no-metadata", "-o", eta)
        drawn[eta] = (tmp_path / eta / "seed0000.png").read_bytes()
    tiny("sample", "--seeds", 0, "-n", 4, "--no-metadata", "-o", "default")
    assert len(set(drawn.values())) == 4
    assert drawn["0"] == (tmp_path / "default" / "seed0000.png").read_bytes()


@pytest.mark.parametrize(
    ("flags", "timesteps"),
    [
        (("--timestep-respacing", "ddim4"), [0, 250, 500, 750]),
        (("--timestep-respacing", "2,1"), [0, 499, 500]),
        (("--timesteps", "0,400,200"), [0, 200, 400]),
        (("-n", 4, "--timestep-spacing", "trailing"), [249, 499, 749, 999]),
        (("-n", 3, "--spacing", "linspace"), [0, 500, 999]),
    ],
    ids=["constant stride", "sections", "given", "trailing", "linspace"],
)
def test_every_way_of_choosing_timesteps_is_recorded(tiny, flags, timesteps):
    tiny("sample", "--seeds", 0, *flags, "-o", "out")
    assert record("out/run.json")["timesteps"] == timesteps


@pytest.mark.parametrize(("output", "drawing"), [("out", "out/steps.png"), ("out.v2", "out.v2/steps.png")])
def test_watch_draws_the_steps_into_the_folder(tiny, output, drawing):
    tiny("sample", "--seeds", "0-1", "-n", 4, "--watch", 2, "-o", output)
    assert drawing in record(f"{output}/run.json")["outputs"]
    assert picture(drawing).shape[1] > 2 * SIDE


def test_watch_draws_the_steps_beside_an_array(tiny, tmp_path):
    tiny("sample", "--seeds", 0, "-n", 2, "--watch", 1, "-o", "out.npz")
    assert set(files_in(tmp_path)) == {"out.npz", "out.steps.png", "out.run.json"}


def test_a_label_by_name_and_by_number_draws_the_same(run, labelled, tmp_path):
    for name, flags in {"name": ("--label", "dog"), "number": ("--label", 1), "none": ()}.items():
        base = ("sample", "--model", labelled, "--seeds", 0, "-n", 2, "--no-metadata")
        assert run(*base, *flags, "-o", name).code == 0
    named, numbered, none = ((tmp_path / n / "seed0000.png").read_bytes() for n in ("name", "number", "none"))
    assert named == numbered != none


def test_clip_keeps_predicted_photos_in_range(tiny):
    tiny("sample", "--seeds", 0, "-n", 4, "--clip", 0.5, "-o", "out")
    assert picture("out/seed0000.png").min() >= 63
    assert picture("out/seed0000.png").max() <= 192


# info and doctor


def test_info_describes_a_model(tiny, run, model, labelled):
    facts = json.loads(tiny("info", "--json", "-n", 4).stdout)
    assert facts["model"] == "tiny"
    assert facts["photo size"] == [SIDE, SIDE]
    assert facts["labels"] is None
    assert facts["weights sha256"] == load_model(model).fingerprint
    assert facts["grid"] == {"steps": 4, "spacing": "leading", "timesteps": [0, 250, 500, 750]}
    assert json.loads(run("info", labelled, "--json").stdout)["labels"] == LABELS["names"]
    plain = run("info", model).stdout
    assert "photo size [16, 16]" in [re.sub(" +", " ", line) for line in plain.splitlines()]


def test_info_describes_latents(tiny, run, photos):
    tiny("encode", *photos[:2], "-n", 4, "-o", "all.safetensors", "--save-trajectory", 2)
    facts = json.loads(run("info", "all.safetensors", "--json").stdout)
    assert facts["photos"] == 2
    assert facts["shape"] == [2, 3, SIDE, SIDE]
    assert facts["level"] == "t = 750"
    assert facts["how"]["timesteps"] == [0, 250, 500, 750]
    assert facts["trajectory"] == [250, 750]
    assert [photo["name"] for photo in facts["records"]] == ["a", "b"]
    assert "level" in run("info", "all.safetensors").stdout


def test_doctor_prints_one_line_a_check(run, monkeypatch, model):
    monkeypatch.setitem(models.BUNDLED, "small", model)
    outcome = run("doctor", "--json")
    rows = [json.loads(line) for line in outcome.stdout.splitlines()]
    assert {"python", "torch", "torchvision", "device", "bundled model", "mp4"} <= {row["name"] for row in rows}
    assert all(list(row) == ["name", "ok", "detail", "optional"] for row in rows)
    assert outcome.code == int(not all(row["ok"] or row["optional"] for row in rows))


@pytest.mark.parametrize(
    ("found", "code"),
    [
        ([Check("a", True, "fine")], 0),
        ([Check("a", True, "fine"), Check("b", False, "absent", optional=True)], 0),
        ([Check("b", False, "broken"), Check("a", True, "fine")], 1),
    ],
    ids=["all well", "optional missing", "broken"],
)
def test_doctor_fails_only_where_something_needed_is_broken(run, monkeypatch, found, code):
    monkeypatch.setattr("ddim_edit.doctor.checks", lambda: iter(found))
    outcome = run("doctor")
    assert outcome.code == code
    assert outcome.stdout.splitlines() == [f"{'ok  ' if c.ok else 'FAIL'}  {c.name}: {c.detail}" for c in found]


def test_the_bundled_model_needs_no_option(run, photos):
    row = json.loads(run("roundtrip", photos[0], "-n", 2, "--inverse", "explicit", "--json").stdout)
    assert row["evaluations"] == {"encode": 2, "decode": 2}


# Spellings, environment, run.json


def test_both_spellings_of_options_and_choices_are_accepted(tiny, photos, tmp_path):
    tiny("encode", photos[0], "--num_inference_steps", 2, "--timestep_spacing", "quadratic_full", "-o", "one")
    tiny("encode", photos[0], "--num-inference-steps", 2, "--timestep-spacing", "quadratic-full", "-o", "two")
    one, two = files_in(tmp_path / "one"), files_in(tmp_path / "two")
    assert one["a.safetensors"] == two["a.safetensors"]
    assert Latents.load(tmp_path / "one" / "a.safetensors").how["spacing"] == "quadratic-full"


def test_the_environment_sets_options_and_flags_win(tiny, monkeypatch, photos, tmp_path):
    monkeypatch.setenv("DDIM_EDIT_ENCODE_NUM_INFERENCE_STEPS", "3")
    monkeypatch.setenv("DDIM_EDIT_ENCODE_OUTPUT", "chosen")
    monkeypatch.setenv("DDIM_EDIT_DECODE_NUM_INFERENCE_STEPS", "7")
    tiny("encode", photos[0])
    assert len(Latents.load(tmp_path / "chosen" / "a.safetensors").how["timesteps"]) == 3
    tiny("encode", photos[0], "-n", 2, "-o", "flag")
    assert len(Latents.load(tmp_path / "flag" / "a.safetensors").how["timesteps"]) == 2


@pytest.mark.parametrize("command", command_line.commands.values(), ids=lambda command: command.name)
def test_variables_are_named_after_the_long_names_of_options(command):
    for option in (param for param in command.params if isinstance(param, click.Option)):
        long = [name.removeprefix("--") for name in option.opts if name.startswith("--")]
        names = [f"DDIM_EDIT_{command.name}_{name}".upper().replace("-", "_") for name in long]
        assert option.envvar == names
        assert names


def test_variables_whose_options_have_parameters_of_other_names(tiny, monkeypatch, photos, tmp_path):
    for name, value in {"ENCODE_JSON": "1", "INTERPOLATE_PATH": "lerp", "INTERPOLATE_OUTDIR": "lerped"}.items():
        monkeypatch.setenv(f"DDIM_EDIT_{name}", value)
    monkeypatch.setenv("DDIM_EDIT_ENCODE_PROGRESS", "0")
    monkeypatch.setenv("DDIM_EDIT_INTERPOLATE_HOW", "nonsense")  # no option is called --how
    json.loads(tiny("encode", photos[0], "-n", 2).stdout)
    tiny("interpolate", *photos[:2], "-n", 2, "--frames", 2)
    assert record("lerped.run.json")["arguments"]["how"] == "lerp"


def test_run_json_says_everything_about_the_run(tiny, photos, model):
    tiny("encode", *photos[:2], "-n", 2, "-o", "out")
    found = record("out/run.json")
    assert set(found) == {
        *("command", "arguments", "model", "timesteps", "device", "threads", "versions"),
        *("started", "seconds", "outputs", "sources", "failures"),
    }
    assert found["command"] == "encode"
    assert found["arguments"]["photos"] == [str(photo) for photo in photos[:2]]
    assert found["arguments"]["num_inference_steps"] == 2
    assert found["model"] == {"name": "tiny", **load_model(model).space}
    assert found["timesteps"] == [0, 500]
    assert found["versions"]["torch"] == torch.__version__
    assert found["outputs"] == [str(Path("out") / f"{name}.safetensors") for name in "ab"]
    assert found["failures"] == []


CONFIGS = {
    "encode": ("encode", "{a}", "{b}", "--size", "16x20", "--until", 600),
    "encode timesteps": ("encode", "{a}", "--timesteps", "0,200,400.5", "--fit", "pad"),
    "encode one": ("encode", "{a}", "-o", "first.safetensors", "--save-trajectory", 1),
    "roundtrip": ("roundtrip", "{a}", "--spacing", "trailing"),
    "sample": ("sample", "--seeds", "2,4-5", "--eta", "sigma-hat", "--watch", 1, "--clip", 2),
    "sample eta": ("sample", "--seeds", "1", "--eta", 0.5, "--no-metadata"),
    "interpolate": ("interpolate", "{a}", "{b}", "--frames", 3, "--path", "lerp", "-o", "first.webp"),
    "interpolate latents": ("interpolate", "{latents}", "--frames", 3, "--decode-steps", 2, "-o", "first.webp"),
    "interpolate steps": ("interpolate", "{a}", "{b}", "--max-step", 0.3, "-o", "first.webp"),
    "decode": ("decode", "{latents}", "--eta", 1, "--seed", 3),
}


@pytest.mark.parametrize("arguments", CONFIGS.values(), ids=CONFIGS)
def test_config_repeats_a_run_to_the_byte(tiny, run, photos, tmp_path, arguments):
    tiny("encode", *photos, "-n", 2, "-o", "made.safetensors")
    names = {"a": photos[0], "b": photos[1], "latents": "made.safetensors"}
    filled = [str(argument).format(**names) for argument in arguments]
    steps = () if {"--timesteps", "--decode-steps"} & set(filled) else ("-n", 4)
    output = Path(filled[filled.index("-o") + 1] if "-o" in filled else "first")
    tiny(*filled, *steps, "-o", output)
    saved = output.with_name(f"{output.stem}.run.json") if output.suffix else output / "run.json"
    again = output.with_name(f"again{output.suffix}")
    assert run(filled[0], "--config", saved, "-o", again).code == 0
    if output.suffix:
        assert (tmp_path / again).read_bytes() == (tmp_path / output).read_bytes()
        return
    first, second = files_in(tmp_path / output), files_in(tmp_path / again)
    assert first.pop("run.json") != second.pop("run.json")
    assert first == second
    assert first


def test_config_repeats_a_run_whose_output_has_the_name_of_its_format(run, model, tmp_path):
    arguments = ("interpolate", "--seeds", "0-1", "-n", 2, "--frames", 3, "--format", "webp", "--model", model)
    assert run(*arguments).code == 0
    first = (tmp_path / "morph.webp").read_bytes()
    assert run("interpolate", "--config", "morph.run.json", "--overwrite").code == 0
    assert (tmp_path / "morph.webp").read_bytes() == first


@pytest.mark.parametrize(
    ("before", "flags", "timesteps"),
    [
        (["--timesteps", "0,40,80"], ["-n", 2], [0.0, 500.0]),
        (["--timestep-respacing", "ddim5"], ["--timesteps", "0,300"], [0.0, 300.0]),
        (["-n", 3, "--spacing", "quadratic"], ["--timestep-respacing", "ddim2"], [0.0, 500.0]),
        (["--timesteps", "0,40,80"], ["--spacing", "uniform"], [float(20 * step) for step in range(50)]),
    ],
)
def test_a_flag_displaces_what_it_excludes_in_the_config(tiny, run, photos, tmp_path, before, flags, timesteps):
    tiny("encode", photos[0], *before, "-o", "first")
    assert run("encode", "--config", "first/run.json", *flags, "-o", "second").code == 0
    assert record("second/run.json")["timesteps"] == timesteps
    assert run("encode", "--config", "second/run.json", "-o", "third").code == 0
    assert record("third/run.json")["timesteps"] == timesteps


def test_flags_that_exclude_each_other_are_still_refused(run, photos):
    assert run("encode", photos[0], "-n", 2, "--timesteps", "0,40").code == 2


def test_flags_win_over_the_config(tiny, run, photos, tmp_path):
    tiny("encode", photos[0], "-n", 2, "-o", "first")
    assert run("encode", photos[1], "--config", "first/run.json", "-n", 3, "-o", "second").code == 0
    assert set(files_in(tmp_path / "second")) == {"b.safetensors", "run.json"}
    assert len(Latents.load(tmp_path / "second" / "b.safetensors").how["timesteps"]) == 3


def test_a_later_run_json_gets_a_number(tiny, photos, tmp_path):
    tiny("encode", photos[0], "-n", 2, "-o", "out")
    before = files_in(tmp_path / "out")
    tiny("encode", photos[1], "-n", 2, "-o", "out")
    tiny("encode", photos[2], "-n", 2, "-o", "out")
    after = files_in(tmp_path / "out")
    assert set(after) - set(before) == {"b.safetensors", "c.safetensors", "run-2.json", "run-3.json"}
    assert {name: after[name] for name in before} == before


@pytest.mark.parametrize(
    ("command", "output"),
    [
        ("encode", "out"),
        ("encode", "out.safetensors"),
        ("roundtrip", "out"),
        ("interpolate", "out.webp"),
        ("sample", "out"),
        ("sample", "out.npz"),
    ],
)
def test_nothing_is_replaced_unless_overwrite_is_given(tiny, run, model, photos, tmp_path, command, output):
    given = ("--seeds", "0-1") if command == "sample" else photos[:2]
    flags = ("--frames", 3) if command == "interpolate" else ()
    base = (command, *given, *flags, "--model", model, "-o", output)
    assert run(*base, "-n", 2).code == 0
    before = files_in(tmp_path)
    refused = run(*base, "-n", 3)
    assert refused.code == 1
    assert "pass --overwrite" in refused.stderr
    assert files_in(tmp_path) == before
    assert run(*base, "-n", 3, "--overwrite").code == 0
    after = files_in(tmp_path)
    assert set(after) == set(before)
    assert all(after[name] != before[name] for name in before)


@pytest.mark.parametrize(
    "arguments", [("encode", "{a}", "{b}", "{c}"), ("sample", "--seeds", "0-2", "--eta", 1)], ids=lambda a: a[0]
)
def test_the_same_command_twice_writes_the_same_bytes(tiny, photos, tmp_path, arguments):
    filled = [str(a).format(**dict(zip("abc", photos, strict=True))) for a in arguments]
    for output in ("one", "two"):
        tiny(*filled, "-n", 3, "-o", output)
        (tmp_path / output / "run.json").unlink()
    assert files_in(tmp_path / "one") == files_in(tmp_path / "two") != {}


# PNG metadata


def test_pictures_carry_their_settings_and_no_paths(tiny, photos, model, tmp_path):
    tiny("encode", photos[0], "-n", 2, "-o", "one")
    tiny("decode", tmp_path / "one" / "a.safetensors", "-o", tmp_path / "back", "--eta", 1, "--seed", 0)
    tiny("sample", "--seeds", 0, "-n", 2, "-o", tmp_path / "drawn", "--cache-dir", tmp_path / "cache")
    for path in (tmp_path / "back" / "a.png", tmp_path / "drawn" / "seed0000.png", tmp_path / "drawn" / "sheet.png"):
        texts = read_metadata(path)
        assert set(texts) == {"parameters", "ddim_edit"}
        everything = " ".join(texts.values())
        assert not any(str(place) in everything for place in (tmp_path, model.parent, photos[0].parent, Path.home()))
        assert json.loads(texts["ddim_edit"])["model"]["weights"] == load_model(model).fingerprint
    assert "num_inference_steps 2" in read_metadata(tmp_path / "drawn" / "seed0000.png")["parameters"]
    assert "seed 0" in read_metadata(tmp_path / "back" / "a.png")["parameters"]


def test_the_order_of_options_leaves_no_trace(tiny, tmp_path):
    tiny("sample", "--seeds", 0, "-n", 2, "--eta", 1, "-o", "one")
    tiny("sample", "-o", "two", "--eta", 1, "-n", 2, "--seeds", 0)
    assert (tmp_path / "one" / "seed0000.png").read_bytes() == (tmp_path / "two" / "seed0000.png").read_bytes()


def test_no_metadata_leaves_pictures_bare(tiny, photos):
    tiny("encode", photos[0], "-n", 2, "-o", "one")
    tiny("decode", "one/a.safetensors", "--no-metadata", "-o", "back")
    tiny("sample", "--seeds", 0, "-n", 2, "--no-metadata", "-o", "drawn")
    assert [read_metadata(Path(p)) for p in ("back/a.png", "drawn/seed0000.png", "drawn/sheet.png")] == [{}, {}, {}]


# The terminal


@pytest.mark.parametrize(
    ("terminal", "flags", "shown"),
    [(True, (), True), (False, (), False), (True, ("--no-progress",), False)],
    ids=["terminal", "file", "switched off"],
)
def test_a_bar_is_drawn_on_a_terminal_only(tiny, monkeypatch, photos, terminal, flags, shown):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    outcome = tiny("roundtrip", photos[0], "-n", 2, "--json", *flags)
    assert ("roundtrip: " in outcome.stderr) is shown
    json.loads(outcome.stdout)


def test_results_go_to_stdout_and_messages_to_stderr(tiny, photos):
    outcome = tiny("encode", photos[0], "-n", 2, "-o", "out")
    assert outcome.stderr == "wrote out (1 done)\n"
    assert "wrote" not in outcome.stdout
    assert tiny("sample", "--seeds", 0, "-n", 2, "-o", "drawn").stdout == ""


def test_a_setting_that_is_not_applied_is_said_once_on_stderr(run, model, tmp_path):
    folder = save_tiny_model(tmp_path / "clipping")
    scheduler = folder / "scheduler" / "scheduler_config.json"
    scheduler.write_text(scheduler.read_text().replace('"clip_sample": false', '"clip_sample": true'))
    outcome = run("info", folder, "--json")
    assert outcome.stderr.startswith("note: the scheduler file asks for clip_sample")
    assert outcome.stderr.count("\n") == 1
    json.loads(outcome.stdout)


def test_debug_shows_where_an_error_comes_from(capsys):
    from ddim_edit.errors import ImageError

    with pytest.raises(ImageError):
        command_line_main(["--debug", "encode", "nothing-here.jpg"])


@pytest.mark.parametrize(
    ("error", "size"),
    [
        (MemoryError(), ""),
        (MemoryError("Unable to allocate 7.11 PiB for an array"), " (7.11 PiB more were needed)"),
        (
            torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has"),
            " (2.00 GiB more were needed)",
        ),
        (RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"), ""),
        (
            RuntimeError("not enough memory: you tried to allocate 400 bytes.\nmore lines"),
            " (400 bytes more were needed)",
        ),
        (None, " (4000000000000000 bytes more were needed)"),
    ],
    ids=["Python", "numpy", "CUDA", "MPS", "Windows", "this machine"],
)
def test_a_lack_of_memory_is_one_line_with_the_remedy(run, monkeypatch, error, size):
    def fail():
        if error:
            raise error
        torch.empty(10**15)

    monkeypatch.setattr("ddim_edit.doctor.checks", fail)
    outcome = run("doctor")
    assert outcome.code == 1
    assert outcome.stderr == f"error: out of memory{size}; lower --batch-size or --size, or choose --device cpu\n"


def test_other_runtime_errors_are_bugs_and_stay_visible(monkeypatch):
    def fail():
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr("ddim_edit.doctor.checks", fail)
    with pytest.raises(RuntimeError, match="mat1"):
        command_line_main(["doctor"])


@pytest.mark.parametrize("error", [KeyboardInterrupt(), click.Abort()], ids=["ctrl-c", "abort"])
def test_an_interrupted_command_ends_with_130(run, monkeypatch, error):
    def stop():
        raise error

    monkeypatch.setattr("ddim_edit.doctor.checks", stop)
    outcome = run("doctor")
    assert outcome.code == 130
    assert outcome.stderr.strip() == "interrupted; finished files are kept, nothing is half-written"


def test_ctrl_c_keeps_what_is_finished_and_leaves_no_temporary_files(model, tmp_path):
    np.savez(tmp_path / "many.npz", images=np.zeros((500, SIDE, SIDE, 3), np.uint8))
    arguments = ["encode", "many.npz", "-o", "out", "--model", str(model), "-n", "40", "--batch-size", "2"]
    # Where a shell started the tests in the background, children ignore SIGINT unless told otherwise.
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"from ddim_edit.cli import main; main({arguments})"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        deadline = time.monotonic() + 120
        while not list(tmp_path.glob("out/many*.safetensors")) and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert errors.strip().endswith("interrupted; finished files are kept, nothing is half-written")
    found = list((tmp_path / "out").iterdir())
    assert 0 < len(found) < 500
    for path in found:
        assert path.suffix == ".safetensors"
        assert not path.name.startswith(".")
        Latents.load(path)


def test_what_the_system_refuses_is_one_line(monkeypatch, run, photos):
    def refused(*_arguments):
        raise PermissionError(13, "Permission denied", "secret/a.png")

    monkeypatch.setattr("ddim_edit.images.find_photos", refused)
    outcome = run("encode", photos[0])
    assert outcome.code == 1
    assert outcome.stderr == "error: secret/a.png: Permission denied; check who may read and write there\n"
