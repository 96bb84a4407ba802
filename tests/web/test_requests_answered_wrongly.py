"""Routes over the real server: searches, errors, HEAD, limits, and the documents about them."""

from __future__ import annotations

import gzip
import json
import re

import pytest

from hounsfield import __version__
from hounsfield.archive.dicom.part10 import Part10Error
from hounsfield.archive.dicom.query import QueryError
from hounsfield.archive.engine import errors as engine_errors
from hounsfield.archive.engine.errors import EngineError, OutOfResourcesError
from hounsfield.archive.engine.types import Outcome
from hounsfield.archive.web import operations, problems, stow_results
from hounsfield.archive.web.frames import ROUTE
from hounsfield.archive.web.routes import routes


async def url_of(archive, raw: bytes) -> str:
    result = await archive.put(raw)
    series = f"/dicom-web/studies/{result.study_uid}/series/{result.series_uid}"
    return f"{series}/instances/{result.sop_instance_uid}"


def first(model: dict, tag: str):
    return model[tag]["Value"][0]


async def test_search_at_every_path(archive, sample):
    url = await url_of(archive, sample["CT_small.dcm"])
    await archive.put(sample["MR_small.dcm"])
    study, series = url.split("/series/")[0], url.split("/instances/")[0]
    async with archive.client() as client:
        expected = {
            "/dicom-web/studies": 2,
            "/dicom-web/series": 2,
            "/dicom-web/instances": 2,
            f"{study}/series": 1,
            f"{study}/instances": 1,
            f"{series}/instances": 1,
            "/dicom-web/studies?ModalitiesInStudy=MR": 1,
            "/dicom-web/studies?00080061=CT&limit=101&offset=0&fuzzymatching=false": 1,
            "/dicom-web/studies?PatientName=*compressed*": 2,
            "/dicom-web/studies?StudyDate=20040101-20040201": 1,
            "/dicom-web/studies?limit=1": 1,
            "/dicom-web/studies?offset=1": 1,
            "/dicom-web/studies?offset=5": 0,
            "/dicom-web/studies?PatientID=nobody": 0,
            "/dicom-web/studies/1.2.3/series": 0,
        }
        for path, count in expected.items():
            answer = await client.get(path, headers={"accept": "application/dicom+json"})
            assert answer.status_code == 200, path
            assert answer.headers["content-type"] == "application/dicom+json"
            assert len(answer.json()) == count, path
        (one,) = (await client.get(f"{series}/instances")).json()
        assert first(one, "00081190") == f"{archive.origin}{url}"
        assert first(one, "00083002") == "1.2.840.10008.1.2.1"
        assert first(one, "00080056") == "ONLINE"
        (ct,) = (await client.get("/dicom-web/studies?ModalitiesInStudy=CT&includefield=00081030")).json()
        assert first(ct, "00201208") == 1
        assert first(ct, "00080061") == "CT"
        assert first(ct, "00100010") == {"Alphabetic": "CompressedSamples^CT1"}
        assert list(ct) == sorted(ct)


async def test_warnings_name_what_was_ignored_and_cut(archive, sample, monkeypatch):
    monkeypatch.setattr("hounsfield.archive.engine.search.ANSWERS_DEFAULT", 1)
    await archive.put(sample["CT_small.dcm"])
    await archive.put(sample["MR_small.dcm"])
    async with archive.client() as client:
        answer = await client.get('/dicom-web/studies?NoSuch"Thing=1')
        warnings = answer.headers.get_list("warning", split_commas=False)
        assert len(answer.json()) == 1
        assert len(warnings) == 2
        assert all(re.fullmatch(r'299 hounsfield "[^"\\]+"', one) for one in warnings)
        assert "additional results" in (await client.get("/dicom-web/studies?limit=1")).headers["warning"]
        for query in ("?limit=2", "?limit=1&offset=1", "?limit=1&PatientID=nobody"):
            assert not (await client.get(f"/dicom-web/studies{query}")).headers.get("warning")


