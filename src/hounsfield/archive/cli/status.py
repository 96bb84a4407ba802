"""``hounsfield status``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from hounsfield.archive.cli.options import config_options, effective_config, json_option
from hounsfield.archive.cli.output import ago, print_json, print_table, remark, size


@click.command(
    "status",
    epilog="""\b
Examples:
  hounsfield status --data ./archive
  hounsfield status --json | jq .listeners""",
)
@config_options
@json_option
def command(*, config_file: Path | None, overrides: tuple[str, ...], data: str | None, as_json: bool) -> int:
    """Show what the server on this data directory is doing: addresses, workers, totals.

    Exit code 3 when none is running.
    """
    from hounsfield.archive.app.asking import ask
    from hounsfield.archive.app.data_directory import CONTROL_SOCKET

    config = effective_config(config_file, overrides, data)
    status: dict[str, Any] = ask(Path(config.archive.data).absolute() / CONTROL_SOCKET, "status")
    if as_json:
        print_json(status)
        return 0
    remark(
        f"Hounsfield {status['version']}, {status['state']} for {ago(status['seconds'])}, "
        f"process {status['pid']}, {status['data']}"
    )
    for announcement in status["announcements"]:
        remark(f"note: {announcement}")
    print_table(
        ["listener", "address", "TLS"],
        [(each["kind"], f"{each['host']}:{each['port']}", _yes(each["tls"])) for each in status["listeners"]],
    )
    print_table(
        ["worker", "process", "ready", "for", "restarts"],
        [
            (each["worker"], each["pid"], _yes(each["ready"]), ago(each["seconds"]), each["restarts"])
            for each in status["workers"]
        ],
    )
    rows = [
        (key, size(value) if "bytes" in key else f"{value:,}")
        for key, value in status["totals"].items()
        if value
    ]
    print_table(["total", "value"], rows, right=["value"])
    return 0


def _yes(value: bool) -> str:
    return "yes" if value else "no"
