"""What the tiers themselves say that they hold: for an index that was lost, or that is older than they are.

A tier that does not answer, or that bears no mark, is *away*: nobody can say what lies there, and an index
that is made without it does not have it. A mark that is missing is a disk that is not mounted, or a tier that
was never used; only the administrator knows which.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import msgspec
from msgspec import structs

from hounsfield.archive.index.catalog import Catalog
from hounsfield.archive.index.packs import HOT, ContentsRow, CopyRow, PackRow
from hounsfield.archive.index.rows import decode
from hounsfield.archive.index.tier_notes import USED_KEY, read_small, used_tiers
from hounsfield.archive.index.tier_places import Tier, pack_key, segment_key_name
from hounsfield.storage_backends.errors import BlobNotFoundError, FormatError, KeyringError, StorageError
from hounsfield.storage_backends.keyring import Keyring
from hounsfield.storage_backends.object_store import TIER_MARKER, TierMarkerMissingError
from hounsfield.storage_backends.packs import read_contents, read_end
from hounsfield.storage_backends.segment_scan import ScannedRecord

__all__ = ["FarPack", "FarPacks", "Listing", "TierAwayError", "listing", "read_pack"]

THREADS = 8  # that wait for a tier, mostly
PAGE_PACKS = 32  # whose contents are in memory together
_SEGMENT_ID_BYTES = 16


class TierAwayError(StorageError):
    """A tier does not say what it holds: an index that is made now would not have that."""

    retry = True


@dataclass(slots=True)
class Listing:
    """Which tiers have which packs, as they say; and why a tier says nothing."""

    packs: dict[bytes, tuple[str, ...]] = field(default_factory=dict)
    away: dict[str, str] = field(default_factory=dict)
    asked: set[str] = field(default_factory=set)
    """Tiers that answered."""
    unmarked: set[str] = field(default_factory=set)
    """Those of ``away`` that bear no archive's mark."""
    used: frozenset[str] | None = None
    """The tiers that were ever used, as those say that answered; None: none of them says."""
    unused: set[str] = field(default_factory=set)

    def excuse(self, is_unused: Callable[[str], bool]) -> None:
        """Have those without a mark not be away that were never used."""
        for name in sorted(self.unmarked):
            if is_unused(name):
                self.unused.add(name)
                del self.away[name]
        self.unmarked -= self.unused

    def is_said_unused(self, name: str) -> bool:
        """Whether tiers that answered name those that were ever used, and none names this one."""
        return self.used is not None and name not in self.used

    def require_all(self, missing: int) -> None:
        """Raise ``TierAwayError`` unless every tier answered. ``missing``: segments that are nowhere else."""
        if self.away:
            said = "; ".join(f"tier {name}: {why}" for name, why in sorted(self.away.items()))
            names = " ".join(f"--without-tier {name}" for name in sorted(self.away))
            raise TierAwayError(
                f"{said}. {missing} segments whose keys are here are nowhere else: what they hold would be "
                f"missing. Make the tier answer and try again, or reindex or restore without it: {names}"
            )


class FarPack(NamedTuple):
    """A pack as a copy of it in some tier says it is. ``row`` names every tier that lists it."""

    segment: bytes
    row: PackRow
    records: list[ScannedRecord]


def listing(tiers: Mapping[str, Tier], *, without: Collection[str] = ()) -> Listing:
    """What each tier beside the hot one lists, but for those that are ``without``. Puts nothing anywhere."""
    found = Listing()
    if unknown := set(without) - set(tiers):
        raise StorageError(f"no tier {', '.join(sorted(unknown))}: there are {', '.join(sorted(tiers))}")
    for name, tier in tiers.items():
        if name == HOT or name in without:
            continue
        try:
            tier.store.size(TIER_MARKER)
            for key in tier.store.names("packs/"):
                segment = _segment_of(key)
                if segment is not None:
                    found.packs[segment] = (*found.packs.get(segment, ()), name)
            said = read_small(tier.store, USED_KEY)
            if said is not None:
                found.used = (found.used or frozenset()) | used_tiers(said)
            found.asked.add(name)
        except TierMarkerMissingError as error:
            found.unmarked.add(name)
            found.away[name] = str(error)
        except BlobNotFoundError:
            found.unmarked.add(name)
            found.away[name] = "it bears no archive's mark: its disk is not mounted, or it was never used"
        except StorageError as error:
            found.away[name] = str(error)
    for name in found.away:  # half a list is none
        for segment, names in list(found.packs.items()):
            if name in names:
                found.packs[segment] = tuple(one for one in names if one != name)
    found.packs = {segment: names for segment, names in found.packs.items() if names}
    return found


