"""Reconciliation: a study that came is matched to its order, or put up for somebody to say where it belongs.

Nothing is refused and nothing is changed by itself: a study whose patient or order does not fit is stored as
every other, and stands in a list with the orders that it may belong to, the likeliest first. A choice
becomes corrections of the archive, shown and delivered while the originals stay, and can be taken back.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from msgspec import structs

from hounsfield.archive.plugins import Change, View
from hounsfield.ris_plugin import orders as ordering
from hounsfield.ris_plugin import reporting, tracking
from hounsfield.ris_plugin.actors import SYSTEM, Actor, Role
from hounsfield.ris_plugin.errors import InvalidError, NotNowError, UnknownError
from hounsfield.ris_plugin.patients import by_identifier, family, of_patient, resolve, search
from hounsfield.ris_plugin.records.base import NS, folded, seconds
from hounsfield.ris_plugin.records.orders import OPEN_STATES, ORDER, Order
from hounsfield.ris_plugin.records.patients import PATIENT, Patient
from hounsfield.ris_plugin.records.performed import MISMATCH, TRACKED, Mismatch, Suggestion
from hounsfield.ris_plugin.records.schedule import STEP

__all__ = [
    "Arrived",
    "Fix",
    "arrived",
    "demographics",
    "dismiss",
    "doubt",
    "fix",
    "fixed",
    "gone",
    "look_again",
    "mismatch_of",
    "open_mismatches",
    "refused",
    "undo",
    "undone",
    "wanted",
    "who_has",
]

_WHO: Final = (Role.CLERK, Role.TECHNOLOGIST, Role.RADIOLOGIST, Role.ADMINISTRATOR)
NEAR_NS: Final = 12 * 3600 * NS
"""A study so long before or after its appointment is still of it: lists are moved by half a day, not two."""
SUGGESTIONS_MAX: Final = 10
DOUBTED: Final = frozenset({"doubted", "wrong-worklist-entry"})
"""Why a study that fits an order is in the list: somebody, or the modality, says that it is another's."""
CANDIDATES_MAX: Final = 200
"""Orders that one study is compared with: those of a busy day on all devices of a kind."""


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


@dataclass(frozen=True, slots=True)
class Fix:
    """What the archive has to be asked for so that a study is shown as its order's: corrections, in order."""

    mismatch: str
    order: str
    reason: str
    corrections: tuple[Mapping[str, Any], ...] = field(default=())


# ---------------------------------------------------------------- matching


def arrived(change: Change, study: Arrived, *, issuer: str = "") -> str:
    """Match a study to its order; the order's id, "" when it stands in the list of mismatches now.

    ``issuer``: of patient ids that name none. By the study's UID, the accession number, then the patient and
    the time. Called again when more of it comes: what somebody fixed or dismissed stays so.
    """
    known = mismatch_of(change, study.study_uid)
    if known is not None and known[1].state not in ("open", "gone"):
        return known[1].order if known[1].state == "fixed" else ""
    order_id, why = _order_of(change, study, issuer)
    if known is not None and known[1].state == "open" and known[1].why in DOUBTED:
        why = known[1].why
    if order_id and not why:
        order = ordering.get(change, order_id)
        if order.study_uid != study.study_uid:
            _adopt(change, order_id, order, study.study_uid)
        if known is not None:
            ended = structs.replace(known[1], state="gone", order=order_id, ended_ns=change.now_ns)
            change.put(MISMATCH, known[0], ended)
        tracked = tracking.of_study(change, study.study_uid)
        if tracked is None or tracked[1].order != order_id or not tracked[1].stored or known is not None:
            tracking.expect(change, order_id, ordering.get(change, order_id))
            change.say("study-matched", {"study": study.study_uid, "order": order_id, "actor": SYSTEM.person})
        return order_id
    mismatch = Mismatch(
        study_uid=study.study_uid,
        state="open",
        why=why or "no-order",
        at_ns=known[1].at_ns if known is not None else change.now_ns,
        patient_id=study.patient_id,
        issuer=study.issuer,
        name=study.name,
        birth_day=study.birth_day,
        sex=study.sex,
        accession=study.accession,
        modality=study.modality,
        study_ns=study.study_ns,
        suggestions=tuple(suggestions(change, study)),
        by=known[1].by if known is not None else "",
        error=known[1].error if known is not None else "",
    )
    if known is None or known[1] != mismatch:
        change.put(MISMATCH, known[0] if known is not None else change.new_id(), mismatch)
    if known is None or known[1].state != "open":
        change.say(
            "study-mismatched", {"study": study.study_uid, "why": mismatch.why, "actor": SYSTEM.person}
        )
    return ""


