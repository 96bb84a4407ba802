"""Query/Retrieve as its user: what is proposed, what a request holds, what the responses say (PS3.4 C).

Identifiers are DICOM JSON objects here (PS3.18 F.2): what goes out is written in UTF-8 unless another
character set is asked for, what comes in is read in whatever it declares.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

import msgspec

from hounsfield.archive.dicom.dictionary import LONG_VRS
from hounsfield.archive.dicom.find_identifier import is_whole
from hounsfield.archive.dicom.from_json import ModelError, from_json
from hounsfield.archive.dicom.json import to_json
from hounsfield.archive.dicom.json_model import NAME_GROUPS, Model
from hounsfield.archive.dicom.recoding import recoded
from hounsfield.archive.dicom.rewrite import element
from hounsfield.archive.dicom.text_encoding import TextEncoder, text_encoder
from hounsfield.archive.net.errors import NetError
from hounsfield.archive.net.requests import is_pending
from hounsfield.archive.net.scu import RequestorAssociation
from hounsfield.archive.wire import (
    AcceptedContext,
    Category,
    CFindRequest,
    CGetRequest,
    CMoveRequest,
    Command,
    ExtendedNegotiation,
    PresentationContext,
    Priority,
    Service,
    Status,
    describe_status,
)
from hounsfield.codecs.registry import EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN, lookup

__all__ = [
    "Ended",
    "Extensions",
    "QueryModel",
    "RefusedError",
    "SubOperations",
    "UnreadableAnswer",
    "ended",
    "find",
    "identifier_bytes",
    "model_of",
    "proposal",
    "retrieve",
    "suboperations",
]

_FAILED_SOP_INSTANCE_UID_LIST: Final = "00080058"
_CHARACTER_SET: Final = "00080005"
_ITEM: Final = b"\xfe\xff\x00\xe0"


class QueryModel(Enum):
    """The information models, by the names that the command line has for them (PS3.4 C.3)."""

    PATIENT = "patient"
    STUDY = "study"
    PATIENT_STUDY_ONLY = "patient-study-only"

    @property
    def find_uid(self) -> str:
        """Its SOP class for C-FIND (PS3.4 C.6)."""
        return f"{_ARC[self]}.1"

    @property
    def move_uid(self) -> str:
        """Its SOP class for C-MOVE."""
        return f"{_ARC[self]}.2"

    @property
    def get_uid(self) -> str:
        """Its SOP class for C-GET."""
        return f"{_ARC[self]}.3"


_ARC: Final = {
    QueryModel.PATIENT: "1.2.840.10008.5.1.4.1.2.1",
    QueryModel.STUDY: "1.2.840.10008.5.1.4.1.2.2",
    QueryModel.PATIENT_STUDY_ONLY: "1.2.840.10008.5.1.4.1.2.3",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Extensions:
    """What is asked for beyond the baseline; the peer may agree to all, some or none (PS3.4 C.5.1.1)."""

    relational: bool = False
    """Keys of any level, without the unique keys of those above it (PS3.4 C.4.1.2.2)."""
    date_time: bool = False
    """A date range and a time range are one range from then to then (PS3.4 C.2.2.2.5.3)."""
    fuzzy: bool = False
    """Names are matched by how they sound, or whatever the peer does (PS3.4 C.2.2.2.1.2)."""

    def negotiation(self, sop_class_uid: str, *, find: bool = True) -> tuple[ExtendedNegotiation, ...]:
        """The item to propose, none when nothing is asked for (PS3.4 C.5.1.1.1, C.5.2.1.1, C.5.3.1.1)."""
        asked = (self.relational, self.date_time, self.fuzzy) if find else (self.relational,)
        return (ExtendedNegotiation(sop_class_uid, bytes(asked)),) if any(asked) else ()

    def missing(self, agreed: bytes) -> tuple[str, ...]:
        """What was asked for and not agreed to, in words."""
        words = ("relational queries", "combined date-time matching", "fuzzy matching of names")
        asked = (self.relational, self.date_time, self.fuzzy)
        return tuple(
            word
            for position, (word, wanted) in enumerate(zip(words, asked, strict=True))
            if wanted and agreed[position : position + 1] != b"\1"
        )


class RefusedError(NetError):
    """The peer answered with a failure (PS3.7 C.4). The text has its comment: for people, not for logs."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status
        self.retry = status & 0xFF00 == Status.OUT_OF_RESOURCES


