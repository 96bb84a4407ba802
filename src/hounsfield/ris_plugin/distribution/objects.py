"""A version of a report as DICOM objects: Encapsulated PDF (PS3.3 A.45.1) and Basic Text SR (PS3.3 A.35.1).

Both lie under the study that was read, with its patient's and study's attributes as the archive shows them.
Their UIDs are made of the report's id and the version's number, so that a version that is stored again, after
a crash, is the same object and no second document.
"""

from __future__ import annotations

import unicodedata
import uuid
from collections.abc import Iterator
from datetime import datetime, timedelta
from io import BytesIO
from typing import Final

from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filewriter import dcmwrite
from pydicom.uid import UID, ExplicitVRLittleEndian

from hounsfield.ris_plugin.distribution.said import Said
from hounsfield.ris_plugin.languages import UNDETERMINED
from hounsfield.ris_plugin.records.orders import Order
from hounsfield.ris_plugin.records.reports import Field, Section, Version

__all__ = ["ENCAPSULATED_PDF", "TEXT_SR", "encapsulated", "structured", "uid"]

ENCAPSULATED_PDF: Final = "1.2.840.10008.5.1.4.1.1.104.1"
TEXT_SR: Final = "1.2.840.10008.5.1.4.1.1.88.11"
CLASSES: Final = {"pdf": ENCAPSULATED_PDF, "sr": TEXT_SR}
CODE_CHARACTERS_MAX: Final = 16  # VR SH
LINE_CHARACTERS_MAX: Final = 64  # VR LO
LANGUAGES: Final = {  # CID 5000
    UNDETERMINED: "Undetermined",
    "de": "German",
    "en": "English",
    "es": "Spanish",
    "fr": "French",
    "it": "Italian",
}
IMPLEMENTATION: Final = UID("2.25.173462874523456723456723456723456723")
SPACE: Final = uuid.UUID("6f1f6a0e-4c0f-4d53-9f6e-6f0b3c1c7d10")
"""Of the names that UIDs of documents are made of (RFC 9562 5.5). For ever."""
REPORT_TITLE: Final = ("18748-4", "LN", "Diagnostic Imaging Report")  # CID 7000
SECTION_CODES: Final = {  # CID 7001, and of what is said in them CID 7002
    "indication": (("18785-6", "LN", "Indications for Procedure"), ("11329-0", "LN", "History")),
    "technique": (
        ("55111-9", "LN", "Current Procedure Descriptions"),
        ("121065", "DCM", "Procedure Description"),
    ),
    "comparison": (("18834-2", "LN", "Previous Findings"), ("121069", "DCM", "Previous Finding")),
    "findings": (("59776-5", "LN", "Findings"), ("121071", "DCM", "Finding")),
    "impression": (("19005-8", "LN", "Impressions"), ("121073", "DCM", "Impression")),
    "recommendation": (("18783-1", "LN", "Recommendations"), ("121075", "DCM", "Recommendation")),
}
ADDENDUM: Final = ("55107-7", "LN", "Addendum")
OTHER_TEXT: Final = ("121071", "DCM", "Finding")
OWN_SCHEME: Final = "99RIS"
"""Of what departments call their own sections and fields (PS3.3 8.2: private schemes begin with 99)."""
PATIENT: Final = ("PatientName", "PatientID", "IssuerOfPatientID", "PatientBirthDate", "PatientSex")
STUDY: Final = (
    "StudyDate",
    "StudyTime",
    "AccessionNumber",
    "ReferringPhysicianName",
    "StudyID",
    "StudyDescription",
)


def uid(report_id: str, what: str, number: int | str) -> str:
    """The UID of a document, or of the series of its kind (PS3.5 B.2)."""
    return f"2.25.{uuid.uuid5(SPACE, f'{report_id}:{what}:{number}').int}"


