"""ADT: what registration says of patients (HL7 v2.5.1 3.3; IHE RAD-TF 2:4.1, 2:4.12; ITI-30, ITI-31)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from hounsfield.archive.plugins import Change
from hounsfield.ris_plugin import patients
from hounsfield.ris_plugin.errors import InvalidError
from hounsfield.ris_plugin.hl7.acks import MissingError
from hounsfield.ris_plugin.hl7.encoding import day
from hounsfield.ris_plugin.hl7.messages import Segment, patient_names, person_name
from hounsfield.ris_plugin.hl7.saying import Saying
from hounsfield.ris_plugin.records.base import folded
from hounsfield.ris_plugin.records.patients import (
    Allergy,
    Contact,
    Identifier,
    Insurance,
    Patient,
    Visit,
)

__all__ = ["MERGES", "UPDATES", "Said", "apply_merge", "apply_patient", "patient_said"]

UPDATES: Final = frozenset(
    {"A01", "A02", "A03", "A04", "A05", "A06", "A07", "A08", "A11", "A13", "A28", "A31"}
)
"""Events that say who the patient is, and where."""
OF_PERSON: Final = frozenset({"A28", "A31"})
"""Of these PV1 is there only because it has to be (3.3.31)."""
MERGES: Final = frozenset({"A40", "A47"})
"""A40 merges. A47 changes a number, which is the same here: what is said under the old one goes on leading to
the patient, whether it was said before or comes late."""
SEXES: Final = {"M": "M", "F": "F", "O": "O", "A": "O", "N": "O", "U": ""}
"""Table 0001 to PS3.3 C.7.1.1."""
WEIGHTS: Final = frozenset({"3141-9", "3142-7", "29463-7", "8335-2", "body weight", "weight"})
HEIGHTS: Final = frozenset({"8301-4", "8302-2", "3137-7", "3138-5", "body height", "height"})
PREGNANCIES: Final = frozenset({"82810-3", "11449-6", "pregnancy", "pregnancy status"})
"""LOINC, and the texts of IHE RAD-TF 2:4.1.4.1.2.2."""
PREGNANT: Final = {
    "n": 1, "no": 1, "not": 1, "1": 1, "la26683-5": 1,
    "2": 2, "possible": 2, "possibly": 2,
    "y": 3, "yes": 3, "3": 3, "pregnant": 3, "la15173-0": 3,
    "4": 4, "u": 4, "unknown": 4, "la4489-6": 4,
}  # fmt: skip
"""Words and LOINC's answers for (0010,21C0)."""
_OF_PATIENT: Final = frozenset(
    {"PID", "PD1", "NTE", "PV1", "PV2", "OBX", "AL1", "IN1", "IN2", "NK1", "DG1", "ROL"}
)


@dataclass(frozen=True, slots=True)
class Said:
    """What a message says of its patient. ``says``: the fields that it speaks of."""

    patient: Patient
    says: frozenset[str]


# ---------------------------------------------------------------- reading


def patient_said(saying: Saying, *, visits: bool = False) -> Said:
    """PID and what goes with it, up to the first order. ``visits``: a visit without a number counts too."""
    pid = saying.message.first("PID")
    if pid is None:
        raise MissingError("the message has no PID", "PID-3")
    if sum(1 for _ in saying.message.all("PID")) > 1:  # whose are its orders?
        raise InvalidError("the message speaks of several patients: one message for each", "PID-1")
    identifiers = tuple(_identifiers(saying, pid))
    if not identifiers:
        raise MissingError("the message names no patient: PID-3 is empty", "PID-3")
    words: dict[str, Any] = dict(_demographics(saying, pid))
    segments = list(_segments_of_patient(saying))
    by_name: dict[str, list[Segment]] = {}
    for one in segments:
        by_name.setdefault(one.name, []).append(one)
    if by_name.get("IN1"):
        words["insurances"] = tuple(_insurance(one) for one in by_name["IN1"])
    if by_name.get("AL1"):
        words["allergies"] = tuple(_allergy(one) for one in by_name["AL1"] if one.whole(3))
    if by_name.get("NK1"):
        words["contacts"] = tuple(_contact(one) for one in by_name["NK1"] if person_name(one, 2))
    for one in by_name.get("PD1", ()):
        if one.says(12):
            words["confidential"] = one.get(12).upper() == "Y"
    for one in by_name.get("OBX", ()):
        words |= _observed(one)
    for one in by_name.get("PV1", ()):
        visit = _visit(saying, one)
        if visit.number or (visits and visit != Visit() and _trigger(saying) not in OF_PERSON):
            words["visit"] = visit if _trigger(saying) != "A11" else Visit()
    return Said(Patient(identifiers=identifiers, **words), frozenset(words))


