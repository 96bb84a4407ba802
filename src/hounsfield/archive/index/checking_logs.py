"""Checking what the index is a view of: keys, segments, ledger; and that the two agree, record by record."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field

import msgspec

from hounsfield.archive.index import locations
from hounsfield.archive.index.catalog import HASHED_FIELDS
from hounsfield.archive.index.checking import (
    REINDEX,
    RESTORE,
    SCRUB_REPAIR,
    START,
    Archive,
    Check,
    Severity,
    Wrong,
    check_counts,
    check_grams,
    check_journal,
    check_lookups,
    check_places,
    check_rows,
    check_tokens,
)
from hounsfield.archive.index.checking_packs import check_packs, contents_elsewhere, pack_rows
from hounsfield.archive.index.rows import RECORD_KIND_OBJECT, SegmentRow
from hounsfield.archive.index.sealed import EPOCH_KEY, last_epoch
from hounsfield.archive.index.tables import META, PACK, SEGMENT, SPARE, TOMBSTONE
from hounsfield.archive.index.use import uses
from hounsfield.storage_backends.api import Snapshot
from hounsfield.storage_backends.errors import BlobNotFoundError, KeyringError, SealError, ShortReadError
from hounsfield.storage_backends.segment_scan import Damage, DamageReason, ScannedRecord
from hounsfield.storage_backends.segments import SegmentLog

SEGMENT_PURPOSE = "segment"


def check_keys(archive: Archive, snapshot: Snapshot) -> Iterator[Wrong]:
    """Every key opens from its file; each segment has one; those the index needs are there."""
    keyring = archive.keyring
    for purpose in keyring.purposes():
        for key_id in keyring.key_ids(purpose):
            try:
                keyring.check_key(purpose, key_id)
            except KeyringError as error:
                yield Wrong(Severity.LOSS, f"a {purpose} key does not open", f"{key_id}: {error}", RESTORE)
    segments = {segment.hex() for log in (archive.log, archive.ledger) for segment in log.segment_ids()}
    segments |= {segment.hex() for segment, _ in pack_rows(snapshot)}  # wherever it lies
    keys = set(keyring.key_ids(SEGMENT_PURPOSE))
    for name in sorted(segments - keys):
        yield Wrong(Severity.LOSS, "a segment has no key: nothing in it can be read", name, RESTORE)
    on_their_way_out = {segment.hex() for segment, _ in snapshot.scan(PACK)}
    for name in sorted(keys - segments - on_their_way_out):
        yield Wrong(Severity.NOTE, "a key seals nothing that is here", name, "none needed")
    epochs = last_epoch(snapshot.get(META, EPOCH_KEY))
    for purpose, needed in (("index", [str(n + 1) for n in range(epochs)]), ("token", list(HASHED_FIELDS))):
        for key_id in sorted(set(needed) - set(keyring.key_ids(purpose))):
            yield Wrong(Severity.INDEX, f"a {purpose} key is missing", key_id, f"{RESTORE}, or {REINDEX}")


@dataclass(slots=True)
class _Segment:
    """One segment, as the index has it and as it is."""

    index: int = 0  # sums of hashes of places
    found: int = 0
    locations: int = 0
    records: int = 0
    damage: list[tuple[int, int, str]] = field(default_factory=list)


def check_segments(archive: Archive, snapshot: Snapshot) -> Iterator[Wrong]:
    """Every record opens, each place in the index has its record, and each record its place in the index."""
    have = archive.log.segment_ids()
    state: dict[bytes, _Segment] = {segment: _Segment() for segment in have}
    total = archive.entries(locations.LOCATED[0][0])
    done = 0
    for _, rows in locations.walk(archive.store, archive.catalog):
        done += len(rows)
        archive.progress("places in segments", done, total)
        for one in rows:
            location = one.location
            if location is None:
                continue
            known = state.setdefault(location.segment, _Segment())
            known.locations += 1
            known.index += _hash(location.record_id, location.offset)
    spares = {(key[16:32], key[32:48]) for key, _ in snapshot.scan(SPARE)}
    emptied = {segment for segment, use in uses(snapshot) if use.emptied}
    for number, segment in enumerate(have):
        archive.progress("segments", number, len(have))
        if segment in emptied:
            yield Wrong(Severity.NOTE, "a segment was compacted and is to be removed", segment.hex(), START)
            continue
        yield from _scan(archive, snapshot, segment, state[segment], spares)
    here = set(have)
    elsewhere = {segment: row for segment, row in pack_rows(snapshot) if segment not in here}
    wrong = {
        segment
        for segment, known in state.items()
        if segment not in elsewhere and (known.damage or known.index != known.found or segment not in here)
    }
    listed: dict[bytes, list[ScannedRecord]] = {}
    if not archive.quick:  # else the rows of the packs are believed
        for segment, records, said in contents_elsewhere(archive, elsewhere):
            yield from said
            known = state.setdefault(segment, _Segment())
            for found in records or ():
                if found.kind == RECORD_KIND_OBJECT and _is_live(snapshot, found, segment, spares):
                    known.found += _hash(found.ref.record_id, found.ref.offset)
            if records is not None and known.index != known.found:
                listed[segment] = records
    if wrong or listed:
        yield from _one_by_one(archive, snapshot, state, wrong, spares, listed=listed)


def _scan(
    archive: Archive,
    snapshot: Snapshot,
    segment: bytes,
    known: _Segment,
    spares: set[tuple[bytes, bytes]],
) -> Iterator[Wrong]:
    try:
        for found in archive.log.scan(segment):
            if isinstance(found, Damage):
                if found.reason is DamageReason.HEADER:
                    yield Wrong(
                        Severity.NOTE, "a copy of a segment's header is damaged", segment.hex(), "none"
                    )
                else:
                    known.damage.append((found.offset, found.length, found.reason.value))
            elif _is_live(snapshot, found, segment, spares):
                if not archive.quick and not _opens(archive.log, found):
                    known.damage.append((found.ref.offset, found.ref.length, "does not open"))
                if found.kind == RECORD_KIND_OBJECT:
                    known.records += 1
                    known.found += _hash(found.ref.record_id, found.ref.offset)
    except (KeyringError, BlobNotFoundError, ShortReadError, OSError) as error:
        known.damage.append((0, 1 << 62, f"cannot be read ({type(error).__name__})"))


def _is_live(
    snapshot: Snapshot, found: ScannedRecord, segment: bytes, spares: set[tuple[bytes, bytes]]
) -> bool:
    record_id = found.ref.record_id
    return snapshot.get(TOMBSTONE, record_id) is None and (record_id, segment) not in spares


def _one_by_one(
    archive: Archive,
    snapshot: Snapshot,
    state: dict[bytes, _Segment],
    wrong: set[bytes],
    spares: set[tuple[bytes, bytes]],
    *,
    listed: dict[bytes, list[ScannedRecord]],
) -> Iterator[Wrong]:
    """In segments where the sums differ: which places have no record, and which records no place.

    ``listed``: packs that lie elsewhere, as their contents have them.
    """
    have = {*archive.log.segment_ids(), *listed}
    wrong = {*wrong, *listed}
    places: dict[bytes, dict[tuple[bytes, int], bool]] = {segment: {} for segment in wrong}
    for _, rows in locations.walk(archive.store, archive.catalog):
        for one in rows:
            location = one.location
            if location is not None and location.segment in wrong:
                streamed = location.stream is not None
                places[location.segment][location.record_id, location.offset] = streamed
    for segment in sorted(wrong):
        wanted = places[segment]
        if segment not in have:
            for record_id, _ in wanted:
                example = f"segment {segment.hex()} record {record_id.hex()}"
                yield Wrong(
                    Severity.LOSS, "a segment is missing that the index points into", example, RESTORE
                )
            continue
        held = snapshot.get(SEGMENT, segment)
        row = SegmentRow(0) if held is None else msgspec.msgpack.decode(held, type=SegmentRow)
        unmatched = dict(wanted)
        try:
            for found in listed.get(segment) or archive.log.scan(segment):
                if isinstance(found, Damage) or found.kind != RECORD_KIND_OBJECT:
                    continue
                place = (found.ref.record_id, found.ref.offset)
                if place in unmatched:
                    del unmatched[place]
                elif _is_live(snapshot, found, segment, spares) and _opens(archive.log, found):
                    example = f"segment {segment.hex()} record {found.ref.record_id.hex()}"
                    if not row.closed and found.ref.offset >= row.indexed_to:
                        yield Wrong(Severity.NOTE, "a stored object is not indexed yet", example, START)
                    else:
                        yield Wrong(Severity.INDEX, "a stored object is not in the index", example)
        except (KeyringError, BlobNotFoundError, ShortReadError, OSError):
            pass  # the damage says so
        yield from _name_damage(segment, state[segment], wanted, unmatched)


def _name_damage(
    segment: bytes,
    known: _Segment,
    wanted: dict[tuple[bytes, int], bool],
    unmatched: dict[tuple[bytes, int], bool],
) -> Iterator[Wrong]:
    """Whose damage it is: only what the index points to was acknowledged."""
    for offset, length, reason in known.damage:
        hit = [
            place for place, streamed in wanted.items() if streamed or offset <= place[1] < offset + length
        ]
        for record_id, at in hit:
            unmatched.pop((record_id, at), None)
            example = f"segment {segment.hex()} record {record_id.hex()}: {reason}"
            yield Wrong(Severity.LOSS, "a stored object is damaged", example, SCRUB_REPAIR)
        if not hit:
            example = f"segment {segment.hex()} at {offset}: {reason}"
            yield Wrong(Severity.NOTE, "the rest of an append that a crash cut short", example, "none needed")
    for record_id, at in unmatched:
        example = f"segment {segment.hex()} record {record_id.hex()} at {at}"
        yield Wrong(Severity.LOSS, "the index points to a record that is not there", example, SCRUB_REPAIR)


def check_facts(archive: Archive, snapshot: Snapshot) -> Iterator[Wrong]:
    """Every record of the ledger opens, no number of a fact is missing, and the index knows them all."""
    damaged: list[Damage] = []
    facts = archive.journal.ledger(damaged.append)
    for damage in damaged:
        if damage.reason is DamageReason.HEADER:
            continue
        severity = Severity.NOTE if damage.reason is DamageReason.TORN_TAIL else Severity.LOSS
        what = "the rest of a fact that a crash cut short"
        if severity is Severity.LOSS:
            what = "a fact in the ledger does not open: a reindex would not know it"
        yield Wrong(severity, what, f"at {damage.offset}: {damage.reason.value}", RESTORE)
    if not archive.quick:
        yield from _ledger_seals(archive)
    numbers = [number for number, _, _ in facts]
    known = archive.journal.facts(snapshot)
    for before, after in zip([0, *numbers], numbers, strict=False):
        if after > before + 1:
            example = f"{before + 1} to {after - 1}"
            yield Wrong(
                Severity.LOSS,
                "facts are missing in the ledger: a reindex would not know them",
                example,
                RESTORE,
            )
    last = max(numbers, default=0)
    if known > last:
        example = f"{last + 1} to {known}"
        yield Wrong(
            Severity.LOSS, "the index knows facts that the ledger has lost: make a backup before any reindex",
            example, RESTORE,
        )  # fmt: skip
    elif known < last:
        yield Wrong(
            Severity.NOTE, "facts in the ledger are not in the index yet", f"{known + 1} to {last}", START
        )


def _ledger_seals(archive: Archive) -> Iterator[Wrong]:
    for segment in archive.ledger.segment_ids():
        try:
            for found in archive.ledger.scan(segment):
                if isinstance(found, ScannedRecord) and not _opens(archive.ledger, found):
                    example = f"ledger {segment.hex()} record {found.ref.record_id.hex()}"
                    yield Wrong(Severity.LOSS, "a fact in the ledger does not open", example, RESTORE)
        except KeyringError:
            continue  # the check of the keys says so


def _opens(log: SegmentLog, found: ScannedRecord) -> bool:
    try:
        log.verify(found.ref)
    except (SealError, ShortReadError, OSError):
        return False
    return True


def _hash(record_id: bytes, offset: int) -> int:
    return int.from_bytes(
        hashlib.blake2b(record_id + offset.to_bytes(8, "big"), digest_size=16).digest(), "big"
    )


#: Every check, in the order in which they run: what later ones need comes first.
CHECKS: tuple[tuple[str, Check], ...] = (
    ("keys", check_keys),
    ("rows", check_rows),
    ("counts", check_counts),
    ("places", check_places),
    ("tokens", check_tokens),
    ("lookups", check_lookups),
    ("grams", check_grams),
    ("journal", check_journal),
    ("facts", check_facts),
    ("packs", check_packs),
    ("segments", check_segments),
)
