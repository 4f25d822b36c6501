import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFont

from ddim_edit.errors import ConfigError, ImageError, NumericsError
from ddim_edit.images import enlarge, to_uint8
from ddim_edit.sheets import captioned, sheet, strip, tile_boxes

LONG = "A sentence that is far too long for the picture that it belongs to, gjpqy"
WORD = "OneWordThatIsMuchLongerThanItsPictureAndHasNoSpaceAtAll_gjpqy"


def white(height=16, width=16):
    return torch.ones(3, height, width)


def black(height=16, width=16):
    return -white(height, width)


def noise(seed, height=16, width=16):
    # No value near white, so that a tile can be told from the paper.
    return torch.rand(3, height, width, generator=torch.Generator().manual_seed(seed)) - 0.9


def ink(pixels):
    """How much darker than white paper a sheet is, in all."""
    return int((255 - to_uint8(pixels).astype(int)).sum())


def ink_of(texts, size=14):
    """The same for these texts, word by word, each drawn alone with room on all sides."""
    total = 0
    for word in (word for text in texts for word in text.split()):
        paper = Image.new("RGB", (1500, 100), "white")
        ImageDraw.Draw(paper).text((50, 30), word, (32, 32, 32), ImageFont.load_default(size))
        total += int((255 - np.asarray(paper).astype(int)).sum())
    return total


def count(picture, tile):
    """How often a tile occurs in a sheet, pixel for pixel."""
    windows = np.lib.stride_tricks.sliding_window_view(picture, tile.shape)
    return int((windows == tile).all(axis=(-3, -2, -1)).sum())


def place(picture, tile):
    """Where a tile is: (top, left)."""
    windows = np.lib.stride_tricks.sliding_window_view(picture, tile.shape)
    ((top, left, _),) = np.argwhere((windows == tile).all(axis=(-3, -2, -1)))
    return int(top), int(left)


def test_every_tile_is_on_the_sheet_once():
    tiles = [[noise(3 * row + column) for column in range(3)] for row in range(2)]
    result = to_uint8(sheet(tiles))
    assert all(count(result, to_uint8(tile)) == 1 for row in tiles for tile in row)


def test_tiles_stand_in_rows_and_columns():
    tiles = [[noise(0), noise(1)], [noise(2), noise(3)]]
    result = to_uint8(sheet(tiles))
    (a, b), (c, d) = [[place(result, to_uint8(tile)) for tile in row] for row in tiles]
    assert a[0] == b[0] < c[0] == d[0]
    assert a[1] == c[1] < b[1] == d[1]
    assert b[1] - a[1] > 16, "no gutter"
    assert c[0] - a[0] > 16, "no gutter"


def test_the_paper_is_white_on_all_sides():
    result = to_uint8(sheet([[black()]], captions=[[LONG]], title=LONG, row_titles=[WORD], column_titles=[WORD]))
    assert (result[:8] == 255).all()
    assert (result[-8:] == 255).all()
    assert (result[:, :8] == 255).all()
    assert (result[:, -8:] == 255).all()


def test_a_sheet_without_text_has_nothing_but_tiles():
    result = sheet([[black(), black()], [black()]])
    assert ink(result) == 3 * 16 * 16 * 3 * 255
    assert result.shape == (3, 2 * 16 + 8 + 24, 2 * 16 + 8 + 24)
    assert result.dtype == torch.float32
    assert (result[:, 12:28, 12:28] == -1).all()


def test_scale_enlarges_by_whole_pixels():
    tile = noise(0)
    large = to_uint8(tile).repeat(3, axis=0).repeat(3, axis=1)
    assert count(to_uint8(sheet([[tile]], scale=3)), large) == 1


def test_rows_may_be_shorter_and_tiles_of_different_sizes():
    tiles = [[noise(0, 8, 30), noise(1, 20, 10), noise(2)], [], [noise(3)]]
    result = to_uint8(sheet(tiles))
    places = [place(result, to_uint8(tile)) for row in tiles for tile in row]
    assert places[0][0] == places[1][0]
    assert places[1][1] >= places[0][1] + 30
    assert places[3][0] >= places[1][0] + 20


