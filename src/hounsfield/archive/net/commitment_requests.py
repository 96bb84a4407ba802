"""Storage commitment as its user: asking others to be responsible for objects, and hearing (PS3.4 J.3).

The report comes on the association that asked, or on one that the other side requests: then something has to
listen for it, :func:`report_listener`.
"""

from __future__ import annotations

import socket
import ssl
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NoReturn

import trio

from hounsfield.archive.dicom.commitment import (
    COMMITMENT_INSTANCE,
    REQUEST_COMMITMENT,
    STORAGE_COMMITMENT,
    CommitmentError,
    CommitmentRequest,
    Reference,
    parse_report,
    request,
)
from hounsfield.archive.engine.errors import RefusedError as NotTakenError
from hounsfield.archive.net.listener import Endpoint, Listener
from hounsfield.archive.net.policy import ListenerPolicy
from hounsfield.archive.net.query_retrieve import RefusedError, printable, proposal
from hounsfield.archive.net.scu import RequestorAssociation
from hounsfield.archive.net.services import Operation, Service
from hounsfield.archive.wire import (
    AcceptedContext,
    Category,
    NActionRequest,
    NActionResponse,
    NEventReportRequest,
    NEventReportResponse,
    Status,
    describe_status,
)
from hounsfield.codecs.registry import lookup

__all__ = ["COMMITMENT_CONTEXT", "Awaited", "ask_for_commitment", "report_listener"]

COMMITMENT_CONTEXT = proposal(1, STORAGE_COMMITMENT)


@dataclass(slots=True)
class _Transaction:
    references: tuple[Reference, ...]
    committed: tuple[Reference, ...] = ()
    failed: tuple[tuple[Reference, int], ...] = ()
    reported: bool = False


@dataclass(slots=True)
class Awaited:
    """Transactions that were asked for, and the reports on them, whichever way they come."""

    transactions: dict[str, _Transaction] = field(default_factory=dict)
    came: trio.Event = field(default_factory=trio.Event)
    """Set when no report is owed any more."""

    def expect(self, references: Sequence[Reference]) -> CommitmentRequest:
        """A new transaction for these."""
        transaction = f"2.25.{uuid.uuid4().int}"  # PS3.5 B.2
        self.transactions[transaction] = _Transaction(tuple(references))
        self.came = trio.Event()
        return CommitmentRequest(transaction, tuple(references))

    def forget(self, transaction_uid: str) -> None:
        """It was refused: no report comes."""
        self.transactions.pop(transaction_uid, None)
        self._look()

    @property
    def complete(self) -> bool:
        """Whether every report is here."""
        return all(one.reported for one in self.transactions.values())

    def hear(self, context: AcceptedContext, report: NEventReportRequest, data: bytes) -> int:
        """Take an N-EVENT-REPORT; the status to answer it with (PS3.4 J.3.3)."""
        if report.affected_sop_class_uid != STORAGE_COMMITMENT:
            return Status.NO_SUCH_SOP_CLASS
        if report.event_type_id not in (1, 2):
            return Status.NO_SUCH_EVENT_TYPE
        try:
            transaction_uid, committed, failed = parse_report(data, lookup(context.transfer_syntax))
        except CommitmentError:
            return Status.INVALID_ARGUMENT_VALUE
        transaction = self.transactions.get(transaction_uid)
        if transaction is None:
            return Status.PROCESSING_FAILURE  # somebody else's, or one that we do not wait for any more
        transaction.committed, transaction.failed, transaction.reported = committed, failed, True
        self._look()
        return Status.SUCCESS

    def _look(self) -> None:
        if self.complete:
            self.came.set()

    # ------------------------------------------------------------ what came out

    def committed(self) -> list[Reference]:
        """What was asked for and is committed."""
        out: list[Reference] = []
        for each in self.transactions.values():
            done = set(each.committed)
            out += [one for one in each.references if one in done]
        return out

    def failed(self) -> list[tuple[Reference, str]]:
        """What is not, and why; and what the report is silent about."""
        out: list[tuple[Reference, str]] = []
        for each in self.transactions.values():
            if not each.reported:
                continue
            said = {one.sop_instance_uid: _why(reason) for one, reason in each.failed}
            done = set(each.committed)
            out += [
                (one, said.get(one.sop_instance_uid, "the report does not mention it"))
                for one in each.references
                if one not in done
            ]
        return out

    def unreported(self) -> list[Reference]:
        """What no report came for."""
        return [one for each in self.transactions.values() if not each.reported for one in each.references]


async def ask_for_commitment(association: RequestorAssociation, asked: CommitmentRequest) -> None:
    """N-ACTION (PS3.4 J.3.2): returns when the peer agreed to see to it. Raises RefusedError, NetError."""
    context = association.context_for(STORAGE_COMMITMENT)
    action = NActionRequest(
        association.next_message_id(),
        STORAGE_COMMITMENT,
        COMMITMENT_INSTANCE,
        REQUEST_COMMITMENT,
        has_dataset=True,
    )
    response, _ = await association.ask(context, action, request(asked, lookup(context.transfer_syntax)))
    assert isinstance(response, NActionResponse)
    described = describe_status(response.status)
    if described.category not in (Category.SUCCESS, Category.WARNING):
        comment = printable(response.error_comment or "")
        words = described.meaning + (f" ({comment})" if comment else "")
        raise RefusedError(f"{response.status:04X}H: {words}", response.status)


def report_listener(
    awaited: Awaited, sock: socket.socket, ae_title: str, tls: ssl.SSLContext | None = None
) -> Listener:
    """A listener at ``sock`` that takes reports, from whoever knows the transaction, and nothing else."""

    async def reported(
        operation: Operation, context: AcceptedContext, report: NEventReportRequest, data: bytes
    ) -> None:
        await operation.respond(
            NEventReportResponse(
                report.message_id,
                awaited.hear(context, report, data),
                report.affected_sop_class_uid,
                report.affected_sop_instance_uid,
                report.event_type_id,
            )
        )

    classes = frozenset({STORAGE_COMMITMENT})
    service = Service("reports", classes, {NEventReportRequest: reported}, used_by_us=classes)
    return Listener(
        _TakesNothing(), [Endpoint(sock, ListenerPolicy(ae_title=ae_title), tls)], services=[service]
    )


class _TakesNothing:
    """Where objects would go."""

    def begin(self, **announced: object) -> NoReturn:
        """Refuse it."""
        del announced
        raise NotTakenError("only reports of storage commitment are taken here")


def _why(reason: int) -> str:
    """Failure Reason (0008,1197) in words (PS3.3 C.14.1.1)."""
    if reason == 0x0131:
        return "duplicate transaction UID"
    return describe_status(reason).meaning if reason else "no reason given"
