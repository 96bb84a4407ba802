"""How far apart the appointments of a series are, also when one of them is moved."""

from __future__ import annotations

from typing import Final

from hounsfield.archive.plugins import View
from hounsfield.ris_plugin.records.schedule import APPOINTMENT, HOLDING, Appointment
from hounsfield.ris_plugin.schedule.free_time import MINUTE_NS

__all__ = ["PARTS_MAX", "gap_between", "of_series", "why_not"]

PARTS_MAX: Final = 60
"""Appointments of one series: one a day for two months."""


def of_series(view: View, series: str) -> list[tuple[str, Appointment]]:
    """The appointments of a series, by when they are."""
    return list(view.find(APPOINTMENT, "series", series, limit=PARTS_MAX))


def gap_between(before: Appointment, after: Appointment) -> str:
    """What is wrong with the time between two that follow one another; "" when nothing is."""
    gap_ns = after.from_ns - before.to_ns
    low, high = after.gap_minutes_min, after.gap_minutes_max
    if low * MINUTE_NS <= gap_ns and (not high or gap_ns <= high * MINUTE_NS):
        return ""
    if not high:
        wanted = f"{_duration(low)} or more" if low else "some time, not before"
    else:
        wanted = _duration(low) if low == high else f"{_duration(low)} to {_duration(high)}"
    return f"{after.number} begins {wanted} after {before.number}, the one before it in its series, ends"


def why_not(view: View, appointment_id: str, moved: Appointment) -> str:
    """Why an appointment of a series cannot have another time, which it has as ``moved``; "" when it can.

    It stays between those that were before and after it, as far from them as the series was booked.
    """
    if not moved.series:
        return ""
    parts = of_series(view, moved.series)
    place = next((at for at, (key, _) in enumerate(parts) if key == appointment_id), len(parts))
    before = [one for _, one in parts[:place] if one.state in HOLDING]
    after = [one for _, one in parts[place + 1 :] if one.state in HOLDING]
    wrong = gap_between(before[-1], moved) if before else ""
    return wrong or (gap_between(moved, after[0]) if after else "")


def _duration(minutes: int) -> str:
    for unit, name in ((1440, "days"), (60, "hours")):
        if minutes >= 2 * unit and minutes % unit == 0:
            return f"{minutes // unit} {name}"
    return f"{minutes} minutes"
