"""From a snapshot (and the segments, wherever they survived) back to an archive that serves.

The index of a snapshot is a moment's; segments and ledger may be of a later one. So after the copying:

1. what the index looks for in segments that compaction has since removed is found again, by record id, in
   those that it was moved to;
2. records beyond the index are indexed, as after a crash;
3. facts beyond the index are replayed: what was deleted since stays deleted, what was corrected is corrected.

The index is a view of segments and ledger. When the snapshot's was written by another release, which this one
would misread, or is damaged, it is left where it is and made anew from them.

Nothing is overwritten: the new data directory must be empty, or be an earlier try at the same. It becomes an
archive (its marker is written, by the caller) only when all of this is done.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Collection, Container, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import msgspec

from hounsfield.archive.engine.backup import (
    LOGS,
    BackupError,
    LogEntry,
    Manifest,
    copy_file,
    digest_of,
    key_files,
    read_manifest,
    read_marker,
    silent,
    snapshots_in,
    write_file,
)
from hounsfield.archive.engine.stores import Stores, StoresOptions
from hounsfield.archive.index import locations
from hounsfield.archive.index.far_packs import FarPacks
from hounsfield.archive.index.layout import copy_is_of_this_layout
from hounsfield.archive.index.reconciling import Reconciling
from hounsfield.archive.index.recovery import RecoveryReport, note_unsettled
from hounsfield.archive.index.rows import RECORD_KIND_OBJECT, Location, ObjectRow, SegmentRow, decode
from hounsfield.archive.index.tables import SCRUB, SEGMENT, USE
from hounsfield.storage_backends.api import Batch
from hounsfield.storage_backends.errors import KeyringError, SealError
from hounsfield.storage_backends.file_systems import make_private_directory, sync_directory
from hounsfield.storage_backends.keyring import Keyring
from hounsfield.storage_backends.master_key import MasterKey, RecoveryKey
from hounsfield.storage_backends.segment_scan import ScannedRecord

UNFINISHED = "restore-unfinished"  # in a data directory that a restore is still making
SWITCH_ROWS = 256

Progress = Callable[[str, int, int], None]


@dataclass(slots=True)
class RestoreReport:
    """What a restore did, and what it did not find."""

    snapshot: str = ""
    made_at: str = ""
    index_bytes: int = 0
    keys: int = 0
    later_keys: int = 0  # of segments newer than the snapshot
    segments: int = 0
    segment_bytes: int = 0
    absent: list[str] = field(default_factory=list)  # named by the snapshot, not in the source
    moved: int = 0  # objects found in another segment than the snapshot's
    lost: int = 0  # objects of the index whose bytes are nowhere
    far_keys: int = 0  # of packs newer than the snapshot, taken from other tiers
    unused_tiers: list[str] = field(default_factory=list)  # that bear no mark: nothing was ever put there
    packs_corrected: int = 0  # that lie in other tiers than the snapshot's index says
    index_made_anew: bool = False  # then nobody knows what ``absent`` segments had, and ``lost`` is 0
    recovery: RecoveryReport = field(default_factory=RecoveryReport)


@dataclass(frozen=True, slots=True)
class Restore:
    """One restore from ``backups``; ``segments_from``: a directory with newer segments and ledger."""

    backups: Path
    snapshot: str
    keyring: Keyring
    manifest: Manifest
    segments_from: Path | None = None

    @classmethod
    def open(
        cls,
        backups: Path,
        key: MasterKey | RecoveryKey,
        *,
        snapshot: str = "",
        segments_from: Path | None = None,
    ) -> Restore:
        """Find the snapshot (the newest unless named) and see that it is this key's. ``BackupError``."""
        read_marker(backups)
        names = snapshots_in(backups)
        if not names:
            raise BackupError(f"{backups} holds no finished snapshot")
        name = snapshot or names[-1]
        if name not in names:
            raise BackupError(f"{backups} has no snapshot {name}: there are {', '.join(names[-5:])}")
        folder = backups / "snapshots" / name
        keyring = Keyring.open(folder / "keys", key)
        manifest = read_manifest(folder, keyring)
        if segments_from is None and not manifest.with_segments:
            raise BackupError(
                f"the snapshot {name} has no segments (it was made without --segments): say where they are, "
                "the old data directory or a copy of its segments/, ledger/ and keys/, with --segments-from"
            )
        return cls(backups, name, keyring, manifest, segments_from)

    @property
    def folder(self) -> Path:
        return self.backups / "snapshots" / self.snapshot

    @property
    def index_of_another_release(self) -> bool:
        """Whether the snapshot's index would be misread, and a restore makes it anew."""
        return not copy_is_of_this_layout(self.folder / "index")

    def check(self, progress: Progress, *, index: bool = True) -> None:
        """Compare every file of the snapshot with its digest; ``BackupError`` names what differs.

        ``index``: also those of the index, without which a restore can do.
        """
        files = [entry for entry in self.manifest.files if index or not entry.path.startswith("index/")]
        total = sum(entry.size for entry in files)
        done = 0
        for entry in files:
            path = self.folder / entry.path
            if not path.is_file() or path.stat().st_size != entry.size or digest_of(path) != entry.digest:
                advice = "use another snapshot"
                if entry.path.startswith("index/"):
                    advice += ", or `hounsfield restore --reindex`, which makes the index from the segments"
                raise BackupError(f"{path} is missing or damaged: {advice}")
            done += entry.size
            progress("checking", done, total)

    def source_of(self, log: str) -> Path:
        return (self.segments_from or self.backups) / log

    def absent(self) -> list[LogEntry]:
        """Segments that the snapshot names and that are not in the source, or are shorter there."""
        return [entry for entry in self.manifest.logs if _size(self._path_of(entry.name)) < entry.size]

    def _path_of(self, name: str) -> Path:
        log, _, rest = name.partition("/")
        return self.source_of(log) / rest

    def run(
        self,
        data: Path,
        options: StoresOptions,
        *,
        link: bool = False,
        reindex: bool = False,
        without_tiers: Collection[str] = (),
        progress: Progress = silent,
    ) -> RestoreReport:
        """Make ``data`` an archive again, all but its marker. ``BackupError`` when it holds anything else.

        ``link``: segments become further names of the source's files, where both are on one disk.
        ``reindex``: leave the snapshot's index and make it anew, as is done when it is of another release.
        ``without_tiers``: those that cannot be asked; else ``TierAwayError`` when one does not answer.
        """
        self._claim(data)
        report = RestoreReport(self.snapshot, self.manifest.made_at)
        report.absent = [entry.name for entry in self.absent()]
        self._copy_keys(data, report)
        for log in LOGS:
            self._copy_log(log, data, report, link, progress)
        index = data / "index"
        shutil.rmtree(index, ignore_errors=True)  # an earlier try may have gone on with it
        make_private_directory(index)
        report.index_made_anew = reindex or self.index_of_another_release
        for entry in self.manifest.files:
            if entry.path.startswith("index/") and not report.index_made_anew:
                source = self.folder / entry.path
                copy_file(source, data / entry.path, entry.size, _step(progress, "index", 0, entry.size))
                report.index_bytes += entry.size
        sync_directory(index)
        keyring = Keyring.open_with_root(data / "keys", self.keyring.reveal_root())
        stores = Stores.open(data, keyring, options)
        try:
            progress("asking the tiers", 0, 1)
            keys = len(stores.keyring.key_ids("segment"))
            far = stores.far_packs(without=without_tiers, fetch_keys=True)
            report.unused_tiers = sorted(far.unused)
            report.far_keys = len(stores.keyring.key_ids("segment")) - keys
            listed = {f"segments/{segment.hex()}" for segment in far.packs}
            report.absent = [name for name in report.absent if name not in listed]
            if report.index_made_anew:
                make_index(stores, report, progress, far)
            else:
                bring_up_to_date(stores, report, progress, far)
        finally:
            stores.close()
        return report

    def finish(self, data: Path) -> None:
        """Say that the restore is done; the caller has written the marker."""
        finish(data)

    def _claim(self, data: Path) -> None:
        claim(data, self.snapshot)

    def _copy_keys(self, data: Path, report: RestoreReport) -> None:
        target = data / "keys"
        make_private_directory(target)
        for entry in self.manifest.files:
            if entry.path.startswith("keys/"):
                make_private_directory((data / entry.path).parent)
                write_file(data / entry.path, (self.folder / entry.path).read_bytes(), replace=True)
                report.keys += 1
        keyring = Keyring.open_with_root(target, self.keyring.reveal_root())
        if self.segments_from is None or not (self.segments_from / "keys").is_dir():
            return
        # Keys that were made after the snapshot: of the segments that are newer than it.
        for path in key_files(self.segments_from / "keys"):
            copy = target / path.parent.name / path.name
            if copy.exists():
                continue
            make_private_directory(copy.parent)
            write_file(copy, path.read_bytes())
            try:
                keyring.check_key(path.parent.name, path.stem)
            except KeyringError:  # damaged, destroyed, or of another archive
                copy.unlink()
            else:
                report.later_keys += 1

    def _copy_log(self, log: str, data: Path, report: RestoreReport, link: bool, progress: Progress) -> None:
        source, target = self.source_of(log), data / log
        make_private_directory(target)
        if not source.is_dir():
            if not any(entry.name.startswith(f"{log}/") for entry in self.manifest.logs):
                return  # nothing of that sort was stored yet
            raise BackupError(
                f"there is no {source}: --segments-from is a directory with segments/ and ledger/"
            )
        named = {entry.name for entry in self.manifest.logs}
        files = sorted(
            path
            for path in source.iterdir()
            if path.is_file()
            and path.suffix != ".part"
            # What only former snapshots name, without a key here, was compacted between them and this one.
            and (f"{log}/{path.name}" in named or (data / "keys" / "segment" / f"{path.name}.key").exists())
        )
        total, done = sum(path.stat().st_size for path in files), 0
        for path in files:
            size, copy = path.stat().st_size, target / path.name
            if _size(copy) != size:
                part = target / f".{path.name}.part"
                part.unlink(missing_ok=True)
                if not (link and _link(path, part)):
                    copy_file(path, part, size, _step(progress, log, done, total))
                part.replace(copy)
            done += size
            progress(log, done, total)
            report.segments += 1
            report.segment_bytes += size
        sync_directory(target)


