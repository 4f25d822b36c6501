import hashlib
import pickle
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms, PngImagePlugin

from ddim_edit.errors import ConfigError, ImageError, NumericsError
from ddim_edit.images import (
    FITS,
    MAX_PIXELS,
    MIN_SIDE,
    Photo,
    enlarge,
    find_photos,
    read_image,
    read_metadata,
    to_tensor,
    to_uint8,
    write_image,
)

HEIGHT, WIDTH = 12, 16
ORIENTATION = 0x0112


def picture(height=HEIGHT, width=WIDTH, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def save(path: Path, image, **options) -> Path:
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(path, **options)
    return path


def read(path, size=(HEIGHT, WIDTH), fit="stretch", **options):
    return to_uint8(read_image(path, size, fit, **options))


def png(width, height, bits, colour, rows: bytes) -> bytes:
    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows, 1)) + chunk(b"IEND", b"")


# Numbers


def test_all_8_bit_values_come_back():
    levels = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    pixels = to_tensor(levels)
    assert pixels.shape == (3, 16, 16)
    assert pixels.dtype == torch.float32
    assert (pixels.min(), pixels.max()) == (-1, 1)
    np.testing.assert_array_equal(to_uint8(pixels), levels)


@pytest.mark.parametrize(
    ("value", "level"), [(-7.0, 0), (-1.0, 0), (-0.9975, 0), (-0.995, 1), (0.0, 128), (1.0, 255), (3.0, 255)]
)
def test_values_are_clamped_and_rounded(value, level):
    assert (to_uint8(torch.full((3, 1, 1), value)) == level).all()


def test_to_tensor_owns_its_memory():
    array = picture()
    pixels = to_tensor(array)
    before = pixels.clone()
    array[:] = 0
    assert torch.equal(pixels, before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_pixels_of_any_float_type_are_rounded_in_single_precision(dtype):
    pixels = (torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1).to(dtype)
    np.testing.assert_array_equal(to_uint8(pixels), to_uint8(pixels.float()))
    assert (to_uint8(torch.full((3, 2, 2), 0.5, dtype=dtype)) == 191).all()


def test_batches_keep_their_leading_dimensions():
    pixels = torch.rand(2, 5, 3, 4, 6) * 2 - 1
    array = to_uint8(pixels)
    assert array.shape == (2, 5, 4, 6, 3)
    np.testing.assert_array_equal(array[1, 3], to_uint8(pixels[1, 3]))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_no_picture_is_made_from_values_that_are_not_finite(bad):
    pixels = torch.zeros(3, 4, 4)
    pixels[1, 2, 3] = bad
    with pytest.raises(NumericsError, match="1 of 48"):
        to_uint8(pixels)


@pytest.mark.parametrize("pixels", [torch.zeros(4, 4), torch.zeros(1, 4, 4), torch.zeros(3, 4, 4, dtype=torch.uint8)])
def test_to_uint8_refuses_other_shapes_and_types(pixels):
    with pytest.raises(ImageError, match="expected float pixels"):
        to_uint8(pixels)


@pytest.mark.parametrize("array", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 3))])
def test_to_tensor_refuses_other_shapes_and_types(array):
    with pytest.raises(ImageError, match="expected a uint8 picture"):
        to_tensor(array)


def test_enlarge_repeats_pixels():
    assert enlarge(torch.tensor([[1, 2]]), 2).tolist() == [[1, 1, 2, 2], [1, 1, 2, 2]]
    with pytest.raises(ConfigError, match="scale=0"):
        enlarge(torch.zeros(3, 2, 2), 0)


# Kinds of photos


@pytest.mark.parametrize(
    ("name", "options"),
    [("a.png", {}), ("a.bmp", {}), ("a.ppm", {}), ("a.tif", {}), ("a.webp", {"lossless": True}), ("a.PNG", {})],
)
def test_lossless_files_are_read_exactly(tmp_path, name, options):
    np.testing.assert_array_equal(read(save(tmp_path / name, picture(), **options)), picture())


