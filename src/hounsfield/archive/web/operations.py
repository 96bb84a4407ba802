"""Every operation of the web services, kept by hand as data; a test holds them and the routes together.

Only what is an operation's own stands here. What all of a kind have in common
:mod:`~hounsfield.archive.web.openapi` adds.
"""

from __future__ import annotations

from typing import Any, Final

from hounsfield.archive.web.deletion import REASON_CHARS_MAX
from hounsfield.archive.web.tiers import TIERS
from hounsfield.archive.web.urls import DICOM_WEB

_STUDY: Final = f"{DICOM_WEB}/studies/{{study}}"
_SERIES: Final = f"{_STUDY}/series/{{series}}"
_INSTANCE: Final = f"{_SERIES}/instances/{{instance}}"

_JSON: Final = "application/dicom+json"
PROBLEM: Final = {"$ref": "#/components/responses/Problem"}
_OBJECTS: Final = {"type": "array", "items": {"$ref": "#/components/schemas/DicomJson"}}
_BINARY: Final[dict[str, Any]] = {}

_CHANGES_PARAMETERS: Final[list[dict[str, Any]]] = [
    {
        "name": "since",
        "in": "query",
        "description": "A cursor of an answer, now, or 0 for the beginning",
        "schema": {"type": "string", "pattern": "^(0|now|[0-9a-f]{16}-[0-9]{1,19})$"},
    },
    {"name": "limit", "in": "query", "schema": {"type": "integer", "minimum": 1}},
    {
        "name": "wait",
        "in": "query",
        "description": "Seconds that an answer without changes may wait for one",
        "schema": {"type": "number", "minimum": 0},
    },
    {
        "name": "Last-Event-ID",
        "in": "header",
        "description": "Of a stream: where it goes on, in place of since",
        "schema": {"type": "string"},
    },
]

