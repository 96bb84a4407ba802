"""Reports over the API: the reading list, taken, written, put forward, signed, corrected; all versions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from msgspec import structs

from hounsfield.archive.plugins import Change, View
from hounsfield.ris_plugin import reporting
from hounsfield.ris_plugin.actors import Role
from hounsfield.ris_plugin.api import sight
from hounsfield.ris_plugin.api.endpoints import Ask, Endpoint, Nothing, Paged, page_of, paged
from hounsfield.ris_plugin.api.models import item, model, row_of
from hounsfield.ris_plugin.patients import resolve
from hounsfield.ris_plugin.records.reports import CLASSES, PRIORITIES, REPORT, Report, Section, queue

__all__ = ["ENDPOINTS"]

TAG: Final = "Reports"
MORE: Final = ("patient_name", "patient_number", "birth_day", "actions")
ReportItem: Final[Any] = item(Report, *MORE)
SectionModel: Final[Any] = model(Section)
READERS: Final = (Role.RADIOLOGIST, Role.TRAINEE)
_QUEUES: Final = [("queue", queue(priority, of)) for priority in PRIORITIES for of in CLASSES]
"""What is urgent first, of that emergencies, then who lies here; in each who has waited longest."""
_ACTIONS: Final = ("take", "release", "draft", "put-forward", "sign", "correct", "addend")


class Mine(Paged, frozen=True, kw_only=True):
    """``assigned_to``: whose; ``me`` for one's own."""

    state: str = ""
    modality: str = ""
    subspecialty: str = ""
    assigned_to: str = ""


class OfPatient(Nothing, frozen=True, kw_only=True):
    """Of one study."""

    study: str


class Taking(Nothing, frozen=True, kw_only=True):
    """``to``: somebody else it is given to."""

    to: str = ""


class Draft(Nothing, frozen=True, kw_only=True):
    """What is written so far. ``dictated``: spoken, to be read through."""

    sections: tuple[SectionModel, ...]
    dictated: bool = False
    template: str | None = None


class Signature(Nothing, frozen=True, kw_only=True):
    """``priors``: the studies it was compared with. ``critical``: somebody has to be told at once."""

    priors: tuple[str, ...] = ()
    critical: bool = False


class Correction(Nothing, frozen=True, kw_only=True):
    """Another version, whole, and why."""

    sections: tuple[SectionModel, ...]
    reason: str


class Addendum(Nothing, frozen=True, kw_only=True):
    """What is added."""

    sections: tuple[SectionModel, ...]
    reason: str = ""


class Telling(Nothing, frozen=True, kw_only=True):
    """Who was told of a critical finding."""

    whom: str


def shown(view: View, ask: Ask, report_id: str, report: Report) -> Any:
    """A report with whose it is. The draft is staff's to see."""
    _, patient = resolve(view, report.patient)
    if not ask.actor.may(sight.STAFF):
        report = structs.replace(report, draft=(), drafted_by="")
    return ask.item(
        view,
        REPORT,
        report_id,
        report,
        patient_name=patient.name,
        patient_number=patient.identifiers[0].value,
        birth_day=patient.birth_day,
        actions=tuple(one for one in reporting.MACHINE.possible(report.state, ask.actor) if one in _ACTIONS),
    )


def _line(view: View, ask: Ask, report_id: str, report: Report) -> Any:
    """A report in a list: without its texts."""
    return shown(view, ask, report_id, structs.replace(report, draft=(), versions=()))


def _now(view: View, ask: Ask) -> Any:
    key = ask.path["report"]
    return shown(view, ask, key, reporting.get(view, key))


def unread(view: View, ask: Ask) -> Any:
    """What is to be read: by priority, then emergencies, then who has waited longest."""
    q: Mine = ask.query
    who = ask.actor.person if q.assigned_to == "me" else q.assigned_to

    def keep(one: Report) -> bool:
        return (
            q.state in ("", one.state)
            and q.modality in ("", one.modality)
            and q.subspecialty in ("", one.subspecialty)
            and who in ("", one.assigned_to)
        )

    return paged(
        ask, view, REPORT, _QUEUES, lambda key, one: _line(view, ask, key, one),
        keep=keep, answer=ReportItem,
    )  # fmt: skip


def get(view: View, ask: Ask) -> Any:
    """A report with all its versions."""
    key = ask.path["report"]
    report = sight.report(view, ask.actor, key)
    patient_id, patient = resolve(view, report.patient)
    if patient.confidential:
        ask.seen.append(patient_id)
    return shown(view, ask, key, report)


