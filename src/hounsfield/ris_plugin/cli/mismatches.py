"""``hounsfield ris mismatches …``: studies that belong to no order by themselves."""

from __future__ import annotations

from typing import Any

import click

from hounsfield.archive.plugins import CommandLine
from hounsfield.ris_plugin.cli.asking import Counter

__all__ = ["commands"]


def commands(cli: CommandLine) -> list[click.Command]:
    """Of mismatches."""
    desk = Counter(cli)

    @click.group()
    def mismatches() -> None:
        """Studies that came and belong to no order by themselves, or to another patient's."""

    @desk.command(
        mismatches, "list", "hounsfield ris mismatches list", "hounsfield ris mismatches list --state fixed"
    )
    @click.option("--state", default="open", show_default=True, help="open, prior, fixed, dismissed, gone.")
    @click.option("--after", default="", help="Go on after a page.")
    def list_(line: Any, state: str, after: str) -> None:
        """List them, each with the order that it most likely belongs to."""
        answer = desk.ask(line, "ListMismatches", query={"state": state, "after": after})
        rows = []
        for one in answer["items"]:
            best = one["suggestions"][0] if one["suggestions"] else {}
            rows.append(
                {**one, "order": best.get("order", one["order"]), "because": list(best.get("because", ()))}
            )
        columns = {
            "at": "Came", "why": "Why", "patient_id": "Number", "name": "Name", "accession": "Accession",
            "modality": "Modality", "order": "Likely order", "because": "Because", "id": "Id",
        }  # fmt: skip
        desk.table(line, rows, columns, answer)
        if answer["next"]:
            desk.say(f"there is more: --after {answer['next']}")

    @desk.command(mismatches, "fix", "hounsfield ris mismatches fix ID 2026000042")
    @click.argument("mismatch")
    @click.argument("order")
    @click.option("--reason", default="")
    def fix(line: Any, mismatch: str, order: str, reason: str) -> None:
        """Say that a study belongs to ORDER: it is shown and delivered as its, the original stays."""
        body = {"order": desk.order(line, order), "reason": reason}
        made = desk.ask(line, "FixMismatch", path={"mismatch": mismatch}, body=body)
        desk.done(line, made, "the archive shows it as the order's within a moment")

    @desk.command(mismatches, "undo", "hounsfield ris mismatches undo ID")
    @click.argument("mismatch")
    def undo(line: Any, mismatch: str) -> None:
        """Take a fix back: the study is shown as it came."""
        made = desk.ask(line, "UndoFix", path={"mismatch": mismatch})
        desk.done(line, made, "it is taken back within a moment")

    @desk.command(mismatches, "doubt", "hounsfield ris mismatches doubt 1.2.840.1")
    @click.argument("study", metavar="STUDY")
    def doubt(line: Any, study: str) -> None:
        """Say that a study belongs to another order than the one it was matched to."""
        made = desk.ask(line, "DoubtStudy", path={"study": study})
        desk.say(f"it is put up as {made['id']}: fix or dismiss it")

    @desk.command(mismatches, "dismiss", "hounsfield ris mismatches dismiss ID")
    @click.argument("mismatch")
    def dismiss(line: Any, mismatch: str) -> None:
        """Say that a study belongs to no order of ours."""
        made = desk.ask(line, "DismissMismatch", path={"mismatch": mismatch})
        desk.done(line, made, "dismissed")

    return [mismatches]
