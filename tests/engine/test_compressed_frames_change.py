"""Native frames stored smaller: whatever reads them gets what was received, to the bit, whatever happens."""

from __future__ import annotations

import dataclasses
import secrets
from pathlib import Path

import pytest
import trio
from benchmarks.studies import Kind, studies
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, generate_uid

from hounsfield.archive.dicom.cuts import Layout
from hounsfield.archive.dicom.part10 import split
from hounsfield.archive.engine.compressing import Compressing
from hounsfield.archive.engine.engine import Engine, EngineOptions, open_engine
from hounsfield.archive.engine.errors import DamagedError
from hounsfield.archive.engine.ingest import IngestLimits
from hounsfield.archive.engine.receiving import scanned
from hounsfield.archive.engine.stores import Stores
from hounsfield.archive.engine.types import Outcome, StoreResult
from hounsfield.archive.index import smaller_frames
from hounsfield.archive.index.catalog import Stored
from hounsfield.archive.index.rows import RECORD_KIND_OBJECT, InstanceRow, Location
from hounsfield.archive.index.rows import encode as row_bytes
from hounsfield.codecs import at_rest
from hounsfield.codecs.at_rest import Encoding
from hounsfield.codecs.registry import lookup
from hounsfield.storage_backends.errors import BlobNotFoundError
from hounsfield.storage_backends.segment_appending import RecordIn
from support.archives import (
    TEST_SOURCE,
    SampleFile,
    ct_slice,
    encode,
    sample_files,
    store,
    stored_bytes,
    stores_in,
)
from support.front_doors import front_doors

ENCODINGS = ["zstd", "jpegxl", "htj2k"]


def options(encoding: str, **changes) -> EngineOptions:
    return dataclasses.replace(EngineOptions(), compression=encoding, **changes)


def row_of(stores: Stores, result: StoreResult) -> InstanceRow:
    with stores.store.snapshot() as snapshot:
        row = stores.catalog.instance(snapshot, result.study_uid, result.series_uid, result.sop_instance_uid)
    assert row is not None
    return row


def real_file(name: str) -> SampleFile:
    path = Path(str(get_testdata_file(name)))
    raw = path.read_bytes()
    return SampleFile(path, raw[split(raw).offset :], split(raw).transfer_syntax_uid)


def large_enough(data: Dataset) -> None:
    data.Rows = data.Columns = 64
    data.PixelData = bytes(range(256)) * 32


@pytest.mark.parametrize("encoding", ENCODINGS)
async def test_every_real_object_comes_back_as_it_was(tmp_path: Path, encoding: str) -> None:
    sent: list[tuple[StoreResult, bytes]] = []
    smaller = set()
    names = ["693_UNCR.dcm", "MR2_UNCR.dcm", "RG3_UNCR.dcm"] if encoding != "htj2k" else ["693_UNCR.dcm"]
    files = [*sample_files(), *(real_file(name) for name in names)]
    with stores_in(tmp_path / "data", options(encoding)) as stores:
        async with open_engine(stores, options(encoding), owner="test") as engine:
            for file in files:
                result = await store(engine, file.data, file.transfer_syntax_uid)
                if result.outcome is Outcome.STORED:
                    sent.append((result, file.data))
            for result, data in sent:
                assert await stored_bytes(engine, result) == data
                row = row_of(stores, result)
                (instance,) = await engine.instances(
                    result.study_uid, result.series_uid, result.sop_instance_uid
                )
                assert await engine.dataset_bytes(instance) == len(data)
                if row.stored_as:
                    smaller.add(row.transfer_syntax_uid)
                    assert not lookup(row.transfer_syntax_uid).encapsulated
                    await frames_are_slices_of(engine, row, result, data)
            figures = engine.compressing.figures
    assert len(sent) > 60
    assert {ExplicitVRLittleEndian, ExplicitVRBigEndian} <= smaller
    assert 0 < figures.bytes_stored < figures.bytes_received * 0.6


