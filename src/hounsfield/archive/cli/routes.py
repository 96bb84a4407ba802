"""``hounsfield routes list|status|queue|retry|skip|pause|resume``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from hounsfield.archive.cli.options import config_options, effective_config, json_option
from hounsfield.archive.cli.output import EXIT_USAGE, Failed, ago, print_json, print_table, remark

_NS = 1_000_000_000


def _call(
    config_file: Path | None, overrides: tuple[str, ...], data: str | None, op: str, /, **args: Any
) -> Any:
    from hounsfield.archive.app.opening import open_archive

    with open_archive(effective_config(config_file, overrides, data)) as archive:
        return archive.call(op, **args)


_route = click.argument("route", required=False, default="")
_to = click.option("--to", default="", metavar="AE", help="Only to this AE.")


@click.group("routes")
def command() -> None:
    """What comes in is sent on to other AEs, as [[routes]] in config.toml says.

    What is to be sent waits durably until its destination has taken it. What a destination refuses for good
    is set aside, for you to decide: `retry` or `skip`.
    """


@command.command(
    "list",
    epilog="""\b
Example:
  hounsfield routes list --json""",
)
@config_options
@json_option
def list_(*, config_file: Path | None, overrides: tuple[str, ...], data: str | None, as_json: bool) -> int:
    """List the routes as they are configured."""
    routes: list[dict[str, Any]] = _call(config_file, overrides, data, "routes-list")
    if as_json:
        print_json(routes)
        return 0
    print_table(
        ["route", "to", "when", "priority", "associations", "hours"],
        [
            (
                one["name"],
                ", ".join(one["to"]),
                one["when"],
                one["priority"],
                one["associations"],
                one["hours"] or "always",
            )
            for one in routes
        ],
        right=["priority", "associations"],
    )
    return 0


@command.command(
    "status",
    epilog="""\b
Examples:
  hounsfield routes status
  hounsfield routes status ct-to-ai --json""",
)
@_route
@_to
@config_options
@json_option
def status(
    *,
    route: str,
    to: str,
    config_file: Path | None,
    overrides: tuple[str, ...],
    data: str | None,
    as_json: bool,
) -> int:
    """Show how far each route is at each destination: what waits, since when, and what is wrong."""
    lanes: list[dict[str, Any]] = _call(config_file, overrides, data, "routes-status", route=route, to=to)
    if as_json:
        print_json(lanes)
        return 0
    now = time.time()
    print_table(
        ["route", "to", "queued", "oldest", "sent", "set aside", "state"],
        [
            (
                one["route"],
                one["to"],
                f"{one['queued']}+" if one["more"] else one["queued"],
                "" if one["oldest_ns"] is None else ago(now - one["oldest_ns"] / _NS),
                one["sent"],
                one["set_aside"],
                _state(one, now),
            )
            for one in lanes
        ],
        right=["queued", "sent", "set aside"],
    )
    return 0


def _state(lane: dict[str, Any], now: float) -> str:
    if not lane["configured"]:
        return "not configured: goes on where it was when it is again"
    if lane["paused"]:
        return "paused"
    if lane["error"]:
        again = f", again in {ago(lane['retry_at'] - now)}" if lane["retry_at"] else ""
        return f"failed {lane['failures']} times: {lane['error']}{again}"
    return str(lane["doing"])


@command.command(
    "queue",
    epilog="""\b
Examples:
  hounsfield routes queue
  hounsfield routes queue ct-to-ai --to AI1 --limit 20""",
)
@_route
@_to
@click.option("--limit", type=click.IntRange(1, 1000), default=100, show_default=True, help="Of each lane.")
@config_options
@json_option
def queue(
    *,
    route: str,
    to: str,
    limit: int,
    config_file: Path | None,
    overrides: tuple[str, ...],
    data: str | None,
    as_json: bool,
) -> int:
    """List what waits, the first ones, and what was set aside with the reason."""
    found: dict[str, Any] = _call(
        config_file, overrides, data, "routes-queue", route=route, to=to, limit=limit
    )
    if as_json:
        print_json(found)
        return 0
    now = time.time()
    print_table(
        ["route", "to", "instance", "since", "id", "state"],
        [
            *(
                (one["route"], one["to"], one["instance"], ago(now - one["received_ns"] / _NS), "", "waits")
                for one in found["waiting"]
            ),
            *(
                (
                    one["route"],
                    one["to"],
                    one["instance"],
                    ago(now - one["at_ns"] / _NS),
                    one["id"],
                    "is sent again" if one["again"] else f"set aside: {one['reason']}",
                )
                for one in found["set_aside"]
            ),
        ],
    )
    return 0


@command.command(
    "retry",
    epilog="""\b
