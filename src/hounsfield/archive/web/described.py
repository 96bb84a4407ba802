"""Answers that describe objects, as DICOM JSON or as XML (PS3.18 8.7.3.1, 8.7.4, Annex F; PS3.19 Annex A)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from hounsfield.archive.dicom.json_model import Model
from hounsfield.archive.dicom.xml import model_to_xml
from hounsfield.archive.engine.engine import Engine
from hounsfield.archive.web import accept
from hounsfield.archive.web.accept import accepted, ranges_of
from hounsfield.archive.web.http import Scope
from hounsfield.archive.web.multipart import closing, new_boundary, part_head
from hounsfield.archive.web.problems import Header, WebError
from hounsfield.archive.web.responses import BuffersResponse
from hounsfield.storage_backends.api import Buffer

DICOM_XML: Final = "application/dicom+xml"
_PART: Final = DICOM_XML.encode("ascii")


@dataclass(frozen=True, slots=True)
class Form:
    """How an answer is written: a JSON media type; or XML, as parts or, of one object, alone."""

    media_type: str
    multipart: bool = False

    @property
    def is_xml(self) -> bool:
        return self.media_type == DICOM_XML


def form_of(scope: Scope) -> Form:
    """The form that a request takes, JSON where it leaves the choice; ``WebError`` (406) when none.

    XML is given when it is named: several objects only as ``multipart/related``, which a request for one may
    leave out.
    """
    for one in ranges_of(*accepted(scope)):
        if one.content_type == DICOM_XML:
            return Form(DICOM_XML, one.is_multipart)
        media_type = accept.for_json((one,))
        if media_type is not None:
            return Form(media_type)
    raise WebError(
        406,
        "this is answered as application/dicom+json, or as multipart/related of application/dicom+xml,"
        " neither of which the request accepts",
    )


def xml_response(found: Sequence[bytes], form: Form, *, headers: Iterable[Header] = ()) -> BuffersResponse:
    """XML documents, one for each object. Of none, 204: a multipart message has at least one part."""
    if not found:
        return BuffersResponse(204, list(headers))
    if not form.multipart:
        if len(found) > 1:
            raise several_alone()
        return BuffersResponse(200, [(b"content-type", _PART), *headers], found)
    boundary = new_boundary()
    body: list[Buffer] = []
    for document in found:
        body += (part_head(boundary, _PART, len(document), first=not body), document)
    body.append(closing(boundary))
    return BuffersResponse(200, [(b"content-type", xml_type(boundary)), *headers], body)


def several_alone() -> WebError:
    """What is said to who takes one XML document, of several objects."""
    return WebError(406, "XML of several objects is multipart/related, which the request does not accept")


def xml_type(boundary: bytes) -> bytes:
    """The Content-Type of XML in parts."""
    return b'multipart/related; type="%b"; boundary="%b"' % (_PART, boundary)


async def xml_parts(
    engine: Engine, pieces: AsyncIterator[Sequence[Buffer]], boundary: bytes
) -> AsyncIterator[Sequence[Buffer]]:
    """The parts of a multipart body, from a JSON list whose every piece holds whole objects.

    A piece is ``[`` or ``,`` and objects joined by commas; the last one is ``]``, as prepared metadata comes.
    """
    first = True
    async for piece in pieces:
        text = b"".join(piece)[1:]
        if not text:
            continue
        body: list[Buffer] = []
        for document in await engine.read(documents, b"[" + text + b"]"):
            body += (part_head(boundary, _PART, len(document), first=first), document)
            first = False
        yield body
    yield (closing(boundary),)


def documents(text: bytes) -> list[bytes]:
    """A list of DICOM JSON objects as XML, each a document of its own."""
    models: list[Model] = msgspec.json.decode(text)
    return [model_to_xml(model) for model in models]
