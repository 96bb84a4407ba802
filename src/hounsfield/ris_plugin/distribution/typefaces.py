"""Which fonts a text is printed in: the first that has a character prints it.

Those of ``report_fonts``, then DejaVu Sans Condensed, which comes with us (Latin, Greek, Cyrillic, Hebrew,
Arabic, Armenian, Georgian), then the Noto Sans fonts that the system has: Debian's fonts-noto-cjk and
fonts-noto-core, every script of Unicode. Only fonts that a text needs are opened.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple

from hounsfield.ris_plugin.languages import primary

__all__ = ["Typeface", "chosen", "points"]

OWN: Final = Path(__file__).with_name("fonts") / "DejaVuSansCondensed.ttf"
CJK: Final = Path("/usr/share/fonts/opentype/noto/NotoSansCJK-Regular.ttc")
NOTO: Final = Path("/usr/share/fonts/truetype/noto")
NUMBERS: Final = {"ja": 0, "ko": 1, "zh": 2, "zh-Hans": 2, "zh-Hant": 3, "zh-TW": 3, "zh-HK": 4}
"""Of the faces in the CJK collection: the same characters are drawn otherwise from country to country."""


class Typeface(NamedTuple):
    """A font of a file; ``number``: in its collection."""

    path: Path
    number: int = 0


def chosen(text: str, given: Sequence[str], language: str) -> list[Typeface]:
    """The main font and those that have what it has not, as far as ``text`` needs them."""
    needed = {ord(one) for one in text if unicodedata.category(one) not in ("Cc", "Cf", "Cn", "Co", "Cs")}
    main, *others = [*(Typeface(Path(one)) for one in given), Typeface(OWN)]
    used = [main]
    missing = needed - points(main)
    bold = bold_of(main)
    if bold != main and (needed & points(main)) - points(bold):
        used.append(main)  # what only the regular one has is printed in it, in headings too
    for one in _first(others, language):
        if missing & points(one):
            used.append(one)
            missing -= points(one)
    while missing:  # who has most of it: scripts borrow single characters from each other
        best = max(_noto(), key=lambda one: len(missing & points(one)), default=None)
        if best is None or not missing & points(best):
            break
        used.append(best)
        missing -= points(best)
    return used


def _first(others: Sequence[Typeface], language: str) -> Iterator[Typeface]:
    yield from others
    if CJK.is_file():
        number = NUMBERS.get("-".join(language.split("-")[:2]), NUMBERS.get(primary(language), 0))
        yield Typeface(CJK, number)


@cache
def _noto() -> tuple[Typeface, ...]:
    return tuple(Typeface(one) for one in sorted(NOTO.glob("NotoSans*-Regular.ttf")))


def bold_of(one: Typeface) -> Typeface:
    """The bold face beside a regular one, the regular one where there is none."""
    path = one.path
    bold = path.with_name(f"{path.stem.removesuffix('-Regular')}-Bold{path.suffix}")
    return Typeface(bold) if bold.is_file() else one


@cache
def points(one: Typeface) -> frozenset[int]:
    """The characters that a font has."""
    from fontTools.ttLib import TTFont

    with TTFont(one.path, fontNumber=one.number, lazy=True) as opened:
        return frozenset(opened.getBestCmap() or ())
