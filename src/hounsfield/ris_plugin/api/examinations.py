"""The work on the floor over the API: the worklist, what was performed, and images on their way."""

from __future__ import annotations

from datetime import datetime
from functools import partial
from typing import Any, Final

import msgspec

from hounsfield.archive.plugins import Change, View
from hounsfield.ris_plugin import tracking
from hounsfield.ris_plugin.acquisition import performed
from hounsfield.ris_plugin.api.endpoints import Ask, Endpoint, Limit, Nothing, Paged, page_of, paged
from hounsfield.ris_plugin.api.models import item
from hounsfield.ris_plugin.errors import InvalidError, UnknownError
from hounsfield.ris_plugin.patients import resolve
from hounsfield.ris_plugin.records.base import seconds
from hounsfield.ris_plugin.records.performed import PERFORMED, TRACKED, Performed, Tracked
from hounsfield.ris_plugin.records.schedule import STEP, Step
from hounsfield.ris_plugin.schedule import steps

__all__ = ["ENDPOINTS"]

TAG: Final = "Examinations"
MORE: Final = ("patient_name", "patient_number", "birth_day", "actions")
StepItem: Final[Any] = item(Step, *MORE)
PerformedItem: Final[Any] = item(Performed)
TrackedItem: Final[Any] = item(Tracked)


class Asked(Nothing, frozen=True, kw_only=True):
    """For an AE title, a modality, or all, in a stretch of time; today when none is given."""

    ae: str = ""
    modality: str = ""
    since: datetime | None = None
    until: datetime | None = None
    limit: Limit = 200


class OfState(Paged, frozen=True, kw_only=True):
    """In one state."""

    state: str = ""


class Alerts(Nothing, frozen=True, kw_only=True):
    """How many."""

    limit: Limit = 100


class Whole(msgspec.Struct, frozen=True, kw_only=True):
    """A performed step with all that the modality said (DICOM JSON, PS3.18 F)."""

    id: str
    version: int
    step: PerformedItem
    attributes: msgspec.Raw


def shown(view: View, ask: Ask, step_id: str, step: Step) -> Any:
    """A step with whose it is."""
    _, patient = resolve(view, step.patient)
    return ask.item(
        view,
        STEP,
        step_id,
        step,
        patient_name=patient.name,
        patient_number=patient.identifiers[0].value,
        birth_day=patient.birth_day,
        actions=tuple(one for one in steps.MACHINE.possible(step.state, ask.actor) if one == "make-ready"),
    )


def worklist(view: View, ask: Ask) -> Any:
    """What is to be done, by when it begins."""
    q: Asked = ask.query
    since, until = ask.stretch(q.since, q.until)
    lookup, text = ("worklist", q.ae)
    if not q.ae and q.modality:
        lookup, text = "worklist-modality", q.modality
    found = view.find(STEP, lookup, text, at_least=seconds(since), at_most=seconds(until - 1), limit=q.limit)
    return page_of(StepItem)(
        items=tuple(shown(view, ask, key, one) for key, one in found if q.modality in ("", one.modality))
    )


def make_ready(change: Change, ask: Ask) -> Any:
    """The patient is prepared."""
    step = steps.act(change, ask.actor, ask.path["step"], "make-ready")
    return shown(change, ask, ask.path["step"], step)


def performed_steps(view: View, ask: Ask) -> Any:
    """What modalities report, those first that began first."""
    state = ask.query.state or performed.MACHINE.initial
    if state not in performed.MACHINE.states:
        raise InvalidError(f"a state is one of {', '.join(performed.MACHINE.states)}", "state")
    return paged(
        ask, view, PERFORMED, ("state", state), partial(ask.item, view, PERFORMED), answer=PerformedItem
    )


def performed_step(view: View, ask: Ask) -> Whole:
    """One of them, whole."""
    key = ask.path["performed"]
    one = view.get(PERFORMED, key)
    if one is None:
        raise UnknownError("there is no such performed procedure step")
    if one.patient:
        ask.open(view, one.patient)
    step = ask.item(view, PERFORMED, key, one)
    return Whole(id=key, version=step.version, step=step, attributes=msgspec.Raw(one.dataset))


def tracked(view: View, ask: Ask) -> Any:
    """Studies in one state, those first that have been in it longest."""
    state = ask.query.state or tracking.MACHINE.initial
    if state not in tracking.MACHINE.states:
        raise InvalidError(f"a state is one of {', '.join(tracking.MACHINE.states)}", "state")
    return paged(ask, view, TRACKED, ("state", state), partial(ask.item, view, TRACKED), answer=TrackedItem)


def alerts(view: View, ask: Ask) -> Any:
    """Studies that somebody has to look after: images are missing, or nobody reads them."""
    found = view.find(TRACKED, "alert", "", limit=ask.query.limit)
    return page_of(TrackedItem)(items=tuple(ask.item(view, TRACKED, *each) for each in found))


def verify(change: Change, ask: Ask) -> Any:
    """Somebody has looked: it is all there."""
    tracking.verify(change, ask.actor, ask.path["study"])
    found = tracking.of_study(change, ask.path["study"])
    assert found is not None
    return ask.item(change, TRACKED, *found)


ENDPOINTS: Final = (
    Endpoint(
        "GetWorklist", "GET", "/worklist", TAG, "What is to be done: scheduled steps, as modalities see them",
        worklist, page_of(StepItem), Asked,
    ),
    Endpoint(
        "MakeStepReady", "POST", "/steps/{step}/make-ready", TAG, "The patient is prepared for the step",
        make_ready, StepItem, kind=STEP,
    ),
    Endpoint(
        "ListPerformed", "GET", "/performed", TAG,
        "Performed procedure steps in one state, those under way if none is given",
        performed_steps, page_of(PerformedItem), OfState,
    ),
    Endpoint(
        "GetPerformed", "GET", "/performed/{performed}", TAG,
        "A performed procedure step by id, with all that the modality said",
        performed_step, Whole,
    ),
    Endpoint(
        "ListTracked", "GET", "/tracking", TAG,
        "Studies whose images are on their way, in one state; expected ones if none is given",
        tracked, page_of(TrackedItem), OfState,
    ),
    Endpoint(
        "ListAlerts", "GET", "/tracking/alerts", TAG, "Studies that somebody has to look after",
        alerts, page_of(TrackedItem), Alerts,
    ),
    Endpoint(
        "VerifyStudy", "POST", "/tracking/{study}/verify", TAG, "Say that all images of a study are there",
        verify, TrackedItem,
    ),
)  # fmt: skip
