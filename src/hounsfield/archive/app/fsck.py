"""``fsck``: the whole archive checked at rest, and the files of its directory beside."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from hounsfield.archive.app.data_directory import CONTROL_SOCKET, IMPORT, LOCK, MARKER, SUBDIRECTORIES
from hounsfield.archive.app.offline import open_stores
from hounsfield.archive.config import Config
from hounsfield.archive.engine.restore import UNFINISHED
from hounsfield.archive.engine.stores import DERIVED
from hounsfield.archive.index.catalog import HASHED_FIELDS
from hounsfield.archive.index.checking import Archive, Check, Finding, Severity, Wrong, check_all
from hounsfield.archive.index.checking_logs import CHECKS
from hounsfield.storage_backends.api import Snapshot
from hounsfield.storage_backends.directory_store import INCOMING
from hounsfield.storage_backends.object_store import TIER_MARKER
from hounsfield.storage_backends.segment_format import SEGMENT_NAME
from hounsfield.storage_backends.tier_holder import TIER_HOLDER

_INDEX = re.compile(r"data\.mdb|lock\.mdb|open\.lock|unflushed|checkpoint-[0-9]{4}")
_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\.key")
_KNOWN = {
    *SUBDIRECTORIES, DERIVED, IMPORT, MARKER, LOCK, CONTROL_SOCKET, TIER_MARKER, TIER_HOLDER, INCOMING,
    "lost+found",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class FsckReport:
    """What was found, worst first."""

    findings: list[Finding]
    quick: bool

    @property
    def worst(self) -> Severity | None:
        return self.findings[0].severity if self.findings else None


def fsck(config: Config, *, quick: bool, progress: Callable[[str, int, int], None]) -> FsckReport:
    """Check everything; changes nothing. Raises DataDirectoryBusyError while a server runs."""
    data = Path(config.archive.data).expanduser().absolute()
    missing: list[str] = []

    def look_first() -> None:
        # Opening the stores makes token keys that are missing, so that later they are not.
        if (data / "index" / "data.mdb").exists():
            have = {path.stem for path in (data / "keys" / "token").glob("*.key")}
            missing.extend(sorted(set(HASHED_FIELDS) - have))

    with open_stores(config, before=look_first) as stores:
        archive = Archive(
            store=stores.store,
            keyring=stores.keyring,
            catalog=stores.catalog,
            sealer=stores.sealer,
            hashes=stores.hashes,
            journal=stores.journal,
            log=stores.log,
            ledger=stores.ledger,
            tiers=stores.tiers.by_name,
            quick=quick,
            progress=progress,
        )
        return FsckReport(check_all(archive, [*CHECKS, ("files", _files(data, missing))]), quick)


def _files(data: Path, missing_fields: list[str]) -> Check:
    def check(_archive: Archive, _snapshot: Snapshot) -> Iterator[Wrong]:
        for field in missing_fields:
            yield Wrong(
                Severity.INDEX,
                "a token key was missing and was made anew: what it named is not found",
                field,
                "restore keys/token from a backup, or hounsfield reindex (after an upgrade: nothing)",
            )
        for path in strays(data):
            yield Wrong(
                Severity.NOTE, "a file that belongs to nothing", str(path), "look at it, then remove it"
            )
        if (data / UNFINISHED).exists():
            yield Wrong(
                Severity.INDEX, "a restore was not finished", UNFINISHED, "run hounsfield restore again"
            )

    return check


def strays(data: Path) -> Iterator[Path]:
    """Files below the data directory that nothing here put there or needs, relative to it."""
    for path in sorted(data.iterdir()):
        if path.name not in _KNOWN and path.name != UNFINISHED:
            yield path.relative_to(data)
    for folder, pattern in (("segments", SEGMENT_NAME), ("ledger", SEGMENT_NAME), ("keys", None)):
        for path in sorted((data / folder).rglob("*")):
            if path.is_dir():
                continue
            if folder == "keys":
                known = path == data / "keys" / "root" or (
                    path.parent.parent == data / "keys" and _KEY.fullmatch(path.name)
                )
            else:
                known = pattern is not None and pattern.fullmatch(path.name)
            if not known:
                yield path.relative_to(data)
    for path in sorted((data / "index").iterdir()):
        if not _INDEX.fullmatch(path.name):
            yield path.relative_to(data)
