"""Danger: a search leaves out what was asked for, tells it in the wrong form, or reads without end."""

from __future__ import annotations

import io
import re
from email.parser import BytesParser
from xml.etree import ElementTree

import pydicom
import pytest
from dicomweb_client import DICOMwebClient
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from hounsfield.archive.dicom.xml import NAMESPACE, xml_to_model
from hounsfield.archive.engine.errors import DamagedError
from hounsfield.archive.web.limits import WebLimits

XML = 'multipart/related; type="application/dicom+xml"'


def changed(raw: bytes, **attributes) -> bytes:
    ds = pydicom.dcmread(io.BytesIO(raw))
    for keyword, value in attributes.items():
        setattr(ds, keyword, value)
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    out = io.BytesIO()
    ds.save_as(out)
    return out.getvalue()


def item(**attributes) -> Dataset:
    ds = Dataset()
    for keyword, value in attributes.items():
        setattr(ds, keyword, value)
    return ds


def values(model: dict, tag: str):
    return model[tag].get("Value")


def parts(answer) -> list[tuple[str, bytes]]:
    head = f"Content-Type: {answer.headers['content-type']}\r\n\r\n".encode()
    message = BytesParser().parsebytes(head + answer.content)
    assert message.is_multipart()
    return [(part.get_content_type(), part.get_payload(decode=True)) for part in message.get_payload()]


async def get(archive, path: str, accept: str = "application/dicom+json"):
    async with archive.client() as client:
        return await client.get(f"/dicom-web{path}", headers={"accept": accept})


async def found(archive, path: str) -> list[dict]:
    answer = await get(archive, path)
    assert answer.status_code == 200, answer.text
    return answer.json()


# ------------------------------------------------------------ attributes


async def test_what_the_index_does_not_hold_is_read_from_the_header(archive, sample):
    stored = await archive.put(sample["CT_small.dcm"])
    series = f"/studies/{stored.study_uid}/series/{stored.series_uid}"
    wishes = (
        "includefield=00180050&includefield=ReconstructionDiameter,KVP",
        "includefield=SliceThickness,00181100,00180060",
        "includefield=00180050,,nonsense,ReconstructionDiameter&includefield=00180060",
        "SliceThickness=&ReconstructionDiameter=&KVP=",  # universal keys
    )
    for wish in wishes:
        (one,) = await found(archive, f"{series}/instances?{wish}")
        assert values(one, "00180050") == [5], wish
        assert values(one, "00181100") == [338.6716]
        assert values(one, "00180060") == [120]
        assert list(one) == sorted(one)
    (one,) = await found(archive, f"{series}/instances?includefield=00091027,PixelData,00020010")
    assert values(one, "00090010") == ["GEMS_IDEN_01"]
    assert "00091027" in one
    assert not {"7FE00010", "00020010", "00180050"} & one.keys()


async def test_attributes_in_sequences_come_by_their_path(archive, sample):
    raw = changed(
        sample["CT_small.dcm"],
        ProcedureCodeSequence=Sequence([
            item(CodeValue="1", CodingSchemeDesignator="L", CodeMeaning="one"),
            item(CodeValue="2", CodingSchemeDesignator="L", CodeMeaning="two"),
        ]),
    )  # fmt: skip
    await archive.put(raw)
    for path in ("ProcedureCodeSequence.CodeMeaning", "00081032.00080104"):
        (one,) = await found(archive, f"/studies?includefield={path}")
        items = values(one, "00081032")
        assert [inner.keys() for inner in items] == [{"00080104"}, {"00080104"}]
        assert [values(inner, "00080104") for inner in items] == [["one"], ["two"]]
    (one,) = await found(archive, "/series?includefield=ProcedureCodeSequence")
    assert len(values(one, "00081032")[0]) == 3
    assert "00081032" not in (await found(archive, "/studies"))[0]


async def test_a_study_does_not_speak_with_the_attributes_of_one_of_its_images(archive, sample):
    await archive.put(sample["CT_small.dcm"])
    for path in ("/studies", "/series"):
        (one,) = await found(archive, f"{path}?includefield=SliceThickness,ImagePositionPatient,00091027")
        assert not {"00180050", "00200032", "00091027"} & one.keys()


