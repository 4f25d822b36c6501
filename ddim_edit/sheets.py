"""Pictures for people: contact sheets with titles and captions, and strips of frames.

Tiles are enlarged by whole numbers only, so that every pixel of a small picture stays a sharp square, and text is
measured before anything is drawn, so that it is never clipped. Nothing here knows what the tiles mean, and nothing here
writes a file.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, zip_longest

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from ddim_edit.errors import ImageError
from ddim_edit.fonts import Font, readable
from ddim_edit.images import enlarge, to_tensor, to_uint8

_MARGIN = 12  # around the sheet
_GUTTER = 8  # between tiles, and between a tile and its text
_TEXT_SIZE = 14
_TITLE_SIZE = 20
_TEXT_WIDTH = 150  # text wraps here, or at the width of its tile if that is wider
_INK = (32, 32, 32)


@dataclass(frozen=True)
class _Text:
    """Lines of text that know how much room they take."""

    lines: tuple[str, ...]
    size: int
    font: Font

    @property
    def width(self) -> int:
        return max((_length(line, self.font) for line in self.lines), default=0)

    @property
    def height(self) -> int:
        return len(self.lines) * _line_height(self.size)

    def draw(self, canvas: ImageDraw.ImageDraw, left: int, top: int) -> None:
        """Draw the lines, flush left."""
        for number, line in enumerate(self.lines):
            canvas.text((left, top + number * _line_height(self.size)), line, _INK, self.font, anchor="la")


@dataclass(frozen=True)
class _Cell:
    """One place of the table that a sheet is: a picture or nothing, with text or none below it."""

    picture: Image.Image | None
    text: _Text

    @property
    def width(self) -> int:
        return max(self.picture.width if self.picture else 0, self.text.width)

    @property
    def height(self) -> int:
        gap = _GUTTER // 2 if self.picture and self.text.lines else 0
        return (self.picture.height if self.picture else 0) + gap + self.text.height


def sheet(
    tiles: Sequence[Sequence[Tensor]],
    *,
    row_titles: Sequence[str] = (),
    column_titles: Sequence[str] = (),
    captions: Sequence[Sequence[str]] | None = None,
    scale: int = 1,
    title: str = "",
) -> Tensor:
    """Lay pictures out in rows on white, with text. `tile_boxes` says where each of them comes to lie.

    Long text is wrapped, and a column is as wide as its widest picture or text. Text beyond ASCII is drawn where the
    system has a font for it, and spelled in ASCII where it has none.

    Args:
        tiles: rows of (3, h, w), float, [-1, 1]; rows may differ in length and tiles in size.
        row_titles: text left of the rows, from the first on.
        column_titles: text above the columns, from the first on.
        captions: text below the tiles, in the shape of `tiles`; rows may be shorter. May contain line breaks.
        scale: enlarge every pixel of the tiles to `scale` x `scale`.
        title: text above the sheet.

    Returns:
        (3, H, W), float32, [-1, 1].

    Raises:
        ImageError: no tiles, tiles of another shape, or text for tiles that do not exist.
        NumericsError: a tile has values that are not finite.
    """
    cells = _cells(tiles, row_titles, column_titles, captions or (), scale)
    layout = _Layout.of(cells, title)
    paper = Image.new("RGB", layout.size, "white")
    canvas = ImageDraw.Draw(paper)
    layout.heading.draw(canvas, _MARGIN, _MARGIN)
    for row, top in zip(cells, layout.tops, strict=True):
        for cell, left in zip(row, layout.lefts, strict=False):
            if cell.picture:
                paper.paste(cell.picture, (left, top))
            cell.text.draw(canvas, left, top + cell.height - cell.text.height)
    return to_tensor(np.array(paper))


def tile_boxes(
    tiles: Sequence[Sequence[Tensor]],
    *,
    row_titles: Sequence[str] = (),
    column_titles: Sequence[str] = (),
    captions: Sequence[Sequence[str]] | None = None,
    scale: int = 1,
    title: str = "",
) -> list[list[tuple[int, int, int, int]]]:
    """Where `sheet`, given the same, puts the tiles: (left, top, width, height) in pixels, in the shape of `tiles`.

    Arguments and errors as `sheet`.
    """
    cells = _cells(tiles, row_titles, column_titles, captions or (), scale)
    layout = _Layout.of(cells, title)
    return [
        [
            (left, top, cell.picture.width, cell.picture.height)
            for cell, left in zip(row[1:], layout.lefts[1:], strict=False)
            if cell.picture
        ]
        for row, top in zip(cells[1:], layout.tops[1:], strict=True)
    ]


def captioned(frame: Tensor, text: str) -> Tensor:
    """Put one line of text below a frame, on white; the same size whatever the text, so that frames make a video.

    Args:
        frame: (3, H, W), float, [-1, 1].
        text: shortened at its end where the frame is too narrow for it.

    Returns:
        (3, H + 27, W), float32, [-1, 1].
    """
    picture = Image.fromarray(to_uint8(frame))
    room = picture.width - _GUTTER
    text, font = readable(text, _TEXT_SIZE)
    while text and _length(text, font) > room:
        text = text.removesuffix("...")[:-1] + "..." if len(text) > 4 else ""
    paper = Image.new("RGB", (picture.width, picture.height + _line_height(_TEXT_SIZE) + _GUTTER), "white")
    paper.paste(picture, (0, 0))
    _wrapped(text, room).draw(ImageDraw.Draw(paper), _GUTTER // 2, picture.height + _GUTTER // 2)
    return to_tensor(np.array(paper))


def strip(frames: Sequence[Tensor], *, scale: int = 1) -> Tensor:
    """Put frames side by side, without gaps: (3, h, w) each to (3, scale * h, scale * the sum of w).

    Raises:
        ImageError: no frames, or frames of different heights.
    """
    if not frames or len({frame.shape[:-1] for frame in frames}) > 1:
        raise ImageError(f"a strip of {[tuple(frame.shape) for frame in frames]}; give frames of one height")
    return enlarge(torch.cat(list(frames), dim=-1), scale)


def _check_titles(
    tiles: Sequence[Sequence[Tensor]],
    columns: int,
    row_titles: Sequence[str],
    column_titles: Sequence[str],
    captions: Sequence[Sequence[str]],
) -> None:
    for what, given, room in (
        ("row titles", row_titles, len(tiles)),
        ("column titles", column_titles, columns),
        ("rows of captions", captions, len(tiles)),
        *(("captions in a row", text, len(row)) for text, row in zip(captions, tiles, strict=False)),
    ):
        if len(given) > room:
            raise ImageError(f"{len(given)} {what} but room for {room}; give one for each at most")


def _label(text: str, width: int = 0) -> _Cell:
    return _Cell(None, _wrapped(text, width))


def _row(tiles: Sequence[Tensor], captions: Sequence[str], scale: int) -> list[_Cell]:
    if any(tile.ndim != 3 for tile in tiles):
        raise ImageError(f"tiles of {[tuple(tile.shape) for tile in tiles]}; give (3, h, w) each")
    pictures = [Image.fromarray(to_uint8(enlarge(tile, scale))) for tile in tiles]
    texts = chain(captions, [""] * (len(tiles) - len(captions)))
    return [_Cell(picture, _wrapped(text, picture.width)) for picture, text in zip(pictures, texts, strict=True)]


def _cells(
    tiles: Sequence[Sequence[Tensor]],
    row_titles: Sequence[str],
    column_titles: Sequence[str],
    captions: Sequence[Sequence[str]],
    scale: int,
) -> list[list[_Cell]]:
    """The table that a sheet is: titles of the columns in its first row, titles of the rows in its first column."""
    columns = max((len(row) for row in tiles), default=0)
    if columns == 0:
        raise ImageError("a sheet of no tiles; give at least one")
    _check_titles(tiles, columns, row_titles, column_titles, captions)
    rows: list[list[_Cell]] = []
    for row, beside, below in zip_longest(tiles, row_titles, captions):
        rows.append([_label(beside or ""), *_row(row, below or (), scale)])
    widths = [max(tile.shape[-1] for tile in column if tile is not None) * scale for column in zip_longest(*tiles)]
    above = [_label(text, width) for text, width in zip(column_titles, widths, strict=False)]
    return [[_label(""), *above], *rows]


@dataclass(frozen=True)
class _Layout:
    """Where the columns and rows of a table begin, in pixels, below its heading."""

    heading: _Text
    lefts: list[int]
    tops: list[int]
    size: tuple[int, int]

    @classmethod
    def of(cls, rows: Sequence[Sequence[_Cell]], title: str) -> "_Layout":
        columns = max(len(row) for row in rows)
        widths = [max(row[column].width for row in rows if column < len(row)) for column in range(columns)]
        heights = [max(cell.height for cell in row) for row in rows]
        lefts = _starts(_MARGIN, widths)
        heading = _wrapped(title, lefts[-1] - _GUTTER - _MARGIN, _TITLE_SIZE)
        tops = _starts(_MARGIN, [heading.height, *heights])
        size = max(lefts[-1] - _GUTTER, _MARGIN + heading.width) + _MARGIN, tops[-1] - _GUTTER + _MARGIN
        return cls(heading, lefts[:-1], tops[1:-1], size)


def _starts(first: int, sizes: Sequence[int]) -> list[int]:
    """Where each begins, and where the next one after the last would; what has no size takes no gutter either."""
    return list(accumulate((size + _GUTTER if size else 0 for size in sizes), initial=first))


def _wrapped(text: str, width: int = 0, size: int = _TEXT_SIZE) -> _Text:
    limit = max(width, _TEXT_WIDTH)
    text, font = readable(text, size)
    lines = chain.from_iterable(_wrapped_line(line, limit, font) for line in text.splitlines())
    return _Text(tuple(lines), size, font)


def _wrapped_line(text: str, limit: int, font: Font) -> list[str]:
    """Break at spaces; a longer word keeps a line for itself, and its column grows."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and _length(longer, font) > limit:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def _length(text: str, font: Font) -> int:
    return math.ceil(font.getlength(text))


def _line_height(size: int) -> int:
    return math.ceil(1.3 * size)
