"""From cells to a summary: medians, ratios, bounds. A cell is one measurement; see `ingest.measure`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.figures import PAIRS, lower_bound, median, near_one

OURS = "hounsfield"
DIRECTORY = Path(__file__).resolve().parent / "results"


@dataclass(frozen=True, slots=True)
class Row:
    """One server in one scenario at one degree of parallelism, over all rounds."""

    server: str
    scenario: str
    parallel: int
    rounds: int
    rate: float
    rate_low: float
    rate_high: float
    p50_ms: float
    p99_ms: float
    cpu_ms: float | None
    peak_pss_bytes: int
    failures: dict[str, int]
    lost: int | None
    ratio: float | None = None  # ours / this server, median over paired rounds
    ratio_low: float | None = None  # its one-sided lower 95 % bound
    pairs: int = 0
    note: str = ""
    errors: list[str] = field(default_factory=list)


def parallel_of(cell: dict[str, Any]) -> int:
    """Associations or clients."""
    return int(cell.get("associations", cell.get("clients", 0)))


def summarise(cells: Sequence[dict[str, Any]]) -> list[Row]:
    """A row for every (scenario, parallelism, server) in the order of first appearance."""
    groups: dict[tuple[str, int, str], list[dict[str, Any]]] = {}
    for cell in cells:
        groups.setdefault((cell["scenario"], parallel_of(cell), cell["server"]), []).append(cell)
    return [_row(key, group, groups.get((key[0], key[1], OURS), [])) for key, group in groups.items()]


def _row(key: tuple[str, int, str], group: list[dict[str, Any]], ours: list[dict[str, Any]]) -> Row:
    scenario, parallel, server = key
    good = [cell for cell in group if not cell.get("error")]
    rates = [cell["rate"] for cell in good]
    failures: dict[str, int] = {}
    for cell in good:
        for name, number in cell["failures"].items():
            failures[name] = failures.get(name, 0) + number
    ratios = [] if server == OURS else paired_ratios(ours, group)
    ratio = median(ratios) if ratios else None
    note = ""
    if ratio is not None and near_one(ratio) and len(ratios) < PAIRS:
        note = f"near 1 with {len(ratios)} pairs: not a result, {PAIRS} are needed"
    losses = [cell["lost"] for cell in good if cell.get("lost") is not None]
    cpu = [cell["cpu_ms_per_object"] for cell in good if cell["cpu_ms_per_object"] is not None]
    return Row(
        server=server,
        scenario=scenario,
        parallel=parallel,
        rounds=len(good),
        rate=median(rates),
        rate_low=min(rates, default=0.0),
        rate_high=max(rates, default=0.0),
        p50_ms=median([cell["p50_ms"] for cell in good]),
        p99_ms=median([cell["p99_ms"] for cell in good]),
        cpu_ms=median(cpu) if cpu else None,
        peak_pss_bytes=max((cell["peak_pss_bytes"] for cell in good), default=0),
        failures=failures,
        lost=sum(losses) if losses else None,
        ratio=ratio,
        ratio_low=lower_bound(ratios),
        pairs=len(ratios),
        note=note,
        errors=[cell["error"] for cell in group if cell.get("error")],
    )


def paired_ratios(ours: Iterable[dict[str, Any]], theirs: Iterable[dict[str, Any]]) -> list[float]:
    """Ours over theirs for each round in which both were measured."""
    rates = {cell["round"]: cell["rate"] for cell in ours if cell.get("rate")}
    return [
        rates[cell["round"]] / cell["rate"]
        for cell in theirs
        if cell.get("rate") and cell.get("round") in rates
    ]


def needs_pairs(rows: Iterable[Row]) -> list[tuple[str, str, int, int]]:
    """(server, scenario, parallelism, missing pairs) for each ratio that is too near 1 for its number of
    pairs.
    """
    return [
        (row.server, row.scenario, row.parallel, PAIRS - row.pairs)
        for row in rows
        if row.ratio is not None and near_one(row.ratio) and row.pairs < PAIRS
    ]


def save(run: dict[str, Any], path: Path) -> None:
    """Writes a run: {machine, servers, settings, cells}."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(run, indent=1) + "\n")


def load(path: Path) -> dict[str, Any]:
    """Reads what `save` wrote."""
    run: dict[str, Any] = json.loads(path.read_text())
    return run
