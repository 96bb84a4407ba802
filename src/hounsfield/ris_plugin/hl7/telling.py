"""What happens here as messages: reports as ORU^R01, orders as ORM^O01 or OMG^O19, appointments as SIU.

A consumer of the journal makes them, in the transaction that says how far it is: each event becomes one
message for each destination that wants its kind, under an MSH-10 that follows from the event, and is never
left out nor made twice. What a report says is that of the version that the event names, which never changes.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Final, NamedTuple
from zoneinfo import ZoneInfo

from hounsfield.archive.plugins import Change, View
from hounsfield.ris_plugin.context import Ris
from hounsfield.ris_plugin.following import BEFORE_NS, Consumer, Heeded, identity
from hounsfield.ris_plugin.hl7.encoding import escaped, moment_text
from hounsfield.ris_plugin.hl7.saying import BY_MESSAGE
from hounsfield.ris_plugin.hl7.writing import (
    coded,
    composed,
    message,
    msh,
    numbers,
    pid,
    provider,
    pv1,
    segment,
    timing,
)
from hounsfield.ris_plugin.patients import resolve
from hounsfield.ris_plugin.reading.reporting import valid
from hounsfield.ris_plugin.records.base import NS
from hounsfield.ris_plugin.records.catalog import PERSON, RESOURCE
from hounsfield.ris_plugin.records.messages import CURSOR, MESSAGE, Cursor, Message
from hounsfield.ris_plugin.records.orders import ORDER, Order
from hounsfield.ris_plugin.records.patients import Patient
from hounsfield.ris_plugin.records.reports import REPORT, Report, Version
from hounsfield.ris_plugin.records.schedule import APPOINTMENT, Appointment
from hounsfield.ris_plugin.settings import Hl7Destination

__all__ = ["CONSUMER", "consumer"]

CONSUMER: Final = "hl7"
DAY_NS: Final = 24 * 3600 * NS
CONTROL_ID_CHARACTERS: Final = 20
"""MSH-10 before v2.7."""


class Status(NamedTuple):
    """How an event of an order is told (tables 0119, 0038): ORC-1 when we did it, when the placer asked for
    it, and ORC-5."""

    ours: str
    asked: str
    status: str


ORDERS: Final[Mapping[str, Status]] = {
    "order-placed": Status("SN", "OK", "IP"),
    "order-accepted": Status("SC", "SC", "IP"),
    "order-scheduled": Status("SC", "SC", "SC"),
    "order-unscheduled": Status("SC", "SC", "IP"),
    "order-started": Status("SC", "SC", "IP"),
    "order-abandoned": Status("SC", "SC", "IP"),
    "order-completed": Status("SC", "SC", "CM"),
    "order-held": Status("OH", "HR", "HD"),
    "order-released": Status("OE", "OR", "IP"),
    "order-rejected": Status("UA", "UA", "CA"),
    "order-cancelled": Status("OC", "CR", "CA"),
    "order-replaced": Status("RU", "RQ", "RP"),
    "order-changed": Status("XX", "XR", ""),
}
STATES: Final = {"scheduled": "SC", "held": "HD", "completed": "CM", "cancelled": "CA", "replaced": "RP"}
"""ORC-5 of what was changed, as it was then; others are in process."""
REPORTS: Final = {
    "report-preliminary": "P",
    "report-signed": "F",
    "report-corrected": "C",
    "report-addended": "C",
}
"""Table 0123: an addendum corrects what was sent before."""
APPOINTMENTS: Final = {
    "appointment-booked": ("S12", "Booked"),
    "appointment-moved": ("S13", "Booked"),
    "appointment-cancelled": ("S15", "Cancelled"),
    "appointment-missed": ("S26", "Noshow"),
}
"""Triggers of HL7 v2.5.1 10.3, and table 0278."""
SECTIONS: Final = {
    "indication": ("18785-6", "Radiology reason for study"),
    "technique": ("55111-9", "Current imaging procedure descriptions"),
    "comparison": ("18834-2", "Radiology comparison study"),
    "findings": ("59776-5", "Procedure findings"),
    "impression": ("19005-8", "Radiology impression"),
    "recommendation": ("18783-1", "Radiology study recommendation"),
}
"""LOINC, as RSNA's report templates and TID 2000 have them."""


def consumer(ris: Ris) -> Consumer:
    """Who makes messages of events. Destinations that are added later are told what happens from then on."""
    kinds = {*ORDERS, *REPORTS, *APPOINTMENTS}
    return Consumer(CONSUMER, kinds, partial(tell, ris), since_begun=True)


