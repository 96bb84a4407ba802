"""What a report says, gathered: the version with whom it is of, who asked, who signed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from hounsfield.archive.plugins import View
from hounsfield.ris_plugin import patients
from hounsfield.ris_plugin.errors import UnknownError
from hounsfield.ris_plugin.reading import reporting
from hounsfield.ris_plugin.records.catalog import PERSON
from hounsfield.ris_plugin.records.orders import ORDER, Order
from hounsfield.ris_plugin.records.patients import Patient
from hounsfield.ris_plugin.records.reports import TEMPLATE, Report, Template, Version

__all__ = ["BULK_MAX", "Said", "gather"]

BULK_MAX: Final = 10_000
"""Objects that one question to the archive answers with."""


@dataclass(frozen=True, slots=True)
class Said:
    """A version of a report, and all that is written around it."""

    report: Report
    version: Version
    patient: Patient
    orders: tuple[Order, ...]
    author: str
    """Person names (PS3.5 6.2.1), or the codes of people who have none."""
    signer: str
    language: str = ""
    """Of the text (RFC 5646); "" when nobody said."""
    template: Template | None = None
    names: Mapping[str, str] = field(default_factory=dict)
    """Of who wrote and signed earlier versions, by their codes."""
    study: Mapping[str, str] = field(default_factory=dict)
    """The study as the archive shows it, by keyword; nothing when it has no objects of it."""
    objects: tuple[Mapping[str, str], ...] = ()
    """What there is of the study, our own documents excepted."""

    @property
    def valid(self) -> tuple[Version, ...]:
        """What the report says as of this version: that, after what it adds to."""
        return reporting.valid(self.report, self.version.number)

    @property
    def earlier(self) -> tuple[Version, ...]:
        """The versions before this one."""
        return tuple(one for one in self.report.versions if one.number < self.version.number)


def gather(view: View, report_id: str, number: int, language: str = "") -> Said:
    """A version of a report with what belongs to it. ``language``: of texts of which nobody said another.
    UnknownError."""
    report = reporting.get(view, report_id)
    version = next((one for one in report.versions if one.number == number), None)
    if version is None:
        raise UnknownError("the report has no such version")
    _, patient = patients.resolve(view, report.patient)
    people = {one for each in report.versions for one in (each.author, each.signer)}
    return Said(
        report=report,
        version=version,
        patient=patient,
        orders=tuple(one for one in (view.get(ORDER, key) for key in report.orders) if one is not None),
        author=_name(view, version.author),
        signer=_name(view, version.signer),
        language=version.language or language,
        template=view.get(TEMPLATE, report.template) if report.template else None,
        names={one: _name(view, one) for one in sorted(people)},
    )


def _name(view: View, code: str) -> str:
    found = view.first(PERSON, "code", code) if code else None
    return found[1].name if found is not None and found[1].name else code