def encapsulated(said: Said, report_id: str, moment: datetime, document: bytes) -> bytes:
    """The PDF as a DICOM file. ``moment``: of the version, in the department's time zone."""
    ds = _begun(said, report_id, "pdf", moment)
    ds.Modality = "DOC"
    ds.ConversionType = "WSD"
    ds.SeriesDescription = "Report (PDF)"
    ds.BurnedInAnnotation = "YES"
    ds.RecognizableVisualFeatures = "NO"
    ds.AcquisitionDateTime = ""
    ds.DocumentTitle = "Diagnostic imaging report"
    ds.ConceptNameCodeSequence = [_code(REPORT_TITLE)]
    ds.VerificationFlag = "VERIFIED" if said.version.signed_ns else "UNVERIFIED"
    if said.earlier:
        ds.PredecessorDocumentsSequence = [_earlier(said, report_id, "pdf")]
    ds.MIMETypeOfEncapsulatedDocument = "application/pdf"
    ds.EncapsulatedDocumentLength = len(document)
    ds.EncapsulatedDocument = document + b"\0" * (len(document) % 2)
    return _file(ds)


def structured(said: Said, report_id: str, moment: datetime, *, organisation: str) -> bytes:
    """The text as a DICOM file, with the content of TID 2000 (PS3.16).

    Values of a template's fields are text, numbers too: Basic Text SR has no NUM (PS3.3 A.35.1.3.1.1), and
    every viewer shows Basic Text.
    """
    version = said.version
    ds = _begun(said, report_id, "sr", moment)
    ds.Modality = "SR"
    ds.SeriesDescription = "Report"
    ds.ReferencedPerformedProcedureStepSequence = []
    final = bool(version.signed_ns)
    ds.CompletionFlag = "COMPLETE" if final else "PARTIAL"
    ds.VerificationFlag = "VERIFIED" if final else "UNVERIFIED"
    ds.PreliminaryFlag = "FINAL" if final else "PRELIMINARY"
    ds.PerformedProcedureCodeSequence = []
    if final:
        observer = Dataset()
        observer.VerifyingOrganization = _line(organisation) or "unknown"
        observer.VerificationDateTime = f"{moment:%Y%m%d%H%M%S%z}"
        observer.VerifyingObserverName = _line(said.signer, 0) or "unknown"
        observer.VerifyingObserverIdentificationCodeSequence = []
        ds.VerifyingObserverSequence = [observer]
    if said.earlier:
        ds.PredecessorDocumentsSequence = [_earlier(said, report_id, "sr")]
    if said.orders:
        ds.ReferencedRequestSequence = [_request(said, one) for one in said.orders]
    if said.objects:
        ds.CurrentRequestedProcedureEvidenceSequence = [_evidence(said)]
    ds.ValueType = "CONTAINER"
    ds.ConceptNameCodeSequence = [_code(REPORT_TITLE)]
    ds.ContinuityOfContent = "SEPARATE"
    template = Dataset()
    template.MappingResource = "DCMR"
    template.TemplateIdentifier = "2000"
    ds.ContentTemplateSequence = [template]
    tag = said.language or UNDETERMINED
    ds.ContentSequence = [
        _item("HAS CONCEPT MOD", "CODE", ("121049", "DCM", "Language of Content Item and Descendants"),
              ConceptCodeSequence=[_code((tag, "RFC5646", LANGUAGES.get(tag, tag)))]),
        _item("HAS OBS CONTEXT", "CODE", ("121005", "DCM", "Observer Type"),
              ConceptCodeSequence=[_code(("121006", "DCM", "Person"))]),
        _item("HAS OBS CONTEXT", "PNAME", ("121008", "DCM", "Person Observer Name"),
              PersonName=_line(said.author, 0) or "unknown"),
    ]  # fmt: skip
    for one in said.valid:
        ds.ContentSequence.extend(_sections(said, one))
    return _file(ds)


def _sections(said: Said, version: Version) -> Iterator[Dataset]:
    """A container for each section; one for all of an addendum."""
    added: list[Dataset] = []
    for section in version.sections:
        heading, named = SECTION_CODES.get(section.name, (None, OTHER_TEXT))
        heading = heading or (section.name, OWN_SCHEME, section.name)
        items = [_item("CONTAINS", "TEXT", named, TextValue=text)] if (text := _text(section.text)) else []
        items += _fields(said, section)
        if not items:
            continue
        if version.kind == "addendum":
            added += items
        else:
            yield _container(heading, items)
    if added:
        yield _container(ADDENDUM, added)


