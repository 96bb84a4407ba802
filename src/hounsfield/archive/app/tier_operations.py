"""What the command line asks of an archive about its tiers, and what graphs show of them."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Container, Iterator, Mapping, Sequence
from typing import Any, Final

import msgspec
from prometheus_client.metrics_core import GaugeMetricFamily, Metric

from hounsfield.archive.app.scoreboard import TIER_OPERATIONS
from hounsfield.archive.app.tier_options import rules_of
from hounsfield.archive.config.sections import TierRuleEntry
from hounsfield.archive.engine.engine import Engine
from hounsfield.archive.engine.tier_oversight import TierOversight
from hounsfield.archive.engine.tier_standing import Held, Standing
from hounsfield.archive.engine.tier_sums import NOTHING, added

HISTORY_MAX: Final = 10_000
SERIES_AT_ONCE: Final = 5_000
"""Of a plan, in one answer: some tenths of a second."""
_NS: Final = 1_000_000_000
_EXPECTED: Final = "BlobNotFoundError"
"""Of a store that is asked whether something is there: an answer, and no error."""


class TierOperations:
    """The operations over one engine."""

    def __init__(self, engine: Engine) -> None:
        self._oversight = TierOversight(engine)

    def table(self) -> dict[str, Callable[..., Awaitable[Any]]]:
        """Every operation by the name it is asked for with."""
        return {
            "tier-status": self._oversight.status,
            "tier-progress": self._oversight.progress,
            "tier-plan": self.plan,
            "tier-apply": self._oversight.apply,
            "tier-take": self.take,
            "tier-recall": self.recall,
            "tier-pin": self.pin,
            "tier-unpin": self.unpin,
            "tier-pins": self._oversight.pins,
            "tier-prefetch": self.prefetch,
            "tier-prefetch-forget": self._oversight.forget_prefetch,
            "tier-prefetches": self._oversight.prefetches,
            "tier-verify": self._oversight.verify,
            "tier-verifying": self._oversight.verifying,
            "tier-history": self.history,
        }

    async def plan(
        self, after: str | None, listed: bool, rules: list[Any] | None = None, tiers: Sequence[str] = ()
    ) -> dict[str, Any]:
        """Some pages of a plan as one; see :meth:`TierOversight.plan_page`.

        ``rules``: entries of [[tier_rules]] to plan by, in place of those in force; ``tiers``: where to.
        """
        tried = None
        if rules is not None:
            tried = rules_of(msgspec.convert(rules, tuple[TierRuleEntry, ...]), tiers)
        found: dict[str, Any] = NOTHING
        while after is not None and found["looked"] < SERIES_AT_ONCE:
            page = await self._oversight.plan_page(after, listed=listed, rules=tried)
            after = page.pop("after")
            found = added(found, page)
        return {**found, "after": after}

    async def take(self, tier: str) -> None:
        """Write to a tier from here on; see :meth:`TierOversight.take`."""
        await self._oversight.take(tier)

    async def recall(self, study: str, series: str) -> dict[str, int]:
        """Bring a study back; see :meth:`TierOversight.recall`."""
        return await self._oversight.recall(study, series)

    async def pin(self, study: str, by: str, why: str, until: float) -> dict[str, Any]:
        """Keep a study hot; see :meth:`TierOversight.pin`."""
        return await self._oversight.pin(study, by=by, why=why, until=until)

    async def prefetch(  # noqa: PLR0917  as JSON has it
        self, name: str, patient: str, issuer: str, modality: str, body_part: str, at: float
    ) -> None:
        """Announce an appointment; see :meth:`TierOversight.prefetch`."""
        await self._oversight.prefetch(name, patient, issuer, modality, body_part, at)

    async def unpin(self, study: str, by: str) -> None:
        """Let the rules decide again; see :meth:`TierOversight.unpin`."""
        await self._oversight.unpin(study, by=by)

    async def history(self, limit: int, before: int | None) -> dict[str, Any]:
        """What was done, newest first; see :meth:`TierOversight.history`."""
        return await self._oversight.history(min(limit, HISTORY_MAX), before)


# ---------------------------------------------------------------- figures


def tier_figures(engine: Engine, places: Container[str]) -> Callable[[], Mapping[str, int]]:
    """What this worker did, and its requests to each tier, for the scoreboard, which has these ``places``.

    A tier that a reload named, and with which a worker was then restarted, has none until the next start.
    """
    figures = engine.tiering.figures
    metered = {
        tier: store
        for tier, store in engine.stores.tiers.metered.items()
        if f"tier_requests_total.{tier}.{TIER_OPERATIONS[0]}" in places
    }

    def read() -> dict[str, int]:
        found = {
            "tiering_series_total": figures.series,
            "tiering_gathered_bytes_total.before": figures.gathered_bytes,
            "tiering_gathered_bytes_total.after": figures.packed_bytes,
            "tiering_copied_bytes_total": figures.copied_bytes,
            "tiering_freed_bytes_total": figures.freed_bytes,
            "tiering_recalled_series_total": figures.recalled_series,
            "tiering_recalled_bytes_total": figures.recalled_bytes,
            "tiering_expired_series_total": figures.expired_series,
            "tiering_verified_copies_total": figures.verified_copies,
            "tiering_repaired_packs_total": figures.repaired_packs,
            "tiering_failures_total": figures.failures,
        }
        for tier, store in metered.items():
            now = store.figures
            for operation in TIER_OPERATIONS:
                of = now[operation]
                errors = sum(count for name, count in of.errors.items() if name != _EXPECTED)
                where = f"{tier}.{operation}"
                found[f"tier_requests_total.{where}"] = of.calls
                found[f"tier_request_seconds_total.{where}"] = round(of.seconds * 1e6)
                found[f"tier_bytes_total.{where}"] = of.bytes
                found[f"tier_errors_total.{where}"] = errors
        return found

    return read


def tier_metrics(engine: Engine) -> Callable[[], Iterator[Metric]]:
    """How the tiers stand, as the leader told it last, for ``/metrics`` of whichever worker is asked."""

    def read() -> Iterator[Metric]:
        yield from _families(engine.tiering.standing.told(), engine.tiering.hot_fill())

    return read


def _families(standing: Standing, hot_fill: float) -> Iterator[Metric]:
    shown: dict[str, tuple[str, Callable[[Held], float]]] = {
        "packs": ("Packs of which there is a copy in the tier", lambda held: held.packs),
        "pack_bytes": ("Their bytes", lambda held: held.bytes),
        "objects": ("Objects in them", lambda held: held.objects),
        "damaged_copies": (
            "Copies that are wrong and have no right one beside them",
            lambda held: held.damaged,
        ),
        "away": ("1 while the tier does not answer, or not rightly", lambda held: int(bool(held.trouble))),
    }
    for name, (text, value) in shown.items():
        family = GaugeMetricFamily(f"hounsfield_tier_{name}", text, labels=["tier"])
        for tier, held in standing.tiers.items():
            family.add_metric([tier], value(held))
        yield family
    waited = time.time() - standing.oldest_recall_ns / _NS if standing.recalls else 0.0
    for name, text, number in (
        ("recalls_waiting", "Series that are to be brought back", float(standing.recalls)),
        ("recalls_oldest_seconds", "Since when the one asked for first waits", max(0.0, waited)),
        ("hot_fill_ratio", "How much of the disk of the data directory is used, 0 to 1", hot_fill),
    ):
        yield GaugeMetricFamily(f"hounsfield_tiering_{name}", text, value=number)
