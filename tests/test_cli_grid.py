"""`ddim-edit grid`: corners are what was given, edges are the paths between them, and every tile is accounted for."""

import json
from pathlib import Path

import numpy as np
import pytest
from cli_helpers import SIDE, Run, refusal, runner
from PIL import Image
from pytest import CaptureFixture, MonkeyPatch  # noqa: PT013

from ddim_edit.images import read_image, read_metadata, to_uint8

ROWS, COLUMNS = 3, 4
PHOTOS = [f"in/{name}.png" for name in "abcd"]
BITS = ("--micro-batch", 4)  # whatever the batch, the same bits
EXPLICIT = ("--inverse", "explicit", "-n", 3)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: MonkeyPatch, capsys: CaptureFixture[str]) -> Run:
    return runner(tmp_path, PHOTOS, monkeypatch, capsys)


def picture(path: str) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def tiles(name: str, scale: int = 1) -> dict[tuple[int, int], np.ndarray]:
    """The tiles of a sheet, cut out by its JSON."""
    whole, found = picture(f"{name}.png"), {}
    for tile in json.loads(Path(f"{name}.json").read_text())["tiles"]:
        left, top, width, height = tile["box"]
        assert (width, height) == (scale * SIDE, scale * SIDE)
        found[tile["row"], tile["column"]] = whole[top : top + height, left : left + width][::scale, ::scale]
    return found


@pytest.mark.parametrize("mix", ["slerp", "lol", "karcher"])
def test_corners_are_the_decoded_latents(run: Run, mix: str):
    run("encode", *PHOTOS, *EXPLICIT, *BITS, "-o", "all.safetensors")
    run("decode", "all.safetensors", *BITS, "-o", "back")
    run("grid", "all.safetensors", *BITS, "--rows", ROWS, "--cols", COLUMNS, "--mix", mix, "--scale", 2)
    found = tiles("grid", 2)
    assert list(found) == [(i, j) for i in range(ROWS) for j in range(COLUMNS)]
    for name, place in zip("abcd", ((0, 0), (0, -1), (-1, 0), (-1, -1)), strict=True):
        assert (found[place[0] % ROWS, place[1] % COLUMNS] == picture(f"back/{name}.png")).all()


@pytest.mark.parametrize(
    "keys",
    [("--seeds", "{}", "-n", 3), ("--seeds", "{}", "-n", 3, "--eta", 0.5), ("ddim",), ("leapfrog",)],
    ids=["seeds", "step noises", "photos", "pairs"],
)
def test_edges_are_the_paths_between_their_corners(run: Run, keys: tuple[object, ...]):
    """Of x_T, of the noise of every step, and of the other half of pairs."""
    corners = [0, 1, 2, 3]
    if keys[0] != "--seeds":
        run("encode", *PHOTOS, *EXPLICIT, "--solver", keys[0], *BITS, "-o", "each")

    def given(*numbers: int) -> list[object]:
        if keys[0] != "--seeds":
            return [f"each/{'abcd'[number]}.safetensors" for number in numbers]
        return [str(key).format(",".join(map(str, numbers))) for key in keys]

    run("grid", *given(*corners), *BITS, "--rows", ROWS, "--columns", COLUMNS, "--scale", 1)
    found = tiles("grid")
    for a, b, edge in (
        (0, 1, [(0, j) for j in range(COLUMNS)]),
        (2, 3, [(ROWS - 1, j) for j in range(COLUMNS)]),
        (0, 2, [(i, 0) for i in range(ROWS)]),
        (1, 3, [(i, COLUMNS - 1) for i in range(ROWS)]),
    ):
        flags = ("--pace", "none", "--path", "slerp", "--scale", 1, "--frames", len(edge), "-o", f"edge{a}{b}")
        run("interpolate", *given(a, b), *BITS, *flags)
        for number, place in enumerate(edge):
            frame = picture(f"edge{a}{b}/frame_{number:06d}.png")
            assert abs(found[place] - frame).max() <= (0 if number in (0, len(edge) - 1) else 1)
            assert place in ((0, 0), (0, COLUMNS - 1)) or abs(found[place] - found[0, 0]).max() > 5


def test_photos_are_encoded_and_the_json_says_what_each_tile_is(run: Run):
    outcome = run("grid", *PHOTOS, *EXPLICIT, "--rows", 2, "--columns", 3, "-o", "out/sheet.png")
    facts = json.loads(Path("out/sheet.json").read_text())
    assert [(tile["down"], tile["across"], tile["corner"]) for tile in facts["tiles"]] == [
        *((0, 0, "a"), (0, 0.5, None), (0, 1, "b")),
        *((1, 0, "c"), (1, 0.5, None), (1, 1, "d")),
    ]
    assert [(corner["name"], corner["place"]) for corner in facts["corners"]] == [
        *(("a", "top left"), ("b", "top right"), ("c", "bottom left"), ("d", "bottom right")),
    ]
    shown = tiles("out/sheet", 8)[0, 0]
    photo = to_uint8(read_image(PHOTOS[0], (SIDE, SIDE))).astype(int)
    assert facts["corners"][0]["max_error"] * 255 >= abs(shown - photo).max() - 1  # clamping takes some of it away
    assert facts["arguments"]["rows"] == 2
    assert read_metadata("out/sheet.png").keys() == {"parameters", "ddim_edit"}
    assert json.loads(Path("out/sheet.run.json").read_text())["outputs"] == ["out/sheet.png", "out/sheet.json"]
    assert "warning: a: the photo comes back with" in outcome.stderr


def test_decode_steps_make_other_tiles_of_the_same_latents(run: Run):
    run("encode", *PHOTOS, "--inverse", "explicit", "-n", 4, "-o", "all.safetensors")
    run("grid", "all.safetensors", "-o", "as_encoded.png", "--scale", 1)
    run("grid", "all.safetensors", "--decode-steps", 2, "-o", "fewer.png", "--scale", 1)
    assert (tiles("as_encoded")[2, 2] != tiles("fewer")[2, 2]).any()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (PHOTOS[:3], 2, "four corners, and 3 are given; give top left, top right, bottom left, bottom right"),
        (["--seeds", "0-4"], 2, "four corners, and 5 are given"),
        ([*PHOTOS, "--seeds", "0-3"], 2, "or --seeds instead of them"),
        ([*PHOTOS, "-o", "grid.jpg"], 2, "would be no PNG; name it grid.png"),
        ([*PHOTOS, "-o", "in/a.png"], 1, "exists; choose another --output"),
        ([*PHOTOS, "--rows", "1"], 2, "1 is not in the range"),
        ([*PHOTOS, "--mix", "lerp"], 2, "'lerp' is not one of"),
    ],
)
def test_what_is_no_grid_is_refused_before_a_model_is_loaded(
    tmp_path: Path,
    monkeypatch: MonkeyPatch,
    capsys: CaptureFixture[str],
    arguments: list[str],
    code: int,
    message: str,
):
    outcome = refusal(tmp_path, PHOTOS, ["grid", *arguments], monkeypatch, capsys)
    assert outcome.code == code
    assert message in outcome.said