async def test_metadata_is_compressed_when_asked_and_its_links_resolve(archive, sample):
    url = await url_of(archive, sample["CT_small.dcm"])
    study, series = url.split("/series/")[0], url.split("/instances/")[0]
    async with archive.client() as client:
        plain = await client.get(f"{url}/metadata", headers={"accept-encoding": "identity"})
        assert "content-encoding" not in plain.headers
        for path in (url, series, study):
            packed = await client.get(f"{path}/metadata", headers={"accept-encoding": "gzip"})
            assert packed.headers["content-encoding"] == "gzip"
            assert packed.json() == plain.json()
        link = plain.json()[0]["7FE00010"]["BulkDataURI"]
        assert link == f"{archive.origin}{url}/bulkdata/7FE00010"
        pixels = await client.get(link, headers={"accept": "application/octet-stream"})
        assert len(pixels.content) == 128 * 128 * 2
        assert (await client.get(f"{url}/bulkdata/00100010")).status_code == 200
        for path in ("00100099", "nonsense", "00080005/1", "../../x"):
            assert (await client.get(f"{url}/bulkdata/{path}")).status_code == 404
    assert gzip  # httpx opened it


async def test_the_configured_base_url_is_in_every_link(archives, settings, sample):
    async with archives(settings=settings(base_url="https://pacs.example/a/")) as archive:
        url = await url_of(archive, sample["CT_small.dcm"])
        async with archive.client() as client:
            for path in ("/dicom-web/studies", f"{url}/metadata", f"{url}/frames/1", url):
                body = (await client.get(path)).content
                assert b"https://pacs.example/a/dicom-web/studies/" in body, path
                assert b"127.0.0.1" not in body


ERRORS = [
    ("GET", "/nope", {}, 404),
    ("GET", "/dicom-web/studies/1.2.3", {}, 404),
    ("GET", "/dicom-web/studies/1.2.3/metadata", {}, 404),
    ("GET", "/dicom-web/studies/1.2.3/series/1/instances/1/frames/1", {}, 404),
    ("GET", "{url}/frames/2", {}, 404),
    ("GET", "{url}/frames/1,2", {}, 404),
    ("GET", "{url}/frames/0", {}, 400),
    ("GET", "{url}/frames/-1", {}, 400),
    ("GET", "{url}/frames/1,", {}, 400),
    ("GET", "{url}/frames/one", {}, 400),
    ("GET", "{url}/frames/" + ",".join(["1"] * 5000), {}, 400),
    ("GET", "{url}/frames/1", {"accept": "image/png"}, 406),
    ("GET", "{url}/frames/1,1", {"accept": "application/octet-stream"}, 406),
    ("GET", "{url}/frames/1", {"accept": "é".encode("latin-1")}, 400),
    ("GET", "{url}", {"accept": "image/png"}, 406),
    ("GET", "{url}", {"accept": "application/dicom; transfer-syntax=1.2.840.10008.1.2.4.102"}, 406),
    ("GET", "{url}/metadata", {"accept": "text/html"}, 406),
    ("GET", "/dicom-web/studies", {"accept": "application/dicom"}, 406),
    ("GET", "/dicom-web/studies?limit=x", {}, 400),
    ("GET", "/dicom-web/studies?StudyDate=yesterday", {}, 400),
    ("GET", "/dicom-web/studies?" + "&".join("a=1" for _ in range(600)), {}, 400),
    ("POST", "/dicom-web/studies", {"content-type": "text/plain"}, 415),
    ("POST", "/dicom-web/studies", {}, 415),
    ("POST", "/dicom-web/studies", {"content-type": "multipart/related; type=application/dicom"}, 400),
    (
        "POST",
        "/dicom-web/studies",
        {"content-type": 'multipart/related; type="application/octet-stream"; boundary=b'},
        415,
    ),
    ("POST", "/dicom-web/studies", {"content-type": "application/dicom", "content-encoding": "gzip"}, 415),
    ("POST", "/dicom-web/studies", {"content-type": "application/dicom", "accept": "text/html"}, 406),
    ("DELETE", "/dicom-web/studies", {}, 405),
    ("PUT", "{url}/frames/1", {}, 405),
    ("POST", "/dicom-web/series", {}, 405),
]


