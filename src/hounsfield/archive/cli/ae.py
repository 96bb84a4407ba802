"""``hounsfield ae list|show|add|set|import|test|remove|recent|user``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from hounsfield.archive.cli.ae_options import entity_options
from hounsfield.archive.cli.ae_user import user
from hounsfield.archive.cli.options import (
    Seconds,
    config_options,
    effective_config,
    json_option,
    split_address,
)
from hounsfield.archive.cli.output import (
    EXIT_PARTIAL,
    EXIT_USAGE,
    Failed,
    ago,
    print_json,
    print_table,
    remark,
)


@click.group("ae")
def command() -> None:
    """Known application entities, and who called lately.

    They come from [[aes]] in config.toml and from `ae add`, which keeps them in the archive.
    """


command.add_command(user)


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
    from hounsfield.archive.app.opening import open_archive

    with open_archive(effective_config(config_file, overrides, data)) as archive:
        aes: list[dict[str, Any]] = archive.call("ae-list")
    if as_json:
        print_json(aes)
        return 0
    print_table(
        ["title", "address", "TLS", "may call from", "services", "kept in", "comment"],
        [
            (
                ae["title"],
                f"{ae['host']}:{ae['port']}" if ae["host"] else "",
                "yes" if ae["tls"] else "no",
                ", ".join(ae["sources"]) or "nowhere",
                ", ".join(ae["services"]) or "all",
                "config.toml" if ae["configured"] else "archive",
                ae["comment"],
            )
            for ae in aes
        ],
    )
    return 0


@command.command(
    "show",
    epilog="""\b
Example:
  hounsfield ae show CT1""",
)
@click.argument("title")
@config_options
@json_option
def show(
    *, title: str, config_file: Path | None, overrides: tuple[str, ...], data: str | None, as_json: bool
) -> int:
    """Show everything that is known of an AE."""
    from hounsfield.archive.app.opening import open_archive

    with open_archive(effective_config(config_file, overrides, data)) as archive:
        ae: dict[str, Any] = archive.call("ae-show", title=title)
    if as_json:
        print_json(ae)
        return 0
    print_table(["key", "value"], [(key, _shown(value)) for key, value in ae.items()])
    return 0


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


@command.command(
    "add",
    epilog="""\b
Examples:
  hounsfield ae add CT1 192.0.2.10:104 --source 192.0.2.10
  hounsfield ae add WORKSTATION 192.0.2.20:11112 --comment "reading room"
  hounsfield ae add MR2 --source 192.0.2.0/28 --service store --service echo
  hounsfield ae add PARTNER pacs.example.org:2762 --tls --certificate pacs.example.org""",
)
@click.argument("title")
@click.argument("address", required=False, metavar="[HOST:PORT]")
@entity_options
@config_options
@json_option
def add(
    *,
    title: str,
    address: str | None,
    config_file: Path | None,
    overrides: tuple[str, ...],
    data: str | None,
    as_json: bool,
    **words: Any,
) -> int:
    """Add an AE, or replace an added one.

    With an address it can be called by its title; with --source it may call us.

    A running server uses it at once, on every worker.
    """
    from hounsfield.archive.app.opening import open_archive

    fields = {"title": title, **_fields(address, words)}
    with open_archive(effective_config(config_file, overrides, data)) as archive:
        kept = archive.call("ae-add", **fields)
    if as_json:
        print_json(kept)
    else:
        remark(f"added {title}")
    return 0


@command.command(
    "set",
    epilog="""\b
Examples:
  hounsfield ae set CT1 --associations-max 4
  hounsfield ae set CT1 192.0.2.11:104
  hounsfield ae set CT1 --service store --service commit
  hounsfield ae set CT1 --clear services --clear certificates""",
)
@click.argument("title")
@click.argument("address", required=False, metavar="[HOST:PORT]")
@entity_options
@click.option("--clear", multiple=True, metavar="KEY", help="As if it had never been given. Repeatable.")
@config_options
@json_option
def set_(
    *,
    title: str,
    address: str | None,
    clear: tuple[str, ...],
    config_file: Path | None,
    overrides: tuple[str, ...],
    data: str | None,
    as_json: bool,
    **words: Any,
) -> int:
    """Change an added AE: what is given replaces what it had, the rest stays.

    Open associations stay as they are. KEY is one that `ae show` lists.
    """
    from hounsfield.archive.app.ae_registry import without
    from hounsfield.archive.app.opening import open_archive

    fields = {**without(clear), **_fields(address, words)}
    if not fields:
        raise Failed("nothing to change was given; `hounsfield ae set --help` lists what can be", EXIT_USAGE)
    with open_archive(effective_config(config_file, overrides, data)) as archive:
        kept = archive.call("ae-set", title=title, **fields)
    if as_json:
        print_json(kept)
    else:
        remark(f"changed {title}")
    return 0


def _fields(address: str | None, words: dict[str, Any]) -> dict[str, Any]:
    """What was given, by the names that the registry has for it."""
    fields: dict[str, Any] = {}
    if address:
        fields["host"], fields["port"] = split_address(address, "address")
    for name, value in words.items():
        if value is None or value == ():
            continue
        if isinstance(value, Path):
            fields[name] = str(value.absolute())  # the server's working directory is another
        else:
            fields[name] = list(value) if isinstance(value, tuple) else value
    return fields


@command.command(
    "import",
    epilog="""\b
