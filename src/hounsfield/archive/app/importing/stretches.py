"""Every study of a source that answers a search with so many at most: it is asked for stretches of time.

Many archives give the first 100, or 500, or 1000 answers, and not all of them say so. So what ended well is
asked for once more in two parts, cut at the middle of the dates that came: both have some, and where an
answer was cut short, together they have more. Parts of which that is true are cut again, down to one day and
then by the time of day.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import date, timedelta
from typing import Any, Final

from hounsfield.archive.errors import HounsfieldError

STUDY_DATE, STUDY_TIME = "00080020", "00080030"
CHECKED_FROM: Final = 10
"""Answers. Nobody gives fewer and leaves some out; a second look costs as many again."""
SEARCHES_MAX: Final = 50_000
"""Of one source: at a hundred answers each, five million studies."""
REFUSALS_MAX: Final = 32
"""With none that ended well: half a century is cut down to a day by then, and it is no limit of answers."""
_EARLIEST: Final = date(1980, 1, 1)  # of digital images, where nothing says when the first one was
_DAY: Final = timedelta(days=1)

Identifier = dict[str, Any]


class CutShortError(HounsfieldError):
    """A source does not give all its answers, and cannot be asked so that it does."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """Studies between two days, both included; of one day perhaps between two times. "" is open."""

    first: str = ""
    last: str = ""
    since: str = ""
    until: str = ""

    @classmethod
    def of(cls, days: str) -> Stretch | None:
        """Of a value to match dates with (PS3.4 C.2.2.2.5); None when it is no range of days."""
        first, dash, last = days.strip().partition("-")
        if not dash:
            last = first
        return cls(first, last) if all(_day(end) or not end for end in (first, last)) else None

    def matching(self) -> dict[str, str]:
        """What is asked for, by attribute; nothing that is open on both sides."""
        days = self.first if self.first == self.last else f"{self.first}-{self.last}"
        found = {STUDY_DATE: days} if days else {}
        if self.since or self.until:
            found[STUDY_TIME] = f"{self.since}-{self.until}"
        return found

    @property
    def is_a_day(self) -> bool:
        return bool(self.first) and self.first == self.last

    def holds(self, day: str) -> bool:
        return (not self.first or self.first <= day) and (not self.last or day <= self.last)

    def cut(self, came: Came, today: date) -> list[Stretch]:
        """In two or three, each of them less than this; nothing when it cannot be cut."""
        if self.is_a_day:
            return self._by_time(sorted(came.times.elements())) if came.asks_times else []
        days = sorted(came.days.elements())
        if not days:  # it gave none: the middle of what may be
            low, high = _day(self.first) or _EARLIEST, _day(self.last) or today
            return self._after((low + (high - low) / 2).strftime("%Y%m%d")) if low < high else []
        if days[0] != days[-1]:
            middle = days[(len(days) - 1) // 2]
            return self._after(middle if middle < days[-1] else _before(days, days[-1]))
        only = _day(days[0])
        assert only is not None
        parts = [Stretch(days[0], days[0])]
        if days[0] != self.first:
            parts.insert(0, Stretch(self.first, (only - _DAY).strftime("%Y%m%d")))
        if days[0] != self.last:
            parts.append(Stretch((only + _DAY).strftime("%Y%m%d"), self.last))
        return parts

    def _after(self, day: str) -> list[Stretch]:
        found = _day(day)
        assert found is not None
        return [Stretch(self.first, day), Stretch((found + _DAY).strftime("%Y%m%d"), self.last)]

    def _by_time(self, times: list[str]) -> list[Stretch]:
        if not times:
            return []
        day, low, high = self.first, self.since or "000000", self.until[:6] or "235959"
        if times[0] != times[-1]:
            middle = times[(len(times) - 1) // 2]
            middle = middle if middle < times[-1] else _before(times, times[-1])
        elif low < times[0]:
            middle = _second(times[0], -1)
        elif times[0] < high:
            middle = times[0]
        else:
            return []
        return [
            Stretch(day, day, low, f"{middle}.999999"),
            Stretch(day, day, _second(middle, 1), f"{high}.999999"),
        ]


def _before(ordered: list[str], last: str) -> str:
    return max(one for one in ordered if one < last)


def _day(text: str) -> date | None:
    try:
        return (
            date(int(text[:4]), int(text[4:6]), int(text[6:])) if len(text) == 8 and text.isdigit() else None
        )
    except ValueError:
        return None


def _second(time: str, more: int) -> str:
    seconds = int(time[:2]) * 3600 + int(time[2:4]) * 60 + int(time[4:]) + more
    return f"{seconds // 3600:02}{seconds // 60 % 60:02}{seconds % 60:02}"


@dataclass(slots=True)
class Came:
    """What came of one search. Who answers sets ``failure``, or ``is_doubtful``."""

    asks_times: bool = True
    count: int = 0
    days: Counter[str] = field(default_factory=Counter)
    times: Counter[str] = field(default_factory=Counter)
    strays: int = 0
    """Of other days than were asked for."""
    dateless: int = 0
    failure: HounsfieldError | None = None
    """Why there may be more; None when it ended well."""
    is_doubtful: bool = True
    """Whether there may be more although it ended well."""

    def add(self, stretch: Stretch, row: Identifier) -> None:
        """One more answer."""
        self.count += 1
        day, time = _text(row, STUDY_DATE), _text(row, STUDY_TIME)[:6]
        if _day(day) is None:
            self.dateless += 1
            self.strays += bool(stretch.first or stretch.last)  # nothing is between two days that has none
            return
        self.strays += not stretch.holds(day)
        self.days[day] += 1
        if len(time) == 6 and time.isdigit() and time < "235960":
            self.times[time] += 1


Ask = Callable[[Stretch, Came], AsyncGenerator[Identifier, None]]
"""Search for a stretch: the answers; what is to be said of their end is set in ``Came`` before it."""


class Stretches:
    """One search over one source, in as many parts as it needs."""

    def __init__(
        self,
        ask: Ask,
        matching: dict[str, str],
        tell: Callable[[str], None],
        complain: Callable[[str], None],
        *,
        today: date | None = None,
    ) -> None:
        """``matching``: what the user asks for, by attribute. ``tell``: that the source was asked in parts;
        ``complain``: that there is more, and it cannot be had."""
        self._ask = ask
        self._whole = Stretch.of(matching.get(STUDY_DATE, ""))
        self._asks_times = not matching.get(STUDY_TIME)
        self._tell = tell
        self._complain = complain
        self._today = today or date.today()  # noqa: DTZ011 - one day more or less is the same
        self._searches = 0
        self._refusals = 0
        self._some_ended_well = False

    async def studies(self) -> AsyncGenerator[Identifier, None]:
        """Every answer, some of them two or three times. Raises CutShortError, and as the source fails."""
        whole = self._came()
        start = self._whole or Stretch()
        async with aclosing(self._rows(start, whole)) as rows:
            async for row in rows:
                yield row
        if whole.failure is None and (whole.count < CHECKED_FROM or not whole.is_doubtful):
            return
        parts = start.cut(whole, self._today) if self._whole is not None else []
        if not parts:
            self._leave(start, whole, surely=False)
            return
        found: list[tuple[Stretch, Came]] = []
        for part in parts:
            came = self._came()
            async with aclosing(self._rows(part, came)) as rows:
                async for row in rows:
                    yield row
            found.append((part, came))
        if whole.failure is None and any(came.strays for _, came in found):
            self._leave(start, whole, surely=False)
            return
        together = sum(came.count for _, came in found) + whole.dateless
        if whole.failure is None and together <= whole.count and not any(came.failure for _, came in found):
            return
        at_most = whole.count if whole.failure is None else 0
        async with aclosing(self._cut(found, at_most)) as rows:
            async for row in rows:
                yield row
        limit = f" more than {at_most} studies" if at_most else " all of them"
        self._tell(
            f"it does not answer with{limit} at once: it was asked in {self._searches} stretches of time. "
            "Studies without a date are here only as far as its first answer had them"
        )

    async def _cut(self, todo: list[tuple[Stretch, Came]], at_most: int) -> AsyncGenerator[Identifier, None]:
        while todo:
            stretch, came = todo.pop()
            if came.failure is None and (not at_most or came.count < at_most):
                continue
            parts = [] if came.strays else stretch.cut(came, self._today)
            if not parts:
                self._leave(stretch, came, surely=True)
            for part in parts:
                further = self._came()
                async with aclosing(self._rows(part, further)) as rows:
                    async for row in rows:
                        yield row
                todo.append((part, further))

    def _came(self) -> Came:
        return Came(asks_times=self._asks_times)

    async def _rows(self, stretch: Stretch, came: Came) -> AsyncGenerator[Identifier, None]:
        if self._searches >= SEARCHES_MAX:
            raise CutShortError(f"{SEARCHES_MAX} searches were not enough: search year by year, with --match")
        self._searches += 1
        async with aclosing(self._ask(stretch, came)) as rows:
            async for row in rows:
                came.add(stretch, row)
                yield row
        if came.failure is None:
            self._some_ended_well = True
        elif not came.count and not self._some_ended_well:
            self._refusals += 1
            if self._refusals > REFUSALS_MAX:
                raise came.failure

    def _leave(self, stretch: Stretch, came: Came, *, surely: bool) -> None:
        """What there may be more of cannot be asked for. Raises the failure when no search ended well."""
        if came.failure is not None and not self._some_ended_well:
            raise came.failure
        where = f" of {stretch.matching().get(STUDY_DATE, 'all days')}" if surely else ""
        if surely or is_round(came.count):
            self._complain(
                f"it gave {came.count} studies{where} and "
                f"{'has' if surely else 'may have'} more that cannot be asked for by their dates: narrow it, "
                "with --match, e.g. by ModalitiesInStudy"
            )


def is_round(count: int) -> bool:
    """Whether people choose such a number as a limit."""
    return count >= CHECKED_FROM and (count % 50 == 0 or count & (count - 1) == 0)


def _text(row: Identifier, key: str) -> str:
    element = row.get(key)
    values = element.get("Value") if isinstance(element, dict) else None
    return str(values[0]).strip() if isinstance(values, list | tuple) and values else ""
