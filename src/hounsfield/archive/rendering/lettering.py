"""The letters of texts that are drawn into pictures: of the fonts that are configured, else Pillow's own.

Pillow's own font has the letters of ASCII and nothing depends on the machine with it. Names in Cyrillic,
Greek, Arabic, kanji or hangul need fonts that have those: whoever runs the archive says where they are.
"""

from __future__ import annotations

import unicodedata
from functools import cache, lru_cache
from itertools import groupby
from typing import TYPE_CHECKING, Any, Final

from hounsfield.archive.rendering.errors import NotRenderableError
from hounsfield.codecs.deferred import deferred

if TYPE_CHECKING:
    from PIL import ImageFont as PilFont
    from PIL import features as pil_features
else:
    PilFont, pil_features = deferred("PIL.ImageFont"), deferred("PIL.features")

SIZE_MIN: Final = 9
_LINES_PER_SIDE: Final = 32
"""Of text beside each other: what radiologists are used to from workstations."""
_SIZES_KEPT: Final = 16
_LETTERS_KEPT: Final = 4096
_SIZE_TO_TELL: Final = 24
"""Pixels at which a letter is told from the sign that stands for a missing one."""
_NO_LETTER: Final = "\uffff"
"""A code point that is none (Unicode 23.7): every font draws its sign for what it lacks."""
#: Latin letters that are no other with an accent.
_SPELT: Final = str.maketrans({
    "ß": "ss", "ẞ": "SS", "æ": "ae", "Æ": "AE", "œ": "oe", "Œ": "OE", "ø": "o", "Ø": "O", "đ": "d", "Đ": "D",
    "ð": "d", "Ð": "D", "þ": "th", "Þ": "Th", "ł": "l", "Ł": "L", "ı": "i", "’": "'", "–": "-",
})  # fmt: skip


def size_for(rows: int, columns: int) -> int:
    """Pixels of a letter's height in a picture of that size."""
    return max(SIZE_MIN, min(rows, columns) // _LINES_PER_SIDE)


@cache
def _shapes() -> bool:
    """Whether letters are joined and run from right to left where their script does so."""
    return bool(pil_features.check("raqm"))


@lru_cache(_SIZES_KEPT)
def _own(size: int) -> Any:
    """The font that Pillow carries. Loading it takes 20 ms."""
    return PilFont.load_default(size)


@lru_cache(_SIZES_KEPT)
def _loaded(path: str, size: int, *, shaped: bool = True) -> Any:
    engine = PilFont.Layout.RAQM if shaped and _shapes() else PilFont.Layout.BASIC
    try:
        return PilFont.truetype(path, size, layout_engine=engine)
    except OSError as error:
        raise NotRenderableError("a file that rendered.fonts names is not read as a font") from error


@lru_cache(_LETTERS_KEPT)
def _has(path: str, letter: str) -> bool:
    """Whether a font has a letter: it is drawn otherwise than what the font does not have."""
    font = _loaded(path, _SIZE_TO_TELL, shaped=False)
    drawn, missing = (font.getmask(one) for one in (letter, _NO_LETTER))
    return bool(drawn.size != missing.size or bytes(drawn) != bytes(missing))


class Lettering:
    """Writes texts. Immutable; any thread may use it."""

    def __init__(self, fonts: tuple[str, ...] = ()) -> None:
        self.fonts = fonts

    def can_write(self, text: str) -> bool:
        """Whether every letter of a text is to be had, accents included."""
        return all(letter.isascii() or self.has(letter) for letter in _shown(text))

    def has(self, letter: str) -> bool:
        """Whether one of the fonts has a letter."""
        return bool(self._font_of(letter))

    def write(  # noqa: PLR0917
        self, pen: Any, at: tuple[float, float], text: str, size: int, ink: Any, edge: Any, stroke: int
    ) -> None:
        """One line whose top left corner is ``at``, in ``ink`` with an ``edge`` of ``stroke`` pixels."""
        x, baseline = at[0], at[1] + _own(size).getmetrics()[0]
        for font, piece in self._runs(text, size):
            pen.text(
                (x, baseline), piece, fill=ink, font=font, anchor="ls", stroke_width=stroke, stroke_fill=edge
            )
            x += font.getlength(piece)

    def _runs(self, text: str, size: int) -> list[tuple[Any, str]]:
        """Pieces and the font of each: the first that has the letter, else what Pillow's can do instead."""
        if not self.fonts:
            return [(_own(size), plain(text))]
        found: list[tuple[Any, str]] = []
        for path, letters in groupby(_shown(text), self._font_of):
            piece = "".join(letters)
            found.append((_loaded(path, size), piece) if path else (_own(size), plain(piece)))
        return found

    def _font_of(self, letter: str) -> str:
        return next((path for path in self.fonts if letter == " " or _has(path, letter)), "")


BUILT_IN: Final = Lettering()


def _shown(text: str) -> str:
    """What of a text is drawn: letters with their accents in one, no control characters."""
    composed = unicodedata.normalize("NFC", text)
    return "".join(" " if c.isspace() else c for c in composed if c.isspace() or c.isprintable())


def plain(text: str) -> str:
    """Text in the letters of ASCII: without accents, what is not Latin as question marks."""
    parts = unicodedata.normalize("NFKD", text.translate(_SPELT))
    letters_only = "".join(c for c in parts if not unicodedata.combining(c) and (c == " " or c.isprintable()))
    return letters_only.encode("ascii", "replace").decode("ascii")
