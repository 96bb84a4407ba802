"""A consistent copy of index, keyring and ledger, and if wanted of the segments, while the archive is used.

Segments and ledger are append-only and never change below their end; the index is a view of them. So a copy
is consistent when nothing that the copied index points at is missing from it, and no key either::

    keys → segments → ledger → index, one moment of it → segments and ledger since → keys since

What was stored after the index was copied lies beyond it, and a restore indexes it like any start does. What
compaction removed after the index was copied must have been copied before; else the index is copied again.

::

    DIRECTORY/
      hounsfield-backup.json        whose backups these are
      segments/ ledger/             shared by all snapshots: a file is copied once, when it is closed
      snapshots/TIME/
        manifest.json               what belongs to it, with sizes and digests, authenticated
        index/ keys/                sealed and wrapped as they were

A snapshot gets its name when everything in it is durable. Why it is so: docs/decisions/0010.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from hounsfield import __version__
from hounsfield.archive.errors import HounsfieldError
from hounsfield.archive.index.layout import copy_is_of_this_layout
from hounsfield.archive.index.packs import HOT, Packs
from hounsfield.storage_backends.api import CopiesItself, KeyValueStore
from hounsfield.storage_backends.file_systems import (
    locked_directory,
    make_private_directory,
    sync_directory,
    write_private_file,
)
from hounsfield.storage_backends.keyring import Keyring

FORMAT = "hounsfield backup 1"
MARKER = "hounsfield-backup.json"
MANIFEST = "manifest.json"
LOGS = ("segments", "ledger")
COPY_BYTES = 4 << 20
ATTEMPTS_MAX = 5  # compaction removes a segment in the moment of a copy; more than once in a row is a defect
_DESTROYED = b"HFKEYDEL"
_MANIFEST_LABEL = "backup manifest"

Progress = Callable[[str, int, int], None]
"""``progress(what, bytes_done, bytes_in_all)``."""


def silent(_what: str, _done: int, _total: int) -> None:
    """Progress that nobody looks at."""


class BackupError(HounsfieldError):
    """A backup cannot be made or is not what it should be; the text says which part and what to do."""


class FileEntry(msgspec.Struct, frozen=True):
    """One file of a snapshot, below the snapshot's directory."""

    path: str
    size: int
    digest: str


class LogEntry(msgspec.Struct, frozen=True):
    """One segment of the archive when the snapshot was made: name and the bytes that were copied."""

    name: str
    size: int
    copied: bool


class PacksElsewhere(msgspec.Struct, frozen=True):
    """Packs that one tier has and the data directory has not."""

    packs: int = 0
    bytes: int = 0


class Manifest(msgspec.Struct, frozen=True):
    """What one snapshot consists of."""

    format: str
    version: str
    made_at: str
    root_id: str
    files: tuple[FileEntry, ...]
    logs: tuple[LogEntry, ...]
    with_segments: bool
    elsewhere: dict[str, PacksElsewhere] = {}
    """What was not copied because it lies only in other tiers, which must survive; by tier."""


@dataclass(slots=True)
class BackupReport:
    """What one backup did."""

    snapshot: str = ""
    index_bytes: int = 0
    keys: int = 0
    segments: int = 0
    segment_bytes: int = 0
    copied: int = 0
    copied_bytes: int = 0
    removed_snapshots: list[str] = field(default_factory=list)
    removed_segments: int = 0
    elsewhere: dict[str, PacksElsewhere] = field(default_factory=dict)
    index_of_another_release: bool = False  # a restore makes it anew, and needs the segments for that


