"""Reconciliation: a study that came is matched to its order, or put up for somebody to say where it belongs.

Nothing is refused and nothing is changed by itself: a study whose patient or order does not fit is stored as
every other, and stands in a list with the orders that it may belong to, the likeliest first. A choice
becomes corrections of the archive, shown and delivered while the originals stay, and can be taken back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from msgspec import structs

from hounsfield.archive.plugins import Change, View
from hounsfield.ris_plugin import orders as ordering
from hounsfield.ris_plugin import tracking
from hounsfield.ris_plugin.acquisition.belonging import adopt, belongs, part
from hounsfield.ris_plugin.acquisition.matching import Arrived, has_images, order_of
from hounsfield.ris_plugin.acquisition.suggesting import suggestions
from hounsfield.ris_plugin.actors import SYSTEM, Actor, Role
from hounsfield.ris_plugin.errors import InvalidError, NotNowError, UnknownError
from hounsfield.ris_plugin.patients import resolve
from hounsfield.ris_plugin.reading import reporting
from hounsfield.ris_plugin.records.base import NS
from hounsfield.ris_plugin.records.orders import ORDER
from hounsfield.ris_plugin.records.patients import Patient
from hounsfield.ris_plugin.records.performed import MISMATCH, PERFORMED, Mismatch

__all__ = [
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
]

_WHO: Final = (Role.CLERK, Role.TECHNOLOGIST, Role.RADIOLOGIST, Role.ADMINISTRATOR)
LOOKED_AT_AGAIN_MAX: Final = 10
"""Mismatches of one number: more is a number that says nothing."""
FITTING_NOTHING: Final = frozenset({"unknown-patient", "unknown-accession", "no-order"})
"""Why an old study is a prior from elsewhere; one that names an order of ours, or fits two, is a mistake."""
DOUBTED: Final = frozenset({"doubted", "wrong-worklist-entry"})
"""Why a study that fits an order is in the list: somebody, or the modality, says that it is another's."""


@dataclass(frozen=True, slots=True)
class Fix:
    """What the archive has to be asked for so that a study is shown as its order's: corrections, in order."""

    mismatch: str
    order: str
    reason: str
    corrections: tuple[Mapping[str, Any], ...] = field(default=())


# ---------------------------------------------------------------- what comes


def arrived(change: Change, study: Arrived, *, issuer: str = "", prior_days: int = 0) -> str:
    """Match a study to its order; the order's id, "" when it stands in the list of mismatches now.

    ``issuer``: of patient ids that name none. ``prior_days``: what is so old and fits nothing is a prior from
    elsewhere, which nobody has to look at; 0: never. By the study's UID, the accession number, then the
    patient and the time. Called again when more of it comes: what somebody fixed or dismissed stays so.
    """
    known = mismatch_of(change, study.study_uid)
    if known is not None and known[1].state not in ("open", "gone", "prior"):
        return known[1].order if known[1].state == "fixed" else ""
    order_id, why = order_of(change, study, issuer)
    if known is not None and known[1].state == "open" and known[1].why in DOUBTED:
        why = known[1].why
    if order_id and not why:
        order = ordering.get(change, order_id)
        if order.study_uid != study.study_uid:
            adopt(change, order_id, order, study.study_uid)
        if known is not None:
            ended = structs.replace(known[1], state="gone", order=order_id, ended_ns=change.now_ns)
            change.put(MISMATCH, known[0], ended)
        tracked = tracking.of_study(change, study.study_uid)
        if tracked is None or tracked[1].order != order_id or not tracked[1].stored or known is not None:
            belongs(change, order_id, study.study_uid)
            change.say("study-matched", {"study": study.study_uid, "order": order_id, "actor": SYSTEM.person})
        return order_id
    is_prior = why in FITTING_NOTHING and _is_old(change, study, prior_days)
    mismatch = Mismatch(
        study_uid=study.study_uid,
        state="prior" if is_prior else "open",
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
        others=study.others,
    )
    if known is None or known[1] != mismatch:
        change.put(MISMATCH, known[0] if known is not None else change.new_id(), mismatch)
    if known is None or known[1].state != mismatch.state:
        _off_the_list(change, study.study_uid)
        event = "study-is-prior" if is_prior else "study-mismatched"
        change.say(event, {"study": study.study_uid, "why": mismatch.why, "actor": SYSTEM.person})
    return ""


