"""kill -9 at random moments under a load, again and again, on one archive that grows.

    python -m crash_truth.kills [--rounds 500] [--seed 1] [--json]        (make kills)

Each round lets eight associations store, kills the supervisor and every worker at a random moment (0 to
400 ms after the first acknowledgement), and starts the server again. Then

- every series of the round is listed, instance by instance: all that was acknowledged, and of what was sent
  and not answered each object wholly or not at all; and read: every byte, of unanswered objects too;
- every study since the first round says how many instances it has: as many as were ever listed of it.

The same eight studies get another series in each of ten rounds, so that a kill meets rows that stand already.
Every fiftieth round and at the end all instances of the archive are listed one by one, and at the end all
bytes are read. ``kill -9`` keeps the page cache: what a power cut takes is ``crash_truth.explore``'s to find.
The last line of standard output is, with ``--json``, one JSON object.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import httpx
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from hounsfield.archive.dicom.part10 import split
from support.load import Made, StoreLoad
from support.server import ArchiveServer, archive_server, until, value

ASSOCIATIONS = 8
KILL_WITHIN_S = 0.4
OBJECTS_MAX = 60  # of one association in one round: an archive that lists in no time after 500 rounds
ROUNDS_OF_A_STUDY = 10
ROUNDS_UNTIL_ALL_IS_LISTED = 50
_STUDIES_OF_A_PAGE = 1000


@dataclass
class Tally:
    """What happened over all rounds."""

    rounds: int = 0
    sent: int = 0
    acknowledged: int = 0
    cut_off: int = 0
    """Sent and never answered: there or not, but never in part."""
    there_though_unanswered: int = 0
    objects_read: int = 0
    """Objects whose bytes were read and compared; once in their round, once at the end."""
    lost: list[str] = field(default_factory=list)
    half_visible: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    start_seconds_max: float = 0.0
    start_seconds_mean: float = 0.0
    seconds: float = 0.0

    @property
    def well(self) -> bool:
        return not (self.lost or self.half_visible or self.failures)


@dataclass
class Truth:
    """What an archive must have, as its senders know it, held against what it serves."""

    tally: Tally
    made: dict[str, Made] = field(default_factory=dict)
    """All that was sent, by SOP Instance UID."""
    acknowledged: set[str] = field(default_factory=set)
    there: dict[str, Made] = field(default_factory=dict)
    """All that was ever listed."""

    def add(self, load: StoreLoad) -> None:
        """What a load sent and was told."""
        self.made |= load.made
        self.acknowledged |= {made.sop for made in load.acknowledged}
        self.tally.failures += load.failures
        self.tally.sent, self.tally.acknowledged = len(self.made), len(self.acknowledged)
        self.tally.cut_off = len(self.made) - len(self.acknowledged)

    def listed(self, expected: Iterable[str], sops: Sequence[str]) -> None:
        """``sops`` are listed; of ``expected``, what was acknowledged or listed before must be among them."""
        found = set(sops)
        promised = (set(expected) & self.acknowledged) | (set(expected) & self.there.keys())
        self.tally.lost += sorted(promised - found)
        self.tally.half_visible += sorted(found - self.made.keys())
        self.tally.half_visible += [f"{sop} twice" for sop, times in Counter(sops).items() if times > 1]
        self.there |= {sop: self.made[sop] for sop in found & self.made.keys()}
        self.tally.there_though_unanswered = len(self.there.keys() - self.acknowledged)

    def check_series(self, server: ArchiveServer, study: str, series: str, expected: set[str]) -> None:
        """One series, listed and read."""
        path = f"/dicom-web/studies/{study}/series/{series}/instances"
        answer = server.client.get(path, params={"limit": 10_000})
        rows = [] if answer.status_code == 404 else answer.json()  # nothing of it came through
        sops = [value(row, "00080018") for row in rows]
        self.listed(expected, sops)
        if sops:
            self._check_bytes(server, study, series, sops)

    def _check_bytes(self, server: ArchiveServer, study: str, series: str, sops: Sequence[str]) -> None:
        """Every listed instance of a series gives the bytes that were sent."""
        try:
            files = server.series_files(study, series)
        except (AssertionError, httpx.HTTPError):
            files = []
        digests = Counter(hashlib.sha256(raw[split(raw).offset :]).hexdigest() for raw in files)
        if digests != Counter(self.made[sop].digest for sop in sops if sop in self.made):
            self._name_the_wrong(server, sops)
        self.tally.objects_read += len(files)

    def _name_the_wrong(self, server: ArchiveServer, sops: Sequence[str]) -> None:
        wrong = len(self.tally.lost) + len(self.tally.half_visible)
        for sop in filter(self.made.__contains__, sops):
            made = self.made[sop]
            try:
                data = server.dataset_bytes(made.study, made.series, sop)
            except (AssertionError, httpx.HTTPError):
                data = b""
            if hashlib.sha256(data).hexdigest() != made.digest:
                (self.tally.lost if sop in self.acknowledged else self.tally.half_visible).append(sop)
        if wrong == len(self.tally.lost) + len(self.tally.half_visible):
            self.tally.half_visible.append("a series gives other instances than it lists")

    def check_numbers(self, server: ArchiveServer) -> None:
        """What every study says of its number of instances is what was listed of it."""
        found: dict[str, int] = {}
        while True:
            wanted = {"limit": _STUDIES_OF_A_PAGE, "offset": len(found), "includefield": "00201208"}
            page = server.client.get("/dicom-web/studies", params=wanted).json()
            found |= {value(row, "0020000D"): int(value(row, "00201208")) for row in page}
            if len(page) < _STUDIES_OF_A_PAGE:
                break
        known = Counter(made.study for made in self.there.values())
        for study in sorted(found.keys() | known.keys()):
            has, says = known[study], found.get(study, 0)
            if says < has:
                self.tally.lost.append(f"{has - says} of study {study}")
            elif says > has:
                self.tally.half_visible.append(f"study {study} says {says} and has {has}")

    def check_round(self, server: ArchiveServer, load: StoreLoad) -> None:
        """All of the load, and the numbers of everything before it."""
        for (study, series), sops in _by_series(load.made.values()).items():
            self.check_series(server, study, series, sops)
        self.check_numbers(server)

    def check_list(self, server: ArchiveServer) -> None:
        """Every instance of the archive, one by one."""
        self.listed(self.made, server.listed())

    def check_all_bytes(self, server: ArchiveServer) -> None:
        """Everything, listed and read again."""
        for (study, series), sops in _by_series(self.there.values()).items():
            self.check_series(server, study, series, sops)


def _by_series(objects: Iterable[Made]) -> dict[tuple[str, str], set[str]]:
    found: dict[tuple[str, str], set[str]] = {}
    for made in objects:
        found.setdefault((made.study, made.series), set()).add(made.sop)
    return found


def run(
    directory: Path, rounds: int, seed: int, *, progress: Callable[[Tally], None] = lambda _: None
) -> Tally:
    """So many rounds on a new archive below ``directory``."""
    rng = random.Random(seed)
    tally, began = Tally(), time.monotonic()
    truth = Truth(tally)
    starts = 0.0
    settings = ("storage.segment_bytes_max=16777216", "storage.study_stable_seconds=1")
    with archive_server(directory, *settings) as server:
        for number in range(1, rounds + 1):
            load = StoreLoad(
                server.dicom_port,
                seed=seed * 1_000_000 + number,
                associations=ASSOCIATIONS,
                objects_max=OBJECTS_MAX,
                study_seed=seed * 1_000_000 + number // ROUNDS_OF_A_STUDY,
            ).start()
            until(lambda load=load: load.acknowledged or load.failures, "a first answer")
            time.sleep(rng.random() * KILL_WITHIN_S)
            server.kill_all()
            load.finish()
            truth.add(load)
            starting = time.monotonic()
            server.start()
            took = time.monotonic() - starting
            starts += took
            tally.start_seconds_max = max(tally.start_seconds_max, took)
            tally.start_seconds_mean = starts / number
            truth.check_round(server, load)
            if number % ROUNDS_UNTIL_ALL_IS_LISTED == 0:
                truth.check_list(server)
            tally.rounds, tally.seconds = number, time.monotonic() - began
            progress(tally)
            if not tally.well:
                break
        truth.check_list(server)
        truth.check_numbers(server)
        truth.check_all_bytes(server)
        if server.terminate():
            tally.failures.append("the last end was not an orderly one")
        if "Traceback" in server.log_text():
            tally.failures.append("a traceback in the log")
    tally.seconds = time.monotonic() - began
    return tally


def table(tally: Tally) -> str:
    """The tally for people."""
    lines = [
        ("rounds", tally.rounds),
        ("objects sent", tally.sent),
        ("acknowledged", tally.acknowledged),
        ("cut off unanswered", tally.cut_off),
        ("  of these there, whole", tally.there_though_unanswered),
        ("objects read and compared", tally.objects_read),
        ("acknowledged and lost", len(tally.lost)),
        ("half visible", len(tally.half_visible)),
        ("other failures", len(tally.failures)),
        ("slowest start, s", f"{tally.start_seconds_max:.1f}"),
        ("mean start, s", f"{tally.start_seconds_mean:.1f}"),
        ("seconds", f"{tally.seconds:.0f}"),
    ]
    return "\n".join(f"{name:26}{number:>10}" for name, number in lines)


@contextlib.contextmanager
def shown(rounds: int) -> Iterator[Callable[[Tally], None]]:
    """A bar on a terminal; elsewhere a line every 25 rounds; both on standard error."""
    console = Console(stderr=True)
    if not console.is_terminal:

        def line(tally: Tally) -> None:
            if tally.rounds % 25 == 0:
                words = f"{tally.rounds} rounds, {tally.acknowledged} acknowledged, {tally.seconds:.0f} s"
                print(words, file=sys.stderr, flush=True)  # noqa: T201

        yield line
        return
    columns = (
        TextColumn("rounds of kill -9"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"),
        TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=rounds)
        yield lambda tally: bar.update(
            task, completed=tally.rounds, description=f"{tally.acknowledged} acknowledged"
        )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="hounsfield-kills-") as directory, shown(options.rounds) as show:
        tally = run(Path(directory) / "server", options.rounds, options.seed, progress=show)
    print(json.dumps(asdict(tally)) if options.json else table(tally))  # noqa: T201
    return 0 if tally.well else 1


if __name__ == "__main__":
    sys.exit(main())
