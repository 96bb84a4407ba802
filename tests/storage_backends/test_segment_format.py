"""Document, vectors and implementation agree: a difference is a change of format."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import reference_segment
from hypothesis import given
from hypothesis import strategies as st

from hounsfield.archive.index.rows import RECORD_KIND_PIECE
from hounsfield.storage_backends import segment_appending, segment_format
from hounsfield.storage_backends.errors import FormatError, SealError
from hounsfield.storage_backends.local_blobs import LocalBlobLimits, LocalBlobs
from hounsfield.storage_backends.memory_blobs import MemoryBlobs
from hounsfield.storage_backends.segment_appending import RecordIn
from hounsfield.storage_backends.segment_scan import Damage
from hounsfield.storage_backends.segment_stream import SegmentStream
from hounsfield.storage_backends.segments import SegmentLog

VECTORS = json.loads(reference_segment.VECTORS.read_text())


class OneKey:
    """A keyring that knows one key."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def create_key(self, purpose: str, key_id: str) -> bytes:
        assert purpose == "segment"
        assert len(key_id) == 32
        return self._key

    def key(self, purpose: str, key_id: str) -> bytes:
        return self.create_key(purpose, key_id)


def written(
    monkeypatch: pytest.MonkeyPatch, vector: dict[str, Any], records: list[RecordIn], ids: bytes
) -> bytes:
    blobs = MemoryBlobs()
    log = SegmentLog(blobs, OneKey(bytes.fromhex(vector["key"])))  # type: ignore[arg-type]
    random = iter([bytes.fromhex(vector["segment"]), ids])
    monkeypatch.setattr(segment_appending.os, "urandom", lambda _: next(random))
    log.append(records)
    name = "segments/" + vector["segment"]
    return blobs.read(name, 0, blobs.size(name))


def test_what_is_written_is_the_vector(monkeypatch: pytest.MonkeyPatch) -> None:
    vector = VECTORS["write"]
    records = [RecordIn(r["kind"], [bytes.fromhex(p) for p in r["parts"]]) for r in vector["records"]]
    ids = b"".join(bytes.fromhex(r["record"]) for r in vector["records"])
    assert written(monkeypatch, vector, records, ids) == reference_segment.unpacked(vector["bytes"])


