"""Pages of a plan of tiering, added up: plain values, so that who asks a server needs no engine for it."""

from __future__ import annotations

from typing import Any, Final

__all__ = ["NOTHING", "added", "seconds_of", "totals", "turn"]

NOTHING: Final[dict[str, Any]] = {
    "looked": 0, "quiet": 0, "unmatched": 0, "damaged": 0, "settled": {}, "rules": {}, "series": [],
}  # fmt: skip
"""Of no page yet."""


def added(one: Any, other: Any) -> Any:
    """Two pages as one: numbers and lists are added, tables name by name; of texts the later stays."""
    if isinstance(one, dict) and isinstance(other, dict):
        names = dict.fromkeys((*one, *other))
        return {
            name: added(one[name], other[name]) if name in one and name in other else
            one.get(name, other.get(name))
            for name in names
        }  # fmt: skip
    if isinstance(one, list) or (isinstance(one, int | float) and not isinstance(one, bool)):
        return one + other
    return other


def turn(listed: dict[str, Any]) -> tuple[bool, str, str]:
    """What orders the listed series of a plan as they will have their turn."""
    return not listed["for_room"], listed["since"], listed["key"]


def totals(plan: dict[str, Any], bytes_per_second: int) -> dict[str, Any]:
    """What all rules of a plan come to. ``seconds``: None when moves go as fast as they can."""
    rules = plan["rules"].values()
    copied: dict[str, int] = {}
    for rule in rules:
        copied = added(copied, rule["copied"])
    return {
        "series": sum(rule["series"] - rule["held"] for rule in rules),
        "copied": copied,
        "freed_bytes": sum(rule["freed_bytes"] for rule in rules),
        "gathered_bytes": sum(rule["gathered_bytes"] for rule in rules),
        "expired_bytes": sum(
            rule["bytes"] - rule["held_bytes"] for rule in rules if rule["action"] == "expire"
        ),
        "seconds": seconds_of(plan, bytes_per_second),
    }


def seconds_of(plan: dict[str, Any], bytes_per_second: int) -> float | None:
    """How long a plan takes at that speed, before anything is found to shrink."""
    if not bytes_per_second:
        return None
    return float(sum(rule["moved_bytes"] for rule in plan["rules"].values()) / bytes_per_second)
