"""Storage commitment as SCP: a request is acknowledged when it is recorded, answered when judged (PS3.4 J).

The report goes out on the association that asked, as long as that is open; else on one that we request, with
the SCP role, to the address that is known of the asker's AE title. What cannot be delivered
is tried again, also after a restart, until it is given up.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

import structlog
import trio

from hounsfield.archive.dicom.commitment import (
    ALL_COMMITTED,
    COMMITMENT_INSTANCE,
    REQUEST_COMMITMENT,
    SOME_FAILED,
    STORAGE_COMMITMENT,
    CommitmentError,
    parse_request,
    report,
)
from hounsfield.archive.engine.commitments import Commitments, Owed
from hounsfield.archive.engine.leadership import Leadership
from hounsfield.archive.net.calling_back import CallingBack, CallingBackLimits, DeclinedError
from hounsfield.archive.net.destinations import Destinations
from hounsfield.archive.net.errors import NetError
from hounsfield.archive.net.scu import Offer, RequestorAssociation, ScuLimits
from hounsfield.archive.net.services import Operation, Service
from hounsfield.archive.wire import (
    AcceptedContext,
    Buffer,
    Category,
    NActionRequest,
    NActionResponse,
    NEventReportRequest,
    NEventReportResponse,
    PresentationContext,
    RoleSelection,
    Status,
    describe_status,
)
from hounsfield.codecs.registry import EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN, lookup
from hounsfield.storage_backends.errors import StorageError

__all__ = ["CommitmentLimits", "StorageCommitment"]

log = structlog.get_logger(__name__)

_CONTEXT = PresentationContext(
    1, STORAGE_COMMITMENT, (EXPLICIT_VR_LITTLE_ENDIAN.uid, IMPLICIT_VR_LITTLE_ENDIAN.uid)
)


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitmentLimits:
    """How much one request may ask for, and how patiently it is answered; times in seconds."""

    instances_max: int = 30_000
    """In one request: the largest studies have some ten thousand, and all of a report is held in memory.
    More do not fit into ``NetLimits.identifier_bytes_max``."""
    same_association_s: float = 10.0
    """How long the association that asked is tried. When that fails the asker is called back at once, and,
    from twice this time on, by whoever leads, again and again."""
    instance_s: float = 0.005
    """What each instance of the request adds to that: each is opened on the disk, and the asker notes each
    before it answers. Of 30,000 it is two minutes and a half, and nobody is told twice what he is reading."""
    calling_back: CallingBackLimits = field(default_factory=CallingBackLimits)


class _Carrier(Protocol):
    """An association on which a report can be sent: the asker's, or one of ours."""

    async def report(
        self, context: AcceptedContext, request: NEventReportRequest, dataset: Buffer
    ) -> NEventReportResponse: ...


class StorageCommitment:
    """The service of one worker; ``run`` in each of them, the lease lets one call back."""

    def __init__(
        self,
        commitments: Commitments,
        destinations: Destinations,
        leadership: Leadership,
        *,
        limits: CommitmentLimits | None = None,
        scu_limits: ScuLimits | None = None,
    ) -> None:
        self._commitments = commitments
        self._limits = limits or CommitmentLimits()
        self._calling_back = CallingBack(
            "commitment reports",
            owed=commitments.owed,
            settle=commitments.settle,
            contexts=[_CONTEXT],
            tell=self._tell,
            offer=Offer(roles=(RoleSelection(STORAGE_COMMITMENT, scu=False, scp=True),)),
            scu_limits=scu_limits,
            find=destinations.find_for_commitment,
            leadership=leadership,
            limits=replace(self._limits.calling_back, age_s=2 * self._limits.same_association_s),
            takes_s=self._takes_s,
        )
        self.run = self._calling_back.run
        self.requests = self.reports = 0

    def service(self) -> Service:
        """For the listener."""
        return Service("commit", frozenset({STORAGE_COMMITMENT}), {NActionRequest: self.requested})

    def figures(self) -> Mapping[str, int]:
        """For the metrics."""
        return {
            "commitment_requests_total": self.requests,
            "commitment_reports_total": self.reports,
            "commitment_given_up_total": self._calling_back.given_up,
        }

    # ------------------------------------------------------------ being asked

    async def requested(
        self, operation: Operation, context: AcceptedContext, request: NActionRequest, data: bytes
    ) -> None:
        """One N-ACTION: record it, acknowledge it, and answer it here if the asker stays."""

        async def answer(status: Status, comment: str | None = None) -> None:
            await operation.respond(
                NActionResponse(
                    request.message_id,
                    status,
                    request.requested_sop_class_uid,
                    request.requested_sop_instance_uid,
                    request.action_type_id,
                    error_comment=comment,
                )
            )

        if request.requested_sop_instance_uid != COMMITMENT_INSTANCE:
            await answer(Status.NO_SUCH_SOP_INSTANCE, "not the well-known instance of PS3.4 J.3.5")
            return
        if request.action_type_id != REQUEST_COMMITMENT:
            await answer(Status.NO_SUCH_ACTION)
            return
        try:
            asked = parse_request(data, lookup(context.transfer_syntax))
        except CommitmentError as error:
            await answer(Status.INVALID_ARGUMENT_VALUE, str(error)[:64])
            return
        if len(asked.references) > self._limits.instances_max:
            await answer(Status.RESOURCE_LIMITATION, f"more than {self._limits.instances_max} instances")
            return
        peer = operation.peer
        owed = Owed(peer.calling_ae, peer.called_ae, asked, time.time_ns())
        try:
            await self._commitments.promise(owed)
        except StorageError as error:
            log.warning("a commitment request was not recorded", error_type=type(error).__name__)
            await answer(Status.RESOURCE_LIMITATION, "it cannot be recorded now; ask again later")
            return
        self.requests += 1
        await answer(Status.SUCCESS)
        told = False
        try:
            with trio.move_on_after(self._limits.same_association_s + self._takes_s(owed)):
                await self._report(operation, context, owed)
                told = True
        except (NetError, StorageError) as error:
            log.info("a commitment report waits", calling_ae=peer.calling_ae, reason=str(error))
        finally:
            if not told:  # the asker is gone, or takes no report here
                self._calling_back.hurry(owed)

    def _takes_s(self, owed: Owed) -> float:
        return self._limits.instance_s * len(owed.request.references)

    # ------------------------------------------------------------ answering

    async def _report(self, carrier: _Carrier, context: AcceptedContext, owed: Owed) -> None:
        """Judge, report, and owe it no more. Raises NetError; a refusal of the report is one."""
        verdict = await self._commitments.judge(owed.request.references)
        event_type = SOME_FAILED if verdict.failed else ALL_COMMITTED
        request = NEventReportRequest(1, STORAGE_COMMITMENT, COMMITMENT_INSTANCE, event_type, True)
        data = report(
            owed.request.transaction_uid,
            verdict.committed,
            verdict.failed,
            lookup(context.transfer_syntax),
            retrieve_ae=owed.called_ae if verdict.committed else "",
        )
        response = await carrier.report(context, request, data)
        meaning = describe_status(response.status)
        if meaning.category is Category.FAILURE:
            raise DeclinedError(f"a report was refused: {response.status:04X}H, {meaning.meaning}")
        self.reports += 1
        with trio.CancelScope(shield=True):
            await self._commitments.settle(owed)

    async def _tell(self, association: RequestorAssociation, owed: Owed) -> None:
        """One report, on an association on which we have the SCP role (PS3.4 J.3.3, PS3.7 D.3.3.4)."""
        await self._report(association, association.context_for(STORAGE_COMMITMENT), owed)
