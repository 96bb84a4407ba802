"""Components' ``statistics()`` onto the scoreboard, several times a second."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import trio

from hounsfield.archive.app.scoreboard import Kind, Scoreboard
from hounsfield.archive.app.tier_operations import tier_figures
from hounsfield.archive.engine.engine import Engine

# Often enough for a scrape every second and for limits that add up over workers; 20 µs of work each.
SAMPLE_SECONDS = 0.25


class Sampler:
    """Copies figures of this process to its row. A counter goes on from what an earlier worker left there."""

    def __init__(self, board: Scoreboard) -> None:
        self._board = board
        self._sources: list[Callable[[], Mapping[str, int]]] = []
        self._base = {
            metric.key: board.own(metric.key) if metric.kind is Kind.COUNTER else 0
            for metric in board.metrics
            if metric.kind in {Kind.COUNTER, Kind.GAUGE}
        }

    def add(self, source: Callable[[], Mapping[str, int]]) -> None:
        """Sample ``source``: scoreboard keys to this process's numbers since its start."""
        self._sources.append(source)

    def add_engine(self, engine: Engine) -> None:
        """Sample the engine's figures."""

        def figures() -> dict[str, int]:
            now = engine.statistics()
            return {
                "objects_total.stored": now.objects_stored,
                "objects_total.duplicate": now.objects_duplicate,
                "objects_total.conflict": now.objects_conflict,
                "objects_total.quarantined": now.objects_quarantined,
                "objects_failed_total": now.objects_failed,
                "objects_bytes_total": now.bytes_stored,
                "commits_total": now.groups,
                "ingest_bytes_in_flight": now.bytes_in_flight,
                "frames_total": now.frames_read,
                "frames_cached_total": now.frames_read_cached,
                "frames_ahead_total.announced": engine.reading_ahead.figures.announced,
                "frames_ahead_total.made": engine.reading_ahead.figures.made,
            }

        def scrub() -> dict[str, int]:
            now = engine.scrub.figures
            return {
                "scrub_records_total": now.records,
                "scrub_bytes_total": now.bytes,
                "scrub_damaged_total": now.damaged,
                "scrub_repaired_total": now.repaired,
                "damaged_records": now.known_damaged,
                "scrub_oldest_seconds": now.oldest_s,
            }

        def deletion_figures() -> dict[str, int]:
            now = engine.compaction.figures
            return {
                "deleted_instances_total": engine.deleting.deleted_instances,
                "deleted_bytes_total": engine.deleting.deleted_bytes,
                "compaction_dead_bytes": now.dead_bytes,
                "compaction_segments_total": now.segments,
                "compaction_moved_bytes_total": now.moved_bytes,
                "compaction_reclaimed_bytes_total": now.reclaimed_bytes,
                "compaction_failures_total": now.failures,
            }

        def content() -> dict[str, int]:
            smaller, metadata = engine.compressing.figures, engine.metadata.figures
            return {
                "compression_objects_total.smaller": smaller.objects,
                "compression_objects_total.as_received": smaller.as_received,
                "compression_bytes_total.received": smaller.bytes_received,
                "compression_bytes_total.stored": smaller.bytes_stored,
                "objects_compared_total.same": engine.comparing.found_same,
                "objects_compared_total.other": engine.comparing.compared - engine.comparing.found_same,
                "decoding_processes_total": engine.isolation.started,
                "decoding_failures_total": engine.isolation.failed,
                "metadata_series_total.prepared": metadata.hits,
                "metadata_series_total.built": metadata.builds,
                "search_studies_merged_total": engine.gram_merging.merged,
            }

        def rendered() -> dict[str, int]:
            files, drawing = engine.rendered.figures, engine.rendered.drawing
            return {
                "rendered_files_total.drawn": files.made,
                "rendered_files_total.kept": files.found,
                "rendered_files_total.shared": files.shared,
                "rendered_bytes_total": drawing.bytes_drawn,
                "rendered_work_seconds_total": drawing.work_us,
                "rendered_refused_total": drawing.refused,
                "rendered_kept_bytes": files.bytes_held,
            }

        self.add(figures)
        self.add(content)
        self.add(rendered)
        self.add(deletion_figures)
        self.add(scrub)
        self.add(tier_figures(engine, self._base))

    def sample(self) -> None:
        """Copy every source's figures now."""
        for source in self._sources:
            for key, value in source().items():
                self._board.set(key, self._base[key] + value)

    async def run(self) -> None:
        """Sample until cancelled, and once more at the end."""
        try:
            while True:
                self.sample()
                await trio.sleep(SAMPLE_SECONDS)
        finally:
            self.sample()
