"""Packs, as the index knows them: of which series each is, how large, and in which tiers there is a copy.

A pack is a segment (docs/segment-format.md, "Packs"), so that rows of objects point into it as into any
other. What is said here is what tiers go by: a *copy* is the same blob in a tier, and the row of the pack
names the tiers that have one, each only once that copy was read back whole (the local disk's once it was
synced). A copy is taken out of a tier only after the row has ceased to name it, and never the last one.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress
from typing import NamedTuple

import msgspec
from msgspec import structs

from hounsfield.archive.index.catalog import Catalog
from hounsfield.archive.index.rows import InstanceRow, decode, encode
from hounsfield.archive.index.tables import INSTANCE, PACK, PACKED, SERIES_HASH_BYTES, STUDY_ID_BYTES
from hounsfield.storage_backends.api import Batch, KeyValueStore, Snapshot
from hounsfield.storage_backends.errors import PreconditionError, StorageError
from hounsfield.storage_backends.packs import contents_row, end_of
from hounsfield.storage_backends.segments import SegmentLog

HOT = "hot"
"""The tier that is the data directory itself."""
SERIES_KEY_BYTES = STUDY_ID_BYTES + SERIES_HASH_BYTES
PAGE_ROWS = 1000
ATTEMPTS_BESIDE_OTHERS = 3  # then under the store's lock


class CopyRow(msgspec.Struct, array_like=True, frozen=True):
    """A tier's copy of a pack: since when, and when all of it was last read and found to be right.

    0: not since it was put, which only the hot tier's may be.
    """

    since_ns: int
    verified_ns: int = 0


class PackRow(msgspec.Struct, array_like=True, frozen=True):
    """One pack. ``size``: bytes of its blob; ``digest``: what its end says of all before it."""

    series_key: bytes
    size: int
    objects: int
    made_ns: int
    digest: bytes
    copies: dict[str, CopyRow] = {}
    compress: str = ""  # as what native frames were to be stored when it was made; "" as they were


class ContentsRow(msgspec.Struct, array_like=True, frozen=True):
    """What a pack's contents say of all of it: of which series it was made, as filed then, and when."""

    study_uid: str
    series_uid: str
    made_ns: int
    compress: str = ""  # as of the pack's row


class Total(NamedTuple):
    """What one tier holds."""

    packs: int
    bytes: int
    objects: int


class PackGoneError(LookupError):
    """There is no such pack, or none any more."""

    retry = False


class LastCopyError(Exception):
    """Too few other copies would remain: nothing was changed."""

    retry = False


class Packs:
    """Reads and changes the rows of packs. Blocking; any number of threads and processes at once."""

    def __init__(self, store: KeyValueStore) -> None:
        self._store = store

    def get(self, segment: bytes) -> PackRow | None:
        """The pack that a segment is, None when it is none."""
        with self._store.snapshot() as snapshot:
            return pack_of(snapshot, segment)

    def of_series(self, series_key: bytes) -> list[tuple[bytes, PackRow]]:
        """The packs of a series, by its key, with their segments; those made first come first."""
        with self._store.snapshot() as snapshot:
            return sorted(packs_of(snapshot, series_key), key=lambda one: (one[1].made_ns, one[0]))

    def pages(self, *, page: int = PAGE_ROWS) -> Iterator[list[tuple[bytes, PackRow]]]:
        """All packs, a page at a time, each as it is when it is read: a walk may last for hours."""
        after: bytes | None = None
        while True:
            with self._store.snapshot() as snapshot:
                found = list(snapshot.scan(PACK, after=after, limit=page))
            if found:
                yield [(segment, decode(PackRow, held)) for segment, held in found]
            if len(found) < page:
                return
            after = found[-1][0]

    def totals(self) -> dict[str, Total]:
        """How many packs, bytes and objects each tier holds. Reads every pack's row."""
        found: dict[str, Total] = {}
        for page in self.pages():
            for _, row in page:
                for tier in row.copies:
                    packs, size, objects = found.get(tier, (0, 0, 0))
                    found[tier] = Total(packs + 1, size + row.size, objects + row.objects)
        return found

    def name_copy(self, segment: bytes, tier: str, copy: CopyRow) -> PackRow:
        """Have the pack's row say that ``tier`` has a copy, or when that was verified.

        The row as it is then; ``PackGoneError``.
        """
        return self._change(segment, lambda row: structs.replace(row, copies={**row.copies, tier: copy}))

    def unname_copy(
        self, segment: bytes, tier: str, *, others_min: int = 1, among: Collection[str] | None = None
    ) -> PackRow:
        """Have the pack's row not name ``tier`` any more, whose copy may then be deleted.

        The row as it is then. ``LastCopyError`` unless so many other tiers (one at least) are named at that
        moment, of those ``among`` (None: of all); ``PackGoneError``.
        """
        if others_min < 1:
            raise ValueError("one copy of a pack stays")

        def without(row: PackRow) -> PackRow:
            others = {name: copy for name, copy in row.copies.items() if name != tier}
            left = len(others if among is None else others.keys() & set(among))
            if left < others_min:
                raise LastCopyError(
                    f"pack {segment.hex()} is to keep {others_min} copies and {left} would be left: "
                    "copy it first"
                )
            return structs.replace(row, copies=others)

        return self._change(segment, without)

    def _change(self, segment: bytes, change: Callable[[PackRow], PackRow]) -> PackRow:
        made: list[PackRow] = []

        def plan(snapshot: Snapshot) -> list[Batch]:
            held = snapshot.get(PACK, segment)
            if held is None:
                raise PackGoneError(f"there is no pack {segment.hex()}")
            new = change(decode(PackRow, held))
            batch = Batch(uses_reserve=True)  # a small row, without which a full disk could not be emptied
            batch.require(PACK, segment, held)
            batch.put(PACK, segment, encode(new))
            made.append(new)
            return [batch]

        for _ in range(ATTEMPTS_BESIDE_OTHERS):
            with self._store.snapshot() as snapshot:
                (batch,) = plan(snapshot)
            try:
                self._store.commit(batch)
            except PreconditionError:
                continue
            return made[-1]
        (result,) = self._store.commit_planned(plan)
        if isinstance(result, Exception):
            raise result
        return made[-1]


