"""kill -9 of everything while series move: each object is there once, as it was; nothing is left over."""

from __future__ import annotations

from pathlib import Path

from crash_truth import tier_kills


def test_everything_is_killed_while_series_move(tmp_path: Path) -> None:
    """The same directory is killed and started again, twice; 20 times is ``make tier-kills``."""
    tally = tier_kills.run(tmp_path, rounds=2, seed=5)
    assert tally.kills == 2
    assert tally.acknowledged