def _order_of(view: View, study: Arrived, issuer: str) -> tuple[str, str]:
    """The order that a study names or fits, and why it cannot be taken for its own, "" when it can."""
    named = view.first(ORDER, "study", study.study_uid)
    if named is None and study.accession:
        named = view.first(ORDER, "accession", study.accession)
    if named is not None:
        order_id, order = named
        if order.study_uid != study.study_uid and _has_images(view, order.study_uid):
            return (
                order_id,
                "other-study",
            )  # of the same accession number: its images are here under another UID
        return order_id, "" if _is_of(view, study, order, issuer) else "other-patient"
    found = who_has(view, study.patient_id, study.issuer, issuer)
    if found is None:
        return "", "unknown-patient"
    fitting = [
        order_id
        for order_id, order in of_patient(view, ORDER, found[0])
        if order.state in OPEN_STATES
        and order.modality == study.modality
        and not _has_images(view, order.study_uid)
        and _is_near(view, order_id, order, study.study_ns)
    ]
    if len(fitting) == 1 and not study.accession:
        return fitting[0], ""
    return "", "unknown-accession" if study.accession else ("several-orders" if fitting else "no-order")


def _is_of(view: View, study: Arrived, order: Order, issuer: str) -> bool:
    """Whether a study's patient is the order's: by the number, or by name and birthday where it has none."""
    who, patient = resolve(view, order.patient)
    if study.patient_id:
        found = who_has(view, study.patient_id, study.issuer, issuer)
        return found is not None and found[0] == who and not _is_somebody_else(study, patient)
    return (
        bool(study.name)
        and folded(study.name) == folded(patient.name)
        and study.birth_day == patient.birth_day
    )


def _is_somebody_else(study: Arrived, patient: Patient) -> bool:
    """Whether nothing but the number is the patient's: it was mistyped, and happens to be another one's."""
    words = set(folded(study.name.replace("^", " ").replace("=", " ")).split())
    names = (patient.name, *patient.other_names)
    known = {word for name in names for word in folded(name.replace("^", " ").replace("=", " ")).split()}
    return (
        bool(words and known and study.birth_day and patient.birth_day)
        and not patient.provisional
        and not words & known
        and study.birth_day != patient.birth_day
    )


def _is_near(view: View, order_id: str, order: Order, study_ns: int) -> bool:
    times = [step.from_ns for _, step in view.find(STEP, "order", order_id) if step.state != "withdrawn"]
    times = times or [order.wanted_ns or order.placed_ns]
    return not study_ns or any(abs(study_ns - one) <= NEAR_NS for one in times)


def _has_images(view: View, study_uid: str) -> bool:
    tracked = tracking.of_study(view, study_uid)
    return tracked is not None and tracked[1].stored > 0


def _adopt(change: Change, order_id: str, order: Order, study_uid: str) -> None:
    """The images came under another Study Instance UID than was planned: that is the order's from now on."""
    named = change.first(ORDER, "study", study_uid)
    if named is not None and named[0] != order_id:
        _part(change, named[0], study_uid)
    planned = tracking.of_study(change, order.study_uid)
    if planned is not None:
        change.delete(TRACKED, planned[0])
    change.put(ORDER, order_id, structs.replace(order, study_uid=study_uid))
    for step_id, step in list(change.find(STEP, "order", order_id)):
        change.put(STEP, step_id, structs.replace(step, study_uid=study_uid))


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


