"""``hounsfield ris people|catalog …``"""

from __future__ import annotations

from typing import Any

import click

from hounsfield.archive.plugins import CommandLine
from hounsfield.ris_plugin.cli.asking import Counter

__all__ = ["commands"]


def commands(cli: CommandLine) -> list[click.Command]:
    """Of people and the catalog."""
    desk = Counter(cli)

    @click.group()
    def people() -> None:
        """Who works here or refers to us. A person's code is the name in http.bearer_token_file."""

    @desk.command(
        people, "list", "hounsfield ris people list", "hounsfield ris people list --role radiologist"
    )
    @click.option("--name", default="", help="The beginning of a word of the name.")
    @click.option("--role", default="")
    @click.option("--all", "inactive", is_flag=True, help="Those too who are not active any more.")
    def list_(line: Any, name: str, role: str, inactive: bool) -> None:
        """List people with their roles."""
        query = {"name": name, "role": role, "inactive": "true" if inactive else ""}
        columns = {
            "code": "Code",
            "name": "Name",
            "roles": "Roles",
            "department": "Department",
            "active": "Active",
        }
        desk.page(line, desk.ask(line, "ListPeople", query=query), columns)

    @desk.command(
        people, "put",
        'hounsfield ris people put meier --name "MEIER^ANNA" --role radiologist --subspecialty neuro',
        "hounsfield ris people put huber --name HUBER^FRANZ --role clerk --deputises-for meier",
        "hounsfield ris people put meier --inactive",
    )  # fmt: skip
    @click.argument("code")
    @click.option("--name", default=None, help="FAMILY^GIVEN^MIDDLE^PREFIX^SUFFIX.")
    @click.option(
        "--role",
        "roles",
        multiple=True,
        help="administrator, clerk, technologist, radiologist, trainee, referrer.",
    )
    @click.option("--department", default=None)
    @click.option("--phone", default=None)
    @click.option("--subspecialty", "subspecialties", multiple=True)
    @click.option(
        "--deputises-for", multiple=True, help="A radiologist in whose place orders are protocolled."
    )
    @click.option(
        "--active/--inactive", default=None, help="Who is inactive can do nothing; what was done stays."
    )
    def put(line: Any, code: str, **words: Any) -> None:
        """Add a person, or change what is given of one."""
        known = [
            one
            for one in desk.ask(line, "ListPeople", query={"inactive": "true"})["items"]
            if one["code"] == code
        ]
        body: dict[str, Any] = {"code": code}
        if known:
            body = {name: value for name, value in known[0].items() if name not in ("id", "version")}
        body |= {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in words.items()
            if value is not None and value != ()
        }
        made = desk.ask(line, "PutPerson", body=body)
        roles = ", ".join(made["roles"]) or "no role"
        desk.done(line, made, f"{code}: {roles}{'' if made['active'] else ', inactive'}")

    @click.group()
    def catalog() -> None:
        """What the department offers, and with what: procedures, rooms, devices."""

    @desk.command(catalog, "procedures", "hounsfield ris catalog procedures --modality CT")
    @click.option("--modality", default="")
    def procedures(line: Any, modality: str) -> None:
        """List the procedures."""
        answer = desk.ask(line, "ListProcedures", query={"modality": modality})
        answer["items"] = [
            {
                **one,
                "value": one["code"]["value"],
                "meaning": one["code"]["meaning"],
                "needs": [" or ".join(group) for group in one["resources"]],
            }
            for one in answer["items"]
        ]
        columns = {
            "value": "Code", "meaning": "Procedure", "modality": "Modality", "duration_min": "Minutes",
            "needs": "Needs", "questions": "Questions",
        }  # fmt: skip
        desk.page(line, answer, columns)

    @desk.command(catalog, "resources", "hounsfield ris catalog resources")
    @click.option("--kind", default="", type=click.Choice(["room", "device", "person", ""]))
    @click.option("--modality", default="")
    def resources(line: Any, **query: str) -> None:
        """List rooms, devices and people that are booked."""
        columns = {
            "code": "Code", "kind": "Kind", "name": "Name", "modality": "Modality", "ae_title": "AE",
            "location": "Place",
        }  # fmt: skip
        desk.page(line, desk.ask(line, "ListResources", query=query), columns)

    return [people, catalog]
