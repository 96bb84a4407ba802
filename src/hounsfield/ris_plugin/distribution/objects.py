"""A version of a report as DICOM objects: Encapsulated PDF (PS3.3 A.45.1) and Basic Text SR (PS3.3 A.35.1).

Both lie under the study that was read, with its patient's and study's attributes as the archive shows them.
Their UIDs are made of the report's id and the version's number, so that a version that is stored again, after
a crash, is the same object and no second document.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from datetime import datetime
from io import BytesIO
from typing import Final

from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filewriter import dcmwrite
from pydicom.uid import UID, ExplicitVRLittleEndian

from hounsfield.ris_plugin.distribution.printing import HEADINGS
from hounsfield.ris_plugin.distribution.said import Said
from hounsfield.ris_plugin.records.reports import Version

__all__ = ["ENCAPSULATED_PDF", "TEXT_SR", "encapsulated", "structured", "uid"]

ENCAPSULATED_PDF: Final = "1.2.840.10008.5.1.4.1.1.104.1"
TEXT_SR: Final = "1.2.840.10008.5.1.4.1.1.88.11"
IMPLEMENTATION: Final = UID("2.25.173462874523456723456723456723456723")
SPACE: Final = uuid.UUID("6f1f6a0e-4c0f-4d53-9f6e-6f0b3c1c7d10")
"""Of the names that UIDs of documents are made of (RFC 9562 5.5). For ever."""
REPORT_TITLE: Final = ("18748-4", "LN", "Diagnostic imaging report")  # CID 7000
SECTION_CODES: Final = {  # CID 7001, and of what is said in them CID 7002
    "indication": (("121060", "DCM", "History"), ("121060", "DCM", "History")),
    "technique": (
        ("121064", "DCM", "Current Procedure Descriptions"),
        ("121065", "DCM", "Procedure Description"),
    ),
    "comparison": (("121068", "DCM", "Previous Findings"), ("121069", "DCM", "Previous Finding")),
    "findings": (("121070", "DCM", "Findings"), ("121071", "DCM", "Finding")),
    "impression": (("121072", "DCM", "Impressions"), ("121073", "DCM", "Impression")),
    "recommendation": (("121074", "DCM", "Recommendations"), ("121075", "DCM", "Recommendation")),
}
OTHER_TEXT: Final = ("121071", "DCM", "Finding")
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


def encapsulated(
    said: Said, report_id: str, shown: Mapping[str, str], moment: datetime, document: bytes
) -> bytes:
    """The PDF as a DICOM file. ``shown``: the study's attributes as the archive shows them; ``moment``: of
    the version, in the department's time zone."""
    ds = _begun(said, report_id, "pdf", shown, moment)
    ds.Modality = "DOC"
    ds.ConversionType = "WSD"
    ds.SeriesDescription = "Report (PDF)"
    ds.BurnedInAnnotation = "YES"
    ds.RecognizableVisualFeatures = "NO"
    ds.AcquisitionDateTime = ""
    ds.DocumentTitle = "Diagnostic imaging report"
    ds.ConceptNameCodeSequence = [_code(REPORT_TITLE)]
    ds.MIMETypeOfEncapsulatedDocument = "application/pdf"
    ds.EncapsulatedDocumentLength = len(document)
    ds.EncapsulatedDocument = document + b"\0" * (len(document) % 2)
    return _file(ds)


def structured(
    said: Said,
    report_id: str,
    shown: Mapping[str, str],
    moment: datetime,
    *,
    organisation: str,
    priors: Sequence[Version] = (),
) -> bytes:
    """The text as a DICOM file, with the content of TID 2000 (PS3.16). ``priors``: the earlier versions that
    this one follows."""
    version = said.version
    ds = _begun(said, report_id, "sr", shown, moment)
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
        observer.VerifyingOrganization = organisation
        observer.VerificationDateTime = f"{moment:%Y%m%d%H%M%S%z}"
        observer.VerifyingObserverName = said.signer
        observer.VerifyingObserverIdentificationCodeSequence = []
        ds.VerifyingObserverSequence = [observer]
    if priors:
        ds.PredecessorDocumentsSequence = [_earlier(said, report_id, priors)]
    ds.ReferencedRequestSequence = [_request(said, one) for one in range(len(said.orders))]
    if not said.orders:
        del ds.ReferencedRequestSequence
    ds.ValueType = "CONTAINER"
    ds.ConceptNameCodeSequence = [_code(REPORT_TITLE)]
    ds.ContinuityOfContent = "SEPARATE"
    template = Dataset()
    template.MappingResource = "DCMR"
    template.TemplateIdentifier = "2000"
    ds.ContentTemplateSequence = [template]
    ds.ContentSequence = [
        _item("HAS CONCEPT MOD", "CODE", ("121049", "DCM", "Language of Content Item and Descendants"),
              ConceptCodeSequence=[_code(("und", "RFC5646", "undetermined"))]),
        _item("HAS OBS CONTEXT", "CODE", ("121005", "DCM", "Observer Type"),
              ConceptCodeSequence=[_code(("121006", "DCM", "Person"))]),
        _item("HAS OBS CONTEXT", "PNAME", ("121008", "DCM", "Person Observer Name"),
              PersonName=said.author or "unknown"),
    ]  # fmt: skip
    for section in version.sections:
        text = section.text if section.text.strip() else "\n".join(f"{k}: {v}" for k, v in section.fields)
        if not text.strip():
            continue
        heading, named = SECTION_CODES.get(section.name, (None, OTHER_TEXT))
        if heading is None:
            text = f"{HEADINGS.get(section.name, section.name)}: {text}"
            heading = ("121070", "DCM", "Findings")
        told = _item("CONTAINS", "TEXT", named, TextValue=text.replace("\n", "\r\n"))
        ds.ContentSequence.append(
            _item("CONTAINS", "CONTAINER", heading, ContinuityOfContent="SEPARATE", ContentSequence=[told])
        )
    return _file(ds)


