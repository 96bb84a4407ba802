"""Danger: after an older backup was restored, a number that others know is given to somebody else."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import hounsfield.ris_plugin
from hounsfield.ris_plugin.errors import ForbiddenError, InvalidError
from hounsfield.ris_plugin.numbers import SEQUENCES, SKIPPED_MAX, skip
from hounsfield.ris_plugin.orders import get
from ris.conftest import ADMINISTRATOR, CLERK, Desk


def test_numbers_that_are_left_out_are_not_given(desk: Desk) -> None:
    desk.procedure()
    before = int(desk.look(get, desk.order(desk.patient())).accession[-6:])
    reached = desk.do(skip, ADMINISTRATOR, 500)
    assert set(reached) == set(SEQUENCES)
    assert reached["accession"] == before + 500
    assert int(desk.look(get, desk.order(desk.patient("P2"))).accession[-6:]) == before + 501
    assert desk.do(skip, ADMINISTRATOR, 1)["patient"] == 501


@pytest.mark.parametrize("by", [0, -1, SKIPPED_MAX + 1])
def test_what_would_give_numbers_again_or_use_them_up_is_refused(desk: Desk, by: int) -> None:
    with pytest.raises(InvalidError):
        desk.do(skip, ADMINISTRATOR, by)
    with pytest.raises(ForbiddenError):
        desk.do(skip, CLERK, 5)


def test_every_sequence_that_others_know_is_left_out_of() -> None:
    """Whoever counts something new says here whether others know it."""
    root = Path(hounsfield.ris_plugin.__file__).parent
    text = "".join(path.read_text() for path in root.rglob("*.py"))
    assert set(re.findall(r"""change\.count\(["'](\w+)["']\)""", text)) == set(SEQUENCES)
