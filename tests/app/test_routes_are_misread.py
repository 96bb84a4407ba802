"""[[routes]] mean what they say, or say what is wrong; hours, preferences and pauses are kept to."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest

from hounsfield.archive.app.route_options import check_rules, routes_of
from hounsfield.archive.config import Config
from hounsfield.archive.config.sections import RouteEntry
from hounsfield.archive.engine.types import Instance
from hounsfield.archive.errors import ConfigError
from hounsfield.archive.index.rows import InstanceRow, Location
from hounsfield.archive.net.outgoing import batches_of
from hounsfield.archive.net.routing import Preferring, with_preferred
from hounsfield.archive.wire import AcceptedContext

CT = "1.2.840.10008.5.1.4.1.1.2"
EXPLICIT, IMPLICIT = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2"
JPEG_2000, JPEG_LS = "1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.80"


def entry(**keys: Any) -> RouteEntry:
    return RouteEntry(**{"name": "r", "to": ("A",), **keys})


def test_a_route_is_what_the_file_says() -> None:
    (route,) = routes_of(
        Config(
            routes=(
                entry(to=("A ", "B", "A"), when="stable", give_up_hours=2, hours="20:00-06:00", priority=3),
            )
        )
    )
    assert (route.to, route.stable, route.give_up_s, route.priority) == (("A", "B"), True, 7200, 3)


@pytest.mark.parametrize(
    ("hours", "inside", "outside"),
    [
        ("20:00-06:00", ["20:00", "23:59", "00:00", "05:59"], ["06:00", "12:00", "19:59"]),
        ("08:00-17:30", ["08:00", "17:29"], ["07:59", "17:30", "00:00"]),
    ],
)
def test_hours_go_past_midnight(hours: str, inside: list[str], outside: list[str]) -> None:
    (route,) = routes_of(Config(routes=(entry(hours=hours),)))
    assert all(route.is_open(datetime.fromisoformat(f"2026-01-01T{at}")) for at in inside)
    assert not any(route.is_open(datetime.fromisoformat(f"2026-01-01T{at}")) for at in outside)


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ((entry(), entry()), "routes 'r' is listed more than once"),
        ((entry(name="a\0b"),), "a name is up to 64"),
        ((entry(to=()),), "name at least one AE"),
        ((entry(hours="8-17"),), "such as 20:00-06:00"),
        ((entry(hours="08:00-08:00"),), "such as 20:00-06:00"),
        ((entry(back_off_seconds=10, back_off_seconds_max=5),), "is longer than back_off_seconds_max"),
        ((entry(transfer_syntaxes=("1.2.3",)),), "'1.2.3' is no transfer syntax"),
        ((entry(match={"any": [{"Modality": "*"}]}),), "routes 'r' match.any.Modality: '*' matches every"),
    ],
)
def test_what_cannot_be_is_said(entries: tuple[RouteEntry, ...], said: str) -> None:
    with pytest.raises(ConfigError) as error:
        check_rules(Config(routes=entries))
    assert said in str(error.value)


def test_preferred_syntaxes_are_proposed_and_chosen_first() -> None:
    (batch,) = batches_of([(CT, EXPLICIT)])
    proposed = with_preferred(batch, [JPEG_LS, JPEG_2000, "1.2.840.10008.1.2.4.100"])
    alone = [one.transfer_syntaxes for one in proposed.contexts if one.abstract_syntax == CT]
    assert (JPEG_LS,) in alone
    assert (JPEG_2000,) in alone
    assert ("1.2.840.10008.1.2.4.100",) not in alone, "nothing is made a video"
    assert len({one.context_id for one in proposed.contexts}) == len(proposed.contexts)
    location = Location(b"s", b"r", 0, 1, 1, 1, 1, 512)
    instance = Instance("2.25.1", "2.25.2", InstanceRow("2.25.3", CT, EXPLICIT, location, 1, {}, 0))
    contexts = [
        AcceptedContext(number, CT, uid) for number, uid in ((1, EXPLICIT), (3, JPEG_2000), (5, JPEG_LS))
    ]
    chosen = [one.transfer_syntax for one in Preferring(contexts, [JPEG_LS, JPEG_2000]).choices(instance)]
    assert chosen == [JPEG_LS, JPEG_2000, EXPLICIT]