async def test_request_attributes_are_in_their_sequence(archive, sample):
    def requests(*pairs):
        return Sequence([item(ScheduledProcedureStepID=a, RequestedProcedureID=b) for a, b in pairs])

    ct, mr = sample["CT_small.dcm"], sample["MR_small.dcm"]
    await archive.put(changed(ct, RequestAttributesSequence=requests(("S1", "P1"), ("S2", "P1"))))
    await archive.put(changed(mr, RequestAttributesSequence=requests(("S3", "P3"), ("S4", "P4"))))
    for key in ("ScheduledProcedureStepID=S2", "RequestedProcedureID=P1"):
        name, _, value = key.partition("=")
        (one,) = await found(archive, f"/series?RequestAttributesSequence.{name}={value}")
        pairs = [(values(i, "00400009"), values(i, "00401001")) for i in values(one, "00400275")]
        assert pairs == [(["S1"], ["P1"]), (["S2"], ["P1"])]
    # Which of several belong together is not in the index.
    (one,) = await found(archive, "/series?00400275.00401001=P4")
    assert "00400275" not in one
    (one,) = await found(archive, "/series?00400275.00401001=P4&includefield=00400275")
    pairs = [(values(i, "00400009"), values(i, "00401001")) for i in values(one, "00400275")]
    assert pairs == [(["S3"], ["P3"]), (["S4"], ["P4"])]
    assert len(await found(archive, "/series?00081111.00401001=P4")) == 2  # another sequence's: ignored


async def test_what_the_standard_wants_is_always_there(archive, sample):
    raw = changed(sample["CT_small.dcm"], TimezoneOffsetFromUTC="+0100")
    stored = await archive.put(raw)
    study = f"{archive.base}/studies/{stored.study_uid}"
    series = f"{study}/series/{stored.series_uid}"
    (one,) = await found(archive, "/studies")
    assert values(one, "00080201") == ["+0100"]
    assert values(one, "00081190") == [study]
    (one,) = await found(archive, "/series")
    assert values(one, "00081190") == [series]
    assert values(one, "00100020") == ["1CT1"]
    (one,) = await found(archive, "/instances")
    assert values(one, "00081190") == [f"{series}/instances/{stored.sop_instance_uid}"]
    assert values(one, "00083002") == ["1.2.840.10008.1.2.1"]
    assert values(one, "00080056") == ["ONLINE"]
    assert values(one, "00280010") == [128]
    (one,) = await found(archive, "/instances?includefield=all")
    assert values(one, "00080070") == ["GE MEDICAL SYSTEMS"]


# ------------------------------------------------------------ limits


async def test_pages_of_headers_end_at_their_limits_and_say_so(archives, settings, sample, tmp_path):
    for limits in (WebLimits(search_headers_max=2), WebLimits(search_header_bytes_max=6000)):
        directory = "a" if limits.search_headers_max == 2 else "b"
        async with archives(directory=tmp_path / directory, settings=settings(limits=limits)) as archive:
            for number in range(5):
                uid = f"1.2.3.{number}"
                await archive.put(
                    changed(sample["CT_small.dcm"], SOPInstanceUID=uid, InstanceNumber=number, KVP=number)
                )
            seen: list[float] = []
            while True:
                answer = await get(archive, f"/instances?includefield=KVP&limit=5&offset={len(seen)}")
                page = answer.json()
                assert 1 <= len(page) <= 2
                seen += [values(one, "00180060")[0] for one in page]
                warning = answer.headers.get("warning")
                if not warning:
                    break
                assert re.fullmatch(r'299 hounsfield "there are additional results[^"]+"', warning)
            assert seen == [0, 1, 2, 3, 4]
            assert len(await found(archive, "/instances")) == 5


async def test_a_damaged_header_does_not_hide_the_answer(archive, sample, monkeypatch):
    await archive.put(sample["CT_small.dcm"])

    def damaged(*_, **__):
        raise DamagedError("it does not open")

    monkeypatch.setattr("hounsfield.archive.engine.headers.select", damaged)
    answer = await get(archive, "/instances?includefield=KVP")
    assert len(answer.json()) == 1
    assert "could not be read" in answer.headers["warning"]


# ------------------------------------------------------------ XML


async def test_xml_says_what_json_says(archive, sample):
    for name in ("CT_small.dcm", "MR_small.dcm", "test-SR.dcm"):
        await archive.put(sample[name])
    for path in ("/studies", "/series", "/instances?includefield=all", "/instances?includefield=00091027"):
        expected = await found(archive, path)
        answer = await get(archive, path, XML)
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith('multipart/related; type="application/dicom+xml"')
        documents = parts(answer)
        assert {kind for kind, _ in documents} == {"application/dicom+xml"}
        assert [xml_to_model(document) for _, document in documents] == expected
        roots = {ElementTree.fromstring(text).tag for _, text in documents}
        assert roots == {f"{{{NAMESPACE}}}NativeDicomModel"}


