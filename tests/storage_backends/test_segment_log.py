"""What goes into the segment log comes out: any sizes, any number of parts, any thread."""

from __future__ import annotations

import os
import random
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hounsfield.storage_backends import segment_format as layout
from hounsfield.storage_backends.errors import BlobNotFoundError, KeyringError, PoisonedError, SealError
from hounsfield.storage_backends.keyring import Keyring
from hounsfield.storage_backends.local_blobs import LocalBlobLimits, LocalBlobs
from hounsfield.storage_backends.master_key import MasterKey
from hounsfield.storage_backends.memory_blobs import MemoryBlobs
from hounsfield.storage_backends.segment_appending import RecordIn, SegmentLimits
from hounsfield.storage_backends.segment_format import RecordRef
from hounsfield.storage_backends.segment_scan import ScannedRecord
from hounsfield.storage_backends.segments import SegmentLog

CHUNK = layout.CHUNK_BYTES
SIZES = [0, 1, 15, 16, 17, 1000, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK]


def scanned(log: SegmentLog) -> list[ScannedRecord]:
    found = [item for segment in log.segment_ids() for item in log.scan(segment)]
    assert all(isinstance(item, ScannedRecord) for item in found), found
    return [item for item in found if isinstance(item, ScannedRecord)]


def test_on_a_real_disk(tmp_path: Path, keyring: Keyring) -> None:
    blobs = LocalBlobs(tmp_path / "data", limits=LocalBlobLimits(reserve_bytes=0))
    log = SegmentLog(blobs, keyring)
    frame = random.Random(1).randbytes(512 * 1024)
    records = [
        RecordIn(n, [b"long enough row %d" % n, bytearray(b"long enough header"), memoryview(frame)])
        for n in range(8)
    ]
    refs = log.append(records)
    assert log.append([]) == []
    log.close()
    with pytest.raises(PoisonedError):
        log.append(records)
    reader = SegmentLog(LocalBlobs(tmp_path / "data"), keyring)
    assert [(item.ref, item.kind, item.row) for item in scanned(reader)] == [
        (ref, n, b"long enough row %d" % n) for n, ref in enumerate(refs)
    ]
    for ref in refs:
        assert reader.open_part(ref.part(2)) == frame
        opened = reader.try_open_part(ref.part(2))
        assert opened is None or opened == frame
        reader.verify(ref)
    data = (tmp_path / "data" / "segments" / refs[0].segment.hex()).read_bytes()
    assert b"long enough header" not in data
    assert b"long enough row" not in data
    assert frame[1000:1016] not in data


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.lists(st.sampled_from(SIZES), min_size=1, max_size=4), min_size=1, max_size=4),
    st.sampled_from([1, 2 * CHUNK, 64 << 20]),
)
def test_any_sizes_through_any_arena(session_keyring: Keyring, sizes: list[list[int]], arena: int) -> None:
    source = memoryview(random.Random(2).randbytes(2 * CHUNK))
    log = SegmentLog(MemoryBlobs(), session_keyring, limits=SegmentLimits(arena_bytes=arena))
    records = [RecordIn(1, [source[:size] for size in record]) for record in sizes]
    for _ in range(2):  # a second group behind the first
        refs = log.append(records)
        for ref, record in zip(refs, records, strict=True):
            assert ref.part_lengths == tuple(len(part) for part in record.parts)
            for part, plain in zip(ref.parts(), record.parts, strict=True):
                assert log.open_part(part) == plain
            log.verify(ref)
    assert [item.ref for item in scanned(log)][-len(refs) :] == refs


@pytest.fixture(scope="module")
def long_part(session_keyring: Keyring) -> tuple[SegmentLog, RecordRef, bytes]:
    log = SegmentLog(MemoryBlobs(), session_keyring)
    plain = random.Random(4).randbytes(3 * CHUNK + 12345)
    (ref,) = log.append([RecordIn(1, [b"row", plain, b""])])
    return log, ref, plain


@settings(deadline=None)
@given(st.data())
def test_any_range_of_a_part(long_part: tuple[SegmentLog, RecordRef, bytes], data: st.DataObject) -> None:
    log, ref, plain = long_part
    edges = [0, CHUNK, 2 * CHUNK, 3 * CHUNK, len(plain)]
    near = st.sampled_from(
        sorted({min(max(edge + by, 0), len(plain)) for edge in edges for by in range(-3, 4)})
    )
    start, end = sorted(data.draw(st.tuples(near | st.integers(0, len(plain)), near)))
    assert log.open_range(ref.part(1), start, end - start) == plain[start:end]


