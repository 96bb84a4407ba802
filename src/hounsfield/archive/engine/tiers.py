"""The tiers of an archive, opened: places for copies of packs, and who reads what lies there.

Opening asks nothing of any place: an archive starts while a bucket is away. A place is claimed before the
first thing is put there or listed (:func:`~hounsfield.storage_backends.object_store.claim_tier`), so that two
archives never share one.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from hounsfield.archive.engine.tier_planning import PlanLimits
from hounsfield.archive.engine.tier_rules import TierRule
from hounsfield.archive.engine.types import Instance
from hounsfield.archive.index.packs import HOT, Packs
from hounsfield.archive.index.prefetching import PrefetchRule
from hounsfield.archive.index.rows import InstanceRow
from hounsfield.archive.index.tier_places import Tier, pack_key
from hounsfield.storage_backends.api import Buffer, KeyValueStore
from hounsfield.storage_backends.directory_store import DirectoryLimits, DirectoryStore
from hounsfield.storage_backends.errors import StorageError
from hounsfield.storage_backends.keyring import Keyring
from hounsfield.storage_backends.late_store import LateStore
from hounsfield.storage_backends.local_blobs import LocalBlobLimits
from hounsfield.storage_backends.object_store import ObjectStore, TierMarkerMissingError, claim_tier
from hounsfield.storage_backends.range_cache import RangeCacheLimits
from hounsfield.storage_backends.s3_store import S3Limits, S3Options, S3Store
from hounsfield.storage_backends.store_memory import MemoryLimits, Remembering
from hounsfield.storage_backends.store_wrappers import Limited, Metered, Retrying, RetryLimits, TimedOut
from hounsfield.storage_backends.tier_holder import (
    TierHeldError,
    hold_tier,
    holder_of,
    name_of_directory,
    take_tier,
)
from hounsfield.storage_backends.tiered_blobs import Elsewhere, TieredBlobs

__all__ = ["TierOptions", "TieringLimits", "TieringOptions", "Tiers"]

SEGMENTS = "segments/"
_ID_BYTES = 16
HELD_S = 60.0  # after so long it is looked again whether a tier is still written from here


@dataclass(frozen=True, slots=True)
class TierOptions:
    """One tier beside the hot one: a directory or a bucket."""

    name: str
    place: Path | S3Options
    requests_max: int = 16
    """At once, of one worker: more only wait for each other, in the store or on the way."""

    retry_s: float = 60.0
    """For so long what fails for a moment is tried again; then it is left for the next look, and whoever asks
    is told so at once, but for one every few seconds."""

    silence_s: float = 20.0
    """A request of which nothing comes, or a call of a disk that hangs, for so long has failed. Busy servers
    take seconds for a first byte; whoever opens a study waits for it before another copy is read."""

    verify_s: float = 90 * 86_400.0
    """Every copy there is read again, all of it, after so long; 0: only when asked. Reads may cost money."""


@dataclass(frozen=True, slots=True)
class TieringLimits:
    """When packs are made and moved, and how fast."""

    plan_s: float = 3600.0
    """Between two plans: what rules say changes with the day, and with what came in."""

    check_s: float = 1.0
    """Between two looks at what somebody waits for: one read of an index that says nothing, mostly."""

    tidy_s: float = 60.0
    """Between two looks at what nothing needs any more."""

    bytes_per_second: int = 32 << 20
    """Of images that are packed, copied or verified, each byte counted once however often it is read and
    written for that; 0: as fast as they go. 2.9 TB a day: several times what a large hospital takes in.
    What is brought back is not held up."""

    sweep_s: float = 86_400.0
    """Between two looks for what killed moves left in a tier; each lists it."""

    remove_after_s: float = 30.0
    """What nothing needs any more stays so long: readers who looked before finish there."""

    recalled_bytes_max: int = 0
    """Packs that were brought back and lie elsewhere too; past it those go that were not opened for longest.
    0: no limit."""

    recall_when_opened: bool = True
    """A series of which something is read from elsewhere is brought back in the background."""

    erase_s: float = 30 * 86_400.0
    """What was deleted from a pack that is otherwise needed is erased after so long, as in compaction."""


@dataclass(frozen=True, slots=True)
class TieringOptions:
    """What an administrator says of tiers."""

    tiers: tuple[TierOptions, ...] = ()
    rules: tuple[TierRule, ...] = ()
    limits: TieringLimits = field(default_factory=TieringLimits)
    plan: PlanLimits = field(default_factory=PlanLimits)
    ranges: RangeCacheLimits = field(default_factory=RangeCacheLimits)
    prefetch: PrefetchRule = field(default_factory=PrefetchRule)


class Tiers:
    """Every tier of one archive, the hot one too, in this process."""

    def __init__(
        self,
        directory: Path,
        store: KeyValueStore,
        keyring: Keyring,
        options: TieringOptions,
        blobs: LocalBlobLimits,
    ) -> None:
        self.options = options
        self.reserve_bytes = blobs.reserve_bytes
        self._packs = Packs(store)
        self._names = tuple(one.name for one in options.tiers)
        self.metered: dict[str, Metered] = {}
        self._memories: dict[str, Remembering] = {}
        self._places: dict[str, _Claimed] = {}
        hot = DirectoryStore(directory, DirectoryLimits(reserve_bytes=blobs.reserve_bytes))
        self._holder = cache(partial(name_of, directory, keyring.root_id))
        place = _Claimed(hot, HOT, keyring.root_id, lambda: True, None)
        self.by_name = {HOT: Tier(HOT, place, lambda segment: SEGMENTS + segment.hex(), keeps_keys=False)}
        for one in options.tiers:
            metered = self.metered[one.name] = Metered(open_place(one))
            limited = Limited(metered, one.requests_max)
            memory = self._memories[one.name] = Remembering(limited, MemoryLimits(away_after_s=one.retry_s))
            calls = Retrying(memory, RetryLimits(deadline_s=one.retry_s))
            is_unused = partial(self.is_unused, one.name)
            place = self._places[one.name] = _Claimed(
                calls, one.name, keyring.root_id, is_unused, self._holder
            )
            self.by_name[one.name] = Tier(one.name, place, pack_key)

    def elsewhere(self, name: str) -> Elsewhere | None:
        """Where a blob of the data directory also lies; None: in no tier."""
        if not name.startswith(SEGMENTS):
            return None
        try:
            segment = bytes.fromhex(name[len(SEGMENTS) :])
        except ValueError:
            return None
        row = self._packs.get(segment) if len(segment) == _ID_BYTES else None
        if row is None:
            return None
        tiers = [tier for tier in self._names if tier in row.copies]
        if not tiers:
            return None
        at_once: tuple[ObjectStore, ...] = ()
        if len(tiers) > 1:  # who has a choice asks each once before waiting for any
            tiers.sort(key=lambda tier: self._memories[tier].is_doubtful())
            at_once = tuple(self._memories[tier] for tier in tiers)
        stores = tuple(self.by_name[tier].store for tier in tiers)
        return Elsewhere(row.size, pack_key(segment), stores, at_once)

    def holder_trouble(self, name: str) -> str:
        """Why nothing is written to a tier, if it is written from another data directory; asked once."""
        held = holder_of(self.metered[name])
        try:
            if held:
                hold_tier(self.metered[name], self._holder(), name)
        except TierHeldError as error:
            return str(error)
        return ""

    def take(self, name: str) -> None:
        """Have a tier be written from this data directory, and from no other one any more. ``LookupError``
        for one that is not configured; what its store raises."""
        self._places[name].take()

    def troubled(self) -> frozenset[str]:
        """Tiers that the last call found away, refusing or full, each as a whole."""
        return frozenset(name for name, memory in self._memories.items() if memory.trouble() is not None)

    def is_empty_bucket(self, name: str) -> bool:
        """Whether a tier is a bucket in which there is nothing. Asks it once.

        Of an empty directory nobody can say so: its disk may not be mounted.
        """
        place = next((one.place for one in self.options.tiers if one.name == name), None)
        if not isinstance(place, S3Options):
            return False
        try:
            return next(self.metered[name].names(), None) is None
        except StorageError:
            return False

    def is_unused(self, name: str) -> bool:
        """Whether the index knows of nothing there. Reads every pack's row."""
        return not any(name in row.copies for page in self._packs.pages() for _, row in page)

    def close(self) -> None:
        """Let go of every place."""
        for tier in self.by_name.values():
            tier.store.close()


