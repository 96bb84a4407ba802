"""``hounsfield ris templates …``: what a report begins with, and the short words for long texts."""

from __future__ import annotations

from typing import Any

import click

from hounsfield.archive.plugins import CommandLine
from hounsfield.ris_plugin.cli.asking import Counter

__all__ = ["commands"]


def commands(cli: CommandLine) -> list[click.Command]:
    """Of templates and macros."""
    desk = Counter(cli)

    @click.group()
    def templates() -> None:
        """Report templates and macros that are everybody's.

        `hounsfield ris import` takes them from YAML files, `hounsfield ris export templates macros` writes
        them. Who reads keeps more of his own, over /ris/api.
        """

    @desk.command(templates, "list", "hounsfield ris templates list", "hounsfield ris templates list --json")
    def list_(line: Any) -> None:
        """List the templates, and what each is for."""
        columns = {
            "name": "Template", "modality": "Modality", "body_part": "Part", "procedures": "Procedures",
            "parts": "Sections",
        }  # fmt: skip
        answer = desk.ask(line, "ListTemplates")
        rows = [{**one, "parts": [each["name"] for each in one["sections"]]} for one in answer["items"]]
        desk.table(line, rows, columns, answer)

    @desk.command(templates, "show", 'hounsfield ris templates show "CT head"')
    @click.argument("name")
    def show(line: Any, name: str) -> None:
        """Show the texts and fields of a template."""
        found = [one for one in desk.ask(line, "ListTemplates")["items"] if one["name"] == name]
        if not found:
            raise desk.fail("there is no template of this name; `hounsfield ris templates list` has them")
        (template,) = found
        rows = [
            {
                "name": one["name"],
                "text": one["text"],
                "fields": [_field(each) for each in one["fields"]],
                "required": one["required"],
            }
            for one in template["sections"]
        ]
        columns = {"name": "Section", "text": "Text", "fields": "Fields", "required": "Required"}
        desk.table(line, rows, columns, template)

    @desk.command(templates, "macros", "hounsfield ris templates macros")
    def macros(line: Any) -> None:
        """List the macros: what each word stands for."""
        found = desk.ask(line, "GetMacros")["macros"]
        rows = [{"word": f".{name}", "text": found[name]} for name in sorted(found)]
        desk.table(line, rows, {"word": "Word", "text": "Stands for"}, found)

    return [templates]


def _field(field: dict[str, Any]) -> str:
    """A field as it is asked for."""
    of = " | ".join(field["choices"]) or field["unit"] or "text"
    return f"{field['name']}{' (required)' if field['required'] else ''}: {of}"
