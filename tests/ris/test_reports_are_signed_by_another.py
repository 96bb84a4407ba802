"""A report is signed by who may not, written on by two, or is not any more what was signed."""

from __future__ import annotations

import pytest

from hounsfield.ris_plugin.catalog import put_person
from hounsfield.ris_plugin.errors import ForbiddenError, InvalidError, NotNowError, StaleError, UnknownError
from hounsfield.ris_plugin.reading import reporting
from hounsfield.ris_plugin.reading.reporting import (
    addend,
    assign,
    correct,
    draft,
    get,
    put_forward,
    ready,
    release,
    sign,
    told_critical,
    unlock,
)
from hounsfield.ris_plugin.reading.templates import put_template
from hounsfield.ris_plugin.records.base import NS
from hounsfield.ris_plugin.records.catalog import Person
from hounsfield.ris_plugin.records.reports import REPORT, Section, Template, TemplateSection
from ris.conftest import ADMINISTRATOR, CLERK, INTERFACE, RADIOLOGIST, TECHNOLOGIST, TRAINEE, Desk, actor

OTHER = actor("radiologist", person="other")
TEXT = (Section(name="findings", text="Nothing."), Section(name="impression", text="Normal."))


@pytest.fixture
def report(desk: Desk) -> str:
    desk.procedure()
    return desk.do(ready, INTERFACE, [desk.order(desk.patient())])


def taken(desk: Desk, report: str, who: object = RADIOLOGIST) -> None:
    desk.do(assign, who, desk.settings, report)  # type: ignore[arg-type]
    desk.do(draft, who, desk.settings, report, TEXT)  # type: ignore[arg-type]


def test_one_reader_at_a_time(desk: Desk, report: str) -> None:
    taken(desk, report)
    for action in (
        lambda: desk.do(assign, OTHER, desk.settings, report),
        lambda: desk.do(draft, OTHER, desk.settings, report, TEXT),
        lambda: desk.do(sign, OTHER, report),
        lambda: desk.do(put_forward, OTHER, report),
    ):
        with pytest.raises(NotNowError):
            action()
    with pytest.raises(ForbiddenError):
        desk.do(release, OTHER, report)
    desk.do(release, RADIOLOGIST, report)
    desk.do(assign, OTHER, desk.settings, report)
    assert desk.look(get, report).draft == TEXT  # what was written is there


def test_a_lock_ends_when_nobody_writes_and_then_another_may(desk: Desk, report: str) -> None:
    desk.do(assign, RADIOLOGIST, desk.settings, report)
    desk.now_ns += int(desk.settings.lock_seconds * NS) - 1
    assert not desk.commit(lambda change: unlock(change, report))
    desk.do(draft, RADIOLOGIST, desk.settings, report, TEXT)  # whoever writes keeps it
    desk.now_ns += int(desk.settings.lock_seconds * NS)
    assert desk.commit(lambda change: unlock(change, report))
    assert [one.body["actor"] for one in desk.said() if one.kind == "ris.report-unlocked"] == ["system"]
    desk.do(assign, OTHER, desk.settings, report)
    with pytest.raises(NotNowError):
        desk.do(sign, RADIOLOGIST, report)


def test_a_trainee_cannot_finalise_and_stays_the_author(desk: Desk, report: str) -> None:
    taken(desk, report, TRAINEE)
    with pytest.raises(ForbiddenError):
        desk.do(sign, TRAINEE, report)
    desk.do(put_forward, TRAINEE, report)
    assert desk.look(get, report).state == "preliminary"
    with pytest.raises(NotNowError, match="take the report first"):
        desk.do(sign, RADIOLOGIST, report)
    desk.do(assign, RADIOLOGIST, desk.settings, report)
    final = desk.do(sign, RADIOLOGIST, report, priors=["1.2"])
    assert (final.state, final.priors) == ("final", ("1.2",))
    assert [(one.kind, one.author, one.signer) for one in final.versions] == [
        ("preliminary", "trainee", ""),
        ("final", "trainee", "radiologist"),
    ]


@pytest.mark.parametrize("who", [CLERK, TECHNOLOGIST, ADMINISTRATOR, INTERFACE])
def test_nobody_else_reads(desk: Desk, report: str, who: object) -> None:
    desk.do(put_person, ADMINISTRATOR, Person(code="radiologist", roles=("radiologist",)))
    desk.do(assign, ADMINISTRATOR, desk.settings, report, to="radiologist")
    for action in (draft, sign, put_forward):
        with pytest.raises((ForbiddenError, NotNowError)):
            arguments = (desk.settings, report, TEXT) if action is draft else (report,)
            desk.do(action, who, *arguments)  # type: ignore[arg-type]
    assert desk.look(get, report).versions == ()