def far_reads(reading: TieredBlobs) -> Callable[[tuple[Any, ...]], bool]:
    """Whether a read with these arguments, an instance or its row among them, is of what is not here."""

    def is_far(arguments: tuple[Any, ...]) -> bool:
        for one in arguments:
            first = one[0] if type(one) is list and one else one
            row = first.row if type(first) is Instance else first
            if type(row) is InstanceRow:
                return not reading.is_near(SEGMENTS + row.location.segment.hex())
        return False

    return is_far


def name_of(directory: Path, archive: bytes) -> str:
    """The name of a data directory among those that have its keys."""
    place = DirectoryStore(directory, DirectoryLimits(reserve_bytes=0))  # a full disk has room for it
    try:
        claim_tier(place, archive, first_time=True, name=HOT)
        return name_of_directory(place)
    finally:
        place.close()


def open_place(options: TierOptions) -> ObjectStore:
    """A tier's place as it is, with nothing around it. Asks nothing of it."""
    place = options.place
    if isinstance(place, Path):
        return TimedOut(DirectoryStore(place), options.silence_s, threads=2 * options.requests_max)
    limits = S3Limits(threads=options.requests_max, silence_s=options.silence_s)
    limits = replace(limits, request_s=max(limits.request_s, options.silence_s))
    return LateStore(partial(S3Store, place, limits), f"<tier {options.name}, not opened yet>")


