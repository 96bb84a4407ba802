"""Who patients are, shown in the archive: merges, new numbers and corrected names.

As IHE's Patient Information Reconciliation has it (RAD-TF 1:4, RAD-12), images show what is known of the
patient now; originals stay. Nothing is remembered of what was made: what the archive shows is compared with
what it should show, so an event that is told again, or half done before a crash, ends alike. Corrections are
made where there are images, and hold for those that come later under the same number.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final

from msgspec import structs

from hounsfield.archive.plugins import Change, View
from hounsfield.ris_plugin.acquisition.reconciling import demographics
from hounsfield.ris_plugin.actors import SYSTEM
from hounsfield.ris_plugin.context import Ris
from hounsfield.ris_plugin.errors import UnknownError
from hounsfield.ris_plugin.following import Consumer, Heeded
from hounsfield.ris_plugin.patients import family, resolve
from hounsfield.ris_plugin.records.orders import ORDER
from hounsfield.ris_plugin.records.patients import ACTIVE, MERGE, PATIENT, Patient

__all__ = ["consumers"]

MARK: Final = "[ris identity]"
"""By which a merge of ours is known: an administrator's stay as they are."""
STUDIES_MAX: Final = 1000
"""Of one patient's, looked at for what they show; corrections hold for all."""
Ref = tuple[str, str]
"""A patient of the archive: id and issuer, which may be empty."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What images under ``ref`` are to be shown as: another patient, or None where they are."""

    patient: str
    ref: Ref
    target: Ref | None


def consumers(ris: Ris) -> list[Consumer]:
    """Who shows in the archive what is known of patients."""
    return [
        Consumer(
            "identities",
            {"patient-changed", "patients-merged", "patients-unmerged", "study-matched"},
            _act,
            partial(_show, ris),
        )
    ]


async def _show(ris: Ris, event: Heeded) -> dict[str, tuple[int, ...]]:
    """Have the archive show what it should of whom an event tells; the corrections in force, by patient."""
    if event.body.get("registered"):
        return {}  # nothing was known of the patient before: nothing was corrected
    with ris.reading() as view:
        wanted, survivor, refs = _wanted(view, event)
    numbers: dict[str, tuple[int, ...]] = {}
    for one in wanted:
        number = await _merged(ris, one, survivor)
        if number:
            numbers[one.patient] = (*numbers.get(one.patient, ()), number)
        else:
            numbers.setdefault(one.patient, ())
    if survivor is not None:
        for ref in refs:
            await _named(ris, ref, survivor)
    return numbers


def _wanted(view: View, event: Heeded) -> tuple[list[Wanted], Patient | None, list[Ref]]:
    """For all that were merged with whom an event tells of; who that is now, and under which numbers."""
    named = [event.body[key] for key in ("patient", "survivor", "merged") if event.body.get(key)]
    order = view.get(ORDER, event.body["order"]) if event.body.get("order") else None
    named += [order.patient] if order is not None else []
    found: dict[str, Patient] = {}
    last: Patient | None = None
    refs: list[Ref] = []
    for one in named:
        try:
            who, last = resolve(view, one)
        except UnknownError:
            continue
        refs = [ref for ref in dict.fromkeys(_refs(last)) if _is_theirs(view, ref, who)]
        for relative in family(view, who):
            patient = view.get(PATIENT, relative)
            if patient is not None:
                found[relative] = patient
    return (
        [one for patient_id, patient in found.items() for one in _of_patient(view, patient_id, patient)],
        last,
        refs,
    )


def _of_patient(view: View, patient_id: str, patient: Patient) -> Iterator[Wanted]:
    _, who = resolve(view, patient_id)
    first = who.identifiers[0]

    def target(ref: Ref) -> Ref:
        return first.value, first.issuer if ref[1] else ""

    for ref in _refs(patient):
        if _is_theirs(view, ref, patient_id):
            yield Wanted(patient_id, ref, None if patient.state == ACTIVE else target(ref))
    for one in patient.former:
        for ref in ((one.value, one.issuer), (one.value, "")):
            if _is_theirs(view, ref, patient_id):
                yield Wanted(patient_id, ref, target(ref))


def _refs(patient: Patient) -> Iterator[Ref]:
    """What images may carry: a number with its issuer, and, as many devices have it, without."""
    for one in patient.identifiers:
        yield from dict.fromkeys(((one.value, one.issuer), (one.value, "")))


def _is_theirs(view: View, ref: Ref, patient_id: str) -> bool:
    """Whether a number is nobody else's, where images do not say who issued it."""
    if ref[1]:
        return True
    who = resolve(view, patient_id)[0]
    return all(
        resolve(view, one)[0] == who or one == patient_id for one in view.ids(PATIENT, "number", ref[0])
    )


async def _merged(ris: Ris, wanted: Wanted, survivor: Patient | None) -> int:
    """Have what is under one number shown under another, or under its own again; the correction's number."""
    rows = [row for row in await ris.archive.corrections(patient=wanted.ref) if row["kind"] == "merge"]
    for row in rows:
        if not row["reason"].endswith(MARK):
            return 0  # somebody's own decision
        if wanted.target is not None and tuple(row["to_patient"]) == wanted.target:
            return int(row["id"])
        await ris.archive.revert(row["id"], actor=SYSTEM.person, reason="the patients are not merged so now")
    if wanted.target is None or wanted.target == wanted.ref or survivor is None:
        return 0
    if not await _studies(ris, wanted.ref):
        return 0
    return await ris.archive.correct(
        "merge",
        actor=SYSTEM.person,
        reason=f"merged in the RIS {MARK}",
        patient=wanted.ref,
        to_patient=wanted.target,
        values=_known(survivor),
        even_if_unknown=True,
    )


async def _named(ris: Ris, ref: Ref, patient: Patient) -> None:
    """Have the images under a number show the patient's name, birthday and sex as they are known now."""
    wanted = _known(patient)
    differing: dict[str, str] = {}
    for row in await _studies(ris, ref):
        differing |= {key: text for key, text in wanted.items() if row.get(key, "") != text}
    if differing:
        await ris.archive.correct(
            "set-patient",
            actor=SYSTEM.person,
            reason=f"as it is known in the RIS {MARK}",
            patient=ref,
            values=differing,
        )


def _known(patient: Patient) -> dict[str, str]:
    return {key: text for key, text in demographics(patient).items() if text}


async def _studies(ris: Ris, ref: Ref) -> list[Mapping[str, str]]:
    """The studies that the archive shows under exactly this number."""
    asked = {"PatientID": ref[0], **({"IssuerOfPatientID": ref[1]} if ref[1] else {})}
    return [
        row
        for row in await ris.archive.search("study", asked, limit=STUDIES_MAX)
        if (row.get("PatientID", ""), row.get("IssuerOfPatientID", "")) == ref
    ]


def _act(change: Change, event: Heeded, numbers: Mapping[str, Iterable[int]]) -> None:
    """Note with each merge by which corrections it is shown."""
    del event
    for patient_id, of in numbers.items():
        for merge_id, made in list(change.find(MERGE, "merged", patient_id)):
            corrections = () if made.undone_ns else tuple(of)
            if corrections != made.corrections:
                change.put(MERGE, merge_id, structs.replace(made, corrections=corrections))