class Backup:
    """Backups of one archive into one directory. Blocking; one at a time."""

    def __init__(self, data: Path, store: KeyValueStore, keyring: Keyring, target: Path) -> None:
        if not isinstance(store, CopiesItself):
            raise BackupError("this index is kept by a database of its own: back it up with that one's tools")
        self._data = data
        self._store: CopiesItself = store
        self._packs = Packs(store)
        self._keyring = keyring
        self._target = target
        self._report = BackupReport()
        self._progress: Progress = silent

    def make(self, *, segments: bool, keep: int = 0, progress: Progress | None = None) -> BackupReport:
        """Make one snapshot; with ``segments``, copy those too that are not there yet.

        ``keep``: how many snapshots stay, the oldest are removed, and segments that none of them names; 0:
        all. Killed anywhere, what was there before is whole, and the next run goes on with what was copied.
        """
        self._progress = progress or self._progress
        self._claim()
        with locked_directory(self._target):
            name = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")  # sorts by time
            snapshots = self._target / "snapshots"
            make_private_directory(snapshots)
            for rest in snapshots.glob(".*.part"):
                shutil.rmtree(rest)
            part = snapshots / f".{name}.part"
            make_private_directory(part)
            for attempt in range(ATTEMPTS_MAX):
                if self._fill(part, segments=segments):
                    break
                if attempt == ATTEMPTS_MAX - 1:
                    raise BackupError("segments went away while they were copied, again and again; try later")
            part.rename(snapshots / name)
            sync_directory(snapshots)
            self._report.snapshot = name
            if keep:
                self._remove_old(keep)
        return self._report

    def _claim(self) -> None:
        """Make the directory ours, or see that it is."""
        if self._target.resolve().is_relative_to(self._data.resolve()):
            raise BackupError(f"{self._target} lies inside the data directory: choose another disk")
        if self._target.exists() and not self._target.is_dir():
            raise BackupError(f"{self._target} is no directory: choose another")
        marker = self._target / MARKER
        root = self._keyring.root_id.hex()
        if not marker.exists():
            if self._target.exists() and any(self._target.iterdir()):
                raise BackupError(f"{self._target} is not empty and holds no backups of ours: choose another")
            make_private_directory(self._target)
            write_file(marker, json.dumps({"format": FORMAT, "root_id": root}).encode() + b"\n")
        elif read_marker(self._target) != root:
            raise BackupError(f"{self._target} holds the backups of another archive: choose another")

    def _fill(self, part: Path, *, segments: bool) -> bool:
        """Copy everything into the snapshot that becomes; False when something went away in between."""
        for folder in ("index", "keys"):
            shutil.rmtree(part / folder, ignore_errors=True)
        logs = LOGS if segments else LOGS[1:]
        self._copy_keys(part)
        for log in logs:  # the bulk, however long it takes
            self._copy_log(log)
        before = self._listed(LOGS)
        self._progress("index", 0, 1)
        self._store.copy_to(part / "index")
        self._progress("index", 1, 1)
        for log in logs:  # what came since
            self._copy_log(log)
        after = self._listed(LOGS)
        copied = self._copies(logs)
        gone = before.keys() - after.keys() - copied.keys()
        if any(name.partition("/")[0] in logs and not self._is_elsewhere(name) for name in gone):
            return False
        self._copy_keys(part)
        entries = []
        for name, size in sorted((before | after).items()):
            whole = copied.get(name, -1)
            entries.append(LogEntry(name, max(size, whole), whole >= 0))
        self._finish(part, entries, with_segments=segments)
        return True

    def _finish(self, part: Path, logs: list[LogEntry], *, with_segments: bool) -> None:
        files = []
        for path in sorted(path for path in part.rglob("*") if path.is_file() and path.name != "lock.mdb"):
            relative = str(path.relative_to(part))
            size = path.stat().st_size
            self._progress(f"digest of {relative}", 0, size)
            files.append(FileEntry(relative, size, digest_of(path)))
        manifest = Manifest(
            FORMAT,
            __version__,
            datetime.now(UTC).isoformat(timespec="seconds"),
            self._keyring.root_id.hex(),
            tuple(files),
            tuple(logs),
            with_segments,
            self._elsewhere(),
        )
        write_file(part / MANIFEST, seal_manifest(manifest, self._keyring))
        for folder in (part / "index", part / "keys", *(part / "keys").iterdir(), part):
            if folder.is_dir():
                sync_directory(folder)
        report = self._report
        report.index_bytes = sum(entry.size for entry in files if entry.path.startswith("index/"))
        report.index_of_another_release = not copy_is_of_this_layout(part / "index")
        report.keys = sum(entry.path.startswith("keys/") for entry in files)
        report.segments = len(logs)
        report.segment_bytes = sum(entry.size for entry in logs)
        report.elsewhere = manifest.elsewhere

    def _is_elsewhere(self, name: str) -> bool:
        """Whether a segment that went is a pack that another tier has: a restore finds it there."""
        row = self._packs.get(bytes.fromhex(name.rpartition("/")[2]))
        return row is not None and bool(set(row.copies) - {HOT})

    def _elsewhere(self) -> dict[str, PacksElsewhere]:
        found: dict[str, PacksElsewhere] = {}
        for page in self._packs.pages():
            for _, row in page:
                for name in row.copies if HOT not in row.copies else ():
                    old = found.get(name, PacksElsewhere())
                    found[name] = PacksElsewhere(old.packs + 1, old.bytes + row.size)
        return found

    # -- keys

    def _copy_keys(self, part: Path) -> None:
        """Copy the keys that are not in the snapshot yet; the root anew, as it is now."""
        source, target = self._data / "keys", part / "keys"
        make_private_directory(target)
        write_file(target / "root", (source / "root").read_bytes(), replace=True)
        for folder in sorted(path for path in source.iterdir() if path.is_dir()):
            make_private_directory(target / folder.name)
            for path in folder.glob("*.key"):
                copy = target / folder.name / path.name
                if copy.exists():
                    continue
                try:
                    data = path.read_bytes()
                except FileNotFoundError:
                    continue  # destroyed in this moment
                if not data.startswith(_DESTROYED):
                    write_file(copy, data)

    # -- logs

    def _listed(self, logs: Iterable[str]) -> dict[str, int]:
        found = {}
        for log in logs:
            for path in _files_in(self._data / log):
                try:
                    found[f"{log}/{path.name}"] = path.stat().st_size
                except FileNotFoundError:
                    continue
        return found

    def _copies(self, logs: Iterable[str]) -> dict[str, int]:
        return {
            f"{log}/{path.name}": path.stat().st_size
            for log in logs
            for path in _files_in(self._target / log)
            if not path.name.endswith(".part")
        }

    def _copy_log(self, log: str) -> None:
        """Copy the segments that are not there yet, or grew since: whole, so that no copy is half old."""
        target = self._target / log
        make_private_directory(target)
        have = self._copies([log])
        todo = [(name, size) for name, size in sorted(self._listed([log]).items()) if have.get(name) != size]
        total, done = sum(size for _, size in todo), 0
        for name, size in todo:
            source = self._data / name
            part = target / f"{source.name}.part"
            try:
                copied = copy_file(source, part, size, self._step(log, done, total))
            except FileNotFoundError:
                part.unlink(missing_ok=True)
                continue  # compaction removed it
            part.replace(self._target / name)
            done += copied
            self._report.copied += 1
            self._report.copied_bytes += copied
        sync_directory(target)
        sync_directory(self._target)

    def _step(self, what: str, done: int, total: int) -> Callable[[int], None]:
        return lambda count: self._progress(what, done + count, total)

    # -- old ones

    def _remove_old(self, keep: int) -> None:
        snapshots = snapshots_in(self._target)
        for name in snapshots[:-keep]:
            aside = self._target / "snapshots" / f".{name}.part"  # gone at once, whatever a crash leaves
            (self._target / "snapshots" / name).rename(aside)
            sync_directory(aside.parent)
            shutil.rmtree(aside)
            self._report.removed_snapshots.append(name)
        needed = set()
        for name in snapshots[-keep:]:
            manifest = read_manifest(self._target / "snapshots" / name, self._keyring)
            needed |= {entry.name for entry in manifest.logs}
        for log in LOGS:
            for path in _files_in(self._target / log):
                if f"{log}/{path.name}" not in needed:
                    path.unlink()
                    self._report.removed_segments += 1