class FarPacks:
    """The packs that the tiers of an archive list. Blocking."""

    def __init__(self, tiers: Mapping[str, Tier], found: Listing, keyring: Keyring) -> None:
        self.tiers = tiers
        self.packs = found.packs
        self.asked = found.asked
        self.unused = found.unused
        self._keyring = keyring

    def fetch_keys(self) -> int:
        """Take the keys of packs that are not in the keyring from the tiers; how many."""
        have = set(self._keyring.key_ids("segment"))
        wanted = [one for one in self.packs.items() if one[0].hex() not in have]
        with ThreadPoolExecutor(THREADS) as pool:
            return sum(pool.map(self._fetch_key, wanted))

    def _fetch_key(self, one: tuple[bytes, tuple[str, ...]]) -> bool:
        segment, names = one
        for name in names:
            store, key = self.tiers[name].store, segment_key_name(segment)
            try:
                self._keyring.take_wrapped("segment", segment.hex(), store.read(key, 0, store.size(key)))
            except StorageError:
                continue  # another tier may have it whole
            return True
        return False

    def read(
        self, segments: Iterable[bytes], catalog: Catalog
    ) -> Iterator[tuple[bytes, FarPack | StorageError]]:
        """Each of these packs as the first right copy says, or what was wrong with the last; in order."""
        todo = list(segments)
        read = partial(self._read, catalog)
        with ThreadPoolExecutor(THREADS) as pool:
            for start in range(0, len(todo), PAGE_PACKS):
                yield from pool.map(read, todo[start : start + PAGE_PACKS])

    def _read(self, catalog: Catalog, segment: bytes) -> tuple[bytes, FarPack | StorageError]:
        names = self.packs.get(segment, ())
        failure: StorageError = BlobNotFoundError(f"no tier lists pack {segment.hex()}")
        for name in names:
            try:
                found = read_pack(self.tiers[name], segment, self._keyring, catalog)
            except msgspec.MsgspecError as error:
                failure = FormatError(f"the contents of pack {segment.hex()} are not ours: {error}")
            except KeyringError as error:
                return segment, error
            except StorageError as error:
                failure = error
            else:
                copies = dict.fromkeys(names, CopyRow(found.row.made_ns))  # to be verified in their time
                return segment, found._replace(row=structs.replace(found.row, copies=copies))
        return segment, failure


def read_pack(tier: Tier, segment: bytes, keyring: Keyring, catalog: Catalog) -> FarPack:
    """A pack as its copy in one tier says it is: three requests, no pixels. Raises as reading it does."""
    name = tier.key_of(segment)
    key = keyring.key("segment", segment.hex())
    end = read_end(tier.store, name, segment, key)
    contents = read_contents(tier.store, name, segment, key, end)
    made = decode(ContentsRow, contents.row)
    records = [ScannedRecord(one.ref, one.ref.kind, one.row, one.ref.length) for one in contents.entries]
    series_key = catalog.series_key(made.study_uid, made.series_uid)
    copies = {tier.name: CopyRow(made.made_ns)}
    row = PackRow(series_key, tier.store.size(name), end.objects, made.made_ns, end.digest, copies)
    return FarPack(segment, row, records)


def _segment_of(key: str) -> bytes | None:
    try:
        segment = bytes.fromhex(key.rpartition("/")[2])
    except ValueError:
        return None
    return segment if len(segment) == _SEGMENT_ID_BYTES and pack_key(segment) == key else None
