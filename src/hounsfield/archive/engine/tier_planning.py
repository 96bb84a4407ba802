"""What is to be done so that every series lies where the rules want it: made anew each time, from what is.

A plan is a walk over all series. For each it asks the rules (:mod:`~hounsfield.archive.engine.tier_rules`)
and holds their answer against the rows of the packs; the difference is a task. Nothing remembers a task: one
that was interrupted is found again, and is shorter. Making a plan changes nothing.

Blocking. A series costs two rows and a look at its packs, some 40 µs; the rows of its instances are read only
when a rule wants it and not all of it is packed.
"""

from __future__ import annotations

import datetime
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain

from hounsfield.archive.engine.tier_rules import (
    Action,
    Decision,
    SeriesSubject,
    Surroundings,
    TierRule,
    decide,
)
from hounsfield.archive.index.catalog import Catalog
from hounsfield.archive.index.demand import day_of, is_pinned, last_opened, pinned
from hounsfield.archive.index.journal import Journal
from hounsfield.archive.index.packs import HOT, PackRow, pack_of, packs_of
from hounsfield.archive.index.rows import InstanceRow, SeriesRow, SourceRow, StudyRow, UseRow, decode
from hounsfield.archive.index.tables import INSTANCE, SERIES, STUDY_ID_BYTES, USE, VERSION
from hounsfield.archive.index.use import stored_bytes
from hounsfield.storage_backends.api import KeyValueStore, Snapshot

__all__ = ["RANK_BYTES", "PackTask", "PlanLimits", "PlanPage", "SeriesTask", "TierPlanning"]

PAGE_SERIES = 200
"""Series looked at in one snapshot: at 10 ms it is held no longer than others notice."""

RANK_BYTES = 5
"""Of a task's rank, before the key of its series."""

_MODALITY = 0x00080060
Source = Callable[[InstanceRow], SourceRow]


@dataclass(frozen=True, slots=True)
class PlanLimits:
    """What a plan leaves alone."""

    quiet_s: float = 3600.0
    """A series that changed so lately may still be growing: each late object would be a pack of its own."""

    recalled_s: float = 7 * 86_400.0
    """What was brought back is not sent away again sooner, whatever rules say: it was wanted."""


@dataclass(frozen=True, slots=True)
class PackTask:
    """One pack, of ``size`` bytes: the tiers that are to get a copy, and those that then lose theirs."""

    segment: bytes
    size: int
    copy_to: tuple[str, ...]
    drop_from: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SeriesTask:
    """What is to be done with one series, and which rule wants it.

    ``gather``: objects that lie in no pack of it yet are to be packed, and those of the packs ``renew``,
    which are encoded otherwise than is wanted; some ``gather_bytes``, their frames encoded as ``compress``
    ("" as they are). The pack goes to ``tiers`` then. ``packs``: the others that it has.
    """

    study_uid: str
    series_uid: str
    series_key: bytes
    rule: str
    action: Action
    tiers: frozenset[str] = frozenset()
    compress: str = ""
    only_in: frozenset[str] = frozenset()
    """Tiers that alone have something that is to be copied or gathered."""
    gather: bool = False
    gather_bytes: int = 0
    renew: tuple[bytes, ...] = ()
    packs: tuple[PackTask, ...] = ()
    modality: str = ""
    size: int = 0
    """Bytes of the series, as it lies."""
    since: datetime.date = datetime.date.min
    """Under a mark of fill the day on which it was opened last, or came; else the day of the study."""
    for_room: bool = False
    """Whether a mark of fill is the reason."""

    @property
    def rank(self) -> bytes:
        """What orders the tasks of a plan: for room first, then the oldest ``since``; the series last."""
        return bytes([not self.for_room]) + self.since.toordinal().to_bytes(4, "big") + self.series_key

    @property
    def copied_bytes(self) -> int:
        """Bytes that go into other tiers; before any recompression."""
        new = len(self.tiers - {HOT}) * self.gather_bytes if self.gather else 0
        return new + sum(pack.size * len(pack.copy_to) for pack in self.packs)

    @property
    def moved_bytes(self) -> int:
        """Bytes that are packed or copied, each once; before any recompression. What the throttle counts."""
        packed = self.gather_bytes if self.gather else 0
        return packed + sum(pack.size for pack in self.packs if pack.copy_to)

    @property
    def freed_bytes(self) -> int:
        """Bytes that the hot tier gets back; what is brought into it counts against that."""
        leaves = HOT not in self.tiers and bool(self.tiers)
        freed = self.gather_bytes if self.gather and leaves else 0
        for pack in self.packs:
            freed += pack.size * ((HOT in pack.drop_from) - (HOT in pack.copy_to))
        return freed

    @property
    def idle(self) -> bool:
        """Whether nothing is to be done."""
        return not self.gather and not self.packs and self.action != "expire"


