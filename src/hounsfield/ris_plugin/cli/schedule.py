"""``hounsfield ris schedule …`` and ``hounsfield ris worklist``."""

from __future__ import annotations

from typing import Any

import click

from hounsfield.archive.plugins import CommandLine
from hounsfield.ris_plugin.cli.asking import Counter, examples_of, when

__all__ = ["commands"]

COLUMNS = {
    "from": "From", "to": "To", "number": "Appointment", "state": "State", "patient_number": "Number",
    "patient_name": "Name", "held": "Resources",
}  # fmt: skip


def commands(cli: CommandLine) -> list[click.Command]:
    """Of the schedule."""
    desk = Counter(cli)

    @click.group()
    def schedule() -> None:
        """Appointments: free times, booked, moved, arrived. One is called by its number or id.

        Times are the department's (plugins.ris.time_zone): 2026-11-23, "2026-11-23 10:30".
        """

    @desk.command(
        schedule, "free",
        "hounsfield ris schedule free --procedure CTHEAD",
        "hounsfield ris schedule free --order 2026000042 --since 2026-11-23 --limit 5",
    )  # fmt: skip
    @click.option("--procedure", default="", help="A code of the catalog.")
    @click.option("--order", "orders", multiple=True, help="For this order; several: one after another.")
    @click.option("--since", default="", metavar="WHEN", help="From now on, if not given.")
    @click.option("--until", default="", metavar="WHEN")
    @click.option("--limit", default=10, show_default=True, type=click.IntRange(1, 200))
    def free(
        *, line: Any, procedure: str, orders: tuple[str, ...], since: str, until: str, limit: int
    ) -> None:
        """Show the first times at which everything that is needed is free."""
        query = {
            "procedure": procedure, "orders": ",".join(desk.order(line, one) for one in orders),
            "since": when(since), "until": when(until), "limit": limit,
        }  # fmt: skip
        answer = desk.ask(line, "FindFreeTimes", query=query)
        desk.page(line, answer, {"from": "From", "to": "To", "resources": "With"})

    @desk.command(
        schedule, "book",
        'hounsfield ris schedule book 2026000042 --at "2026-11-23 10:30"',
        'hounsfield ris schedule book 2026000042 --at "2026-11-23 10:30" --with CT1',
    )  # fmt: skip
    @click.argument("orders", nargs=-1, required=True)
    @click.option("--at", required=True, metavar="WHEN")
    @click.option("--with", "resources", multiple=True, help="A room, device or person that is wanted.")
    @click.option("--note", default="")
    def book(line: Any, orders: tuple[str, ...], at: str, resources: tuple[str, ...], note: str) -> None:
        """Book a time for ORDERS of one patient."""
        body = {
            "orders": [desk.order(line, one) for one in orders],
            "from": when(at),
            "resources": list(resources),
            "note": note,
        }
        made = desk.ask(line, "BookAppointment", body=body)
        desk.done(line, made, f"booked: appointment {made['number']}")

    @desk.command(
        schedule, "day",
        "hounsfield ris schedule day",
        "hounsfield ris schedule day --on 2026-11-23 --resource CT1",
    )  # fmt: skip
    @click.option("--on", default="", metavar="DAY", help="Today, if not given.")
    @click.option("--resource", default="", help="A room, device or person, by its code.")
    @click.option("--state", default="", help="booked, arrived, fulfilled, cancelled, no-show.")
    def day(line: Any, on: str, resource: str, state: str) -> None:
        """Show the appointments of a day."""
        query = {"since": when(on), "resource": resource, "state": state}
        _show(desk, line, desk.ask(line, "ListAppointments", query=query))

    @desk.command(schedule, "waiting", "hounsfield ris schedule waiting")
    def waiting(line: Any) -> None:
        """Show who waits for a time, or an earlier one."""
        _show(desk, line, desk.ask(line, "ListWaiting"))

    @desk.command(schedule, "wait", "hounsfield ris schedule wait 2026000042")
    @click.argument("orders", nargs=-1, required=True)
    @click.option("--note", default="")
    def wait(line: Any, orders: tuple[str, ...], note: str) -> None:
        """Put ORDERS of one patient on the waiting list."""
        body = {"orders": [desk.order(line, one) for one in orders], "note": note}
        made = desk.ask(line, "WaitForTime", body=body)
        desk.done(line, made, f"appointment {made['number']} waits for a time")

    @desk.command(schedule, "move", 'hounsfield ris schedule move A00000007 --at "2026-11-24 08:00"')
    @click.argument("appointment")
    @click.option("--at", required=True, metavar="WHEN")
    @click.option("--with", "resources", multiple=True, help="A room, device or person that is wanted.")
    def move(line: Any, appointment: str, at: str, resources: tuple[str, ...]) -> None:
        """Give an appointment another time."""
        path = {"appointment": desk.appointment(line, appointment)}
        body = {"from": when(at), "resources": list(resources)}
        made = desk.ask(line, "MoveAppointment", path=path, body=body)
        desk.done(line, made, f"appointment {made['number']} is {made['state']}")

    for name, endpoint, text in (
        ("arrive", "PatientArrived", "The patient is here."),
        ("leave", "PatientLeft", "The patient is gone again, or never came in."),
        ("fulfil", "FulfilAppointment", "It is done."),
        ("cancel", "CancelAppointment", "Cancel an appointment; its orders are to be scheduled again."),
        ("miss", "PatientDidNotCome", "The patient did not come."),
    ):
        _act(desk, schedule, name, endpoint, text)

    @click.command(
        epilog=examples_of("hounsfield ris worklist", "hounsfield ris worklist --modality CT --on 2026-11-23")
    )
    @click.option("--ae", default="", help="What this AE title is to do.")
    @click.option("--modality", default="")
    @click.option("--on", default="", metavar="DAY", help="Today, if not given.")
    @cli.options
    def worklist(line: Any, ae: str, modality: str, on: str) -> None:
        """Show what is to be done on a day, as modalities see it (DICOM Modality Worklist)."""
        query = {"ae": ae, "modality": modality, "since": when(on)}
        columns = {
            "from": "From", "modality": "Modality", "ae_titles": "AE", "accession": "Accession",
            "state": "State", "patient_number": "Number", "patient_name": "Name", "description": "What",
        }  # fmt: skip
        desk.page(line, desk.ask(line, "GetWorklist", query=query), columns)

    return [schedule, worklist]


def _show(desk: Counter, line: Any, answer: Any) -> None:
    answer["items"] = [
        {**one, "held": [each["resource"] for each in one["holds"]]} for one in answer["items"]
    ]
    desk.page(line, answer, COLUMNS)


def _act(desk: Counter, schedule: click.Group, name: str, endpoint: str, text: str) -> None:
    def act(line: Any, appointment: str, why: str) -> None:
        path = {"appointment": desk.appointment(line, appointment)}
        made = desk.ask(line, endpoint, path=path, body={"why": why})
        desk.done(line, made, f"appointment {made['number']} is {made['state']}")

    act.__doc__ = text
    needs = name == "cancel"
    act = click.option("--why", required=needs, default=None if needs else "", help="The reason.")(act)
    act = click.argument("appointment")(act)
    desk.command(
        schedule, name, f"hounsfield ris schedule {name} A00000007" + (' --why "…"' if needs else "")
    )(act)
