"""The blocking half of the engine: blobs, keys and index, and what reads and writes them."""

from __future__ import annotations

import gc
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path

from hounsfield.archive.dicom.rejection import REASONS, NoteLimits
from hounsfield.archive.engine.prepared_store import PreparedLimits, open_cache
from hounsfield.archive.engine.tiers import SEGMENTS, TieringOptions, Tiers
from hounsfield.archive.index import leases
from hounsfield.archive.index.catalog import HASHED_FIELDS, Catalog
from hounsfield.archive.index.correcting import Corrections
from hounsfield.archive.index.deletion import Deletions
from hounsfield.archive.index.epochs import begin_epoch
from hounsfield.archive.index.far_packs import FarPacks, listing
from hounsfield.archive.index.indexing import Indexer
from hounsfield.archive.index.journal import Journal
from hounsfield.archive.index.layout import require_layout
from hounsfield.archive.index.merging import Merger
from hounsfield.archive.index.planner import Planner
from hounsfield.archive.index.records import Records
from hounsfield.archive.index.recovery import RecoveryReport, catch_up, is_unsettled, reindex
from hounsfield.archive.index.rejections import Rejections
from hounsfield.archive.index.sealed import KeyedHash, RowSealer
from hounsfield.archive.index.tables import ALL_TABLES, JOURNAL, SEGMENT
from hounsfield.storage_backends.api import KeyValueStore
from hounsfield.storage_backends.keyring import Keyring
from hounsfield.storage_backends.lmdb_store import LmdbLimits, LmdbStore
from hounsfield.storage_backends.local_blobs import LocalBlobLimits, LocalBlobs
from hounsfield.storage_backends.segment_appending import SegmentLimits
from hounsfield.storage_backends.segments import SegmentLog
from hounsfield.storage_backends.tiered_blobs import TieredBlobs

LEDGER = "ledger/"
INDEX = "index"
DERIVED = "derived"
KEYS = "keys"


@dataclass(frozen=True, slots=True)
class StoresOptions:
    """What of an administrator's settings says how the stores are opened.

    ``duplicates`` says which of two conflicting objects is served.
    """

    segments: SegmentLimits = field(default_factory=SegmentLimits)
    blobs: LocalBlobLimits = field(default_factory=LocalBlobLimits)
    direct_writes: bool = True
    index: LmdbLimits = field(default_factory=LmdbLimits)
    duplicates: str = "keep-first"  # or "newest-current"
    rejection_notes: frozenset[str] = frozenset(REASONS)  # codes of the reasons for which they are followed
    rejection_limits: NoteLimits = field(default_factory=NoteLimits)
    metadata: PreparedLimits = field(default_factory=PreparedLimits)
    tiering: TieringOptions = field(default_factory=TieringOptions)


