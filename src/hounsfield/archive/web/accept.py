"""Content negotiation: what an Accept header allows, and which of it fits what is stored. Pure.

Media ranges come from the Accept header and the ``accept`` query parameter (PS3.18 8.3.3.1), whose
ranges go first. Parameter values may be quoted or not; ``type="application/octet-stream;
transfer-syntax=*"``, with parameters inside the quotes, is understood. Of ranges with the same quality
the earlier one wins.

What the archive does where PS3.18 8.7.3 leaves or demands a choice:

* No ``transfer-syntax`` parameter with ``application/dicom``: delivered as stored. The standard's default
  is Explicit VR Little Endian; viewers and other archives expect what is stored.
* ``application/octet-stream`` without the parameter is uncompressed little endian, as the standard says:
  compressed frames are decoded for it. As they are they match it only with ``transfer-syntax=*`` or their
  own; the part then has the media type that the bytes really are.
* ``image/…`` without the parameter takes every stored transfer syntax of that media type; what is stored
  otherwise is encoded in the media type's default.
* What is stored goes before what could be made of it; a range that neither meets gets 406.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Final, NamedTuple

from hounsfield.archive.web.http import Scope
from hounsfield.archive.web.problems import WebError
from hounsfield.archive.web.urls import parameters
from hounsfield.codecs.registry import (
    EXPLICIT_VR_LITTLE_ENDIAN,
    IMPLICIT_VR_LITTLE_ENDIAN,
    OCTETS,
    TransferSyntax,
    lookup,
)

DICOM: Final = "application/dicom"
ZIP: Final = "application/zip"
DICOM_JSON: Final = "application/dicom+json"
JSON: Final = "application/json"
MULTIPART: Final = "multipart/related"
NATIVE_SYNTAXES: Final = frozenset({EXPLICIT_VR_LITTLE_ENDIAN.uid, IMPLICIT_VR_LITTLE_ENDIAN.uid})

#: Names in use for the same bytes; the registry's name comes out.
_ALIASES: Final[dict[str, frozenset[str]]] = {
    "image/jphc": frozenset({"image/jphc", "image/jhc", "image/jph", "image/x-jphc"}),
    "image/jls": frozenset({"image/jls", "image/x-jls"}),
    "image/jp2": frozenset({"image/jp2", "image/x-jp2", "image/j2c", "image/j2k"}),
    "image/jpeg": frozenset({"image/jpeg", "image/jpg"}),
    "image/dicom-rle": frozenset({"image/dicom-rle", "image/x-dicom-rle"}),
}

#: What a media type without a transfer syntax means, where several are offered (PS3.18 Table 8.7.3-5).
_DEFAULTS: Final = frozenset(
    f"1.2.840.10008.1.2.{suffix}" for suffix in ("4.70", "4.80", "4.90", "4.110", "4.201", "5")
)

_WORD: Final = r"[!#$%&'*+.^_`|~0-9A-Za-z/-]+"
_TYPE: Final = re.compile(rf"\s*({_WORD})\s*", re.ASCII)
_PARAMETER: Final = re.compile(
    rf";\s*(?:({_WORD})\s*=\s*(?:\"((?:[^\"\\]|\\.)*)\"|({_WORD}))?)?\s*", re.ASCII
)


class AcceptError(WebError):
    """An Accept header or parameter that cannot be read: 400."""

    def __init__(self, detail: str) -> None:
        super().__init__(400, detail)


class MediaRange(NamedTuple):
    """One media range, names in lower case. ``part_type`` is the ``type`` parameter of multipart/related."""

    media_type: str
    part_type: str
    transfer_syntax: str
    quality: float

    @property
    def is_multipart(self) -> bool:
        return self.media_type == MULTIPART

    @property
    def content_type(self) -> str:
        """The media type of the content itself, in however many parts; ``*/*`` when nothing is said."""
        return (self.part_type or "*/*") if self.is_multipart else self.media_type


class Delivery(NamedTuple):
    """How content leaves: in parts or alone, named how."""

    multipart: bool
    media_type: str
    transfer_syntax: str


