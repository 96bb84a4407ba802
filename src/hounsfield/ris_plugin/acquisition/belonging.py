"""A study becomes an order's, or is not any more: with its UID, its performed steps and its report."""

from __future__ import annotations

from msgspec import structs

from hounsfield.archive.plugins import Change
from hounsfield.ris_plugin import tracking
from hounsfield.ris_plugin.acquisition import performed_orders
from hounsfield.ris_plugin.actors import SYSTEM, Actor, Role
from hounsfield.ris_plugin.reading import reporting
from hounsfield.ris_plugin.records.orders import ORDER, Order
from hounsfield.ris_plugin.records.performed import TRACKED
from hounsfield.ris_plugin.records.schedule import STEP

__all__ = ["adopt", "belongs", "part"]

_ROOM = Actor(SYSTEM.person, frozenset({Role.SYSTEM, Role.MODALITY}))
"""Who notes for the modality what it would have said, had it known."""


def belongs(change: Change, order_id: str, study_uid: str) -> None:
    """A study is an order's: so is what was performed in it, and its images are those that are waited for."""
    performed_orders.credit(change, _ROOM, order_id, study_uid)
    order = change.get(ORDER, order_id)
    if order is not None:
        tracking.expect(change, order_id, order)


def adopt(change: Change, order_id: str, order: Order, study_uid: str) -> None:
    """The images came under another Study Instance UID than was planned: that is the order's from now on."""
    named = change.first(ORDER, "study", study_uid)
    if named is not None and named[0] != order_id:
        part(change, named[0], study_uid)
    planned = tracking.of_study(change, order.study_uid)
    if planned is not None:
        change.delete(TRACKED, planned[0])
    change.put(ORDER, order_id, structs.replace(order, study_uid=study_uid))
    for step_id, step in list(change.find(STEP, "order", order_id)):
        change.put(STEP, step_id, structs.replace(step, study_uid=study_uid))


def part(change: Change, order_id: str, study_uid: str) -> None:
    """A study is not an order's any more; a report of it that nobody has signed is not either."""
    order = change.get(ORDER, order_id) if order_id else None
    if order is not None and order.study_uid == study_uid:
        # Its planned study is gone: a new one, under which its own images may still come (PS3.5 B.2).
        planned = f"2.25.{int(change.new_id(), 16)}"
        change.put(ORDER, order_id, structs.replace(order, study_uid=planned))
        for step_id, step in list(change.find(STEP, "order", order_id)):
            change.put(STEP, step_id, structs.replace(step, study_uid=planned))
    reporting.take_back(change, study_uid)
    tracking.parted(change, study_uid)
    if order is not None:
        performed_orders.discredit(change, _ROOM, order_id, study_uid)
        order = change.get(ORDER, order_id)
        if order is not None and order.state == "scheduled":
            tracking.expect(change, order_id, order)
