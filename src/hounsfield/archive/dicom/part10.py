"""Part 10 files (PS3.10 7): the preamble and file meta information around an encoded data set.

Read and written.

Reading is tolerant, since archives are fed by whatever wrote files in the last thirty years: no preamble, no
meta information at all, a wrong group length and implicit VR meta information are all read. Writing is exact.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from struct import Struct, pack
from typing import BinaryIO, Final

from hounsfield.archive.dicom.dictionary import LONG_VRS, SHORT_VRS, vr_of
from hounsfield.codecs.registry import (
    EXPLICIT_VR_BIG_ENDIAN,
    EXPLICIT_VR_LITTLE_ENDIAN,
    IMPLICIT_VR_LITTLE_ENDIAN,
)

Buffer = bytes | bytearray | memoryview

#: UUID-derived root (PS3.5 B.2) of every UID that this implementation makes for itself.
UID_ROOT: Final = "2.25.38585902481745103906333656332849957993"
IMPLEMENTATION_CLASS_UID: Final = UID_ROOT
IMPLEMENTATION_VERSION_NAME: Final = "HOUNSFIELD_010"

PREAMBLE_BYTES: Final = 128
#: More than any file meta information with honest private information in it; a prefix read asks for this
#: much.
META_BYTES_MAX: Final = 1024 * 1024
_PREFIX_BYTES: Final = 4096

MEDIA_STORAGE_SOP_CLASS_UID: Final = 0x00020002
MEDIA_STORAGE_SOP_INSTANCE_UID: Final = 0x00020003
TRANSFER_SYNTAX_UID: Final = 0x00020010

_EXPLICIT: Final = Struct("<HH2sH")
_IMPLICIT: Final = Struct("<HHL")


class Part10Error(ValueError):
    """These bytes are no DICOM file, and doing the same again will not change that."""

    retry = False


@dataclass(frozen=True, slots=True)
class Part10:
    """Where the data set begins and what the file meta information says."""

    #: Group 2 elements: tag to raw value, padding kept.
    meta: dict[int, bytes]
    transfer_syntax_uid: str
    #: Offset of the data set's first byte from the start of the file.
    offset: int
    #: False: no "DICM" was found, the file is a bare data set or bare meta information.
    has_preamble: bool = True
    #: True when the transfer syntax had to be guessed from the data set's first element.
    guessed: bool = False
    _text: dict[int, str] = field(default_factory=dict, repr=False)

    def text(self, tag: int) -> str:
        """A meta element as text, padding removed; empty when it is not there."""
        return self.meta.get(tag, b"").decode("latin-1").strip(" \0")

    @property
    def sop_class_uid(self) -> str:
        """Media Storage SOP Class UID, or empty."""
        return self.text(MEDIA_STORAGE_SOP_CLASS_UID)

    @property
    def sop_instance_uid(self) -> str:
        """Media Storage SOP Instance UID, or empty."""
        return self.text(MEDIA_STORAGE_SOP_INSTANCE_UID)


def split(data: Buffer) -> Part10:
    """Find the data set in the bytes of a Part 10 file, or in a prefix that holds its meta information.

    Part10Error when the bytes are neither a Part 10 file nor begin like a data set.
    """
    if bytes(data[PREAMBLE_BYTES : PREAMBLE_BYTES + 4]) == b"DICM":
        pos, has_preamble = PREAMBLE_BYTES + 4, True
    elif bytes(data[:4]) == b"DICM":
        pos, has_preamble = 4, False
    else:
        pos, has_preamble = 0, False
    meta, offset = _read_meta(data, pos)
    uid = meta.get(TRANSFER_SYNTAX_UID, b"").decode("latin-1").strip(" \0")
    if uid:
        return Part10(meta, uid, offset, has_preamble)
    return Part10(meta, _guess(data, offset, has_preamble or bool(meta)), offset, has_preamble, True)


def read_prefix(file: BinaryIO) -> Part10:
    """Find the data set in an open file without reading it.

    The file is left positioned at the data set's first byte.

    Reads a few KiB, up to ``META_BYTES_MAX`` for monstrous meta information. Part10Error as ``split``.
    """
    start = file.tell()
    data = file.read(_PREFIX_BYTES)
    while True:
        part10 = split(data)
        # Where group 2 goes on at the offset found, an element of it is longer than the prefix.
        certain = part10.offset + 12 <= len(data) and data[part10.offset : part10.offset + 2] != b"\2\0"
        if certain or len(data) >= META_BYTES_MAX:
            break
        more = file.read(len(data) * 3)
        if not more:
            break
        data += more
    file.seek(start + part10.offset)
    return part10


def _read_meta(data: Buffer, pos: int) -> tuple[dict[int, bytes], int]:
    """Group 2 elements from ``pos`` on, by walking them: group lengths lie."""
    meta: dict[int, bytes] = {}
    end = min(len(data), META_BYTES_MAX)
    while pos + 8 <= end:
        group, number, letters, length = _EXPLICIT.unpack_from(data, pos)
        if group != 2:
            break
        if letters in SHORT_VRS:
            value = pos + 8
        elif letters in LONG_VRS and pos + 12 <= end:
            value = pos + 12
            length = int.from_bytes(data[pos + 8 : pos + 12], "little")
        else:
            value = pos + 8
            length = _IMPLICIT.unpack_from(data, pos)[2]
        if value + length > len(data):
            break
        meta[group << 16 | number] = bytes(data[value : value + length])
        pos = value + length
    return meta, pos


def _guess(data: Buffer, offset: int, is_file: bool) -> str:
    """The transfer syntax that the data set's first element looks like."""
    if len(data) < offset + 8:
        if is_file:
            return IMPLICIT_VR_LITTLE_ENDIAN.uid
        raise Part10Error("not a DICOM file: it is shorter than one data element; leave it out")
    group, _, letters, length16 = _EXPLICIT.unpack_from(data, offset)
    explicit = letters in SHORT_VRS or letters in LONG_VRS
    if explicit:
        # Groups of data sets are small numbers: 0x0800 is group 8 with its bytes swapped.
        return (
            EXPLICIT_VR_BIG_ENDIAN.uid
            if group & 0xFF == 0 and group > 0xFF
            else EXPLICIT_VR_LITTLE_ENDIAN.uid
        )
    _, number, length = _IMPLICIT.unpack_from(data, offset)
    del length16
    if is_file or (
        0 < group <= 0x10 and vr_of(group << 16 | number) != "UN" and length < len(data) + (1 << 16)
    ):
        return IMPLICIT_VR_LITTLE_ENDIAN.uid
    raise Part10Error(
        "not a DICOM file: no 'DICM' at byte 128 and no data element at the start; leave it out"
    )


