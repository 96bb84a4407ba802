"""Free time: when everything that is needed is open, and nobody's.

For each resource that would do, the moments at which an appointment could begin are stretches: opening hours
less what is held, closed or a break. A search goes along the ends of those stretches and never looks at a
moment by itself, and reads what is held some weeks at a time, so that it costs what lies before the first
times that are free. Hours are the department's, in its time zone, also where clocks change: an hour that is
skipped is not there, one that comes twice is open twice.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Final
from zoneinfo import ZoneInfo

from hounsfield.archive.plugins import View
from hounsfield.ris_plugin.catalog import candidates
from hounsfield.ris_plugin.errors import InvalidError, NotNowError
from hounsfield.ris_plugin.patients import of_patient
from hounsfield.ris_plugin.records.base import NS, seconds
from hounsfield.ris_plugin.records.catalog import Hours, Procedure, Resource
from hounsfield.ris_plugin.records.schedule import APPOINTMENT, HOLDING, Appointment, Held

__all__ = ["GRID_MIN", "MINUTE_NS", "Calendar", "Needs", "Slot", "free"]

MINUTE_NS: Final = 60 * NS
DAY_NS: Final = 1440 * MINUTE_NS
GRID_MIN: Final = 5
"""Appointments that are looked for begin at full five minutes, as people write them down."""
HOLD_NS_MAX: Final = 2 * DAY_NS
"""The longest that an appointment holds anything, preparing and cleaning included. So far back one looks."""
SEARCH_DAYS_MAX: Final = 370
SLOTS_MAX: Final = 200
DAYS_READ_FIRST: Final = 7
"""What is held is read for a week, then for twice as long as before: most searches end in the first."""

Stretch = tuple[int, int]
"""From a moment to another one. Of moments to begin at, both ends are among them."""


@dataclass(frozen=True, slots=True)
class Slot:
    """A time at which everything is free. ``resources``: ids, one of each group that is needed."""

    from_ns: int
    to_ns: int
    resources: tuple[str, ...]


def free(
    view: View,
    zone: ZoneInfo,
    needs: Sequence[Procedure],
    *,
    from_ns: int,
    to_ns: int,
    limit: int = 10,
    patient: str = "",
) -> list[Slot]:
    """The first times in a stretch at which ``needs`` can be done one after another, at most ``limit``.

    Looked for across all resources that would do, and where the ``patient`` is nowhere else. InvalidError for
    a stretch of more than a year.
    """
    return Needs(view, zone, needs, patient=patient).slots(from_ns, to_ns, limit=limit)


# ---------------------------------------------------------------- what is open


class Calendar:
    """Opening hours as moments."""

    def __init__(self, zone: ZoneInfo) -> None:
        self._zone = zone
        self._midnights: dict[date, int] = {}

    def local(self, moment_ns: int) -> datetime:
        return datetime.fromtimestamp(moment_ns // NS, UTC).astimezone(self._zone)

    def midnight(self, day: date) -> int:
        """When a day begins."""
        found = self._midnights.get(day)
        if found is None:
            found = int(datetime(day.year, day.month, day.day, tzinfo=self._zone).timestamp()) * NS
            self._midnights[day] = found
        return found

    def at(self, day: date, minutes: int) -> int:
        """A time of day as clocks show it, also on days when they change."""
        midnight = self.midnight(day)
        if self.midnight(day + timedelta(days=1)) - midnight == DAY_NS:
            return midnight + minutes * MINUTE_NS
        wall = datetime(day.year, day.month, day.day) + timedelta(minutes=minutes)  # noqa: DTZ001
        return int(wall.replace(tzinfo=self._zone).timestamp()) * NS

    def stretches(self, hours: Sequence[Hours], from_ns: int, to_ns: int) -> list[Stretch]:
        """Weekly hours on the days that a stretch touches, those that meet as one."""
        if not hours:
            return []
        by_day: dict[int, list[Hours]] = {}
        for one in hours:
            by_day.setdefault(one.weekday, []).append(one)
        day, last = self.local(from_ns).date(), self.local(to_ns).date()
        found: list[Stretch] = []
        while day <= last:
            for one in by_day.get(day.weekday(), ()):
                begin, end = self.at(day, one.from_min), self.at(day, one.to_min)
                if begin < end:  # else it lies in the hour that clocks skip
                    found.append((begin, end))
            day += timedelta(days=1)
        return joined(found)

    def open(self, one: Resource, from_ns: int, to_ns: int) -> list[Stretch]:
        """When a resource is open within a stretch: its hours, without breaks and closures."""
        hours = self.stretches(one.hours, from_ns, to_ns) if one.hours else [(from_ns, to_ns)]
        shut = self.stretches(one.breaks, from_ns, to_ns)
        shut += [(each.from_ns, each.to_ns) for each in one.closures]
        found = []
        for begin, end in hours:
            reached = max(begin, from_ns)
            for away, back in joined(shut):
                if away >= min(end, to_ns):
                    break
                if reached < away:
                    found.append((reached, away))
                reached = max(reached, back)
            if reached < min(end, to_ns):
                found.append((reached, min(end, to_ns)))
        return found


def joined(stretches: Sequence[Stretch]) -> list[Stretch]:
    """Stretches in order, those that meet or overlap as one."""
    found: list[Stretch] = []
    for begin, end in sorted(stretches):
        if found and begin <= found[-1][1]:
            found[-1] = (found[-1][0], max(found[-1][1], end))
        else:
            found.append((begin, end))
    return found


# ---------------------------------------------------------------- what is needed


@dataclass(frozen=True, slots=True)
class Group:
    """Resources of which one is needed, from and to some time after the beginning."""

    candidates: tuple[str, ...]
    needs: tuple[int, ...]
    """Which of the procedures need it."""
    begin_ns: int
    end_ns: int
    before_ns: int
    after_ns: int


class Needs:
    """What procedures that are done one after another need, and when all of it is free.

    Each group of resources is held from the first procedure that needs it to the last. ``without``: an
    appointment that does not count. ``patient``: who cannot be in two places either; "" for anybody.
    NotNowError when nothing active would do, InvalidError for what is too long.
    """

    def __init__(
        self,
        view: View,
        zone: ZoneInfo,
        needs: Sequence[Procedure],
        *,
        without: str = "",
        patient: str = "",
    ) -> None:
        self._view = view
        self._calendar = Calendar(zone)
        self._without = without
        self._patient = patient
        self._held: dict[str, _Diary] = {}
        self._read: dict[str, Appointment] = {}
        self.begins_ns: list[int] = []
        self.length_ns = 0
        for one in needs:
            self.begins_ns.append(self.length_ns)
            self.length_ns += one.duration_min * MINUTE_NS
        self.resources: dict[str, Resource] = {}
        self.groups = self._groups(needs)
        longest = max((one.buffer_min for one in self.resources.values()), default=0) * MINUTE_NS
        for group in self.groups:
            held_ns = group.before_ns + group.end_ns - group.begin_ns + group.after_ns + longest
            if held_ns > HOLD_NS_MAX:
                raise InvalidError("all of it together holds a resource for more than two days", "orders")

    def _groups(self, needs: Sequence[Procedure]) -> list[Group]:
        # Two technologists are two groups with the same names; procedures share theirs.
        wanted: dict[tuple[tuple[str, ...], int], list[int]] = {}
        for index, one in enumerate(needs):
            counts: Counter[tuple[str, ...]] = Counter()
            for names in one.resources:
                wanted.setdefault((names, counts[names]), []).append(index)
                counts[names] += 1
        groups = []
        for (names, _), of in wanted.items():
            found = dict(candidates(self._view, names))
            if not found:
                raise NotNowError(f"nothing active is {' or '.join(names)}: the catalog needs it for this")
            self.resources.update(found)
            last = of[-1]
            groups.append(
                Group(
                    candidates=tuple(found),
                    needs=tuple(of),
                    begin_ns=self.begins_ns[of[0]],
                    end_ns=self.begins_ns[last] + needs[last].duration_min * MINUTE_NS,
                    before_ns=max(needs[each].preparation_min for each in of) * MINUTE_NS,
                    after_ns=max(needs[each].cleaning_min for each in of) * MINUTE_NS,
                )
            )
        return groups

    def slots(self, from_ns: int, to_ns: int, *, limit: int = 10, wanted: Sequence[str] = ()) -> list[Slot]:
        """The first times that lie in a stretch, at most ``limit``; ``wanted`` resources where they do."""
        if to_ns - from_ns > SEARCH_DAYS_MAX * DAY_NS:
            raise InvalidError(f"look for a time within {SEARCH_DAYS_MAX} days", "to_ns")
        grid = GRID_MIN * MINUTE_NS
        limit = min(limit, SLOTS_MAX)
        start, last = -(-from_ns // grid), (to_ns - self.length_ns) // grid
        days = DAYS_READ_FIRST
        found: list[Slot] = []
        while start <= last and len(found) < limit:
            end = min(last, start + days * DAY_NS // grid)
            for begin, until, chosen in self._chosen(start * grid, end * grid, wanted):
                for each in range(-(-begin // grid), until // grid + 1):
                    found.append(Slot(each * grid, each * grid + self.length_ns, chosen))
                    if len(found) == limit:
                        return found
            start, days = end + 1, days * 2
        return found

    def chosen_at(self, start_ns: int, wanted: Sequence[str] = ()) -> tuple[str, ...] | None:
        """One free resource of each group, no one twice; those that are ``wanted`` where they do."""
        return next((chosen for _, _, chosen in self._chosen(start_ns, start_ns, wanted)), None)

    def is_free(self, key: str, start_ns: int) -> bool:
        """Whether a resource is open, and nobody's, in a part that it would do for."""
        return any(
            bool(self._begins(group, key, start_ns, start_ns))
            for group in self.groups
            if key in group.candidates
        )

    def elsewhere(self, start_ns: int, last_ns: int | None = None) -> list[Appointment]:
        """The patient's other appointments that one that begins then, or until then, would run into."""
        if not self._patient:
            return []
        end_ns = (start_ns if last_ns is None else last_ns) + self.length_ns
        low, high = seconds(start_ns - HOLD_NS_MAX), seconds(end_ns)
        return [
            one
            for key, one in of_patient(self._view, APPOINTMENT, self._patient, at_least=low, at_most=high)
            if key != self._without and one.state in HOLDING and one.from_ns < end_ns and start_ns < one.to_ns
        ]

    def holds(self, chosen: Sequence[str], start_ns: int) -> tuple[Held, ...]:
        """What an appointment at a time holds."""
        return tuple(
            Held(
                resource=key,
                from_ns=start_ns + group.begin_ns - group.before_ns,
                to_ns=start_ns + group.end_ns + group.after_ns + self._buffer_ns(key),
            )
            for group, key in zip(self.groups, chosen, strict=True)
        )

    def used_by(self, chosen: Sequence[str], need: int) -> list[Resource]:
        """The chosen resources that one of the procedures needs."""
        return [
            self.resources[key] for group, key in zip(self.groups, chosen, strict=True) if need in group.needs
        ]

    def _buffer_ns(self, key: str) -> int:
        return self.resources[key].buffer_min * MINUTE_NS

    def _chosen(
        self, first_ns: int, last_ns: int, wanted: Sequence[str]
    ) -> Iterator[tuple[int, int, tuple[str, ...]]]:
        """Stretches of moments to begin at, in order, with what is free then."""
        away = [(one.from_ns - self.length_ns, one.to_ns) for one in self.elsewhere(first_ns, last_ns)]
        left = _without([(first_ns, last_ns)], away, first_ns, last_ns)
        begins: list[list[tuple[str, list[Stretch]]]] = [[] for _ in self.groups]
        # The scarcest first: where that is not free, nobody looks at the rest.
        for at in sorted(range(len(self.groups)), key=lambda one: len(self.groups[one].candidates)):
            if not left:
                return
            group = self.groups[at]
            begins[at] = [
                (key, self._begins(group, key, left[0][0], left[-1][1]))
                for key in sorted(group.candidates, key=lambda one: one not in wanted)
            ]
            left = _both(left, joined([one for _, stretches in begins[at] for one in stretches]))
        # Between two of these moments nothing changes.
        cuts = {first_ns, *(begin for begin, _ in left), *(end + 1 for _, end in left)}
        for of_group in begins:
            for _, stretches in of_group:
                for begin, end in stretches:
                    cuts |= {begin, end + 1}
        moments = sorted(one for one in cuts if one <= last_ns)
        before: list[list[str]] | None = None
        chosen: tuple[str, ...] | None = None
        for index, begin in enumerate(moments):
            if not _within(left, begin):
                continue
            ways = [[key for key, stretches in of if _within(stretches, begin)] for of in begins]
            if ways != before:
                chosen, before = _distinct(ways), ways
            if chosen is not None:
                yield begin, (moments[index + 1] - 1 if index + 1 < len(moments) else last_ns), chosen

    def _begins(self, group: Group, key: str, first_ns: int, last_ns: int) -> list[Stretch]:
        """The moments from one to another at which an appointment can begin, as far as one resource goes."""
        one = self.resources[key]
        low, high = first_ns + group.begin_ns, last_ns + group.end_ns
        length = group.end_ns - group.begin_ns
        after = length + group.after_ns + self._buffer_ns(key)
        if one.hours:
            hours = self._calendar.stretches(one.hours, low, high)
            allowed = [(begin, end - length) for begin, end in hours if end - begin >= length]
        else:
            allowed = [(low, high)]
        away = [(begin - length, end) for begin, end in self._calendar.stretches(one.breaks, low, high)]
        away += [(each.from_ns - after, each.to_ns + group.before_ns) for each in one.closures]
        diary = self._held.get(key)
        if diary is None:
            diary = self._held[key] = _Diary(self._view, key, self._without, self._read)
        held = diary.between(low - group.before_ns, last_ns + group.begin_ns + after)
        away += [(begin - after, end + group.before_ns) for begin, end in held]
        return [
            (begin - group.begin_ns, end - group.begin_ns)
            for begin, end in _without(allowed, away, low, last_ns + group.begin_ns)
        ]