def finish(data: Path) -> None:
    """Say that a restore into ``data`` is done; the caller has written the marker."""
    (data / UNFINISHED).unlink(missing_ok=True)
    sync_directory(data)


def claim(data: Path, source: str) -> None:
    """Have a new data directory say from what it is restored; ``BackupError`` when it is anything else."""
    words = f"{source}\n".encode()
    if data.exists() and any(data.iterdir()):
        with suppress(OSError):
            if (data / UNFINISHED).read_bytes() == words:
                return
        raise BackupError(f"{data} is not empty: a restore never overwrites; give a new directory")
    make_private_directory(data)
    write_file(data / UNFINISHED, words)


def make_index(stores: Stores, report: RestoreReport, progress: Progress, far: FarPacks) -> None:
    """Fill an empty index from the segments and the ledger that are here, and what lies in other tiers."""
    stores.sealer.start_new_epoch()  # what other indexes of these keys sealed is not counted in it
    report.recovery = stores.reindex(partial(progress, "making the index anew"), far=far)
    stores.store.sync()


def bring_up_to_date(stores: Stores, report: RestoreReport, progress: Progress, far: FarPacks) -> None:
    """Make an older index fit the segments and the ledger that are here, and what lies in other tiers."""
    stores.sealer.start_new_epoch()  # what was sealed after the snapshot is not counted in it
    progress("finding what was moved", 0, 1)
    packs = Reconciling(stores.store, stores.catalog, stores.log, far)
    report.packs_corrected = packs.correct()
    missing = _missing(stores, packs)
    report.moved = _find_moved(stores, missing, packs)
    progress("indexing what is newer", 0, 1)
    note_unsettled(stores.indexer)  # segments come in any order: who was first speaks, as before the loss
    report.recovery = stores.catch_up(at_start=True, far=far)
    left = _missing(stores, packs) if missing else {}
    report.lost = sum(len(rows) for rows in left.values())
    needed = {row.location.segment for rows in left.values() for row in rows if row.location}
    packs.forget(needed)
    _forget_segments(stores, needed | packs.somewhere())
    stores.store.sync()
    progress("indexing what is newer", 1, 1)