def _element(number: int, vr: bytes, value: bytes) -> bytes:
    if len(value) % 2:
        value += b"\0" if vr in (b"UI", b"OB") else b" "
    if vr == b"OB":
        return pack("<HH2sHL", 2, number, vr, 0, len(value)) + value
    return pack("<HH2sH", 2, number, vr, len(value)) + value


def file_header(
    transfer_syntax_uid: str,
    sop_class_uid: str,
    sop_instance_uid: str,
    *,
    source_ae: str = "",
    preamble: bytes = bytes(PREAMBLE_BYTES),
) -> bytes:
    """Preamble and file meta information (PS3.10 7.1) to put in front of an encoded data set.

    ValueError when the preamble is not 128 bytes.
    """
    if len(preamble) != PREAMBLE_BYTES:
        raise ValueError(f"a preamble has {PREAMBLE_BYTES} bytes, not {len(preamble)}")
    body = b"".join(
        (
            _element(0x0001, b"OB", b"\0\1"),
            _element(0x0002, b"UI", sop_class_uid.encode("ascii", "replace")),
            _element(0x0003, b"UI", sop_instance_uid.encode("ascii", "replace")),
            _element(0x0010, b"UI", transfer_syntax_uid.encode("ascii", "replace")),
            _element(0x0012, b"UI", IMPLEMENTATION_CLASS_UID.encode()),
            _element(0x0013, b"SH", IMPLEMENTATION_VERSION_NAME.encode()),
            _element(0x0016, b"AE", source_ae.encode("ascii", "replace")[:16]) if source_ae else b"",
        )
    )
    return preamble + b"DICM" + pack("<HH2sHL", 2, 0, b"UL", 4, len(body)) + body
