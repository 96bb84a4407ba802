"""What the DICOM network layer raises. ``retry`` says whether doing the same again can help."""

from __future__ import annotations

from hounsfield.archive.errors import HounsfieldError

__all__ = [
    "AbortedError",
    "BrokeProtocolError",
    "ConnectError",
    "ConnectionLostError",
    "GivenUpError",
    "NetError",
    "NoAcceptedContextError",
    "PeerGoneError",
    "RejectedError",
    "TimedOutError",
    "TlsError",
    "TlsFileError",
]


class NetError(HounsfieldError):
    """Root of this package's errors. Messages name the peer, never a patient."""


class PeerGoneError(NetError):
    """The transport connection is closed or broken; nothing more can be sent."""

    retry = True


class ConnectError(NetError):
    """No transport connection to the remote application entity."""

    retry = True


class TlsError(NetError):
    """The TLS handshake failed, or a certificate is not one that we trust."""


class TlsFileError(TlsError):
    """A file of certificates or keys is none."""

    mistaken = True


class ConnectionLostError(NetError):
    """The connection ended while an answer was due."""

    retry = True


class GivenUpError(NetError):
    """We ended the association ourselves, for another of the operations that were outstanding on it."""

    retry = True


class TimedOutError(NetError):
    """The peer did not answer in time."""

    retry = True


class AbortedError(NetError):
    """The association was aborted, by the peer or because the peer broke the protocol."""

    retry = True


class BrokeProtocolError(AbortedError):
    """The peer said what it may not say: we aborted the association."""


class RejectedError(NetError):
    """The peer refused the association (A-ASSOCIATE-RJ, PS3.8 9.3.4). ``retry`` when it said "transient"."""

    def __init__(self, message: str, *, result: int, source: int, reason: int) -> None:
        super().__init__(message)
        self.result = result
        self.source = source
        self.reason = reason
        self.retry = result == 2


class NoAcceptedContextError(NetError):
    """The peer accepts no presentation context that would carry this object as it is."""
