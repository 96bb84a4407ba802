"""The OpenAPI 3.1 document, kept by hand as data; a test holds it and the routes together."""

from __future__ import annotations

from typing import Any, Final

from hounsfield import __version__
from hounsfield.archive.web.deletion import REASON_CHARS_MAX
from hounsfield.archive.web.urls import DICOM_WEB

_STUDY: Final = f"{DICOM_WEB}/studies/{{study}}"
_SERIES: Final = f"{_STUDY}/series/{{series}}"
_INSTANCE: Final = f"{_SERIES}/instances/{{instance}}"

_JSON: Final = "application/dicom+json"
_PROBLEM: Final = {"$ref": "#/components/responses/Problem"}
_OBJECTS: Final = {"type": "array", "items": {"$ref": "#/components/schemas/DicomJson"}}
_BINARY: Final[dict[str, Any]] = {}

_PARAMETERS: Final[dict[str, dict[str, Any]]] = {
    "study": {"description": "Study Instance UID", "schema": {"type": "string"}},
    "series": {"description": "Series Instance UID", "schema": {"type": "string"}},
    "instance": {"description": "SOP Instance UID", "schema": {"type": "string"}},
    "frames": {
        "description": "Frame numbers from 1, separated by commas",
        "schema": {"type": "string", "pattern": "^[1-9][0-9]*(,[1-9][0-9]*)*$"},
    },
    "path": {
        "description": "Path of an element: a tag, or tag/item/tag… into sequences",
        "schema": {"type": "string"},
    },
}

_SEARCH_PARAMETERS: Final[list[dict[str, Any]]] = [
    {"name": "limit", "in": "query", "schema": {"type": "integer", "minimum": 0}},
    {"name": "offset", "in": "query", "schema": {"type": "integer", "minimum": 0}},
    {"name": "fuzzymatching", "in": "query", "schema": {"type": "boolean"}},
    {
        "name": "includefield",
        "in": "query",
        "description": "Attributes to return besides: keywords, tags, or all",
        "schema": {"type": "array", "items": {"type": "string"}},
        "explode": False,
    },
    {
        "name": "attributes",
        "in": "query",
        "description": "Any attribute by keyword or tag, PS3.4 C.2.2.2: PatientName=DOE*, StudyDate=a-b",
        "schema": {"type": "object", "additionalProperties": {"type": "string"}},
        "style": "form",
        "explode": True,
    },
]


def _content(*kinds: str, schema: dict[str, Any] | None = None) -> dict[str, Any]:
    return {kind: {"schema": _BINARY if schema is None else schema} for kind in kinds}


def _get(summary: str, content: dict[str, Any], *, errors: str, tag: str, **more: Any) -> dict[str, Any]:
    responses: dict[str, Any] = {"200": {"description": "The answer", "content": content}}
    responses |= dict.fromkeys(errors.split(), _PROBLEM)
    return {"summary": summary, "tags": [tag], "responses": responses, **more}


def _search(summary: str) -> dict[str, Any]:
    return _get(
        summary, _content(_JSON, schema=_OBJECTS), errors="400 401 406 503", tag="QIDO-RS",
        parameters=_SEARCH_PARAMETERS,
    )  # fmt: skip


def _retrieve(summary: str) -> dict[str, Any]:
    return _get(
        summary,
        _content("multipart/related", "application/dicom"),
        errors="400 401 404 406 412 416 503",
        tag="WADO-RS",
    )


def _pixels(summary: str) -> dict[str, Any]:
    return _get(
        summary,
        _content("multipart/related", "application/octet-stream", "image/*"),
        errors="400 401 404 406 412 416 503",
        tag="WADO-RS",
    )


