"""``hounsfield ris reports …`` and ``hounsfield ris images``: what is to be read, and what is overlooked."""

from __future__ import annotations

from typing import Any

import click

from hounsfield.archive.plugins import CommandLine
from hounsfield.ris_plugin.cli.asking import Counter, examples_of

__all__ = ["commands"]


def commands(cli: CommandLine) -> list[click.Command]:
    """Of reports."""
    desk = Counter(cli)

    @click.group()
    def reports() -> None:
        """Reports, to look at. They are read and signed over /ris/api, by people with their own tokens."""

    @desk.command(
        reports, "unread",
        "hounsfield ris reports unread",
        "hounsfield ris reports unread --modality MR --json",
    )  # fmt: skip
    @click.option("--modality", default="")
    @click.option("--subspecialty", default="")
    @click.option("--state", default="", help="unassigned, assigned, dictated, preliminary.")
    @click.option("--limit", default=50, show_default=True, type=click.IntRange(1, 500))
    @click.option("--after", default="", help="Go on after a page.")
    def unread(line: Any, **query: Any) -> None:
        """List what is to be read."""
        columns = {
            "ready": "Since", "accession": "Accession", "state": "State", "priority": "Priority",
            "modality": "Modality", "body_part": "Part", "patient_number": "Number", "patient_name": "Name",
            "assigned_to": "Reader",
        }  # fmt: skip
        desk.page(line, desk.ask(line, "ListUnread", query=query), columns)

    @desk.command(
        reports,
        "show",
        "hounsfield ris reports show 2026000042",
        "hounsfield ris reports show 1.2.840.113619.2",
    )
    @click.argument("order_or_study")
    @click.option("--version", default=0, help="Not the last one but this.")
    def show(line: Any, order_or_study: str, version: int) -> None:
        """Show the report of an order (its accession number) or of a study (its UID)."""
        study = order_or_study
        if "." not in study:
            study = desk.ask(line, "GetOrder", path={"order": desk.order(line, study)})["study_uid"]
        found = desk.ask(line, "FindReport", query={"study": study})["items"]
        if not found:
            raise desk.fail("there is no report of it yet")
        (report,) = found
        versions = [one for one in report["versions"] if version in (0, one["number"])]
        if not versions or line.as_json:
            desk.fields(line, report)
            return
        last = versions[-1]
        rows = [{"section": one["name"], "text": one["text"]} for one in last["sections"]]
        desk.say(
            f"{report['number']}, {report['state']}: version {last['number']} ({last['kind']}) by "
            f"{last['author']}" + (f", signed by {last['signer']}" if last["signer"] else "")
        )
        desk.table(line, rows, {"section": "Section", "text": "Text"})

    @click.command(epilog=examples_of("hounsfield ris images", "hounsfield ris images --state acquired"))
    @click.option("--state", default="", help="expected, acquired, stored, verified, read, reported.")
    @click.option("--limit", default=50, show_default=True, type=click.IntRange(1, 500))
    @cli.options
    def images(line: Any, state: str, limit: int) -> None:
        """Show studies that somebody has to look after, or those whose images are in one state."""
        query: dict[str, Any] = {"state": state, "limit": limit}
        answer = desk.ask(
            line, "ListTracked" if state else "ListAlerts", query=query if state else {"limit": limit}
        )
        columns = {
            "alert": "Alert", "accession": "Accession", "modality": "Modality", "state": "State",
            "since": "Since", "expected": "Expected", "stored": "Here", "missing_count": "Missing",
            "study_uid": "Study",
        }  # fmt: skip
        desk.page(line, answer, columns)

    return [reports, images]
