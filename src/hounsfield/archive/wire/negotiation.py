"""What an A-ASSOCIATE-RQ and its -AC agree on: contexts and maximum lengths (PS3.8 9.3.3.2, D.1)."""

from __future__ import annotations

from dataclasses import dataclass

from hounsfield.archive.wire.errors import InvalidPduError
from hounsfield.archive.wire.limits import WireLimits
from hounsfield.archive.wire.pdus import AssociateAccept, AssociateRequest, ContextResult, UserInformation

__all__ = ["AcceptedContext", "agreed_contexts", "check_answers", "receive_max", "send_max"]


@dataclass(frozen=True, slots=True)
class AcceptedContext:
    """A presentation context both sides agreed on."""

    context_id: int
    abstract_syntax: str
    transfer_syntax: str


def check_answers(request: AssociateRequest, accept: AssociateAccept) -> None:
    """An acceptor may only accept what was proposed; ``InvalidPduError`` when it did otherwise."""
    proposed = {context.context_id: context for context in request.contexts}
    for result in accept.contexts:
        context = proposed.get(result.context_id)
        if context is None:
            raise InvalidPduError(f"presentation context {result.context_id} was answered but never proposed")
        if (
            result.result == ContextResult.ACCEPTANCE
            and result.transfer_syntax not in context.transfer_syntaxes
        ):
            raise InvalidPduError(
                f"presentation context {result.context_id} was accepted in a transfer syntax not proposed"
            )


def agreed_contexts(request: AssociateRequest, accept: AssociateAccept) -> dict[int, AcceptedContext]:
    """The accepted contexts by id; the answers must have been checked."""
    proposed = {context.context_id: context.abstract_syntax for context in request.contexts}
    return {
        result.context_id: AcceptedContext(
            result.context_id, proposed[result.context_id], result.transfer_syntax
        )
        for result in accept.contexts
        if result.result == ContextResult.ACCEPTANCE
    }


def receive_max(ours: UserInformation, limits: WireLimits) -> int:
    """The longest P-DATA-TF (its length field) to take, given what we advertised."""
    if ours.max_pdu_length:
        return ours.max_pdu_length + limits.pdata_tolerance_bytes
    return limits.pdata_unlimited_bytes_max


def send_max(theirs: UserInformation, limits: WireLimits) -> int:
    """The longest P-DATA-TF (its length field) to send, given what the peer advertised."""
    if theirs.max_pdu_length is None:
        return min(limits.peer_pdu_bytes_default, limits.send_pdu_bytes_max)
    return min(theirs.max_pdu_length or limits.send_pdu_bytes_max, limits.send_pdu_bytes_max)
