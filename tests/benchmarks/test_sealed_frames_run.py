"""The bare server that frames are compared with: does it give the same frames, and does it all end?"""

from __future__ import annotations

from pathlib import Path

from benchmarks.bars import Settings
from benchmarks.sealed_frames import run


def test_ours_and_the_bare_server_give_the_frames_that_were_stored(tmp_path: Path) -> None:
    said: list[str] = []
    figures = run(Settings(rounds=1, seconds=0.3, scratch=tmp_path, sizes={"slices": 4}), said.append)
    assert [figure.what.rpartition(", ")[2] for figure in figures[3:]] == [
        "8 clients: ours ÷ bare",
        "ours",
        "bare",
    ]
    assert all(figure.value > 0 for figure in figures if figure.unit == "×")
    assert len(said) == 2
    assert not list(tmp_path.iterdir())  # servers and folders are gone
