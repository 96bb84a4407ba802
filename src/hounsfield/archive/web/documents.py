"""Encapsulated PDFs as the documents that they are: rendered resources, and values of their media type.

A rendered PDF is the document itself, whole or by ranges (PS3.18 8.7.4); it is not drawn as a picture. Bulk
data that is an encapsulated document has the document's media type for who asks for it (8.7.3).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Final

from hounsfield.archive.dicom.bulk import find_bulk
from hounsfield.archive.engine.engine import Engine
from hounsfield.archive.engine.errors import NotFoundError
from hounsfield.archive.engine.types import Instance
from hounsfield.archive.web import accept
from hounsfield.archive.web.conditional import is_unchanged
from hounsfield.archive.web.files import validators_of
from hounsfield.archive.web.http import AsgiApp, Scope
from hounsfield.archive.web.multipart import closing, new_boundary, part_head
from hounsfield.archive.web.pixels import multipart_type
from hounsfield.archive.web.problems import WebError
from hounsfield.archive.web.responses import BuffersResponse, stretch_of, unchanged, whole_or_range
from hounsfield.codecs.registry import lookup
from hounsfield.storage_backends.api import Buffer

__all__ = ["DOCUMENT", "PDF", "document_answer", "is_pdf"]

PDF: Final = "application/pdf"
SOP_CLASS: Final = "1.2.840.10008.5.1.4.1.1.104.1"
DOCUMENT: Final = "00420011"
LENGTH: Final = "00420015"


def is_pdf(one: Instance) -> bool:
    """Whether an instance is an Encapsulated PDF (PS3.3 A.45.1)."""
    return one.row.sop_class_uid == SOP_CLASS


async def document_answer(
    scope: Scope, engine: Engine, one: Instance, ranges: Sequence[accept.MediaRange]
) -> AsgiApp:
    """The document. ``WebError`` (406) when that is not what is asked for, ``NotFoundError`` without one."""
    wanted = next((one for one in ranges if accept.covers(one.content_type, PDF)), None)
    if wanted is None:
        raise WebError(406, f"this is a document, which is given as {PDF}")
    validators = validators_of(one, "document", weak=wanted.is_multipart)
    if is_unchanged(scope, validators):
        return unchanged(validators)
    data = await engine.read(partial(_document, engine), one)
    if data is None:
        raise NotFoundError("there is no document in this instance")
    kind = PDF.encode()
    if not wanted.is_multipart:
        return whole_or_range(scope, validators, kind, len(data), partial(stretch_of, data))
    boundary = new_boundary()
    lines = [(b"content-type", multipart_type(PDF, boundary)), *validators.headers()]
    head = part_head(boundary, kind, len(data), first=True)
    return BuffersResponse(200, lines, (head, data, closing(boundary)))


def _document(engine: Engine, one: Instance) -> Buffer | None:
    """The document without the byte that makes its length even, where the object says how long it is."""
    header = engine.header_blocking(one)
    syntax = lookup(header.transfer_syntax_uid)
    found = find_bulk(header.head, header.trailer, syntax, DOCUMENT)
    if found is None:
        return None
    said = find_bulk(header.head, header.trailer, syntax, LENGTH)
    length = 0
    if said is not None and len(said.value) == 4:
        length = int.from_bytes(said.value, "little" if said.little_endian else "big")
    return found.value[:length] if length == len(found.value) - 1 else found.value
