"""One destination: its lanes' objects go to it in order, over associations that are open while there is work.

Whatever fails for a reason that may pass (nobody answers, the association is lost, "out of resources") stalls
this destination alone, for longer and longer. What is refused for good is set aside, and the next one goes.
An object that several routes send to one destination goes once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import structlog
import trio
from msgspec import structs

from hounsfield.archive.engine.gate import Gate
from hounsfield.archive.engine.route_queue import Again, Lane, Route, RoutingLimits, Work, pause_s
from hounsfield.archive.engine.route_reading import RouteReading, Waiting
from hounsfield.archive.engine.route_ways import Answer, OpenWay, Pair, Verdict, Way, WayError
from hounsfield.archive.engine.types import Instance
from hounsfield.archive.index.route_lanes import AsideEntry, RouteLanes
from hounsfield.storage_backends.errors import StorageError

log = structlog.get_logger(__name__)

AHEAD_PAIRS_MAX: Final = 64
"""SOP classes and syntaxes that an association is opened for: what waits, and what went before."""
AHEAD_MAX: Final = 1000  # objects that are looked at for that
_NS: Final = 1_000_000_000
_NOT_NOTED: Final = "what was sent cannot be noted"


@dataclass(slots=True)
class DestinationState:
    """What is said of a destination."""

    doing: str = "idle"
    error: str = ""
    failures: int = 0
    retry_at: float = 0.0  # trio's clock
    ways: int = 0
    bytes_sent: int = 0


class Destination:
    """Sends what waits in some lanes to where they all lead."""

    def __init__(  # noqa: PLR0917
        self,
        to: str,
        lanes: Sequence[Lane],
        rows: RouteLanes,
        reading: RouteReading,
        gate: Gate,
        open_way: OpenWay,
        limits: RoutingLimits,
        now_ns: Callable[[], int],
    ) -> None:
        self.to = to
        self.lanes = sorted(lanes, key=lambda lane: -lane.route.priority)
        self.state = DestinationState()
        self.again: list[Again] = []
        self._settled: set[bytes] = set()  # records that were among them, since somebody began to look
        self._unsettled: dict[bytes, tuple[Again, Answer | None]] = {}
        """Records that were, and of which that could not be noted: they do not go once more."""
        self._unnoted = False  # whether a cursor could not be moved
        self._rows = rows
        self._reading = reading
        self._gate = gate
        self._open_way = open_way
        self._limits = limits
        self._now_ns = now_ns
        self._bell = trio.Event()
        self._commits = trio.Lock()
        self._known: dict[Pair, None] = {}
        self._answered = False  # by the association that is, or was, used last
        self._suspect: Work | None = None
        """An object with which associations were lost again and again: it waits until another one tells
        whether it is the object, or the destination."""
        self.closing = False

    @property
    def _route(self) -> Route:
        return self.lanes[0].route

    def ring(self) -> None:
        """There may be work, or it may go on."""
        self._bell.set()
        self._bell = trio.Event()

    def try_now(self) -> None:
        """Do not wait any longer after what failed."""
        self.state.retry_at = 0.0
        self.ring()

    def look(self) -> None:
        """Somebody begins to look at what is to be sent again, for :meth:`take_again`."""
        self._settled = set(self._unsettled)

    def take_again(self, again: Sequence[Again]) -> None:
        """Send these again; not what was done with while they were looked up."""
        known = {one.aside.record: one for one in self.again}
        keys = {lane.key for lane in self.lanes}
        self.again = [
            known.get(one.aside.record, one)
            for one in again
            if one.key in keys and one.aside.record not in self._settled
        ]

    async def run(self) -> None:
        """Send until cancelled, or :attr:`closing` and nothing is on its way. LaneTakenError."""
        async with trio.open_nursery() as nursery:
            for _ in range(max(lane.route.associations for lane in self.lanes)):
                nursery.start_soon(self._work)

    # ------------------------------------------------------------ what is next

    def _lanes_open(self) -> list[Lane]:
        now = datetime.now().astimezone()
        return [lane for lane in self.lanes if not lane.paused and lane.route.is_open(now)]

    def _has_work(self) -> bool:
        lanes = self._lanes_open()
        keys = {lane.key for lane in lanes}
        return any(lane.head() is not None for lane in lanes) or any(
            one.key in keys and not one.busy for one in self.again
        )

    def _next(self) -> Work | None:
        """The next object, on its way from now on: of the highest priority, the first in the journal."""
        lanes = self._lanes_open()
        keys = {lane.key for lane in lanes}
        again = next((one for one in self.again if one.key in keys and not one.busy), None)
        if again is not None:
            again.busy = True
            aside = again.aside
            names = (aside.study, aside.series, aside.instance, aside.record, aside.received_ns)
            return Work(Waiting(0, 0, *names, "", ""), [], again)
        chosen: Lane | None = None
        for lane in lanes:
            head = lane.head()
            if head is None or (chosen is not None and chosen.route.priority > lane.route.priority):
                continue
            first = None if chosen is None else chosen.head()
            if first is None or head.position < first.position:
                chosen = lane
        one = None if chosen is None else chosen.head()
        if chosen is None or one is None:
            return None
        chosen.waiting.popleft()
        return Work(one, [lane for lane in self.lanes if lane.start(one.position, one)])

    def _give_back(self, work: Work) -> None:
        if work.again is not None:
            work.again.busy = False
        for lane in work.lanes:
            lane.put_back(work.waiting)
        self.ring()

    def _pairs(self, first: Waiting | None) -> list[Pair]:
        """What to open a way for: the first object's, those that wait, and those that were sent before."""
        pairs: dict[Pair, None] = {}
        if first is not None and first.sop_class_uid:
            pairs[first.sop_class_uid, first.transfer_syntax_uid] = None
        for lane in self.lanes:
            for number, one in enumerate(lane.waiting):
                if number >= AHEAD_MAX or len(pairs) >= AHEAD_PAIRS_MAX:
                    break
                pairs[one.sop_class_uid, one.transfer_syntax_uid] = None
        for pair in self._known:
            if len(pairs) >= AHEAD_PAIRS_MAX:
                break
            pairs[pair] = None
        return list(pairs)

    # ------------------------------------------------------------ sending

    async def _work(self) -> None:
        """One association at a time, while there is work."""
        in_vain = 0
        while not self.closing:
            await self._until_work()
            work = None if self.closing else self._next()
            if work is None:
                continue
            try:
                await self._with_a_way(work)
                in_vain = 0
            except WayError as error:
                if self.state.ways:  # others have one: perhaps it takes no more of them
                    in_vain += 1
                    with trio.move_on_after(pause_s(self._route, in_vain)):
                        await self._bell.wait()
                else:
                    self._stall(str(error))

    async def _until_work(self) -> None:
        while not self.closing:
            bell = self._bell
            for lane in self.lanes:
                if lane.refused:
                    await self.commit(lane)
            pause = self.state.retry_at - trio.current_time()
            if pause > 0:
                self.state.doing = "waiting to try again"
                with trio.move_on_after(pause):
                    await bell.wait()
            elif self._has_work():
                return
            elif self._suspect is not None:
                self._acquit()  # nobody else waits who could tell
            else:
                if not self.state.ways:
                    self.state.doing = "idle"
                await bell.wait()

    async def _with_a_way(self, work: Work) -> None:
        """Open a way, send ``work`` and what follows over it. WayError when it was not to be had."""
        opened = False
        try:
            if work.again is not None:  # what it is was not kept
                await self._look_up(work)
            if not self.state.ways:
                self.state.doing = "calling"
            preferred = self._route.transfer_syntaxes
            async with self._open_way(self.to, self._pairs(work.waiting), preferred) as way:
                opened = True
                self.state.ways += 1
                try:
                    await self._use(way, work)
                finally:
                    self.state.ways -= 1
        except WayError as error:
            if not opened:
                self._give_back(work)
                raise
            self._lost(str(error))
        except BaseException:
            if not opened:
                self._give_back(work)
            raise

    async def _look_up(self, work: Work) -> None:
        found = await self._gate.read(self._reading.where, work.waiting)
        if found is not None:
            row = found.row
            work.waiting = work.waiting._replace(
                sop_class_uid=row.sop_class_uid, transfer_syntax_uid=row.transfer_syntax_uid
            )

    async def _use(self, way: Way, first: Work) -> None:
        """Send ``first``, and what follows while the way carries it."""
        work: Work | None = first
        self._answered = False
        while work is not None:
            given: Work | None = work
            try:
                self.state.doing = "sending"
                answer = await self._answer(way, work, fresh=work is first)
                if answer is None:
                    return  # another way is opened for it
                given = None
                if not await self._judge(work, answer):
                    return
            finally:
                if given is not None and given is not self._suspect:
                    self._give_back(given)
            await self._slow_down(answer.size)
            work = await self._next_or_linger()

    async def _answer(self, way: Way, work: Work, *, fresh: bool) -> Answer | None:
        """What becomes of an object; None when it takes another way. WayError when this one was lost."""
        try:
            back = work.again is not None or any(lane.route.back_to_sender for lane in work.lanes)
            instance = await self._gate.read(self._reading.where, work.waiting, "" if back else self.to)
            if instance is None:
                return Answer(Verdict.PASSED_OVER)
        except StorageError:
            return Answer(Verdict.LATER, "the index or the record cannot be read here")
        pair = (instance.row.sop_class_uid, instance.row.transfer_syntax_uid)
        self._known[pair] = None
        if way.carries(pair):
            return await self._send(way, work, instance)
        return Answer(Verdict.REFUSED, "its SOP class or transfer syntax is no UID") if fresh else None

    async def _send(self, way: Way, work: Work, instance: Instance) -> Answer:
        """Send one object. One with which the way is lost again and again does not block it for ever."""
        try:
            return await way.send(instance)
        except WayError:
            work.count_loss()
            if self._suspect is not None:
                self._acquit()  # it is the destination
            elif work.losses > self._route.retries:
                self._suspect = work
            raise

    def _acquit(self) -> None:
        """The suspect is sent again."""
        suspect, self._suspect = self._suspect, None
        if suspect is not None:
            self._give_back(suspect)

    async def _convict(self) -> None:
        """Others get through: the suspect is set aside."""
        suspect, self._suspect = self._suspect, None
        if suspect is not None:
            reason = f"the association was lost {suspect.losses} times while it was sent"
            await self._refuse(suspect, Answer(Verdict.REFUSED, reason))

    async def _judge(self, work: Work, answer: Answer) -> bool:
        """Do what an answer means; whether the way may be used on."""
        with trio.CancelScope(shield=True):  # what was answered is noted, whatever ends
            match answer.verdict:
                case Verdict.SENT | Verdict.PASSED_OVER:
                    if answer.verdict is Verdict.SENT:
                        self._arrived(answer.size)
                    await self._settle(work, sent=answer.verdict is Verdict.SENT)
                case Verdict.REFUSED:
                    await self._refuse(work, answer)
                case Verdict.LATER:
                    self._give_back(work)
                    self._stall(answer.reason)
                    return False
            if answer.verdict is Verdict.SENT or answer.status is not None:
                await self._convict()
        return not answer.over

    def _arrived(self, size: int) -> None:
        state = self.state
        if state.failures:
            log.info("a destination takes objects again", called_ae=self.to, attempt=state.failures)
        state.failures, state.error = 0, ""
        state.bytes_sent += size
        self._answered = True

    async def _next_or_linger(self) -> Work | None:
        with trio.move_on_after(self._limits.linger_s):
            while not self.closing and self.state.retry_at <= trio.current_time():
                bell = self._bell
                work = self._next()
                if work is not None:
                    return work
                self.state.doing = "idle"
                await bell.wait()
        return None

    async def _slow_down(self, size: int) -> None:
        rates = [lane.route.bytes_per_second for lane in self.lanes if lane.route.bytes_per_second]
        if rates:
            await trio.sleep(size / min(rates))

    def _lost(self, reason: str) -> None:
        """A way was lost: it is opened again at once if it was of use, else after a while."""
        if self._answered:
            self._answered = False
        else:
            self._stall(reason)

    def _stall(self, reason: str) -> None:
        """Leave the destination alone for a while, longer than the last time."""
        state = self.state
        now = trio.current_time()
        if state.retry_at > now:
            return
        state.failures += 1
        state.error = reason
        pause = pause_s(self._route, state.failures)
        state.retry_at = now + pause
        if state.failures == 1:
            log.warning(
                "a destination takes nothing: what is routed to it waits",
                called_ae=self.to, error=reason, delay_seconds=round(pause, 1),
            )  # fmt: skip
        for lane in self.lanes:
            if lane.route.give_up_s:
                before = self._now_ns() - int(lane.route.give_up_s * _NS)
                lane.give_up_before(before, f"given up: {reason}")

    # ------------------------------------------------------------ what became of it

    async def _settle(self, work: Work, *, sent: bool) -> None:
        """Note durably that an object is done with."""
        if work.again is not None:
            await self._settle_again(work.again, None)
        for lane in work.lanes:
            lane.done(work.waiting, sent=sent)
        for lane in work.lanes:
            await self.commit(lane)

    async def _refuse(self, work: Work, answer: Answer) -> None:
        if work.again is not None:
            await self._settle_again(work.again, answer)
        for lane in work.lanes:
            if not lane.refused:
                log.warning(
                    "an object is not taken: it is set aside",
                    route=lane.key.route, called_ae=self.to, reason=answer.reason, status=answer.status,
                )  # fmt: skip
            lane.refuse(work.waiting, answer.reason, answer.status)
            if len(lane.refused) >= self._limits.aside_max or lane.head() is None:
                await self.commit(lane)

    async def commit(self, lane: Lane) -> None:
        """Move a lane's cursor to where it is, and set aside what was refused. LaneTakenError."""
        async with self._commits:
            settled = tuple(lane.refused)
            row = lane.next_row(settled)
            if row == lane.row:
                return  # another task's commit had it
            objects = tuple(aside for _, aside in settled)
            try:
                if objects:
                    await self._gate.read(
                        self._rows.set_aside, lane.key, lane.row, row, objects, self._now_ns()
                    )
                else:
                    await self._gate.read(self._rows.move, lane.key, lane.row, row)
            except (StorageError, OSError) as error:
                # What arrived stays noted here, and is with the next commit that succeeds.
                self._unnoted = True
                self.state.error = f"{_NOT_NOTED} ({type(error).__name__})"
                return
            lane.row = row
            del lane.refused[: len(settled)]

    async def note(self) -> None:
        """Note what could not be noted when it happened, if it can be now. LaneTakenError."""
        if not self._unnoted:
            return
        self._unnoted = False
        for lane in self.lanes:
            await self.commit(lane)
        for again, answer in list(self._unsettled.values()):
            await self._settle_again(again, answer)
        if not self._unnoted and self.state.error.startswith(_NOT_NOTED):
            self.state.error = ""

    async def _settle_again(self, again: Again, answer: Answer | None) -> None:
        """An object that was set aside is done with (None), or is still not taken."""

        def change(entry: AsideEntry) -> AsideEntry:
            left = [one for one in entry.objects if one.record != again.aside.record]
            if answer is not None:
                left.append(
                    structs.replace(again.aside, reason=answer.reason, status=answer.status, again=False)
                )
            return entry._replace(objects=tuple(left))

        self.again = [one for one in self.again if one is not again]
        self._settled.add(again.aside.record)
        try:
            await self._gate.read(self._rows.change_aside, again.entry_id, change, self._now_ns())
        except (StorageError, OSError) as error:
            # Sent once more whenever somebody looks, on a full disk it would go there for ever.
            self._unsettled[again.aside.record] = again, answer
            self._unnoted = True
            self.state.error = f"{_NOT_NOTED} ({type(error).__name__})"
            return
        self._unsettled.pop(again.aside.record, None)
        for lane in self.lanes:
            if lane.key == again.key and answer is None:
                lane.sent += 1
                await self.commit(lane)
