"""What follows from what happened: consumers of the journal and timers, each in the worker that leads it."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import msgspec

from hounsfield.archive.plugins import Parts
from hounsfield.ris_plugin import following, numbers
from hounsfield.ris_plugin.actors import Actor, Role
from hounsfield.ris_plugin.context import Ris
from hounsfield.ris_plugin.following import Consumer
from hounsfield.ris_plugin.reacting import appointments, fixes, identities, images, timers
from hounsfield.ris_plugin.records.messages import ASIDE
from hounsfield.ris_plugin.records.performed import MISMATCH, TRACKED

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

__all__ = ["consumers", "parts"]

COUNTED_MAX: Final = 10_000
"""More than that is not counted, only said."""
WAITING: Final = ("expected", "acquired", "stored", "verified", "read")


def consumers(ris: Ris) -> list[Consumer]:
    """All that follow from what happens, but for those of other parts."""
    return [one for of in (images, fixes, identities, appointments) for one in of.consumers(ris)]


def parts(ris: Ris) -> Parts:
    """Consumers and timers, what was set aside, and figures."""
    mine = consumers(ris)

    async def asides(limit: int = 100) -> list[dict[str, Any]]:
        with ris.reading() as view:
            return [
                {"id": key, **msgspec.structs.asdict(msgspec.structs.replace(one, event=b""))}
                for key, one in following.asides(view, limit)
            ]

    async def aside_again(aside: str, person: str) -> None:
        await following.act_again(ris, _administrator(person), aside)

    async def aside_dismiss(aside: str, person: str) -> None:
        await ris.commit(lambda change: following.dismiss(change, _administrator(person), aside))

    async def skip_numbers(by: int, person: str) -> dict[str, int]:
        return await ris.commit(lambda change: numbers.skip(change, _administrator(person), by))

    return Parts(
        leading={**following.leading(ris, *mine), "timers": partial(timers.run, ris)},
        operations={
            "asides": asides,
            "aside-again": aside_again,
            "aside-dismiss": aside_dismiss,
            "skip-numbers": skip_numbers,
        },
        metrics=lambda: _metrics(ris),
    )


def _administrator(person: str) -> Actor:
    """Who asks on the machine itself."""
    return Actor(person, frozenset({Role.ADMINISTRATOR}))


def _metrics(ris: Ris) -> Iterator[Metric]:
    from prometheus_client.metrics_core import GaugeMetricFamily  # only a server has figures

    with ris.reading() as view:
        aside = len(view.ids(ASIDE, "state", "open", limit=COUNTED_MAX))
        mismatches = len(view.ids(MISMATCH, "state", "open", limit=COUNTED_MAX))
        alerts = len(view.ids(TRACKED, "alert", "", limit=COUNTED_MAX))
        waiting = {state: len(view.ids(TRACKED, "state", state, limit=COUNTED_MAX)) for state in WAITING}
    yield GaugeMetricFamily(
        "hounsfield_ris_events_aside", "Events that could not be acted on and wait for somebody", value=aside
    )
    yield GaugeMetricFamily(
        "hounsfield_ris_mismatches",
        "Studies of which somebody has to say where they belong",
        value=mismatches,
    )
    yield GaugeMetricFamily(
        "hounsfield_ris_alerts", "Studies that wait too long for images or a reader", value=alerts
    )
    studies = GaugeMetricFamily("hounsfield_ris_studies", "Studies on their way", labels=["state"])
    for state, count in waiting.items():
        studies.add_metric([state], count)
    yield studies
