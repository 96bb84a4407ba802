"""ORM^O01, OMG^O19, OMI^O23: what placers say of orders (HL7 v2.5.1 4.4, 4.5; IHE RAD-TF 2:4.2, 2:4.4).

An order is a group that begins with ORC (or with OBR where a sender leaves ORC out) and takes what follows:
OBR, TQ1, NTE, DG1, OBX, IPC. One group is one requested procedure.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Final

from hounsfield.archive.plugins import Change, View
from hounsfield.ris_plugin import catalog, orders
from hounsfield.ris_plugin.errors import InvalidError, UnknownError
from hounsfield.ris_plugin.hl7 import placers
from hounsfield.ris_plugin.hl7.acks import MissingError
from hounsfield.ris_plugin.hl7.mapping import Place
from hounsfield.ris_plugin.hl7.messages import Segment, person_name
from hounsfield.ris_plugin.hl7.saying import Saying
from hounsfield.ris_plugin.patients import resolve
from hounsfield.ris_plugin.records.base import Code, folded
from hounsfield.ris_plugin.records.catalog import Procedure
from hounsfield.ris_plugin.records.orders import ORDER, Question

__all__ = ["AWAITS_ORDER", "Group", "Waits", "apply_order", "find_order", "groups"]

CONTROLS: Final = {
    "NW": "place", "RO": "place", "CH": "place", "PA": "place", "SN": "place",
    "XO": "change", "XX": "change", "SC": "status", "NA": "number",
    "CA": "cancel", "DC": "cancel", "OC": "cancel", "OD": "cancel",
    "HD": "hold", "OH": "hold", "RL": "release", "OE": "release",
    "RP": "replace", "RU": "replace",
}  # fmt: skip
"""Table 0119, as far as a placer or another filler says it to us; NA tells an order's placer number."""
STATUSES: Final = {"CA": "cancel", "DC": "cancel", "HD": "hold"}
"""Table 0038 in ORC-5 of a status change; what we do ourselves nobody tells us."""
PRIORITIES: Final = {
    **dict.fromkeys(("S", "STAT", "E", "EM", "EMER", "EMERG", "EMERGENCY", "EMERGENT"), "STAT"),
    **dict.fromkeys(
        ("A", "ASAP", "P", "PREOP", "C", "CALLBACK", "T", "TIMED", "U", "URGENT", "H", "HIGH"), "HIGH"
    ),
    **dict.fromkeys(("M", "MEDIUM"), "MEDIUM"),
    **dict.fromkeys(("L", "LOW", "PRN"), "LOW"),
}
"""Table 0485, TQ-6, and the words that senders write for them; others are routine (or a mapping's)."""
_TIMING_CRITICAL = re.compile(r"T[SMHDWL]\d+")
AWAITS_ORDER: Final = "order"
SIDES: Final = {
    "L": "L",
    "LEFT": "L",
    "LT": "L",
    "R": "R",
    "RIGHT": "R",
    "RT": "R",
    "B": "B",
    "BILATERAL": "B",
    "BIL": "B",
}


class Waits(Exception):  # noqa: N818 - no error: what was said concerns something that has not come yet
    """The message speaks of what is not known yet. ``key``: what it waits for."""

    def __init__(self, key: str) -> None:
        super().__init__("what it speaks of is not known yet")
        self.key = key


@dataclass(slots=True)
class Group:
    """One order of a message. ``words``: the fields of the order that it speaks of."""

    control: str
    placer: tuple[str, str] = ("", "")
    filler: tuple[str, str] = ("", "")
    codes: list[Code] = field(default_factory=list)
    words: dict[str, Any] = field(default_factory=dict)
    answers: list[Question] = field(default_factory=list)
    accession: str = ""
    study_uid: str = ""
    placed_ns: int = 0
    why: str = ""

    @property
    def key(self) -> str:
        """By what others wait for it."""
        value, issuer = self.placer
        return f"{AWAITS_ORDER}\0{issuer}\0{value}"


