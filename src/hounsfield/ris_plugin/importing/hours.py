"""Opening hours and closures as people write them, and back: ``Mon-Fri 08:00-16:00, Sat 09-12``.

Days come before the times that they have; commas may stand anywhere. Dates and times are the department's.
Everything here raises ValueError, in words for whoever wrote it.
"""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from typing import Final

from hounsfield.ris_plugin.records.base import NS
from hounsfield.ris_plugin.records.catalog import Closure, Hours
from hounsfield.ris_plugin.schedule.free_time import Calendar

__all__ = ["closure_text", "hours_text", "read_closure", "read_hours"]

ALWAYS: Final = "always"
"""No hours: open day and night."""
DAYS: Final = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_DAYS_WRITTEN: Final = (
    ("mo", "mon", "monday", "montag"),
    ("tu", "tue", "tues", "tuesday", "di", "dienstag"),
    ("we", "wed", "wednesday", "mi", "mittwoch"),
    ("th", "thu", "thur", "thurs", "thursday", "do", "donnerstag"),
    ("fr", "fri", "friday", "freitag"),
    ("sa", "sat", "saturday", "samstag"),
    ("su", "sun", "sunday", "so", "sonntag"),
)
_DAY: Final = {word: index for index, words in enumerate(_DAYS_WRITTEN) for word in words}
_SPANS: Final = {
    "daily": range(7),
    "weekdays": range(5),
    "weekend": range(5, 7),
    "weekends": range(5, 7),
}
_DASHES: Final = re.compile(r"\s*(?:[-–—]|\bto\b|\bbis\b)\s*")
_TIMES: Final = re.compile(r"(\d{1,2})(?:[:.](\d{2}))?-(\d{1,2})(?:[:.](\d{2}))?")
_EXAMPLE: Final = "such as Mon-Fri 08:00-16:00, Sat 09-12"


def read_hours(text: str) -> tuple[Hours, ...]:
    """Weekly hours; past midnight (``22-06``) goes on the next day. ``always`` and nothing: no hours."""
    if text.strip().casefold() in ("", ALWAYS, "none"):
        return ()
    found: set[tuple[int, int, int]] = set()
    days: list[int] = []
    begun = False
    for word in _DASHES.sub("-", text).replace(",", " ").replace(";", " ").split():
        if word.casefold() in ("and", "und", "&", "+"):
            continue
        times = _TIMES.fullmatch(word)
        if times is None and word.casefold() != "24h":
            if begun:
                days, begun = [], False
            days += _days(word)
            continue
        if not days:
            raise ValueError(f"{word!r} has no day before it; {_EXAMPLE}")
        begun = True
        begin, end = (0, 1440) if times is None else _minutes(times)
        for day in days:
            if begin < end:
                found.add((day, begin, end))
            else:
                found.add((day, begin, 1440))
                if end:
                    found.add(((day + 1) % 7, 0, end))
    if not begun:
        raise ValueError(f"days without times; {_EXAMPLE}")
    ordered = sorted(found)
    for (day, _, end), (next_day, begin, _) in pairwise(ordered):
        if day == next_day and begin < end:
            raise ValueError(f"two stretches on {DAYS[day]} overlap")
    return tuple(Hours(weekday=day, from_min=begin, to_min=end) for day, begin, end in ordered)


def _days(word: str) -> list[int]:
    ends = word.casefold().replace(".", "").rstrip(":").split("-")
    if len(ends) == 1 and ends[0] in _SPANS:
        return list(_SPANS[ends[0]])
    if len(ends) > 2 or any(one not in _DAY for one in ends):
        raise ValueError(f"{word!r} is no day and no time; {_EXAMPLE}")
    first, last = _DAY[ends[0]], _DAY[ends[-1]]
    return [(first + index) % 7 for index in range((last - first) % 7 + 1)]


def _minutes(times: re.Match[str]) -> tuple[int, int]:
    begin, end = (int(times[index]) * 60 + int(times[index + 1] or 0) for index in (1, 3))
    if any(int(times[index] or 0) > 59 for index in (2, 4)) or begin >= 1440 or end > 1440 or begin == end:
        raise ValueError(f"{times[0]!r} are no times of a day")
    return begin, end


