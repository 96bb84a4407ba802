"""Orders: what was asked for, by whom, for whom. One order is one requested procedure (IHE RAD-TF 2:4.4)."""

from __future__ import annotations

from collections.abc import Iterator

from hounsfield.archive.plugins import Key, Kind
from hounsfield.ris_plugin.records.base import Code, Row, Said, seconds


class Question(Row, frozen=True):
    """A safety question of a procedure and its answer. ``answer``: "" while nobody has answered."""

    name: str  # "pregnancy", "renal-function", "implants", "contrast-allergy", or one of the catalog
    answer: str = ""
    note: str = ""
    blocks: bool = False  # the answer says that it must not be done so
    answered_by: str = ""
    answered_ns: int = 0


class Protocol(Row, frozen=True):
    """How it is to be done, as a radiologist or a delegate said."""

    text: str
    by: str
    at_ns: int
    codes: tuple[Code, ...] = ()
    contrast: str = ""


class Asked(Row, frozen=True, kw_only=True):
    """What a placer says of an order, when it is placed and while it can be changed. ``patient``: an id."""

    patient: str
    placer_number: str = ""
    placer_issuer: str = ""
    group_number: str = ""  # of the placer: orders that belong together
    laterality: str = ""
    priority: str = "ROUTINE"  # STAT, HIGH, ROUTINE, MEDIUM, LOW (0040,1003)
    reason: str = ""
    reason_codes: tuple[Code, ...] = ()
    clinical_information: str = ""
    requester: str = ""  # who ordered: a person name
    requester_code: str = ""
    referring: str = ""
    requester_location: str = ""
    requester_phone: str = ""
    copies_to: tuple[str, ...] = ()
    transport: str = ""
    visit_number: str = ""
    visit_issuer: str = ""
    placed_ns: int = 0
    wanted_ns: int = 0
    wanted_until_ns: int = 0
    replaces: str = ""
    source: str = ""  # the interface or person it came from


class Order(Asked, frozen=True, kw_only=True):
    """An order, or what it became: ``accession`` and ``study_uid`` are given when it is made, and stay.

    ``state``: of ``ris_plugin.orders.MACHINE``. ``as_of``: as of a patient.
    """

    accession: str
    study_uid: str
    procedure: Code
    state: str
    requested_procedure_id: str = ""
    filler_number: str = ""
    filler_issuer: str = ""
    modality: str = ""
    body_part: str = ""
    questions: tuple[Question, ...] = ()
    protocol: Protocol | None = None
    why: str = ""  # of the last hold, rejection, cancellation
    replaced_by: str = ""
    as_of_ns: int = 0
    as_of_from: str = ""
    said: tuple[Said, ...] = ()  # who last spoke of what; of "held" and "ended" too
    changed_ns: int = 0


OPEN_STATES = frozenset({"placed", "accepted", "scheduled", "in-progress", "held"})


def _order_keys(order: Order) -> Iterator[Key]:
    yield Key("accession", order.accession, unique=True)
    yield Key("study", order.study_uid, unique=True)
    yield Key("patient", order.patient, seconds(order.placed_ns))
    if order.placer_number:
        yield Key("placer", f"{order.placer_issuer}\0{order.placer_number}", seconds(order.placed_ns))
    if order.filler_number:
        yield Key("filler", order.filler_number)
    if order.group_number:
        yield Key("group", f"{order.placer_issuer}\0{order.group_number}")
    if order.visit_number:
        yield Key("visit", f"{order.visit_issuer}\0{order.visit_number}")
    if order.requester_code:
        yield Key("requester", order.requester_code, seconds(order.placed_ns))
    for one in order.copies_to:
        if one and one != order.requester_code:
            yield Key("copy", one, seconds(order.placed_ns))
    yield Key("state", order.state, seconds(order.changed_ns))


ORDER = Kind("order", Order, _order_keys)