def gone(change: Change, study_uid: str) -> None:
    """Nothing of a study is in the archive any more: nobody has to say where it belongs."""
    known = mismatch_of(change, study_uid)
    if known is not None and known[1].state == "open":
        change.put(MISMATCH, known[0], structs.replace(known[1], state="gone", ended_ns=change.now_ns))


def _had(view: View, number: str, issuer: str) -> tuple[str, Patient] | None:
    """Who had a number before it was replaced: images come under it until devices have heard."""
    found = view.first(PATIENT, "former", f"{issuer}\0{number}")
    return None if found is None else resolve(view, found[0])


def look_again(change: Change, *, issuer: str = "", **by: str) -> None:
    """An order or a patient came, or changed, after the images: they may fit now. ``by``: a study's UID, an
    ``accession`` number, a ``number`` of a patient."""
    for lookup, text in by.items():
        for _, one in list(change.find(MISMATCH, lookup, text, limit=SUGGESTIONS_MAX)) if text else ():
            if one.state == "open":
                arrived(change, _came(one), issuer=issuer)


def _came(one: Mismatch) -> Arrived:
    return Arrived(
        **{name: getattr(one, name) for name in Arrived.__dataclass_fields__ if name != "description"}
    )


# ---------------------------------------------------------------- suggesting


def suggestions(view: View, study: Arrived) -> list[Suggestion]:
    """The orders that a study may belong to, the likeliest first."""
    found = []
    for order_id, order in _candidates(view, study).items():
        if _has_images(view, order.study_uid) and order.study_uid != study.study_uid:
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
    if study.study_ns and _is_near(view, order_id, order, study.study_ns):
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


# ---------------------------------------------------------------- deciding


def mismatch_of(view: View, study_uid: str) -> tuple[str, Mismatch] | None:
    """The last mismatch of a study."""
    return next(view.find(MISMATCH, "study", study_uid, reverse=True, limit=1), None)


def open_mismatches(view: View, limit: int = 100) -> list[tuple[str, Mismatch]]:
    """What somebody has to look at, the oldest first."""
    return list(view.find(MISMATCH, "state", "open", limit=limit))


def fix(change: Change, actor: Actor, mismatch_id: str, order_id: str, *, reason: str = "") -> Fix:
    """Say that a study belongs to an order. What the archive has to be asked for; :func:`fixed` when it was.

    Until then it is ``fixing``, and whoever leads asks again after a crash.
    """
    actor.require(*_WHO, what="fixing a mismatch")
    mismatch = _get(change, mismatch_id)
    if mismatch.state not in ("open", "fixing"):
        raise NotNowError(f"the mismatch is {mismatch.state} already")
    order = ordering.get(change, order_id)
    if order.study_uid != mismatch.study_uid and _has_images(change, order.study_uid):
        raise NotNowError("the order has images of its own already: merge the studies in the archive")
    if mismatch.state == "fixing" and mismatch.order != order_id:
        raise NotNowError("the study is being fixed to another order: take that back when it is done")
    fixing = structs.replace(
        mismatch,
        state="fixing",
        order=order_id,
        by=actor.person,
        reason=reason.strip() or mismatch.reason or f"reconciled with order {order.accession}",
        error="",
    )
    if fixing != mismatch:
        change.put(MISMATCH, mismatch_id, fixing)
        change.say(
            "study-fixing", {"mismatch": mismatch_id, "study": mismatch.study_uid, "actor": actor.person}
        )
    return wanted(change, mismatch_id)


