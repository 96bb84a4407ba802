"""``hounsfield hold add|release|list``."""

from __future__ import annotations

import getpass
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from hounsfield.archive.cli.options import config_options, effective_config, json_option
from hounsfield.archive.cli.output import EXIT_USAGE, Failed, ago, print_json, print_table, remark

_NS = 1_000_000_000


@click.group("hold")
def command() -> None:
    """Legal holds: nothing of a held study or patient can be deleted, by anybody or any rule."""


@command.command(
    "add",
    epilog="""\b
Examples:
  hounsfield hold add --study 1.2.840.113619.2.1 --reason "case 4711"
  hounsfield hold add --patient P-0815 --issuer HOSPITAL --reason "case 4711" --until 2031-12-31""",
)
@click.option("--study", default="", metavar="UID", help="Hold this study.")
@click.option("--patient", default="", metavar="ID", help="Hold every study of this patient, later ones too.")
@click.option("--issuer", default="", metavar="NAME", help="The issuer of the patient's id, when it has one.")
@click.option("--reason", required=True, metavar="TEXT", help="Why. It is kept for good.")
@click.option(
    "--until", type=click.DateTime(["%Y-%m-%d"]), help="The last day (UTC).  [default: until released]"
)
@config_options
@json_option
def add(
    *,
    study: str,
    patient: str,
    issuer: str,
    reason: str,
    until: datetime | None,
    config_file: Path | None,
    overrides: tuple[str, ...],
    data: str | None,
    as_json: bool,
) -> int:
    """Set a hold on a study or a patient. In force at once, also for what is not here yet."""
    from hounsfield.archive.app.opening import open_archive

    if bool(study) == bool(patient):
        raise Failed("name what to hold: --study UID or --patient ID", EXIT_USAGE)
    day_after = 0 if until is None else int(until.replace(tzinfo=UTC).timestamp() + 86_400) * _NS
    if day_after >= 1 << 63:
        raise Failed("a hold ends before the year 2262, or when it is released", EXIT_USAGE)
    with open_archive(effective_config(config_file, overrides, data)) as archive:
        hold: dict[str, Any] = archive.call(
            "hold-add",
            study_uid=study,
            patient_id=patient,
            issuer=issuer,
            by=getpass.getuser(),
            why=reason,
            until_ns=day_after,
        )
    if as_json:
        print_json(hold)
    else:
        remark(f"hold {hold['hold_id']} is in force; `hounsfield hold release {hold['hold_id']}` ends it")
        if hold["studies"]:
            remark(f"studies that it is on now: {hold['studies']}")
        else:
            what = "the UID" if study else "the id, and the issuer that the archive files it under (--issuer)"
            remark(f"warning: it is on nothing that is here now; unless that is to come, check {what}")
    return 0


@command.command(
    "release",
    epilog="""\b
Example:
  hounsfield hold release 3f9a01c7 --reason "case 4711 was closed" """,
)
@click.argument("hold_id", metavar="HOLD")
@click.option("--reason", required=True, metavar="TEXT", help="Why. It is kept for good.")
@config_options
@json_option
def release(
    *,
    hold_id: str,
    reason: str,
    config_file: Path | None,
    overrides: tuple[str, ...],
    data: str | None,
    as_json: bool,
) -> int:
    """End a hold. What was held can be deleted from then on; the hold stays listed with --all."""
    from hounsfield.archive.app.opening import open_archive

    with open_archive(effective_config(config_file, overrides, data)) as archive:
        hold = archive.call("hold-release", hold_id=hold_id, by=getpass.getuser(), why=reason)
    if as_json:
        print_json(hold)
    else:
        remark(f"released hold {hold_id}")
    return 0


@command.command(
    "list",
    epilog="""\b
Examples:
  hounsfield hold list
  hounsfield hold list --all --json""",
)
@click.option("--all", "ended", is_flag=True, help="Also those that have ended.")
@config_options
@json_option
def list_(
    *, ended: bool, config_file: Path | None, overrides: tuple[str, ...], data: str | None, as_json: bool
) -> int:
    """List the holds: on what, by whom, why, and until when."""
    from hounsfield.archive.app.opening import open_archive

    with open_archive(effective_config(config_file, overrides, data)) as archive:
        holds: list[dict[str, Any]] = archive.call("hold-list", ended=ended)
    if as_json:
        print_json(holds)
        return 0
    now = time.time()
    print_table(
        ["hold", "on", "by", "reason", "since", "until"],
        [
            (
                hold["hold_id"],
                f"study {hold['study_uid']}" if hold["study_uid"] else _patient(hold),
                hold["by"],
                hold["why"],
                f"{ago(now - hold['since_ns'] / _NS)} ago",
                _until(hold),
            )
            for hold in holds
        ],
    )
    return 0


def _patient(hold: dict[str, Any]) -> str:
    issuer = f" ({hold['issuer']})" if hold["issuer"] else ""
    return f"patient {hold['patient_id']}{issuer}"


def _until(hold: dict[str, Any]) -> str:
    if hold["released_ns"]:
        return f"released by {hold['released_by']}: {hold['released_why']}"
    if hold["until_ns"]:
        last = datetime.fromtimestamp(hold["until_ns"] / _NS - 1, UTC)
        return f"{last:%Y-%m-%d}"
    return "released"
