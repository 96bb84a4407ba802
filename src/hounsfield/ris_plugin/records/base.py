"""What all records share."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from typing import Final

import msgspec

__all__ = ["NS", "Code", "Row", "Said", "beginnings", "folded", "seconds"]

NS: Final = 1_000_000_000
BEGINNING_CHARACTERS_MAX: Final = 12
"""Longer beginnings of a word are looked for by their first twelve characters, and then compared."""


class Row(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A record, or a part of one. Fields that have their default are not written."""


class Code(Row, frozen=True):
    """A coded concept (PS3.3 8): ``scheme`` is the designator, ``99...`` a private one."""

    value: str
    scheme: str = ""
    meaning: str = ""


class Said(Row, frozen=True):
    """That a sender, as of a moment, spoke last of some fields of a record."""

    at_ns: int
    sender: str
    fields: tuple[str, ...]


def seconds(moment_ns: int) -> int:
    """A moment as the ordinal of a key."""
    return max(0, moment_ns // NS)


def folded(text: str) -> str:
    """``text`` as it is compared: without case, accents and doubled spaces."""
    plain = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    return " ".join(plain.casefold().split())


def beginnings(name: str) -> Iterator[str]:
    """What a person name is found by: the beginnings of each word of each of its groups."""
    for word in {
        word for group in name.split("=") for part in group.split("^") for word in folded(part).split()
    }:
        for length in range(1, min(len(word), BEGINNING_CHARACTERS_MAX) + 1):
            yield word[:length]
