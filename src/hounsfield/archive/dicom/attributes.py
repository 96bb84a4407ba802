"""The attributes that the index and every query answer want, as text, out of a scanned data set.

Three tables say which attribute belongs to which level; they hold the required and the useful optional keys
of QIDO-RS (PS3.18 Tables 10.6.1-5, 10.6.3-3, -4, -5) and of the study root C-FIND (PS3.4 C.6.2.1). Patient
attributes stand with the study, because the archive's study record carries them.

Values are text: several values joined by backslashes, a person name's groups by ``=``, numbers in decimal.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from struct import Struct
from struct import error as struct_error
from typing import Final

from hounsfield.archive.dicom.dictionary import TAG_OF, VR_OF
from hounsfield.archive.dicom.problems import Problem
from hounsfield.archive.dicom.scan import Buffer, Scanned
from hounsfield.archive.dicom.text import (
    CHARACTER_SET_VRS,
    DEFAULT_CHARACTER_SET,
    PROSE_VRS,
    CharacterSet,
    character_set,
    decode,
    trim,
)
from hounsfield.archive.dicom.walk import elements, items


def _level(keywords: str) -> dict[int, str]:
    return {TAG_OF[keyword]: VR_OF[TAG_OF[keyword]] for keyword in keywords.split()}


STUDY_LEVEL: Final[dict[int, str]] = _level("""
    StudyDate StudyTime AccessionNumber ReferringPhysicianName TimezoneOffsetFromUTC StudyDescription
    NameOfPhysiciansReadingStudy AdmittingDiagnosesDescription InstitutionalDepartmentName
    PatientName PatientID IssuerOfPatientID PatientBirthDate PatientBirthTime PatientSex OtherPatientIDs
    OtherPatientNames PatientAge PatientSize PatientWeight EthnicGroup Occupation AdditionalPatientHistory
    PatientComments StudyInstanceUID StudyID AdmissionID RequestingPhysician
""")
SERIES_LEVEL: Final[dict[int, str]] = _level("""
    SeriesDate SeriesTime Modality Manufacturer InstitutionName StationName SeriesDescription
    PerformingPhysicianName OperatorsName ManufacturerModelName BodyPartExamined ProtocolName PatientPosition
    DeviceSerialNumber SoftwareVersions SeriesInstanceUID SeriesNumber Laterality FrameOfReferenceUID
    PerformedProcedureStepStartDate PerformedProcedureStepStartTime PerformedProcedureStepID
    PerformedProcedureStepDescription ScheduledProcedureStepID RequestedProcedureID
""")
INSTANCE_LEVEL: Final[dict[int, str]] = _level("""
    SpecificCharacterSet ImageType InstanceCreationDate InstanceCreationTime SOPClassUID SOPInstanceUID
    AcquisitionDate ContentDate AcquisitionDateTime AcquisitionTime ContentTime AcquisitionNumber
    InstanceNumber ImageComments NumberOfFrames SamplesPerPixel PhotometricInterpretation PlanarConfiguration
    Rows Columns BitsAllocated BitsStored HighBit PixelRepresentation LossyImageCompression ContentLabel
    ContentDescription ConceptNameCodeSequence CompletionFlag VerificationFlag
