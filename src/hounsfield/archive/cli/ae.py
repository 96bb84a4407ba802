"""``hounsfield ae list|add|remove|recent``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from hounsfield.archive.cli.options import config_options, effective_config, json_option, split_address
from hounsfield.archive.cli.output import ago, print_json, print_table, remark


@click.group("ae")
def command() -> None:
    """Known application entities, and who called lately.

    They come from [[aes]] in config.toml and from `ae add`, which keeps them in the archive.
    """


@command.command(
    "list",
    epilog="""\b
Example:
  hounsfield ae list --json""",
)
@config_options
@json_option
def list_(*, config_file: Path | None, overrides: tuple[str, ...], data: str | None, as_json: bool) -> int:
    """List every known AE: where it listens, and from where it may call."""
    from hounsfield.archive.app.asking import open_archive

    with open_archive(effective_config(config_file, overrides, data)) as archive:
        aes: list[dict[str, Any]] = archive.call("ae-list")
    if as_json:
        print_json(aes)
        return 0
    print_table(
        ["title", "address", "TLS", "may call from", "kept in", "comment"],
        [
            (
                ae["title"],
                f"{ae['host']}:{ae['port']}" if ae["host"] else "",
                "yes" if ae["tls"] else "no",
                ", ".join(ae["sources"]) or "nowhere",
                "config.toml" if ae["configured"] else "archive",
                ae["comment"],
            )
            for ae in aes
        ],
    )
    return 0


@command.command(
    "add",
    epilog="""\b
Examples:
  hounsfield ae add CT1 192.0.2.10:104 --source 192.0.2.10
  hounsfield ae add WORKSTATION 192.0.2.20:11112 --comment "reading room"
  hounsfield ae add MR2 --source 192.0.2.0/28""",
)
@click.argument("title")
@click.argument("address", required=False, metavar="[HOST:PORT]")
@click.option("--source", "sources", multiple=True, metavar="CIDR", help="It may call from here. Repeatable.")
@click.option("--tls", is_flag=True, help="It listens with TLS.")
@click.option("--comment", default="", help="What it is.")
@config_options
@json_option
def add(
    *,
    title: str,
    address: str | None,
    sources: tuple[str, ...],
    tls: bool,
    comment: str,
    config_file: Path | None,
    overrides: tuple[str, ...],
    data: str | None,
    as_json: bool,
) -> int:
    """Add an AE, or change an added one.

    With an address `send` and `echo` know it by its title; with --source it may call us.

    A running server uses it at once.
    """
    from hounsfield.archive.app.asking import open_archive

    host, port = split_address(address, "address") if address else ("", 104)
    entry = {
        "title": title,
        "host": host,
        "port": port,
        "tls": tls,
        "sources": list(sources),
        "comment": comment,
    }
    with open_archive(effective_config(config_file, overrides, data)) as archive:
        kept = archive.call("ae-add", **entry)
    if as_json:
        print_json(kept)
    else:
        remark(f"added {title}")
    return 0


@command.command(
    "remove",
    epilog="""\b
Example:
  hounsfield ae remove CT1""",
)
@click.argument("title")
@config_options
def remove(*, title: str, config_file: Path | None, overrides: tuple[str, ...], data: str | None) -> int:
    """Forget an AE that was added."""
    from hounsfield.archive.app.asking import open_archive

    with open_archive(effective_config(config_file, overrides, data)) as archive:
        archive.call("ae-remove", title=title)
    remark(f"removed {title}")
    return 0


@command.command(
    "recent",
    epilog="""\b
Examples:
  hounsfield ae recent
  hounsfield ae recent --refused""",
)
@click.option("--refused", is_flag=True, help="Only those that were refused.")
@config_options
@json_option
def recent(
    *, refused: bool, config_file: Path | None, overrides: tuple[str, ...], data: str | None, as_json: bool
) -> int:
    """Show who called the running server since its start, and why some were refused.

    The first thing to look at when a new device cannot send.
    """
    from hounsfield.archive.app.asking import ask, control_socket

    rows: list[dict[str, Any]] = ask(
        control_socket(effective_config(config_file, overrides, data)), "ae-recent"
    )
    if refused:
        rows = [row for row in rows if row["outcome"] != "accepted"]
    if as_json:
        print_json(rows)
        return 0
    now = time.time()
    print_table(
        ["calling", "called", "address", "outcome", "reason", "calls", "last"],
        [
            (
                row["calling_ae"],
                row["called_ae"],
                row["address"],
                row["outcome"],
                row["reason"],
                row["count"],
                f"{ago(now - row['last'])} ago",
            )
            for row in rows
        ],
        right=["calls"],
    )
    return 0
