"""Copies in tiers are read again, all of them, once in a while and when in doubt, and made good from others.

A copy is due when it was verified too long ago, before somebody asked for it, or when a reader met bytes in
its pack that did not open. One that is wrong is put anew from a copy that is right; where there is none, the
pack is damaged, which is said until it is mended, and what still opens of it is read on.

A copy that its store says is not there is as bad as one that is wrong, and may come back by itself: a store
that was restored, or mounted in part, has it again. So what is missing is looked for again, and what is wrong
read again, ever more seldom, and is right again without anybody's asking.
"""

from __future__ import annotations

import heapq
from collections.abc import Container, Iterable, Iterator, Mapping
from enum import Enum
from typing import Final, NamedTuple

import msgspec

from hounsfield.archive.index.carrying import Pace
from hounsfield.archive.index.copying import WRONG_BYTES, Copying, NoCopyError
from hounsfield.archive.index.journal import Journal
from hounsfield.archive.index.packs import HOT, PackGoneError
from hounsfield.archive.index.rows import Event, decode, encode
from hounsfield.archive.index.tables import META
from hounsfield.storage_backends.api import Batch, KeyValueStore
from hounsfield.storage_backends.errors import BlobNotFoundError, StorageError

__all__ = ["EVENT_DAMAGED", "EVENT_FOUND", "EVENT_REPAIRED", "Damage", "Due", "Found", "Verifying"]

MISSING_AGAIN_S: Final = 600
"""What is missing is looked for again after so long: a question, no bytes."""
WRONG_AGAIN_S: Final = 86_400
"""What is wrong is read again after so long, all of it."""
AGAIN_MAX_S: Final = 7 * 86_400
"""And later, when it has been so for longer: but no later than this."""
EVENT_FOUND = "pack-found"
"""A copy that was damaged or missing is right again, and not by our doing."""
EVENT_REPAIRED = "pack-repaired"
EVENT_DAMAGED = "pack-damaged"
_DOUBT = b"tiering/doubt/"
_DAMAGED = b"tiering/damaged/"
_BEFORE = b"tiering/verify-before"
_NS = 1_000_000_000

AHEAD_NS = 86_400 * 1_000_000_000
"""What was verified so long after now was so before the clock was put back: nobody can say when."""

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


class DamageRow(msgspec.Struct, array_like=True, frozen=True):
    """What is known of a copy that is not right: since when, when it was looked at last, and whether it was
    not there at all."""

    since_ns: int = 0
    looked_ns: int = 0
    missing: bool = False

    @property
    def again_ns(self) -> int:
        """When it is to be looked at again: after as long as it has been so, within limits."""
        least = MISSING_AGAIN_S if self.missing else WRONG_AGAIN_S
        wait_ns = min(max(least * _NS, self.looked_ns - self.since_ns), AGAIN_MAX_S * _NS)
        return self.looked_ns + wait_ns


class Damage(NamedTuple):
    """A copy that is not right, and has no right one beside it."""

    segment: bytes
    tier: str
    row: DamageRow