def test_what_is_signed_never_changes(desk: Desk, report: str) -> None:
    taken(desk, report)
    first = desk.do(sign, RADIOLOGIST, report).versions[0]
    for action in (
        lambda: desk.do(draft, RADIOLOGIST, desk.settings, report, ()),
        lambda: desk.do(sign, RADIOLOGIST, report),
        lambda: desk.do(put_forward, RADIOLOGIST, report),
    ):
        with pytest.raises(NotNowError):
            action()
    with pytest.raises(InvalidError, match="why"):
        desk.do(correct, RADIOLOGIST, report, TEXT, reason=" ")
    with pytest.raises(ForbiddenError):
        desk.do(correct, TRAINEE, report, TEXT, reason="typo")
    desk.do(correct, RADIOLOGIST, report, (Section(name="findings", text="A nodule."),), reason="seen later")
    last = desk.do(addend, OTHER, report, (Section(name="findings", text="Compared."),))
    assert last.state == "addended"
    assert last.versions[0] == first
    assert [(one.number, one.kind, one.signer, one.reason) for one in last.versions] == [
        (1, "final", "radiologist", ""),
        (2, "correction", "radiologist", "seen later"),
        (3, "addendum", "other", "addendum"),
    ]


def test_an_empty_report_is_not_signed(desk: Desk, report: str) -> None:
    desk.do(assign, RADIOLOGIST, desk.settings, report)
    with pytest.raises(InvalidError, match="empty"):
        desk.do(sign, RADIOLOGIST, report)
    for wrong in (
        (TEXT[0], TEXT[0]),
        (Section(name=" ", text="x"),),
        (Section(name="findings", text="x" * 100_001),),
    ):
        with pytest.raises(InvalidError):
            desk.do(draft, RADIOLOGIST, desk.settings, report, wrong)


def test_two_windows_of_one_reader_do_not_overwrite_each_other(desk: Desk, report: str) -> None:
    desk.do(assign, RADIOLOGIST, desk.settings, report)
    with desk.view() as view:
        version = view.version(REPORT, report)
    desk.do(draft, RADIOLOGIST, desk.settings, report, TEXT, version=version)
    with pytest.raises(StaleError):
        desk.do(draft, RADIOLOGIST, desk.settings, report, (), version=version)


def test_a_study_has_one_report_however_often_it_becomes_ready(desk: Desk, report: str) -> None:
    (order,) = desk.look(get, report).orders
    assert desk.do(ready, INTERFACE, [order]) == report


def test_a_critical_finding_says_who_was_told(desk: Desk, report: str) -> None:
    taken(desk, report)
    desk.do(sign, RADIOLOGIST, report, critical=True)
    told = desk.do(told_critical, RADIOLOGIST, report, whom="Dr. Ward")
    assert [(one.version, one.whom, one.by) for one in told.told] == [(1, "Dr. Ward", "radiologist")]


def test_a_critical_finding_stays_one_when_something_is_added(desk: Desk, report: str) -> None:
    taken(desk, report)
    desk.do(sign, RADIOLOGIST, report, critical=True)
    desk.do(addend, RADIOLOGIST, report, (Section(name="findings", text="Compared."),))
    told = desk.do(told_critical, RADIOLOGIST, report, whom="Dr. Ward")
    assert [one.version for one in told.told] == [1]
    desk.do(correct, RADIOLOGIST, report, TEXT, reason="a bleeding was overlooked", critical=True)
    told = desk.do(told_critical, CLERK, report, whom="Dr. Night")
    assert [(one.version, one.by) for one in told.told] == [(1, "radiologist"), (3, "clerk")]


def test_a_report_is_given_to_who_reads(desk: Desk, report: str) -> None:
    for code, role, active in (
        ("radiologist", "radiologist", True), ("other", "radiologist", True), ("clerk", "clerk", True),
        ("left", "radiologist", False),
    ):  # fmt: skip
        desk.do(put_person, ADMINISTRATOR, Person(code=code, roles=(role,), active=active))
    for to in ("clerk", "left", "nobody"):
        with pytest.raises(InvalidError, match="who reads"):
            desk.do(assign, ADMINISTRATOR, desk.settings, report, to=to)
    with pytest.raises(ForbiddenError):
        desk.do(assign, ADMINISTRATOR, desk.settings, report)  # he would keep it from those who read
    assert desk.look(get, report).assigned_to == ""
    taken(desk, report)
    desk.do(assign, RADIOLOGIST, desk.settings, report, to="other")  # who has it hands it over
    assert desk.look(get, report).assigned_to == "other"
    with pytest.raises(NotNowError):
        desk.do(assign, RADIOLOGIST, desk.settings, report, to="radiologist")
    desk.do(sign, OTHER, report)
    with pytest.raises(NotNowError):
        desk.do(release, OTHER, report)


def test_what_it_was_compared_with_are_studies(desk: Desk, report: str) -> None:
    taken(desk, report)
    with pytest.raises(InvalidError, match="UIDs"):
        desk.do(sign, RADIOLOGIST, report, priors=["1.2", "last year's"])


def test_a_report_is_not_begun_with_what_another_keeps_for_himself(desk: Desk, report: str) -> None:
    own = Template(name="mine", sections=(TemplateSection(name="findings"),), owner="other")
    key = desk.do(put_template, OTHER, own)
    taken(desk, report)
    with pytest.raises(UnknownError):
        desk.do(draft, RADIOLOGIST, desk.settings, report, TEXT, template=key)


def test_the_machine_is_only_left_by_its_table() -> None:
    assert reporting.MACHINE.possible("final", TRAINEE) == []
    assert reporting.MACHINE.possible("final", RADIOLOGIST) == ["correct", "addend"]
