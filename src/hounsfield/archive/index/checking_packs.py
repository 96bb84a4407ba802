"""Checking packs: that each lies where its row says, and that a copy elsewhere is what the index points into.

What lies in another tier is not read, but for the list of its contents: two ranged reads of each copy. With
``quick`` a tier is only listed. A tier that does not answer is said to be away, and nothing of it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import msgspec

from hounsfield.archive.index.checking import RESTORE, START, Archive, Severity, Wrong
from hounsfield.archive.index.packs import HOT, SERIES_KEY_BYTES, PackRow
from hounsfield.archive.index.rows import decode
from hounsfield.archive.index.tables import PACK, PACKED
from hounsfield.archive.index.tier_places import Tier, pack_key
from hounsfield.archive.index.use import uses
from hounsfield.storage_backends.api import Snapshot
from hounsfield.storage_backends.errors import (
    BlobNotFoundError,
    FormatError,
    KeyringError,
    SealError,
    ShortReadError,
    StorageError,
)
from hounsfield.storage_backends.packs import read_contents, read_end
from hounsfield.storage_backends.segment_scan import ScannedRecord

THREADS = 8  # that wait for a tier, mostly: a bucket answers in tens of milliseconds
PAGE_ROWS = 32  # whose contents are in memory together
_WRONG = (ShortReadError, SealError, FormatError, msgspec.MsgspecError)

VERIFY = "hounsfield tier verify: it is put there again from a right copy"
SCRUB = "hounsfield scrub start: it is brought back from a right copy"
_LOST = "none of its tiers has it: bring the tier's files back, or restore the pack from a backup"


def pack_rows(snapshot: Snapshot) -> Iterator[tuple[bytes, PackRow]]:
    """Every pack that the index knows, but for those that are to be removed: parts of them may be gone.

    Rows that do not decode are left out, too: :func:`check_packs` names those.
    """
    emptied = {segment for segment, use in uses(snapshot) if use.emptied}
    for segment, held in snapshot.scan(PACK):
        try:
            row = decode(PackRow, held)
        except msgspec.MsgspecError:
            continue
        if segment not in emptied:
            yield segment, row


def lies_elsewhere(archive: Archive, row: PackRow) -> bool:
    """Whether the row names a tier that is configured, beside the data directory."""
    return any(name != HOT and name in archive.tiers for name in row.copies)


# ---------------------------------------------------------------- what lies where


@dataclass(slots=True)
class _Tiers:
    """What listing the tiers gave."""

    listed: dict[str, set[bytes]] = field(default_factory=dict)
    away: dict[str, str] = field(default_factory=dict)


def check_packs(archive: Archive, snapshot: Snapshot) -> Iterator[Wrong]:
    """Each pack has its rows, and a copy in every tier that its row names."""
    yield from _check_rows(snapshot)
    named: dict[str, int] = {}
    for _, row in pack_rows(snapshot):
        for name in row.copies:
            named[name] = named.get(name, 0) + 1
    for name, count in sorted(named.items()):
        if name != HOT and name not in archive.tiers:
            yield Wrong(
                Severity.NOTE, "a tier that packs lie in is not configured", f"{name}: {count} packs",
                "name it in config.toml again, until its packs are copied elsewhere",
            )  # fmt: skip
    tiers = _Tiers()
    local = set(archive.log.segment_ids())
    for name in sorted(set(named) & set(archive.tiers) - {HOT}):
        _list(archive, name, tiers)
    total = sum(1 for _ in snapshot.scan(PACK))
    for done, (segment, row) in enumerate(pack_rows(snapshot)):
        if done % 100 == 0:
            archive.progress("packs", done, total)
        yield from _check_pack(segment, row, tiers, local)
    for name, why in sorted(tiers.away.items()):
        yield Wrong(
            Severity.NOTE, "a tier does not answer: what lies there was not looked at", f"{name}: {why}",
            "run fsck again when it is back",
        )  # fmt: skip
    keys = set(archive.keyring.key_ids("segment"))
    for name, left in sorted(tiers.listed.items()):
        for segment in left:
            example = f"pack {segment.hex()} in {name}"
            if snapshot.get(PACK, segment) is not None or segment.hex() not in keys:
                yield Wrong(Severity.NOTE, "a leftover of a move lies in a tier", example, START)
            else:
                yield Wrong(Severity.INDEX, "a tier has a pack that the index does not know", example)


def _check_rows(snapshot: Snapshot) -> Iterator[Wrong]:
    for segment, held in snapshot.scan(PACK):
        try:
            row = decode(PackRow, held)
        except msgspec.MsgspecError:
            yield Wrong(Severity.INDEX, "a row of table pack does not open", segment.hex())
            continue
        if snapshot.get(PACKED, row.series_key + segment) is None:
            yield Wrong(Severity.INDEX, "a pack is not listed with its series", segment.hex())
    for key, _ in snapshot.scan(PACKED):
        segment = key[SERIES_KEY_BYTES:]
        pack = snapshot.get(PACK, segment)
        try:
            belongs = pack is not None and decode(PackRow, pack).series_key == key[:SERIES_KEY_BYTES]
        except msgspec.MsgspecError:
            continue  # said above
        if not belongs:
            yield Wrong(Severity.INDEX, "a series lists a pack that is not its own", segment.hex())


def _list(archive: Archive, name: str, tiers: _Tiers) -> None:
    found = set()
    try:
        for key in archive.tiers[name].store.names("packs/"):
            with_name = key.rpartition("/")[2]
            if len(with_name) == 32 and pack_key(bytes.fromhex(with_name)) == key:
                found.add(bytes.fromhex(with_name))
            if len(found) % 1000 == 0:
                archive.progress(f"listing {name}", len(found), 0)
    except (StorageError, ValueError) as error:
        tiers.away[name] = str(error)
        return
    tiers.listed[name] = found


def _check_pack(segment: bytes, row: PackRow, tiers: _Tiers, local: set[bytes]) -> Iterator[Wrong]:
    missing: list[str] = []
    there = unknown = 0
    for name in row.copies:
        if name == HOT:
            there += segment in local
            if segment not in local:
                missing.append(HOT)
        elif name in tiers.listed:
            found = segment in tiers.listed[name]
            tiers.listed[name].discard(segment)
            there += found
            if not found:
                missing.append(name)
        else:
            unknown += 1  # it is away, or not configured
    if segment in local and HOT not in row.copies:
        yield Wrong(Severity.NOTE, "a pack is still here though its row says it is not", segment.hex(), START)
        there += 1
    if not there:
        example = (
            f"pack {segment.hex()}, {row.objects} objects, said to be in {', '.join(row.copies) or 'none'}"
        )
        if not unknown:
            yield Wrong(Severity.LOSS, "a pack is nowhere", example, _LOST)
        elif not any(name in tiers.away for name in row.copies):
            what = "a pack lies only in a tier that is not configured: nothing of it can be read"
            yield Wrong(Severity.LOSS, what, example, "name the tier in config.toml again")
        return
    for name in missing:
        repair = SCRUB if name == HOT else VERIFY
        what = "a copy of a pack is not where its row says"
        yield Wrong(Severity.INDEX, what, f"pack {segment.hex()} in {name}", repair)


# ---------------------------------------------------------------- what is in them


def contents_elsewhere(
    archive: Archive, packs: Mapping[bytes, PackRow]
) -> Iterator[tuple[bytes, list[ScannedRecord] | None, list[Wrong]]]:
    """What each of these packs lists, by a right copy in a tier (None: there is none), and what is wrong."""
    away = _Away()
    wanted = [(segment, row) for segment, row in packs.items() if lies_elsewhere(archive, row)]
    with ThreadPoolExecutor(THREADS) as pool:
        for start in range(0, len(wanted), PAGE_ROWS):
            archive.progress("contents of packs", start, len(wanted))
            page = wanted[start : start + PAGE_ROWS]
            yield from pool.map(lambda one: _look(archive, one[0], one[1], away), page)


class _Away:
    """Tiers that did not answer, so that a thousand packs need not wait for each a minute."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._names: set[str] = set()

    def add(self, name: str) -> None:
        with self._lock:
            self._names.add(name)

    def __contains__(self, name: object) -> bool:
        with self._lock:
            return name in self._names


