"""Rejection notes: key object selection documents that say which objects are not to be used, and why.

IHE RAD TF, Imaging Object Change Management: transaction RAD-66; titles from PS3.16 CID 7011.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from hounsfield.archive.dicom.attributes import uid_is_usable
from hounsfield.archive.dicom.references import items_in, text_in
from hounsfield.archive.dicom.selection import select
from hounsfield.codecs.registry import lookup

KEY_OBJECT_SELECTION: Final = "1.2.840.10008.5.1.4.1.1.88.59"
QUALITY: Final = "113001"
PATIENT_SAFETY: Final = "113037"
WORKLIST: Final = "113038"
EXPIRED: Final = "113039"
#: Why objects are rejected: the code (DCM) of the document's title, and a word for it.
REASONS: Final = {
    QUALITY: "quality",
    PATIENT_SAFETY: "patient-safety",
    WORKLIST: "worklist",
    EXPIRED: "expired",
}

#: What a note of whose limits :class:`NoteLimits` speaks can be done about.
_IN_PARTS: Final = "ask its sender to send it in parts"

_TITLE, _VALUE, _SCHEME = 0x0040A043, 0x00080100, 0x00080102
_EVIDENCE, _SERIES, _INSTANCES = 0x0040A375, 0x00081115, 0x00081199
_STUDY_UID, _SERIES_UID, _SOP_UID = 0x0020000D, 0x0020000E, 0x00081155


@dataclass(frozen=True, slots=True)
class NoteLimits:
    """How much one note may reject. A note beyond is kept as any other object, and said to be.

    All of a note takes effect in one commit, and its sender waits for that: some 0.1 ms for each study that
    it names, a millisecond for each that is here. Notes that people make name one study, those of a retention
    system hundreds.
    """

    studies_max: int = 10_000
    instances_max: int = 100_000  # the largest studies have some ten thousand; a note is kept in one row
    bytes_max: int = 16 << 20  # read to memory, some 15 bytes for each; so many references take ten million


@dataclass(frozen=True, slots=True)
class RejectionNote:
    """Why, a key of :data:`REASONS`, and what: SOP Instance UIDs by study and series."""

    code: str
    rejected: Mapping[str, Mapping[str, tuple[str, ...]]]


class NoteError(ValueError):
    """A rejection note that cannot be followed; the text says why."""

    retry = False


class NoteTooLargeError(NoteError):
    """A rejection note beyond a limit. ``code``: why it rejects; "" when it was not looked at."""

    def __init__(self, what: str, code: str = "") -> None:
        self.code = code
        super().__init__(f"{what}; {_IN_PARTS}")


def rejection_note(
    header: bytes | memoryview, transfer_syntax_uid: str, limits: NoteLimits | None = None
) -> RejectionNote | None:
    """What a key object selection document rejects, None when it is not a rejection note.

    ``header`` is its data set. What it refers to is in its Current Requested Procedure Evidence Sequence
    (PS3.3 C.17.6.2). A reference without usable UIDs rejects nothing. NoteError for a note that refers to
    nothing, NoteTooLargeError for one that refers to more than ``limits`` allow.
    """
    limits = limits or NoteLimits()
    model = select(header, lookup(transfer_syntax_uid), [(_TITLE,), (_EVIDENCE,)])
    title = next(items_in(model, _TITLE), None)
    if title is None or text_in(title, _SCHEME) != "DCM":
        return None
    code = text_in(title, _VALUE)
    if code not in REASONS:
        return None
    rejected: dict[str, dict[str, dict[str, None]]] = {}
    for study in items_in(model, _EVIDENCE):
        for series in items_in(study, _SERIES):
            for instance in items_in(series, _INSTANCES):
                uids = (text_in(study, _STUDY_UID), text_in(series, _SERIES_UID), text_in(instance, _SOP_UID))
                if all(map(uid_is_usable, uids)):
                    rejected.setdefault(uids[0], {}).setdefault(uids[1], {})[uids[2]] = None
    count = sum(len(instances) for by_series in rejected.values() for instances in by_series.values())
    if not count:
        raise NoteError("it refers to no instance")
    if count > limits.instances_max:
        raise NoteTooLargeError(f"it refers to {count} instances, more than {limits.instances_max}", code)
    if len(rejected) > limits.studies_max:
        what = f"it refers to objects of {len(rejected)} studies, more than {limits.studies_max}"
        raise NoteTooLargeError(what, code)
    return RejectionNote(code, {
        study: {series: tuple(instances) for series, instances in by_series.items()}
        for study, by_series in rejected.items()
    })  # fmt: skip