async def frames_are_slices_of(engine: Engine, row: InstanceRow, result: StoreResult, data: bytes) -> None:
    uids = result.study_uid, result.series_uid, result.sop_instance_uid
    (instance,) = await engine.instances(*uids)
    pixels = b"".join([bytes(one) for one in await engine.read(engine.records.bulk, instance.row)])
    assert pixels
    assert pixels in data
    if Layout(row.layout) is Layout.NATIVE:
        frames = [bytes((await engine.frame(*uids, n + 1)).data) for n in range(row.location.frames)]
        assert b"".join(frames) == pixels
        header = await engine.header(instance)
        assert bytes(header.head) + pixels + bytes(header.trailer) == data


@pytest.mark.parametrize("kind", [Kind.CT, Kind.US])
@pytest.mark.parametrize("encoding", ENCODINGS)
async def test_it_is_smaller_on_disk_and_found_again_after_a_reindex(
    tmp_path: Path, encoding: str, kind: Kind
) -> None:
    (instance,) = studies(kind, run=7, instances_per_series=1)
    data = bytes(instance.data)
    directory = tmp_path / "data"
    with stores_in(directory, options(encoding)) as stores:
        async with open_engine(stores, options(encoding), owner="test") as engine:
            result = await store(engine, data, instance.transfer_syntax_uid)
            row = row_of(stores, result)
            assert row.stored_as.startswith(encoding)
            (segment,) = stores.log.segment_ids()
            assert stores.log.size(segment) < len(data) * 0.6
            stores.log.verify(stores.indexer.objects.ref_of(row.location))
    for path in (directory / "index").iterdir():
        path.unlink()
    with stores_in(directory) as stores:  # and the option is off again
        report = stores.reindex(lambda done, all_: None)
        assert report.outcomes[Outcome.STORED] == 1
        async with open_engine(stores, EngineOptions(), owner="test") as engine:
            assert row_of(stores, result) == row
            assert await stored_bytes(engine, result) == data


@pytest.mark.parametrize("before", ["", *ENCODINGS])
@pytest.mark.parametrize("after", ["", "zstd", "jpegxl"])
async def test_the_same_object_is_a_duplicate_whatever_the_option_was(
    tmp_path: Path, before: str, after: str
) -> None:
    data = ct_slice(change=large_enough)
    other = ct_slice(change=large_enough)
    with stores_in(tmp_path / "data") as stores:
        async with open_engine(stores, options(before), owner="test") as engine:
            first = await store(engine, data, ExplicitVRLittleEndian)
            assert row_of(stores, first).stored_as.partition(":")[0] == before
        async with open_engine(stores, options(after), owner="test") as engine:
            again = await store(engine, data, ExplicitVRLittleEndian)
            assert (first.outcome, again.outcome) == (Outcome.STORED, Outcome.DUPLICATE)
            assert (await store(engine, other, ExplicitVRLittleEndian)).outcome is Outcome.STORED
            segments = stores.log.segment_ids()
            size = sum(stores.log.size(segment) for segment in segments)
            assert (await store(engine, data, ExplicitVRLittleEndian)).outcome is Outcome.DUPLICATE
            assert sum(stores.log.size(segment) for segment in segments) == size
            assert await stored_bytes(engine, first) == data


@pytest.mark.parametrize(("before", "after"), [("", "zstd"), ("zstd", ""), ("zstd", "jpegxl")])
async def test_an_odd_object_is_a_duplicate_too(tmp_path: Path, before: str, after: str) -> None:
    """One that is read leniently at best: its bytes are compared, not what they may mean."""
    data = ct_slice(change=large_enough)
    odd = data + data[: data.index(b"CS")] + b"CS\x02\0X "  # an element out of order
    with stores_in(tmp_path / "data") as stores:
        for encoding, expected in ((before, Outcome.STORED), (after, Outcome.DUPLICATE)):
            async with open_engine(stores, options(encoding), owner="test") as engine:
                result = await store(engine, odd, ExplicitVRLittleEndian)
                assert result.outcome is expected
                assert await stored_bytes(engine, result) == odd


