"""Which rules are emptying the hot tier: one that has begun goes on, whoever leads then.

A rule with ``fill_above`` begins above one mark and ends at another. Which ones have begun is kept in the
index, or a change of leader would leave a disk that is between the marks as it is.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from hounsfield.archive.engine.tier_rules import TierRule, draining
from hounsfield.archive.index.packs import HOT, pack_of
from hounsfield.archive.index.tables import META
from hounsfield.archive.index.use import uses
from hounsfield.storage_backends.api import Batch, KeyValueStore

__all__ = ["dead_bytes", "draining_now", "note_draining"]

_DRAINING = b"tiering/draining"


def draining_now(store: KeyValueStore, rules: Sequence[TierRule], hot_fill: float) -> frozenset[str]:
    """The rules that are emptying the hot tier at this fill; those that had begun go on to the lower mark."""
    if all(rule.fill_above is None for rule in rules):
        return frozenset()
    return draining(rules, hot_fill, _noted(store))


def note_draining(store: KeyValueStore, names: frozenset[str]) -> None:
    """Keep which rules have begun, for the next look, whichever process takes it. The leader's."""
    if names == _noted(store):
        return
    batch = Batch(uses_reserve=True)
    batch.put(META, _DRAINING, msgspec.json.encode(sorted(names)))
    store.commit(batch)


def _noted(store: KeyValueStore) -> frozenset[str]:
    with store.snapshot() as snapshot:
        held = snapshot.get(META, _DRAINING)
    return frozenset() if held is None else frozenset(msgspec.json.decode(held, type=list[str]))


def dead_bytes(store: KeyValueStore) -> int:
    """Bytes on the local disk that nothing needs any more: compaction frees them."""
    with store.snapshot() as snapshot:
        found = [
            use.dead_bytes
            for segment, use in uses(snapshot)
            if (pack := pack_of(snapshot, segment)) is None or HOT in pack.copies
        ]
    return sum(found)
