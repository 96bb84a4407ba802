"""The files that a DICOMDIR lists (PS3.10 8, PS3.3 F): where they are below its folder, and nowhere else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from hounsfield.archive.dicom import part10
from hounsfield.archive.dicom.scan import scan
from hounsfield.archive.dicom.walk import elements, items
from hounsfield.codecs.registry import lookup

Buffer = bytes | bytearray | memoryview

MEDIA_STORAGE_DIRECTORY: Final = "1.2.840.10008.1.3.10"
_DIRECTORY_RECORD_SEQUENCE: Final = 0x00041220
_REFERENCED_FILE_ID: Final = 0x00041500
#: A DICOMDIR of a full DVD has some 10,000 records of about 500 bytes.
DICOMDIR_BYTES_MAX: Final = 256 * 1024 * 1024
#: PS3.10 8.2 allows eight components of eight characters; writers use longer ones.
_COMPONENTS_MAX: Final = 16
_COMPONENT_CHARS_MAX: Final = 255


class DicomdirError(ValueError):
    """The file is not a DICOMDIR that can be followed."""

    retry = False


def file_ids(data: Buffer, *, sound_only: bool = True) -> Iterator[tuple[str, ...]]:
    """The components of every Referenced File ID (0004,1500), in order.

    Ids that lead out of the folder are left out; without ``sound_only`` they are given as they stand.

    ``data`` is the whole DICOMDIR. DicomdirError when it is none.
    """
    try:
        file = part10.split(data)
    except part10.Part10Error as error:
        raise DicomdirError(str(error)) from None
    body = memoryview(data)[file.offset :]
    scanned = scan(body, lookup(file.transfer_syntax_uid))
    sequence = scanned.elements.get(_DIRECTORY_RECORD_SEQUENCE)
    if sequence is None:
        raise DicomdirError("no directory records in this file; name the image files or their folder instead")
    data = scanned.body(body)
    _, at, length = sequence
    for start, end, implicit in items(data, at, at + length, scanned.implicit_vr, scanned.little_endian):
        for tag, _, value, size, _ in elements(data, start, end, implicit, scanned.little_endian):
            if tag == _REFERENCED_FILE_ID and size:
                components = _components(bytes(data[value : value + size]))
                if Locator.is_sound(components) or not sound_only:
                    yield components
                break


def _components(raw: bytes) -> tuple[str, ...]:
    return tuple(part.strip(" \0") for part in raw.decode("latin-1").split("\\"))


def referenced_files(dicomdir: Path) -> Iterator[Path]:
    """The files that a DICOMDIR lists and that exist, each once.

    Links that lead out of its folder are not followed. DicomdirError when it is no DICOMDIR; OSError when it
    cannot be read.
    """
    if dicomdir.stat().st_size > DICOMDIR_BYTES_MAX:
        raise DicomdirError(f"larger than {DICOMDIR_BYTES_MAX} bytes; name the folder instead")
    locator = Locator(dicomdir.resolve().parent)
    seen: set[Path] = set()
    for components in file_ids(dicomdir.read_bytes()):
        path = locator.find(components)
        if path is not None and (resolved := path.resolve()) not in seen:
            seen.add(resolved)
            yield path


class Locator:
    """Finds the files that a DICOMDIR names, in its folder and nowhere else.

    Names are looked for as written, then without regard to case and to what ISO 9660 and those who copy discs
    add to them: a dot, a version ("IM0001.;1").
    """

    def __init__(self, folder: Path) -> None:
        """``folder`` is resolved."""
        self._folder = folder
        self._listings: dict[Path, dict[str, Path]] = {}

    @staticmethod
    def is_sound(components: tuple[str, ...]) -> bool:
        """Whether these can be a path below a folder."""
        return 0 < len(components) <= _COMPONENTS_MAX and all(
            part
            and part not in (".", "..")
            and len(part) <= _COMPONENT_CHARS_MAX
            and not set(part) & set("/\\:\0")
            for part in components
        )

    def find(self, components: tuple[str, ...]) -> Path | None:
        """The file of that id, which is sound; None when there is none."""
        try:
            path: Path | None = self._folder.joinpath(*components)
            if path is not None and not path.is_file():
                path = self._in_other_words(components)
            if path is None:
                return None
            resolved = path.resolve()
            return path if resolved.is_file() and resolved.is_relative_to(self._folder) else None
        except OSError:  # a folder that cannot be looked into
            return None

    def _in_other_words(self, components: tuple[str, ...]) -> Path | None:
        here = self._folder
        for component in components:
            names = self._listings.get(here)
            if names is None:
                names = self._listings[here] = {_bare(entry.name): entry for entry in here.iterdir()}
            found = names.get(_bare(component))
            if found is None:
                return None
            here = found
        return here


def _bare(name: str) -> str:
    """A name without case, version and dot."""
    stem, semicolon, version = name.casefold().rpartition(";")
    return (stem if semicolon and version.isdigit() else name.casefold()).rstrip(".")
