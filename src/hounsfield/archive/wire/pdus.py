"""The protocol data units, which are also the events: what arrives and what can be sent (PS3.8 9.3).

All are frozen. The same class is received and sent, so a proxy or a test can send what it got.
UIDs and AE titles are ``str`` without padding; reserved fields are neither kept nor tested.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import ClassVar, TypeAlias

__all__ = [
    "APPLICATION_CONTEXT_UID",
    "MAX_PDU_LENGTH_DEFAULT",
    "Abort",
    "AbortReason",
    "AbortSource",
    "AssociateAccept",
    "AssociateReject",
    "AssociateRequest",
    "AsynchronousOperations",
    "Buffer",
    "CommonExtendedNegotiation",
    "ContextResult",
    "DataFragment",
    "Event",
    "ExtendedNegotiation",
    "IdentityType",
    "Pdu",
    "PduType",
    "PresentationContext",
    "PresentationResult",
    "RejectReason",
    "RejectResult",
    "RejectSource",
    "ReleaseReply",
    "ReleaseRequest",
    "RoleSelection",
    "TransportClosed",
    "UnknownItem",
    "UserIdentity",
    "UserInformation",
]

Buffer: TypeAlias = bytes | bytearray | memoryview

APPLICATION_CONTEXT_UID = "1.2.840.10008.3.1.1.1"
"""The DICOM application context name, the only one there is (PS3.7 A.2.1)."""

MAX_PDU_LENGTH_DEFAULT = 256 * 1024
"""What we advertise: past it throughput stops growing, and slow modalities pick less by themselves."""


class PduType(IntEnum):
    """First byte of a PDU (PS3.8 9.3.1)."""

    ASSOCIATE_RQ = 0x01
    ASSOCIATE_AC = 0x02
    ASSOCIATE_RJ = 0x03
    P_DATA_TF = 0x04
    RELEASE_RQ = 0x05
    RELEASE_RP = 0x06
    ABORT = 0x07


class ContextResult(IntEnum):
    """What the acceptor says to one presentation context (PS3.8 Table 9-18)."""

    ACCEPTANCE = 0
    USER_REJECTION = 1
    NO_REASON = 2
    ABSTRACT_SYNTAX_NOT_SUPPORTED = 3
    TRANSFER_SYNTAXES_NOT_SUPPORTED = 4


class RejectResult(IntEnum):
    """May the requestor try again? (PS3.8 Table 9-21)"""

    PERMANENT = 1
    TRANSIENT = 2


class RejectSource(IntEnum):
    """Who rejects (PS3.8 Table 9-21)."""

    SERVICE_USER = 1
    PROVIDER_ACSE = 2
    PROVIDER_PRESENTATION = 3


class RejectReason:
    """Why, for each source: the same number means another thing from another source (PS3.8 Table 9-21)."""

    # source SERVICE_USER
    NO_REASON: ClassVar[int] = 1
    APPLICATION_CONTEXT_NOT_SUPPORTED: ClassVar[int] = 2
    CALLING_AE_NOT_RECOGNIZED: ClassVar[int] = 3
    CALLED_AE_NOT_RECOGNIZED: ClassVar[int] = 7
    # source PROVIDER_ACSE
    ACSE_NO_REASON: ClassVar[int] = 1
    PROTOCOL_VERSION_NOT_SUPPORTED: ClassVar[int] = 2
    # source PROVIDER_PRESENTATION
    TEMPORARY_CONGESTION: ClassVar[int] = 1
    LOCAL_LIMIT_EXCEEDED: ClassVar[int] = 2


class AbortSource(IntEnum):
    """Who aborts (PS3.8 Table 9-26)."""

    SERVICE_USER = 0
    SERVICE_PROVIDER = 2


class AbortReason(IntEnum):
    """Why the provider aborts (PS3.8 Table 9-26); 0 when the source is the user."""

    NOT_SPECIFIED = 0
    UNRECOGNIZED_PDU = 1
    UNEXPECTED_PDU = 2
    UNRECOGNIZED_PARAMETER = 4
    UNEXPECTED_PARAMETER = 5
    INVALID_PARAMETER = 6


class IdentityType(IntEnum):
    """What a user identity's primary field holds (PS3.7 D.3.3.7)."""

    USERNAME = 1
    USERNAME_PASSCODE = 2
    KERBEROS = 3
    SAML = 4
    JWT = 5


@dataclass(frozen=True, slots=True)
class PresentationContext:
    """One proposal: an abstract syntax in any of these transfer syntaxes (PS3.8 9.3.2.2)."""

    context_id: int
    abstract_syntax: str
    transfer_syntaxes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PresentationResult:
    """The answer to one proposal; ``transfer_syntax`` means something only on acceptance (PS3.8 9.3.3.2)."""

    context_id: int
    result: int
    transfer_syntax: str = ""