def test_ranges_outside_a_part_are_refused(long_part: tuple[SegmentLog, RecordRef, bytes]) -> None:
    log, ref, plain = long_part
    for start, length in ((-1, 1), (0, -1), (0, len(plain) + 1), (len(plain), 1)):
        with pytest.raises(ValueError, match="of a part"):
            log.open_range(ref.part(1), start, length)
    assert log.open_range(ref.part(2), 0, 0) == b""


def test_into_a_buffer_of_the_callers(long_part: tuple[SegmentLog, RecordRef, bytes]) -> None:
    log, ref, plain = long_part
    buffer = bytearray(len(plain))
    assert log.open_part(ref.part(1), buffer) == plain
    assert buffer == plain
    with pytest.raises(ValueError, match="the buffer has"):
        log.open_part(ref.part(1), bytearray(1))


def test_what_is_large_or_elsewhere_is_not_opened_on_the_callers_thread(
    long_part: tuple[SegmentLog, RecordRef, bytes], session_keyring: Keyring
) -> None:
    log, ref, plain = long_part
    assert log.try_open_part(ref.part(1)) == plain  # 3 MiB
    small = SegmentLog(log._blobs, session_keyring, limits=SegmentLimits(nonblocking_bytes=CHUNK))
    assert small.try_open_part(ref.part(1)) is None

    class Waits(MemoryBlobs):
        def try_read_into(self, name: str, offset: int, buffer: bytearray | memoryview) -> bool:
            return False

    class Plain:
        """A blob store without the optional capability."""

        def __init__(self, inner: MemoryBlobs) -> None:
            self.create, self.read, self.read_into = inner.create, inner.read, inner.read_into
            self.size, self.names, self.delete, self.close = (
                inner.size,
                inner.names,
                inner.delete,
                inner.close,
            )

    for blobs in (Waits(), Plain(MemoryBlobs())):
        log = SegmentLog(blobs, session_keyring)
        (ref,) = log.append([RecordIn(1, [b"row"])])
        assert log.try_open_part(ref.part(0)) is None
        assert log.open_part(ref.part(0)) == b"row"


@pytest.mark.parametrize(
    "lengths",
    [[10], [0, 5, 0], [CHUNK, 1], [1, CHUNK, 1], [CHUNK + 1, 7], [3, 2 * CHUNK, 0, 4], [300_000] * 9],
)
@pytest.mark.parametrize("wait", [True, False])
def test_parts_opened_together_are_what_they_are_alone(
    session_keyring: Keyring, lengths: list[int], wait: bool
) -> None:
    blobs = MemoryBlobs()
    log = SegmentLog(blobs, session_keyring)
    parts = [os.urandom(length) for length in lengths]
    (ref,) = log.append([RecordIn(1, [b"row", *parts])])
    refs = list(ref.parts())[1:]
    into = memoryview(bytearray(sum(lengths)))
    assert log.open_parts(refs, into, wait=wait)
    assert bytes(into) == b"".join(parts)
    # of any of them one bit, and none is taken for what it was
    for number, part in enumerate(refs):
        if not part.length:
            continue
        name = next(name for name in blobs.names() if part.segment.hex() in name)
        blobs._blobs[name][part.offset] ^= 1
        with pytest.raises(SealError):
            log.open_parts(refs, into, wait=wait)
        blobs._blobs[name][part.offset] ^= 1
        assert log.open_parts(refs[number:], into[: sum(lengths[number:])], wait=wait)


def test_parts_are_not_waited_for_by_who_cannot_wait(session_keyring: Keyring) -> None:
    class Waits(MemoryBlobs):
        def try_read_into(self, name: str, offset: int, buffer: bytearray | memoryview) -> bool:
            return False

    for length in (10, 2 * CHUNK):
        log = SegmentLog(Waits(), session_keyring)
        (ref,) = log.append([RecordIn(1, [b"row", bytes(length)])])
        into = memoryview(bytearray(length))
        assert not log.open_parts([ref.part(1)], into, wait=False)
        assert log.open_parts([ref.part(1)], into, wait=True)


def test_many_thousand_parts(session_keyring: Keyring) -> None:
    log = SegmentLog(MemoryBlobs(), session_keyring)
    parts = [b"row", *(b"frame %d" % number for number in range(20_000))]
    (ref,) = log.append([RecordIn(1, parts)])
    (item,) = scanned(log)
    assert item.ref == ref
    everything = list(ref.parts())
    for number in (0, 1, 19_999, 20_000):
        assert everything[number] == ref.part(number)
        assert log.open_part(everything[number]) == parts[number]


