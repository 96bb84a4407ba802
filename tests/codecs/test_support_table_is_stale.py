"""Danger: docs/conformance.md promises a transfer syntax that is not there, or hides one that is."""

from __future__ import annotations

from pathlib import Path

from hounsfield.codecs.coders import CODERS
from hounsfield.codecs.registry import TRANSFER_SYNTAXES
from hounsfield.codecs.support_table import markdown

DOCUMENT = Path(__file__).parents[2] / "docs" / "conformance.md"


def test_the_document_has_the_table_as_it_is() -> None:
    assert markdown() in DOCUMENT.read_text(), "write it anew: python -m hounsfield.codecs.support_table"


def test_every_transfer_syntax_has_its_line() -> None:
    lines = markdown().splitlines()[2:]
    assert [line.split(" | ")[1] for line in lines] == list(TRANSFER_SYNTAXES)
    assert set(CODERS) <= set(TRANSFER_SYNTAXES)
    assert all(line.count("|") == 9 for line in lines)
