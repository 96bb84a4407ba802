"""Transactions wait behind others' commits one by one, though one commit could hold them all."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
import trio.testing

from hounsfield.archive.engine.engine import EngineOptions, open_engine
from hounsfield.archive.engine.errors import StorageFailedError
from hounsfield.archive.engine.record_keeping import GROUP_MAX, RecordKeeping
from hounsfield.archive.engine.stores import Stores
from hounsfield.archive.index.records import Change, Key, Kind
from hounsfield.storage_backends.api import Batch, Snapshot
from hounsfield.storage_backends.errors import StorageError
from support.archives import stores_in

OPTIONS = EngineOptions()


class Note(msgspec.Struct, frozen=True):
    text: str


NOTE = Kind("note", Note, lambda note: [Key("text", note.text, unique=True)])


def noting(text: str) -> Callable[[Change], int]:
    def plan(change: Change) -> int:
        change.put(NOTE, change.new_id(), Note(text))
        return change.now_ns

    return plan


@contextmanager
def somebody_commits(stores: Stores) -> Iterator[None]:
    """As if another process were in the middle of a commit."""
    begun, go_on = threading.Event(), threading.Event()

    def plan(_: Snapshot) -> Sequence[Batch]:
        begun.set()
        go_on.wait()
        return []

    other = threading.Thread(target=stores.store.commit_planned, args=(plan,))
    other.start()
    begun.wait()
    try:
        yield
    finally:
        go_on.set()
        other.join()


async def test_what_is_asked_for_while_another_commits_is_committed_together(tmp_path: Path) -> None:
    with stores_in(tmp_path / "data") as stores:
        async with open_engine(stores, OPTIONS, owner="test") as engine:
            keeping = engine.record_keeping
            commits, made = keeping.commits, keeping.transactions
            moments: list[int] = []

            async def note(text: str) -> None:
                moments.append(await keeping.commit("test", noting(text)))

            async with trio.open_nursery() as nursery:
                with somebody_commits(stores):
                    for number in range(GROUP_MAX + 3):
                        nursery.start_soon(note, str(number))
                        await trio.testing.wait_all_tasks_blocked()
            assert keeping.transactions - made == GROUP_MAX + 3
            assert keeping.commits - commits == 2
            assert len(set(moments)) == 2
            with keeping.reading("test") as view:
                assert len(list(view.every(NOTE))) == GROUP_MAX + 3


@pytest.mark.parametrize(
    ("raised", "expected"), [(StorageError("no"), StorageFailedError), (LookupError("no"), LookupError)]
)
async def test_a_commit_that_fails_before_it_has_taken_anything_along_answers_those_who_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raised: Exception, expected: type[Exception]
) -> None:
    with stores_in(tmp_path / "data") as stores:
        keeping = RecordKeeping(stores.store, stores.plugin_records, lambda: None)

        def fails(*_: Any, **__: Any) -> None:
            raise raised

        async with trio.open_nursery() as nursery:
            await nursery.start(keeping.run)
            with monkeypatch.context() as patch:
                patch.setattr(stores.plugin_records, "commit_gathered", fails)
                with pytest.raises(expected):
                    await keeping.commit("test", noting("1"))
            await keeping.commit("test", noting("1"))
            nursery.cancel_scope.cancel()