def _trigger(saying: Saying) -> str:
    return saying.message.header.kind.partition("^")[2]


def _segments_of_patient(saying: Saying) -> Iterator[Segment]:
    found = False
    for one in saying.message.segments:
        if one.name == "PID":
            found = True
        elif found and one.name in {"ORC", "OBR", "RGS", "MRG"}:
            if one.name != "MRG":
                return
        elif found and one.name in _OF_PATIENT:
            yield one


def _identifiers(saying: Saying, pid: Segment) -> Iterator[Identifier]:
    """PID-3, the one first that this department goes by, the others in an order that all senders share."""
    found = list(identifiers_of(saying, pid, 3)) or list(identifiers_of(saying, pid, 2))
    ours = (saying.listener.issuer, saying.settings.issuer)
    leading = next((one for one in found if one.issuer and one.issuer in ours), None)
    leading = leading or next(
        (one for one in found if one.kind in {"MR", "PI", "PT"}), found[0] if found else None
    )
    if leading is not None:
        yield leading
        yield from sorted(
            (one for one in found if one is not leading), key=lambda one: (one.issuer, one.value)
        )


def identifiers_of(saying: Saying, segment: Segment, number: int) -> Iterator[Identifier]:
    """CX: the numbers of a field, each once."""
    seen = set()
    for rep in range(segment.repetitions(number)):
        value = segment.get(number, rep=rep)
        issuer = saying.issuer(segment.authority(number, 4, rep=rep))
        if value and (value, issuer) not in seen:
            seen.add((value, issuer))
            yield Identifier(value=value, issuer=issuer, kind=segment.get(number, 5, rep=rep) or "MR")


def _demographics(saying: Saying, pid: Segment) -> Iterator[tuple[str, Any]]:
    if pid.says(5):
        name, others = patient_names(pid, 5)
        aliases = patient_names(pid, 9)
        known_as = (*others, *(one for one in (aliases[0], *aliases[1]) if one))
        yield "name", name
        yield "other_names", tuple(dict.fromkeys(one for one in known_as if one != name))
    if pid.says(7):
        yield "birth_day", day(pid.get(7), "PID-7")
    if pid.says(8):
        yield "sex", SEXES.get(pid.get(8).upper()[:1], "O" if pid.get(8) else "")
    if pid.says(11):
        yield "address", pid.whole(11)
    if pid.says(13) or pid.says(14):
        phones = [_phone(pid, number, rep) for number in (13, 14) for rep in range(pid.repetitions(number))]
        yield "phones", tuple(dict.fromkeys(filter(None, phones)))
    if pid.says(15):
        yield "language", pid.get(15)
    if pid.says(29):
        yield "died_ns", pid.moment(29, saying.zone)


def _phone(segment: Segment, number: int, rep: int = 0) -> str:
    """XTN: as one writes it, or its parts."""
    said = segment.get(number, 1, rep=rep) or segment.get(number, 12, rep=rep)
    parts = (segment.get(number, at, rep=rep) for at in (5, 6, 7, 8))
    return said or " ".join(filter(None, parts)) or segment.get(number, 4, rep=rep)


def _visit(saying: Saying, pv1: Segment) -> Visit:
    return Visit(
        number=pv1.get(19),
        issuer=pv1.authority(19, 4) if pv1.get(19) else "",
        patient_class=pv1.get(2)[:1].replace("N", ""),  # table 0004: not applicable
        location=pv1.whole(3),
        attending=person_name(pv1, 7, at=2),
        admitted_ns=pv1.moment(44, saying.zone),
        discharged_ns=0 if _trigger(saying) == "A13" else pv1.moment(45, saying.zone),
    )