_RENDERED: Final[list[dict[str, Any]]] = [
    {
        "name": "window", "in": "query", "schema": {"type": "string"},
        "description": "center,width,function with linear, linear-exact or sigmoid (PS3.18 8.3.5.1.4)",
    },
    {
        "name": "viewport", "in": "query", "schema": {"type": "string"},
        "description": "vw,vh or vw,vh,sx,sy,sw,sh in pixels (PS3.18 8.3.5.1.3)",
    },
    {"name": "quality", "in": "query", "schema": {"type": "integer", "minimum": 1, "maximum": 100}},
    {
        "name": "annotation", "in": "query", "explode": False,
        "schema": {"type": "array", "items": {"type": "string", "enum": ["patient", "technique"]}},
    },
    {
        "name": "iccprofile", "in": "query",
        "schema": {"type": "string", "enum": ["no", "yes", "srgb", "adobergb", "rommrgb"]},
    },
]  # fmt: skip


def _render(summary: str) -> dict[str, Any]:
    content = _content("multipart/related", "image/jpeg", "image/png", "image/gif")
    return _get(summary, content, errors="400 401 404 406 412 503", tag="WADO-RS", parameters=_RENDERED)


def _thumbnail(summary: str) -> dict[str, Any]:
    content = _content("multipart/related", "image/jpeg", "image/png")
    errors = "400 401 404 406 412 503"
    return _get(summary, content, errors=errors, tag="WADO-RS", parameters=_RENDERED[1:2])


def _describe(summary: str) -> dict[str, Any]:
    return _get(summary, _content(_JSON, schema=_OBJECTS), errors="400 401 404 406 503", tag="WADO-RS")


def _store(summary: str) -> dict[str, Any]:
    result = {"content": _content(_JSON, schema={"$ref": "#/components/schemas/DicomJson"})}
    return {
        "summary": summary,
        "tags": ["STOW-RS"],
        "requestBody": {"required": True, "content": _content("multipart/related", "application/dicom")},
        "responses": {
            "200": {"description": "All stored, or held already", **result},
            "202": {"description": "Some stored, or stored with warnings", **result},
            "409": {"description": "None stored: the reasons", **result},
            **dict.fromkeys(("400", "401", "406", "413", "415", "503"), _PROBLEM),
        },
    }


def _delete(summary: str) -> dict[str, Any]:
    reason = {
        "name": "reason",
        "in": "query",
        "description": "Why: kept with the deletion",
        "schema": {"type": "string", "maxLength": REASON_CHARS_MAX},
    }
    return {
        "summary": summary,
        "tags": ["Deletion"],
        "parameters": [reason],
        "responses": {
            "204": {"description": "Gone"},
            **dict.fromkeys(("400", "401", "403", "404", "409", "503"), _PROBLEM),
        },
    }


def _plain(summary: str, kind: str, errors: str = "") -> dict[str, Any]:
    return _get(summary, _content(kind), errors=errors, tag="Operation")


