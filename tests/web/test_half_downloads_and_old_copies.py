"""Byte ranges and conditions: pieces that make another whole, copies that are taken for what is there now."""

from __future__ import annotations

import gzip
import random
import struct
from itertools import pairwise

import httpx
import pytest
import structlog
import trio
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import MPEG2MPML, ExplicitVRBigEndian, ExplicitVRLittleEndian, JPEGLSLossless

from hounsfield.archive.dicom.part10 import Part10Error
from hounsfield.archive.engine.corrections import Request
from hounsfield.archive.engine.engine import EngineOptions
from hounsfield.archive.engine.errors import DamagedError
from hounsfield.archive.engine.ingest import IngestLimits
from hounsfield.archive.engine.large_storing import LargeLimits
from hounsfield.archive.index.deletion import Target
from hounsfield.archive.web.conditional import RANGES_MAX, Validators, byte_ranges, is_unchanged
from hounsfield.archive.web.problems import WebError
from support.answers import parts_of
from support.archives import ct_slice, store
from support.front_doors import front_doors

EXPLICIT = "1.2.840.10008.1.2.1"
FILES = 'multipart/related; type="application/dicom"; transfer-syntax=*'
OCTETS = {"accept": "application/octet-stream; transfer-syntax=*"}
FILE = {"accept": "application/dicom; transfer-syntax=*"}
STRONG = Validators('"abc"', changed_ns=1_700_000_000 * 10**9)
DATE = b"Tue, 14 Nov 2023 22:13:20 GMT"


def byte_range(scope: dict, validators: Validators, length: int) -> tuple[int, int] | None:
    """The only range, None when the whole is to be sent."""
    found = byte_ranges(scope, validators, length)
    assert len(found) < 2
    return found[0] if found else None


def asking(**headers: str | bytes) -> dict:
    pairs = [
        (name.replace("_", "-").encode(), value if isinstance(value, bytes) else value.encode())
        for name, value in headers.items()
    ]
    return {"method": "GET", "headers": pairs}


@given(st.integers(0, 40), st.integers(0, 45), st.integers(0, 45) | st.none())
def test_a_range_is_the_bytes_that_it_names(length, first, last):
    text = f"bytes={first}-{'' if last is None else last}"
    whole = bytes(range(length))
    stop = length if last is None else last + 1
    try:
        found = byte_range(asking(range=text), STRONG, length)
    except WebError as error:
        assert error.status == 416
        assert not whole[first:stop]
        assert error.headers == ((b"content-range", b"bytes */%d" % length),)
        return
    if last is not None and last < first:
        assert found is None  # RFC 9110 14.1.1: not a range at all
    else:
        assert found is not None
        assert whole[slice(*found)] == whole[first:stop]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("bytes=-4", (6, 10)),
        ("bytes=-40", (0, 10)),
        ("bytes = 1-2", (1, 3)),
        ("bytes=0-0,4-5x", None),
        ("bytes=0-0,5-4", None),
        ("bytes=,", None),
        ("bytes=4-5,20-", (4, 6)),
        ("bytes=0-3,2-5", (0, 6)),
        ("bytes=5-,0-4", (0, 10)),
        ("lines=0-1", None),
        ("bytes=", None),
        ("bytes=-", None),
        ("bytes=1", None),
        ("bytes=1-2x", None),
        ("bytes=" + "9" * 40 + "-", None),
    ],
)
def test_suffixes_and_what_is_no_range(text, found):
    assert byte_range(asking(range=text), STRONG, 10) == found


@given(
    st.integers(1, 40),
    st.lists(st.tuples(st.integers(0, 45), st.integers(0, 20)), min_size=1, max_size=RANGES_MAX),
)
def test_several_ranges_are_the_bytes_that_they_name_and_none_twice(length, asked):
    text = "bytes=" + ",".join(f"{first}-{first + more}" for first, more in asked)
    named = {at for first, more in asked for at in range(first, first + more + 1)} & set(range(length))
    try:
        found = byte_ranges(asking(range=text), STRONG, length)
    except WebError as error:
        assert (error.status, named) == (416, set())
        return
    given = [at for start, stop in found for at in range(start, stop)]
    assert sorted(given) == sorted(named)


