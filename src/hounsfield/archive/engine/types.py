"""What the engine's callers hand in and get back."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from hounsfield.archive.dicom.rewrite import Change
from hounsfield.archive.engine.buffers import Block
from hounsfield.archive.index.indexing import Outcome
from hounsfield.archive.index.planner import FoundRow
from hounsfield.archive.index.rows import InstanceRow
from hounsfield.storage_backends.api import Buffer

__all__ = [
    "COERCED",
    "EngineStatistics",
    "FoundRow",
    "Frame",
    "Header",
    "Instance",
    "Outcome",
    "Overlay",
    "SearchPage",
    "Source",
    "StoreResult",
]


@dataclass(frozen=True, slots=True)
class Source:
    """Who sent an object, and how: protocol is ``dimse``, ``stow``, ``import`` or ``plugin``."""

    protocol: str
    calling_ae: str = ""
    called_ae: str = ""
    address: str = ""


COERCED = "coerced"
"""A warning: attributes are shown otherwise than they were sent (PS3.4 B.4.1.3)."""


@dataclass(frozen=True, slots=True)
class StoreResult:
    """One object's fate. ``warnings`` name flags, never values."""

    outcome: Outcome
    sop_class_uid: str
    sop_instance_uid: str
    study_uid: str
    series_uid: str
    warnings: tuple[str, ...] = ()


class Unlooked(Enum):
    """Nobody has looked yet."""

    UNLOOKED = "unlooked"


UNLOOKED = Unlooked.UNLOOKED


@dataclass(frozen=True, slots=True)
class Overlay:
    """What is to be changed in an object's header. ``stamp`` differs whenever that does: for entity tags."""

    changes: tuple[Change, ...]
    stamp: str


@dataclass(frozen=True, slots=True)
class Instance:
    """A stored instance and the UIDs that lead to it. ``row.location`` is where its bytes lie."""

    study_uid: str
    series_uid: str
    row: InstanceRow
    overlay: Overlay | Unlooked | None = UNLOOKED  # what corrections change in its header


class Frame(NamedTuple):
    """One frame as stored: native pixel bytes, or one encapsulated frame without its item headers."""

    data: Buffer
    transfer_syntax_uid: str
    record_id: bytes  # of the record that has it: other bytes under the same UIDs have another
    block: Block | None = None  # what ``data`` is a view of, when that can be used again


@dataclass(frozen=True, slots=True)
class Header:
    """An instance's data set without the value of its pixel data.

    ``head`` ends with the pixel data element's own header (and basic offset table); ``trailer``
    begins with the sequence delimiter when the pixel data is encapsulated.
    """

    head: Buffer
    trailer: Buffer
    transfer_syntax_uid: str


@dataclass(frozen=True, slots=True)
class SearchPage:
    """Answers in order; ``more`` says whether the limit cut them off."""

    rows: tuple[FoundRow, ...]
    more: bool


@dataclass(frozen=True, slots=True)
class EngineStatistics:
    """A moment's figures of one worker's engine."""

    objects_stored: int
    objects_duplicate: int
    objects_conflict: int
    objects_quarantined: int
    objects_failed: int
    bytes_stored: int
    groups: int
    bytes_in_flight: int
    sessions_open: int
    frames_read: int
    frames_read_cached: int
