"""What a file is, from its first bytes: an object, a DICOMDIR, an archive of files, or nothing of ours.

Trees of files hold anything: texts, pictures, databases. What says "DICM" is taken at its word; what does not
must begin like a data set and name itself, so that no letter ends up in quarantine.
"""

from __future__ import annotations

import re
from enum import Enum

from hounsfield.archive.dicom.attributes import uid_is_usable
from hounsfield.archive.dicom.dicomdir import MEDIA_STORAGE_DIRECTORY
from hounsfield.archive.dicom.incremental import IncrementalScan
from hounsfield.archive.dicom.part10 import META_BYTES_MAX, Part10, Part10Error, split
from hounsfield.archive.dicom.problems import Problem
from hounsfield.archive.dicom.scan import scan
from hounsfield.codecs.registry import lookup

BLOCK_BYTES = META_BYTES_MAX
"""What is read at once; the first block holds any file meta information whole."""

_SOP_CLASS_UID, _SOP_INSTANCE_UID, _ROWS = 0x00080016, 0x00080018, 0x00280010
_BARE_BYTES = 64 << 10  # of a bare data set: group 0008 stands at its beginning
_ZIP = (b"PK\x03\x04", b"PK\x05\x06")
_ZLIB = (b"\x78\x01", b"\x78\x5e", b"\x78\x9c", b"\x78\xda")
_ORTHANC = re.compile(r"(?:.*/)?([0-9a-f]{2})/([0-9a-f]{2})/\1\2[0-9a-f]{4}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


_DOCUMENTS = (b"[Content_Types].xml", b"_rels/", b"mimetype", b"META-INF/")
_PACKED = (
    b"\x1f\x8b\x08",
    b"BZh",
    b"\xfd7zXZ\0",
    b"7z\xbc\xaf\x27\x1c",
    b"Rar!\x1a\x07",
    b"\x28\xb5\x2f\xfd",
)
_PACKED_WITHIN = ((257, b"ustar"), (0x8001, b"CD001"))  # tar; ISO 9660
_ZIP_NAME_AT = 30  # of the first file's name, in a ZIP archive


class Kind(Enum):
    """What is no object, in the words of the report."""

    EMPTY = "empty"
    OTHER = "not a DICOM file"
    DICOMDIR = "a DICOMDIR, which lists objects and is none"
    ZIP = "a ZIP archive"
    PACKED = (
        "packed otherwise than as ZIP (tar, gzip, 7z, RAR, a disc image): unpack it, and import its folder"
    )
    """Exams may be in it: it is told as what could not be read."""


def recognised(block: bytes) -> Part10 | Kind:
    """What begins with ``block``, the first :data:`BLOCK_BYTES` or all of it."""
    if not block:
        return Kind.EMPTY
    if block.startswith(_ZIP):
        return Kind.ZIP
    try:
        part10 = split(block)
    except Part10Error:
        return Kind.PACKED if _is_packed(block) else Kind.OTHER
    if part10.sop_class_uid == MEDIA_STORAGE_DIRECTORY:
        return Kind.DICOMDIR
    says_so = part10.has_preamble or block.startswith(b"DICM")
    if says_so or (part10.meta and not part10.guessed):
        return part10
    if _names_itself(block, part10):
        return part10
    return Kind.PACKED if _is_packed(block) else Kind.OTHER


def _is_packed(block: bytes) -> bool:
    return block.startswith(_PACKED) or any(block.startswith(sign, at) for at, sign in _PACKED_WITHIN)


def _names_itself(block: bytes, part10: Part10) -> bool:
    """Whether the bare data set has a SOP Class and SOP Instance UID that can be."""
    head = block[part10.offset : part10.offset + _BARE_BYTES]
    scanned = scan(head, lookup(part10.transfer_syntax_uid))
    body = scanned.body(head)
    for tag in (_SOP_CLASS_UID, _SOP_INSTANCE_UID):
        found = scanned.elements.get(tag)
        if found is None:
            return False
        _, at, length = found
        if not uid_is_usable(bytes(body[at : at + length]).decode("latin-1").strip(" \0")):
            return False
    return True


def is_document(block: bytes) -> bool:
    """Whether a ZIP archive is a text, a table or a program, by its first file's name: no exam is in it."""
    return block[_ZIP_NAME_AT:].startswith(_DOCUMENTS)


def is_of_orthanc(path: str) -> bool:
    """Whether a file lies where Orthanc puts its attachments: ``ab/cd/abcd….``, named by a UUID."""
    return _ORTHANC.fullmatch(path) is not None


def is_deflated(block: bytes) -> bool:
    """Whether an attachment is as Orthanc's StorageCompression writes it: length (8 bytes), zlib stream."""
    return len(block) > 10 and block[8:10] in _ZLIB and not block.startswith(b"{")


class HeaderCopy:
    """Tells Orthanc's copies of headers from objects: they end where the pixel data would begin.

    Orthanc keeps them beside objects that it compresses. Under the UIDs of an object, without its pixels,
    they would be kept as another version of it.
    """

    def __init__(self, transfer_syntax_uid: str) -> None:
        self._scan = IncrementalScan(lookup(transfer_syntax_uid))

    def feed(self, data: bytes | memoryview) -> None:
        """The data set's next bytes."""
        self._scan.feed(data)

    def is_one(self) -> bool:
        """Whether that was all, and is the header of an image. Call it once."""
        if self._scan.so_far() is not None:
            return False
        found = self._scan.finish().scanned
        return (
            _ROWS in found.elements and found.pixels is None and Problem.TRUNCATED not in set(found.problems)
        )