def _look(
    archive: Archive, segment: bytes, row: PackRow, away: _Away
) -> tuple[bytes, list[ScannedRecord] | None, list[Wrong]]:
    listed: list[ScannedRecord] | None = None
    wrong: list[str] = []
    for name in row.copies:
        if name == HOT or name not in archive.tiers or name in away:
            continue
        try:
            found = _contents(archive, archive.tiers[name], segment, row)
        except _WRONG:
            wrong.append(name)
            continue
        except BlobNotFoundError:
            continue  # the check of the packs says so
        except KeyringError:
            return segment, None, []  # the check of the keys says so
        except StorageError:
            away.add(name)  # the check of the packs says so
            continue
        listed = found if listed is None else listed
    repair, severity = (RESTORE, Severity.LOSS) if listed is None else (VERIFY, Severity.INDEX)
    what = "a copy of a pack is damaged, and no other one is right"
    if listed is not None:
        what = "a copy of a pack is damaged in a tier"
    said = [Wrong(severity, what, f"pack {segment.hex()} in {name}", repair) for name in wrong]
    return segment, listed, said


def _contents(archive: Archive, tier: Tier, segment: bytes, row: PackRow) -> list[ScannedRecord]:
    """What a copy lists; ``ShortReadError`` or ``SealError`` when it is not as its row says."""
    name = tier.key_of(segment)
    if tier.store.size(name) != row.size:
        raise ShortReadError(f"pack {segment.hex()} has another length in {tier.name}")
    key = archive.keyring.key("segment", segment.hex())
    end = read_end(tier.store, name, segment, key)
    if (end.digest, end.objects) != (row.digest, row.objects):
        raise SealError(f"pack {segment.hex()} is another one in {tier.name}")
    contents = read_contents(tier.store, name, segment, key, end)
    return [ScannedRecord(one.ref, one.ref.kind, one.row, one.ref.length) for one in contents.entries]
