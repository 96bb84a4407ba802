"""What a transcoded object says of itself: its pixels' attributes, and that something was lost if so.

PS3.5 8.2 says what Photometric Interpretation and Planar Configuration are with each transfer syntax; PS3.3
C.7.6.1.1.5 what an image says of lossy compression, C.7.6.3.1 the rest.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Final

from hounsfield.archive.dicom.rewrite import element
from hounsfield.archive.engine.types import Instance
from hounsfield.codecs.pixels import PixelFormat, decoded_format

_ROOT: Final = "1.2.840.10008.1.2"
JPEG_BASELINE: Final = f"{_ROOT}.4.50"
#: Where our encoder loses something, and the method's name (PS3.3 C.7.6.1.1.5.1).
LOSSY_METHODS: Final = {JPEG_BASELINE: "ISO_10918_1"}
#: What is decoded from these has lost something, whether or not its attributes say so.
SURELY_LOSSY: Final = frozenset(f"{_ROOT}.4.{number}" for number in (50, 51, 53, 55))
#: RGB goes through a reversible colour transform (PS3.5 8.2.4, 8.2.14).
_WITH_COLOUR_TRANSFORM: Final = frozenset(f"{_ROOT}.4.{number}" for number in (90, 91, 201, 202, 203))

IMAGE_TYPE, SOP_INSTANCE_UID = 0x00080008, 0x00080018
DERIVATION_DESCRIPTION, SOURCE_IMAGES, DERIVATION_CODES = 0x00082111, 0x00082112, 0x00089215
PHOTOMETRIC, PLANAR = 0x00280004, 0x00280006
LOSSY, LOSSY_RATIO, LOSSY_METHOD = 0x00282110, 0x00282112, 0x00282114

_ITEM: Final = b"\xfe\xff\x00\xe0"


@dataclass(slots=True)
class Derivation:
    """Attributes to set, and items to add to sequences; both for ``dicom.recoding``."""

    changes: dict[int, tuple[str, bytes] | None] = field(default_factory=dict)
    items_added: dict[int, bytes] = field(default_factory=dict)


def derivation(
    instance: Instance,
    pixels: PixelFormat,
    target_uid: str,
    *,
    ratio: float | None = None,
    ratios_before: str = "",
    methods_before: str = "",
) -> Derivation:
    """What changes in an object whose frames are decoded and encoded for ``target_uid``.

    ``ratio``: bytes of the plain pixels to bytes of the compressed ones, when that loses something; then the
    object is another one, with a UID that is the same whenever this object is asked for so.
    """
    made = Derivation()
    plain = decoded_format(instance.row.transfer_syntax_uid, pixels)
    photometric = plain.photometric
    if plain.samples == 3:
        if target_uid == JPEG_BASELINE:
            photometric = "YBR_FULL_422"
        elif target_uid in _WITH_COLOUR_TRANSFORM and photometric == "RGB":
            photometric = "YBR_RCT"
        made.changes[PLANAR] = ("US", b"\0\0")
    if photometric and photometric != pixels.photometric:
        made.changes[PHOTOMETRIC] = ("CS", photometric.encode("ascii"))
    if instance.row.transfer_syntax_uid in SURELY_LOSSY or ratio is not None:
        made.changes[LOSSY] = ("CS", b"01")
    if ratio is None:
        return made
    method = LOSSY_METHODS[target_uid]
    made.changes[LOSSY_RATIO] = ("DS", _joined(ratios_before, f"{ratio:.4f}"))
    made.changes[LOSSY_METHOD] = ("CS", _joined(methods_before, method))
    kinds = instance.row.attributes.get(IMAGE_TYPE, "ORIGINAL\\PRIMARY").split("\\")
    made.changes[IMAGE_TYPE] = ("CS", "\\".join(["DERIVED", *kinds[1:]]).encode("latin-1", "replace"))
    made.changes[SOP_INSTANCE_UID] = ("UI", derived_uid(instance.row.sop_uid, target_uid).encode("ascii"))
    made.changes[DERIVATION_DESCRIPTION] = ("ST", f"Lossy compression ({method}), ratio {ratio:.1f}".encode())
    made.items_added[DERIVATION_CODES] = _code("113040", "DCM", "Lossy Compression")
    made.items_added[SOURCE_IMAGES] = _source_image(instance)
    return made


def derived_uid(sop_uid: str, target_uid: str) -> str:
    """The UID of an object compressed so: a UUID (PS3.5 B.2) out of the original's, the same every time."""
    digest = hashlib.blake2b(f"{sop_uid}\n{target_uid}".encode(), digest_size=16, person=b"lossy derivation")
    number = int.from_bytes(digest.digest(), "big")
    number = number & ~(0xF << 76) | (8 << 76)  # version 8: of the maker's own choice (RFC 9562)
    number = number & ~(0x3 << 62) | (0x2 << 62)
    return f"2.25.{number}"


def _joined(before: str, value: str) -> bytes:
    return (f"{before}\\{value}" if before else value).encode("ascii", "replace")


def _explicit(tag: int, vr: str, value: bytes) -> bytes:
    return element(tag, vr, value, implicit=False, little=True)


def _item(*parts: bytes) -> bytes:
    content = b"".join(parts)
    return _ITEM + len(content).to_bytes(4, "little") + content


def _code(value: str, scheme: str, meaning: str) -> bytes:
    """A coded entry (PS3.3 8.8)."""
    return _item(
        _explicit(0x00080100, "SH", value.encode()),
        _explicit(0x00080102, "SH", scheme.encode()),
        _explicit(0x00080104, "LO", meaning.encode()),
    )


def _source_image(instance: Instance) -> bytes:
    """The original as the source (PS3.3 C.12.4.1.2): code 121320 of PS3.16 CID 7202."""
    return _item(
        _explicit(0x00081150, "UI", instance.row.sop_class_uid.encode("ascii", "replace")),
        _explicit(0x00081155, "UI", instance.row.sop_uid.encode("ascii", "replace")),
        _explicit(0x0040A170, "SQ", _code("121320", "DCM", "Uncompressed predecessor")),
    )
