"""The experiments beside Orthanc run, from storing to figures. Of such sizes no figure means anything."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

import pytest
from benchmarks.bars import Settings
from benchmarks.http_load import Target
from benchmarks.peers.base import Peer, PeerError
from benchmarks.peers.ours import Hounsfield
from benchmarks.peers.servers import Orthanc

from benchmarks import beside, dicomweb, frames

SIZES = {"frames": 4, "slices": 6, "studies": 24, "pictures": 2, "series": 6}
SETTINGS = Settings(rounds=1, seconds=0.1, quick=True, sizes=SIZES)


class _Started:
    """Stands where a kind of server is started, and gives the one that runs already."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        self.name = peer.name

    def missing(self) -> None:
        return None

    def __call__(self, **_: Any) -> nullcontext[Peer]:
        return nullcontext(self._peer)


@pytest.fixture(scope="module")
def started() -> Iterator[dict[str, _Started]]:
    if Orthanc.missing():
        pytest.skip(f"Orthanc is not here: {Orthanc.missing()}")
    with ExitStack() as stack:
        yield {kind.__name__: _Started(stack.enter_context(kind())) for kind in (Hounsfield, Orthanc)}


@pytest.mark.parametrize("name", dicomweb.EXPERIMENTS)
def test_an_experiment_runs(name: str, started: dict[str, _Started], monkeypatch: pytest.MonkeyPatch) -> None:
    for kind, one in started.items():
        monkeypatch.setattr(beside, kind, one)
    # What is still at work only falsifies figures, and here they mean nothing.
    monkeypatch.setattr(beside, "wait_idle", lambda *_, **__: None)
    monkeypatch.setattr(frames, "wait_idle", lambda *_, **__: None)
    said: list[str] = []
    figures = dicomweb.EXPERIMENTS[name][0](SETTINGS, said.append)
    assert any("Orthanc" in line and "p99" in line for line in said)
    for figure in figures:
        assert len(figure.values) == SETTINGS.rounds
        assert all(value > 0 for value in figure.values)
    assert any(figure.unit == "×" for figure in figures)
    assert json.dumps([figure.to_json() for figure in figures])


def test_an_answer_that_is_none_ends_the_experiment(started: dict[str, _Started]) -> None:
    (peer,) = [one() for kind, one in started.items() if kind == "Hounsfield"]
    with peer as ours, pytest.raises(PeerError, match="404"):
        beside.ask(ours, Target("/dicom-web/studies/1.2.3/metadata"))
    with peer as ours, pytest.raises(PeerError, match="404"):
        beside.read_once(ours, [Target("/dicom-web/studies/1.2.3/metadata")])


def test_the_commands_names_are_known(tmp_path: Path) -> None:
    assert dicomweb.main(["--only", "nothing", "--json", str(tmp_path / "out.json")]) == 2


def test_what_was_never_asked_for_is_asked_for_once() -> None:
    """Every client of every round and question has frames of its own."""
    each = dicomweb.FRESH_EACH
    once = [Target(str(number)) for number in range(2 * dicomweb._fresh(each))]
    taken: list[str] = []
    for turn in range(2):
        for clients, count in each.items():
            targets = dicomweb._never_asked(once, each, None, turn, clients)  # type: ignore[arg-type]
            taken += [
                targets[(index + 37 * client) % len(targets)].path
                for client in range(clients)
                for index in range(count)
            ]
    assert len(taken) == len(set(taken)) == len(once)
