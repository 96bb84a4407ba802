"""All bulk data at once: a link of the metadata that nothing comes for, or another value than it names."""

from __future__ import annotations

import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from support.answers import parts_of
from support.archives import ct_slice, store

EXPLICIT = "1.2.840.10008.1.2.1"
BIG = "1.2.840.10008.1.2.2"
DEFLATED = "1.2.840.10008.1.2.1.99"
OCTETS = {"accept": 'multipart/related; type="application/octet-stream"; transfer-syntax=*'}


def links(model: dict) -> list[str]:
    found = []
    for element in model.values():
        if "BulkDataURI" in element:
            found.append(element["BulkDataURI"])
        elif element["vr"] == "SQ":
            found += [link for item in element.get("Value", ()) for link in links(item)]
    return found


def with_values(data: Dataset) -> None:
    """Long values at the top, in many items, in items of items, and behind the pixels."""
    data.RedPaletteColorLookupTableData = bytes(range(256)) * 8
    data.add_new(0x00091010, "OW", b"\1\2" * 700)
    deep = Dataset()
    deep.add_new(0x00420011, "OB", b"deep" * 400)
    inner = [Dataset() for _ in range(12)]
    for number, item in enumerate(inner):
        item.add_new(0x00420011, "OB", bytes([number]) * 1100)
        item.add_new(0x00081140, "SQ", Sequence([deep]))
    data.ReferencedImageSequence = Sequence(inner)
    data.add_new(0x7FE11010, "OB", b"end" * 500)


@pytest.mark.parametrize("syntax", [EXPLICIT, "1.2.840.10008.1.2", BIG, DEFLATED])
async def test_every_link_of_the_metadata_comes_once_with_its_value(archive, syntax):
    stored = await store(archive.engine, ct_slice(change=with_values, syntax=syntax), syntax)
    study = f"/dicom-web/studies/{stored.study_uid}"
    series = f"{study}/series/{stored.series_uid}"
    instance = f"{series}/instances/{stored.sop_instance_uid}"
    async with archive.client(headers=OCTETS) as client:
        (model,) = (await client.get(f"{instance}/metadata", headers={"accept": "application/json"})).json()
        wanted = links(model)
        assert len(wanted) == 2 + 24 + 2
        for path in (study, series, instance):
            answer = await client.get(f"{path}/bulkdata")
            assert answer.status_code == 200
            given = {fields["Content-Location"]: content for fields, content in parts_of(answer)}
            assert sorted(given) == sorted(wanted)
            assert len(parts_of(answer)) == len(wanted)
            for url, content in given.items():
                ((_, alone),) = parts_of(await client.get(url))
                assert content == alone, url
        same = await client.get(f"{study}/bulkdata", headers={"if-none-match": answer.headers["etag"]})
        assert same.status_code == 304


async def test_frames_of_compressed_objects_come_each(archive, sample):
    await archive.put(sample["SC_rgb_rle_2frame.dcm"])
    (instance,) = await archive.engine.instances(*await only_study(archive))
    async with archive.client(headers=OCTETS) as client:
        found = parts_of(await client.get(f"/dicom-web/studies/{instance.study_uid}/bulkdata"))
        assert len(found) == instance.row.location.frames
        assert {fields["Content-Type"].partition(";")[0] for fields, _ in found} == {"image/dicom-rle"}
        assert len({fields["Content-Location"] for fields, _ in found}) == 1


async def only_study(archive) -> tuple[str]:
    async with archive.client() as client:
        ((study,),) = [(await client.get("/dicom-web/studies")).json()]
    return (study["0020000D"]["Value"][0],)


async def test_none_is_none_and_only_octets_are_given(archive):
    def small(data: Dataset) -> None:
        del data.PixelData

    stored = await store(archive.engine, ct_slice(change=small), EXPLICIT)
    path = f"/dicom-web/studies/{stored.study_uid}/bulkdata"
    async with archive.client() as client:
        assert (await client.get(path)).status_code == 404
        assert (await client.get(path, headers={"accept": "image/png"})).status_code == 406
        assert (await client.get("/dicom-web/studies/2.25.9/bulkdata")).status_code == 404
