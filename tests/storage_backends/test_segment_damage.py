"""Every flipped byte, every cut, every moved part of a segment: found, and paid for by one record only."""

from __future__ import annotations

import random

import pytest

from hounsfield.storage_backends import segment_format as layout
from hounsfield.storage_backends.errors import SealError, ShortReadError
from hounsfield.storage_backends.keyring import Keyring
from hounsfield.storage_backends.memory_blobs import MemoryBlobs
from hounsfield.storage_backends.segment_appending import RecordIn
from hounsfield.storage_backends.segment_format import RecordRef
from hounsfield.storage_backends.segment_scan import Damage, DamageReason, ScannedRecord
from hounsfield.storage_backends.segments import SegmentLog
from support.crash_disk import CrashDisk, CrashWriter

RECORDS = [
    RecordIn(1, [b"row %d" % number, b"header", *(b"frame %d %d" % (number, n) for n in range(number))])
    for number in range(5)
]


class BlockDisk(CrashDisk):
    """A disk that is written in whole blocks, so that groups are padded."""

    def create(self, name: str) -> CrashWriter:
        writer = super().create(name)
        writer.block = layout.PADDING_BYTES  # type: ignore[attr-defined]
        return writer


class Filled:
    """A small segment of five records (two groups), its bytes, and readers of altered copies of it."""

    def __init__(self, keyring: Keyring, disk: CrashDisk) -> None:
        self.keyring = keyring
        log = SegmentLog(disk, keyring)
        self.refs = log.append(RECORDS[:2]) + log.append(RECORDS[2:])
        self.segment = self.refs[0].segment
        self.name = disk.names()[0]
        self.data = disk.read(self.name, 0, disk.size(self.name))
        starts = [ref.offset for ref in self.refs[1:]] + [len(self.data)]
        self.padding = [
            range(ref.offset + ref.length, start) for ref, start in zip(self.refs, starts, strict=True)
        ]

    def reader(self, data: bytes) -> SegmentLog:
        blobs = MemoryBlobs()
        blobs.create(self.name).append([data])
        return SegmentLog(blobs, self.keyring)

    def survey(self, data: bytes) -> tuple[list[RecordRef], list[Damage]]:
        """Records that are whole, and all damage: what a scan cannot read and what does not verify."""
        log = self.reader(data)
        whole: list[RecordRef] = []
        damage: list[Damage] = []
        for found in log.scan(self.segment):
            if isinstance(found, Damage):
                damage.append(found)
                continue
            try:
                log.verify(found.ref)
            except SealError:
                damage.append(
                    Damage(found.ref.offset, found.ref.length, DamageReason.ROW, found.ref.record_id)
                )
            else:
                whole.append(found.ref)
        return whole, damage


@pytest.fixture(scope="module")
def filled(session_keyring: Keyring) -> Filled:
    return Filled(session_keyring, CrashDisk())


@pytest.fixture(scope="module")
def padded(session_keyring: Keyring) -> Filled:
    return Filled(session_keyring, BlockDisk())


@pytest.fixture(params=["packed", "padded"])
def either(request: pytest.FixtureRequest, filled: Filled, padded: Filled) -> Filled:
    return filled if request.param == "packed" else padded


def test_padding_ends_every_group_and_is_nothing(padded: Filled) -> None:
    assert padded.survey(padded.data) == (padded.refs, [])
    assert [bool(stretch) for stretch in padded.padding] == [False, True, False, False, True]
    assert [stretch.stop % 4096 for stretch in padded.padding if stretch] == [0, 0]


def test_a_flipped_byte_of_the_padding_costs_nothing(padded: Filled) -> None:
    for stretch in padded.padding:
        for at in stretch:
            altered = padded.data[:at] + bytes([(0x01, 0x80, 0xFF)[at % 3]]) + padded.data[at + 1 :]
            whole, damage = padded.survey(altered)
            assert whole == padded.refs, at
            assert damage == [Damage(stretch.start, len(stretch), DamageReason.FRAMING)], at


def test_a_walk_may_start_in_the_padding(padded: Filled) -> None:
    log = padded.reader(padded.data)
    for start in padded.padding[1]:
        found = list(log.scan(padded.segment, start=start))
        assert [item.ref for item in found if isinstance(item, ScannedRecord)] == padded.refs[2:]
        assert len(found) == 3


def test_whole_blocks_of_zeros_are_not_padding(padded: Filled) -> None:
    end = padded.padding[1].stop
    whole, damage = padded.survey(padded.data[:end] + bytes(8192) + padded.data[end:])
    assert [ref.record_id for ref in whole] == [ref.record_id for ref in padded.refs]
    assert damage == [Damage(end, 8192, DamageReason.FRAMING)]


