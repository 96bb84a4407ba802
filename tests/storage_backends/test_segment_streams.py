"""A segment in pieces: read from anywhere, nothing before its last record, nothing left of one given up."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hounsfield.storage_backends.errors import PoisonedError, SealError, StoreFullError
from hounsfield.storage_backends.keyring import Keyring
from hounsfield.storage_backends.local_blobs import LocalBlobLimits, LocalBlobs
from hounsfield.storage_backends.master_key import MasterKey
from hounsfield.storage_backends.segment_appending import RecordIn
from hounsfield.storage_backends.segment_scan import Damage, ScannedRecord
from hounsfield.storage_backends.segment_stream import PieceReader, SegmentStream, piece_lengths
from hounsfield.storage_backends.segments import SegmentLog
from support.crash_disk import CrashDisk, Fault

PIECE, OBJECT = 4, 1


def keyring_in(directory: Path) -> Keyring:
    return Keyring.create(directory / "keys", MasterKey(bytes(range(32)), "test"))


def written(log: SegmentLog, data: bytes, piece_bytes: int) -> SegmentStream:
    stream = SegmentStream(log, kind=PIECE, piece_bytes=piece_bytes)
    for start in range(0, len(data), piece_bytes):
        stream.append(data[start : start + piece_bytes])
    return stream


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_stretch_reads_as_it_was_written(
    tmp_path_factory: pytest.TempPathFactory, draw: st.DataObject
) -> None:
    directory = tmp_path_factory.mktemp("stream")
    length, piece_bytes = draw.draw(st.integers(1, 5000)), draw.draw(st.integers(1, 2000))
    data = random.Random(length).randbytes(length)
    log = SegmentLog(CrashDisk(), keyring_in(directory))
    stream = written(log, data, piece_bytes)
    reader = stream.reader()
    for _ in range(5):
        start = draw.draw(st.integers(0, length))
        stop = draw.draw(st.integers(start, length))
        assert reader.read(start, stop - start) == data[start:stop]
        assert b"".join(reader.stretches(start, stop)) == data[start:stop]
    with pytest.raises(ValueError, match="bytes"):
        reader.read(length, 1)


@pytest.mark.parametrize("direct", [True, False])
def test_a_scan_finds_the_pieces_and_their_record(tmp_path: Path, direct: bool) -> None:
    data = random.Random(1).randbytes(5_000_000)
    blobs = LocalBlobs(tmp_path / "blobs", limits=LocalBlobLimits(reserve_bytes=0), direct=direct)
    log = SegmentLog(blobs, keyring_in(tmp_path))
    stream = written(log, data, 2 << 20)
    assert log.is_being_written(stream.segment)
    ref = stream.finish(RecordIn(OBJECT, (b"row", b"header", stream.table, b"")))
    stream.close()
    found = list(log.scan(stream.segment))
    assert [record.kind for record in found if isinstance(record, ScannedRecord)] == [PIECE] * 3 + [OBJECT]
    assert not any(isinstance(one, Damage) for one in found)
    lengths = [one.ref.part_lengths for one in found if isinstance(one, ScannedRecord)]
    assert lengths[:3] == list(piece_lengths(len(data), 2 << 20))
    again = PieceReader(
        log, ref.segment, log.open_part(ref.part(2)),
        kind=PIECE, piece_bytes=2 << 20, data_bytes=len(data),
    )  # fmt: skip
    assert again.read(2_000_000, 2_500_000) == data[2_000_000:4_500_000]


def test_a_small_stretch_costs_the_chunks_that_hold_it(tmp_path: Path) -> None:
    class Counting(CrashDisk):
        read_bytes = 0

        def read_into(self, name: str, offset: int, buffer: bytearray | memoryview) -> None:
            self.read_bytes += len(buffer)
            super().read_into(name, offset, buffer)

    disk = Counting()
    log = SegmentLog(disk, keyring_in(tmp_path))
    data = random.Random(2).randbytes(12 << 20)
    reader = written(log, data, 4 << 20).reader()
    assert reader.read(7 << 20, 5000) == data[7 << 20 : (7 << 20) + 5000]
    assert disk.read_bytes == (1 << 20) + 16


def test_exchanged_pieces_do_not_open(tmp_path: Path) -> None:
    log = SegmentLog(CrashDisk(), keyring_in(tmp_path))
    stream = written(log, bytes(3000), 1000)
    entries = [stream.table[at : at + 24] for at in range(0, 72, 24)]
    swapped = entries[0][:16] + entries[1][16:] + entries[1][:16] + entries[0][16:] + entries[2]
    reader = PieceReader(log, stream.segment, swapped, kind=PIECE, piece_bytes=1000, data_bytes=3000)
    with pytest.raises(SealError):
        reader.read(0, 10)


@pytest.mark.parametrize("operation", ["append", "sync", "create"])
@pytest.mark.parametrize("what", ["fail", "full"])
@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_failure_ends_the_stream_and_leaves_nothing(
    tmp_path: Path, operation: str, what: str, number: int
) -> None:
    disk = CrashDisk(Fault(operation, number, what))
    keyring = keyring_in(tmp_path)
    log = SegmentLog(disk, keyring)
    stream = SegmentStream(log, kind=PIECE, piece_bytes=1000)
    failed = False
    for _ in range(3):
        try:
            stream.append(bytes(1000))
        except (PoisonedError, StoreFullError):
            failed = True
            with pytest.raises(PoisonedError):
                stream.append(bytes(1000))
            break
    assert failed == (number == 1 or operation != "create")
    stream.discard()
    stream.discard()
    assert disk.names("segments/") == []
    assert keyring.key_ids("segment") == []


def test_every_piece_is_durable_before_the_next_is_written(tmp_path: Path) -> None:
    disk = CrashDisk()
    stream = written(SegmentLog(disk, keyring_in(tmp_path)), bytes(4000), 1000)
    stream.finish(RecordIn(OBJECT, (b"row",)))
    assert [operation for operation, _, _ in disk.history] == ["create"] + ["append", "sync"] * 5
    with pytest.raises(PoisonedError):
        stream.append(bytes(1000))