async def test_errors_are_problems_that_name_nobody(archive, sample):
    url = await url_of(archive, sample["CT_small.dcm"])
    async with archive.client() as client:
        for method, path, headers, status in ERRORS:
            answer = await client.request(method, path.format(url=url), headers=headers)
            assert answer.status_code == status, (method, path[:80], headers, answer.text)
            assert answer.headers["content-type"] == "application/problem+json"
            body = answer.json()
            assert body["status"] == status
            assert body["detail"]
            assert "1.3.6.1.4.1.5962" not in answer.text
            assert "1.2.3" not in answer.text
            if status == 405:
                assert "GET" in answer.headers["allow"]


async def test_head_is_get_without_a_body(archive, sample):
    url = await url_of(archive, sample["CT_small.dcm"])
    async with archive.client() as client:
        for path in ("/", "/healthz", "/dicom-web/studies", url, f"{url}/frames/1", f"{url}/metadata"):
            head = await client.head(path, headers={"accept-encoding": "identity"})
            got = await client.get(path, headers={"accept-encoding": "identity"})
            assert head.status_code == got.status_code == 200, path
            assert not head.content
            if "content-length" in got.headers and "multipart" not in got.headers["content-type"]:
                assert head.headers["content-length"] == got.headers["content-length"]
        assert (await client.head("/nope")).status_code == 404


async def test_accept_parameter(archive, sample):
    url = await url_of(archive, sample["JPEG2000.dcm"])
    async with archive.client() as client:
        answer = await client.get(f"{url}/frames/1?accept=image/jp2", headers={"accept": "image/png"})
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("image/jp2; transfer-syntax=1.2.840.10008.1.2.4.9")


async def test_health_and_metrics(archives):
    checks = {"engine": True, "disk": False}
    options = {"metrics": lambda: b"figures 1\n", "health": lambda: checks}
    async with archives(**options) as archive, archive.client() as client:
        assert (await client.get("/healthz")).json() == {"status": "ok"}
        answer = await client.get("/healthz/ready")
        assert answer.status_code == 503
        assert answer.json()["checks"] == checks
        checks["disk"] = True
        assert (await client.get("/healthz/ready")).status_code == 200
        assert (await client.get("/metrics")).text == "figures 1\n"


async def test_a_busy_archive_says_when_to_come_back(archive, monkeypatch):
    async def busy(_):
        raise OutOfResourcesError("full")

    monkeypatch.setattr(archive.engine, "search", busy)
    async with archive.client() as client:
        answer = await client.get("/dicom-web/studies")
        assert answer.status_code == 503
        assert int(answer.headers["retry-after"]) > 0


async def test_a_defect_is_a_500_that_tells_nothing(archive, monkeypatch):
    async def broken(_):
        raise RuntimeError("Doe^Jane")

    monkeypatch.setattr(archive.engine, "search", broken)
    async with archive.client() as client:
        answer = await client.get("/dicom-web/studies")
        assert answer.status_code == 500
        assert "Doe" not in answer.text


def _below(kind: type) -> set[type]:
    """With all that come from it, but for what an importer makes of answers, and what leading parts of
    plugins are told: no request is answered with that."""
    elsewhere = (".importing.", ".plugins")
    below = (one for one in kind.__subclasses__() if not any(part in one.__module__ for part in elsewhere))
    return {kind}.union(*map(_below, below))


def test_every_engine_error_has_a_row():
    kinds = {one for one in vars(engine_errors).values() if isinstance(one, type)} | _below(EngineError)
    for kind in kinds | {QueryError, Part10Error}:
        row = problems.TABLE[kind]
        assert 400 <= row.status <= 599
        assert (row.status == 503) == getattr(kind, "retry", False), kind
        assert 0 < row.failure_reason <= 0xFFFF
    assert set(stow_results.WARNINGS) == set(Outcome)


