"""``hounsfield ris schedule …`` and ``hounsfield ris worklist``."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, Final

import click

from hounsfield.archive.plugins import CommandLine
from hounsfield.ris_plugin.cli.asking import Counter, examples_of, when

__all__ = ["commands"]

OVER: Final = "; that time is over already"
"""What was done is noted afterwards, too; a wrong year is not meant."""
_GAP: Final = re.compile(r"(\d{1,4})\s*([mhd])")
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
        over = datetime.fromisoformat(made["to"]) < datetime.now(UTC)
        desk.done(line, made, f"booked: appointment {made['number']}{OVER if over else ''}")

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

    @desk.command(
        schedule, "sheet",
        "hounsfield ris schedule sheet --on 2026-11-23",
        "hounsfield ris schedule sheet --week --resource CT1 --resource MR1",
    )  # fmt: skip
    @click.option("--on", default="", metavar="DAY", help="Today, if not given.")
    @click.option("--week", is_flag=True, help="From Monday to Sunday of that week.")
    @click.option(
        "--resource", "resources", multiple=True, help="A room, device or person; all, if not given."
    )
    def sheet(line: Any, on: str, week: bool, resources: tuple[str, ...]) -> None:
        """Show what stands on each room, device and person, and when it is open."""
        query = {"day": when(on)[:10], "week": "true" if week else "", "resources": ",".join(resources)}
        answer = desk.ask(line, "GetDaySheets", query=query)
        rows = [row for one in answer["items"] for column in one["columns"] for row in _sheet(one, column)]
        columns = {
            "day": "Day", "resource": "Resource", "times": "Times", "number": "Appointment",
            "state": "State", "patient_number": "Number", "patient_name": "Name", "what": "What",
        }  # fmt: skip
        desk.table(line, rows, columns, answer)

    @desk.command(schedule, "displaced", "hounsfield ris schedule displaced")
    @click.option("--since", default="", metavar="WHEN", help="From now on, if not given.")
    def displaced(line: Any, since: str) -> None:
        """Show appointments that stand where something is closed now, or not in use any more."""
        answer = desk.ask(line, "ListDisplaced", query={"since": when(since)})
        columns = {
            "from": "From", "to": "To", "number": "Appointment", "patient_number": "Number",
            "patient_name": "Name", "resources": "Closed",
        }  # fmt: skip
        desk.page(line, answer, columns)

    @desk.command(schedule, "waiting", "hounsfield ris schedule waiting")
    def waiting(line: Any) -> None:
        """Show who waits for a time, or an earlier one."""
        _show(desk, line, desk.ask(line, "ListWaiting"))

    @desk.command(
        schedule, "wait",
        "hounsfield ris schedule wait 2026000042",
        "hounsfield ris schedule wait 2026000042 --wanted 2027-02-01 --until 2027-02-15 --follows A00000007",
    )  # fmt: skip
    @click.argument("orders", nargs=-1, required=True)
    @click.option("--wanted", default="", metavar="WHEN", help="Not before.")
    @click.option("--until", default="", metavar="WHEN", help="And not after.")
    @click.option("--follows", default="", metavar="APPOINTMENT", help="What it is to follow up.")
    @click.option("--note", default="")
    def wait(*, line: Any, orders: tuple[str, ...], wanted: str, until: str, follows: str, note: str) -> None:
        """Put ORDERS of one patient on the waiting list."""
        body: dict[str, Any] = {"orders": [desk.order(line, one) for one in orders], "note": note}
        if wanted:
            body["wanted"] = when(wanted)
        if until:
            body["wanted_until"] = when(until)
        if follows:
            body["follows"] = desk.appointment(line, follows)
        made = desk.ask(line, "WaitForTime", body=body)
        desk.done(line, made, f"appointment {made['number']} waits for a time")

    @desk.command(schedule, "earlier", "hounsfield ris schedule earlier A00000007")
    @click.argument("appointment")
    def earlier(line: Any, appointment: str) -> None:
        """Put who has an appointment on the waiting list for an earlier time."""
        path = {"appointment": desk.appointment(line, appointment)}
        made = desk.ask(line, "WaitForEarlier", path=path, body={"why": ""})
        desk.done(line, made, f"appointment {made['number']} waits for an earlier time")

    @desk.command(schedule, "offers", "hounsfield ris schedule offers A00000007")
    @click.argument("appointment")
    @click.option("--limit", default=10, show_default=True, type=click.IntRange(1, 100))
    def offers(line: Any, appointment: str, limit: int) -> None:
        """Show who waits longest and could have the time of an APPOINTMENT that was cancelled or missed.

        Ask them in this order; `take` gives the time to who says yes.
        """
        path = {"appointment": desk.appointment(line, appointment)}
        answer = desk.ask(line, "ListOffers", path=path, query={"limit": limit})
        columns = {
            "number": "Appointment", "since": "Waits since", "patient_number": "Number",
            "patient_name": "Name", "now": "Has now", "from": "Could have", "resources": "With",
        }  # fmt: skip
        desk.page(line, answer, columns)

    @desk.command(schedule, "take", 'hounsfield ris schedule take A00000009 --at "2026-11-23 10:30"')
    @click.argument("appointment")
    @click.option("--at", required=True, metavar="WHEN")
    @click.option("--with", "resources", multiple=True, help="A room, device or person that is wanted.")
    def take(line: Any, appointment: str, at: str, resources: tuple[str, ...]) -> None:
        """Give who waits, as APPOINTMENT, a time that was offered."""
        path = {"appointment": desk.appointment(line, appointment)}
        made = desk.ask(line, "TakeOffer", path=path, body={"from": when(at), "resources": list(resources)})
        desk.done(line, made, f"appointment {made['number']} is {made['state']}")

    @desk.command(
        schedule, "series",
        'hounsfield ris schedule series --part 2026000042 "2026-11-23 10:30" '
        '--part 2026000043 "2026-11-24 10:30"',
        "hounsfield ris schedule series --order 2026000042 --order 2026000043 --gap 24h..48h",
    )  # fmt: skip
    @click.option(
        "--part", "parts", nargs=2, multiple=True, metavar="ORDER WHEN", help="Book this then; two or more."
    )
    @click.option("--order", "orders", multiple=True, help="Book nothing: show the first times for these.")
    @click.option(
        "--gap", default="", metavar="GAP", help="From the end of one to the next: 24h, 24h..48h, 7d.."
    )
    @click.option("--since", default="", metavar="WHEN", help="With --order: from now on, if not given.")
    @click.option("--until", default="", metavar="WHEN", help="With --order.")
    @click.option("--note", default="")
    def series(
        *,
        line: Any,
        parts: tuple[tuple[str, str], ...],
        orders: tuple[str, ...],
        gap: str,
        since: str,
        until: str,
        note: str,
    ) -> None:
        """Book appointments of one patient that belong together, all of them or none.

        The gap holds when one of them is moved, too.
        """
        if bool(parts) == bool(orders):
            raise cli.fail(
                "say what to book (--part, twice or more), or what to look for (--order)", usage=True
            )
        low, high = gap_of(gap)
        if parts:
            body = {
                "parts": [{"orders": [desk.order(line, one)], "from": when(at)} for one, at in parts],
                "gap_minutes_min": low, "gap_minutes_max": high, "note": note,
            }  # fmt: skip
            made = desk.ask(line, "BookSeries", body=body)
            numbers = ", ".join(one["number"] for one in made["items"])
            desk.done(line, made, f"booked: appointments {numbers}")
            return
        query = {
            "orders": ",".join(desk.order(line, one) for one in orders), "since": when(since),
            "until": when(until), "gap_minutes_min": low or "", "gap_minutes_max": high or "",
        }  # fmt: skip
        answer = desk.ask(line, "FindFreeSeries", query=query)
        rows = [
            {f"part{at}": f"{one['from'][:16].replace('T', ' ')}" for at, one in enumerate(each["times"], 1)}
            for each in answer["items"]
        ]
        columns = {f"part{at}": f"{at}. {word}" for at, word in enumerate(orders, 1)}
        desk.table(line, rows, columns, answer)

    @desk.command(
        schedule, "move",
        'hounsfield ris schedule move A00000007 --at "2026-11-24 08:00"',
        'hounsfield ris schedule move A00000007 --at "2026-11-30 08:00" --apart',
    )  # fmt: skip
    @click.argument("appointment")
    @click.option("--at", required=True, metavar="WHEN")
    @click.option("--with", "resources", multiple=True, help="A room, device or person that is wanted.")
    @click.option("--apart", is_flag=True, help="Take it out of its series, whose times it is to keep else.")
    def move(line: Any, appointment: str, at: str, resources: tuple[str, ...], apart: bool) -> None:
        """Give an appointment another time."""
        path = {"appointment": desk.appointment(line, appointment)}
        body = {"from": when(at), "resources": list(resources), "apart": apart}
        made = desk.ask(line, "MoveAppointment", path=path, body=body)
        over = datetime.fromisoformat(made["to"]) < datetime.now(UTC)
        desk.done(line, made, f"appointment {made['number']} is {made['state']}{OVER if over else ''}")

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


def _sheet(sheet: Any, column: Any) -> Iterator[dict[str, str]]:
    """The rows of a resource on a day: when it is open and why it is not, and what stands on it."""
    head = {"day": sheet["day"], "resource": column["code"] or "-"}
    shut = [one["why"] or "closed" for one in column["closures"]]
    if column["code"]:
        times = "\n".join(_times(sheet, one) for one in column["open"]) or "-"
        yield {
            **head,
            "times": times,
            "state": "open" if column["open"] else "closed",
            "what": "; ".join(shut),
        }
    for one in column["entries"]:
        what = [each["procedure"] for each in one["orders"]] + ([one["note"]] if one["note"] else [])
        if one["number"] in column["displaced"]:
            what.append("TO BE MOVED: it is closed then")
        yield {
            **head, "times": _times(sheet, one), "number": one["number"], "state": one["state"],
            "patient_number": one["patient_number"], "patient_name": one["patient_name"],
            "what": "\n".join(what),
        }  # fmt: skip


def _times(sheet: Any, one: Any) -> str:
    """From when to when; days only where they are not the sheet's."""
    return "-".join(
        at[11:16] if at[:10] == sheet["day"] else f"{at[:10]} {at[11:16]}" for at in (one["from"], one["to"])
    )


def gap_of(text: str) -> tuple[int, int]:
    """``24h..48h`` as minutes, at least and at most; 0: no bound. click.BadParameter."""
    low, dots, high = (part.strip() for part in text.partition(".."))
    found = [_GAP.fullmatch(part) for part in (low, high) if part]
    if not all(found) or (text and not found):
        raise click.BadParameter("a gap is 24h, 24h..48h, 7d.. or ..90m")
    minutes = [int(one[1]) * {"m": 1, "h": 60, "d": 1440}[one[2]] for one in found if one is not None]
    if len(minutes) == 1:
        return (minutes[0], 0 if dots else minutes[0]) if low else (0, minutes[0])
    return (minutes[0], minutes[1]) if minutes else (0, 0)


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
