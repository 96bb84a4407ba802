"""The engine, put together: what the network and web layers, plugins and the command line call."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import trio

from hounsfield.archive.dicom.coercion import Coercions
from hounsfield.archive.engine.associations import AssociationEvents
from hounsfield.archive.engine.availability import Availability
from hounsfield.archive.engine.changes import Changes
from hounsfield.archive.engine.commitments import Commitments
from hounsfield.archive.engine.compaction import Compaction, CompactionLimits
from hounsfield.archive.engine.compressing import Compressing
from hounsfield.archive.engine.corrections import Correcting
from hounsfield.archive.engine.decoding import Decoding, DecodingLimits
from hounsfield.archive.engine.deletion import Deleting
from hounsfield.archive.engine.gate import Gate
from hounsfield.archive.engine.gram_merging import GramMerging
from hounsfield.archive.engine.group_commit import GroupCommit
from hounsfield.archive.engine.ingest import Ingest, IngestLimits, IngestSession
from hounsfield.archive.engine.isolation import Isolation, IsolationLimits
from hounsfield.archive.engine.listing import Listing
from hounsfield.archive.engine.opening import Opening
from hounsfield.archive.engine.prepared import PreparedMetadata
from hounsfield.archive.engine.prepared_build import Blocking
from hounsfield.archive.engine.prepared_store import PreparedStore
from hounsfield.archive.engine.quiet import Consumer, QuietStudies
from hounsfield.archive.engine.reading_ahead import ReadingAhead, ReadingAheadLimits
from hounsfield.archive.engine.record_keeping import RecordKeeping
from hounsfield.archive.engine.rejecting import Rejecting
from hounsfield.archive.engine.rendered import Rendered, RenderedLimits
from hounsfield.archive.engine.retrieve import Retrieve
from hounsfield.archive.engine.same_content import Comparing
from hounsfield.archive.engine.scrub import Scrub, ScrubLimits
from hounsfield.archive.engine.search import Search
from hounsfield.archive.engine.stable import EVENT_STABLE, announcing_stable_studies
from hounsfield.archive.engine.stores import Stores, StoresOptions
from hounsfield.archive.engine.tiering import Tiering
from hounsfield.archive.engine.tiers import far_reads
from hounsfield.archive.engine.transcoding import Transcoding, TranscodingLimits
from hounsfield.archive.engine.types import EngineStatistics, Outcome, Source
from hounsfield.archive.engine.undisturbed import UndisturbedRecords
from hounsfield.archive.engine.video import Videos
from hounsfield.archive.index.merging import Merger
from hounsfield.archive.rendering.lettering import Lettering
from hounsfield.codecs.at_rest import Encoding


@dataclass(frozen=True, slots=True)
class EngineOptions(StoresOptions):
    """What an administrator can set: of the stores, and of what works on them."""

    ingest: IngestLimits = field(default_factory=IngestLimits)
    compaction: CompactionLimits = field(default_factory=CompactionLimits)
    compression: str = ""  # of native frames: "zstd", "jpegxl", "htj2k", or "" for none
    isolation: IsolationLimits = field(default_factory=IsolationLimits)
    decoding: DecodingLimits = field(default_factory=DecodingLimits)
    transcoding: TranscodingLimits = field(default_factory=TranscodingLimits)
    reading_ahead: ReadingAheadLimits = field(default_factory=ReadingAheadLimits)
    rendered: RenderedLimits = field(default_factory=RenderedLimits)
    fonts: tuple[str, ...] = ()  # files, for what is written into pictures; none: Pillow's own
    study_stable_s: float = 60.0
    scrub: ScrubLimits = field(default_factory=ScrubLimits)


class Engine:
    """One worker's engine. ``async with open_engine(...)``; then every method may be called by any task."""

    def __init__(
        self, stores: Stores, options: EngineOptions, *, owner: str, on_commit: Callable[[], None]
    ) -> None:
        self.stores = stores
        self._gate = self.gate = Gate(is_far=far_reads(stores.reading))
        self.changes = Changes(stores.store, stores.journal, self._gate, on_commit)
        on_commit = self.changes.committed
        self._search = Search(stores.planner, self._gate)
        self.records = UndisturbedRecords(stores.indexer)
        self.isolation = Isolation(options.isolation)
        self.compressing = Compressing(Encoding(options.compression) if options.compression else None)
        self.comparing = Comparing(self.records, self.isolation)
        self._ingest = Ingest(
            GroupCommit(stores.indexer),
            self._gate,
            options.ingest,
            on_commit,
            compressing=self.compressing,
            comparing=self.comparing,
        )
        self._retrieve = Retrieve(stores.indexer, self.records, self._gate, self._ingest.pool)
        self.decoding = Decoding(self.records, self.isolation, self._gate, options.decoding)
        self.decoded = self.decoding.decoded
        self.transcoding = Transcoding(
            self._retrieve, self.decoding, self.isolation, self._gate, options.transcoding
        )
        self.transcoded_frame = self.transcoding.transcoded_frame
        self.transcoded = self.transcoding.transcoded
        self.reading_ahead = ReadingAhead(
            instances=self._retrieve.instances,
            announce=self._retrieve.read_ahead,
            make=self.transcoding.made_ahead,
            idle=lambda: self.decoding.turns.borrowed_tokens < options.isolation.processes_max,
            limits=options.reading_ahead,
        )
        self.rendered = Rendered(
            find=self._retrieve.instances,
            header=self._retrieve.header_blocking,
            header_nowait=self._retrieve.header_nowait,
            read=self._gate.read,
            decoded=self.decoding.decoded,
            frame=self.decoding.frame,
            video=Videos(self._retrieve, self.decoding.frame),
            limits=options.rendered,
            lettering=Lettering(options.fonts),
        )
        self.availability = Availability(stores.store, stores.journal, self._retrieve, self._gate, on_commit)
        cache = PreparedStore(stores.derived, stores.keyring, options.metadata)
        blocking = Blocking(
            index=stores.store,
            catalog=stores.catalog,
            cache=cache,
            header=self._retrieve.header_blocking,
            read_ahead=self.records.read_ahead,
            limits=options.metadata,
        )
        self.metadata = PreparedMetadata(blocking, cache, self._gate, options.metadata)
        consumers = (
            announcing_stable_studies(options.study_stable_s, self.availability.owe),
            Consumer(
                "metadata",
                options.metadata.quiet_s,
                heeds=lambda kind: kind != EVENT_STABLE,
                act=self.metadata.prepare,
            ),
        )
        self._quiet = [
            QuietStudies(stores.store, stores.journal, stores.sealer, self._gate, consumer, owner=owner)
            for consumer in consumers
        ]
        # A merger of its own: two rounds of one would have the same turn, and neither would notice the other.
        merger = Merger(stores.store, stores.sealer, stores.hashes)
        self.gram_merging = GramMerging(stores.store, merger, self._gate, owner=owner)
        self.scrub = Scrub.of(stores, self._gate, options.scrub, owner=owner)
        self._on_commit = on_commit
        self.deleting = Deleting(
            stores.deletions,
            stores.store,
            stores.journal,
            self._gate,
            catch_up=partial(stores.catch_up, at_start=False),
            on_commit=on_commit,
        )
        self.delete = self.deleting.delete
        self.rejecting = Rejecting(stores, self.deleting, self._gate, on_commit)
        self._ingest.note_stored = self.rejecting.follow_stored
        self.compaction = Compaction(stores, options.compaction, owner=owner)
        self.tiering = Tiering(
            stores, options.tiering, source=self.records.source, owner=owner, on_commit=on_commit
        )
        self._retrieve.opened = self.tiering.note_opened
        self.scrub.moving = self.tiering.leading
        self.correcting = Correcting(stores, self._gate, on_commit)
        self.record_keeping = RecordKeeping(stores.store, stores.plugin_records, on_commit)
        self.commitments = Commitments(
            stores.store, stores.journal, stores.catalog, self.records, self._gate, on_commit
        )
        self.associations = AssociationEvents(stores.store, stores.journal, self._gate)
        self.search = self._search.search
        self.named = self._retrieve.named
        self.frame_nowait = self._retrieve.frame_nowait
        self.frame = self._retrieve.frame
        self.frame_sent = self._retrieve.frame_sent
        self.instances = self._retrieve.instances
        self.header = self._retrieve.header
        self.header_blocking = self._retrieve.header_blocking
        self.dataset = self._retrieve.dataset
        self.datasets = self._retrieve.datasets
        self.bring = self._retrieve.bring
        self.listing = Listing(stores.store, stores.catalog)
        self.opening = partial(Opening, self._retrieve, self._gate, self._ingest.pool)
        self.received = self._retrieve.received
        self.dataset_bytes = self._retrieve.dataset_bytes
        self.dataset_bytes_blocking = self._retrieve.dataset_bytes_blocking
        self.is_corrected = self._retrieve.is_corrected
        self.pixel_places = self._retrieve.pixel_places
        self.memory = self._ingest.budget  # what comes in takes from it, objects or not
        self.read = self._gate.read
        self.heavy = self._gate.heavy

    def begin(
        self, *, transfer_syntax_uid: str, sop_class_uid: str = "", sop_instance_uid: str = "", source: Source
    ) -> IngestSession:
        """A session that receives one object; see :class:`IngestSession`. ``ClosedError`` while draining."""
        return self._ingest.begin(
            transfer_syntax_uid=str(transfer_syntax_uid),  # plain text: subclasses do not encode
            sop_class_uid=str(sop_class_uid),
            sop_instance_uid=str(sop_instance_uid),
            source=source,
        )

    def use_coercions(self, coercions: Coercions | None) -> None:
        """Coerce what comes in from now on so; None: not at all. What is here stays what it became."""
        self._ingest.coercions = coercions

    async def state(self, kind: str) -> list[Mapping[str, Any]]:
        """What the facts of one kind amount to now."""

        def read() -> list[Mapping[str, Any]]:
            with self.stores.store.snapshot() as snapshot:
                return list(self.stores.journal.state(snapshot, kind))

        return await self._gate.read(read)

    async def commit_fact(self, kind: str, name: str, body: dict[str, Any] | None, at_ns: int) -> int:
        """Record a fact durably (ledger, journal, state); see :meth:`Journal.commit_fact`."""
        number = await self._gate.read(self.stores.journal.commit_fact, kind, name, body, at_ns)
        self._on_commit()
        return number

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Commit what comes in, and do what is to be done beside it, until :meth:`close`."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self.metadata.run)
            for quiet in self._quiet:
                nursery.start_soon(quiet.run)
            nursery.start_soon(self.reading_ahead.run)
            nursery.start_soon(self.isolation.run)
            nursery.start_soon(self.compaction.run)
            nursery.start_soon(self.tiering.run)
            nursery.start_soon(self.gram_merging.run)
            nursery.start_soon(self.scrub.run)
            nursery.start_soon(self.rejecting.run)
            await nursery.start(self.record_keeping.run)
            await nursery.start(self._ingest.large.run)
            await self._ingest.run(task_status=task_status)
            self._ingest.large.close()
            nursery.cancel_scope.cancel()

    def close(self) -> None:
        """Take no new objects; ``run`` returns when the submitted ones are committed."""
        self._ingest.close()

    def statistics(self) -> EngineStatistics:
        outcomes = self._ingest.outcomes
        figures = self.records.figures
        return EngineStatistics(
            objects_stored=outcomes[Outcome.STORED],
            objects_duplicate=outcomes[Outcome.DUPLICATE],
            objects_conflict=outcomes[Outcome.CONFLICT],
            objects_quarantined=outcomes[Outcome.QUARANTINED],
            objects_failed=self._ingest.failed,
            bytes_stored=self._ingest.bytes_stored,
            groups=self._ingest.groups,
            bytes_in_flight=self._ingest.budget.in_flight,
            sessions_open=len(self._ingest.sessions),
            frames_read=figures.frames,
            frames_read_cached=figures.frames_cached,
        )


@asynccontextmanager
async def open_engine(
    stores: Stores, options: EngineOptions, *, owner: str, on_commit: Callable[[], None] = lambda: None
) -> AsyncIterator[Engine]:
    """A running engine over ``stores``, which stay the caller's to close."""
    engine = Engine(stores, options, owner=owner, on_commit=on_commit)
    await engine.read(stores.sealer.prepare)
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(engine.run)
            try:
                yield engine
            finally:
                engine.close()
    finally:
        engine.isolation.close()
