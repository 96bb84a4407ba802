"""What placers say of orders from afar: holds, releases, cancellations, replacements, in any order.

Several systems may speak of one order, and a message may overtake another. Cancelled is cancelled, whenever
that was said; replaced is more than cancelled; of holds and releases the newest event counts; reasons are
those of the newest. So every order in which messages come ends in the same record. What has begun is not
ended from afar: that is refused, and people talk.
"""

from __future__ import annotations

from typing import Final

from msgspec import structs

from hounsfield.archive.plugins import Change
from hounsfield.ris_plugin import orders
from hounsfield.ris_plugin.actors import Actor
from hounsfield.ris_plugin.moments import newest
from hounsfield.ris_plugin.orders import MACHINE, act, get
from hounsfield.ris_plugin.records.orders import ORDER
from hounsfield.ris_plugin.schedule import scheduling

__all__ = ["Moment", "cancel", "hold", "release", "supersede"]

Moment = tuple[int, str]
"""When something was said, and by whom."""
ENDED: Final = frozenset({"cancelled", "rejected", "replaced"})
_UNSAID: Final = "the placer gave no reason"


def hold(change: Change, actor: Actor, order_id: str, *, at: Moment, why: str = "") -> None:
    """Hold an order, unless it was released by a newer event (ORC-1 HD). NotNowError when it has begun."""
    order = get(change, order_id)
    if order.state in ENDED:
        _note(change, order_id, "held", at)
        return
    if order.state not in ("placed", "accepted", "scheduled", "held"):
        MACHINE.after(order.state, "hold", actor)
    if not _note(change, order_id, "held", at):
        return
    if order.state == "held":
        _because(change, order_id, why or _UNSAID)
    else:
        act(change, actor, order_id, "hold", why=why or _UNSAID)


def release(change: Change, actor: Actor, order_id: str, *, at: Moment) -> None:
    """Take a hold back, unless a newer event holds it (ORC-1 RL); it is to be scheduled anew."""
    order = get(change, order_id)
    if not _note(change, order_id, "held", at) or order.state != "held":
        return
    orders.release(change, actor, order_id)
    _because(change, order_id, "")


def cancel(change: Change, actor: Actor, order_id: str, *, at: Moment, why: str = "") -> None:
    """Cancel an order with its appointment (ORC-1 CA). NotNowError when it has begun."""
    order = get(change, order_id)
    if order.state not in ENDED:
        act(change, actor, order_id, "cancel", why=why or _UNSAID)
        _note(change, order_id, "ended", at)
    elif _note(change, order_id, "ended", at) and order.state == "cancelled":
        _because(change, order_id, why or _UNSAID)


def supersede(change: Change, actor: Actor, order_id: str, new_id: str) -> None:
    """An order was replaced by one that is placed already (ORC-1 RP, RO). NotNowError when it has begun."""
    order = get(change, order_id)
    if order.state not in ("replaced", "rejected"):
        order = act(change, actor, order_id, "supersede", why="replaced")
        scheduling.dropped(change, actor, order_id)
    change.put(ORDER, order_id, structs.replace(order, replaced_by=new_id))
    change.put(ORDER, new_id, structs.replace(get(change, new_id), replaces=order_id))


def _note(change: Change, order_id: str, what: str, at: Moment) -> bool:
    """Keep that ``what`` was said; whether it is the newest word on it."""
    order = get(change, order_id)
    taken, said = newest(order.said, {what: None}, at)
    if said != order.said:
        change.put(ORDER, order_id, structs.replace(order, said=said))
    return bool(taken)


def _because(change: Change, order_id: str, why: str) -> None:
    order = get(change, order_id)
    if order.why != why:
        change.put(ORDER, order_id, structs.replace(order, why=why))
