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


def file_ids(data: Buffer) -> Iterator[tuple[str, ...]]:
    """The components of every Referenced File ID (0004,1500), in order.

    Ids that lead out of the folder are left out.

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
                if components:
                    yield components
                break


def _components(raw: bytes) -> tuple[str, ...] | None:
    parts = tuple(part.strip(" \0") for part in raw.decode("latin-1").split("\\"))
    sound = all(
        part
        and part not in (".", "..")
        and len(part) <= _COMPONENT_CHARS_MAX
        and not set(part) & set("/\\:\0")
        for part in parts
    )
    return parts if sound and len(parts) <= _COMPONENTS_MAX else None


def referenced_files(dicomdir: Path) -> Iterator[Path]:
    """The files that a DICOMDIR lists and that exist, each once.

    Links that lead out of its folder are not followed.

    Names are looked for as written, then without regard to case (discs copied by other systems change it).
    DicomdirError when it is no DICOMDIR; OSError when it cannot be read.
    """
    if dicomdir.stat().st_size > DICOMDIR_BYTES_MAX:
        raise DicomdirError(f"larger than {DICOMDIR_BYTES_MAX} bytes; name the folder instead")
    root = dicomdir.resolve().parent
    seen: set[Path] = set()
    listings: dict[Path, dict[str, Path]] = {}
    for components in file_ids(dicomdir.read_bytes()):
        path: Path | None = root.joinpath(*components)
        if path is not None and not path.is_file():
            path = _any_case(root, components, listings)
        if path is None:
            continue
        resolved = path.resolve()
        if resolved.is_file() and resolved.is_relative_to(root) and resolved not in seen:
            seen.add(resolved)
            yield path


def _any_case(root: Path, components: tuple[str, ...], listings: dict[Path, dict[str, Path]]) -> Path | None:
    here = root
    for component in components:
        names = listings.get(here)
        if names is None:
            try:
                names = {entry.name.casefold(): entry for entry in here.iterdir()}
            except OSError:
                return None
            listings[here] = names
        # ISO 9660 adds a dot or a version to names that have neither.
        found = names.get(component.casefold()) or names.get(component.casefold() + ".")
        if found is None:
            return None
        here = found
    return here
