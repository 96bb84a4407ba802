"""Which files can be sent: files, folders and DICOMDIRs in; sendable objects, and the rest with reasons, out.

Blocking; reads the beginning of each file only.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from hounsfield.archive.dicom.dicomdir import MEDIA_STORAGE_DIRECTORY, DicomdirError, referenced_files
from hounsfield.archive.dicom.part10 import Part10, Part10Error, read_prefix
from hounsfield.archive.dicom.scan import scan
from hounsfield.codecs.registry import lookup

__all__ = ["Sendable", "Unsendable", "examine", "survey"]

# The SOP class and instance are in group 0008, at the start of every data set: this much holds them.
_HEAD_BYTES = 64 * 1024
_SOP_CLASS_UID = 0x00080016
_SOP_INSTANCE_UID = 0x00080018
_UID_CHARACTERS_MAX = 64


@dataclass(frozen=True, slots=True)
class Sendable:
    """An object in a file: where its data set is, and what a C-STORE must say about it."""

    path: Path
    offset: int
    size: int
    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str


@dataclass(frozen=True, slots=True)
class Unsendable:
    """A file that is not sent, and why not."""

    path: Path
    reason: str


def survey(paths: Iterable[Path]) -> Iterator[Sendable | Unsendable]:
    """Every file below ``paths``, each once, in order; a DICOMDIR that is named stands for what it lists.

    A DICOMDIR met in a folder is passed over: what it lists is in the folder.
    """
    seen: set[Path] = set()
    for path in paths:
        if path.is_dir():
            for file in sorted(file for file in path.rglob("*") if file.is_file()):
                found = _once(file, seen)
                if found is not None and not _is_directory_record(found):
                    yield _plain(found)
            continue
        found = _once(path, seen)
        if found is None:
            continue
        if _is_directory_record(found):
            yield from _listed(path, seen)
        else:
            yield _plain(found)


@dataclass(frozen=True, slots=True)
class _DirectoryRecord:
    path: Path


_Examined = Sendable | Unsendable | _DirectoryRecord


def examine(path: Path) -> Sendable | Unsendable:
    """What one file is; a DICOMDIR is unsendable."""
    return _plain(_examine(path))


def _plain(found: _Examined) -> Sendable | Unsendable:
    if isinstance(found, _DirectoryRecord):
        return Unsendable(found.path, "a DICOMDIR, which lists objects and is none")
    return found


def _is_directory_record(found: _Examined) -> bool:
    return isinstance(found, _DirectoryRecord)


def _once(path: Path, seen: set[Path]) -> _Examined | None:
    resolved = path.resolve()
    if resolved in seen:
        return None
    seen.add(resolved)
    return _examine(path)


def _listed(dicomdir: Path, seen: set[Path]) -> Iterator[Sendable | Unsendable]:
    try:
        for path in referenced_files(dicomdir):
            found = _once(path, seen)
            if found is not None:
                yield _plain(found)
    except (DicomdirError, OSError) as error:
        yield Unsendable(dicomdir, f"a DICOMDIR that cannot be followed: {error}")


def _examine(path: Path) -> _Examined:
    try:
        with path.open("rb") as file:
            part10 = read_prefix(file)
            head = file.read(_HEAD_BYTES)
            size = file.seek(0, 2) - part10.offset
    except OSError as error:
        return Unsendable(path, f"cannot be read: {error.strerror}")
    except Part10Error:
        return Unsendable(path, "not a DICOM file")
    return _described(path, part10, head, size)


def _described(path: Path, part10: Part10, head: bytes, size: int) -> _Examined:
    scanned = scan(head, lookup(part10.transfer_syntax_uid))
    body = scanned.body(head)

    def uid(tag: int) -> str:
        element = scanned.elements.get(tag)
        if element is None:
            return ""
        _, at, length = element
        return bytes(body[at : at + length]).decode("latin-1").strip(" \0")

    sop_class = uid(_SOP_CLASS_UID) or part10.sop_class_uid
    sop_instance = uid(_SOP_INSTANCE_UID) or part10.sop_instance_uid
    if MEDIA_STORAGE_DIRECTORY in (sop_class, part10.sop_class_uid):
        return _DirectoryRecord(path)
    missing = [name for name, value in (("class", sop_class), ("instance", sop_instance)) if not value]
    if missing:
        return Unsendable(path, f"lacks a SOP {' and '.join(missing)} UID")
    if max(len(sop_class), len(sop_instance)) > _UID_CHARACTERS_MAX:
        return Unsendable(path, f"a SOP UID of more than {_UID_CHARACTERS_MAX} characters")
    return Sendable(path, part10.offset, size, sop_class, sop_instance, part10.transfer_syntax_uid)
