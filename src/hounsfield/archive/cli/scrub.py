"""``hounsfield scrub status|start``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from hounsfield.archive.cli.options import config_options, effective_config, json_option
from hounsfield.archive.cli.output import EXIT_PARTIAL, ago, err, print_json, print_table, remark, size

POLL_SECONDS = 1.0


@click.group("scrub")
def command() -> None:
    """Reading everything that is stored again, to find what rotted before it is needed.

    A running server does it by itself: [scrub] in config.toml says how often and how fast.
    """


@command.command(
    "status",
    epilog="""\b
Examples:
  hounsfield scrub status
  hounsfield scrub status --json | jq .damaged""",
)
@config_options
@json_option
def status(*, config_file: Path | None, overrides: tuple[str, ...], data: str | None, as_json: bool) -> int:
    """Show what was verified, when, and what was found damaged. Exit code 4 when something is damaged."""
    from hounsfield.archive.app.opening import open_archive

    with open_archive(effective_config(config_file, overrides, data)) as archive:
        found: dict[str, Any] = archive.call("scrub-status")
    if as_json:
        print_json(found)
        return EXIT_PARTIAL if found["damaged"] else 0
    now = time.time()
    remark(
        f"{found['verified']} of {found['segments']} segments verified once or more "
        f"({size(found['bytes_stored'])} stored)"
    )
    if found["oldest"]:
        remark(f"the one verified longest ago: {ago(now - found['oldest'])} ago")
    if found["index_looked_at"]:
        when = ago(now - found["index_looked_at"])
        remark(f"every place in the index was looked at {when} ago ({found['index_rows']} rows)")
    if found["under_way"] or found["requested"]:
        remark(f"under way: {len(found['under_way'])} segments{', as asked' if found['requested'] else ''}")
    days = found["interval_seconds"] / 86_400
    speed = f"{size(found['bytes_per_second'])}/s" if found["bytes_per_second"] else "full speed"
    remark(f"again every {days:g} days, at {speed}" if days else "only when asked (scrub.days = 0)")
    if found["suspects"]:
        remark(f"{found['suspects']} stretches do not open; whose they are is being looked for")
    if found["damaged"]:
        print_table(
            ["segment", "record", "objects", "reason", "found"],
            [
                (
                    one["segment"],
                    one["record"],
                    "ledger" if one["ledger"] else one["objects"],
                    one["reason"],
                    f"{ago(now - one['found'])} ago",
                )
                for one in found["damaged"]
            ],
            title="damaged",
        )
        remark("repair: name a backup with segments in scrub.copies, then `hounsfield scrub start`")
        return EXIT_PARTIAL
    remark("nothing is damaged")
    return 0


@command.command(
    "start",
    epilog="""\b
Examples:
  hounsfield scrub start
  hounsfield scrub start --full-speed --wait
  hounsfield scrub start --segment 0f3a9c2e5b7d41c8a6e0d9b2f1c4735e""",
)
@click.option("--segment", "segments", multiple=True, metavar="ID", help="Only this one. Repeatable.")
@click.option("--full-speed", is_flag=True, help="As fast as it goes, whatever scrub.bytes_per_second says.")
@click.option("--wait", is_flag=True, help="Return when it is done; Ctrl-C leaves it going.")
@config_options
@json_option
def start(
    *,
    segments: tuple[str, ...],
    full_speed: bool,
    wait: bool,
    config_file: Path | None,
    overrides: tuple[str, ...],
    data: str | None,
    as_json: bool,
) -> int:
    """Verify everything now, or the segments named. Damage that a copy can mend is mended.

    A running server does it beside its work, and goes on where it was after a restart. Without a server it
    is done here and now, as fast as it goes. Exit code 4 when something stays damaged.
    """
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from hounsfield.archive.app.opening import open_archive

    columns = (
        TextColumn("verifying"),
        BarColumn(),
        TextColumn("{task.percentage:.0f} %"),
        TimeRemainingColumn(),
    )
    with (
        open_archive(effective_config(config_file, overrides, data)) as archive,
        Progress(*columns, console=err(), disable=not err().is_terminal, transient=True) as bar,
    ):
        asked = archive.call(
            "scrub-start", segments=list(segments), full_speed=full_speed or not archive.running
        )
        task = bar.add_task("", total=None)
        found: dict[str, Any] = {}
        if not archive.running:
            found = archive.scrub(lambda done, total: bar.update(task, completed=done, total=total or None))
        elif wait:
            while True:
                found = archive.call("scrub-status")
                bar.update(task, completed=found["pass_bytes"], total=found["bytes_stored"] or None)
                if not found["requested"]:
                    break
                time.sleep(POLL_SECONDS)
    if as_json:
        print_json({"asked": asked["segments"], "done": bool(found), "damaged": found.get("damaged", [])})
    elif not found:
        remark(f"asked for {asked['segments']} segments: `hounsfield scrub status` shows how it goes")
    else:
        remark(f"verified {asked['segments']} segments; {len(found['damaged'])} damaged records")
    return EXIT_PARTIAL if found.get("damaged") else 0
