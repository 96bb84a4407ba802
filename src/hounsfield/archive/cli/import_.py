"""``hounsfield import``."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hounsfield.archive.cli.options import config_options, effective_config, json_option
from hounsfield.archive.cli.output import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_PARTIAL,
    EXIT_UNREACHABLE,
    EXIT_USAGE,
    Failed,
    complain,
    err,
    print_json,
    print_table,
    printable,
    remark,
    size,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.progress import Progress as Bar

    from hounsfield.archive.app.importing.fates import Tally
    from hounsfield.archive.app.importing.run import ImportOptions
    from hounsfield.archive.app.importing.work import Source
    from hounsfield.archive.config import Config

ROWS_MAX = 40  # of what was not simply taken; all of it stands in --report


@click.command(
    "import",
    epilog="""\b
Examples:
  hounsfield import /mnt/old-archive
  hounsfield import /media/cdrom/DICOMDIR /var/lib/orthanc/db --jobs 4
  hounsfield import /mnt/old-archive --report import.jsonl --json
  hounsfield import /mnt/old-archive --dry-run

Where from: a folder (every file below it that is DICOM, whatever its name; ZIP archives, and an Orthanc
storage folder, compressed or not); a DICOMDIR, which stands for the files that it lists; a file.""",
)
@click.argument("sources", nargs=-1, required=True, metavar="SOURCE...")
@click.option(
    "--jobs",
    type=click.IntRange(1, 64),
    default=8,
    show_default=True,
    help="Read so many files, or fetch so many series, at once.",
)
@click.option(
    "--state",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Remember what is done with in this file.  [default: in the data directory]",
)
@click.option("--again", is_flag=True, help="Forget what is done with: read everything again.")
@click.option(
    "--report",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write what was not simply taken to this file, with the reason: a JSON object a line.",
)
@click.option("--dry-run", is_flag=True, help="List what would be read, and read nothing.")
@config_options
@json_option
def command(
    *,
    sources: tuple[str, ...],
    jobs: int,
    state: Path | None,
    again: bool,
    report: Path | None,
    dry_run: bool,
    config_file: Path | None,
    overrides: tuple[str, ...],
    data: str | None,
    as_json: bool,
) -> int:
    """Bring existing studies into the archive, beside its running server or without one.

    Objects are kept byte for byte, and acknowledged when they are durable, as those are that a device sends;
    coercions and routes apply (protocol "import"). Sources are read only, each file once. Kill it whenever
    you like: started again it goes on, and reads nothing again that was done with.

    Exit codes: 0 all of it is here, 4 some is not, 1 none is, 3 nobody answers.
    """
    from hounsfield.archive.app.importing.fates import Tally, open_report
    from hounsfield.archive.app.importing.run import ImportOptions

    config = effective_config(config_file, overrides, data)
    found = _sources(sources)
    options = ImportOptions(jobs=jobs, state=state, afresh=again and not dry_run)
    with ExitStack() as stack:
        tally = Tally(None if report is None else stack.enter_context(open_report(report)))
        if dry_run:
            return _listed(config, found, tally, options, as_json)
        interrupted = _bring(config, found, tally, options, None if as_json else _bar())
    _show(tally, as_json, interrupted)
    return EXIT_INTERRUPTED if interrupted else _exit_code(tally)


def _sources(words: Sequence[str]) -> list[Source]:
    from hounsfield.archive.app.importing.tree import Met, Tree

    met = Met()
    found: list[Source] = []
    for word in words:
        path = Path(word)
        if not path.exists():
            raise Failed(f"{word}: no such file or folder", EXIT_USAGE)
        found.append(Tree(path, met))
    return found


def _bring(
    config: Config, sources: Sequence[Source], tally: Tally, options: ImportOptions, bar: Bar | None
) -> bool:
    """Whether it was interrupted: what is here is here."""
    from functools import partial

    import trio

    from hounsfield.archive.app.importing.run import run_import

    with ExitStack() as stack:
        if bar is not None:
            stack.enter_context(bar)
        shown = None if bar is None else _Shown(bar)
        try:
            trio.run(partial(run_import, config, sources, tally, options, progress=shown))
        except KeyboardInterrupt:
            return True
        except BaseExceptionGroup as group:
            if group.subgroup(KeyboardInterrupt) is None:
                raise
            return True
    return False


def _bar() -> Bar | None:
    if not err().is_terminal:
        return None
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[objects]} objects, {task.fields[things]} of {task.fields[of]} done"),
        DownloadColumn(),
        TransferSpeedColumn(),
        console=err(),
        transient=True,
    )


class _Shown:
    """The bar: of bytes, since files differ. Its end is what has been found so far."""

    def __init__(self, bar: Bar) -> None:
        self._bar = bar
        self._objects = self._things = self._of = self._total = 0
        self._task = bar.add_task("import", total=None, objects=0, things=0, of=0)

    def found(self, things: int, size: int) -> None:
        self._of += things
        self._total += size
        self._bar.update(self._task, total=self._total or None, of=self._of)

    def done(self, things: int, size: int) -> None:
        self._things += things
        self._bar.update(self._task, advance=size, things=self._things)

    def object(self) -> None:
        self._objects += 1
        self._bar.update(self._task, objects=self._objects)


def _listed(
    config: Config, sources: Sequence[Source], tally: Tally, options: ImportOptions, as_json: bool
) -> int:
    from functools import partial

    import trio

    from hounsfield.archive.app.importing.run import run_import

    count = total = 0

    def show(place: str, length: int | None) -> None:
        nonlocal count, total
        count += 1
        total += length or 0
        if as_json:
            print_json({"place": place, "bytes": length})
        else:
            click.echo(printable(place))

    trio.run(partial(run_import, config, sources, tally, options, listing=show))
    remark(f"{count} to be read" + (f", {size(total)}" if total else ""))
    for complaint in tally.complaints:
        complain(complaint)
    return _exit_code(tally)


def _show(tally: Tally, as_json: bool, interrupted: bool) -> None:
    from hounsfield.archive.app.importing.fates import Fate

    if as_json:
        print_json(
            {
                "counts": {fate.key: tally.fates[fate] for fate in Fate},
                "flagged": tally.flagged,
                "before": tally.before,
                "bytes": tally.bytes,
                "noted": [one.body() for one in tally.noted],
                "complaints": tally.complaints,
                "interrupted": interrupted,
            }
        )
    else:
        if tally.noted:
            rows = [(printable(one.place), one.fate.value, one.reason) for one in tally.noted[:ROWS_MAX]]
            print_table(["where", "what became of it", "why"], rows)
            if sum(tally.fates.values()) and len(tally.noted) > ROWS_MAX:
                remark("… and more; --report writes all of them to a file")
        counts = [(fate.value, tally.fates[fate]) for fate in Fate if tally.fates[fate]]
        if tally.before:
            counts.append(("done with before", tally.before))
        print_table(["", "objects"], counts, right=["objects"])
        if tally.flagged:
            remark(f"{tally.flagged} of those imported have something that is worth a look")
        remark(f"{size(tally.bytes)} in objects that are here{'; interrupted' if interrupted else ''}")
    for complaint in tally.complaints:
        complain(complaint)


def _exit_code(tally: Tally) -> int:
    if not tally.failed and not tally.complaints:
        return 0
    if tally.here or tally.before:
        return EXIT_PARTIAL
    only_silence = tally.unreachable == len(tally.complaints) > 0 and not tally.failed
    return EXIT_UNREACHABLE if only_silence else EXIT_FAILED
