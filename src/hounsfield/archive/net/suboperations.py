"""The C-STORE sub-operations of one C-MOVE or C-GET: what is to be sent, what became of it, and the line
in which it goes (PS3.4 C.4.2.3, C.4.3.3).

A *line* opens one object after the other into the same memory and sends it. The next one is opened while
the peer deals with those before; its answers are waited for when no more may be outstanding. Often they are
here by then: no other task, no timer and no round of the event loop is needed to take them. Objects leave in
the order in which they were queued.

What may go away by itself is tried again: an object that the peer has no room for, and those that were on
an association when it broke. Pauses double as long as nothing gets through.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Final

import structlog
import trio

from hounsfield.archive.dicom.rewrite import element
from hounsfield.archive.engine.engine import Engine
from hounsfield.archive.engine.errors import NotFoundError
from hounsfield.archive.engine.listing import Named
from hounsfield.archive.engine.opening import Opening
from hounsfield.archive.errors import where
from hounsfield.archive.net.errors import GivenUpError, NetError
from hounsfield.archive.net.outgoing import Accepted, Pair, Parcel, Sent, Target, UnfinishedError, pack
from hounsfield.archive.net.services import StoreAnswer
from hounsfield.archive.wire import Category, Status
from hounsfield.codecs.registry import lookup
from hounsfield.storage_backends.errors import StorageError

__all__ = [
    "NoRoomError",
    "Patience",
    "RetrieveFigures",
    "RetrieveLimits",
    "Suboperations",
    "Tally",
    "Work",
    "failed_list",
    "run_line",
]

log = structlog.get_logger(__name__)

COUNT_MAX: Final = 0xFFFF
"""What fits into Number of Remaining Sub-operations and its like (US, PS3.7 E.1)."""
_FAILED_LIST: Final = 0x00080058
_FAILED_BYTES_MAX: Final = 0xFFFE  # of a UI with explicit VR (PS3.5 7.1.2): some thousand UIDs
DOUBTFUL_MAX: Final = 1000
"""Objects that are remembered as such that could not be sent to their end."""
_UNYIELDED_S: Final = 0.001
"""For so long a line keeps the event loop to itself when the peer's answers are always there."""
_ANNOUNCED: Final = 16  # of how many objects the disk is told when one had to be waited for


@dataclass(frozen=True, slots=True, kw_only=True)
class RetrieveLimits:
    """How C-MOVE and C-GET go about their sub-operations. Times are in seconds."""

    associations: int = 1
    """To a destination for one C-MOVE. With one the order is kept, which some viewers rely on, and a small
    workstation takes no more; others say so in their entry."""
    associations_per_destination_max: int = 8
    """For all C-MOVEs of one worker; further ones wait. Who calls forty times does not take a workstation
    down, and a destination that hangs holds up nobody but those who want something there."""
    window: int = 4
    """Objects outstanding on an association, where the peer agrees to more than one (PS3.7 D.3.3.3): on a
    line with 20 ms each way half a megabyte at a time would be 12 MB/s."""
    retries: int = 2
    """Further attempts for an object, and for an association on which nothing got through."""
    pause_s: float = 0.5
    """Before the first retry; doubled before each further one."""
    pause_s_max: float = 30.0
    pending_s: float = 1.0
    """Between two pending responses whose counts differ: requestors draw progress bars."""
    still_there_s: float = 15.0
    """Between two with the same counts: a requestor that hears nothing for half a minute may give up."""
    poll_s: float = 0.1
    """How often it is looked whether the requestor has cancelled."""
    cancel_s: float = 2.0
    """After a C-CANCEL, for the objects that are on their way: cut off, they would have to be aborted."""


@dataclass(slots=True)
class Work:
    """One object to be sent."""

    named: Named
    attempts: int = 0


@dataclass(slots=True)
class Tally:
    """Counts of sub-operations, as the responses tell them."""

    completed: int = 0
    failed: int = 0
    warning: int = 0


@dataclass(slots=True)
class RetrieveFigures:
    """What one worker's C-MOVEs and C-GETs came to so far."""

    requests: int = 0
    sent: int = 0
    warned: int = 0
    failed: int = 0
    bytes_sent: int = 0

    def named(self) -> dict[str, int]:
        """For the metrics."""
        return {
            "dimse_retrievals_total": self.requests,
            "dimse_retrieved_objects_total.sent": self.sent,
            "dimse_retrieved_objects_total.warned": self.warned,
            "dimse_retrieved_objects_total.failed": self.failed,
            "dimse_retrieved_bytes_total": self.bytes_sent,
        }


