"""What an experiment gives: figures, each beside the bar that it is to hold."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.figures import median

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Settings:
    """How much is measured. ``quick`` is for seeing that an experiment runs: its figures mean nothing."""

    rounds: int = 5
    seconds: float = 6.0
    quick: bool = False
    scratch: Path | None = None
    sizes: dict[str, int] = field(default_factory=dict)

    def size(self, name: str, full: int, quick: int) -> int:
        """A count of objects and the like: as given with --size NAME=N, else the full or the quick one."""
        return self.sizes.get(name, quick if self.quick else full)


@dataclass(slots=True)
class Figure:
    """One measured quantity. ``bar``: at most or at least so much, None when there is none."""

    experiment: str
    what: str
    values: list[float]
    unit: str
    at_most: float | None = None
    at_least: float | None = None
    detail: dict[str, Any] = field(default_factory=dict)

    @property
    def value(self) -> float:
        """The median of the rounds."""
        return median(self.values)

    @property
    def holds(self) -> bool | None:
        """Whether the bar is met; None without one, or without a value."""
        if not self.values or (self.at_most is None and self.at_least is None):
            return None
        over = self.at_most is not None and self.value > self.at_most
        return not over and not (self.at_least is not None and self.value < self.at_least)

    @property
    def bar(self) -> str:
        """The bar in words."""
        if self.at_most is not None:
            return f"≤ {self.at_most:,g}"
        return f"≥ {self.at_least:,g}" if self.at_least is not None else ""

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "median": self.value, "holds": self.holds}


Experiment = Callable[[Settings, Say], list[Figure]]


def text(figure: Figure) -> str:
    """A figure in one line."""
    low, high = (min(figure.values), max(figure.values)) if figure.values else (0.0, 0.0)
    verdict = {True: "holds", False: "DOES NOT HOLD", None: ""}[figure.holds]
    bar = f"  bar {figure.bar} {figure.unit}" if figure.bar else ""
    value = f"{figure.value:,.4g} {figure.unit} ({low:,.4g} to {high:,.4g}, {len(figure.values)} rounds)"
    return f"{figure.what}: {value}{bar}  {verdict}".rstrip()


def add_options(parser: argparse.ArgumentParser) -> None:
    """What every experiment's command line has."""
    parser.add_argument("--quick", action="store_true", help="see that it runs: small sizes, two rounds")
    parser.add_argument("--rounds", type=int, help="default 5")
    parser.add_argument("--seconds", type=float, help="length of one measurement of a rate, default 6")
    parser.add_argument("--scratch", type=Path, help="where archives are made (default: temporary folder)")
    parser.add_argument("--size", action="append", default=[], metavar="NAME=N", help="see each experiment")


def settings_of(options: argparse.Namespace) -> Settings:
    sizes = {name: int(number) for name, _, number in (entry.partition("=") for entry in options.size)}
    return Settings(
        rounds=options.rounds or (2 if options.quick else 5),
        seconds=options.seconds or (2.0 if options.quick else 6.0),
        quick=options.quick,
        scratch=options.scratch,
        sizes=sizes,
    )


def main(experiment: Experiment, document: str | None, arguments: Sequence[str] | None = None) -> int:
    """The command line of one experiment alone."""
    parser = argparse.ArgumentParser(description=document, formatter_class=argparse.RawTextHelpFormatter)
    add_options(parser)
    parser.add_argument("--json", action="store_true", help="figures as JSON on standard output")
    options = parser.parse_args(arguments)
    figures = experiment(settings_of(options), lambda line: print(line, file=sys.stderr, flush=True))
    if options.json:
        print(json.dumps([figure.to_json() for figure in figures], indent=1))
    else:
        for figure in figures:
            print(text(figure))
    return 1 if any(figure.holds is False for figure in figures) else 0
