"""Day sheets: what stands on each room, device and person on a day or a week, as a desk shows it.

Who is shown is the patient that it is today, whoever an appointment was made for before a merge.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import date, timedelta
from functools import partial
from zoneinfo import ZoneInfo

from msgspec import structs

from hounsfield.archive.plugins import View
from hounsfield.ris_plugin.catalog import resource
from hounsfield.ris_plugin.errors import UnknownError
from hounsfield.ris_plugin.patients import resolve
from hounsfield.ris_plugin.records.base import Row, seconds
from hounsfield.ris_plugin.records.catalog import RESOURCE, Closure, Resource
from hounsfield.ris_plugin.records.orders import ORDER
from hounsfield.ris_plugin.records.schedule import APPOINTMENT, HOLDING, LONG_NS, SHOWN, Appointment
from hounsfield.ris_plugin.schedule.free_time import HOLD_NS_MAX, Calendar, Stretch

__all__ = ["Column", "Entry", "Line", "Sheet", "day", "displaced", "week"]


class Line(Row, frozen=True):
    """An order of an appointment."""

    order: str
    accession: str
    procedure: str
    modality: str
    priority: str
    state: str


class Entry(Row, frozen=True):
    """An appointment on a sheet. ``patient``: who it is today; ``resources``: codes of all that it holds."""

    appointment: str
    number: str
    state: str
    from_ns: int
    to_ns: int
    patient: str
    patient_name: str
    patient_number: str
    birth_day: str
    sex: str
    alerts: tuple[str, ...] = ()
    resources: tuple[str, ...] = ()
    orders: tuple[Line, ...] = ()
    series: str = ""
    note: str = ""
    waits: bool = False  # for an earlier time


class Column(Row, frozen=True):
    """A resource on a day: when it is open, why it is not, and what stands on it, by when it begins.

    ``code``: "" for appointments that hold nothing. ``displaced``: numbers of those that stand where it is
    closed now, or not in use any more, so that somebody has to move them.
    """

    code: str
    name: str = ""
    kind: str = ""
    location: str = ""
    open: tuple[tuple[int, int], ...] = ()
    closures: tuple[Closure, ...] = ()
    entries: tuple[Entry, ...] = ()
    displaced: tuple[str, ...] = ()


class Sheet(Row, frozen=True):
    """A day, as long as clocks have it."""

    day: str  # 2026-11-23
    from_ns: int
    to_ns: int
    columns: tuple[Column, ...]


def day(view: View, zone: ZoneInfo, on: date, codes: Sequence[str] = ()) -> Sheet:
    """What stands on a day on the resources of ``codes``, on all active ones if it is empty. UnknownError."""
    return _Desk(view, zone, codes).sheet(on)


def week(view: View, zone: ZoneInfo, within: date, codes: Sequence[str] = ()) -> tuple[Sheet, ...]:
    """The seven days from Monday of the week that a day is in, as :func:`day`."""
    monday = within - timedelta(days=within.weekday())
    desk = _Desk(view, zone, codes)
    return tuple(desk.sheet(monday + timedelta(days=index)) for index in range(7))


def displaced(
    view: View, zone: ZoneInfo, *, from_ns: int, limit: int = 100
) -> list[tuple[str, Appointment, tuple[str, ...]]]:
    """Appointments from a moment on that stand where a resource is closed now, or not in use any more, with
    the codes of those resources: what a closure, other hours or a retired device left behind."""
    calendar = Calendar(zone)
    found: dict[str, tuple[Appointment, list[str]]] = {}
    for key, one in view.every(RESOURCE):
        if one.active and not (one.hours or one.breaks or one.closures):
            continue
        for appointment_id, held in view.find(APPOINTMENT, "holds", key, at_least=seconds(from_ns)):
            if held.to_ns > from_ns and _is_displaced(key, one, held, partial(calendar.open, one)):
                found.setdefault(appointment_id, (held, []))[1].append(one.code)
    ordered = sorted(found.items(), key=lambda each: (each[1][0].from_ns, each[0]))
    return [(key, one, tuple(codes)) for key, (one, codes) in ordered[:limit]]


def _is_displaced(
    key: str, one: Resource, held: Appointment, opened: Callable[[int, int], Sequence[Stretch]]
) -> bool:
    """Whether an appointment stands where a resource that it holds is closed, or not in use any more."""
    if held.state not in HOLDING:
        return False
    if not one.active:
        return True
    for part in held.holds:
        if part.resource == key:
            # Preparing and cleaning may lie outside of the hours.
            begin, end = max(part.from_ns, held.from_ns), min(part.to_ns, held.to_ns)
            if begin < end and not any(low <= begin and end <= high for low, high in opened(begin, end)):
                return True
    return False


class _Desk:
    def __init__(self, view: View, zone: ZoneInfo, codes: Sequence[str]) -> None:
        self._view = view
        self._calendar = Calendar(zone)
        self._all = not codes
        found = [resource(view, code) for code in codes] if codes else list(view.every(RESOURCE))
        self._resources: dict[str, Resource] = dict(found)
        self._codes = {key: one.code for key, one in found}
        self._shown: dict[str, Appointment] = {}
        self._patients: dict[str, tuple[str, str, str, str, str, tuple[str, ...]]] = {}

    def sheet(self, on: date) -> Sheet:
        begin, end = self._calendar.midnight(on), self._calendar.midnight(on + timedelta(days=1))
        entries: dict[str, list[Entry]] = {}
        for appointment_id, one in self._appointments(begin, end):
            held = {each.resource for each in one.holds}
            on_these = [key for key in held if key in self._resources]
            if on_these or (self._all and not held):
                entry = self._entry(appointment_id, one)
                self._shown[appointment_id] = one
                for key in on_these or [""]:
                    entries.setdefault(key, []).append(entry)
        columns = [
            self._column(key, one, begin, end, entries.get(key, []))
            for key, one in self._resources.items()
            # Who does not work here any more is shown while something stands on him.
            if one.active or not self._all or key in entries
        ]
        if self._all:
            columns.sort(key=lambda one: (one.kind, one.code))
        if "" in entries:
            columns.append(Column(code="", entries=tuple(sorted(entries[""], key=_when))))
        return Sheet(day=on.isoformat(), from_ns=begin, to_ns=end, columns=tuple(columns))

    def _appointments(self, begin: int, end: int) -> list[tuple[str, Appointment]]:
        """Those of which some part lies in a day."""
        looked_up = [("long", state, HOLD_NS_MAX) for state in SHOWN]
        if self._all:
            looked_up += [("state", state, LONG_NS) for state in SHOWN]
        else:
            looked_up += [("stands", key, LONG_NS) for key in self._resources]
        found: dict[str, Appointment] = {}
        for lookup, text, back in looked_up:
            found |= self._view.find(
                APPOINTMENT, lookup, text, at_least=seconds(begin - back), at_most=seconds(end - 1)
            )
        return [(key, one) for key, one in found.items() if one.from_ns < end and begin < one.to_ns]

    def _column(self, key: str, one: Resource, begin: int, end: int, entries: list[Entry]) -> Column:
        opened = tuple(self._calendar.open(one, begin, end))
        # Of this day: on others they stand, too.
        today = [
            structs.replace(held, from_ns=max(held.from_ns, begin), to_ns=min(held.to_ns, end))
            for held in (self._shown[each.appointment] for each in entries)
        ]
        displaced = (held.number for held in today if _is_displaced(key, one, held, lambda *_: opened))
        return Column(
            code=one.code,
            name=one.name,
            kind=one.kind,
            location=one.location,
            open=opened,
            closures=tuple(each for each in one.closures if each.from_ns < end and begin < each.to_ns),
            entries=tuple(sorted(entries, key=_when)),
            displaced=tuple(sorted(displaced)),
        )

    def _entry(self, appointment_id: str, one: Appointment) -> Entry:
        patient, name, number, birth_day, sex, alerts = self._patient(one.patient)
        return Entry(
            appointment=appointment_id,
            number=one.number,
            state=one.state,
            from_ns=one.from_ns,
            to_ns=one.to_ns,
            patient=patient,
            patient_name=name,
            patient_number=number,
            birth_day=birth_day,
            sex=sex,
            alerts=alerts,
            resources=tuple(dict.fromkeys(self._code(held.resource) for held in one.holds)),
            orders=tuple(self._line(order_id) for order_id in one.orders),
            series=one.series,
            note=one.note,
            waits=bool(one.waiting_since_ns),
        )

    def _patient(self, patient_id: str) -> tuple[str, str, str, str, str, tuple[str, ...]]:
        if patient_id not in self._patients:
            key, one = resolve(self._view, patient_id)
            number = one.identifiers[0].value if one.identifiers else ""
            self._patients[patient_id] = key, one.name, number, one.birth_day, one.sex, one.alerts
        return self._patients[patient_id]

    def _line(self, order_id: str) -> Line:
        one = self._view.get(ORDER, order_id)
        if one is None:
            raise UnknownError("an appointment is for an order that there is not")
        return Line(
            order=order_id,
            accession=one.accession,
            procedure=one.procedure.meaning or one.procedure.value,
            modality=one.modality,
            priority=one.priority,
            state=one.state,
        )

    def _code(self, key: str) -> str:
        if key not in self._codes:
            found = self._view.get(RESOURCE, key)
            self._codes[key] = key if found is None else found.code
        return self._codes[key]


def _when(one: Entry) -> tuple[int, str]:
    return one.from_ns, one.number