""")
# A sequence has no text; it is matched and returned from the header itself.
INSTANCE_LEVEL.pop(TAG_OF["ConceptNameCodeSequence"])

SPECIFIC_CHARACTER_SET: Final = 0x00080005
SOP_CLASS_UID: Final = 0x00080016
SOP_INSTANCE_UID: Final = 0x00080018
STUDY_INSTANCE_UID: Final = 0x0020000D
SERIES_INSTANCE_UID: Final = 0x0020000E
REQUEST_ATTRIBUTES_SEQUENCE: Final = 0x00400275
#: Taken from the items of Request Attributes Sequence, where general equipment writes them (PS3.3 10.6).
_REQUEST_ATTRIBUTES: Final = {0x00400009: "SH", 0x00401001: "SH"}
#: Every top-level element that :func:`extract` looks at.
INDEXED_TAGS: Final = frozenset(
    {*STUDY_LEVEL, *SERIES_LEVEL, *INSTANCE_LEVEL, SPECIFIC_CHARACTER_SET, REQUEST_ATTRIBUTES_SEQUENCE}
)

#: One attribute's value in an index row. The longest that these tables allow is LT, 10,240 characters; what
#: people search and list is far shorter, and a row must stay small.
VALUE_BYTES_MAX: Final = 4096

_NUMBERS: Final[dict[str, tuple[str, int]]] = {
    "US": ("H", 2), "SS": ("h", 2), "UL": ("L", 4), "SL": ("l", 4), "FL": ("f", 4), "FD": ("d", 8),
    "UV": ("Q", 8), "SV": ("q", 8),
}  # fmt: skip
_US: Final = {True: Struct("<H"), False: Struct(">H")}

_UID_MAX: Final = 64
_VALID_UID: Final = re.compile(r"(?:0|[1-9][0-9]*)(?:\.(?:0|[1-9][0-9]*))+", re.ASCII)
_USABLE_UID: Final = re.compile(r"[0-9][0-9.]*", re.ASCII)

_MISSING: Final = {
    SOP_CLASS_UID: Problem.MISSING_SOP_CLASS_UID,
    SOP_INSTANCE_UID: Problem.MISSING_SOP_INSTANCE_UID,
    STUDY_INSTANCE_UID: Problem.MISSING_STUDY_UID,
    SERIES_INSTANCE_UID: Problem.MISSING_SERIES_UID,
}


@dataclass(slots=True)
class Extracted:
    """Attributes of the three levels, tag to text. An attribute present but empty is an empty string."""

    study: dict[int, str]
    series: dict[int, str]
    instance: dict[int, str]
    problems: tuple[Problem, ...]


def uid_is_valid(uid: str) -> bool:
    """Whether a UID is written as PS3.5 9.1 demands.

    At most 64 of digits and dots, no component empty or 0-padded.
    """
    return len(uid) <= _UID_MAX and _VALID_UID.fullmatch(uid) is not None


def uid_is_usable(uid: str) -> bool:
    """Whether a UID can at least name something: digits and dots, at most 64.

    Leading zeros are common and harmless.
    """
    return 0 < len(uid) <= _UID_MAX and _USABLE_UID.fullmatch(uid) is not None


def _rows() -> tuple[tuple[int, str, int], ...]:
    merged = [
        (tag, vr, level)
        for level, table in enumerate((STUDY_LEVEL, SERIES_LEVEL, INSTANCE_LEVEL))
        for tag, vr in table.items()
        if tag not in _REQUEST_ATTRIBUTES
    ]
    return tuple(sorted(merged))


_TABLE: Final = _rows()
#: Every extracted attribute: its level (0 study, 1 series, 2 instance) and VR.
LEVEL_OF: Final = {tag: (level, vr) for tag, vr, level in _TABLE}
UID_TAGS: Final = frozenset({SOP_CLASS_UID, SOP_INSTANCE_UID, STUDY_INSTANCE_UID, SERIES_INSTANCE_UID})
_STRIPPED: Final = " \0"
#: VRs whose padding is not simply spaces and nulls at both ends.
_OWN_TRIM: Final = PROSE_VRS | {"PN"}


def extract(scanned: Scanned, data: Buffer) -> Extracted:
    """The index attributes of a scanned data set, as text. ``data`` are the bytes that were scanned.

    Never raises.

    Text is decoded with Specific Character Set (PS3.5 6.1.2); wrongful bytes are replaced and flagged. The
    scan's own problems are included.
    """
    body = scanned.body(data)
    table = scanned.elements
    little = scanned.little_endian
    study: dict[int, str] = {}
    series: dict[int, str] = {}
    instance: dict[int, str] = {}
    levels = (study, series, instance)
    problems: dict[Problem, None] = dict.fromkeys(scanned.problems)
    charset = DEFAULT_CHARACTER_SET
    declared = table.get(SPECIFIC_CHARACTER_SET)
    if declared is not None and declared[2]:
        charset = character_set(bytes(body[declared[1] : declared[1] + min(declared[2], 256)]))
        if not charset.known:
            problems[Problem.BAD_CHARACTER_SET] = None
    get = table.get
    for tag, expected, level in _TABLE:
        found = get(tag)
        if found is not None:
            vr, offset, length = found
            levels[level][tag] = value_text(body, vr, offset, length, expected, charset, little, problems)
    if REQUEST_ATTRIBUTES_SEQUENCE in table:
        _request_attributes(scanned, body, charset, series, problems)
    _check_uids(study, series, instance, problems)
    return Extracted(study, series, instance, tuple(problems))


def value_text(  # noqa: PLR0917
    body: Buffer,
    vr: str,
    offset: int,
    length: int,
    expected: str,
    charset: CharacterSet,
    little_endian: bool,
    problems: dict[Problem, None],
) -> str:
    """The text of one value in a data set, as :func:`to_text`; cut at ``VALUE_BYTES_MAX``, and flagged."""
    if vr == "US" and length == 2:
        return str(_US[little_endian].unpack_from(body, offset)[0])
    if length > VALUE_BYTES_MAX:
        length = VALUE_BYTES_MAX
        problems[Problem.VALUE_TOO_LONG] = None
    raw = bytes(body[offset : offset + length])
    if raw.isascii() and expected not in _NUMBERS and b"\\" not in raw and b"\x1b" not in raw:
        # The fast path: one ASCII value.
        text = raw.decode("ascii")
        return trim(text, expected) if expected in _OWN_TRIM else text.strip(_STRIPPED)
    return to_text(raw, vr, expected, charset, little_endian, problems)


def to_text(  # noqa: PLR0917
    raw: bytes,
    vr: str,
    expected: str,
    charset: CharacterSet,
    little_endian: bool,
    problems: dict[Problem, None],
) -> str:
    """One raw value as index text; ``vr`` is as written.

    ``expected`` the dictionary's (it rules when written UN).
    """
    if vr in ("UN", "OB", "OW") or vr == "SQ":
        vr = expected
    number = _NUMBERS.get(vr)
    if number is not None:
        code, size = number
        count = len(raw) // size
        if len(raw) % size:
            problems[Problem.BAD_NUMBER] = None
        try:
            values = Struct(f"{'<' if little_endian else '>'}{count}{code}").unpack_from(raw)
        except struct_error:
            problems[Problem.BAD_NUMBER] = None
            return ""
        return "\\".join([str(value) for value in values])
    text, sound = decode(raw, charset if vr in CHARACTER_SET_VRS else DEFAULT_CHARACTER_SET)
    if not sound:
        problems[Problem.BAD_TEXT] = None
    return trim(text, vr)


def _request_attributes(
    scanned: Scanned,
    body: Buffer,
    charset: CharacterSet,
    series: dict[int, str],
    problems: dict[Problem, None],
) -> None:
    """ScheduledProcedureStepID and RequestedProcedureID of every item, flattened to the series' values."""
    _, offset, length = scanned.elements[REQUEST_ATTRIBUTES_SEQUENCE]
    little = scanned.little_endian
    gathered: dict[int, list[str]] = {}
    for count, (start, end, implicit) in enumerate(
        items(body, offset, offset + length, scanned.implicit_vr, little)
    ):
        if count >= 64:
            break
        for tag, vr, at, size, _ in elements(body, start, end, implicit, little):
            expected = _REQUEST_ATTRIBUTES.get(tag)
            if expected is not None and 0 < size <= VALUE_BYTES_MAX:
                text = to_text(bytes(body[at : at + size]), vr, expected, charset, little, problems)
                if text not in gathered.setdefault(tag, []):
                    gathered[tag].append(text)
    for tag, values in gathered.items():
        series[tag] = "\\".join(values)


def _check_uids(
    study: dict[int, str], series: dict[int, str], instance: dict[int, str], problems: dict[Problem, None]
) -> None:
    for tag, level in (
        (SOP_CLASS_UID, instance),
        (SOP_INSTANCE_UID, instance),
        (STUDY_INSTANCE_UID, study),
        (SERIES_INSTANCE_UID, series),
    ):
        uid = level.get(tag)
        if not uid:
            problems[_MISSING[tag]] = None
        elif len(uid) > _UID_MAX or _VALID_UID.fullmatch(uid) is None:
            problems[Problem.INVALID_UID] = None
