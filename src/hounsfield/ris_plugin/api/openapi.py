"""The OpenAPI 3.1 document of ``/ris/api``, made of the same rows as its routes."""

from __future__ import annotations

from functools import cache
from typing import Any, Final

import msgspec

from hounsfield.ris_plugin.api.endpoints import Endpoint
from hounsfield.ris_plugin.api.performing import KEY, KEY_CHARACTERS_MAX
from hounsfield.ris_plugin.api.table import ENDPOINTS

__all__ = ["document"]

BASE: Final = "/ris/api"
_REF: Final = "#/components/schemas/{name}"
_PROBLEM: Final = {"$ref": "#/components/responses/Problem"}
_TAGS: Final = {
    "Patients": "Who they are to whom, and what was merged",
    "Orders": "What was asked for, protocolled and answered for",
    "Schedule": "Free times, appointments, the waiting list",
    "Examinations": "The worklist, what was performed, images on their way",
    "Mismatches": "Studies that belong to no order by themselves",
    "Reports": "Read, written, signed, corrected",
    "Templates": "What a report begins with, and short words for long texts",
    "Catalog": "Procedures, rooms, devices, people",
    "Messages": "HL7, for who runs the system",
}
_DESCRIPTION: Final = """\
The work around the images. Every request is somebody's: the holder of its bearer token is a person of the
RIS, whose roles say what he may do. Moments are RFC 3339; without an offset they are the department's. Lists
come page by page: `next` is the `after` of the next one. What was read has an ETag; If-Match refuses (412)
what somebody else has changed meanwhile. A change under an Idempotency-Key is made once, and
answered again as it was. `WS /ris/api/live` tells what changes, as it does.
"""


@cache
def document() -> dict[str, Any]:
    """The whole document."""
    types = list(
        dict.fromkeys(
            one
            for endpoint in ENDPOINTS
            for one in (endpoint.answer, endpoint.body, endpoint.query)
            if one is not None
        )
    )
    schemas, components = msgspec.json.schema_components(types, ref_template=_REF)
    of = dict(zip(types, schemas, strict=True))
    queries = {
        endpoint.query: components.pop(of[endpoint.query]["$ref"].rpartition("/")[2], {})
        for endpoint in ENDPOINTS
        if endpoint.query in of and "$ref" in of[endpoint.query]
    }
    paths: dict[str, dict[str, Any]] = {}
    for endpoint in ENDPOINTS:
        item = paths.setdefault(f"{BASE}{endpoint.path}", {})
        item[endpoint.method.lower()] = _operation(endpoint, of, queries)
    whole: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": "Hounsfield RIS", "version": "1", "description": _DESCRIPTION},
        "tags": [{"name": name, "description": text} for name, text in _TAGS.items()],
        "paths": paths,
        "components": {
            "schemas": {**components, "Problem": _problem()},
            "responses": {
                "Problem": {
                    "description": "It was not done, and why (RFC 9457)",
                    "content": {
                        "application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}
                    },
                }
            },
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"bearer": []}],
    }
    plain: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(whole))  # without tuples
    return plain


def _operation(endpoint: Endpoint, of: dict[Any, Any], queries: dict[Any, Any]) -> dict[str, Any]:
    parameters: list[dict[str, Any]] = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in endpoint.parameters
    ]
    query = queries.get(endpoint.query, {})
    parameters += [
        {
            "name": name,
            "in": "query",
            "required": name in query.get("required", ()),
            "schema": schema,
        }
        for name, schema in query.get("properties", {}).items()
    ]
    if endpoint.kind is not None:
        parameters.append(
            {
                "name": "If-Match",
                "in": "header",
                "required": endpoint.must_match,
                "description": "The ETag that it was read with",
                "schema": {"type": "string"},
            }
        )
    if not endpoint.is_read:
        parameters.append(
            {
                "name": KEY,
                "in": "header",
                "required": False,
                "description": "Asked again under the same one, it is answered as it was, and not done again",
                "schema": {"type": "string", "maxLength": KEY_CHARACTERS_MAX},
            }
        )
    done: dict[str, Any] = {"description": "Done"}
    if endpoint.answer is not None:
        done = {
            "description": "What it is now" if not endpoint.is_read else "What there is",
            "content": {"application/json": {"schema": of[endpoint.answer]}},
        }
        if "version" in endpoint.answer.__struct_fields__:
            done["headers"] = {"ETag": {"schema": {"type": "string"}, "description": "Its version"}}
    status = str(endpoint.status) if endpoint.answer is not None else "204"
    operation: dict[str, Any] = {
        "operationId": endpoint.name,
        "tags": [endpoint.tag],
        "summary": endpoint.summary,
        "description": f"{_description(query)}For: {', '.join(endpoint.roles)}.",
        "parameters": parameters,
        "responses": {status: done, "default": _PROBLEM},
    }
    if endpoint.body is not None:
        operation["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": of[endpoint.body]}},
        }
    return operation


def _description(query: dict[str, Any]) -> str:
    text = " ".join(query.get("description", "").split())
    return f"{text} " if text and query.get("properties") else ""


def _problem() -> dict[str, Any]:
    return {
        "type": "object",
        "required": ["title", "status"],
        "properties": {
            "type": {"type": "string"},
            "title": {"type": "string"},
            "status": {"type": "integer"},
            "detail": {"type": "string"},
            "field": {"type": "string", "description": "Which value cannot be"},
        },
    }
