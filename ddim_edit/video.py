"""Frames to one file, frame by frame: mp4, GIF, WebP, APNG or a folder of PNGs, chosen by the suffix.

Every writer holds one frame at a time, so the length of a video does not matter, and every file has as many frames as
were given: Pillow's own animation writers merge equal neighbours and collect all frames first, so here Pillow
compresses single pictures only and the containers, which are simple, are put together from them. Nothing here knows
where frames come from.
"""

import io
import os
import re
import shutil
import struct
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ddim_edit.errors import ConfigError, ImageError, MissingExtraError, OutputError
from ddim_edit.files import atomic, writing
from ddim_edit.images import enlarge, to_uint8

Picture = NDArray[np.uint8]

_MAX_SIDE = 16383  # of WebP; the other formats allow more
_MAX_GIF_FPS = 50  # viewers slow delays below 20 ms down to 100 ms


@dataclass(frozen=True)
class _Movie:
    """What a writer must know before the first frame. `crf` and `metadata` are for mp4, `manifest` for a folder."""

    width: int
    height: int
    fps: Fraction
    crf: int
    metadata: Mapping[str, str]
    manifest: str

    def delay(self, number: int, unit: int) -> int:
        """How long frame `number` stays, in 1/`unit` seconds; the rounding errors do not add up."""
        return round((number + 1) * unit / self.fps) - round(number * unit / self.fps)


def check_video_path(path: Path, *, fps: float = 30) -> None:
    """Check before a long run that `write_video` will be able to write there.

    Raises:
        ImageError: the suffix is unknown.
        ConfigError: `fps` is out of range.
        MissingExtraError: mp4 without PyAV, or with a PyAV that has no H.264 encoder.
        OutputError: the path is taken by something that may not be replaced.
    """
    suffix = path.suffix.lower()
    if suffix not in _WRITERS:
        known = ", ".join(name for name in _WRITERS if name)
        raise ImageError(f"{path}: unknown suffix {path.suffix}; use {known}, or none for a folder of PNG frames")
    if not 0.1 <= fps <= 240:
        raise ConfigError(f"fps={fps}; choose from 0.1 to 240 frames a second")
    if suffix == ".gif" and fps > _MAX_GIF_FPS:
        raise ConfigError(f"fps={fps} but viewers slow a GIF down above {_MAX_GIF_FPS}; choose fps <= 50 or .webp")
    if suffix == ".mp4":
        _check_encoder()
    _check_free(path)


def write_video(
    frames: Iterable[Tensor],
    path: str | Path,
    *,
    fps: float = 30,
    scale: int = 1,
    crf: int = 14,
    metadata: Mapping[str, str] | None = None,
    manifest: str = "",
) -> int:
    """Write frames as a video, an animation or a folder, whole or not at all, holding one frame at a time.

    `.mp4` is H.264 that plays everywhere (yuv420p, BT.709, limited range, index first); an odd side gets one more row
    or column by repeating the edge, and nothing is ever resized. `.gif` has 256 colours of its own for every frame.
    `.webp`, `.png` and `.apng` are lossless. Without a suffix: a folder of `frame_000000.png`, ...

    Args:
        frames: (3, H, W) each, all of one size, float, [-1, 1].
        path: the file or folder; a folder that holds nothing but frames is replaced.
        fps: frames a second.
        scale: enlarge every pixel to `scale` x `scale`.
        crf: quality of the mp4, 1 (best) to 51 (smallest).
        metadata: `title`, `comment` and the like, inside an mp4; the other formats have no place for it.
        manifest: written beside the frames of a folder as `manifest.json`.

    Returns:
        The number of frames written.

    Raises:
        ImageError: no frames, frames of different sizes, or an unknown suffix.
        ConfigError: `fps`, `scale` or `crf` is out of range.
        MissingExtraError: mp4 without PyAV.
        NumericsError: a frame has values that are not finite.
        OutputError: the place cannot be written to.
    """
    path = Path(path)
    check_video_path(path, fps=fps)
    if not 1 <= crf <= 51:  # at 0 H.264 is lossless, in a profile that phones and browsers do not play
        raise ConfigError(f"crf={crf}; choose from 1 (best) to 51 (smallest)")
    pictures = _pictures(frames, scale)
    first = next(pictures, None)
    if first is None:
        raise ImageError(f"{path} would have no frames; give at least one")
    height, width = first.shape[:2]
    movie = _Movie(width, height, Fraction(fps).limit_denominator(1001), crf, metadata or {}, manifest)
    written = 0

    def counted() -> Iterator[Picture]:
        nonlocal written
        for picture in chain([first], pictures):
            yield picture
            written += 1

    suffix = path.suffix.lower()
    with atomic(path) if suffix else _atomic_folder(path) as temporary:
        _WRITERS[suffix](counted(), temporary, movie)
    return written


