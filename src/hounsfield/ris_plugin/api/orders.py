"""Orders over the API: placed, protocolled, answered for, held, cancelled, replaced."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Final

from msgspec import structs

from hounsfield.archive.plugins import Change, View
from hounsfield.ris_plugin import orders
from hounsfield.ris_plugin.api import sight
from hounsfield.ris_plugin.api.endpoints import Ask, Endpoint, Limit, Nothing, Paged, Why, page_of, paged
from hounsfield.ris_plugin.api.models import changes_of, given, item, model, new_of, row_of
from hounsfield.ris_plugin.errors import ForbiddenError, InvalidError, UnknownError
from hounsfield.ris_plugin.orders import NewOrder
from hounsfield.ris_plugin.patients import family, resolve
from hounsfield.ris_plugin.records.base import Code
from hounsfield.ris_plugin.records.orders import OPEN_STATES, ORDER, Order, Question
from hounsfield.ris_plugin.records.patients import PATIENT

__all__ = ["ENDPOINTS", "shown"]

TAG: Final = "Orders"
MORE: Final = ("patient_name", "patient_number", "birth_day", "actions")
OrderItem: Final[Any] = item(Order, *MORE)
Placed: Final[Any] = new_of(NewOrder, "replaces", "source", "placed_ns")
OrderChanges: Final[Any] = changes_of(
    Order,
    "laterality", "priority", "reason", "reason_codes", "clinical_information", "requester",
    "requester_location", "requester_phone", "referring", "copies_to", "transport", "wanted_ns",
    "wanted_until_ns",
)  # fmt: skip
WITH_OWN_ENDPOINT: Final = {
    "accept": "", "hold": "", "release": "", "reject": "", "cancel": "", "replace": "", "change": "",
}  # fmt: skip


class Filter(Paged, frozen=True, kw_only=True):
    """One of ``accession``, ``placer``, ``patient``, ``requester``, ``state``; else what is open."""

    state: str = ""
    patient: str = ""
    accession: str = ""
    placer: str = ""
    placer_issuer: str = ""
    requester: str = ""
    modality: str = ""
    priority: str = ""


class Acceptance(Nothing, frozen=True, kw_only=True):
    """How it is to be done."""

    text: str = ""
    codes: tuple[model(Code), ...] = ()  # type: ignore[valid-type]
    contrast: str = ""


class Given(Nothing, frozen=True, kw_only=True):
    """An answer to a safety question. ``blocks``: it must not be done so."""

    name: str
    answer: str
    blocks: bool = False
    note: str = ""


def shown(view: View, ask: Ask, order_id: str, order: Order) -> Any:
    """An order with whose it is."""
    _, patient = resolve(view, order.patient)
    is_copy = sight.only_refers(ask.actor) and order.requester_code != ask.actor.person
    return ask.item(
        view,
        ORDER,
        order_id,
        order,
        patient_name=patient.name,
        patient_number=patient.identifiers[0].value,
        birth_day=patient.birth_day,
        actions=tuple(
            one
            for one in orders.MACHINE.possible(order.state, ask.actor)
            if one in WITH_OWN_ENDPOINT and not is_copy
        ),
    )


def late(view: View, ask: Ask) -> Any:
    """Those without a time that wait too long."""
    found = orders.late(view, ask.ris.settings, ask.now_ns, ask.query.limit)
    return page_of(OrderItem)(items=tuple(shown(view, ask, key, one) for key, _, one in found))


def _now(view: View, ask: Ask, order_id: str) -> Any:
    order = orders.get(view, order_id)
    ask.open(view, order.patient)
    return shown(view, ask, order_id, order)


def listed(view: View, ask: Ask) -> Any:
    """Orders as they are asked for; a referrer's own."""
    q: Filter = ask.query
    ways = [name for name in ("accession", "placer", "patient", "requester", "state") if getattr(q, name)]
    everything = sight.sees_all(ask.actor)

    def keep(one: Order) -> bool:
        return (
            (everything or sight.is_own(ask.actor, one))
            and (not q.modality or one.modality == q.modality)
            and (not q.priority or one.priority == q.priority)
            and (not q.state or one.state == q.state)
            and (not q.requester or one.requester_code == q.requester)
            and (not q.accession or one.accession == q.accession)
            and (not q.placer or (one.placer_number, one.placer_issuer) == (q.placer, q.placer_issuer))
        )

    def page(*by: tuple[str, str]) -> Any:
        return paged(ask, view, ORDER, by, partial(shown, view, ask), keep=keep, answer=OrderItem)

    if q.state and q.state not in orders.MACHINE.states:
        raise InvalidError(f"a state is one of {', '.join(orders.MACHINE.states)}", "state")
    if not everything and not q.patient:
        # Of his own alone: `next` names the last one that was looked at.
        person = ask.actor.person
        return page(("requester", person), ("copy", person))
    if q.accession:
        return page(("accession", q.accession))
    if q.placer:
        return page(("placer", f"{q.placer_issuer}\0{q.placer}"))
    if q.patient:
        return _of_patient(view, ask, q, keep)
    if q.requester:
        return page(("requester", q.requester))
    if q.state:
        return page(("state", q.state))
    if ways or q.after:
        raise InvalidError("open orders come state by state when there are many: ask for a state", "after")
    found = [
        (key, one)
        for state in sorted(OPEN_STATES)
        for key, one in view.find(ORDER, "state", state, limit=q.limit)
        if keep(one)
    ]
    found.sort(key=lambda each: (each[1].placed_ns, each[0]))
    return page_of(OrderItem)(items=tuple(shown(view, ask, *each) for each in found[: q.limit]))