def test_too_many_ranges_are_the_whole_and_the_order_is_kept():
    few = [(at * 10, at * 10 + 5) for at in reversed(range(RANGES_MAX))]
    text = ",".join(f"{start}-{stop - 1}" for start, stop in few)
    assert byte_ranges(asking(range=f"bytes={text}"), STRONG, 10_000) == few
    assert byte_ranges(asking(range=f"bytes={text},9000-"), STRONG, 10_000) == []


async def test_several_ranges_come_in_parts(archive):
    pixels = bytes(range(256)) * 2
    stored = await store(archive.engine, ct_slice(pixels=pixels), EXPLICIT)
    url = (
        f"/dicom-web/studies/{stored.study_uid}/series/{stored.series_uid}"
        f"/instances/{stored.sop_instance_uid}"
    )
    async with archive.client() as client:
        for path, headers in ((url, FILE), (f"{url}/frames/1", OCTETS), (f"{url}/bulkdata/7FE00010", OCTETS)):
            whole = await client.get(path, headers=headers)
            length = len(whole.content)
            answer = await client.get(path, headers=headers | {"range": "bytes=200-299,0-0,-3"})
            assert answer.status_code == 206
            assert answer.headers["content-type"].startswith("multipart/byteranges; boundary=")
            assert answer.headers["etag"] == whole.headers["etag"]
            assert "content-range" not in answer.headers
            wanted = [(200, 300), (0, 1), (length - 3, length)]
            for (fields, content), (start, stop) in zip(parts_of(answer), wanted, strict=True):
                assert fields["content-range"] == f"bytes {start}-{stop - 1}/{length}"
                assert fields["Content-Type"] == whole.headers["content-type"]
                assert content == whole.content[start:stop]
            joined = await client.get(path, headers=headers | {"range": "bytes=10-19,15-29"})
            assert joined.headers["content-range"] == f"bytes 10-29/{length}"
            assert joined.content == whole.content[10:30]
            none = await client.get(path, headers=headers | {"range": f"bytes={length}-,{length + 5}-"})
            assert none.status_code == 416


def test_none_of_an_empty_resource():
    with pytest.raises(WebError):
        byte_range(asking(range="bytes=-0"), STRONG, 10)
    with pytest.raises(WebError):
        byte_range(asking(range="bytes=0-"), STRONG, 0)


@pytest.mark.parametrize(
    ("headers", "answer"),
    [
        ({"if_none_match": '"abc"'}, True),
        ({"if_none_match": 'W/"abc"'}, True),
        ({"if_none_match": '"x", W/"y,\'", "abc"'}, True),
        ({"if_none_match": "*"}, True),
        ({"if_none_match": '"x"', "if_modified_since": DATE}, False),
        ({"if_modified_since": DATE}, True),
        ({"if_modified_since": b"Tue, 14 Nov 2034 22:13:20 GMT"}, False),
        ({"if_match": '"abc"'}, False),
        ({"if_match": "*"}, False),
        ({"if_match": 'W/"abc"'}, 412),
        ({"if_match": '"x"'}, 412),
        ({"if_match": "abc"}, 400),
        ({"if_unmodified_since": DATE}, False),
        ({"if_unmodified_since": b"Tue, 14 Nov 2023 22:13:19 GMT"}, 412),
        ({"if_unmodified_since": b"yesterday"}, False),
        ({}, False),
    ],
)
def test_conditions_in_their_order(headers, answer):
    if isinstance(answer, bool):
        assert is_unchanged(asking(**headers), STRONG) is answer
    else:
        with pytest.raises(WebError) as error:
            is_unchanged(asking(**headers), STRONG)
        assert error.value.status == answer


