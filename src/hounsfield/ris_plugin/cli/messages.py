"""``hounsfield ris hl7 …``: a file tried, what waits for whom, and what could not be taken."""

from __future__ import annotations

import base64
import getpass
from pathlib import Path
from typing import Any

import click

from hounsfield.archive.plugins import CommandLine
from hounsfield.ris_plugin.cli.asking import Counter

__all__ = ["commands"]


def commands(cli: CommandLine) -> list[click.Command]:
    """Of messages."""
    desk = Counter(cli)

    @click.group()
    def hl7() -> None:
        """HL7 v2 messages: what goes out, and what came and could not be applied."""

    @desk.command(
        hl7,
        "try",
        "hounsfield ris hl7 try adt.hl7",
        "hounsfield ris hl7 try orders.hl7 --listener his --json",
    )
    @click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
    @click.option("--listener", default="", help="With the mapping of this one; the first, if not given.")
    def try_(line: Any, file: Path, listener: str) -> None:
        """Say what each message of FILE would do, and be answered. Nothing is changed."""
        data = base64.b64encode(file.read_bytes()).decode()
        found = desk.operation(line, "hl7-try", data=data, listener=listener)
        columns = {
            "message": "Message", "kind": "Kind", "control_id": "Control id", "mapped": "Mapped",
            "done": "Would do", "events": "Would say", "error": "Error",
        }  # fmt: skip
        desk.table(line, found, columns)
        if any(one["error"] for one in found):
            raise desk.fail("not every message could be applied")

    @desk.command(hl7, "queue", "hounsfield ris hl7 queue", "hounsfield ris hl7 queue his --state dead")
    @click.argument("destination", default="")
    @click.option("--state", default="", help="waiting, dead (refused) or sent; the first two, if not given.")
    @click.option("--limit", default=100, show_default=True, type=click.IntRange(1, 1000))
    def queue(line: Any, **query: Any) -> None:
        """List the messages for destinations, in the order in which they go out."""
        columns = {
            "destination": "Destination", "number": "Number", "kind": "Kind", "state": "State",
            "made": "Made", "attempts": "Attempts", "error": "Error", "message": "Id",
        }  # fmt: skip
        desk.table(line, desk.operation(line, "hl7-queue", **query), columns)

    @desk.command(hl7, "again", "hounsfield ris hl7 again ID")
    @click.argument("message", metavar="ID")
    def again(line: Any, message: str) -> None:
        """Send a message again that was refused; it keeps its place."""
        desk.done(line, desk.operation(line, "hl7-retry", message=message), "it is sent again")

    @desk.command(hl7, "letters", "hounsfield ris hl7 letters")
    @click.option("--state", default="open", show_default=True, help="open, waiting, replayed or dismissed.")
    @click.option("--limit", default=100, show_default=True, type=click.IntRange(1, 1000))
    def letters(line: Any, **query: Any) -> None:
        """List dead letters: messages that came and could not be applied."""
        columns = {
            "at": "Came", "sender": "Sender", "kind": "Kind", "control_id": "Control id",
            "attempts": "Attempts", "error": "Error", "letter": "Id",
        }  # fmt: skip
        desk.table(line, desk.operation(line, "hl7-letters", **query), columns)

    @desk.command(hl7, "show", "hounsfield ris hl7 show ID")
    @click.argument("letter", metavar="ID")
    def show(line: Any, letter: str) -> None:
        """Show the text of a dead letter. It names a patient."""
        (answer,) = desk.operation(line, "hl7-letters", letter=letter)
        rows = [{"line": one} for one in answer["text"].splitlines()]
        desk.table(line, rows, {"line": "Segment"}, answer)

    @desk.command(hl7, "replay", "hounsfield ris hl7 replay ID", "hounsfield ris hl7 replay --all")
    @click.argument("letter", metavar="ID", default="")
    @click.option("--all", "every", is_flag=True, help="All that are open, the oldest first.")
    def replay(line: Any, letter: str, every: bool) -> None:
        """Apply a dead letter after all: what was wrong is mended."""
        if bool(letter) == every:
            raise cli.fail("name a letter, or say --all", usage=True)
        found = desk.operation(line, "hl7-replay", letter=letter, actor=f"local:{getpass.getuser()}")
        desk.table(line, found, {"letter": "Letter", "done": "Done", "error": "Error"})
        if any(one.get("error") for one in found):
            raise desk.fail("not every letter could be applied")

    @desk.command(hl7, "dismiss", "hounsfield ris hl7 dismiss ID")
    @click.argument("letter", metavar="ID")
    def dismiss(line: Any, letter: str) -> None:
        """Say that a letter need not be applied; it stays to be looked at."""
        answer = desk.operation(line, "hl7-dismiss", letter=letter, actor=f"local:{getpass.getuser()}")
        desk.done(line, answer, "dismissed")

    return [hl7]