class _Diary:
    """When a resource is held, read as far as it was asked for. ``read``: appointments that diaries share,
    since most of them hold several resources."""

    def __init__(self, view: View, key: str, without: str, read: dict[str, Appointment]) -> None:
        self._view = view
        self._read = read
        self._key = key
        self._without = without
        self._from_s = self._to_s = -1
        self._held: list[Stretch] = []

    def between(self, from_ns: int, to_ns: int) -> list[Stretch]:
        """What is held then, in order of when it begins."""
        begin_s, end_s = seconds(from_ns - HOLD_NS_MAX), seconds(to_ns)
        if self._from_s < 0 or begin_s < self._from_s or begin_s > self._to_s + 1:
            self._from_s, self._to_s, self._held = begin_s, begin_s - 1, []
        if end_s > self._to_s:
            ids = self._view.ids(APPOINTMENT, "holds", self._key, at_least=self._to_s + 1, at_most=end_s)
            self._held += sorted(
                (held.from_ns, held.to_ns)
                for appointment_id in ids
                if appointment_id != self._without
                for held in self._holds(appointment_id)
                if held.resource == self._key
            )
            self._to_s = end_s
        first = bisect_right(self._held, (from_ns - HOLD_NS_MAX, 0))
        return [one for one in self._held[first:] if one[0] < to_ns and from_ns < one[1]]

    def _holds(self, appointment_id: str) -> tuple[Held, ...]:
        one = self._read.get(appointment_id)
        if one is None:
            one = self._view.get(APPOINTMENT, appointment_id)
            if one is None:
                return ()
            self._read[appointment_id] = one
        return one.holds


