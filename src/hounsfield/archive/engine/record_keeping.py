"""Transactions of plugins, gathered: what is asked for while one commit runs is made together by the next.

One commit costs a sync of the ledger however many transactions it holds, so eight connections that each wait
for theirs share it. What a commit holds is gathered when its turn has come among all workers' commits: the
longer it has to wait, the more it takes along. See :mod:`hounsfield.archive.index.records` for what a
transaction is.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import outcome
import trio

from hounsfield.archive.engine.commit_thread import CommitThread
from hounsfield.archive.engine.errors import ClosedError, EngineError, OutOfResourcesError, StorageFailedError
from hounsfield.archive.index.records import Change, Planned, Records, View
from hounsfield.storage_backends.api import KeyValueStore
from hounsfield.storage_backends.errors import StorageError, StoreFullError

GROUP_MAX = 64
"""Transactions of one commit: plans run under the index's lock, a third of a millisecond each, and objects
that are stored meanwhile wait for it."""

Result = TypeVar("Result")


@dataclass(slots=True)
class _Waiting:
    planned: Planned[Any]
    result: outcome.Outcome[Any] | None = None
    done: trio.Event = field(default_factory=trio.Event)


class RecordKeeping:
    """One worker's way to the records of plugins. ``run`` it; then any task may commit and read."""

    def __init__(self, store: KeyValueStore, records: Records, on_commit: Callable[[], None]) -> None:
        self._store = store
        self._records = records
        self._on_commit = on_commit
        self._waiting: deque[_Waiting] = deque()
        self._thread: CommitThread[list[_Waiting], None] | None = None
        self._committing = False
        self.transactions = 0
        self.commits = 0

    @contextmanager
    def reading(self, plugin: str) -> Iterator[View]:
        """The records of a plugin as they are now. Microseconds a record; not across an await."""
        with self._store.snapshot() as snapshot:
            yield self._records.view(plugin, snapshot)

    async def commit(self, plugin: str, plan: Callable[[Change], Result]) -> Result:
        """Make a transaction; what ``plan`` returns, once it is durable. Raises what ``plan`` raises.

        ``plan`` runs on another thread, perhaps several times; only the last time counts. EngineError when
        the storage fails: then nothing has happened. Who is cancelled waits for the end all the same.
        """
        if self._thread is None:
            raise ClosedError("the archive has stopped committing; ask again when it is back")
        waiting = _Waiting(Planned(plugin, plan))
        self._waiting.append(waiting)
        if not self._committing:
            self._begin()
        with trio.CancelScope(shield=True):
            await waiting.done.wait()
        await trio.lowlevel.checkpoint_if_cancelled()
        assert waiting.result is not None
        result: Result = waiting.result.unwrap()
        return result

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Commit until cancelled; what is asked for then is refused."""
        self._thread = CommitThread(self._commit, "hounsfield-records")
        task_status.started()
        try:
            await trio.sleep_forever()
        finally:
            thread, self._thread = self._thread, None
            thread.stop()
            refused = ClosedError("the archive has stopped committing; ask again when it is back")
            with suppress(IndexError):  # the thread may be taking some
                while True:
                    waiting = self._waiting.popleft()
                    waiting.result = outcome.Error(refused)
                    waiting.done.set()

    def _begin(self) -> None:
        assert self._thread is not None
        self._committing = True
        group: list[_Waiting] = []
        self._thread.submit(group, partial(self._end, group))

    def _end(self, group: list[_Waiting], done: outcome.Outcome[None]) -> None:
        for waiting in group:
            if waiting.result is None:  # a defect: what was raised is each one's answer
                assert isinstance(done, outcome.Error)
                waiting.result = done
            waiting.done.set()
        self.commits += 1
        self.transactions += len(group)
        self._committing = False
        self._on_commit()
        if self._waiting and self._thread is not None:
            self._begin()

    # ------------------------------------------------------------ on the thread

    def _gather(self, group: list[_Waiting]) -> list[Planned[Any]]:
        """Have ``group`` hold what waits by now."""
        with suppress(IndexError):  # nobody waits any more, or whoever did was refused just then
            while len(group) < GROUP_MAX:
                group.append(self._waiting.popleft())
        return [waiting.planned for waiting in group]

    def _commit(self, group: list[_Waiting]) -> None:
        try:
            results = self._records.commit_gathered(
                partial(self._gather, group), time.time_ns, most=GROUP_MAX
            )
        except StorageError as error:
            self._gather(group)
            failure: EngineError = StorageFailedError(
                f"the change could not be kept ({type(error).__name__}); nothing has changed, try again"
            )
            if isinstance(error, StoreFullError):
                failure = OutOfResourcesError(
                    "the disk is full up to its reserve: free space or add a tier, then try again"
                )
            failure.__cause__ = error
            results = [failure] * len(group)
        except BaseException:  # a defect: those that wait are told
            self._gather(group)
            raise
        for waiting, result in zip(group, results, strict=True):
            is_error = isinstance(result, Exception)
            waiting.result = outcome.Error(result) if is_error else outcome.Value(result)
