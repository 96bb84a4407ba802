"""Reports: taken by one reader at a time, drafted, signed; what is signed is never edited.

A report becomes readable when its images are verified. Whoever takes it has it for himself (a lock that ends
when nobody writes any more). A draft may be changed by who has it; a *version* is made when it is put forward
as preliminary or signed, and stays as it is for good: a correction or an addendum is another one, with its
reason. A trainee's report is put forward and signed by a radiologist, who then answers for it; the author
stays named.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from msgspec import structs

from hounsfield.archive.plugins import Change, View
from hounsfield.ris_plugin.actors import SYSTEM, Actor, Role
from hounsfield.ris_plugin.catalog import person
from hounsfield.ris_plugin.errors import ForbiddenError, InvalidError, NotNowError, StaleError, UnknownError
from hounsfield.ris_plugin.languages import checked
from hounsfield.ris_plugin.reading import templates
from hounsfield.ris_plugin.records.base import NS
from hounsfield.ris_plugin.records.catalog import PROCEDURE
from hounsfield.ris_plugin.records.orders import ORDER, Order
from hounsfield.ris_plugin.records.patients import PATIENT
from hounsfield.ris_plugin.records.reports import (
    REPORT,
    TEMPLATE,
    Document,
    Report,
    Section,
    Template,
    Told,
    Version,
)
from hounsfield.ris_plugin.settings import RisSettings
from hounsfield.ris_plugin.states import SAME, Machine, Transition

__all__ = [
    "MACHINE",
    "addend",
    "assign",
    "correct",
    "document",
    "draft",
    "get",
    "of_study",
    "put_forward",
    "ready",
    "release",
    "sign",
    "take_back",
    "told_critical",
    "unlock",
    "valid",
    "was_given_out",
]

_READERS: Final = (Role.RADIOLOGIST, Role.TRAINEE)
_SIGNED: Final = ("final", "corrected", "addended")

MACHINE: Final = Machine(
    "report",
    ("unassigned", "assigned", "dictated", "preliminary", "final", "corrected", "addended"),
    (
        Transition("assign", ("unassigned", "preliminary"), SAME, (*_READERS, Role.ADMINISTRATOR)),
        Transition("take", ("unassigned",), "assigned", _READERS),
        Transition("release", ("assigned",), "unassigned", (*_READERS, Role.ADMINISTRATOR)),
        Transition("release", ("dictated", "preliminary"), SAME, (*_READERS, Role.ADMINISTRATOR)),
        Transition("draft", ("assigned", "dictated", "preliminary"), SAME, _READERS),
        Transition("dictate", ("assigned", "dictated"), "dictated", _READERS),
        Transition("put-forward", ("assigned", "dictated", "preliminary"), "preliminary", _READERS),
        Transition("sign", ("assigned", "dictated", "preliminary"), "final", (Role.RADIOLOGIST,)),
        Transition("correct", _SIGNED, "corrected", (Role.RADIOLOGIST,)),
        Transition("addend", _SIGNED, "addended", (Role.RADIOLOGIST,)),
    ),
)
"""A trainee cannot finalise; a final text is followed by versions, never changed."""

SECTIONS: Final = ("indication", "technique", "comparison", "findings", "impression", "recommendation")
"""The usual sections, in the order in which they are read, as in RSNA's report templates."""
_UID: Final = re.compile(r"[0-9.]{1,64}", re.ASCII)  # PS3.5 9.1
SECTION_CHARACTERS_MAX: Final = 100_000
SECTIONS_MAX: Final = 50
REPORT_CHARACTERS_MAX: Final = 250_000
"""Some sixty pages, which take a quarter of a minute to print."""


# ---------------------------------------------------------------- finding


def get(view: View, report_id: str) -> Report:
    """The report. UnknownError."""
    report = view.get(REPORT, report_id)
    if report is None or report.withdrawn:
        raise UnknownError("there is no such report")
    return report


def of_study(view: View, study_uid: str) -> tuple[str, Report] | None:
    """The report of a study; None when it has none, or that was withdrawn."""
    found = view.first(REPORT, "study", study_uid)
    return None if found is None or found[1].withdrawn else found


def valid(report: Report, number: int) -> tuple[Version, ...]:
    """What the report says as of a version: that, after what it adds to where it is an addendum. Any other
    stands in place of all before it."""
    said: list[Version] = []
    for one in report.versions:
        if one.number <= number:
            if one.kind != "addendum":
                said.clear()
            said.append(one)
    return tuple(said)


def is_locked(report: Report, now_ns: int) -> bool:
    """Whether somebody has it for himself now."""
    return bool(report.assigned_to) and report.locked_until_ns > now_ns


# ---------------------------------------------------------------- becoming readable