# ---------------------------------------------------------------- reading


def groups(saying: Saying) -> list[Group]:
    """The orders of a message. MissingError, InvalidError."""
    parts: list[list[Segment]] = []
    for one in saying.message.segments:
        if one.name == "ORC" or (
            one.name == "OBR" and (not parts or any(each.name == "OBR" for each in parts[-1]))
        ):
            parts.append([one])
        elif parts:
            parts[-1].append(one)
    if not parts:
        raise MissingError("the message has no order: neither ORC nor OBR", "ORC-1")
    pv1 = saying.message.first("PV1")
    return [_group(saying, part, pv1) for part in parts]


def _group(saying: Saying, part: list[Segment], pv1: Segment | None) -> Group:
    nothing = Segment("ORC", [], saying.message.header.separators)
    orc = next((one for one in part if one.name == "ORC"), nothing)
    obr = next((one for one in part if one.name == "OBR"), nothing)
    control = (orc.get(1) or "NW").upper()
    action = CONTROLS.get(control)
    if action == "status":
        action = STATUSES.get(orc.get(5).upper(), "change")
    if action is None:
        what = f"ORC-1 {control}" if re.fullmatch("[A-Z]{2}", control) else "what ORC-1 says"
        raise InvalidError(f"{what} is not understood here", "ORC-1")
    group = Group("replacement" if control == "RO" else action)
    group.placer = saying.entity(orc, 2) if orc.get(2) else saying.entity(obr, 2)
    group.filler = saying.entity(orc, 3) if orc.get(3) else saying.entity(obr, 3)
    if not group.placer[0] and not group.filler[0]:
        raise MissingError("neither the placer's nor the filler's number of the order is there", "ORC-2")
    group.codes = [code for code in (obr.code(4), obr.code(4, alternate=True), obr.code(44)) if code.value]
    group.why = orc.get(16, 2) or orc.get(16)
    group.placed_ns = orc.moment(9, saying.zone) or obr.moment(6, saying.zone)
    group.words = _words(saying, part, orc, obr, pv1)
    place = Place.parse(saying.listener.accession_in) if saying.listener.accession_in else None
    for one in part:
        if place is not None and one.name == place.segment:
            group.accession = group.accession or one.get(place.field, place.component or 1, rep=place.rep)
        if one.name == "ZDS":  # IHE RAD-TF 2:4.4.4.1.2.4, in orders of before OMI
            group.study_uid = group.study_uid or one.get(1)
        elif one.name == "IPC":
            group.accession = group.accession or one.get(1)
            group.study_uid = group.study_uid or one.get(3)
        elif one.name == "OBX":
            answered = _answer(saying, one)
            if answered is not None:
                group.answers.append(answered)
    return group


def _words(
    saying: Saying, part: list[Segment], orc: Segment, obr: Segment, pv1: Segment | None
) -> dict[str, Any]:
    words: dict[str, Any] = {}
    if orc.says(4):
        words["group_number"] = orc.get(4)
    timing = _timing(saying, part, orc, obr)
    words |= timing
    for segment, number in ((orc, 12), (obr, 16)):
        if segment.says(number) and "requester" not in words:
            words["requester"] = person_name(segment, number, at=2)
            words["requester_code"] = segment.get(number, 1)
    if orc.says(13):
        words["requester_location"] = orc.whole(13)
    for segment, number in ((orc, 14), (obr, 17)):
        if segment.says(number) and "requester_phone" not in words:
            words["requester_phone"] = segment.get(number, 1) or segment.get(number, 12)
    if obr.says(28):
        copies = (person_name(obr, 28, rep=rep, at=2) for rep in range(obr.repetitions(28)))
        words["copies_to"] = tuple(filter(None, copies))
    if obr.says(30):
        words["transport"] = obr.get(30)
    if obr.says(31):
        reasons = (obr.code(31, rep=rep) for rep in range(obr.repetitions(31)))
        words["reason"] = "; ".join(filter(None, (one.meaning or one.value for one in reasons)))
    side = _side(obr)
    if side:
        words["laterality"] = side
    notes = [one.get(3, rep=rep) for one in part if one.name == "NTE" for rep in range(one.repetitions(3))]
    if obr.says(13) or notes:
        words["clinical_information"] = "\n".join(filter(None, (obr.get(13), *notes)))
    diagnoses = [one.code(3) for one in part if one.name == "DG1"]
    if diagnoses:
        words["reason_codes"] = tuple(one for one in diagnoses if one.value)
    if pv1 is not None:
        if pv1.says(8):
            words["referring"] = person_name(pv1, 8, at=2)
        if pv1.get(19):
            words["visit_number"] = pv1.get(19)
            words["visit_issuer"] = pv1.authority(19, 4)
    return words


