"""Objects come in: gathered within a budget, scanned once, committed in groups, acknowledged when durable.

A *session* takes the bytes of one object. ``commit`` scans them and queues the object for the
committer, which takes whatever is complete at that moment, up to a bound, and makes it durable and
indexed with one write, one sync and one transaction on a thread. While a group is being committed the
next one gathers: many associations share a commit, and one alone waits for no timer.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import outcome
import trio

from hounsfield.archive.dicom.attributes import extract
from hounsfield.archive.dicom.coercion import Coercions
from hounsfield.archive.dicom.incremental import StreamScanned
from hounsfield.archive.dicom.rejection import KEY_OBJECT_SELECTION
from hounsfield.archive.engine.budget import ByteBudget
from hounsfield.archive.engine.buffers import BufferPool, Gathering
from hounsfield.archive.engine.commit_thread import CommitThread
from hounsfield.archive.engine.compressing import Compressing
from hounsfield.archive.engine.errors import ClosedError, EngineError, ObjectTooLargeError, StorageFailedError
from hounsfield.archive.engine.gate import Gate
from hounsfield.archive.engine.group_commit import Fate, GroupCommit, Received, Undecided, result_of
from hounsfield.archive.engine.large_objects import LargeLimits, LargeObject, LargeObjects
from hounsfield.archive.engine.receiving import Shapes, object_row, scanned
from hounsfield.archive.engine.same_content import Comparing
from hounsfield.archive.engine.types import Outcome, Source, StoreResult
from hounsfield.archive.index.rows import ObjectRow
from hounsfield.codecs.registry import lookup
from hounsfield.storage_backends.api import Buffer

SCAN_INLINE_BYTES = (
    1 << 20
)  # a larger object, or a deflated one, is scanned on a thread: it may take a second
RECEIVING_S = 0.01  # a sender that was silent for so long is not about to complete its object


@dataclass(frozen=True, slots=True)
class IngestLimits:
    """What one worker holds at a time.

    ``bytes_in_flight_max``: received and not yet durable; past it sockets are not read.
    ``budget_wait_s_max``: how long a sender is held back before it is told "out of resources".
    ``stream_bytes_min``: an object that grows longer is stored while it comes in, in a segment of its own;
    shorter ones are gathered and share segments and commits. 32 MiB: every single X-ray is gathered. Large
    objects cost a file, a key and some syncs each, so they should be few; what is gathered costs memory.
    ``object_bytes_max``: what is longer never ends, or is not for this archive. No memory depends on it.
    ``group_wait_s_max``: how long the first object of a group waits for those that are being received at
    that moment; a commit costs much the same for one as for eight. An object alone never waits.
    ``group_objects_max``, ``group_bytes_max``: bound how long one commit can keep its first object waiting.
    """

    bytes_in_flight_max: int = 1 << 30
    budget_wait_s_max: float = 20.0
    stream_bytes_min: int = 32 << 20
    object_bytes_max: int = 1 << 40
    group_wait_s_max: float = 0.004
    group_objects_max: int = 256
    group_bytes_max: int = 64 << 20
    large: LargeLimits = field(default_factory=LargeLimits)


class _Pending:
    """An object that waits for its group's commit."""

    __slots__ = ("fate", "received", "size", "task")

    def __init__(self, received: Received, size: int) -> None:
        self.received = received
        self.size = size
        self.fate: Fate | None = None
        self.task: trio.lowlevel.Task | None = None