@pytest.mark.parametrize("bits", [0x01, 0x80, 0xFF])
def test_a_flipped_byte_costs_the_record_it_is_in(either: Filled, bits: int) -> None:
    filled = either
    assert filled.survey(filled.data) == (filled.refs, [])
    for index, ref in enumerate(filled.refs):
        for at in range(ref.offset, ref.offset + ref.length):
            altered = filled.data[:at] + bytes([filled.data[at] ^ bits]) + filled.data[at + 1 :]
            whole, damage = filled.survey(altered)
            assert whole == filled.refs[:index] + filled.refs[index + 1 :], at
            (found,) = damage
            assert found.offset == ref.offset
            # With a head that cannot be read, the way to the next one leads over the padding.
            padding = len(filled.padding[index]) if found.reason is DamageReason.FRAMING else 0
            assert found.length == ref.length + padding, at


def test_a_flipped_byte_in_the_header_costs_nothing(filled: Filled) -> None:
    for at in range(layout.HEADER_BYTES):
        altered = filled.data[:at] + bytes([filled.data[at] ^ 4]) + filled.data[at + 1 :]
        copy = at // layout.HEADER_COPY_BYTES * layout.HEADER_COPY_BYTES
        found = list(filled.reader(altered).scan(filled.segment))
        assert found[0] == Damage(copy, layout.HEADER_COPY_BYTES, DamageReason.HEADER)
        assert [item.ref for item in found[1:] if isinstance(item, ScannedRecord)] == filled.refs, at


def test_without_any_header_the_records_still_open(filled: Filled) -> None:
    whole, damage = filled.survey(bytes(layout.HEADER_BYTES) + filled.data[layout.HEADER_BYTES :])
    assert whole == filled.refs
    assert [d.reason for d in damage] == [DamageReason.HEADER] * 2


def test_a_cut_costs_what_is_behind_it(either: Filled) -> None:
    filled = either
    for length in range(len(filled.data)):
        whole, damage = filled.survey(filled.data[:length])
        kept = [ref for ref in filled.refs if ref.offset + ref.length <= length]
        assert whole == kept, length
        end = kept[-1].offset + kept[-1].length if kept else min(length, layout.HEADER_BYTES)
        if length < layout.HEADER_BYTES:
            assert damage == ([Damage(0, length, DamageReason.TORN_TAIL)] if length else [])
        elif kept and length in filled.padding[len(kept) - 1]:
            assert damage == []  # only zeros were cut off
        elif length > end and not (kept and length == filled.padding[len(kept) - 1].stop):
            end = filled.padding[len(kept) - 1].stop if kept else end
            (torn,) = damage
            assert (torn.offset, torn.length, torn.reason) == (end, length - end, DamageReason.TORN_TAIL)
        else:
            assert damage == []


def test_zeros_where_a_tail_never_reached_the_disk(filled: Filled) -> None:
    last = filled.refs[-1]
    whole, damage = filled.survey(filled.data[: last.offset].ljust(len(filled.data), b"\0"))
    assert (whole, damage) == (filled.refs[:-1], [])  # as padding is: here only the index knows better
    for at in range(last.offset + 1, len(filled.data), 7):
        whole, damage = filled.survey(filled.data[:at].ljust(len(filled.data), b"\0"))
        assert whole == filled.refs[:-1]
        assert [d.offset for d in damage] == [last.offset]


def test_a_missing_stretch_in_the_middle_is_skipped(filled: Filled) -> None:
    first, last = filled.refs[1], filled.refs[3]
    whole, damage = filled.survey(filled.data[: first.offset] + filled.data[last.offset :])
    assert len(whole) == 3  # a record opens wherever it lies
    assert damage == []
    garbage = random.Random(7).randbytes(3 << 20)  # more than one search window
    whole, damage = filled.survey(filled.data[: first.offset] + garbage + filled.data[first.offset :])
    assert [ref.record_id for ref in whole] == [ref.record_id for ref in filled.refs]
    assert [(d.offset, d.length, d.reason) for d in damage] == [
        (first.offset, len(garbage), DamageReason.FRAMING)
    ]


def test_a_marker_across_two_search_windows_is_found(filled: Filled) -> None:
    ref = filled.refs[1]
    for shift in range(-9, 3):
        gap = bytes((1 << 20) + 1 + shift)
        whole, _ = filled.survey(filled.data[: ref.offset] + gap + filled.data[ref.offset :])
        assert len(whole) == 5, shift


