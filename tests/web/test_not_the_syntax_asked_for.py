"""What Accept asks for is what comes, bit for bit where nothing may be lost; 406 says what could be had."""

from __future__ import annotations

import io
import zipfile
import zlib

import numpy as np
import pydicom
import pytest
from pydicom.fileset import FileSet

from support.answers import parts_of
from support.archives import ct_slice, store

EXPLICIT, IMPLICIT = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2"
JLS, J2K, HTJ2K, RLE, LOSSLESS, BASELINE = (
    f"1.2.840.10008.1.2.{tail}" for tail in ("4.80", "4.90", "4.201", "5", "4.70", "4.50")
)
OCTETS = "application/octet-stream"
COMPRESSED = [
    "JPEG2000.dcm", "MR_small_RLE.dcm", "SC_rgb_rle_2frame.dcm", "MR_small_jpeg_ls_lossless.dcm",
    "SC_rgb_jpeg_gdcm.dcm", "SC_rgb_rle_32bit_2frame.dcm",
]  # fmt: skip


async def url_of(archive, raw: bytes) -> str:
    result = await archive.put(raw)
    return (
        f"/dicom-web/studies/{result.study_uid}/series/{result.series_uid}"
        f"/instances/{result.sop_instance_uid}"
    )


@pytest.mark.parametrize("name", COMPRESSED)
async def test_compressed_frames_as_plain_cells(archive, sample, name):
    """octet-stream without a transfer syntax is uncompressed (PS3.18 8.7.3.3): alone, in parts, as bulk."""
    url = await url_of(archive, sample[name])
    expected = pydicom.dcmread(io.BytesIO(sample[name]))
    async with archive.client() as client:
        whole = b""
        for number in range(1, int(expected.get("NumberOfFrames", 1)) + 1):
            answer = await client.get(f"{url}/frames/{number}", headers={"accept": OCTETS})
            assert answer.status_code == 200, answer.text
            assert answer.headers["content-type"] == f"{OCTETS}; transfer-syntax={EXPLICIT}"
            ((fields, content),) = parts_of(
                await client.get(
                    f"{url}/frames/{number}", headers={"accept": f'multipart/related; type="{OCTETS}"'}
                )
            )
            assert fields["Content-Type"] == f"{OCTETS}; transfer-syntax={EXPLICIT}"
            assert content == answer.content
            whole += content
        bulk = await client.get(f"{url}/pixeldata", headers={"accept": OCTETS})
        assert bulk.content == whole
        middle = len(whole) // 2 - 5
        part = await client.get(
            f"{url}/bulkdata/7FE00010", headers={"accept": OCTETS, "range": f"bytes={middle}-{middle + 99}"}
        )
        assert (part.status_code, part.content) == (206, whole[middle : middle + 100])
        file = await client.get(url, headers={"accept": f"application/dicom; transfer-syntax={EXPLICIT}"})
        assert file.headers["content-type"] == f"application/dicom; transfer-syntax={EXPLICIT}"
        got = pydicom.dcmread(io.BytesIO(file.content))
        assert got.file_meta.TransferSyntaxUID == EXPLICIT
        assert got.PixelData[: len(whole)] == whole


