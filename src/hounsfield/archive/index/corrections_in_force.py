"""Corrections in force that were opened before: what rejections name is long, and every object asks for it.

A row that reads as it did when it was opened says what it said: each sealing is another (its nonce is), so
that equal bytes are the same row, whatever snapshot they come from.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from hounsfield.archive.index.rows import CorrectionRow

#: Of rows as they are stored; opened they take some ten times as much, in each worker. A study of ten notes
#: that name ten thousand objects each has two million. What is longer is opened each time.
KEPT_BYTES_MAX = 8 << 20

Rejections = dict[str, dict[str, tuple[CorrectionRow, ...]]]
"""The rejections that name an object of a study, by number: by series and SOP Instance UID."""


class InForce:
    """The corrections in force for one patient or study."""

    def __init__(self, corrections: tuple[CorrectionRow, ...]) -> None:
        self.corrections = corrections
        self._rejections: Rejections | None = None

    def rejections(self, study_uid: str) -> Rejections:
        """What those that are rejections name of ``study_uid``, the study whose corrections these are."""
        if self._rejections is None:
            found: Rejections = {}
            for row in self.corrections:
                for series_uid, sop_uids in row.rejected.get(study_uid, {}).items():
                    named = found.setdefault(series_uid, {})
                    alone = (row,)
                    for sop_uid in sop_uids:
                        before = named.get(sop_uid)
                        named[sop_uid] = (*before, row) if before else alone
            self._rejections = found
        return self._rejections


NONE = InForce(())


class Opened:
    """The rows that were opened last. Any number of threads at once."""

    def __init__(self, bytes_max: int = KEPT_BYTES_MAX) -> None:
        self._bytes_max = bytes_max
        self._bytes = 0
        self._kept: dict[bytes, tuple[bytes, InForce]] = {}
        self._lock = threading.Lock()

    def of(
        self, key: bytes, sealed: bytes, opened: Callable[[bytes, bytes], tuple[CorrectionRow, ...]]
    ) -> InForce:
        """What ``opened(key, sealed)`` gives, which is called when that is not known."""
        with self._lock:
            held = self._kept.get(key)
        if held is not None and held[0] == sealed:
            return held[1]
        found = InForce(opened(key, sealed))
        if len(sealed) <= self._bytes_max:
            self._keep(key, sealed, found)
        return found

    def _keep(self, key: bytes, sealed: bytes, found: InForce) -> None:
        with self._lock:
            before = self._kept.pop(key, None)
            self._bytes += len(sealed) - (len(before[0]) if before else 0)
            self._kept[key] = (sealed, found)
            while self._bytes > self._bytes_max:
                oldest = next(iter(self._kept))
                self._bytes -= len(self._kept.pop(oldest)[0])
