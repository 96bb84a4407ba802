"""``hounsfield ae user list|add|remove``."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import click

from hounsfield.archive.cli.options import config_options, effective_config, json_option
from hounsfield.archive.cli.output import EXIT_USAGE, Failed, ago, print_json, print_table, remark

_LINE_CHARS_MAX = 4096


@click.group("user")
def user() -> None:
    """Users who name themselves in associations, with their passcodes (PS3.7 D.3.3.7).

    Passcodes are kept as scrypt hashes, in the archive. Whom an AE or a listener needs: identity_required.
    """


@user.command(
    "list",
    epilog="""\b
Example:
  hounsfield ae user list""",
)
@config_options
@json_option
def list_(*, config_file: Path | None, overrides: tuple[str, ...], data: str | None, as_json: bool) -> int:
    """List the users that have a passcode."""
    from hounsfield.archive.app.opening import open_archive

    with open_archive(effective_config(config_file, overrides, data)) as archive:
        users: list[dict[str, Any]] = archive.call("ae-user-list")
    if as_json:
        print_json(users)
        return 0
    now = time.time()
    print_table(
        ["name", "passcode set", "comment"],
        [(each["name"], f"{ago(now - each['changed'])} ago", each["comment"]) for each in users],
    )
    return 0


@user.command(
    "add",
    epilog="""\b
Examples:
  hounsfield ae user add reading-room
  printf %s "$PASSCODE" | hounsfield ae user add reading-room --passcode-stdin""",
)
@click.argument("name")
@click.option("--comment", default="", help="Who that is.")
@click.option("--passcode-stdin", is_flag=True, help="Read the passcode from standard input.")
@config_options
@json_option
def add(
    *,
    name: str,
    comment: str,
    passcode_stdin: bool,
    config_file: Path | None,
    overrides: tuple[str, ...],
    data: str | None,
    as_json: bool,
) -> int:
    """Add a user, or give one another passcode. It is asked for twice, and never shown.

    A running server knows it at once, on every worker.
    """
    from hounsfield.archive.app.opening import open_archive
    from hounsfield.archive.security.passcodes import hashed

    if passcode_stdin:
        passcode = sys.stdin.readline(_LINE_CHARS_MAX).rstrip("\r\n")
    elif sys.stdin.isatty():
        passcode = click.prompt("Passcode", hide_input=True, confirmation_prompt=True, err=True)
    else:
        raise Failed("no terminal to ask for the passcode on: give it with --passcode-stdin", EXIT_USAGE)
    kept = hashed(passcode)
    with open_archive(effective_config(config_file, overrides, data)) as archive:
        added = archive.call("ae-user-add", name=name, hash=kept, comment=comment)
    if as_json:
        print_json(added)
    else:
        remark(f"added {name}")
    return 0


@user.command(
    "remove",
    epilog="""\b
Example:
  hounsfield ae user remove reading-room""",
)
@click.argument("name")
@config_options
@json_option
def remove(
    *, name: str, config_file: Path | None, overrides: tuple[str, ...], data: str | None, as_json: bool
) -> int:
    """Forget a user and the passcode. Open associations stay."""
    from hounsfield.archive.app.opening import open_archive

    with open_archive(effective_config(config_file, overrides, data)) as archive:
        removed = archive.call("ae-user-remove", name=name)
    if as_json:
        print_json(removed)
    else:
        remark(f"removed {name}")
    return 0