def _timing(saying: Saying, part: list[Segment], orc: Segment, obr: Segment) -> dict[str, Any]:
    """When it is wanted, and how urgently: TQ1, else ORC-7 or OBR-27 (TQ), else OBR-5."""
    words: dict[str, Any] = {}
    tq1 = next((one for one in part if one.name == "TQ1"), None)
    if tq1 is not None:
        found = [(tq1, 9, 1, tq1, 7, 1, tq1, 8, 1)]
    else:
        found = [(orc, 7, 6, orc, 7, 4, orc, 7, 5), (obr, 27, 6, obr, 27, 4, obr, 27, 5)]
    for how, how_at, how_part, begin, begin_at, begin_part, end, end_at, end_part in found:
        priority = how.get(how_at, how_part).upper()
        if priority and "priority" not in words:
            words["priority"] = _priority(priority)
        if begin.get(begin_at, begin_part) and "wanted_ns" not in words:
            words["wanted_ns"] = begin.moment(begin_at, saying.zone, begin_part)
        if end.get(end_at, end_part) and "wanted_until_ns" not in words:
            words["wanted_until_ns"] = end.moment(end_at, saying.zone, end_part)
    if "priority" not in words and obr.get(5):
        words["priority"] = _priority(obr.get(5).upper())
    return words


def _priority(said: str) -> str:
    return "HIGH" if _TIMING_CRITICAL.fullmatch(said) else PRIORITIES.get(said, "ROUTINE")


def _side(obr: Segment) -> str:
    """OBR-15, whose fifth component is the side in IHE's orders (RAD-TF 2:4.4.4.1.2.2)."""
    for component in (5, 1, 2):
        for sub in (1, 2):
            found = SIDES.get(obr.get(15, component, sub=sub).upper())
            if found:
                return found
    return ""


def _answer(saying: Saying, obx: Segment) -> Question | None:
    """An OBX as the answer to a safety question; a yes has to be looked at by a person."""
    text = obx.get(5, 2) or obx.get(5)
    if not text:
        return None
    name = folded(obx.get(3, 2) or obx.get(3)).replace(" ", "-")
    yes = obx.get(5).casefold() in {"y", "yes", "true", "1", "pos", "positive"}
    return Question(
        name=name, answer=text, blocks=yes, answered_by=saying.actor.person, answered_ns=saying.event_ns
    )


# ---------------------------------------------------------------- doing


def find_order(view: View, placer: tuple[str, str], filler: tuple[str, str]) -> str | None:
    """The order of a placer's number, else of ours: the accession or filler number. Another filler's number
    may be as ours is: an order that its placer calls otherwise is another one."""
    if placer[0]:
        found = view.ids(ORDER, "placer", f"{placer[1]}\0{placer[0]}", limit=1)
        if found or not filler[0]:
            return found[0] if found else None
    for lookup in ("accession", "filler"):
        ours = view.first(ORDER, lookup, filler[0])
        if ours is not None:
            others = ours[1].placer_number and placer[0] and ours[1].placer_issuer == placer[1]
            return None if others else ours[0]
    return None