def hours_text(hours: tuple[Hours, ...], nothing: str = ALWAYS) -> str:
    """Weekly hours as they are written; ``nothing`` for none."""
    by_day = [
        " ".join(
            f"{_clock(one.from_min)}-{_clock(one.to_min)}"
            for one in sorted(hours, key=lambda one: (one.from_min, one.to_min))
            if one.weekday == day
        )
        for day in range(7)
    ]
    parts: list[str] = []
    day = 0
    while day < 7:
        last = day
        while last < 6 and by_day[last + 1] == by_day[day]:
            last += 1
        if by_day[day]:
            days = DAYS[day] if last == day else f"{DAYS[day]}-{DAYS[last]}"
            parts.append(f"{days} {by_day[day]}")
        day = last + 1
    return ", ".join(parts) or nothing


def _clock(minutes: int) -> str:
    return f"{minutes // 60:02}:{minutes % 60:02}"


# ---------------------------------------------------------------- closures

_DATE: Final = r"\d{4}-\d{2}-\d{2}"
_CLOCK: Final = r"\d{1,2}:\d{2}"
_MOMENT: Final = r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}(?:\.\d{1,9})?Z"
_CLOSURE: Final = re.compile(
    rf"(?:(?P<from_utc>{_MOMENT})\s*\.\.\s*(?P<to_utc>{_MOMENT})"
    rf"|(?P<from_day>{_DATE})(?:[ T](?P<from_at>{_CLOCK}))?"
    r"(?:\s*(?:\.\.|-|–|\bto\b)\s*"
    rf"(?:(?P<to_day>{_DATE})(?:[ T](?P<to_at>{_CLOCK}))?|(?P<to_only>{_CLOCK})))?)"
    r"(?:[\s,:]\s*(?P<why>.*))?",
    re.DOTALL,
)


def read_closure(text: str, calendar: Calendar) -> Closure:
    """``2026-12-25 Christmas``, ``2027-01-04..2027-01-08 service``: whole days; ``2026-12-24 12:00-18:00``:
    from one time to another."""
    found = _CLOSURE.fullmatch(text.strip())
    if found is None:
        raise ValueError(
            f"{text[:60]!r} is no closure; such as 2026-12-25 Christmas, 2027-01-04..2027-01-08 service or "
            "2026-12-24 12:00-18:00"
        )
    why = (found["why"] or "").strip()
    if found["from_utc"]:
        begin, end = _exact(found["from_utc"]), _exact(found["to_utc"])
    else:
        from_day = _date(found["from_day"])
        to_day = _date(found["to_day"]) if found["to_day"] else from_day
        to_at = found["to_at"] or found["to_only"]
        if found["from_at"] and not to_at and not found["to_day"]:
            raise ValueError("a closure that begins at a time says when it ends")
        begin = calendar.at(from_day, _minute(found["from_at"] or "00:00"))
        end = calendar.at(to_day, _minute(to_at or "24:00"))
    if end <= begin:
        raise ValueError("a closure ends after it begins")
    return Closure(from_ns=begin, to_ns=end, why=why)


def closure_text(one: Closure, calendar: Calendar) -> str:
    """A closure as it is written: by days, by times, or by moments where clocks do not tell."""
    begin, end = calendar.local(one.from_ns), calendar.local(one.to_ns)
    last = (end - timedelta(days=1)).date()
    texts = [
        begin.date().isoformat() + ("" if last == begin.date() else f"..{last.isoformat()}"),
        f"{begin:%Y-%m-%d %H:%M}..{end:%Y-%m-%d %H:%M}",
        f"{_utc(one.from_ns)}..{_utc(one.to_ns)}",
    ]
    why = f" {one.why}" if one.why else ""
    for text in texts:
        try:
            if read_closure(text + why, calendar) == one:
                return text + why
        except ValueError:
            continue
    return texts[-1] + why


def _date(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise ValueError(f"there is no day {text}") from None


def _minute(text: str) -> int:
    hour, minute = (int(part) for part in text.split(":"))
    if minute > 59 or hour * 60 + minute > 1440:
        raise ValueError(f"{text!r} is no time of a day")
    return hour * 60 + minute


def _exact(text: str) -> int:
    whole, _, part = text.removesuffix("Z").partition(".")
    try:
        at = datetime.fromisoformat(whole).replace(tzinfo=UTC)
    except ValueError:
        raise ValueError(f"there is no moment {text}") from None
    return int(at.timestamp()) * NS + int((part + "0" * 9)[:9])


def _utc(moment_ns: int) -> str:
    at = datetime.fromtimestamp(moment_ns // NS, UTC)
    part = moment_ns % NS
    return f"{at:%Y-%m-%dT%H:%M:%S}{f'.{part:09}'.rstrip('0') if part else ''}Z"