def _of_patient(view: View, ask: Ask, q: Filter, keep: Callable[[Order], bool]) -> Any:
    """All of a person, whatever record it was said of: some dozens."""
    who, _ = ask.open(view, sight.patient(view, ask.actor, q.patient)[0])
    found = [each for one in family(view, who) for each in view.find(ORDER, "patient", one) if keep(each[1])]
    found.sort(key=lambda each: (-each[1].placed_ns, each[0]))
    return page_of(OrderItem)(items=tuple(shown(view, ask, *each) for each in found[: q.limit]))


def _asked(view: View, ask: Ask) -> NewOrder:
    new: NewOrder = row_of(ask.body, ask.ris.zone)
    person = ask.actor.person
    if sight.only_refers(ask.actor):
        if new.accession or new.study_uid:
            raise ForbiddenError("accession numbers and study UIDs are the department's to give")
        # His numbers are his own: nobody else's system finds his order under what it calls another one.
        issuer = person if new.placer_number else ""
        new = structs.replace(new, requester_code=person, placer_issuer=issuer)
        if view.get(PATIENT, new.patient) is None:
            raise UnknownError("there is no such patient")
    answers = tuple(
        structs.replace(one, answered_by=person, answered_ns=ask.now_ns)
        if one.answer.strip()
        else Question(name=one.name)
        for one in new.answers
    )
    return structs.replace(new, source=person, answers=answers)


def _own(view: View, ask: Ask) -> Order:
    """The order, for who is about to act on it."""
    order = sight.order(view, ask.actor, ask.path["order"])
    sight.may_change(ask.actor, order)
    return order


def place(change: Change, ask: Ask) -> Any:
    """Place an order; a referrer's is his own, whatever he says."""
    order_id = orders.place(change, ask.actor, ask.ris.settings, _asked(change, ask))
    return _now(change, ask, order_id)


def get(view: View, ask: Ask) -> Any:
    """An order."""
    order_id = ask.path["order"]
    order = sight.order(view, ask.actor, order_id)
    ask.open(view, order.patient)
    return shown(view, ask, order_id, order)


def change_order(change: Change, ask: Ask) -> Any:
    """Change what an order says, before the start."""
    fields = given(ask.body, ask.ris.zone)
    if not fields:
        raise InvalidError("nothing is changed")
    _own(change, ask)
    orders.change_order(change, ask.actor, ask.path["order"], **fields)
    return _now(change, ask, ask.path["order"])


