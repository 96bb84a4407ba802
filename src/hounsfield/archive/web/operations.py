"""Every operation of the web services, kept by hand as data; a test holds them and the routes together.

Only what is an operation's own stands here. What all of a kind have in common
:mod:`~hounsfield.archive.web.openapi` adds.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

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


_ERRORS: Final = "400 401 404 406 412 503"
_RANGED_ERRORS: Final = "400 401 404 406 412 416 503"
_PARTS: Final = _content("multipart/related", "application/octet-stream", "application/pdf")
_PIXELS: Final = _content("multipart/related", "application/octet-stream", "image/*")
_PICTURES: Final = _content(
    "multipart/related", "image/jpeg", "image/png", "image/gif", "video/mp4", "video/mpeg", "video/H265",
    "application/pdf",
)  # fmt: skip


class _Kind(NamedTuple):
    """What the operations of one kind have alike."""

    tag: str
    content: dict[str, Any]
    errors: str
    parameters: list[dict[str, Any]] | None = None


_OBJECT_FILES: Final = _Kind(
    "WADO-RS", _content("multipart/related", "application/dicom", "application/zip"), _RANGED_ERRORS
)
_METADATA: Final = _Kind("WADO-RS", _DESCRIPTIONS, _ERRORS)
_FRAMES: Final = _Kind("WADO-RS", _PIXELS, _RANGED_ERRORS)
_ALL_BULK: Final = _Kind("WADO-RS", _content("multipart/related"), _ERRORS)
_ONE_BULK: Final = _Kind("WADO-RS", _PARTS, _RANGED_ERRORS)
_PICTURE: Final = _Kind("WADO-RS", _PICTURES, _RANGED_ERRORS, _RENDERED)
_THUMBNAIL: Final = _Kind(
    "WADO-RS", _content("multipart/related", "image/jpeg", "image/png"), _ERRORS, _RENDERED[1:2]
)
_FILE_BY_URI: Final = _Kind(
    "WADO-URI",
    _content("application/dicom", "image/jpeg", "image/png", "image/gif", "application/pdf"),
    _RANGED_ERRORS,
    _URI_PARAMETERS,
)
_SEARCH: Final = _Kind("QIDO-RS", _DESCRIPTIONS, "400 401 406 503", _SEARCH_PARAMETERS)
_CAPABILITIES: Final = _Kind(
    "Capabilities", _content("application/vnd.sun.wadl+xml", "application/json"), "400 401 406"
)
_CHANGES: Final = _Kind(
    "Changes", _content("application/json", "text/event-stream"), "400 401 406 410 503", _CHANGES_PARAMETERS
)


def _get(kind: _Kind, summary: str) -> dict[str, Any]:
    responses: dict[str, Any] = {"200": {"description": "The answer", "content": kind.content}}
    responses |= dict.fromkeys(kind.errors.split(), PROBLEM)
    operation: dict[str, Any] = {"summary": summary, "tags": [kind.tag], "responses": responses}
    return operation | ({"parameters": kind.parameters} if kind.parameters else {})


def _search(summary: str) -> dict[str, Any]:
    found = _get(_SEARCH, summary)
    found["responses"]["200"] |= {"headers": {"Warning": _WARNING}}
    found["responses"]["204"] = {"description": "Nothing matches, and XML was asked for"}
    return found


def _plain(summary: str, media_type: str, errors: str = "") -> dict[str, Any]:
    return _get(_Kind("Operation", _content(media_type), errors), summary)


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


#: (method, path) → operation.
OPERATIONS: Final[dict[tuple[str, str], dict[str, Any]]] = {
    ("GET", "/"): _plain("A page that says where everything is", "text/html", "401"),
    ("GET", "/healthz"): _plain("Whether the process answers", "application/json"),
    ("GET", "/healthz/live"): _plain("Whether the process answers", "application/json"),
    ("GET", "/healthz/ready"): _plain("Whether requests may be sent here", "application/json", "503"),
    ("GET", "/metrics"): _plain("Figures in Prometheus' text format", "text/plain", "401 404"),
    ("GET", "/openapi.json"): _plain("This document", "application/json", "401"),
    ("OPTIONS", DICOM_WEB): _get(_CAPABILITIES, "What this service can do (WADL)"),
    ("OPTIONS", f"{DICOM_WEB}/"): _get(_CAPABILITIES, "What this service can do (WADL)"),
    ("GET", "/changes"): _get(
        _CHANGES, "What changed in studies: a page of it, or a stream of server-sent events"
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
    ("GET", _STUDY): _get(_OBJECT_FILES, "Retrieve a study's instances"),
    ("GET", _SERIES): _get(_OBJECT_FILES, "Retrieve a series' instances"),
    ("GET", _INSTANCE): _get(_OBJECT_FILES, "Retrieve one instance"),
    ("GET", f"{_STUDY}/metadata"): _get(_METADATA, "Metadata of a study's instances"),
    ("GET", f"{_SERIES}/metadata"): _get(_METADATA, "Metadata of a series' instances"),
    ("GET", f"{_INSTANCE}/metadata"): _get(_METADATA, "Metadata of one instance"),
    ("GET", f"{_INSTANCE}/frames/{{frames}}"): _get(_FRAMES, "Retrieve frames"),
    ("GET", f"{_STUDY}/bulkdata"): _get(_ALL_BULK, "All bulk data of a study's instances"),
    ("GET", f"{_SERIES}/bulkdata"): _get(_ALL_BULK, "All bulk data of a series' instances"),
    ("GET", f"{_INSTANCE}/bulkdata"): _get(_ALL_BULK, "All bulk data of one instance"),
    ("GET", f"{_INSTANCE}/bulkdata/{{path}}"): _get(_ONE_BULK, "Retrieve the value of one element"),
    ("GET", f"{_STUDY}/pixeldata"): _get(_FRAMES, "Pixel data of a study's instances"),
    ("GET", f"{_SERIES}/pixeldata"): _get(_FRAMES, "Pixel data of a series' instances"),
    ("GET", f"{_INSTANCE}/pixeldata"): _get(_FRAMES, "Pixel data of one instance"),
    ("GET", f"{_STUDY}/rendered"): _get(_PICTURE, "A study's images as pictures"),
    ("GET", f"{_SERIES}/rendered"): _get(_PICTURE, "A series' images as pictures"),
    ("GET", f"{_INSTANCE}/rendered"): _get(_PICTURE, "An instance as a picture, or as a film"),
    ("GET", f"{_INSTANCE}/frames/{{frames}}/rendered"): _get(_PICTURE, "Frames as pictures"),
    ("GET", f"{_STUDY}/thumbnail"): _get(_THUMBNAIL, "A small picture that stands for a study"),
    ("GET", f"{_SERIES}/thumbnail"): _get(_THUMBNAIL, "A small picture that stands for a series"),
    ("GET", f"{_INSTANCE}/thumbnail"): _get(_THUMBNAIL, "A small picture of an instance"),
    ("GET", f"{_INSTANCE}/frames/{{frames}}/thumbnail"): _get(_THUMBNAIL, "A small picture of a frame"),
    ("GET", "/wado"): _get(_FILE_BY_URI, "Retrieve one object as a file or a picture (WADO-URI, PS3.18 9)"),
    ("POST", f"{DICOM_WEB}/studies"): _store("Store instances"),
    ("POST", _STUDY): _store("Store instances of one study"),
    ("DELETE", _STUDY): _delete("Delete a study"),
    ("DELETE", _SERIES): _delete("Delete a series"),
    ("DELETE", _INSTANCE): _delete("Delete an instance, every version of it"),
}  # fmt: skip
