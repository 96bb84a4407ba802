"""Programs that others wrote, against the real server."""

from __future__ import annotations

import io
import subprocess

import pydicom
import pytest
import trio
from dicomweb_client.api import DICOMwebClient


@pytest.mark.peer("dicomweb_client")
async def test_dicomweb_client_stores_searches_and_reads(archive, sample):
    names = ("CT_small.dcm", "MR_small.dcm", "JPEG2000.dcm", "rtplan.dcm", "test-SR.dcm", "rtdose.dcm")
    sets = {name: pydicom.dcmread(io.BytesIO(sample[name])) for name in names}

    def talk() -> None:
        client = DICOMwebClient(url=archive.base)
        stored = client.store_instances(datasets=list(sets.values()))
        assert len(stored.ReferencedSOPSequence) == len(sets)
        assert len(client.search_for_studies()) == len(sets)
        assert client.search_for_studies(search_filters={"PatientID": "nobody"}) == []
        found = client.search_for_studies(fuzzymatching=True, search_filters={"PatientName": "ct1"}, limit=3)
        assert len(found) == 1
        assert len(client.search_for_series()) == len(sets)
        assert len(client.search_for_instances(limit=2, offset=1)) == 2
        for data in sets.values():
            path = (data.StudyInstanceUID, data.SeriesInstanceUID, data.SOPInstanceUID)
            syntax = data.file_meta.TransferSyntaxUID
            (metadata,) = client.retrieve_series_metadata(*path[:2])
            described = pydicom.Dataset.from_json(metadata, bulk_data_uri_handler=lambda *_: b"")
            assert described.SOPInstanceUID == data.SOPInstanceUID
            assert described.get("PatientName") == data.get("PatientName")
            media = (("application/dicom", "*"),)
            back = client.retrieve_instance(*path, media_types=media)
            assert back.file_meta.TransferSyntaxUID == syntax
            assert back == data
            assert len(client.retrieve_series(*path[:2], media_types=media)) == 1
            assert len(client.retrieve_study(path[0], media_types=media)) == 1
            if "PixelData" not in data:
                continue
            kind = (
                ("image/jp2", syntax)
                if syntax.is_compressed
                else ("application/octet-stream", "1.2.840.10008.1.2.1")
            )
            frames = client.retrieve_instance_frames(*path, [1], media_types=(kind,))
            if not syntax.is_compressed:
                assert data.PixelData.startswith(frames[0])
                link = metadata["7FE00010"]["BulkDataURI"]
                assert b"".join(client.retrieve_bulkdata(link)) == data.PixelData

    await trio.to_thread.run_sync(talk)


@pytest.mark.peer("curl")
async def test_curl_stores_and_reads(archive, sample, tmp_path):
    source, target = tmp_path / "in.dcm", tmp_path / "out.dcm"
    source.write_bytes(sample["MR_small.dcm"])

    async def curl(*arguments: str) -> str:
        done = await trio.run_process(
            ["curl", "-sS", "--fail-with-body", "--max-time", "30", *arguments], capture_stdout=True
        )
        return done.stdout.decode()

    stored = await curl(
        "-H", "Content-Type: application/dicom", "--data-binary", f"@{source}", f"{archive.base}/studies"
    )
    url = pydicom.Dataset.from_json(stored).ReferencedSOPSequence[0].RetrieveURL
    again = await curl(
        "-H", "Content-Type: multipart/related; type=\"application/dicom\"; boundary=zz",
        "-H", "Expect: 100-continue", "-H", "Transfer-Encoding: chunked",
        "--data-binary", f"@{_related(source.read_bytes(), tmp_path)}", f"{archive.base}/studies",
    )  # fmt: skip
    assert pydicom.Dataset.from_json(again).ReferencedSOPSequence[0].RetrieveURL == url
    await curl("-H", "Accept: application/dicom", "-o", str(target), url)
    assert pydicom.dcmread(target) == pydicom.dcmread(source)
    packed = await curl("--compressed", f"{url}/metadata")
    assert packed.startswith("[{")
    with pytest.raises(subprocess.CalledProcessError):
        await curl(f"{url}/frames/9")


@pytest.mark.peer("curl")
async def test_curl_goes_on_where_a_download_broke(archive, sample, tmp_path):
    result = await archive.put(sample["CT_small.dcm"])
    url = (
        f"{archive.base}/studies/{result.study_uid}/series/{result.series_uid}"
        f"/instances/{result.sop_instance_uid}"
    )
    whole, resumed, tag = tmp_path / "whole", tmp_path / "resumed", tmp_path / "tag"

    async def curl(*arguments: str) -> str:
        every = ["curl", "-sS", "--fail-with-body", "--max-time", "30", *arguments]
        return (await trio.run_process(every, capture_stdout=True)).stdout.decode()

    for path, kind in (("", "application/dicom"), ("/frames/1", "application/octet-stream")):
        accept = ("-H", f"Accept: {kind}", f"{url}{path}")
        await curl("-o", str(whole), "--etag-save", str(tag), *accept)
        resumed.write_bytes(whole.read_bytes()[:1000])
        await curl("-C", "-", "-o", str(resumed), *accept)
        assert resumed.read_bytes() == whole.read_bytes()
        status = ("-o", str(resumed), "-w", "%{http_code} %{size_download}")
        assert await curl("--etag-compare", str(tag), *status, *accept) == "304 0"
        assert await curl("-r", "-8", *status, *accept) == "206 8"


@pytest.mark.peer("dicomweb_client")
async def test_dicomweb_client_gets_the_syntax_it_names(archive, sample):
    raw = pydicom.dcmread(io.BytesIO(sample["MR_small_RLE.dcm"]))
    result = await archive.put(sample["MR_small_RLE.dcm"])
    path = (result.study_uid, result.series_uid, result.sop_instance_uid)

    def talk() -> None:
        client = DICOMwebClient(url=archive.base)
        plain = "1.2.840.10008.1.2.1"
        kind = ("application/octet-stream", plain)
        (frame,) = client.retrieve_instance_frames(*path, [1], media_types=(kind,))
        raw.decompress()
        assert frame == raw.PixelData
        for syntax in (plain, "1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.5"):
            got = client.retrieve_instance(*path, media_types=(("application/dicom", syntax),))
            assert got.file_meta.TransferSyntaxUID == syntax
            if syntax == plain:
                assert got.PixelData == raw.PixelData
        (coded,) = client.retrieve_instance_frames(
            *path, [1], media_types=(("image/jls", "1.2.840.10008.1.2.4.80"),)
        )
        assert coded.startswith(b"\xff\xd8\xff"), coded[:8]

    await trio.to_thread.run_sync(talk)


def _related(raw: bytes, directory) -> str:
    path = directory / "body"
    path.write_bytes(b"--zz\r\nContent-Type: application/dicom\r\n\r\n" + raw + b"\r\n--zz--\r\n")
    return str(path)
