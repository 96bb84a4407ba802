"""What the department offers, with what and with whom: looked up by code, changed by administrators."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Final, TypeVar

import msgspec
from msgspec import structs

from hounsfield.archive.plugins import Change, Kind, View
from hounsfield.ris_plugin.actors import PEOPLES_ROLES, Actor, Role
from hounsfield.ris_plugin.errors import InvalidError, UnknownError
from hounsfield.ris_plugin.records.base import Code
from hounsfield.ris_plugin.records.catalog import (
    PERSON,
    PROCEDURE,
    RESOURCE,
    Hours,
    Person,
    Procedure,
    Resource,
)

__all__ = [
    "candidates",
    "check_person",
    "check_procedure",
    "check_resource",
    "is_of",
    "person",
    "procedure",
    "procedure_of",
    "put_person",
    "put_procedure",
    "put_resource",
    "resource",
]

KINDS_OF_RESOURCES: Final = frozenset({"room", "device", "person"})
DURATION_MIN_MAX: Final = 24 * 60
"""What holds a room longer than a day is not an appointment."""
DAY_MIN: Final = 24 * 60
_ANY_OF = re.compile(r"#(room|device|person):([A-Z0-9_]*)")
_WORD = re.compile(r"[A-Z0-9_][A-Z0-9_ ]{0,15}")  # VR CS
_TITLE = re.compile(r"(?! *$)[ -\[\]-~]{1,16}")  # PS3.5 6.2, VR AE

Row = TypeVar("Row", bound=msgspec.Struct)


# ---------------------------------------------------------------- looking up


def procedure(view: View, value: str, scheme: str = "") -> tuple[str, Procedure] | None:
    """The active procedure of a code; of several schemes', the one asked for, else any."""
    for record_id, one in view.find(PROCEDURE, "value", value, limit=8):
        if one.active and (not scheme or one.code.scheme == scheme):
            return record_id, one
    return None


def procedure_of(view: View, value: str, scheme: str) -> Procedure:
    """The procedure of an order, active or not. UnknownError."""
    found = view.first(PROCEDURE, "code", f"{scheme}\0{value}")
    if found is None:
        raise UnknownError("the catalog has no procedure of this code any more")
    return found[1]


def resource(view: View, code: str) -> tuple[str, Resource]:
    """The resource of a code. UnknownError."""
    found = view.first(RESOURCE, "code", code)
    if found is None:
        raise UnknownError(f"there is no resource {code!r}")
    return found


def person(view: View, code: str) -> tuple[str, Person] | None:
    """The active person of a code."""
    found = view.first(PERSON, "code", code)
    return found if found is not None and found[1].active else None


def candidates(view: View, group: tuple[str, ...]) -> Iterator[tuple[str, Resource]]:
    """The active resources that a group of a procedure's needs names, in its order."""
    seen: set[str] = set()
    for name in group:
        any_of = _ANY_OF.fullmatch(name)
        if any_of is None:
            found = [resource(view, name)]
        else:
            found = list(view.find(RESOURCE, "kind", f"{any_of[1]}:{any_of[2]}"))
            found.sort(key=lambda one: one[1].code)
        for record_id, one in found:
            if one.active and record_id not in seen:
                seen.add(record_id)
                yield record_id, one


def is_of(one: Resource, name: str) -> bool:
    """Whether a resource is what a name of a group says: its code, or ``#KIND:MODALITY``."""
    any_of = _ANY_OF.fullmatch(name)
    if any_of is None:
        return one.code == name
    return one.kind == any_of[1] and any_of[2] in ("", one.modality)


# ---------------------------------------------------------------- changing


def put_procedure(change: Change, actor: Actor, new: Procedure) -> str:
    """Add a procedure, or change the one of its code; its id. InvalidError."""
    actor.require(Role.ADMINISTRATOR, what="changing the catalog")
    check_procedure(new, lambda code: bool(change.ids(RESOURCE, "code", code, limit=1)))
    return _put(change, actor, PROCEDURE, f"{new.code.scheme}\0{new.code.value}", new)


def check_procedure(new: Procedure, is_resource: Callable[[str], bool]) -> None:
    """Raise InvalidError for a procedure that cannot be, UnknownError when it needs what there is not."""
    if not new.code.value.strip() or not new.modality.strip():
        raise InvalidError("a procedure has a code and a modality", "code")
    for field, codes in (("code", (new.code,)), ("steps", new.steps)):
        for code in codes:
            _check_code(code, field)
    _check_word(new.modality, "modality")
    _check_word(new.body_part, "body_part")
    if not 0 < new.duration_min <= DURATION_MIN_MAX:
        raise InvalidError(f"a procedure takes 1 to {DURATION_MIN_MAX} minutes", "duration_min")
    if not (0 <= new.preparation_min <= DURATION_MIN_MAX and 0 <= new.cleaning_min <= DURATION_MIN_MAX):
        raise InvalidError("preparing and cleaning take no time, or some minutes", "preparation_min")
    for group in new.resources:
        for name in group:
            if not _ANY_OF.fullmatch(name):
                if name.startswith("#"):
                    raise InvalidError(
                        f"{name!r} is no #KIND:MODALITY; kinds are room, device, person", "resources"
                    )
                if not is_resource(name):
                    raise UnknownError(f"there is no resource {name!r}")
        if not group:
            raise InvalidError("a group of resources names at least one", "resources")


