"""Versions: several records that came under one instance's UIDs. One is served, the others stay beside it.

Which is served follows from the rows, not from the order in which they were indexed: a reindex meets segments
in any order. The flags of each row say that there are others.
"""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import structs

from hounsfield.archive.dicom.problems import CUT_SHORT
from hounsfield.archive.index.rows import InstanceRow

FLAG_CONFLICT = "conflicting-version-kept"
#: Of a version: it is, byte for byte, another that is there, and nothing that anybody has to decide on.
FLAG_AGAIN = "received-again"
_BESIDE_OTHERS = frozenset({FLAG_CONFLICT, FLAG_AGAIN})


def served_of(rows: Iterable[InstanceRow], newest_current: bool) -> InstanceRow:
    """Which of several received under the same UIDs is served: one that came whole before one that was cut
    short, then the first or the newest; of those of one moment the one that is given first."""
    sign = -1 if newest_current else 1
    return min(rows, key=lambda row: (not CUT_SHORT.isdisjoint(row.flags), sign * row.received_ns))


def conflicting(row: InstanceRow, is_so: bool) -> InstanceRow:
    """The row as it is beside others of its UIDs, or alone. What else was noted stands as it was noted."""
    flags = tuple(flag for flag in row.flags if flag not in _BESIDE_OTHERS)
    return structs.replace(row, flags=(*flags, FLAG_CONFLICT) if is_so else flags)


def received_again(row: InstanceRow) -> InstanceRow:
    """The row of a version that is the same, byte for byte, as another that is there."""
    return structs.replace(row, flags=(*row.flags, FLAG_AGAIN))
