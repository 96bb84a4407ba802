"""One lane in its leader's memory: what waits, what is on its way, and what its cursor says of it.

The cursor's low-water mark is the first object that is not done; those after it that are (several
associations are answered out of order) are told one by one. Who is killed sends again what was on its way.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, time
from typing import Final

from msgspec import structs

from hounsfield.archive.dicom.rules import Rule
from hounsfield.archive.engine.route_reading import Waiting, Want
from hounsfield.archive.index.route_lanes import Aside, LaneKey, LaneRow, Position

_SPREAD: Final = 0.25  # of a pause: destinations behind one broken switch do not all call in one moment


@dataclass(frozen=True, slots=True)
class Route:
    """One route as it is configured. ``hours``: when it sends, in local time; None: always."""

    name: str
    rule: Rule
    to: tuple[str, ...]
    stable: bool = False
    transfer_syntaxes: tuple[str, ...] = ()
    associations: int = 1
    priority: int = 0
    retries: int = 10
    back_off_s: float = 5.0
    back_off_s_max: float = 300.0
    give_up_s: float = 0.0
    bytes_per_second: int = 0
    back_to_sender: bool = False
    hours: tuple[time, time] | None = None

    def is_open(self, now: datetime) -> bool:
        """Whether it sends at this local time."""
        if self.hours is None:
            return True
        begin, end = self.hours
        at = now.time()
        return begin <= at < end if begin <= end else at >= begin or at < end


@dataclass(frozen=True, slots=True)
class RoutingLimits:
    """``waiting_max``: objects that one lane keeps in memory, some 5 MB; what follows stays in the journal.

    ``linger_s``: how long an association is kept open when there is nothing to send. ``aside_max``: objects
    that are refused one after the other are set aside together, so many at once. ``mark_s``: between two
    marks; ``mark_margin_s``: how long an object may take from its reception to the journal.
    """

    waiting_max: int = 10_000
    linger_s: float = 5.0
    aside_max: int = 100
    mark_s: float = 300.0
    mark_idle_s: float = 86_400.0
    mark_margin_s: float = 300.0
    lease_s: float = 15.0


def pause_s(route: Route, failures: int) -> float:
    """How long to wait after so many failures in a row: doubled each time, up to a ceiling, give or take."""
    exact = min(route.back_off_s * 2.0 ** min(failures - 1, 30), route.back_off_s_max)
    return exact * random.uniform(1 - _SPREAD, 1 + _SPREAD)  # noqa: S311  no secret


@dataclass(slots=True)
class Lane:
    """One route to one destination."""

    key: LaneKey
    route: Route
    row: LaneRow
    """The cursor as it was committed last."""
    limits: RoutingLimits
    paused: bool = False
    more: bool = True
    """Whether the journal may have more than is in memory."""
    aside: frozenset[bytes] = frozenset()
    """Records that were set aside before this journal was made: they are not found in it again."""
    caught_up_ns: int = 0
    """When the journal had been read to its end; of stable studies, before which moment all received is of
    studies that had been announced by then."""
    want: Want = field(init=False)
    waiting: deque[Waiting] = field(default_factory=deque)
    busy: dict[Position, Waiting] = field(default_factory=dict)
    refused: list[tuple[Waiting, Aside]] = field(default_factory=list)
    attempts: dict[Position, int] = field(default_factory=dict)
    done_since_mark: bool = False
    sent: int = field(init=False)
    passed_over: int = field(init=False)
    _positions: set[Position] = field(default_factory=set)
    _beyond: set[Position] = field(default_factory=set)

    def __post_init__(self) -> None:
        row = self.row
        self.want = Want(self.route.rule, self.route.stable, row.sequence, row.skip_to, row.through_ns)
        self._beyond = set(row.beyond)
        self.sent, self.passed_over = row.sent, row.passed_over

    # ------------------------------------------------------------ reading

    @property
    def is_hungry(self) -> bool:
        """Whether more of the journal may be read for it."""
        return len(self.waiting) < self.limits.waiting_max

    def take_found(self) -> None:
        """Have what was read wait, but for what the cursor says is done."""
        first = (self.row.sequence + 1, self.row.member)
        for one in self.want.found:
            if one.record_id in self.aside:
                continue
            if one.position >= first and one.position not in self._beyond:
                self.waiting.append(one)
                self._positions.add(one.position)
        self.want.found = []

    # ------------------------------------------------------------ on its way

    def head(self) -> Waiting | None:
        """What is next, None when nothing waits."""
        while self.waiting and self.waiting[0].position not in self._positions:
            self.waiting.popleft()  # it went with another lane
        return self.waiting[0] if self.waiting else None

    @property
    def queued(self) -> int:
        """How many wait in memory or are on their way."""
        return len(self._positions) + len(self.busy)

    def start(self, position: Position, one: Waiting) -> bool:
        """Have an object that waits be on its way; False when it does not wait here."""
        if position not in self._positions:
            return False
        self._positions.discard(position)
        self.busy[position] = one
        return True

    def put_back(self, one: Waiting) -> None:
        """It did not get there: it is next again."""
        if self.busy.pop(one.position, None) is None:
            return
        self._positions.add(one.position)
        later: list[Waiting] = []
        while self.waiting and self.waiting[0].position < one.position:
            later.append(self.waiting.popleft())
        if not (self.waiting and self.waiting[0].position == one.position):
            self.waiting.appendleft(one)
        self.waiting.extendleft(reversed(later))

    def done(self, one: Waiting, *, sent: bool) -> None:
        """It arrived, or need not go: the cursor may pass it."""
        self.busy.pop(one.position, None)
        self.attempts.pop(one.position, None)
        self._beyond.add(one.position)
        self.done_since_mark = True
        self.sent += sent
        self.passed_over += not sent

    def refuse(self, one: Waiting, reason: str, status: int | None) -> None:
        """It will never be taken: it is set aside with the next commit."""
        aside = Aside(
            one.study_uid, one.series_uid, one.sop_uid, one.record_id, one.received_ns, reason, status
        )
        self.busy.pop(one.position, None)
        self.attempts.pop(one.position, None)
        self.refused.append((one, aside))
        self.done_since_mark = True

    def give_up_before(self, received_ns: int, reason: str) -> None:
        """Set aside what has been waiting since before a moment."""
        while (head := self.head()) is not None and head.received_ns < received_ns:
            if not self.start(head.position, head):
                break
            self.waiting.popleft()
            self.refuse(head, reason, None)
            if len(self.refused) >= self.limits.aside_max:
                break

    # ------------------------------------------------------------ the cursor

    def next_row(self, settled: Sequence[tuple[Waiting, Aside]] = ()) -> LaneRow:
        """The cursor as it is to be, with ``settled`` set aside."""
        self._beyond.update(one.position for one, _ in settled)
        unsettled = {one.position for one, _ in self.refused} - self._beyond
        head = self.head()
        open_ones = [*self.busy, *unsettled, *((head.position,) if head is not None else ())]
        if open_ones:
            sequence, member = min(open_ones)
            sequence -= 1
        else:
            sequence = self.want.read_to
            member = self.row.member if sequence == self.row.sequence else 0  # nothing was read yet
        self._beyond = {one for one in self._beyond if one >= (sequence + 1, member)}
        return structs.replace(
            self.row,
            sequence=sequence,
            member=member,
            beyond=tuple(sorted(self._beyond)),
            sent=self.sent,
            passed_over=self.passed_over,
            set_aside=self.row.set_aside + len(settled),
        )

    def through_ns(self) -> int:
        """Before which moment whatever was received is done with, as far as this lane knows; 0: never."""
        if self.more and self.route.stable:  # a study may be announced long after its first object came
            return 0
        pending = [*self.busy.values(), *self.waiting, *(one for one, _ in self.refused)]
        until = min((one.received_ns for one in pending), default=self.caught_up_ns)
        if not self.more:
            until = min(until, self.caught_up_ns)
        return max(0, until - int(self.limits.mark_margin_s * 1e9))

    @property
    def oldest_ns(self) -> int | None:
        """When the first of those that wait was received."""
        found = [one.received_ns for one in self.busy.values()]
        head = self.head()
        if head is not None:
            found.append(head.received_ns)
        return min(found, default=None)


@dataclass(slots=True)
class Again:
    """An object that was set aside and is to be sent again."""

    key: LaneKey
    entry_id: str
    aside: Aside
    attempts: int = 0
    busy: bool = False


@dataclass(slots=True)
class Work:
    """An object on its way: with the lanes in which it waited, or as what was set aside."""

    waiting: Waiting
    lanes: list[Lane]
    again: Again | None = None

    @property
    def losses(self) -> int:
        """How often it was lost on its way."""
        if self.again is not None:
            return self.again.attempts
        return max((lane.attempts.get(self.waiting.position, 0) for lane in self.lanes), default=0)

    def count_loss(self) -> None:
        """It was lost once more."""
        losses = self.losses + 1
        if self.again is not None:
            self.again.attempts = losses
        for lane in self.lanes:
            lane.attempts[self.waiting.position] = losses