def of_study(view: View, ask: Ask) -> Any:
    """The report of a study, as a list of none or one."""
    found = reporting.of_study(view, ask.query.study)
    if found is None:
        return page_of(ReportItem)(items=())
    report = sight.report(view, ask.actor, found[0])
    patient_id, patient = resolve(view, report.patient)
    if patient.confidential:
        ask.seen.append(patient_id)
    return page_of(ReportItem)(items=(shown(view, ask, found[0], report),))


def take(change: Change, ask: Ask) -> Any:
    """Take a report for oneself, or give it to somebody."""
    reporting.assign(change, ask.actor, ask.ris.settings, ask.path["report"], ask.body.to)
    return _now(change, ask)


def release(change: Change, ask: Ask) -> Any:
    """Give a report back."""
    reporting.release(change, ask.actor, ask.path["report"])
    return _now(change, ask)


def _sections(ask: Ask) -> list[Section]:
    return [row_of(one, ask.ris.zone) for one in ask.body.sections]


def draft(change: Change, ask: Ask) -> Any:
    """Keep what is written so far."""
    body: Draft = ask.body
    reporting.draft(
        change, ask.actor, ask.ris.settings, ask.path["report"], _sections(ask),
        dictated=body.dictated, template=body.template, version=ask.version or 0,
    )  # fmt: skip
    return _now(change, ask)


def put_forward(change: Change, ask: Ask) -> Any:
    """Make the draft a preliminary version."""
    reporting.put_forward(change, ask.actor, ask.path["report"])
    return _now(change, ask)


def sign(change: Change, ask: Ask) -> Any:
    """Make the draft final."""
    body: Signature = ask.body
    reporting.sign(change, ask.actor, ask.path["report"], priors=body.priors, critical=body.critical)
    return _now(change, ask)


def _after_final(action: Callable[..., Report]) -> Callable[[Change, Ask], Any]:
    def run(change: Change, ask: Ask) -> Any:
        action(change, ask.actor, ask.path["report"], _sections(ask), reason=ask.body.reason)
        return _now(change, ask)

    return run


def told(change: Change, ask: Ask) -> Any:
    """Note who was told of a critical finding."""
    reporting.told_critical(change, ask.actor, ask.path["report"], whom=ask.body.whom)
    return _now(change, ask)


def _on(name: str, action: str, summary: str, run: Any, body: Any, **more: Any) -> Endpoint:
    return Endpoint(
        name, more.pop("method", "POST"), f"/reports/{{report}}/{action}", TAG, summary, run, ReportItem,
        body=body, kind=REPORT, roles=more.pop("roles", READERS), **more,
    )  # fmt: skip


ENDPOINTS: Final = (
    Endpoint(
        "ListUnread", "GET", "/reading-list", TAG,
        "What is to be read: by priority, then emergencies, inpatients, then those that have waited longest",
        unread, page_of(ReportItem), Mine, roles=sight.DEPARTMENT,
    ),
    Endpoint(
        "FindReport", "GET", "/reports", TAG, "The report of a study",
        of_study, page_of(ReportItem), OfPatient, roles=(*sight.STAFF, Role.REFERRER),
    ),
    Endpoint(
        "GetReport", "GET", "/reports/{report}", TAG, "A report with all its versions",
        get, ReportItem, roles=(*sight.STAFF, Role.REFERRER),
    ),
    _on("TakeReport", "take", "Take a report for oneself, or give it to somebody", take, Taking,
        roles=(*READERS, Role.ADMINISTRATOR)),
    _on("ReleaseReport", "release", "Give a report back; what was drafted stays", release, None,
        roles=(*READERS, Role.ADMINISTRATOR)),
    _on("DraftReport", "draft", "Keep what is written so far", draft, Draft, method="PUT", must_match=True),
    _on("PutReportForward", "put-forward", "Make the draft a preliminary version", put_forward, None),
    _on("SignReport", "sign", "Make the draft final", sign, Signature),
    _on("CorrectReport", "correct", "Sign another version in place of a final one, and say why",
        _after_final(reporting.correct), Correction),
    _on("AddendReport", "addend", "Sign what is added to a final report",
        _after_final(reporting.addend), Addendum),
    _on("ToldCritical", "told", "Note who was told of a critical finding", told, Telling,
        roles=(*READERS, Role.CLERK)),
)  # fmt: skip
