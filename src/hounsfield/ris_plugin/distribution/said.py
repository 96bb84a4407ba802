"""What a report says, gathered: the version with whom it is of, who asked, who signed."""

from __future__ import annotations

from dataclasses import dataclass

from hounsfield.archive.plugins import View
from hounsfield.ris_plugin import patients, reporting
from hounsfield.ris_plugin.errors import UnknownError
from hounsfield.ris_plugin.records.catalog import PERSON
from hounsfield.ris_plugin.records.orders import ORDER, Order
from hounsfield.ris_plugin.records.patients import Patient
from hounsfield.ris_plugin.records.reports import Report, Version

__all__ = ["Said", "gather"]


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


def gather(view: View, report_id: str, number: int) -> Said:
    """A version of a report with what belongs to it. UnknownError."""
    report = reporting.get(view, report_id)
    version = next((one for one in report.versions if one.number == number), None)
    if version is None:
        raise UnknownError("the report has no such version")
    _, patient = patients.resolve(view, report.patient)
    orders = tuple(one for one in (view.get(ORDER, key) for key in report.orders) if one is not None)
    return Said(report, version, patient, orders, _name(view, version.author), _name(view, version.signer))


def _name(view: View, code: str) -> str:
    found = view.first(PERSON, "code", code) if code else None
    return found[1].name if found is not None and found[1].name else code
