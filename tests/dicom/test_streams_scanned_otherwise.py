"""A data set that passes by is seen as if it were there whole: same cuts, attributes, problems."""

from __future__ import annotations

import random
import zlib
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hounsfield.archive.dicom.attributes import extract
from hounsfield.archive.dicom.incremental import IncrementalLimits, StreamScanned
from hounsfield.archive.dicom.incremental_deflated import open_scan
from hounsfield.archive.dicom.problems import Problem
from hounsfield.archive.dicom.scan import ScanLimits, scan
from hounsfield.codecs.registry import EXPLICIT_VR_LITTLE_ENDIAN, TransferSyntax, lookup
from support.archives import SampleFile, ct_slice, sample_files

TINY = IncrementalLimits(aside_bytes_min=64)
DEFLATED = lookup("1.2.840.10008.1.2.1.99")


def passed(
    data: bytes, syntax: TransferSyntax, cuts: list[int], limits: IncrementalLimits = TINY
) -> StreamScanned:
    walk = open_scan(syntax, limits)
    for start, end in pairwise([0, *sorted(cuts), len(data)]):
        walk.feed(memoryview(data)[start:end])
    return walk.finish()


def check_same(data: bytes, syntax: TransferSyntax, found: StreamScanned, scan_limits: ScanLimits) -> None:
    whole = scan(data, syntax, scan_limits)
    seen = found.scanned
    assert set(seen.problems) == set(whole.problems)
    assert (seen.layout, seen.frame_count, seen.shape) == (whole.layout, whole.frame_count, whole.shape)
    assert seen.cuts == whole.cuts
    assert found.data_bytes == len(data)
    expected, extracted = extract(whole, data), extract(seen, found.rest)
    assert (extracted.study, extracted.series, extracted.instance) == (
        expected.study, expected.series, expected.instance,
    )  # fmt: skip
    assert set(extracted.problems) == set(expected.problems)


def slicings(data: bytes, seed: int) -> list[list[int]]:
    source = random.Random(seed)
    few = sorted(source.randrange(len(data) + 1) for _ in range(5))
    return [
        [],
        list(range(0, len(data), 4096)),
        few,
        list(range(0, len(data), 7)) if len(data) < 20_000 else [],
    ]


@pytest.mark.parametrize("sample", sample_files(), ids=lambda sample: sample.path.name)
def test_every_sample_file(sample: SampleFile) -> None:
    syntax = lookup(sample.transfer_syntax_uid)
    for cuts in slicings(sample.data, len(sample.data)):
        for limits in (TINY, IncrementalLimits()):
            check_same(sample.data, syntax, passed(sample.data, syntax, cuts, limits), ScanLimits())