Example:
  hounsfield ae import devices.csv

\b
devices.csv:
  title,host,port,sources,services
  CT1,192.0.2.10,104,192.0.2.10,store commit echo
  WS1,192.0.2.20,11112,192.0.2.20,find move echo""",
)
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@config_options
@json_option
def import_(
    *, file: Path, config_file: Path | None, overrides: tuple[str, ...], data: str | None, as_json: bool
) -> int:
    """Add AEs from a table (CSV, UTF-8), or replace added ones.

    The first line names the columns, by the keys that `ae show` lists; several values are separated by
    spaces. When one line cannot be, none is added. Exit code 2 then.
    """
    from hounsfield.archive.app.ae_registry import of_table
    from hounsfield.archive.app.opening import open_archive

    with open_archive(effective_config(config_file, overrides, data)) as archive:
        entries = of_table(file.read_bytes(), archive.call("ae-services"))
        kept = [archive.call("ae-add", **entry) for entry in entries]
    if as_json:
        print_json(kept)
    else:
        remark(f"added {len(kept)} AEs")
    return 0


@command.command(
    "test",
    epilog="""\b
Examples:
  hounsfield ae test
  hounsfield ae test CT1 WORKSTATION --json""",
)
@click.argument("titles", nargs=-1, metavar="[TITLE]...")
@click.option(
    "--timeout",
    type=Seconds(min=0.1, max=3600),
    default=10.0,
    show_default=True,
    help="Seconds to wait for each step of an answer.",
)
@config_options
@json_option
def test(
    *,
    titles: tuple[str, ...],
    timeout: float,
    config_file: Path | None,
    overrides: tuple[str, ...],
    data: str | None,
    as_json: bool,
) -> int:
    """Ask AEs whether they are there (C-ECHO), all at once: those of the titles, or all with an address.

    Each is called as the archive would call it: its titles, TLS and certificates. Exit code 4 when not all
    of them answer.
    """
    import trio

    from hounsfield.archive.app.ae_registry import ae_of_fact
    from hounsfield.archive.app.certificates import client_tls
    from hounsfield.archive.app.opening import open_archive
    from hounsfield.archive.net.destinations import Destinations
    from hounsfield.archive.net.errors import NetError
    from hounsfield.archive.net.scu import VERIFICATION_CONTEXT, ScuLimits, associate

    config = effective_config(config_file, overrides, data)
    with open_archive(config) as archive:
        known = {ae["title"]: ae_of_fact(ae) for ae in archive.call("ae-list")}
    for title in titles:
        if title not in known:
            raise Failed(f"no AE {title!r} is known; `hounsfield ae list` shows those that are", EXIT_USAGE)
    destinations = Destinations(lambda: known, ae_title=config.archive.ae_title, tls=client_tls(config))
    limits = ScuLimits(connect_s=timeout, associate_s=timeout, response_s=timeout)
    wanted = [known[title] for title in titles] or [ae for ae in known.values() if ae.host]
    results: dict[str, dict[str, Any]] = {}

    async def ask(title: str) -> None:
        began = time.perf_counter()
        result: dict[str, Any] = {"title": title, "address": "", "answers": False, "error": ""}
        results[title] = result
        try:
            remote = destinations.find(title)
            if remote is None:
                result["error"] = "no address of it is known"
                return
            result["address"] = f"{remote.host}:{remote.port}"
            async with associate(remote, [VERIFICATION_CONTEXT], limits) as association:
                response = await association.echo()
        except NetError as error:
            result["error"] = str(error)
        else:
            result["answers"] = response.status == 0
            result["error"] = "" if response.status == 0 else f"status {response.status:04X}H"
            result["milliseconds"] = round((time.perf_counter() - began) * 1000, 2)

    async def ask_all() -> None:
        async with trio.open_nursery() as nursery:
            for ae in wanted:
                nursery.start_soon(ask, ae.title)

    trio.run(ask_all)
    rows = [results[ae.title] for ae in wanted]
    if as_json:
        print_json(rows)
    else:
        print_table(
            ["title", "address", "answers", "ms", "why not"],
            [
                (
                    row["title"],
                    row["address"],
                    "yes" if row["answers"] else "no",
                    row.get("milliseconds", ""),
                    row["error"],
                )
                for row in rows
            ],
            right=["ms"],
        )
    return 0 if all(row["answers"] for row in rows) else EXIT_PARTIAL


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
    from hounsfield.archive.app.opening import open_archive

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