def _fields(said: Said, section: Section) -> Iterator[Dataset]:
    """What a template's fields hold, beside the words that say it, by the template's codes."""
    sections = said.template.sections if said.template is not None else ()
    known = {field.name: field for one in sections if one.name == section.name for field in one.fields}
    for name, content in section.fields:
        field = known.get(name) or Field(name=name)
        label = field.label or name
        concept = (name, OWN_SCHEME, label)
        if field.code is not None:
            concept = (field.code.value, field.code.scheme or OWN_SCHEME, field.code.meaning or label)
        if text := _text(content):
            yield _item("CONTAINS", "TEXT", concept, TextValue=f"{text} {field.unit}".strip())


def _container(heading: tuple[str, str, str], items: list[Dataset]) -> Dataset:
    return _item("CONTAINS", "CONTAINER", heading, ContinuityOfContent="SEPARATE", ContentSequence=items)


def _begun(said: Said, report_id: str, kind: str, moment: datetime) -> Dataset:
    """Patient, General Study, Series, Equipment and SOP Common (PS3.3 C.7, C.12.1)."""
    report, version = said.report, said.version
    ds = Dataset()
    ds.SpecificCharacterSet = "ISO_IR 192"
    ds.SOPClassUID = CLASSES[kind]
    ds.SOPInstanceUID = uid(report_id, kind, version.number)
    ds.InstanceCreationDate, ds.InstanceCreationTime = f"{moment:%Y%m%d}", f"{moment:%H%M%S}"
    order, patient = (said.orders[0] if said.orders else None), said.patient
    first = patient.identifiers[0] if patient.identifiers else None
    own = {
        "PatientName": _line(patient.name, 0),
        "PatientID": _line(first.value) if first else "",
        "IssuerOfPatientID": _line(first.issuer) if first else "",
        "PatientBirthDate": patient.birth_day,
        "PatientSex": patient.sex,
        "StudyDate": f"{moment:%Y%m%d}",
        "StudyTime": f"{moment:%H%M%S}",
        "AccessionNumber": report.accession,
        "ReferringPhysicianName": _line(order.referring or order.requester, 0) if order else "",
        "StudyID": _line(order.requested_procedure_id, 16) if order else "",
        "StudyDescription": _line(order.procedure.meaning) if order else "",
    }
    for keyword in (*PATIENT, *STUDY):
        value = said.study.get(keyword, "") if said.study else own[keyword]
        if value or keyword not in ("IssuerOfPatientID", "StudyDescription"):
            setattr(ds, keyword, value)
    if _offset_of_study(ds, moment) == moment.utcoffset():
        ds.TimezoneOffsetFromUTC = f"{moment:%z}"
    ds.StudyInstanceUID = report.study_uid
    ds.SeriesInstanceUID = uid(report_id, kind, "series")
    ds.SeriesNumber = "9001" if kind == "pdf" else "9000"
    ds.InstanceNumber = str(version.number)
    ds.ContentDate, ds.ContentTime = f"{moment:%Y%m%d}", f"{moment:%H%M%S}"
    ds.Manufacturer = "Hounsfield"
    return ds


def _offset_of_study(ds: Dataset, moment: datetime) -> timedelta | None:
    """What the study's own date and time are off UTC: one Timezone Offset is for all times of an object
    (PS3.3 C.12.1.1.8), and a summer's study may be reported in winter."""
    try:
        began = datetime.strptime(f"{ds.StudyDate}{str(ds.StudyTime)[:4]}", "%Y%m%d%H%M")  # noqa: DTZ007
    except ValueError:
        return None
    return began.replace(tzinfo=moment.tzinfo).utcoffset()