def _insurance(in1: Segment) -> Insurance:
    return Insurance(
        plan=in1.get(2, 2) or in1.get(2),
        company=in1.get(4) or in1.get(3),
        group_number=in1.get(8),
        policy_number=in1.get(36),
        valid_from=day(in1.get(12), "IN1-12"),
        valid_to=day(in1.get(13), "IN1-13"),
    )


def _allergy(al1: Segment) -> Allergy:
    code = al1.code(3)
    return Allergy(
        substance=code.meaning or code.value,
        code=code.value if code.meaning else "",
        kind=al1.get(2),
        severity=al1.get(4),
        reaction="; ".join(filter(None, (al1.get(5, rep=rep) for rep in range(al1.repetitions(5))))),
    )


def _contact(nk1: Segment) -> Contact:
    return Contact(
        name=person_name(nk1, 2),
        relation=nk1.get(3, 2) or nk1.get(3),
        phone=_phone(nk1, 5),
        address=nk1.whole(4),
    )


def _observed(obx: Segment) -> dict[str, Any]:
    """Weight, height and pregnancy of an OBX."""
    names = {obx.get(3, 1).casefold(), folded(obx.get(3, 2))}
    text = obx.get(5)
    if names & PREGNANCIES:
        said = (text + " " + obx.get(5, 2)).casefold().split()
        return {"pregnancy": next((PREGNANT[one] for one in said if one in PREGNANT), 4)}
    try:
        value = float(text.replace(",", "."))
    except ValueError:
        return {}
    unit = obx.get(6).casefold()
    if names & WEIGHTS:
        factor = {"g": 0.001, "lb": 0.45359237, "[lb_av]": 0.45359237, "lbs": 0.45359237}.get(unit, 1.0)
        return {"weight_kg": round(value * factor, 3)}
    if names & HEIGHTS:
        metres = value * {"m": 1.0, "in": 0.0254, "[in_i]": 0.0254, "mm": 0.001}.get(unit, 0.01)
        return {"size_m": round(metres, 3)}
    return {}


# ---------------------------------------------------------------- doing


def apply_patient(change: Change, saying: Saying, said: Said) -> str:
    """Take what is said of the patient; the record that it is said of."""
    before = len(change.said)
    who = patients.upsert(
        change, saying.actor, said.patient, sender=saying.sender, event_ns=saying.event_ns, says=said.says
    )
    new = any("registered" in body for _, body in change.said[before:])
    saying.done.append("a patient is registered" if new else "a patient is brought up to date")
    return who


def apply_merge(change: Change, saying: Saying) -> None:
    """MRG: whom the patient of each PID is one with (A40), or what number he had before (A47)."""
    pid: Segment | None = None
    merged = 0
    for one in saying.message.segments:
        if one.name == "PID":
            pid = one
        elif one.name == "MRG" and pid is not None:
            _merge(change, saying, pid, one)
            merged += 1
    if not merged:
        raise MissingError("the message has no MRG: it does not say who is merged", "MRG-1")


def _merge(change: Change, saying: Saying, pid: Segment, mrg: Segment) -> None:
    former = list(identifiers_of(saying, mrg, 1))
    if not former:
        raise MissingError("MRG-1 is empty: the message does not say who is merged", "MRG-1")
    identifiers = tuple(
        one for one in _identifiers(saying, pid) if (one.value, one.issuer) not in _pairs(former)
    )
    if not identifiers:
        raise MissingError("PID-3 names nobody but who is merged", "PID-3")
    words = dict(_demographics(saying, pid))
    said = Said(Patient(identifiers=identifiers, **words), frozenset(words))
    survivor = apply_patient(change, saying, said)
    for each in former:
        # Of who is not known yet only the number is: what still comes under it is his, and leads on.
        merged = patients.upsert(
            change, saying.actor, Patient(identifiers=(each,)),
            sender=saying.sender, event_ns=saying.event_ns, says=(),
        )  # fmt: skip
        if merged == survivor:
            continue
        patients.merge(
            change, saying.actor, survivor=survivor, merged=merged,
            reason=saying.message.header.kind, sender=saying.sender, event_ns=saying.event_ns,
        )  # fmt: skip
    saying.done.append("two patients' records are merged")


def _pairs(identifiers: list[Identifier]) -> set[tuple[str, str]]:
    return {(one.value, one.issuer) for one in identifiers}
