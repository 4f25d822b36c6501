"""Photos are read as sRGB, whatever space their file says they are in."""

import logging
import struct
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageCms

from ddim_edit.images import read_image, to_uint8

# Primaries of both spaces under D50, as columns of XYZ: what matrix profiles hold.
DISPLAY_P3 = np.array([[0.51512, 0.29198, 0.15710], [0.24120, 0.69225, 0.06657], [-0.00105, 0.04189, 0.78407]])
SRGB = np.array([[0.43607, 0.38515, 0.14307], [0.22249, 0.71687, 0.06061], [0.01392, 0.09708, 0.71410]])
D50 = (0.9642, 1.0, 0.82491)


def profile(space: bytes, gamma: float) -> bytes:
    """An ICC profile, version 2, by the letter of the specification: grey, or RGB with the primaries of Display P3."""

    def point(xyz: tuple[float, ...]) -> bytes:
        return struct.pack(">3i", *(round(value * 65536) for value in xyz))

    curve = struct.pack(">4s4xIH", b"curv", 1, round(gamma * 256))
    tags = {
        b"desc": struct.pack(">4s4xI5s78x", b"desc", 5, b"test"),
        b"cprt": struct.pack(">4s4x5s", b"text", b"none"),
        b"wtpt": b"XYZ " + bytes(4) + point(D50),
        b"kTRC": curve,
    }
    if space == b"RGB ":
        del tags[b"kTRC"]
        for name, column in zip((b"r", b"g", b"b"), DISPLAY_P3.T, strict=True):
            tags |= {name + b"XYZ": b"XYZ " + bytes(4) + point(tuple(column)), name + b"TRC": curve}
    table, data, start = b"", b"", 132 + 12 * len(tags)
    for name, content in tags.items():
        table += struct.pack(">4sII", name, start + len(data), len(content))
        data += content + bytes(-len(content) % 4)
    header = struct.pack(
        ">I4xI4s4s4s12x4s28x12s48x", start + len(data), 2 << 24, b"mntr", space, b"XYZ ", b"acsp", point(D50)
    )
    return header + struct.pack(">I", len(tags)) + table + data


def encoded(linear: NDArray[np.float64]) -> NDArray[np.float64]:
    """The transfer curve of sRGB (IEC 61966-2-1), to [0, 255]."""
    inside = linear.clip(0, 1)
    return 255 * np.where(inside <= 0.0031308, 12.92 * inside, 1.055 * inside ** (1 / 2.4) - 0.055)


def pixels(channels: int = 3) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (16, 16, channels), dtype=np.uint8)


def read(path: Path) -> NDArray[np.int64]:
    return to_uint8(read_image(path, (16, 16))).astype(np.int64)


def p3_in_srgb(values: NDArray[np.uint8]) -> NDArray[np.float64]:
    return encoded((values / 255) ** 2.2 @ (np.linalg.inv(SRGB) @ DISPLAY_P3).T)


@pytest.mark.parametrize("suffix", ["png", "tiff", "webp"])
def test_a_wide_space_is_converted(tmp_path: Path, suffix: str):
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(pixels()).save(path, icc_profile=profile(b"RGB ", 2.2), lossless=True)
    assert abs(read(path) - p3_in_srgb(pixels())).max() <= 2
    assert abs(read(path) - pixels()).max() > 20


def test_grey_with_a_curve_of_its_own(tmp_path: Path):
    grey = pixels()[..., 0]
    for name, image in {"8": Image.fromarray(grey), "16": Image.fromarray(grey.astype(np.uint16) * 257)}.items():
        image.save(tmp_path / f"{name}.png", icc_profile=profile(b"GRAY", 1.5))
        expected = encoded((grey[..., None] / 255) ** 1.5).repeat(3, axis=2)
        assert abs(read(tmp_path / f"{name}.png") - expected).max() <= 2


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_colours_are_converted_before_they_are_laid_over_white(tmp_path: Path, mode: str):
    image = Image.fromarray(pixels(4)).convert(mode)
    space = b"GRAY" if mode == "LA" else b"RGB "
    image.save(tmp_path / "a.png", icc_profile=profile(space, 2.2))
    layers = np.asarray(image.convert("RGBA")).astype(np.float64)
    flat, share = layers[..., :3], layers[..., 3:] / 255
    converted = encoded((flat / 255) ** 2.2) if mode == "LA" else p3_in_srgb(flat)
    assert abs(read(tmp_path / "a.png") - (share * converted + (1 - share) * 255)).max() <= 3


def test_srgb_is_left_as_it_is(tmp_path: Path):
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.fromarray(pixels()).save(tmp_path / "a.png", icc_profile=srgb)
    assert (read(tmp_path / "a.png") == pixels()).all()


UNUSABLE = {
    "noise": b"no profile at all",
    "cut off": profile(b"RGB ", 2.2)[:200],
    "of another space": profile(b"GRAY", 1.0),
}


@pytest.mark.parametrize("kind", UNUSABLE)
def test_an_unusable_profile_is_mentioned_and_spoils_nothing(tmp_path: Path, caplog, kind: str):
    path = tmp_path / "a.png"
    Image.fromarray(pixels()).save(path, icc_profile=UNUSABLE[kind])
    with caplog.at_level(logging.WARNING, "ddim_edit"):
        assert (read(path) == pixels()).all()
    (message,) = [record.getMessage() for record in caplog.records]
    assert message.startswith(f"{path} has a colour profile that cannot be used (")
    assert message.endswith("); taken for sRGB")
    assert "\n" not in message


def test_print_colours_with_a_profile_for_screens_are_read_without_it(tmp_path: Path, caplog):
    image = Image.merge("CMYK", Image.fromarray(pixels(4)).split())
    image.save(tmp_path / "a.tiff", icc_profile=profile(b"RGB ", 2.2))
    assert (read(tmp_path / "a.tiff") == np.asarray(image.convert("RGB"))).all()
    assert "it is for RGB, and the photo is CMYK" in caplog.text