def test_what_has_no_date_is_not_as_old_as_none():
    assert not is_unchanged(asking(if_modified_since=""), Validators('"abc"'))


async def test_metadata_of_another_state_is_not_given(archive):
    """RFC 9110 13.1.1: a weak tag is not enough for If-Match, and what is not there stays a 404."""
    result = await store(archive.engine, ct_slice(), EXPLICIT)
    study = f"/dicom-web/studies/{result.study_uid}"
    series = f"{study}/series/{result.series_uid}"
    async with archive.client() as client:
        for path in (study, series, f"{series}/instances/{result.sop_instance_uid}"):
            url = f"{path}/metadata"
            await client.get(url)
            tag = (await client.get(url)).headers["etag"]
            for sent, status in (
                ({"if-match": '"other"'}, 412),
                ({"if-match": f'"x", {tag}'}, 412),
                ({"if-match": tag, "if-none-match": tag}, 412),
                ({"if-match": "no tag"}, 400),
                ({"if-match": "*"}, 200),
                ({"if-match": "*", "if-none-match": tag}, 304),
                ({"if-match": '"other"', "accept": "application/dicom+xml; q=0.1, */*"}, 412),
                ({"if-none-match": tag, "if-modified-since": DATE.decode()}, 304),
                ({"if-modified-since": ""}, 200),
            ):
                answer = await client.get(url, headers=sent)
                assert answer.status_code == status, (url, sent)
            xml = {"accept": 'multipart/related; type="application/dicom+xml"'}
            assert (await client.get(url, headers=xml | {"if-match": '"other"'})).status_code == 412
            assert (await client.get(url, headers=xml | {"if-match": "*"})).status_code == 200
        gone = await client.get(f"{study}.9/metadata", headers={"if-match": '"other"'})
        assert gone.status_code == 404


def test_a_weak_tag_allows_no_putting_together():
    weak = Validators('W/"abc"')
    assert byte_range(asking(range="bytes=1-2", if_range='W/"abc"'), weak, 10) is None
    assert byte_range(asking(range="bytes=1-2", if_range='"abc"'), STRONG, 10) == (1, 3)
    assert byte_range(asking(range="bytes=1-2", if_range='"old"'), STRONG, 10) is None
    assert byte_range(asking(range="bytes=1-2", if_range=DATE), STRONG, 10) == (1, 3)
    assert (
        byte_range(asking(range="bytes=1-2", if_range=b"Tue, 14 Nov 2023 22:13:21 GMT"), STRONG, 10) is None
    )