@pytest.mark.parametrize(
    ("path", "accept", "status", "kind"),
    [
        ("/studies?ModalitiesInStudy=CT", "application/dicom+xml", 200, "application/dicom+xml"),
        ("/studies", "application/dicom+xml", 406, "application/problem+json"),
        ("/studies?PatientID=nobody", XML, 204, None),
        ("/studies?PatientID=nobody", "*/*", 200, "application/dicom+json"),
        ("/studies", f"{XML};q=0.5, application/json", 200, "application/json"),
        ("/studies", f"application/json;q=0.5, {XML}", 200, "multipart/related"),
        ("/studies", "multipart/related", 200, "application/dicom+json"),
        ("/studies", 'multipart/related; type="image/jpeg"', 406, "application/problem+json"),
        ("/studies", "text/html", 406, "application/problem+json"),
    ],
)
async def test_forms(archive, sample, path, accept, status, kind):
    await archive.put(sample["CT_small.dcm"])
    await archive.put(sample["MR_small.dcm"])
    answer = await get(archive, path, accept)
    assert answer.status_code == status
    assert (answer.headers.get("content-type") or "").split(";")[0] == (kind or "")


async def test_dicomweb_client_pages_and_asks_for_fields(archive, sample):
    import trio

    for name in ("CT_small.dcm", "MR_small.dcm"):
        await archive.put(sample[name])

    def ask() -> tuple[list, list, list, list]:
        client = DICOMwebClient(archive.base)
        studies = client.search_for_studies(
            fuzzymatching=True,
            search_filters={"PatientName": "compr mr1"},
            fields=["StudyDescription", "00081032"],
        )
        pages = [one for at in (0, 1, 2) for one in client.search_for_studies(limit=1, offset=at)]
        series = client.search_for_series(search_filters={"Modality": "CT"}, get_remaining=True)
        instances = client.search_for_instances(fields=["KVP"], search_filters={"Modality": "CT"})
        return studies, pages, series, instances

    studies, pages, series, instances = await trio.to_thread.run_sync(ask)
    assert [values(one, "00080061") for one in studies] == [["MR"]]
    assert len({values(one, "0020000D")[0] for one in pages}) == len(pages) == 2
    assert len(series) == 1
    assert [values(one, "00180060") for one in instances] == [[120]]


async def test_metadata_is_xml_too(archive, sample):
    ct = await archive.put(sample["CT_small.dcm"])
    for number in range(3):
        await archive.put(changed(sample["CT_small.dcm"], SOPInstanceUID=f"1.2.{number}"))
    series = f"/studies/{ct.study_uid}/series/{ct.series_uid}"
    one = f"{series}/instances/{ct.sop_instance_uid}"
    for path, count in ((one, 1), (series, 4), (f"/studies/{ct.study_uid}", 4), (series, 4)):
        expected = await found(archive, f"{path}/metadata")
        answer = await get(archive, f"{path}/metadata", XML)
        assert answer.status_code == 200
        assert "etag" not in answer.headers
        documents = [xml_to_model(document) for _, document in parts(answer)]
        assert documents == expected
        assert len(documents) == count
        tag = (await get(archive, f"{path}/metadata")).headers.get("etag", "*")
        headers = {"accept": XML, "if-none-match": tag}
        async with archive.client() as client:
            again = await client.get(f"/dicom-web{path}/metadata", headers=headers)
        assert again.status_code == 200
    alone = await get(archive, f"{one}/metadata", "application/dicom+xml")
    assert alone.headers["content-type"] == "application/dicom+xml"
    assert [xml_to_model(alone.content)] == await found(archive, f"{one}/metadata")
    assert (await get(archive, f"{series}/metadata", "application/dicom+xml")).status_code == 406


@pytest.mark.parametrize("accept", ["application/dicom+xml", XML])
async def test_what_became_of_stored_objects_is_xml_too(archive, sample, accept):
    async with archive.client() as client:
        for status, raw in ((200, sample["CT_small.dcm"]), (409, b"no object")):
            answer = await client.post(
                "/dicom-web/studies",
                content=raw,
                headers={"content-type": "application/dicom", "accept": accept},
            )
            assert answer.status_code == status
            assert answer.headers["content-type"] == "application/dicom+xml"
            model = xml_to_model(answer.content)
            assert "00081199" in model if status == 200 else "0008119A" in model
