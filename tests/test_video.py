import errno
import math
import os
import sys
import weakref
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

import ddim_edit.video
from ddim_edit.errors import ConfigError, ImageError, MissingExtraError, NumericsError, OutputError
from ddim_edit.images import to_tensor, to_uint8
from ddim_edit.video import check_video_path, write_video

LOSSLESS = ["a.webp", "a.png", "a.apng", "a"]
ANIMATIONS = ["a.gif", "a.webp", "a.apng"]
ALL = [*ANIMATIONS, "a.mp4", "a"]


def smooth(number, height=32, width=48):
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / 9 + number / 5), np.cos(y / 11 - number / 7), np.sin((x + y) / 13)]
    return torch.tensor(0.9 * np.stack(waves), dtype=torch.float32)


def smooth_frames(count, height=32, width=48):
    return [smooth(number, height, width) for number in range(count)]


def read_mp4(path):
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def read_back(path):
    if path.is_dir():
        return [np.asarray(Image.open(file).convert("RGB")) for file in sorted(path.iterdir())]
    if path.suffix == ".mp4":
        return read_mp4(path)
    with Image.open(path) as image:
        return [np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(image)]


def durations(path):
    with Image.open(path) as image:
        found = []
        for frame in ImageSequence.Iterator(image):
            frame.load()
            found.append(frame.info["duration"])
        return found


def psnr(one, other):
    return 10 * math.log10(255**2 / ((one.astype(float) - other) ** 2).mean())


# What is written comes back


@pytest.mark.parametrize("name", LOSSLESS)
def test_lossless_formats_bring_every_pixel_back(tmp_path, name):
    frames = [torch.rand(3, 9, 14, generator=torch.Generator().manual_seed(seed)) * 2 - 1 for seed in range(5)]
    assert write_video(frames, tmp_path / name) == 5
    np.testing.assert_array_equal(read_back(tmp_path / name), to_uint8(torch.stack(frames)))


def test_a_gif_of_few_colours_brings_every_pixel_back(tmp_path):
    rng = np.random.default_rng(0)
    palette = rng.integers(0, 256, (5, 200, 3), dtype=np.uint8)
    frames = [colours[rng.integers(0, 200, (17, 23))] for colours in palette]
    write_video(map(to_tensor, frames), tmp_path / "a.gif")
    np.testing.assert_array_equal(read_back(tmp_path / "a.gif"), frames)


@pytest.mark.parametrize("colours", [1, 2, 3, 100])
def test_a_gif_may_have_any_number_of_colours(tmp_path, colours):
    frame = (np.arange(19 * 21) % colours * 2).astype(np.uint8).repeat(3).reshape(19, 21, 3)
    write_video([to_tensor(frame)] * 2, tmp_path / "a.gif")
    np.testing.assert_array_equal(read_back(tmp_path / "a.gif"), [frame, frame])


def test_a_gif_of_many_colours_looks_right(tmp_path):
    frames = smooth_frames(4)
    write_video(frames, tmp_path / "a.gif")
    for got, frame in zip(read_back(tmp_path / "a.gif"), frames, strict=True):
        assert psnr(got, to_uint8(frame)) > 28


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("count", [1, 7])
def test_equal_neighbours_stay_separate_frames(tmp_path, name, count):
    frame = smooth(0)
    assert write_video([frame] * count, tmp_path / name) == count
    assert len(read_back(tmp_path / name)) == count


@pytest.mark.parametrize("name", ALL)
def test_frames_may_come_from_a_generator(tmp_path, name):
    assert write_video((smooth(number) for number in range(6)), tmp_path / name) == 6
    assert len(read_back(tmp_path / name)) == 6


