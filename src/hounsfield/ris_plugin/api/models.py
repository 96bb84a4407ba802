"""Records as the API shows and takes them: moments as RFC 3339, everything else as it is kept.

A record's struct is the one description there is: from it are made the struct that is written and read as
JSON, the schema in the OpenAPI document, and the way between them.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any, Final, TypeVar, Union, get_args, get_origin
from zoneinfo import ZoneInfo

import msgspec

from hounsfield.ris_plugin.records.base import NS

__all__ = ["changes_of", "given", "item", "model", "moment", "moment_ns", "new_of", "row_of", "show"]

Row = TypeVar("Row", bound=msgspec.Struct)

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
_SUFFIX: Final = "_ns"
_HIDDEN: Final = frozenset({"said", "as_of_ns", "as_of_from"})
"""How late messages are told from new ones: nobody's to see or to give."""
_ROWS: Final[dict[type[msgspec.Struct], type[msgspec.Struct]]] = {}


def moment(moment_ns: int, zone: ZoneInfo) -> datetime | None:
    """A moment in the department's time zone; None for none."""
    if not moment_ns:
        return None
    whole, rest = divmod(moment_ns, NS)
    return datetime.fromtimestamp(whole, zone) + timedelta(microseconds=rest // 1000)


def moment_ns(when: datetime | None, zone: ZoneInfo) -> int:
    """A moment as it is kept. Without an offset it is the department's time."""
    if when is None:
        return 0
    aware = when if when.tzinfo is not None else when.replace(tzinfo=zone)
    return (aware - _EPOCH) // _MICROSECOND * 1000


# ---------------------------------------------------------------- structs


@cache
def model(row: type[msgspec.Struct]) -> type[msgspec.Struct]:
    """The struct by which records of a type are shown and taken: fields ``…_ns`` are moments without it."""
    made = msgspec.defstruct(
        row.__name__,
        list(_fields(row)),
        kw_only=True,
        frozen=True,
        forbid_unknown_fields=True,
        namespace={"__doc__": None},
    )
    _ROWS[made] = row
    return made


MORE: Final[dict[str, Any]] = {
    "actions": tuple[str, ...],
    "patient_name": str,
    "patient_number": str,
    "birth_day": str,
}
"""What items may have beside their record. ``actions``: what who asks may do with it now."""


@cache
def item(row: type[msgspec.Struct], *more: str) -> type[msgspec.Struct]:
    """As :func:`model`, with the record's id and version, and some of :data:`MORE`, before its own fields."""
    head: list[Any] = [("id", str), ("version", int), *((name, MORE[name]) for name in more)]
    return msgspec.defstruct(
        f"{row.__name__}{'Item' if more else 'Entry'}",
        [*head, *_fields(row)],
        kw_only=True,
        frozen=True,
        namespace={"__doc__": None},
    )


@cache
def changes_of(row: type[msgspec.Struct], *names: str) -> type[msgspec.Struct]:
    """A struct for changes of some fields of a record: those that are given."""
    return msgspec.defstruct(
        f"{row.__name__}Changes",
        [(name, _unset(kind), msgspec.UNSET) for name, kind in _some(row, names)],
        kw_only=True,
        frozen=True,
        forbid_unknown_fields=True,
        namespace={"__doc__": None},
    )


@cache
def new_of(row: type[msgspec.Struct], *without: str) -> type[msgspec.Struct]:
    """A struct for a new record: all of its fields but some, which are not the client's to give."""
    made = msgspec.defstruct(
        f"New{row.__name__.removeprefix('New')}",
        [field for field in _fields(row) if field[0] not in without],
        kw_only=True,
        frozen=True,
        forbid_unknown_fields=True,
        namespace={"__doc__": None},
    )
    _ROWS[made] = row
    return made


def _fields(row: type[msgspec.Struct]) -> Iterable[Any]:
    hints = typing.get_type_hints(row)
    for field in msgspec.structs.fields(row):
        if hints[field.name] is bytes or field.name in _HIDDEN:
            continue
        name, kind, is_moment = _named(field.name, hints[field.name])
        if field.required and not is_moment:
            yield name, kind
        elif is_moment:
            yield (name, kind, None) if not field.required else (name, datetime)
        elif field.default_factory is not msgspec.NODEFAULT:
            yield name, kind, msgspec.field(default_factory=field.default_factory)
        else:
            default = field.default
            if isinstance(default, msgspec.Struct):
                default = model(type(default))()
            yield name, kind, default


def _some(row: type[msgspec.Struct], names: Iterable[str]) -> Iterable[tuple[str, Any]]:
    hints = typing.get_type_hints(row)
    for name in names:
        shown, kind, _ = _named(name, hints[name])
        yield shown, kind


def _named(name: str, kind: Any) -> tuple[str, Any, bool]:
    if name.endswith(_SUFFIX):
        return name.removesuffix(_SUFFIX), datetime | None, True
    return name, _shown_type(kind), False


def _shown_type(kind: Any) -> Any:
    origin = get_origin(kind)
    if origin is tuple:
        return tuple[tuple(one if one is ... else _shown_type(one) for one in get_args(kind))]  # type: ignore[misc]
    if origin in {Union, types.UnionType}:
        return Union[tuple(_shown_type(one) for one in get_args(kind))]  # noqa: UP007
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return model(kind)
    return kind


def _unset(kind: Any) -> Any:
    return Union[kind, msgspec.UnsetType]  # noqa: UP007


# ---------------------------------------------------------------- there and back


def show(row: msgspec.Struct, zone: ZoneInfo, kind: type[msgspec.Struct] | None = None, **more: Any) -> Any:
    """A record as it is shown. ``kind``: of :func:`item`, with what is given besides."""
    values = {
        shown: moment(getattr(row, name), zone) if is_moment else _show(getattr(row, name), zone)
        for name, shown, is_moment in _names(type(row))
    }
    return (kind or model(type(row)))(**more, **values)


def _show(value: Any, zone: ZoneInfo) -> Any:
    if isinstance(value, msgspec.Struct):
        return show(value, zone)
    if isinstance(value, tuple):
        return tuple(_show(one, zone) for one in value)
    return value


@cache
def _names(row: type[msgspec.Struct]) -> tuple[tuple[str, str, bool], ...]:
    hints = typing.get_type_hints(row)
    return tuple(
        (name, name.removesuffix(_SUFFIX), name.endswith(_SUFFIX))
        for name in row.__struct_fields__
        if hints[name] is not bytes and name not in _HIDDEN
    )


def row_of(asked: msgspec.Struct, zone: ZoneInfo) -> Any:
    """The record that was given as :func:`model` or :func:`new_of` describe it."""
    row = _ROWS[type(asked)]
    values = {
        name: moment_ns(getattr(asked, shown), zone) if is_moment else _kept(getattr(asked, shown), zone)
        for name, shown, is_moment in _names(row)
        if shown in asked.__struct_fields__
    }
    return row(**values)


def given(asked: msgspec.Struct, zone: ZoneInfo) -> dict[str, Any]:
    """The changes that were given, as keywords of the record's fields."""
    changes: dict[str, Any] = {}
    hints = typing.get_type_hints(type(asked))
    for name in asked.__struct_fields__:
        value = getattr(asked, name)
        if value is msgspec.UNSET:
            continue
        if datetime in get_args(hints[name]):
            changes[name + _SUFFIX] = moment_ns(value, zone)
        else:
            changes[name] = _kept(value, zone)
    return changes


def _kept(value: Any, zone: ZoneInfo) -> Any:
    if isinstance(value, msgspec.Struct):
        return row_of(value, zone)
    if isinstance(value, tuple):
        return tuple(_kept(one, zone) for one in value)
    return value