@dataclass(frozen=True, slots=True)
class UnreadableAnswer:
    """An answer whose identifier is no data set, or is cut off."""


@dataclass(frozen=True, slots=True)
class SubOperations:
    """How far a C-MOVE or C-GET is. ``remaining`` is None when the peer does not say."""

    remaining: int | None = None
    completed: int = 0
    failed: int = 0
    warned: int = 0

    @property
    def done(self) -> int:
        """Sub-operations that are over, however they ended."""
        return self.completed + self.failed + self.warned


@dataclass(frozen=True, slots=True)
class Ended:
    """How an operation ended."""

    status: int
    category: Category
    meaning: str
    """The status in words, with what the peer added."""
    suboperations: SubOperations = SubOperations()
    failed_uids: tuple[str, ...] = ()
    """Failed SOP Instance UID List (0008,0058)."""


def proposal(context_id: int, sop_class_uid: str) -> PresentationContext:
    """The presentation context of a query or retrieve SOP class: explicit VR first, it says what it means."""
    syntaxes = (EXPLICIT_VR_LITTLE_ENDIAN.uid, IMPLICIT_VR_LITTLE_ENDIAN.uid)
    return PresentationContext(context_id, sop_class_uid, syntaxes)


def identifier_bytes(model: Model, context: AcceptedContext, character_set: str = "") -> bytes:
    """An identifier in the transfer syntax of ``context``, text in ``character_set`` (PS3.3 C.12.1.1.2).

    Several defined terms are joined by backslashes; "" is UTF-8 when something is not ASCII. Raises
    ModelError for values that cannot be written so.
    """
    syntax = lookup(context.transfer_syntax)
    if character_set:
        encoder = text_encoder(character_set.encode("ascii", "replace"))
        if not encoder.charset.known:
            raise ModelError("that is no character set of PS3.3 C.12.1.1.2, such as ISO_IR 100 or ISO_IR 192")
        return _in_character_set({**model, _CHARACTER_SET: {"vr": "CS"}}, encoder, syntax.implicit_vr)
    head = from_json(model).head
    if syntax.implicit_vr:
        return recoded(head, b"", EXPLICIT_VR_LITTLE_ENDIAN, syntax).before
    return head


def _in_character_set(model: Model, encoder: TextEncoder, implicit: bool) -> bytes:
    """The elements of ``model``, text by ``encoder``; the rest is ASCII, and as :func:`from_json` has it."""
    out: list[bytes] = []
    for key in sorted(model):
        entry, tag = model[key], int(key, 16)
        vr, values = entry["vr"], entry.get("Value") or ()
        if key == _CHARACTER_SET:
            raw = encoder.declared
        elif vr == "SQ":
            items = (_in_character_set(item, encoder, implicit) for item in values)
            raw = b"".join(_ITEM + len(item).to_bytes(4, "little") + item for item in items)
        else:
            texts = ("=".join(v.get(group, "") for group in NAME_GROUPS).rstrip("=") if vr == "PN" else str(v)
                     for v in values)  # fmt: skip
            text = "\\".join(texts)
            if text.isascii():
                raw = b"" if not values else _value(key, entry)
            else:
                encoded = encoder.encode(text, vr)
                if encoded is None:
                    raise ModelError(f"attribute {key} has a character that {_named(encoder)} does not have")
                raw = encoded
        out.append(element(tag, vr, raw, implicit=implicit, little=True))
    return b"".join(out)