def test_limits(session_keyring: Keyring) -> None:
    limits = SegmentLimits(segment_bytes=20_000, record_bytes=1000, parts=3, row_bytes=10)
    log = SegmentLog(MemoryBlobs(), session_keyring, limits=limits)
    log.append([RecordIn(1, [bytes(10), b"", bytes(800)])])
    for record in (
        RecordIn(1, []),
        RecordIn(1, [b"", b"", b"", b""]),
        RecordIn(1, [bytes(11)]),
        RecordIn(1, [b"", bytes(1000)]),
        RecordIn(-1, [b""]),
        RecordIn(1 << 32, [b""]),
    ):
        with pytest.raises(ValueError, match="record"):
            log.append([RecordIn(1, [b"fine"]), record])
    assert len(scanned(log)) == 1  # all of a group or none, and a refusal leaves the segment usable
    assert log.statistics()["segments_started"] == 1
    for _ in range(30):
        log.append([RecordIn(1, [bytes(10), bytes(800)])])
    segments = log.segment_ids()
    assert len(segments) == 3
    assert all(log.size(segment) <= limits.segment_bytes for segment in segments)
    assert len(scanned(log)) == 31
    assert log.statistics() == {
        "segments_started": 3,
        "groups": 31,
        "records": 31,
        "bytes": 28110,
        "failures": 0,
    }


def test_every_segment_has_a_key_of_its_own(session_keyring: Keyring) -> None:
    log = SegmentLog(MemoryBlobs(), session_keyring, limits=SegmentLimits(segment_bytes=1))
    refs = [log.append([RecordIn(1, [b"same"])])[0] for _ in range(3)]
    keys = {session_keyring.key("segment", ref.segment.hex()) for ref in refs}
    assert len({ref.segment for ref in refs}) == len(keys) == 3


def test_a_scan_from_the_middle(session_keyring: Keyring) -> None:
    log = SegmentLog(MemoryBlobs(), session_keyring)
    refs = log.append([RecordIn(1, [b"%d" % number]) for number in range(5)])
    tail = list(log.scan(refs[0].segment, start=refs[3].offset))
    assert [item.ref for item in tail if isinstance(item, ScannedRecord)] == refs[3:]
    assert list(log.scan(refs[0].segment, start=log.size(refs[0].segment))) == []


@pytest.mark.parametrize("size", SIZES)
def test_a_part_in_one_step(session_keyring: Keyring, size: int) -> None:
    log = SegmentLog(MemoryBlobs(), session_keyring)
    data = random.Random(size).randbytes(size)
    one, other = log.append([RecordIn(1, [b"row", data]), RecordIn(1, [b"row", bytes(size)])])
    assert log.open_whole(one.part(1)) == data == log.open_part(one.part(1))
    with pytest.raises(SealError):
        log.open_whole(one.part(1)._replace(record_id=other.record_id))
    with pytest.raises(SealError):
        log.open_whole(one.part(1)._replace(part=0))


def test_reading_ahead_changes_nothing_and_never_fails(tmp_path: Path, keyring: Keyring) -> None:
    for blobs in (LocalBlobs(tmp_path, limits=LocalBlobLimits(reserve_bytes=0)), MemoryBlobs()):
        log = SegmentLog(blobs, keyring)
        refs = log.append([RecordIn(1, [b"row", b"x" * 70_000]) for _ in range(5)])
        parts = [ref.part(1) for ref in refs]
        beyond = parts[0]._replace(offset=1 << 40)
        elsewhere = parts[0]._replace(segment=bytes(16))
        log.read_ahead([*parts, beyond, elsewhere])
        log.read_ahead([])
        assert all(log.open_whole(part) == b"x" * 70_000 for part in parts)


def test_a_scan_says_how_long_records_are(session_keyring: Keyring) -> None:
    log = SegmentLog(MemoryBlobs(), session_keyring)
    refs = log.append([RecordIn(1, [b"r" * size, bytes(size)]) for size in (*SIZES, 4000, 5000)])
    assert [(one.ref, one.length) for one in scanned(log)] == [(ref, ref.length) for ref in refs]


def test_a_row_longer_than_a_glance_and_than_a_chunk(session_keyring: Keyring) -> None:
    log = SegmentLog(MemoryBlobs(), session_keyring)
    rows = [random.Random(n).randbytes(n) for n in (5000, CHUNK + 5)]
    log.append([RecordIn(1, [row, b"x"]) for row in rows])
    assert [item.row for item in scanned(log)] == rows


