"""C-MOVE: objects go to a third application entity, on associations of our own (PS3.4 C.4.2).

Each request has associations of its own to its destination, which end with it. A destination that hangs, or
dies half-way, costs time on those; what it had not acknowledged is sent again on a new one.
"""

from __future__ import annotations

from functools import partial
from typing import Protocol

import structlog
import trio

from hounsfield.archive.engine.engine import Engine
from hounsfield.archive.net.errors import (
    AbortedError,
    BrokeProtocolError,
    ConnectError,
    ConnectionLostError,
    NetError,
    RejectedError,
    TimedOutError,
    TlsError,
)
from hounsfield.archive.net.outgoing import Accepted, UnfinishedError, batches_of
from hounsfield.archive.net.retrieving import MOVE_CLASSES, Retrieval, relational
from hounsfield.archive.net.scu import Offer, RemoteEntity, ScuLimits, associate
from hounsfield.archive.net.services import Operation, Service
from hounsfield.archive.net.suboperations import (
    NoRoomError,
    Patience,
    RetrieveFigures,
    RetrieveLimits,
    Suboperations,
    run_line,
)
from hounsfield.archive.wire import AcceptedContext, CMoveRequest, PresentationContext, Status

__all__ = ["Finder", "Moving", "move_service"]

log = structlog.get_logger(__name__)

#: What the requestor is told of why nothing more got through.
_REASONS: dict[type[NetError], str] = {
    ConnectError: "the destination cannot be reached",
    TlsError: "no TLS with the destination",
    RejectedError: "the destination refuses the association",
    TimedOutError: "the destination does not answer",
    BrokeProtocolError: "the destination breaks the protocol",
    AbortedError: "the destination aborted the association",
    ConnectionLostError: "the destination closed the connection",
    NoRoomError: "the destination is out of resources",
}


class Finder(Protocol):
    """Whom we can call; see :class:`~hounsfield.archive.net.destinations.Destinations`."""

    def find(self, title: str) -> RemoteEntity | None:
        """The AE of that title, None when none is known or it has no address. Raises TlsError."""


def move_service(
    engine: Engine,
    destinations: Finder,
    limits: RetrieveLimits | None = None,
    scu_limits: ScuLimits | None = None,
    figures: RetrieveFigures | None = None,
) -> Service:
    """C-MOVE for all three information models."""
    moving = Moving(
        engine,
        destinations,
        limits or RetrieveLimits(),
        scu_limits or ScuLimits(),
        figures or RetrieveFigures(),
    )
    return Service("move", MOVE_CLASSES, {CMoveRequest: moving.perform}, relational)


class Moving:
    """Performs C-MOVE requests, any number at once."""

    def __init__(
        self,
        engine: Engine,
        destinations: Finder,
        limits: RetrieveLimits,
        scu_limits: ScuLimits,
        figures: RetrieveFigures,
    ) -> None:
        self._engine = engine
        self._destinations = destinations
        self._limits = limits
        self._scu_limits = scu_limits
        self._figures = figures
        self._slots: dict[tuple[str, int], trio.CapacityLimiter] = {}

    async def perform(
        self, operation: Operation, context: AcceptedContext, request: CMoveRequest, identifier: bytes
    ) -> None:
        """One request, to its final response."""
        retrieval = Retrieval(operation, context, request, self._limits, self._figures)
        title = request.move_destination.strip()
        try:
            remote = self._destinations.find(title)
        except TlsError as error:
            log.error("a destination cannot be called", destination=title, error=str(error))
            await retrieval.refuse(Status.OUT_OF_RESOURCES_SUBOPERATIONS, _REASONS[TlsError])
            return
        if remote is None:
            await retrieval.refuse(Status.MOVE_DESTINATION_UNKNOWN, "no address of that AE is known here")
            return
        found = await retrieval.find(self._engine, identifier)
        if found is None:
            return
        originator = operation.peer.calling_ae, request.message_id
        run = partial(self._send, remote, originator)
        await retrieval.perform(found, run, destination=title)

    async def _send(
        self, remote: RemoteEntity, originator: tuple[str, int], operations: Suboperations
    ) -> None:
        for contexts, pairs in batches_of(operations.pairs()):
            operations.choose(pairs)
            errors: list[NetError] = []
            async with trio.open_nursery() as nursery:
                at_once = remote.associations or self._limits.associations
                for _ in range(min(at_once, len(operations.queue))):
                    nursery.start_soon(self._worker, remote, contexts, originator, operations, errors)
            if operations.stopping:
                return
            if errors:
                operations.fail_chosen(_REASONS.get(type(errors[0]), "it cannot be sent there"))
        operations.choose(operations.pairs())
        operations.fail_chosen("no presentation context can be proposed for it")

    async def _worker(
        self,
        remote: RemoteEntity,
        contexts: list[PresentationContext],
        originator: tuple[str, int],
        operations: Suboperations,
        errors: list[NetError],
    ) -> None:
        """One association after the other, until nothing is queued or it is no use."""
        limits = self._limits
        patience = Patience(limits)
        while operations.queue and not operations.stopping:
            before = operations.got_through
            associated = False
            try:
                async with (
                    self._slot(remote),
                    associate(remote, contexts, self._scu_limits, Offer(window=limits.window)) as association,
                ):
                    associated = True
                    await run_line(
                        self._engine,
                        operations,
                        association,
                        Accepted(association.contexts.values()),
                        window=association.window,
                        limits=limits,
                        patience=patience,
                        move_originator=originator,
                    )
            except UnfinishedError:
                continue  # that one has its result; the others go on a new association
            except NetError as error:
                progressed = associated and operations.got_through > before
                pause = patience.pause(progressed=progressed) if error.retry else None
                if pause is None or isinstance(error, NoRoomError):
                    errors.append(error)
                    return
                log.info("a destination is tried again", error_type=type(error).__name__, error=str(error))
                await operations.pause(pause)

    def _slot(self, remote: RemoteEntity) -> trio.CapacityLimiter:
        key = remote.host, remote.port
        slot = self._slots.get(key)
        if slot is None:
            slot = self._slots[key] = trio.CapacityLimiter(self._limits.associations_per_destination_max)
        return slot
