"""Ratios, bounds and tables: what a reader is told."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from benchmarks.figures import PAIRS, lower_bound, median, near_one, percentile, together

from benchmarks import report, results


def cell(server: str, rate: float, number: int, **more: Any) -> dict[str, Any]:
    base = {"server": server, "scenario": "ct", "associations": 8, "round": number, "rate": rate}
    base |= {"p50_ms": 1.0, "p99_ms": 2.0, "cpu_ms_per_object": 1.5, "peak_pss_bytes": 2**20}
    return base | {"failures": {}, "lost": 0} | more


def test_percentiles_are_nearest_rank() -> None:
    values = [float(number) for number in range(1, 101)]
    assert percentile(values, 0.5) == 50
    assert percentile(values, 0.99) == 99
    assert percentile(values, 1.0) == 100
    assert percentile([], 0.5) == 0
    assert median([]) == 0


def test_the_processes_of_a_load_are_one_measurement() -> None:
    def part(latencies_ms: list[int], began: float, ended: float, **failures: int) -> dict[str, Any]:
        taken = [ms * 1_000_000 for ms in latencies_ms]
        return {"latencies_ns": taken, "began": began, "ended": ended, "failures": failures}

    parts = [part([3, 1], 10.0, 12.0, cut=1), part([2, 9], 11.0, 15.0, cut=2, lost=1)]
    measured = together([*parts, part([], 1.0, 1.0)])
    assert measured.pop("failures") == {"cut": 3, "lost": 1}
    assert measured == {"seconds": 5.0, "rate": 0.8, "p50_ms": 2.0, "p99_ms": 9.0, "worst_ms": 9.0}
    assert together([part([], 1.0, 1.0)])["rate"] == 0.0


def test_lower_bound_is_students_on_the_logarithms() -> None:
    assert lower_bound([1.1, 1.2]) is None
    assert lower_bound([2.0, 2.0, 2.0]) == pytest.approx(2.0)
    # Logarithms -0.1, 0, 0.1: mean 0, deviation 0.1, t(2) = 2.920.
    ratios = [math.exp(value) for value in (-0.1, 0.0, 0.1)]
    assert lower_bound(ratios) == pytest.approx(math.exp(-2.920 * 0.1 / math.sqrt(3)))


def test_ratios_pair_rounds_and_near_one_asks_for_more() -> None:
    cells = [cell("hounsfield", 100 + n, n) for n in range(5)] + [cell("bare", 100.0, n) for n in range(5)]
    rows = {row.server: row for row in results.summarise(cells)}
    assert rows["bare"].ratio == pytest.approx(1.02)
    assert "not a result" in rows["bare"].note
    assert results.needs_pairs(rows.values()) == [("bare", "ct", 8, PAIRS - 5)]
    assert near_one(0.8)
    assert not near_one(1.3)


def test_what_went_wrong_is_in_the_row() -> None:
    cells = [
        cell("dcmqrscp", 300, 0, failures={"status A900": 3}, lost=7),
        {"server": "dcmqrscp", "scenario": "ct", "associations": 8, "error": "did not start", "round": 1},
    ]
    (row,) = results.summarise(cells)
    assert (row.failures, row.lost, row.rounds) == ({"status A900": 3}, 7, 1)
    words = report.remarks(row)
    assert "3 × status A900" in words
    assert "7 acknowledged objects missing" in words
    assert "did not start" in words


def run_of(cells: list[dict[str, Any]]) -> dict[str, Any]:
    machine = {
        "cpu": "CPU",
        "cores": 2,
        "kernel": "Linux",
        "file_system": "ext4",
        "date": "2026-01-02T00:00:00",
    }
    machine |= {"distribution": "Debian", "load_before": 0.0}
    servers = {"hounsfield": {"label": "Hounsfield", "durable": "synced"}, "bare": {"label": "bare"}}
    return {"machine": machine, "servers": servers, "settings": {"rounds": 2, "seconds": 5.0}, "cells": cells}


def test_the_readme_table_and_the_plot_come_from_the_saved_run(tmp_path: Path) -> None:
    cells = [cell("hounsfield", 1000, n) for n in range(2)] + [cell("bare", 400, n) for n in range(2)]
    results.save(run_of(cells), tmp_path / "run.json")
    run = results.load(tmp_path / "run.json")
    text = report.markdown(run)
    assert "| **Hounsfield** | 1,000 |" in text
    assert "| bare | 400 (2.50×) |" in text
    report.plot(run, tmp_path / "run.svg")
    assert (tmp_path / "run.svg").stat().st_size > 1000
