"""One page of counters that every worker shares: what holds for the whole archive is added up here.

A memory file (``memfd``) is mapped by the supervisor and by every worker it starts::

    header   8 × int64   magic, version, rows, columns, five reserved
    row 0    columns × int64      written by worker 0 only
    row 1    columns × int64      written by worker 1 only
    …

A worker writes its own row and nothing else, so no lock is needed; a sum over rows is a moment's picture,
exact as soon as nobody writes. An aligned int64 is stored in one instruction on every machine we run on.

Counters only grow and survive a restarted worker, which goes on where the dead one stopped. Gauges say
what is so now: the supervisor zeroes a dead worker's.
"""

from __future__ import annotations

import mmap
import os
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

_MAGIC = 0x31_42_53_53_46_4E_4F_48  # "HONFSSB1"
_VERSION = 1
_HEADER = 8
_WORD = 8


class Kind(Enum):
    """What a column's number means."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"
    TABLE = "table"  # many gauges under one name, for limits; not published


# Cells of a table, chosen by hash: two of a hospital's hundred devices share one once in a few hundred runs.
TABLE_CELLS = 4096


@dataclass(frozen=True)
class Metric:
    """One line of the fixed table: a counter, a gauge, or a histogram with its upper bounds (in ``unit``)."""

    name: str
    kind: Kind
    help: str
    labels: tuple[tuple[str, str], ...] = ()
    bounds: tuple[float, ...] = ()
    scale: float = 1.0  # what an int64 here is multiplied with to give the published unit

    @property
    def columns(self) -> int:
        """A histogram needs a cell per bound, one for everything above, and the sum."""
        if self.kind is Kind.TABLE:
            return TABLE_CELLS
        return len(self.bounds) + 2 if self.kind is Kind.HISTOGRAM else 1

    @property
    def key(self) -> str:
        """The name that code uses: the published name and the label values, joined by dots."""
        return ".".join((self.name, *(value for _, value in self.labels)))


_MICRO = 1e-6
_LATENCY = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)


def _by(name: str, kind: Kind, text: str, label: str, *values: str) -> tuple[Metric, ...]:
    return tuple(Metric(name, kind, text, ((label, value),)) for value in values)


METRICS: tuple[Metric, ...] = (
    Metric("worker_ready", Kind.GAUGE, "1 while the worker accepts connections"),
    Metric("worker_connections", Kind.GAUGE, "Open connections of every protocol"),
    Metric("associations", Kind.GAUGE, "Open DICOM associations"),
    Metric("associations_from", Kind.TABLE, "Open DICOM associations by calling address"),
    Metric(
        "associations_of",
        Kind.TABLE,
        "Open DICOM associations by calling AE, of those with a limit of their own",
    ),
    Metric(
        "association_events_dropped_total",
        Kind.COUNTER,
        "Records of associations that did not reach the journal",
    ),
    Metric("lists_loaded_total", Kind.COUNTER, "Times that a worker took AEs, users and certificates anew"),
    Metric(
        "tls_certificate_days",
        Kind.GAUGE,
        "Days until the first of our TLS certificates ends, negative when it has; 0 also without any",
    ),
    *_by(
        "associations_total",
        Kind.COUNTER,
        "DICOM associations by how they came out",
        "outcome",
        "accepted",
        "refused",
        "aborted",
    ),
    Metric("dimse_echoes_total", Kind.COUNTER, "C-ECHO requests answered"),
    Metric("dimse_objects_total", Kind.COUNTER, "Objects received with C-STORE and acknowledged"),
    Metric("dimse_objects_failed_total", Kind.COUNTER, "C-STORE requests answered with a failure"),
    Metric("dimse_objects_abandoned_total", Kind.COUNTER, "Objects whose sender went away in the middle"),
    Metric("dimse_queries_total", Kind.COUNTER, "C-FIND requests"),
    Metric("dimse_queries_failed_total", Kind.COUNTER, "C-FIND requests refused, or ended by a limit"),
    Metric("dimse_answers_total", Kind.COUNTER, "Answers to C-FIND requests"),
    Metric("dimse_retrievals_total", Kind.COUNTER, "C-MOVE and C-GET requests performed"),
    *_by(
        "dimse_retrieved_objects_total",
        Kind.COUNTER,
        "Objects of C-MOVE and C-GET requests by how they came out",
        "outcome",
        "sent",
        "warned",
        "failed",
    ),
    Metric("dimse_retrieved_bytes_total", Kind.COUNTER, "Bytes of objects sent for C-MOVE and C-GET"),
    *_by("dimse_bytes_total", Kind.COUNTER, "Bytes on DICOM connections", "direction", "in", "out"),
    Metric("commitment_requests_total", Kind.COUNTER, "Storage commitment requests acknowledged"),
    Metric("commitment_reports_total", Kind.COUNTER, "Storage commitment reports delivered"),
    Metric("commitment_given_up_total", Kind.COUNTER, "Storage commitment reports that nobody ever took"),
    Metric("availability_notifications_total", Kind.COUNTER, "Instance availability notifications taken"),
    Metric("availability_given_up_total", Kind.COUNTER, "Such notifications that nobody ever took"),
    Metric("plugin_connections", Kind.TABLE, "Open connections by listener of a plugin"),
    Metric("http_connections", Kind.GAUGE, "Open HTTP connections"),
    Metric("http_uploads", Kind.GAUGE, "Open store requests"),
    Metric("http_feeds", Kind.GAUGE, "Open change feeds"),
    Metric("http_requests_total", Kind.COUNTER, "HTTP requests answered"),
    *_by(
        "http_responses_total",
        Kind.COUNTER,
        "HTTP responses by class of status",
        "status",
        "1xx",
        "2xx",
        "3xx",
        "4xx",
        "5xx",
    ),
    Metric("http_request_seconds", Kind.HISTOGRAM, "Time to answer a request", (), _LATENCY, _MICRO),
    *_by("http_bytes_total", Kind.COUNTER, "Bytes on HTTP connections", "direction", "in", "out"),
    Metric("http_refused_total", Kind.COUNTER, "Connections turned away because the server was full"),
    *_by(
        "http_errors_total",
        Kind.COUNTER,
        "Requests that were cut or failed",
        "reason",
        "timeout",
        "malformed",
        "application",
    ),
    Metric("ingest_bytes_in_flight", Kind.GAUGE, "Bytes of objects received but not yet durable"),
    *_by(
        "objects_total",
        Kind.COUNTER,
        "Objects committed, by outcome",
        "outcome",
        "stored",
        "duplicate",
        "conflict",
        "quarantined",
    ),
    Metric("objects_failed_total", Kind.COUNTER, "Objects that were answered with a failure"),
    Metric("objects_bytes_total", Kind.COUNTER, "Bytes of data sets committed"),
    Metric("commits_total", Kind.COUNTER, "Group commits"),
    Metric("frames_total", Kind.COUNTER, "Frames read"),
    Metric("scrub_records_total", Kind.COUNTER, "Stored records read and authenticated again"),
    Metric("scrub_bytes_total", Kind.COUNTER, "Stored bytes read and authenticated again"),
    Metric("scrub_damaged_total", Kind.COUNTER, "Damaged records that the scrub found"),
    Metric("scrub_repaired_total", Kind.COUNTER, "Damaged records written anew from another copy"),
    Metric("damaged_records", Kind.GAUGE, "Damaged records that are known and not repaired"),
    Metric("scrub_oldest_seconds", Kind.GAUGE, "Age of the oldest verification among verified segments"),
    Metric("frames_cached_total", Kind.COUNTER, "Frames read without a thread, from the page cache"),
    *_by(
        "frames_ahead_total",
        Kind.COUNTER,
        "Frames that the disk was told of, or that were transcoded, before a viewer asked for them",
        "way",
        "announced",
        "made",
    ),
    Metric("deleted_instances_total", Kind.COUNTER, "Instances deleted"),
    Metric("deleted_bytes_total", Kind.COUNTER, "Stored bytes of what was deleted"),
    Metric("compaction_dead_bytes", Kind.GAUGE, "Bytes that are deleted and still on the disk"),
    Metric("compaction_segments_total", Kind.COUNTER, "Segments rewritten or dropped by compaction"),
    Metric("compaction_moved_bytes_total", Kind.COUNTER, "Bytes that compaction wrote anew"),
    Metric("compaction_reclaimed_bytes_total", Kind.COUNTER, "Bytes that compaction freed"),
    Metric("compaction_failures_total", Kind.COUNTER, "Times that compaction was put off by an error"),
    Metric("tiering_series_total", Kind.COUNTER, "Series that tier rules moved, copied or recompressed"),
    *_by(
        "tiering_gathered_bytes_total",
        Kind.COUNTER,
        "Bytes of objects that were put into packs, as they lay before and as they lie there",
        "side",
        "before",
        "after",
    ),
    Metric("tiering_copied_bytes_total", Kind.COUNTER, "Bytes of packs copied into other tiers"),
    Metric("tiering_freed_bytes_total", Kind.COUNTER, "Bytes of packs dropped from the data directory"),
    Metric("tiering_recalled_series_total", Kind.COUNTER, "Series brought back into the data directory"),
    Metric("tiering_recalled_bytes_total", Kind.COUNTER, "Bytes of packs brought back"),
    Metric("tiering_expired_series_total", Kind.COUNTER, "Series deleted because their retention is over"),
    Metric("tiering_verified_copies_total", Kind.COUNTER, "Copies in tiers that were read again, all right"),
    Metric("tiering_repaired_packs_total", Kind.COUNTER, "Copies that were wrong and were put anew"),
    Metric("tiering_failures_total", Kind.COUNTER, "Steps of tiering that an error put off"),
    *_by(
        "compression_objects_total",
        Kind.COUNTER,
        "Objects whose frames were offered to the coder, by how they are stored",
        "stored",
        "smaller",
        "as_received",
    ),
    *_by(
        "compression_bytes_total",
        Kind.COUNTER,
        "Bytes of the frames that are stored smaller",
        "side",
        "received",
        "stored",
    ),
    *_by(
        "objects_compared_total",
        Kind.COUNTER,
        "Objects under known UIDs in other bytes, by whether the content is the same",
        "content",
        "same",
        "other",
    ),
    Metric("decoding_processes_total", Kind.COUNTER, "Processes started to decode what others compressed"),
    Metric("decoding_failures_total", Kind.COUNTER, "Frames at which such a process crashed or was ended"),
    *_by(
        "metadata_series_total",
        Kind.COUNTER,
        "Series metadata answered as it was prepared, and made anew",
        "way",
        "prepared",
        "built",
    ),
    *_by(
        "rendered_files_total",
        Kind.COUNTER,
        "Pictures and films given: drawn, kept from before, or drawn for another at that moment",
        "way",
        "drawn",
        "kept",
        "shared",
    ),
    Metric("rendered_bytes_total", Kind.COUNTER, "Bytes of the pictures and films that were drawn"),
    Metric(
        "rendered_work_seconds_total",
        Kind.COUNTER,
        "CPU time of drawing them, without decoding",
        (),
        (),
        _MICRO,
    ),
    Metric(
        "rendered_refused_total", Kind.COUNTER, "Requests for pictures of what cannot be shown, or not so"
    ),
    Metric("rendered_kept_bytes", Kind.GAUGE, "Bytes of pictures and films kept in memory"),
    Metric("search_studies_merged_total", Kind.COUNTER, "Studies merged into the search index"),
)

TIER_OPERATIONS = ("put", "read", "stream", "size", "names", "delete")
_TIER_METRICS = {
    "tier_requests_total": ("Requests to the store of a tier", 1.0),
    "tier_request_seconds_total": ("Time that they took", _MICRO),
    "tier_bytes_total": ("Bytes put or read", 1.0),
    "tier_errors_total": ("Requests that failed; those that are tried again, too", 1.0),
}


def metrics_with(tiers: Iterable[str]) -> tuple[Metric, ...]:
    """The fixed table, and what there is of each tier, by its name."""
    return METRICS + tuple(
        Metric(
            name,
            Kind.COUNTER,
            text,
            (("tier", tier), ("operation", operation)),
            scale=scale,
        )
        for name, (text, scale) in _TIER_METRICS.items()
        for tier in tiers
        for operation in TIER_OPERATIONS
    )


class Scoreboard:
    """The shared page, seen from one row (``worker``), or from none (``worker=None``: the supervisor)."""

    def __init__(self, fd: int, *, worker: int | None = None, metrics: Iterable[Metric] = METRICS) -> None:
        """Map the page behind ``fd``, which stays the caller's. ValueError when it is not such a page."""
        self.metrics = tuple(metrics)
        self.worker = worker
        self._offset: dict[str, int] = {}
        self._metric: dict[str, Metric] = {}
        columns = 0
        for metric in self.metrics:
            self._offset[metric.key] = columns
            self._metric[metric.key] = metric
            columns += metric.columns
        self._columns = columns
        self._map = mmap.mmap(fd, 0)
        self._cells = memoryview(self._map).cast("q")
        magic, version, rows, found = self._cells[:4].tolist()
        if (magic, version, found) != (_MAGIC, _VERSION, columns):
            raise ValueError(
                "the scoreboard was made by another version of Hounsfield; restart the whole server"
            )
        self.workers: int = rows
        self._base = _HEADER + (worker or 0) * columns

    @classmethod
    def create(cls, workers: int, metrics: Iterable[Metric] = METRICS) -> tuple[int, Scoreboard]:
        """A new page with a row per worker: its file descriptor (the caller's) and the supervisor's view."""
        metrics = tuple(metrics)
        columns = sum(metric.columns for metric in metrics)
        fd = os.memfd_create("hounsfield-scoreboard", os.MFD_CLOEXEC)
        os.ftruncate(fd, _WORD * (_HEADER + workers * columns))
        with mmap.mmap(fd, 0) as page, memoryview(page) as raw, raw.cast("q") as cells:
            for index, value in enumerate((_MAGIC, _VERSION, workers, columns)):
                cells[index] = value
        return fd, cls(fd, metrics=metrics)

    def add(self, key: str, amount: int = 1) -> None:
        """Add to this worker's cell. KeyError for a name that is not in the table."""
        self._cells[self._base + self._offset[key]] += amount

    def set(self, key: str, value: int) -> None:
        """Set this worker's cell."""
        self._cells[self._base + self._offset[key]] = value

    def observe(self, key: str, value: float) -> None:
        """Count ``value`` (in the published unit) in this worker's histogram."""
        metric = self._metric[key]
        start = self._base + self._offset[key]
        bucket = next((i for i, bound in enumerate(metric.bounds) if value <= bound), len(metric.bounds))
        self._cells[start + bucket] += 1
        self._cells[start + len(metric.bounds) + 1] += round(value / metric.scale)

    def cell(self, key: str) -> Cell:
        """A handle on one column, for hot paths: no name is looked up again."""
        return Cell(self, self._offset[key])

    def own(self, key: str) -> int:
        """This worker's number."""
        return int(self._cells[self._base + self._offset[key]])

    def table_cell(self, key: str, name: str) -> Cell:
        """The cell of a table that ``name`` falls into. Names may share one: a limit then holds for both."""
        return Cell(self, self._offset[key] + zlib.crc32(name.encode()) % TABLE_CELLS)

    def total(self, key: str) -> int:
        """The sum over all workers: the archive's number."""
        return sum(self.by_worker(key))

    def by_worker(self, key: str) -> list[int]:
        """Every worker's number, in order."""
        return self.column(self._offset[key])

    def histogram(self, key: str) -> tuple[list[tuple[float, int]], float]:
        """Cumulative (upper bound, count) pairs over all workers, the last bound infinite; and the sum."""
        metric, start = self._metric[key], self._offset[key]
        count = 0
        buckets = []
        for index, bound in enumerate((*metric.bounds, float("inf"))):
            count += sum(self.column(start + index))
            buckets.append((bound, count))
        return buckets, sum(self.column(start + len(metric.bounds) + 1)) * metric.scale

    def column(self, index: int) -> list[int]:
        """The raw numbers of one column, by worker."""
        return self._cells[_HEADER + index :: self._columns].tolist()

    def clear_gauges(self, worker: int) -> None:
        """Zero a dead worker's gauges; its counters stay. The supervisor's job."""
        base = _HEADER + worker * self._columns
        for key, metric in self._metric.items():
            if metric.kind in {Kind.GAUGE, Kind.TABLE}:
                start = base + self._offset[key]
                for cell in range(start, start + metric.columns):
                    self._cells[cell] = 0

    def accept_delay(self, connections: str = "worker_connections") -> float:
        """Seconds to wait before accepting, so that connections spread over workers: 0 for the least loaded.

        Every worker waits on the same listening socket, and the first to wake gets the connection. A
        worker that already has more connections than the least loaded ready one gives it a head start of
        a millisecond for each connection of difference, at most :data:`ACCEPT_DELAY_MAX`.
        """
        mine = self.own(connections)
        if not mine:
            return 0.0
        ready = self.by_worker("worker_ready")
        others = [
            load
            for worker, load in enumerate(self.by_worker(connections))
            if worker != self.worker and ready[worker]
        ]
        if not others or mine <= min(others):
            return 0.0
        return min(ACCEPT_DELAY_STEP * (mine - min(others)), ACCEPT_DELAY_MAX)

    def close(self) -> None:
        """Unmap the page. Idempotent."""
        self._cells.release()
        self._map.close()


# A wake-up and an accept take some 100 µs on an idle worker; a connection delayed by more would be felt.
ACCEPT_DELAY_STEP = 0.001
ACCEPT_DELAY_MAX = 0.005


class Cell:
    """One column of the scoreboard: adds to this worker's cell, and reads the archive's sum."""

    __slots__ = ("_board", "_column", "_index")

    def __init__(self, board: Scoreboard, column: int) -> None:
        self._board = board
        self._column = column
        self._index = board._base + column

    def add(self, amount: int = 1) -> None:
        """Add to this worker's cell; a gauge takes negative amounts."""
        self._board._cells[self._index] += amount

    def set(self, value: int) -> None:
        """Set this worker's cell."""
        self._board._cells[self._index] = value

    @property
    def own(self) -> int:
        """This worker's number."""
        return self._board._cells[self._index]

    def total(self) -> int:
        """The archive's number."""
        return sum(self._board.column(self._column))
