"""Copies of packs: into another tier, out of one, read again, made good from one another.

A tier is a place for whole objects, and the hot one is the data directory itself
(docs/decisions/0025-tiers.md). Every step may be killed anywhere and done again, and leaves at least as many
right copies as before:

* *copy*: the wrapped key, then the blob, are put into the tier, the blob proved as it goes by, so that a
  wrong one is never put; it is read back from there, whole, and proved again; only then the pack's row names
  the tier. The local disk is believed when it has synced, as when objects come in, so that a recall is as
  fast as the store it comes from; what it holds is read back before others are dropped for it;
* *drop*: the row does not name the tier any more, which fails when too few others would be left; the index is
  synced; only then the blob goes, and then its key there.

What a killed step leaves is a blob that no row names: :meth:`Copying.sweep` removes it, or the next copy
overwrites it with the same bytes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping

from hounsfield.archive.index.carrying import Pace
from hounsfield.archive.index.packs import HOT, CopyRow, PackGoneError, PackRow, Packs
from hounsfield.archive.index.tier_notes import TierNotes, read_small
from hounsfield.archive.index.tier_places import Tier, segment_key_name, segment_of, segment_of_key
from hounsfield.storage_backends.api import Buffer, KeyValueStore
from hounsfield.storage_backends.errors import (
    BlobNotFoundError,
    KeyringError,
    SealError,
    ShortReadError,
    StorageError,
)
from hounsfield.storage_backends.keyring import Keyring
from hounsfield.storage_backends.packs import PackCheck, checked

__all__ = ["WRONG_BYTES", "Copying", "NoCopyError"]

WRONG_BYTES = (SealError, ShortReadError, BlobNotFoundError)
"""What a copy raises that is not as it was made, or not there."""


class NoCopyError(Exception):
    """No tier has a copy that is right and can be reached now: the text says which said what."""

    retry = True


class _SourceError(Exception):
    """A source is not as the pack was made, or not to be had; its text says why."""


class Copying:
    """Moves copies of packs between tiers. Blocking; one thread at a time, under a lease."""

    def __init__(
        self,
        store: KeyValueStore,
        keyring: Keyring,
        tiers: Mapping[str, Tier],
        *,
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        self._store = store
        self._keyring = keyring
        self._tiers = tiers
        self.now = clock
        self.notes = TierNotes(keyring, tiers)
        self.packs = Packs(store)

    @property
    def tiers(self) -> tuple[str, ...]:
        """Every tier, by name; the hot one first."""
        return tuple(self._tiers)

    def copy(self, segment: bytes, to: str, *, pace: Pace = lambda _: None) -> PackRow:
        """Have tier ``to`` hold a right copy of the pack, from whichever other tier has one; its row then.

        Nothing happens when the row names the tier already: :meth:`verify` looks whether that is right.
        Raises ``PackGoneError``, ``NoCopyError``, what the tier's store raises, ``WRONG_BYTES`` when it gives
        back other bytes than it took, and what ``pace`` does.
        """
        row = self._row(segment)
        if to in row.copies:
            return row
        return self._put(segment, row, to, pace, read_back=to != HOT)

    def drop(self, segment: bytes, tier: str, *, others_min: int = 1, pace: Pace = lambda _: None) -> PackRow:
        """Have ``tier`` not hold the pack any more, if ``others_min`` other tiers (one at least) do.

        Tiers that are not configured do not count: what they have, nobody can read. The others are asked
        whether they have it still; a copy that was not read since it was put, or is not there, is read first,
        and put anew when it is wrong. Raises ``LastCopyError`` or ``PackGoneError``, and as :meth:`copy`:
        nothing is dropped then. When the store fails, the row names the tier no more and the bytes are left
        there, for :meth:`sweep`.
        """
        row = self._row(segment)
        sure: list[str] = []
        doubt: Exception | None = None
        for name, copy in row.copies.items():
            if name not in self._tiers or name == tier:
                continue
            try:
                if not copy.verified_ns or not self._is_there(segment, row, name):
                    self._read_back(segment, name, pace)
                sure.append(name)
            except (StorageError, NoCopyError) as error:
                doubt = error
        if doubt is not None and len(sure) < others_min:
            raise doubt
        row = self.packs.unname_copy(segment, tier, others_min=others_min, among=sure)
        self._store.sync()  # or a power cut could bring back a row that names what is gone
        self._remove(self._tiers[tier], segment)
        return row

    def verify(self, segment: bytes, tier: str, *, pace: Pace = lambda _: None) -> PackRow:
        """Read the copy in ``tier``, all of it, and note that it is right now; ``WRONG_BYTES`` when not."""
        row = self._row(segment)
        self._check(segment, row, self._tiers[tier], pace)
        now = self.now()
        since = row.copies[tier].since_ns if tier in row.copies else now
        return self.packs.name_copy(segment, tier, CopyRow(since, now))

    def mend_key(self, segment: bytes, tier: str) -> bool:
        """Put the pack's key into ``tier`` anew if what is there is another or none; whether it was so.

        A tier and the master key are to be enough, so that its keys rot no less unseen than its packs.
        """
        place = self._tiers[tier]
        if not place.keeps_keys:
            return False
        wrapped = self._keyring.wrapped_key("segment", segment.hex())
        if read_small(place.store, segment_key_name(segment)) == wrapped:
            return False
        self._put_keys(place, segment)
        return True

    def repair(self, segment: bytes, tier: str, *, pace: Pace = lambda _: None) -> PackRow:
        """Put the pack into ``tier`` anew, from another tier whose copy is right. Raises as :meth:`copy`."""
        return self._put(segment, self._row(segment), tier, pace, read_back=True)

    def remove(self, segment: bytes) -> None:
        """Delete every copy of a pack that no row points into, and its keys in the tiers.

        Its key here, and its rows, are the caller's to destroy afterwards.
        """
        for tier in self._tiers.values():
            self._remove(tier, segment)

    def sweep(self, name: str, *, pace: Pace = lambda _: None) -> tuple[int, int]:
        """Delete what killed steps left in a tier: how many, and how many packs are strangers.

        Deleted are blobs and keys of packs whose row does not name the tier, and blobs of those whose key is
        neither here nor there. A stranger has a key, and the index does not know it: a reindex finds out. One
        whose key is only there is newer than a keyring that was restored while the tier was away.
        """
        tier = self._tiers[name]
        removed = strangers = 0
        for key in tier.store.names("packs/"):
            pace(0)
            segment = segment_of(key)
            if segment is None:
                continue
            if self.packs.get(segment) is None and self._has_key(segment, tier):
                strangers += 1
            elif self.sweep_one(name, segment):
                removed += 1
            elif self.packs.get(segment) is None:
                self._remove(tier, segment)
                removed += 1
        for key in tier.store.names("keys/segment/") if tier.keeps_keys else ():
            pace(0)
            segment = segment_of_key(key)
            removed += segment is not None and self.sweep_one(name, segment)
        return removed, strangers

    def sweep_one(self, name: str, segment: bytes) -> bool:
        """Delete a pack's blob in a tier that its row does not name; whether it is such a one."""
        row = self.packs.get(segment)
        if row is None or name in row.copies:
            return False
        self._remove(self._tiers[name], segment)
        return True

    # ------------------------------------------------------------ one copy

    def _row(self, segment: bytes) -> PackRow:
        row = self.packs.get(segment)
        if row is None:
            raise PackGoneError(f"there is no pack {segment.hex()}")
        return row

    def _is_there(self, segment: bytes, row: PackRow, tier: str) -> bool:
        place = self._tiers[tier]
        try:
            return place.store.size(place.key_of(segment)) == row.size
        except BlobNotFoundError:
            return False

    def _read_back(self, segment: bytes, tier: str, pace: Pace) -> None:
        try:
            self.verify(segment, tier, pace=pace)
        except WRONG_BYTES:
            self.repair(segment, tier, pace=pace)

    def _put(self, segment: bytes, row: PackRow, to: str, pace: Pace, *, read_back: bool) -> PackRow:
        target = self._tiers[to]
        said: list[str] = []
        self._put_keys(target, segment)
        for name in self._order(row, to):
            try:
                target.store.put(
                    target.key_of(segment), self._right(segment, row, self._tiers[name], pace), row.size
                )
            except _SourceError as error:
                said.append(f"{name}: {error}")
                continue
            if read_back:
                self._check(segment, row, target, pace)
            now = self.now()
            return self.packs.name_copy(segment, to, CopyRow(now, now if read_back else 0))
        raise NoCopyError(
            f"pack {segment.hex()} was not copied to {to}: " + ("; ".join(said) or "no other tier has it")
        )

    def _order(self, row: PackRow, to: str) -> list[str]:
        """Where to copy from: the local disk first."""
        return sorted((name for name in row.copies if name != to and name in self._tiers), key=HOT.__ne__)

    def _right(self, segment: bytes, row: PackRow, source: Tier, pace: Pace) -> Iterator[Buffer]:
        """The bytes of a copy; ``_SourceError`` before the last of them when they are wrong.

        So what takes objects whole or not at all takes none that is wrong.
        """
        check = PackCheck(segment, self._keyring.key("segment", segment.hex()))
        left = row.size
        try:
            for piece in source.store.stream(source.key_of(segment), 0, row.size):
                check.update(piece)
                left -= len(piece)
                if not left:
                    self._require_made(segment, row, check.finish().digest)
                pace(len(piece))
                yield piece
        except StorageError as error:
            raise _SourceError(str(error)) from error

    def _check(self, segment: bytes, row: PackRow, tier: Tier, pace: Pace) -> None:
        key = tier.key_of(segment)
        size = tier.store.size(key)
        if size != row.size:
            raise ShortReadError(f"pack {segment.hex()} has {size} bytes in {tier.name}, not {row.size}")
        pieces = _paced(tier.store.stream(key, 0, row.size), pace)
        end = checked(pieces, segment, self._keyring.key("segment", segment.hex()))
        self._require_made(segment, row, end.digest)

    def _require_made(self, segment: bytes, row: PackRow, digest: bytes) -> None:
        if digest != row.digest:
            raise SealError(
                f"pack {segment.hex()} is another one than was made: restore it from another copy"
            )

    def _put_keys(self, tier: Tier, segment: bytes) -> None:
        if not tier.keeps_keys:
            return
        self.notes.keep(tier.name, [tier.name], begins=True)
        wrapped = self._keyring.wrapped_key("segment", segment.hex())
        tier.store.put(segment_key_name(segment), [wrapped], len(wrapped))

    def _remove(self, tier: Tier, segment: bytes) -> None:
        tier.store.delete(tier.key_of(segment))
        if tier.keeps_keys:
            tier.store.delete(segment_key_name(segment))

    def _has_key(self, segment: bytes, tier: Tier) -> bool:
        try:
            self._keyring.check_key("segment", segment.hex())
        except KeyringError:
            try:
                tier.store.size(segment_key_name(segment))
            except BlobNotFoundError:
                return False
        return True


def _paced(pieces: Iterator[Buffer], pace: Pace) -> Iterator[Buffer]:
    for piece in pieces:
        pace(len(piece))
        yield piece