def parse(text: str) -> tuple[MediaRange, ...]:
    """The media ranges of an Accept header's value, best first; quality 0 is dropped. ``AcceptError``."""
    found: list[MediaRange] = []
    at = 0
    while at < len(text):
        if text[at] in ", \t":
            at += 1
            continue
        name = _TYPE.match(text, at)
        if name is None:
            raise AcceptError("the Accept header is not a list of media types")
        parameters: dict[str, str] = {}
        at = name.end()
        while at < len(text) and text[at] == ";":
            parameter = _PARAMETER.match(text, at)
            assert parameter is not None
            at = parameter.end()
            if parameter[1]:
                value = parameter[3] if parameter[2] is None else re.sub(r"\\(.)", r"\1", parameter[2])
                parameters.setdefault(parameter[1].lower(), (value or "").strip())
        if at < len(text) and text[at] != ",":
            raise AcceptError("the Accept header is not a list of media types")
        found.append(_range(name[1].lower(), parameters))
    return tuple(sorted((one for one in found if one.quality > 0), key=lambda one: -one.quality))


def _range(media_type: str, parameters: dict[str, str]) -> MediaRange:
    part_type = parameters.get("type", "")
    if ";" in part_type:
        part_type, _, rest = part_type.partition(";")
        for pair in rest.split(";"):
            key, _, value = pair.partition("=")
            parameters.setdefault(key.strip().lower(), value.strip(' "'))
    if media_type == "*":
        media_type = "*/*"
    elif media_type == "multipart/*":  # of which related is the one there is
        media_type = MULTIPART
    try:
        quality = min(1.0, max(0.0, float(parameters.get("q", "1") or "1")))
    except ValueError:
        quality = 1.0
    return MediaRange(media_type, part_type.strip().lower(), parameters.get("transfer-syntax", ""), quality)


