"""Figures of orders and reports for Prometheus, from the records as they are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from hounsfield.ris_plugin.context import Ris
from hounsfield.ris_plugin.orders import late as orders_late
from hounsfield.ris_plugin.records.base import NS
from hounsfield.ris_plugin.records.orders import OPEN_STATES, ORDER
from hounsfield.ris_plugin.records.reports import REPORT
from hounsfield.ris_plugin.records.schedule import APPOINTMENT

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

__all__ = ["figures"]

COUNTED_MAX: Final = 10_000
"""Of a kind; more than that is not counted: open work is looked at, history is not."""


def figures(ris: Ris) -> Iterator[Metric]:
    """Open orders by state, what is to be read and since when, who waits for a time."""
    from prometheus_client.metrics_core import GaugeMetricFamily  # only a server has figures

    with ris.reading() as view:
        counts = {
            state: len(view.ids(ORDER, "state", state, limit=COUNTED_MAX)) for state in sorted(OPEN_STATES)
        }
        unread = len(view.ids(REPORT, "unread", "", limit=COUNTED_MAX))
        first = view.first(REPORT, "unread", "")
        late = len(orders_late(view, ris.settings, ris.now_ns(), COUNTED_MAX))
        waiting = len(view.ids(APPOINTMENT, "waiting", "", limit=COUNTED_MAX))
    orders = GaugeMetricFamily("hounsfield_ris_orders", "Open orders", labels=["state"])
    for state, count in counts.items():
        orders.add_metric([state], count)
    yield orders
    yield GaugeMetricFamily("hounsfield_ris_reports_unread", "Reports that are not final", value=unread)
    yield GaugeMetricFamily(
        "hounsfield_ris_orders_late", "Orders that have no time and wait too long", value=late
    )
    age = max(0.0, (ris.now_ns() - first[1].ready_ns) / NS) if first is not None else 0.0
    yield GaugeMetricFamily(
        "hounsfield_ris_reports_oldest_seconds", "How long the first of them can be read already", value=age
    )
    yield GaugeMetricFamily(
        "hounsfield_ris_appointments_waiting", "Who waits for a time, or an earlier one", value=waiting
    )