def wanted(view: View, mismatch_id: str) -> Fix:
    """What the archive has to be asked for so that a study that is being fixed is shown as its order's.

    Who the patient is is said as the study said it: with the issuer of the number, or without.
    """
    mismatch = _get(view, mismatch_id)
    order = ordering.get(view, mismatch.order)
    _, patient = resolve(view, order.patient)
    first = patient.identifiers[0]
    target = (first.value, first.issuer if mismatch.issuer else "")
    corrections: list[Mapping[str, Any]] = []
    if (mismatch.patient_id, mismatch.issuer) != target:
        corrections.append(
            {
                "kind": "move-study",
                "study": mismatch.study_uid,
                "to_patient": target,
                "even_if_unknown": True,
                "values": demographics(patient),
            }
        )
    if mismatch.accession != order.accession:
        values = {"AccessionNumber": order.accession}
        corrections.append({"kind": "set-study", "study": mismatch.study_uid, "values": values})
    return Fix(mismatch_id, mismatch.order, mismatch.reason, tuple(corrections))


def fixed(change: Change, mismatch_id: str, corrections: tuple[int, ...]) -> None:
    """The archive shows a study as its order's now, by these corrections."""
    mismatch = _get(change, mismatch_id)
    if mismatch.state != "fixing":
        return
    order = ordering.get(change, mismatch.order)
    if order.study_uid != mismatch.study_uid and _has_images(change, order.study_uid):
        # They came meanwhile: the corrections are taken back.
        late = structs.replace(
            mismatch,
            state="undoing",
            corrections=corrections,
            error="the order has got images of its own meanwhile",
        )
        change.put(MISMATCH, mismatch_id, late)
        change.say(
            "study-undoing", {"mismatch": mismatch_id, "study": mismatch.study_uid, "actor": mismatch.by}
        )
        return
    if order.study_uid != mismatch.study_uid:
        _adopt(change, mismatch.order, order, mismatch.study_uid)
    ended = structs.replace(mismatch, state="fixed", corrections=corrections, ended_ns=change.now_ns)
    change.put(MISMATCH, mismatch_id, ended)
    tracking.expect(change, mismatch.order, ordering.get(change, mismatch.order))
    change.say("study-matched", {"study": mismatch.study_uid, "order": mismatch.order, "actor": mismatch.by})


def refused(change: Change, mismatch_id: str, why: str) -> None:
    """The archive does not take what a fix asks for: the study stands in the list again, with the reason."""
    mismatch = _get(change, mismatch_id)
    if mismatch.state == "fixing":
        change.put(MISMATCH, mismatch_id, structs.replace(mismatch, state="open", order="", error=why))
        change.say("study-mismatched", {"study": mismatch.study_uid, "why": "refused", "actor": mismatch.by})


def doubt(change: Change, actor: Actor, study_uid: str, *, why: str = "doubted") -> str:
    """Put a study up although it was matched: the wrong entry of the worklist was chosen; the mismatch's id.

    Its order has no images any more, and may be done again.
    """
    actor.require(*_WHO, Role.SYSTEM, what="doubting where a study belongs")
    if why not in DOUBTED:
        raise InvalidError(f"why is one of {', '.join(sorted(DOUBTED))}", "why")
    tracked = tracking.of_study(change, study_uid)
    if tracked is None:
        raise UnknownError("no such study is tracked")
    known = mismatch_of(change, study_uid)
    if known is not None and known[1].state not in ("gone", "dismissed"):
        if known[1].state == "open":
            return known[0]
        raise NotNowError(f"the study is {known[1].state} by a fix: take that back first")
    order = change.get(ORDER, tracked[1].order) if tracked[1].order else None
    if reporting.was_given_out(change, study_uid):
        raise NotNowError("a report of the study was given out: correct that first")
    mismatch_id = known[0] if known is not None else change.new_id()
    mismatch = Mismatch(
        study_uid=study_uid,
        state="open",
        why=why,
        at_ns=change.now_ns,
        accession=order.accession if order is not None else "",
        modality=tracked[1].modality,
        by=actor.person,
    )
    change.put(MISMATCH, mismatch_id, mismatch)
    _part(change, tracked[1].order, study_uid)
    change.say("study-mismatched", {"study": study_uid, "why": why, "actor": actor.person})
    return mismatch_id