def pack_of(snapshot: Snapshot, segment: bytes) -> PackRow | None:
    """The pack that a segment is, None when it is none."""
    held = snapshot.get(PACK, segment)
    return None if held is None else decode(PackRow, held)


def packs_of(snapshot: Snapshot, series_key: bytes) -> Iterator[tuple[bytes, PackRow]]:
    """The packs of a series, by its key."""
    for key, _ in snapshot.scan(PACKED, prefix=series_key):
        segment = key[SERIES_KEY_BYTES:]
        row = pack_of(snapshot, segment)
        if row is not None:
            yield segment, row


def packs_holding(
    store: KeyValueStore, catalog: Catalog, series_key: bytes, rows_max: int | None = None
) -> list[tuple[bytes, PackRow]]:
    """The packs in which objects of a series lie: its own, and those of series that they were moved out of by
    a correction since. ``rows_max``: look at so many of its objects for the latter."""
    with store.snapshot() as snapshot:
        found = dict(packs_of(snapshot, series_key))
    looked: set[bytes] = set()
    after: bytes | None = None
    left = rows_max if rows_max is not None else 1 << 62
    while left > 0:
        page = min(PAGE_ROWS, left)
        with store.snapshot() as snapshot:
            held = list(snapshot.scan(INSTANCE, prefix=series_key, after=after, limit=page))
            for key, sealed in held:
                segment = catalog.open_row(INSTANCE, key, sealed, InstanceRow).location.segment
                if segment in looked or segment in found:
                    continue
                looked.add(segment)
                row = pack_of(snapshot, segment)
                if row is not None:
                    found[segment] = row
        left -= page
        if len(held) < page:
            break
        after = held[-1][0]
    return sorted(found.items(), key=lambda one: (one[1].made_ns, one[0]))


def plan_pack(batch: Batch, segment: bytes, row: PackRow) -> None:
    """Have ``batch`` list a new pack."""
    batch.require(PACK, segment, None)
    batch.put(PACK, segment, encode(row))
    batch.put(PACKED, row.series_key + segment, b"")


def packs_among(log: SegmentLog, catalog: Catalog, segments: Iterable[bytes]) -> dict[bytes, PackRow]:
    """Those of a log's segments that are packs, as their own bytes say: those made last come first.

    Looks at the end of each. One whose end, contents or key are damaged is taken for no pack.
    """
    found: dict[bytes, PackRow] = {}
    for segment in segments:
        with suppress(StorageError, msgspec.MsgspecError):
            end = end_of(log, segment)
            said = None if end is None else contents_row(log, segment, end)
            if end is None or said is None:
                continue
            made = decode(ContentsRow, said)
            series_key = catalog.series_key(made.study_uid, made.series_uid)
            copies = {HOT: CopyRow(made.made_ns)}
            found[segment] = PackRow(
                series_key, log.size(segment), end.objects, made.made_ns, end.digest, copies, made.compress
            )
    return dict(sorted(found.items(), key=lambda one: (-one[1].made_ns, one[0])))


def plan_forget(snapshot: Snapshot, batch: Batch, segment: bytes) -> None:
    """Have ``batch`` forget a pack, if a segment is one."""
    held = snapshot.get(PACK, segment)
    if held is not None:
        batch.require(PACK, segment, held)
        batch.delete(PACK, segment)
        batch.delete(PACKED, decode(PackRow, held).series_key + segment)
