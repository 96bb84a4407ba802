"""``hounsfield ris orders …``"""

from __future__ import annotations

from typing import Any

import click

from hounsfield.archive.plugins import CommandLine
from hounsfield.ris_plugin.cli.asking import Counter, when

__all__ = ["commands"]

COLUMNS = {
    "accession": "Accession", "state": "State", "priority": "Priority", "patient_number": "Number",
    "patient_name": "Name", "modality": "Modality", "code": "Procedure", "placed": "Placed",
}  # fmt: skip


def commands(cli: CommandLine) -> list[click.Command]:
    """Of orders."""
    desk = Counter(cli)

    @click.group()
    def orders() -> None:
        """Orders: place, accept, answer for, hold, cancel. An order is called by accession number or id."""

    @desk.command(
        orders, "list",
        "hounsfield ris orders list",
        "hounsfield ris orders list --state placed --modality MR",
        "hounsfield ris orders list --patient 4711 --json",
    )  # fmt: skip
    @click.option("--state", default="", help="placed, accepted, scheduled, in-progress, completed, held, …")
    @click.option("--patient", default="", help="Of this patient, by number or id.")
    @click.option("--modality", default="")
    @click.option("--limit", default=50, show_default=True, type=click.IntRange(1, 500))
    @click.option("--after", default="", help="Go on after a page.")
    def list_(*, line: Any, state: str, patient: str, modality: str, limit: int, after: str) -> None:
        """List orders: the open ones, or those asked for."""
        query = {"state": state, "modality": modality, "limit": limit, "after": after}
        if patient:
            query["patient"] = desk.patient(line, patient)
        answer = desk.ask(line, "ListOrders", query=query)
        answer["items"] = [{**one, "code": one["procedure"]["value"]} for one in answer["items"]]
        desk.page(line, answer, COLUMNS)

    @desk.command(orders, "late", "hounsfield ris orders late")
    @click.option("--limit", default=100, show_default=True, type=click.IntRange(1, 500))
    def late(line: Any, limit: int) -> None:
        """List orders that have no time and wait too long (plugins.ris.orders_late_seconds)."""
        answer = desk.ask(line, "ListLateOrders", query={"limit": limit})
        answer["items"] = [{**one, "code": one["procedure"]["value"]} for one in answer["items"]]
        desk.page(line, answer, COLUMNS | {"wanted": "Wanted"})

    @desk.command(orders, "show", "hounsfield ris orders show 2026000042")
    @click.argument("order")
    def show(line: Any, order: str) -> None:
        """Show an order."""
        desk.fields(line, desk.ask(line, "GetOrder", path={"order": desk.order(line, order)}))

    @desk.command(
        orders, "place",
        'hounsfield ris orders place 4711 CTHEAD --reason "headache" --priority STAT',
        "hounsfield ris orders place 4711@HOSPITAL XRHAND --side L",
    )  # fmt: skip
    @click.argument("patient")
    @click.argument("procedure")
    @click.option("--priority", default="ROUTINE", show_default=True,
                  type=click.Choice(["STAT", "HIGH", "ROUTINE", "MEDIUM", "LOW"]))  # fmt: skip
    @click.option("--reason", default="")
    @click.option("--side", default="", type=click.Choice(["L", "R", "B", ""]))
    @click.option("--requester", default="", help="Who ordered it: FAMILY^GIVEN.")
    @click.option("--wanted", default="", metavar="WHEN", help="Not before.")
    def place(line: Any, patient: str, procedure: str, side: str, wanted: str, **words: str) -> None:
        """Place an order for PATIENT of PROCEDURE, a code of the catalog."""
        body: dict[str, Any] = {
            "patient": desk.patient(line, patient), "procedure": procedure, "laterality": side, **words,
        }  # fmt: skip
        if wanted:
            body["wanted"] = when(wanted)
        made = desk.ask(line, "PlaceOrder", body=body)
        desk.done(line, made, f"order {made['accession']} is {made['state']} (id {made['id']})")

    @desk.command(orders, "accept", "hounsfield ris orders accept 2026000042")
    @click.argument("order")
    def accept(line: Any, order: str) -> None:
        """Accept an order whose procedure needs no protocol; one that does is a radiologist's."""
        made = desk.ask(line, "AcceptOrder", path={"order": desk.order(line, order)}, body={})
        desk.done(line, made, f"order {made['accession']} is {made['state']}")

    @desk.command(orders, "answer", "hounsfield ris orders answer 2026000042 pregnancy no")
    @click.argument("order")
    @click.argument("question")
    @click.argument("answer")
    @click.option("--blocks", is_flag=True, help="So answered it must not be done.")
    @click.option("--note", default="")
    def answer(*, line: Any, order: str, question: str, answer: str, blocks: bool, note: str) -> None:
        """Answer a safety question of an order."""
        body = {"name": question, "answer": answer, "blocks": blocks, "note": note}
        made = desk.ask(line, "AnswerQuestion", path={"order": desk.order(line, order)}, body=body)
        still = [one["name"] for one in made["questions"] if not one["answer"] or one["blocks"]]
        desk.done(line, made, f"still open: {', '.join(still)}" if still else "no question is open")

    for name, endpoint, text in (
        ("hold", "HoldOrder", "Hold an order until it is released."),
        ("release", "ReleaseOrder", "Go on with an order that was held."),
        ("reject", "RejectOrder", "Reject an order."),
        ("cancel", "CancelOrder", "Cancel an order before its start."),
    ):
        _act(desk, orders, name, endpoint, text)
    return [orders]


def _act(desk: Counter, orders: click.Group, name: str, endpoint: str, text: str) -> None:
    def act(line: Any, order: str, why: str) -> None:
        made = desk.ask(line, endpoint, path={"order": desk.order(line, order)}, body={"why": why})
        desk.done(line, made, f"order {made['accession']} is {made['state']}")

    act.__doc__ = text
    needs = name != "release"
    act = click.option("--why", required=needs, default=None if needs else "", help="The reason.")(act)
    act = click.argument("order")(act)
    desk.command(orders, name, f"hounsfield ris orders {name} 2026000042" + (' --why "…"' if needs else ""))(
        act
    )