@pytest.mark.parametrize("name", [*LOSSLESS, "a.gif"])
def test_scale_repeats_pixels(tmp_path, name):
    frame = np.random.default_rng(0).integers(0, 256, (8, 9, 3), dtype=np.uint8)
    write_video([to_tensor(frame)] * 2, tmp_path / name, scale=3)
    assert (read_back(tmp_path / name) == frame.repeat(3, axis=0).repeat(3, axis=1)).all()


@pytest.mark.parametrize("name", ALL)
def test_the_same_frames_give_the_same_bytes(tmp_path, name):
    for folder in ("one", "two"):
        write_video(smooth_frames(5), tmp_path / folder / name)
    one, two = (sorted((tmp_path / folder).rglob("*.*")) for folder in ("one", "two"))
    assert [file.read_bytes() for file in one] == [file.read_bytes() for file in two]


def test_a_folder_numbers_its_frames(tmp_path):
    write_video(smooth_frames(3), tmp_path / "new" / "frames")
    files = sorted((tmp_path / "new" / "frames").iterdir())
    assert [file.name for file in files] == ["frame_000000.png", "frame_000001.png", "frame_000002.png"]


def test_the_suffix_may_be_in_capitals(tmp_path):
    write_video(smooth_frames(2), tmp_path / "a.GIF")
    assert len(read_back(tmp_path / "a.GIF")) == 2


# Time


@pytest.mark.parametrize("fps", [7, 24, 30000 / 1001, 30, 50, 0.1])
@pytest.mark.parametrize(("name", "unit"), [("a.gif", 10), ("a.webp", 1), ("a.apng", 0.001)])
def test_durations_add_up(tmp_path, name, unit, fps):
    write_video([smooth(0, 8, 8)] * 13, tmp_path / name, fps=fps)
    found = durations(tmp_path / name)
    assert len(found) == 13
    assert np.abs(np.cumsum(found) - 1000 / fps * np.arange(1, 14)).max() <= unit / 2 + 1e-3
    assert np.ptp(found) <= unit


@pytest.mark.parametrize("fps", [240000 / 1001, 0.1001, 240])
def test_odd_rates_fit_the_numbers_of_an_apng(tmp_path, fps):
    write_video([smooth(0, 8, 8)] * 2, tmp_path / "a.apng", fps=fps)
    assert sum(durations(tmp_path / "a.apng")) == pytest.approx(2000 / fps, rel=1e-5)


def test_a_gif_at_30_frames_a_second(tmp_path):
    write_video([smooth(0, 8, 8)] * 6, tmp_path / "a.gif", fps=30)
    assert durations(tmp_path / "a.gif") == [30, 40, 30, 30, 40, 30]


def test_a_gif_begins_and_ends_as_it_should(tmp_path):
    write_video(smooth_frames(2), tmp_path / "a.gif")
    content = (tmp_path / "a.gif").read_bytes()
    assert content[:6] == b"GIF89a"
    assert content[-2:] == b"\0;"


@pytest.mark.parametrize("name", ANIMATIONS)
def test_animations_repeat_for_ever(tmp_path, name):
    write_video(smooth_frames(2), tmp_path / name)
    with Image.open(tmp_path / name) as image:
        assert image.info["loop"] == 0


# mp4


def test_an_mp4_has_every_frame_and_plays_everywhere(tmp_path):
    path = tmp_path / "a.mp4"
    assert write_video(smooth_frames(90), path) == 90
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        codec = stream.codec_context
        assert (stream.frames, stream.average_rate) == (90, 30)
        assert stream.duration * stream.time_base == 3
        assert (codec.name, codec.pix_fmt, codec.width, codec.height) == ("h264", "yuv420p", 48, 32)
        colours = (codec.color_primaries, codec.color_trc, codec.colorspace, codec.color_range)
        assert colours == (1, 1, 1, 1)  # BT.709 three times, limited range
    content = path.read_bytes()
    assert 0 < content.index(b"moov") < content.index(b"mdat")
    assert len(read_mp4(path)) == 90


