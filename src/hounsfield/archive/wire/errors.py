"""Whose fault it is: theirs (``RemoteProtocolError``) or ours (``LocalProtocolError``)."""

from __future__ import annotations

from hounsfield.archive.wire.pdus import (
    Abort,
    AbortReason,
    AbortSource,
    AssociateReject,
    RejectReason,
    RejectSource,
)

__all__ = ["LocalProtocolError", "ProtocolError", "RemoteProtocolError", "WireError"]


class WireError(Exception):
    """Root of this package's errors. Doing the same again never helps: ``retry`` is False."""

    retry = False


class ProtocolError(WireError):
    """Somebody did not keep to PS3.7 or PS3.8."""


class LocalProtocolError(ProtocolError):
    """Our own code asked for something that the protocol does not permit now: nothing was changed or sent."""


class RemoteProtocolError(ProtocolError):
    """The peer broke the protocol or a limit: answer ``reply`` and close.

    ``reply`` is the A-ABORT or A-ASSOCIATE-RJ to answer. Raised by an :class:`Association`, it is
    already encoded in ``association.data_to_send()`` and the association ignores everything that
    follows; raised by a message reader or command decoder it is not: ``association.answer(error)``
    does the right thing in both cases. Messages never contain what the peer sent, beyond numbers.
    """

    def __init__(self, message: str, reply: Abort | AssociateReject | None = None) -> None:
        super().__init__(message)
        self.reply: Abort | AssociateReject = reply if reply is not None else Abort()


class InvalidPduError(Exception):
    """A PDU does not parse (inside this package; the association turns it into a RemoteProtocolError)."""

    def __init__(self, message: str, reason: AbortReason = AbortReason.INVALID_PARAMETER) -> None:
        super().__init__(message)
        self.abort = Abort(AbortSource.SERVICE_PROVIDER, reason)


class RefusedRequestError(Exception):
    """An A-ASSOCIATE-RQ parses but the provider cannot serve it (inside this package; action AE-6)."""

    def __init__(self, message: str, reject: AssociateReject) -> None:
        super().__init__(message)
        self.reject = reject

    @classmethod
    def limit(cls, message: str) -> RefusedRequestError:
        """Over a limit of ours (PS3.8 Table 9-21, source 3 reason 2)."""
        reject = AssociateReject(
            source=RejectSource.PROVIDER_PRESENTATION, reason=RejectReason.LOCAL_LIMIT_EXCEEDED
        )
        return cls(message, reject)