class IngestSession:
    """Receives one object. Use: ``write`` each piece, then ``commit``; ``abandon`` in a finally."""

    def __init__(
        self, ingest: Ingest, transfer_syntax_uid: str, sop_class_uid: str, sop_uid: str, source: Source
    ) -> None:
        self._ingest = ingest
        self._transfer_syntax_uid = transfer_syntax_uid
        self._sop_class_uid = sop_class_uid
        self._sop_uid = sop_uid
        self._source = source
        self._gathering: Gathering | None = Gathering(ingest.pool, ingest.expected_bytes)
        self._taken = 0
        self._large: LargeObject | None = None
        self.last_write = trio.current_time()

    @property
    def gathered_bytes(self) -> int:
        """How much has been gathered; 0 once the object is stored while it comes in, or is over."""
        return 0 if self._gathering is None else self._gathering.length

    def is_last_gathered(self, more: int) -> bool:
        """Whether, with ``more`` bytes, the object is one that is stored while it comes in."""
        return self._gathering is not None and (
            self._gathering.length + more > self._ingest.limits.stream_bytes_min
        )

    def gathered(self) -> memoryview:
        """What has been gathered, to be looked at and let go before more is written."""
        return memoryview(b"") if self._gathering is None else self._gathering.contents()

    async def write(self, data: Buffer) -> None:
        """Copy ``data`` to the object's end; waits while the memory budget is used up, or the disk is behind.

        Raises ``ObjectTooLargeError``, ``OutOfResourcesError`` and ``StorageFailedError``; the session is
        then abandoned.
        """
        if self._large is not None:
            await self._write_large(self._large, data)
            return
        gathering = self._gathering
        if gathering is None:
            raise ClosedError("this object was abandoned or committed already")
        limits = self._ingest.limits
        needed = gathering.length + len(data)
        if needed > limits.stream_bytes_min and needed <= limits.object_bytes_max:
            await self._write_large(None, data)
            return
        if needed > limits.object_bytes_max:
            self.abandon()
            raise _too_large(limits)
        more = gathering.capacity_for(len(data)) - self._taken  # memory is what is budgeted, not payload
        if more > 0:
            if not self._ingest.budget.take_nowait(more):
                try:
                    await self._ingest.budget.take(more)
                except EngineError:
                    self.abandon()
                    raise
            self._taken += more
        gathering.append(data)
        self.last_write = trio.current_time()

    async def _write_large(self, large: LargeObject | None, data: Buffer) -> None:
        """As :meth:`write`, of an object that is stored while it comes in, from here on (None) or already."""
        try:
            if large is None:
                large = self._large = await self._ingest.large.begin(
                    self._transfer_syntax_uid, self._row_of_stream
                )
                self.last_write = -math.inf  # no commit waits for the end of such an object
                gathering, self._gathering = self._gathering, None
                taken, self._taken = self._taken, 0
                assert gathering is not None
                await large.take_over(gathering, taken)
            if large.data_bytes + len(data) > self._ingest.limits.object_bytes_max:
                raise _too_large(self._ingest.limits)
            await large.write(data)
        except EngineError:
            self.abandon()
            raise

    def _row_of_stream(self, found: StreamScanned) -> ObjectRow:
        return object_row(
            extract(found.scanned, found.rest), found.scanned.layout,
            self._transfer_syntax_uid, self._sop_class_uid, self._sop_uid, self._source,
            self._ingest.coercions,
        )  # fmt: skip

    async def commit(self) -> StoreResult:
        """Return once the object is durable, indexed and visible to every worker.

        Raises ``OutOfResourcesError``, ``StorageFailedError`` or ``ClosedError``: not acknowledged.
        Once begun it is not cancelled: the object's bytes are in the committer's hands.
        """
        if self._large is not None:
            return await self._commit_large(self._large)
        gathering = self._gathering
        if gathering is None:
            raise ClosedError("this object was abandoned or committed already")
        try:
            announced = (self._transfer_syntax_uid, self._sop_class_uid, self._sop_uid, self._source)
            if gathering.length > SCAN_INLINE_BYTES or lookup(self._transfer_syntax_uid).deflated:
                coercions = self._ingest.coercions
                received = await self._ingest.gate.heavy(
                    scanned, gathering.contents(), *announced, None, coercions
                )
            else:
                received = scanned(
                    gathering.contents(), *announced, self._ingest.shapes, self._ingest.coercions
                )
            self._ingest.expected_bytes = gathering.length
            received = await self._ingest.compressing.compress(received, self._take_nowait)
            return await self._ingest.submit(_Pending(received, gathering.length))
        finally:
            self.abandon()

    def _take_nowait(self, more: int) -> bool:
        """Take memory for this object from the budget, to be given back with the rest."""
        taken = self._ingest.budget.take_nowait(more)
        self._taken += more * taken
        return taken

    async def _commit_large(self, large: LargeObject) -> StoreResult:
        try:
            result = await large.commit()
        except EngineError:
            self._ingest.failed += 1
            raise
        finally:
            self.abandon()
        self._ingest.stored_large(result, large.data_bytes)
        return result

    def abandon(self) -> None:
        """Forget what was received and give its memory back. Idempotent; nothing after a commit."""
        if self._large is not None:
            self._large.abandon()
            self._large = None
            self._ingest.sessions.discard(self)
        if self._gathering is not None:
            self._gathering.release()
            self._gathering = None
            self._ingest.budget.give_back(self._taken)
            self._ingest.sessions.discard(self)
            self._taken = 0


