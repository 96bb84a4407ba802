"""The DIMSE commands as frozen dataclasses, and the table of how each is written (PS3.7 9.3, 10.3, E.1).

A field without a default is one that a message cannot do without; ``None`` is an element that is not
there. What the standard demands and devices forget (priority) has a default. ``has_dataset`` is the
Command Data Set Type: whether a data set follows the command.
"""

from __future__ import annotations

from dataclasses import MISSING, dataclass, fields
from enum import Enum, IntEnum
from typing import TypeAlias

__all__ = [
    "BY_CLASS",
    "BY_COMMAND_FIELD",
    "ELEMENTS",
    "CCancelRequest",
    "CEchoRequest",
    "CEchoResponse",
    "CFindRequest",
    "CFindResponse",
    "CGetRequest",
    "CGetResponse",
    "CMoveRequest",
    "CMoveResponse",
    "CStoreRequest",
    "CStoreResponse",
    "Carries",
    "Command",
    "CommandSpec",
    "Element",
    "NActionRequest",
    "NActionResponse",
    "NCreateRequest",
    "NCreateResponse",
    "NDeleteRequest",
    "NDeleteResponse",
    "NEventReportRequest",
    "NEventReportResponse",
    "NGetRequest",
    "NGetResponse",
    "NSetRequest",
    "NSetResponse",
    "Priority",
]


class Priority(IntEnum):
    """PS3.7 E.1-1 (0000,0700): the numbers are not in order."""

    MEDIUM = 0x0000
    HIGH = 0x0001
    LOW = 0x0002


# ---------------------------------------------------------------- composite services (PS3.7 9.3)


@dataclass(frozen=True, slots=True)
class CStoreRequest:
    """C-STORE-RQ: keep this instance (PS3.7 9.3.1.1)."""

    message_id: int
    affected_sop_class_uid: str
    affected_sop_instance_uid: str
    priority: int = Priority.MEDIUM
    move_originator_ae: str | None = None
    move_originator_message_id: int | None = None
    has_dataset: bool = True


@dataclass(frozen=True, slots=True)
class CStoreResponse:
    """C-STORE-RSP (PS3.7 9.3.1.2)."""

    message_id_responded_to: int
    status: int
    affected_sop_class_uid: str | None = None
    affected_sop_instance_uid: str | None = None
    offending_elements: tuple[int, ...] | None = None
    error_comment: str | None = None
    has_dataset: bool = False


@dataclass(frozen=True, slots=True)
class CFindRequest:
    """C-FIND-RQ (PS3.7 9.3.2.1)."""

    message_id: int
    affected_sop_class_uid: str
    priority: int = Priority.MEDIUM
    has_dataset: bool = True


@dataclass(frozen=True, slots=True)
class CFindResponse:
    """C-FIND-RSP (PS3.7 9.3.2.2); a pending one carries an identifier."""

    message_id_responded_to: int
    status: int
    affected_sop_class_uid: str | None = None
    offending_elements: tuple[int, ...] | None = None
    error_comment: str | None = None
    has_dataset: bool = False


@dataclass(frozen=True, slots=True)
class CGetRequest:
    """C-GET-RQ (PS3.7 9.3.3.1)."""

    message_id: int
    affected_sop_class_uid: str
    priority: int = Priority.MEDIUM
    has_dataset: bool = True


@dataclass(frozen=True, slots=True)
class CGetResponse:
    """C-GET-RSP (PS3.7 9.3.3.2); the data set, if any, lists the failed instances."""

    message_id_responded_to: int
    status: int
    affected_sop_class_uid: str | None = None
    remaining_suboperations: int | None = None
    completed_suboperations: int | None = None
    failed_suboperations: int | None = None
    warning_suboperations: int | None = None
    offending_elements: tuple[int, ...] | None = None
    error_comment: str | None = None
    has_dataset: bool = False


