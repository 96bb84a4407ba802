"""The attributes of a worklist item that we have: all are matched, and returned (PS3.4 Table K.6-1).

Those of type 2 that nobody can say here are among them, and empty; whatever stands in no row is an optional
key that is not supported.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from hounsfield.archive.dicom.dictionary import TAG_OF, VR_OF

__all__ = ["ATTRIBUTES", "SCHEDULED_STEP_SEQUENCE", "Attribute", "Table"]


class Attribute(NamedTuple):
    """One row: its VR, and of a sequence the rows of its items."""

    vr: str
    below: Mapping[int, Attribute]


Table = Mapping[int, Attribute]


def _table(keywords: str, **sequences: Table) -> dict[int, Attribute]:
    rows = {TAG_OF[keyword]: Attribute(VR_OF[TAG_OF[keyword]], {}) for keyword in keywords.split()}
    rows |= {TAG_OF[keyword]: Attribute("SQ", below) for keyword, below in sequences.items()}
    return dict(sorted(rows.items()))


_CODE: Final = _table("CodeValue CodingSchemeDesignator CodeMeaning")
_AUTHORITY: Final = _table("LocalNamespaceEntityID")
_REFERENCE: Final = _table("ReferencedSOPClassUID ReferencedSOPInstanceUID")
_IDENTIFIER: Final = _table("PatientID IssuerOfPatientID TypeOfPatientID")

SCHEDULED_STEP_SEQUENCE: Final = TAG_OF["ScheduledProcedureStepSequence"]

_SCHEDULED: Final = _table(
    """Modality ScheduledStationAETitle ScheduledProcedureStepStartDate ScheduledProcedureStepStartTime
    ScheduledProcedureStepEndDate ScheduledProcedureStepEndTime ScheduledPerformingPhysicianName
    ScheduledProcedureStepDescription ScheduledStationName ScheduledProcedureStepLocation
    ScheduledProcedureStepID ScheduledProcedureStepStatus PreMedication RequestedContrastAgent
    CommentsOnTheScheduledProcedureStep""",
    ScheduledProtocolCodeSequence=_CODE,
)

ATTRIBUTES: Final[Table] = _table(
    # requested procedure (PS3.3 C.4.11)
    """StudyInstanceUID RequestedProcedureID RequestedProcedureDescription RequestedProcedurePriority
    ReasonForTheRequestedProcedure RequestedProcedureComments PatientTransportArrangements
    NamesOfIntendedRecipientsOfResults"""
    # imaging service request (C.4.12)
    """ AccessionNumber RequestingPhysician ReferringPhysicianName RequestingService
    IssueDateOfImagingServiceRequest IssueTimeOfImagingServiceRequest
    OrderEntererLocation OrderCallbackPhoneNumber PlacerOrderNumberImagingServiceRequest
    FillerOrderNumberImagingServiceRequest ReasonForTheImagingServiceRequest"""
    # visit (C.3)
    """ AdmissionID InstitutionName InstitutionAddress InstitutionalDepartmentName CurrentPatientLocation"""
    # patient (C.2)
    """ PatientName PatientID IssuerOfPatientID OtherPatientIDs OtherPatientNames PatientBirthDate PatientSex
    PatientSize PatientWeight PatientAddress PatientTelephoneNumbers
    ConfidentialityConstraintOnPatientDataDescription PatientState PregnancyStatus MedicalAlerts Allergies
    SpecialNeeds AdditionalPatientHistory""",
    ScheduledProcedureStepSequence=_SCHEDULED,
    RequestedProcedureCodeSequence=_CODE,
    ReasonForRequestedProcedureCodeSequence=_CODE,
    ReferencedStudySequence=_REFERENCE,
    ReferencedPatientSequence=_REFERENCE,
    OrderPlacerIdentifierSequence=_AUTHORITY,
    OrderFillerIdentifierSequence=_AUTHORITY,
    IssuerOfAdmissionIDSequence=_AUTHORITY,
    OtherPatientIDsSequence=_IDENTIFIER,
    PatientPrimaryLanguageCodeSequence=_CODE,
)
