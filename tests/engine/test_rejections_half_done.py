"""Killed, overtaken, or with an index that was lost: a note that was stored is followed, once, as a whole."""

from __future__ import annotations

import copy
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian

from hounsfield.archive.engine.correction_requests import CorrectionPlanner, Request
from hounsfield.archive.engine.engine import EngineOptions, open_engine
from hounsfield.archive.engine.stores import Stores
from hounsfield.archive.index import checking, tables
from hounsfield.archive.index.corrections import is_hidden
from hounsfield.archive.index.rejections import RejectionError, Rejections
from hounsfield.archive.index.rows import StudyRow
from support.archives import ct_slice, encode, store, stores_in
from support.contents import contents
from support.killed_commits import KilledError, kill_after
from support.rejection import EXPIRED, REASONS, SAFETY, note, note_data_set

STUDIES = ("1.2.3.1", "1.2.3.2")
WAITING = b"rejecting/"


def instance(study: str, series: int, number: int) -> tuple[str, str, str]:
    return study, f"{study}.{series}", f"{study}.{series}.{number}"


#: The same bytes whenever it is sent.
SENT = {
    uids: ct_slice(study_uid=uids[0], series_uid=uids[1], sop_uid=uids[2])
    for uids in (
        instance(study, series, number) for study in STUDIES for series in (1, 2) for number in (1, 2)
    )
}
ALL = tuple(SENT)


def rejecting(*named: tuple[str, str, str], code: str = SAFETY) -> bytes:
    return encode(saying(*named, code=code))


def saying(*named: tuple[str, str, str], code: str = SAFETY) -> Dataset:
    references: dict[str, dict[str, list[str]]] = {}
    for study, series, sop in named:
        references.setdefault(study, {}).setdefault(series, []).append(sop)
    return note_data_set(references, code)


async def send(stores: Stores, *sent: bytes, follow: bool = True) -> None:
    async with open_engine(stores, EngineOptions(), owner="test") as engine:
        if not follow:  # as when the worker dies when it has stored the note
            engine._ingest.note_stored = trio.lowlevel.checkpoint
        for data in sent:
            await store(engine, data, ExplicitVRLittleEndian)


def shown(stores: Stores) -> set[tuple[str, str, str]]:
    """What a reader finds, notes left out; the index must be sound."""
    catalog, found = stores.catalog, set()
    archive = checking.Archive(
        stores.store, stores.keyring, catalog, stores.sealer, stores.hashes, stores.journal, stores.log,
        stores.ledger,
    )  # fmt: skip
    names = ("rows", "counts", "places", "tokens")
    assert checking.check_all(archive, [(name, getattr(checking, f"check_{name}")) for name in names]) == []
    with stores.store.snapshot() as snapshot:
        for key, sealed in snapshot.scan(tables.STUDY):
            study = catalog.open_row(tables.STUDY, key, sealed, StudyRow)
            if not is_hidden(study.uid):
                for series_key, series in catalog.series_of(snapshot, key):
                    rows = catalog.instances_of(snapshot, series_key)
                    found |= {(study.uid, series.uid, row.sop_uid) for row in rows}
    return {uids for uids in found if uids in SENT or uids[1].startswith("1.2.4")}


@pytest.mark.parametrize("code", [SAFETY, EXPIRED])
def test_killed_at_any_commit_a_stored_note_is_followed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    named = ALL[:3]
    ended = False
    for commits in range(20):
        directory = tmp_path / str(commits)
        with stores_in(directory) as stores:
            trio.run(send, stores, *SENT.values())
            with monkeypatch.context() as patch:
                trio.run(lambda: send(stores, rejecting(*named, code=code), follow=False))
                kill_after(stores, patch, commits)
                try:
                    stores.rejections.resume()
                    ended = True
                except KilledError:
                    pass
            assert shown(stores) in (set(ALL), set(ALL) - set(named))  # nothing is half-visible
        with stores_in(directory) as stores:
            stores.catch_up(at_start=True)
            assert shown(stores) == set(ALL) - set(named)
            with stores.store.snapshot() as snapshot:
                assert len(stores.rejections.all(snapshot)) == 1
                assert not list(snapshot.scan(tables.META, prefix=WAITING))
        if ended:
            break
    assert ended


def test_killed_at_any_commit_an_undoing_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    named = ALL[:3]
    ended = False
    for commits in range(20):
        directory = tmp_path / str(commits)
        with stores_in(directory) as stores:
            trio.run(send, stores, *SENT.values(), rejecting(*named))
            number = made(stores)[0]
            with monkeypatch.context() as patch:
                kill_after(stores, patch, commits)
                try:
                    stores.rejections.undo(number, actor="t", reason="mistaken", at_ns=time.time_ns())
                    ended = True
                except KilledError:
                    pass
        with stores_in(directory) as stores:
            stores.catch_up(at_start=True)
            with stores.store.snapshot() as snapshot:
                undone = bool(stores.rejections.get(snapshot, number).reverted_ns)
            assert shown(stores) == set(ALL) - (set() if undone else set(named))
            assert undone or not ended
        if ended:
            break
    assert ended


