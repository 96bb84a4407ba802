"""What performed steps mean for scheduled steps, orders and appointments: begun, ended, or not theirs.

An order is done when what was performed is its own. Where it turns out that a study belongs to another order
(``belonging``), that one is done, and the one whose patient was not there is still to be done: it is on the
worklist again.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from msgspec import structs

from hounsfield.archive.plugins import Change
from hounsfield.ris_plugin import orders as ordering
from hounsfield.ris_plugin.actors import Actor
from hounsfield.ris_plugin.records.orders import ORDER
from hounsfield.ris_plugin.records.performed import PERFORMED, Performed
from hounsfield.ris_plugin.records.schedule import STEP, Step
from hounsfield.ris_plugin.schedule import scheduling, steps

__all__ = ["WRONG_ENTRY", "begun", "credit", "discredit", "ended"]

WRONG_ENTRY: Final = "110514"
"""Incorrect worklist entry selected (PS3.16 CID 9300, of DCM)."""
_STARTED: Final = frozenset({"started", "completed", "discontinued"})
_UNDER_WAY: Final = frozenset({"in-progress", "completed", "accepted"})


def begun(
    change: Change,
    actor: Actor,
    performed_id: str,
    scheduled: Iterable[tuple[str, Step]],
    orders: Iterable[str],
) -> None:
    """A performed step has begun that is of these scheduled steps and orders."""
    for step_id, step in scheduled:
        if performed_id not in step.performed:
            change.put(STEP, step_id, structs.replace(step, performed=(*step.performed, performed_id)))
        if step.state in ("scheduled", "arrived", "ready", "discontinued"):
            steps.act(change, actor, step_id, "start")
        elif step.state == "completed":
            steps.act(change, actor, step_id, "append")
    for order_id in orders:
        ordering.images_began(change, actor, order_id)


def ended(
    change: Change,
    actor: Actor,
    performed_id: str,
    performed: Performed,
    *,
    done: bool,
    orders: Iterable[str] | None = None,
) -> None:
    """What becomes of the scheduled steps and orders when their last performed step has ended. ``done``: it
    was performed, at least in part. ``orders``: only these of it."""
    of_orders = tuple(performed.orders if orders is None else orders)
    for step_id in performed.steps:
        step = steps.get(change, step_id)
        of = [change.get(PERFORMED, one) for one in step.performed if one != performed_id]
        if (
            step.order not in of_orders
            or step.state != "started"
            or any(one is not None and one.state == "in-progress" for one in of)
        ):
            continue
        any_done = done or any(one is not None and one.state == "completed" for one in of)
        steps.act(change, actor, step_id, "complete" if any_done else "discontinue")
    for order_id in of_orders:
        of_order = [step for _, step in steps.of_order(change, order_id)]
        others = [one for key, one in change.find(PERFORMED, "order", order_id) if key != performed_id]
        if any(one.state == "in-progress" for one in others):
            continue
        open_steps = [step for step in of_order if step.state not in ("completed", "discontinued")]
        anything = done or any(one.state == "completed" for one in others)
        if open_steps and anything:
            continue  # the next step of the order is still to be done
        ordering.images_ended(change, actor, order_id, completed=anything)
        if anything:
            scheduling.fulfilled(change, actor, order_id)


# ---------------------------------------------------------------- as it turns out


def credit(change: Change, actor: Actor, order_id: str, study_uid: str) -> None:
    """A study is an order's, as it turned out: what modalities said that they performed in it is the order's.

    Also a step that was ended because of the wrong entry: what it made was made for this order.
    """
    for performed_id, one in list(change.find(PERFORMED, "study", study_uid)):
        if order_id in one.orders:
            continue
        scheduled = steps.of_order(change, order_id)
        of = tuple(dict.fromkeys((*one.steps, *(step_id for step_id, _ in scheduled))))
        credited = structs.replace(one, orders=(*one.orders, order_id), steps=of)
        change.put(PERFORMED, performed_id, credited)
        begun(change, actor, performed_id, scheduled, [order_id])
        if one.state != "in-progress":
            done = one.state == "completed" or (_of_wrong_entry(one) and any(
                each.instances for each in one.series
            ))  # fmt: skip
            ended(change, actor, performed_id, credited, done=done, orders=[order_id])


def discredit(change: Change, actor: Actor, order_id: str, study_uid: str) -> None:
    """A study is not an order's: what was performed in it neither. Is nothing else, the order is to be done,
    and its scheduled steps are on the worklist again."""
    for performed_id, one in list(change.find(PERFORMED, "study", study_uid)):
        if order_id not in one.orders:
            continue
        own = {step_id for step_id in one.steps if steps.get(change, step_id).order == order_id}
        without = structs.replace(
            one,
            orders=tuple(each for each in one.orders if each != order_id),
            steps=tuple(each for each in one.steps if each not in own),
        )
        change.put(PERFORMED, performed_id, without)
        for step_id in own:
            step = steps.get(change, step_id)
            left = tuple(each for each in step.performed if each != performed_id)
            change.put(STEP, step_id, structs.replace(step, performed=left))
    order = change.get(ORDER, order_id)
    if order is None or order.state not in _UNDER_WAY or change.first(PERFORMED, "order", order_id):
        return
    restored = False
    for step_id, step in steps.of_order(change, order_id):
        if step.state in _STARTED:
            steps.act(change, actor, step_id, "restore")
        restored = restored or step.state != "withdrawn"
    if restored:
        ordering.act(change, actor, order_id, "restore")
    elif order.state != "accepted":
        ordering.act(change, actor, order_id, "abandon")


def _of_wrong_entry(one: Performed) -> bool:
    return one.discontinued_for is not None and one.discontinued_for.value == WRONG_ENTRY
