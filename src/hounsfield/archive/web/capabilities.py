"""The capabilities description (PS3.18 8.9, Annex H): which resources there are, and what they take and give.

It is a WADL document, made from the OpenAPI document, so that both say the same. ``application/json`` gives
the same tree as JSON: an object for each element, its attributes and lists of its children by their names.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec

from hounsfield.archive.dicom.xml import quoted
from hounsfield.archive.web.accept import JSON, accepted, ranges_of
from hounsfield.archive.web.http import Scope
from hounsfield.archive.web.openapi import RETRIEVE_CAPABILITIES, document
from hounsfield.archive.web.problems import WebError
from hounsfield.archive.web.responses import BuffersResponse
from hounsfield.archive.web.urls import DICOM_WEB

WADL: Final = "application/vnd.sun.wadl+xml"
NAMESPACE: Final = "http://wadl.dev.java.net/2009/02"
_METHODS: Final = ("get", "post", "delete")

Node = dict[str, Any]
"""A WADL element: attributes are text, children lists of nodes by their element's name."""


def capabilities_response(scope: Scope, base: str) -> BuffersResponse:
    """The description of the service whose base URL is ``base``. ``WebError`` (406) when it is not taken."""
    application = describe(base)
    for one in ranges_of(*accepted(scope)):
        kinds = {WADL: (WADL, "application/*", "*/*"), JSON: (JSON,)}
        for media_type, ranges in kinds.items():
            if one.media_type in ranges:
                body = to_wadl(application) if media_type == WADL else _to_json(application)
                return BuffersResponse(200, [(b"content-type", media_type.encode("ascii"))], (body,))
    raise WebError(406, f"capabilities are described in {WADL} or {JSON}, which the request does not accept")


def describe(base: str) -> Node:
    """WADL's ``application`` element: one ``resources`` with every resource below the base URL."""
    found = document()
    top: Node = {"base": base, "resource": []}
    for path, item in found["paths"].items():
        if not path.startswith(f"{DICOM_WEB}/"):
            continue
        node = top
        for segment in path.removeprefix(f"{DICOM_WEB}/").split("/"):
            node = _child(node, segment)
        methods = [
            _method(method.upper(), item[method], found)
            for method in _METHODS
            if method in item and item[method]["operationId"] != RETRIEVE_CAPABILITIES
        ]
        if methods:
            node["method"] = methods
    top["resource"] = [node for node in top["resource"] if node["path"]]
    return {"resources": [top]}


def _child(node: Node, segment: str) -> Node:
    children: list[Node] = node.setdefault("resource", [])
    for child in children:
        if child["path"] == segment:
            return child
    child = {"path": segment}
    if segment.startswith("{"):
        child["param"] = [{"name": segment.strip("{}"), "style": "template", "required": "true"}]
    children.append(child)
    return child


def _method(name: str, operation: Mapping[str, Any], found: Mapping[str, Any]) -> Node:
    responses: list[Node] = []
    offered: list[str] = []
    for status, response in operation["responses"].items():
        if status == "default":
            continue
        kinds = list(_resolved(response, found).get("content", ()))
        if status == "200":
            offered = kinds
        responses.append({"status": status, "representation": [{"mediaType": kind} for kind in kinds]})
    request: Node = {"param": [_parameter(_resolved(one, found)) for one in operation.get("parameters", ())]}
    if offered:
        request["param"].insert(0, {
            "name": "Accept",
            "style": "header",
            "default": offered[0],
            "option": [{"value": kind} for kind in offered],
        })  # fmt: skip
    if "requestBody" in operation:
        content: Iterable[str] = operation["requestBody"]["content"]
        request["representation"] = [{"mediaType": kind} for kind in content]
    return {"name": name, "id": operation["operationId"], "request": [request], "response": responses}


def _parameter(parameter: Mapping[str, Any]) -> Node:
    node: Node = {"name": parameter["name"], "style": parameter["in"]}
    if parameter["schema"].get("type") == "array":
        node["repeating"] = "true"
    return node


def _resolved(value: Mapping[str, Any], found: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a reference within the OpenAPI document leads to; anything else is itself."""
    while "$ref" in value:
        target: Any = found
        for step in value["$ref"].removeprefix("#/").split("/"):
            target = target[step]
        value = target
    return value


def to_wadl(application: Node) -> bytes:
    """The XML of WADL's ``application`` element."""
    out = [f'<?xml version="1.0" encoding="UTF-8"?>\n<application xmlns="{NAMESPACE}">']
    _write(application, out)
    out.append("</application>\n")
    return "".join(out).encode("utf-8")


def _write(node: Node, out: list[str]) -> None:
    for name, children in node.items():
        if isinstance(children, str):
            continue
        for child in children:
            attributes = "".join(
                f" {key}={quoted(value)}" for key, value in child.items() if isinstance(value, str)
            )
            out.append(f"<{name}{attributes}>")
            _write(child, out)
            out.append(f"</{name}>")


def _to_json(application: Node) -> bytes:
    return msgspec.json.encode({"application": application})
