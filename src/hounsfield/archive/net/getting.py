"""C-GET: objects go to the requestor itself, on its own association (PS3.4 C.4.3).

Only on presentation contexts whose SOP class it has taken the SCP role for (PS3.7 D.3.3.4): it said there
which it receives, and in which transfer syntaxes.
"""

from __future__ import annotations

from functools import partial

import structlog

from hounsfield.archive.engine.engine import Engine
from hounsfield.archive.net.outgoing import Accepted
from hounsfield.archive.net.retrieving import GET_CLASSES, Retrieval, relational
from hounsfield.archive.net.services import Operation, Service
from hounsfield.archive.net.suboperations import (
    NoRoomError,
    Patience,
    RetrieveFigures,
    RetrieveLimits,
    Suboperations,
    run_line,
)
from hounsfield.archive.wire import AcceptedContext, CGetRequest

__all__ = ["Getting", "get_service"]

log = structlog.get_logger(__name__)


def get_service(
    engine: Engine, limits: RetrieveLimits | None = None, figures: RetrieveFigures | None = None
) -> Service:
    """C-GET for all three information models."""
    getting = Getting(engine, limits or RetrieveLimits(), figures or RetrieveFigures())
    return Service("get", GET_CLASSES, {CGetRequest: getting.perform}, relational)


class Getting:
    """Performs C-GET requests, any number at once."""

    def __init__(self, engine: Engine, limits: RetrieveLimits, figures: RetrieveFigures) -> None:
        self._engine = engine
        self._limits = limits
        self._figures = figures
        # A C-GET has one association, which ends with an object that cannot be read to its end when a part
        # of it was sent. Asked for once more, that one fails, and all others come.
        self._doubtful: dict[str, None] = {}

    async def perform(
        self, operation: Operation, context: AcceptedContext, request: CGetRequest, identifier: bytes
    ) -> None:
        """One request, to its final response. Raises NetError when the association is over before."""
        retrieval = Retrieval(operation, context, request, self._limits, self._figures)
        found = await retrieval.find(self._engine, identifier)
        if found is not None:
            run = partial(self._send, operation)
            await retrieval.perform(found, run, destination=operation.peer.calling_ae)

    async def _send(self, operation: Operation, operations: Suboperations) -> None:
        scp_of = operation.peer.scp_of
        contexts = (one for one in operation.contexts.values() if one.abstract_syntax in scp_of)
        try:
            await run_line(
                self._engine,
                operations,
                operation,
                Accepted(contexts),
                window=operation.peer.asynchronous[1],
                limits=self._limits,
                patience=Patience(self._limits),
                doubtful=self._doubtful,
            )
        except NoRoomError:
            operations.fail_chosen("the requestor is out of resources")
