"""What every used tier has beside its packs: the root key as it is wrapped now, and which tiers are used.

A tier and the master key of today are to be enough to read what lies there, so that a new master key must
come to every tier soon, and not with the next pack. And whoever has nothing but tiers must know whether one
that bears no mark was never used, or is a disk that is not mounted.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

from hounsfield.archive.index.tier_places import Tier
from hounsfield.storage_backends.errors import BlobNotFoundError
from hounsfield.storage_backends.keyring import Keyring
from hounsfield.storage_backends.object_store import ObjectStore

__all__ = ["ROOT_BYTES_MAX", "ROOT_KEY", "USED_KEY", "TierNotes", "read_small", "used_tiers"]

ROOT_KEY = "keys/root"
USED_KEY = "keys/tiers"
ROOT_BYTES_MAX = 65_536
"""Of either: far more than they are."""


class TierNotes:
    """Keeps what the tiers hold beside packs as it should be. Blocking; remembers what it put and saw."""

    def __init__(self, keyring: Keyring, tiers: Mapping[str, Tier]) -> None:
        self._keyring = keyring
        self._tiers = tiers
        self._roots: dict[str, bytes] = {}  # as they are in each tier
        self._used: dict[str, frozenset[str]] = {}  # as each tier says

    def look_again(self) -> None:
        """Have the next :meth:`keep` ask each tier what is there."""
        self._roots.clear()
        self._used.clear()

    def keep(self, name: str, used: Iterable[str], *, begins: bool = False) -> bool:
        """Have tier ``name`` hold the root file of now, and know that these tiers are ``used``.

        False: it holds no root file and is not among these, so it was never used, and nothing is put there.
        One that ``begins`` to be used is not asked before. Costs nothing when nothing has changed. Raises
        what the tier's store raises.
        """
        used = frozenset(used)
        tier = self._tiers[name]
        root = self._keyring.wrapped_root()
        if self._roots.get(name) != root:
            found = None if begins else read_small(tier.store, ROOT_KEY)
            if found is None and name not in used:
                return False
            if found != root:
                tier.store.put(ROOT_KEY, [root], len(root))
            self._roots[name] = root
        said = self._used.get(name)
        if said is None:
            said = used_tiers(read_small(tier.store, USED_KEY))
        now = said | used
        if now != said:
            note = json.dumps(sorted(now)).encode() + b"\n"
            tier.store.put(USED_KEY, [note], len(note))
        self._used[name] = now
        return True


def used_tiers(note: bytes | None) -> frozenset[str]:
    """Which tiers a note names; none when it is none of ours."""
    try:
        names = json.loads(note or b"[]")
    except ValueError:
        return frozenset()
    return frozenset(one for one in names if isinstance(one, str)) if isinstance(names, list) else frozenset()


def read_small(store: ObjectStore, key: str) -> bytes | None:
    """A small object; None when there is none."""
    try:
        return store.read(key, 0, min(store.size(key), ROOT_BYTES_MAX))
    except BlobNotFoundError:
        return None
