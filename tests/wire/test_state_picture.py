"""The danger: a picture of the state machine that shows another machine."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from hounsfield.archive.wire.state_picture import graphviz, markdown
from hounsfield.archive.wire.states import TRANSITIONS, Action, State

PAGE = Path(__file__).parents[2] / "docs" / "wire-states.md"


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == markdown()


def test_the_command_in_the_page_makes_the_page() -> None:
    made = subprocess.run(
        [sys.executable, "-m", "hounsfield.archive.wire.state_picture"], capture_output=True, check=True
    )
    assert made.stdout.decode() == markdown()


def test_the_picture_has_every_state_and_every_ordinary_action() -> None:
    picture = graphviz()
    for state in State:
        assert f"Sta{state.value} [" in picture
    for action in set(TRANSITIONS.values()):
        # AR-6 and AR-7 stay where they are
        if not action.name.startswith("AA_") and action not in (Action.AR_6, Action.AR_7):
            assert f"/ {action.value}" in picture