# ---------------------------------------------------------------- manifests


def snapshots_in(target: Path) -> list[str]:
    """The snapshots of a backup directory, oldest first."""
    folder = target / "snapshots"
    if not folder.exists():
        return []
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def read_marker(target: Path) -> str:
    """Whose backups these are: the id of the archive's keyring. ``BackupError``."""
    try:
        fields = json.loads((target / MARKER).read_bytes())
        if fields["format"] != FORMAT:
            raise BackupError(f"{target} was made by another release: use that one, or a newer one")
        return str(fields["root_id"])
    except (OSError, ValueError, KeyError, TypeError):
        raise BackupError(
            f"{target} is no directory of backups: give the one that `backup` wrote to"
        ) from None


def seal_manifest(manifest: Manifest, keyring: Keyring) -> bytes:
    """The manifest as it is stored: its JSON, and a line with its HMAC under a key of the archive."""
    body = json.dumps(msgspec.to_builtins(manifest), indent=1).encode()
    return body + b"\n" + _mac(body, keyring).encode() + b"\n"


def read_manifest(snapshot: Path, keyring: Keyring) -> Manifest:
    """The manifest of a snapshot; ``BackupError`` when it is not as this archive wrote it."""
    try:
        data = (snapshot / MANIFEST).read_bytes()
    except OSError as error:
        raise BackupError(f"{snapshot} has no manifest ({error.strerror}): it is not a snapshot") from error
    body, _, mac = data.rstrip(b"\n").rpartition(b"\n")
    if not hmac.compare_digest(_mac(body, keyring).encode(), mac):
        raise BackupError(f"the manifest of {snapshot} was changed, or is another archive's: use another one")
    try:
        manifest = msgspec.json.decode(body, type=Manifest)
    except msgspec.MsgspecError:
        raise BackupError(f"the manifest of {snapshot} is of another release: use that one") from None
    if manifest.format != FORMAT:
        raise BackupError(f"the manifest of {snapshot} is of another release: use that one")
    return manifest