class Suboperations:
    """What is to be sent, and what became of what was. One event loop's."""

    def __init__(
        self,
        found: Iterable[Named],
        cancelled: Callable[[], bool],
        figures: RetrieveFigures | None = None,
    ) -> None:
        self.queue: deque[Work] = deque(Work(one) for one in found)
        self._later: deque[Work] = deque()
        self.tally = Tally()
        self.failed_uids: list[str] = []
        self.bytes_sent = 0
        self.reason = ""
        """Why the last one failed that did."""
        self._cancelled = cancelled
        self._figures = figures or RetrieveFigures()
        self._figures.requests += 1
        self._in_flight = 0
        self._stopping = trio.Event()

    @property
    def remaining(self) -> int:
        """Those that have no result yet."""
        return len(self.queue) + len(self._later) + self._in_flight

    @property
    def settled(self) -> int:
        """Those that have one."""
        tally = self.tally
        return tally.completed + tally.failed + tally.warning

    @property
    def got_through(self) -> int:
        """Those that the peer has taken."""
        return self.tally.completed + self.tally.warning

    @property
    def in_flight(self) -> int:
        """Those that a lane has."""
        return self._in_flight

    @property
    def stopping(self) -> bool:
        """Whether nothing more is to be begun."""
        if self._cancelled():
            self._stopping.set()
        return self._stopping.is_set()

    async def pause(self, seconds: float) -> None:
        """Wait, but not for what is not to be done any more."""
        with trio.move_on_after(seconds):
            await self._stopping.wait()

    def choose(self, pairs: Collection[Pair]) -> None:
        """Only those of ``pairs`` are to be sent now; none is on its way."""
        waiting = [*self.queue, *self._later]
        self.queue = deque(work for work in waiting if pair_of_name(work.named) in pairs)
        self._later = deque(work for work in waiting if pair_of_name(work.named) not in pairs)

    def pairs(self) -> set[Pair]:
        """What presentation contexts are needed for."""
        return {pair_of_name(work.named) for work in (*self.queue, *self._later)}

    # ------------------------------------------------------------ one object

    def take(self) -> Work | None:
        """The next one, None when there is none or nothing more is to be begun."""
        if not self.queue or self.stopping:
            return None
        self._in_flight += 1
        return self.queue.popleft()

    def put_back(self, work: Work) -> None:
        """It is still to be sent, before the others."""
        self._in_flight -= 1
        self.queue.appendleft(work)

    def untried_first(self) -> None:
        """One with which no association broke is next: that it gets through says that the peer lives."""
        for number, work in enumerate(self.queue):
            if not work.attempts:
                del self.queue[number]
                self.queue.appendleft(work)
                return

    def done(self, work: Work, sent: Sent) -> None:
        """It has its result."""
        self._in_flight -= 1
        self._count(work, sent)

    def fail_chosen(self, reason: str) -> None:
        """None of those that wait now will be sent."""
        while self.queue:
            self._count(self.queue.popleft(), Sent(Category.FAILURE, reason=reason))

    def _count(self, work: Work, sent: Sent) -> None:
        figures = self._figures
        if sent.category is Category.FAILURE:
            self.tally.failed += 1
            figures.failed += 1
            self.failed_uids.append(work.named.sop_uid)
            self.reason = sent.reason
            return
        if sent.category is Category.SUCCESS:
            self.tally.completed += 1
            figures.sent += 1
        else:
            self.tally.warning += 1
            figures.warned += 1
        self.bytes_sent += sent.size
        figures.bytes_sent += sent.size

    # ------------------------------------------------------------ what is answered

    def status(self) -> Status:
        """Of the final response (PS3.4 C.4.2.3.1, C.4.3.3.1)."""
        if self.remaining:
            return Status.CANCEL
        if not self.tally.failed and not self.tally.warning:
            return Status.SUCCESS
        if not self.got_through:
            return Status.OUT_OF_RESOURCES_SUBOPERATIONS
        return Status.COERCION_OF_DATA_ELEMENTS  # B000: complete, with failures or warnings

    def counts(self) -> tuple[int, int, int, int]:
        """Remaining, completed, failed, warning, each as far as its element can tell."""
        tally = self.tally
        found = self.remaining, tally.completed, tally.failed, tally.warning
        return tuple(min(count, COUNT_MAX) for count in found)  # type: ignore[return-value]


