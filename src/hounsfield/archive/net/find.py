"""C-FIND as SCP: Patient Root, Study Root and Patient/Study Only (PS3.4 C.4.1, PS3.7 9.1.2).

Answers are found and encoded on a thread, some at a time, and sent as they come, some dozens in one write;
between two writes a C-CANCEL is heeded. How keys are read and matched is said in ``dicom.find_request`` and
``dicom.matching``.

Statuses (PS3.4 C.4.1.1.4): A900 for an identifier that does not fit its SOP class; C000 for one that cannot
be read, or a key whose form is wrong, with the attributes at fault in Offending Element (0000,0901). More
matches than ``answers_max``: those are sent, then A700. The standard has no warning for it; success would say
that this was all, and FE00, which Orthanc sends then, that the requestor had cancelled. dcm4chee refuses
such a request as a whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Final

import structlog

from hounsfield.archive.dicom.find_identifier import (
    IdentifierError,
    MismatchError,
    read_identifier,
)
from hounsfield.archive.dicom.find_request import LEVELS, FindRequest, Negotiated, agree, find_request
from hounsfield.archive.engine.engine import Engine
from hounsfield.archive.engine.errors import EngineError
from hounsfield.archive.engine.finding import Answers, End, Finding, FindLimits
from hounsfield.archive.net.services import LongProvider, Operation, Peer, Service, Whole
from hounsfield.archive.wire import AcceptedContext, CFindRequest, CFindResponse, Status
from hounsfield.codecs.registry import (
    EXPLICIT_VR_BIG_ENDIAN,
    EXPLICIT_VR_LITTLE_ENDIAN,
    IMPLICIT_VR_LITTLE_ENDIAN,
    lookup,
)

__all__ = ["FindProvider", "find_service"]

log = structlog.get_logger(__name__)

_COMMENT_CHARS_MAX: Final = 64  # VR LO
_OFFENDING_MAX: Final = 16
#: Identifiers up to this are read at once, in a tenth of a millisecond; longer ones on a thread.
SHORT_BYTES: Final = 4096
#: Sent in one write: between two of them a C-CANCEL is heeded.
ANSWERS_AT_ONCE: Final = 64
_ENDS: Final[Mapping[End, tuple[Status, str | None]]] = {
    End.COMPLETE: (Status.SUCCESS, None),
    End.TOO_MANY_ANSWERS: (Status.OUT_OF_RESOURCES, "there are more matches: ask more narrowly"),
    End.TOO_MANY_HEADERS: (Status.OUT_OF_RESOURCES, "too many candidates for keys that are not indexed"),
}


def find_service(engine: Engine, limits: FindLimits | None = None, *, relational: bool = False) -> Service:
    """The C-FIND service alone; for the rest see :class:`FindProvider`."""
    return FindProvider(engine, limits or FindLimits(), relational=relational).service()


class FindProvider:
    """Answers C-FIND requests. ``relational``: relational queries need not be negotiated."""

    def __init__(self, engine: Engine, limits: FindLimits, *, relational: bool = False) -> None:
        self._engine = engine
        self._limits = limits
        self._relational = relational
        self._requests = self._answers = self._failed = 0

    def service(self) -> Service:
        """What the listener is given."""

        def extended(sop_class_uid: str, asked: bytes) -> bytes | None:
            return agree(asked) if sop_class_uid in LEVELS else None

        syntaxes = (EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN, EXPLICIT_VR_BIG_ENDIAN)
        return Service(
            "find",
            frozenset(LEVELS),
            {CFindRequest: self},
            extended,
            transfer_syntaxes=tuple(syntax.uid for syntax in syntaxes),
        )

    def figures(self) -> Mapping[str, int]:
        """For the metrics."""
        return {
            "dimse_queries_total": self._requests,
            "dimse_queries_failed_total": self._failed,
            "dimse_answers_total": self._answers,
        }

    async def __call__(
        self, operation: Operation, context: AcceptedContext, request: CFindRequest, data: bytes
    ) -> None:
        """Answer one request."""
        await self._perform(operation, context, request, data)

    def begin(
        self, peer: Peer, context: AcceptedContext, request: CFindRequest, data: bytes
    ) -> Whole | LongProvider:
        """The whole answer where keys lead straight to few rows; else what performs the request."""
        if len(data) > SHORT_BYTES:
            return self
        try:
            begun = asked, finding = self._begin(peer, context, data)
            if not finding.is_quick:
                return partial(self._perform, begun=begun)
            answers = finding.more()
        except Exception:  # noqa: BLE001 - it comes again where it is answered
            return self
        if answers.end is None or len(answers.encoded) > ANSWERS_AT_ONCE:
            return partial(self._perform, begun=begun, answers=answers)
        self._requests += 1
        pending = _pending(request, context, asked)
        return Whole(
            pending, answers.encoded, self._final(pending, answers.end, len(answers.encoded), finding)
        )

    async def _perform(  # noqa: PLR0917
        self,
        operation: Operation,
        context: AcceptedContext,
        request: CFindRequest,
        data: bytes,
        begun: tuple[FindRequest, Finding] | None = None,
        answers: Answers | None = None,
    ) -> None:
        """``begun``, ``answers``: as far as it is."""
        self._requests += 1
        sop_class_uid = context.abstract_syntax
        try:
            if begun is not None:
                asked, finding = begun
            elif len(data) > SHORT_BYTES:
                asked, finding = await self._engine.read(self._begin, operation.peer, context, data)
            else:
                asked, finding = self._begin(operation.peer, context, data)
            if answers is None:
                answers = await self._engine.read(finding.more)
            await self._answer(operation, _pending(request, context, asked), finding, answers)
        except IdentifierError as error:
            self._failed += 1
            await operation.respond(_failure(request, sop_class_uid, error))
        except EngineError as error:
            self._failed += 1
            log.warning("a query failed", error_type=type(error).__name__, error=str(error))
            await operation.respond(
                CFindResponse(
                    request.message_id, Status.CANNOT_UNDERSTAND, sop_class_uid, error_comment="see the log"
                )
            )

    async def _answer(
        self, operation: Operation, pending: CFindResponse, finding: Finding, answers: Answers
    ) -> None:
        """Send what is found, and the last response with the last of it."""
        sent = 0
        while True:
            encoded = answers.encoded
            for at in range(0, max(len(encoded), 1), ANSWERS_AT_ONCE):
                some = encoded[at : at + ANSWERS_AT_ONCE]
                final = None
                if operation.cancelled:
                    final = self._final(pending, None, sent, finding)
                    some = []
                elif answers.end is not None and at + ANSWERS_AT_ONCE >= len(encoded):
                    final = self._final(pending, answers.end, sent + len(some), finding)
                sent += len(some)
                if some or final is not None:
                    await operation.answer(pending, some, final)
                if final is not None:
                    return
            answers = await self._engine.read(finding.more)

    def _final(self, pending: CFindResponse, end: End | None, sent: int, finding: Finding) -> CFindResponse:
        """The last response, noted; ``end`` is None when the requestor has cancelled."""
        status, comment = (Status.CANCEL, None) if end is None else _ENDS[end]
        self._answers += sent
        self._failed += end not in {None, End.COMPLETE}
        log.debug("query answered", answers=sent, status=f"{status:04X}")
        if finding.headers_unread:
            log.warning("stored headers could not be read", headers=finding.headers_unread)
        return CFindResponse(
            pending.message_id_responded_to, status, pending.affected_sop_class_uid, error_comment=comment
        )

    def _begin(self, peer: Peer, context: AcceptedContext, data: bytes) -> tuple[FindRequest, Finding]:
        """Read the request; nothing is looked for yet."""
        syntax = lookup(context.transfer_syntax)
        negotiated = Negotiated.of(peer.extended.get(context.abstract_syntax, b""))
        if self._relational:
            negotiated = replace(negotiated, relational=True)
        asked = find_request(context.abstract_syntax, read_identifier(data, syntax), negotiated)
        engine = self._engine
        finding = Finding(
            engine.stores,
            engine.header_blocking,
            asked,
            syntax,
            retrieve_ae=peer.called_ae,
            limits=self._limits,
        )
        return asked, finding


def _pending(request: CFindRequest, context: AcceptedContext, asked: FindRequest) -> CFindResponse:
    status = Status.PENDING_OPTIONAL_KEYS_NOT_SUPPORTED if asked.unsupported else Status.PENDING
    return CFindResponse(request.message_id, status, context.abstract_syntax, has_dataset=True)


def _failure(request: CFindRequest, sop_class_uid: str, error: IdentifierError) -> CFindResponse:
    mismatch = isinstance(error, MismatchError)
    return CFindResponse(
        request.message_id,
        Status.DATASET_DOES_NOT_MATCH_SOP_CLASS if mismatch else Status.CANNOT_UNDERSTAND,
        sop_class_uid,
        offending_elements=error.tags[:_OFFENDING_MAX] or None,
        error_comment=str(error)[:_COMMENT_CHARS_MAX],
    )