def _pictures(frames: Iterable[Tensor], scale: int) -> Iterator[Picture]:
    size: tuple[int, ...] | None = None
    for number, frame in enumerate(frames):
        size = size or tuple(frame.shape)
        if tuple(frame.shape) != size:
            raise ImageError(f"frame {number} is {tuple(frame.shape)} but frame 0 is {size}; give all one size")
        if frame.ndim != 3 or max(size) * scale > _MAX_SIDE:
            raise ImageError(f"frames are {size}, enlarged {scale} times; give (3, H, W), sides up to {_MAX_SIDE}")
        yield to_uint8(enlarge(frame, scale))


def _write_folder(pictures: Iterable[Picture], folder: Path, movie: _Movie) -> None:
    for number, picture in enumerate(pictures):
        Image.fromarray(picture).save(folder / f"frame_{number:06d}.png")
    if movie.manifest:
        (folder / "manifest.json").write_text(movie.manifest, encoding="utf-8")


# mp4


def _write_mp4(pictures: Iterable[Picture], path: Path, movie: _Movie) -> None:
    import av

    # An absolute path, because FFmpeg would read "a:b.mp4" as an address.
    with av.open(str(path.absolute()), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        container.metadata.update(movie.metadata)
        stream = container.add_stream("libx264", rate=movie.fps, options={"crf": str(movie.crf)})
        stream.width, stream.height = movie.width + movie.width % 2, movie.height + movie.height % 2
        stream.pix_fmt = "yuv420p"
        codec = stream.codec_context
        codec.color_primaries = codec.color_trc = codec.colorspace = 1  # BT.709
        codec.color_range = 1  # limited
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(_yuv420p(picture), format="yuv420p")))
        container.mux(stream.encode())


