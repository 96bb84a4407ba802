"""Where clients reach this archive: the start of every URL that answers carry."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Final
from urllib.parse import parse_qsl

from hounsfield.archive.web.http import Scope
from hounsfield.archive.web.problems import WebError

DICOM_WEB: Final = "/dicom-web"
FORWARDED_PREFIX: Final = "hounsfield.forwarded_prefix"
"""Of a request's scope: the path below which a trusted proxy shows this archive."""
PARAMETERS_MAX: Final = 512
"""Of a query string, before anything is made of them; QIDO-RS has its own, lower limit."""

HOST: Final = re.compile(rb"[0-9A-Za-z._~-]+(:[0-9]{1,5})?|\[[0-9A-Fa-f:.]+\](:[0-9]{1,5})?")


def header(scope: Scope, name: bytes) -> bytes | None:
    """The first header of that (lower-case) name."""
    for key, value in scope["headers"]:
        if key == name:
            found: bytes = value
            return found
    return None


def headers(scope: Scope, name: bytes) -> list[str]:
    """Every value of the headers of that (lower-case) name."""
    found: Iterable[bytes] = (value for key, value in scope["headers"] if key == name)
    return [value.decode("latin-1") for value in found]


def parameters(scope: Scope) -> list[tuple[str, str]]:
    """The decoded query parameters in order. ``WebError`` (400) when there are absurdly many."""
    try:
        return parse_qsl(
            scope["query_string"].decode("latin-1"), keep_blank_values=True, max_num_fields=PARAMETERS_MAX
        )
    except ValueError:
        raise WebError(400, f"more than {PARAMETERS_MAX} query parameters") from None


def base_url(scope: Scope, configured: str) -> str:
    """The URL of the DICOMweb root, without a slash at its end.

    The configured one; else the scheme and Host of the request, as a trusted proxy tells them
    (:mod:`.forwarded`) or as they came; a path when there is no usable Host.

    A Host that is this very socket's address without its port (dicomweb-client sends that) gets the port.
    """
    if configured:
        return configured.rstrip("/") + DICOM_WEB
    host = header(scope, b"host")
    return _base_url(host, scope["scheme"], scope.get("server"), scope.get(FORWARDED_PREFIX, ""))


@lru_cache(maxsize=256)
def _base_url(host: bytes | None, scheme: str, server: tuple[str, int | None] | None, prefix: str) -> str:
    if host is None or not HOST.fullmatch(host):
        return DICOM_WEB
    name = host.decode("ascii")
    if server is not None and server[1] not in (None, 80, 443):
        own = f"[{server[0]}]" if ":" in server[0] else server[0]
        if name == own or (name == "localhost" and (own.startswith("127.") or own == "[::1]")):
            name = f"{name}:{server[1]}"
    return f"{scheme}://{name}{prefix}{DICOM_WEB}"


def study_url(base: str, study: str) -> str:
    return f"{base}/studies/{study}"


def series_url(base: str, study: str, series: str) -> str:
    return f"{base}/studies/{study}/series/{series}"


def instance_url(base: str, study: str, series: str, instance: str) -> str:
    return f"{base}/studies/{study}/series/{series}/instances/{instance}"
