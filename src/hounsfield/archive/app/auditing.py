"""Associations on their way to the journal: a bounded queue off the hot path, emptied in batches."""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any, Final, Protocol

import trio

from hounsfield.archive.app.lean_structlog import structlog
from hounsfield.archive.engine.associations import RECORDS_MAX, Record
from hounsfield.archive.errors import HounsfieldError
from hounsfield.archive.net.records import CallRecord, EndRecord
from hounsfield.storage_backends.errors import StorageError

__all__ = ["AssociationAudit", "AuditError"]

WAITING_MAX: Final = 4096
"""Records not yet in the journal; past it the newest are dropped and counted. No association waits."""
STRANGERS_MAX: Final = 64
"""Kinds of refusals in one batch; the same are counted, and past it all others are one record: who is
refused a thousand times a second, under as many names, fills neither the queue nor the journal."""
FLUSH_S: Final = 5.0
"""A killed worker loses the records of so long; a commit each would cost more than many an association."""
ANSWERS_MAX: Final = 10_000
_OTHERS: Final = "many others, for other reasons or under other names"
_SINCE: Final = re.compile(r"(\d+(?:\.\d+)?)(s|min|h|d)")
_UNITS: Final = {"s": 1, "min": 60, "h": 3600, "d": 86_400}
_NS: Final = 1_000_000_000


class AuditError(HounsfieldError):
    """The records of associations cannot be looked at as asked."""

    mistaken = True


class Events(Protocol):
    """The part of the engine that is used here."""

    async def append(self, records: Sequence[Record]) -> None:
        """Keep records."""

    async def newest(
        self,
        *,
        since_ns: int,
        limit: int,
        what: str = "",
        title: str = "",
        address: str = "",
        user: str = "",
    ) -> tuple[list[Record], bool]:
        """Records, newest first; whether there are more."""


class AssociationAudit:
    """Takes records without waiting (:meth:`called`, :meth:`ended`); :meth:`run` keeps them."""

    def __init__(
        self, events: Events, *, enabled: bool = True, dropped: Callable[[int], None] = lambda _: None
    ) -> None:
        """``dropped`` is told how many records found no place. ``enabled`` may be changed."""
        self.enabled = enabled
        self._events = events
        self._dropped = dropped
        self._waiting: deque[Record] = deque()
        self._refused: dict[tuple[str, ...], dict[str, Any]] = {}
        self._some = trio.Event()
        self._many = trio.Event()

    def called(self, call: CallRecord) -> None:
        """An association request was answered, or no TLS came about. Never waits."""
        if call.outcome != "refused":
            self._note(call.time, call.outcome, call)
            return
        kind = (call.calling_ae, call.called_ae, call.address, call.reason)
        if kind not in self._refused and len(self._refused) >= STRANGERS_MAX:
            call = replace(call, calling_ae="", called_ae="", address="", reason=_OTHERS)
            kind = ("", "", "", _OTHERS)
        known = self._refused.get(kind)
        if known is not None:
            known["count"] = known.get("count", 1) + 1
            known["at_ns"] = int(call.time * _NS)
        elif (record := self._note(call.time, "refused", call, reason=call.reason)) is not None:
            self._refused[kind] = record

    def ended(self, end: EndRecord) -> None:
        """An accepted association is over. Never waits."""
        self._note(
            end.time,
            "ended",
            end.call,
            reason=end.reason,
            seconds=round(end.seconds, 3),
            objects=end.objects,
            objects_failed=end.objects_failed,
            bytes_in=end.bytes_in,
            bytes_out=end.bytes_out,
        )

    def _note(self, at: float, what: str, call: CallRecord, **more: Any) -> dict[str, Any] | None:
        if not self.enabled:
            return None
        if len(self._waiting) >= WAITING_MAX:
            self._dropped(1)
            return None
        words = {
            "calling_ae": call.calling_ae,
            "called_ae": call.called_ae,
            "address": call.address,
            "user": call.identity,
            "certificate": call.certificate,
            **more,
        }
        known = {name: value for name, value in words.items() if value}
        record = {"at_ns": int(at * _NS), "what": what, **known}
        self._waiting.append(record)
        self._some.set()
        if len(self._waiting) >= RECORDS_MAX:
            self._many.set()
        return record

    async def run(self) -> None:
        """Keep what comes in, until cancelled; what is there then is kept, too."""
        try:
            while True:
                await self._some.wait()
                with trio.move_on_after(FLUSH_S):
                    await self._many.wait()
                await self._flush()
        finally:
            with trio.CancelScope(shield=True):
                await self._flush()

    async def _flush(self) -> None:
        self._some, self._many = trio.Event(), trio.Event()
        self._refused = {}
        while self._waiting:
            batch = [self._waiting.popleft() for _ in range(min(RECORDS_MAX, len(self._waiting)))]
            try:
                await self._events.append(batch)
            except (HounsfieldError, StorageError) as error:  # a full disk must not end an association
                self._dropped(len(batch))
                structlog.get_logger().warning(
                    "records of associations were lost", count=len(batch), error=str(error)
                )

    # ------------------------------------------------------------ the command line's operation

    def operations(self) -> dict[str, Callable[..., Awaitable[Any]]]:
        """What ``hounsfield audit`` asks for, over the control socket."""
        return {"audit": self.list}

    async def list(
        self,
        *,
        since: str = "7d",
        limit: int = 100,
        what: str = "",
        title: str = "",
        address: str = "",
        user: str = "",
    ) -> dict[str, Any]:
        """Records of associations, newest first. Raises AuditError for a time that is none."""
        await self._flush()
        found, more = await self._events.newest(
            since_ns=_since(since, time.time()),
            limit=min(limit, ANSWERS_MAX),
            what=what,
            title=title,
            address=address,
            user=user,
        )
        return {"records": [dict(record) for record in found], "more": more}


def _since(text: str, now: float) -> int:
    """``90min``, ``36h``, ``7d``, or a time of ISO 8601, as nanoseconds since the epoch."""
    if found := _SINCE.fullmatch(text.strip()):
        return int((now - float(found[1]) * _UNITS[found[2]]) * _NS)
    try:
        return int(datetime.fromisoformat(text.strip()).timestamp() * _NS)
    except ValueError:
        raise AuditError(f"{text!r} is no time: write 90min, 36h, 7d, or 2026-11-22T08:00") from None
