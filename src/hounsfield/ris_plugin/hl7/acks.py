"""Acknowledgements: what became of a message, in the words of tables 0008 and 0357 (HL7 v2.5.1 2.9, 2.15).

Original mode answers AA, AE or AR. Enhanced mode (a header with MSH-15 or MSH-16) answers CA, CE or CR as
MSH-15 asks, and what MSH-16 asks for follows at once as a message of its own, since by then it is done. An
error names the place and what is wrong, and nobody.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import tzinfo
from typing import Final

from hounsfield.archive.plugins import EngineError, RecordError, TakenError
from hounsfield.ris_plugin.errors import InvalidError, RisError, UnknownError
from hounsfield.ris_plugin.hl7.encoding import USUAL, escaped, moment_text
from hounsfield.ris_plugin.hl7.messages import NULL, Header, NotHl7Error
from hounsfield.ris_plugin.hl7.mllp import END, START, framed

__all__ = ["Fault", "MissingError", "RefusedError", "answers", "fault_of"]

TEXTS: Final = {
    "0": "Message accepted",
    "100": "Segment sequence error",
    "101": "Required field missing",
    "102": "Data type error",
    "103": "Table value not found",
    "200": "Unsupported message type",
    "201": "Unsupported event code",
    "202": "Unsupported processing id",
    "203": "Unsupported version id",
    "204": "Unknown key identifier",
    "205": "Duplicate key identifier",
    "206": "Application record locked",
    "207": "Application internal error",
}
"""Table 0357."""
PLACES: Final = {
    "procedure": "OBR-4",
    "priority": "TQ1-9",
    "laterality": "OBR-15",
    "identifiers": "PID-3",
    "sex": "PID-8",
    "birth_day": "PID-7",
    "accession": "IPC-1",
    "study_uid": "IPC-3",
    "resources": "AIL-3",
    "orders": "SCH-26",
}
"""Where in a message stands what an action calls so."""
IN_TABLES: Final = frozenset({"procedure", "priority", "sex", "laterality", "resources"})
CONTROL_ID_BYTES: Final = 10  # 20 characters, as MSH-10 has room for before v2.7
_PLACE = re.compile(r"([A-Z][A-Z0-9]{2})-(\d+)")


class RefusedError(RisError):
    """A message that is not taken, whatever it says: its header is not for us. ``code``: of table 0357."""

    def __init__(self, message: str, code: str, place: str) -> None:
        super().__init__(message)
        self.code = code
        self.place = place


class MissingError(InvalidError):
    """A field that is needed is empty."""


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong with a message. ``place``: as ``PID-3``, "" for none. ``refused``: none of it counts."""

    code: str
    text: str
    place: str = ""
    refused: bool = False


def fault_of(error: BaseException) -> Fault:
    """What a sender is told of an error."""
    if isinstance(error, RefusedError):
        return Fault(error.code, str(error), error.place, refused=True)
    if isinstance(error, NotHl7Error):
        return Fault("100", str(error), "MSH-1", refused=True)
    if isinstance(error, InvalidError):
        place = PLACES.get(error.field, error.field)
        code = "103" if error.field in IN_TABLES else "102"
        return Fault("101" if isinstance(error, MissingError) else code, str(error), place)
    if isinstance(error, UnknownError):
        return Fault("204", str(error))
    if isinstance(error, TakenError):
        return Fault("205", str(error))
    if isinstance(error, RisError | RecordError):
        return Fault("207", str(error))
    if isinstance(error, EngineError):
        return Fault("207", str(error), refused=True)
    return Fault("207", f"a defect of the receiver ({type(error).__name__}); the message is kept")


@dataclass(frozen=True, slots=True)
class Answering:
    """Who answers, in which time zone, at which moment."""

    application: str
    facility: str
    zone: tzinfo
    now_ns: int