@pytest.mark.parametrize("fps", [24, 12.5, 30000 / 1001])
def test_an_mp4_has_the_exact_rate(tmp_path, fps):
    write_video(smooth_frames(3), tmp_path / "a.mp4", fps=fps)
    with av.open(str(tmp_path / "a.mp4")) as container:
        assert container.streams.video[0].average_rate == Fraction(fps).limit_denominator(1001)


def test_an_mp4_looks_right(tmp_path):
    frames = smooth_frames(10)
    write_video(frames, tmp_path / "a.mp4")
    for got, frame in zip(read_mp4(tmp_path / "a.mp4"), frames, strict=True):
        assert psnr(got, to_uint8(frame)) > 32


def test_crf_trades_quality_for_size(tmp_path):
    sizes = {}
    for crf in (4, 30):
        write_video(smooth_frames(10), tmp_path / "a.mp4", crf=crf)
        sizes[crf] = (tmp_path / "a.mp4").stat().st_size
    assert sizes[4] > 1.5 * sizes[30]


def test_an_mp4_keeps_colours(tmp_path):
    patches = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0), (128, 128, 128)]
    patches += [(200, 120, 90), (60, 60, 200), (160, 90, 20), (40, 160, 60), (150, 30, 120)]
    frame = np.array(patches, np.uint8)[None].repeat(16, axis=0).repeat(16, axis=1)
    write_video([to_tensor(frame)] * 3, tmp_path / "a.mp4")
    middle = read_mp4(tmp_path / "a.mp4")[0][8, 8::16]
    assert np.abs(middle.astype(int) - patches).max() <= 4


def test_an_mp4_holds_the_planes_of_bt709(tmp_path):
    frame = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8).repeat(3, axis=0).repeat(3, axis=1)
    write_video([to_tensor(frame)], tmp_path / "a.mp4", crf=1)
    with av.open(str(tmp_path / "a.mp4")) as container:
        (got,) = [each.to_ndarray(format="yuv420p") for each in container.decode(video=0)]
    red, green, blue = np.moveaxis(frame / 255, -1, 0)
    luma = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    for place, (plane, colour) in enumerate([(got[48:60], blue), (got[60:], red)]):
        chroma = (colour - luma) / (1.8556, 1.5748)[place]
        corners = [chroma[row::2, column::2] for row in (0, 1) for column in (0, 1)]
        error = plane.reshape(24, 24) - (128 + 224 * sum(corners) / 4)
        assert np.abs(error).max() < 3
        assert abs(error.mean()) < 0.2
    error = got[:48] - (16 + 219 * luma)
    assert np.abs(error).max() < 3
    assert abs(error.mean()) < 0.2, "not rounded to the nearest"


@pytest.mark.parametrize(("height", "width"), [(31, 48), (32, 47), (9, 9)])
def test_odd_sides_of_an_mp4_repeat_the_edge(tmp_path, height, width):
    frames = smooth_frames(3, height, width)
    write_video(frames, tmp_path / "a.mp4")
    got = read_mp4(tmp_path / "a.mp4")[0]
    even = height + height % 2, width + width % 2
    assert got.shape[:2] == even
    expected = np.pad(to_uint8(frames[0]), ((0, even[0] - height), (0, even[1] - width), (0, 0)), mode="edge")
    assert psnr(got, expected) > 30


