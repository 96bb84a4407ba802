"""Tries what power cuts may leave: every place of a log, and at each the legal fates of what was not synced.

    python -m crash_truth.explore record DIRECTORY        records the long workload (make crash does both)
    python -m crash_truth.explore check DIRECTORY [--states N] [--json]

``check`` takes all states it knows how to make, or ``--states`` of them drawn by ``--seed``. Each is written
to a directory of its own, started and looked at (``recovery.check``). A state that fails is named by its cut
and its choice; ``--only CUT:NAME --keep DIRECTORY`` makes that one again to be looked at.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

from crash_truth.disk import Choice, Disk, PendingNames, PendingWrite, fingerprint, write_tree
from crash_truth.library import quick_directory
from crash_truth.recovery import Promises, check
from crash_truth.trace import Entry, Kind, entries

SINGLES_MAX = 12  # of more pending changes than this, so many are kept and dropped one by one
SUBSETS = 6
FAILURES_MAX = 20  # then a run has said enough
THOROUGH_EVERY = 8  # of how many states one is started twice and reindexed
INTERESTING = {
    Kind.WRITE,
    Kind.SYNC_END,
    Kind.CREATE,
    Kind.RENAME,
    Kind.LINK,
    Kind.UNLINK,
    Kind.MKDIR,
    Kind.NOTE,
}


def everything(_: object) -> bool:
    return True


def nothing(_: object) -> bool:
    return False


def choices(
    writes: Sequence[PendingWrite], names: Sequence[PendingNames], rng: random.Random
) -> Iterator[Choice]:
    """The fates that are tried of what a power cut may take. Deterministic for a state of ``rng``."""
    yield Choice("nothing kept", nothing, nothing)
    if not writes and not names:
        return
    yield Choice("all kept", everything, everything)
    if writes:
        yield Choice("nothing kept, files as long as they were", nothing, everything, grows=True)
        yield Choice("names kept, bytes lost", nothing, everything)
    if names:
        yield Choice("bytes kept, names lost", everything, nothing)
    numbers = [one.number for one in (*writes, *names)]
    singles = numbers if len(numbers) <= SINGLES_MAX else sorted(rng.sample(numbers, SINGLES_MAX))
    for number in singles if len(numbers) > 1 else ():
        yield Choice(
            f"only {number} lost",
            lambda one, n=number: one.number != n,
            lambda one, n=number: one.number != n,
        )
        yield Choice(
            f"only {number} kept",
            lambda one, n=number: one.number == n,
            lambda one, n=number: one.number == n,
        )
    for one in writes if len(writes) <= SINGLES_MAX else rng.sample(list(writes), SINGLES_MAX):
        if one.sectors > 1:
            half = rng.randrange(1, one.sectors)
            yield _torn(f"{one.number} torn after sector {half}", one, range(half))
            yield _torn(f"{one.number} torn before sector {half}", one, range(half, one.sectors))
            some = frozenset(s for s in range(one.sectors) if rng.random() < 0.5)
            yield _torn(f"{one.number} in pieces", one, some)
    for turn in range(SUBSETS if len(numbers) > 1 else 0):
        kept = {number for number in numbers if rng.random() < 0.5}
        torn = {
            one.number: frozenset(s for s in range(one.sectors) if rng.random() < 0.7)
            for one in writes
            if rng.random() < 0.3
        }
        yield Choice(
            f"subset {turn}",
            lambda one, k=kept, t=torn: t.get(one.number, one.number in k),
            lambda one, k=kept: one.number in k,
            grows=rng.random() < 0.5,
        )


def _torn(name: str, torn: PendingWrite, sectors: Sequence[int] | frozenset[int]) -> Choice:
    kept = frozenset(sectors)
    return Choice(
        name, lambda one: kept if one.number == torn.number and one.start == torn.start else True, everything
    )


@dataclass
class State:
    """One thing that a power cut may leave, and what had been promised by then."""

    cut: int
    choice: Choice
    disk: Disk
    promises: Promises


@dataclass
class Report:
    """What was tried and what was found."""

    cuts: int = 0
    states: int = 0
    distinct: int = 0
    skipped_as_tried: int = 0
    seconds: float = 0.0
    kinds: Counter[str] = field(default_factory=Counter)
    failures: list[dict[str, str]] = field(default_factory=list)

    def add(self, other: Report) -> None:
        self.cuts = max(self.cuts, other.cuts)
        self.states += other.states
        self.distinct += other.distinct
        self.skipped_as_tried += other.skipped_as_tried
        self.seconds = max(self.seconds, other.seconds)
        self.kinds += other.kinds
        self.failures += other.failures


def states(log: Path, root: str, seed: int) -> Iterator[State]:
    """Every state, in the order of the log. ``state.disk`` and ``promises`` are good until the next."""
    disk, promises = Disk(root), Promises()
    for entry in entries(log):
        disk.take(entry)
        promises.take(entry)
        if _matters(entry):
            rng = random.Random(f"{seed}-{entry.number}")
            for choice in choices(*disk.pending(), rng):
                yield State(entry.number, choice, disk, promises)


def _matters(entry: Entry) -> bool:
    if entry.kind is Kind.NOTE:
        return bool({"acked", "done", "deleted"} & set(entry.note))
    return entry.kind in INTERESTING


def count_states(log: Path, root: str, seed: int) -> int:
    return sum(1 for _ in states(log, root, seed))


def explore(
    log: Path, root: str, scratch: Path, *, seed: int, chosen: frozenset[int] | None, part: int, parts: int
) -> Report:
    """Try the states whose number is in ``chosen`` (all when None) and falls to ``part`` of ``parts``."""
    report, began = Report(), time.monotonic()
    tried: dict[bytes, int] = {}
    cut = -1
    for number, state in enumerate(states(log, root, seed)):
        if state.cut != cut:
            cut = state.cut
            report.cuts += 1
        if number % parts != part or (chosen is not None and number not in chosen):
            continue
        tree = state.disk.after(state.choice)
        mark = fingerprint(tree)
        report.states += 1
        if tried.get(mark, -1) >= state.promises.count:
            report.skipped_as_tried += 1
            continue
        report.distinct += mark not in tried
        tried[mark] = state.promises.count
        report.kinds[_kind(state.choice.name)] += 1
        failure = try_state(tree, state.promises, scratch, thorough=number // parts % THOROUGH_EVERY == 0)
        if failure:
            report.failures.append({"cut": str(state.cut), "choice": state.choice.name, "error": failure})
            if len(report.failures) >= FAILURES_MAX:
                break
    report.seconds = time.monotonic() - began
    return report


def _kind(name: str) -> str:
    return " ".join(word for word in name.split() if not word.isdigit())


def try_state(
    tree: dict[str, bytes | None],
    promises: Promises,
    scratch: Path,
    *,
    thorough: bool,
    keep: Path | None = None,
) -> str:
    """Recover from ``tree`` in a directory of its own; "" or what went wrong."""
    directory = keep or Path(tempfile.mkdtemp(dir=scratch))
    directory.mkdir(exist_ok=True)
    try:
        write_tree(tree, directory)
        check(directory, promises, thorough=thorough)
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__}: {error} ({Path(last.filename).name}:{last.lineno})"
    finally:
        if keep is None:
            shutil.rmtree(directory, ignore_errors=True)
    return ""


def explore_in_processes(
    log: Path, root: str, *, seed: int = 1, wanted: int | None = None, processes: int = 2
) -> Report:
    """As :func:`explore`, of ``wanted`` states drawn by ``seed``, or of all; in processes."""
    chosen: frozenset[int] | None = None
    if wanted is not None:
        total = count_states(log, root, seed)
        chosen = frozenset(random.Random(seed).sample(range(total), min(wanted, total)))
    scratch = Path(tempfile.mkdtemp(prefix="crash-truth-", dir=quick_directory()))
    report = Report()
    try:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(processes, mp_context=context) as pool:
            running = [
                pool.submit(explore, log, root, scratch, seed=seed, chosen=chosen, part=part, parts=processes)
                for part in range(processes)
            ]
            for one in running:  # a state that kills its process (a map that ends too soon) is raised here
                report.add(one.result())
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return report


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("record", "check"))
    parser.add_argument("directory", type=Path)
    parser.add_argument("--states", type=int, help="try so many states, drawn by --seed (default: all)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--only", help="CUT:NAME, one state")
    parser.add_argument("--keep", type=Path, help="with --only: where to leave it")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    if options.what == "record":
        from crash_truth.workload import record

        client = record(options.directory, seed=options.seed)
        print(f"recorded: {len(client.sent)} objects sent, {len(client.acked)} acknowledged")  # noqa: T201
        return 0
    log, root = options.directory / "log", str((options.directory / "disk").resolve())
    if options.only:
        cut, _, name = options.only.partition(":")
        state = next(s for s in states(log, root, options.seed) if (str(s.cut), s.choice.name) == (cut, name))
        scratch = options.keep or Path(tempfile.mkdtemp())
        failure = try_state(
            state.disk.after(state.choice), state.promises, scratch, thorough=True, keep=options.keep
        )
        print(failure or "it holds")  # noqa: T201
        return bool(failure)
    report = explore_in_processes(
        log, root, seed=options.seed, wanted=options.states, processes=options.processes
    )
    if options.json:
        print(json.dumps(asdict(report)))  # noqa: T201
    else:
        print_report(report)
    return bool(report.failures)


def print_report(report: Report) -> None:
    lines = [
        f"{report.cuts} cuts, {report.states} states, {report.distinct} different contents, "
        f"{report.skipped_as_tried} tried before; {report.seconds:.0f} s",
        *(f"  {count:7}  {kind}" for kind, count in sorted(report.kinds.items())),
        *(f"FAILED at {f['cut']}, {f['choice']}: {f['error']}" for f in report.failures),
        f"{len(report.failures)} failures",
    ]
    print("\n".join(lines))  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())