def _value(key: str, entry: Model) -> bytes:
    """The raw value of one attribute that is all ASCII."""
    head = from_json({key: entry}).head
    return head[12 if entry["vr"].encode() in LONG_VRS else 8 :]


def _named(encoder: TextEncoder) -> str:
    return encoder.declared.decode("ascii", "replace")


def model_of(identifier: bytes, context: AcceptedContext) -> Model:
    """An identifier that came, what can be read of it, as a DICOM JSON object. Never raises on bytes."""
    model: Model = msgspec.json.decode(to_json(identifier, b"", lookup(context.transfer_syntax)))
    return model


async def find(
    association: RequestorAssociation,
    context: AcceptedContext,
    identifier: bytes,
    *,
    message_id: int = 0,
    priority: int = Priority.MEDIUM,
) -> AsyncGenerator[Model | UnreadableAnswer | Ended, None]:
    """The matches as they come, and at last how the query ended. Raises NetError, and RefusedError.

    Closing it early cancels the query. A C-CANCEL needs the ``message_id``, 0 for any.
    """
    command = CFindRequest(message_id or association.next_message_id(), context.abstract_syntax, priority)
    async with aclosing(association.request(context, command, identifier)) as responses:
        async for response, data in responses:
            if is_pending(response):
                whole = is_whole(data, lookup(context.transfer_syntax))
                yield model_of(data, context) if whole else UnreadableAnswer()
            else:
                yield ended(response, data, context, Service.FIND)


async def retrieve(
    association: RequestorAssociation,
    context: AcceptedContext,
    identifier: bytes,
    *,
    destination: str = "",
    message_id: int = 0,
    priority: int = Priority.MEDIUM,
) -> AsyncGenerator[SubOperations | Ended, None]:
    """C-MOVE to the AE ``destination``, or C-GET without one: progress as told, and at last how it ended.

    Raises NetError, and RefusedError. Closing it early cancels it.
    """
    number = message_id or association.next_message_id()
    command = (
        CMoveRequest(number, context.abstract_syntax, destination, priority)
        if destination
        else CGetRequest(number, context.abstract_syntax, priority)
    )
    service = Service.MOVE if destination else Service.GET
    async with aclosing(association.request(context, command, identifier)) as responses:
        async for response, data in responses:
            if is_pending(response):
                yield suboperations(response)
            else:
                yield ended(response, data, context, service)


def suboperations(response: Command) -> SubOperations:
    """The counts of a C-MOVE or C-GET response (PS3.7 9.1.3.1, 9.1.4.1)."""
    counts: Any = response
    return SubOperations(
        counts.remaining_suboperations,
        counts.completed_suboperations or 0,
        counts.failed_suboperations or 0,
        counts.warning_suboperations or 0,
    )


def ended(response: Command, data: bytes, context: AcceptedContext, service: Service) -> Ended:
    """What a final response says. Raises RefusedError for a failure that says of no sub-operation."""
    final: Any = response
    status: int = final.status
    described = describe_status(status, service)
    comment = printable(final.error_comment or "")
    meaning = described.meaning + (f" ({comment})" if comment else "")
    counts = SubOperations() if service is Service.FIND else suboperations(response)
    if described.category is Category.FAILURE and not counts.done:
        elements = "".join(f" ({tag >> 16:04X},{tag & 0xFFFF:04X})" for tag in final.offending_elements or ())
        about = f"; it names{elements}" if elements else ""
        raise RefusedError(f"{status:04X}H: {meaning}{about}", status)
    failed: tuple[str, ...] = ()
    if data:
        values = model_of(data, context).get(_FAILED_SOP_INSTANCE_UID_LIST, {}).get("Value") or ()
        failed = tuple(str(value) for value in values if value)
    return Ended(status, described.category, meaning, counts, failed)


def printable(text: str) -> str:
    """What a peer said, safe for a terminal and a log."""
    return "".join(c if c.isprintable() else " " for c in text).strip()
