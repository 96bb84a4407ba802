"""``hounsfield tier prefetch``: appointments, before which the patient's priors are brought back."""

from __future__ import annotations

import time
from datetime import datetime
from pathlib import Path
from typing import Any

import click

from hounsfield.archive.cli.options import config_options, effective_config, json_option
from hounsfield.archive.cli.output import EXIT_USAGE, Failed, print_json, print_table, remark

_DAY_S = 86_400
_MOMENTS = ["%Y-%m-%d %H:%M", "%Y-%m-%dT%H:%M", "%Y-%m-%d"]


@click.command(
    "prefetch",
    epilog="""\b
Examples:
  hounsfield tier prefetch P-0815 --order A-4711 --at "2026-11-23 09:30" --modality CT --body-part CHEST
  hounsfield tier prefetch --list
  hounsfield tier prefetch --cancel A-4711""",
)
@click.argument("patient", metavar="[PATIENT-ID]", default="")
@click.option(
    "--order", default="", metavar="NAME", help="Its accession or order number: said twice, it is one."
)
@click.option("--at", type=click.DateTime(_MOMENTS), help="When the patient comes, local time.")
@click.option("--issuer", default="", metavar="NAME", help="Who gave the patient that id.")
@click.option("--modality", default="", metavar="CODE", help="Of what is planned: CT, MR, …")
@click.option("--body-part", default="", metavar="WORD", help="Of what is planned: CHEST, KNEE, …")
@click.option("--list", "listed", is_flag=True, help="Show the appointments that are waited for.")
@click.option("--cancel", default="", metavar="NAME", help="Forget the appointment of that order.")
@config_options
@json_option
def prefetch(
    *,
    patient: str,
    order: str,
    at: datetime | None,
    issuer: str,
    modality: str,
    body_part: str,
    listed: bool,
    cancel: str,
    config_file: Path | None,
    overrides: tuple[str, ...],
    data: str | None,
    as_json: bool,
) -> int:
    """Have a patient's priors in the data directory before an appointment.

    [prefetch] in config.toml says which priors, how many, and how long before. A RIS announces its
    appointments by itself; this is for those who have none, or another one's.
    """
    from hounsfield.archive.app.opening import open_archive

    if listed + bool(cancel) + bool(patient or order or at) > 1:
        raise Failed("announce one, or --cancel one, or --list them: one at a time", EXIT_USAGE)
    if not listed and not cancel and (not patient or not order or at is None):
        raise Failed("say who comes (PATIENT-ID), for what (--order) and when (--at)", EXIT_USAGE)
    moment = 0.0 if at is None else _moment(at)
    with open_archive(effective_config(config_file, overrides, data)) as archive:
        if cancel:
            if all(one["name"] != cancel for one in archive.call("tier-prefetches")):
                raise Failed("no appointment of that order is waited for; `--list` shows those that are")
            archive.call("tier-prefetch-forget", name=cancel)
        elif not listed:
            archive.call(
                "tier-prefetch", name=order, patient=patient, issuer=issuer, modality=modality,
                body_part=body_part, at=moment,
            )  # fmt: skip
        found: list[dict[str, Any]] = archive.call("tier-prefetches")
    if listed:
        return _list(found, as_json=as_json)
    if as_json:
        print_json({"waiting": len(found)})
    else:
        remark("it is cancelled" if cancel else "the priors are brought back before that")
    return 0


def _moment(at: datetime) -> float:
    """In seconds since 1970; one of today is never too late: without a time of day, it is midnight."""
    try:
        moment = at.astimezone().timestamp()
    except (ValueError, OverflowError) as error:
        raise Failed("--at: there is no such moment", EXIT_USAGE) from error
    if moment + _DAY_S < time.time():
        raise Failed("--at: that is over, nothing is brought back for it", EXIT_USAGE)
    return moment


def _list(found: list[dict[str, Any]], *, as_json: bool) -> int:
    if as_json:
        print_json(found)
        return 0
    print_table(
        ["order", "patient", "modality", "body part", "at"],
        [
            (
                one["name"],
                one["patient"],
                one["modality"],
                one["body_part"],
                datetime.fromtimestamp(one["at"]).astimezone().strftime("%Y-%m-%d %H:%M"),
            )
            for one in found
        ],
    )
    return 0
