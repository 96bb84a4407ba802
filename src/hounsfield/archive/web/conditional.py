"""Entity tags, conditional requests and byte ranges (RFC 9110 8.8, 13, 14). Pure.

Stored bytes never change: other bytes under the same UIDs are another record. So a tag made of the record's
id (with the corrections in force, and what is given of the record) is a strong one; where the framing around
the bytes is new each time (multipart boundaries), or a codec made them, it is weak.

``If-Modified-Since`` holds only when it repeats our Last-Modified exactly: what is served may become an
*older* record when a newer one is deleted.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from email.utils import formatdate, parsedate_to_datetime
from typing import Final

from hounsfield import __version__
from hounsfield.archive.web.http import Scope
from hounsfield.archive.web.problems import Header, WebError
from hounsfield.archive.web.urls import header, headers

_TAG: Final = re.compile(r'\s*((?:W/)?"[\x21\x23-\x7e\x80-\xff]*"|\*)\s*(?:,|$)')
_RANGES: Final = re.compile(r"bytes\s*=((?:[\s0-9,-])+)", re.IGNORECASE | re.ASCII)
_RANGE: Final = re.compile(r"\s*(?:([0-9]{1,18})\s*-\s*([0-9]{0,18})|-\s*([0-9]{1,18}))\s*", re.ASCII)
RANGES_MAX: Final = 16
"""In one request: more of them, and small, are how little is asked and much is worked (RFC 9110 17.15)."""
_CONDITIONS: Final = frozenset(
    {b"if-match", b"if-none-match", b"if-modified-since", b"if-unmodified-since", b"range"}
)
_PRIVATE: Final = (b"cache-control", b"private, no-cache")
"""Only the user's own cache may keep patient data, and asks each time whether it is still right."""
_VARY: Final = (b"vary", b"accept")
_NS: Final = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Validators:
    """What tells one state of a resource from another.

    ``etag`` has its quotes; ``changed_ns`` 0: not known.
    """

    etag: str
    changed_ns: int = 0

    @property
    def is_strong(self) -> bool:
        """Whether equal tags mean equal bytes, so that ranges may be put together."""
        return not self.etag.startswith("W/")

    @property
    def last_modified(self) -> str:
        """As an HTTP date, "" when not known."""
        return formatdate(self.changed_ns // _NS, usegmt=True) if self.changed_ns else ""

    def headers(self) -> list[Header]:
        """The lines that an answer (304 too) carries of them."""
        lines = [(b"etag", self.etag.encode("ascii")), _PRIVATE, _VARY]
        if self.changed_ns:
            lines.append((b"last-modified", self.last_modified.encode("ascii")))
        return lines


_NOTHING: Final = hashlib.blake2b(__version__.encode(), digest_size=12)


def entity_tag(*parts: bytes | str, weak: bool = False) -> str:
    """The tag of what these parts name. ``weak``: bytes may differ although nothing changed."""
    digest = _NOTHING.copy()
    digest.update(
        b"\0".join([part.encode("utf-8", "replace") if isinstance(part, str) else part for part in parts])
    )
    return f'W/"{digest.hexdigest()}"' if weak else f'"{digest.hexdigest()}"'


def frame_tag(record_id: bytes, number: int, transfer_syntax_uid: str, *, weak: bool) -> str:
    """The tag of one frame, quickly made: viewers ask for hundreds a second."""
    tag = f'"{record_id.hex()}-{number}-{transfer_syntax_uid}"'
    return f"W/{tag}" if weak else tag


def has_conditions(scope: Scope) -> bool:
    """Whether the request has any header that this module heeds."""
    for name, _ in scope["headers"]:  # noqa: SIM110 - every frame asks: a generator takes twice as long
        if name in _CONDITIONS:
            return True
    return False


def is_unchanged(scope: Scope, validators: Validators) -> bool:
    """Whether 304 is the answer, in the order of RFC 9110 13.2.2.

    ``WebError`` (412) when a condition fails, 400 when one cannot be read.
    """
    if header(scope, b"if-match") is not None:
        tags = _tags(headers(scope, b"if-match"))
        if "*" not in tags and not (validators.is_strong and validators.etag in tags):
            raise WebError(412, "If-Match names another state of this resource; fetch it anew")
    else:
        since = _date(header(scope, b"if-unmodified-since"))
        if since is not None and validators.changed_ns // _NS > since:
            raise WebError(412, "this resource came after If-Unmodified-Since; fetch it anew")
    if header(scope, b"if-none-match") is not None:
        tags = [tag.removeprefix("W/") for tag in _tags(headers(scope, b"if-none-match"))]
        return "*" in tags or validators.etag.removeprefix("W/") in tags
    modified = header(scope, b"if-modified-since")
    if modified is None or not validators.changed_ns:
        return False
    return modified.decode("latin-1").strip() == validators.last_modified


def byte_ranges(scope: Scope, validators: Validators, length: int) -> list[tuple[int, int]]:
    """First byte and end of each range that Range asks of ``length`` bytes; none: the whole is to be sent.

    In the order asked for; where some overlap or touch, joined and in ascending order. Other units, what
    cannot be read, and more than :data:`RANGES_MAX` are answered with the whole, as RFC 9110 14.2 allows; so
    is an If-Range that names another state. ``WebError`` (416) when there are no such bytes at all.
    """
    wanted = header(scope, b"range")
    if wanted is None or scope["method"] != "GET":
        return []
    found = _RANGES.fullmatch(wanted.decode("latin-1").strip())
    if found is None:
        return []
    condition = header(scope, b"if-range")
    if condition is not None:
        text = condition.decode("latin-1").strip()
        if not (validators.is_strong and text == validators.etag) and text != validators.last_modified:
            return []
    specified = [_RANGE.fullmatch(part) for part in found[1].split(",") if part.strip()]
    if not 1 <= len(specified) <= RANGES_MAX:
        return []
    ranges: list[tuple[int, int]] = []
    for one in specified:
        if one is None:
            return []
        first, last, suffix = one.groups()
        if suffix is not None:
            start, stop = max(length - int(suffix), 0), length
        else:
            start, stop = int(first), min(int(last) + 1, length) if last else length
            if last and int(last) < start:
                return []
        if start < length and start < stop:
            ranges.append((start, stop))
    if not ranges:
        size = b"bytes */%d" % length
        raise WebError(416, "there are no such bytes in this resource", headers=[(b"content-range", size)])
    return _apart(ranges)


def _apart(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The same bytes by ranges of which none meets another: nothing is sent twice (RFC 9110 15.3.7.2)."""
    apart: list[tuple[int, int]] = []
    for start, stop in sorted(ranges):
        if apart and start <= apart[-1][1]:
            apart[-1] = apart[-1][0], max(apart[-1][1], stop)
        else:
            apart.append((start, stop))
    return ranges if len(apart) == len(ranges) else apart


def content_range(start: int, stop: int, length: int) -> Header:
    """The line that says which bytes a 206 has."""
    return b"content-range", b"bytes %d-%d/%d" % (start, stop - 1, length)


def _tags(lines: Sequence[str]) -> list[str]:
    text, at = ",".join(lines), 0
    found: list[str] = []
    while at < len(text):
        tag = _TAG.match(text, at)
        if tag is None:
            raise WebError(400, "If-Match and If-None-Match take entity tags in quotes, or *")
        found.append(tag[1])
        at = tag.end()
    return found


def _date(value: bytes | None) -> float | None:
    if value is None:
        return None
    try:
        return parsedate_to_datetime(value.decode("latin-1")).timestamp()
    except (ValueError, OverflowError):
        return None
