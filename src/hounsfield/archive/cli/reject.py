"""``hounsfield reject list|undo|apply|delete``."""

from __future__ import annotations

import getpass
import sys
import time
from pathlib import Path
from typing import Any

import click

from hounsfield.archive.cli.options import config_options, effective_config, json_option
from hounsfield.archive.cli.output import EXIT_USAGE, Failed, ago, print_json, print_table, remark, size

_NS = 1_000_000_000


@click.group("reject")
def command() -> None:
    """Rejection notes (IHE IOCM): what they took out of sight, and having it back.

    A rejection note is a key object selection that another system stores here; its title says why objects are
    not to be used any more. They are in no search and no answer then, and are kept.
    """


@command.command(
    "list",
    epilog="""\b
Examples:
  hounsfield reject list
  hounsfield reject list --all --json""",
)
@click.option("--all", "undone", is_flag=True, help="Also those that were undone.")
@config_options
@json_option
def list_(
    *, undone: bool, config_file: Path | None, overrides: tuple[str, ...], data: str | None, as_json: bool
) -> int:
    """List the rejections: why, by which note, of which studies, and how many objects are hidden now.

    A note that names more than one note may is not followed; it is listed without an id, with the reason.
    """
    from hounsfield.archive.app.opening import open_archive

    with open_archive(effective_config(config_file, overrides, data)) as archive:
        found: list[dict[str, Any]] = archive.call("reject-list")
    found = [one for one in found if undone or one["in_force"] or one["not_followed"]]
    if as_json:
        print_json(found)
        return 0
    now = time.time()
    print_table(
        ["id", "reason", "studies", "hidden", "named", "note", "by", "since", "why not in force"],
        [
            (
                one["id"] or "not followed",
                one["reason"],
                "\n".join(one["studies"]),
                one["hidden"],
                one["named"] or "",
                one["note"],
                one["actor"],
                f"{ago(now - one['at_ns'] / _NS)} ago",
                one["not_followed"] or _undone(one),
            )
            for one in found
        ],
    )
    return 0


def _undone(one: dict[str, Any]) -> str:
    return "" if one["in_force"] else f"undone by {one['undone_by']}: {one['undone_because']}"


@command.command(
    "undo",
    epilog="""\b
Example:
  hounsfield reject undo 12 --reason "the wrong study was rejected" """,
)
@click.argument("number", type=click.IntRange(1), metavar="ID")
@click.option("--reason", required=True, metavar="TEXT", help="Why; it is kept.")
@config_options
@json_option
def undo(
    *,
    number: int,
    reason: str,
    config_file: Path | None,
    overrides: tuple[str, ...],
    data: str | None,
    as_json: bool,
) -> int:
    """Bring back what a rejection hides, and its note. What another rejection names too stays hidden."""
    from hounsfield.archive.app.opening import open_archive

    with open_archive(effective_config(config_file, overrides, data)) as archive:
        made = archive.call("reject-undo", number=number, actor=getpass.getuser(), reason=reason)
    if as_json:
        print_json(made)
    else:
        remark(
            f"rejection {number} is undone; `hounsfield reject apply {made['note']}` follows its note again"
        )
    return 0


@command.command(
    "apply",
    epilog="""\b
Example:
  hounsfield reject apply 1.2.840.113619.2.1.99""",
)
@click.argument("note", metavar="NOTE")
@config_options
@json_option
def apply(
    *, note: str, config_file: Path | None, overrides: tuple[str, ...], data: str | None, as_json: bool
) -> int:
    """Follow the rejection note of this SOP Instance UID: undone before, or not followed when it came.

    Notes are followed by themselves when they come, for the reasons in storage.rejection_notes.
    """
    from hounsfield.archive.app.opening import open_archive

    with open_archive(effective_config(config_file, overrides, data)) as archive:
        made = archive.call("reject-apply", note=note, actor=getpass.getuser())
    if as_json:
        print_json(made)
    else:
        remark(f"rejection {made['id']} is in force; `hounsfield reject undo {made['id']}` takes it back")
        remark(f"objects that it hides now, its note included: {made['hidden']} of {made['named']} named")
    return 0


@command.command(
    "delete",
    epilog="""\b
Example:
  hounsfield reject delete 12 --reason "retention period is over" --yes""",
)
@click.argument("number", type=click.IntRange(1), metavar="ID")
@click.option("--reason", required=True, metavar="TEXT", help="Why; it is kept.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@config_options
@json_option
def delete(
    *,
    number: int,
    reason: str,
    yes: bool,
    config_file: Path | None,
    overrides: tuple[str, ...],
    data: str | None,
    as_json: bool,
) -> int:
    """Delete what a rejection hides, with its note. For good: nothing brings it back.

    What is on legal hold is not deleted. The rejection stays in force.
    """
    from hounsfield.archive.app.opening import open_archive

    if not reason.strip():
        raise Failed("say why: --reason TEXT", EXIT_USAGE)
    with open_archive(effective_config(config_file, overrides, data)) as archive:
        if not yes:
            if not sys.stdin.isatty():
                raise Failed("nobody can be asked here: give --yes", EXIT_USAGE)
            click.confirm(f"delete what rejection {number} hides, for good?", abort=True, err=True)
        reports = archive.call("reject-delete", number=number, actor=getpass.getuser(), reason=reason)
    if as_json:
        print_json(reports)
    else:
        objects = sum(one["records"] for one in reports)
        remark(f"deleted objects: {objects} ({size(sum(one['stored_bytes'] for one in reports))})")
    return 0