def test_the_suffix_does_not_matter(tmp_path):
    path = save(tmp_path / "a.png", picture()).rename(tmp_path / "a.jpg")
    np.testing.assert_array_equal(read(path), picture())


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "webp"])
@pytest.mark.parametrize(
    ("orientation", "turn"),
    [
        (1, lambda a: a),
        (2, np.fliplr),
        (3, lambda a: np.rot90(a, 2)),
        (4, np.flipud),
        (5, lambda a: a.transpose(1, 0, 2)),
        (6, lambda a: np.rot90(a, -1)),
        (7, lambda a: np.rot90(a, 2).transpose(1, 0, 2)),
        (8, np.rot90),
    ],
)
def test_photos_stand_upright_by_their_exif(tmp_path, suffix, orientation, turn):
    blocks = np.kron(picture(2, 3), np.ones((16, 16, 1), np.uint8))
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    path = save(tmp_path / f"a.{suffix}", blocks, exif=exif, **({"lossless": True} if suffix == "webp" else {}))
    upright = turn(blocks).astype(int)
    got = read(path, upright.shape[:2])
    # The middle of each block, where JPEG cannot smear it.
    assert np.abs(got.astype(int) - upright)[8::16, 8::16].max() <= (60 if suffix == "jpg" else 0)


@pytest.mark.parametrize("exif", [b"Exif\0\0garbage", b"Exif\0\0II*\0\x08\0\0\0\x05\0", b"Exif\0\0", b"\xff" * 40])
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_broken_exif_does_not_spoil_a_photo(tmp_path, exif, suffix):
    path = save(tmp_path / f"a.{suffix}", picture(), exif=exif)
    assert read(path).shape == (HEIGHT, WIDTH, 3)


def test_transparency_is_laid_over_white(tmp_path):
    colours = np.zeros((8, 8, 4), np.uint8)
    colours[..., 0] = 200
    colours[:, 4:, 3] = 255
    colours[:, 2:4, 3] = 128
    got = read(save(tmp_path / "a.png", colours), (8, 8))
    assert got[0, 0].tolist() == [255, 255, 255]
    assert np.abs(got[0, 2].astype(int) - [227, 127, 127]).max() <= 1
    assert got[0, 5].tolist() == [200, 0, 0]


def test_transparency_is_removed_before_resizing(tmp_path):
    # Invisible black next to visible white: mixed first, the edge would turn grey.
    colours = np.full((16, 16, 4), 255, np.uint8)
    colours[:, ::2] = 0
    assert (read(save(tmp_path / "a.png", colours), (8, 8)) == 255).all()


def test_grey_with_alpha(tmp_path):
    grey = np.zeros((8, 8, 2), np.uint8)
    grey[:, 4:] = [90, 255]
    got = read(
        save(tmp_path / "a.png", Image.merge("LA", [Image.fromarray(band) for band in np.moveaxis(grey, -1, 0)])),
        (8, 8),
    )
    assert (got[:, :4] == 255).all()
    assert (got[:, 4:] == 90).all()


@pytest.mark.parametrize("transparency", [0, bytes([0, 255])])
def test_palette_with_transparency(tmp_path, transparency):
    image = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8) // 32)
    image = Image.frombytes("P", (8, 8), image.tobytes())
    image.putpalette([10, 20, 30, 200, 100, 50])
    got = read(save(tmp_path / "a.png", image, transparency=transparency), (8, 8))
    assert (got[:4] == 255).all()
    assert (got[4:] == [200, 100, 50]).all()


def test_palette_without_transparency(tmp_path):
    image = Image.fromarray(picture()).quantize(16)
    np.testing.assert_array_equal(read(save(tmp_path / "a.png", image)), np.asarray(image.convert("RGB")))


def test_a_colour_that_stands_for_transparency(tmp_path):
    rgb = np.full((8, 8, 3), 70, np.uint8)
    rgb[:4] = [1, 2, 3]
    got = read(save(tmp_path / "a.png", rgb, transparency=(1, 2, 3)), (8, 8))
    assert (got[:4] == 255).all()
    assert (got[4:] == 70).all()


