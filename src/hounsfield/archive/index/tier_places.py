"""A tier as the index sees it: a place for whole objects, and what packs and their keys are called there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from hounsfield.storage_backends.object_store import ObjectStore

__all__ = ["Tier", "pack_key", "segment_key_name", "segment_of", "segment_of_key"]


@dataclass(frozen=True, slots=True)
class Tier:
    """One tier: its name, its place, and what a pack is called there. ``keeps_keys``: wrapped ones, too."""

    name: str
    store: ObjectStore
    key_of: Callable[[bytes], str]
    keeps_keys: bool = True


def pack_key(segment: bytes) -> str:
    """What a pack is called in a tier."""
    name = segment.hex()
    return f"packs/{name[:2]}/{name}"


def segment_key_name(segment: bytes) -> str:
    """What its wrapped key is called there."""
    return f"keys/segment/{segment.hex()}.key"


def segment_of(key: str) -> bytes | None:
    """Whose pack is called so, None when it is no pack's name."""
    try:
        segment = bytes.fromhex(key.rpartition("/")[2])
    except ValueError:
        return None
    return segment if len(segment) == 16 and pack_key(segment) == key else None


def segment_of_key(key: str) -> bytes | None:
    """Whose wrapped key is called so, None when it is no key's name."""
    try:
        segment = bytes.fromhex(key.rpartition("/")[2].removesuffix(".key"))
    except ValueError:
        return None
    return segment if segment_key_name(segment) == key else None