@dataclass(frozen=True, slots=True)
class CMoveRequest:
    """C-MOVE-RQ (PS3.7 9.3.4.1)."""

    message_id: int
    affected_sop_class_uid: str
    move_destination: str
    priority: int = Priority.MEDIUM
    has_dataset: bool = True


@dataclass(frozen=True, slots=True)
class CMoveResponse:
    """C-MOVE-RSP (PS3.7 9.3.4.2); the data set, if any, lists the failed instances."""

    message_id_responded_to: int
    status: int
    affected_sop_class_uid: str | None = None
    remaining_suboperations: int | None = None
    completed_suboperations: int | None = None
    failed_suboperations: int | None = None
    warning_suboperations: int | None = None
    offending_elements: tuple[int, ...] | None = None
    error_comment: str | None = None
    has_dataset: bool = False


@dataclass(frozen=True, slots=True)
class CEchoRequest:
    """C-ECHO-RQ: are you there? (PS3.7 9.3.5.1)"""

    message_id: int
    affected_sop_class_uid: str = "1.2.840.10008.1.1"
    has_dataset: bool = False


@dataclass(frozen=True, slots=True)
class CEchoResponse:
    """C-ECHO-RSP (PS3.7 9.3.5.2)."""

    message_id_responded_to: int
    status: int
    affected_sop_class_uid: str | None = "1.2.840.10008.1.1"
    error_comment: str | None = None
    has_dataset: bool = False


@dataclass(frozen=True, slots=True)
class CCancelRequest:
    """C-CANCEL-RQ: stop that find, get or move; has no response of its own (PS3.7 9.3.2.3)."""

    message_id_responded_to: int
    has_dataset: bool = False


# ---------------------------------------------------------------- normalized services (PS3.7 10.3)


@dataclass(frozen=True, slots=True)
class NEventReportRequest:
    """N-EVENT-REPORT-RQ (PS3.7 10.3.1.1)."""

    message_id: int
    affected_sop_class_uid: str
    affected_sop_instance_uid: str
    event_type_id: int
    has_dataset: bool = False


@dataclass(frozen=True, slots=True)
class NEventReportResponse:
    """N-EVENT-REPORT-RSP (PS3.7 10.3.1.2)."""

    message_id_responded_to: int
    status: int
    affected_sop_class_uid: str | None = None
    affected_sop_instance_uid: str | None = None
    event_type_id: int | None = None
    error_id: int | None = None
    error_comment: str | None = None
    has_dataset: bool = False


@dataclass(frozen=True, slots=True)
class NGetRequest:
    """N-GET-RQ; no list of attributes means all of them (PS3.7 10.3.2.1)."""

    message_id: int
    requested_sop_class_uid: str
    requested_sop_instance_uid: str
    attribute_identifiers: tuple[int, ...] | None = None
    has_dataset: bool = False


@dataclass(frozen=True, slots=True)
class NGetResponse:
    """N-GET-RSP (PS3.7 10.3.2.2)."""

    message_id_responded_to: int
    status: int
    affected_sop_class_uid: str | None = None
    affected_sop_instance_uid: str | None = None
    attribute_identifiers: tuple[int, ...] | None = None
    error_id: int | None = None
    error_comment: str | None = None
    has_dataset: bool = False


@dataclass(frozen=True, slots=True)
class NSetRequest:
    """N-SET-RQ (PS3.7 10.3.3.1)."""

    message_id: int
    requested_sop_class_uid: str
    requested_sop_instance_uid: str
    has_dataset: bool = True


@dataclass(frozen=True, slots=True)
class NSetResponse:
    """N-SET-RSP (PS3.7 10.3.3.2)."""

    message_id_responded_to: int
    status: int
    affected_sop_class_uid: str | None = None
    affected_sop_instance_uid: str | None = None
    attribute_identifiers: tuple[int, ...] | None = None
    error_id: int | None = None
    error_comment: str | None = None
    has_dataset: bool = False