def test_grey(tmp_path):
    grey = picture()[..., 0]
    np.testing.assert_array_equal(read(save(tmp_path / "a.png", grey)), np.stack([grey] * 3, axis=-1))


def test_1_bit(tmp_path):
    bits = picture()[..., 0] > 127
    got = read(save(tmp_path / "a.png", Image.fromarray(bits)))
    np.testing.assert_array_equal(got[..., 1], bits * 255)


@pytest.mark.parametrize(("name", "mode"), [("a.png", "I;16"), ("a.tif", "I;16"), ("b.tif", "I")])
def test_16_bit_grey_is_scaled_by_its_range(tmp_path, name, mode):
    levels = np.linspace(0, 65535, 64).round().reshape(8, 8)
    path = save(tmp_path / name, Image.fromarray(levels.astype(np.int32 if mode == "I" else np.uint16)))
    with Image.open(path) as image:
        assert image.mode == mode
    np.testing.assert_array_equal(read(path, (8, 8))[..., 2], (levels * 255 / 65535).round())


@pytest.mark.parametrize("value", [-1, 65536])
def test_grey_beyond_16_bit_is_refused_rather_than_clamped(tmp_path, value):
    path = save(tmp_path / "a.tif", Image.fromarray(np.full((8, 8), value, np.int32)))
    with pytest.raises(ImageError, match=f"from {value} to {value}"):
        read(path)


def test_cmyk(tmp_path):
    path = save(tmp_path / "a.jpg", Image.new("CMYK", (16, 16), (0, 255, 255, 0)), quality=95)
    assert np.abs(read(path).astype(int) - [255, 0, 0]).max() <= 4


def test_a_phone_photo_with_a_second_picture_behind_it(tmp_path):
    first, second = Image.new("RGB", (16, 16), "white"), Image.new("RGB", (16, 16), "black")
    path = save(tmp_path / "a.jpg", first, format="MPO", save_all=True, append_images=[second])
    assert (read(path) == 255).all()


def test_a_colour_profile_and_odd_text_do_no_harm(tmp_path):
    text = PngImagePlugin.PngInfo()
    text.add_text("Comment", "x" * 70_000, zip=True)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    path = save(tmp_path / "a.png", picture(), pnginfo=text, icc_profile=profile)
    np.testing.assert_array_equal(read(path), picture())


# Sizes


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("source", [(8, 8), (9, 31), (40, 13), (100, 101), (8, 400)])
@pytest.mark.parametrize("size", [(8, 8), (32, 32), (33, 17)])
def test_the_result_has_the_wanted_size(tmp_path, fit, source, size):
    assert read_image(save(tmp_path / "a.png", picture(*source)), size, fit).shape == (3, *size)


@pytest.mark.parametrize("fit", FITS)
def test_a_photo_of_the_right_size_is_not_touched(tmp_path, fit):
    np.testing.assert_array_equal(read(save(tmp_path / "a.png", picture()), fit=fit), picture())


@pytest.mark.parametrize("fit", FITS)
def test_shrinking_by_a_whole_number_is_the_mean_of_the_area(tmp_path, fit):
    large = picture(32, 48)
    mean = large.reshape(8, 4, 12, 4, 3).mean((1, 3))
    got = read(save(tmp_path / "a.png", large), (8, 12), fit)
    assert np.abs(got - mean).max() <= 1