Examples:
  hounsfield routes retry
  hounsfield routes retry ct-to-ai --to AI1
  hounsfield routes retry --id 3f9a01c7b2d4""",
)
@_route
@_to
@click.option("--id", "entry", default="", metavar="ID", help="Only what was set aside together as this.")
@config_options
@json_option
def retry(
    *,
    route: str,
    to: str,
    entry: str,
    config_file: Path | None,
    overrides: tuple[str, ...],
    data: str | None,
    as_json: bool,
) -> int:
    """Send again what was set aside, and call at once who is being left alone after a failure."""
    done: dict[str, int] = _call(
        config_file, overrides, data, "routes-retry", route=route, to=to, entry=entry
    )
    if as_json:
        print_json(done)
    else:
        remark(f"objects that were set aside and are sent again: {done['objects']}")
    return 0


@command.command(
    "skip",
    epilog="""\b
Examples:
  hounsfield routes skip --id 3f9a01c7b2d4
  hounsfield routes skip ct-to-ai --to AI1
  hounsfield routes skip ct-to-ai --to AI1 --queued""",
)
@_route
@_to
@click.option("--id", "entry", default="", metavar="ID", help="Only what was set aside together as this.")
@click.option("--queued", is_flag=True, help="What waits, not what was set aside.")
@config_options
@json_option
def skip(
    *,
    route: str,
    to: str,
    entry: str,
    queued: bool,
    config_file: Path | None,
    overrides: tuple[str, ...],
    data: str | None,
    as_json: bool,
) -> int:
    """Do not send what was set aside; or, with --queued, what waits. It stays in the archive."""
    if queued and not route:
        raise Failed("name the route whose queue is to be left out", EXIT_USAGE)
    done: dict[str, int] = _call(
        config_file, overrides, data, "routes-skip", route=route, to=to, entry=entry, queued=queued
    )
    if as_json:
        print_json(done)
    elif queued:
        remark("what waited is not sent")
    else:
        remark(f"objects that are not sent: {done['objects']}")
    return 0


def _pause(
    paused: bool, route: str, to: str, options: tuple[Path | None, tuple[str, ...], str | None], as_json: bool
) -> int:
    done: dict[str, int] = _call(*options, "routes-pause", route=route, to=to, paused=paused)
    if as_json:
        print_json(done)
    elif paused:
        remark(f"{route} is paused: what is to be sent waits until `hounsfield routes resume {route}`")
    else:
        remark(f"{route} goes on")
    return 0


@command.command(
    "pause",
    epilog="""\b
Example:
  hounsfield routes pause ct-to-ai --to AI1""",
)
@click.argument("route")
@_to
@config_options
@json_option
def pause(
    *,
    route: str,
    to: str,
    config_file: Path | None,
    overrides: tuple[str, ...],
    data: str | None,
    as_json: bool,
) -> int:
    """Send nothing on a route, also after a restart, until it is resumed. What is to be sent waits."""
    return _pause(True, route, to, (config_file, overrides, data), as_json)


@command.command(
    "resume",
    epilog="""\b
Example:
  hounsfield routes resume ct-to-ai""",
)
@click.argument("route")
@_to
@config_options
@json_option
def resume(
    *,
    route: str,
    to: str,
    config_file: Path | None,
    overrides: tuple[str, ...],
    data: str | None,
    as_json: bool,
) -> int:
    """Go on with a route that was paused, where it was."""
    return _pause(False, route, to, (config_file, overrides, data), as_json)
