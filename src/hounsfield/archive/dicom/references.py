"""References to SOP instances, as the data sets of DIMSE-N services carry them (PS3.3 10.8). Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

from hounsfield.archive.dicom.rewrite import element
from hounsfield.codecs.registry import TransferSyntax

__all__ = ["Reference", "encoded", "reference", "sequence", "uid"]

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
