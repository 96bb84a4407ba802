"""What the department offers, with what and with whom: procedures, rooms, devices, people, hours."""

from __future__ import annotations

from collections.abc import Iterator

from hounsfield.archive.plugins import Key, Kind
from hounsfield.ris_plugin.records.base import Code, Row, beginnings


class Procedure(Row, frozen=True):
    """An entry of the procedure catalog. ``steps``: protocol codes of the scheduled steps, one if empty."""

    code: Code
    modality: str
    body_part: str = ""
    laterality: bool = False  # whether a side has to be said
    duration_min: int = 30
    preparation: str = ""
    preparation_min: int = 0
    cleaning_min: int = 0
    resources: tuple[tuple[str, ...], ...] = ()
    """What it needs at the same time: one of each group; by code of a resource, or ``#KIND:MODALITY``."""
    questions: tuple[str, ...] = ()
    contrast: bool = False
    needs_protocol: bool = True
    steps: tuple[Code, ...] = ()
    subspecialty: str = ""
    charge_codes: tuple[Code, ...] = ()
    active: bool = True


PROCEDURE = Kind(
    "procedure",
    Procedure,
    lambda one: [
        Key("code", f"{one.code.scheme}\0{one.code.value}", unique=True),
        Key("value", one.code.value),
        Key("modality", one.modality),
    ],
)


class Hours(Row, frozen=True):
    """Opening hours: on a ``weekday`` (0 is Monday) from one minute of the day to another."""

    weekday: int
    from_min: int
    to_min: int


class Closure(Row, frozen=True):
    """When it cannot be used although it would be open: a holiday, maintenance, a leave."""

    from_ns: int
    to_ns: int
    why: str = ""


class Resource(Row, frozen=True):
    """A room, a device or a person that is booked. No hours: always open."""

    code: str
    kind: str  # "room", "device" or "person"
    name: str = ""
    modality: str = ""
    ae_title: str = ""
    station_name: str = ""
    location: str = ""
    hours: tuple[Hours, ...] = ()
    breaks: tuple[Hours, ...] = ()
    closures: tuple[Closure, ...] = ()
    buffer_min: int = 0  # between two appointments
    active: bool = True


def _resource_keys(one: Resource) -> Iterator[Key]:
    yield Key("code", one.code, unique=True)
    yield Key("kind", f"{one.kind}:{one.modality}")
    yield Key("kind", f"{one.kind}:")
    if one.ae_title:
        yield Key("ae", one.ae_title)


RESOURCE = Kind("resource", Resource, _resource_keys)


class Person(Row, frozen=True):
    """Somebody who works here or refers to us. ``code``: also the name of the person's bearer token."""

    code: str
    name: str = ""
    roles: tuple[str, ...] = ()
    phone: str = ""
    address: str = ""
    department: str = ""
    subspecialties: tuple[str, ...] = ()
    deputises_for: tuple[str, ...] = ()
    active: bool = True


def _person_keys(one: Person) -> Iterator[Key]:
    yield Key("code", one.code, unique=True)
    for beginning in beginnings(one.name):
        yield Key("name", beginning)
    for role in one.roles:
        yield Key("role", role)


PERSON = Kind("person", Person, _person_keys)