@pytest.mark.parametrize(
    "texts",
    [
        {"title": LONG},
        {"title": WORD},
        {"row_titles": [LONG, WORD]},
        {"column_titles": [WORD, LONG, "short"]},
        {"captions": [[LONG, WORD], ["two\nlines", "gjpqy\n\ngjpqy", LONG]]},
        {
            "row_titles": ["one", LONG],
            "column_titles": [LONG, "two"],
            "captions": [[], ["x", "PSNR 30.1 dB\nMSE 1e-4", WORD]],
        },
    ],
)
@pytest.mark.parametrize("scale", [1, 12])
def test_text_is_neither_clipped_nor_overlapped(texts, scale):
    # Ink adds up only where nothing is cut off and nothing lies on top of anything else.
    tiles = [[white(), white(), white()]] * 2
    captions = [text for row in texts.get("captions", ()) for text in row]
    drawn = [*texts.get("row_titles", ()), *texts.get("column_titles", ()), *captions]
    expected = ink_of(drawn) + ink_of([texts.get("title", "")], size=20)
    assert expected > 0
    assert ink(sheet(tiles, scale=scale, **texts)) == expected


def test_text_does_not_touch_tiles():
    tiles = [[black()] * 2] * 2
    captions = [[LONG, WORD], ["short"]]
    result = sheet(tiles, captions=captions, row_titles=[LONG, "b"], column_titles=["c", WORD], title="d")
    words = ink_of([LONG, WORD, "short", LONG, "b", "c", WORD]) + ink_of(["d"], size=20)
    assert ink(result) == 4 * 16 * 16 * 3 * 255 + words


def test_a_word_without_a_space_grows_its_column():
    narrow, wide = sheet([[black()]], captions=[["x"]]), sheet([[black()]], captions=[[WORD]])
    assert wide.shape[2] - narrow.shape[2] > 300
    assert wide.shape[1] == narrow.shape[1]


def test_long_text_is_wrapped():
    one, more = sheet([[black()]], captions=[["x"]]), sheet([[black()]], captions=[[LONG]])
    assert more.shape[1] > one.shape[1]
    assert more.shape[2] < 200


def test_wide_columns_wrap_later():
    short, tiles = "just one line below a wide picture", [[black(16, 400)]]
    assert sheet(tiles, captions=[[short]]).shape == sheet(tiles, captions=[["x"]]).shape
    assert sheet(tiles, column_titles=[short]).shape == sheet(tiles, column_titles=["x"]).shape
    enlarged = [[black(4, 100)]]
    assert sheet(enlarged, column_titles=[short], scale=4).shape == sheet(enlarged, column_titles=["x"], scale=4).shape


def test_a_title_wraps_at_the_width_of_the_sheet():
    tiles = [[black(16, 200)] * 2]
    assert sheet(tiles, title=LONG).shape[2] == sheet(tiles).shape[2]
    assert sheet(tiles, title=LONG).shape[1] > sheet(tiles, title="x").shape[1]


def test_line_breaks_are_kept():
    heights = [sheet([[black()]], captions=[[text]]).shape[1] for text in ("a", "a\nb", "a\n\nb")]
    assert heights[1] - heights[0] == heights[2] - heights[1] > 10
    # The first line needs room between itself and the picture, too.
    assert heights[0] - sheet([[black()]]).shape[1] > heights[1] - heights[0]


def test_captions_stand_below_their_own_tile():
    result = to_uint8(sheet([[noise(0), noise(1)]], captions=[["", "word"]]))
    top, left = place(result, to_uint8(noise(1)))
    dark = np.argwhere(result[top + 16 :].min(axis=-1) < 255)
    assert dark[:, 1].min() >= left
    assert dark[:, 0].min() > 0