_SEARCH_PARAMETERS: Final[list[dict[str, Any]]] = [
    {
        "name": "limit",
        "in": "query",
        "description": "Answers in one page; 1,000 when it is not given, and never more than 10,000",
        "schema": {"type": "integer", "minimum": 0},
    },
    {
        "name": "offset",
        "in": "query",
        "description": "Answers to leave out before the first",
        "schema": {"type": "integer", "minimum": 0, "maximum": 1_000_000_000},
    },
    {
        "name": "fuzzymatching",
        "in": "query",
        "description": "Person names by the beginnings of their words, in any order",
        "schema": {"type": "boolean"},
    },
    {
        "name": "includefield",
        "in": "query",
        "description": "Attributes to return besides: keywords, tags, paths into sequences (a.b), or all",
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


_URI_REQUIRED: Final = frozenset({"requestType", "studyUID", "seriesUID", "objectUID"})
_URI_PARAMETERS: Final[list[dict[str, Any]]] = [
    {"name": name, "in": "query", "required": name in _URI_REQUIRED, "schema": schema}
    for name, schema in {
        "requestType": {"type": "string", "enum": ["WADO"]},
        "studyUID": {"type": "string"},
        "seriesUID": {"type": "string"},
        "objectUID": {"type": "string"},
        "contentType": {"type": "string"},
        "transferSyntax": {"type": "string"},
        "frameNumber": {"type": "integer", "minimum": 1},
        "rows": {"type": "integer", "minimum": 1},
        "columns": {"type": "integer", "minimum": 1},
        "region": {"type": "string"},
        "windowCenter": {"type": "number"},
        "windowWidth": {"type": "number"},
        "imageQuality": {"type": "integer", "minimum": 1, "maximum": 100},
        "annotation": {"type": "string"},
        "presentationSeriesUID": {"type": "string"},
        "presentationUID": {"type": "string"},
    }.items()
]


def _query(name: str, kind: str, text: str, *, required: bool = False) -> dict[str, Any]:
    schema = {"type": kind, **({"minimum": 0} if kind == "integer" else {})}
    return {"name": name, "in": "query", "description": text, "required": required, "schema": schema}


def _content(*kinds: str, schema: dict[str, Any] | None = None) -> dict[str, Any]:
    return {kind: {"schema": _BINARY if schema is None else schema} for kind in kinds}


#: Of objects, in JSON or in parts of XML.
_DESCRIPTIONS: Final = _content(_JSON, "application/json", schema=_OBJECTS) | _content("multipart/related")
UNCHANGED: Final = {"description": "What If-None-Match names is still right"}
_WARNING: Final = {
    "description": "There are more answers, or a parameter was ignored (PS3.18 8.3.4)",
    "schema": {"type": "string"},
}


def _get(summary: str, content: dict[str, Any], *, errors: str, tag: str, **more: Any) -> dict[str, Any]:
    responses: dict[str, Any] = {"200": {"description": "The answer", "content": content}}
    responses |= dict.fromkeys(errors.split(), PROBLEM)
    return {"summary": summary, "tags": [tag], "responses": responses, **more}


def _search(summary: str) -> dict[str, Any]:
    found = _get(
        summary, _DESCRIPTIONS, errors="400 401 406 503", tag="QIDO-RS", parameters=_SEARCH_PARAMETERS
    )
    found["responses"]["200"] |= {"headers": {"Warning": _WARNING}}
    found["responses"]["204"] = {"description": "Nothing matches, and XML was asked for"}
    return found


def _retrieve(summary: str) -> dict[str, Any]:
    return _get(
        summary,
        _content("multipart/related", "application/dicom", "application/zip"),
        errors="400 401 404 406 412 416 503",
        tag="WADO-RS",
    )


def _all_bulk(summary: str) -> dict[str, Any]:
    return _get(summary, _content("multipart/related"), errors="400 401 404 406 412 503", tag="WADO-RS")


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
    content = _content(
        "multipart/related", "image/jpeg", "image/png", "image/gif", "video/mp4", "video/mpeg", "video/H265"
    )
    return _get(summary, content, errors="400 401 404 406 412 503", tag="WADO-RS", parameters=_RENDERED)


def _thumbnail(summary: str) -> dict[str, Any]:
    content = _content("multipart/related", "image/jpeg", "image/png")
    errors = "400 401 404 406 412 503"
    return _get(summary, content, errors=errors, tag="WADO-RS", parameters=_RENDERED[1:2])


def _describe(summary: str) -> dict[str, Any]:
    return _get(summary, _DESCRIPTIONS, errors="400 401 404 406 412 503", tag="WADO-RS")


def _store(summary: str) -> dict[str, Any]:
    schema = {"$ref": "#/components/schemas/DicomJson"}
    kinds = _content(_JSON, "application/json", schema=schema) | _content("application/dicom+xml")
    result = {"content": kinds}
    return {
        "summary": summary,
        "tags": ["STOW-RS"],
        "requestBody": {"required": True, "content": _content("multipart/related", "application/dicom")},
        "responses": {
            "200": {"description": "All stored, or held already", **result},
            "202": {"description": "Some stored, or stored with warnings", **result},
            "409": {"description": "None stored: the reasons", **result},
            **dict.fromkeys(("400", "401", "406", "413", "415", "503"), PROBLEM),
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
            **dict.fromkeys(("400", "401", "403", "404", "409", "503"), PROBLEM),
        },
    }


_TIER_RULES: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["tier_rules"],
    "additionalProperties": False,
    "properties": {
        "tier_rules": {
            "type": "array",
            "description": "Each as [[tier_rules]] of config.toml has it",
            "items": {
                "type": "object",
                "required": ["name", "action"],
                "properties": {
                    "name": {"type": "string"},
                    "action": {"enum": ["move", "copy", "recompress", "pin", "expire"]},
                    "match": {"type": "object"},
                    "to": {"type": "array", "items": {"type": "string"}},
                },
            },
        }
    },
}


def _tiers(
    summary: str, *parameters: dict[str, Any], status: str = "200", errors: str = ""
) -> dict[str, Any]:
    done: dict[str, Any] = {"description": "The answer", "content": _content("application/json")}
    if status == "204":
        done = {"description": "Done"}
    operation: dict[str, Any] = {
        "summary": summary,
        "tags": ["Tiers"],
        "responses": {status: done, **dict.fromkeys(("401", "403", *errors.split()), PROBLEM)},
    }
    return operation | ({"parameters": list(parameters)} if parameters else {})


def _plain(summary: str, kind: str, errors: str = "") -> dict[str, Any]:
    return _get(summary, _content(kind), errors=errors, tag="Operation")


def _capabilities(summary: str) -> dict[str, Any]:
    content = _content("application/vnd.sun.wadl+xml", "application/json")
    return _get(summary, content, errors="400 401 406", tag="Capabilities")


#: (method, path) → operation.
OPERATIONS: Final[dict[tuple[str, str], dict[str, Any]]] = {
    ("GET", "/"): _plain("A page that says where everything is", "text/html", "401"),
    ("GET", "/healthz"): _plain("Whether the process answers", "application/json"),
    ("GET", "/healthz/live"): _plain("Whether the process answers", "application/json"),
    ("GET", "/healthz/ready"): _plain("Whether requests may be sent here", "application/json", "503"),
    ("GET", "/metrics"): _plain("Figures in Prometheus' text format", "text/plain", "401 404"),
    ("GET", "/openapi.json"): _plain("This document", "application/json", "401"),
    ("OPTIONS", DICOM_WEB): _capabilities("What this service can do (WADL)"),
    ("OPTIONS", f"{DICOM_WEB}/"): _capabilities("What this service can do (WADL)"),
    ("GET", "/changes"): _get(
        "What changed in studies: a page of it, or a stream of server-sent events",
        _content("application/json", "text/event-stream"),
        errors="400 401 406 410 503", tag="Changes", parameters=_CHANGES_PARAMETERS,
    ),
    ("GET", TIERS): _tiers("What lies in which tier, what is being done, what waits"),
    ("GET", f"{TIERS}/plan"): _tiers(
        "What each rule would do now; changes nothing",
        _query("list", "integer", "How many series to list, 0 of them when it is not given"),
        errors="400",
    ),
    ("POST", f"{TIERS}/plan"): _tiers(
        "What other rules than those in force would do; changes nothing",
        _query("list", "integer", "How many series to list, 0 of them when it is not given"),
        errors="400 413",
    ) | {"requestBody": {"required": True, "content": _content("application/json", schema=_TIER_RULES)}},
    ("POST", f"{TIERS}/apply"): _tiers("Carry the rules out soon", status="202"),
    ("GET", f"{TIERS}/history"): _tiers(
        "What was moved, pinned, repaired or found damaged, newest first",
        _query("limit", "integer", "How many; 100 when it is not given, and never more than 1,000"),
        _query("before", "integer", "That of an answer, to go on"),
        errors="400",
    ),
    ("GET", f"{TIERS}/pins"): _tiers("The studies that are pinned"),
    ("POST", f"{TIERS}/studies/{{study}}/recall"): _tiers(
        "Bring a study back", status="202", errors="404"
    ),
    ("POST", f"{TIERS}/studies/{{study}}/series/{{series}}/recall"): _tiers(
        "Bring a series back", status="202", errors="404"
    ),
    ("PUT", f"{TIERS}/studies/{{study}}/pin"): _tiers(
        "Keep a study in the hot tier, and bring it back",
        _query("why", "string", "Why it stays: kept with the pin", required=True),
        _query("until", "string", "The last day (UTC), such as 2027-06-30"),
        errors="400",
    ),
    ("DELETE", f"{TIERS}/studies/{{study}}/pin"): _tiers(
        "Let the rules decide again", status="204", errors="404"
    ),
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
    ("GET", f"{_STUDY}/bulkdata"): _all_bulk("All bulk data of a study's instances"),
    ("GET", f"{_SERIES}/bulkdata"): _all_bulk("All bulk data of a series' instances"),
    ("GET", f"{_INSTANCE}/bulkdata"): _all_bulk("All bulk data of one instance"),
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
    ("GET", "/wado"): _get(
        "Retrieve one object as a file or a picture (WADO-URI, PS3.18 9)",
        _content("application/dicom", "image/jpeg", "image/png", "image/gif"),
        errors="400 401 404 406 412 416 503", tag="WADO-URI", parameters=_URI_PARAMETERS,
    ),
    ("POST", f"{DICOM_WEB}/studies"): _store("Store instances"),
    ("POST", _STUDY): _store("Store instances of one study"),
    ("DELETE", _STUDY): _delete("Delete a study"),
    ("DELETE", _SERIES): _delete("Delete a series"),
    ("DELETE", _INSTANCE): _delete("Delete an instance, every version of it"),
}  # fmt: skip
