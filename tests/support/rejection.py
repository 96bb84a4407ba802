"""Rejection notes: key object selection documents as a workstation makes them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian, KeyObjectSelectionDocumentStorage, generate_uid

from support.archives import encode

QUALITY, SAFETY, WORKLIST, EXPIRED = "113001", "113037", "113038", "113039"
REASONS = (QUALITY, SAFETY, WORKLIST, EXPIRED)
CT = "1.2.840.10008.5.1.4.1.1.2"

References = Mapping[str, Mapping[str, Iterable[str]]]
"""SOP Instance UIDs by study and series."""


def note_data_set(
    references: References,
    code: str,
    *,
    sop_uid: str | None = None,
    scheme: str = "DCM",
    patient_id: str = "P-0001",
) -> Dataset:
    """A note of the first study referred to, in a series of its own."""
    data = Dataset()
    data.SpecificCharacterSet = "ISO_IR 192"
    data.SOPClassUID = KeyObjectSelectionDocumentStorage
    data.SOPInstanceUID = sop_uid or generate_uid()
    data.StudyDate, data.StudyTime = "20250314", "101112"
    data.AccessionNumber, data.StudyID = "ACC-77", "S1"
    data.Modality = "KO"
    data.PatientName, data.PatientID = "Muster^Erika", patient_id
    data.PatientBirthDate, data.PatientSex = "19640812", "F"
    data.StudyInstanceUID = next(iter(references), generate_uid())
    data.SeriesInstanceUID = generate_uid()
    data.SeriesNumber, data.InstanceNumber = 99, 1
    data.ValueType, data.ContinuityOfContent = "CONTAINER", "SEPARATE"
    title = Dataset()
    title.CodeValue, title.CodingSchemeDesignator, title.CodeMeaning = code, scheme, "Rejected"
    data.ConceptNameCodeSequence = Sequence([title])
    evidence = []
    for study_uid, by_series in references.items():
        study = Dataset()
        study.StudyInstanceUID = study_uid
        study.ReferencedSeriesSequence = Sequence()
        for series_uid, sop_uids in by_series.items():
            series = Dataset()
            series.SeriesInstanceUID = series_uid
            series.ReferencedSOPSequence = Sequence()
            for uid in sop_uids:
                instance = Dataset()
                instance.ReferencedSOPClassUID, instance.ReferencedSOPInstanceUID = CT, uid
                series.ReferencedSOPSequence.append(instance)
            study.ReferencedSeriesSequence.append(series)
        evidence.append(study)
    data.CurrentRequestedProcedureEvidenceSequence = Sequence(evidence)
    return data


def note(
    references: References,
    code: str,
    *,
    sop_uid: str | None = None,
    scheme: str = "DCM",
    syntax: str = ExplicitVRLittleEndian,
) -> bytes:
    """A note's encoded data set."""
    return encode(note_data_set(references, code, sop_uid=sop_uid, scheme=scheme), syntax)
