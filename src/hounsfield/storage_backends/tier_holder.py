"""From which data directory a tier is written: from one, although several may have the archive's keys.

A backup that was restored to be tried, and a copy of a machine, are the same archive as far as keys tell.
Were two such served with the same tiers, each would remove what only the other one knows of: a pack that was
copied there since is to the one what a killed move left, and what is deleted in the one is still needed by
the other. So each data directory has a name of its own, which no backup has, and a tier says whose it is.
Whoever else has the keys reads there, and changes nothing, until somebody says that it is the archive now.
"""

from __future__ import annotations

import secrets
from typing import Final

from hounsfield.storage_backends.errors import BlobNotFoundError, StorageError
from hounsfield.storage_backends.object_store import ObjectStore, StoreAwayError, create_once

__all__ = ["TIER_HOLDER", "TierHeldError", "hold_tier", "holder_of", "name_of_directory", "take_tier"]

TIER_HOLDER: Final = "hounsfield-holder"
"""The object that names it, in a tier and in the data directory itself."""
_NAME_BYTES: Final = 16
_READ_MAX: Final = 256


class TierHeldError(StorageError):
    """Another data directory of the same archive writes there: nothing was changed."""


def holder_of(store: ObjectStore) -> str:
    """Who holds a tier; "" when nobody does. Of a data directory: its name."""
    said = b""
    try:
        for piece in store.stream(TIER_HOLDER):
            said += piece
            if len(said) > _READ_MAX:
                break
    except BlobNotFoundError:
        return ""
    return said[:_READ_MAX].decode("ascii", "replace").strip()


def name_of_directory(hot: ObjectStore) -> str:
    """The name of the data directory that ``hot`` is; made when it has none."""
    return holder_of(hot) or _made(hot, secrets.token_hex(_NAME_BYTES))


def hold_tier(store: ObjectStore, holder: str, tier: str) -> None:
    """Make sure that ``holder`` may write to ``store``: it does already, or nobody did. ``TierHeldError``."""
    found = holder_of(store) or _made(store, holder)
    if found != holder:
        raise TierHeldError(
            f"tier {tier} is written from another data directory of this archive (one of the two was "
            "restored or copied): it is read here, and nothing is changed there; if the other one is stopped "
            f"for good: `hounsfield tier take {tier}`"
        )


def take_tier(store: ObjectStore, holder: str) -> None:
    """Have ``holder`` write to ``store`` from now on; the former one stops when it looks next."""
    said = holder.encode() + b"\n"
    store.put(TIER_HOLDER, [said], len(said))


def _made(store: ObjectStore, holder: str) -> str:
    create_once(store, TIER_HOLDER, holder.encode() + b"\n")
    found = holder_of(store)  # somebody may have been faster
    if not found:
        raise StoreAwayError(f"{store!r}: {TIER_HOLDER!r} is not there although it was put: try again later")
    return found
