"""Whose a study is that came: by its UID, accession number, what its modality said, patient and time."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from msgspec import structs

from hounsfield.archive.plugins import View
from hounsfield.ris_plugin import orders as ordering
from hounsfield.ris_plugin import tracking
from hounsfield.ris_plugin.patients import by_identifier, family, of_patient, resolve
from hounsfield.ris_plugin.records.base import NS, folded
from hounsfield.ris_plugin.records.orders import OPEN_STATES, ORDER, Order
from hounsfield.ris_plugin.records.patients import PATIENT, Patient
from hounsfield.ris_plugin.records.performed import PERFORMED, Named
from hounsfield.ris_plugin.records.schedule import STEP

__all__ = ["NEAR_NS", "Arrived", "has_images", "is_near", "order_of", "who_has"]

NEAR_NS: Final = 12 * 3600 * NS
"""A study so long before or after its appointment is still of it: lists are moved by half a day, not two."""


@dataclass(frozen=True, slots=True)
class Arrived:
    """What the archive says of a study that came: its attributes as received."""

    study_uid: str
    patient_id: str = ""
    issuer: str = ""
    name: str = ""
    birth_day: str = ""
    sex: str = ""
    accession: str = ""
    modality: str = ""
    description: str = ""
    study_ns: int = 0
    others: tuple[Named, ...] = ()
    """Whom its objects name, where they do not agree."""


def order_of(view: View, study: Arrived, issuer: str) -> tuple[str, str]:
    """The order that a study names or fits, and why it cannot be taken for its own, "" when it can."""
    named = view.first(ORDER, "study", study.study_uid)
    if named is None and study.accession:
        named = view.first(ORDER, "accession", study.accession)
    if named is None:
        named = _performed_for(view, study.study_uid)
    if named is not None:
        order_id, order = named
        if order.study_uid != study.study_uid and has_images(view, order.study_uid):
            return (
                order_id,
                "other-study",
            )  # of the same accession number: its images are here under another UID
        return order_id, _why_not(view, study, order, issuer)
    found = who_has(view, study.patient_id, study.issuer, issuer)
    if found is None:
        return "", "unknown-patient"
    fitting = [
        order_id
        for order_id, order in of_patient(view, ORDER, found[0])
        if order.state in OPEN_STATES
        and order.modality == study.modality
        and not has_images(view, order.study_uid)
        and is_near(view, order_id, order, study.study_ns)
    ]
    if len(fitting) == 1 and not study.accession:
        return fitting[0], _why_not(view, study, ordering.get(view, fitting[0]), issuer)
    return "", "unknown-accession" if study.accession else ("several-orders" if fitting else "no-order")


def _performed_for(view: View, study_uid: str) -> tuple[str, Order] | None:
    """The order for which a modality said that it performs this study: several that are done together may
    have a Study Instance UID of the modality's own, and no accession number (IHE RAD-TF 2:4.6.4.1.2.3.4)."""
    for _, one in view.find(PERFORMED, "study", study_uid):
        for order_id in one.orders:
            order = view.get(ORDER, order_id)
            if order is not None:
                return order_id, order
    return None


def _why_not(view: View, study: Arrived, order: Order, issuer: str) -> str:
    """Why a study cannot be taken for an order's, "" when it can: it, or one object in it, is of another
    patient."""
    if not _is_of(view, study, order, issuer):
        return "other-patient"
    for other in study.others:
        of_other = replace(study, **structs.asdict(other), others=())
        if not _is_of(view, of_other, order, issuer):
            return "two-patients"
    return ""


def _is_of(view: View, study: Arrived, order: Order, issuer: str) -> bool:
    """Whether a study's patient is the order's: by the number, or by name and birthday where it has none."""
    who, patient = resolve(view, order.patient)
    if study.patient_id:
        found = who_has(view, study.patient_id, study.issuer, issuer)
        if found is None or found[0] != who:
            return False
        people = [view.get(PATIENT, one) for one in family(view, who)]  # images come under old names, too
        return any(one is not None and not _is_somebody_else(study, one) for one in people)
    return (
        bool(study.name)
        and folded(study.name) == folded(patient.name)
        and study.birth_day == patient.birth_day
    )


def _is_somebody_else(study: Arrived, patient: Patient) -> bool:
    """Whether little but the number is the patient's: it was mistyped, and happens to be another one's.

    Nothing of the name, and not the birthday either; or one of the family, of another age or sex: a sister's
    entry is next to hers on a list. Who married, or is written otherwise, keeps a given name and a birthday.
    """
    said = _words(study.name)
    known = {word for name in (patient.name, *patient.other_names) for word in _words(name)}
    if (patient.provisional and not patient.merged_into) or not said or not known:
        return False
    both_born = bool(study.birth_day and patient.birth_day)
    if not said & known:
        return not (both_born and study.birth_day == patient.birth_day)
    given = _words("^".join(group.partition("^")[2] for group in study.name.split("=")))
    if not given or any(one.startswith(word) or word.startswith(one) for one in given for word in known):
        return False
    of_other_sex = {study.sex, patient.sex} == {"F", "M"}
    return of_other_sex or (both_born and study.birth_day != patient.birth_day)


def _words(name: str) -> set[str]:
    return set(folded(name.replace("^", " ").replace("=", " ")).split())


def is_near(view: View, order_id: str, order: Order, study_ns: int) -> bool:
    times = [step.from_ns for _, step in view.find(STEP, "order", order_id) if step.state != "withdrawn"]
    times = times or [order.wanted_ns or order.placed_ns]
    return not study_ns or any(abs(study_ns - one) <= NEAR_NS for one in times)


def has_images(view: View, study_uid: str) -> bool:
    tracked = tracking.of_study(view, study_uid)
    return tracked is not None and tracked[1].stored > 0


def who_has(view: View, number: str, issuer: str, ours: str = "") -> tuple[str, Patient] | None:
    """Who images mean by a number, and whom that patient was merged into. Few devices say who issued it:
    then ``ours``, or the one patient who has such a number."""
    if not number:
        return None
    if issuer:
        return by_identifier(view, number, issuer) or _had(view, number, issuer)
    found = by_identifier(view, number, ours) or _had(view, number, ours)
    if found is None:
        people = {resolve(view, one)[0] for one in view.ids(PATIENT, "number", number, limit=20)}
        found = resolve(view, people.pop()) if len(people) == 1 else None
    return found


def _had(view: View, number: str, issuer: str) -> tuple[str, Patient] | None:
    """Who had a number before it was replaced: images come under it until devices have heard."""
    found = view.first(PATIENT, "former", f"{issuer}\0{number}")
    return None if found is None else resolve(view, found[0])
