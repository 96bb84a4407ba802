"""What an endpoint is: what it takes, gives and does; HTTP, OpenAPI and commands are made of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cache
from typing import Annotated, Any, Final

import msgspec

from hounsfield.archive.plugins import ORDINAL_MAX, Kind, View
from hounsfield.ris_plugin.actors import Actor
from hounsfield.ris_plugin.api.models import item, moment_ns, show
from hounsfield.ris_plugin.api.sight import DEPARTMENT
from hounsfield.ris_plugin.context import Ris
from hounsfield.ris_plugin.errors import InvalidError
from hounsfield.ris_plugin.patients import resolve
from hounsfield.ris_plugin.records.patients import Patient

__all__ = ["Ask", "Endpoint", "Limit", "Nothing", "Paged", "Why", "page_of", "paged"]

LIMIT_DEFAULT: Final = 50
LIMIT_MAX: Final = 500
"""Records in one answer: a list that somebody reads; more are asked for page by page."""
LOOKED_AT_MAX: Final = 5000
"""Records looked at for one page with a filter; then the page ends, and the next one goes on."""
_CHUNK: Final = 200

Limit = Annotated[int, msgspec.Meta(ge=1, le=LIMIT_MAX)]


class Nothing(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Neither parameters nor a body."""


class Paged(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Parameters of every list."""

    limit: Limit = LIMIT_DEFAULT
    after: str = ""  # the `next` of the page before


class Why(Nothing, frozen=True, kw_only=True):
    """A reason."""

    why: str = ""


@dataclass(slots=True)
class Ask:
    """One request: who asks for what."""

    ris: Ris
    actor: Actor
    path: dict[str, str]
    query: Any
    body: Any
    now_ns: int
    version: int | None = None
    """Of If-Match."""
    noted: list[tuple[str, str]] = field(default_factory=list)
    """What the journal notes of a look: what it was, at which patient."""

    def open(self, view: View, patient_id: str) -> tuple[str, Patient]:
        """Whose record is opened: the patient, or whom it was merged into. That a confidential one was opened
        is noted, by reads and changes alike; a line of a list is none. UnknownError."""
        found = resolve(view, patient_id)
        if found[1].confidential:
            self.noted.append(("confidential-seen", found[0]))
        return found

    def ns(self, when: datetime | None) -> int:
        """A moment that was given."""
        return moment_ns(when, self.ris.zone)

    def stretch(self, since: datetime | None, until: datetime | None) -> tuple[int, int]:
        """From one moment to another: from the beginning of today, and for a day as clocks have it, when
        they are not given."""
        zone = self.ris.zone
        begin = since or self.ris.local(self.now_ns).replace(hour=0, minute=0, second=0, microsecond=0)
        local = begin.astimezone(zone) if begin.tzinfo is not None else begin.replace(tzinfo=zone)
        end = until or local + timedelta(days=1)  # of what clocks show, not of 24 hours
        return self.ns(begin), self.ns(end)

    def show(self, row: msgspec.Struct) -> Any:
        """A part of a record as it is shown."""
        return show(row, self.ris.zone)

    def item(self, view: View, kind: Kind[Any], record_id: str, row: Any, **more: Any) -> Any:
        """A record as it is shown, with its id and version."""
        return show(
            row,
            self.ris.zone,
            item(kind.type, *more),  # type: ignore[arg-type]
            id=record_id,
            version=view.version(kind, record_id),
            **more,
        )


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One operation. ``run`` is given a View for a GET, else the Change of a transaction; and an Ask."""

    name: str
    """Of the operation: OpenAPI's operationId, and what commands call."""
    method: str
    path: str
    tag: str
    summary: str
    run: Callable[[Any, Ask], Any]
    answer: Any = None
    """Its type; None: nothing (204)."""
    query: type[msgspec.Struct] = Nothing
    body: Any = None
    status: int = 200
    location: str = ""
    """Of 201: the path below which what was made lies, where it is another one."""
    roles: tuple[str, ...] = DEPARTMENT
    """Who may ask at all; what the action itself requires comes on top of it."""
    kind: Kind[Any] | None = None
    """Whose version If-Match names: the record of the path's last parameter."""
    later: Callable[[Ask, Any], Awaitable[Any]] | None = None
    """Of a GET: what the archive has to be asked for, given what ``run`` answered; the answer then."""
    must_match: bool = False
    """Whether If-Match has to be there: two may edit it."""

    @property
    def is_read(self) -> bool:
        """Whether it changes nothing."""
        return self.method == "GET"

    @property
    def parameters(self) -> list[str]:
        """Of the path."""
        return [part[1:-1] for part in self.path.split("/") if part.startswith("{")]


@cache
def page_of(kind: Any) -> type[msgspec.Struct]:
    """The struct of one page of a list."""
    return msgspec.defstruct(
        f"{kind.__name__}Page",
        [("items", tuple[kind, ...]), ("next", str, "")],
        kw_only=True,
        frozen=True,
        namespace={"__doc__": None},
    )


def paged(
    ask: Ask,
    view: View,
    kind: Kind[Any],
    by: tuple[str, str] | Sequence[tuple[str, str]],
    shown: Callable[[str, Any], Any],
    *,
    keep: Callable[[Any], bool] = lambda row: True,  # noqa: ARG005
    answer: Any,
) -> Any:
    """A page of the records with the key ``by`` (lookup, text), by ordinal and id; ``shown`` makes items.

    Several keys: first all records of the first one. InvalidError for an ``after`` that was not told.
    """
    keys = [by] if isinstance(by[0], str) else list(by)
    items: list[Any] = []
    last = ""
    for looked_at, (place, record_id, row) in enumerate(_from(view, kind, keys, ask.query.after)):
        if len(items) == ask.query.limit or looked_at == LOOKED_AT_MAX:
            return page_of(answer)(items=tuple(items), next=last)
        last = place
        if keep(row):
            items.append(shown(record_id, row))
    return page_of(answer)(items=tuple(items))


def _from(view: View, kind: Kind[Any], keys: Sequence[Any], after: str) -> Iterator[tuple[str, str, Any]]:
    """Records after a place, each with its place."""
    number, ordinal, record_id = _place(after)
    for at in range(number, len(keys)):
        for place, one, row in _of_key(view, kind, keys[at], ordinal, record_id):
            yield f"{at}-{place}", one, row
        ordinal, record_id = 0, ""


def _of_key(
    view: View, kind: Kind[Any], by: tuple[str, str], ordinal: int, record_id: str
) -> Iterator[tuple[str, str, Any]]:
    lookup, text = by
    size = _CHUNK
    while True:
        ids = view.ids(kind, lookup, text, at_least=ordinal, limit=size)
        told = False
        for one in ids:
            row = view.get(kind, one)
            if row is None:
                continue
            at = next(key.ordinal for key in kind.keys(row) if key.lookup == lookup and key.text == text)
            if (at, one) <= (ordinal, record_id):
                continue
            ordinal, record_id, told = at, one, True
            yield f"{at}-{one}", one, row
        if len(ids) < size:
            return
        size = _CHUNK if told else size * 4  # so many have one ordinal


def _place(after: str) -> tuple[int, int, str]:
    if not after:
        return 0, 0, ""
    number, _, rest = after.partition("-")
    ordinal, _, record_id = rest.partition("-")
    if not (_is_number(number) and _is_number(ordinal) and record_id):
        raise InvalidError("`after` is the `next` of the page before", "after")
    return int(number), int(ordinal), record_id


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 20 and int(text) <= ORDINAL_MAX
