"""Bulk data by the paths that DICOM JSON's links end in (PS3.18 F.2.6)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final, NamedTuple, TypeAlias

from hounsfield.archive.dicom.deflated import plain_header
from hounsfield.archive.dicom.ends import trailer_start
from hounsfield.archive.dicom.scan import PIXEL_TAGS
from hounsfield.archive.dicom.walk import elements, items, looks_implicit
from hounsfield.codecs.registry import TransferSyntax

Buffer = bytes | bytearray | memoryview

_PATH: Final = re.compile(r"[0-9A-Fa-f]{8}(?:/[1-9][0-9]{0,8}/[0-9A-Fa-f]{8}){0,32}", re.ASCII)


_Tree: TypeAlias = "dict[int, _Tree]"
"""Steps of paths, tags and numbers of items in turn; nothing below a step at which a path ends."""


class Bulk(NamedTuple):
    """A bulk element's value, as received: byte order is the transfer syntax's."""

    vr: str
    value: memoryview
    little_endian: bool


def find_bulk(header: Buffer, trailer: Buffer, transfer_syntax: TransferSyntax, path: str) -> Bulk | None:
    """The element that a BulkDataURI's path names, or None: no such path, no such element, or pixel data.

    Pixel data at the top level is not in these slices; its frames are cut (``scan``).
    """
    if not _PATH.fullmatch(path):
        return None
    steps = path.split("/")
    if int(steps[0], 16) in PIXEL_TAGS:
        return None
    body = plain_header(header, transfer_syntax)
    little = transfer_syntax.little_endian
    implicit = looks_implicit(body, 0, len(body), transfer_syntax.implicit_vr)
    found = _find(body, 0, len(body), implicit, little, steps)
    if found is None and len(trailer):
        tail = bytes(trailer)
        start = trailer_start(body, tail, implicit, little)
        found = _find(tail, start, len(tail), implicit, little, steps)
    return found


def _find(  # noqa: PLR0917
    data: bytes, start: int, end: int, implicit: bool, little: bool, steps: list[str]
) -> Bulk | None:
    wanted = int(steps[0], 16)
    for tag, vr, at, length, undefined in elements(data, start, end, implicit, little):
        if tag != wanted:
            continue
        if len(steps) == 1:
            # A sequence too is given, as it is encoded: metadata links to one that is too long for it.
            return Bulk("UN" if vr == "SQ" else vr, memoryview(data)[at : at + length], little)
        inner = implicit or (vr == "UN" and not undefined)
        for number, (item_start, item_end, item_implicit) in enumerate(
            items(data, at, at + length, inner, little), start=1
        ):
            if number == int(steps[1]):
                return _find(data, item_start, item_end, item_implicit, little, steps[2:])
        return None
    return None


def find_all_bulk(
    header: Buffer, trailer: Buffer, transfer_syntax: TransferSyntax, paths: Iterable[str]
) -> list[tuple[str, Bulk]]:
    """The elements that these paths name, in the order in which they are stored, found in one walk.

    Pixel data at the top level, and what is not there, is left out.
    """
    wanted: _Tree = {}
    for path in paths:
        steps = path.split("/")
        if not _PATH.fullmatch(path) or int(steps[0], 16) in PIXEL_TAGS:
            continue
        below = wanted
        for step in steps[:-1]:
            below = below.setdefault(int(step, 16), {})
        below.setdefault(int(steps[-1], 16), {})
    body = plain_header(header, transfer_syntax)
    little = transfer_syntax.little_endian
    implicit = looks_implicit(body, 0, len(body), transfer_syntax.implicit_vr)
    found: list[tuple[str, Bulk]] = []
    _find_all(body, 0, len(body), implicit, little, wanted, "", found)
    if len(trailer) and wanted:
        tail = bytes(trailer)
        start = trailer_start(body, tail, implicit, little)
        _find_all(tail, start, len(tail), implicit, little, wanted, "", found)
    return found


def _find_all(  # noqa: PLR0917
    data: bytes,
    start: int,
    end: int,
    implicit: bool,
    little: bool,
    wanted: _Tree,
    before: str,
    found: list[tuple[str, Bulk]],
) -> None:
    for tag, vr, at, length, undefined in elements(data, start, end, implicit, little):
        below = wanted.get(tag)
        if below is None:
            continue
        path = f"{before}{tag:08X}"
        if not below:
            value = Bulk("UN" if vr == "SQ" else vr, memoryview(data)[at : at + length], little)
            found.append((path, value))
            continue
        inner = implicit or (vr == "UN" and not undefined)
        for number, (item_start, item_end, item_implicit) in enumerate(
            items(data, at, at + length, inner, little), start=1
        ):
            # Items are counted from 1 and written in decimal; the tree holds all steps as they read in hex.
            item = below.get(int(str(number), 16))
            if item is not None:
                _find_all(data, item_start, item_end, item_implicit, little, item, f"{path}/{number}/", found)