def test_enlarging_is_bicubic(tmp_path):
    path = save(tmp_path / "a.png", picture())
    expected = Image.fromarray(picture()).resize((40, 30), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(read(path, (30, 40)), np.asarray(expected))


def test_stretch_treats_each_side_by_itself(tmp_path):
    path = save(tmp_path / "a.png", picture(8, 32))
    narrow = Image.fromarray(picture(8, 32).reshape(8, 8, 4, 3).mean(2).round().astype(np.uint8))
    expected = np.asarray(narrow.resize((8, 16), Image.Resampling.BICUBIC)).astype(int)
    assert np.abs(read(path, (16, 8)) - expected).max() <= 2


def test_crop_cuts_the_centre_out(tmp_path):
    wide, tall = picture(8, 20), picture(21, 8)
    np.testing.assert_array_equal(read(save(tmp_path / "a.png", wide), (8, 8), "crop"), wide[:, 6:14])
    np.testing.assert_array_equal(read(save(tmp_path / "b.png", tall), (8, 8), "crop"), tall[6:14])


def test_crop_is_the_default(tmp_path):
    path = save(tmp_path / "a.png", picture(8, 20))
    np.testing.assert_array_equal(to_uint8(read_image(path, (8, 8))), picture(8, 20)[:, 6:14])
    np.testing.assert_array_equal(to_uint8(Photo("a", path).read((8, 8))), picture(8, 20)[:, 6:14])


def test_pad_repeats_the_edge(tmp_path):
    wide = picture(8, 16)
    got = read(save(tmp_path / "a.png", wide), (16, 16), "pad")
    np.testing.assert_array_equal(got[4:12], wide)
    assert (got[:4] == wide[0]).all()
    assert (got[12:] == wide[-1]).all()


def test_an_unknown_fit_names_the_three(tmp_path):
    with pytest.raises(ConfigError, match="crop, pad, stretch"):
        read_image(save(tmp_path / "a.png", picture()), (8, 8), "fill")


# What cannot be read


def truncated(folder):
    path = save(folder / "a.jpg", picture(64, 64))
    path.write_bytes(path.read_bytes()[:-400])
    return path


def written(folder, name, content):
    path = folder / name
    path.write_bytes(content)
    return path


def animation(folder, suffix):
    frames = [Image.fromarray(picture(seed=seed)) for seed in range(3)]
    return save(folder / f"a.{suffix}", frames[0], save_all=True, append_images=frames[1:])


UNREADABLE = {
    "missing": (lambda folder: folder / "none.png", "does not exist"),
    "a folder": (lambda folder: folder, "is a folder"),
    "text": (lambda folder: written(folder, "a.jpg", b"hello " * 99), "not an image"),
    "empty": (lambda folder: written(folder, "a.png", b""), "0 bytes"),
    "cut JPEG": (truncated, "damaged"),
    "cut PNG": (lambda folder: written(folder, "a.png", png(64, 64, 8, 0, b"\0" * 99)), "damaged"),
    "cut header": (lambda folder: written(folder, "a.png", png(9, 9, 8, 0, b"")[:20]), "damaged"),
    "PostScript": (lambda folder: save(folder / "a.eps", picture()), "not an image"),
    "GIF": (lambda folder: animation(folder, "gif"), "3 frames.*save .* PNG"),
    "WebP": (lambda folder: animation(folder, "webp"), "3 frames"),
    "APNG": (lambda folder: animation(folder, "png"), "3 frames"),
    "pages": (lambda folder: animation(folder, "tif"), "3 frames"),
    "1x1": (lambda folder: save(folder / "a.png", picture(1, 1)), "1x1; .* 8 pixels"),
    "thin": (lambda folder: save(folder / "a.png", picture(MIN_SIDE - 1, 99)), "99x7"),
    "floats": (lambda folder: save(folder / "a.tif", np.zeros((9, 9), np.float32)), "pixel type F"),
    "LAB": (lambda folder: save(folder / "a.tif", Image.new("LAB", (9, 9))), "pixel type LAB"),
}


@pytest.mark.parametrize("kind", UNREADABLE)
def test_what_cannot_be_read_says_why_in_one_line(tmp_path, kind):
    make, reason = UNREADABLE[kind]
    path = make(tmp_path)
    with pytest.raises(ImageError, match=reason) as caught:
        read_image(path, (8, 8))
    message = str(caught.value)
    assert str(path) in message
    assert ";" in message, "no remedy"
    assert "\n" not in message


def test_a_photo_of_the_smallest_size_is_read(tmp_path):
    assert read_image(save(tmp_path / "a.png", picture(MIN_SIDE, MIN_SIDE)), (8, 8)).shape == (3, 8, 8)


def test_a_photo_of_just_the_limit_is_read(tmp_path):
    path = save(tmp_path / "a.png", picture(10, 20))
    assert read(path, max_pixels=200).shape == (HEIGHT, WIDTH, 3)
    with pytest.raises(ImageError, match="20x10, more than 199 pixels"):
        read(path, max_pixels=199)


@pytest.mark.parametrize("side", [10_000, 20_000])  # beyond the sizes at which Pillow warns, and fails
def test_huge_photos_are_refused_by_their_header(tmp_path, side):
    path = written(tmp_path, "a.png", png(side, side, 1, 0, b"only the header is sound"))
    with pytest.raises(ImageError, match=r"more than 64,000,000 pixels|too large") as caught:
        read_image(path, (8, 8))
    assert "scale it down" in str(caught.value)
    assert MAX_PIXELS == 64_000_000


def test_a_larger_limit_reads_larger_photos_without_a_warning(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # Pillow now warns about 192 pixels
    path = save(tmp_path / "a.png", picture())
    with pytest.warns(Image.DecompressionBombWarning):
        Image.open(path).close()
    np.testing.assert_array_equal(read(path, max_pixels=192), picture())


def test_pillows_warnings_stay_inside_but_the_callers_filters_survive(tmp_path):
    path = written(tmp_path, "a.png", png(10_000, 10_000, 1, 0, b""))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        before = list(warnings.filters)
        with pytest.raises(ImageError):
            read_image(path, (8, 8))
        assert list(warnings.filters) == before


# Writing


def test_a_written_picture_comes_back(tmp_path):
    path = tmp_path / "new" / "a.png"
    write_image(to_tensor(picture()), path)
    np.testing.assert_array_equal(read(path), picture())
    with Image.open(path) as image:
        assert (image.format, image.mode) == ("PNG", "RGB")
    assert read_metadata(path) == {}


def test_metadata_comes_back(tmp_path):
    metadata = {
        "ddim_edit": '{"format": 1}',
        "parameters": "steps 50, η = 0\n第二行 é",
        "empty": "",
        "long": "x" * 9999,
    }
    path = tmp_path / "a.png"
    write_image(to_tensor(picture()), path, metadata=metadata)
    assert read_metadata(path) == metadata
    assert all(type(text) is str for text in read_metadata(path).values())
    content = path.read_bytes()
    assert content.count(b"iTXt") == 4
    assert b"tEXt" not in content


def test_the_same_picture_gives_the_same_bytes(tmp_path):
    one, two = tmp_path / "a.png", tmp_path / "b.png"
    write_image(to_tensor(picture()), one, metadata={"a": "1", "b": "2"})
    write_image(to_tensor(picture()), two, metadata={"b": "2", "a": "1"})
    assert one.read_bytes() == two.read_bytes()


@pytest.mark.parametrize("name", ["a.jpg", "a", "a.png.webp"])
def test_only_png_is_written(tmp_path, name):
    with pytest.raises(ImageError, match=r"only"):
        write_image(to_tensor(picture()), tmp_path / name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("pixels", "error"), [(torch.full((3, 4, 4), torch.nan), NumericsError), (torch.zeros(1, 3, 4, 4), ImageError)]
)
def test_what_is_no_picture_is_not_written(tmp_path, pixels, error):
    with pytest.raises(error):
        write_image(pixels, tmp_path / "a.png")
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    write_image(to_tensor(picture()), path)
    before = path.read_bytes()

    def full_disk(self, file, **options):
        Path(file).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(Image.Image, "save", full_disk)
    with pytest.raises(KeyboardInterrupt):
        write_image(to_tensor(picture(seed=1)), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_pictures_without_text_have_no_metadata(tmp_path):
    assert read_metadata(save(tmp_path / "a.jpg", picture())) == {}
    with pytest.raises(ImageError, match="not an image"):
        read_metadata(written(tmp_path, "b.png", b"text"))
    with pytest.raises(ImageError, match="does not exist"):
        read_metadata(tmp_path / "none.png")


# Lists of photos


def names(photos):
    return [photo.name for photo in photos]


def test_a_folder_gives_its_images_sorted(tmp_path):
    for name in ("b.PNG", "a.jpg", "c.HEIC", ".hidden.jpg", "notes.txt", "latents.npz"):
        written(tmp_path, name, b"not opened yet")
    (tmp_path / "folder.jpg").mkdir()
    written(tmp_path / "folder.jpg", "inner.jpg", b"")
    photos = find_photos([tmp_path])
    assert names(photos) == ["a", "b", "c"]
    assert [photo.path.name for photo in photos] == ["a.jpg", "b.PNG", "c.HEIC"]


def test_arguments_keep_their_order(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    files = [written(tmp_path, "z.png", b""), folder, written(tmp_path, "a.png", b"")]
    written(folder, "m.png", b"")
    assert names(find_photos(files)) == ["z", "m", "a"]


@pytest.mark.parametrize(
    ("given", "unique"),
    [
        (["a", "b", "a", "a"], ["a", "b", "a-2", "a-3"]),
        (["a", "A", "a"], ["a", "A-2", "a-3"]),
        (["a", "a-2", "A"], ["a", "a-2", "A-3"]),
        (["a", "a", "a-2", "a"], ["a", "a-2", "a-2-2", "a-3"]),
    ],
)
def test_equal_names_are_numbered(tmp_path, given, unique):
    paths = []
    for number, name in enumerate(given):
        folder = tmp_path / str(number)
        folder.mkdir()
        paths.append(written(folder, f"{name}.png", b""))
    assert names(find_photos(paths)) == unique


def test_many_equal_names_are_numbered_quickly(tmp_path):
    path = written(tmp_path, "a.png", b"")
    found = names(find_photos([path] * 20_000))
    assert found[-1] == "a-20000"
    assert len(set(found)) == 20_000


def test_photos_of_a_folder_come_as_people_count(tmp_path):
    wanted = ["2.png", "10.png", "a1.jpg", "a1.png", "a2.png", "a10.png", "b.png"]
    for name in reversed(wanted):
        (tmp_path / name).touch()
    assert [photo.path.name for photo in find_photos(tmp_path)] == wanted
    assert find_photos(str(tmp_path)) == find_photos([str(tmp_path)]) == find_photos([tmp_path])


def test_a_lack_of_memory_is_no_fault_of_the_photo(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    Image.new("RGB", (9, 9)).save(path)

    def lacking(*_arguments):
        raise MemoryError

    monkeypatch.setattr("ddim_edit.images.to_rgb", lacking)
    with pytest.raises(MemoryError):
        read_image(path, (8, 8))


def test_a_size_without_pixels_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="size 0 x 8 has no pixels"):
        read_image(tmp_path / "a.png", (0, 8))


def test_missing_paths_and_empty_folders_fail_at_once(tmp_path):
    with pytest.raises(ImageError, match=r"none\.png does not exist"):
        find_photos([tmp_path / "none.png"])
    with pytest.raises(ImageError, match="no image files"):
        find_photos([tmp_path])


def test_a_bad_file_fails_only_when_it_is_read(tmp_path):
    good, bad = save(tmp_path / "a.png", picture()), written(tmp_path, "b.txt", b"text")
    photos = find_photos([bad, good])
    with pytest.raises(ImageError, match="not an image"):
        photos[0].read((8, 8))
    assert photos[1].read((8, 8)).shape == (3, 8, 8)


def test_a_photo_reads_and_hashes_its_file(tmp_path):
    path = save(tmp_path / "a.png", picture())
    (photo,) = find_photos([path])
    assert torch.equal(photo.read((8, 9), "pad"), read_image(path, (8, 9), "pad"))
    assert photo.sha256() == hashlib.sha256(path.read_bytes()).hexdigest()
    assert photo.source == str(path)
    with pytest.raises(ImageError, match="more than 10 pixels"):
        photo.read((8, 8), max_pixels=10)
    path.unlink()
    with pytest.raises(ImageError, match="cannot be read"):
        photo.sha256()


@pytest.fixture
def archive(tmp_path):
    images = np.stack([picture(seed=seed) for seed in range(3)])
    np.savez(tmp_path / "faces.npz", images=images, labels=np.arange(3))
    return tmp_path / "faces.npz", images


@pytest.mark.parametrize("fit", FITS)
def test_rows_of_an_archive_are_read_like_files(tmp_path, archive, fit):
    path, images = archive
    photos = find_photos([path])
    assert names(photos) == ["faces_00000", "faces_00001", "faces_00002"]
    file = save(tmp_path / "row.png", images[2])
    assert torch.equal(photos[2].read((9, 20), fit), read_image(file, (9, 20), fit))
    assert photos[2].sha256() == hashlib.sha256(images[2].tobytes()).hexdigest()
    assert photos[2].source == f"{path}[2]"


def test_rows_follow_the_rules_of_files(tmp_path, archive):
    with pytest.raises(ImageError, match=r"faces\.npz\[0\] is 16x12, more than 100 pixels"):
        find_photos([archive[0]])[0].read((8, 8), max_pixels=100)
    np.savez(tmp_path / "tiny.npz", images=np.zeros((1, 4, 4, 3), np.uint8))
    with pytest.raises(ImageError, match="shorter side"):
        find_photos([tmp_path / "tiny.npz"])[0].read((8, 8))


def test_an_archive_is_loaded_once(archive, monkeypatch):
    calls = []
    load = np.load
    monkeypatch.setattr(np, "load", lambda *args, **options: calls.append(args) or load(*args, **options))
    photos = find_photos([archive[0]])
    archive[0].unlink()
    for photo in photos:
        photo.read((8, 8))
        photo.sha256()
    assert len(calls) == 1


def test_a_row_travels_to_another_process_without_the_archive(archive):
    row = find_photos([archive[0]])[1]
    other = pickle.loads(pickle.dumps(row))
    assert other == row
    assert torch.equal(other.read((8, 8)), row.read((8, 8)))
    assert len(pickle.dumps(row)) < archive[1].nbytes


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        ({"photos": np.zeros((1, 8, 8, 3), np.uint8)}, "no array `images`.*photos"),
        ({}, "no array `images`.*none"),
        ({"images": np.zeros((1, 8, 8, 3), np.float32)}, "float32"),
        ({"images": np.zeros((8, 8, 3), np.uint8)}, r"\(8, 8, 3\)"),
        ({"images": np.zeros((1, 3, 8, 8), np.uint8)}, r"\(1, 3, 8, 8\)"),
        ({"images": np.zeros((0, 8, 8, 3), np.uint8)}, "N >= 1"),
        ({"images": np.array([None], dtype=object)}, "plain arrays"),
    ],
)
def test_archives_of_another_kind_are_refused_at_once(tmp_path, arrays, reason):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(ImageError, match=reason) as caught:
        find_photos([tmp_path / "a.npz"])
    assert "\n" not in str(caught.value)
    assert "a.npz" in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"text", pickle.dumps({"images": 1}), b"PK\x03\x04 cut short"])
def test_files_that_are_no_archive_are_refused_at_once(tmp_path, content):
    with pytest.raises(ImageError, match="plain arrays"):
        find_photos([written(tmp_path, "a.npz", content)])


def test_a_single_array_under_the_name_of_an_archive_is_refused(tmp_path):
    with (tmp_path / "a.npz").open("wb") as file:
        np.save(file, np.zeros((1, 8, 8, 3), np.uint8))
    with pytest.raises(ImageError, match="plain arrays"):
        find_photos([tmp_path / "a.npz"])


def test_a_damaged_archive_is_refused_at_once(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", images=np.stack([picture()]))
    content = bytearray((tmp_path / "a.npz").read_bytes())
    content[100:140] = bytes(40)
    with pytest.raises(ImageError, match="plain arrays"):
        find_photos([written(tmp_path, "a.npz", bytes(content))])
