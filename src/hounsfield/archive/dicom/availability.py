"""Instance Availability Notification: its data set (PS3.4 R.3). Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from hounsfield.archive.dicom.references import Reference, encoded, reference, sequence, uid
from hounsfield.codecs.registry import TransferSyntax

__all__ = ["INSTANCE_AVAILABILITY_NOTIFICATION", "AvailableSeries", "AvailableStudy", "notification"]

INSTANCE_AVAILABILITY_NOTIFICATION: Final = "1.2.840.10008.5.1.4.33"

_PERFORMED_STEPS, _SERIES, _INSTANCES = 0x00081111, 0x00081115, 0x00081199
_WORKITEMS, _AVAILABILITY, _RETRIEVE_AE = 0x00404019, 0x00080056, 0x00080054
_STUDY_UID, _SERIES_UID = 0x0020000D, 0x0020000E


@dataclass(frozen=True, slots=True)
class AvailableSeries:
    """A series, and the instances of it that can be had now."""

    uid: str
    instances: tuple[Reference, ...]


@dataclass(frozen=True, slots=True)
class AvailableStudy:
    """A study. ``steps``: the performed procedure steps that its series say they come from."""

    uid: str
    series: tuple[AvailableSeries, ...]
    steps: tuple[Reference, ...] = ()


def notification(study: AvailableStudy, syntax: TransferSyntax, *, retrieve_ae: str) -> bytes:
    """The data set of an N-CREATE-RQ, in a little endian ``syntax`` (PS3.4 Table R.3.2-1).

    Everything is ONLINE and can be retrieved from ``retrieve_ae``.
    """
    return b"".join((
        sequence(_PERFORMED_STEPS, (_step(one, syntax) for one in study.steps), syntax),
        sequence(_SERIES, _series(study.series, retrieve_ae, syntax), syntax),
        uid(_STUDY_UID, study.uid, syntax),
    ))  # fmt: skip


def _step(one: Reference, syntax: TransferSyntax) -> bytes:
    return reference(one, syntax) + sequence(_WORKITEMS, (), syntax)


def _series(found: Sequence[AvailableSeries], retrieve_ae: str, syntax: TransferSyntax) -> Iterable[bytes]:
    where = encoded(_RETRIEVE_AE, "AE", retrieve_ae.encode("ascii"), syntax)
    where += encoded(_AVAILABILITY, "CS", b"ONLINE", syntax)
    for one in found:
        instances = (where + reference(instance, syntax) for instance in one.instances)
        yield sequence(_INSTANCES, instances, syntax) + uid(_SERIES_UID, one.uid, syntax)
