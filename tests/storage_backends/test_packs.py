"""Packs: vectors and implementation agree; whatever changes in one is noticed, from its bytes alone."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import reference_segment
from test_segment_format import OneKey

from hounsfield.storage_backends import packs, segment_appending
from hounsfield.storage_backends.errors import FormatError, PoisonedError, SealError, ShortReadError
from hounsfield.storage_backends.keyring import Keyring
from hounsfield.storage_backends.local_blobs import LocalBlobLimits, LocalBlobs
from hounsfield.storage_backends.memory_blobs import MemoryBlobs
from hounsfield.storage_backends.packs import Entry, PackCheck, PackEnd, PackWriter
from hounsfield.storage_backends.segment_appending import RecordIn
from hounsfield.storage_backends.segment_scan import Damage, ScannedRecord
from hounsfield.storage_backends.segment_stream import PieceReader, SegmentStream
from hounsfield.storage_backends.segments import SegmentLog
from support.crash_disk import CrashDisk

VECTORS = json.loads(reference_segment.VECTORS.read_text())["packs"]
ARENA = 1 << 16


def named(segment: bytes | str) -> str:
    return "segments/" + (segment if isinstance(segment, str) else segment.hex())


class RawFrames:
    """A compressor that compresses as the reference does: not at all."""

    def __init__(self, **_: Any) -> None:
        self.data = b""

    def compressobj(self) -> RawFrames:
        return self

    def compress(self, data: bytes) -> bytes:
        self.data += data
        return b""

    def flush(self) -> bytes:
        return reference_segment.zstd_frame(self.data)


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["name"])
def test_what_is_written_is_the_vector(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, vector: dict[str, Any]
) -> None:
    local = LocalBlobs(tmp_path, limits=LocalBlobLimits(reserve_bytes=0))
    log = SegmentLog(local if vector["blocks"] else MemoryBlobs(), OneKey(bytes.fromhex(vector["key"])))  # type: ignore[arg-type]
    record_ids = "".join(one["record"] for one in vector["records"])
    groups = [vector["segment"], *([record_ids] if record_ids else []), *vector["record_ids"]]
    ids = iter([bytes.fromhex(one) for one in groups])
    monkeypatch.setattr(segment_appending.os, "urandom", lambda _: next(ids))
    monkeypatch.setattr(packs.zstandard, "ZstdCompressor", RawFrames)
    writer = PackWriter(log, arena_bytes=ARENA)
    writer.append([RecordIn(r["kind"], [bytes.fromhex(p) for p in r["parts"]]) for r in vector["records"]])
    end = writer.finish(bytes.fromhex(vector["row"]), vector["objects"])
    assert end == end_of(vector)
    if vector["blocks"] and not local.statistics()["writers_direct"]:
        pytest.skip("this file system takes no direct writes")
    name, blobs = named(vector["segment"]), log._blobs
    assert blobs.read(name, 0, blobs.size(name)) == reference_segment.unpacked(vector["bytes"])
    writer.close()


def end_of(vector: dict[str, Any]) -> PackEnd:
    digest = bytes.fromhex(vector["digest"])
    return PackEnd(vector["contents_at"], vector["end_at"], vector["objects"], digest)


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["name"])
def test_what_is_read_is_what_the_vector_says(vector: dict[str, Any]) -> None:
    segment, key = bytes.fromhex(vector["segment"]), bytes.fromhex(vector["key"])
    data = reference_segment.unpacked(vector["bytes"])
    blobs = MemoryBlobs()
    blobs.create(named(segment)).append([data])
    end = packs.read_end(blobs, named(segment), segment, key)
    assert end == end_of(vector)
    contents = packs.read_contents(blobs, named(segment), segment, key, end)
    assert contents.row.hex() == vector["row"]
    found = list(contents.entries)
    log = SegmentLog(blobs, OneKey(key))  # type: ignore[arg-type]
    assert [entry_of(vector, entry) for entry in found] == vector["records"]
    for entry, record in zip(found, vector["records"], strict=True):
        assert [bytes(log.open_part(part)).hex() for part in entry.ref.parts()] == record["parts"]
    for size in (1, 100, 4096, 8191, 8192, 8193, len(data)):
        assert packs.checked((data[at : at + size] for at in range(0, len(data), size)), segment, key) == end


def entry_of(vector: dict[str, Any], entry: Entry) -> dict[str, Any]:
    (record,) = [one for one in vector["records"] if one["record"] == entry.ref.record_id.hex()]
    assert entry.row.hex() == record["parts"][0]
    assert entry.ref.part_lengths == tuple(len(part) // 2 for part in record["parts"])
    return {**record, "kind": entry.ref.kind, "offset": entry.ref.offset}


class Filled:
    """A small pack, its bytes, and what altered ones of it say."""

    def __init__(self, keyring: Keyring) -> None:
        blobs = CrashDisk()
        log = SegmentLog(blobs, keyring)
        writer = PackWriter(log, arena_bytes=ARENA)
        for number in range(3):
            writer.append([RecordIn(1, [b"row %d" % number, b"header", b"frame" * number])])
        self.end = writer.finish(b"a row", 3)
        (self.segment,) = writer.own_segments
        writer.close()
        self.data = blobs.read(named(self.segment), 0, log.size(self.segment))
        self.key = keyring.key("segment", self.segment.hex())
        self.keyring = keyring

    def check(self, data: bytes) -> PackEnd:
        return packs.checked([data], self.segment, self.key)

    def blobs(self, data: bytes) -> MemoryBlobs:
        blobs = MemoryBlobs()
        blobs.create(named(self.segment)).append([data])
        return blobs


@pytest.fixture(scope="module")
def filled(session_keyring: Keyring) -> Filled:
    return Filled(session_keyring)


def test_a_pack_is_a_segment_like_any_other(filled: Filled) -> None:
    log = SegmentLog(filled.blobs(filled.data), filled.keyring)
    found = list(log.scan(filled.segment))
    assert not [one for one in found if isinstance(one, Damage)]
    assert [one.kind for one in found if isinstance(one, ScannedRecord)] == [1, 1, 1, 5, 6]
    for one in found:
        log.verify(one.ref)  # type: ignore[union-attr]


@pytest.mark.parametrize("bits", [0x01, 0x80, 0xFF])
def test_every_flipped_byte_is_noticed(filled: Filled, bits: int) -> None:
    assert filled.check(filled.data) == filled.end
    for at in range(len(filled.data)):
        with pytest.raises(SealError):
            filled.check(filled.data[:at] + bytes([filled.data[at] ^ bits]) + filled.data[at + 1 :])


def test_every_flipped_byte_of_the_padding_is_noticed(filled: Filled) -> None:
    padded = filled.data + bytes(-len(filled.data) % 4096)
    assert filled.check(padded) == filled.end
    for at in range(len(filled.data), len(padded), 7):
        with pytest.raises(SealError):
            filled.check(padded[:at] + b"\1" + padded[at + 1 :])


def test_every_cut_and_what_is_too_much_is_noticed(filled: Filled) -> None:
    for length in range(len(filled.data)):
        with pytest.raises(SealError):
            filled.check(filled.data[:length])
    for more in (bytes(4096), b"x", filled.data, filled.data[-128:], filled.data[filled.end.contents_at :]):
        with pytest.raises(SealError):
            filled.check(filled.data + more)
    with pytest.raises(SealError):
        filled.check(filled.data[4096:])


def test_another_pack_or_key_is_not_this_one(filled: Filled) -> None:
    other = Filled(filled.keyring)
    for segment, key in (
        (other.segment, filled.key),
        (filled.segment, other.key),
        (other.segment, other.key),
    ):
        with pytest.raises(SealError):
            packs.checked([filled.data], segment, key)
        with pytest.raises(FormatError):
            packs.read_end(filled.blobs(filled.data), named(filled.segment), segment, key)


def test_a_damaged_end_or_contents_say_so(filled: Filled) -> None:
    size = len(filled.data)
    for at in range(filled.end.contents_at, size):
        blobs = filled.blobs(filled.data[:at] + bytes([filled.data[at] ^ 1]) + filled.data[at + 1 :])
        name = named(filled.segment)
        if at >= filled.end.end_at:
            with pytest.raises(FormatError):
                packs.read_end(blobs, name, filled.segment, filled.key)
            continue
        end = packs.read_end(blobs, name, filled.segment, filled.key)
        with pytest.raises((FormatError, SealError)):
            packs.read_contents(blobs, name, filled.segment, filled.key, end)


def test_a_segment_that_is_no_pack_has_no_end(session_keyring: Keyring) -> None:
    blobs = MemoryBlobs()
    log = SegmentLog(blobs, session_keyring)
    (ref,) = log.append([RecordIn(1, [b"row"])])
    key = session_keyring.key("segment", ref.segment.hex())
    with pytest.raises(FormatError, match="no pack"):
        packs.read_end(blobs, named(ref.segment), ref.segment, key)
    blobs.create("segments/" + "ab" * 16)
    with pytest.raises(FormatError, match="no pack"):
        packs.read_end(blobs, "segments/" + "ab" * 16, ref.segment, key)


def test_only_the_last_end_counts(session_keyring: Keyring) -> None:
    """A copy of the end, as the part of an object, is none."""
    log = SegmentLog(MemoryBlobs(), session_keyring)
    one = Filled(session_keyring)
    writer = PackWriter(log, arena_bytes=ARENA)
    writer.append([RecordIn(1, [b"row", one.data[-128:]])])
    end = writer.finish(one.data[-128:], 1)
    (segment,) = writer.own_segments
    key = session_keyring.key("segment", segment.hex())
    assert packs.read_end(log._blobs, named(segment), segment, key) == end


def test_a_long_pack_is_read_in_two_requests(session_keyring: Keyring) -> None:
    blobs = MemoryBlobs()
    log = SegmentLog(blobs, session_keyring)
    writer = PackWriter(log, arena_bytes=ARENA)
    source = random.Random(3)
    rows = [source.randbytes(4000) for _ in range(600)]
    refs = []
    for start in range(0, len(rows), 100):
        refs += writer.append([RecordIn(1, [row, b"h", b"f" * 9]) for row in rows[start : start + 100]])
    end = writer.finish(b"", len(rows))
    (segment,) = writer.own_segments
    key = session_keyring.key("segment", segment.hex())
    asked: list[int] = []

    class Counting(MemoryBlobs):
        def read(self, name: str, offset: int, length: int) -> bytes:
            asked.append(length)
            return blobs.read(name, offset, length)

        size = blobs.size

    found = packs.read_end(Counting(), named(segment), segment, key)
    contents = packs.read_contents(Counting(), named(segment), segment, key, found)
    assert found == end
    assert list(contents.entries) == [Entry(ref, row) for ref, row in zip(refs, rows, strict=True)]
    assert asked[0] == 8192
    assert len(asked) == 2
    assert asked[1] > 2 << 20  # so that the second part has several chunks


def test_an_object_in_pieces_can_be_a_pack(session_keyring: Keyring) -> None:
    blobs = MemoryBlobs()
    log = SegmentLog(blobs, session_keyring)
    writer = PackWriter(log, arena_bytes=ARENA)
    stream = SegmentStream(log, kind=4, piece_bytes=100, into=writer)
    data = bytes(range(250))
    for start in range(0, 250, 100):
        stream.append(data[start : start + 100])
    stream.finish(RecordIn(1, (b"row", b"header", stream.table, b"")))
    end = writer.finish(b"", 1)
    stream.close()
    (segment,) = writer.own_segments
    key = session_keyring.key("segment", segment.hex())
    entries = list(packs.read_contents(blobs, named(segment), segment, key, end).entries)
    assert [entry.ref.kind for entry in entries] == [4, 4, 4, 1]
    table = log.open_part(entries[-1].ref.part(2))
    reader = PieceReader(log, segment, table, kind=4, piece_bytes=100, data_bytes=250)
    assert bytes(reader.read(0, 250)) == data


def test_nothing_is_added_to_a_pack(session_keyring: Keyring) -> None:
    writer = PackWriter(SegmentLog(MemoryBlobs(), session_keyring), arena_bytes=ARENA)
    writer.append([RecordIn(1, [b"row"])])
    writer.finish(b"", 1)
    for again in (lambda: writer.append([RecordIn(1, [b"row"])]), lambda: writer.finish(b"", 1)):
        with pytest.raises(PoisonedError):
            again()


def test_a_pack_whose_disk_fails_takes_nothing_more(session_keyring: Keyring) -> None:
    disk = CrashDisk()
    log = SegmentLog(disk, session_keyring)
    writer = PackWriter(log, arena_bytes=ARENA)
    writer.append([RecordIn(1, [b"row"])])
    with pytest.raises(ValueError, match="unsigned"):
        writer.append([RecordIn(-1, [b"row"])])
    with pytest.raises(PoisonedError):
        writer.finish(b"", 1)


def test_a_shorter_copy_is_noticed_while_it_is_read(filled: Filled) -> None:
    blobs = filled.blobs(filled.data[: filled.end.contents_at + 10])
    with pytest.raises(FormatError):
        packs.read_end(blobs, named(filled.segment), filled.segment, filled.key)
    with pytest.raises(ShortReadError):
        packs.read_contents(blobs, named(filled.segment), filled.segment, filled.key, filled.end)
    check = PackCheck(filled.segment, filled.key)
    with pytest.raises(SealError):
        check.finish()
