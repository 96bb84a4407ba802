"""The scoreboard as Prometheus text: any worker's ``/metrics`` shows the whole archive."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from hounsfield import __version__
from hounsfield.archive.app.scoreboard import Kind, Scoreboard

# What load balancers and alerts look at worker by worker; everything else is a sum.
_PER_WORKER = frozenset({"worker_ready", "worker_connections"})


class ScoreboardCollector(Collector):
    """Reads the scoreboard anew for each scrape; keeps nothing."""

    def __init__(self, board: Scoreboard, prefix: str = "hounsfield") -> None:
        self._board = board
        self._prefix = prefix

    def collect(self) -> Iterator[Metric]:
        """Every line of the fixed table, once per published name."""
        yield InfoMetricFamily(f"{self._prefix}_build", "What is running", {"version": __version__})
        families: dict[str, Metric] = {}
        for metric in self._board.metrics:
            if metric.kind is Kind.TABLE:
                continue
            name = f"{self._prefix}_{metric.name}"
            labels = [label for label, _ in metric.labels]
            values = [value for _, value in metric.labels]
            if metric.kind is Kind.HISTOGRAM:
                buckets, total = self._board.histogram(metric.key)
                histogram = HistogramMetricFamily(name, metric.help)
                histogram.add_metric(
                    values, [("+Inf" if b == float("inf") else str(b), n) for b, n in buckets], total
                )
                families[name] = histogram
            elif metric.kind is Kind.COUNTER:
                counter = families.setdefault(name, CounterMetricFamily(name, metric.help, labels=labels))
                assert isinstance(counter, CounterMetricFamily)
                counter.add_metric(values, self._board.total(metric.key) * metric.scale)
            elif metric.name in _PER_WORKER:
                gauge = GaugeMetricFamily(name, metric.help, labels=["worker"])
                for worker, value in enumerate(self._board.by_worker(metric.key)):
                    gauge.add_metric([str(worker)], value)
                families[name] = gauge
            else:
                gauge = GaugeMetricFamily(name, metric.help, labels=labels)
                gauge.add_metric(values, self._board.total(metric.key) * metric.scale)
                families[name] = gauge
        yield from families.values()


class _Others(Collector):
    """Figures that the scoreboard has no line for."""

    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        return self._metrics


def prometheus_text(board: Scoreboard, others: Iterable[Metric] = ()) -> bytes:
    """The exposition of the whole archive, and of ``others``, in Prometheus' text format 0.0.4."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(ScoreboardCollector(board))
    registry.register(_Others(others))
    return generate_latest(registry)
