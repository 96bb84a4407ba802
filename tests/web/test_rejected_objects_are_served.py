"""When a rejection note was stored, no way over HTTP leads to what it names; undoing gives it back."""

from __future__ import annotations

import io
import json

import pydicom
import pytest
import trio
from dicomweb_client.api import DICOMwebClient
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from hounsfield.archive.engine.corrections import Request
from hounsfield.archive.index import tables
from hounsfield.archive.index.corrections import is_hidden
from hounsfield.archive.index.rows import StudyRow
from support.archives import ct_slice
from support.rejection import QUALITY, REASONS, note_data_set

STUDY, SERIES, OTHER = "1.2.840.5.1", "1.2.840.5.1.1", "1.2.840.5.1.2"
KEPT, GONE, ALONE = f"{SERIES}.1", f"{SERIES}.2", f"{OTHER}.1"


def with_meta(data: Dataset) -> Dataset:
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID
    return data


def slice_of(series: str, sop: str) -> Dataset:
    raw = ct_slice(study_uid=STUDY, series_uid=series, sop_uid=sop)
    data = pydicom.dcmread(io.BytesIO(raw), force=True)
    assert data.SOPClassUID == CTImageStorage
    return with_meta(data)


def ways(series: str, sop: str) -> list[tuple[str, str]]:
    """Every way to one instance: path, and what is accepted."""
    path = f"/dicom-web/studies/{STUDY}/series/{series}/instances/{sop}"
    uri = f"/wado?requestType=WADO&studyUID={STUDY}&seriesUID={series}&objectUID={sop}"
    return [
        (path, "application/dicom; transfer-syntax=*"),
        (f"{path}/metadata", "application/dicom+json"),
        (f"{path}/frames/1", 'multipart/related; type="application/octet-stream"'),
        (f"{path}/rendered", "image/jpeg"),
        (f"{path}/frames/1/rendered", "image/jpeg"),
        (f"{path}/thumbnail", "image/jpeg"),
        (f"{path}/bulkdata/7FE00010", "application/octet-stream"),
        (f"{uri}&contentType=application/dicom", "*/*"),
        (uri, "image/jpeg"),
    ]


@pytest.mark.peer("dicomweb_client")
@pytest.mark.parametrize("code", REASONS)
async def test_no_way_leads_to_what_a_note_rejects(archive, code: str) -> None:
    web = DICOMwebClient(url=archive.base)
    store = web.store_instances
    await trio.to_thread.run_sync(
        store, [slice_of(SERIES, KEPT), slice_of(SERIES, GONE), slice_of(OTHER, ALONE)]
    )
    async with archive.client() as client:
        marks: dict[str, str] = {}
        for path, accept in ways(SERIES, GONE):  # whatever is remembered of it
            answer = await client.get(path, headers={"accept": accept})
            if answer.status_code == 200:
                marks[path] = answer.headers.get("etag", "")
        assert len(marks) >= 7
        metadata = f"/dicom-web/studies/{STUDY}/series/{SERIES}/metadata"
        before = await client.get(metadata)
        rejection = with_meta(note_data_set({STUDY: {SERIES: [GONE], OTHER: [ALONE]}}, code))
        answer = await trio.to_thread.run_sync(store, [rejection])
        assert len(answer.ReferencedSOPSequence) == 1

        for series, sop in ((SERIES, GONE), (OTHER, ALONE)):
            for path, accept in ways(series, sop):
                headers = {"accept": accept}
                if marks.get(path):
                    headers["if-none-match"] = marks[path]
                assert (await client.get(path, headers=headers)).status_code == 404, path
        for path, accept in ways(SERIES, KEPT):
            status = (await client.get(path, headers={"accept": accept})).status_code
            assert (status == 200) == (path.replace(KEPT, GONE) in marks), path
        after = await client.get(metadata, headers={"if-none-match": before.headers["etag"]})
        assert [one["00080018"]["Value"] for one in after.json()] == [[KEPT]]
        studies = f"/dicom-web/studies/{STUDY}"
        described = (await client.get(f"{studies}/metadata")).json()
        assert [one["00080018"]["Value"] for one in described] == [[KEPT]]
        assert (await client.get(f"{studies}/series/{OTHER}/metadata")).status_code == 404
        (study,) = (await client.get("/dicom-web/studies?includefield=all")).json()
        assert (study["00201206"]["Value"], study["00201208"]["Value"]) == ([1], [1])
        assert study["00080061"]["Value"] == ["CT"]
        for path in ("/dicom-web/instances", f"{studies}/instances", f"{studies}/series/{SERIES}/instances"):
            assert [one["00080018"]["Value"] for one in (await client.get(path)).json()] == [[KEPT]]
        assert (await client.get(f"/dicom-web/instances?SOPInstanceUID={GONE}")).json() == []
        series_left = (await client.get(f"{studies}/series")).json()
        assert [one["0020000E"]["Value"] for one in series_left] == [[SERIES]]
        back = await trio.to_thread.run_sync(lambda: web.retrieve_study(STUDY, (("application/dicom", "*"),)))
        assert [one.SOPInstanceUID for one in back] == [KEPT]
        zipped = await client.get(studies, headers={"accept": "application/zip"})
        assert zipped.status_code == 200
        assert GONE.encode() not in zipped.content

        (made,) = await archive.engine.rejecting.all()
        await archive.engine.rejecting.undo(made["id"], actor="tester", reason="mistaken")
        for path, mark in marks.items():
            accept = dict(ways(SERIES, GONE))[path]
            again = await client.get(path, headers={"accept": accept})
            assert again.status_code == 200, path
            if not path.endswith("/metadata"):  # that is the series' as a whole
                assert again.headers.get("etag", "") == mark, path
        (study,) = (await client.get("/dicom-web/studies?includefield=all")).json()
        assert (study["00201206"]["Value"], study["00201208"]["Value"]) == ([3], [4])