def made(stores: Stores) -> list[int]:
    with stores.store.snapshot() as snapshot:
        return [row.number for row in stores.rejections.all(snapshot) if not row.reverted_ns]


def test_a_note_that_waits_is_followed_when_the_index_is_lost(tmp_path: Path) -> None:
    directory = tmp_path / "data"
    with stores_in(directory) as stores:
        trio.run(lambda: send(stores, *SENT.values(), rejecting(*ALL[:3]), follow=False))
        assert shown(stores) == set(ALL)
    shutil.rmtree(directory / "index")
    with stores_in(directory) as stores:
        stores.reindex(lambda _done, _all: None)
        assert shown(stores) == set(ALL[3:])


@pytest.mark.parametrize("code", REASONS)
def test_an_index_from_before_the_rejection_learns_of_it(tmp_path: Path, code: str) -> None:
    """As after a power cut, or from a backup: the rejection is in the ledger, what came again in segments."""
    directory, saved = tmp_path / "data", tmp_path / "saved"
    with stores_in(directory) as stores:
        trio.run(send, stores, *list(SENT.values())[:2])
    shutil.copytree(directory / "index", saved)
    with stores_in(directory) as stores:
        trio.run(send, stores, SENT[ALL[2]], rejecting(*ALL[:3], code=code), SENT[ALL[0]], SENT[ALL[3]])
        expected = {ALL[3], ALL[0]} if code == EXPIRED else {ALL[3]}
        assert shown(stores) == expected
    shutil.rmtree(directory / "index")
    saved.rename(directory / "index")
    with stores_in(directory) as stores:
        stores.catch_up(at_start=True)
        assert shown(stores) == expected
        assert len(made(stores)) == 1


def test_several_workers_follow_a_note_once(tmp_path: Path) -> None:
    with stores_in(tmp_path / "data") as stores:
        trio.run(lambda: send(stores, *SENT.values(), rejecting(*ALL[:3]), follow=False))
        others = [
            Rejections(
                store=stores.store, sealer=stores.sealer, catalog=stores.catalog, journal=stores.journal,
                indexer=stores.indexer,
            )
            for _ in range(4)
        ]  # fmt: skip
        barrier = threading.Barrier(len(others))

        def resume(one: Rejections) -> None:
            barrier.wait()
            one.resume()

        threads = [threading.Thread(target=resume, args=(one,)) for one in others]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert shown(stores) == set(ALL[3:])
        assert len(made(stores)) == 1