@dataclass(frozen=True, slots=True)
class NActionRequest:
    """N-ACTION-RQ (PS3.7 10.3.4.1)."""

    message_id: int
    requested_sop_class_uid: str
    requested_sop_instance_uid: str
    action_type_id: int
    has_dataset: bool = False


@dataclass(frozen=True, slots=True)
class NActionResponse:
    """N-ACTION-RSP (PS3.7 10.3.4.2)."""

    message_id_responded_to: int
    status: int
    affected_sop_class_uid: str | None = None
    affected_sop_instance_uid: str | None = None
    action_type_id: int | None = None
    error_id: int | None = None
    error_comment: str | None = None
    has_dataset: bool = False


@dataclass(frozen=True, slots=True)
class NCreateRequest:
    """N-CREATE-RQ; without an instance UID the performer chooses one (PS3.7 10.3.5.1)."""

    message_id: int
    affected_sop_class_uid: str
    affected_sop_instance_uid: str | None = None
    has_dataset: bool = False


@dataclass(frozen=True, slots=True)
class NCreateResponse:
    """N-CREATE-RSP (PS3.7 10.3.5.2)."""

    message_id_responded_to: int
    status: int
    affected_sop_class_uid: str | None = None
    affected_sop_instance_uid: str | None = None
    attribute_identifiers: tuple[int, ...] | None = None
    error_id: int | None = None
    error_comment: str | None = None
    has_dataset: bool = False


@dataclass(frozen=True, slots=True)
class NDeleteRequest:
    """N-DELETE-RQ (PS3.7 10.3.6.1)."""

    message_id: int
    requested_sop_class_uid: str
    requested_sop_instance_uid: str
    has_dataset: bool = False


@dataclass(frozen=True, slots=True)
class NDeleteResponse:
    """N-DELETE-RSP (PS3.7 10.3.6.2)."""

    message_id_responded_to: int
    status: int
    affected_sop_class_uid: str | None = None
    affected_sop_instance_uid: str | None = None
    error_id: int | None = None
    error_comment: str | None = None
    has_dataset: bool = False


Command: TypeAlias = (
    CStoreRequest
    | CStoreResponse
    | CFindRequest
    | CFindResponse
    | CGetRequest
    | CGetResponse
    | CMoveRequest
    | CMoveResponse
    | CEchoRequest
    | CEchoResponse
    | CCancelRequest
    | NEventReportRequest
    | NEventReportResponse
    | NGetRequest
    | NGetResponse
    | NSetRequest
    | NSetResponse
    | NActionRequest
    | NActionResponse
    | NCreateRequest
    | NCreateResponse
    | NDeleteRequest
    | NDeleteResponse
)


# ---------------------------------------------------------------- the tables


@dataclass(frozen=True, slots=True)
class Element:
    """A command element: its number in group 0000H and its value representation (PS3.7 E.1)."""

    number: int
    vr: str


# Our field names are the standard's, but for three that would be sentences.
ELEMENTS: dict[str, Element] = {
    "affected_sop_class_uid": Element(0x0002, "UI"),
    "requested_sop_class_uid": Element(0x0003, "UI"),
    "message_id": Element(0x0110, "US"),
    "message_id_responded_to": Element(0x0120, "US"),
    "move_destination": Element(0x0600, "AE"),
    "priority": Element(0x0700, "US"),
    "status": Element(0x0900, "US"),
    "offending_elements": Element(0x0901, "AT"),
    "error_comment": Element(0x0902, "LO"),
    "error_id": Element(0x0903, "US"),
    "affected_sop_instance_uid": Element(0x1000, "UI"),
    "requested_sop_instance_uid": Element(0x1001, "UI"),
    "event_type_id": Element(0x1002, "US"),
    "attribute_identifiers": Element(0x1005, "AT"),
    "action_type_id": Element(0x1008, "US"),
    "remaining_suboperations": Element(0x1020, "US"),
    "completed_suboperations": Element(0x1021, "US"),
    "failed_suboperations": Element(0x1022, "US"),
    "warning_suboperations": Element(0x1023, "US"),
    "move_originator_ae": Element(0x1030, "AE"),
    "move_originator_message_id": Element(0x1031, "US"),
}


