"""Measures ours beside the peers in one run: `python -m benchmarks [ingest|frames|all] [--quick]`.

`python -m benchmarks engine` measures the bars that are ours alone, `dicomweb` those of DICOMweb beside
Orthanc, `query-retrieve` C-FIND, C-MOVE and C-GET beside Orthanc and dcmqrscp, `tiers` what lies
elsewhere; see `--help` there.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import dicomweb, engine, frames, ingest, machine, query_retrieve, report, results, tiers
from benchmarks.peers.base import Peer
from benchmarks.peers.install import ensure
from benchmarks.peers.ours import Hounsfield
from benchmarks.peers.servers import ALL, FRAMES

console = Console(stderr=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs what the command line says. Exit status 1 when any of ours failed or lost an object."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["engine"]:
        return engine.main(given[1:])
    if given[:1] == ["dicomweb"]:
        return dicomweb.main(given[1:])
    if given[:1] == ["query-retrieve"]:
        return query_retrieve.main(given[1:])
    if given[:1] == ["tiers"]:
        return tiers.main(given[1:])
    options = _parser().parse_args(arguments)
    if options.rounds is None:
        options.rounds = 2 if options.quick else 5
    if options.seconds is None:
        options.seconds = 2.0 if options.quick else 6.0
    if options.pairs is None:
        options.pairs = 0 if options.quick else 15
    if options.what == "markdown":
        print(report.markdown(results.load(options.json)))
        return 0
    # SIGTERM unwinds like Ctrl-C, so that no server and no folder stays behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    began = time.monotonic()
    wanted = set(options.only.split(",")) if options.only else None
    names = {peer.name for peer in (*ALL, *FRAMES)}
    if wanted and not wanted <= names:
        console.print(f"unknown server {sorted(wanted - names)}: one of {', '.join(sorted(names))}")
        return 2
    for setting in options.set:
        Hounsfield.arguments = (*Hounsfield.arguments, "--set", setting)
    run: dict[str, Any] = {
        "machine": machine.describe(options.scratch or Path(tempfile.gettempdir())),
        "settings": {"rounds": options.rounds, "seconds": options.seconds, "pairs": options.pairs}
        | ({"set": options.set} if options.set else {}),
        "servers": {},
        "cells": [],
    }
    if options.what in {"ingest", "all"}:
        _ingest(run, options, _chosen(ALL, wanted, options))
    if options.what in {"frames", "all"}:
        peers = _chosen(FRAMES, wanted, options)
        run["cells"] += frames.rounds(
            peers, number=options.rounds, seconds=options.seconds, scratch=options.scratch, progress=_progress
        )
    run["settings"]["took_seconds"] = round(time.monotonic() - began, 1)
    _describe_servers(run)
    report.print_tables(run, Console(width=200 if not sys.stdout.isatty() else None))
    results.save(run, options.json)
    console.print(f"results: {options.json}")
    if options.plot:
        report.plot(run, options.plot)
        console.print(f"plot: {options.plot}")
    return 1 if _ours_failed(run) else 0


def _ingest(run: dict[str, Any], options: argparse.Namespace, peers: list[type[Peer]]) -> None:
    for name in options.scenarios.split(","):
        scenario = ingest.SCENARIOS[name]
        cells = ingest.rounds(
            peers,
            scenario,
            number=options.rounds,
            seconds=options.seconds,
            scratch=options.scratch,
            progress=_progress,
        )
        if options.pairs:
            cells += _more_pairs(cells, scenario, options, peers)
        run["cells"] += cells


def _more_pairs(
    cells: list[dict[str, Any]],
    scenario: ingest.Scenario,
    options: argparse.Namespace,
    peers: list[type[Peer]],
) -> list[dict[str, Any]]:
    """Further rounds of ours and those servers only whose ratio is near 1, at that parallelism only."""
    more: list[dict[str, Any]] = []
    missing: dict[int, dict[str, int]] = {}
    for server, _, parallel, pairs in results.needs_pairs(results.summarise(cells)):
        missing.setdefault(parallel, {})[server] = min(pairs, options.pairs)
    for parallel, servers in missing.items():
        console.print(f"near 1 at {parallel}: more pairs with {', '.join(servers)}")
        chosen = [peer for peer in peers if peer.name in servers or peer is Hounsfield]
        extra = ingest.rounds(
            chosen,
            scenario,
            number=max(servers.values()),
            seconds=options.seconds,
            scratch=options.scratch,
            associations=(parallel,),
            progress=_progress,
        )
        for cell in extra:
            cell["round"] += options.rounds
        more += extra
    return more


def _chosen(
    peers: Sequence[type[Peer]], wanted: set[str] | None, options: argparse.Namespace
) -> list[type[Peer]]:
    some = [peer for peer in peers if wanted is None or peer.name in wanted]
    return ensure(some, console.print, install=not options.no_install)


def _describe_servers(run: dict[str, Any]) -> None:
    seen = {cell["server"] for cell in run["cells"]}
    for peer_class in (*ALL, *FRAMES):
        if peer_class.name in seen:
            run["servers"][peer_class.name] = {
                "label": peer_class.label,
                "version": peer_class().version(),
                "durable": peer_class.durable,
                "tuning": peer_class.tuning,
            }


def _progress(cell: dict[str, Any]) -> None:
    who = f"{cell['scenario']:>14} {results.parallel_of(cell):2} {cell['server']:<16}"
    if cell.get("error"):
        console.print(f"{who} {cell['error']}", markup=False, highlight=False)
        return
    doubts = "".join(f"; {number} × {name}" for name, number in cell["failures"].items())
    if cell.get("lost"):
        doubts += f"; {cell['lost']} acknowledged objects missing"
    rate, p99 = cell["rate"], cell["p99_ms"]
    console.print(f"{who} {rate:8,.0f}/s  p99 {p99:7.1f} ms{doubts}", markup=False, highlight=False)


def _ours_failed(run: dict[str, Any]) -> bool:
    ours = [cell for cell in run["cells"] if cell["server"] == results.OURS]
    return any(cell.get("error") or cell.get("failures") or cell.get("lost") for cell in ours)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("what", nargs="?", choices=["ingest", "frames", "all", "markdown"], default="all")
    parser.add_argument("--quick", action="store_true", help="two rounds of 2 s, no further pairs")
    parser.add_argument("--only", help=f"servers, comma-separated: {', '.join(peer.name for peer in ALL)}")
    parser.add_argument("--scenarios", default="ct", help=f"for ingest, of: {', '.join(ingest.SCENARIOS)}")
    parser.add_argument("--rounds", type=int, help="rounds of every server (default 5)")
    parser.add_argument("--seconds", type=float, help="length of one measurement (default 6)")
    parser.add_argument("--pairs", type=int, help="at most so many more rounds where a ratio is near 1 (15)")
    parser.add_argument("--json", type=Path, default=results.DIRECTORY / "latest.json", metavar="OUT")
    parser.add_argument("--plot", type=Path, metavar="OUT", help="PNG or SVG")
    parser.add_argument("--scratch", type=Path, help="where servers keep data (default: temporary folder)")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="of ours: --set ingest.compression=zstd",
    )
    parser.add_argument("--no-install", action="store_true", help="leave out peers that are not there")
    return parser


if __name__ == "__main__":
    sys.exit(main())