def _missing(stores: Stores, packs: Reconciling) -> dict[bytes, list[locations.Located]]:
    """Rows that point into segments that are neither here nor in another tier, by record id."""
    have = {*stores.log.segment_ids(), *packs.somewhere()}
    found: dict[bytes, list[locations.Located]] = {}
    for _, rows in locations.walk(stores.store, stores.catalog):
        for row in rows:
            location = row.location
            if location is not None and location.segment not in have:
                found.setdefault(location.record_id, []).append(row)
    return found


def _find_moved(stores: Stores, missing: dict[bytes, list[locations.Located]], packs: Reconciling) -> int:
    """Point rows at the copies that compaction or gathering made of their records after the snapshot; how
    many."""
    moved = 0
    for records in _newer(stores, packs, missing) if missing else ():
        switches: list[tuple[locations.Located, Location, str]] = []
        try:
            for record in records:
                if record.kind != RECORD_KIND_OBJECT or record.ref.record_id not in missing:
                    continue
                carried = decode(ObjectRow, record.row)
                place = Location.of(record.ref, carried.stream), carried.stored_as
                switches += [(held, *place) for held in missing.pop(record.ref.record_id)]
        except (KeyringError, msgspec.MsgspecError):
            pass  # catching up reports it
        for start in range(0, len(switches), SWITCH_ROWS):
            group = switches[start : start + SWITCH_ROWS]
            stores.sealer.prepare(len(group))
            batch = Batch(uses_reserve=True)
            for held, location, stored_as in group:
                locations.point_elsewhere(batch, stores.sealer, held, location, stored_as=stored_as)
            stores.store.commit(batch)
        moved += len(switches)
    return moved


