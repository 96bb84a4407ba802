"""The engine's bars, one experiment after another: `python -m benchmarks engine [--only NAME,…] [--quick]`.

Each experiment is a module that also runs alone (`python -m benchmarks.metadata --json`). Results are saved
as JSON with the machine that they were measured on; exit status 1 when a bar is not held.
"""

from __future__ import annotations

import argparse
import importlib
import json
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks import bars, machine
from benchmarks.bars import Experiment
from benchmarks.results import DIRECTORY

#: Name, module, what it measures. The long ones come last.
EXPERIMENTS: dict[str, tuple[str, str]] = {
    "small": ("benchmarks.small_objects", "32 KiB objects, in series and a study each, beside tuned Orthanc"),
    "stow": ("benchmarks.stow", "STOW-RS of a CT series beside C-STORE of the same"),
    "metadata": ("benchmarks.metadata", "series metadata, prepared and not yet"),
    "first-frame": ("benchmarks.first_frame", "from the last C-STORE response to the first frame"),
    "sealed-frames": ("benchmarks.sealed_frames", "frames beside a bare server of the same sealed bytes"),
    "memory": ("benchmarks.memory", "memory of a worker that takes in CT on 64 associations"),
    "index-size": ("benchmarks.index_size", "bytes of index an instance and a study"),
    "reindex": ("benchmarks.reindex", "reindex by the rows that records carry, and by full rescan"),
    "large-index": ("benchmarks.index_load", "ingest and start after a kill with millions in the index"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the experiments; 1 when a bar was not held or an experiment failed."""

    def experiment(module: str) -> Experiment:
        run: Experiment = importlib.import_module(module).run
        return run

    found = {name: (partial(experiment, module), title) for name, (module, title) in EXPERIMENTS.items()}
    return run_named(arguments, found, name="engine", document=__doc__)


def run_named(
    arguments: Sequence[str] | None,
    experiments: Mapping[str, tuple[Callable[[], Experiment], str]],
    *,
    name: str,
    document: str | None,
) -> int:
    """The command line of several experiments: `python -m benchmarks NAME`."""
    options = _parser(name, document, {key: title for key, (_, title) in experiments.items()}).parse_args(
        arguments
    )
    names = options.only.split(",") if options.only else list(experiments)
    unknown = [name for name in names if name not in experiments]
    console = Console(stderr=True)
    if unknown:
        console.print(f"no experiment {', '.join(unknown)}: one of {', '.join(experiments)}")
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    settings = bars.settings_of(options)
    run: dict[str, Any] = {
        "machine": machine.describe(options.scratch or Path(tempfile.gettempdir())),
        "settings": {"rounds": settings.rounds, "seconds": settings.seconds, "quick": settings.quick},
        "figures": [],
        "errors": {},
    }
    for name in names:
        found, title = experiments[name]
        console.print(f"[bold]{name}[/bold]: {title}")
        began = time.monotonic()
        try:
            figures = found()(settings, partial(console.print, markup=False, highlight=False, soft_wrap=True))
        except Exception as error:
            run["errors"][name] = f"{type(error).__name__}: {error}"
            console.print(f"{name} failed: {error}", markup=False, style="red")
            continue
        run["figures"] += [figure.to_json() for figure in figures]
        console.print(f"{name}: {time.monotonic() - began:.0f} s")
    _print(run)
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(run, indent=1) + "\n")
    console.print(f"results: {options.json}")
    return 1 if run["errors"] or any(figure["holds"] is False for figure in run["figures"]) else 0


def _print(run: dict[str, Any]) -> None:
    table = Table(title="median (lowest to highest)", title_justify="left")
    for column in ("experiment", "what", "measured", "bar", ""):
        table.add_column(column)
    for figure in run["figures"]:
        values, unit = figure["values"], figure["unit"]
        shown = f"{figure['median']:,.4g} {unit}"
        if len(values) > 1:
            shown += f" ({min(values):,.4g} to {max(values):,.4g})"
        at_most, at_least = figure["at_most"], figure["at_least"]
        bar = f"≤ {at_most:,g}" if at_most is not None else f"≥ {at_least:,g}" if at_least is not None else ""
        verdict = {True: "holds", False: "[red]does not hold[/red]", None: ""}[figure["holds"]]
        table.add_row(figure["experiment"], figure["what"], shown, bar, verdict)
    Console(width=180 if not sys.stdout.isatty() else None).print(table)
    for name, error in run["errors"].items():
        print(f"{name}: {error}")


def _parser(name: str, document: str | None, titles: Mapping[str, str]) -> argparse.ArgumentParser:
    listed = "\n".join(f"  {key:12} {title}" for key, title in titles.items())
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks {name}",
        description=document,
        epilog=f"experiments:\n{listed}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    bars.add_options(parser)
    parser.add_argument("--only", help="experiments, comma-separated")
    parser.add_argument("--json", type=Path, default=DIRECTORY / f"{name}.json", metavar="OUT")
    return parser