def test_several_ask_at_once_and_one_follows_the_note(tmp_path: Path) -> None:
    with stores_in(tmp_path / "data") as stores:
        rejection = note({STUDIES[0]: {ALL[0][1]: [ALL[0][2]]}}, SAFETY, sop_uid="1.2.9.1")
        trio.run(send, stores, *SENT.values(), rejection)
        stores.rejections.undo(made(stores)[0], actor="t", reason="mistaken", at_ns=time.time_ns())
        workers = 4
        barrier = threading.Barrier(workers)
        refused: list[str] = []

        class Meeting(Rejections):
            def _shown(self, sop_uid: str) -> Any:
                found = super()._shown(sop_uid)
                barrier.wait()  # all have seen that it is shown
                return found

        def follow() -> None:
            one = Meeting(
                store=stores.store, sealer=stores.sealer, catalog=stores.catalog, journal=stores.journal,
                indexer=stores.indexer,
            )  # fmt: skip
            try:
                one.follow("1.2.9.1", actor="t")
            except RejectionError as error:
                refused.append(str(error))

        threads = [threading.Thread(target=follow) for _ in range(workers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        (number,) = made(stores)
        assert refused == [f"this note is followed already: it is rejection {number}"] * (workers - 1)
        assert shown(stores) == set(ALL[1:])


def move(stores: Stores, study: str, series: str, to_study: str) -> None:
    request = Request(
        kind="move-series", actor="t", reason="wrong", study=study, series=(series,), to_study=to_study
    )
    planner = CorrectionPlanner(stores.catalog, stores.corrections)
    at_ns = time.time_ns()
    stores.corrections.make(lambda snapshot, number: planner.plan(snapshot, number, request, at_ns))


@pytest.mark.parametrize("lost", ["whole", "since the note"])
def test_what_expired_under_a_name_it_got_later_and_came_again_is_found_by_a_reindex(
    tmp_path: Path, lost: str
) -> None:
    """Until the move is replayed nothing takes the first away, and what came again reads as a copy of it."""
    study, series, sop = ALL[0]
    directory, saved = tmp_path / "data", tmp_path / "saved"
    with stores_in(directory) as stores:
        trio.run(send, stores, SENT[ALL[0]], rejecting(("1.2.5", series, sop), code=EXPIRED))
    shutil.copytree(directory / "index", saved)
    with stores_in(directory) as stores:
        move(stores, study, series, "1.2.5")
        assert sops(stores) == set()
        trio.run(send, stores, SENT[ALL[0]])
        assert sops(stores) == {sop}
        before = contents(stores)
    shutil.rmtree(directory / "index")
    if lost == "since the note":
        saved.rename(directory / "index")
    with stores_in(directory) as stores:
        if lost == "whole":
            stores.reindex(lambda _done, _all: None)
        else:
            stores.catch_up(at_start=True)
        assert sops(stores) == {sop}
        after = contents(stores)
        assert (after["instance"], after["version"]) == (before["instance"], before["version"])
        assert not after["spare"]


Step = tuple[str, Any]
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("send"), st.sampled_from(ALL)),
        st.tuples(
            st.just("reject"),
            st.tuples(st.lists(st.sampled_from(ALL), min_size=1, max_size=4), st.sampled_from(REASONS)),
        ),
        st.tuples(st.just("note again"), st.tuples(st.integers(0, 3), st.booleans())),
        st.tuples(st.just("undo"), st.integers(0, 3)),
        st.tuples(st.just("move"), st.sampled_from(ALL)),
        st.tuples(st.just("move back"), st.integers(0, 3)),
    ),
    max_size=10,
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
def test_whatever_happened_a_reindex_gives_the_same(
    tmp_path_factory: pytest.TempPathFactory, steps: list[Step]
) -> None:
    directory = tmp_path_factory.mktemp("history") / "data"
    model = _Model()
    notes: list[tuple[Any, list[Any], str]] = []
    clock = 0
    with stores_in(directory) as stores:
        for step, what in steps:
            if step == "send":
                trio.run(send, stores, SENT[what])
                model.send(what)
            elif step == "reject":
                notes.append((saying(*what[0], code=what[1]), *what))
                trio.run(send, stores, encode(notes[-1][0]))
                model.reject(what[0], what[1], len(notes))
            elif step == "note again" and notes:
                number, differs = what[0] % len(notes), what[1]
                data, named, code = notes[number]
                if differs:
                    clock += 1
                    data = copy.deepcopy(data)
                    data.ContentTime = f"{clock:06}"
                    model.note_again(named, code, number + 1)
                trio.run(send, stores, encode(data))
            elif step == "undo" and (numbers := made(stores)):
                number = numbers[what % len(numbers)]
                stores.rejections.undo(number, actor="t", reason="mistaken", at_ns=time.time_ns())
                model.undo(what % len(numbers))
            elif step == "move" and any(uids in shown(stores) and uids[1] == what[1] for uids in ALL):
                if what[1] not in model.moved:
                    move(stores, what[0], what[1], "1.2.5")
                    model.moved[what[1]] = None
            elif step == "move back" and model.moved:
                with stores.store.snapshot() as snapshot:
                    rows = [row for row in stores.corrections.all(snapshot) if not row.reverted_ns]
                row = rows[what % len(rows)]
                stores.corrections.revert(row.number, actor="t", reason="right", at_ns=time.time_ns())
                del model.moved[next(iter(row.series))]
            assert sops(stores) == model.visible()
        before = contents(stores)
    shutil.rmtree(directory / "index")
    with stores_in(directory) as stores:
        stores.reindex(lambda _done, _all: None)
        assert sops(stores) == model.visible()
        if not model.met:
            assert contents(stores)["instance"].keys() == before["instance"].keys()
            assert contents(stores)["study"] == before["study"]
            assert contents(stores)["place"] == before["place"]


def sops(stores: Stores) -> set[str]:
    shown(stores)
    with stores.store.snapshot() as snapshot:
        return {uids[2] for uids in ALL if stores.catalog.places(snapshot, "instance", uids[2])}


class _Model:
    """What should be visible: an object is when one of its records is named by no rejection in force."""

    def __init__(self) -> None:
        self.records: dict[tuple[str, str, str], list[int]] = {}  # when each was received
        self.rejections: list[tuple[frozenset[Any], int, int]] = []  # in force: what, before when, which note
        self.moved: dict[str, None] = {}
        self.met = False
        self._clock = 0

    def send(self, uids: tuple[str, str, str]) -> None:
        self._clock += 1
        times = self.records.setdefault(uids, [])
        hidden = [self._hidden(uids, at) for at in times]
        if not times or (all(hidden) and not self._hidden(uids, self._clock)):
            times.append(self._clock)
            self.met = self.met or len(times) > 1

    def reject(self, named: list[tuple[str, str, str]], code: str, note: int) -> None:
        self._clock += 1
        self.rejections.append((frozenset(named), self._clock if code == EXPIRED else 1 << 60, note))

    def note_again(self, named: list[tuple[str, str, str]], code: str, note: int) -> None:
        """With something else in it, which names the same."""
        self.met = True
        if code == EXPIRED or all(one[2] != note for one in self.rejections):
            self.reject(named, code, note)

    def undo(self, number: int) -> None:
        del self.rejections[number]

    def _hidden(self, uids: tuple[str, str, str], at: int) -> bool:
        return any(uids in named and at < before for named, before, _ in self.rejections)

    def visible(self) -> set[str]:
        return {
            uids[2] for uids, times in self.records.items() if any(not self._hidden(uids, at) for at in times)
        }