async def test_a_study_that_is_rejected_as_a_whole_is_gone(archive) -> None:
    await archive.put(as_file(slice_of(SERIES, KEPT)))
    await archive.put(as_file(note_data_set({STUDY: {SERIES: [KEPT]}}, QUALITY)))
    async with archive.client() as client:
        for path in ("/dicom-web/studies", "/dicom-web/series", "/dicom-web/instances"):
            assert (await client.get(path)).json() == []
        for path in (f"/dicom-web/studies/{STUDY}", f"/dicom-web/studies/{STUDY}/metadata"):
            assert (await client.get(path)).status_code == 404
        assert (await client.get(f"/dicom-web/studies/{STUDY}/series")).json() == []
        # Nor by the name under which it is kept, for those who know it.
        stores = archive.engine.stores
        with stores.store.snapshot() as snapshot:
            (name,) = [
                row.uid
                for key, sealed in snapshot.scan(tables.STUDY)
                if is_hidden((row := stores.catalog.open_row(tables.STUDY, key, sealed, StudyRow)).uid)
            ]
        for uid in (name, name.replace("/", "%2F"), name.replace("!", "%21").replace("/", "%2F")):
            for below in ("", "/metadata", "/series", "/instances", f"/series/{SERIES}/instances/{KEPT}"):
                assert (await client.get(f"/dicom-web/studies/{uid}{below}")).status_code in {204, 400, 404}
        assert (await client.get("/dicom-web/studies", params={"StudyInstanceUID": name})).status_code in {
            204,
            400,
        }


def as_file(data: Dataset) -> bytes:
    out = io.BytesIO()
    pydicom.dcmwrite(out, with_meta(data), enforce_file_format=True)
    return out.getvalue()


async def test_who_stores_is_told_of_places_where_nothing_is(archive) -> None:
    """Links of what is stored lead to where it is shown, and there are none of what is out of sight."""

    async def stored(*sent: Dataset) -> list[str]:
        web = DICOMwebClient(f"{archive.base}")
        answer = await trio.to_thread.run_sync(lambda: web.store_instances(list(sent)))
        links = [answer, *answer.ReferencedSOPSequence]
        return [str(one.RetrieveURL or "").partition("/dicom-web")[2] for one in links]

    there = f"/studies/{STUDY}"
    elsewhere = "1.2.840.99.77"
    assert await stored(slice_of(SERIES, KEPT)) == [there, f"{there}/series/{SERIES}/instances/{KEPT}"]
    moving = Request(
        kind="move-series", actor="t", reason="wrong", study=STUDY, series=(SERIES,), to_study=elsewhere
    )
    await archive.engine.correcting.make(moving)
    await archive.put(as_file(note_data_set({STUDY: {SERIES: [GONE]}}, QUALITY)))
    hidden, shown = slice_of(SERIES, GONE), slice_of(OTHER, ALONE)
    assert await stored(slice_of(SERIES, KEPT)) == [
        f"/studies/{elsewhere}", f"/studies/{elsewhere}/series/{SERIES}/instances/{KEPT}",
    ]  # fmt: skip
    assert await stored(hidden) == ["", ""]
    assert await stored(hidden, shown) == [there, "", f"{there}/series/{OTHER}/instances/{ALONE}"]
    async with archive.client() as client:
        for path in (f"/studies/{elsewhere}/series/{SERIES}/instances/{KEPT}", there):
            assert (await client.get(f"/dicom-web{path}")).status_code == 200


async def test_who_looks_at_a_correction_is_told_of_hidden_studies(archive) -> None:
    elsewhere, correcting = "1.2.840.99.77", archive.engine.correcting
    for sop in (KEPT, GONE):
        await archive.put(as_file(slice_of(SERIES, sop)))
    await archive.put(as_file(note_data_set({elsewhere: {SERIES: [GONE]}}, QUALITY)))
    moving = Request(
        kind="move-series", actor="t", reason="wrong", study=STUDY, series=(SERIES,), to_study=elsewhere
    )
    told = [await correcting.look(moving)]
    made = await correcting.make(moving)
    told.append(await correcting.look_reverted(made["id"], "t", "right"))
    for looked in told:
        assert {one["study"] for one in looked["changes"]} == {STUDY, elsewhere}
        assert looked["studies"] == len(looked["changes"])
        assert "!" not in json.dumps(looked)
