"""The OpenAPI 3.1 document, made of :mod:`~hounsfield.archive.web.operations`.

What every operation of a kind has in common (its name, ``accept``, ranges, conditions, problems) is added by
:func:`document`. The capabilities description (PS3.18 8.9) is made from the result.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from hounsfield import __version__
from hounsfield.archive.web.operations import OPERATIONS, PROBLEM, UNCHANGED
from hounsfield.archive.web.urls import DICOM_WEB

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

_ACCEPT: Final[dict[str, Any]] = {
    "name": "accept",
    "in": "query",
    "description": "Media types, in place of the Accept header (PS3.18 8.3.3.1)",
    "schema": {"type": "string"},
}

RETRIEVE_CAPABILITIES: Final = "RetrieveCapabilities"
_NAMES: Final = {"pixeldata": "PixelData", "{path}": "Bulkdata", "bulkdata": "AllBulkdata"}
_TAGS: Final = {
    "QIDO-RS": "Search (PS3.18 10.6)",
    "WADO-RS": "Retrieval (PS3.18 10.4)",
    "STOW-RS": "Storing (PS3.18 10.5)",
    "Capabilities": "What there is, for machines (PS3.18 8.9)",
    "Tiers": "Where studies lie, for those whom http.tiering_by names",
    "Operation": "For whoever runs the archive",
}


def operation_id(method: str, path: str) -> str:
    """The name of an operation, the standard's transaction where it has one (PS3.18 10)."""
    if path in (DICOM_WEB, f"{DICOM_WEB}/"):
        return RETRIEVE_CAPABILITIES + ("" if path.endswith("/") else "OfBase")
    words = [word for word in path.removeprefix(DICOM_WEB).split("/") if word]
    names = [_NAMES.get(word, word.strip("{}").title()) for word in words]
    if not path.startswith(f"{DICOM_WEB}/"):
        return method.title() + ("".join("".join(filter(str.isalnum, name)) for name in names) or "Start")
    levels = [name for word, name in zip(words, names, strict=True) if word.startswith("{")]
    last = names[-1]
    if method == "POST":
        return "Store" + "".join(levels) + ("Instances" if last in ("Studies", "Study") else last)
    if method == "GET" and words[-1] in ("studies", "series", "instances"):
        return "SearchFor" + "".join(levels) + last
    verb = "Retrieve" if method == "GET" else method.title()
    if words[-1].startswith("{"):
        return verb + last
    return verb + (levels[-1] if levels else "") + last


def _whole(method: str, path: str, operation: Mapping[str, Any]) -> dict[str, Any]:
    """An operation with what it has in common with others of its kind."""
    responses: dict[str, Any] = dict(operation["responses"])
    parameters = list(operation.get("parameters", ()))
    if "416" in responses:
        description = "The bytes that Range asks for"
        responses.setdefault("206", {"description": description, "content": responses["200"]["content"]})
    if "412" in responses and "200" in responses:
        responses.setdefault("304", UNCHANGED)
    if path.startswith(DICOM_WEB):
        responses.setdefault("default", PROBLEM)
        if method == "GET":
            parameters.append({"$ref": "#/components/parameters/accept"})
    whole = {"operationId": operation_id(method, path), **operation, "responses": responses}
    if parameters:
        whole["parameters"] = parameters
    if path.startswith("/healthz"):
        whole["security"] = []
    return whole


def document() -> dict[str, Any]:
    """The whole document."""
    paths: dict[str, dict[str, Any]] = {}
    for (method, path), operation in OPERATIONS.items():
        item = paths.setdefault(path, {})
        names = [name for name in _PARAMETERS if f"{{{name}}}" in path]
        if names:
            item["parameters"] = [{"$ref": f"#/components/parameters/{name}"} for name in names]
        item[method.lower()] = _whole(method, path, operation)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Hounsfield",
            "version": __version__,
            "description": "A DICOM archive's web services: DICOMweb (PS3.18) and operation.",
        },
        "tags": [{"name": name, "description": text} for name, text in _TAGS.items()],
        "paths": paths,
        "components": {
            "parameters": {
                name: {"name": name, "in": "path", "required": True, **row}
                for name, row in _PARAMETERS.items()
            }
            | {"accept": _ACCEPT},
            "responses": {
                "Problem": {
                    "description": "What went wrong (RFC 9457)",
                    "headers": {
                        "Retry-After": {
                            "description": "Seconds after which to ask again, of 503",
                            "schema": {"type": "integer"},
                        }
                    },
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