async def put_together(client: httpx.AsyncClient, url: str, headers: dict[str, str], name: str) -> bytes:
    """The resource in ranges of uneven lengths, as a download that broke several times."""
    whole = await client.get(url, headers=headers)
    assert whole.status_code == 200, name
    assert whole.headers["accept-ranges"] == "bytes"
    length = len(whole.content)
    assert int(whole.headers["content-length"]) == length, name
    cuts = sorted({0, 1, 127, 128, 132, 133, length // 3, length - 1, length} & set(range(length + 1)))
    found = b""
    for start, stop in pairwise(cuts):
        asked = {"range": f"bytes={start}-{stop - 1}", "if-range": whole.headers["etag"]}
        part = await client.get(url, headers=headers | asked)
        assert part.status_code == 206, name
        assert part.headers["content-range"] == f"bytes {start}-{stop - 1}/{length}"
        assert part.headers["etag"] == whole.headers["etag"]
        assert len(part.content) == stop - start
        found += part.content
    assert found == whole.content, name
    assert (await client.get(url, headers=headers | {"range": f"bytes={length}-"})).status_code == 416
    same = await client.get(url, headers=headers | {"if-none-match": whole.headers["etag"]})
    assert (same.status_code, same.content) == (304, b"")
    return whole.content


async def test_every_object_in_ranges(archive, sample):
    """The file, the first frame and the pixel data of all that pydicom carries."""
    pixels = frames = 0
    async with archive.client() as client:
        for name, raw in sample.items():
            try:
                result = await archive.put(raw)
            except Part10Error:
                continue
            if result.outcome.value != "stored":
                continue
            url = (
                f"/dicom-web/studies/{result.study_uid}/series/{result.series_uid}"
                f"/instances/{result.sop_instance_uid}"
            )
            file = await put_together(client, url, FILE, name)
            assert file[128:132] == b"DICM"
            if (await client.get(f"{url}/frames/1", headers=OCTETS)).status_code == 200:
                await put_together(client, f"{url}/frames/1", OCTETS, name)
                frames += 1
            if (await client.get(f"{url}/pixeldata", headers=OCTETS)).status_code == 200:
                one = await put_together(client, f"{url}/pixeldata", OCTETS, name)
                several = await client.get(f"{url}/pixeldata")
                assert b"".join(content for _, content in parts_of(several)) == one, name
                pixels += 1
    assert pixels >= 25
    assert frames >= 25


async def test_of_a_corrected_object_the_corrected_bytes(archive):
    result = await store(archive.engine, ct_slice(), EXPLICIT)
    url = f"/dicom-web/studies/{result.study_uid}/series/{result.series_uid}"
    url += f"/instances/{result.sop_instance_uid}"
    async with archive.client() as client:
        before = await client.get(url, headers=FILE)
        assert before.headers["last-modified"]
        frame = await client.get(f"{url}/frames/1", headers=OCTETS)
        await archive.engine.correcting.make(
            Request(
                kind="set-study",
                actor="tester",
                reason="wrong",
                study=result.study_uid,
                values={0x00100010: "Other^Name"},
            )
        )
        file = await put_together(client, url, FILE, "corrected")
        assert b"Other^Name" in file
        after = await client.get(url, headers=FILE | {"if-none-match": before.headers["etag"]})
        assert after.status_code == 200
        assert "last-modified" not in after.headers
        resumed = await client.get(
            url, headers=FILE | {"range": "bytes=9-", "if-range": before.headers["etag"]}
        )
        assert resumed.status_code == 200
        # The pixels are what they were, and so is what a viewer keeps of them.
        assert (
            await client.get(f"{url}/frames/1", headers=OCTETS | {"if-none-match": frame.headers["etag"]})
        ).status_code == 304


async def test_what_was_replaced_is_not_served_from_a_copy(archive):
    uids = {"study_uid": "1.2.3", "series_uid": "1.2.3.4", "sop_uid": "1.2.3.4.5"}
    result = await store(archive.engine, ct_slice(pixels=bytes(512), **uids), EXPLICIT)
    url = "/dicom-web/studies/1.2.3/series/1.2.3.4/instances/1.2.3.4.5"
    paths = (url, f"{url}/frames/1", f"{url}/pixeldata", url.rsplit("/instances", 1)[0])
    async with archive.client() as client:
        old = {path: (await client.get(path)).headers["etag"] for path in paths}
        for path, tag in old.items():
            assert (await client.get(path, headers={"if-none-match": tag})).status_code == 304
        await archive.engine.delete(Target(result.study_uid), actor="tester", reason="wrong")
        await store(archive.engine, ct_slice(pixels=b"\1" * 512, **uids), EXPLICIT)
        for path, tag in old.items():
            answer = await client.get(path, headers={"if-none-match": tag})
            assert answer.status_code == 200, path
            assert answer.headers["etag"] != tag


@pytest.mark.parametrize("vr", ["US", "FL", "FD"])
async def test_long_numbers_of_a_big_endian_object_come_out_little_endian(archive, vr):
    """Octets are little endian, whatever the object is (PS3.18 8.7.3.3.2)."""
    tag, code = {"US": (0x00720078, "H"), "FL": (0x00720076, "f"), "FD": (0x00720074, "d")}[vr]
    raw = ct_slice(change=lambda data: data.add_new(tag, vr, list(range(600))), syntax=ExplicitVRBigEndian)
    result = await store(archive.engine, raw, ExplicitVRBigEndian)
    async with archive.client() as client:
        url = (
            f"/dicom-web/studies/{result.study_uid}/series/{result.series_uid}"
            f"/instances/{result.sop_instance_uid}"
        )
        answer = await client.get(f"{url}/bulkdata/{tag:08X}", headers=OCTETS)
        assert answer.content == struct.pack(f"<600{code}", *range(600))


@pytest.mark.parametrize("kind", ["native", "big endian", "video", "frames"])
async def test_pixel_data_of_large_objects_is_streamed(tmp_path, kind):
    """Stored in pieces of 4 KiB: what comes in ranges is what it is as a whole."""
    pixels = random.Random(3).randbytes(512 * 100)
    frames = [pixels[n : n + 512] for n in range(0, len(pixels), 512)]
    limits = IngestLimits(stream_bytes_min=1000, large=LargeLimits(piece_bytes=4096))
    syntax, content = {
        "native": (ExplicitVRLittleEndian, pixels),
        "big endian": (
            ExplicitVRBigEndian,
            b"".join(pixels[n : n + 2][::-1] for n in range(0, len(pixels), 2)),
        ),
        "video": (MPEG2MPML, encapsulate([pixels[:20_002], pixels[20_002:]])),
        "frames": (JPEGLSLossless, encapsulate(frames)),
    }[kind]

    def change(data: Dataset) -> None:
        data.NumberOfFrames = 100
        data.PixelData = content
        data["PixelData"].VR = "OB" if kind in ("video", "frames") else "OW"
        data["PixelData"].is_undefined_length = kind in ("video", "frames")

    raw = ct_slice(change=change, syntax=syntax)
    async with (
        front_doors(tmp_path / "data", EngineOptions(ingest=limits)) as doors,
        doors.client() as client,
    ):
        result = await store(doors.engine, raw, syntax)
        (one,) = await doors.engine.instances(result.study_uid, result.series_uid, result.sop_instance_uid)
        assert one.row.location.stream is not None
        url = (
            f"/dicom-web/studies/{result.study_uid}/series/{result.series_uid}"
            f"/instances/{result.sop_instance_uid}"
        )
        if kind == "frames":
            parts = parts_of(await client.get(f"{url}/pixeldata"))
            assert [content for _, content in parts] == frames
            assert (await client.get(f"{url}/pixeldata", headers=OCTETS)).status_code == 406
            return
        assert await put_together(client, f"{url}/bulkdata/7FE00010", OCTETS, kind) == pixels
        ((fields, whole),) = parts_of(await client.get(f"{url}/pixeldata"))
        assert whole == pixels
        assert fields["Content-Location"].endswith(f"{url}/bulkdata/7FE00010")


@pytest.mark.parametrize(
    ("asked", "given"),
    [("zstd", "zstd"), ("br, zstd;q=0.5, identity;q=0.1", "zstd"), ("zstd, gzip", "gzip"), ("br", "")],
)
async def test_metadata_in_the_coding_that_is_taken(archive, asked, given):
    result = await store(archive.engine, ct_slice(), EXPLICIT)
    url = f"/dicom-web/studies/{result.study_uid}/metadata"
    async with archive.client() as client:
        plain = (await client.get(url, headers={"accept-encoding": "identity"})).content
        async with client.stream("GET", url, headers={"accept-encoding": asked}) as answer:
            assert answer.headers.get("content-encoding", "") == given
            raw = b"".join([piece async for piece in answer.aiter_raw()])
    if given == "zstd":
        raw = zstandard.ZstdDecompressor().decompressobj().decompress(raw)
    elif given == "gzip":
        raw = gzip.decompress(raw)
    assert raw == plain


@pytest.mark.parametrize(
    ("path", "accept"),
    [
        ("", "application/dicom"),
        ("", "application/zip"),
        ("", "application/dicom; transfer-syntax=1.2.840.10008.1.2.5"),
        ("", "multipart/related; type=application/dicom; transfer-syntax=1.2.840.10008.1.2.5"),
        ("/pixeldata", "application/octet-stream"),
        ("/pixeldata", "multipart/related; type=image/dicom-rle"),
        (f"/frames/{','.join(map(str, range(1, 65)))}", "multipart/related; type=application/octet-stream"),
    ],
)
async def test_a_client_that_leaves_in_the_middle_disturbs_nobody(archive, path, accept):
    def change(data: Dataset) -> None:
        data.Rows = data.Columns = 256
        data.NumberOfFrames = 64
        data.PixelData = bytes(256 * 256 * 2 * 64)

    result = await store(archive.engine, ct_slice(change=change), EXPLICIT)
    url = f"/dicom-web/studies/{result.study_uid}/series/{result.series_uid}"
    url += f"/instances/{result.sop_instance_uid}{path}"
    request = f"GET {url} HTTP/1.1\r\nHost: x\r\nAccept: {accept}\r\n\r\n"
    for _ in range(2):
        async with await trio.open_tcp_stream("127.0.0.1", archive.port) as stream:
            await stream.send_all(request.encode())
            assert (await stream.receive_some(1000)).startswith(b"HTTP/1.1 200")
    async with archive.client() as client:
        answer = await client.get(url, headers={"accept": accept})
        assert answer.status_code == 200
        assert len(answer.content) > 1000


async def test_short_objects_share_a_read_and_long_ones_do_not_pile_up(archive, monkeypatch):
    stored = [
        await store(archive.engine, ct_slice(study_uid="2.25.1", series_uid="2.25.2", number=at), EXPLICIT)
        for at in range(12)
    ]
    assert len({one.sop_instance_uid for one in stored}) == 12
    found = await archive.engine.instances("2.25.1", "2.25.2")
    alone = [b"".join([bytes(part) async for part in archive.engine.dataset(one)]) for one in found]
    whole = b"".join(one.row.sop_uid.encode() + data for one, data in zip(found, alone, strict=True))

    async def lists() -> list[bytes]:
        given = archive.engine.datasets(found, lambda one: one.row.sop_uid.encode())
        return [b"".join(map(bytes, one)) async for one in given]

    # One list, or a few where the machine took pages back in between: what is in memory does not wait then.
    shared = await lists()
    assert b"".join(shared) == whole
    assert len(shared) < 12
    monkeypatch.setattr("hounsfield.archive.engine.retrieve.SHARED_BYTES", 3 * len(alone[0]))
    several = await lists()
    assert b"".join(several) == whole
    assert 4 <= len(several) < 12
    assert max(map(len, several)) <= 3 * (len(alone[0]) + 64)


async def test_the_log_says_why_an_answer_breaks_off(archive, monkeypatch):
    """Not that a second answer could not be begun."""
    for at in range(2):
        await store(archive.engine, ct_slice(study_uid="2.25.1", series_uid="2.25.2", number=at), EXPLICIT)

    async def damaged(found, before):
        yield [before(found[0])]
        raise DamagedError("a record does not open")

    monkeypatch.setattr(archive.engine, "datasets", damaged)
    with structlog.testing.capture_logs() as logs:
        async with archive.client() as client:
            with pytest.raises((httpx.RemoteProtocolError, httpx.ReadError)):
                await client.get("/dicom-web/studies/2.25.1/series/2.25.2", headers={"Accept": FILES})
    (line,) = [line for line in logs if line["log_level"] == "error"]
    assert line["error"] == "DamagedError"
    assert line["response_started"] is True
