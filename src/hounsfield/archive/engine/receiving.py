"""What was received: an object's bytes become the row and the slices that are stored."""

from __future__ import annotations

import time
from collections import OrderedDict

from hounsfield.archive.dicom.attributes import (
    SERIES_INSTANCE_UID,
    SOP_CLASS_UID,
    SOP_INSTANCE_UID,
    STUDY_INSTANCE_UID,
    Extracted,
    extract,
    uid_is_usable,
)
from hounsfield.archive.dicom.coercion import Coercions, Origin, applied
from hounsfield.archive.dicom.cuts import Layout
from hounsfield.archive.dicom.scan import scan
from hounsfield.archive.dicom.shapes import Shape
from hounsfield.archive.engine.group_commit import Received
from hounsfield.archive.engine.types import Source
from hounsfield.archive.index.rows import ROW_VERSION, CoercedRow, ObjectRow, SourceRow
from hounsfield.codecs.registry import lookup
from hounsfield.storage_backends.api import Buffer

PROBLEM_SOP_MISMATCH = "sop-differs-from-command"

#: Series being received whose last header is remembered; each costs a few header lengths.
SHAPES_MAX = 128

_ShapeKey = tuple[str, str, str, str]


class Shapes:
    """The header shapes of the series being received; one event loop's.

    A sender's associations each have their own, since each sends a series of its own: two series in turns
    would differ in two dozen elements at each object, where neighbours in one differ in a few. A new
    association begins with a copy of what its sender's last header was like.
    """

    def __init__(self) -> None:
        self._shapes: OrderedDict[tuple[_ShapeKey, int], Shape] = OrderedDict()
        self._newest: dict[_ShapeKey, int] = {}  # the association whose shape was learnt last

    def get(self, key: _ShapeKey, source: Source) -> Shape | None:
        # An identity that is used again for another association finds a shape that fits or does not, no more.
        shape = self._shapes.get((key, id(source)))
        if shape is None and (newest := self._newest.get(key)) is not None:
            other = self._shapes.get((key, newest))
            if other is not None:
                shape = other.copy()
                self.put(key, source, shape)
        return shape

    def put(self, key: _ShapeKey, source: Source, shape: Shape) -> None:
        self._shapes[key, id(source)] = shape
        self._shapes.move_to_end((key, id(source)))
        self._newest[key] = id(source)
        if len(self._shapes) > SHAPES_MAX:
            (old, of), _ = self._shapes.popitem(last=False)
            if self._newest.get(old) == of:
                del self._newest[old]


def scanned(  # noqa: PLR0917
    data: memoryview,
    transfer_syntax_uid: str,
    sop_class_uid: str,
    sop_uid: str,
    source: Source,
    shapes: Shapes | None = None,
    coercions: Coercions | None = None,
) -> Received:
    """Scan an object's bytes into what is stored: its row and its slices. The UIDs are the announced ones."""
    key = (transfer_syntax_uid, sop_class_uid, source.calling_ae, source.address)
    shape = shapes.get(key, source) if shapes is not None else None
    known = shape.read(data) if shape is not None else None
    if known is not None:
        found, cuts = known
        layout = Layout.NATIVE
    else:
        walked = scan(data, lookup(transfer_syntax_uid))
        found = extract(walked, data)
        layout, cuts = walked.layout, walked.cuts
        if shapes is not None and (learnt := Shape.of(walked, found, data, shape)) is not None:
            shapes.put(key, source, learnt)
    slices: list[Buffer] = [data[cuts[i] : cuts[i + 1]] for i in range(len(cuts) - 1)]
    if layout is Layout.HEADER_ONLY:
        slices.append(b"")
    row = object_row(found, layout, transfer_syntax_uid, sop_class_uid, sop_uid, source, coercions)
    return Received(row, slices)


def object_row(  # noqa: PLR0917
    found: Extracted,
    layout: Layout,
    transfer_syntax_uid: str,
    sop_class_uid: str,
    sop_uid: str,
    source: Source,
    coercions: Coercions | None = None,
) -> ObjectRow:
    """What is said of an object in which ``found`` was found, as ``coercions`` have it."""
    flags = [str(problem) for problem in found.problems]
    own_sop, own_class = found.instance.get(SOP_INSTANCE_UID, ""), found.instance.get(SOP_CLASS_UID, "")
    if (sop_uid and sop_uid != own_sop) or (sop_class_uid and sop_class_uid != own_class):
        flags.append(PROBLEM_SOP_MISMATCH)
    study_uid = found.study.get(STUDY_INSTANCE_UID, "")
    series_uid = found.series.get(SERIES_INSTANCE_UID, "")
    quarantine = _unusable(study_uid, series_uid, own_sop)
    coerced: CoercedRow | None = None
    if coercions is not None and not quarantine:
        origin = Origin(
            own_class or sop_class_uid, transfer_syntax_uid,
            source.protocol, source.calling_ae, source.called_ae, source.address,
        )  # fmt: skip
        done = coercions.coerce(found, origin)
        if done is not None:
            found = applied(found, done.values)
            coerced = CoercedRow(done.values, done.names)
    return ObjectRow(
        version=ROW_VERSION,
        study_uid=study_uid,
        series_uid=series_uid,
        sop_uid=own_sop,
        sop_class_uid=own_class or sop_class_uid,
        transfer_syntax_uid=transfer_syntax_uid,
        study=found.study,
        series=found.series,
        instance=found.instance,
        layout=int(layout),
        received_ns=time.time_ns(),
        source=SourceRow(source.protocol, source.calling_ae, source.called_ae, source.address),
        problems=tuple(flags),
        quarantine=quarantine,
        coerced=coerced,
    )


def _unusable(study_uid: str, series_uid: str, sop_uid: str) -> str:
    """Why an object cannot be filed, or "". Sloppy UIDs (leading zeros) are filed; empty ones are not."""
    for name, uid in (("study", study_uid), ("series", series_uid), ("sop", sop_uid)):
        if not uid:
            return f"missing-{name}-instance-uid"
        if not uid_is_usable(uid):
            return f"invalid-{name}-instance-uid"
    return ""