def apply_order(change: Change, saying: Saying, group: Group, patient: str, replaced: str = "") -> str:
    """Do what a group says; the order's id. Waits when it speaks of an order that is not known.

    A new order whose number is known is a change of it, and a change of one that is not makes it: which of
    them came first says nothing of what is so now.
    """
    order_id = find_order(change, group.placer, group.filler)
    if order_id is None:
        if group.control not in {"place", "replacement", "change"} or not group.placer[0]:
            if not group.placer[0]:
                raise UnknownError("no order has the filler's number that ORC-3 says")
            raise Waits(group.key)
        order_id = _place(change, saying, group, patient)
    else:
        _change(change, saying, group, order_id, patient)
    if group.control == "cancel":
        placers.cancel(change, saying.actor, order_id, at=saying.at, why=group.why)
    elif group.control == "hold":
        placers.hold(change, saying.actor, order_id, at=saying.at, why=group.why)
    elif group.control == "release":
        placers.release(change, saying.actor, order_id, at=saying.at)
    elif group.control == "replace" and replaced:
        placers.supersede(change, saying.actor, order_id, replaced)
    elif group.control == "replace":
        placers.cancel(change, saying.actor, order_id, at=saying.at, why=group.why or "replaced")
    if group.control not in {"place", "replacement"}:
        saying.done.append(f"an order: {group.control}")
    return order_id


def _procedure(view: View, codes: list[Code]) -> Procedure:
    """The procedure of the catalog that one of the codes names."""
    if not codes:
        raise MissingError("OBR-4 is empty: the message does not say what is ordered", "OBR-4")
    for code in codes:
        for scheme in dict.fromkeys((code.scheme, "")):
            found = catalog.procedure(view, code.value, scheme)
            if found is not None:
                return found[1]
    raise InvalidError("the catalog has no active procedure of the code in OBR-4", "procedure")


def _place(change: Change, saying: Saying, group: Group, patient: str) -> str:
    procedure = _procedure(change, group.codes)
    asked = set(procedure.questions)
    new = orders.NewOrder(
        patient=patient,
        procedure=procedure.code.value,
        scheme=procedure.code.scheme,
        accession=group.accession,
        study_uid=group.study_uid,
        placer_number=group.placer[0],
        placer_issuer=group.placer[1],
        placed_ns=group.placed_ns,
        answers=tuple(one for one in group.answers if one.name in asked),
        source=saying.actor.person,
        **group.words,
    )
    order_id = orders.place(
        change, saying.actor, saying.settings, new,
        event_ns=saying.event_ns, sender=saying.sender, says=group.words,
    )  # fmt: skip
    saying.made.append(group.key)
    saying.done.append("an order is placed")
    return order_id


def _change(change: Change, saying: Saying, group: Group, order_id: str, patient: str) -> None:
    order = orders.get(change, order_id)
    if resolve(change, order.patient)[0] != resolve(change, patient)[0]:
        raise InvalidError("the order is another patient's: PID-3 and ORC-2 do not go together", "PID-3")
    if group.codes and _procedure(change, group.codes).code != order.procedure:
        raise InvalidError(
            "another examination is another order: replace it (ORC-1 RP) or cancel it", "procedure"
        )
    words = dict(group.words)
    if group.control == "number" and group.placer[0]:
        words |= {"placer_number": group.placer[0], "placer_issuer": group.placer[1]}
    unanswered = {one.name for one in order.questions if not one.answer}
    if "change" in orders.MACHINE.possible(order.state, saying.actor):
        orders.change_order(
            change, saying.actor, order_id, event_ns=saying.event_ns, sender=saying.sender, **words
        )
        for one in group.answers:
            if one.name in unanswered and order.state in ("placed", "accepted", "scheduled", "held"):
                orders.answer(change, saying.actor, order_id, one.name, one.answer, blocks=one.blocks)
        saying.done.append("an order is brought up to date")
    elif group.control == "change":
        orders.MACHINE.after(order.state, "change", saying.actor)
