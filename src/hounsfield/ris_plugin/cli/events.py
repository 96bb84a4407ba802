"""``hounsfield ris aside …`` and ``hounsfield ris mpps …``: what parts of the RIS could not do."""

from __future__ import annotations

import getpass
from typing import Any

import click

from hounsfield.archive.plugins import CommandLine
from hounsfield.ris_plugin.cli.asking import Counter

__all__ = ["commands"]


def commands(cli: CommandLine) -> list[click.Command]:
    """Of what was set aside."""
    desk = Counter(cli)

    @click.group()
    def aside() -> None:
        """Events that a part of the RIS could not act on, set aside so that those after them go on."""

    @desk.command(aside, "list", "hounsfield ris aside list")
    def list_(line: Any) -> None:
        """List them, the oldest first."""
        columns = {"at": "When", "consumer": "Who", "kind": "Event", "error": "Why", "id": "Id"}
        desk.page(line, desk.ask(line, "ListAsides"), columns)

    @desk.command(aside, "again", "hounsfield ris aside again ID")
    @click.argument("aside_id", metavar="ID")
    def again(line: Any, aside_id: str) -> None:
        """Act on one again: what was wrong is mended."""
        desk.operation(line, "aside-again", aside=aside_id, person=getpass.getuser())
        desk.say("acted on")

    @desk.command(aside, "dismiss", "hounsfield ris aside dismiss ID")
    @click.argument("aside_id", metavar="ID")
    def dismiss(line: Any, aside_id: str) -> None:
        """Say that one need not be acted on."""
        desk.ask(line, "DismissAside", path={"aside": aside_id})
        desk.say("dismissed")

    @click.group()
    def mpps() -> None:
        """Performed procedure steps that are forwarded to others (plugins.ris.mpps_forward_to)."""

    @desk.command(mpps, "status", "hounsfield ris mpps status")
    def status(line: Any) -> None:
        """Show what waits for whom, and what was refused."""
        answer = desk.operation(line, "mpps")
        if line.as_json:
            desk.table(line, [], {}, answer)
            return
        columns = {
            "destination": "Destination", "waiting": "Waiting", "refused": "Refused", "attempts": "Attempts",
            "error": "Error",
        }  # fmt: skip
        desk.table(line, answer["destinations"], columns)
        if answer["refused"]:
            desk.say("\nrefused")
            columns = {"destination": "Destination", "operation": "Request", "error": "Why", "forward": "Id"}
            desk.table(line, answer["refused"], columns)

    @desk.command(mpps, "again", "hounsfield ris mpps again ID")
    @click.argument("forward", metavar="ID")
    def mpps_again(line: Any, forward: str) -> None:
        """Send one again that was refused; it keeps its place."""
        desk.operation(line, "mpps-again", forward=forward)
        desk.say("it is sent again")

    return [aside, mpps]
