"""The orders that a study may belong to, the likeliest first: what somebody is shown who has to say."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from hounsfield.archive.plugins import View
from hounsfield.ris_plugin.acquisition.matching import NEAR_NS, Arrived, has_images, is_near
from hounsfield.ris_plugin.patients import family, resolve, search
from hounsfield.ris_plugin.records.base import folded, seconds
from hounsfield.ris_plugin.records.orders import OPEN_STATES, ORDER, Order
from hounsfield.ris_plugin.records.patients import PATIENT, Patient
from hounsfield.ris_plugin.records.performed import Suggestion
from hounsfield.ris_plugin.records.schedule import STEP

__all__ = ["suggestions"]

SUGGESTIONS_MAX: Final = 10
CANDIDATES_MAX: Final = 200
"""Orders that one study is compared with: those of a busy day on all devices of a kind."""


def suggestions(view: View, study: Arrived) -> list[Suggestion]:
    """The orders that a study may belong to, the likeliest first."""
    found = []
    for order_id, order in _candidates(view, study).items():
        if has_images(view, order.study_uid) and order.study_uid != study.study_uid:
            continue
        score, because = _likeness(view, study, order_id, order)
        if score > 0:
            found.append(Suggestion(order=order_id, score=score, because=tuple(because)))
    found.sort(key=lambda one: (-one.score, one.order))
    return found[:SUGGESTIONS_MAX]


def _candidates(view: View, study: Arrived) -> dict[str, Order]:
    """Orders that share something with a study."""
    found: dict[str, Order] = {}

    def add(of: Iterator[tuple[str, Order]]) -> None:
        for order_id, order in of:
            if len(found) >= CANDIDATES_MAX:
                return
            if order.state in OPEN_STATES or order.state == "completed":
                found[order_id] = order

    for lookup, text in (("study", study.study_uid), ("accession", study.accession)):
        if text:
            add(view.find(ORDER, lookup, text))
    people = set(view.ids(PATIENT, "number", study.patient_id, limit=20)) if study.patient_id else set()
    if study.name:
        people |= {key for key, _ in search(view, name=study.name, limit=20)}
        surname = study.name.partition("^")[0]
        people |= {key for key, _ in search(view, name=surname, limit=50)} if surname.strip() else set()
    for one in sorted(people):
        for relative in family(view, resolve(view, one)[0]):
            add(view.find(ORDER, "patient", relative))
    if study.study_ns:
        low, high = seconds(study.study_ns - NEAR_NS), seconds(study.study_ns + NEAR_NS)
        for _, step in view.find(
            STEP, "worklist-modality", study.modality, at_least=low, at_most=high, limit=CANDIDATES_MAX
        ):
            order = view.get(ORDER, step.order)
            if order is not None:
                add(iter([(step.order, order)]))
    return found


def _likeness(view: View, study: Arrived, order_id: str, order: Order) -> tuple[int, list[str]]:
    score, because = 0, []

    def says(points: int, why: str) -> None:
        nonlocal score
        score += points
        because.append(why)

    if study.study_uid == order.study_uid:
        says(100, "study")
    if study.accession and study.accession == order.accession:
        says(60, "accession")
    elif study.accession and _one_apart(study.accession, order.accession):
        says(25, "accession-nearly")
    _, patient = resolve(view, order.patient)
    numbers = {one.value for one in patient.identifiers}
    if study.patient_id in numbers:
        says(50, "patient-id")
    elif study.patient_id and any(_one_apart(study.patient_id, one) for one in numbers):
        says(20, "patient-id-nearly")
    _compare_people(study, patient, says)
    if not because:
        return 0, []  # the same hour on the same device is nothing by itself, for every order of the morning
    if study.modality and study.modality == order.modality:
        says(10, "modality")
    if study.study_ns and is_near(view, order_id, order, study.study_ns):
        says(10, "time")
    if order.body_part and folded(order.body_part) in folded(study.description):
        says(5, "body-part")
    return score, because


def _compare_people(study: Arrived, patient: Patient, says: Any) -> None:
    wanted = set(folded(study.name.replace("^", " ")).split())
    for name in (patient.name, *patient.other_names):
        words = set(folded(name.replace("^", " ")).split())
        if wanted and wanted == words:
            says(30, "name")
            break
        if len(wanted & words) >= 1 and max(map(len, wanted & words)) > 2:
            says(12, "name-partly")
            break
    if study.birth_day and study.birth_day == patient.birth_day:
        says(15, "birth-day")
    if study.sex and study.sex == patient.sex and wanted:
        says(1, "sex")


def _one_apart(one: str, other: str) -> bool:
    """Whether one character was mistyped, left out, added, or two neighbours changed places."""
    if one == other or abs(len(one) - len(other)) > 1 or min(len(one), len(other)) < 4:
        return False
    start = 0
    while start < min(len(one), len(other)) and one[start] == other[start]:
        start += 1
    a, b = one[start:], other[start:]
    return a[1:] == b[1:] or a[1:] == b or a == b[1:] or (a[:2] == b[1::-1] and a[2:] == b[2:])