def _yuv420p(picture: Picture) -> Picture:
    """Convert (H, W, 3) by BT.709, limited range: the planes Y, Cb, Cr below each other, (3/2 H, W), H and W even.

    FFmpeg's own converter smears colours over pixel borders, and takes BT.601 unless told otherwise.
    """
    height, width = picture.shape[:2]
    even = np.pad(picture, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge") / 255
    luma = even @ np.array([0.2126, 0.7152, 0.0722])
    blue, red = (even[..., 2] - luma) / 1.8556, (even[..., 0] - luma) / 1.5748
    planes = [16 + 219 * luma, 128 + 224 * _halved(blue), 128 + 224 * _halved(red)]
    return np.rint(np.concatenate([plane.ravel() for plane in planes])).astype(np.uint8).reshape(-1, luma.shape[1])


def _halved(plane: NDArray[np.float64]) -> NDArray[np.float64]:
    height, width = plane.shape
    return plane.reshape(height // 2, 2, width // 2, 2).mean(axis=(1, 3))


# GIF: https://www.w3.org/Graphics/GIF/spec-gif89a.txt


def _write_gif(pictures: Iterable[Picture], path: Path, movie: _Movie) -> None:
    with path.open("wb") as file:
        file.write(struct.pack("<6sHHBBB", b"GIF89a", movie.width, movie.height, 0x70, 0, 0))
        file.write(b"!\xff\x0bNETSCAPE2.0\x03\x01\x00\x00\x00")  # repeat for ever
        for number, picture in enumerate(pictures):
            file.write(struct.pack("<4sHBB", b"!\xf9\x04\x04", movie.delay(number, 100), 0, 0))
            file.write(_gif_image(picture))
        file.write(b";")


def _gif_image(picture: Picture) -> bytes:
    """Compress one picture: image descriptor, palette of its own, pixels."""
    colours = Image.fromarray(picture).quantize(256, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    gif = _encoded(colours, "GIF")
    # A GIF of one picture: 13 bytes of header (palette size in byte 10), palette, image descriptor, pixels, ";".
    palette_end = 13 + 3 * 2 ** ((gif[10] & 7) + 1)
    descriptor, pixels = gif[palette_end : palette_end + 10], gif[palette_end + 10 : -1]
    assert descriptor[:1] == b","
    flags = descriptor[9] | 0x80 | gif[10] & 7  # the palette is the picture's, not the file's
    return descriptor[:9] + bytes([flags]) + gif[13:palette_end] + pixels


# WebP: https://developers.google.com/speed/webp/docs/riff_container


def _write_webp(pictures: Iterable[Picture], path: Path, movie: _Movie) -> None:
    canvas = _int24(movie.width - 1) + _int24(movie.height - 1)
    with path.open("wb") as file:
        file.write(b"RIFF\0\0\0\0WEBP")
        file.write(_riff_chunk(b"VP8X", b"\x02\0\0\0" + canvas))  # animated
        file.write(_riff_chunk(b"ANIM", bytes(6)))  # repeat for ever
        for number, picture in enumerate(pictures):
            webp = _encoded(Image.fromarray(picture), "WEBP", lossless=True, method=2)
            frame = bytes(6) + canvas + _int24(movie.delay(number, 1000)) + b"\x02"  # at (0, 0), replacing all before
            file.write(_riff_chunk(b"ANMF", frame + webp[12:]))
        size = file.tell() - 8
        file.seek(4)
        file.write(struct.pack("<I", size))


def _riff_chunk(name: bytes, content: bytes) -> bytes:
    assert len(content) % 2 == 0  # else a byte of padding would be due
    return name + struct.pack("<I", len(content)) + content


def _int24(value: int) -> bytes:
    return value.to_bytes(3, "little")


# APNG: https://www.w3.org/TR/png-3/


def _write_apng(pictures: Iterable[Picture], path: Path, movie: _Movie) -> None:
    with path.open("wb") as file:
        header = struct.pack(">IIBBBBB", movie.width, movie.height, 8, 2, 0, 0, 0)  # 8-bit RGB
        file.write(b"\x89PNG\r\n\x1a\n" + _png_chunk(b"IHDR", header))
        control = file.tell()
        file.write(_png_chunk(b"acTL", bytes(8)))  # rewritten below, when the number of frames is known
        number = 0
        for number, picture in enumerate(pictures):
            _write_apng_frame(file, number, picture, movie)
        file.write(_png_chunk(b"IEND", b""))
        file.seek(control)
        file.write(_png_chunk(b"acTL", struct.pack(">II", number + 1, 0)))  # repeat for ever


def _write_apng_frame(file: io.BufferedWriter, number: int, picture: Picture, movie: _Movie) -> None:
    pixels = _png_pixels(_encoded(Image.fromarray(picture), "PNG"))
    seconds = (1 / movie.fps).limit_denominator(6553)  # both parts fit 16 bits down to 0.1 frames a second
    box = struct.pack(">IIIIHHBB", movie.width, movie.height, 0, 0, seconds.numerator, seconds.denominator, 0, 0)
    # Control and data chunks are numbered in one sequence, in which the pixels of frame 0 do not count.
    if number == 0:
        file.write(_png_chunk(b"fcTL", _int32(0) + box) + _png_chunk(b"IDAT", pixels))
    else:
        file.write(_png_chunk(b"fcTL", _int32(2 * number - 1) + box))
        file.write(_png_chunk(b"fdAT", _int32(2 * number) + pixels))


def _png_pixels(png: bytes) -> bytes:
    """Join the contents of the IDAT chunks of a PNG."""
    parts: list[bytes] = []
    start = 8
    while start < len(png):
        end = start + 8 + int.from_bytes(png[start : start + 4])
        if png[start + 4 : start + 8] == b"IDAT":
            parts.append(png[start + 8 : end])
        start = end + 4
    return b"".join(parts)


def _png_chunk(name: bytes, content: bytes) -> bytes:
    return _int32(len(content)) + name + content + _int32(zlib.crc32(name + content))


def _int32(value: int) -> bytes:
    return value.to_bytes(4, "big")


def _encoded(image: Image.Image, kind: str, **options: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


_WRITERS: dict[str, Callable[[Iterable[Picture], Path, _Movie], None]] = {
    ".mp4": _write_mp4,
    ".gif": _write_gif,
    ".webp": _write_webp,
    ".png": _write_apng,
    ".apng": _write_apng,
    "": _write_folder,
}


def _check_encoder() -> None:
    try:
        import av
    except ImportError as error:
        raise MissingExtraError("mp4 needs PyAV: pip install 'ddim-edit[video]', or write .webp") from error
    if "libx264" not in av.codecs_available:
        raise MissingExtraError("this PyAV has no libx264 for mp4: pip install 'ddim-edit[video]', or write .webp")


def _check_free(path: Path) -> None:
    if path.suffix and path.is_dir():
        raise OutputError(f"{path} is a folder; choose another --output")
    if not path.suffix and path.exists() and not _holds_only_frames(path):
        raise OutputError(f"{path} holds something other than frames; choose another --output")


def _holds_only_frames(path: Path) -> bool:
    ours = re.compile(r"frame_\d{6,}\.png|manifest\.json")
    return path.is_dir() and all(ours.fullmatch(file.name) for file in path.iterdir())


@contextmanager
def _atomic_folder(path: Path) -> Generator[Path, None, None]:
    """Give a temporary folder beside `path`; put it in the place of `path` when the block ends well."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    aside = temporary.with_suffix(".old")
    for leftover in (temporary, aside):  # of a killed run that had the same process number
        shutil.rmtree(leftover, ignore_errors=True)
    with writing(path, temporary):
        try:
            temporary.mkdir()
            yield temporary
            if path.exists():  # put aside first: deleting can stop half way
                _check_free(path)
                path.replace(aside)
            temporary.replace(path)
            shutil.rmtree(aside, ignore_errors=True)
        finally:
            if aside.exists() and not path.exists():
                aside.replace(path)
            shutil.rmtree(temporary, ignore_errors=True)
