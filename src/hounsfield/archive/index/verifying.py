"""Copies in tiers are read again, all of them, once in a while and when in doubt, and made good from others.

A copy is due when it was verified too long ago, before somebody asked for it, or when a reader met bytes in
its pack that did not open. One that is wrong is put anew from a copy that is right; where there is none, the
pack is damaged, which is said until it is mended, and what still opens of it is read on.
"""

from __future__ import annotations

import heapq
from collections.abc import Container, Iterable, Iterator, Mapping
from enum import Enum
from typing import NamedTuple

from hounsfield.archive.index.carrying import Pace
from hounsfield.archive.index.copying import WRONG_BYTES, Copying, NoCopyError
from hounsfield.archive.index.journal import Journal
from hounsfield.archive.index.packs import PackGoneError
from hounsfield.archive.index.rows import Event
from hounsfield.archive.index.tables import META
from hounsfield.storage_backends.api import Batch, KeyValueStore
from hounsfield.storage_backends.errors import StorageError

__all__ = ["EVENT_DAMAGED", "EVENT_REPAIRED", "Due", "Found", "Verifying"]

EVENT_REPAIRED = "pack-repaired"
EVENT_DAMAGED = "pack-damaged"
_DOUBT = b"tiering/doubt/"
_DAMAGED = b"tiering/damaged/"
_BEFORE = b"tiering/verify-before"


Copy = tuple[bytes, str]
"""A pack, and the tier that has the copy."""


class Found(Enum):
    """What reading a copy again came to."""

    RIGHT = "right"
    REPAIRED = "repaired"
    DAMAGED = "damaged"
    AWAY = "away"
    GONE = "gone"


class Due(NamedTuple):
    """A copy to be read again; those verified longest ago come first."""

    verified_ns: int
    segment: bytes
    tier: str
    size: int