def _mac(body: bytes, keyring: Keyring) -> str:
    return hmac.new(keyring.derived_key(_MANIFEST_LABEL), body, hashlib.sha256).hexdigest()


# ---------------------------------------------------------------- files


def _files_in(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except FileNotFoundError:  # nothing of that sort was stored yet
        return []


def digest_of(path: Path) -> str:
    """BLAKE2b of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=32)).hexdigest()


def copy_file(source: Path, target: Path, size: int, progress: Callable[[int], None]) -> int:
    """Copy the first ``size`` bytes, durably (not the name), without filling the page cache; the bytes."""
    with source.open("rb") as reading, target.open("wb") as writing:
        target.chmod(0o600)
        done = 0
        while done < size:
            piece = reading.read(min(COPY_BYTES, size - done))
            if not piece:
                break
            writing.write(piece)
            done += len(piece)
            progress(done)
        writing.flush()
        os.fsync(writing.fileno())
        for file in (reading, writing):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return done


def write_file(path: Path, data: bytes, *, replace: bool = False) -> None:
    """A small file, whole and durable, or not at all. ``FileExistsError`` unless it may ``replace``.

    Where backups go there need not be hard links: by renaming.
    """
    draft = path.with_name(f".{path.name}.new")
    draft.unlink(missing_ok=True)
    write_private_file(draft, data)
    if replace or not path.exists():
        draft.replace(path)
    else:
        draft.unlink()
        raise FileExistsError(path)
    sync_directory(path.parent)


def describe(manifest: Manifest, name: str) -> dict[str, Any]:
    """A snapshot in plain words, for `hounsfield backup --list`."""
    return {
        "snapshot": name,
        "made_at": manifest.made_at,
        "version": manifest.version,
        "index_bytes": sum(entry.size for entry in manifest.files if entry.path.startswith("index/")),
        "keys": sum(entry.path.startswith("keys/") for entry in manifest.files),
        "segments": sum(entry.name.startswith("segments/") for entry in manifest.logs),
        "segments_copied": sum(e.copied for e in manifest.logs if e.name.startswith("segments/")),
        "segment_bytes": sum(entry.size for entry in manifest.logs),
    }


def key_files(folder: Path) -> list[Path]:
    """Every key file below a keyring's directory."""
    return sorted(path for path in folder.glob("*/*.key"))


__all__ = [
    "Backup",
    "BackupError",
    "BackupReport",
    "Manifest",
    "copy_file",
    "describe",
    "digest_of",
    "key_files",
    "read_manifest",
    "read_marker",
    "silent",
    "snapshots_in",
    "write_file",
]
