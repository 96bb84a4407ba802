"""Appointments that belong together: a scan today and one tomorrow, booked as a whole or not at all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final
from zoneinfo import ZoneInfo

from msgspec import structs

from hounsfield.archive.plugins import Change, View
from hounsfield.ris_plugin.actors import Actor
from hounsfield.ris_plugin.errors import InvalidError
from hounsfield.ris_plugin.patients import resolve
from hounsfield.ris_plugin.records.catalog import Procedure
from hounsfield.ris_plugin.records.schedule import APPOINTMENT, Appointment
from hounsfield.ris_plugin.schedule.free_time import MINUTE_NS, SLOTS_MAX, Needs, Slot
from hounsfield.ris_plugin.schedule.gaps import PARTS_MAX, gap_between, of_series
from hounsfield.ris_plugin.schedule.scheduling import book, get

__all__ = ["Part", "book_series", "follow_ups", "free_series", "of_series"]

TRIED_MAX: Final = 2000
"""Times that are tried for the later parts of one search, so that one that cannot be ends."""


@dataclass(frozen=True, slots=True)
class Part:
    """One appointment of a series: orders done one after another at a time. ``resources``: those wanted."""

    orders: tuple[str, ...]
    from_ns: int
    resources: tuple[str, ...] = ()


def book_series(
    change: Change,
    actor: Actor,
    zone: ZoneInfo,
    parts: Sequence[Part],
    *,
    note: str = "",
    gap_minutes_min: int = 0,
    gap_minutes_max: int = 0,
) -> list[str]:
    """Book all of them; their ids. Raises as ``scheduling.book``: then none is.

    Each begins so long, at least and at most (0: whenever), after the one before ends, now and when one of
    them is moved.
    """
    check_gaps(gap_minutes_min, gap_minutes_max)
    if not 2 <= len(parts) <= PARTS_MAX:
        raise InvalidError(f"a series is 2 to {PARTS_MAX} appointments", "parts")
    made: list[str] = []
    series = ""
    for part in sorted(parts, key=lambda one: one.from_ns):
        made.append(
            book(
                change,
                actor,
                zone,
                orders=part.orders,
                from_ns=part.from_ns,
                resources=part.resources,
                note=note,
                series=series,
            )
        )
        first = get(change, made[0])
        if not series:
            series = first.number
            change.put(APPOINTMENT, made[0], structs.replace(first, series=series))
        else:
            part_of = structs.replace(
                get(change, made[-1]), gap_minutes_min=gap_minutes_min, gap_minutes_max=gap_minutes_max
            )
            wrong = gap_between(get(change, made[-2]), part_of)
            if wrong:
                raise InvalidError(wrong, "parts")
            change.put(APPOINTMENT, made[-1], part_of)
        if resolve(change, get(change, made[-1]).patient)[0] != resolve(change, first.patient)[0]:
            raise InvalidError("the orders are not one patient's", "parts")
    return made


def check_gaps(gap_minutes_min: int, gap_minutes_max: int) -> None:
    """Raise InvalidError for what cannot be between two appointments."""
    if gap_minutes_min < 0 or (gap_minutes_max and gap_minutes_max < gap_minutes_min):
        raise InvalidError("the longest time between two is the shortest, or longer", "gap_minutes_max")


def follow_ups(view: View, appointment_id: str) -> list[tuple[str, Appointment]]:
    """The appointments that are to follow up one."""
    return list(view.find(APPOINTMENT, "follows", appointment_id))


def free_series(
    view: View,
    zone: ZoneInfo,
    parts: Sequence[Sequence[Procedure]],
    *,
    from_ns: int,
    to_ns: int,
    gap_minutes_min: int,
    gap_minutes_max: int,
    limit: int = 10,
    patient: str = "",
) -> list[tuple[Slot, ...]]:
    """The first times for all parts: each begins so long, at least and at most (0: whenever), after the one
    before ends, and the ``patient`` is nowhere else.

    ``to_ns``: the last one ends before. At most ``limit``, each with another first time.
    """
    if not 1 <= len(parts) <= PARTS_MAX:
        raise InvalidError(f"a series is 2 to {PARTS_MAX} appointments", "parts")
    check_gaps(gap_minutes_min, gap_minutes_max)
    longest = gap_minutes_max * MINUTE_NS or to_ns - from_ns
    needs = [Needs(view, zone, one, patient=patient) for one in parts]
    search = _Search(needs, to_ns, gap_minutes_min * MINUTE_NS, longest)
    found: list[tuple[Slot, ...]] = []
    for first in search.needs[0].slots(from_ns, to_ns, limit=SLOTS_MAX):
        whole = next(search.after((first,)), None)
        if whole is not None:
            found.append(whole)
        if len(found) == limit or search.tried > TRIED_MAX:
            break
    return found


class _Search:
    def __init__(self, needs: list[Needs], to_ns: int, gap_ns_min: int, gap_ns_max: int) -> None:
        self.needs = needs
        self.tried = 0
        self._to_ns = to_ns
        self._gap = gap_ns_min, gap_ns_max

    def after(self, slots: tuple[Slot, ...]) -> Iterator[tuple[Slot, ...]]:
        """Whole series that begin so."""
        index = len(slots)
        if index == len(self.needs):
            yield slots
            return
        needs = self.needs[index]
        low, high = (slots[-1].to_ns + gap for gap in self._gap)
        for slot in needs.slots(low, min(high + needs.length_ns, self._to_ns)):
            self.tried += 1
            if self.tried > TRIED_MAX:
                return
            if not self._clash(slots, slot):
                yield from self.after((*slots, slot))

    def _clash(self, slots: tuple[Slot, ...], slot: Slot) -> bool:
        """Whether a part holds what one before it still holds."""
        mine = self.needs[len(slots)].holds(slot.resources, slot.from_ns)
        return any(
            held.resource == one.resource and held.from_ns < one.to_ns and one.from_ns < held.to_ns
            for needs, before in zip(self.needs, slots, strict=False)
            for held in needs.holds(before.resources, before.from_ns)
            for one in mine
        )
