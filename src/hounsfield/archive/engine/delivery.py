"""Headers as they are delivered: what was received, as it was coerced then, with the corrections in force.

Which they are is decided when an instance is looked up, and goes with it: the length that is announced and
the bytes that follow are of one moment. Only headers are ever written anew; pixel data goes out as it lies
there.
"""

from __future__ import annotations

import datetime
import hashlib
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Final, NamedTuple

from hounsfield.archive.dicom.rewrite import Change, rewrite
from hounsfield.archive.engine.records import Records
from hounsfield.archive.engine.types import Header, Overlay
from hounsfield.archive.index.catalog import Catalog
from hounsfield.archive.index.corrections import MERGE, Step, View
from hounsfield.archive.index.rows import CoercedRow, InstanceRow, StudyRow
from hounsfield.codecs.registry import lookup
from hounsfield.storage_backends.api import Buffer, Snapshot

SYSTEM: Final = "Hounsfield"
#: Rewritten headers kept for a moment: the length of an answer is told before its bytes are asked for.
REMEMBERED_MAX: Final = 32
REMEMBERED_BYTES_MAX: Final = 1 << 20  # each; longer ones are made twice
_NS: Final = 1_000_000_000


class Overlays:
    """The overlays of the instances of one study, as one snapshot has it."""

    def __init__(self, view: View | None, study: StudyRow | None) -> None:
        self._view = view
        self._study = study if study is not None and study.received else None
        self._known: dict[object, Overlay | None] = {}

    @classmethod
    def of(cls, catalog: Catalog, snapshot: Snapshot, study_uid: str) -> Overlays:
        """Those of a study."""
        view = catalog.view(snapshot)
        return cls(view, None if view is None else catalog.study(snapshot, study_uid))

    def overlay(self, series_uid: str, row: InstanceRow) -> Overlay | None:
        """What is to be changed in an instance's header, None when nothing is."""
        corrected = self._corrected(series_uid, row)
        return corrected if row.coerced is None else _on_receipt(row, row.coerced, corrected)

    def _corrected(self, series_uid: str, row: InstanceRow) -> Overlay | None:
        if self._view is None or self._study is None:
            return None
        received = row.received or (self._study.uid, series_uid)
        key = (series_uid, received, self._view.route(*received, row.sop_uid, row.received_ns))
        if key not in self._known:
            self._known[key] = _overlay(self._view.steps(self._study, series_uid, row))
        return self._known[key]


def _overlay(steps: Sequence[Step]) -> Overlay | None:
    changes = tuple(
        Change(
            step.values,
            at=_date_time(step.correction.at_ns),
            reason="COERCE" if step.correction.kind == MERGE else "CORRECT",
            system=SYSTEM,
        )
        for step in steps
    )
    return _stamped(changes) if changes else None


def _on_receipt(row: InstanceRow, coerced: CoercedRow, corrected: Overlay | None) -> Overlay:
    """What was coerced when the object came, and then what corrections change."""
    change = Change(coerced.values, at=_date_time(row.received_ns), reason="COERCE", system=SYSTEM)
    return _stamped((change, *(corrected.changes if corrected is not None else ())))


def _stamped(changes: tuple[Change, ...]) -> Overlay:
    said = repr([(sorted(one.values.items()), one.at, one.reason) for one in changes])
    return Overlay(changes, hashlib.blake2b(said.encode(), digest_size=8).hexdigest())


def _date_time(at_ns: int) -> str:
    """A moment as a DT value (PS3.5 6.2), in UTC."""
    seconds, rest = divmod(at_ns, _NS)
    moment = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
    return f"{moment:%Y%m%d%H%M%S}.{rest // 1000:06d}+0000"


class Ends(NamedTuple):
    """What is before and behind the pixels of an object; where, as it was received, the former ends and the
    latter begins."""

    header: Header
    head_bytes: int
    trailer_at: int


class Corrected:
    """Headers written anew, the last ones remembered. Blocking; any number of threads at once."""

    def __init__(self, records: Records) -> None:
        self._records = records
        self._lock = threading.Lock()
        self._last: OrderedDict[tuple[bytes, str], Ends] = OrderedDict()

    def header(self, row: InstanceRow, overlay: Overlay) -> Header:
        """The data set without its pixel data's value, for metadata. RewriteError when it cannot be made."""
        if row.location.stream is None:
            return self.ends(row, overlay).header
        return self._rewritten(row, overlay, self._records.header(row))

    def ends(self, row: InstanceRow, overlay: Overlay) -> Ends:
        """All bytes before and behind the pixels, corrected. RewriteError when they cannot be made."""
        key = (row.location.record_id, overlay.stamp)
        with self._lock:
            known = self._last.get(key)
        if known is not None:
            return known
        received, head_bytes, trailer_at = self._records.ends(row)
        header = self._rewritten(row, overlay, received)
        made = Ends(header, head_bytes, trailer_at)
        if len(header.head) + len(header.trailer) <= REMEMBERED_BYTES_MAX:
            with self._lock:
                self._last[key] = made
                while len(self._last) > REMEMBERED_MAX:
                    self._last.popitem(last=False)
        return made

    def _rewritten(self, row: InstanceRow, overlay: Overlay, header: Header) -> Header:
        source = self._records.source_ae(row)
        changes = [replace(change, source=source) for change in overlay.changes]
        head, trailer = rewrite(header.head, header.trailer, lookup(header.transfer_syntax_uid), changes)
        return Header(head, trailer, header.transfer_syntax_uid)


def spliced(pieces: Iterable[list[Buffer]], ends: Ends) -> Iterator[list[Buffer]]:
    """A data set in pieces with other ends than it was received with. Nothing is copied."""
    yield [ends.header.head]
    at = 0
    for piece in pieces:
        kept: list[Buffer] = []
        for buffer in piece:
            view = memoryview(buffer)
            start, stop = max(ends.head_bytes - at, 0), min(ends.trailer_at - at, len(view))
            at += len(view)
            if start < stop:
                kept.append(view[start:stop])
        if kept:
            yield kept
    if len(ends.header.trailer):
        yield [ends.header.trailer]