def accept(change: Change, ask: Ask) -> Any:
    """Accept an order with its protocol."""
    body: Acceptance = ask.body
    codes = [row_of(code, ask.ris.zone) for code in body.codes]
    orders.accept(change, ask.actor, ask.path["order"], text=body.text, codes=codes, contrast=body.contrast)
    return _now(change, ask, ask.path["order"])


def answer(change: Change, ask: Ask) -> Any:
    """Answer a safety question."""
    body: Given = ask.body
    _own(change, ask)
    orders.answer(
        change, ask.actor, ask.path["order"], body.name, body.answer, blocks=body.blocks, note=body.note
    )
    return _now(change, ask, ask.path["order"])


def _acting(action: str) -> Callable[[Change, Ask], Any]:
    def act(change: Change, ask: Ask) -> Any:
        _own(change, ask)
        if action == "release":
            orders.release(change, ask.actor, ask.path["order"])
        else:
            orders.act(change, ask.actor, ask.path["order"], action, why=ask.body.why)
        return _now(change, ask, ask.path["order"])

    return act


def replace(change: Change, ask: Ask) -> Any:
    """Place another order in place of one."""
    _own(change, ask)
    new_id = orders.replace(change, ask.actor, ask.ris.settings, ask.path["order"], _asked(change, ask))
    return _now(change, ask, new_id)


def _action(name: str, action: str, summary: str) -> Endpoint:
    return Endpoint(
        name, "POST", f"/orders/{{order}}/{action}", TAG, summary, _acting(action), OrderItem,
        body=Why, kind=ORDER, roles=sight.ANYBODY,
    )  # fmt: skip


class Few(Nothing, frozen=True, kw_only=True):
    """How many."""

    limit: Limit = 100


ENDPOINTS: Final = (
    Endpoint(
        "ListLateOrders", "GET", "/late-orders", TAG,
        "Orders that have no time and wait too long, the urgent and oldest first",
        late, page_of(OrderItem), Few,
    ),
    Endpoint(
        "ListOrders", "GET", "/orders", TAG,
        "Orders by accession number, placer's number, patient, requester or state; else those that are open",
        listed, page_of(OrderItem), Filter, roles=sight.ANYBODY,
    ),
    Endpoint(
        "PlaceOrder", "POST", "/orders", TAG, "Place an order",
        place, OrderItem, body=Placed, status=201, roles=sight.ANYBODY,
    ),
    Endpoint("GetOrder", "GET", "/orders/{order}", TAG, "An order", get, OrderItem, roles=sight.ANYBODY),
    Endpoint(
        "ChangeOrder", "PATCH", "/orders/{order}", TAG, "Change what an order says, before the start",
        change_order, OrderItem, body=OrderChanges, kind=ORDER, must_match=True, roles=sight.ANYBODY,
    ),
    Endpoint(
        "AcceptOrder", "POST", "/orders/{order}/accept", TAG,
        "Accept an order, with the protocol by which it is to be done",
        accept, OrderItem, body=Acceptance, kind=ORDER,
    ),
    Endpoint(
        "AnswerQuestion", "POST", "/orders/{order}/answers", TAG, "Answer a safety question of an order",
        answer, OrderItem, body=Given, kind=ORDER, roles=sight.ANYBODY,
    ),
    _action("HoldOrder", "hold", "Hold an order, and say why"),
    _action("ReleaseOrder", "release", "Go on with an order that was held"),
    _action("RejectOrder", "reject", "Reject an order, and say why"),
    _action("CancelOrder", "cancel", "Cancel an order before its start, and say why"),
    Endpoint(
        "ReplaceOrder", "POST", "/orders/{order}/replace", TAG, "Place another order in place of one",
        replace, OrderItem, body=Placed, kind=ORDER, status=201, location="/orders", roles=sight.ANYBODY,
    ),
)  # fmt: skip
