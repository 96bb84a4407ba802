"""``hounsfield ris import`` and ``export``: what a department has, from files and as files."""

from __future__ import annotations

import getpass
from pathlib import Path
from typing import Any

import click

from hounsfield.archive.plugins import CommandLine
from hounsfield.ris_plugin.cli.asking import Counter, examples_of

__all__ = ["commands"]

SECTIONS = {"section": "Section", "add": "Add", "change": "Change", "leave": "Leave"}
PROBLEMS = {"file": "File", "line": "Line", "field": "Field", "message": "What is wrong"}


def commands(cli: CommandLine) -> list[click.Command]:
    """Of files."""
    desk = Counter(cli)

    @click.command(
        "import",
        epilog=examples_of(
            "hounsfield ris import department.yaml --dry-run",
            "hounsfield ris import rooms.csv people.csv",
            "hounsfield ris import staff-2026.csv --kind people",
        ),
    )
    @click.argument(
        "files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path)
    )
    @click.option("--dry-run", is_flag=True, help="Only say what would be done, and what is wrong.")
    @click.option("--kind", default="", help="What a CSV has whose name does not say it.")
    @cli.options
    def import_(line: Any, files: tuple[Path, ...], dry_run: bool, kind: str) -> None:
        """Import rooms, devices, people, procedures, opening hours and templates from YAML or CSV FILES.

        All of it, or nothing when anything is wrong. What is there under the same code is changed; what a
        file does not name stays. docs/ris-example.yaml has one of each.
        """
        words = []
        for file in files:
            try:
                words.append({"name": file.name, "text": file.read_text(encoding="utf-8-sig"), "kind": kind})
            except (OSError, UnicodeDecodeError) as error:
                raise desk.fail(f"{file} cannot be read: {type(error).__name__}") from error
        answer = desk.operation(line, "import", files=words, dry_run=dry_run, user=getpass.getuser())
        problems = answer["problems"]
        if problems and not line.as_json:
            desk.table(line, problems, PROBLEMS)
        else:
            desk.table(line, answer["sections"], SECTIONS, answer)
        if problems:
            raise desk.fail(f"nothing was imported: {len(problems)} things are wrong")
        if not line.as_json:
            desk.say("nothing was changed (--dry-run)" if dry_run else f"{answer['done']} records were put")

    @click.command(
        epilog=examples_of(
            "hounsfield ris export > department.yaml", "hounsfield ris export people --form csv > people.csv"
        )
    )
    @click.argument("sections", nargs=-1)
    @click.option("--form", default="yaml", show_default=True, type=click.Choice(["yaml", "csv"]))
    @cli.options
    def export(line: Any, sections: tuple[str, ...], form: str) -> None:
        """Write what the department has as a file that `import` takes: all of it, or some SECTIONS."""
        answer = desk.operation(line, "export", sections=list(sections), form=form)
        if line.as_json:
            desk.table(line, [], {}, answer)
        else:
            click.echo(answer["text"], nl=False)

    return [import_, export]
