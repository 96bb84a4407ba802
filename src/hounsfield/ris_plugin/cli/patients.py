"""``hounsfield ris patients …``"""

from __future__ import annotations

from typing import Any

import click

from hounsfield.archive.plugins import CommandLine
from hounsfield.ris_plugin.cli.asking import Counter

__all__ = ["commands"]

COLUMNS = {"identifier": "Number", "name": "Name", "birth_day": "Born", "sex": "Sex", "id": "Id"}


def commands(cli: CommandLine) -> list[click.Command]:
    """Of patients."""
    desk = Counter(cli)

    @click.group()
    def patients() -> None:
        """Patients: search, register, merge. A patient is called by number (NUMBER@ISSUER) or id."""

    @desk.command(
        patients, "search",
        "hounsfield ris patients search doe jane",
        "hounsfield ris patients search --number 4711",
        "hounsfield ris patients search --birth-day 19700101 --json",
    )  # fmt: skip
    @click.argument("words", nargs=-1)
    @click.option("--number", default="", help="A number that somebody has given.")
    @click.option("--birth-day", default="", metavar="YYYYMMDD")
    @click.option("--limit", default=50, show_default=True, type=click.IntRange(1, 500))
    def search(line: Any, words: tuple[str, ...], number: str, birth_day: str, limit: int) -> None:
        """Find patients by the beginnings of the words of their names, a number, or a day of birth."""
        query = {"name": " ".join(words), "number": number, "birth_day": birth_day, "limit": limit}
        answer = desk.ask(line, "SearchPatients", query=query)
        rows = [{**one, "identifier": _number(one)} for one in answer["items"]]
        desk.table(line, rows, COLUMNS, answer)

    @desk.command(patients, "show", "hounsfield ris patients show 4711@HOSPITAL")
    @click.argument("patient")
    def show(line: Any, patient: str) -> None:
        """Show what is known of a patient, and what there is of him."""
        path = {"patient": desk.patient(line, patient)}
        whole = desk.ask(line, "GetPatient", path=path)
        history = desk.ask(line, "GetPatientHistory", path=path)
        if line.as_json:
            desk.fields(line, {**whole, "history": history})
            return
        desk.fields(line, whole)
        desk.say("\norders")
        columns = {"accession": "Accession", "state": "State", "procedure": "Procedure", "placed": "Placed"}
        desk.table(line, history["orders"], columns)
        if history["appointments"]:
            desk.say("\nappointments")
            columns = {"number": "Number", "state": "State", "from": "From", "to": "To"}
            desk.table(line, history["appointments"], columns)
        if history["merges"]:
            desk.say("\nmerged into this patient")
            columns = {"at": "When", "merged": "Record", "actor": "By", "undone": "Undone", "id": "Merge"}
            desk.table(line, history["merges"], columns)

    @desk.command(
        patients, "register",
        'hounsfield ris patients register --name "DOE^JANE" --birth-day 19700101 --sex F',
        'hounsfield ris patients register --name "ROE^R" --number 4711 --issuer HOSPITAL',
    )  # fmt: skip
    @click.option("--name", required=True, help="FAMILY^GIVEN^MIDDLE^PREFIX^SUFFIX, as in DICOM.")
    @click.option("--number", default="", help="The number that he has already; else he gets our next one.")
    @click.option("--issuer", default="", help="Who gave that number.")
    @click.option("--birth-day", default="", metavar="YYYYMMDD")
    @click.option("--sex", default="", type=click.Choice(["M", "F", "O", ""]), show_choices=True)
    def register(*, line: Any, name: str, number: str, issuer: str, birth_day: str, sex: str) -> None:
        """Register a patient."""
        body: dict[str, Any] = {"name": name, "birth_day": birth_day, "sex": sex, "identifiers": []}
        if number:
            body["identifiers"] = [{"value": number, "issuer": issuer}]
        made = desk.ask(line, "RegisterPatient", body=body)
        desk.done(line, made, f"registered under number {_number(made)} (id {made['id']})")

    @desk.command(
        patients, "merge", 'hounsfield ris patients merge 4711 TMP000003 --reason "identified by his wife"'
    )
    @click.argument("survivor")
    @click.argument("merged")
    @click.option("--reason", required=True)
    def merge(line: Any, survivor: str, merged: str, reason: str) -> None:
        """Say that MERGED is the same person as SURVIVOR, under whom everything is shown then."""
        body = {
            "survivor": desk.patient(line, survivor), "merged": desk.patient(line, merged), "reason": reason,
        }  # fmt: skip
        made = desk.ask(line, "MergePatients", body=body)
        desk.done(line, made, f"merged; `hounsfield ris patients unmerge {made['id']}` takes it back")

    @desk.command(
        patients, "unmerge", "hounsfield ris patients unmerge MERGE --reason 'two people after all'"
    )
    @click.argument("merge")
    @click.option("--reason", required=True)
    def unmerge(line: Any, merge: str, reason: str) -> None:
        """Take a merge back, by its id (of `show`): everything is whose it was."""
        desk.ask(line, "UnmergePatients", path={"merge": merge}, body={"reason": reason})
        desk.say("taken back")

    return [patients]


def _number(patient: Any) -> str:
    first = patient["identifiers"][0]
    number: str = first["value"] + (f"@{first['issuer']}" if first["issuer"] else "")
    return number
