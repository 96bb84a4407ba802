"""``hounsfield ris import`` and ``export``: what a department has, from files and as files."""

from __future__ import annotations

import getpass
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from hounsfield.archive.plugins import CommandLine
from hounsfield.ris_plugin.cli.asking import Counter, examples_of

__all__ = ["commands"]

LONG_LINES = 1000
"""Above these somebody who waits is told what for."""
_MARKS = ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))
SECTIONS = {"section": "Section", "add": "Add", "change": "Change", "leave": "Leave"}
PROBLEMS = {"file": "File", "line": "Line", "field": "Field", "message": "What is wrong"}


def text_of(data: bytes, encoding: str = "") -> str:
    """The text of a file: as it says (by a byte order mark), else in ``encoding``, else UTF-8. ValueError in
    words for whoever has it, LookupError for an encoding that there is not."""
    for mark, named in _MARKS:
        if data.startswith(mark):
            encoding = named
    try:
        text = data.decode(encoding or "utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"line {line} is no {encoding or 'UTF-8'}; save it as UTF-8 (Excel: CSV UTF-8), or say "
            "--encoding, such as cp1252 for what Windows has in Western Europe"
        ) from None
    if "\0" in text:
        raise ValueError("it has zero bytes: is it UTF-16? Then say --encoding utf-16-le")
    return text


def commands(cli: CommandLine) -> list[click.Command]:
    """Of files."""
    desk = Counter(cli)

    @click.command(
        "import",
        epilog=examples_of(
            "hounsfield ris import department.yaml --dry-run",
            "hounsfield ris import rooms.csv people.csv",
            "hounsfield ris import staff-2026.csv --kind people --encoding cp1252",
        ),
    )
    @click.argument(
        "files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path)
    )
    @click.option("--dry-run", is_flag=True, help="Only say what would be done, and what is wrong.")
    @click.option("--kind", default="", help="What a CSV has whose name does not say it.")
    @click.option(
        "--encoding",
        default="",
        help="Of FILES that are neither UTF-8 nor say what they are: cp1252, for one.",
    )
    @cli.options
    def import_(line: Any, files: tuple[Path, ...], dry_run: bool, kind: str, encoding: str) -> None:
        """Import rooms, devices, people, procedures, opening hours and templates from YAML or CSV FILES.

        All of it, or nothing when anything is wrong. What is there under the same code is changed; what a
        file does not name stays. docs/ris-example.yaml has one of each.
        """
        words = []
        for file in files:
            try:
                text = text_of(file.read_bytes(), encoding)
            except (OSError, ValueError, LookupError) as error:
                what = error.strerror if isinstance(error, OSError) else str(error)
                raise desk.fail(f"{file} cannot be read: {what}") from None
            words.append({"name": file.name, "text": text, "kind": kind})
        lines = sum(one["text"].count("\n") for one in words)
        console = Console(stderr=True)
        told = f"looking at {lines} lines" if dry_run else f"importing {lines} lines"
        with console.status(told) if console.is_terminal and lines > LONG_LINES else nullcontext():
            answer = desk.operation(line, "import", files=words, dry_run=dry_run, user=getpass.getuser())
        problems = answer["problems"]
        if problems and not line.as_json:
            desk.table(line, problems, PROBLEMS)
        else:
            desk.table(line, answer["sections"], SECTIONS, answer)
        if problems:
            wrong = "one thing is" if len(problems) == 1 else f"{len(problems)} things are"
            raise desk.fail(f"nothing was imported: {wrong} wrong")
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
