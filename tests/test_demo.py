import sys

import numpy as np
import pytest
from cli_helpers import files_in, run_cli, save_tiny_model
from PIL import Image

from ddim_edit import demo, models


@pytest.fixture
def quick(monkeypatch, tmp_path):
    """The demo with a tiny model and few steps."""
    monkeypatch.setitem(models.BUNDLED, "small", save_tiny_model(tmp_path / "tiny"))
    for name, value in {
        "STEPS": 3,
        "CURVE": (2,),
        "EXACT_CURVE": (2,),
        "FRAMES": 5,
        "FRAME_STEPS": 3,
        "COLUMNS": (1, 2),
    }.items():
        monkeypatch.setattr(demo, name, value)


def test_the_demo_makes_five_pictures_and_a_video(quick, tmp_path):
    pytest.importorskip("av")
    folder = tmp_path / "out"
    told = dict(demo.run_demo(folder))
    assert [path.name for path in told] == list(demo.PICTURES)
    assert all(len(meaning) > 20 for meaning in told.values())
    assert set(files_in(folder)) == {*demo.PICTURES, "3_morph.mp4"}
    for path in told:
        pixels = np.asarray(Image.open(path).convert("RGB"))
        assert pixels.std() > 5  # something is drawn


def test_the_video_of_the_demo_goes_through_the_photos_and_back(quick, tmp_path):
    av = pytest.importorskip("av")
    list(demo.run_demo(tmp_path / "out"))
    with av.open(str(tmp_path / "out" / "3_morph.mp4")) as container:
        assert len(list(container.decode(video=0))) == 2 * demo.FRAMES - 2


def test_without_pyav_the_demo_writes_a_webp(quick, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "av", None)
    list(demo.run_demo(tmp_path / "out"))
    assert set(files_in(tmp_path / "out")) == {*demo.PICTURES, "3_morph.webp"}


def test_the_command_says_what_each_picture_shows_and_replaces_nothing(quick, tmp_path, capsys):
    folder = tmp_path / "out"
    outcome = run_cli("demo", "-o", folder, capsys=capsys)
    assert outcome.code == 0
    assert [line.split(": ")[0] for line in outcome.stdout.splitlines()] == [str(folder / n) for n in demo.PICTURES]
    before = files_in(folder)
    refused = run_cli("demo", "-o", folder, capsys=capsys)
    assert refused.code == 1
    assert "exists; choose another --output or pass --overwrite" in refused.stderr
    assert files_in(folder) == before
    assert run_cli("demo", "-o", folder, "--overwrite", capsys=capsys).code == 0
    assert files_in(folder).keys() == before.keys()


@pytest.mark.parametrize("pyav", [True, False], ids=["mp4", "webp"])
def test_every_file_of_the_demo_is_announced_and_guarded(quick, monkeypatch, tmp_path, capsys, pyav):
    if pyav:
        pytest.importorskip("av")
    else:
        monkeypatch.setitem(sys.modules, "av", None)
    folder = tmp_path / "out"
    list(demo.run_demo(folder))
    assert sorted(demo.outputs(folder)) == sorted(folder.iterdir())
    for kept in folder.iterdir():
        place = tmp_path / kept.stem / kept.name
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(b"mine")
        refused = run_cli("demo", "-o", place.parent, capsys=capsys)
        assert refused.code == 1
        assert f"{kept.name} exists" in refused.stderr
        assert files_in(place.parent) == {kept.name: b"mine"}
        place.unlink()
