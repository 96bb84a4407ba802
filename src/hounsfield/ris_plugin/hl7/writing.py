"""Messages that go out, as text: segments of records, and their bytes in a destination's character set."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final
from zoneinfo import ZoneInfo

from hounsfield.ris_plugin.hl7.encoding import codec_of, encoded, escaped, moment_text
from hounsfield.ris_plugin.records.base import Code
from hounsfield.ris_plugin.records.orders import Order
from hounsfield.ris_plugin.records.patients import Patient
from hounsfield.ris_plugin.settings import Hl7Destination, RisSettings

__all__ = ["coded", "composed", "message", "msh", "names", "pid", "provider", "pv1", "segment", "timing"]

VERSION: Final = "2.5.1"
PRIORITY_CODES: Final = {"STAT": "S", "HIGH": "A", "ROUTINE": "R", "MEDIUM": "R", "LOW": "R"}


def composed(*parts: str, by: str = "^") -> str:
    """Components, escaped, without empty ones at the end."""
    return by.join(escaped(one) for one in parts).rstrip(by)


def segment(name: str, fields: dict[int, str]) -> str:
    """A segment with fields by number; those are escaped already."""
    last = max((number for number, text in fields.items() if text), default=0)
    return "|".join([name, *(fields.get(number, "") for number in range(1, last + 1))])


def message(lines: Iterable[str], to: Hl7Destination) -> bytes:
    """Segments as the bytes that go out."""
    return encoded("".join(line + "\r" for line in lines), codec_of(to.character_set) or "utf_8")


def msh(  # noqa: PLR0917
    settings: RisSettings, zone: ZoneInfo, to: Hl7Destination, kind: str, control_id: str, now_ns: int
) -> str:
    """The header. ``kind``: as ``ORU^R01^ORU_R01``. Original mode: one acknowledgement, when it is done."""
    fields = {
        3: composed(settings.application),
        4: composed(settings.facility),
        5: composed(to.application),
        6: composed(to.facility),
        7: moment_text(now_ns, zone),
        9: kind,
        10: control_id,
        11: "P",
        12: VERSION,
        18: to.character_set,
    }
    # The separator is MSH-1, and what is after it MSH-2.
    return segment("MSH|^~\\&", {number - 2: text for number, text in fields.items()})


def names(name: str) -> str:
    """A DICOM name as XPN, a repetition for each of its groups."""
    groups = name.split("=")
    found = []
    for group, kind in zip(groups, "AIP", strict=False):
        if group:
            family, given, middle, prefix, suffix = (*group.split("^"), "", "", "", "", "")[:5]
            code = kind if len(groups) > 1 else ""
            found.append(composed(family, given, middle, suffix, prefix, "", "L", code))
    return "~".join(found)


def provider(code: str, name: str) -> str:
    """XCN of a code and a DICOM name."""
    family, given, middle, prefix, suffix = (*name.partition("=")[0].split("^"), "", "", "", "", "")[:5]
    return composed(code, family, given, middle, suffix, prefix) if code or name else ""


def coded(code: Code) -> str:
    """CWE."""
    return composed(code.value, code.meaning, code.scheme)


def pid(patient: Patient) -> str:
    """PID."""
    return segment(
        "PID",
        {
            1: "1",
            3: "~".join(composed(one.value, "", "", one.issuer, one.kind) for one in patient.identifiers),
            5: names(patient.name),
            7: patient.birth_day,
            8: patient.sex or "U",
            11: composed(patient.address),
            13: "~".join(composed(one) for one in patient.phones),
            15: composed(patient.language),
        },
    )


def pv1(patient: Patient, order: Order | None) -> str:
    """PV1."""
    visit = patient.visit
    number = order.visit_number if order is not None and order.visit_number else visit.number
    issuer = order.visit_issuer if order is not None and order.visit_number else visit.issuer
    return segment(
        "PV1",
        {
            1: "1",
            2: composed(visit.patient_class or "O"),
            3: composed(visit.location),
            7: provider("", visit.attending),
            8: provider("", order.referring) if order is not None else "",
            19: composed(number, "", "", issuer),
        },
    )


def timing(order: Order, zone: ZoneInfo) -> str:
    """TQ of ORC-7 and OBR-27."""
    begin, end = moment_text(order.wanted_ns, zone), moment_text(order.wanted_until_ns, zone)
    return "^".join(("1", "", "", begin, end, PRIORITY_CODES.get(order.priority, "R")))


def numbers(order: Order, settings: RisSettings) -> tuple[str, str]:
    """EI of the placer's number and of ours."""
    return (
        composed(order.placer_number, order.placer_issuer),
        composed(order.filler_number or order.accession, order.filler_issuer or settings.application),
    )


def lines_of(text: str) -> Sequence[str]:
    """Text as lines, none of them with an end."""
    return text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