def ready(change: Change, actor: Actor, order_ids: Sequence[str]) -> str:
    """The images of orders of one study are there and verified: their report can be read; its id. Said again:
    the same one, also with orders that came later."""
    found: list[tuple[str, Order]] = []
    for order_id in order_ids:
        order = change.get(ORDER, order_id)
        if order is None:
            raise UnknownError("there is no such order")
        found.append((order_id, order))
    if not found:
        raise InvalidError("a report is of an order", "orders")
    first = found[0][1]
    held = of_study(change, first.study_uid)
    if held is not None:
        report_id, report = held
        orders = tuple(dict.fromkeys((*report.orders, *order_ids)))
        if orders != report.orders:
            change.put(REPORT, report_id, structs.replace(report, orders=orders))
        return report_id
    procedure = change.first(PROCEDURE, "code", f"{first.procedure.scheme}\0{first.procedure.value}")
    patient = change.get(PATIENT, first.patient)
    report_id, before = change.first(REPORT, "study", first.study_uid) or (change.new_id(), None)
    report = Report(
        number=before.number if before is not None else f"R{change.count('report'):08}",
        patient=first.patient,
        orders=tuple(order_ids),
        study_uid=first.study_uid,
        state=MACHINE.initial,
        accession=first.accession,
        modality=first.modality,
        body_part=first.body_part,
        subspecialty=procedure[1].subspecialty if procedure is not None else "",
        priority=first.priority,
        patient_class=patient.visit.patient_class if patient is not None else "",
        ready_ns=change.now_ns,
        changed_ns=change.now_ns,
    )
    if before is not None:  # withdrawn: what somebody saw in these images is still to be read
        written = ("draft", "drafted_by", "template", "language")
        report = structs.replace(report, **{name: getattr(before, name) for name in written})
    change.put(REPORT, report_id, report)
    _say(change, "report-ready", actor, report_id, report)
    return report_id


def was_given_out(view: View, study_uid: str) -> bool:
    """Whether somebody was told what a report of a study says: it has a version."""
    held = of_study(view, study_uid)
    return held is not None and bool(held[1].versions)


def take_back(change: Change, study_uid: str) -> None:
    """The study turned out to be another order's: its report, of which nothing was given out, is not to be
    written. What was drafted is there again for whoever reads the study as the right order's."""
    held = of_study(change, study_uid)
    if held is not None and not held[1].versions:
        withdrawn = structs.replace(
            held[1], withdrawn=True, assigned_to="", locked_until_ns=0, changed_ns=change.now_ns
        )
        change.put(REPORT, held[0], withdrawn)
        _say(change, "report-withdrawn", SYSTEM, *held)


# ---------------------------------------------------------------- taking


def assign(change: Change, actor: Actor, settings: RisSettings, report_id: str, to: str = "") -> Report:
    """Take a report for oneself, locked, or as an administrator or radiologist give it to somebody who reads.
    InvalidError for anybody else; NotNowError while another reader has it."""
    report = get(change, report_id)
    who = to or actor.person
    if who == actor.person:
        actor.require(*_READERS, what="taking a report")
    elif not actor.may((Role.ADMINISTRATOR, Role.RADIOLOGIST)):
        raise ForbiddenError("to give a report to somebody else needs the role administrator or radiologist")
    else:
        reader = person(change, who)
        if reader is None or not set(reader[1].roles) & set(_READERS):
            raise InvalidError("a report is given to an active person who reads", "to")
    if is_locked(report, change.now_ns) and report.assigned_to not in ("", who, actor.person):
        raise NotNowError("somebody else has this report now: its lock ends when it is released or left")
    if report.state == "unassigned":
        if not actor.may(_READERS):
            MACHINE.after(report.state, "assign", actor)
            state = "assigned"
        else:
            state = MACHINE.after(report.state, "take", actor)
    elif report.state in ("assigned", "dictated"):
        actor.require(*_READERS, Role.ADMINISTRATOR, what="taking a report")
        state = report.state
    else:
        state = MACHINE.after(report.state, "assign", actor)
    changed = structs.replace(
        report,
        state=state,
        assigned_to=who,
        locked_until_ns=change.now_ns + int(settings.lock_seconds * NS),
        changed_ns=change.now_ns,
    )
    change.put(REPORT, report_id, changed)
    _say(change, "report-assigned", actor, report_id, changed, to=who)
    return changed


def release(change: Change, actor: Actor, report_id: str) -> Report:
    """Give a report back that one has; what was drafted stays for the next reader."""
    report = get(change, report_id)
    if report.assigned_to != actor.person and not actor.may((Role.ADMINISTRATOR,)):
        raise ForbiddenError("only who has the report, or an administrator, gives it back")
    state = MACHINE.after(report.state, "release", actor)
    changed = structs.replace(
        report, state=state, assigned_to="", locked_until_ns=0, changed_ns=change.now_ns
    )
    change.put(REPORT, report_id, changed)
    _say(change, "report-released", actor, report_id, changed)
    return changed


