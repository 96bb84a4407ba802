"""Danger: clients are made from a description that is not valid, or that says other than what is answered."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest
from openapi_spec_validator import validate

from hounsfield.archive.web import openapi
from hounsfield.archive.web.capabilities import NAMESPACE, describe
from hounsfield.archive.web.operations import OPERATIONS

WADL = "application/vnd.sun.wadl+xml"
METHODS = {"get", "post", "put", "delete", "options"}


def operations():
    for path, item in openapi.document()["paths"].items():
        for method in METHODS & item.keys():
            yield method.upper(), path, item[method]


def test_the_openapi_document_is_valid_and_whole():
    validate(openapi.document())
    names = [operation["operationId"] for _, _, operation in operations()]
    assert len(set(names)) == len(names) == len(OPERATIONS)
    for method, path, operation in operations():
        assert operation["summary"], path
        assert operation["tags"], path
        statuses = operation["responses"].keys()
        assert any(status.startswith("2") for status in statuses), path
        if path.startswith("/dicom-web"):
            assert {"401", "default"} <= statuses, path
        if method == "GET" and path.startswith("/dicom-web/"):
            assert {"$ref": "#/components/parameters/accept"} in operation["parameters"]


@pytest.mark.parametrize(
    ("method", "path", "name"),
    [
        ("GET", "/dicom-web/studies", "SearchForStudies"),
        ("GET", "/dicom-web/studies/{study}/series", "SearchForStudySeries"),
        ("GET", "/dicom-web/studies/{study}/series/{series}/instances", "SearchForStudySeriesInstances"),
        ("GET", "/dicom-web/studies/{study}/series/{series}/metadata", "RetrieveSeriesMetadata"),
        ("GET", "/dicom-web/studies/{study}/series/{series}/instances/{instance}", "RetrieveInstance"),
        ("POST", "/dicom-web/studies", "StoreInstances"),
        ("POST", "/dicom-web/studies/{study}", "StoreStudyInstances"),
        ("DELETE", "/dicom-web/studies/{study}", "DeleteStudy"),
        ("OPTIONS", "/dicom-web/", "RetrieveCapabilities"),
    ],
)
def test_operations_have_the_names_of_their_transactions(method, path, name):
    assert openapi.operation_id(method, path) == name


async def test_what_is_answered_is_what_is_described(archive, sample):
    stored = await archive.put(sample["CT_small.dcm"])
    document = openapi.document()
    uids = {
        "study": stored.study_uid,
        "series": stored.series_uid,
        "instance": stored.sop_instance_uid,
        "frames": "1",
        "path": "00100010",
    }
    asked = 0
    async with archive.client() as client:
        for path, item in document["paths"].items():
            if "get" not in item or set(re.findall(r"{(\w+)}", path)) - uids.keys():
                continue
            for values in (uids, uids | {"study": "1.2", "frames": "99"}):
                answer = await client.get(path.format(**values))
                response = item["get"]["responses"].get(str(answer.status_code))
                assert response is not None, (path, answer.status_code)
                if "$ref" in response:
                    response = document["components"]["responses"]["Problem"]
                kind = answer.headers["content-type"].partition(";")[0]
                described = response["content"].keys()
                assert kind in described or f"{kind.partition('/')[0]}/*" in described, (path, kind)
                asked += 1
    assert asked > 40


# ------------------------------------------------------------ capabilities


def resources(element, path: str = ""):
    for child in element.findall(f"{{{NAMESPACE}}}resource"):
        below = f"{path}/{child.get('path')}"
        yield below, child
        yield from resources(child, below)


async def test_capabilities_are_every_operation(archive):
    async with archive.client() as client:
        for path in ("/dicom-web", "/dicom-web/"):
            answer = await client.request("OPTIONS", path, headers={"accept": WADL})
            assert answer.status_code == 200
            assert answer.headers["content-type"] == WADL
            root = ElementTree.fromstring(answer.content)
            assert root.tag == f"{{{NAMESPACE}}}application"
            (top,) = root
            assert top.get("base") == archive.base
            told = {
                (method.get("name"), f"/dicom-web{below}", method.get("id"))
                for below, resource in resources(top)
                for method in resource.findall(f"{{{NAMESPACE}}}method")
            }
            assert told == {
                (method, path, operation["operationId"])
                for method, path, operation in operations()
                if path.startswith("/dicom-web/") and method != "OPTIONS"
            }
        searching = next(child for below, child in resources(top) if below == "/studies")
        search = searching.find(f"{{{NAMESPACE}}}method[@id='SearchForStudies']")
        assert {one.get("name") for one in search.iter(f"{{{NAMESPACE}}}param")} >= {
            "Accept",
            "limit",
            "offset",
        }
        assert {one.get("mediaType") for one in search.iter(f"{{{NAMESPACE}}}representation")} >= {
            "application/dicom+json", "multipart/related",
        }  # fmt: skip
        as_json = await client.request("OPTIONS", "/dicom-web/", headers={"accept": "application/json"})
        assert as_json.json() == {"application": describe(archive.base)}
        assert (await client.request("OPTIONS", "/dicom-web/")).headers["content-type"] == WADL
        refused = await client.request("OPTIONS", "/dicom-web/", headers={"accept": "text/html"})
        assert refused.status_code == 406


async def test_preflights_are_not_taken_for_questions(archives, settings):
    opened = archives(settings=settings(cors_origins=("https://viewer.example",)))
    async with opened as archive, archive.client() as client:
        asked = {"origin": "https://viewer.example", "access-control-request-method": "GET"}
        assert (await client.request("OPTIONS", "/dicom-web/", headers=asked)).status_code == 204
        asked.pop("access-control-request-method")
        answer = await client.request("OPTIONS", "/dicom-web/", headers=asked)
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == "https://viewer.example"
