import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from cli_helpers import files_in, run_cli, save_photo, save_tiny_model
from model_helpers import SIZE, mixture_model, photos

import ddim_edit as de
from ddim_edit.cli.film import _key_report  # pyright: ignore[reportPrivateUsage]
from ddim_edit.errors import OutputError
from ddim_edit.images import to_uint8
from ddim_edit.morphing import Morph, plan_morph
from ddim_edit.motion import Motion
from ddim_edit.rendering import Checkpoint

MOTION = Motion(endpoints="exact", pilot=3, loop="closed")


@pytest.fixture
def plan() -> Morph:
    latents = de.encode(mixture_model(), photos(3), grid=3, check=False)
    return plan_morph(mixture_model(), latents, 10, MOTION, photos=photos(3))


def read(folder: Checkpoint, plan: Morph) -> list[np.ndarray]:
    return [to_uint8(frame) for frame in folder.frames(plan)]


def test_the_frames_on_disk_are_those_of_the_morph(plan, tmp_path):
    folder = Checkpoint(tmp_path / "work", "request")
    folder.save(plan)
    folder.render(plan, mixture_model(), batch_size=4)
    want = [to_uint8(frame) for frame in plan.frames(mixture_model(), batch_size=4)]
    assert np.array_equal(read(folder, plan), want)


def test_a_plan_comes_back_bit_for_bit_and_only_to_the_same_request(plan, tmp_path):
    folder = Checkpoint(tmp_path / "work", "request")
    assert folder.load(MOTION, plan.grid) is None
    folder.save(plan)
    loaded = folder.load(MOTION, plan.grid)
    assert loaded is not None
    assert (loaded.cost, loaded.looked, loaded.latents.photos) == (plan.cost, plan.looked, plan.latents.photos)
    for ours, theirs in ((loaded.latents.x, plan.latents.x), (loaded.positions, plan.positions)):
        assert ours.equal(theirs)
    assert plan.residuals is not None
    assert loaded.residuals is not None
    assert loaded.residuals.equal(plan.residuals)
    assert replace(folder, request="another").load(MOTION, plan.grid) is None


def test_only_batches_with_a_missing_picture_are_decoded_again(plan, tmp_path):
    folder, model = Checkpoint(tmp_path / "work", "request"), mixture_model()
    folder.save(plan)
    folder.render(plan, model, batch_size=4)
    before = files_in(folder.folder)
    (folder.folder / "frame_000005.png").unlink()
    assert folder.missing(plan, 4) == [range(4, 8)]
    batches: list[int] = []
    folder.render(plan, model, batch_size=4, on_step=lambda step: batches.append(len(step.state.x)))
    assert batches == [4] * plan.grid.steps
    assert files_in(folder.folder) == before


def test_a_damaged_plan_counts_as_none_and_is_replaced(plan, tmp_path):
    folder = Checkpoint(tmp_path / "work", "request")
    folder.save(plan)
    (folder.folder / "frame_000000.png").write_bytes(b"of another clip")
    (folder.folder / "plan.safetensors").write_bytes(b"torn")
    assert folder.load(MOTION, plan.grid) is None
    folder.save(plan)
    assert set(files_in(folder.folder)) == {"plan.safetensors", "keys.safetensors"}


@pytest.mark.parametrize("name", ["thesis.txt", "frame_000000.png.bak", "plan.safetensors2"])
def test_a_folder_of_somebody_else_is_left_alone(plan, tmp_path, name):
    folder = Checkpoint(tmp_path / "work", "request")
    folder.folder.mkdir()
    (folder.folder / name).write_text("years")
    with pytest.raises(OutputError, match=rf"holds {re.escape(name)}, which is no part of a clip; move it away"):
        folder.save(plan)
    assert (folder.folder / name).read_text() == "years"


def test_nothing_is_left_of_a_finished_clip(plan, tmp_path):
    folder = Checkpoint.beside(tmp_path / "a.mp4", "request")
    folder.save(plan)
    folder.remove()
    folder.remove()
    assert list(tmp_path.iterdir()) == []


# Dies without a warning, as from SIGKILL, in the middle of writing the picture of this number.
DYING = """
import os, sys
import ddim_edit.rendering as rendering
from ddim_edit.cli import main
write, left = rendering.write_image, int(sys.argv.pop(1))
def dying(picture, path):
    global left
    left -= 1
    if left < 0:
        path.with_name(f".{path.stem}.0.tmp.png").write_bytes(b"half a picture")
        os.kill(os.getpid(), 9)
    write(picture, path)
rendering.write_image = dying
main(sys.argv[1:])
"""