class Verifying:
    """Blocking. Verifying is for one thread at a time, under a lease; doubts may come from anywhere."""

    def __init__(self, store: KeyValueStore, journal: Journal, copying: Copying) -> None:
        self._store = store
        self._journal = journal
        self._copying = copying
        self._walked: tuple[int, dict[str, int]] = 0, {}
        self._nothing_until_ns = self._looked_ns = 0

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
        before = self._asked_by(now_ns)
        doubted = [
            due
            for segment in self._doubts()
            for due in self._copies(segment)
            if (segment, due.tier) not in but
        ]
        doubted += [due for due in self._damaged_due(now_ns, intervals_ns, but) if due not in doubted]
        found = heapq.nsmallest(limit, self._overdue(now_ns, intervals_ns, before))
        return (doubted + [due for due in found if due not in doubted])[:limit]

    def _asked_by(self, now_ns: int) -> int:
        """When somebody asked last; now, if that was before the clock was put back."""
        asked = self.asked_ns()
        if asked <= now_ns:
            return asked
        batch = Batch(uses_reserve=True)
        batch.put(META, _BEFORE, now_ns.to_bytes(8, "big"))
        self._store.commit(batch)
        return now_ns

    def _damaged_due(
        self, now_ns: int, intervals_ns: Mapping[str, int], but: Container[Copy]
    ) -> Iterator[Due]:
        for segment, tier, row in self.damages():
            if now_ns < row.again_ns or (segment, tier) in but:
                continue
            if tier != HOT and tier not in intervals_ns:
                continue
            copies = [due for due in self._copies(segment) if due.tier == tier]
            if not copies and tier in self._copying.tiers:  # it is not said to be there any more
                self._forget_damage(segment, tier)
            yield from copies

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
        if asked == self._walked and self._looked_ns <= now_ns < self._nothing_until_ns:
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
                    late = late or (now_ns and copy.verified_ns > now_ns + AHEAD_NS)
                    if late or copy.verified_ns < before:
                        any_due = True
                        yield Due(copy.verified_ns, segment, tier, row.size)
                    elif interval:
                        next_ns = min(next_ns, copy.verified_ns + interval)
        shortest = min((interval for interval in intervals_ns.values() if interval), default=next_ns)
        # A copy that comes later was verified when it came, so it is due no sooner than that.
        self._walked, self._looked_ns = asked, now_ns
        self._nothing_until_ns = 0 if any_due else min(next_ns, now_ns + shortest)

    # ------------------------------------------------------------ verifying

    def verify(self, due: Due, *, pace: Pace = lambda _: None) -> Found:
        """Read one copy again; put it anew when it is wrong. Raises what ``pace`` does."""
        segment, tier = due.segment, due.tier
        try:
            self._copying.verify(segment, tier, pace=pace)
            found = Found.RIGHT
            if self._copying.mend_key(segment, tier):
                found = Found.REPAIRED
                self._announce(EVENT_REPAIRED, segment, tier)
        except PackGoneError:
            found = Found.GONE
        except WRONG_BYTES as error:
            found = self._repaired(segment, tier, pace, missing=isinstance(error, BlobNotFoundError))
        except StorageError:
            return Found.AWAY
        if found in {Found.RIGHT, Found.REPAIRED, Found.GONE}:
            was_damaged = self._forget_damage(segment, tier)
            if was_damaged and found is Found.RIGHT:
                self._announce(EVENT_FOUND, segment, tier)
        return found

    def _repaired(self, segment: bytes, tier: str, pace: Pace, *, missing: bool) -> Found:
        try:
            self._copying.repair(segment, tier, pace=pace)
        except PackGoneError:
            return Found.GONE
        except (NoCopyError, *WRONG_BYTES):
            self._note_damage(segment, tier, missing=missing)
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
        """Copies that are wrong, or missing, and have no right one beside them: pack and tier."""
        return [(one.segment, one.tier) for one in self.damages()]

    def damages(self) -> list[Damage]:
        """The same, and what is known of each."""
        with self._store.snapshot() as snapshot:
            found = list(snapshot.scan(META, prefix=_DAMAGED))
        at = len(_DAMAGED)
        return [Damage(key[at : at + 16], key[at + 16 :].decode(), _damage(held)) for key, held in found]

    def _note_damage(self, segment: bytes, tier: str, *, missing: bool) -> None:
        key, now_ns = _DAMAGED + segment + tier.encode(), self._copying.now()
        with self._store.snapshot() as snapshot:
            held = snapshot.get(META, key)
        since_ns = now_ns if held is None else _damage(held).since_ns
        batch = Batch(uses_reserve=True)
        batch.put(META, key, encode(DamageRow(since_ns, now_ns, missing)))
        self._store.commit(batch)
        if held is None:
            self._announce(EVENT_DAMAGED, segment, tier, missing=missing)

    def _forget_damage(self, segment: bytes, tier: str) -> bool:
        """Whether any was known."""
        key = _DAMAGED + segment + tier.encode()
        with self._store.snapshot() as snapshot:
            if snapshot.get(META, key) is None:
                return False
        batch = Batch(uses_reserve=True)
        batch.delete(META, key)
        self._store.commit(batch)
        return True

    def _announce(self, kind: str, segment: bytes, tier: str, **more: object) -> None:
        body = {"pack": segment.hex(), "tier": tier, **more}
        self._journal.commit_events([Event(kind, self._copying.now(), body)])


def _damage(held: bytes) -> DamageRow:
    return decode(DamageRow, held) if held else DamageRow()  # a release before this one kept no more