def answers(us: Answering, header: Header | None, fault: Fault | None, *, kept: bool = True) -> bytes:
    """The acknowledgements of a message, framed, ready to be sent; none when its sender wants none.

    ``header`` None: it has none. ``kept``: it is safe here, applied or as a letter for people.
    """
    if header is None or not header.enhanced:
        code = "AA" if fault is None else "AR" if fault.refused else "AE"
        return framed(_message(us, header, code, fault))
    found = b""
    accepted = fault is None or (kept and not fault.refused)
    accept = _wanted(header.field(15), accepted)
    if accept:
        code = "CA" if accepted else "CE" if fault is not None and fault.code == "207" else "CR"
        found += framed(_message(us, header, code, None if accepted else fault))
    if accepted and _wanted(header.field(16), fault is None):
        found += framed(_message(us, header, "AA" if fault is None else "AE", fault, ours=True))
    elif not accepted and not accept and _wanted(header.field(16), False):
        found += framed(_message(us, header, "AR", fault, ours=True))  # who wants no CR waits for this
    return found


def together(us: Answering, batch: bytes, answered: Sequence[bytes]) -> bytes:
    """Acknowledgements of what came together: of a batch, as one (2.10.3), else one after another."""
    every = b"".join(answered)
    heads = [(line[:3], line) for line in batch.splitlines() if line[:3] in {b"FHS", b"BHS"}]
    if not heads or not every:
        return every
    inner = every.replace(START, b"").replace(END + b"\r", b"")
    count = every.count(START)
    for name, line in reversed(heads[:2]):
        fields = line.split(line[3:4])
        theirs = fields[10].decode("ascii", "replace") if len(fields) > 10 else ""
        head = [
            name.decode(), "^~\\&", escaped(us.application), escaped(us.facility), "", "",
            moment_text(us.now_ns, us.zone), "", "", "", secrets.token_hex(CONTROL_ID_BYTES), _plain(theirs),
        ]  # fmt: skip
        tail = f"{'BTS' if name == b'BHS' else 'FTS'}|{count if name == b'BHS' else 1}\r"
        inner = ("|".join(head) + "\r").encode() + inner + tail.encode()
    return framed(inner)


def _wanted(asked: str, good: bool) -> bool:
    """Table 0155; what is left out in enhanced mode is not asked for, and for what is in no table an answer
    is better than none."""
    asked = asked.strip().upper()
    return {"": False, NULL: False, "NE": False, "ER": not good, "SU": good}.get(asked, True)


def _message(
    us: Answering, header: Header | None, code: str, fault: Fault | None, *, ours: bool = False
) -> bytes:
    there = ("", "")
    trigger, processing, version, control_id = "", "P", "2.5.1", ""
    if header is not None:
        held = header.separators
        there = (header.field(3).split(held.component)[0], header.field(4).split(held.component)[0])
        kind = header.kind.split("^")
        trigger = kind[1] if len(kind) > 1 else ""
        processing, version, control_id = header.field(11), header.version or "2.5.1", header.control_id
    # MSH-9 has its structure since 2.3.1, and needed no trigger before; MSA-3 is gone since 2.7.
    event = f"ACK^{_plain(trigger)}^ACK" if trigger and version >= "2.3.1" else "ACK"
    fields = [
        "MSH", USUAL[1:], escaped(us.application), escaped(us.facility), _plain(there[0]),
        _plain(there[1]), moment_text(us.now_ns, us.zone), "", event, secrets.token_hex(CONTROL_ID_BYTES),
        _plain(processing) or "P", _plain(version),
    ]  # fmt: skip
    if ours:
        fields += ["", "", "NE", "NE"]
    lines = [
        "|".join(fields),
        "|".join(["MSA", code, _plain(control_id), *([_line(fault)] if fault and version < "2.7" else [])]),
    ]
    if fault is not None:
        lines.append(_error(fault, version))
    return "".join(line + "\r" for line in lines).encode("ascii", "replace")


def _plain(text: str) -> str:
    """What is echoed: as it came, but for what would break the line."""
    if not text.isprintable() or "|" in text:
        text = "".join(c for c in text if c.isprintable() and c != "|")
    return text[:250]


def _line(fault: Fault) -> str:
    return escaped(fault.text)[:250]


def _error(fault: Fault, version: str) -> str:
    """ERR, as the message's version has it: from 2.5 on by location, code and text, before as one field."""
    found = _PLACE.fullmatch(fault.place)
    segment, field = found.groups() if found else ("", "")
    word = TEXTS[fault.code]
    if version < "2.5":
        return f"ERR|{segment}^{'1' if segment else ''}^{field}^{fault.code}&{escaped(word)}&HL70357"
    where = f"{segment}^1^{field}" if segment else ""
    return f"ERR||{where}|{fault.code}^{escaped(word)}^HL70357|E||||{_line(fault)}"