def test_what_is_missing_is_said(session_keyring: Keyring) -> None:
    log = SegmentLog(MemoryBlobs(), session_keyring)
    (ref,) = log.append([RecordIn(1, [b"row"])])
    log._blobs.delete(f"segments/{ref.segment.hex()}")
    with pytest.raises(BlobNotFoundError):
        log.open_part(ref.part(0))
    with pytest.raises(KeyringError):
        list(log.scan(bytes(16)))


def test_two_logs_of_one_prefix_and_another_prefix(session_keyring: Keyring) -> None:
    blobs = MemoryBlobs()
    one, two = SegmentLog(blobs, session_keyring), SegmentLog(blobs, session_keyring)
    ledger = SegmentLog(blobs, session_keyring, prefix="ledger/")
    (a,) = one.append([RecordIn(1, [b"a"])])
    (b,) = two.append([RecordIn(1, [b"b"])])
    ledger.append([RecordIn(1, [b"fact"])])
    assert one.open_part(b.part(0)) == b"b"
    assert two.open_part(a.part(0)) == b"a"
    assert {item.row for item in scanned(one)} == {b"a", b"b"}
    assert {item.row for item in scanned(ledger)} == {b"fact"}


def test_many_threads_append_and_read(tmp_path: Path, keyring: Keyring) -> None:
    blobs = LocalBlobs(tmp_path / "data", limits=LocalBlobLimits(open_files=2, reserve_bytes=0))
    log = SegmentLog(blobs, keyring, limits=SegmentLimits(segment_bytes=100_000))
    problems: list[BaseException] = []
    refs: list[tuple[RecordRef, bytes]] = []

    def work(seed: int) -> None:
        choose = random.Random(seed)
        try:
            for _ in range(20):
                contents = [choose.randbytes(choose.randrange(5000)) for _ in range(3)]
                appended = log.append([RecordIn(1, [b"row", content]) for content in contents])
                refs.extend(zip(appended, contents, strict=True))
                for _ in range(5):
                    ref, content = choose.choice(refs)
                    assert log.open_part(ref.part(1)) == content
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems, problems
    assert {item.ref for item in scanned(log)} == {ref for ref, _ in refs}
    assert len(refs) == 240


def test_a_part_that_changes_its_length_meanwhile_is_never_stored(session_keyring: Keyring) -> None:
    class Growing(list[bytes]):
        def __iter__(self):  # type: ignore[no-untyped-def]
            self.append(self.pop() + b"!")
            return super().__iter__()

    log = SegmentLog(MemoryBlobs(), session_keyring)
    with pytest.raises(ValueError, match="changed its length"):
        log.append([RecordIn(1, Growing([b"row", b"frame"]))])
    assert scanned(log) == []
    log.append([RecordIn(1, [b"row"])])


def test_a_key_that_has_to_be_read_is_not_read_on_the_callers_thread(
    tmp_path: Path, keyring: Keyring, master: MasterKey
) -> None:
    blobs = MemoryBlobs()
    (ref,) = SegmentLog(blobs, keyring).append([RecordIn(1, [b"row"])])
    reader = SegmentLog(blobs, Keyring.open(tmp_path / "keys", master))
    assert reader.try_open_part(ref.part(0)) is None
    assert reader.open_part(ref.part(0)) == b"row"
    assert reader.try_open_part(ref.part(0)) == b"row"


def test_stray_files_are_no_segments(tmp_path: Path, keyring: Keyring) -> None:
    blobs = LocalBlobs(tmp_path / "data", limits=LocalBlobLimits(reserve_bytes=0))
    log = SegmentLog(blobs, keyring)
    (ref,) = log.append([RecordIn(1, [b"row"])])
    for name in ("x" * 32, "ABCDEF" * 5 + "AB", ".hidden", "lost+found", "00" * 16 + ".bak", "a b"):
        (tmp_path / "data" / "segments" / name).write_bytes(b"")
    assert log.segment_ids() == [ref.segment]


def test_the_segment_being_written_is_known(tmp_path: Path, keyring: Keyring) -> None:
    blobs = LocalBlobs(tmp_path / "data", limits=LocalBlobLimits(reserve_bytes=0))
    log, other = SegmentLog(blobs, keyring), SegmentLog(blobs, keyring)
    (ref,) = log.append([RecordIn(1, [b"row"])])
    assert other.is_being_written(ref.segment)
    log.close()
    assert not other.is_being_written(ref.segment)