#: (method, path) → operation.
OPERATIONS: Final[dict[tuple[str, str], dict[str, Any]]] = {
    ("GET", "/"): _plain("A page that says where everything is", "text/html", "401"),
    ("GET", "/healthz"): _plain("Whether the process answers", "application/json"),
    ("GET", "/healthz/live"): _plain("Whether the process answers", "application/json"),
    ("GET", "/healthz/ready"): _plain("Whether requests may be sent here", "application/json", "503"),
    ("GET", "/metrics"): _plain("Figures in Prometheus' text format", "text/plain", "401 404"),
    ("GET", "/openapi.json"): _plain("This document", "application/json", "401"),
    ("GET", f"{DICOM_WEB}/studies"): _search("Search for studies"),
    ("GET", f"{DICOM_WEB}/series"): _search("Search for series in all studies"),
    ("GET", f"{DICOM_WEB}/instances"): _search("Search for instances in all studies"),
    ("GET", f"{_STUDY}/series"): _search("Search for a study's series"),
    ("GET", f"{_STUDY}/instances"): _search("Search for a study's instances"),
    ("GET", f"{_SERIES}/instances"): _search("Search for a series' instances"),
    ("GET", _STUDY): _retrieve("Retrieve a study's instances"),
    ("GET", _SERIES): _retrieve("Retrieve a series' instances"),
    ("GET", _INSTANCE): _retrieve("Retrieve one instance"),
    ("GET", f"{_STUDY}/metadata"): _describe("Metadata of a study's instances"),
    ("GET", f"{_SERIES}/metadata"): _describe("Metadata of a series' instances"),
    ("GET", f"{_INSTANCE}/metadata"): _describe("Metadata of one instance"),
    ("GET", f"{_INSTANCE}/frames/{{frames}}"): _get(
        "Retrieve frames", _content("multipart/related", "application/octet-stream", "image/*"),
        errors="400 401 404 406 412 416 503", tag="WADO-RS",
    ),
    ("GET", f"{_INSTANCE}/bulkdata/{{path}}"): _get(
        "Retrieve the value of one element", _content("multipart/related", "application/octet-stream"),
        errors="400 401 404 406 412 416 503", tag="WADO-RS",
    ),
    ("GET", f"{_STUDY}/pixeldata"): _pixels("Pixel data of a study's instances"),
    ("GET", f"{_SERIES}/pixeldata"): _pixels("Pixel data of a series' instances"),
    ("GET", f"{_INSTANCE}/pixeldata"): _pixels("Pixel data of one instance"),
    ("GET", f"{_STUDY}/rendered"): _render("A study's images as pictures"),
    ("GET", f"{_SERIES}/rendered"): _render("A series' images as pictures"),
    ("GET", f"{_INSTANCE}/rendered"): _render("An instance as a picture, or as a film"),
    ("GET", f"{_INSTANCE}/frames/{{frames}}/rendered"): _render("Frames as pictures"),
    ("GET", f"{_STUDY}/thumbnail"): _thumbnail("A small picture that stands for a study"),
    ("GET", f"{_SERIES}/thumbnail"): _thumbnail("A small picture that stands for a series"),
    ("GET", f"{_INSTANCE}/thumbnail"): _thumbnail("A small picture of an instance"),
    ("GET", f"{_INSTANCE}/frames/{{frames}}/thumbnail"): _thumbnail("A small picture of a frame"),
    ("POST", f"{DICOM_WEB}/studies"): _store("Store instances"),
    ("POST", _STUDY): _store("Store instances of one study"),
    ("DELETE", _STUDY): _delete("Delete a study"),
    ("DELETE", _SERIES): _delete("Delete a series"),
    ("DELETE", _INSTANCE): _delete("Delete an instance, every version of it"),
}  # fmt: skip


def document() -> dict[str, Any]:
    """The whole document."""
    paths: dict[str, dict[str, Any]] = {}
    for (method, path), operation in OPERATIONS.items():
        item = paths.setdefault(path, {})
        names = [name for name in _PARAMETERS if f"{{{name}}}" in path]
        if names:
            item["parameters"] = [{"$ref": f"#/components/parameters/{name}"} for name in names]
        item[method.lower()] = operation
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Hounsfield",
            "version": __version__,
            "description": "A DICOM archive's web services: DICOMweb (PS3.18) and operation.",
        },
        "paths": paths,
        "components": {
            "parameters": {
                name: {"name": name, "in": "path", "required": True, **row}
                for name, row in _PARAMETERS.items()
            },
            "responses": {
                "Problem": {
                    "description": "What went wrong (RFC 9457)",
                    "content": {
                        "application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}
                    },
                }
            },
            "schemas": {
                "Problem": {
                    "type": "object",
                    "required": ["title", "status"],
                    "properties": {
                        "type": {"type": "string"},
                        "title": {"type": "string"},
                        "status": {"type": "integer"},
                        "detail": {"type": "string"},
                    },
                },
                "DicomJson": {
                    "description": "A DICOM JSON object (PS3.18 F.2)",
                    "type": "object",
                    "patternProperties": {"^[0-9A-F]{8}$": {"type": "object", "required": ["vr"]}},
                },
            },
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"bearer": []}],
    }
