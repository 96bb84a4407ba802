"""Scheduled procedure steps: what modalities see on their worklist, from scheduled to done (PS3.3 C.4.10)."""

from __future__ import annotations

from typing import Any, Final

from msgspec import structs

from hounsfield.archive.plugins import Change, View
from hounsfield.ris_plugin.actors import Actor, Role
from hounsfield.ris_plugin.errors import UnknownError
from hounsfield.ris_plugin.records.base import Code
from hounsfield.ris_plugin.records.catalog import RESOURCE, Procedure, Resource
from hounsfield.ris_plugin.records.orders import Order
from hounsfield.ris_plugin.records.schedule import STEP, Step
from hounsfield.ris_plugin.states import SAME, Machine, Transition

__all__ = ["MACHINE", "act", "get", "make", "of_order", "withdraw"]

_DESK: Final = (Role.CLERK, Role.TECHNOLOGIST, Role.RADIOLOGIST, Role.INTERFACE)
_ROOM: Final = (Role.TECHNOLOGIST, Role.RADIOLOGIST, Role.MODALITY, Role.SYSTEM)

EARLY: Final = ("scheduled", "arrived", "ready")
"""States of a step that has not begun."""

MACHINE: Final = Machine(
    "scheduled step",
    ("scheduled", "arrived", "ready", "started", "completed", "discontinued", "withdrawn"),
    (
        Transition("arrive", ("scheduled",), "arrived", _DESK),
        Transition("leave", ("arrived", "ready"), "scheduled", _DESK),
        Transition("make-ready", ("scheduled", "arrived"), "ready", (Role.TECHNOLOGIST, Role.RADIOLOGIST)),
        Transition("start", ("scheduled", "arrived", "ready", "discontinued"), "started", _ROOM),
        Transition("append", ("started", "completed"), "started", _ROOM),
        Transition("complete", ("started",), "completed", _ROOM),
        Transition("discontinue", ("started",), "discontinued", _ROOM),
        # What was performed was another patient's, or for another order: this one is still to be done.
        Transition("restore", ("started", "completed", "discontinued"), "scheduled", (Role.SYSTEM,)),
        Transition("move", EARLY, SAME, _DESK),
        Transition("withdraw", EARLY, "withdrawn", (*_DESK, Role.REFERRER)),
    ),
)
"""A discontinued step can be started once more, a completed one appended to (IHE RAD-TF 1:3.4)."""

SAID: Final = {
    "arrive": "step-arrived",
    "leave": "step-left",
    "make-ready": "step-ready",
    "start": "step-started",
    "append": "step-started",
    "complete": "step-completed",
    "discontinue": "step-discontinued",
    "restore": "step-scheduled",
    "move": "step-moved",
    "withdraw": "step-withdrawn",
}


def get(view: View, step_id: str) -> Step:
    """The step. UnknownError."""
    step = view.get(STEP, step_id)
    if step is None:
        raise UnknownError("there is no such scheduled step")
    return step


def of_order(view: View, order_id: str) -> list[tuple[str, Step]]:
    """The steps of an order, by when they begin; without those that were withdrawn."""
    return [
        (record_id, one) for record_id, one in view.find(STEP, "order", order_id) if one.state != "withdrawn"
    ]


def make(
    change: Change,
    actor: Actor,
    order_id: str,
    order: Order,
    procedure: Procedure,
    *,
    appointment: str,
    from_ns: int,
    to_ns: int,
    resources: list[Resource],
) -> list[str]:
    """The steps of an order that is scheduled: one for each protocol code of the procedure, or one alone."""
    protocol = order.protocol
    placed = _placed(change, order.modality, resources)
    codes: tuple[tuple[Code, ...], ...] = tuple((code,) for code in procedure.steps)
    if not codes:
        codes = (protocol.codes if protocol is not None and protocol.codes else (procedure.code,),)
    made = []
    for of in codes:
        step_id = change.new_id()
        step = Step(
            number=f"SPS{change.count('step'):08}",
            order=order_id,
            patient=order.patient,
            state=MACHINE.initial,
            modality=order.modality,
            from_ns=from_ns,
            to_ns=to_ns,
            appointment=appointment,
            accession=order.accession,
            study_uid=order.study_uid,
            requested_procedure_id=order.requested_procedure_id,
            **placed,
            description=(protocol.text if protocol is not None and protocol.text else procedure.code.meaning),
            codes=of,
            preparation=procedure.preparation,
            contrast=protocol.contrast if protocol is not None else "",
        )
        change.put(STEP, step_id, step)
        _say(change, "step-scheduled", actor, step_id, step)
        made.append(step_id)
    return made


def act(change: Change, actor: Actor, step_id: str, action: str) -> Step:
    """Take a step through an action of the table; what it is then."""
    step = get(change, step_id)
    changed = structs.replace(step, state=MACHINE.after(step.state, action, actor))
    change.put(STEP, step_id, changed)
    _say(change, SAID[action], actor, step_id, changed)
    return changed


def move(
    change: Change, actor: Actor, step_id: str, *, from_ns: int, to_ns: int, resources: list[Resource]
) -> None:
    """Give a step that has not begun another time and place."""
    step = act(change, actor, step_id, "move")
    placed = _placed(change, step.modality, resources)
    change.put(STEP, step_id, structs.replace(step, from_ns=from_ns, to_ns=to_ns, **placed))


def _placed(view: View, modality: str, resources: list[Resource]) -> dict[str, Any]:
    """Where a step is done, on what, by whom.

    Where no device is booked it may be done on any of its kind that stand there, else in the department: a
    modality asks for its own AE title (type 1, PS3.4 Table K.6-1; of several values, PS3.3 C.4.10), and
    what names none would be on nobody's list.
    """
    place = next((one.location for one in resources if one.location), "")
    devices = [one for one in resources if one.ae_title]
    station_name = next((one.station_name for one in devices if one.station_name), "")
    if not devices:
        kind = [one for _, one in view.find(RESOURCE, "kind", f"device:{modality}")]
        able = [one for one in kind if one.active and one.ae_title]
        devices = [one for one in able if place and one.location == place] or able
        station_name = devices[0].station_name if len(devices) == 1 else ""
    return {
        "ae_titles": tuple(dict.fromkeys(one.ae_title for one in devices)),
        "station_name": station_name,
        "location": place,
        "performer": next((one.name for one in resources if one.kind == "person"), ""),
    }


def withdraw(change: Change, actor: Actor, order_id: str) -> None:
    """Take the steps of an order that have not begun from the worklist: it was cancelled, or its time is."""
    for step_id, step in of_order(change, order_id):
        if step.state in EARLY:
            act(change, actor, step_id, "withdraw")


def _say(change: Change, event: str, actor: Actor, step_id: str, step: Step) -> None:
    change.say(event, {"step": step_id, "order": step.order, "actor": actor.person})
