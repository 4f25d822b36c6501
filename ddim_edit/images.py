"""Pictures on disk and in memory: photos of every kind come in as tensors in [-1, 1], PNGs go out.

The rounding rule of the package lives here (`to_tensor`, `to_uint8`), and so does the list of what a run is asked to
read (`find_photos`). Every photo becomes 8-bit RGB before it is a tensor, because that picture, after crop and resize,
is what reconstruction errors are measured against. Nothing here knows about models, and nothing else in the package
opens a photo.
"""

import hashlib
import warnings
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import ExifTags, Image, PngImagePlugin, UnidentifiedImageError
from torch import Tensor

from ddim_edit.colour import to_rgb
from ddim_edit.errors import ConfigError, ImageError, NumericsError
from ddim_edit.files import as_counted, atomic, unique_names

Fit = Literal["crop", "pad", "stretch"]
FITS: tuple[Fit, ...] = get_args(Fit)
_ARRAYS = ("images", "arr_0")  # of an .npz: ours, and what `sample` and OpenAI's tools write

MIN_SIDE = 8
MAX_PIXELS = 64_000_000

# Photos only: Pillow would also hand EPS to Ghostscript, and take plain text for some formats without a signature.
_FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
# HEIC is listed although Pillow cannot read it: a phone's photo must fail with a reason, not be passed over in silence.
SUFFIXES = (
    *(".avif", ".bmp", ".gif", ".heic", ".heif", ".jfif", ".jp2", ".jpeg", ".jpg"),
    *(".mpo", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"),
)
_UNUSABLE = ("F", "LAB", "La")  # pixel types without a fixed range, or without a way to RGB
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class Photo:
    """One photo that a run is asked to read: a file, or one row of an `.npz`.

    Attributes:
        name: unique among the photos of a run; outputs are named after it.
        path: the file, or the `.npz`.
        row: the row in the `.npz`; None for a file.
        pixels: that row, uint8 (H, W, 3), already in memory; None for a file.
    """

    name: str
    path: Path
    row: int | None = None
    pixels: NDArray[np.uint8] | None = field(default=None, repr=False, compare=False)

    @property
    def source(self) -> str:
        """Where the photo comes from, for messages and manifests: `cat.jpg` or `faces.npz[3]`."""
        return str(self.path) if self.row is None else f"{self.path}[{self.row}]"

    def read(self, size: tuple[int, int], fit: Fit = "crop", *, max_pixels: int = MAX_PIXELS) -> Tensor:
        """Read the photo, with the result and the errors of `read_image`: (3, H, W), float32, [-1, 1]."""
        if self.pixels is None:
            return read_image(self.path, size, fit, max_pixels=max_pixels)
        image = Image.fromarray(self.pixels)
        _check_size(self.source, image.size, max_pixels)
        return to_tensor(_fitted(image, size, fit))

    def sha256(self) -> str:
        """Hash the bytes of the file, or of the row (row-major).

        Raises:
            ImageError: the file cannot be read.
        """
        if self.pixels is not None:
            return hashlib.sha256(self.pixels.tobytes()).hexdigest()
        try:
            with self.path.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise ImageError(f"{self.path} cannot be read: {error.strerror}; check the path") from error


def find_photos(arguments: str | Path | Sequence[str | Path]) -> list[Photo]:
    """List the photos meant by a file, folder or `.npz` archive, or by several, each under a name of its own.

    A folder gives its image files by suffix, as people count (`a2` before `a10`), without hidden files and subfolders.
    An archive gives the rows of `images`, uint8 (N, H, W, 3), as `<stem>_00000` and so on. Where a name repeats, in any
    case of letters, the later ones get `-2`, `-3`, ... A file that is no image is listed and fails when it is read, so
    that one bad file among thousands does not stop a run.

    Raises:
        ImageError: a path does not exist, a folder has no images, or an archive is not as described.
    """
    given = [arguments] if isinstance(arguments, str | Path) else arguments
    found = [photo for path in given for photo in _photos_at(Path(path))]
    names = unique_names([photo.name for photo in found])
    return [Photo(name, p.path, p.row, p.pixels) for name, p in zip(names, found, strict=True)]


def read_image(path: str | Path, size: tuple[int, int], fit: Fit = "crop", *, max_pixels: int = MAX_PIXELS) -> Tensor:
    """Read a photo of any kind as sRGB: turned upright by its EXIF, transparency laid over white, at the wanted size.

    Args:
        path: the photo.
        size: (height, width) of the result.
        fit: `crop` cuts the centre out, `pad` repeats the edge, `stretch` changes the proportions.
        max_pixels: larger photos are refused by their header, before they are decoded.

    Returns:
        (3, H, W), float32, [-1, 1], on the 8-bit grid.

    Raises:
        ImageError: the file is missing, no photo, damaged, animated, too small, too large or of an odd kind.
        ConfigError: `fit` is none of the three, or there is no such size.
    """
    path = Path(path)
    if min(size) < 1:
        raise ConfigError(f"size {size[0]} x {size[1]} has no pixels; give (height, width)")
    with _opened(path) as image:
        _check_header(path, image, max_pixels)
        image.load()
        photo = to_rgb(_upright(image), str(path))
    return to_tensor(_fitted(photo, size, fit))


def write_image(pixels: Tensor, path: str | Path, *, metadata: Mapping[str, str] | None = None) -> None:
    """Write a PNG whole or not at all; the same picture and metadata give the same bytes.

    Args:
        pixels: (3, H, W), float, [-1, 1]; values outside are clamped.
        path: the file, `.png`.
        metadata: keyword to text, written as iTXt (UTF-8) chunks in the order of their keywords.

    Raises:
        ImageError: another suffix or shape.
        NumericsError: values that are not finite.
        OutputError: the file cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise ImageError(f"{path} would not be a PNG; pictures are written as .png only, rename it")
    if pixels.ndim != 3:
        raise ImageError(f"a picture has the shape (3, H, W), not {tuple(pixels.shape)}; write a batch one by one")
    image = Image.fromarray(to_uint8(pixels))
    texts = PngImagePlugin.PngInfo()
    for keyword, text in sorted((metadata or {}).items()):
        texts.add_itxt(keyword, text)
    with atomic(path) as temporary:
        image.save(temporary, format="PNG", pnginfo=texts)


def read_picture(path: str | Path) -> Tensor:
    """Read a picture that `write_image` wrote, as it is: (3, H, W), float32, [-1, 1]; errors as `read_image`."""
    with _opened(Path(path)) as image:
        return to_tensor(np.array(image.convert("RGB")))


def read_metadata(path: str | Path) -> dict[str, str]:
    """Read the text chunks of a PNG; other kinds of pictures have none, and what is no picture is an ImageError."""
    with _opened(Path(path)) as image:
        texts: dict[str, str] = getattr(image, "text", {})
        return {str(keyword): str(text) for keyword, text in texts.items()}


def to_tensor(array: NDArray[np.uint8]) -> Tensor:
    """Turn uint8 (H, W, 3) into float32 (3, H, W) in [-1, 1]; another shape or type is an ImageError."""
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
        raise ImageError(f"expected a uint8 picture (H, W, 3), not {array.dtype} {array.shape}; convert it first")
    return torch.tensor(array).permute(2, 0, 1).contiguous().float() / 127.5 - 1


def to_uint8(pixels: Tensor) -> NDArray[np.uint8]:
    """Turn float (..., 3, H, W) in [-1, 1] into uint8 (..., H, W, 3): round(clamp((x + 1) * 127.5, 0, 255)).

    Raises:
        ImageError: another shape or type.
        NumericsError: values that are not finite; a picture is never made from NaN.
    """
    if pixels.ndim < 3 or pixels.shape[-3] != 3 or not pixels.is_floating_point():
        raise ImageError(f"expected float pixels (..., 3, H, W), not {pixels.dtype} {tuple(pixels.shape)}")
    values = pixels.detach().float()
    if not bool(torch.isfinite(values).all()):
        bad = int((~torch.isfinite(values)).sum())
        raise NumericsError(f"{bad} of {values.numel()} pixel values are not finite; no picture is made from them")
    levels = ((values + 1) * 127.5).clamp(0, 255).round().to(torch.uint8)
    return levels.movedim(-3, -1).contiguous().cpu().numpy()


def enlarge(pixels: Tensor, scale: int) -> Tensor:
    """Repeat every pixel `scale` >= 1 times both ways: (..., H, W) to (..., scale * H, scale * W)."""
    if scale < 1:
        raise ConfigError(f"scale={scale}; choose a whole number of 1 or more")
    return pixels if scale == 1 else pixels.repeat_interleave(scale, -2).repeat_interleave(scale, -1)


def visible_scale(width: int, wanted: int = 128) -> int:
    """By how much to enlarge pictures of this width so that people can see them: to `wanted` pixels at most, or not."""
    return max(1, wanted // width)


@contextmanager
def _opened(path: Path) -> Generator[Image.Image, None, None]:
    """Open a picture; whatever goes wrong with it inside the block becomes an ImageError."""
    _check_file(path)
    Image.init()
    formats = [name for name in _FORMATS if name in Image.OPEN]  # older Pillow has no AVIF
    try:
        # Pillow warns about harmless things: odd EXIF, sizes that we check ourselves.
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"PIL\.")
            with Image.open(path, formats=formats) as image:
                yield image
    except (ImageError, MemoryError):
        raise
    except Exception as error:  # decoders meet damaged files with every kind of exception
        raise _explained(path, error) from error


def _explained(path: Path, error: Exception) -> ImageError:
    if isinstance(error, Image.DecompressionBombError):
        return ImageError(f"{path} is too large to open safely; scale it down first")
    if isinstance(error, UnidentifiedImageError):
        return ImageError(f"{path} is not an image, or none of {', '.join(_FORMATS)}; save it as JPEG or PNG")
    return ImageError(f"{path} is damaged or incomplete ({error}); get a fresh copy of the file")


def _check_file(path: Path) -> None:
    if path.is_dir():
        raise ImageError(f"{path} is a folder; give a photo in it")
    if not path.is_file():
        raise ImageError(f"{path} does not exist; check the path")
    if path.stat().st_size == 0:
        raise ImageError(f"{path} is empty (0 bytes); get a fresh copy of the file")


def _check_header(path: Path, image: Image.Image, max_pixels: int) -> None:
    _check_size(str(path), image.size, max_pixels)
    if image.mode in _UNUSABLE:
        raise ImageError(f"{path} has the pixel type {image.mode}; save it as 8-bit RGB")
    frames: int = getattr(image, "n_frames", 1)
    # A phone's MPO is one photo with a depth map, a preview or a second view behind it.
    if frames > 1 and image.format != "MPO":
        raise ImageError(f"{path} has {frames} frames and a photo has one; save the frame you want as PNG")


def _check_size(source: str, size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if min(size) < MIN_SIDE:
        raise ImageError(f"{source} is {width}x{height}; the shorter side must be {MIN_SIDE} pixels or more")
    if width * height > max_pixels:
        raise ImageError(f"{source} is {width}x{height}, more than {max_pixels:,} pixels; scale it down first")


def _upright(image: Image.Image) -> Image.Image:
    # Not ImageOps.exif_transpose: it also writes the EXIF anew, and fails on tags that have nothing to do with this.
    try:
        turn = _UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # broken EXIF is no reason to refuse sound pixels
        return image
    return image if turn is None else image.transpose(turn)


def _fitted(image: Image.Image, size: tuple[int, int], fit: Fit) -> NDArray[np.uint8]:
    height, width = size
    if fit == "crop":
        return np.array(_resized(_centre(image, width, height), width, height))
    if fit == "pad":
        return _padded(image, width, height)
    if fit == "stretch":
        return np.array(_resized(image, width, height))
    raise ConfigError(f"fit={fit!r}; choose one of {', '.join(FITS)}")


def _resized(image: Image.Image, width: int, height: int) -> Image.Image:
    # Area averaging where a side shrinks, as the photos that the bundled model was trained on were reduced; bicubic
    # where it grows.
    smaller = image.resize((min(width, image.width), min(height, image.height)), Image.Resampling.BOX)
    return smaller.resize((width, height), Image.Resampling.BICUBIC)


def _centre(image: Image.Image, width: int, height: int) -> Image.Image:
    scale = min(image.width / width, image.height / height)
    across, down = max(1, round(width * scale)), max(1, round(height * scale))
    left, top = (image.width - across) // 2, (image.height - down) // 2
    return image.crop((left, top, left + across, top + down))


def _padded(image: Image.Image, width: int, height: int) -> NDArray[np.uint8]:
    scale = min(width / image.width, height / image.height)
    across, down = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    left, top = (width - across) // 2, (height - down) // 2
    margins = ((top, height - down - top), (left, width - across - left), (0, 0))
    return np.pad(np.asarray(_resized(image, across, down)), margins, mode="edge")


def _photos_at(path: Path) -> list[Photo]:
    if path.is_dir():
        visible = [file for file in path.iterdir() if not (file.name.startswith(".") or file.is_dir())]
        photos = [Photo(file.stem, file) for file in sorted(visible, key=as_counted) if file.suffix.lower() in SUFFIXES]
        if not photos:
            raise ImageError(f"{path} has no image files (such as .jpg or .png); subfolders are not searched")
        return photos
    if not path.exists():
        raise ImageError(f"{path} does not exist; check the path")
    if path.suffix.lower() == ".npz":
        return [Photo(f"{path.stem}_{row:05d}", path, row, pixels) for row, pixels in enumerate(_npz_images(path))]
    return [Photo(path.stem, path)]


def _npz_images(path: Path) -> NDArray[np.uint8]:
    try:
        # Without pickle, or an archive from a stranger could run code.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            name = next((name for name in _ARRAYS if name in archive), None)
            if name is None:
                raise ImageError(f"{path} has no array `images` (it has {', '.join(archive) or 'none'}); rename yours")
            images = archive[name]
    except (ImageError, MemoryError):
        raise
    except Exception as error:  # numpy, zipfile and zlib each have their own
        raise ImageError(f"{path} is no .npz of plain arrays; write it with numpy.savez(path, images=...)") from error
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or len(images) == 0:
        raise ImageError(f"{path}: `images` is {images.dtype} {images.shape}; it must be uint8 (N, H, W, 3), N >= 1")
    return images