def test_what_is_written_in_blocks_is_the_vector(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    vector = VECTORS["write_in_blocks"]
    blobs = LocalBlobs(tmp_path, limits=LocalBlobLimits(reserve_bytes=0))
    log = SegmentLog(blobs, OneKey(bytes.fromhex(vector["key"])))  # type: ignore[arg-type]
    random = [bytes.fromhex(vector["segment"])]
    random += [b"".join(bytes.fromhex(r["record"]) for r in group) for group in vector["groups"]]
    following = iter(random)
    monkeypatch.setattr(segment_appending.os, "urandom", lambda _: next(following))
    for group in vector["groups"]:
        log.append([RecordIn(r["kind"], [bytes.fromhex(p) for p in r["parts"]]) for r in group])
    if not blobs.statistics()["writers_direct"]:
        pytest.skip("this file system takes no direct writes")
    name = "segments/" + vector["segment"]
    assert blobs.read(name, 0, blobs.size(name)) == reference_segment.unpacked(vector["bytes"])


def test_what_is_written_past_a_chunk_is_the_vector(monkeypatch: pytest.MonkeyPatch) -> None:
    vector = VECTORS["write_long"]
    parts = [bytes.fromhex(vector["row"]), bytes(range(256)) * 4096 + b"!"]
    data = written(monkeypatch, vector, [RecordIn(vector["kind"], parts)], bytes.fromhex(vector["record"]))
    record = data[segment_format.HEADER_BYTES :]
    assert len(record) == vector["record_bytes"]
    assert hashlib.sha256(record).hexdigest() == vector["record_sha256"]


def test_a_large_object_in_pieces_is_the_vector(monkeypatch: pytest.MonkeyPatch) -> None:
    vector = VECTORS["write_in_pieces"]
    blobs = MemoryBlobs()
    log = SegmentLog(blobs, OneKey(bytes.fromhex(vector["key"])))  # type: ignore[arg-type]
    random = iter([bytes.fromhex(one) for one in (vector["segment"], *vector["record_ids"])])
    monkeypatch.setattr(segment_appending.os, "urandom", lambda _: next(random))
    data, piece_bytes = bytes.fromhex(vector["data"]), vector["piece_bytes"]
    stream = SegmentStream(log, kind=RECORD_KIND_PIECE, piece_bytes=piece_bytes)
    for start in range(0, len(data), piece_bytes):
        stream.append(data[start : start + piece_bytes])
    assert stream.table.hex() == vector["piece_table"]
    of_object = vector["object"]
    parts = [of_object["row"], of_object["header"], vector["piece_table"], vector["frame_table"]]
    ref = stream.finish(RecordIn(of_object["kind"], [bytes.fromhex(part) for part in parts]))
    assert ref.offset == of_object["offset"]
    name = "segments/" + vector["segment"]
    assert blobs.read(name, 0, blobs.size(name)) == reference_segment.unpacked(vector["bytes"])


@pytest.mark.parametrize("vector", VECTORS["read"], ids=lambda vector: vector["name"])
def test_what_is_read_is_what_the_vector_expects(vector: dict[str, Any]) -> None:
    segment = bytes.fromhex(vector["segment"])
    blobs = MemoryBlobs()
    blobs.create("segments/" + vector["segment"]).append([reference_segment.unpacked(vector["bytes"])])
    log = SegmentLog(blobs, OneKey(bytes.fromhex(vector["key"])))  # type: ignore[arg-type]
    found = []
    for item in log.scan(segment):
        if isinstance(item, Damage):
            found.append({"damage": item.reason.value, "offset": item.offset, "length": item.length})
            continue
        parts: list[str | None] = []
        for part in item.ref.parts():
            try:
                parts.append(bytes(log.open_part(part)).hex())
            except SealError:
                parts.append(None)
        if None in parts:
            with pytest.raises(SealError):
                log.verify(item.ref)
        else:
            log.verify(item.ref)
        assert item.row.hex() == parts[0]
        found.append(
            {"record": item.ref.record_id.hex(), "offset": item.ref.offset, "kind": item.kind, "parts": parts}
        )
    assert found == vector["expect"]


def test_the_vectors_are_those_of_the_reference() -> None:
    assert json.loads(json.dumps(reference_segment.vectors())) == VECTORS


def test_a_later_version_is_refused_not_guessed() -> None:
    copy = bytearray(segment_format.pack_header(bytes(16))[:4092])
    copy[8] = 2
    later = bytes(copy) + segment_format.zlib.crc32(bytes(copy)).to_bytes(4, "little")
    with pytest.raises(FormatError, match="format 2"):
        segment_format.parse_header(later)


@given(st.integers(0, 3 * segment_format.CHUNK_BYTES + 2))
def test_chunks_cover_a_part_exactly(length: int) -> None:
    chunks = list(segment_format.chunks(length))
    assert sum(chunk[2] for chunk in chunks) == length
    assert [chunk[0] for chunk in chunks] == list(range(len(chunks)))
    assert [chunk[3] for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert segment_format.sealed_length(length) == length + 16 * len(chunks)


@given(st.lists(st.integers(0, 2**40), min_size=1, max_size=20))
def test_framing_is_read_as_it_was_packed(lengths: list[int]) -> None:
    framing = segment_format.pack_framing(b"i" * 16, 3, lengths)
    head = segment_format.parse_head(framing)
    assert head is not None
    assert segment_format.parse_table(head, framing[48:]) == tuple(lengths)
    ref = segment_format.RecordRef(b"s" * 16, b"i" * 16, 8192, tuple(lengths), 3)
    assert ref.length == head.length
    assert [ref.part(n) for n in range(len(lengths))] == list(ref.parts())
    with pytest.raises(IndexError):
        ref.part(len(lengths))


@given(st.binary(max_size=60))
def test_a_head_is_never_found_in_other_bytes(data: bytes) -> None:
    assert segment_format.parse_head(data) is None
    assert segment_format.parse_head(segment_format.MARKER + data) is None


def test_a_part_table_too_long_to_hold_is_not_read() -> None:
    head = segment_format.pack_framing(bytes(16), 1, [0])[:44]
    huge = (
        head[:28]
        + (segment_format.PARTS_MAX + 1).to_bytes(4, "little")
        + (1 << 60).to_bytes(8, "little")
        + head[40:]
    )
    assert segment_format.parse_head(huge + segment_format.zlib.crc32(huge).to_bytes(4, "little")) is None