def test_every_route_is_documented_and_every_document_routed(settings):
    table = routes(None, settings(), metrics=None, health=None)
    routed = {(row.method, row.path.replace(":path}", "}")) for row in table} | {("GET", ROUTE)}
    assert routed == set(operations.OPERATIONS)


async def test_the_openapi_document_is_whole(archive):
    async with archive.client() as client:
        document = (await client.get("/openapi.json")).json()
    assert document["openapi"] == "3.1.0"
    assert document["info"]["version"] == __version__
    text = json.dumps(document)
    for reference in set(re.findall(r'"\$ref": "#/([^"]+)"', text)):
        found = document
        for step in reference.split("/"):
            found = found[step]
    for path, item in document["paths"].items():
        named = {one["$ref"].rpartition("/")[2] for one in item.get("parameters", [])}
        assert named == set(re.findall(r"{(\w+)}", path))


@pytest.mark.parametrize("host", ['evil"><script>', "a b", "x/y"])
async def test_a_strange_host_does_not_get_into_links(archive, sample, host):
    await archive.put(sample["CT_small.dcm"])
    async with archive.client() as client:
        answer = await client.get("/dicom-web/studies", headers={"host": host})
        assert host not in answer.text


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", "http://127.0.0.1:{port}/dicom-web/"),
        ("localhost", "http://localhost:{port}/dicom-web/"),
        ("localhost:{port}", "http://localhost:{port}/dicom-web/"),
        ("pacs.example", "http://pacs.example/dicom-web/"),
        ("pacs.example:81", "http://pacs.example:81/dicom-web/"),
    ],
)
async def test_links_lead_back_to_the_host_that_was_asked(archive, sample, host, expected):
    await archive.put(sample["CT_small.dcm"])
    async with archive.client() as client:
        headers = {"host": host.format(port=archive.port)}
        (study,) = (await client.get("/dicom-web/studies", headers=headers)).json()
        assert first(study, "00081190").startswith(expected.format(port=archive.port))


async def test_metadata_that_did_not_change_is_not_sent_again(archive, sample):
    stored = await archive.put(sample["CT_small.dcm"])
    study = f"/dicom-web/studies/{stored.study_uid}"
    series = f"{study}/series/{stored.series_uid}"
    async with archive.client() as client:
        for path in (study, series, f"{series}/instances/{stored.sop_instance_uid}"):
            await client.get(f"{path}/metadata")
            first = await client.get(f"{path}/metadata")
            tag = first.headers["etag"]
            assert first.headers["cache-control"] == "private, no-cache"
            for known in (tag, f'"x", {tag}', "*", tag.removeprefix("W/")):
                again = await client.get(f"{path}/metadata", headers={"if-none-match": known})
                assert (again.status_code, again.content) == (304, b"")
                assert again.headers["etag"] == tag
            other = await client.get(f"{path}/metadata", headers={"if-none-match": 'W/"other"'})
            assert other.status_code == 200
        await archive.put(sample["MR_small.dcm"])
        assert (await client.get(f"{study}/metadata", headers={"if-none-match": tag})).status_code == 200


async def test_metadata_has_its_links_where_the_client_is(archive, sample):
    stored = await archive.put(sample["CT_small.dcm"])
    url = f"/dicom-web/studies/{stored.study_uid}/series/{stored.series_uid}/metadata"
    async with archive.client() as client:
        for host in ("pacs.example.org", "10.1.2.3:8042", "pacs.example.org"):
            for coding in ("gzip", "identity"):
                got = await client.get(url, headers={"host": host, "accept-encoding": coding})
                (model,) = got.json()
                assert model["7FE00010"]["BulkDataURI"].startswith(f"http://{host}/dicom-web/studies/")
