"""What the journal has for each route: which objects, in which order.

Of a route of what was *received* every object stored, in the order of the commits. Of a route of *stable*
studies, when a study is announced as such, what was stored of it since it was announced before. An object is
looked up when it is read here, so that rules see it as it is shown: with its corrections, and not at all when
it was deleted or rejected meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from hounsfield.archive.dicom.rules import Rule
from hounsfield.archive.engine.errors import DamagedError
from hounsfield.archive.engine.records import Records
from hounsfield.archive.engine.stable import EVENT_STABLE
from hounsfield.archive.engine.stores import Stores
from hounsfield.archive.engine.types import Instance
from hounsfield.archive.index.catalog import Catalog
from hounsfield.archive.index.corrections import is_hidden
from hounsfield.archive.index.indexing import EVENT_CONFLICT, EVENT_STORED
from hounsfield.archive.index.route_lanes import Position
from hounsfield.archive.index.rows import Attributes, Event, InstanceRow, SourceRow
from hounsfield.archive.index.tables import INSTANCE, STUDY_ID_BYTES
from hounsfield.storage_backends.api import Snapshot

EVENTS_PER_READ: Final = 32
OBJECTS_PER_READ: Final = 256
"""Objects looked up under one snapshot, and those of the last event: their records may have to be read."""
EVENTS_PER_RANGE_READ: Final = 500  # of a study's past, where nothing is looked up
GATHERED_MAX: Final = 100_000
"""Objects of studies that are not yet stable, kept in memory: 30 MB. Beyond, the journal is read again."""

_STORED: Final = frozenset({EVENT_STORED, EVENT_CONFLICT})


class Waiting(NamedTuple):
    """An object that is to be sent: its place in the journal, its names, and what decides how it is sent."""

    sequence: int
    member: int
    study_uid: str
    series_uid: str
    sop_uid: str
    record_id: bytes
    received_ns: int
    sop_class_uid: str
    transfer_syntax_uid: str

    @property
    def position(self) -> Position:
        return self.sequence, self.member


@dataclass(slots=True)
class Want:
    """What is wanted of the journal for one lane, after the event ``read_to``."""

    rule: Rule
    stable: bool
    read_to: int
    skip_to: int = 0
    through_ns: int = 0
    found: list[Waiting] = field(default_factory=list)

    def takes(self, sequence: int, received_ns: int) -> bool:
        """Whether an object of that event was not done with before this journal was made."""
        return sequence > self.skip_to or received_ns >= self.through_ns


class _Subject:
    """A stored object as rules see it. How it came is read from its record, when that is asked for."""

    def __init__(self, found: _Found, source: Callable[[InstanceRow], SourceRow]) -> None:
        self._found = found
        self._read = source
        self._source: SourceRow | None = None

    def text(self, tag: int) -> str:
        found = self._found
        for attributes in (found.row.attributes, found.series, found.study):
            text = attributes.get(tag)
            if text is not None:
                return text
        return ""

    @property
    def sop_class_uid(self) -> str:
        return self._found.row.sop_class_uid

    @property
    def transfer_syntax_uid(self) -> str:
        return self._found.row.transfer_syntax_uid

    @property
    def source(self) -> SourceRow:
        if self._source is None:
            self._source = self._read(self._found.row)
        return self._source

    @property
    def protocol(self) -> str:
        return self.source.protocol

    @property
    def calling_ae(self) -> str:
        return self.source.calling_ae

    @property
    def called_ae(self) -> str:
        return self.source.called_ae

    @property
    def address(self) -> str:
        return self.source.address


class _Found(NamedTuple):
    study_uid: str
    series_uid: str
    row: InstanceRow
    study: Attributes
    series: Attributes


_Member = tuple[int, str, str, bytes]
"""Event, series, SOP Instance UID, record."""


class RouteReading:
    """Reads the journal for all lanes at once. Blocking; one thread at a time."""

    def __init__(self, stores: Stores, records: Records) -> None:
        self._store = stores.store
        self._catalog = stores.catalog
        self._journal = stores.journal
        self._records = records
        self._gathered = _Gathered()

    def read(self, wants: Sequence[Want]) -> bool:
        """Read on for the want that is furthest behind, and for those that come by; whether there was more.

        What is found is appended to each want, whose ``read_to`` moves.
        """
        start = min(want.read_to for want in wants)
        with self._store.snapshot() as snapshot:
            events = self._journal.read(snapshot, start, EVENTS_PER_READ)
            if not events:
                return False
            end = events[-1][0]
            here = [want for want in wants if want.read_to < end]
            lookup = _Lookup(self._catalog, snapshot)
            gathers = any(want.stable for want in wants)
            for sequence, event in events:
                if lookup.count >= OBJECTS_PER_READ:
                    break
                end = sequence
                if gathers:
                    self._gathered.note(sequence, event)
                self._event(snapshot, lookup, sequence, event, [w for w in here if w.read_to < sequence])
        for want in here:
            want.read_to = max(want.read_to, end)
        return len(events) == EVENTS_PER_READ or end < events[-1][0]

    def _event(
        self, snapshot: Snapshot, lookup: _Lookup, sequence: int, event: Event, wants: list[Want]
    ) -> None:
        study_uid = event.body.get("study")
        if not study_uid or not isinstance(study_uid, str) or is_hidden(study_uid):
            return
        is_stored = event.kind in _STORED
        wants = [want for want in wants if want.stable is not is_stored]
        if not wants or not (is_stored or event.kind == EVENT_STABLE):
            return
        if is_stored:
            members = _members(sequence, event)
        else:
            members = self._since(snapshot, study_uid, int(event.body.get("since", sequence)), sequence)
        for number, (stored_in, series_uid, sop_uid, record_id) in enumerate(members):
            found = lookup.find(study_uid, series_uid, sop_uid, record_id)
            if found is None:
                continue
            row = found.row
            subject = _Subject(found, self._records.source)
            waiting = Waiting(
                sequence, number, found.study_uid, found.series_uid, sop_uid, record_id, row.received_ns,
                row.sop_class_uid, row.transfer_syntax_uid,
            )  # fmt: skip
            for want in wants:
                if want.takes(stored_in, row.received_ns) and _matches(want.rule, subject):
                    want.found.append(waiting)

    def _since(self, snapshot: Snapshot, study_uid: str, since: int, until: int) -> list[_Member]:
        """What was stored of a study since it was announced before, but not before event ``since``."""
        known = self._gathered.of(study_uid, since, until)
        if known is not None:
            return known
        found: list[_Member] = []
        after = since - 1
        while True:
            events = self._journal.read(snapshot, after, EVENTS_PER_RANGE_READ)
            for sequence, event in events:
                if sequence >= until:
                    return found
                after = sequence
                if event.body.get("study") == study_uid:
                    if event.kind == EVENT_STABLE:
                        found = []
                    elif event.kind in _STORED:
                        found += _members(sequence, event)
            if not events:
                return found

    def where(self, waiting: Waiting, to: str = "") -> Instance | None:
        """The object as it is now, wherever it was moved to; None when it is gone or another is served.

        And None when it came from ``to``: it is not sent back.
        """
        with self._store.snapshot() as snapshot:
            found = _Lookup(self._catalog, snapshot).find(
                waiting.study_uid, waiting.series_uid, waiting.sop_uid, waiting.record_id
            )
        if found is None or (to and self._sender(found.row) == to):
            return None
        return Instance(found.study_uid, found.series_uid, found.row)

    def _sender(self, row: InstanceRow) -> str:
        try:
            return self._records.source(row).calling_ae.strip()
        except DamagedError:
            return ""  # it goes on its way, and is set aside there as what it is


def _matches(rule: Rule, subject: _Subject) -> bool:
    try:
        return rule.matches(subject)
    except DamagedError:
        return True  # it goes on its way, and is set aside there as what it is


def _members(sequence: int, event: Event) -> list[_Member]:
    return [(sequence, series, sop, record) for series, sop, record in event.body["instances"]]


class _Gathered:
    """What was stored of studies that are not announced as stable yet: of the journal from a place on."""

    def __init__(self) -> None:
        self._after = 0
        self._to = 0
        self._count = 0
        self._open: dict[str, list[_Member]] = {}

    def note(self, sequence: int, event: Event) -> None:
        """Hear of an event; those that were heard already, by who was ahead, change nothing."""
        if sequence <= self._to and sequence > self._after:
            return
        if sequence != self._to + 1 or self._count > GATHERED_MAX:
            self._open.clear()
            self._after, self._count = sequence - 1, 0
        self._to = sequence
        study: Any = event.body.get("study")
        if event.kind in _STORED:
            members = _members(sequence, event)
            self._open.setdefault(study, []).extend(members)
            self._count += len(members)

    def of(self, study_uid: str, since: int, until: int) -> list[_Member] | None:
        """What was stored of a study, now that it is announced; None when not all of it was heard."""
        if since <= self._after or until != self._to:
            return None
        members = self._open.pop(study_uid, [])
        self._count -= len(members)
        return members


class _Lookup:
    """Objects by name, as one snapshot has them; what is said of study and series is looked up once."""

    def __init__(self, catalog: Catalog, snapshot: Snapshot) -> None:
        self._catalog = catalog
        self._snapshot = snapshot
        self._studies: dict[str, Attributes] = {}
        self._series: dict[tuple[str, str], Attributes] = {}
        self.count = 0

    def find(self, study_uid: str, series_uid: str, sop_uid: str, record_id: bytes) -> _Found | None:
        """The object of that record, if it is the one that is served."""
        self.count += 1
        row = self._catalog.instance(self._snapshot, study_uid, series_uid, sop_uid)
        if row is None:
            return self._moved(sop_uid, record_id)
        if row.location.record_id != record_id:
            return None
        return self._found(study_uid, series_uid, row)

    def _moved(self, sop_uid: str, record_id: bytes) -> _Found | None:
        catalog, snapshot = self._catalog, self._snapshot
        for series_key in catalog.places(snapshot, "instance", sop_uid):
            key = series_key + catalog.sop_hash(sop_uid)
            held = snapshot.get(INSTANCE, key)
            row = None if held is None else catalog.open_row(INSTANCE, key, held, InstanceRow)
            if row is None or row.location.record_id != record_id:
                continue
            study = catalog.study_by_id(snapshot, series_key[:STUDY_ID_BYTES])
            series = catalog.series_by_key(snapshot, series_key)
            if study is not None and series is not None and not is_hidden(study.uid):
                return self._found(study.uid, series.uid, row)
        return None

    def _found(self, study_uid: str, series_uid: str, row: InstanceRow) -> _Found:
        catalog, snapshot = self._catalog, self._snapshot
        study = self._studies.get(study_uid)
        if study is None:
            held = catalog.study(snapshot, study_uid)
            study = self._studies[study_uid] = {} if held is None else held.attributes
        series = self._series.get((study_uid, series_uid))
        if series is None:
            key = catalog.series_key(study_uid, series_uid)
            one = catalog.series_by_key(snapshot, key)
            series = self._series[study_uid, series_uid] = {} if one is None else one.attributes
        return _Found(study_uid, series_uid, row, study, series)
