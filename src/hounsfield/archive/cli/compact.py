"""``hounsfield compact status|run``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from hounsfield.archive.cli.options import config_options, effective_config, json_option
from hounsfield.archive.cli.output import EXIT_PARTIAL, ago, err, print_json, print_table, remark, size

GIVE_UP_SECONDS = 8.0  # workers look every few seconds whether their segment is asked for
POLL_SECONDS = 0.5


@click.group("compact")
def command() -> None:
    """Getting the disk back that deleted objects take, and destroying the keys that could still open them.

    A running server does it by itself: [compaction] in config.toml says when and how fast.
    """


@command.command(
    "status",
    epilog="""\b
Examples:
  hounsfield compact status
  hounsfield compact status --json | jq .dead_bytes""",
)
@config_options
@json_option
def status(*, config_file: Path | None, overrides: tuple[str, ...], data: str | None, as_json: bool) -> int:
    """Show how much of which segments is deleted and still on the disk."""
    from hounsfield.archive.app.opening import open_archive

    with open_archive(effective_config(config_file, overrides, data)) as archive:
        found: dict[str, Any] = archive.call("compact-status")
    if as_json:
        print_json(found)
        return 0
    remark(
        f"{size(found['dead_bytes'])} in {found['dead_records']} records are deleted and still on the disk"
    )
    if found["segments"]:
        print_table(
            ["segment", "size", "dead", "%", "for", "state"],
            [
                (
                    one["segment"],
                    size(one["bytes"]),
                    size(one["dead_bytes"]),
                    round(100 * one["dead_bytes"] / max(1, one["bytes"])),
                    ago(one["dead_seconds"]),
                    one["state"],
                )
                for one in found["segments"]
            ],
            right=["size", "dead", "%"],
        )
    return 0


@command.command(
    "run",
    epilog="""\b
Examples:
  hounsfield compact run
  hounsfield compact run --now
  hounsfield compact run --now --json""",
)
@click.option("--now", is_flag=True, help="Every segment with anything deleted in it, as fast as it goes.")
@config_options
@json_option
def run(
    *, now: bool, config_file: Path | None, overrides: tuple[str, ...], data: str | None, as_json: bool
) -> int:
    """Rewrite the segments that are due, and destroy their keys; with --now all of which anything is dead.

    Afterwards what was deleted is neither on the disk nor readable from an old copy of the segment with the
    keys that are left. Interrupt it whenever you like. Exit code 4 when some segment had to stay.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    from hounsfield.archive.app.opening import open_archive

    reports: list[dict[str, Any]] = []
    with (
        open_archive(effective_config(config_file, overrides, data)) as archive,
        Progress(
            TextColumn("compacting"), BarColumn(), MofNCompleteColumn(), console=err(),
            disable=not err().is_terminal, transient=True,
        ) as bar,
    ):  # fmt: skip
        due: list[str] = archive.call("compact-due", everything=now)
        if now and archive.running:
            deadline = time.monotonic() + GIVE_UP_SECONDS
            while time.monotonic() < deadline and any(
                one["state"] == "being written" for one in archive.call("compact-status")["segments"]
            ):
                time.sleep(POLL_SECONDS)
            due = archive.call("compact-due", everything=now)
        task = bar.add_task("segments", total=len(due))
        for segment in due:
            reports.append(archive.call("compact-segment", segment=segment, throttled=not now))
            bar.advance(task)
        removed: int = archive.call("compact-finish")
    stayed = [report for report in reports if report["kept_because"]]
    freed = sum(report["bytes"] - report["moved_bytes"] for report in reports if not report["kept_because"])
    if as_json:
        print_json({"segments": reports, "removed": removed, "freed_bytes": freed})
    else:
        remark(f"{removed} segments and their keys are gone; {size(freed)} are free again")
        for report in stayed:
            remark(f"segment {report['segment']} stays: {report['kept_because']}")
    return EXIT_PARTIAL if stayed else 0
