"""Text in pictures is drawn in any script that a font here has, and never as boxes."""

from pathlib import Path

import pytest
import torch
from fontTools.fontBuilder import FontBuilder  # comes with matplotlib
from fontTools.pens.ttGlyphPen import TTGlyphPen

import ddim_edit as de
from ddim_edit import fonts
from ddim_edit.fonts import readable

NAME = "小猫 Ω"


@pytest.fixture(autouse=True)
def no_system_fonts(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(fonts, "SYSTEM_FONTS", ())


@pytest.fixture
def chinese(tmp_path: Path) -> str:
    """A font that has all of NAME: bars of different widths, and a box for all else."""
    characters = sorted(set(NAME) | {" "})
    glyphs = [".notdef", *(f"uni{ord(character):04X}" for character in characters)]
    shapes = {}
    for number, glyph in enumerate(glyphs):
        pen = TTGlyphPen(None)
        if glyph != "uni0020":
            corners = [(0, 0), (0, 800), (100 + 100 * number, 800), (100 + 100 * number, 0)]
            pen.moveTo(corners[0])
            for corner in corners[1:]:
                pen.lineTo(corner)
            pen.closePath()
        shapes[glyph] = pen.glyph()
    builder = FontBuilder(1000)
    builder.setupGlyphOrder(glyphs)
    builder.setupCharacterMap({ord(c): glyph for c, glyph in zip(characters, glyphs[1:], strict=True)})
    builder.setupGlyf(shapes)
    builder.setupHorizontalMetrics(dict.fromkeys(glyphs, (1000, 0)))
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": "Bars", "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    path = tmp_path / "share" / "fonts" / "deep" / "Bars.ttf"
    path.parent.mkdir(parents=True)
    builder.save(path)
    return str(path)


def test_ascii_is_drawn_by_pillows_font_whatever_the_system_has(monkeypatch, chinese):
    plain = readable("a photo, 32.1 dB", 14)
    monkeypatch.setattr(fonts, "SYSTEM_FONTS", (chinese,))
    assert readable("a photo, 32.1 dB", 14)[0] == plain[0] == "a photo, 32.1 dB"
    assert getattr(readable("a photo", 14)[1], "path", None) == getattr(plain[1], "path", None)


def test_the_first_font_that_has_every_character_is_taken(monkeypatch, chinese):
    monkeypatch.setattr(fonts, "SYSTEM_FONTS", ("not on this machine.ttf", chinese))
    text, font = readable(NAME, 14)
    assert (text, font.path) == (NAME, chinese)
    assert readable(f"{NAME}狗", 14)[0] == "\\u5c0f\\u732b \\u03a9\\u72d7"  # one box would be one too many


@pytest.mark.skipif("sys.platform != 'linux'")
def test_fonts_are_found_by_name_in_the_folders_of_the_system(monkeypatch, chinese):
    monkeypatch.setenv("XDG_DATA_DIRS", str(Path(chinese).parents[2]))
    monkeypatch.setattr(fonts, "SYSTEM_FONTS", ("Bars.ttf",))
    fonts._font.cache_clear()  # pyright: ignore[reportPrivateUsage]
    assert readable(NAME, 14)[0] == NAME


@pytest.mark.parametrize(
    ("text", "spelled"),
    [
        ("小猫", r"\u5c0f\u732b"),
        ("café Ålborg", "cafe Alborg"),
        ("cafe\u0301", "cafe"),
        ("½", r"\xbd"),
        ("한", r"\ud55c"),
        ("bell\a", r"bell\x07"),
        ("two\nlines", "two\nlines"),
    ],
)
def test_without_a_font_text_is_spelled_in_ascii(text, spelled):
    assert readable(text, 14)[0] == spelled


def test_captions_are_drawn_in_the_font_of_their_text(monkeypatch, chinese):
    def drawn(name: str) -> torch.Tensor:
        return de.sheet([[torch.zeros(3, 8, 8)]], captions=[[name]])

    assert drawn("小猫").equal(drawn(r"\u5c0f\u732b"))
    monkeypatch.setattr(fonts, "SYSTEM_FONTS", (chinese,))
    assert drawn("小").shape == drawn("猫").shape
    assert not drawn("小").equal(drawn("猫"))
    assert not drawn("小猫").equal(drawn(r"\u5c0f\u732b"))
