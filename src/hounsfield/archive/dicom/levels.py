"""Which attribute belongs to which level of a query, and with what VR.

The extracted ones and the computed ones.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from hounsfield.archive.dicom.attributes import INSTANCE_LEVEL, SERIES_LEVEL, STUDY_LEVEL
from hounsfield.archive.dicom.dictionary import TAG_OF
from hounsfield.archive.dicom.scan import PIXEL_TAGS


class Level(StrEnum):
    """What one answer describes; the values are those of Query/Retrieve Level (0008,0052)."""

    PATIENT = "PATIENT"
    STUDY = "STUDY"
    SERIES = "SERIES"
    INSTANCE = "IMAGE"


MODALITIES_IN_STUDY: Final = 0x00080061
#: Attributes that the archive computes for its answers; the first three are matched too.
COMPUTED_STUDY: Final[dict[int, str]] = {
    MODALITIES_IN_STUDY: "CS",
    0x00080062: "UI",  # SOP Classes in Study
    0x00201206: "IS",  # Number of Study Related Series
    0x00201208: "IS",  # Number of Study Related Instances
    0x00080056: "CS",  # Instance Availability
    0x00081190: "UR",  # Retrieve URL
}
COMPUTED_SERIES: Final[dict[int, str]] = {0x00201209: "IS", 0x00080056: "CS", 0x00081190: "UR"}
COMPUTED_INSTANCE: Final[dict[int, str]] = {0x00083002: "UI", 0x00080056: "CS", 0x00081190: "UR"}

_NEVER_MATCHED: Final = frozenset({0x00080005, 0x00081190, 0x00080056, 0x00080201})
MATCHED_STUDY: Final[dict[int, str]] = {
    tag: vr for tag, vr in (STUDY_LEVEL | COMPUTED_STUDY).items() if tag not in _NEVER_MATCHED
}
MATCHED_SERIES: Final[dict[int, str]] = {
    tag: vr for tag, vr in (SERIES_LEVEL | COMPUTED_SERIES).items() if tag not in _NEVER_MATCHED
}
MATCHED_INSTANCE: Final[dict[int, str]] = {
    tag: vr for tag, vr in (INSTANCE_LEVEL | COMPUTED_INSTANCE).items() if tag not in _NEVER_MATCHED
}

#: The keys that each level's queries can carry: those above it too (relational queries, PS3.18 10.6.1.2).
MATCHED_AT: Final[dict[Level, dict[int, str]]] = {
    Level.PATIENT: MATCHED_STUDY,
    Level.STUDY: MATCHED_STUDY,
    Level.SERIES: MATCHED_STUDY | MATCHED_SERIES,
    Level.INSTANCE: MATCHED_STUDY | MATCHED_SERIES | MATCHED_INSTANCE,
}

WILDCARD_VRS: Final = frozenset({"AE", "CS", "LO", "LT", "PN", "SH", "ST", "UC", "UR", "UT"})


def _tags(keywords: str) -> frozenset[int]:
    return frozenset(TAG_OF[keyword] for keyword in keywords.split())


#: Attributes that are the same in every instance of a study, and that the index does not hold (PS3.3 C.7.1.1,
#: C.7.2.1, C.7.2.2, C.7.1.3): any of its headers can tell them.
HEADER_STUDY: Final = _tags("""
    AdmittingDiagnosesCodeSequence Allergies BranchOfService ConsultingPhysicianName
    ConsultingPhysicianIdentificationSequence ClinicalTrialProtocolID ClinicalTrialProtocolName
    ClinicalTrialSiteID ClinicalTrialSiteName ClinicalTrialSponsorName ClinicalTrialSubjectID
    ClinicalTrialSubjectReadingID ClinicalTrialTimePointDescription ClinicalTrialTimePointID
    ConsentForClinicalTrialUseSequence CountryOfResidence EthnicGroupCodeSequence
    IssuerOfAccessionNumberSequence IssuerOfAdmissionIDSequence IssuerOfPatientIDQualifiersSequence
    IssuerOfServiceEpisodeIDSequence LastMenstrualDate MedicalAlerts MilitaryRank OtherPatientIDsSequence
    PatientAddress PatientAlternativeCalendar PatientBirthDateInAlternativeCalendar PatientBirthName
    PatientBreedCodeSequence PatientBreedDescription PatientMotherBirthName PatientReligiousPreference
    PatientSexNeutered PatientSpeciesCodeSequence PatientSpeciesDescription PatientState
    PatientTelephoneNumbers PhysiciansOfRecord PhysiciansOfRecordIdentificationSequence
    PhysiciansReadingStudyIdentificationSequence PregnancyStatus ProcedureCodeSequence QualityControlSubject
    ReasonForPerformedProcedureCodeSequence ReasonForVisit ReasonForVisitCodeSequence
    ReferencedPatientSequence ReferencedStudySequence ReferringPhysicianIdentificationSequence
    RegionOfResidence RequestingService ResponsibleOrganization ResponsiblePerson ResponsiblePersonRole
    ServiceEpisodeDescription ServiceEpisodeID SmokingStatus SpecialNeeds TypeOfPatientID
""")
#: The same for a series (PS3.3 C.7.3.1, C.7.4.1, C.7.5.1).
HEADER_SERIES: Final = _tags("""
    AcquisitionProtocolName AnatomicalOrientationType ClinicalTrialCoordinatingCenterName
    ClinicalTrialSeriesDescription ClinicalTrialSeriesID CommentsOnThePerformedProcedureStep
    ConversionType DeviceUID GantryID InstitutionAddress InstitutionCodeSequence
    InstitutionalDepartmentTypeCodeSequence LargestPixelValueInSeries OperatorIdentificationSequence
    PerformedProcedureStepEndDate PerformedProcedureStepEndTime PerformedProtocolCodeSequence
    PerformingPhysicianIdentificationSequence PositionReferenceIndicator
    ReferencedPerformedProcedureStepSequence RelatedSeriesSequence RequestAttributesSequence
    SeriesDescriptionCodeSequence SmallestPixelValueInSeries SpatialResolution TreatmentSessionUID
""")

_INDEXED: Final = frozenset(
    STUDY_LEVEL | SERIES_LEVEL | INSTANCE_LEVEL | COMPUTED_STUDY | COMPUTED_SERIES | COMPUTED_INSTANCE
)
_FIRST_GROUP: Final = 0x00080000  # those below are of commands and files
#: What answers of a level can have from one header: of instances everything.
_SPOKEN_FOR: Final = {
    Level.PATIENT: frozenset(tag for tag in HEADER_STUDY if tag >> 16 == 0x0010),
    Level.STUDY: HEADER_STUDY,
    Level.SERIES: HEADER_STUDY | HEADER_SERIES,
}


def from_headers(level: Level, tag: int) -> bool:
    """Whether an attribute that no index row holds can be read from a stored header for a level's answers."""
    spoken_for = _SPOKEN_FOR.get(level)
    return (
        tag not in _INDEXED
        and tag not in PIXEL_TAGS
        and tag >= _FIRST_GROUP
        and (spoken_for is None or tag in spoken_for)
    )