@pytest.mark.parametrize(("rows", "columns"), [(16, 16), (7, 9), (1, 3), (5, 8)])
async def test_cells_of_one_bit_leave_packed(archive, rows, columns):
    """PS3.5 8.1.1: eight to a byte, the first the lowest bit; frames behind each other without alignment."""
    frames, bits = 5, rows * columns
    cells = np.random.default_rng(bits).integers(0, 2, (frames, rows, columns), np.uint8)

    def deflated(frame: np.ndarray) -> bytes:
        packer = zlib.compressobj(wbits=-15)
        return packer.compress(np.packbits(frame, bitorder="little").tobytes()) + packer.flush()

    def one_bit(data: pydicom.Dataset) -> None:
        data.Rows, data.Columns, data.NumberOfFrames = rows, columns, frames
        data.BitsAllocated = data.BitsStored = 1
        data.HighBit = 0
        data.PixelData = pydicom.encaps.encapsulate([deflated(frame) for frame in cells])
        data["PixelData"].VR = "OB"
        data["PixelData"].is_undefined_length = True

    # pydicom does not know Deflated Image Frame Compression; its data sets are explicit VR as those of RLE.
    result = await store(archive.engine, ct_slice(change=one_bit, syntax=RLE), f"{IMPLICIT}.8.1")
    url = (
        f"/dicom-web/studies/{result.study_uid}/series/{result.series_uid}"
        f"/instances/{result.sop_instance_uid}"
    )
    whole = np.packbits(cells, bitorder="little").tobytes()
    parts = f'multipart/related; type="{OCTETS}"'
    async with archive.client() as client:
        for number, frame in enumerate(cells, start=1):
            answer = await client.get(f"{url}/frames/{number}", headers={"accept": OCTETS})
            assert answer.content == np.packbits(frame, bitorder="little").tobytes()
        several = parts_of(await client.get(f"{url}/frames/2,5", headers={"accept": parts}))
        assert [content for _, content in several] == [
            np.packbits(cells[number], bitorder="little").tobytes() for number in (1, 4)
        ]
        bulk = await client.get(f"{url}/bulkdata/7FE00010", headers={"accept": OCTETS})
        assert bulk.content == whole
        ((_, content),) = parts_of(await client.get(f"{url}/pixeldata", headers={"accept": parts}))
        assert content == whole
        length = len(whole)
        for start, stop in {(0, 1), (length // 3, length // 2 + 1), (length - 1, length), (0, length)}:
            part = await client.get(
                f"{url}/pixeldata", headers={"accept": OCTETS, "range": f"bytes={start}-{stop - 1}"}
            )
            assert (part.status_code, part.content) == (206, whole[start:stop])
        for syntax in (EXPLICIT, IMPLICIT, f"{EXPLICIT}.99"):
            file = await client.get(url, headers={"accept": f"application/dicom; transfer-syntax={syntax}"})
            got = pydicom.dcmread(io.BytesIO(file.content))
            assert (got.file_meta.TransferSyntaxUID, got.BitsAllocated) == (syntax, 1)
            assert got.PixelData == whole + bytes(length % 2)
            np.testing.assert_array_equal(got.pixel_array, cells)
        for syntax in (RLE, JLS):
            answer = await client.get(url, headers={"accept": f"application/dicom; transfer-syntax={syntax}"})
            assert answer.status_code == 406
            assert "one bit" in answer.json()["detail"]


async def test_packed_frames_are_those_of_the_native_object(archive):
    """The same cells, native: the same answers."""
    cells = np.random.default_rng(3).integers(0, 2, (3, 7, 9), np.uint8)

    def one_bit(data: pydicom.Dataset) -> None:
        data.Rows, data.Columns, data.NumberOfFrames = 7, 9, 3
        data.BitsAllocated = data.BitsStored = 1
        data.HighBit = 0
        data.PixelData = np.packbits(cells, bitorder="little").tobytes()

    result = await store(archive.engine, ct_slice(change=one_bit), EXPLICIT)
    url = (
        f"/dicom-web/studies/{result.study_uid}/series/{result.series_uid}"
        f"/instances/{result.sop_instance_uid}"
    )
    async with archive.client() as client:
        for number, frame in enumerate(cells, start=1):
            answer = await client.get(f"{url}/frames/{number}", headers={"accept": OCTETS})
            assert answer.content == np.packbits(frame, bitorder="little").tobytes()


@pytest.mark.parametrize(
    ("accept", "syntax", "media_type"),
    [
        ("image/jls", JLS, "image/jls"),
        ("image/jp2", J2K, "image/jp2"),
        ("image/jphc", HTJ2K, "image/jphc"),
        ("image/jhc", HTJ2K, "image/jphc"),
        ("image/dicom-rle", RLE, "image/dicom-rle"),
        ("image/jpeg", LOSSLESS, "image/jpeg"),
        (f"image/jpeg; transfer-syntax={LOSSLESS}", LOSSLESS, "image/jpeg"),
        (f"image/png, image/jls; q=0.5, {OCTETS}; q=0.1", JLS, "image/jls"),
        (f'{OCTETS}; transfer-syntax="{JLS}"', JLS, "image/jls"),
    ],
)
async def test_plain_frames_in_every_syntax_asked_for(archive, accept, syntax, media_type):
    pixels = np.arange(256, dtype="<u2").tobytes()
    result = await store(archive.engine, ct_slice(pixels=pixels), EXPLICIT)
    url = (
        f"/dicom-web/studies/{result.study_uid}/series/{result.series_uid}"
        f"/instances/{result.sop_instance_uid}"
    )
    async with archive.client() as client:
        answer = await client.get(f"{url}/frames/1", headers={"accept": accept})
        assert answer.status_code == 200, answer.text
        assert answer.headers["content-type"] == f"{media_type}; transfer-syntax={syntax}"
        assert answer.headers["etag"].startswith("W/")
        same = await client.get(
            f"{url}/frames/1", headers={"accept": accept, "if-none-match": answer.headers["etag"]}
        )
        assert same.status_code == 304
        file = await client.get(url, headers={"accept": f"application/dicom; transfer-syntax={syntax}"})
        got = pydicom.dcmread(io.BytesIO(file.content))
        assert got.file_meta.TransferSyntaxUID == syntax
        assert got.SOPInstanceUID == got.file_meta.MediaStorageSOPInstanceUID == result.sop_instance_uid
        assert next(pydicom.encaps.generate_frames(got.PixelData, number_of_frames=1)).startswith(
            answer.content
        )
        ((_, again),) = parts_of(await client.get(f"{url}/frames/1"))
        assert again == pixels


async def test_a_study_of_many_syntaxes_in_one(archive, sample, tmp_path):
    """Objects without pixels, which no coder has to do with, among them."""
    study = {"study_uid": "1.2.3"}
    pixels = np.arange(256, dtype="<u2").tobytes()
    await store(
        archive.engine, ct_slice(pixels=pixels, sop_uid="1.2.3.1", series_uid="1.2.3.9", **study), EXPLICIT
    )
    await store(
        archive.engine,
        ct_slice(pixels=pixels, sop_uid="1.2.3.2", series_uid="1.2.3.9", syntax=IMPLICIT, **study),
        IMPLICIT,
    )

    def without_pixels(data: pydicom.Dataset) -> None:
        del data.PixelData

    raw = ct_slice(change=without_pixels, sop_uid="1.2.3.3", series_uid="1.2.3.8", **study)
    await store(archive.engine, raw, EXPLICIT)
    async with archive.client() as client:
        for wanted in (EXPLICIT, JLS, HTJ2K):
            accept = f'multipart/related; type="application/dicom"; transfer-syntax={wanted}'
            answer = await client.get("/dicom-web/studies/1.2.3", headers={"accept": accept})
            assert answer.status_code == 200
            boundary = answer.headers["content-type"].rsplit("=", 1)[1].encode()
            files = [
                pydicom.dcmread(io.BytesIO(part.partition(b"\r\n\r\n")[2]))
                for part in answer.content.split(b"--" + boundary)[1:-1]
            ]
            found = {str(one.SOPInstanceUID): str(one.file_meta.TransferSyntaxUID) for one in files}
            assert found == {"1.2.3.1": wanted, "1.2.3.2": wanted, "1.2.3.3": EXPLICIT}
            zipped = await client.get(
                "/dicom-web/studies/1.2.3", headers={"accept": f"application/zip; transfer-syntax={wanted}"}
            )
            with zipfile.ZipFile(io.BytesIO(zipped.content)) as archived:
                assert archived.testzip() is None
                archived.extractall(tmp_path / wanted)
            for one in FileSet(pydicom.dcmread(tmp_path / wanted / "DICOMDIR")):
                loaded = pydicom.dcmread(one.path)
                assert loaded.file_meta.TransferSyntaxUID == one.ReferencedTransferSyntaxUIDInFile
                assert loaded.SOPInstanceUID == one.SOPInstanceUID
        series = await client.get(
            "/dicom-web/studies/1.2.3/series/1.2.3.9/pixeldata",
            headers={"accept": 'multipart/related; type="image/jls"'},
        )
        assert [fields["Content-Type"] for fields, _ in parts_of(series)] == [
            f"image/jls; transfer-syntax={JLS}"
        ] * 2


async def test_what_loses_something_is_another_object(archive):
    def eight_bits(data: pydicom.Dataset) -> None:
        data.BitsAllocated = data.BitsStored = 8
        data.HighBit = 7
        data.PixelData = bytes(range(256))

    result = await store(archive.engine, ct_slice(change=eight_bits), EXPLICIT)
    url = f"/dicom-web/studies/{result.study_uid}"
    wanted = f"application/dicom; transfer-syntax={BASELINE}"
    async with archive.client() as client:
        got = pydicom.dcmread(io.BytesIO((await client.get(url, headers={"accept": wanted})).content))
        assert got.LossyImageCompression == "01"
        assert got.SOPInstanceUID == got.file_meta.MediaStorageSOPInstanceUID != result.sop_instance_uid


async def test_what_cannot_be_is_said_before_anything_is_sent(archive):
    """16 bits do not go into JPEG baseline: 406 on every way out, and no half answer."""
    result = await store(archive.engine, ct_slice(), EXPLICIT)
    study = f"/dicom-web/studies/{result.study_uid}"
    url = f"{study}/series/{result.series_uid}/instances/{result.sop_instance_uid}"
    baseline = f"transfer-syntax={BASELINE}"
    async with archive.client() as client:
        for path, accept in (
            (url, f"application/dicom; {baseline}"),
            (study, f"multipart/related; type=application/dicom; {baseline}"),
            (study, f"application/zip; {baseline}"),
            (f"{url}/frames/1", f"image/jpeg; {baseline}"),
            (f"{url}/frames/1,1", f"multipart/related; type=image/jpeg; {baseline}"),
            (f"{url}/pixeldata", f"image/jpeg; {baseline}"),
            (f"{url}/frames/1", "video/mpeg"),
            (f"{url}/frames/1", "image/png"),
            (study, "application/dicom; transfer-syntax=1.2.840.10008.1.2.4.102"),
        ):
            answer = await client.get(path, headers={"accept": accept})
            assert answer.status_code == 406, (path, accept, answer.headers, answer.content[:200])
            assert "transfer" in answer.json()["detail"]
            assert result.study_uid not in answer.text


async def test_pixel_data_of_a_study_leaves_out_what_has_none(archive):
    """That a deflated object has none shows only when it is inflated."""

    def without_pixels(data: pydicom.Dataset) -> None:
        del data.PixelData

    study, deflated = {"study_uid": "1.2.3"}, "1.2.840.10008.1.2.1.99"
    sent = {}
    for number, (syntax, change) in enumerate(
        ((deflated, without_pixels), (EXPLICIT, None), (deflated, None), (EXPLICIT, without_pixels))
    ):
        sop = f"1.2.3.{number}"
        raw = ct_slice(
            sop_uid=sop, number=number, change=change, syntax=syntax, pixels=bytes([number]) * 512, **study
        )
        result = await store(archive.engine, raw, syntax)
        sent[sop] = f"/dicom-web/studies/1.2.3/series/{result.series_uid}/instances/{sop}"
    async with archive.client() as client:
        parts = parts_of(await client.get("/dicom-web/studies/1.2.3/pixeldata"))
        found = {fields["Content-Location"].split("/")[-3]: content for fields, content in parts}
        assert found == {"1.2.3.1": b"\1" * 512, "1.2.3.2": b"\2" * 512}
        for sop, url in sent.items():
            status = (await client.get(f"{url}/pixeldata")).status_code
            assert status == (200 if sop in found else 404)


async def test_head_says_what_get_would(archive):
    result = await store(archive.engine, ct_slice(), EXPLICIT)
    study = f"/dicom-web/studies/{result.study_uid}"
    url = f"{study}/series/{result.series_uid}/instances/{result.sop_instance_uid}"
    async with archive.client() as client:
        for path, accept in (
            (url, "application/dicom"),
            (url, f"application/dicom; transfer-syntax={JLS}"),
            (study, f"multipart/related; type=application/dicom; transfer-syntax={JLS}"),
            (study, "application/zip"),
            (study, f"application/zip; transfer-syntax={JLS}"),
            (f"{url}/frames/1", "image/jls"),
            (f"{url}/frames/1,1", "multipart/related; type=image/jls"),
            (f"{url}/pixeldata", "application/octet-stream"),
            (f"{study}/pixeldata", "*/*"),
        ):
            head = await client.head(path, headers={"accept": accept})
            got = await client.get(path, headers={"accept": accept})
            assert head.status_code == got.status_code == 200
            assert head.content == b""
            assert head.headers["etag"] == got.headers["etag"]
            kinds = [one.headers["content-type"].partition("boundary")[0] for one in (head, got)]
            assert kinds[0] == kinds[1]
            if "content-length" in head.headers:
                assert int(head.headers["content-length"]) == len(got.content)
