"""Counters of every worker on one page: sums across processes, limits, balance, and Prometheus text."""

from __future__ import annotations

import os
import subprocess
import sys
import zlib
from unittest.mock import Mock

import pytest
from prometheus_client.parser import text_string_to_metric_families

from hounsfield.archive.app.auditing import AssociationAudit
from hounsfield.archive.app.dicom import BoardObserver
from hounsfield.archive.app.metrics import prometheus_text
from hounsfield.archive.app.scoreboard import (
    ACCEPT_DELAY_MAX,
    METRICS,
    TABLE_CELLS,
    Kind,
    Metric,
    Scoreboard,
)

_CHILD = """
import sys
from hounsfield.archive.app.scoreboard import Scoreboard
board = Scoreboard(int(sys.argv[1]), worker=int(sys.argv[2]))
cell = board.cell("associations")
for _ in range(10_000):
    cell.add()
    board.add("objects_total.stored", 2)
board.observe("http_request_seconds", 0.002)
"""


def test_sums_across_processes() -> None:
    fd, board = Scoreboard.create(3)
    children = [
        subprocess.Popen([sys.executable, "-c", _CHILD, str(fd), str(worker)], pass_fds=[fd])
        for worker in range(3)
    ]
    assert [child.wait(60) for child in children] == [0, 0, 0]
    assert board.total("associations") == 30_000
    assert board.by_worker("objects_total.stored") == [20_000] * 3
    buckets, total = board.histogram("http_request_seconds")
    assert dict(buckets)[0.001] == 0
    assert dict(buckets)[0.0025] == dict(buckets)[float("inf")] == 3
    assert total == pytest.approx(0.006)
    board.close()
    os.close(fd)


def test_a_dead_workers_gauges_are_zeroed_and_its_counters_kept() -> None:
    fd, supervisor = Scoreboard.create(2)
    for number in (0, 1):
        worker = Scoreboard(fd, worker=number)
        worker.set("associations", 4)
        worker.add("associations_total.accepted", 9)
    supervisor.clear_gauges(1)
    assert supervisor.by_worker("associations") == [4, 0]
    assert supervisor.total("associations_total.accepted") == 18
    os.close(fd)


def test_each_worker_writes_its_own_row() -> None:
    fd, supervisor = Scoreboard.create(2)
    zero, one = Scoreboard(fd, worker=0), Scoreboard(fd, worker=1)
    zero.cell("http_connections").add(3)
    one.cell("http_connections").add(4)
    one.cell("http_connections").add(-1)
    assert zero.own("http_connections") == one.own("http_connections") == 3
    assert one.cell("http_connections").total() == supervisor.total("http_connections") == 6
    os.close(fd)


@pytest.mark.parametrize(
    ("loads", "ready", "delay"),
    [
        ((0, 0, 0), (1, 1, 1), 0.0),
        ((3, 3, 5), (1, 1, 1), 0.0),  # nobody has fewer
        ((5, 3, 9), (1, 1, 1), 0.002),
        ((90, 3, 9), (1, 1, 1), ACCEPT_DELAY_MAX),
        ((5, 0, 9), (1, 0, 1), 0.0),  # a dead or draining worker takes nothing
        ((5, 0, 0), (1, 0, 0), 0.0),  # alone
    ],
)
def test_the_least_loaded_worker_accepts_first(
    loads: tuple[int, ...], ready: tuple[int, ...], delay: float
) -> None:
    fd, board = Scoreboard.create(3)
    for number, (load, is_ready) in enumerate(zip(loads, ready, strict=True)):
        worker = Scoreboard(fd, worker=number)
        worker.set("worker_connections", load)
        worker.set("worker_ready", is_ready)
    assert Scoreboard(fd, worker=0).accept_delay() == pytest.approx(delay)
    board.close()
    os.close(fd)


def test_a_page_of_another_release_is_refused() -> None:
    fd, board = Scoreboard.create(1, [Metric("one", Kind.COUNTER, "One")])
    with pytest.raises(ValueError, match="another version"):
        Scoreboard(fd, worker=0)
    board.close()
    os.close(fd)


def test_prometheus_text_shows_the_whole_archive() -> None:
    fd, supervisor = Scoreboard.create(2)
    for number in (0, 1):
        worker = Scoreboard(fd, worker=number)
        worker.add("objects_total.stored", 5)
        worker.add("objects_total.duplicate", 1)
        worker.set("worker_connections", number)
        worker.observe("http_request_seconds", 0.003)
    families = {
        family.name: family for family in text_string_to_metric_families(prometheus_text(supervisor).decode())
    }
    stored = {sample.labels["outcome"]: sample.value for sample in families["hounsfield_objects"].samples}
    assert stored["stored"] == 10
    assert stored["duplicate"] == 2
    per_worker = {s.labels["worker"]: s.value for s in families["hounsfield_worker_connections"].samples}
    assert per_worker == {"0": 0, "1": 1}
    histogram = {
        s.name: s.value for s in families["hounsfield_http_request_seconds"].samples if "le" not in s.labels
    }
    assert histogram["hounsfield_http_request_seconds_count"] == 2
    assert histogram["hounsfield_http_request_seconds_sum"] == pytest.approx(0.006)
    os.close(fd)


def test_every_line_of_the_table_is_published() -> None:
    fd, board = Scoreboard.create(1)
    text = prometheus_text(board).decode()
    for metric in METRICS:
        assert (f"# HELP hounsfield_{metric.name} " in text) == (metric.kind is not Kind.TABLE)
    os.close(fd)


def test_names_are_unique_and_counters_end_in_total() -> None:
    keys = [metric.key for metric in METRICS]
    assert len(keys) == len(set(keys))
    for metric in METRICS:
        assert metric.name.endswith("_total") == (metric.kind is Kind.COUNTER)


def test_a_tables_cells_add_up_by_name() -> None:
    fd, supervisor = Scoreboard.create(2)
    zero, one = Scoreboard(fd, worker=0), Scoreboard(fd, worker=1)
    zero.table_cell("associations_from", "192.0.2.1").add(2)
    one.table_cell("associations_from", "192.0.2.1").add(3)
    one.table_cell("associations_from", "192.0.2.2").add(9)
    assert zero.table_cell("associations_from", "192.0.2.1").total() == 5
    supervisor.clear_gauges(1)
    assert zero.table_cell("associations_from", "192.0.2.1").total() == 2
    os.close(fd)


@pytest.mark.parametrize("of", ["titles", "addresses"])
def test_who_shares_a_cell_does_not_share_a_limit(of: str) -> None:
    """Names whose first cells are the same one: an open association of the one is none of the other."""
    fd, board = Scoreboard.create(1)
    worker = Scoreboard(fd, worker=0)
    observer = BoardObserver(worker, Mock(spec=AssociationAudit))
    opened, closed, count = (
        (observer.entity_opened, observer.entity_closed, observer.associations_of)
        if of == "titles"
        else (observer.association_opened, observer.association_closed, observer.associations_from)
    )
    by_cell: dict[int, str] = {}
    for number in range(100_000):
        name = f"AE{number}" if of == "titles" else f"10.0.{number // 256}.{number % 256}"
        cell = zlib.crc32(name.encode()) % TABLE_CELLS
        other = by_cell.setdefault(cell, name)
        if other != name:
            break
    opened(other)
    opened(other)
    assert (count(other), count(name)) == (2, 0)
    opened(name)
    assert count(name) == 1
    for _ in range(2):
        closed(other)
    assert (count(other), count(name)) == (0, 1)
    worker.close()
    board.close()
    os.close(fd)