def _earlier(said: Said, report_id: str, kind: str) -> Dataset:
    """The versions before, by study and series (PS3.3 Table C.17-3)."""
    series = Dataset()
    series.SeriesInstanceUID = uid(report_id, kind, "series")
    series.ReferencedSOPSequence = [
        _reference(CLASSES[kind], uid(report_id, kind, one.number)) for one in said.earlier
    ]
    study = Dataset()
    study.StudyInstanceUID = said.report.study_uid
    study.ReferencedSeriesSequence = [series]
    return study


def _evidence(said: Said) -> Dataset:
    """All that was made for the request, as far as it is here (PS3.3 C.17.2.3)."""
    by_series: dict[str, list[Dataset]] = {}
    for one in sorted(said.objects, key=lambda one: (one["SeriesInstanceUID"], one["SOPInstanceUID"])):
        reference = _reference(one["SOPClassUID"], one["SOPInstanceUID"])
        by_series.setdefault(one["SeriesInstanceUID"], []).append(reference)
    study = Dataset()
    study.StudyInstanceUID = said.report.study_uid
    study.ReferencedSeriesSequence = []
    for series_uid, references in by_series.items():
        series = Dataset()
        series.SeriesInstanceUID = series_uid
        series.ReferencedSOPSequence = references
        study.ReferencedSeriesSequence.append(series)
    return study


def _reference(sop_class: str, sop_uid: str) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID = sop_class
    item.ReferencedSOPInstanceUID = sop_uid
    return item


def _request(said: Said, order: Order) -> Dataset:
    item = Dataset()
    item.StudyInstanceUID = said.report.study_uid
    item.ReferencedStudySequence = []
    item.AccessionNumber = order.accession
    item.PlacerOrderNumberImagingServiceRequest = _line(order.placer_number)
    item.FillerOrderNumberImagingServiceRequest = _line(order.filler_number)
    item.RequestedProcedureID = _line(order.requested_procedure_id, 16)
    item.RequestedProcedureDescription = _line(order.procedure.meaning or order.procedure.value)
    code = order.procedure
    item.RequestedProcedureCodeSequence = (
        [_code((code.value, code.scheme or OWN_SCHEME, code.meaning or code.value))] if code.value else []
    )
    return item


def _code(of: tuple[str, str, str]) -> Dataset:
    """A code (PS3.3 Table 8.8-1a): a value of more than sixteen characters is a long one."""
    value, scheme, meaning = (_line(one, 0) for one in of)
    item = Dataset()
    if len(value) > CODE_CHARACTERS_MAX:
        item.LongCodeValue = value
    else:
        item.CodeValue = value
    item.CodingSchemeDesignator = scheme[:CODE_CHARACTERS_MAX]
    item.CodeMeaning = meaning[:LINE_CHARACTERS_MAX] or value[:LINE_CHARACTERS_MAX]
    return item


def _line(text: str, most: int = LINE_CHARACTERS_MAX) -> str:
    """Text for one value of VR SH, LO or PN: no control characters, and no backslash, which parts values
    (PS3.5 6.2). ``most``: 0 for as long as it is."""
    said = "".join(" " if unicodedata.category(one) in ("Cc", "Cs") else one for one in text)
    said = said.replace("\\", "/").strip()
    return said[:most].strip() if most else said


def _text(text: str) -> str:
    """Text for VR UT: lines end with CR LF, and there are no other control characters (PS3.5 6.1.3)."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n").replace("\f", "\n").split("\n")
    kept = ("".join(one for one in line if one == "\t" or unicodedata.category(one) not in ("Cc", "Cs"))
            for line in lines)  # fmt: skip
    joined = "\r\n".join(line.rstrip() for line in kept)
    return joined.strip("\r\n") if joined.strip() else ""


def _item(relation: str, value_type: str, name: tuple[str, str, str], **values: object) -> Dataset:
    item = Dataset()
    item.RelationshipType = relation
    item.ValueType = value_type
    item.ConceptNameCodeSequence = [_code(name)]
    for keyword, value in values.items():
        setattr(item, keyword, value)
    return item


def _file(ds: Dataset) -> bytes:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = ds.SOPClassUID
    meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = IMPLEMENTATION
    ds.file_meta = meta
    into = BytesIO()
    dcmwrite(into, ds, enforce_file_format=True)
    return into.getvalue()