def put_resource(change: Change, actor: Actor, new: Resource) -> str:
    """Add a room, device or person that is booked, or change the one of its code; its id. InvalidError."""
    actor.require(Role.ADMINISTRATOR, what="changing resources")
    check_resource(new)
    return _put(change, actor, RESOURCE, new.code, ordered(new))


def check_resource(new: Resource) -> None:
    """Raise InvalidError for a resource that cannot be."""
    if not new.code.strip() or new.code.startswith("#"):
        raise InvalidError("a resource has a code that does not begin with #", "code")
    if new.kind not in KINDS_OF_RESOURCES:
        raise InvalidError(f"a resource is one of {', '.join(sorted(KINDS_OF_RESOURCES))}", "kind")
    _check_word(new.modality, "modality")
    if new.ae_title and not _TITLE.fullmatch(new.ae_title):
        raise InvalidError("an AE title has 1 to 16 characters and no backslash", "ae_title")
    for name, of in (("hours", new.hours), ("breaks", new.breaks)):
        _check_hours(of, name)
    if any(one.to_ns <= one.from_ns for one in new.closures):
        raise InvalidError("a closure ends after it begins", "closures")
    if not 0 <= new.buffer_min <= DURATION_MIN_MAX:
        raise InvalidError("a buffer is no time, or some minutes", "buffer_min")


def ordered(one: Resource) -> Resource:
    """A resource whose hours and closures are in order, so that what is the same is equal."""

    def week(hours: tuple[Hours, ...]) -> tuple[Hours, ...]:
        return tuple(sorted(set(hours), key=lambda each: (each.weekday, each.from_min, each.to_min)))

    closures = sorted(set(one.closures), key=lambda each: (each.from_ns, each.to_ns, each.why))
    return structs.replace(one, hours=week(one.hours), breaks=week(one.breaks), closures=tuple(closures))


def put_person(
    change: Change, actor: Actor, new: Person, is_person: Callable[[str], bool] | None = None
) -> str:
    """Add a person, or change the one of the code; the id. ``is_person``: whom one may deputise for, else who
    is there. InvalidError."""
    actor.require(Role.ADMINISTRATOR, what="changing people")
    check_person(new, is_person or (lambda code: bool(change.ids(PERSON, "code", code, limit=1))))
    return _put(change, actor, PERSON, new.code, new)


def check_person(new: Person, is_person: Callable[[str], bool]) -> None:
    """Raise InvalidError for a person that cannot be, and who deputises for somebody that there is not."""
    if not new.code.strip():
        raise InvalidError("a person has a code", "code")
    unknown = set(new.roles) - PEOPLES_ROLES
    if unknown:
        raise InvalidError(
            f"no role {min(unknown)!r} for people; there are {', '.join(sorted(PEOPLES_ROLES))}", "roles"
        )
    for code in new.deputises_for:
        if code == new.code or not is_person(code):
            what = "nobody deputises for himself" if code == new.code else f"there is no person {code[:40]!r}"
            raise InvalidError(what, "deputises_for")


def _put(change: Change, actor: Actor, kind: Kind[Row], code: str, new: Row) -> str:
    found = change.first(kind, "code", code)
    record_id = change.new_id() if found is None else found[0]
    if found is None or found[1] != new:
        change.put(kind, record_id, new)
        change.say("catalog-changed", {"kind": kind.name, "record": record_id, "actor": actor.person})
    return record_id


def _check_word(text: str, field: str) -> None:
    if text and not _WORD.fullmatch(text):
        raise InvalidError(
            f"{text[:40]!r} has not 1 to 16 capital letters, digits, blanks and _ (VR CS), such as CT",
            field,
        )


def _check_code(code: Code, field: str) -> None:
    for text, characters_max in ((code.value, 16), (code.scheme, 16), (code.meaning, 64)):
        if len(text) > characters_max or "\\" in text:
            raise InvalidError(
                f"{text[:40]!r} has more than {characters_max} characters, or a backslash (PS3.3 8.8)",
                field,
            )


def _check_hours(hours: tuple[Hours, ...], field: str) -> None:
    for one in hours:
        if not 0 <= one.weekday <= 6 or not 0 <= one.from_min < one.to_min <= DAY_MIN:
            raise InvalidError(
                "hours are of a weekday, 0 (Monday) to 6, from one minute of the day to a later one",
                field,
            )
