"""[[routes]] and [[coercions]] as the engine has them; or one clear error.

Imports nothing heavy: the supervisor, which has no engine, checks what is configured.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import time
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from hounsfield.archive.config import Config
from hounsfield.archive.config.sections import RouteEntry
from hounsfield.archive.dicom.coercion import Coercions, parse_coercion
from hounsfield.archive.dicom.rules import Rule, parse_rule
from hounsfield.archive.errors import ConfigError
from hounsfield.codecs.registry import lookup

if TYPE_CHECKING:
    from hounsfield.archive.engine.route_queue import Route

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_HOURS: Final = re.compile(r"([01]\d|2[0-3]):([0-5]\d)-([01]\d|2[0-3]):([0-5]\d)")


class _Checked(NamedTuple):
    entry: RouteEntry
    rule: Rule
    to: tuple[str, ...]
    hours: tuple[time, time] | None


def check_rules(config: Config) -> None:
    """Raise ConfigError for the first route or coercion that cannot be."""
    _checked_routes(config)
    coercions_of(config)


def coercions_of(config: Config) -> Coercions | None:
    """The coercions of a configuration, in its order; None when there are none. ConfigError."""
    refuse_namesakes(config.coercions, "coercions")
    if not config.coercions:
        return None
    entries = []
    for entry in config.coercions:
        where = f"coercions {entry.name!r}"
        rule = parse_rule(entry.match, f"{where} match")
        parts = (entry.copy, entry.map, entry.set, entry.remove)
        entries.append(parse_coercion(entry.name, rule, *parts, where))
    return Coercions(entries)


def routes_of(config: Config) -> list[Route]:
    """The routes of a configuration, in its order. ConfigError."""
    from hounsfield.archive.engine.route_queue import Route

    return [
        Route(
            name=entry.name,
            rule=rule,
            to=to,
            stable=entry.when == "stable",
            transfer_syntaxes=entry.transfer_syntaxes,
            associations=entry.associations,
            priority=entry.priority,
            retries=entry.retries,
            back_off_s=entry.back_off_seconds,
            back_off_s_max=entry.back_off_seconds_max,
            give_up_s=entry.give_up_hours * 3600,
            bytes_per_second=entry.bytes_per_second,
            back_to_sender=entry.back_to_sender,
            hours=hours,
        )
        for entry, rule, to, hours in _checked_routes(config)
    ]


def _checked_routes(config: Config) -> list[_Checked]:
    refuse_namesakes(config.routes, "routes")
    return [_checked(entry) for entry in config.routes]


def refuse_namesakes(entries: Sequence[Any], table: str) -> None:
    """Raise ConfigError for the first entry whose name cannot be one, or is another's, too."""
    names = [entry.name for entry in entries]
    for name in names:
        if not _NAME.fullmatch(name):
            raise ConfigError(
                f"{table} {name!r}: a name is up to 64 letters, digits, dots, dashes and underscores"
            )
        if names.count(name) > 1:
            raise ConfigError(f"{table} {name!r} is listed more than once; give each a name of its own")


def _checked(entry: RouteEntry) -> _Checked:
    where = f"routes {entry.name!r}"
    to = tuple(dict.fromkeys(title.strip() for title in entry.to))
    if not to:
        raise ConfigError(f"{where}: name at least one AE in `to`")
    if entry.back_off_seconds > entry.back_off_seconds_max:
        raise ConfigError(f"{where}: back_off_seconds is longer than back_off_seconds_max")
    for uid in entry.transfer_syntaxes:
        if not lookup(uid).known:
            raise ConfigError(f"{where}: transfer_syntaxes: {uid!r} is no transfer syntax that is known here")
    rule = parse_rule(entry.match, f"{where} match")
    return _Checked(entry, rule, to, _hours(entry.hours, where) if entry.hours else None)


def _hours(text: str, where: str) -> tuple[time, time]:
    found = _HOURS.fullmatch(text.strip())
    if found is None or found[1] + found[2] == found[3] + found[4]:
        raise ConfigError(f"{where}: hours are two times of day, such as 20:00-06:00, not {text!r}")
    return time(int(found[1]), int(found[2])), time(int(found[3]), int(found[4]))