def _is_old(view: Change, study: Arrived, prior_days: int) -> bool:
    """Whether a study was made so long ago, and by no modality that told us of it."""
    made_ns, days_ns = study.study_ns, prior_days * 86_400 * NS
    old = bool(prior_days and made_ns) and view.now_ns - made_ns > days_ns
    return old and view.first(PERFORMED, "study", study.study_uid) is None


def _off_the_list(change: Change, study_uid: str) -> None:
    """Nobody begins to read what is in doubt. Who has begun is not interrupted: that would lose what was
    dictated, and the list of mismatches has it."""
    held = reporting.of_study(change, study_uid)
    if held is not None and held[1].state == "unassigned":
        reporting.take_back(change, study_uid)


def gone(change: Change, study_uid: str) -> None:
    """Nothing of a study is in the archive any more: nobody has to say where it belongs."""
    known = mismatch_of(change, study_uid)
    if known is not None and known[1].state in ("open", "prior"):
        change.put(MISMATCH, known[0], structs.replace(known[1], state="gone", ended_ns=change.now_ns))


def look_again(change: Change, *, issuer: str = "", prior_days: int = 0, **by: str) -> None:
    """An order or a patient came, or changed, after the images: they may fit now. ``by``: a study's UID, an
    ``accession`` number, a ``number`` of a patient."""
    for lookup, text in by.items():
        for _, one in list(change.find(MISMATCH, lookup, text, limit=LOOKED_AT_AGAIN_MAX)) if text else ():
            if one.state in ("open", "prior"):
                arrived(change, _came(one), issuer=issuer, prior_days=prior_days)


def _came(one: Mismatch) -> Arrived:
    return Arrived(
        **{name: getattr(one, name) for name in Arrived.__dataclass_fields__ if name != "description"}
    )


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
    if mismatch.state not in ("open", "prior", "fixing"):
        raise NotNowError(f"the mismatch is {mismatch.state} already")
    order = ordering.get(change, order_id)
    if order.study_uid != mismatch.study_uid and has_images(change, order.study_uid):
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
    if (mismatch.patient_id, mismatch.issuer) != target or mismatch.others:
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
    if order.study_uid != mismatch.study_uid and has_images(change, order.study_uid):
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
        adopt(change, mismatch.order, order, mismatch.study_uid)
    ended = structs.replace(mismatch, state="fixed", corrections=corrections, ended_ns=change.now_ns)
    change.put(MISMATCH, mismatch_id, ended)
    belongs(change, mismatch.order, mismatch.study_uid)
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
    if known is not None and known[1].state not in ("gone", "dismissed", "prior"):
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
    part(change, tracked[1].order, study_uid)
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
    part(change, mismatch.order, mismatch.study_uid)
    opened = structs.replace(mismatch, state="open", order="", corrections=(), ended_ns=0, reason="")
    change.put(MISMATCH, mismatch_id, opened)
    change.say("study-mismatched", {"study": mismatch.study_uid, "why": "undone", "actor": mismatch.by})


def _loosen(change: Change, study_uid: str) -> None:
    """What came under a planned UID is not that order's: the order waits for its own images."""
    tracked = tracking.of_study(change, study_uid)
    if tracked is not None and tracked[1].order and not reporting.was_given_out(change, study_uid):
        part(change, tracked[1].order, study_uid)


def dismiss(change: Change, actor: Actor, mismatch_id: str) -> None:
    """Say that a study belongs to no order of ours: a film brought along, a phantom."""
    actor.require(*_WHO, what="dismissing a mismatch")
    mismatch = _get(change, mismatch_id)
    if mismatch.state not in ("open", "prior"):
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
