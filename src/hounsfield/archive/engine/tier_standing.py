"""What lies in which tier, and which tiers answer: looked up for a person, and told by the leader for graphs.

The totals cost a read of every pack's row, some seconds of a large archive. So the leader, who walks over
them once a minute anyway, keeps them in one row, which a scrape of metrics reads.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Final

import msgspec

from hounsfield.archive.engine.tier_probes import Probes
from hounsfield.archive.engine.tiers import Tiers
from hounsfield.archive.index.demand import recalls
from hounsfield.archive.index.packs import HOT, Packs
from hounsfield.archive.index.tables import META
from hounsfield.archive.index.verifying import Damage
from hounsfield.storage_backends.api import Batch, KeyValueStore
from hounsfield.storage_backends.errors import BlobNotFoundError, StorageError
from hounsfield.storage_backends.object_store import (
    TIER_MARKER,
    ObjectStore,
    TierMarkerMissingError,
    claim_tier,
)

__all__ = ["Held", "Standing", "TierStanding"]

RECALLS_MAX: Final = 10_000
"""Waiting recalls that are counted: more is as bad."""
ASKED_WAIT_S: Final = 10.0
"""So long a person waits for tiers to say whether they are there."""
LEADER_WAIT_S: Final = 2.0
"""So long, once a minute, whoever moves and brings back what others wait for."""
_TOLD = b"tiering/told"
_NONE = (0, 0, 0)
_NS = 1_000_000_000


class Held(msgspec.Struct, frozen=True):
    """What one tier holds, as the index has it. ``damaged``: copies that are wrong, with no right one beside
    them; ``missing``: those of them that the tier says are not there."""

    packs: int = 0
    bytes: int = 0
    objects: int = 0
    damaged: int = 0
    missing: int = 0
    trouble: str = ""
    """Why it does not answer; "" when it does."""
    configured: bool = True


class Standing(msgspec.Struct, frozen=True):
    """All tiers at one moment; the recalls that wait, and since when the oldest does."""

    at_ns: int = 0
    tiers: dict[str, Held] = {}
    recalls: int = 0
    oldest_recall_ns: int = 0
    stuck: int = 0
    """Recalls that wait for what no tier has a right copy of."""

    @property
    def damaged(self) -> int:
        """Damaged copies, in all tiers."""
        return sum(held.damaged for held in self.tiers.values())

    @property
    def missing(self) -> int:
        """Those of them that are not there."""
        return sum(held.missing for held in self.tiers.values())


class TierStanding:
    """Looks up how tiers stand. Blocking; any number of threads."""

    def __init__(
        self,
        store: KeyValueStore,
        tiers: Tiers,
        archive: bytes,
        damaged: Callable[[], Iterable[Damage]],
        *,
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        """``archive``: the keyring's root id; ``damaged``: the copies that are known to be."""
        self._store = store
        self._tiers = tiers
        self._archive = archive
        self._packs = Packs(store)
        self._damaged = damaged
        self._probes = Probes()
        self._clock = clock

    @property
    def names(self) -> tuple[str, ...]:
        """Every tier that is configured, the hot one first."""
        return tuple(self._tiers.by_name)

    def look(self, *, wait_s: float = ASKED_WAIT_S) -> Standing:
        """As it is now. Reads every pack's row, and asks each tier once whether it is there: one that says
        nothing for ``wait_s`` is said not to answer."""
        known = list(self._damaged())
        damaged = Counter(one.tier for one in known)
        missing = Counter(one.tier for one in known if one.row.missing)
        totals = self._packs.totals()
        tiers = {}
        troubles = self._probes.ask(
            {
                name: partial(self._trouble, name, is_used=bool(totals.get(name, _NONE)[0]))
                for name in self.names
                if name != HOT
            },
            wait_s,
        )
        for name in dict.fromkeys((*self.names, *totals)):
            packs, size, objects = totals.get(name, _NONE)
            configured = name in self._tiers.by_name
            trouble = troubles.get(name, "") if configured else "it is not in config.toml any more"
            tiers[name] = Held(packs, size, objects, damaged[name], missing[name], trouble, configured)
        waiting = recalls(self._store, RECALLS_MAX)
        oldest = min((row.asked_ns for _, row in waiting), default=0)
        stuck = self._stuck([key for key, _ in waiting], known)
        return Standing(self._clock(), tiers, len(waiting), oldest, stuck)

    def _stuck(self, waiting: list[bytes], known: list[Damage]) -> int:
        """How many of the series that are waited for have a pack without any right copy."""
        damaged = {(one.segment, one.tier) for one in known}
        if not damaged:
            return 0
        return sum(
            any(
                (tiers := row.copies.keys() & self._tiers.by_name.keys())
                and all((segment, tier) in damaged for tier in tiers)
                for segment, row in self._packs.of_series(series_key)
            )
            for series_key in waiting
        )

    def _trouble(self, name: str, *, is_used: bool) -> str:
        """Why a tier does not serve now, asked without patience."""
        store = self._tiers.metered[name]
        try:
            claim_tier(store, self._archive, first_time=False, name=name)
            return self._tiers.holder_trouble(name)
        except TierMarkerMissingError as error:
            return "" if not is_used and _is_empty(store) else str(error)
        except (StorageError, OSError) as error:
            return str(error) or type(error).__name__

    def tell(self, *, again: bool) -> None:
        """Keep how it stands for who asks :meth:`told`. Not ``again``: only what may change within a second.

        The leader's, once a look.
        """
        told = self.told()
        if again or not told.at_ns:
            standing = self.look(wait_s=LEADER_WAIT_S)
        else:
            waiting = recalls(self._store, RECALLS_MAX)
            oldest = min((row.asked_ns for _, row in waiting), default=0)
            standing = msgspec.structs.replace(told, recalls=len(waiting), oldest_recall_ns=oldest)
            if standing == told:
                return
        batch = Batch(uses_reserve=True)
        batch.put(META, _TOLD, msgspec.json.encode(standing))
        self._store.commit(batch)

    def told(self) -> Standing:
        """How it stood when the leader told it last. One read."""
        with self._store.snapshot() as snapshot:
            held = snapshot.get(META, _TOLD)
        return Standing() if held is None else msgspec.json.decode(held, type=Standing)

    def plain(self, standing: Standing) -> dict[str, Any]:
        """As plain JSON."""
        return {
            "tiers": [
                {"tier": name, **msgspec.structs.asdict(held)} for name, held in standing.tiers.items()
            ],
            "recalls": standing.recalls,
            "oldest_recall": standing.oldest_recall_ns / _NS if standing.recalls else None,
            "stuck": standing.stuck,
            "damaged": standing.damaged,
            "missing": standing.missing,
        }


def _is_empty(store: ObjectStore) -> bool:
    """Whether a place is there and was never used."""
    try:
        for _ in store.stream(TIER_MARKER):
            return False
    except BlobNotFoundError:
        return True
    except (StorageError, OSError):
        return False
    return False
