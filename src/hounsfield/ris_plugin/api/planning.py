"""More of the schedule over the API: day sheets, times offered to who waits, appointments booked together."""

from __future__ import annotations

from datetime import date, datetime
from typing import Annotated, Any, Final

import msgspec

from hounsfield.archive.plugins import Change, View
from hounsfield.ris_plugin import orders
from hounsfield.ris_plugin.api import sight
from hounsfield.ris_plugin.api.endpoints import Ask, Endpoint, Limit, Nothing, page_of
from hounsfield.ris_plugin.api.models import model
from hounsfield.ris_plugin.api.schedule import (
    DAY_NS,
    DAYS_AHEAD,
    AppointmentItem,
    FreeTime,
    free_time,
    shown,
)
from hounsfield.ris_plugin.errors import InvalidError
from hounsfield.ris_plugin.patients import resolve
from hounsfield.ris_plugin.records.base import Row
from hounsfield.ris_plugin.records.catalog import RESOURCE, Closure
from hounsfield.ris_plugin.records.schedule import APPOINTMENT
from hounsfield.ris_plugin.schedule import day_sheets, scheduling, series, waiting_list
from hounsfield.ris_plugin.schedule.day_sheets import Entry, Sheet
from hounsfield.ris_plugin.schedule.waiting_list import Offer

__all__ = ["ENDPOINTS"]

TAG: Final = "Schedule"
Minutes = Annotated[int, msgspec.Meta(ge=0, le=527_040)]
"""Up to a year."""


class Stretch(Row, frozen=True):
    """From one moment to another."""

    from_ns: int
    to_ns: int


class SheetColumn(Row, frozen=True):
    """A resource on a day: when it is open, why it is not, and what stands on it. ``displaced``: numbers of
    those that stand where it is closed now, or not in use any more."""

    code: str
    name: str = ""
    kind: str = ""
    location: str = ""
    open: tuple[Stretch, ...] = ()
    closures: tuple[Closure, ...] = ()
    entries: tuple[Entry, ...] = ()
    displaced: tuple[str, ...] = ()


class DaySheet(Row, frozen=True):
    """A day, as long as clocks have it."""

    day: str
    from_ns: int
    to_ns: int
    columns: tuple[SheetColumn, ...] = ()


class OfferedTime(Row, frozen=True, kw_only=True):
    """A time that somebody who waits could have. ``now_ns``: when that one's time is now."""

    appointment: str
    number: str = ""
    patient: str
    patient_name: str = ""
    patient_number: str = ""
    since_ns: int
    now_ns: int = 0
    from_ns: int
    to_ns: int
    resources: tuple[str, ...] = ()


class Asked(Nothing, frozen=True, kw_only=True):
    """A day, or the week it is in; today when none is given. ``resources``: codes, separated by commas."""

    day: date | None = None
    week: bool = False
    resources: str = ""


class Offering(Nothing, frozen=True, kw_only=True):
    """How many."""

    limit: Limit = 10


class Taken(Nothing, frozen=True, kw_only=True, rename={"begin": "from"}):
    """The time that was offered."""

    begin: datetime
    resources: tuple[str, ...] = ()


class Part(Nothing, frozen=True, kw_only=True, rename={"begin": "from"}):
    """One appointment of several."""

    orders: tuple[str, ...]
    begin: datetime
    resources: tuple[str, ...] = ()


class Several(Nothing, frozen=True, kw_only=True):
    """Appointments of one patient that are booked together, or none of them: so many minutes, at least and at
    most (0: whenever), from the end of one to the beginning of the next, also when one is moved."""

    parts: tuple[Part, ...]
    note: str = ""
    gap_minutes_min: Minutes = 0
    gap_minutes_max: Minutes = 0


class Apart(Nothing, frozen=True, kw_only=True):
    """For orders (ids, separated by commas), each at a time of its own, in this order: so many minutes, at
    least and at most (0: whenever), from the end of one to the beginning of the next."""

    orders: str
    since: datetime | None = None
    until: datetime | None = None
    gap_minutes_min: Minutes = 0
    gap_minutes_max: Minutes = 0
    limit: Limit = 10


class FreeSeries(msgspec.Struct, frozen=True, kw_only=True):
    """Times for all of them."""

    times: tuple[FreeTime, ...]


class Looking(Nothing, frozen=True, kw_only=True):
    """From when on; from now, if not given."""

    since: datetime | None = None
    limit: Limit = 100


class DisplacedItem(Row, frozen=True, kw_only=True):
    """An appointment that stands where something is closed now, or not in use any more."""

    appointment: str
    number: str
    from_ns: int
    to_ns: int
    patient: str
    patient_name: str = ""
    patient_number: str = ""
    resources: tuple[str, ...] = ()


SheetModel: Final[Any] = model(DaySheet)
OfferModel: Final[Any] = model(OfferedTime)
DisplacedModel: Final[Any] = model(DisplacedItem)


def sheets(view: View, ask: Ask) -> Any:
    """What stands on each resource."""
    q: Asked = ask.query
    on = q.day or ask.ris.local(ask.now_ns).date()
    codes = [one.strip() for one in q.resources.split(",") if one.strip()]
    zone = ask.ris.zone
    found = day_sheets.week(view, zone, on, codes) if q.week else (day_sheets.day(view, zone, on, codes),)
    return page_of(SheetModel)(items=tuple(ask.show(_sheet(one)) for one in found))


