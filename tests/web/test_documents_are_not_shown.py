"""Encapsulated PDFs: a viewer gets no document, half of one, or one that says that it is something else."""

from __future__ import annotations

import pytest
from pydicom.dataset import Dataset

from support.answers import parts_of
from support.archives import encode, store

EXPLICIT = "1.2.840.10008.1.2.1"
PDF = b"%PDF-1.7\n" + bytes(range(256)) * 9 + b"%%EOF\n"  # of an odd length


def encapsulated(*, length: bool = True) -> bytes:
    data = Dataset()
    data.SOPClassUID = "1.2.840.10008.5.1.4.1.1.104.1"
    data.StudyInstanceUID, data.SeriesInstanceUID, data.SOPInstanceUID = "1.2.1", "1.2.2", "1.2.3"
    data.PatientID, data.Modality = "P1", "DOC"
    data.MIMETypeOfEncapsulatedDocument = "application/pdf"
    data.EncapsulatedDocument = PDF + b"\0"
    if length:
        data.EncapsulatedDocumentLength = len(PDF)
    return encode(data, EXPLICIT)


@pytest.mark.parametrize("length", [True, False])
async def test_a_rendered_document_is_itself(archive, length):
    await store(archive.engine, encapsulated(length=length), EXPLICIT)
    whole = PDF if length else PDF + b"\0"
    instance = "/dicom-web/studies/1.2.1/series/1.2.2/instances/1.2.3"
    async with archive.client() as client:
        for accept in ("application/pdf", "*/*", "image/jpeg, application/pdf;q=0.5"):
            answer = await client.get(f"{instance}/rendered", headers={"accept": accept})
            assert (answer.status_code, answer.headers["content-type"]) == (200, "application/pdf")
            assert answer.content == whole
        again = {"accept": "*/*", "if-none-match": answer.headers["etag"]}
        assert (await client.get(f"{instance}/rendered", headers=again)).status_code == 304
        part = await client.get(f"{instance}/rendered", headers={"range": "bytes=0-7"})
        assert (part.status_code, part.content) == (206, PDF[:8])
        several = {"accept": 'multipart/related; type="application/pdf"'}
        ((fields, content),) = parts_of(await client.get(f"{instance}/rendered", headers=several))
        assert (fields["Content-Type"], content) == ("application/pdf", whole)
        assert (await client.get(f"{instance}/rendered", headers={"accept": "image/png"})).status_code == 406

        # As OHIF asks for what metadata links to.
        metadata = await client.get(f"{instance}/metadata", headers={"accept": "application/json"})
        link = metadata.json()[0]["00420011"]["BulkDataURI"]
        linked = await client.get(link, params={"accept": "application/pdf"})
        assert (linked.headers["content-type"], linked.content) == ("application/pdf", PDF + b"\0")
        octets = await client.get(link, headers={"accept": "application/octet-stream"})
        assert octets.headers["content-type"].startswith("application/octet-stream")

        where = {"requestType": "WADO", "studyUID": "1.2.1", "seriesUID": "1.2.2", "objectUID": "1.2.3"}
        uri = await client.get("/wado", params={**where, "contentType": "application/pdf"})
        assert (uri.headers["content-type"], uri.content) == ("application/pdf", whole)
        assert (
            (await client.get("/wado", params=where)).headers["content-type"].startswith("application/dicom")
        )
