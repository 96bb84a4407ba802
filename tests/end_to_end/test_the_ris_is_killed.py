"""Danger: kill -9 in a department's day loses an order that was acknowledged, or makes it two."""

from __future__ import annotations

from pathlib import Path

from crash_truth import ris_kills

LIVES = 2


def test_everything_killed_at_random_moments_of_a_day(tmp_path: Path) -> None:
    """The same archive is killed and started again; 60 times is ``make ris-kills``."""
    tally = ris_kills.run(tmp_path / "server", rounds=LIVES, seed=7, within_s=1.5)
    assert tally.well, tally.wrong
    assert tally.rounds == LIVES
    assert tally.orders > 0
    assert tally.told > 0
