"""Patients: who they are to whom, and what was merged."""

from __future__ import annotations

from collections.abc import Iterator

from hounsfield.archive.plugins import Key, Kind
from hounsfield.ris_plugin.records.base import Row, Said, beginnings

ACTIVE, MERGED = "active", "merged"


class Identifier(Row, frozen=True):
    """A number that ``issuer`` has given a patient (HL7 v2 CX). ``kind``: of table 0203, MR, SS, …"""

    value: str
    issuer: str = ""
    kind: str = "MR"


class Insurance(Row, frozen=True):
    """HL7 v2 IN1."""

    plan: str = ""
    company: str = ""
    group_number: str = ""
    policy_number: str = ""
    valid_from: str = ""
    valid_to: str = ""


class Allergy(Row, frozen=True):
    """HL7 v2 AL1. ``kind``: of table 0127, DA is a drug; ``severity``: of table 0128."""

    substance: str
    kind: str = ""
    code: str = ""
    severity: str = ""
    reaction: str = ""


class Contact(Row, frozen=True):
    """Next of kin (HL7 v2 NK1)."""

    name: str
    relation: str = ""
    phone: str = ""
    address: str = ""


class Visit(Row, frozen=True):
    """The stay or visit under way (HL7 v2 PV1)."""

    number: str = ""
    issuer: str = ""
    patient_class: str = ""  # of table 0004: I, O, E, …
    location: str = ""
    attending: str = ""
    admitted_ns: int = 0
    discharged_ns: int = 0


class Patient(Row, frozen=True):
    """One person. ``identifiers``: the first is the one that images carry. ``former``: those that were
    replaced by others, under which images may still come.

    ``as_of_ns`` and ``as_of_from``: the newest event (EVN-2, else MSH-7) that spoke of the patient; ``said``:
    which one last spoke of what, since of each field the newest counts, so that any order ends alike.
    """

    identifiers: tuple[Identifier, ...]
    former: tuple[Identifier, ...] = ()
    name: str = ""
    other_names: tuple[str, ...] = ()
    birth_day: str = ""
    sex: str = ""  # M, F, O or "" (PS3.3 C.7.1.1)
    address: str = ""
    phones: tuple[str, ...] = ()
    language: str = ""
    weight_kg: float = 0.0
    size_m: float = 0.0
    insurances: tuple[Insurance, ...] = ()
    allergies: tuple[Allergy, ...] = ()
    contacts: tuple[Contact, ...] = ()
    alerts: tuple[str, ...] = ()
    pregnancy: int = 0  # (0010,21C0): 1 not, 2 possibly, 3 definitely, 4 unknown; 0 nobody asked
    visit: Visit = Visit()
    confidential: bool = False
    provisional: bool = False  # an unidentified emergency: to be merged into who it turns out to be
    died_ns: int = 0
    state: str = ACTIVE
    merged_into: str = ""
    as_of_ns: int = 0
    as_of_from: str = ""
    said: tuple[Said, ...] = ()


def _patient_keys(patient: Patient) -> Iterator[Key]:
    # A merged patient keeps its identifiers: messages for them still find whom it was merged into.
    for one in patient.identifiers:
        yield Key("identifier", f"{one.issuer}\0{one.value}", unique=True)
        yield Key("number", one.value)
    for one in patient.former:
        yield Key("former", f"{one.issuer}\0{one.value}")
        yield Key("number", one.value)
    if patient.state == ACTIVE:
        for name in (patient.name, *patient.other_names):
            for beginning in beginnings(name):
                yield Key("name", beginning)
        if patient.birth_day:
            yield Key("birth-day", patient.birth_day)
        if patient.visit.number:
            yield Key("visit", f"{patient.visit.issuer}\0{patient.visit.number}")
        if patient.provisional:
            yield Key("provisional", "")
    else:
        yield Key("merged-into", patient.merged_into)


PATIENT = Kind("patient", Patient, _patient_keys)


class Merge(Row, frozen=True):
    """That two records turned out to be one person: ``merged`` was merged into ``survivor``.

    ``corrections``: numbers of the archive's, by which its studies are shown under the survivor.
    """

    merged: str
    survivor: str
    at_ns: int
    sender: str
    actor: str
    reason: str = ""
    corrections: tuple[int, ...] = ()
    undone_ns: int = 0
    undone_by: str = ""


MERGE = Kind(
    "merge",
    Merge,
    lambda merge: [
        Key("merged", merge.merged, merge.at_ns // 1_000_000_000),
        Key("survivor", merge.survivor, merge.at_ns // 1_000_000_000),
    ],
)
