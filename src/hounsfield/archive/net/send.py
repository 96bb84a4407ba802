"""Sending files: several associations, one context for each SOP class and syntax, retries where they help.

Data sets go out as the bytes that stand in the file. What may go away by itself (a lost connection, "out
of resources", a transient rejection) is tried again after a pause that doubles; anything else is reported.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import BinaryIO

import trio

from hounsfield.archive.net.errors import GivenUpError, NetError
from hounsfield.archive.net.requests import NAMES_ANOTHER, names_another
from hounsfield.archive.net.scu import Offer, RemoteEntity, RequestorAssociation, ScuLimits, associate
from hounsfield.archive.net.survey import Sendable, Unsendable
from hounsfield.archive.wire import (
    AcceptedContext,
    Buffer,
    Category,
    CStoreResponse,
    PresentationContext,
    Service,
    describe_status,
)
from hounsfield.codecs.registry import lookup

__all__ = ["Outcome", "SendPlan", "SendReport", "SendResult", "Sender", "plan_contexts"]

CONTEXTS_MAX = 128
"""In one association: context ids are odd and fit into a byte (PS3.8 9.3.2.2)."""
_READ_BYTES = 1 << 20
_OUT_OF_RESOURCES = 0xA700

Pair = tuple[str, str]
"""SOP class UID and transfer syntax UID: what a presentation context carries."""


class Outcome(Enum):
    """What became of one file."""

    SENT = "sent"
    WARNED = "warned"
    FAILED = "failed"
    UNSENDABLE = "unsendable"


@dataclass(frozen=True, slots=True)
class SendResult:
    """One file's fate. ``status`` is the peer's, None without one; ``retry``: sending again may help."""

    path: Path
    outcome: Outcome
    size: int = 0
    status: int | None = None
    reason: str = ""
    attempts: int = 0
    retry: bool = False


@dataclass(frozen=True, slots=True)
class SendReport:
    """All of it. ``seconds`` is from the first association to the last response."""

    results: tuple[SendResult, ...]
    seconds: float

    def count(self, outcome: Outcome) -> int:
        """How many files came out so."""
        return sum(result.outcome is outcome for result in self.results)

    @property
    def bytes_sent(self) -> int:
        """Bytes of data sets that the peer has acknowledged."""
        return sum(r.size for r in self.results if r.outcome in (Outcome.SENT, Outcome.WARNED))


@dataclass(frozen=True, slots=True, kw_only=True)
class SendPlan:
    """How hard to try. Pauses are in seconds."""

    associations: int = 1
    retries: int = 3
    """Further attempts for an object, and for an association, after the first."""
    pause_s: float = 0.5
    """Before the first retry; doubled before each further one."""
    pause_s_max: float = 30.0
    window: int = 1
    """Objects to have outstanding on one association, where the peer agrees to it (PS3.7 D.3.3.3)."""

    def pause(self, attempts: int) -> float:
        """How long to wait after so many attempts in vain."""
        return min(self.pause_s * 2.0 ** max(0, attempts - 1), self.pause_s_max)


def plan_contexts(items: Iterable[Sendable]) -> list[tuple[list[PresentationContext], list[Sendable]]]:
    """Batches of at most 128 contexts with the objects they carry, in the order the objects came."""
    groups: dict[Pair, list[Sendable]] = {}
    for item in items:
        groups.setdefault((item.sop_class_uid, item.transfer_syntax_uid), []).append(item)
    batches: list[tuple[list[PresentationContext], list[Sendable]]] = []
    pairs = list(groups)
    for start in range(0, len(pairs), CONTEXTS_MAX):
        chosen = pairs[start : start + CONTEXTS_MAX]
        contexts = [
            PresentationContext(2 * number + 1, sop_class, (syntax,))
            for number, (sop_class, syntax) in enumerate(chosen)
        ]
        batches.append((contexts, [item for pair in chosen for item in groups[pair]]))
    return batches


@dataclass(slots=True)
class _Work:
    item: Sendable
    attempts: int = 0


class Sender:
    """Sends objects to one remote application entity. ``on_result`` hears of every file as it is done."""

    def __init__(
        self,
        remote: RemoteEntity,
        plan: SendPlan | None = None,
        limits: ScuLimits | None = None,
        on_result: Callable[[SendResult], None] = lambda _: None,
    ) -> None:
        self._remote = remote
        self._plan = plan or SendPlan()
        self._limits = limits or ScuLimits()
        self._on_result = on_result
        self._results: list[SendResult] = []
        self._given_up: NetError | None = None

    async def send(self, found: Sequence[Sendable | Unsendable]) -> SendReport:
        """Send what can be sent; returns when every file has a result. The peer's faults raise nothing."""
        began = trio.current_time()
        for one in found:
            if isinstance(one, Unsendable):
                self._report(SendResult(one.path, Outcome.UNSENDABLE, reason=one.reason))
        for contexts, items in plan_contexts(one for one in found if isinstance(one, Sendable)):
            queue = deque(_Work(item) for item in items)
            async with trio.open_nursery() as nursery:
                for _ in range(min(self._plan.associations, len(items))):
                    nursery.start_soon(self._worker, contexts, queue)
            for work in queue:
                self._fail(work, self._given_up)
        return SendReport(tuple(self._results), trio.current_time() - began)

    async def _worker(self, contexts: list[PresentationContext], queue: deque[_Work]) -> None:
        """One association at a time, until the queue is empty or it is no use."""
        in_vain = 0
        offer = Offer(window=self._plan.window)
        while queue and self._given_up is None:
            done_before = len(self._results)
            try:
                async with associate(self._remote, contexts, self._limits, offer) as association:
                    await self._use(association, queue)
            except GivenUpError:  # for a file that has its result: the peer has done nothing wrong
                in_vain = 0
            except NetError as error:
                in_vain = 1 if len(self._results) > done_before else in_vain + 1
                if not error.retry or in_vain > self._plan.retries:
                    self._given_up = self._given_up or error
                    return
                await trio.sleep(self._plan.pause(in_vain))

    async def _use(self, association: RequestorAssociation, queue: deque[_Work]) -> None:
        by_pair: Mapping[Pair, AcceptedContext] = {
            (context.abstract_syntax, context.transfer_syntax): context
            for context in association.contexts.values()
        }
        failures: list[NetError] = []
        async with trio.open_nursery() as nursery:
            for _ in range(association.window):
                nursery.start_soon(self._lane, association, by_pair, queue, failures)
        if failures:  # one object's fault makes all that were outstanding fail: it is the one to tell
            raise min(failures, key=lambda error: isinstance(error, GivenUpError))

    async def _lane(
        self,
        association: RequestorAssociation,
        by_pair: Mapping[Pair, AcceptedContext],
        queue: deque[_Work],
        failures: list[NetError],
    ) -> None:
        """One object after the other, beside as many other lanes as the window is wide."""
        while queue and self._given_up is None and not failures:
            work = queue.popleft()
            context = by_pair.get((work.item.sop_class_uid, work.item.transfer_syntax_uid))
            if context is None:
                self._report(self._not_accepted(association, work))
                continue
            work.attempts += 1
            try:
                response = await self._store(association, context, work.item)
            except OSError as error:
                self._report(self._result(work, Outcome.FAILED, reason=f"cannot be read: {error.strerror}"))
                if not association.usable:  # a part of it was sent: the next association may do better
                    failures.append(GivenUpError("a file could not be read to its end"))
                continue
            except GivenUpError as error:  # for another lane's object
                work.attempts -= 1
                queue.appendleft(work)
                failures.append(error)
                continue
            except NetError as error:
                if error.retry and work.attempts <= self._plan.retries:
                    queue.appendleft(work)
                else:
                    self._fail(work, error)
                failures.append(error)
                return
            if response.status & 0xFF00 == _OUT_OF_RESOURCES and work.attempts <= self._plan.retries:
                queue.append(work)
                await trio.sleep(self._plan.pause(work.attempts))
                continue
            self._report(self._judged(work, response))

    async def _store(
        self, association: RequestorAssociation, context: AcceptedContext, item: Sendable
    ) -> CStoreResponse:
        async with aclosing(_pieces(item)) as pieces:
            return await association.store(
                context, item.sop_instance_uid, pieces, sop_class_uid=item.sop_class_uid
            )

    # ------------------------------------------------------------ results

    def _report(self, result: SendResult) -> None:
        self._results.append(result)
        self._on_result(result)

    def _result(
        self,
        work: _Work,
        outcome: Outcome,
        *,
        status: int | None = None,
        reason: str = "",
        retry: bool = False,
    ) -> SendResult:
        return SendResult(work.item.path, outcome, work.item.size, status, reason, work.attempts, retry)

    def _fail(self, work: _Work, error: NetError | None) -> None:
        reason = str(error) if error is not None else "not sent"
        retry = error is None or error.retry
        self._report(self._result(work, Outcome.FAILED, reason=reason, retry=retry))

    def _not_accepted(self, association: RequestorAssociation, work: _Work) -> SendResult:
        item = work.item
        others = [
            lookup(context.transfer_syntax).name
            for context in association.contexts.values()
            if context.abstract_syntax == item.sop_class_uid
        ]
        syntax = lookup(item.transfer_syntax_uid)
        name = syntax.name if syntax.known else item.transfer_syntax_uid
        reason = (
            f"the peer does not take this SOP class in {name}, only in {', '.join(others)}"
            if others
            else f"the peer takes no SOP class {item.sop_class_uid} in {name}"
        )
        return self._result(work, Outcome.FAILED, reason=reason)

    def _judged(self, work: _Work, response: CStoreResponse) -> SendResult:
        status = response.status
        meaning = describe_status(status, Service.STORAGE)
        words = meaning.meaning + (f" ({response.error_comment})" if response.error_comment else "")
        if meaning.category in {Category.SUCCESS, Category.WARNING} and names_another(
            response, work.item.sop_instance_uid
        ):
            reason = f"{status:04X}H, but {NAMES_ANOTHER}: whether this one is there is not known"
            return self._result(work, Outcome.FAILED, status=status, reason=reason)
        if meaning.category is Category.SUCCESS:
            return self._result(work, Outcome.SENT, status=status)
        if meaning.category is Category.WARNING:
            return self._result(work, Outcome.WARNED, status=status, reason=words)
        retry = status & 0xFF00 == _OUT_OF_RESOURCES
        return self._result(
            work, Outcome.FAILED, status=status, reason=f"{status:04X}H: {words}", retry=retry
        )


async def _pieces(item: Sendable) -> AsyncGenerator[tuple[Buffer, bool], None]:
    """The data set in pieces of a megabyte, read on a thread. A file that shrank meanwhile is an OSError."""
    file, data = await trio.to_thread.run_sync(_open, item)
    try:
        left = item.size - len(data)
        yield data, not left
        while left:
            data = await trio.to_thread.run_sync(_read, file, min(left, _READ_BYTES))
            left -= len(data)
            yield data, not left
    finally:
        file.close()


def _open(item: Sendable) -> tuple[BinaryIO, bytes]:
    file = item.path.open("rb", buffering=0)
    try:
        file.seek(item.offset)
        return file, _read(file, min(item.size, _READ_BYTES))
    except BaseException:
        file.close()
        raise


def _read(file: BinaryIO, count: int) -> bytes:
    parts: list[bytes] = []
    left = count
    while left:
        data = file.read(left)
        if not data:
            raise OSError(0, "it is shorter than it was")
        parts.append(data)
        left -= len(data)
    return parts[0] if len(parts) == 1 else b"".join(parts)
