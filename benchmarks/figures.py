"""The little statistics that the figures need."""

from __future__ import annotations

import math
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

# One-sided 95 % quantiles of Student's t for 1, 2, … 30 degrees of freedom; beyond, the normal's.
_T95 = (
    6.314, 2.920, 2.353, 2.132, 2.015, 1.943, 1.895, 1.860, 1.833, 1.812, 1.796, 1.782, 1.771, 1.761, 1.753,
    1.746, 1.740, 1.734, 1.729, 1.725, 1.721, 1.717, 1.714, 1.711, 1.708, 1.706, 1.703, 1.701, 1.699, 1.697,
)  # fmt: skip

# A ratio inside this band is too near 1 to be read off a few rounds: it needs PAIRS interleaved pairs and
# its bound.
NEAR_ONE = (0.8, 1.25)
PAIRS = 15


def percentile(ordered: Sequence[float], share: float) -> float:
    """The value at `share` (0 to 1) of an already sorted sequence, nearest rank; 0.0 when there is none."""
    if not ordered:
        return 0.0
    return ordered[min(len(ordered) - 1, max(0, math.ceil(share * len(ordered)) - 1))]


def median(values: Sequence[float]) -> float:
    """The median, 0.0 when there is none."""
    return statistics.median(values) if values else 0.0


def together(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What the processes of one load measured, as one: failures, seconds, rate, latencies in milliseconds.

    The time is from the first that completed anything began to the last completion.
    """
    failures: Counter[str] = Counter()
    for part in parts:
        failures.update(part["failures"])
    latencies = sorted(ns / 1e6 for part in parts for ns in part["latencies_ns"])
    began = [part["began"] for part in parts if part["latencies_ns"]]
    seconds = max(part["ended"] for part in parts) - min(began) if began else 0.0
    return {
        "failures": dict(failures),
        "seconds": seconds,
        "rate": len(latencies) / seconds if seconds else 0.0,
        "p50_ms": percentile(latencies, 0.5),
        "p99_ms": percentile(latencies, 0.99),
        "worst_ms": percentile(latencies, 1.0),
    }


def due(began_ns: int, index: int, interval_s: float) -> int:
    """Wait until the ``index``-th request of a load is due; when that was (``monotonic_ns``).

    What is timed from then shows what those wait who come while an answer is late. Without an interval each
    is due when the one before was answered.
    """
    now = time.monotonic_ns()
    if not interval_s:
        return now
    at = began_ns + int(index * interval_s * 1e9)
    if at > now:
        time.sleep((at - now) / 1e9)
    return at


def lower_bound(ratios: Sequence[float]) -> float | None:
    """One-sided lower 95 % bound of the mean ratio of pairs (t on the logarithms); None below three pairs."""
    logs = [math.log(ratio) for ratio in ratios if ratio > 0]
    if len(logs) < 3:
        return None
    quantile = _T95[len(logs) - 2] if len(logs) - 1 <= len(_T95) else 1.645
    return math.exp(statistics.mean(logs) - quantile * statistics.stdev(logs) / math.sqrt(len(logs)))


def near_one(ratio: float) -> bool:
    """Whether a ratio may only be stated with PAIRS pairs and its lower bound."""
    return NEAR_ONE[0] <= ratio <= NEAR_ONE[1]
