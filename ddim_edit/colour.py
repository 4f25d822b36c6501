"""From the colours of any photo to 8-bit sRGB, by the ICC profile that the file may carry.

Cameras and phones write other spaces (Display P3, Adobe RGB, printers' CMYK); read as if they were sRGB, their photos
come out too pale or too vivid. A profile that cannot be used is no reason to refuse sound pixels: it is said in the log
of the package, which goes to stderr where nobody set it up, and the colours are taken for sRGB.
"""

import io
import logging

import numpy as np
from PIL import Image, ImageCms

from ddim_edit.errors import ImageError

_LOG = logging.getLogger(__name__)
_GREY = ("1", "L", "LA", "La")
_SPACES = {"RGB": "RGB", "L": "GRAY", "CMYK": "CMYK"}  # pixel type -> the name of its colour space in a profile


def to_rgb(image: Image.Image, source: str) -> Image.Image:
    """Convert a loaded photo to RGB, that is sRGB, with transparency laid over white.

    Args:
        image: of any pixel type that has a fixed range; 32-bit greys must hold 16-bit values.
        source: what it is called in messages.

    Raises:
        ImageError: grey values outside 16 bits.
    """
    deep = image.mode.startswith("I")
    colours = _from_16_bit(image, source) if deep else image
    profile: bytes | None = image.info.get("icc_profile")
    if not colours.has_transparency_data:
        return _in_srgb(_opaque(colours), profile, source)
    layers = colours.convert("RGBA")
    flat = _in_srgb(layers.convert("L" if colours.mode in _GREY else "RGB"), profile, source)
    flat.putalpha(layers.getchannel("A"))
    canvas = Image.new("RGBA", image.size, "white")
    canvas.alpha_composite(flat)
    return canvas.convert("RGB")


def _opaque(image: Image.Image) -> Image.Image:
    if image.mode in _SPACES:
        return image
    return image.convert("L" if image.mode in _GREY else "RGB")


def _in_srgb(image: Image.Image, profile: bytes | None, source: str) -> Image.Image:
    """Convert L, RGB or CMYK to RGB."""
    if not profile:
        return image.convert("RGB")
    try:
        given = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        space = given.profile.xcolor_space.strip()  # pyright: ignore[reportAttributeAccessIssue]
        if space != _SPACES[image.mode]:
            raise ValueError(f"it is for {space}, and the photo is {image.mode}")
        converted = ImageCms.profileToProfile(image, given, ImageCms.createProfile("sRGB"), outputMode="RGB")
        assert converted is not None  # it is None only where the image is changed in place
        return converted
    except Exception as error:  # a stranger's profile; little CMS is as inventive as image decoders
        _LOG.warning("%s has a colour profile that cannot be used (%s); taken for sRGB", source, error)
        return image.convert("RGB")


def _from_16_bit(image: Image.Image, source: str) -> Image.Image:
    grey = np.asarray(image).astype(np.int64)
    if grey.min() < 0 or grey.max() > 65535:
        raise ImageError(f"{source} has grey values from {grey.min()} to {grey.max()}, not 16-bit; save it as 8-bit")
    return Image.fromarray(((grey + 128) // 257).astype(np.uint8))  # 65535 = 255 * 257
