"""``hounsfield ris hl7 …``: what waits for whom, and what could not be taken."""

from __future__ import annotations

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

    @desk.command(hl7, "queue", "hounsfield ris hl7 queue HIS", "hounsfield ris hl7 queue HIS --state dead")
    @click.argument("destination")
    @click.option(
        "--state", default="waiting", show_default=True, type=click.Choice(["waiting", "sent", "dead"])
    )
    @click.option("--limit", default=50, show_default=True, type=click.IntRange(1, 500))
    @click.option("--after", default="", help="Go on after a page.")
    def queue(line: Any, **query: Any) -> None:
        """List the messages for a destination, in their order."""
        columns = {
            "number": "Number", "kind": "Kind", "control_id": "Control id", "made": "Made",
            "attempts": "Attempts", "error": "Error", "id": "Id",
        }  # fmt: skip
        desk.page(line, desk.ask(line, "ListMessages", query=query), columns)

    @desk.command(hl7, "letters", "hounsfield ris hl7 letters")
    @click.option("--state", default="open", show_default=True, help="open, replayed, dismissed, …")
    @click.option("--after", default="", help="Go on after a page.")
    def letters(line: Any, **query: Any) -> None:
        """List dead letters: messages that came and could not be applied."""
        columns = {
            "at": "Came", "sender": "Sender", "kind": "Kind", "control_id": "Control id",
            "attempts": "Attempts", "error": "Error", "id": "Id",
        }  # fmt: skip
        desk.page(line, desk.ask(line, "ListLetters", query=query), columns)

    @desk.command(hl7, "show", "hounsfield ris hl7 show ID")
    @click.argument("message")
    @click.option("--letter", is_flag=True, help="It is a dead letter.")
    def show(line: Any, message: str, letter: bool) -> None:
        """Show the text of a message. It names a patient."""
        name, path = ("GetLetter", {"letter": message}) if letter else ("GetMessage", {"message": message})
        answer = desk.ask(line, name, path=path)
        rows = [{"line": one} for one in answer["text"].splitlines()]
        desk.table(line, rows, {"line": "Segment"}, answer)

    return [hl7]
