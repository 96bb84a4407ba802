"""References to SOP instances, as the data sets of DIMSE-N services carry them (PS3.3 10.8). Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, NamedTuple

from hounsfield.archive.dicom.rewrite import element
from hounsfield.codecs.registry import TransferSyntax

__all__ = [
    "Reference",
    "encoded",
    "items_in",
    "reference",
    "reference_in",
    "referenced",
    "sequence",
    "text_in",
    "uid",
]

REFERENCED_SOP_CLASS_UID: Final = 0x00081150
REFERENCED_SOP_INSTANCE_UID: Final = 0x00081155
_ITEM: Final = b"\xfe\xff\x00\xe0"


class Reference(NamedTuple):
    """An instance that is spoken of, by its SOP class and its own UID."""

    sop_class_uid: str
    sop_instance_uid: str


def reference(one: Reference, syntax: TransferSyntax) -> bytes:
    """The two elements that name an instance, in a little endian ``syntax``."""
    named = uid(REFERENCED_SOP_CLASS_UID, one.sop_class_uid, syntax)
    return named + uid(REFERENCED_SOP_INSTANCE_UID, one.sop_instance_uid, syntax)


def referenced(model: Mapping[str, Any], tag: int) -> Iterator[Reference]:
    """What the items of a sequence refer to; "" for a UID that is not there."""
    return map(reference_in, items_in(model, tag))


def reference_in(item: Mapping[str, Any]) -> Reference:
    """What one item refers to."""
    return Reference(text_in(item, REFERENCED_SOP_CLASS_UID), text_in(item, REFERENCED_SOP_INSTANCE_UID))


def items_in(model: Mapping[str, Any], tag: int) -> Iterator[Mapping[str, Any]]:
    """The items of a sequence, in a model that :func:`~hounsfield.archive.dicom.selection.select` made."""
    for item in model.get(f"{tag:08X}", {}).get("Value", ()):
        if isinstance(item, dict):
            yield item


def text_in(model: Mapping[str, Any], tag: int) -> str:
    """The first value of an attribute in such a model, "" without one."""
    values = model.get(f"{tag:08X}", {}).get("Value", ())
    return str(values[0]).strip(" \0") if values else ""


def uid(tag: int, value: str, syntax: TransferSyntax) -> bytes:
    """An element of VR UI."""
    return encoded(tag, "UI", value.encode("ascii", "replace"), syntax)


def sequence(tag: int, items: Iterable[bytes], syntax: TransferSyntax) -> bytes:
    """A sequence of encoded items, of defined lengths (PS3.5 7.5.1)."""
    value = b"".join(_ITEM + len(item).to_bytes(4, "little") + item for item in items)
    return encoded(tag, "SQ", value, syntax)


def encoded(tag: int, vr: str, value: bytes, syntax: TransferSyntax) -> bytes:
    """Any element, in a little endian ``syntax``."""
    return element(tag, vr, value, implicit=syntax.implicit_vr, little=True)