def test_a_killed_render_ends_with_the_files_of_an_undisturbed_one(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = save_tiny_model(tmp_path / "tiny")
    names = [save_photo(tmp_path / f"{letter}.png", seed).name for seed, letter in enumerate("abc")]
    film = ("--loop", "--frames", 21, "--pilot", 3, "--batch-size", 4)
    arguments = ["interpolate", *names, "--model", model, "-n", 2, *film]
    line = [sys.executable, "-c", DYING, "6", *map(str, arguments), "-o", "out"]
    assert subprocess.run(line, cwd=tmp_path, check=False, stderr=subprocess.DEVNULL).returncode == -9
    assert len(list((tmp_path / ".out.unfinished").glob("frame_*.png"))) == 6
    resumed = run_cli(*arguments, "-o", "out", capsys=capsys)
    assert resumed.code == 0
    assert "going on with the plan of an interrupted run\n4 of 21 pictures are there already" in resumed.stderr
    assert not list(tmp_path.glob(".*"))
    (tmp_path / "out.run.json").unlink()
    first = files_in(tmp_path)
    assert run_cli(*arguments, "-o", "out", "--overwrite", capsys=capsys).code == 0
    (tmp_path / "out.run.json").unlink()
    assert files_in(tmp_path) == first
    assert len(first) - len(names) - len(files_in(model)) == 21 + 1


def test_a_video_of_a_killed_render_is_the_same_too(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = save_tiny_model(tmp_path / "tiny")
    names = [save_photo(tmp_path / f"{letter}.png", seed).name for seed, letter in enumerate("ab")]
    arguments = ["interpolate", *names, "--model", model, "-n", 2, "--frames", 9, "--pilot", 3, "--batch-size", 2]
    line = [sys.executable, "-c", DYING, "5", *map(str, arguments), "-o", "a.mp4"]
    assert subprocess.run(line, cwd=tmp_path, check=False, stderr=subprocess.DEVNULL).returncode == -9
    assert not (tmp_path / "a.mp4").exists()
    assert "pictures are there already" in run_cli(*arguments, "-o", "a.mp4", capsys=capsys).stderr
    resumed = (tmp_path / "a.mp4").read_bytes()
    assert run_cli(*arguments, "-o", "a.mp4", "--overwrite", capsys=capsys).code == 0
    assert (tmp_path / "a.mp4").read_bytes() == resumed


def test_other_settings_start_anew_and_other_wrappings_do_not(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = save_tiny_model(tmp_path / "tiny")
    names = [save_photo(tmp_path / f"{letter}.png", seed).name for seed, letter in enumerate("ab")]
    base = ["interpolate", *names, "--model", model, "-n", 2, "--frames", 6, "--pilot", 2, "-o", "a.webp"]

    def interrupted(*_arguments, **_settings):
        raise KeyboardInterrupt

    for change, resumed in ((("--pace", "none"), False), (("--fps", 10, "--caption"), True)):
        with monkeypatch.context() as patched:
            patched.setattr("ddim_edit.rendering.write_image", interrupted)
            stopped = run_cli(*base, "--overwrite", capsys=capsys)
        assert stopped.code == 130
        assert "start it again in the same way to go on from here" in stopped.stderr
        done = run_cli(*base, *change, "--overwrite", capsys=capsys)
        assert done.code == 0
        assert ("going on with the plan" in done.stderr) is resumed
    with monkeypatch.context() as patched:
        patched.setattr("ddim_edit.rendering.write_image", interrupted)
        run_cli(*base, "--overwrite", capsys=capsys)
    save_photo(tmp_path / "a.png", seed=9)
    assert "going on with the plan" not in run_cli(*base, "--overwrite", capsys=capsys).stderr


def test_frames_of_any_size_keep_their_bits(tmp_path):
    model = mixture_model()
    latents = de.seed_latents(model, [0, 1], grid=3, solver=de.Ddim(eta=1.0))
    plan = plan_morph(model, latents, 5, Motion(pilot=2))
    folder = Checkpoint(tmp_path / "work", "request")
    folder.save(plan)
    loaded = folder.load(Motion(pilot=2), plan.grid)
    assert loaded is not None
    frames = [torch.stack(list(each.frames(model))) for each in (plan, loaded)]
    assert frames[0].equal(frames[1])


def test_errors_of_keys_are_on_the_scale_0_to_1(plan):
    class Half:
        """Pictures that miss their photos by a quarter of the range."""

        def picture(self, row: int) -> torch.Tensor:
            return photo - 0.5

    photo = torch.full((3, SIZE, SIZE), 0.25)
    found = _key_report(replace(plan, photos=photo.expand(len(plan.latents), -1, -1, -1)), Half())
    assert [key["max_error"] for key in found] == [0.25] * len(plan.latents)