async def test_a_record_that_is_moved_while_it_is_compared_is_looked_up_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = ct_slice(change=large_enough)
    gone: list[Exception] = [DamagedError("moved"), BlobNotFoundError("moved")]
    with stores_in(tmp_path / "data") as stores:
        async with open_engine(stores, EngineOptions(), owner="test") as engine:
            await store(engine, data, ExplicitVRLittleEndian)
        async with open_engine(stores, options("zstd"), owner="test") as engine:
            pieces = engine.records.pieces

            def vanishing(row: InstanceRow):
                if gone:
                    first, second = gone
                    gone.clear()
                    raise first from second
                return pieces(row)

            monkeypatch.setattr(engine.records, "pieces", vanishing)
            assert (await store(engine, data, ExplicitVRLittleEndian)).outcome is Outcome.DUPLICATE
            assert engine.comparing.compared == 2


async def test_two_who_send_one_object_at_once_with_different_options(tmp_path: Path) -> None:
    """Two workers whose configuration differs for a moment: one object, whoever is first."""
    data = ct_slice(change=large_enough)
    directory = tmp_path / "data"
    outcomes = []
    with stores_in(directory) as stores:
        async with (
            open_engine(stores, options("zstd"), owner="one") as one,
            open_engine(stores, options("jpegxl"), owner="two") as two,
        ):

            async def send(engine: Engine) -> None:
                outcomes.append((await store(engine, data, ExplicitVRLittleEndian)).outcome)

            async with trio.open_nursery() as nursery:
                for engine in (one, two) * 4:
                    nursery.start_soon(send, engine)
    assert sorted(outcome.value for outcome in outcomes) == ["duplicate"] * 7 + ["stored"]


async def test_records_that_a_crash_left_twice_are_one_object_however_stored(tmp_path: Path) -> None:
    """Indexing compares what was received, not what lies on the disk."""
    data, other = ct_slice(change=large_enough), ct_slice(change=large_enough)
    received = scanned(memoryview(data), str(ExplicitVRLittleEndian), "", "", TEST_SOURCE)
    forms = [Compressing(Encoding(name)).compress_blocking(received) for name in ENCODINGS] + [received]
    assert len({one.row.stored_as for one in forms}) == 4
    forms.append(scanned(memoryview(other), str(ExplicitVRLittleEndian), "", "", TEST_SOURCE))
    with stores_in(tmp_path / "data") as stores:
        refs = stores.log.append(
            [RecordIn(RECORD_KIND_OBJECT, (row_bytes(one.row), *one.slices)) for one in forms]
        )
        outcomes = [
            stores.indexer.add([Stored(one.row, Location.of(ref, None))])[0]
            for one, ref in zip(forms, refs, strict=True)
        ]
    assert outcomes == [Outcome.STORED, *[Outcome.DUPLICATE] * 3, Outcome.STORED]