def pair_of_name(named: Named) -> Pair:
    """What the contexts for an object depend on."""
    return named.sop_class_uid, named.transfer_syntax_uid


class NoRoomError(NetError):
    """The peer has no room at the moment."""

    retry = True


class Patience:
    """When to try again, and when not any more. One association's, and those' that follow it."""

    def __init__(self, limits: RetrieveLimits) -> None:
        self._limits = limits
        self._in_vain = 0

    def pause(self, *, progressed: bool) -> float | None:
        """How long to wait before the next attempt, None when it is no use.

        ``progressed``: whether anything got through since the last one.
        """
        self._in_vain = 1 if progressed else self._in_vain + 1
        if self._in_vain > self._limits.retries:
            return None
        return min(self._limits.pause_s * 2.0 ** (self._in_vain - 1), self._limits.pause_s_max)


async def run_line(
    engine: Engine,
    operations: Suboperations,
    target: Target,
    accepted: Accepted,
    *,
    window: int,
    limits: RetrieveLimits,
    patience: Patience,
    move_originator: tuple[str, int] | None = None,
    doubtful: dict[str, None] | None = None,
) -> None:
    """Send what is queued on one association; returns when nothing is, or nothing more is to be begun.

    Raises NetError when the association is over, or of no use any more. What was on its way then is queued
    again, unless it had its attempts. ``doubtful``: the SOP Instance UIDs of objects that could not be sent
    to their end; they are read to it before anything of them is sent. It is added to.
    """
    if doubtful is None:
        doubtful = {}
    line = _Line(engine, operations, target, accepted, limits, move_originator, doubtful)
    while operations.queue and not operations.stopping:
        before = operations.got_through
        try:
            await line.run(min(window or limits.window, limits.window))
        except NoRoomError:
            pause = patience.pause(progressed=operations.got_through > before)
            if pause is None:
                raise
            await operations.pause(pause)


