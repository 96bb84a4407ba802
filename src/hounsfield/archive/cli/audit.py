"""``hounsfield audit``."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from hounsfield.archive.cli.options import config_options, effective_config, json_option
from hounsfield.archive.cli.output import print_json, print_table, remark, size

_NS = 1_000_000_000


@click.command(
    "audit",
    epilog="""\b
Examples:
  hounsfield audit
  hounsfield audit --since 36h --ae CT1
  hounsfield audit --what refused --since 2026-11-01 --json""",
)
@click.option(
    "--since",
    default="7d",
    show_default=True,
    metavar="TIME",
    help="Not older than this: 90min, 36h, 7d, or 2026-11-22T08:00.",
)
@click.option("--what", type=click.Choice(["accepted", "refused", "ended"]), help="Only these.")
@click.option("--ae", "title", default="", metavar="TITLE", help="Only of this AE title, calling or called.")
@click.option("--address", default="", help="Only from this address.")
@click.option("--user", default="", metavar="NAME", help="Only of this user.")
@click.option(
    "--limit", type=click.IntRange(1, 10_000), default=100, show_default=True, help="The newest so many."
)
@config_options
@json_option
def command(
    *,
    since: str,
    what: str | None,
    title: str,
    address: str,
    user: str,
    limit: int,
    config_file: Path | None,
    overrides: tuple[str, ...],
    data: str | None,
    as_json: bool,
) -> int:
    """List the associations of the past: who called, from where, as whom, and what came of it.

    They are kept in the journal, in batches some seconds old. Newest first.
    """
    from hounsfield.archive.app.opening import open_archive

    with open_archive(effective_config(config_file, overrides, data)) as archive:
        page: dict[str, Any] = archive.call(
            "audit",
            since=since,
            limit=limit,
            what=what or "",
            title=title,
            address=address,
            user=user,
        )
    if as_json:
        print_json(page)
        return 0
    print_table(
        ["time", "what", "calling", "called", "address", "user", "objects", "failed", "received", "why"],
        [
            (
                datetime.fromtimestamp(record["at_ns"] / _NS, UTC).strftime("%Y-%m-%d %H:%M:%S"),
                record["what"],
                record.get("calling_ae", ""),
                record.get("called_ae", ""),
                record.get("address", ""),
                record.get("user", ""),
                record.get("objects", ""),
                record.get("objects_failed", ""),
                size(record["bytes_in"]) if "bytes_in" in record else "",
                record.get("reason", "") + (f" ({record['count']} times)" if "count" in record else ""),
            )
            for record in page["records"]
        ],
        right=["objects", "failed", "received"],
    )
    if page["more"]:
        remark(f"there are more than {limit}: narrow it with --since, --ae or --what, or give --limit")
    return 0