class Verifying:
    """Blocking. Verifying is for one thread at a time, under a lease; doubts may come from anywhere."""

    def __init__(self, store: KeyValueStore, journal: Journal, copying: Copying) -> None:
        self._store = store
        self._journal = journal
        self._copying = copying
        self._walked: tuple[int, dict[str, int]] = 0, {}
        self._nothing_until_ns = 0

    # ------------------------------------------------------------ what is due

    def doubt(self, segments: Iterable[bytes]) -> None:
        """Have all copies of these packs verified soon, if not all that is wrong with them is known."""
        batch = Batch(uses_reserve=True)
        for segment in set(segments) - {segment for segment, _ in self.damaged()}:
            batch.put(META, _DOUBT + segment, b"")
        self._store.commit(batch)

    def ask(self, now_ns: int) -> None:
        """Have every copy verified that was not since ``now_ns``, those known to be damaged, too."""
        batch = Batch(uses_reserve=True)
        for segment, tier in self.damaged():
            batch.delete(META, _DAMAGED + segment + tier.encode())
        batch.put(META, _BEFORE, now_ns.to_bytes(8, "big"))
        self._store.commit(batch)

    def asked_ns(self) -> int:
        """When somebody asked last for every copy to be verified; 0: nobody did."""
        with self._store.snapshot() as snapshot:
            return int.from_bytes(snapshot.get(META, _BEFORE) or b"", "big")

    def left(self, tiers: Iterable[str]) -> tuple[int, int]:
        """Copies in ``tiers`` that are still to be verified since :meth:`asked_ns`, and their bytes."""
        due = list(self._overdue(0, dict.fromkeys(tiers, 0), self.asked_ns()))
        return len(due), sum(one.size for one in due)

    def due(
        self, now_ns: int, intervals_ns: Mapping[str, int], limit: int, *, but: Container[Copy] = ()
    ) -> list[Due]:
        """Copies to verify now, at most so many. ``intervals_ns`` by tier; 0: only when asked or in doubt.

        ``but``: copies in doubt that were looked at a moment ago.
        """
        before = self.asked_ns()
        doubted = [
            due
            for segment in self._doubts()
            for due in self._copies(segment)
            if (segment, due.tier) not in but
        ]
        found = heapq.nsmallest(limit, self._overdue(now_ns, intervals_ns, before))
        return (doubted + [due for due in found if due not in doubted])[:limit]

    def _doubts(self) -> list[bytes]:
        with self._store.snapshot() as snapshot:
            return [key[len(_DOUBT) :] for key, _ in snapshot.scan(META, prefix=_DOUBT)]

    def _copies(self, segment: bytes) -> Iterator[Due]:
        row = self._copying.packs.get(segment)
        if row is None:
            self._settle(segment)
            return
        for tier, copy in row.copies.items():
            if tier in self._copying.tiers:
                yield Due(copy.verified_ns, segment, tier, row.size)

    def _overdue(self, now_ns: int, intervals_ns: Mapping[str, int], before: int) -> Iterator[Due]:
        """Walks over all packs, but not again before one of them can be due."""
        asked = before, dict(intervals_ns)
        if asked == self._walked and now_ns < self._nothing_until_ns:
            return
        known = set(self.damaged())  # read in vain until somebody asks
        next_ns, any_due = 1 << 63, False
        for page in self._copying.packs.pages():
            for segment, row in page:
                for tier, copy in row.copies.items():
                    interval = intervals_ns.get(tier)
                    if interval is None or (segment, tier) in known:
                        continue  # the hot tier is the scrub's; of one that is not configured nobody can say
                    late = interval and now_ns - copy.verified_ns >= interval
                    if late or copy.verified_ns < before:
                        any_due = True
                        yield Due(copy.verified_ns, segment, tier, row.size)
                    elif interval:
                        next_ns = min(next_ns, copy.verified_ns + interval)
        shortest = min((interval for interval in intervals_ns.values() if interval), default=next_ns)
        # A copy that comes later was verified when it came, so it is due no sooner than that.
        self._walked = asked
        self._nothing_until_ns = 0 if any_due else min(next_ns, now_ns + shortest)

    # ------------------------------------------------------------ verifying

    def verify(self, due: Due, *, pace: Pace = lambda _: None) -> Found:
        """Read one copy again; put it anew when it is wrong. Raises what ``pace`` does."""
        segment, tier = due.segment, due.tier
        try:
            self._copying.verify(segment, tier, pace=pace)
            found = Found.RIGHT
        except PackGoneError:
            found = Found.GONE
        except WRONG_BYTES:
            found = self._repaired(segment, tier, pace)
        except StorageError:
            return Found.AWAY
        if found in {Found.RIGHT, Found.REPAIRED, Found.GONE}:
            self._note_damage(segment, tier, damaged=False)
        return found

    def _repaired(self, segment: bytes, tier: str, pace: Pace) -> Found:
        try:
            self._copying.repair(segment, tier, pace=pace)
        except PackGoneError:
            return Found.GONE
        except (NoCopyError, *WRONG_BYTES):
            self._note_damage(segment, tier, damaged=True)
            return Found.DAMAGED
        except StorageError:
            return Found.AWAY
        self._announce(EVENT_REPAIRED, segment, tier)
        return Found.REPAIRED

    def settle(self, looked: Mapping[Copy, Found]) -> None:
        """There is no doubt any more about the packs each of whose copies was looked at."""
        for segment in self._doubts():
            found = [looked.get((segment, due.tier), Found.AWAY) for due in self._copies(segment)]
            if Found.AWAY not in found:
                self._settle(segment)

    def _settle(self, segment: bytes) -> None:
        batch = Batch(uses_reserve=True)
        batch.delete(META, _DOUBT + segment)
        self._store.commit(batch)

    def damaged(self) -> list[tuple[bytes, str]]:
        """Copies that are wrong and have no right one beside them: pack and tier."""
        with self._store.snapshot() as snapshot:
            keys = [key[len(_DAMAGED) :] for key, _ in snapshot.scan(META, prefix=_DAMAGED)]
        return [(key[:16], key[16:].decode()) for key in keys]

    def _note_damage(self, segment: bytes, tier: str, *, damaged: bool) -> None:
        key = _DAMAGED + segment + tier.encode()
        with self._store.snapshot() as snapshot:
            known = snapshot.get(META, key) is not None
        if known == damaged:
            return
        batch = Batch(uses_reserve=True)
        if damaged:
            batch.put(META, key, b"")
        else:
            batch.delete(META, key)
        self._store.commit(batch)
        if damaged:
            self._announce(EVENT_DAMAGED, segment, tier)

    def _announce(self, kind: str, segment: bytes, tier: str) -> None:
        body = {"pack": segment.hex(), "tier": tier}
        self._journal.commit_events([Event(kind, self._copying.now(), body)])
