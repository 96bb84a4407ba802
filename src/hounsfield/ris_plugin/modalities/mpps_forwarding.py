"""MPPS requests handed on to other systems, as they came: durable, in order per destination, with back-off.

A request that was taken is put down in the transaction that took it, once for each of
``mpps_forward_to``. One worker sends them, for each destination the next one only when the one before has
been taken or refused for good: an N-SET never overtakes its N-CREATE. A destination that cannot be reached,
or is short of something, is asked again, for ever, at growing intervals; one that refuses a request is not
asked for it again, and the request stays to be seen and tried once more by hand.

A crash may come between an answer and its being noted; the request then goes out again, under the same SOP
Instance UID, and a destination that says that it has it already has taken it.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import structlog
import trio
from msgspec import structs

from hounsfield.archive.dicom.recoding import NotRecodableError, recoded
from hounsfield.archive.plugins import (
    EXPLICIT_VR_LITTLE_ENDIAN,
    Answer,
    Change,
    Outgoing,
    Parts,
    Request,
    UnreachableError,
    lookup,
)
from hounsfield.ris_plugin.context import Ris
from hounsfield.ris_plugin.errors import UnknownError
from hounsfield.ris_plugin.records.base import NS, seconds
from hounsfield.ris_plugin.records.forwarding import FORWARD, REFUSED, SENT, WAITING, Forward

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

__all__ = ["Forwarding", "parts", "put_down"]

log = structlog.get_logger(__name__)

MPPS: Final = "1.2.840.10008.3.1.2.3.3"
LOOK_SECONDS: Final = 60.0
"""How often is looked although nothing happened: a look-up of microseconds."""
RETRY_SECONDS: Final = 5.0
"""Before the second attempt, doubled for each one after it."""
RETRY_SECONDS_MAX: Final = 600.0
REFUSALS_RETRIED: Final = 10
"""A processing failure may pass; one that comes so often does not, and others wait behind it."""
SENT_KEPT_DAYS: Final = 30
FORGOTTEN_AT_ONCE: Final = 16
LISTED_MAX: Final = 1000
COUNTED_MAX: Final = 10_000
"""Of what waits; more is too many in any case."""

_WARNINGS: Final = frozenset({0x0001, 0x0107, 0x0116})
_DUPLICATE, _PROCESSING_FAILURE, _TOO_MUCH, _NO_RESOURCES = 0x0111, 0x0110, 0x0213, 0xA700
_MAY_NOT_BE_UPDATED: Final = 0xA710


def put_down(
    change: Change, destinations: Iterable[str], operation: str, sop_uid: str, request: Request
) -> None:
    """Have a request sent to each destination once this transaction is durable."""
    for destination in destinations:
        one = Forward(
            destination=destination,
            number=change.count(f"mpps to {destination}"),
            operation=operation,
            sop_uid=sop_uid,
            transfer_syntax=request.transfer_syntax_uid,
            packed=zlib.compress(request.dataset, 1),
            made_ns=change.now_ns,
        )
        change.put(FORWARD, change.new_id(), one)


class Forwarding:
    """What is sent to one destination."""

    def __init__(self, ris: Ris, destination: str) -> None:
        self._ris = ris
        self._destination = destination

    async def run(self) -> None:
        """Send what waits, until cancelled."""
        while True:
            last = await self._ris.archive.latest()
            pause = await self.send_next()
            with trio.move_on_after(pause):
                await self._ris.journal.wait(last)

    async def send_next(self) -> float:
        """Send the next request if it is due; in how many seconds to look again."""
        with self._ris.reading() as view:
            found = view.first(FORWARD, WAITING, self._destination)
        if found is None:
            return LOOK_SECONDS
        record_id, one = found
        due = (one.next_ns - self._ris.now_ns()) / NS
        if 0 < due <= RETRY_SECONDS_MAX:  # later than any pause: the clock was put back since
            return min(due, LOOK_SECONDS)
        noted = await self._sent(one)
        await self._ris.commit(partial(self._note, record_id=record_id, before=one, noted=noted))
        return 0.0 if noted.state != WAITING else max(0.0, (noted.next_ns - self._ris.now_ns()) / NS)

    async def _sent(self, one: Forward) -> Forward:
        """What a request is once it has been sent, or has not."""
        try:
            outgoing = _outgoing(one)
        except NotRecodableError as error:
            return structs.replace(one, state=REFUSED, error=str(error), ended_ns=self._ris.now_ns())
        try:
            answers = await self._ris.archive.send(self._destination, [outgoing])
        except UnreachableError as error:
            return _later(one, str(error), self._ris.now_ns())
        if not answers:
            return _later(one, "the association ended before there was an answer", self._ris.now_ns())
        return _answered(one, answers[0], self._ris.now_ns())

    def _note(self, change: Change, record_id: str, before: Forward, noted: Forward) -> None:
        if change.get(FORWARD, record_id) != before:
            return  # somebody else was quicker
        change.put(FORWARD, record_id, noted)
        if noted.state == REFUSED:
            log.warning("an MPPS request was refused", destination=self._destination, error=noted.error)
            change.say("mpps-refused", {"forward": record_id, "destination": self._destination})
        old = seconds(change.now_ns - SENT_KEPT_DAYS * 86_400 * NS)
        for forgotten in change.ids(FORWARD, SENT, self._destination, at_most=old, limit=FORGOTTEN_AT_ONCE):
            change.delete(FORWARD, forgotten)


def _outgoing(one: Forward) -> Outgoing:
    dataset = zlib.decompress(one.packed)
    syntax = lookup(one.transfer_syntax)
    if syntax != EXPLICIT_VR_LITTLE_ENDIAN:
        dataset = recoded(dataset, b"", syntax, EXPLICIT_VR_LITTLE_ENDIAN).before
    return Outgoing(one.operation, MPPS, one.sop_uid, dataset)


def _answered(one: Forward, answer: Answer, now_ns: int) -> Forward:
    """What a request is after an answer."""
    status = answer.status
    there = (one.operation == "create" and status == _DUPLICATE) or (
        one.operation == "set" and status == _PROCESSING_FAILURE and answer.error_id == _MAY_NOT_BE_UPDATED
    )
    if status == 0 or status in _WARNINGS or status >> 12 == 0xB or there:
        told = f"{status:04X}: it was there already" if there else ""
        return structs.replace(one, state=SENT, packed=b"", error=told, ended_ns=now_ns)
    said = f"{status:04X} {answer.comment}".strip()
    passing = status in {_TOO_MUCH, _NO_RESOURCES} or (
        status == _PROCESSING_FAILURE and one.attempts + 1 < REFUSALS_RETRIED
    )
    if passing:
        return _later(one, said, now_ns)
    return structs.replace(one, state=REFUSED, error=said, attempts=one.attempts + 1, ended_ns=now_ns)


def _later(one: Forward, error: str, now_ns: int) -> Forward:
    pause = min(RETRY_SECONDS * 2 ** min(one.attempts, 32), RETRY_SECONDS_MAX)
    return structs.replace(one, attempts=one.attempts + 1, error=error, next_ns=now_ns + int(pause * NS))


# ---------------------------------------------------------------- what is seen of it


async def _state(ris: Ris) -> dict[str, Any]:
    """How many requests wait for each destination, why, and which were refused."""
    rows: list[dict[str, Any]] = []
    refused: list[dict[str, Any]] = []
    with ris.reading() as view:
        for destination in ris.settings.mpps_forward_to:
            first = view.first(FORWARD, WAITING, destination)
            rows.append(
                {
                    "destination": destination,
                    "waiting": len(view.ids(FORWARD, WAITING, destination)),
                    "refused": len(view.ids(FORWARD, REFUSED, destination)),
                    "since_ns": first[1].made_ns if first is not None else 0,
                    "attempts": first[1].attempts if first is not None else 0,
                    "next_ns": first[1].next_ns if first is not None else 0,
                    "error": first[1].error if first is not None else "",
                }
            )
            for record_id, one in view.find(FORWARD, REFUSED, destination, limit=LISTED_MAX):
                refused.append(
                    {
                        "forward": record_id,
                        "destination": destination,
                        "operation": one.operation,
                        "made_ns": one.made_ns,
                        "ended_ns": one.ended_ns,
                        "error": one.error,
                    }
                )
    return {"destinations": rows, "refused": refused}  # fmt: skip


async def _again(ris: Ris, forward: str) -> None:
    """Try a request once more that was refused; it keeps its place. UnknownError."""

    def plan(change: Change) -> None:
        one = change.get(FORWARD, forward)
        if one is None or one.state != REFUSED:
            raise UnknownError("there is no such request that was refused")
        change.put(FORWARD, forward, structs.replace(one, state=WAITING, attempts=0, next_ns=0, ended_ns=0))

    await ris.commit(plan)


def _metrics(ris: Ris) -> Iterable[Metric]:
    from prometheus_client.metrics_core import GaugeMetricFamily

    queued = GaugeMetricFamily(
        "hounsfield_ris_mpps_queued",
        "MPPS requests not taken by their destination",
        labels=["destination", "state"],
    )
    oldest = GaugeMetricFamily(
        "hounsfield_ris_mpps_oldest_seconds", "Age of the first that waits", labels=["destination"]
    )
    with ris.reading() as view:
        for destination in ris.settings.mpps_forward_to:
            for state in (WAITING, REFUSED):
                count = len(view.ids(FORWARD, state, destination, limit=COUNTED_MAX))
                queued.add_metric([destination, state], count)
            first = view.first(FORWARD, WAITING, destination)
            age = (ris.now_ns() - first[1].made_ns) / NS if first is not None else 0.0
            oldest.add_metric([destination], max(0.0, age))
    return [queued, oldest]


def parts(ris: Ris) -> Parts:
    """One leading part for each destination, and what the command line asks for."""
    return Parts(
        leading={f"mpps to {one}": Forwarding(ris, one).run for one in ris.settings.mpps_forward_to},
        operations={"mpps": partial(_state, ris), "mpps-again": partial(_again, ris)},
        metrics=partial(_metrics, ris),
    )