def _begun(said: Said, report_id: str, kind: str, shown: Mapping[str, str], moment: datetime) -> Dataset:
    """Patient, General Study, Series, Equipment and SOP Common (PS3.3 C.7, C.12.1)."""
    report, version = said.report, said.version
    ds = Dataset()
    ds.SpecificCharacterSet = "ISO_IR 192"
    ds.SOPClassUID = ENCAPSULATED_PDF if kind == "pdf" else TEXT_SR
    ds.SOPInstanceUID = uid(report_id, kind, version.number)
    ds.InstanceCreationDate, ds.InstanceCreationTime = f"{moment:%Y%m%d}", f"{moment:%H%M%S}"
    order, patient = (said.orders[0] if said.orders else None), said.patient
    first = patient.identifiers[0] if patient.identifiers else None
    own = {
        "PatientName": patient.name,
        "PatientID": first.value if first else "",
        "IssuerOfPatientID": first.issuer if first else "",
        "PatientBirthDate": patient.birth_day,
        "PatientSex": patient.sex,
        "StudyDate": f"{moment:%Y%m%d}",
        "StudyTime": f"{moment:%H%M%S}",
        "AccessionNumber": report.accession,
        "ReferringPhysicianName": (order.referring or order.requester) if order else "",
        "StudyID": order.requested_procedure_id[:16] if order else "",
        "StudyDescription": order.procedure.meaning[:64] if order else "",
    }
    for keyword in (*PATIENT, *STUDY):
        value = shown.get(keyword, "") if shown else own[keyword]
        if value or keyword not in ("IssuerOfPatientID", "StudyDescription"):
            setattr(ds, keyword, value)
    ds.StudyInstanceUID = report.study_uid
    ds.SeriesInstanceUID = uid(report_id, kind, "series")
    ds.SeriesNumber = "9001" if kind == "pdf" else "9000"
    ds.InstanceNumber = str(version.number)
    ds.ContentDate, ds.ContentTime = f"{moment:%Y%m%d}", f"{moment:%H%M%S}"
    ds.Manufacturer = "Hounsfield"
    return ds


def _earlier(said: Said, report_id: str, priors: Sequence[Version]) -> Dataset:
    """PS3.3 Table C.17-3: by study and series."""
    series = Dataset()
    series.SeriesInstanceUID = uid(report_id, "sr", "series")
    series.ReferencedSOPSequence = []
    for one in priors:
        item = Dataset()
        item.ReferencedSOPClassUID = TEXT_SR
        item.ReferencedSOPInstanceUID = uid(report_id, "sr", one.number)
        series.ReferencedSOPSequence.append(item)
    study = Dataset()
    study.StudyInstanceUID = said.report.study_uid
    study.ReferencedSeriesSequence = [series]
    return study


def _request(said: Said, number: int) -> Dataset:
    order = said.orders[number]
    item = Dataset()
    item.StudyInstanceUID = said.report.study_uid
    item.ReferencedStudySequence = []
    item.AccessionNumber = order.accession
    item.PlacerOrderNumberImagingServiceRequest = order.placer_number
    item.FillerOrderNumberImagingServiceRequest = order.filler_number
    item.RequestedProcedureID = order.requested_procedure_id[:16]
    item.RequestedProcedureDescription = (order.procedure.meaning or order.procedure.value)[:64]
    item.RequestedProcedureCodeSequence = []
    return item


def _code(of: tuple[str, str, str]) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = of
    return item


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