def tell(ris: Ris, change: Change, event: Heeded) -> None:
    """Make the messages of one event."""
    kind = event.kind.removeprefix("ris.")
    if event.again and event.at_ns < change.now_ns - ris.settings.hl7_keep_days * DAY_NS:
        return  # told again after a reindex, and no longer known to have gone out
    for to in ris.settings.hl7_destinations:
        since_ns = _since_ns(change, to, event)
        if event.again and event.at_ns < since_ns - BEFORE_NS:
            continue  # it was not there then
        control_id = identity(event)[:CONTROL_ID_CHARACTERS]
        if change.first(MESSAGE, "control-id", f"{to.name}\0{control_id}") is not None:
            continue  # told again: it has gone out, or will
        made = _message(ris, change, to, kind, event, control_id)
        if made is not None:
            name, lines, about = made
            one = Message(
                destination=to.name,
                number=change.count(f"hl7 {to.name}"),
                control_id=control_id,
                kind=name,
                body=message(lines, to),
                made_ns=change.now_ns,
                about=about,
            )
            change.put(MESSAGE, change.new_id(), one)


def _since_ns(change: Change, to: Hl7Destination, event: Heeded) -> int:
    """Since when a destination is told what happens: noted with the first event that it is told of."""
    name = f"{CONSUMER} to {to.name}"
    found = change.first(CURSOR, "name", name)
    if found is not None:
        return found[1].begun_ns
    begun_ns = change.now_ns if event.again else min(change.now_ns, event.at_ns)
    change.put(CURSOR, change.new_id(), Cursor(name=name, begun_ns=begun_ns))
    return begun_ns


Made = tuple[str, list[str], str]


def _message(  # noqa: PLR0917
    ris: Ris, view: View, to: Hl7Destination, kind: str, event: Heeded, control_id: str
) -> Made | None:
    body = event.body
    if kind in REPORTS and "ORU" in to.sends:
        report = view.get(REPORT, body["report"])
        version = _version(report, body.get("version", 0)) if report is not None else None
        if report is None or version is None:
            return None
        head = msh(ris.settings, ris.zone, to, "ORU^R01^ORU_R01", control_id, event.at_ns)
        return "ORU^R01", [head, *_report(ris, view, report, version, REPORTS[kind])], body["report"]
    if kind in ORDERS and (name := next((one for one in ("ORM", "OMG") if one in to.sends), "")):
        order = view.get(ORDER, body["order"])
        if order is None:
            return None
        trigger, structure = ("O01", "ORM_O01") if name == "ORM" else ("O19", "OMG_O19")
        head = msh(ris.settings, ris.zone, to, f"{name}^{trigger}^{structure}", control_id, event.at_ns)
        asked = str(body.get("actor", "")).startswith(BY_MESSAGE)
        return (
            f"{name}^{trigger}",
            [head, *_order(ris, view, order, ORDERS[kind], event, asked)],
            body["order"],
        )
    if kind in APPOINTMENTS and "SIU" in to.sends:
        appointment = view.get(APPOINTMENT, body["appointment"])
        if appointment is None or not appointment.from_ns:
            return None  # a wish for a time, which has none
        trigger, status = APPOINTMENTS[kind]
        head = msh(ris.settings, ris.zone, to, f"SIU^{trigger}^SIU_S12", control_id, event.at_ns)
        lines = _appointment(ris, view, appointment, trigger, status)
        return f"SIU^{trigger}", [head, *lines], body["appointment"]
    return None


def _version(report: Report, number: int) -> Version | None:
    return next((one for one in report.versions if one.number == number), None)


def _people(view: View, order: Order) -> tuple[Patient, str]:
    """Who the order's patient is now, and PV1."""
    _, patient = resolve(view, order.patient)
    return patient, pv1(patient, order)


# ---------------------------------------------------------------- reports


def _report(ris: Ris, view: View, report: Report, version: Version, status: str) -> list[str]:
    """ORU^R01 (7.3.1; IHE RAD-TF 2:4.28): the text by sections, for each order, and where the study is."""
    _, patient = resolve(view, report.patient)
    orders = [order for order in (view.get(ORDER, one) for one in report.orders) if order is not None]
    lines = [pid(patient), pv1(patient, orders[0] if orders else None)]
    for at, order in enumerate(orders, 1):
        placer, filler = numbers(order, ris.settings)
        ours = "CM" if status != "P" else "IP"
        lines.append(segment("ORC", {1: "RE", 2: placer, 3: filler, 5: ours}))
        lines.append(
            segment(
                "OBR",
                {
                    1: str(at),
                    2: placer,
                    3: filler,
                    4: coded(order.procedure),
                    7: moment_text(report.ready_ns, ris.zone),
                    13: escaped(order.clinical_information),
                    16: provider(order.requester_code, order.requester),
                    18: composed(report.accession),
                    22: moment_text(version.signed_ns or version.at_ns, ris.zone),
                    24: "RAD",
                    25: status,
                    27: timing(order, ris.zone),
                    31: composed("", order.reason),
                    32: _reader(view, version.signer or version.author),
                },
            )
        )
        lines += _observations(ris, report, version, status)
    return lines


def _reader(view: View, code: str) -> str:
    """NDL of who answers for the report: components of the name are subcomponents there."""
    found = view.first(PERSON, "code", code)
    name = found[1].name if found is not None else ""
    return provider(code, name).replace("^", "&")