@dataclass(frozen=True, slots=True)
class AsynchronousOperations:
    """How many operations may be outstanding; 0 is "no limit" (PS3.7 D.3.3.3)."""

    invoked_max: int = 1
    performed_max: int = 1


@dataclass(frozen=True, slots=True)
class RoleSelection:
    """Which roles the requestor proposes, or the acceptor grants it, for a SOP class (PS3.7 D.3.3.4)."""

    sop_class_uid: str
    scu: bool
    scp: bool


@dataclass(frozen=True, slots=True)
class ExtendedNegotiation:
    """Service class application information for a SOP class, opaque here (PS3.7 D.3.3.5)."""

    sop_class_uid: str
    information: bytes


@dataclass(frozen=True, slots=True)
class CommonExtendedNegotiation:
    """Which service class and which general classes a (private) SOP class belongs to (PS3.7 D.3.3.6)."""

    sop_class_uid: str
    service_class_uid: str
    related_general_sop_class_uids: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class UserIdentity:
    """Who the requestor's user is (PS3.7 D.3.3.7.1). The fields are credentials: never in a ``repr``."""

    identity_type: int
    primary: bytes = field(repr=False)
    secondary: bytes = field(default=b"", repr=False)
    response_requested: bool = False


@dataclass(frozen=True, slots=True)
class UnknownItem:
    """A user information sub-item that this package does not know; ignored, and kept for whoever does."""

    item_type: int
    data: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class UserInformation:
    """The user information item of an A-ASSOCIATE-RQ or -AC (PS3.8 9.3.2.3, PS3.7 D.3.3).

    ``max_pdu_length`` is the longest P-DATA-TF its *sender* is willing to receive, 0 for any length,
    None when it was not stated. ``identity`` only goes in a request, ``identity_response`` in an accept.
    """

    max_pdu_length: int | None = MAX_PDU_LENGTH_DEFAULT
    implementation_class_uid: str = ""
    implementation_version: str = ""
    asynchronous_operations: AsynchronousOperations | None = None
    roles: tuple[RoleSelection, ...] = ()
    extended: tuple[ExtendedNegotiation, ...] = ()
    common_extended: tuple[CommonExtendedNegotiation, ...] = ()
    identity: UserIdentity | None = None
    identity_response: bytes | None = field(default=None, repr=False)
    unknown: tuple[UnknownItem, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class AssociateRequest:
    """A-ASSOCIATE-RQ: the requestor proposes (PS3.8 9.3.2)."""

    called_ae: str
    calling_ae: str
    contexts: tuple[PresentationContext, ...]
    user: UserInformation = UserInformation()
    application_context: str = APPLICATION_CONTEXT_UID
    protocol_version: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class AssociateAccept:
    """A-ASSOCIATE-AC: the acceptor answers each context (PS3.8 9.3.3). The AE titles echo the request's."""

    called_ae: str
    calling_ae: str
    contexts: tuple[PresentationResult, ...]
    user: UserInformation = UserInformation()
    application_context: str = APPLICATION_CONTEXT_UID
    protocol_version: int = 1


@dataclass(frozen=True, slots=True)
class AssociateReject:
    """A-ASSOCIATE-RJ: no association (PS3.8 9.3.4)."""

    result: int = RejectResult.PERMANENT
    source: int = RejectSource.SERVICE_USER
    reason: int = RejectReason.NO_REASON


@dataclass(frozen=True, slots=True)
class DataFragment:
    """Bytes of one presentation data value of a P-DATA-TF (PS3.8 9.3.5, Annex E).

    ``is_command`` says command set or data set; ``last`` that the command set or data set ends with
    these bytes. A received ``data`` is a read-only view into the receive buffer, **valid until the next call
    of ``receive_buffer``, ``received`` or ``receive_data``**; a long value comes in several fragments.
    """

    context_id: int
    is_command: bool
    last: bool
    data: Buffer


@dataclass(frozen=True, slots=True)
class ReleaseRequest:
    """A-RELEASE-RQ: the sender has nothing more to say (PS3.8 9.3.6)."""


@dataclass(frozen=True, slots=True)
class ReleaseReply:
    """A-RELEASE-RP (PS3.8 9.3.7)."""


@dataclass(frozen=True, slots=True)
class Abort:
    """A-ABORT: the association is over, now (PS3.8 9.3.8)."""

    source: int = AbortSource.SERVICE_USER
    reason: int = AbortReason.NOT_SPECIFIED


@dataclass(frozen=True, slots=True)
class TransportClosed:
    """The connection is closed. ``orderly`` is False when an association was cut off by it (A-P-ABORT)."""

    orderly: bool


Pdu: TypeAlias = (
    AssociateRequest
    | AssociateAccept
    | AssociateReject
    | DataFragment
    | ReleaseRequest
    | ReleaseReply
    | Abort
)
Event: TypeAlias = Pdu | TransportClosed
