"""The schedule: appointments that hold resources, scheduled procedure steps that modalities see."""

from __future__ import annotations

from collections.abc import Iterator

from hounsfield.archive.plugins import Key, Kind
from hounsfield.ris_plugin.records.base import Code, Row, seconds

HOLDING = frozenset({"booked", "arrived"})
"""Appointments in these states hold their resources."""
SHOWN = (*sorted(HOLDING), "fulfilled", "no-show")
"""Appointments in these states stand on day sheets; what was cancelled does not."""
LONG_NS = 4 * 3600 * 1_000_000_000
"""What takes longer can be found by that, so that who looks for what is under way looks back no further."""


class Held(Row, frozen=True):
    """A resource that an appointment holds, with what is needed before and after it."""

    resource: str
    from_ns: int
    to_ns: int


class Appointment(Row, frozen=True):
    """A time for a patient. ``state``: of ``schedule.scheduling.MACHINE``. ``as_of``: as of a patient."""

    number: str
    patient: str
    orders: tuple[str, ...]
    state: str
    from_ns: int = 0
    to_ns: int = 0
    holds: tuple[Held, ...] = ()
    placer_number: str = ""
    reason: str = ""
    note: str = ""
    waiting_since_ns: int = 0  # on the waiting list, for an earlier time or any
    wanted_from_ns: int = 0  # not before
    wanted_to_ns: int = 0  # and not after; 0: whenever
    series: str = ""  # the number of the first of appointments that belong together
    gap_minutes_min: int = 0  # of a series: so long, at least, after the one before it ends
    gap_minutes_max: int = 0  # and at most; 0: whenever
    follows: str = ""  # the appointment that this one is to follow up
    as_of_ns: int = 0
    as_of_from: str = ""


def _appointment_keys(one: Appointment) -> Iterator[Key]:
    yield Key("number", one.number, unique=True)
    yield Key("patient", one.patient, seconds(one.from_ns))
    for order in one.orders:
        yield Key("order", order, seconds(one.from_ns))
    if one.placer_number:
        yield Key("placer", one.placer_number)
    yield Key("state", one.state, seconds(one.from_ns))
    if one.to_ns - one.from_ns > LONG_NS:
        yield Key("long", one.state, seconds(one.from_ns))
    if one.series:
        yield Key("series", one.series, seconds(one.from_ns))
    if one.follows:
        yield Key("follows", one.follows, seconds(one.wanted_from_ns))
    if one.waiting_since_ns:
        yield Key("waiting", "", seconds(one.waiting_since_ns))
    if one.state in HOLDING:
        for held in one.holds:
            yield Key("holds", held.resource, seconds(held.from_ns))
    if one.state in SHOWN:
        for held in one.holds:
            yield Key("stands", held.resource, seconds(one.from_ns))


APPOINTMENT = Kind("appointment", Appointment, _appointment_keys)

ON_WORKLIST = frozenset({"scheduled", "arrived", "ready", "started"})
"""Steps in these states are on the modality worklist."""


class Step(Row, frozen=True):
    """A scheduled procedure step (PS3.3 C.4.10). ``state``: of ``ris_plugin.schedule.steps.MACHINE``."""

    number: str  # Scheduled Procedure Step ID (0040,0009)
    order: str
    patient: str
    state: str
    modality: str
    from_ns: int
    to_ns: int = 0
    appointment: str = ""
    accession: str = ""
    study_uid: str = ""
    requested_procedure_id: str = ""
    ae_titles: tuple[str, ...] = ()
    station_name: str = ""
    location: str = ""
    performer: str = ""
    description: str = ""
    codes: tuple[Code, ...] = ()
    preparation: str = ""
    contrast: str = ""
    performed: tuple[str, ...] = ()  # records of performed steps


def _step_keys(one: Step) -> Iterator[Key]:
    yield Key("number", one.number, unique=True)
    yield Key("order", one.order, seconds(one.from_ns))
    yield Key("patient", one.patient, seconds(one.from_ns))
    if one.study_uid:
        yield Key("study", one.study_uid)
    if one.accession:
        yield Key("accession", one.accession)
    if one.appointment:
        yield Key("appointment", one.appointment)
    if one.state in ON_WORKLIST:
        yield Key("worklist", "", seconds(one.from_ns))
        for title in one.ae_titles:
            yield Key("worklist", title, seconds(one.from_ns))
        yield Key("worklist-modality", one.modality, seconds(one.from_ns))
        yield Key("worklist-patient", one.patient, seconds(one.from_ns))


STEP = Kind("step", Step, _step_keys)