async def test_other_content_is_a_conflict_and_both_come_back(tmp_path: Path) -> None:
    uids = {"study_uid": generate_uid(), "series_uid": generate_uid(), "sop_uid": generate_uid()}
    data = ct_slice(**uids, change=large_enough)

    def changed(dataset: Dataset) -> None:
        large_enough(dataset)
        dataset.PixelData = dataset.PixelData[:-1] + b"\x07"

    other = ct_slice(**uids, change=changed)
    with stores_in(tmp_path / "data") as stores:
        async with open_engine(stores, options("zstd"), owner="test") as engine:
            first = await store(engine, data, ExplicitVRLittleEndian)
            assert (await store(engine, other, ExplicitVRLittleEndian)).outcome is Outcome.CONFLICT
            assert await stored_bytes(engine, first) == data
            key = stores.catalog.instance_key(first.study_uid, first.series_uid, first.sop_instance_uid)
            with stores.store.snapshot() as snapshot:
                (version,) = stores.catalog.versions(snapshot, key)
            pieces = [bytes(one) for piece in engine.records.pieces(version) for one in piece]
            assert b"".join(pieces) == other


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ExplicitVRBigEndian])
@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("odd", [0, 1, 3])
async def test_padding_and_what_follows_the_pixels_come_back(
    tmp_path: Path, encoding: str, syntax: str, odd: int
) -> None:
    """Odd lengths, a padding byte that is not zero, too many bytes, elements behind the pixel data."""

    def change(data: Dataset) -> None:
        data.Rows, data.Columns, data.BitsAllocated, data.BitsStored, data.HighBit = 65, 65, 8, 8, 7
        data.PixelData = bytes((n * 7) % 256 for n in range(65 * 65)) + b"\x55" * odd
        data["PixelData"].VR = "OB"
        data.DataSetTrailingPadding = b"\1\2\3\4"
        changed.append(data)

    changed: list[Dataset] = []
    ct_slice(change=change)
    data = encode(changed[0], syntax)
    with stores_in(tmp_path / "data") as stores:
        async with open_engine(stores, options(encoding), owner="test") as engine:
            result = await store(engine, data, syntax)
            assert row_of(stores, result).stored_as
            assert await stored_bytes(engine, result) == data


async def test_what_does_not_shrink_or_is_small_is_stored_as_received(tmp_path: Path) -> None:
    def noise(data: Dataset) -> None:
        data.Rows = data.Columns = 64
        data.PixelData = secrets.token_bytes(8192)

    with stores_in(tmp_path / "data") as stores:
        async with open_engine(stores, options("zstd"), owner="test") as engine:
            for data in (ct_slice(change=noise), ct_slice()):
                result = await store(engine, data, ExplicitVRLittleEndian)
                assert row_of(stores, result).stored_as == ""
                assert await stored_bytes(engine, result) == data


async def test_without_memory_to_spare_objects_are_stored_as_received(tmp_path: Path) -> None:
    """Compressing holds both forms; a budget that is used up is not exceeded for it, nobody refused."""
    data = ct_slice(change=large_enough)
    tight = options("zstd", ingest=IngestLimits(bytes_in_flight_max=70_000))
    with stores_in(tmp_path / "data") as stores:
        async with open_engine(stores, tight, owner="test") as engine:
            result = await store(engine, data, ExplicitVRLittleEndian)
            assert row_of(stores, result).stored_as == ""
            assert engine.compressing.figures.as_received == 1
            assert engine.statistics().bytes_in_flight == 0


async def test_an_encoder_that_is_wrong_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(at_rest, "_to_zstd", lambda frame, flags, word, samples: b"nonsense")
    data = ct_slice(change=large_enough)
    with stores_in(tmp_path / "data") as stores:
        async with open_engine(stores, options("zstd"), owner="test") as engine:
            result = await store(engine, data, ExplicitVRLittleEndian)
            assert row_of(stores, result).stored_as == ""
            assert await stored_bytes(engine, result) == data


async def test_a_coder_that_raises_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object, **more: object) -> bytes:
        raise MemoryError

    monkeypatch.setattr(smaller_frames, "compressed", broken)
    data = ct_slice(change=large_enough)
    with stores_in(tmp_path / "data") as stores:
        async with open_engine(stores, options("jpegxl"), owner="test") as engine:
            result = await store(engine, data, ExplicitVRLittleEndian)
            assert row_of(stores, result).stored_as == ""
            assert await stored_bytes(engine, result) == data