def test_row_titles_stand_left_of_their_row():
    result = to_uint8(sheet([[noise(0)], [noise(1)]], row_titles=["", "word"]))
    top, left = place(result, to_uint8(noise(1)))
    rows, columns = np.nonzero(result[:, :left].min(axis=-1) < 255)
    assert rows.min() >= top
    assert columns.max() < left


def test_column_titles_stand_above_their_column():
    result = to_uint8(sheet([[noise(0), noise(1)]], column_titles=["", "word"]))
    top, left = place(result, to_uint8(noise(1)))
    assert np.nonzero(result[:top].min(axis=-1) < 255)[1].min() >= left


@pytest.mark.parametrize(
    ("texts", "reason"),
    [
        ({"row_titles": ["a", "b"]}, "2 row titles but room for 1"),
        ({"column_titles": ["a", "b", "c"]}, "3 column titles but room for 2"),
        ({"captions": [[], []]}, "2 rows of captions but room for 1"),
        ({"captions": [["a", "b", "c"]]}, "3 captions in a row but room for 2"),
    ],
)
def test_no_text_is_dropped_in_silence(texts, reason):
    with pytest.raises(ImageError, match=reason):
        sheet([[black(), black()]], **texts)


@pytest.mark.parametrize("tiles", [[], [[]], [[], []]])
def test_a_sheet_of_nothing(tiles):
    with pytest.raises(ImageError, match="no tiles"):
        sheet(tiles)


def test_what_is_no_tile():
    with pytest.raises(ImageError, match=r"\(1, 3, 8, 8\)"):
        sheet([[torch.zeros(1, 3, 8, 8)]])
    with pytest.raises(NumericsError):
        sheet([[torch.full((3, 8, 8), torch.nan)]])
    with pytest.raises(ConfigError, match="scale=0"):
        sheet([[black()]], scale=0)


def test_a_sheet_is_the_same_every_time():
    once, again = (sheet([[noise(0)]], captions=[[LONG]], title="t") for _ in range(2))
    assert torch.equal(once, again)


def test_a_strip_puts_frames_side_by_side():
    frames = [noise(0), noise(1, width=5), noise(2)]
    result = strip(frames, scale=2)
    assert result.shape == (3, 32, 2 * 37)
    assert torch.equal(result[:, ::2, ::2], torch.cat(frames, dim=2))
    assert torch.equal(result[:, 1::2, 1::2], torch.cat(frames, dim=2))


@pytest.mark.parametrize("frames", [[], [black(8), black(9)]])
def test_a_strip_needs_frames_of_one_height(frames):
    with pytest.raises(ImageError, match="one height"):
        strip(frames)


def test_boxes_say_where_the_tiles_are():
    tiles = [[torch.full((3, 5 + i, 7 + j), 0.1 * (i + 3 * j)) for j in range(2 + i)] for i in range(2)]
    text = {"row_titles": ["a", "b"], "captions": [["x"], ["a longer one", "y", "z"]], "title": "all", "scale": 3}
    whole, boxes = sheet(tiles, **text), tile_boxes(tiles, **text)
    assert [len(row) for row in boxes] == [2, 3]
    for row, line in zip(tiles, boxes, strict=True):
        for tile, (left, top, width, height) in zip(row, line, strict=True):
            assert (width, height) == (3 * tile.shape[2], 3 * tile.shape[1])
            shown = whole[:, top : top + height, left : left + width]
            assert float((shown - enlarge(tile, 3)).abs().max()) < 1 / 127


def test_a_captioned_frame_is_the_frame_with_a_line_below_and_one_size():
    frame = torch.linspace(-1, 1, 3 * 40 * 100).view(3, 40, 100)
    plain, short, long = (captioned(frame, text) for text in ("", "a", "a very long caption that does not fit"))
    assert plain.shape == short.shape == long.shape == (3, 40 + 27, 100)
    for made in (plain, short, long):
        assert float((made[:, :40] - frame).abs().max()) < 1 / 127
        assert (made[:, 40:, -4:] == 1).all()
    assert (plain[:, 40:] == 1).all()
    assert float(short.sum()) > float(long.sum())