@pytest.mark.parametrize("sample", sample_files(), ids=lambda sample: sample.path.name)
def test_every_sample_file_cut_off_somewhere(sample: SampleFile) -> None:
    syntax = lookup(sample.transfer_syntax_uid)
    source = random.Random(7)
    for _ in range(12):
        data = sample.data[: source.randrange(len(sample.data))]
        check_same(data, syntax, passed(data, syntax, [len(data) // 2]), ScanLimits())


def small_samples() -> list[SampleFile]:
    by_syntax: dict[str, SampleFile] = {}
    for sample in sorted(sample_files(), key=lambda one: len(one.data)):
        by_syntax.setdefault(sample.transfer_syntax_uid, sample)
    return [sample for sample in by_syntax.values() if len(sample.data) < 50_000]


@pytest.mark.parametrize("sample", small_samples(), ids=lambda sample: sample.transfer_syntax_uid)
def test_a_byte_at_a_time(sample: SampleFile) -> None:
    syntax = lookup(sample.transfer_syntax_uid)
    data = sample.data
    check_same(data, syntax, passed(data, syntax, list(range(len(data)))), ScanLimits())


@pytest.mark.parametrize("sample", small_samples(), ids=lambda sample: sample.transfer_syntax_uid)
def test_damaged_bytes(sample: SampleFile) -> None:
    syntax = lookup(sample.transfer_syntax_uid)
    source = random.Random(11)
    limits = IncrementalLimits(aside_bytes_min=1 << 20)
    for _ in range(150):
        data = bytearray(sample.data)
        for _ in range(source.choice((1, 1, 3))):
            data[source.randrange(len(data))] = source.randrange(256)
        whole = bytes(data)
        check_same(whole, syntax, passed(whole, syntax, [len(whole) // 3], limits), ScanLimits())


def item(value: bytes) -> bytes:
    return b"\xfe\xff\x00\xe0" + len(value).to_bytes(4, "little") + value


PIXELS = b"\xe0\x7f\x10\x00OB\0\0\xff\xff\xff\xff"
END = b"\xfe\xff\xdd\xe0\0\0\0\0"


@st.composite
def encapsulated(draw: st.DrawFn) -> bytes:
    """Fragments and tables, right and wrong, behind the header of a real slice, and something behind them."""
    frames = draw(st.integers(1, 5))
    head = ct_slice(change=lambda data: setattr(data, "NumberOfFrames", frames))
    head = head[: head.index(b"\xe0\x7f\x10\x00")]
    start = draw(st.sampled_from([b"", b"\xff\xd8\xff", b"\xff\x4f\xff\x51"]))
    fragments = [item(start + bytes(draw(st.integers(0, 40)))) for _ in range(draw(st.integers(0, 8)))]
    offsets, at = [], 0
    for fragment in fragments:
        offsets.append(at)
        at += len(fragment)
    kept = [offset for offset in offsets if draw(st.booleans())]
    table = draw(st.sampled_from([[], offsets, offsets[:1], kept, [1, 2]]))
    value = b"".join(offset.to_bytes(4, "little") for offset in table)
    if draw(st.booleans()):
        extended = b"".join(offset.to_bytes(8, "little") for offset in draw(st.sampled_from([offsets, kept])))
        head += b"\xe0\x7f\x01\x00OV\0\0" + len(extended).to_bytes(4, "little") + extended
    tail = draw(
        st.sampled_from([b"", b"\0", b"\xfc\xff\xfc\xffOB\0\0\x04\0\0\0\0\0\0\0", b"\x08\0\x60\0CS\x02\0MR"])
    )
    body = head + PIXELS + item(value) + b"".join(fragments) + draw(st.sampled_from([END, END, b""])) + tail
    return body[: draw(st.sampled_from([len(body), len(body) - 1, len(body) - 9, len(head) + 15]))]


@settings(max_examples=150, deadline=None)
@given(
    data=encapsulated(), cuts=st.lists(st.integers(0, 400), max_size=4), frames_max=st.sampled_from([4, 1000])
)
def test_fragments_and_tables_in_every_state(data: bytes, cuts: list[int], frames_max: int) -> None:
    syntax = lookup("1.2.840.10008.1.2.4.90")
    scan_limits = ScanLimits(frames_max=frames_max)
    limits = IncrementalLimits(aside_bytes_min=64, scan=scan_limits)
    found = passed(data, syntax, [max(0, len(data) - cut) for cut in cuts], limits)
    whole = scan(data, syntax, scan_limits)
    check_same(data, syntax, found, scan_limits)
    assert found.header == data[: whole.cuts[1]]


def test_a_long_value_passes_by_and_what_follows_is_seen() -> None:
    document = bytes(range(256)) * 40

    def change(data: object) -> None:
        data.EncapsulatedDocument = document  # type: ignore[attr-defined]
        data.MIMETypeOfEncapsulatedDocument = "application/pdf"  # type: ignore[attr-defined]

    data = ct_slice(change=change)
    syntax = EXPLICIT_VR_LITTLE_ENDIAN
    for cuts in ([], list(range(0, len(data), 100)), list(range(len(data)))):
        found = passed(data, syntax, cuts, IncrementalLimits(aside_bytes_min=5_000))
        check_same(data, syntax, found, ScanLimits())
        assert document not in found.header
        assert b"application/pdf" in found.header
        assert len(found.header) < 2_000


def test_a_header_without_end_is_kept_so_far_and_flagged() -> None:
    slice_ = ct_slice()
    at = slice_.index(b"\xe0\x7f\x10\x00")
    endless = slice_[:at] + b"\x11\x70\x10\x10SQ\0\0\xff\xff\xff\xff" + item(bytes(100_000))
    found = passed(
        endless, EXPLICIT_VR_LITTLE_ENDIAN, list(range(0, len(endless), 1000)),
        IncrementalLimits(header_bytes_max=20_000),
    )  # fmt: skip
    assert Problem.HEADER_TOO_LONG in found.scanned.problems
    assert Problem.TRUNCATED not in found.scanned.problems
    assert len(found.header) == 20_000
    assert extract(found.scanned, found.rest).study[0x0020000D]


def test_what_is_behind_the_pixels_is_looked_at_so_far_and_flagged() -> None:
    data = ct_slice() + b"\xfc\xff\xfc\xffOB\0\0" + (50_000).to_bytes(4, "little") + bytes(50_000)
    found = passed(data, EXPLICIT_VR_LITTLE_ENDIAN, [600], IncrementalLimits(trailer_bytes_max=1_000))
    assert set(found.scanned.problems) == {Problem.TRAILER_TOO_LONG}
    assert found.scanned.cuts == scan(data, EXPLICIT_VR_LITTLE_ENDIAN).cuts


@pytest.mark.parametrize("wbits", [-15, 15])
@pytest.mark.parametrize("damage", [None, 0, 700, -3])
def test_deflated_streams(wbits: int, damage: int | None) -> None:
    plain = ct_slice(pixels=random.Random(3).randbytes(200_000))
    packer = zlib.compressobj(6, zlib.DEFLATED, wbits)
    packed = bytearray(packer.compress(plain) + packer.flush())
    if damage is not None:
        packed[damage] ^= 0x55
    for data in (bytes(packed), bytes(packed[:-50_000])):
        for cuts in ([], list(range(0, len(data), 333))):
            check_same(data, DEFLATED, passed(data, DEFLATED, cuts), ScanLimits())


def test_a_stream_that_inflates_for_ever_is_left_at_the_limit() -> None:
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    data = packer.compress(ct_slice() + bytes(3_000_000)) + packer.flush()
    limits = ScanLimits(inflated_bytes_max=1_000_000)
    found = passed(data, DEFLATED, list(range(0, len(data), 100)), IncrementalLimits(scan=limits))
    check_same(data, DEFLATED, found, limits)
    assert Problem.INFLATES_TOO_FAR in found.scanned.problems
