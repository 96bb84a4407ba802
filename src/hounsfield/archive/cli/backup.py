"""``hounsfield backup``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from hounsfield.archive.cli.options import config_options, effective_config, json_option
from hounsfield.archive.cli.output import err, print_json, print_table, remark, size

if TYPE_CHECKING:
    from rich.progress import Progress


@click.command(
    "backup",
    epilog="""\b
Examples:
  hounsfield backup /mnt/backup
  hounsfield backup /mnt/backup --segments --keep 7
  hounsfield backup /mnt/backup --list

The master key is not in a backup: see `hounsfield keys backup`. The way back: `hounsfield restore`.""",
)
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False))
@click.option("--segments", is_flag=True, help="Copy the objects too; each segment once, when it is closed.")
@click.option(
    "--keep", type=click.IntRange(min=0), default=0, help="Keep the newest N snapshots.  [default: all]"
)
@click.option("--list", "list_", is_flag=True, help="Show the snapshots that are there; copy nothing.")
@config_options
@json_option
def command(
    *,
    directory: Path,
    segments: bool,
    keep: int,
    list_: bool,
    config_file: Path | None,
    overrides: tuple[str, ...],
    data: str | None,
    as_json: bool,
) -> int:
    """Copy index, keyring and ledger (with --segments: everything) to DIRECTORY, as of one moment.

    The server may run, receive and compact meanwhile. Everything in the copy is sealed as it was. Without
    --segments, save segments/ yourself: its files are append-only, so any copying program will do. What lies
    only in other tiers is not copied: it is said how much that is.
    """
    import msgspec

    from hounsfield.archive.app.backup import open_backup
    from hounsfield.archive.app.keys import keyring_of
    from hounsfield.archive.engine.backup import describe, read_manifest, snapshots_in

    config = effective_config(config_file, overrides, data)
    if list_:
        keyring = keyring_of(config)
        rows = [
            describe(read_manifest(directory / "snapshots" / name, keyring), name)
            for name in snapshots_in(directory)
        ]
        if as_json:
            print_json(rows)
            return 0
        print_table(
            ["snapshot", "index", "keys", "segments", "copied", "bytes stored"],
            [
                (
                    row["snapshot"],
                    size(row["index_bytes"]),
                    row["keys"],
                    row["segments"],
                    row["segments_copied"],
                    size(row["segment_bytes"]),
                )
                for row in rows
            ],
            right=["index", "keys", "segments", "copied", "bytes stored"],
        )
        return 0
    with open_backup(config, directory) as backup, bar() as shown:
        report = backup.make(segments=segments, keep=keep, progress=shown_on(shown))
    if as_json:
        print_json(msgspec.to_builtins(report))
        return 0
    remark(
        f"snapshot {report.snapshot}: index {size(report.index_bytes)}, {report.keys} keys; "
        f"copied {report.copied} files ({size(report.copied_bytes)}) of segments and ledger"
    )
    if report.index_of_another_release:
        remark(
            "the index was written by another release: it is in the snapshot as it is, and a restore makes "
            "it anew from the segments, which takes as long as `hounsfield reindex`"
        )
    if not segments:
        remark(f"the objects are not in it: save {config.archive.data}/segments as well, or use --segments")
    for name, packs in report.elsewhere.items():
        remark(
            f"{packs.packs} packs ({size(packs.bytes)}) lie in tier {name} and not here: they are not in it, "
            "and the tier must survive"
        )
    if report.removed_snapshots:
        remark(f"removed {len(report.removed_snapshots)} older snapshots")
    return 0


def bar() -> Progress:
    """A progress bar of bytes, on a terminal only."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    return Progress(*columns, console=err(), disable=not err().is_terminal, transient=True)


class shown_on:  # noqa: N801 - reads as a function where it is used
    """A progress function that shows each stage as a line of the bar."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._what = ""
        self._task = progress.add_task("", total=None)

    def __call__(self, what: str, done: int, total: int) -> None:
        if what != self._what:
            self._what = what
            self._progress.reset(self._task, description=what)
        self._progress.update(self._task, completed=done, total=total or None)