def test_false_markers_cost_nothing(filled: Filled) -> None:
    ref = filled.refs[1]
    whole, damage = filled.survey(filled.data[: ref.offset] + layout.MARKER * 50 + filled.data[ref.offset :])
    assert len(whole) == 5
    assert sum(d.length for d in damage) == 50 * len(layout.MARKER)


def test_parts_belong_where_they_were_sealed(filled: Filled, session_keyring: Keyring) -> None:
    blobs = MemoryBlobs()
    log = SegmentLog(blobs, session_keyring)
    pairs = [RecordIn(1, [b"row", b"frame A", b"frame B"]), RecordIn(1, [b"row", b"frame C", b"frame D"])]
    first, second = log.append(pairs)
    log.close()
    other_log = SegmentLog(blobs, session_keyring)
    (elsewhere,) = other_log.append(pairs[:1])
    assert elsewhere.segment != first.segment
    data = {
        ref.segment: bytearray(blobs.read(f"segments/{ref.segment.hex()}", 0, log.size(ref.segment)))
        for ref in (first, elsewhere)
    }
    sealed = 7 + layout.TAG_BYTES

    def with_part(source: RecordRef, source_part: int, target: RecordRef, target_part: int) -> SegmentLog:
        copy = bytes(data[source.segment][(at := source.part(source_part).offset) : at + sealed])
        changed = bytearray(data[target.segment])
        to = target.part(target_part).offset
        changed[to : to + sealed] = copy
        moved = MemoryBlobs()
        moved.create(f"segments/{target.segment.hex()}").append([changed])
        return SegmentLog(moved, session_keyring)

    assert with_part(first, 1, first, 1).open_part(first.part(1)) == b"frame A"
    for source, source_part, target, target_part in (
        (first, 1, first, 2),
        (first, 1, second, 1),
        (first, 1, elsewhere, 1),
        (elsewhere, 2, first, 2),
    ):
        reader = with_part(source, source_part, target, target_part)
        with pytest.raises(SealError):
            reader.open_part(target.part(target_part))
        with pytest.raises(SealError):
            reader.verify(target)


def test_chunks_cannot_be_reordered_dropped_or_cut(session_keyring: Keyring) -> None:
    blobs = MemoryBlobs()
    log = SegmentLog(blobs, session_keyring)
    plain = random.Random(3).randbytes(3 * layout.CHUNK_BYTES)
    (ref,) = log.append([RecordIn(1, [b"row", plain])])
    name = blobs.names()[0]
    data = blobs.read(name, 0, blobs.size(name))
    part, size = ref.part(1), layout.CHUNK_BYTES + layout.TAG_BYTES

    def reader(body: bytes, lengths: tuple[int, ...] = ref.part_lengths) -> tuple[SegmentLog, RecordRef]:
        framing = layout.pack_framing(ref.record_id, 1, lengths)
        changed = MemoryBlobs()
        changed.create(name).append(
            [data[: ref.offset], framing, data[ref.part(0).offset : part.offset], body]
        )
        return SegmentLog(changed, session_keyring), RecordRef(
            ref.segment, ref.record_id, ref.offset, lengths, 1
        )

    chunks = [data[part.offset + n * size : part.offset + (n + 1) * size] for n in range(3)]
    good, same = reader(b"".join(chunks))
    assert good.open_part(same.part(1)) == plain
    for order in ((1, 0, 2), (0, 2, 1), (2, 1, 0), (0, 0, 2)):
        with pytest.raises(SealError):
            reader(b"".join(chunks[n] for n in order))[0].open_part(part)
    for kept in (1, 2):  # a shorter part with a table that says so: the last flag is missing
        log, shorter = reader(b"".join(chunks[:kept]), (3, kept * layout.CHUNK_BYTES))
        with pytest.raises(SealError):
            log.open_part(shorter.part(1))
    with pytest.raises(ShortReadError):
        reader(b"".join(chunks)[:-1])[0].open_part(part)


def test_another_kind_or_count_does_not_open(filled: Filled) -> None:
    ref = filled.refs[2]
    log = filled.reader(filled.data)
    part = ref.part(2)
    assert log.open_part(part) == b"frame 2 0"
    for wrong in (
        part._replace(kind=2),
        part._replace(part_count=3),
        part._replace(part=3),
        part._replace(record_id=bytes(16)),
        part._replace(length=8),
        part._replace(offset=part.offset - 1),
    ):
        with pytest.raises((SealError, ShortReadError)):
            log.open_part(wrong)