def _observations(ris: Ris, report: Report, version: Version, status: str) -> list[str]:
    at = moment_text(version.signed_ns or version.at_ns, ris.zone)
    found: list[tuple[str, str, str]] = []
    for one in valid(report, version.number):  # whoever takes an addendum puts it in place of what was before
        texts = [(section.name, section.text.strip()) for section in one.sections if section.text.strip()]
        if one.kind == "addendum":
            added = "\n".join(f"{name.capitalize()}: {text}" for name, text in texts)
            found.append(("FT", composed("55107-7", "Addendum", "LN"), escaped(added)))
            continue
        for name, text in texts:
            code, meaning = SECTIONS.get(name, (name, name.capitalize()))
            called = composed(code, meaning, "LN" if name in SECTIONS else "99RIS")
            found.append(("FT", called, escaped(text)))
    if version.reason and version.reason != version.kind:
        found.append(("FT", composed("reason", "Reason of the change", "99RIS"), escaped(version.reason)))
    found.append(("ST", composed("113014", "DICOM Study", "DCM"), composed(report.study_uid)))
    for document in report.documents:
        for uid, meaning in ((document.pdf_uid, "Encapsulated PDF"), (document.sr_uid, "Basic Text SR")):
            if uid and document.version == version.number:
                found.append(("ST", composed("110181", meaning, "DCM"), composed(uid)))
    return [
        segment("OBX", {1: str(number), 2: kind, 3: name, 4: "1", 5: value,
                        8: "A" if version.critical and kind == "FT" else "", 11: status, 14: at})
        for number, (kind, name, value) in enumerate(found, 1)
    ]  # fmt: skip


# ---------------------------------------------------------------- orders


def _order(  # noqa: PLR0917
    ris: Ris, view: View, order: Order, told: Status, event: Heeded, asked: bool
) -> list[str]:
    """ORM^O01 or OMG^O19 of a filler (4.4; IHE RAD-TF 2:4.3): what became of an order."""
    patient, visit = _people(view, order)
    placer, filler = numbers(order, ris.settings)
    status = told.status or STATES.get(event.body.get("state", ""), "IP")
    orc = {
        1: told.asked if asked or (told.ours == "SN" and order.placer_number) else told.ours,
        2: placer,
        3: filler,
        4: composed(order.group_number, order.placer_issuer) if order.group_number else "",
        5: status,
        7: timing(order, ris.zone),
        9: moment_text(event.at_ns, ris.zone),
        12: provider(order.requester_code, order.requester),
        16: composed("", order.why) if status in {"HD", "CA"} else "",
    }
    obr = {
        1: "1",
        2: placer,
        3: filler,
        4: coded(order.procedure),
        16: provider(order.requester_code, order.requester),
        18: composed(order.accession),
        24: "RAD",
        27: timing(order, ris.zone),
        31: composed("", order.reason),
    }
    return [pid(patient), visit, segment("ORC", orc), segment("OBR", obr)]


# ---------------------------------------------------------------- appointments


def _appointment(ris: Ris, view: View, one: Appointment, trigger: str, status: str) -> list[str]:
    """SIU (10.3; IHE RAD-TF 2:4.48): when and where, for which orders."""
    zone: ZoneInfo = ris.zone
    _, patient = resolve(view, one.patient)
    orders = [order for order in (view.get(ORDER, each) for each in one.orders) if order is not None]
    pairs = [numbers(order, ris.settings) for order in orders]
    begin, end = moment_text(one.from_ns, zone), moment_text(one.to_ns, zone)
    minutes = str(max(0, one.to_ns - one.from_ns) // NS // 60)
    placer, _, issuer = one.placer_number.partition("^")
    sch = {
        1: composed(placer, issuer),
        2: composed(one.number, ris.settings.application),
        6: composed("", one.reason) if trigger in {"S15", "S26"} else composed(trigger),
        7: composed("", one.note),
        9: minutes,
        10: "min",
        11: f"^^{minutes}^{begin}^{end}",
        16: composed(ris.settings.application),
        20: composed(ris.settings.application),
        25: status,
        26: "~".join(placer for placer, _ in pairs),
        27: "~".join(filler for _, filler in pairs),
    }
    lines = [segment("SCH", sch), pid(patient), pv1(patient, orders[0] if orders else None), "RGS|1"]
    for at, order in enumerate(orders, 1):
        lines.append(segment("AIS", {1: str(at), 3: coded(order.procedure), 4: begin, 7: minutes, 8: "min"}))
    counts = {"AIG": 0, "AIL": 0, "AIP": 0}
    for held in one.holds:
        found = view.get(RESOURCE, held.resource)
        if found is None:
            continue
        name = {"device": "AIG", "room": "AIL", "person": "AIP"}[found.kind]
        counts[name] += 1
        what: dict[int, str] = {1: str(counts[name]), 3: composed(found.code, found.name)}
        if name == "AIL":
            what[3] = composed(found.code)
        lines.append(segment(name, what))
    return lines
