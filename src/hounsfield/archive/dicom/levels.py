"""Which attribute belongs to which level of a query, and with what VR.

The extracted ones and the computed ones.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from hounsfield.archive.dicom.attributes import INSTANCE_LEVEL, SERIES_LEVEL, STUDY_LEVEL


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
