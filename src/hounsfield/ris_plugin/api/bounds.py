"""What no value of a request may be, whatever it is for: it could not be kept, or not be said further on."""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import date, datetime
from typing import Any, Final

import msgspec

from hounsfield.ris_plugin.errors import InvalidError

__all__ = ["ENTRIES_MAX", "INTEGER_MAX", "YEARS", "check"]

INTEGER_MAX: Final = (1 << 53) - 1
"""Of what JSON says, every reader has it exactly (RFC 8259 6)."""
YEARS: Final = range(1800, 2200)
"""Who lives, and what is planned for him; in nanoseconds it is an integer of 64 bits."""
ENTRIES_MAX: Final = 1000
"""Of one list: codes, sections, questions, parts of a series."""
_CONTROLS: Final = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
"""In no text that is for people: messages and objects could not say it (HL7 v2 2.7.1, PS3.5 6.1.3)."""


def check(asked: msgspec.Struct) -> None:
    """Raise InvalidError for a value that cannot be; the error names its field."""
    for name in asked.__struct_fields__:
        _check(name, getattr(asked, name))


def _check(name: str, value: Any) -> None:
    if isinstance(value, str):
        if _CONTROLS.search(value):
            raise InvalidError("a text has no control characters but tabs and line ends", name)
    elif isinstance(value, int):
        if abs(value) > INTEGER_MAX:
            raise InvalidError("the number is larger than anything that is counted", name)
    elif isinstance(value, (datetime, date)):
        if value.year not in YEARS:
            raise InvalidError(f"a year is one of {YEARS.start} to {YEARS.stop - 1}", name)
    elif isinstance(value, msgspec.Struct):
        check(value)
    elif isinstance(value, tuple):
        _check_all(name, value)


def _check_all(name: str, values: Iterable[Any]) -> None:
    for count, one in enumerate(values):
        if count == ENTRIES_MAX:
            raise InvalidError(f"a list has at most {ENTRIES_MAX} entries", name)
        _check(name, one)
