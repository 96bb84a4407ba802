"""Headers as they are delivered: what was received, with the corrections that are in force.

Which they are is decided when an instance is looked up, and goes with it: the length that is announced and
the bytes that follow are of one moment. Only headers are ever written anew; pixel data goes out as it lies
there.
"""

from __future__ import annotations

import datetime
import hashlib
import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Final

from hounsfield.archive.dicom.rewrite import Change, rewrite
from hounsfield.archive.engine.types import Header, Overlay
from hounsfield.archive.index.catalog import Catalog
from hounsfield.archive.index.corrections import MERGE, Step, View
from hounsfield.archive.index.rows import InstanceRow, StudyRow
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
        if self._view is None or self._study is None:
            return None
        received = row.received or (self._study.uid, series_uid)
        key = (series_uid, received, self._view.route(*received, row.sop_uid))
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
    if not changes:
        return None
    said = repr([(sorted(one.values.items()), one.at, one.reason) for one in changes])
    return Overlay(changes, hashlib.blake2b(said.encode(), digest_size=8).hexdigest())


def _date_time(at_ns: int) -> str:
    """A moment as a DT value (PS3.5 6.2), in UTC."""
    seconds, rest = divmod(at_ns, _NS)
    moment = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
    return f"{moment:%Y%m%d%H%M%S}.{rest // 1000:06d}+0000"


class Rewritten:
    """Headers written anew, the last ones remembered. Any number of threads at once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last: OrderedDict[tuple[bytes, str], Header] = OrderedDict()

    def known(self, row: InstanceRow, overlay: Overlay) -> Header | None:
        """The header as it was made a moment ago."""
        with self._lock:
            return self._last.get((row.location.record_id, overlay.stamp))

    def header(self, row: InstanceRow, overlay: Overlay, header: Header, source: str) -> Header:
        """``header`` with the overlay. ``source``: the AE that sent the object, for the record.

        RewriteError when it cannot be written anew.
        """
        changes = [replace(change, source=source) for change in overlay.changes]
        head, trailer = rewrite(header.head, header.trailer, lookup(header.transfer_syntax_uid), changes)
        made = Header(head, trailer, header.transfer_syntax_uid)
        if len(head) + len(trailer) <= REMEMBERED_BYTES_MAX:
            with self._lock:
                self._last[row.location.record_id, overlay.stamp] = made
                while len(self._last) > REMEMBERED_MAX:
                    self._last.popitem(last=False)
        return made


def spliced(
    pieces: Iterable[list[Buffer]], head: Buffer, head_bytes: int, trailer: Buffer, trailer_at: int
) -> Iterable[list[Buffer]]:
    """A data set in pieces with another header and trailer: its first ``head_bytes`` and what begins at
    ``trailer_at`` are left out. Nothing is copied."""
    yield [head]
    at = 0
    for piece in pieces:
        kept: list[Buffer] = []
        for buffer in piece:
            view = memoryview(buffer)
            start, stop = max(head_bytes - at, 0), min(trailer_at - at, len(view))
            at += len(view)
            if start < stop:
                kept.append(view[start:stop])
        if kept:
            yield kept
    if len(trailer):
        yield [trailer]