def accepted(scope: Scope) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The Accept headers and ``accept`` parameters of a request."""
    query = scope["query_string"]
    given: tuple[str, ...] = ()
    if b"ccept" in query:
        given = tuple(value for name, value in parameters(scope) if name.lower() == "accept")
    return tuple([text.decode("latin-1") for name, text in scope["headers"] if name == b"accept"]), given


ANYTHING: Final = (MediaRange("*/*", "", "", 1.0),)


@lru_cache(maxsize=512)
def ranges_of(headers: tuple[str, ...], parameters: tuple[str, ...] = ()) -> tuple[MediaRange, ...]:
    """The ranges of all Accept headers of a request; ``accept`` parameters, if any, take their place."""
    text = ",".join(part for part in parameters if part.strip()) or ",".join(
        part for part in headers if part.strip()
    )
    return parse(text) if text else ANYTHING


def covers(pattern: str, media_type: str) -> bool:
    """Whether a media range names a media type, by any of its names."""
    if pattern in ("*/*", media_type):
        return True
    if pattern in _ALIASES.get(media_type, ()):
        return True
    return pattern.endswith("/*") and media_type.startswith(pattern[:-1])


@lru_cache(maxsize=1024)
def for_frames(
    ranges: tuple[MediaRange, ...],
    transfer_syntax_uid: str,
    offered: Callable[[str], Sequence[str]] | None = None,
    *,
    alone: bool,
) -> Delivery | None:
    """How frames of a stored transfer syntax may leave, None when no range allows it.

    ``offered`` says into which others frames of a transfer syntax can be brought. ``alone``: there is one
    frame, so that a range that is not multipart may be met.
    """
    syntax = lookup(transfer_syntax_uid)
    for one in ranges:
        if one.media_type != "*/*" and not one.is_multipart and not alone:
            continue
        if _fits_stored(one, syntax):
            chosen: str | None = syntax.uid
        else:
            chosen = _offered(one, offered(transfer_syntax_uid)) if offered is not None else None
        if chosen is None:
            continue
        given = lookup(chosen)
        named = given.uid if given.encapsulated else EXPLICIT_VR_LITTLE_ENDIAN.uid
        return Delivery(one.is_multipart or one.media_type == "*/*", given.media_type, named)
    return None


def _fits_stored(one: MediaRange, syntax: TransferSyntax) -> bool:
    native = not syntax.encapsulated
    explicit = one.transfer_syntax in (syntax.uid, "*") or (native and one.transfer_syntax in NATIVE_SYNTAXES)
    if one.transfer_syntax and not explicit:
        return False
    wanted = one.content_type
    return covers(wanted, syntax.media_type) or (covers(wanted, OCTETS) and (native or explicit))


def _offered(one: MediaRange, offered: Sequence[str]) -> str | None:
    """The best of the offered transfer syntaxes that a range allows."""
    native = EXPLICIT_VR_LITTLE_ENDIAN.uid
    wanted, named = one.content_type, one.transfer_syntax
    octets = covers(wanted, OCTETS)
    if named not in ("", "*"):
        if named in NATIVE_SYNTAXES:
            return native if octets and native in offered else None
        coded = lookup(named).encapsulated and named in offered
        return named if coded and (octets or covers(wanted, lookup(named).media_type)) else None
    if octets:
        return native if native in offered else None
    fitting = [uid for uid in offered if lookup(uid).encapsulated and covers(wanted, lookup(uid).media_type)]
    for uid in fitting:
        if uid in _DEFAULTS:
            return uid
    return next((uid for uid in fitting if lookup(uid).lossless), fitting[0] if fitting else None)


@lru_cache(maxsize=256)
def is_as_stored(delivery: Delivery, transfer_syntax_uid: str) -> bool:
    """Whether a frame leaves with the bytes it has, but for the order of bytes in native cells."""
    syntax = lookup(transfer_syntax_uid)
    given = lookup(delivery.transfer_syntax)
    return not given.encapsulated if not syntax.encapsulated else given.uid == syntax.uid


@lru_cache(maxsize=1024)
def for_bulk(ranges: tuple[MediaRange, ...], *, alone: bool, of: str = OCTETS) -> Delivery | None:
    """How bulk data that is no frame may leave: as octets, or as what it is ``of`` for who names that."""
    for one in ranges:
        if one.content_type == of != OCTETS and (one.is_multipart or alone):
            return Delivery(one.is_multipart, of, "")
        if covers(one.content_type, OCTETS) and (one.is_multipart or alone or one.media_type == "*/*"):
            multipart = one.is_multipart or one.media_type == "*/*"
            return Delivery(multipart, OCTETS, EXPLICIT_VR_LITTLE_ENDIAN.uid)
    return None


def for_instances(
    ranges: Sequence[MediaRange],
    transfer_syntax_uids: Sequence[str],
    offered: Callable[[str], Sequence[str]] | None = None,
    *,
    alone: bool,
) -> Delivery | None:
    """How objects of these stored transfer syntaxes may leave, None when no range allows all of them.

    ``offered`` says into which others objects of a transfer syntax can be brought.
    """
    for one in ranges:
        if one.media_type not in ("*/*", ZIP) and not one.is_multipart and not alone:
            continue
        media_type = ZIP if one.media_type == ZIP else DICOM
        if not covers(one.content_type, media_type):
            continue
        wanted = one.transfer_syntax
        if wanted not in ("", "*") and any(
            uid != wanted and (offered is None or wanted not in offered(uid)) for uid in transfer_syntax_uids
        ):
            continue
        multipart = one.is_multipart or one.media_type == "*/*"
        return Delivery(multipart, media_type, "" if wanted == "*" else wanted)
    return None


def for_json(ranges: Sequence[MediaRange]) -> str | None:
    """The media type that a DICOM JSON answer may have, None when no range allows JSON."""
    for one in ranges:
        for offered in (DICOM_JSON, JSON):
            if covers(one.content_type, offered):
                return offered
    return None


def takes_gzip(accept_encoding: str) -> bool:
    """Whether gzip is named (or covered by ``*``) with a quality above 0 (RFC 9110 12.5.3)."""
    return _takes(accept_encoding, "gzip", "x-gzip")


def takes_zstd(accept_encoding: str) -> bool:
    """The same of zstd (RFC 8878)."""
    return _takes(accept_encoding, "zstd")


def _takes(accept_encoding: str, *names: str) -> bool:
    wildcard = False
    for part in accept_encoding.lower().split(","):
        coding, _, parameters = part.partition(";")
        _, _, quality = parameters.replace(" ", "").partition("q=")
        try:
            wanted = float(quality or "1") > 0
        except ValueError:
            wanted = False
        if coding.strip() in names:
            return wanted
        if coding.strip() == "*":
            wildcard = wanted
    return wildcard