async def test_a_frame_that_does_not_decode_any_more_is_damage_and_said_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = ct_slice(change=large_enough)
    with stores_in(tmp_path / "data") as stores:
        async with open_engine(stores, options("jpegxl"), owner="test") as engine:
            result = await store(engine, data, ExplicitVRLittleEndian)

            def broken(*arguments: object) -> None:
                raise at_rest.CorruptFrameError("not a frame")

            monkeypatch.setattr(at_rest, "decode_jpeg_xl", broken)
            with pytest.raises(DamagedError):
                await stored_bytes(engine, result)


async def test_expensive_decoding_is_not_done_on_the_event_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = ct_slice(change=large_enough)
    with stores_in(tmp_path / "data") as stores:
        for encoding, at_once in (("zstd", True), ("jpegxl", False)):
            async with open_engine(stores, options(encoding), owner="test") as engine:
                fresh = ct_slice(change=large_enough)
                result = await store(engine, fresh, ExplicitVRLittleEndian)
                uids = result.study_uid, result.series_uid, result.sop_instance_uid
                await engine.frame(*uids, 1)  # now its bytes are in memory, if they ever are
                found = engine.frame_nowait(engine.named(*uids), 1)
                assert found is None or at_once
                assert bytes((await engine.frame(*uids, 1)).data) in fresh
    assert data


def test_the_shape_is_read_from_the_attributes() -> None:
    assert smaller_frames.pixel_format({0x00280010: "4", 0x00280011: "5"}) is None
    found = smaller_frames.pixel_format({
        0x00280010: "4", 0x00280011: "5", 0x00280100: "16", 0x00280101: "12", 0x00280103: "1",
    })  # fmt: skip
    assert found is not None
    assert (found.shape, found.bits_stored, found.signed, found.planar) == ((4, 5, 1), 12, True, False)
    assert not smaller_frames.little_endian_cells("1.2.840.113619.5.2")


async def test_over_http_nobody_can_tell(tmp_path: Path) -> None:
    """Every answer that has pixels in it is, byte for byte, that of an archive which compresses nothing."""
    names = ["CT_small.dcm", "US1_UNCR.dcm", "examples_rgb_color.dcm", "rtdose.dcm", "MR_small_bigendian.dcm"]
    files = [Path(str(get_testdata_file(name))).read_bytes() for name in names]
    answers: dict[str, list[tuple[int, bytes, str]]] = {}
    for encoding in ("", *ENCODINGS):
        found = answers.setdefault(encoding, [])
        async with (
            front_doors(tmp_path / f"data-{encoding}", options(encoding)) as doors,
            doors.client() as client,
        ):
            stored = (await doors.stow(client, *files)).json()["00081199"]["Value"]
            assert len(stored) == len(files)
            assert (doors.engine.compressing.figures.objects >= 4) is bool(encoding)
            for item in stored:
                url = item["00081190"]["Value"][0]
                for path, accept in [
                    ("", 'multipart/related; type="application/dicom"; transfer-syntax=*'),
                    ("/frames/1", 'multipart/related; type="application/octet-stream"; transfer-syntax=*'),
                    ("/bulkdata/7FE00010", "*/*"),
                    ("/metadata", "application/dicom+json"),
                ]:
                    answer = await client.get(url + path, headers={"accept": accept})
                    kind = answer.headers.get("content-type", "")
                    boundary = kind.partition("boundary=")[2].split(";")[0].strip('"').encode()
                    content = answer.content.replace(boundary, b"BOUNDARY") if boundary else answer.content
                    # With the address: the digits of a port alone stand in many a UID.
                    content = content.replace(f"127.0.0.1:{doors.http_port}".encode(), b"ADDRESS")
                    found.append((answer.status_code, content, path))
    for encoding in ENCODINGS:
        for mine, plain in zip(answers[encoding], answers[""], strict=True):
            same = mine == plain  # apart: to describe how a megabyte differs takes minutes
            assert same, (encoding, mine[2], mine[0], plain[0], len(mine[1]), len(plain[1]))
    assert {status for status, _, path in answers[""] if path in {"", "/frames/1", "/metadata"}} == {200}