class _Line:
    """Objects on their way to one peer, one behind the other."""

    def __init__(  # noqa: PLR0917 - made in one place
        self,
        engine: Engine,
        operations: Suboperations,
        target: Target,
        accepted: Accepted,
        limits: RetrieveLimits,
        move_originator: tuple[str, int] | None,
        doubtful: dict[str, None],
    ) -> None:
        self._engine = engine
        self._doubtful = doubtful
        self._operations = operations
        self._target = target
        self._accepted = accepted
        self._limits = limits
        self._originator = move_originator
        self._failures: list[NetError] = []
        self._outstanding: deque[tuple[Work, Parcel, StoreAnswer]] = deque()
        self._again: list[Work] = []  # in their order
        self._unsent: Work | None = None  # it was opened, and never sent
        self._announce_at = 0  # when so many are settled, the disk has brought what it was told of last
        self._yielded = 0.0

    async def run(self, at_once: int) -> None:
        """Send until nothing is queued, nothing more is to be begun, or something is wrong: then that."""
        operations, outstanding = self._operations, self._outstanding
        self._failures.clear()
        opening = self._engine.opening()
        broken: tuple[Work, NetError, bool] | None = None
        try:
            while broken is None and not self._failures and (work := operations.take()) is not None:
                broken = await self._send(work, opening, at_once)
            while outstanding:
                await self._settle()
        finally:
            opening.close()
            if broken is not None:
                self._broken(broken[0], broken[1], begun=broken[2])
            while outstanding:  # cancelled: whether they arrived is not known
                work, _, answer = outstanding.popleft()
                answer.give_up()
                self._again.append(work)
            for work in reversed(self._again):
                operations.put_back(work)
            self._again.clear()
            if self._unsent is not None:
                operations.put_back(self._unsent)
                self._unsent = None
            if any(not isinstance(error, NoRoomError) for error in self._failures):
                operations.untried_first()
        if self._failures:  # one object's fault ends all that are outstanding: it is the one to tell
            raise min(self._failures, key=lambda error: isinstance(error, GivenUpError))

    async def _send(self, work: Work, opening: Opening, at_once: int) -> tuple[Work, NetError, bool] | None:
        """Open one object while others are on their way, and send it when it may; what broke in doing so."""
        packed: Parcel | Sent | None = None
        self._unsent = work
        try:
            packed = await self._packed(work, opening)
            if opening.waited and self._operations.settled >= self._announce_at:
                await self._announce()
            if work.attempts or (self._outstanding and self._outstanding[0][0].attempts):
                at_once = 1  # what was on an association that broke goes alone: it may be what breaks them
            while len(self._outstanding) >= at_once:
                await self._settle()
            if isinstance(packed, Sent):
                self._unsent = None
                self._operations.done(work, packed)
            elif not self._failures and not self._operations.stopping:
                answer = await packed.begin(self._target, self._originator)
                self._unsent = None
                self._outstanding.append((work, packed, answer))
                await self._breathe()
        except NetError as error:
            self._unsent = None
            self._failures.append(error)
            return work, error, isinstance(packed, Parcel) and packed.begun
        finally:
            if self._unsent is not None and isinstance(packed, Parcel):
                await packed.aclose()
        return None

    async def _settle(self) -> None:
        """Wait for the answer to the first that is outstanding."""
        work, parcel, answer = self._outstanding[0]
        try:
            sent = parcel.judged(await answer.response())
        except NetError as error:
            self._outstanding.popleft()
            self._failures.append(error)
            self._broken(work, error, begun=True)
            return
        self._outstanding.popleft()
        work.attempts += 1
        if sent.retry and sent.status is not None and work.attempts <= self._limits.retries:
            self._again.append(work)
            self._failures.append(NoRoomError("the peer has no room at the moment"))
        else:
            self._operations.done(work, sent)

    async def _breathe(self) -> None:
        """A peer whose answers are always here already leaves the others their time all the same."""
        now = time.monotonic()
        if now - self._yielded > _UNYIELDED_S:
            await trio.lowlevel.checkpoint()
            self._yielded = time.monotonic()

    async def _packed(self, work: Work, opening: Opening) -> Parcel | Sent:
        try:
            name = work.named[:3]
            if work.named.sop_uid in self._doubtful:
                packed = await pack(self._engine, name, self._accepted, opening)
                failed = await packed.doubted() if isinstance(packed, Parcel) else packed
                if failed is not None:
                    return failed
                self._doubtful.pop(work.named.sop_uid, None)  # it was repaired, or the disk is well again
            return await pack(self._engine, name, self._accepted, opening)
        except (StorageError, OSError) as error:
            log.error("an object could not be made ready to be sent", **where(error))
            return Sent(Category.FAILURE, reason="it cannot be read")

    def _broken(self, work: Work, error: NetError, *, begun: bool) -> None:
        """The association ended with this object in hand; ``begun``: some of it may have left."""
        if isinstance(error, UnfinishedError):
            self._operations.done(work, error.sent)
            self._doubtful[work.named.sop_uid] = None
            if len(self._doubtful) > DOUBTFUL_MAX:
                self._doubtful.pop(next(iter(self._doubtful)))
            return
        if begun and not isinstance(error, GivenUpError):  # which was for another's sake
            work.attempts += 1
        if work.attempts <= self._limits.retries:
            self._again.append(work)
        else:
            self._operations.done(work, Sent(Category.FAILURE, reason=str(error), retry=error.retry))

    async def _announce(self) -> None:
        """The disk had to be waited for: it is told of those that follow."""
        self._announce_at = self._operations.settled + _ANNOUNCED // 2
        coming = []
        for work, _ in zip(self._operations.queue, range(_ANNOUNCED), strict=False):
            try:
                coming += await self._engine.instances(*work.named[:3])
            except NotFoundError:
                continue  # it is told when its turn comes
        await self._engine.bring(coming)


def failed_list(uids: Iterable[str], transfer_syntax_uid: str) -> bytes:
    """The identifier of a final response: Failed SOP Instance UID List (0008,0058), as much of it as fits."""
    chosen: list[str] = []
    size = -1
    for uid in uids:
        size += len(uid) + 1
        if size > _FAILED_BYTES_MAX:
            break
        chosen.append(uid)
    syntax = lookup(transfer_syntax_uid)
    value = "\\".join(chosen).encode("ascii", "replace")
    return element(_FAILED_LIST, "UI", value, implicit=syntax.implicit_vr, little=syntax.little_endian)
