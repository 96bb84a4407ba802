"""What C-MOVE and C-GET have in common: whom they are for, what they find, and how they answer.

While sub-operations go on, pending responses tell how many are left; the final one tells how they ended, and
lists those that failed (PS3.4 C.4.2.1.4 to C.4.2.3, C.4.3.1 to C.4.3.3). Nothing here names a patient, in an
answer or in the log.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from typing import Final

import structlog
import trio

from hounsfield.archive.dicom.find_identifier import IdentifierError, MismatchError
from hounsfield.archive.dicom.levels import Level
from hounsfield.archive.engine.engine import Engine
from hounsfield.archive.engine.errors import EngineError
from hounsfield.archive.engine.listing import Named
from hounsfield.archive.net.errors import NetError
from hounsfield.archive.net.selection import TooManyError, keys_of, select
from hounsfield.archive.net.services import Operation
from hounsfield.archive.net.suboperations import (
    RetrieveFigures,
    RetrieveLimits,
    Suboperations,
    failed_list,
)
from hounsfield.archive.wire import (
    AcceptedContext,
    CGetRequest,
    CGetResponse,
    CMoveRequest,
    CMoveResponse,
    Status,
)

__all__ = ["COMMENT_MAX", "GET_CLASSES", "LEVELS", "MOVE_CLASSES", "Retrieval", "relational"]

log = structlog.get_logger(__name__)

COMMENT_MAX: Final = 64  # VR LO

_ROOT: Final = "1.2.840.10008.5.1.4.1.2"
#: The information models by the number that precedes the service's in their SOP classes (PS3.4 C.6).
_MODELS: Final = {
    "1": (Level.PATIENT, Level.STUDY, Level.SERIES, Level.INSTANCE),
    "2": (Level.STUDY, Level.SERIES, Level.INSTANCE),
    "3": (Level.PATIENT, Level.STUDY),
}
MOVE_CLASSES: Final = frozenset(f"{_ROOT}.{model}.2" for model in _MODELS)
GET_CLASSES: Final = frozenset(f"{_ROOT}.{model}.3" for model in _MODELS)
LEVELS: Final = {
    f"{_ROOT}.{model}.{service}": levels for model, levels in _MODELS.items() for service in (2, 3)
}
"""Of each retrieve SOP class' information model (PS3.4 C.6.1 to C.6.3)."""


def relational(_: str, asked: bytes) -> bytes:
    """Extended negotiation: relational retrieval is agreed to, nothing else is (PS3.4 C.5.2.1, C.5.3.1)."""
    return bytes((asked[0] & 1, *bytes(len(asked) - 1))) if asked else b""


class Retrieval:
    """One C-MOVE or C-GET request on its way to its final response."""

    def __init__(
        self,
        operation: Operation,
        context: AcceptedContext,
        request: CMoveRequest | CGetRequest,
        limits: RetrieveLimits,
        figures: RetrieveFigures,
    ) -> None:
        self._operation = operation
        self._context = context
        self._request = request
        self._limits = limits
        self._figures = figures
        self._class = CMoveResponse if isinstance(request, CMoveRequest) else CGetResponse

    async def find(self, engine: Engine, identifier: bytes) -> list[Named] | None:
        """What the identifier names; None when it was answered that it cannot be done."""
        context = self._context
        try:
            keys = keys_of(identifier, context.transfer_syntax, LEVELS[context.abstract_syntax])
            return await select(engine, keys)
        except MismatchError as error:
            await self.refuse(Status.DATASET_DOES_NOT_MATCH_SOP_CLASS, str(error), error.tags)
        except IdentifierError as error:
            await self.refuse(Status.CANNOT_UNDERSTAND, str(error), error.tags)
        except TooManyError as error:
            await self.refuse(Status.OUT_OF_RESOURCES_MATCHES, str(error))
        except EngineError as error:
            log.error("what is to be retrieved was not found out", error_type=type(error).__name__)
            await self.refuse(Status.OUT_OF_RESOURCES_MATCHES, "the index cannot be read")
        return None

    async def refuse(self, status: Status, comment: str, offending: tuple[int, ...] = ()) -> None:
        """The final response, nothing having been sent."""
        response = self._class(
            self._request.message_id,
            status,
            self._request.affected_sop_class_uid,
            offending_elements=offending or None,
            error_comment=comment[:COMMENT_MAX],
        )
        await self._operation.respond(response)

    async def perform(
        self, found: list[Named], run: Callable[[Suboperations], Awaitable[None]], *, destination: str
    ) -> None:
        """Have ``run`` perform the sub-operations; tell how it goes, and how it ended.

        ``run`` leaves none without a result unless they were cancelled. Raises NetError when it does.
        """
        operation = self._operation
        operations = Suboperations(found, lambda: operation.cancelled, self._figures)
        began = trio.current_time()
        finished = trio.Event()
        scope = trio.CancelScope()
        over: Exception | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._tell, operations, finished, scope)
            with scope:
                try:
                    await run(operations)
                except Exception as error:  # noqa: BLE001 - raised below, without a group around it
                    over = error
            finished.set()
        if over is not None:
            raise over
        tally, peer = operations.tally, operation.peer
        log.info(
            "retrieved",
            service="C-MOVE" if self._class is CMoveResponse else "C-GET",
            calling_ae=peer.calling_ae,
            destination=destination,
            completed=tally.completed,
            warning=tally.warning,
            failed=tally.failed,
            cancelled=operations.remaining,
            bytes=operations.bytes_sent,
            seconds=round(trio.current_time() - began, 3),
            **({"reason": operations.reason} if tally.failed else {}),
        )
        await self._respond(operations, operations.status())

    async def _tell(self, operations: Suboperations, finished: trio.Event, scope: trio.CancelScope) -> None:
        """Pending responses, until ``finished``; and that a C-CANCEL is not waited out."""
        limits = self._limits
        told: tuple[int, ...] = ()
        told_at = -math.inf
        until = math.inf
        while not finished.is_set():
            now = trio.current_time()
            if not operations.stopping:
                counts = operations.counts()
                due = limits.still_there_s if counts == told else limits.pending_s
                if counts[0] and now - told_at >= due:
                    try:
                        await self._respond(operations, Status.PENDING)
                    except NetError:
                        return  # the association is over, and this operation with it
                    told, told_at = counts, now
            else:
                until = min(until, now + limits.cancel_s)
                if now >= until:
                    scope.cancel()
            with trio.move_on_after(limits.poll_s):
                await finished.wait()

    async def _respond(self, operations: Suboperations, status: Status) -> None:
        remaining, completed, failed, warning = operations.counts()
        final = status is not Status.PENDING
        # Which failed is told at the end only (PS3.4 C.4.2.1.4.2), how many are left only before it, or when
        # it was cancelled (C.4.2.1.6).
        listed = final and status is not Status.SUCCESS and operations.failed_uids
        comment = operations.reason[:COMMENT_MAX] if final and failed else ""
        response = self._class(
            self._request.message_id,
            status,
            self._request.affected_sop_class_uid,
            remaining_suboperations=remaining if status in (Status.PENDING, Status.CANCEL) else None,
            completed_suboperations=completed,
            failed_suboperations=failed,
            warning_suboperations=warning,
            error_comment=comment or None,
            has_dataset=bool(listed),
        )
        identifier = failed_list(operations.failed_uids, self._context.transfer_syntax) if listed else None
        await self._operation.respond(response, identifier)