def unlock(change: Change, report_id: str) -> bool:
    """End a lock that ran out; whether it had. The timer's."""
    report = get(change, report_id)
    if not report.locked_until_ns or report.locked_until_ns > change.now_ns:
        return False
    state = "unassigned" if report.state == "assigned" and not report.draft else report.state
    assigned_to = "" if state == "unassigned" else report.assigned_to
    unlocked = structs.replace(report, state=state, assigned_to=assigned_to, locked_until_ns=0)
    change.put(REPORT, report_id, unlocked)
    _say(change, "report-unlocked", SYSTEM, report_id, unlocked)  # others may take it now, and look at lists
    return True


# ---------------------------------------------------------------- writing


def draft(
    change: Change,
    actor: Actor,
    settings: RisSettings,
    report_id: str,
    sections: Sequence[Section],
    *,
    dictated: bool = False,
    version: int = 0,
    template: str | None = None,
    language: str | None = None,
) -> Report:
    """Keep what is written so far, as who has the report. ``version``: of the record as it was read;
    StaleError when it is another one now. ``dictated``: it was spoken, and is to be read through.
    ``template``: the record of the one it is written in, "" for none; ``language``: its tag (RFC 5646), where
    it is not the template's. None leaves them."""
    report = get(change, report_id)
    _mine(report, actor, change.now_ns)
    if version and change.version(REPORT, report_id) != version:
        raise StaleError("the report has changed since it was read: look at it again")
    if template and template != report.template:
        templates.template(change, template, actor.person)
    action = "dictate" if dictated else "draft"
    changed = structs.replace(
        report,
        state=MACHINE.after(report.state, action, actor),
        draft=_checked(sections),
        template=report.template if template is None else template,
        language=report.language if language is None else checked(language),
        drafted_by=actor.person,
        locked_until_ns=change.now_ns + int(settings.lock_seconds * NS),
        changed_ns=change.now_ns,
    )
    change.put(REPORT, report_id, changed)
    if changed.state != report.state:
        _say(change, "report-dictated", actor, report_id, changed)
    return changed


def put_forward(change: Change, actor: Actor, report_id: str) -> Report:
    """Make the draft a preliminary version: those who wait can see it, a radiologist is to sign it."""
    report = get(change, report_id)
    _mine(report, actor, change.now_ns)
    state = MACHINE.after(report.state, "put-forward", actor)
    made = _version(change, report, "preliminary", actor)
    changed = structs.replace(
        report, state=state, versions=(*report.versions, made), locked_until_ns=0, assigned_to="",
        changed_ns=change.now_ns,
    )  # fmt: skip
    change.put(REPORT, report_id, changed)
    _say(change, "report-preliminary", actor, report_id, changed, version=made.number)
    return changed


def sign(
    change: Change,
    actor: Actor,
    report_id: str,
    *,
    priors: Sequence[str] = (),
    critical: bool = False,
) -> Report:
    """Make the draft final. By a radiologist who has it: nobody signs for another. ``priors``: the studies
    that it was compared with; ``critical``: somebody has to be told at once. InvalidError when something
    is missing that the report's template requires."""
    report = get(change, report_id)
    state = MACHINE.after(report.state, "sign", actor)
    _mine(report, actor, change.now_ns)
    if not all(_UID.fullmatch(one) for one in priors):
        raise InvalidError("priors are Study Instance UIDs", "priors")
    made = _version(change, report, "final", actor, signed=True, critical=critical)
    changed = structs.replace(
        report,
        state=state,
        versions=(*report.versions, made),
        priors=tuple(priors),
        draft=(),
        drafted_by="",
        locked_until_ns=0,
        changed_ns=change.now_ns,
    )
    change.put(REPORT, report_id, changed)
    _say(change, "report-signed", actor, report_id, changed, version=made.number, critical=critical)
    return changed


def correct(
    change: Change,
    actor: Actor,
    report_id: str,
    sections: Sequence[Section],
    *,
    reason: str,
    critical: bool = False,
) -> Report:
    """Sign another version in place of a final one, which stays to be read. It says why."""
    return _after_final(
        change, actor, report_id, "correct", "correction", sections, reason, critical=critical
    )


def addend(
    change: Change,
    actor: Actor,
    report_id: str,
    sections: Sequence[Section],
    *,
    reason: str = "",
    critical: bool = False,
) -> Report:
    """Sign what is added to a final report, whose text stays as it is."""
    return _after_final(
        change, actor, report_id, "addend", "addendum", sections, reason or "addendum", critical=critical
    )