def _newer(stores: Stores, packs: Reconciling, wanted: Container[bytes]) -> Iterator[Iterable[ScannedRecord]]:
    """What the index does not know of each segment, as far as it is wanted and opens, and of each pack."""
    with stores.store.snapshot() as snapshot:
        known = {key: decode(SegmentRow, value) for key, value in snapshot.scan(SEGMENT)}
    for segment in stores.log.segment_ids():
        row = known.get(segment)
        if row is None or not row.closed:
            yield _that_open(stores, segment, row.indexed_to if row else None, wanted)
    for pack in packs.newer():
        yield pack.records


def _that_open(
    stores: Stores, segment: bytes, start: int | None, wanted: Container[bytes]
) -> Iterator[ScannedRecord]:
    for record in stores.log.scan(segment, start=start):
        if isinstance(record, ScannedRecord) and record.ref.record_id in wanted and _opens(stores, record):
            yield record


def _opens(stores: Stores, record: ScannedRecord) -> bool:
    try:
        stores.log.verify(record.ref)
    except SealError:
        return False
    return True


def _forget_segments(stores: Stores, needed: set[bytes]) -> None:
    """Drop what the index remembers of segments that are gone and that nothing points into."""
    have = {*stores.log.segment_ids(), *stores.ledger.segment_ids()}
    batch = Batch(uses_reserve=True)
    with stores.store.snapshot() as snapshot:
        for table in (SEGMENT, USE, SCRUB):
            for key, _ in snapshot.scan(table):
                if len(key) == 16 and key not in have and key not in needed:
                    batch.delete(table, key)  # the scrub drops what it suspects in a segment that is gone
    stores.store.commit(batch)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return -1


def _link(source: Path, target: Path) -> bool:
    try:
        os.link(source, target)
    except OSError:
        return False
    return True


def _step(progress: Progress, what: str, done: int, total: int) -> Callable[[int], None]:
    return lambda count: progress(what, done + count, total)
