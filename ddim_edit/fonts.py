"""A font for any text in a picture: Pillow's own where it can draw it, else one of the system's, else plain ASCII.

Pillow's font has the letters of ASCII and little else, and what a font lacks comes out as boxes. Names of files are in
any script, so a text is drawn whole by the first font that has all its characters; without one it is spelled in ASCII:
letters without their accents, others as Python's `ascii` has them. ASCII text never depends on the machine.
"""

import unicodedata
from functools import cache

from PIL import Image, ImageDraw, ImageFont

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

# With Chinese, and most with Japanese and Korean too; Pillow looks for these names in the system's font folders.
SYSTEM_FONTS = (
    *("NotoSansCJK-Regular.ttc", "NotoSansCJKsc-Regular.otf", "NotoSansSC-Regular.otf", "SourceHanSansSC-Regular.otf"),
    *("wqy-microhei.ttc", "wqy-zenhei.ttc", "DroidSansFallbackFull.ttf", "DroidSansFallback.ttf", "uming.ttc"),
    *("PingFang.ttc", "Hiragino Sans GB.ttc", "STHeiti Light.ttc", "Arial Unicode.ttf"),  # macOS
    *("msyh.ttc", "simhei.ttf", "simsun.ttc"),  # Windows
    "DejaVuSans.ttf",  # no Chinese, but most alphabets
)
_NO_CHARACTER = "\uffff"  # Unicode promises that it never is one


def readable(text: str, size: int) -> tuple[str, Font]:
    """A text and a font that draws every character of it; the text is changed only where no font here does."""
    text = unicodedata.normalize("NFC", text)  # as macOS names files: e and an accent apart
    wanted = {character for character in text if not character.isspace()}
    for name in (None, *SYSTEM_FONTS):
        font = _font(name, size)
        if font and all(_draws(font, character) for character in wanted):
            return text, font
    return "".join(map(_spelled, text)), ImageFont.load_default(size)


def _spelled(character: str) -> str:
    if character.isspace() or (character.isascii() and character.isprintable()):
        return character
    base = unicodedata.normalize("NFD", character).encode("ascii", "ignore").decode()
    return base if base.isprintable() and base else ascii(character)[1:-1]


@cache
def _font(name: str | None, size: int) -> Font | None:
    try:
        return ImageFont.truetype(name, size) if name else ImageFont.load_default(size)
    except OSError:  # not on this machine
        return None


@cache
def _draws(font: Font, character: str) -> bool:
    """Whether the font has the character: what it lacks looks like what no font has."""
    if character.isascii():
        return character.isprintable()
    return _drawn(font, character) != _drawn(font, _NO_CHARACTER)


def _drawn(font: Font, character: str) -> bytes:
    paper = Image.new("L", (64, 64))
    ImageDraw.Draw(paper).text((0, 0), character, 255, font)
    return paper.tobytes()