def told_critical(change: Change, actor: Actor, report_id: str, *, whom: str) -> Report:
    """Note who was told of a critical finding, by whom and when: of the last version that has one."""
    actor.require(*_READERS, Role.CLERK, what="noting who was told")
    report = get(change, report_id)
    if not whom.strip():
        raise InvalidError("say who was told", "whom")
    found = next((one for one in reversed(report.versions) if one.critical), None)
    if found is None:
        raise NotNowError("the report has no critical finding")
    told = Told(version=found.number, whom=whom.strip(), by=actor.person, at_ns=change.now_ns)
    changed = structs.replace(report, told=(*report.told, told), changed_ns=change.now_ns)
    change.put(REPORT, report_id, changed)
    _say(change, "report-critical-told", actor, report_id, changed)
    return changed


def document(change: Change, report_id: str, made: Document) -> None:
    """Note what a version became in the archive. The version itself stays as it is."""
    report = get(change, report_id)
    others = tuple(one for one in report.documents if one.version != made.version)
    changed = structs.replace(report, documents=(*others, made))
    if changed.documents != report.documents:
        change.put(REPORT, report_id, changed)


# ---------------------------------------------------------------- parts


def _after_final(  # noqa: PLR0917  the two that differ in words only
    change: Change,
    actor: Actor,
    report_id: str,
    action: str,
    kind: str,
    sections: Sequence[Section],
    reason: str,
    *,
    critical: bool,
) -> Report:
    report = get(change, report_id)
    state = MACHINE.after(report.state, action, actor)
    if not reason.strip():
        raise InvalidError("say why it is corrected", "reason")
    fill = templates.complete if kind == "correction" else templates.filled
    template = _template(change, report)
    made = Version(
        number=len(report.versions) + 1,
        kind=kind,
        sections=fill(template, _checked(sections)),
        language=_language(report, template),
        author=actor.person,
        at_ns=change.now_ns,
        signer=actor.person,
        signed_ns=change.now_ns,
        reason=reason.strip(),
        critical=critical,
    )
    if not any(one.text.strip() or one.fields for one in made.sections):
        raise InvalidError("the report is empty", "sections")
    changed = structs.replace(
        report, state=state, versions=(*report.versions, made), changed_ns=change.now_ns
    )
    change.put(REPORT, report_id, changed)
    event = "report-corrected" if kind == "correction" else "report-addended"
    _say(change, event, actor, report_id, changed, version=made.number, critical=critical)
    return changed


def _version(
    change: Change, report: Report, kind: str, actor: Actor, *, signed: bool = False, critical: bool = False
) -> Version:
    if not any(one.text.strip() or one.fields for one in report.draft):
        raise InvalidError("the report is empty", "sections")
    fill = templates.complete if signed else templates.filled
    template = _template(change, report)
    return Version(
        number=len(report.versions) + 1,
        kind=kind,
        sections=fill(template, report.draft),
        language=_language(report, template),
        author=report.drafted_by or actor.person,
        at_ns=change.now_ns,
        signer=actor.person if signed else "",
        signed_ns=change.now_ns if signed else 0,
        critical=critical,
    )


def _template(view: View, report: Report) -> Template | None:
    """The template that a report is written in; None also when it was removed since."""
    return view.get(TEMPLATE, report.template) if report.template else None


def _language(report: Report, template: Template | None) -> str:
    return report.language or (template.language if template is not None else "")


def _mine(report: Report, actor: Actor, now_ns: int) -> None:
    """That the actor has the report. Who had it and left it too long may have lost it to somebody else."""
    if report.assigned_to != actor.person:
        if is_locked(report, now_ns):
            raise NotNowError("somebody else has this report now")
        raise NotNowError("take the report first: nobody writes on, or signs, what he has not")


def _checked(sections: Sequence[Section]) -> tuple[Section, ...]:
    names = [one.name for one in sections]
    if len(names) > SECTIONS_MAX or len(set(names)) != len(names) or not all(name.strip() for name in names):
        raise InvalidError(
            f"a report has at most {SECTIONS_MAX} sections, each with a name of its own", "sections"
        )
    if any(len(one.text) > SECTION_CHARACTERS_MAX for one in sections):
        raise InvalidError(f"a section has at most {SECTION_CHARACTERS_MAX} characters", "sections")
    if sum(len(one.text) for one in sections) > REPORT_CHARACTERS_MAX:
        raise InvalidError(f"a report has at most {REPORT_CHARACTERS_MAX} characters", "sections")
    return tuple(sections)


def _say(change: Change, event: str, actor: Actor, report_id: str, report: Report, **more: Any) -> None:
    body: Mapping[str, Any] = {
        "report": report_id,
        "study": report.study_uid,
        "orders": list(report.orders),
        "patient": report.patient,
        "actor": actor.person,
        **more,
    }
    change.say(event, body)
