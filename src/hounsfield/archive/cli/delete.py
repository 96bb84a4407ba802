"""``hounsfield delete``."""

from __future__ import annotations

import getpass
import sys
from pathlib import Path
from typing import Any

import click

from hounsfield.archive.cli.options import config_options, effective_config, json_option
from hounsfield.archive.cli.output import EXIT_USAGE, Failed, print_json, remark, size


@click.command(
    "delete",
    epilog="""\b
Examples:
  hounsfield delete 1.2.840.113619.2.1 --reason "wrong patient" --dry-run
  hounsfield delete 1.2.840.113619.2.1 --reason "retention ended"
  hounsfield delete 1.2.840.113619.2.1 --series 1.2.840.113619.2.1.3 --reason "repeated" --yes
  hounsfield delete STUDY --series SERIES --instance INSTANCE --version RECORD --reason "corrupt copy"
  hounsfield delete --quarantined RECORD --reason "test object"

STUDY and the others are UIDs; RECORD is a record id, as `hounsfield quarantine list` shows it.""",
)
@click.argument("study", required=False, default="")
@click.option("--series", default="", metavar="UID", help="Only this series.")
@click.option("--instance", "instances", multiple=True, metavar="UID", help="Only this instance. Repeatable.")
@click.option("--version", default="", metavar="RECORD", help="Of several kept versions only this one.")
@click.option("--quarantined", default="", metavar="RECORD", help="An object in quarantine, in no study.")
@click.option("--reason", required=True, metavar="TEXT", help="Why. It is kept with the deletion, for good.")
@click.option("--dry-run", is_flag=True, help="Only say what would go.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@config_options
@json_option
def command(
    *,
    study: str,
    series: str,
    instances: tuple[str, ...],
    version: str,
    quarantined: str,
    reason: str,
    dry_run: bool,
    yes: bool,
    config_file: Path | None,
    overrides: tuple[str, ...],
    data: str | None,
    as_json: bool,
) -> int:
    """Delete a study, a series, or instances. For good: nothing brings it back.

    It is gone for every reader at once, all of it or nothing. Compaction returns the disk space and destroys
    the key later; `hounsfield compact run --now` does it at once. What is on legal hold is not deleted. What
    is sent again is stored as new.
    """
    from hounsfield.archive.app.opening import open_archive

    if bool(study) == bool(quarantined):
        raise Failed("name a study, or an object in quarantine with --quarantined", EXIT_USAGE)
    if not reason.strip():
        raise Failed("say why: --reason TEXT", EXIT_USAGE)
    target = {
        "study": study,
        "series": series,
        "instances": list(instances),
        "version": version,
        "quarantined": quarantined,
    }
    with open_archive(effective_config(config_file, overrides, data)) as archive:
        found: dict[str, Any] = archive.call("delete-look", **target)
        if found["holds"] and not dry_run:
            raise Failed(
                f"on legal hold ({', '.join(found['holds'])}): nothing was deleted; "
                "`hounsfield hold list` says who set it and why"
            )
        if not dry_run:
            if not yes:
                if not sys.stdin.isatty():
                    raise Failed("nobody can be asked here: give --yes", EXIT_USAGE)
                click.confirm(f"delete {_words(found)}, for good?", abort=True, err=True)
            found = archive.call("delete", reason=reason, actor=getpass.getuser(), **target)
    if as_json:
        print_json({**found, "dry_run": dry_run})
    elif dry_run:
        remark(f"would delete {_words(found)}")
        if found["holds"]:
            remark(f"but it is on legal hold: {', '.join(found['holds'])}")
    else:
        remark(f"deleted {_words(found)}")
    return 0


def _words(found: dict[str, Any]) -> str:
    """What goes, in words."""
    if found["quarantined"]:
        what = "an object in quarantine"
    else:
        what = _count(found["instances"], "instance", "instances")
        if found["versions"]:
            what += " and " if found["instances"] else ""
            what = what if found["instances"] else ""
            what += _count(found["versions"], "kept version", "kept versions")
        if found["studies"]:
            what += f" in {_count(found['series'], 'series', 'series')}: the whole study"
        elif found["series"]:
            what += f": {_count(found['series'], 'whole series', 'whole series')}"
    return f"{what} ({size(found['stored_bytes'])})"


def _count(number: int, one: str, more: str) -> str:
    return f"{number} {one if number == 1 else more}"
