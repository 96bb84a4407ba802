"""What went in comes out: every object that pydicom carries, over STOW-RS, WADO-RS and frames."""

from __future__ import annotations

import io

import pydicom
import pytest
from pydicom.encaps import generate_frames

from hounsfield.archive.dicom import part10
from hounsfield.codecs.registry import lookup
from support.answers import parts_of

ALL = {"accept": 'multipart/related; type="application/dicom"; transfer-syntax=*'}


async def test_every_object_that_can_be_stored(archives, sample, tmp_path):
    """Some files share their UIDs with others: those conflict (202) and get an archive of their own.

    So do those that say what another said before in another transfer syntax: they are success, and not kept.
    """
    waiting, came_back, rounds = dict(sample), 0, 0
    while waiting:
        rounds += 1
        assert rounds < 20
        conflicting: dict[str, bytes] = {}
        said_before: dict[str, bytes] = {}
        async with archives(directory=tmp_path / str(rounds)) as archive, archive.client() as client:
            for name, raw in waiting.items():
                answer = await client.post(
                    "/dicom-web/studies", content=raw, headers={"content-type": "application/dicom"}
                )
                if answer.status_code == 409:
                    assert "00081199" not in answer.json()
                    continue
                (item,) = answer.json()["00081199"]["Value"]
                duplicates = archive.engine.statistics().objects_duplicate
                if duplicates > len(said_before):
                    said_before[name] = raw
                elif item.get("00081196", {}).get("Value") == [0xB000]:
                    conflicting[name] = raw
                elif "00081196" not in item:
                    assert answer.status_code == 200
                    await _comes_back(client, item["00081190"]["Value"][0], raw, name)
                    came_back += 1
        waiting = conflicting | said_before
    assert came_back >= 60


async def _comes_back(client, url: str, raw: bytes, name: str) -> None:
    got = await client.get(url, headers={"accept": "application/dicom"})
    assert got.status_code == 200, name
    there, here = part10.split(raw), part10.split(got.content)
    assert got.content[here.offset :] == raw[there.offset :], name
    assert here.transfer_syntax_uid == there.transfer_syntax_uid
    ((fields, content),) = parts_of(await client.get(url, headers=ALL))
    assert fields["Content-Location"] == url
    assert content == got.content
    metadata = await client.get(f"{url}/metadata")
    assert metadata.status_code == 200, name
    (model,) = metadata.json()
    assert model["00080018"]["Value"] == [url.rsplit("/", 1)[1]]
    for element in model.values():
        if "BulkDataURI" in element:
            bulk = await client.get(element["BulkDataURI"])
            assert bulk.status_code == 200, name
            if "7FE00010" in element["BulkDataURI"][-8:]:
                await _bulk_begins_as_the_frame_does(client, url, bulk)
    await _frames_are_pydicoms(client, url, raw, name)


async def _bulk_begins_as_the_frame_does(client, url: str, bulk) -> None:
    frame = await client.get(f"{url}/frames/1")
    if frame.status_code == 200 and "octet-stream" in frame.headers["content-type"]:
        (_, content), *_ = parts_of(frame)
        (_, whole), *_ = parts_of(bulk)
        if len(whole) % len(content) <= 1:  # single bits are moved to begin on bytes
            assert whole.startswith(content)


async def _frames_are_pydicoms(client, url: str, raw: bytes, name: str) -> None:
    syntax = lookup(part10.split(raw).transfer_syntax_uid)
    answer = await client.get(f"{url}/frames/1")
    if answer.status_code == 404:
        return
    assert answer.status_code == 200, name
    ((fields, content),) = parts_of(answer)
    data = pydicom.dcmread(io.BytesIO(raw), force=True)
    if "1A" in str(data.get("NumberOfFrames", 1)):
        return  # a broken file on purpose
    frames = int(data.get("NumberOfFrames", 1) or 1)
    if syntax.encapsulated:
        assert fields["Content-Type"] == f"{syntax.media_type}; transfer-syntax={syntax.uid}"
        expected = next(iter(generate_frames(data.PixelData, number_of_frames=frames)))
        assert content == expected, name
    else:
        assert fields["Content-Type"] == "application/octet-stream; transfer-syntax=1.2.840.10008.1.2.1"
        if data.BitsAllocated == 1 or not hasattr(data, "PixelData"):
            return
        expected = data.PixelData[: len(content)]
        size = data.BitsAllocated // 8
        if not syntax.little_endian:
            if size == 1 and data["PixelData"].VR == "OW":
                size = 2
            if size > 1:
                expected = b"".join(expected[i : i + size][::-1] for i in range(0, len(expected), size))
        assert content == expected, name


@pytest.mark.parametrize("name", ["rtdose.dcm", "SC_rgb_rle_2frame.dcm"])
async def test_several_frames_in_the_order_asked_for(archive, sample, name):
    result = await archive.put(sample[name])
    url = (
        f"{archive.base}/studies/{result.study_uid}/series/{result.series_uid}"
        f"/instances/{result.sop_instance_uid}/frames"
    )
    async with archive.client() as client:
        (_, first), (_, second) = parts_of(await client.get(f"{url}/2,1"))
        ((_, alone),) = parts_of(await client.get(f"{url}/2"))
        assert first == alone
        ((_, alone),) = parts_of(await client.get(f"{url}/1"))
        assert second == alone


async def test_a_series_comes_as_parts_with_their_length(archive, sample):
    raw = {name: sample[name] for name in sample if name.startswith("CT_small")}
    for one in raw.values():
        result = await archive.put(one)
    async with archive.client() as client:
        answer = await client.get(f"/dicom-web/studies/{result.study_uid}", headers=ALL)
        assert int(answer.headers["content-length"]) == len(answer.content)
        assert len(parts_of(answer)) >= 1