def test_a_colon_in_the_name_is_no_address(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_video(smooth_frames(2), Path("a:b %d.mp4"))
    assert len(read_mp4(tmp_path / "a:b %d.mp4")) == 2


# Memory


@pytest.mark.parametrize("name", ALL)
def test_only_the_current_frame_is_held(tmp_path, name):
    alive, most = weakref.WeakSet(), 0

    def frames():
        nonlocal most
        for number in range(12):
            frame = smooth(number)
            alive.add(frame)
            yield frame
            del frame
            most = max(most, len(alive))

    write_video(frames(), tmp_path / name)
    assert 1 <= most <= 2


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="skipped: memory is read from /proc")
@pytest.mark.parametrize("name", ALL)
def test_memory_does_not_grow_with_the_number_of_frames(tmp_path, name):
    memory = []
    ramp = torch.linspace(-1, 1, 400).expand(3, 200, 400)

    def frames():
        for number in range(160 if name == "a.mp4" else 60):
            yield ramp[..., number : number + 200]
            memory.append(int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE"))

    write_video(frames(), tmp_path / name)
    half = len(memory) // 2
    held = (len(memory) - half) * 200 * 200 * 3
    assert memory[-1] - memory[half] < held / 3


# Nothing is left behind


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("good", [0, 3])
def test_an_interrupted_video_leaves_nothing(tmp_path, name, error, good):
    def frames():
        yield from smooth_frames(good)
        raise error

    with pytest.raises(error):
        write_video(frames(), tmp_path / name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ALL)
def test_an_interrupted_video_leaves_the_old_one(tmp_path, name):
    path = tmp_path / name
    write_video(smooth_frames(2), path)
    with pytest.raises(NumericsError):
        write_video([smooth(0), torch.full((3, 32, 48), torch.nan)], path)
    assert len(read_back(path)) == 2
    assert list(tmp_path.iterdir()) == [path]
    write_video(smooth_frames(4), path)
    assert len(read_back(path)) == 4
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ALL)
def test_no_frames(tmp_path, name):
    with pytest.raises(ImageError, match="no frames"):
        write_video([], tmp_path / name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ALL)
def test_frames_of_different_sizes_name_the_frame(tmp_path, name):
    with pytest.raises(ImageError, match=r"frame 2 is \(3, 32, 50\) but frame 0 is \(3, 32, 48\)"):
        write_video([smooth(0), smooth(1), smooth(2, 32, 50)], tmp_path / name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("frame", "scale"), [(torch.zeros(1, 3, 8, 8), 1), (torch.zeros(3, 8, 40), 500)])
def test_frames_that_fit_no_format(tmp_path, frame, scale):
    with pytest.raises(ImageError, match="sides up to 16383"):
        write_video([frame], tmp_path / "a.webp", scale=scale)


def test_a_folder_of_a_killed_run_does_not_leak_into_the_next(tmp_path):
    left = tmp_path / f".a.{os.getpid()}.tmp"
    left.mkdir()
    (left / "frame_000007.png").touch()
    write_video(smooth_frames(2), tmp_path / "a")
    assert len(read_back(tmp_path / "a")) == 2


def test_a_folder_that_cannot_be_replaced_is_kept(tmp_path, monkeypatch):
    """Whichever of the two renamings fails."""
    write_video(smooth_frames(2), tmp_path / "clip")
    before = {file.name: file.read_bytes() for file in (tmp_path / "clip").iterdir()}
    rename = Path.replace
    for failing in (1, 2):
        folders = []

        def replace(self, target, failing=failing, folders=folders):
            folders += [self] if self.is_dir() else []
            if self.is_dir() and len(folders) == failing:
                raise OSError(errno.EIO, "no", str(self))
            return rename(self, target)

        monkeypatch.setattr(Path, "replace", replace)
        with pytest.raises(OutputError, match="cannot write"):
            write_video(smooth_frames(3), tmp_path / "clip")
        assert {file.name: file.read_bytes() for file in (tmp_path / "clip").iterdir()} == before
        assert [path.name for path in tmp_path.iterdir()] == ["clip"]


def test_what_appears_in_the_folder_meanwhile_is_not_deleted(tmp_path):
    out = tmp_path / "clip"
    out.mkdir()

    def frames():
        yield torch.zeros(3, 8, 8)
        (out / "thesis.txt").write_text("years")

    with pytest.raises(OutputError, match="something other than frames"):
        write_video(frames(), out)
    assert (out / "thesis.txt").read_text() == "years"