def _sheet(one: Sheet) -> DaySheet:
    return DaySheet(
        day=one.day,
        from_ns=one.from_ns,
        to_ns=one.to_ns,
        columns=tuple(
            SheetColumn(
                code=each.code,
                name=each.name,
                kind=each.kind,
                location=each.location,
                open=tuple(Stretch(from_ns=low, to_ns=high) for low, high in each.open),
                closures=each.closures,
                entries=each.entries,
                displaced=each.displaced,
            )
            for each in one.columns
        ),
    )


def offers(view: View, ask: Ask) -> Any:
    """Who waits longest and could have the time of an appointment that was cancelled or missed."""
    key = ask.path["appointment"]
    sight.appointment(view, ask.actor, key)
    found = waiting_list.offers(view, ask.ris.zone, key, after_ns=ask.now_ns, limit=ask.query.limit)
    return page_of(OfferModel)(items=tuple(ask.show(_offer(view, one)) for one in found))


def _offer(view: View, one: Offer) -> OfferedTime:
    held = [(key, view.get(RESOURCE, key)) for key in one.resources]
    patient, whose = resolve(view, one.patient)
    return OfferedTime(
        appointment=one.appointment,
        number=scheduling.get(view, one.appointment).number,
        patient=patient,
        patient_name=whose.name,
        patient_number=whose.identifiers[0].value,
        since_ns=one.since_ns,
        now_ns=one.now_ns,
        from_ns=one.from_ns,
        to_ns=one.to_ns,
        resources=tuple(row.code if row is not None else key for key, row in held),
    )


def take(change: Change, ask: Ask) -> Any:
    """Give who waits a time that was offered."""
    key = ask.path["appointment"]
    waiting_list.accept(
        change, ask.actor, ask.ris.zone, key, from_ns=ask.ns(ask.body.begin), resources=ask.body.resources
    )
    return shown(change, ask, key, scheduling.get(change, key))


def book_several(change: Change, ask: Ask) -> Any:
    """Book all of them, or none."""
    wanted = [
        series.Part(orders=one.orders, from_ns=ask.ns(one.begin), resources=one.resources)
        for one in ask.body.parts
    ]
    made = series.book_series(
        change, ask.actor, ask.ris.zone, wanted, note=ask.body.note,
        gap_minutes_min=ask.body.gap_minutes_min, gap_minutes_max=ask.body.gap_minutes_max,
    )  # fmt: skip
    return page_of(AppointmentItem)(
        items=tuple(shown(change, ask, key, scheduling.get(change, key)) for key in made)
    )


def free_series(view: View, ask: Ask) -> Any:
    """The first times for all."""
    q: Apart = ask.query
    wanted = [orders.get(view, one.strip()) for one in q.orders.split(",")]
    since = ask.ns(q.since) or ask.now_ns
    until = ask.ns(q.until) or since + DAYS_AHEAD * len(wanted) * DAY_NS
    if until <= since:
        raise InvalidError("it ends after it begins", "until")
    found = series.free_series(
        view, ask.ris.zone, [scheduling.needs_of(view, [one]) for one in wanted],
        from_ns=since, to_ns=until, limit=q.limit, patient=wanted[0].patient,
        gap_minutes_min=q.gap_minutes_min, gap_minutes_max=q.gap_minutes_max,
    )  # fmt: skip
    return page_of(FreeSeries)(
        items=tuple(FreeSeries(times=tuple(free_time(view, ask, slot) for slot in one)) for one in found)
    )


def displaced(view: View, ask: Ask) -> Any:
    """Who has to be moved."""
    since = ask.ns(ask.query.since) or ask.now_ns
    found = day_sheets.displaced(view, ask.ris.zone, from_ns=since, limit=ask.query.limit)
    items = []
    for key, one, codes in found:
        patient, whose = resolve(view, one.patient)
        item = DisplacedItem(
            appointment=key, number=one.number, from_ns=one.from_ns, to_ns=one.to_ns, patient=patient,
            patient_name=whose.name, patient_number=whose.identifiers[0].value, resources=codes,
        )  # fmt: skip
        items.append(ask.show(item))
    return page_of(DisplacedModel)(items=tuple(items))


ENDPOINTS: Final = (
    Endpoint(
        "GetDaySheets", "GET", "/day-sheets", TAG,
        "What stands on rooms, devices and people on a day or a week",
        sheets, page_of(SheetModel), Asked,
    ),
    Endpoint(
        "ListOffers", "GET", "/appointments/{appointment}/offers", TAG,
        "Who waits longest and could have the time of an appointment that was cancelled or missed",
        offers, page_of(OfferModel), Offering,
    ),
    Endpoint(
        "TakeOffer", "POST", "/appointments/{appointment}/take-offer", TAG,
        "Give who waits a time that was offered",
        take, AppointmentItem, body=Taken, kind=APPOINTMENT,
    ),
    Endpoint(
        "ListDisplaced", "GET", "/displaced", TAG,
        "Appointments that stand where something is closed now, or not in use any more",
        displaced, page_of(DisplacedModel), Looking,
    ),
    Endpoint(
        "FindFreeSeries", "GET", "/series/slots", TAG,
        "The first times for several appointments that are to be so far apart",
        free_series, page_of(FreeSeries), Apart,
    ),
    Endpoint(
        "BookSeries", "POST", "/series", TAG,
        "Book several appointments of one patient, all of them or none",
        book_several, page_of(AppointmentItem), body=Several,
    ),
)  # fmt: skip
