"""Reports: what was seen, by whom, in versions that stay as they were signed."""

from __future__ import annotations

from collections.abc import Iterator

from hounsfield.archive.plugins import Key, Kind
from hounsfield.ris_plugin.records.base import Code, Row, seconds


class Section(Row, frozen=True):
    """A part of a report. ``name``: "indication", "technique", "comparison", "findings", "impression", …"""

    name: str
    text: str
    fields: tuple[tuple[str, str], ...] = ()


class Version(Row, frozen=True):
    """One version. ``kind``: "preliminary", "final", "correction" or "addendum". It never changes."""

    number: int
    kind: str
    sections: tuple[Section, ...]
    author: str
    at_ns: int
    signer: str = ""
    signed_ns: int = 0
    reason: str = ""  # of a correction or addendum
    critical: bool = False
    language: str = ""  # of the text (RFC 5646); "": the department's


class Document(Row, frozen=True):
    """What a version became in the archive: SOP Instance UIDs of its PDF and its SR."""

    version: int
    pdf_uid: str = ""
    sr_uid: str = ""


class Told(Row, frozen=True):
    """That somebody was told of a critical finding."""

    version: int
    whom: str
    by: str
    at_ns: int


class Report(Row, frozen=True):
    """The report of a study. ``state``: of ``reading.reporting.MACHINE``; ``draft``: not signed."""

    number: str
    patient: str
    orders: tuple[str, ...]
    study_uid: str
    state: str
    accession: str = ""
    template: str = ""  # a record of it
    modality: str = ""
    body_part: str = ""
    subspecialty: str = ""
    priority: str = "ROUTINE"
    patient_class: str = ""
    draft: tuple[Section, ...] = ()
    drafted_by: str = ""
    language: str = ""  # that it is written in, where it is not its template's
    assigned_to: str = ""
    locked_until_ns: int = 0
    versions: tuple[Version, ...] = ()
    documents: tuple[Document, ...] = ()  # beside the versions, which stay as they are
    told: tuple[Told, ...] = ()
    priors: tuple[str, ...] = ()  # Study Instance UIDs, as they were listed when it was signed
    ready_ns: int = 0  # when it could be read: its images were verified
    changed_ns: int = 0
    withdrawn: bool = False  # the study is nobody's now; what was drafted waits for whose it will be


UNREAD = frozenset({"unassigned", "assigned", "dictated", "preliminary"})
PRIORITIES = ("STAT", "HIGH", "MEDIUM", "ROUTINE", "LOW")  # (0040,1003); what is none of them is routine
CLASSES = ("E", "I", "")  # of table 0004: emergency, inpatient, everybody else


def queue(priority: str, patient_class: str) -> str:
    """Where a report waits: those of one queue are read in the order in which they became readable."""
    priority = priority if priority in PRIORITIES else "ROUTINE"
    return f"{priority}\0{patient_class if patient_class in CLASSES else ''}"


def _report_keys(one: Report) -> Iterator[Key]:
    yield Key("number", one.number, unique=True)
    yield Key("study", one.study_uid, unique=True)
    if one.withdrawn:
        return
    yield Key("patient", one.patient, seconds(one.ready_ns))
    for order in one.orders:
        yield Key("order", order)
    yield Key("state", one.state, seconds(one.ready_ns))
    if one.accession:
        yield Key("accession", one.accession)
    if one.state in UNREAD:
        yield Key("unread", "", seconds(one.ready_ns))
        yield Key("queue", queue(one.priority, one.patient_class), seconds(one.ready_ns))
    if one.locked_until_ns:
        yield Key("locked", "", seconds(one.locked_until_ns))
    if one.assigned_to:
        yield Key("assigned", one.assigned_to, seconds(one.ready_ns))


REPORT = Kind("report", Report, _report_keys)


class Field(Row, frozen=True):
    """A structured field of a template. ``choices``: none for free text; ``unit`` for a number, or several
    of a size (``12 x 9``)."""

    name: str
    label: str = ""
    choices: tuple[str, ...] = ()
    several: bool = False  # of the choices, with commas between
    unit: str = ""
    required: bool = False
    default: str = ""
    code: Code | None = None


class TemplateSection(Row, frozen=True):
    """A section of a template with its text; ``{field}`` stands for a field's value."""

    name: str
    text: str = ""
    fields: tuple[Field, ...] = ()
    required: bool = False  # it may not be empty


class Template(Row, frozen=True):
    """A report template, for all procedures or some."""

    name: str
    sections: tuple[TemplateSection, ...]
    modality: str = ""
    body_part: str = ""
    procedures: tuple[str, ...] = ()
    owner: str = ""  # a person; "" for all
    language: str = ""  # of its texts (RFC 5646)


TEMPLATE = Kind(
    "template",
    Template,
    lambda one: [Key("name", f"{one.owner}\0{one.name}", unique=True), Key("owner", one.owner)],
)


class Macro(Row, frozen=True):
    """A short word that stands for a text, everybody's or one person's."""

    name: str
    text: str
    owner: str = ""


MACRO = Kind(
    "macro",
    Macro,
    lambda one: [Key("name", f"{one.owner}\0{one.name}", unique=True), Key("owner", one.owner)],
)
