"""Danger: docs/conformance.md promises what the archive does not do, or hides what it does."""

from __future__ import annotations

import re
from pathlib import Path

from hounsfield.archive.app.conformance import TABLES, written_anew

DOCUMENT = Path(__file__).parents[2] / "docs" / "conformance.md"
MAKE = "write it anew: python -m hounsfield.archive.app.conformance docs/conformance.md"


def test_the_document_has_the_tables_as_they_are() -> None:
    document = DOCUMENT.read_text(encoding="utf-8")
    assert written_anew(document) == document, MAKE
    assert set(re.findall(r"<!-- table:([a-z-]+) -->", document)) == set(TABLES)


def test_tables_have_as_many_cells_in_every_line() -> None:
    for name, make in TABLES.items():
        lines = [line for line in make().splitlines() if line.startswith("|")]
        assert len({line.count("|") for line in lines}) <= 1, name