class Ingest:
    """One worker's way in. ``run`` must be running in a nursery for commits to proceed."""

    def __init__(
        self,
        group_commit: GroupCommit,
        gate: Gate,
        limits: IngestLimits,
        on_commit: Callable[[], None],
        *,
        compressing: Compressing,
        comparing: Comparing,
    ) -> None:
        self.limits = limits
        self.compressing = compressing
        self._comparing = comparing
        self.pool = BufferPool()
        self.budget = ByteBudget(limits.bytes_in_flight_max, limits.budget_wait_s_max)
        self.expected_bytes = 0  # the last object's size: the next is likely the same
        self.sessions: set[IngestSession] = set()
        self.shapes = Shapes()
        self.coercions: Coercions | None = None
        """What is done to the attributes of what comes in from now on; None: nothing."""
        self.outcomes = dict.fromkeys(Outcome, 0)
        self.failed = 0
        self.bytes_stored = 0
        self.groups = 0
        self._commit = group_commit
        self.gate = gate
        self.large = LargeObjects(group_commit.indexer, gate, self.pool, self.budget, limits.large)
        self._ended = False
        self._on_commit = on_commit
        #: Called when a key object selection was stored, before its sender is answered.
        self.note_stored: Callable[[], Awaitable[None]] = trio.lowlevel.checkpoint
        self._waiting: deque[_Pending] = deque()
        self._committing: list[_Pending] = []
        self._thread: CommitThread[list[Received], list[Fate]] | None = None
        self._work = trio.Event()
        self._closing = False

    def begin(
        self, *, transfer_syntax_uid: str, sop_class_uid: str, sop_instance_uid: str, source: Source
    ) -> IngestSession:
        """A session for one object. The UIDs are what the sender announced, "" where it did not."""
        if self._closing:
            raise ClosedError("the archive is draining; send to it again when it is back")
        session = IngestSession(self, transfer_syntax_uid, sop_class_uid, sop_instance_uid, source)
        self.sessions.add(session)
        return session

    def stored_large(self, result: StoreResult, size: int) -> None:
        """Count an object that went its own way to disk and index, and tell of it."""
        self.outcomes[result.outcome] += 1
        self.bytes_stored += size
        self._on_commit()

    async def submit(self, pending: _Pending) -> StoreResult:
        """Queue an object and wait for its fate."""
        fate = await self._queued(pending)
        while isinstance(fate, Undecided):
            if await self._comparing.settle(pending.received, fate):
                fate = result_of(pending.received.row, Outcome.DUPLICATE)
            else:
                fate = await self._queued(pending)
        if isinstance(fate, EngineError):
            self.failed += 1
            raise fate
        self.outcomes[fate.outcome] += 1
        self.bytes_stored += pending.size
        if fate.sop_class_uid == KEY_OBJECT_SELECTION and fate.outcome is not Outcome.DUPLICATE:
            await self.note_stored()
        return fate

    async def _queued(self, pending: _Pending) -> Fate:
        """What the next commit makes of an object."""
        if self._ended or self._thread is None:
            raise ClosedError("the archive has stopped committing; send again when it is back")
        pending.task = trio.lowlevel.current_task()
        self._waiting.append(pending)
        self._go_on()

        def abort(_raise_cancel: trio.lowlevel.RaiseCancelT) -> trio.lowlevel.Abort:
            return trio.lowlevel.Abort.FAILED  # its buffer is being read by the committer

        await trio.lowlevel.wait_task_rescheduled(abort)
        fate, pending.fate = pending.fate, None
        assert fate is not None
        return fate

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Commit groups until closed. Shielded: what was submitted is answered before this ends."""
        self._thread = CommitThread(self._commit.store, "hounsfield-commit")
        task_status.started()
        try:
            with trio.CancelScope(shield=True):
                while not (self._closing and not self._waiting and not self._committing):
                    self._work = trio.Event()
                    if self._waiting and not self._committing:
                        await self._gather()
                    else:
                        await self._work.wait()
            self._ended = True
        finally:
            self._thread.stop()

    def close(self) -> None:
        """Take no new objects; ``run`` returns when those submitted are committed."""
        self._closing = True
        self._work.set()

    async def _gather(self) -> None:
        """Start a group when what is being received beside its first object is here, or after a moment."""
        with trio.move_on_after(self.limits.group_wait_s_max):
            while not self._committing and self._is_receiving():
                await self._work.wait()
                self._work = trio.Event()
        if self._waiting and not self._committing:
            self._start_group()

    def _go_on(self) -> None:
        """Start the next group now when nothing speaks against it, else leave it to :meth:`run`."""
        if self._waiting and not self._committing and not self._is_receiving():
            self._start_group()
        self._work.set()

    def _is_receiving(self) -> bool:
        """Whether an object that is not complete got bytes just now: an idle sender keeps nobody waiting."""
        since = trio.current_time() - RECEIVING_S
        recent = sum(session.last_write > since for session in self.sessions)
        return recent > len(self._waiting)

    def _next_group(self) -> list[_Pending]:
        group: list[_Pending] = []
        postponed: list[_Pending] = []
        keys: set[tuple[str, str, str]] = set()
        size = 0
        while (
            self._waiting
            and len(group) < self.limits.group_objects_max
            and size < self.limits.group_bytes_max
        ):
            pending = self._waiting.popleft()
            if not pending.received.row.quarantine:
                if pending.received.key in keys:
                    postponed.append(pending)  # the same UIDs twice: the second must see the first
                    continue
                keys.add(pending.received.key)
            group.append(pending)
            size += pending.size
        self._waiting.extendleft(reversed(postponed))
        return group

    def _start_group(self) -> None:
        group = self._next_group()
        self._committing = group
        assert self._thread is not None
        self._thread.submit([pending.received for pending in group], self._finish_group)

    def _finish_group(self, result: outcome.Outcome[list[Fate]]) -> None:
        group, self._committing = self._committing, []
        try:
            fates = result.unwrap()
        except Exception as error:  # noqa: BLE001  an unforeseen defect must answer its senders, not end ingest
            failure = StorageFailedError(
                f"storing failed ({type(error).__name__}); not acknowledged, send again"
            )
            failure.__cause__ = error
            fates = [failure] * len(group)
        for pending, fate in zip(group, fates, strict=True):
            pending.fate = fate
            assert pending.task is not None
            trio.lowlevel.reschedule(pending.task)
        self.groups += 1
        self._on_commit()
        self._go_on()


def _too_large(limits: IngestLimits) -> ObjectTooLargeError:
    return ObjectTooLargeError(
        f"an object of more than {limits.object_bytes_max} bytes is not taken; raise ingest.object_bytes_max"
    )
