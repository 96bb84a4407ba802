"""Who may see what. What somebody may not see is not there for him: 404, never 403, so that ids tell nothing.

Staff (clerks, technologists, radiologists, trainees) see everything; administrators everything but the texts
of reports; referrers their own orders (placed by them, or copied to them), whom those are for, and what
became of them: appointments, and reports from the first version that was put forward. Who was only sent a
copy sees, and changes nothing.
"""

from __future__ import annotations

from typing import Final

from hounsfield.archive.plugins import View
from hounsfield.ris_plugin import orders as ordering
from hounsfield.ris_plugin.actors import PEOPLES_ROLES, Actor, Role
from hounsfield.ris_plugin.errors import ForbiddenError, UnknownError
from hounsfield.ris_plugin.patients import of_patient, resolve
from hounsfield.ris_plugin.reading import reporting
from hounsfield.ris_plugin.records.orders import ORDER, Order
from hounsfield.ris_plugin.records.patients import Patient
from hounsfield.ris_plugin.records.reports import Report
from hounsfield.ris_plugin.records.schedule import Appointment
from hounsfield.ris_plugin.schedule import scheduling

__all__ = [
    "ANYBODY",
    "DEPARTMENT",
    "STAFF",
    "appointment",
    "is_own",
    "may_change",
    "only_refers",
    "order",
    "patient",
    "report",
    "sees_all",
]

STAFF: Final = (Role.CLERK, Role.TECHNOLOGIST, Role.RADIOLOGIST, Role.TRAINEE)
DEPARTMENT: Final = (*STAFF, Role.ADMINISTRATOR)
ANYBODY: Final = (*DEPARTMENT, Role.REFERRER)


def sees_all(actor: Actor) -> bool:
    """Whether the actor works in the department."""
    return actor.may(DEPARTMENT)


def is_own(actor: Actor, one: Order) -> bool:
    """Whether an order is the actor's as a referrer."""
    return actor.may((Role.REFERRER,)) and actor.person in (one.requester_code, *one.copies_to)


def only_refers(actor: Actor) -> bool:
    """Whether the actor is a referrer and nothing else."""
    return not actor.may(PEOPLES_ROLES - {Role.REFERRER})


def may_change(actor: Actor, *found: Order) -> None:
    """Raise ForbiddenError for who sees orders because a copy was sent to him."""
    if only_refers(actor) and any(one.requester_code != actor.person for one in found):
        raise ForbiddenError("who was sent a copy of an order reads it; its requester acts")


def order(view: View, actor: Actor, order_id: str) -> Order:
    """The order. UnknownError when there is none that the actor may see."""
    found = ordering.get(view, order_id)
    if not sees_all(actor) and not is_own(actor, found):
        raise UnknownError("there is no such order")
    return found


def patient(view: View, actor: Actor, patient_id: str) -> tuple[str, Patient]:
    """The patient, or whom it was merged into. UnknownError."""
    found = resolve(view, patient_id)
    if not sees_all(actor) and not any(is_own(actor, one) for _, one in of_patient(view, ORDER, found[0])):
        raise UnknownError("there is no such patient")
    return found


def appointment(view: View, actor: Actor, appointment_id: str) -> Appointment:
    """The appointment. UnknownError."""
    found = scheduling.get(view, appointment_id)
    own = bool(found.orders) and all(is_own(actor, ordering.get(view, one)) for one in found.orders)
    if not sees_all(actor) and not own:
        raise UnknownError("there is no such appointment")
    return found


def report(view: View, actor: Actor, report_id: str) -> Report:
    """The report. UnknownError; also for who may see it, but nothing was put forward yet."""
    found = reporting.get(view, report_id)
    if actor.may(STAFF):
        return found
    if found.versions and any(is_own(actor, ordering.get(view, one)) for one in found.orders):
        return found
    raise UnknownError("there is no such report")
