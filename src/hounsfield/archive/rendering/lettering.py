"""The letters of texts that are drawn into pictures."""

from __future__ import annotations

import unicodedata
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from hounsfield.codecs.deferred import deferred

if TYPE_CHECKING:
    from PIL import ImageFont as PilFont
else:
    PilFont = deferred("PIL.ImageFont")

SIZE_MIN: Final = 9
_LINES_PER_SIDE: Final = 32
"""Of text beside each other: what radiologists are used to from workstations."""
_SIZES_KEPT: Final = 16
#: Latin letters that are no other with an accent.
_SPELT: Final = str.maketrans({
    "ß": "ss", "ẞ": "SS", "æ": "ae", "Æ": "AE", "œ": "oe", "Œ": "OE", "ø": "o", "Ø": "O", "đ": "d", "Đ": "D",
    "ð": "d", "Ð": "D", "þ": "th", "Þ": "Th", "ł": "l", "Ł": "L", "ı": "i", "’": "'", "–": "-",
})  # fmt: skip


def size_for(rows: int, columns: int) -> int:
    """Pixels of a letter's height in a picture of that size."""
    return max(SIZE_MIN, min(rows, columns) // _LINES_PER_SIDE)


@lru_cache(_SIZES_KEPT)
def letters(size: int) -> Any:
    """The font that Pillow carries, which has the letters of ASCII. Loading it takes 20 ms."""
    return PilFont.load_default(size)


def plain(text: str) -> str:
    """Text in the letters that there are: without accents, what is not Latin as question marks."""
    parts = unicodedata.normalize("NFKD", text.translate(_SPELT))
    letters_only = "".join(c for c in parts if not unicodedata.combining(c) and (c == " " or c.isprintable()))
    return letters_only.encode("ascii", "replace").decode("ascii")