@dataclass(slots=True)
class PlanPage:
    """A stretch of a plan: what is to be done, and how many series there are of which nothing is."""

    tasks: list[SeriesTask] = field(default_factory=list)
    looked: int = 0
    quiet: int = 0
    """Changed too lately."""
    unmatched: int = 0
    """No rule wants anything of them."""
    settled: Counter[str] = field(default_factory=Counter)
    """They are as a rule wants them, by its name."""
    damaged: int = 0
    """Something of them has no right copy that is known of: it stays where it was."""
    after: bytes | None = None
    """Where the next page goes on; None: this was the last."""


@dataclass(frozen=True, slots=True)
class _Moment:
    """What one page of series is looked at with."""

    snapshot: Snapshot
    around: Surroundings
    pinned: frozenset[str]
    now_ns: int
    damaged: frozenset[tuple[bytes, str]]


@dataclass(slots=True)
class _Series:
    """One series, and where it lies."""

    key: bytes
    study: StudyRow
    row: SeriesRow
    packs: list[tuple[bytes, PackRow]]
    loose: list[InstanceRow] | None = None  # objects in no pack of it; None: not looked yet
    loose_bytes: int = 0
    damaged: bool = False  # something that was to be copied has no right copy
    day: datetime.date = datetime.date.min  # of the study
    used: datetime.date = datetime.date.min  # when it was opened last, or came


