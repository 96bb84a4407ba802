"""Acknowledged means durable: whatever fails and whenever the power goes, every record that append
returned comes back, and nothing is ever written behind a failure."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from hounsfield.storage_backends.errors import PoisonedError, StorageError, StoreFullError
from hounsfield.storage_backends.keyring import Keyring
from hounsfield.storage_backends.segment_appending import RecordIn, SegmentLimits
from hounsfield.storage_backends.segment_format import RecordRef
from hounsfield.storage_backends.segment_scan import Damage, DamageReason, ScannedRecord
from hounsfield.storage_backends.segments import SegmentLog
from support.crash_disk import SECTOR_BYTES, CrashDisk, Fault

SMALL = SegmentLimits(segment_bytes=8192 + 3000)
GROUPS = 8


def group(number: int) -> list[RecordIn]:
    return [
        RecordIn(1, [b"row %d %d" % (number, n), bytes([number, n]) * 300]) for n in range(number % 3 + 1)
    ]


def load(disk: CrashDisk, keyring: Keyring) -> list[tuple[RecordRef, bytes]]:
    """Append eight groups, each until it is acknowledged (once more after a failure)."""
    log = SegmentLog(disk, keyring, limits=SMALL)
    acknowledged = []
    for number in range(GROUPS):
        records = group(number)
        try:
            refs = log.append(records)
        except StorageError:
            refs = log.append(records)
        acknowledged += [(ref, bytes(record.parts[1])) for ref, record in zip(refs, records, strict=True)]
    return acknowledged


def check(disk: CrashDisk, keyring: Keyring, acknowledged: list[tuple[RecordRef, bytes]]) -> None:
    log = SegmentLog(disk, keyring)
    seen = {
        found.ref.record_id: found.ref
        for segment in log.segment_ids()
        for found in log.scan(segment)
        if isinstance(found, ScannedRecord)
    }
    for ref, content in acknowledged:
        assert seen[ref.record_id] == ref
        assert log.open_part(ref.part(1)) == content
        log.verify(ref)


def nothing(_: str, unsynced: bytes) -> bytes:
    return unsynced[:0]


def everything(_: str, unsynced: bytes) -> bytes:
    return unsynced


def half(_: str, unsynced: bytes) -> bytes:
    return unsynced[: len(unsynced) // 2]


def holes(_: str, unsynced: bytes) -> bytes:
    """Some sectors reached the disk and some did not, in any order."""
    choose = random.Random(len(unsynced))
    pieces = [unsynced[at : at + SECTOR_BYTES] for at in range(0, len(unsynced), SECTOR_BYTES)]
    return b"".join(piece if choose.random() < 0.5 else bytes(len(piece)) for piece in pieces)


FUTURES = [nothing, everything, half, holes]


def test_without_faults_all_is_durable_and_rolled(session_keyring: Keyring) -> None:
    disk = CrashDisk()
    acknowledged = load(disk, session_keyring)
    assert len(disk.names()) > 2
    assert disk.counts["append"] == disk.counts["sync"] == GROUPS  # one write and one sync a group
    for future in FUTURES:
        check(disk.crash(future), session_keyring, acknowledged)


@pytest.mark.parametrize("future", FUTURES)
@pytest.mark.parametrize("number", range(1, GROUPS + 1))
@pytest.mark.parametrize(
    ("operation", "what"),
    [
        ("append", "fail"),
        ("append", "full"),
        ("append", "short:1"),
        ("append", "short:700"),
        ("sync", "fail"),
    ],
)
def test_a_failure_anywhere_loses_nothing_acknowledged(
    session_keyring: Keyring,
    operation: str,
    what: str,
    number: int,
    future: Callable[[str, bytes], bytes],
) -> None:
    disk = CrashDisk(Fault(operation, number, what))
    acknowledged = load(disk, session_keyring)
    assert len(acknowledged) == sum(len(group(n)) for n in range(GROUPS))
    check(disk.crash(future), session_keyring, acknowledged)
    failed = [name for op, name, _ in disk.history if op == operation][number - 1]
    index = [i for i, step in enumerate(disk.history) if step[0] == operation][number - 1]
    assert all(name != failed for _, name, _ in disk.history[index + 1 :])  # that segment takes nothing more


@pytest.mark.parametrize("number", [1, 2])
def test_a_failed_create_is_only_that_appends_failure(session_keyring: Keyring, number: int) -> None:
    disk = CrashDisk(Fault("create", number, "full"))
    acknowledged = load(disk, session_keyring)
    check(disk.crash(), session_keyring, acknowledged)


def test_a_power_cut_at_every_byte_of_an_unsynced_group(session_keyring: Keyring) -> None:
    disk = CrashDisk(Fault("sync", 2))
    log = SegmentLog(disk, session_keyring)
    (kept,) = log.append([RecordIn(1, [b"row", b"kept"])])
    with pytest.raises(PoisonedError):
        log.append([RecordIn(1, [b"row", b"lost"]), RecordIn(1, [b"row", b"lost too"])])
    unsynced = len(disk.crash(everything).blobs[disk.names()[0]].live) - kept.offset - kept.length
    for length in range(unsynced + 1):
        after = disk.crash(lambda _, data, length=length: data[:length])
        reader = SegmentLog(after, session_keyring)
        found = list(reader.scan(kept.segment))
        assert isinstance(found[0], ScannedRecord)
        assert found[0].ref == kept
        assert reader.open_part(kept.part(1)) == b"kept"
        for item in found[1:]:
            assert isinstance(item, ScannedRecord) or item.reason is DamageReason.TORN_TAIL
        assert sum(isinstance(item, Damage) for item in found) <= 1


def test_recovery_never_appends_to_an_old_segment(session_keyring: Keyring) -> None:
    disk = CrashDisk()
    before = load(disk, session_keyring)
    names = set(disk.names())
    sizes = {name: disk.size(name) for name in names}
    (ref,) = SegmentLog(disk, session_keyring).append(group(0))
    assert f"segments/{ref.segment.hex()}" not in names
    assert {name: disk.size(name) for name in names} == sizes
    check(disk, session_keyring, before)


def test_no_room_is_said_before_anything_is_written(session_keyring: Keyring) -> None:
    class Tight(CrashDisk):
        tight = False

        def require_space(self, length: int) -> None:
            if self.tight:
                raise StoreFullError("no room")

    disk = Tight()
    log = SegmentLog(disk, session_keyring)
    log.append(group(0))
    disk.tight = True
    steps = len(disk.history)
    keys = len(session_keyring.key_ids("segment"))
    for _ in range(3):
        with pytest.raises(StoreFullError):
            log.append(group(1))
    assert len(disk.history) == steps
    assert len(session_keyring.key_ids("segment")) == keys
    disk.tight = False
    log.append(group(1))
    assert len(disk.names()) == 1  # refusing did no harm to the segment


def test_the_key_is_durable_before_the_segment_has_a_byte(session_keyring: Keyring) -> None:
    class Watching(CrashDisk):
        def create(self, name: str):  # type: ignore[no-untyped-def]
            fresh = Keyring.__new__(Keyring)
            fresh.__dict__.update(
                session_keyring.__dict__, _keys={}
            )  # nothing remembered: only the disk counts
            assert len(fresh.key("segment", name.rpartition("/")[2])) == 32
            return super().create(name)

    SegmentLog(Watching(), session_keyring).append(group(0))