class Stores:
    """The blocking half: blobs, keys, index. Also what offline commands use; close it when done."""

    def __init__(  # noqa: PLR0917  what it consists of
        self,
        directory: Path,
        blobs: LocalBlobs,
        store: KeyValueStore,
        derived: KeyValueStore,
        keyring: Keyring,
        options: StoresOptions,
    ) -> None:
        self.directory = directory
        self.blobs = blobs
        self.tiers = Tiers(directory, store, keyring, options.tiering, options.blobs)
        self.reading = TieredBlobs(blobs, self.tiers.elsewhere, options.tiering.ranges)
        self.store = store
        self.derived = derived
        self.keyring = keyring
        self.log = SegmentLog(self.reading, keyring, prefix=SEGMENTS, limits=options.segments)
        self.ledger = SegmentLog(blobs, keyring, prefix=LEDGER, limits=options.segments)
        self.sealer = RowSealer(store, keyring)
        self.hashes = KeyedHash(keyring)
        self.hashes.prepare(HASHED_FIELDS)
        self.catalog = Catalog(self.sealer, self.hashes)
        self.journal = Journal(store, self.sealer, self.hashes, self.ledger)
        self.planner = Planner(store, self.catalog, self.hashes)
        self.merger = Merger(store, self.sealer, self.hashes)
        self.indexer = Indexer(
            log=self.log,
            store=store,
            sealer=self.sealer,
            catalog=self.catalog,
            journal=self.journal,
            newest_current=options.duplicates == "newest-current",
        )
        self.plugin_records = Records(store, self.journal, self.sealer, self.hashes)
        self.deletions = Deletions(
            self.indexer, self.journal, newest_current=options.duplicates == "newest-current"
        )
        self.corrections = Corrections(
            store=store,
            sealer=self.sealer,
            catalog=self.catalog,
            journal=self.journal,
            indexer=self.indexer,
            newest_current=options.duplicates == "newest-current",
        )
        self.rejections = Rejections(
            store=store,
            sealer=self.sealer,
            catalog=self.catalog,
            journal=self.journal,
            indexer=self.indexer,
            followed=options.rejection_notes,
            limits=options.rejection_limits,
            newest_current=options.duplicates == "newest-current",
        )

    @classmethod
    def open(cls, directory: Path, keyring: Keyring, options: StoresOptions) -> Stores:
        """Open the stores below a data directory that the caller has locked."""
        blobs = LocalBlobs(directory, limits=options.blobs, direct=options.direct_writes)
        store = LmdbStore(directory / INDEX, ALL_TABLES, limits=options.index)
        try:
            require_layout(store)
        except BaseException:
            store.close()
            blobs.close()
            raise
        derived = open_cache(directory / DERIVED, options.metadata, options.index)
        return cls(directory, blobs, store, derived, keyring, options)

    def catch_up(self, *, at_start: bool, far: FarPacks | None = None) -> RecoveryReport:
        """Index what a crash left durable and not indexed; see :mod:`hounsfield.archive.index.recovery`.

        ``far``: also what the tiers list and the index does not know. Of an index that was lost, all of it:
        ``TierAwayError`` when a tier does not answer then.
        """
        if at_start:
            if far is None and self._index_was_lost():
                far = self.far_packs()
            begin_epoch(self.store)  # before anything is appended to the journal
            leases.end_all(self.store)
        report = catch_up(self.indexer, self.journal, self.log.is_being_written, at_start=at_start, far=far)
        self.corrections.resume()
        self.rejections.resume()
        return report

    def far_packs(self, *, without: Collection[str] = (), fetch_keys: bool = False) -> FarPacks:
        """What the tiers list, but for those that are ``without``; ``TierAwayError`` when one is away.

        One may be away as long as every key that is here has what it seals. ``fetch_keys``: packs may be
        newer than the keyring, whose keys are then taken from the tiers: all must answer that were ever used.
        """
        found = listing(self.tiers.by_name, without=without)
        have = {segment.hex() for log in (self.log, self.ledger) for segment in log.segment_ids()}
        have |= {segment.hex() for segment in found.packs}
        missing = len(set(self.keyring.key_ids("segment")) - have)
        found.excuse(
            lambda name: (
                self.tiers.is_unused(name)
                and (found.is_said_unused(name) or (not missing and self.tiers.is_empty_bucket(name)))
            )
        )
        if missing or fetch_keys:  # else every key that is here has what it seals
            found.require_all(missing)
        far = FarPacks(self.tiers.by_name, found, self.keyring)
        if fetch_keys:
            far.fetch_keys()
        return far

    def _index_was_lost(self) -> bool:
        """Whether there are segments, and perhaps packs, of which the index knows none, or not yet all."""
        with self.store.snapshot() as snapshot:
            is_empty = not snapshot.last(JOURNAL) and next(snapshot.scan(SEGMENT, limit=1), None) is None
        return is_unsettled(self.indexer) or (is_empty and bool(self.keyring.key_ids("segment")))

    def reindex(
        self, progress: Callable[[int, int], None], *, rescan: bool = False, far: FarPacks | None = None
    ) -> RecoveryReport:
        """Fill the (empty) index from segments, ledger and ``far`` (:meth:`far_packs`); see
        :mod:`hounsfield.archive.index.recovery`."""
        gc.freeze()  # millions of rows come and go: what was loaded before need not be walked for each
        try:
            report = reindex(self.indexer, self.journal, progress, rescan=rescan, far=far)
        finally:
            gc.unfreeze()
        self.corrections.resume()
        self.rejections.resume()
        return report

    def close(self) -> None:
        self.log.close()
        self.ledger.close()
        self.derived.close()
        self.store.close()
        self.reading.close()
        self.tiers.close()
