"""Some attributes of an object, as DICOM JSON, without making JSON of all the others.

The wanted elements are cut out of the encoded header, with the few that say how they are read, and only
those are converted: of an enhanced object of 10,000 frames one attribute costs a walk over its top level.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec

from hounsfield.archive.dicom.attributes import SPECIFIC_CHARACTER_SET
from hounsfield.archive.dicom.deflated import plain_header
from hounsfield.archive.dicom.json import to_json
from hounsfield.archive.dicom.json_model import Model
from hounsfield.archive.dicom.scan import PIXEL_TAGS
from hounsfield.archive.dicom.walk import elements, looks_implicit
from hounsfield.codecs.registry import (
    EXPLICIT_VR_BIG_ENDIAN,
    EXPLICIT_VR_LITTLE_ENDIAN,
    IMPLICIT_VR_LITTLE_ENDIAN,
    TransferSyntax,
)

Buffer = bytes | bytearray | memoryview
Path = tuple[int, ...]

#: What says how others are read.
_CIRCUMSTANCES: Final = frozenset({SPECIFIC_CHARACTER_SET, 0x00280103})


def select(
    header: Buffer, transfer_syntax: TransferSyntax, paths: Iterable[Path], *, base_uri: str = ""
) -> Model:
    """The attributes that ``paths`` lead to, as a DICOM JSON object (PS3.18 F.2); those that are there.

    ``header`` is what stands before the pixel data, whose value, and what stands behind it, is never among
    them. Of private elements the creators come along. A path into sequences gives their items with what it
    leads to; an item that lacks it is empty. Reading stops at the last wanted tag: elements that wrongly
    stand behind it are not found. Never raises on bytes.
    """
    wanted = frozenset(paths)
    tags = frozenset(path[0] for path in wanted)
    creators = frozenset(tag & 0xFFFF0000 | tag >> 8 & 0xFF for tag in tags if _is_private(tag))
    keep = tags | creators | _CIRCUMSTANCES
    little = transfer_syntax.little_endian
    body = plain_header(header, transfer_syntax)
    implicit = looks_implicit(body, 0, len(body), transfer_syntax.implicit_vr)
    cut: list[bytes] = []
    start, last = 0, max(keep)
    for tag, _, at, length, undefined in elements(body, 0, len(body), implicit, little):
        after = min(at + length + 8 if undefined else at + length, len(body))
        if tag in keep and tag not in PIXEL_TAGS:
            cut.append(body[start:after])
        start = after
        if tag >= last:
            break
    native = EXPLICIT_VR_LITTLE_ENDIAN if little else EXPLICIT_VR_BIG_ENDIAN
    syntax = IMPLICIT_VR_LITTLE_ENDIAN if implicit and little else native
    model: Model = msgspec.json.decode(to_json(b"".join(cut), b"", syntax, base_uri=base_uri))
    shown = {f"{tag:08X}" for tag in tags | creators}
    return {key: element for key, element in prune(model, wanted).items() if key in shown}


def prune(model: Mapping[str, Any], paths: frozenset[Path]) -> Model:
    """A model whose sequences have only what ``paths`` lead to, where none of them names the whole."""
    pruned: Model = dict(model)
    inner: dict[int, set[Path]] = {}
    for path in paths:
        if len(path) > 1 and path[:1] not in paths:
            inner.setdefault(path[0], set()).add(path[1:])
    for tag, below in inner.items():
        key = f"{tag:08X}"
        element = pruned.get(key)
        if element is not None and element.get("vr") == "SQ" and "Value" in element:
            pruned[key] = {
                **element,
                "Value": [_item(item or {}, frozenset(below)) for item in element["Value"]],
            }
    return pruned


def _item(item: Mapping[str, Any], paths: frozenset[Path]) -> Model:
    keys = {f"{path[0]:08X}" for path in paths}
    keys |= {f"{path[0] & 0xFFFF0000 | path[0] >> 8 & 0xFF:08X}" for path in paths if _is_private(path[0])}
    return prune({key: element for key, element in item.items() if key in keys}, paths)


def _is_private(tag: int) -> bool:
    return bool(tag & 0x10000) and tag & 0xFFFF > 0xFF