class Carries(Enum):
    """Whether a message has a data set."""

    ALWAYS = "always"
    MAYBE = "maybe"
    NEVER = "never"


@dataclass(frozen=True, slots=True)
class CommandSpec:
    """One row: the command field's value, the message's name, its class, and its elements in order."""

    command_field: int
    name: str
    cls: type[Command]
    dataset: Carries
    elements: tuple[tuple[str, Element, bool], ...]
    """(field name, element, required), ascending by element number."""


def _spec(command_field: int, name: str, cls: type[Command], dataset: Carries) -> CommandSpec:
    rows = [
        (field.name, ELEMENTS[field.name], field.default is MISSING)
        for field in fields(cls)
        if field.name != "has_dataset"
    ]
    rows.sort(key=lambda row: row[1].number)
    return CommandSpec(command_field, name, cls, dataset, tuple(rows))


_SPECS: tuple[CommandSpec, ...] = (
    _spec(0x0001, "C-STORE-RQ", CStoreRequest, Carries.ALWAYS),
    _spec(0x8001, "C-STORE-RSP", CStoreResponse, Carries.NEVER),
    _spec(0x0010, "C-GET-RQ", CGetRequest, Carries.ALWAYS),
    _spec(0x8010, "C-GET-RSP", CGetResponse, Carries.MAYBE),
    _spec(0x0020, "C-FIND-RQ", CFindRequest, Carries.ALWAYS),
    _spec(0x8020, "C-FIND-RSP", CFindResponse, Carries.MAYBE),
    _spec(0x0021, "C-MOVE-RQ", CMoveRequest, Carries.ALWAYS),
    _spec(0x8021, "C-MOVE-RSP", CMoveResponse, Carries.MAYBE),
    _spec(0x0030, "C-ECHO-RQ", CEchoRequest, Carries.NEVER),
    _spec(0x8030, "C-ECHO-RSP", CEchoResponse, Carries.NEVER),
    _spec(0x0FFF, "C-CANCEL-RQ", CCancelRequest, Carries.NEVER),
    _spec(0x0100, "N-EVENT-REPORT-RQ", NEventReportRequest, Carries.MAYBE),
    _spec(0x8100, "N-EVENT-REPORT-RSP", NEventReportResponse, Carries.MAYBE),
    _spec(0x0110, "N-GET-RQ", NGetRequest, Carries.NEVER),
    _spec(0x8110, "N-GET-RSP", NGetResponse, Carries.MAYBE),
    _spec(0x0120, "N-SET-RQ", NSetRequest, Carries.ALWAYS),
    _spec(0x8120, "N-SET-RSP", NSetResponse, Carries.MAYBE),
    _spec(0x0130, "N-ACTION-RQ", NActionRequest, Carries.MAYBE),
    _spec(0x8130, "N-ACTION-RSP", NActionResponse, Carries.MAYBE),
    _spec(0x0140, "N-CREATE-RQ", NCreateRequest, Carries.MAYBE),
    _spec(0x8140, "N-CREATE-RSP", NCreateResponse, Carries.MAYBE),
    _spec(0x0150, "N-DELETE-RQ", NDeleteRequest, Carries.NEVER),
    _spec(0x8150, "N-DELETE-RSP", NDeleteResponse, Carries.NEVER),
)

BY_COMMAND_FIELD: dict[int, CommandSpec] = {spec.command_field: spec for spec in _SPECS}
BY_CLASS: dict[type[Command], CommandSpec] = {spec.cls: spec for spec in _SPECS}