def _both(some: Sequence[Stretch], others: Sequence[Stretch]) -> list[Stretch]:
    """The moments that are in both, ends included."""
    found: list[Stretch] = []
    here = there = 0
    while here < len(some) and there < len(others):
        begin, end = max(some[here][0], others[there][0]), min(some[here][1], others[there][1])
        if begin <= end:
            found.append((begin, end))
        if some[here][1] < others[there][1]:
            here += 1
        else:
            there += 1
    return found


def _without(allowed: Sequence[Stretch], away: Sequence[Stretch], first: int, last: int) -> list[Stretch]:
    """What of ``allowed`` moments, ends included, is left between two without those inside of ``away``, ends
    not included: who begins as another one ends disturbs nobody."""
    # Sorted, not joined: between two that only meet there is a moment.
    gone = sorted(away)
    over = 0
    found: list[Stretch] = []
    for low, high in allowed:
        begin, end = max(low, first), min(high, last)
        while over < len(gone) and gone[over][1] <= begin:
            over += 1  # for those after this one, too
        for index in range(over, len(gone)):
            left, back = gone[index]
            if begin > end or left >= end:
                break
            if back <= begin:
                continue
            if left >= begin:
                found.append((begin, left))
            begin = max(begin, back)
        if begin <= end:
            found.append((begin, end))
    return found


def _within(stretches: Sequence[Stretch], moment: int) -> bool:
    index = bisect_right(stretches, moment, key=lambda one: one[0]) - 1
    return index >= 0 and stretches[index][1] >= moment


def _distinct(ways: Sequence[Sequence[str]]) -> tuple[str, ...] | None:
    """One of each, no one twice, the first ones where they do."""
    if not _matched(ways):
        return None
    chosen: list[str] = []
    for index, group in enumerate(ways):
        for key in group:
            rest = [[one for one in each if one != key and one not in chosen] for each in ways[index + 1 :]]
            if key not in chosen and _matched(rest):
                chosen.append(key)
                break
    return tuple(chosen)


def _matched(ways: Sequence[Sequence[str]]) -> bool:
    """Whether each can have one of its own (a matching of bipartite graphs, by augmenting paths)."""
    whose: dict[str, int] = {}

    def give(index: int, asked: set[str]) -> bool:
        for key in ways[index]:
            if key not in asked:
                asked.add(key)
                if key not in whose or give(whose[key], asked):
                    whose[key] = index
                    return True
        return False

    return all(give(index, set()) for index in range(len(ways)))