def undo(change: Change, actor: Actor, mismatch_id: str) -> tuple[int, ...]:
    """Take a fix back; what corrections the archive has to revert, last one first. Then :func:`undone`."""
    actor.require(*_WHO, what="taking a fix back")
    mismatch = _get(change, mismatch_id)
    if mismatch.state not in ("fixed", "undoing"):
        raise NotNowError(f"the mismatch is {mismatch.state}, not fixed")
    if reporting.was_given_out(change, mismatch.study_uid):
        raise NotNowError("a report of the study was given out: correct that first")
    if mismatch.state != "undoing":
        change.put(MISMATCH, mismatch_id, structs.replace(mismatch, state="undoing", by=actor.person))
        change.say(
            "study-undoing", {"mismatch": mismatch_id, "study": mismatch.study_uid, "actor": actor.person}
        )
    return mismatch.corrections[::-1]


def undone(change: Change, mismatch_id: str) -> None:
    """The archive shows a study as it came again: it stands in the list."""
    mismatch = _get(change, mismatch_id)
    if mismatch.state != "undoing":
        return
    _part(change, mismatch.order, mismatch.study_uid)
    opened = structs.replace(mismatch, state="open", order="", corrections=(), ended_ns=0, reason="")
    change.put(MISMATCH, mismatch_id, opened)
    change.say("study-mismatched", {"study": mismatch.study_uid, "why": "undone", "actor": mismatch.by})


def _loosen(change: Change, study_uid: str) -> None:
    """What came under a planned UID is not that order's: the order waits for its own images."""
    tracked = tracking.of_study(change, study_uid)
    if tracked is not None and tracked[1].order and not reporting.was_given_out(change, study_uid):
        _part(change, tracked[1].order, study_uid)


def _part(change: Change, order_id: str, study_uid: str) -> None:
    """A study is not an order's any more; a report of it that nobody has signed is not either."""
    tracked = tracking.of_study(change, study_uid)
    order = change.get(ORDER, order_id) if order_id else None
    if order is not None and order.study_uid == study_uid:
        # Its planned study is gone: a new one, under which its own images may still come (PS3.5 B.2).
        planned = f"2.25.{int(change.new_id(), 16)}"
        change.put(ORDER, order_id, structs.replace(order, study_uid=planned))
        for step_id, step in list(change.find(STEP, "order", order_id)):
            change.put(STEP, step_id, structs.replace(step, study_uid=planned))
    reporting.take_back(change, study_uid)
    if tracked is not None:
        loose = structs.replace(tracked[1], order="", patient="", accession="")
        change.put(TRACKED, tracked[0], loose)


def dismiss(change: Change, actor: Actor, mismatch_id: str) -> None:
    """Say that a study belongs to no order of ours: a film brought along, a phantom."""
    actor.require(*_WHO, what="dismissing a mismatch")
    mismatch = _get(change, mismatch_id)
    if mismatch.state != "open":
        raise NotNowError(f"the mismatch is {mismatch.state}")
    _loosen(change, mismatch.study_uid)
    change.put(
        MISMATCH,
        mismatch_id,
        structs.replace(mismatch, state="dismissed", by=actor.person, ended_ns=change.now_ns),
    )
    change.say("study-dismissed", {"study": mismatch.study_uid, "actor": actor.person})


def _get(view: View, mismatch_id: str) -> Mismatch:
    mismatch = view.get(MISMATCH, mismatch_id)
    if mismatch is None:
        raise UnknownError("there is no such mismatch")
    return mismatch


def demographics(patient: Patient) -> dict[str, str]:
    """What images say of a patient, by keyword."""
    return {
        "PatientName": patient.name,
        "PatientBirthDate": patient.birth_day,
        "PatientSex": patient.sex,
    }
