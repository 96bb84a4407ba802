"""What the department offers, over the API: procedures, rooms and devices, people; and who one is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import msgspec

from hounsfield.archive.plugins import Change, Kind, View
from hounsfield.ris_plugin import catalog
from hounsfield.ris_plugin.api import sight
from hounsfield.ris_plugin.api.endpoints import Ask, Endpoint, Nothing, page_of
from hounsfield.ris_plugin.api.models import item, model, row_of
from hounsfield.ris_plugin.records.base import BEGINNING_CHARACTERS_MAX, folded
from hounsfield.ris_plugin.records.catalog import (
    PERSON,
    PROCEDURE,
    RESOURCE,
    Person,
    Procedure,
    Resource,
)

__all__ = ["ENDPOINTS"]

TAG: Final = "Catalog"
ProcedureItem: Final[Any] = item(Procedure)
ResourceItem: Final[Any] = item(Resource)
PersonItem: Final[Any] = item(Person)
ENTRIES_MAX: Final = 5000
"""Entries of a catalog in one answer: it is read whole."""


class Me(msgspec.Struct, frozen=True, kw_only=True):
    """Who asks, as the RIS knows him."""

    person: str
    name: str
    roles: tuple[str, ...]
    subspecialties: tuple[str, ...]


class Procedures(Nothing, frozen=True, kw_only=True):
    """Of one modality, or all."""

    modality: str = ""
    inactive: bool = False


class Resources(Nothing, frozen=True, kw_only=True):
    """``kind``: room, device or person."""

    kind: str = ""
    modality: str = ""
    inactive: bool = False


class People(Nothing, frozen=True, kw_only=True):
    """``name``: the beginning of one of its words."""

    name: str = ""
    role: str = ""
    inactive: bool = False


def me(view: View, ask: Ask) -> Me:
    """Who asks."""
    found = catalog.person(view, ask.actor.person)
    person = found[1] if found is not None else Person(code=ask.actor.person)
    return Me(
        person=ask.actor.person,
        name=person.name,
        roles=tuple(sorted(ask.actor.roles)),
        subspecialties=person.subspecialties,
    )


def procedures(view: View, ask: Ask) -> Any:
    """The procedure catalog."""
    q: Procedures = ask.query
    return _page(
        view, ask, PROCEDURE, ProcedureItem,
        lambda one: (q.inactive or one.active) and (not q.modality or one.modality == q.modality),
        lambda one: (one.modality, one.code.value),
    )  # fmt: skip


def resources(view: View, ask: Ask) -> Any:
    """Rooms, devices and people that are booked."""
    q: Resources = ask.query
    return _page(
        view, ask, RESOURCE, ResourceItem,
        lambda one: (
            (q.inactive or one.active)
            and (not q.kind or one.kind == q.kind)
            and (not q.modality or one.modality == q.modality)
        ),
        lambda one: one.code,
    )  # fmt: skip


def people(view: View, ask: Ask) -> Any:
    """Who works here or refers to us."""
    q: People = ask.query
    beginning = folded(q.name)[:BEGINNING_CHARACTERS_MAX]
    wanted = set(view.ids(PERSON, "name", beginning)) if beginning else None
    return _page(
        view, ask, PERSON, PersonItem,
        lambda one: (q.inactive or one.active) and (not q.role or q.role in one.roles),
        lambda one: (folded(one.name), one.code),
        wanted,
    )  # fmt: skip


def _page(  # noqa: PLR0917
    view: View,
    ask: Ask,
    kind: Kind[Any],
    answer: Any,
    keep: Callable[[Any], bool],
    order: Callable[[Any], Any],
    wanted: set[str] | None = None,
) -> Any:
    found = [
        (key, one)
        for key, one in view.every(kind, limit=ENTRIES_MAX)
        if keep(one) and (wanted is None or key in wanted)
    ]
    found.sort(key=lambda each: order(each[1]))
    return page_of(answer)(items=tuple(ask.item(view, kind, *each) for each in found))


def _putting(kind: Kind[Any], put: Callable[..., str]) -> Callable[[Change, Ask], Any]:
    def run(change: Change, ask: Ask) -> Any:
        record_id = put(change, ask.actor, row_of(ask.body, ask.ris.zone))
        held = change.get(kind, record_id)
        assert held is not None
        return ask.item(change, kind, record_id, held)

    return run


ENDPOINTS: Final = (
    Endpoint("GetMe", "GET", "/me", TAG, "Who asks, and in which roles", me, Me, roles=sight.ANYBODY),
    Endpoint(
        "ListProcedures", "GET", "/procedures", TAG, "The procedure catalog",
        procedures, page_of(ProcedureItem), Procedures, roles=sight.ANYBODY,
    ),
    Endpoint(
        "PutProcedure", "PUT", "/procedures", TAG, "Add a procedure, or change the one of its code",
        _putting(PROCEDURE, catalog.put_procedure), ProcedureItem, body=model(Procedure),
    ),
    Endpoint(
        "ListResources", "GET", "/resources", TAG, "Rooms, devices and people that are booked",
        resources, page_of(ResourceItem), Resources,
    ),
    Endpoint(
        "PutResource", "PUT", "/resources", TAG,
        "Add a room, device or person, or change the one of its code",
        _putting(RESOURCE, catalog.put_resource), ResourceItem, body=model(Resource),
    ),
    Endpoint(
        "ListPeople", "GET", "/people", TAG, "Who works here or refers to us",
        people, page_of(PersonItem), People,
    ),
    Endpoint(
        "PutPerson", "PUT", "/people", TAG, "Add a person, or change the one of the code",
        _putting(PERSON, catalog.put_person), PersonItem, body=model(Person),
    ),
)  # fmt: skip
