"""Imports in this process, into an archive that no server runs on; and things to import."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio
from pydicom.uid import generate_uid

from hounsfield.archive.app.data_directory import open_data_directory
from hounsfield.archive.app.importing.fates import Fate, Tally
from hounsfield.archive.app.importing.run import ImportOptions, run_import
from hounsfield.archive.app.importing.tree import Met, Tree
from hounsfield.archive.app.importing.work import Source
from hounsfield.archive.app.keys import open_keyring, open_master_key
from hounsfield.archive.app.offline import open_here
from hounsfield.archive.config import Config, load_config
from hounsfield.archive.dicom.part10 import file_header
from support.archives import ct_slice, write_master_key

CT, EXPLICIT = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.1.2.1"


@dataclass
class Archive:
    """An archive below a folder, opened for each import."""

    config: Config
    tally: Tally = field(default_factory=Tally)
    """Of the last import."""

    @classmethod
    def make(cls, folder: Path, *settings: str) -> Archive:
        folder.mkdir(parents=True, exist_ok=True)
        key = write_master_key(folder / "master.key")
        config = load_config(
            None, [f'archive.data="{folder / "archive"}"', f'keys.master_key="{key}"', *settings]
        )
        directory = open_data_directory(folder / "archive", create=True)
        open_keyring(directory.path, open_master_key(config, directory.path), create=True)
        directory.close()
        return cls(config)

    def bring(self, *sources: Path | Source, **options: Any) -> dict[str, int]:
        """Import; what became of how many."""
        self.tally = Tally()
        met = Met()
        found = [Tree(one, met) if isinstance(one, Path) else one for one in sources]

        async def run() -> None:
            await run_import(self.config, found, self.tally, ImportOptions(**options))

        trio.run(run)
        counts = {fate.value: self.tally.fates[fate] for fate in Fate if self.tally.fates[fate]}
        if self.tally.before:
            counts["before"] = self.tally.before
        return counts

    def reasons(self, fate: Fate = Fate.UNREADABLE) -> dict[str, str]:
        """By the last part of the place."""
        return {one.place.rpartition("/")[2]: one.reason for one in self.tally.noted if one.fate is fate}

    def stored(self) -> list[str]:
        """SOP Instance UID of everything that is shown."""
        with open_here(self.config) as archive:
            page = archive.call("search", level="instance", parameters=[["limit", "5000"]])
            return sorted(row["instance"]["00080018"] for row in page["rows"])


def part10(data: bytes, uid: str, *, sop_class: str = CT, syntax: str = EXPLICIT) -> bytes:
    """A DICOM file."""
    return file_header(syntax, sop_class, uid) + data


def write_study(folder: Path, count: int, *, study: str = "", name: str = "{}.dcm") -> list[str]:
    """So many slices of one series as files; their UIDs, sorted."""
    folder.mkdir(parents=True, exist_ok=True)
    study, series = study or generate_uid(), generate_uid()
    uids = []
    for number in range(count):
        uid = str(generate_uid())
        data = ct_slice(sop_uid=uid, study_uid=study, series_uid=series, number=number + 1)
        (folder / name.format(number)).write_bytes(part10(data, uid))
        uids.append(uid)
    return sorted(uids)


def dicomdir(ids: Sequence[bytes]) -> bytes:
    """A DICOMDIR that lists these file ids."""
    items = b""
    for name in ids:
        name += b" " * (len(name) % 2)
        element = struct.pack("<HH2sH", 4, 0x1500, b"CS", len(name)) + name
        items += struct.pack("<HHL", 0xFFFE, 0xE000, len(element)) + element
    sequence = struct.pack("<HH2sHL", 4, 0x1220, b"SQ", 0, len(items)) + items
    return file_header("1.2.840.10008.1.2.1", "1.2.840.10008.1.3.10", "1.2.3") + sequence
