"""Reports over the API: the reading list, taken, written, put forward, signed, corrected; all versions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import msgspec
from msgspec import structs

from hounsfield.archive.plugins import Change, View
from hounsfield.ris_plugin.actors import Role
from hounsfield.ris_plugin.api import sight
from hounsfield.ris_plugin.api.endpoints import Ask, Endpoint, Nothing, Paged, page_of
from hounsfield.ris_plugin.api.models import item, model, row_of
from hounsfield.ris_plugin.catalog import person
from hounsfield.ris_plugin.errors import InvalidError, UnknownError
from hounsfield.ris_plugin.patients import resolve
from hounsfield.ris_plugin.reading import reading_list, reporting
from hounsfield.ris_plugin.records.reports import REPORT, Report, Section

__all__ = ["ENDPOINTS"]

TAG: Final = "Reports"
MORE: Final = ("patient_name", "patient_number", "birth_day", "actions")
ReportItem: Final[Any] = item(Report, *MORE)
SectionModel: Final[Any] = model(Section)
READERS: Final = (Role.RADIOLOGIST, Role.TRAINEE)
_ACTIONS: Final = ("take", "release", "draft", "put-forward", "sign", "correct", "addend")


class Mine(Paged, frozen=True, kw_only=True):
    """``assigned_to``: whose; ``me`` for one's own."""

    state: str = ""
    modality: str = ""
    subspecialty: str = ""
    assigned_to: str = ""


class PriorItem(msgspec.Struct, frozen=True, kw_only=True):
    """An earlier study of the patient; ``because`` says why it is shown so early, ``here`` whether its images
    are in the archive."""

    study_uid: str
    date: str
    modalities: tuple[str, ...]
    description: str
    score: int
    because: tuple[str, ...]
    report_id: str
    here: bool


class OfPatient(Nothing, frozen=True, kw_only=True):
    """Of one study."""

    study: str


class Taking(Nothing, frozen=True, kw_only=True):
    """``to``: somebody else it is given to."""

    to: str = ""


class Draft(Nothing, frozen=True, kw_only=True):
    """What is written so far. ``dictated``: spoken, to be read through. ``language``: its tag (RFC 5646),
    where it is not the template's or the department's."""

    sections: tuple[SectionModel, ...]
    dictated: bool = False
    template: str | None = None
    language: str | None = None


class Signature(Nothing, frozen=True, kw_only=True):
    """``priors``: the studies it was compared with. ``critical``: somebody has to be told at once."""

    priors: tuple[str, ...] = ()
    critical: bool = False


class Correction(Nothing, frozen=True, kw_only=True):
    """Another version, whole, and why."""

    sections: tuple[SectionModel, ...]
    reason: str
    critical: bool = False


class Addendum(Nothing, frozen=True, kw_only=True):
    """What is added."""

    sections: tuple[SectionModel, ...]
    reason: str = ""
    critical: bool = False


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
    report = reporting.get(view, key)
    ask.open(view, report.patient)
    return shown(view, ask, key, report)


def unread(view: View, ask: Ask) -> Any:
    """What is to be read, what is urgent, waits long or is the reader's own subspecialty first.

    ``next`` is how many came before: reports that are read meanwhile move the others up.
    """
    q: Mine = ask.query
    if q.after and not (q.after.isascii() and q.after.isdigit() and len(q.after) < 7):
        raise InvalidError("`after` is the `next` of the page before", "after")
    begin = int(q.after or 0)
    held = person(view, ask.actor.person)
    found = reading_list.waiting(
        view,
        ask.now_ns,
        person=ask.actor.person,
        subspecialties=held[1].subspecialties if held is not None else (),
        wanted=reading_list.Wanted(
            modality=q.modality,
            subspecialty=q.subspecialty,
            states=(q.state,) if q.state else (),
            assigned_to=ask.actor.person if q.assigned_to == "me" else q.assigned_to,
        ),
        limit=begin + q.limit + 1,
    )
    items = tuple(_line(view, ask, one.report_id, one.report) for one in found[begin : begin + q.limit])
    more = len(found) > begin + q.limit
    return page_of(ReportItem)(items=items, next=str(begin + q.limit) if more else "")


def _of_report(view: View, ask: Ask) -> str:
    ask.open(view, reporting.get(view, ask.path["report"]).patient)
    return ask.path["report"]


async def _priors(ask: Ask, report_id: str) -> Any:
    """The priors, for which the archive is asked as well."""
    fields = PriorItem.__struct_fields__
    found = await reading_list.priors(ask.ris, report_id)
    items = (PriorItem(**{name: getattr(one, name) for name in fields}) for one in found)
    return page_of(PriorItem)(items=tuple(items))


def get(view: View, ask: Ask) -> Any:
    """A report with all its versions."""
    key = ask.path["report"]
    report = sight.report(view, ask.actor, key)
    ask.open(view, report.patient)
    return shown(view, ask, key, report)


def of_study(view: View, ask: Ask) -> Any:
    """The report of a study, as a list of none or one."""
    found = reporting.of_study(view, ask.query.study)
    if found is None:
        return page_of(ReportItem)(items=())
    try:
        report = sight.report(view, ask.actor, found[0])
    except UnknownError:
        return page_of(ReportItem)(items=())  # as if there were none
    ask.open(view, report.patient)
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
        dictated=body.dictated, template=body.template, language=body.language, version=ask.version or 0,
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
        body = ask.body
        action(
            change, ask.actor, ask.path["report"], _sections(ask), reason=body.reason, critical=body.critical
        )
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
        "What is to be read: what is urgent, waits long or is the reader's subspecialty first",
        unread, page_of(ReportItem), Mine, roles=sight.DEPARTMENT,
    ),
    Endpoint(
        "ListPriors", "GET", "/reports/{report}/priors", TAG,
        "Earlier studies of the patient, those that matter most for this report first",
        _of_report, page_of(PriorItem), later=_priors, roles=sight.STAFF,
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
    _on("PutReportForward", "put-forward", "Make the draft a preliminary version", put_forward, None,
        must_match=True),
    _on("SignReport", "sign", "Make the draft final", sign, Signature, must_match=True),
    _on("CorrectReport", "correct", "Sign another version in place of a final one, and say why",
        _after_final(reporting.correct), Correction, must_match=True),
    _on("AddendReport", "addend", "Sign what is added to a final report",
        _after_final(reporting.addend), Addendum, must_match=True),
    _on("ToldCritical", "told", "Note who was told of a critical finding", told, Telling,
        roles=(*READERS, Role.CLERK)),
)  # fmt: skip