def test_a_folder_with_other_files_is_not_replaced(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "frame_of_mind.png").touch()
    with pytest.raises(OutputError, match="other than frames"):
        write_video(smooth_frames(2), tmp_path / "a")
    assert [file.name for file in (tmp_path / "a").iterdir()] == ["frame_of_mind.png"]


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot write"):
        write_video(smooth_frames(2), tmp_path / "file" / "frames")


# Checks before a long run


@pytest.mark.parametrize("name", ALL)
def test_known_suffixes_pass(tmp_path, name):
    check_video_path(tmp_path / name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["a.mov", "a.jpg", "a.v2"])
def test_unknown_suffixes_name_the_known_ones(tmp_path, name):
    for check in (check_video_path, lambda path: write_video(smooth_frames(1), path)):
        with pytest.raises(ImageError, match=r"\.mp4, \.gif, \.webp, \.png, \.apng, or none"):
            check(tmp_path / name)


def test_mp4_without_pyav_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    for check in (check_video_path, lambda path: write_video(smooth_frames(1), path)):
        with pytest.raises(MissingExtraError) as caught:
            check(tmp_path / "a.mp4")
        assert str(caught.value) == "mp4 needs PyAV: pip install 'ddim-edit[video]', or write .webp"
    write_video(smooth_frames(1), tmp_path / "a.webp")


def test_mp4_without_an_encoder_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(av, "codecs_available", {"mpeg4"})
    with pytest.raises(MissingExtraError, match="no libx264"):
        check_video_path(tmp_path / "a.mp4")


@pytest.mark.parametrize("fps", [0, -1, 0.01, 1000, math.nan, math.inf])
def test_impossible_rates(tmp_path, fps):
    for check in (check_video_path, lambda path, fps: write_video(smooth_frames(1), path, fps=fps)):
        with pytest.raises(ConfigError, match=r"choose from 0\.1 to 240"):
            check(tmp_path / "a.webp", fps=fps)


def test_a_gif_is_not_faster_than_viewers_play_it(tmp_path):
    with pytest.raises(ConfigError, match="choose fps <= 50"):
        check_video_path(tmp_path / "a.gif", fps=60)
    check_video_path(tmp_path / "a.webp", fps=60)


@pytest.mark.parametrize(("option", "value"), [("crf", 0), ("crf", 52), ("scale", 0)])
def test_impossible_options(tmp_path, option, value):
    with pytest.raises(ConfigError, match=f"{option}={value}"):
        write_video(smooth_frames(1), tmp_path / "a.mp4", **{option: value})


def test_places_that_are_taken(tmp_path):
    (tmp_path / "a.mp4").mkdir()
    with pytest.raises(OutputError, match="is a folder"):
        check_video_path(tmp_path / "a.mp4")
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="other than frames"):
        check_video_path(tmp_path / "file")


def test_av_is_imported_only_when_needed():
    assert "av" not in vars(ddim_edit.video)


def test_an_mp4_carries_title_and_comment(tmp_path):
    notes = {"title": "a to b", "comment": '{"frames": 3, "path": "slerp \u00e9"}'}
    for name in ("one.mp4", "two.mp4"):
        write_video(smooth_frames(3), tmp_path / name, metadata=notes)
    with av.open(str(tmp_path / "one.mp4")) as container:
        assert {key: container.metadata[key] for key in notes} == notes
    assert (tmp_path / "one.mp4").read_bytes() == (tmp_path / "two.mp4").read_bytes()


def test_a_folder_carries_its_manifest_and_can_be_replaced(tmp_path):
    for text in ('{"a": 1}', '{"a": 2}'):
        write_video(smooth_frames(2), tmp_path / "a", manifest=text)
        assert sorted(file.name for file in (tmp_path / "a").iterdir())[-1] == "manifest.json"
        assert (tmp_path / "a" / "manifest.json").read_text() == text