class TierPlanning:
    """Makes plans. Any number of threads at once."""

    def __init__(
        self,
        catalog: Catalog,
        journal: Journal,
        rules: Sequence[TierRule],
        source: Source,
        limits: PlanLimits | None = None,
        *,
        tiers: Collection[str] | None = None,
        damaged: Callable[[], Iterable[tuple[bytes, str]]] = tuple,
    ) -> None:
        """``tiers``: those that are configured, the hot one too; None: all that packs are said to lie in.

        A copy in another one is left alone: nobody can look at it, or delete it. ``damaged``: copies that
        are known not to be right, pack and tier: nothing is copied from there.
        """
        self._catalog = catalog
        self._journal = journal
        self._rules = rules
        self._source = source
        self._limits = limits or PlanLimits()
        self._tiers = tiers
        self._damaged = damaged
        self._for_room = frozenset(rule.name for rule in rules if rule.fill_above is not None)
        self._asks_bytes = any(rule.bytes_min is not None or rule.bytes_max is not None for rule in rules)

    def with_rules(self, rules: Sequence[TierRule]) -> TierPlanning:
        """Another one, that plans by other rules."""
        return TierPlanning(
            self._catalog,
            self._journal,
            rules,
            self._source,
            self._limits,
            tiers=self._tiers,
            damaged=self._damaged,
        )

    def tasks(
        self,
        store: KeyValueStore,
        around: Surroundings,
        now_ns: int,
        progress: Callable[[int], None] = lambda _: None,
    ) -> Iterator[SeriesTask]:
        """Every series of which something is to be done. ``progress(series looked at)``, now and then."""
        after: bytes | None = None
        looked = 0
        while True:
            page = self.page(store, around, now_ns, after)
            yield from page.tasks
            looked += page.looked
            progress(looked)
            if page.after is None:
                return
            after = page.after

    def page(
        self, store: KeyValueStore, around: Surroundings, now_ns: int, after: bytes | None = None
    ) -> PlanPage:
        """The next :data:`PAGE_SERIES` series, from the one after ``after`` on."""
        found = PlanPage()
        with store.snapshot() as snapshot:
            moment = self._moment(snapshot, around, pinned(snapshot, self._journal, now_ns), now_ns)
            page = list(snapshot.scan(SERIES, after=after, limit=PAGE_SERIES))
            self._look_at(moment, page, found)
        if len(page) == PAGE_SERIES:
            found.after = page[-1][0]
        return found

    def task_of(
        self, store: KeyValueStore, around: Surroundings, now_ns: int, series_key: bytes
    ) -> SeriesTask | None:
        """What is to be done with one series now; None: nothing is."""
        with store.snapshot() as snapshot:
            held = snapshot.get(SERIES, series_key)
            study = self._catalog.study_by_id(snapshot, series_key[:STUDY_ID_BYTES])
            if held is None or study is None:
                return None
            found = PlanPage()
            self._look_at(self._moment_of(snapshot, around, now_ns, study), [(series_key, held)], found)
        return found.tasks[0] if found.tasks else None

    def is_wanted_hot(
        self, store: KeyValueStore, around: Surroundings, now_ns: int, series_key: bytes
    ) -> bool:
        """Whether a rule or a pin has a series stay in the hot tier."""
        with store.snapshot() as snapshot:
            study = self._catalog.study_by_id(snapshot, series_key[:STUDY_ID_BYTES])
            row = self._catalog.series_by_key(snapshot, series_key)
            if study is None or row is None:
                return False
            one = _Series(series_key, study, row, _packs_in_use(snapshot, series_key))
            decision = self._decided(self._moment_of(snapshot, around, now_ns, study), one)
        return decision is not None and HOT in decision.tiers

    def _moment_of(self, snapshot: Snapshot, around: Surroundings, now_ns: int, study: StudyRow) -> _Moment:
        """For one study alone."""
        is_one = is_pinned(snapshot, self._journal, study.uid, now_ns)
        return self._moment(snapshot, around, frozenset({study.uid} if is_one else ()), now_ns)

    def _moment(self, snapshot: Snapshot, around: Surroundings, pins: frozenset[str], now_ns: int) -> _Moment:
        return _Moment(snapshot, around, pins, now_ns, frozenset(self._damaged()))

    def expires(
        self, snapshot: Snapshot, around: Surroundings, now_ns: int, series_key: bytes, rule: str
    ) -> bool:
        """Whether ``rule`` still has a series go: a plan may be hours old when it comes to it."""
        study = self._catalog.study_by_id(snapshot, series_key[:STUDY_ID_BYTES])
        row = self._catalog.series_by_key(snapshot, series_key)
        if study is None or row is None or now_ns - row.changed_ns < self._limits.quiet_s * 1e9:
            return False
        one = _Series(series_key, study, row, _packs_in_use(snapshot, series_key))
        decision = self._decided(self._moment_of(snapshot, around, now_ns, study), one)
        return decision is not None and (decision.action, decision.rule) == ("expire", rule)

    def _look_at(self, at: _Moment, page: Sequence[tuple[bytes, bytes]], found: PlanPage) -> None:
        study_id, study = b"", None
        for key, sealed in page:
            found.looked += 1
            if key[:STUDY_ID_BYTES] != study_id:
                study_id = key[:STUDY_ID_BYTES]
                study = self._catalog.study_by_id(at.snapshot, study_id)
            if study is None:
                continue
            row = self._catalog.open_row(SERIES, key, sealed, SeriesRow)
            if at.now_ns - row.changed_ns < self._limits.quiet_s * 1e9:
                found.quiet += 1
                continue
            one = _Series(key, study, row, _packs_in_use(at.snapshot, key))
            task = self._task(at, one)
            found.damaged += one.damaged
            if task is None:
                found.unmatched += 1
            elif task.idle:
                found.settled[task.rule] += 1
            else:
                found.tasks.append(task)

    def _task(self, at: _Moment, one: _Series) -> SeriesTask | None:
        decision = self._decided(at, one)
        if decision is None:
            return None
        self._look(at, one)
        return self._difference(at, one, decision)

    def _decided(self, at: _Moment, one: _Series) -> Decision | None:
        if self._asks_bytes:
            self._look(at, one)
        subject = SeriesSubject(
            study=one.study.attributes,
            series=one.row.attributes,
            bytes=sum(row.size for _, row in one.packs) + one.loose_bytes,
            received=day_of(one.study.received_ns),
            opened=last_opened(at.snapshot, one.key),
            sop_class_uid=one.row.sop_classes[0] if one.row.sop_classes else "",
            transfer_syntax_uid=one.row.transfer_syntaxes[0] if one.row.transfer_syntaxes else "",
            pinned=one.study.uid in at.pinned,
            source=lambda: self._source_of(at, one),
            newest=lambda: self._newest(at, one),
        )
        one.day, one.used = subject.day, subject.used
        return decide(self._rules, subject, at.around)

    def _newest(self, at: _Moment, one: _Series) -> datetime.date:
        """The day on which the last object of the series came, versions included."""
        newest = one.study.received_ns
        for table in (INSTANCE, VERSION):
            for key, sealed in at.snapshot.scan(table, prefix=one.key):
                newest = max(newest, self._catalog.open_row(table, key, sealed, InstanceRow).received_ns)
        return day_of(newest)

    def _source_of(self, at: _Moment, one: _Series) -> SourceRow:
        """How the first of its objects that comes to hand came in; they mostly came alike."""
        row = next(self._catalog.instances_of(at.snapshot, one.key), None)
        return SourceRow() if row is None else self._source(row)

    def _look(self, at: _Moment, one: _Series) -> None:
        """Find out what of the series lies in no pack of it."""
        if one.loose is not None:
            return
        if one.packs and self._is_all_packed(at, one):
            one.loose = []
            return
        own = {segment for segment, _ in one.packs}
        one.loose = [row for row in self._objects(at, one) if row.location.segment not in own]
        one.loose_bytes = sum(stored_bytes(row.location) or 0 for row in one.loose)

    def _objects(self, at: _Moment, one: _Series) -> Iterator[InstanceRow]:
        versions = (
            self._catalog.open_row(VERSION, key, sealed, InstanceRow)
            for key, sealed in at.snapshot.scan(VERSION, prefix=one.key)
        )
        return chain(self._catalog.instances_of(at.snapshot, one.key), versions)

    def _is_loose_elsewhere(self, at: _Moment, one: _Series) -> bool:
        """Whether something of it lies in another series' pack that is not in the hot tier: it came here
        by a correction, and only a pack of its own can stay hot whatever becomes of that one."""
        segments = {row.location.segment for row in one.loose or ()}
        found = (pack_of(at.snapshot, segment) for segment in segments)
        return any(pack is not None and HOT not in pack.copies for pack in found)

    def _is_all_packed(self, at: _Moment, one: _Series) -> bool:
        """Whether nothing came since the last pack was made, as is so of most series of an archive."""
        if one.row.changed_ns >= max(row.made_ns for _, row in one.packs):
            return False
        if any(True for _ in at.snapshot.scan(VERSION, prefix=one.key, limit=1)):
            return False  # another version of an object is no change of its series
        live = sum(row.objects for _, row in one.packs)
        for segment, _ in one.packs:
            held = at.snapshot.get(USE, segment)
            live -= 0 if held is None else decode(UseRow, held).dead_records
        return live >= one.row.instances

    def _difference(self, at: _Moment, one: _Series, decision: Decision) -> SeriesTask:
        tiers, packs = decision.tiers, []
        compress = decision.compress
        needed: list[PackRow] = []
        renewed = {segment: row for segment, row in one.packs if compress not in {"", row.compress}}
        if renewed:  # but for those that hold what was filed elsewhere since: renewing is for what is here
            lived_in = {row.location.segment for row in self._objects(at, one)}
            renewed = {segment: row for segment, row in renewed.items() if segment in lived_in}
        for segment, row in one.packs if tiers else ():
            if segment in renewed:
                continue
            copy_to = tuple(sorted(tiers - row.copies.keys()))
            if copy_to and self._is_damaged(at, segment, row):
                one.damaged = True
                continue
            # What is pinned keeps the copies it has: when the pin is over, no byte has to move again.
            leaving = sorted(row.copies.keys() - tiers) if decision.action != "pin" else []
            drop_from = tuple(tier for tier in leaving if not self._stays(row, tier, at.now_ns))
            if copy_to or drop_from:
                packs.append(PackTask(segment, row.size, copy_to, drop_from))
                needed += [row] if copy_to else []
        wants_pack = decision.action in {"move", "copy", "recompress"} and tiers != {HOT}
        wants_pack |= HOT in tiers and self._is_loose_elsewhere(at, one)
        return SeriesTask(
            study_uid=one.study.uid,
            series_uid=one.row.uid,
            series_key=one.key,
            rule=decision.rule,
            action=decision.action,
            tiers=tiers or frozenset(tier for row in renewed.values() for tier in row.copies),
            compress=compress,
            only_in=frozenset(
                next(iter(row.copies)) for row in (*needed, *renewed.values()) if len(row.copies) == 1
            ),
            gather=bool(one.loose or renewed) and wants_pack,
            gather_bytes=one.loose_bytes + sum(row.size for row in renewed.values()) if wants_pack else 0,
            renew=tuple(renewed),
            packs=tuple(packs),
            size=sum(row.size for _, row in one.packs) + one.loose_bytes,
            modality=one.row.attributes.get(_MODALITY, ""),
            since=one.used if decision.rule in self._for_room else one.day,
            for_room=decision.rule in self._for_room,
        )

    def _is_damaged(self, at: _Moment, segment: bytes, row: PackRow) -> bool:
        """Whether none of its copies that can be reached is right."""
        names = [tier for tier in row.copies if self._tiers is None or tier in self._tiers]
        return bool(names) and all((segment, tier) in at.damaged for tier in names)

    def _stays(self, row: PackRow, tier: str, now_ns: int) -> bool:
        """Whether a copy is one that was brought back lately, or out of reach."""
        if self._tiers is not None and tier not in self._tiers:
            return True
        since = row.copies[tier].since_ns
        return tier == HOT and since > row.made_ns and now_ns - since < self._limits.recalled_s * 1e9


def _packs_in_use(snapshot: Snapshot, series_key: bytes) -> list[tuple[bytes, PackRow]]:
    """The packs of a series, but for those of which nothing is needed: they are not moved, but removed."""
    return [
        (segment, row)
        for segment, row in packs_of(snapshot, series_key)
        if (held := snapshot.get(USE, segment)) is None or decode(UseRow, held).dead_records < row.objects
    ]