class _Claimed:
    """A place in which nothing is put, listed or deleted before it is known to be this archive's."""

    def __init__(
        self,
        store: ObjectStore,
        name: str,
        archive: bytes,
        is_new: Callable[[], bool],
        holder: Callable[[], str] | None,
    ) -> None:
        """``is_new``: whether no copy there is known, so that it may be marked. ``holder``: which data
        directory this is, unless the place is that itself; another one's place is only read."""
        self._store = store
        self._name = name
        self._archive = archive
        self._is_new = is_new
        self._lock = threading.Lock()
        self._claimed = False
        self._holder = holder
        self._held_s: float | None = None  # when it was looked at last
        self.read = store.read
        self.read_into = store.read_into
        self.stream = store.stream
        self.size = store.size
        self.close = store.close

    def __repr__(self) -> str:
        return repr(self._store)

    def put(self, key: str, pieces: Iterable[Buffer], length: int) -> None:
        self._claim()
        self._hold()
        self._store.put(key, pieces, length)

    def names(self, prefix: str = "") -> Iterator[str]:
        self._claim()
        return self._store.names(prefix)

    def delete(self, key: str) -> None:
        self._claim()
        self._hold()
        self._store.delete(key)

    def take(self) -> None:
        assert self._holder is not None
        self._claim()
        take_tier(self._store, self._holder())

    def _hold(self) -> None:
        if self._holder is None:
            return
        with self._lock:
            if self._held_s is not None and time.monotonic() - self._held_s < HELD_S:
                return
            hold_tier(self._store, self._holder(), self._name)
            self._held_s = time.monotonic()

    def _claim(self) -> None:
        with self._lock:
            if self._claimed:
                return
            try:
                claim_tier(self._store, self._archive, first_time=False, name=self._name)
            except TierMarkerMissingError:
                if not self._is_new():
                    raise
                claim_tier(self._store, self._archive, first_time=True, name=self._name)
            self._claimed = True
