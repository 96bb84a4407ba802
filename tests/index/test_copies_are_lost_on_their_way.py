"""A copy is named that is wrong, the last right one goes, or a killed step leaves something for ever."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hounsfield.archive.index.copying import Copying, NoCopyError
from hounsfield.archive.index.packs import (
    CopyRow,
    LastCopyError,
    PackGoneError,
    PackRow,
    plan_forget,
    plan_pack,
)
from hounsfield.archive.index.tables import ALL_TABLES
from hounsfield.archive.index.tier_places import Tier, pack_key, segment_key_name
from hounsfield.storage_backends.api import Batch, CommitResult
from hounsfield.storage_backends.errors import BlobNotFoundError, SealError, ShortReadError, StoreFullError
from hounsfield.storage_backends.keyring import Keyring
from hounsfield.storage_backends.lmdb_store import LmdbStore
from hounsfield.storage_backends.master_key import MasterKey
from hounsfield.storage_backends.memory_blobs import MemoryBlobs
from hounsfield.storage_backends.packs import PackWriter
from hounsfield.storage_backends.segment_appending import RecordIn
from hounsfield.storage_backends.segments import SegmentLog
from support.buckets import AwayError, Bucket
from support.killed_commits import KilledError

SERIES = b"s" * 20
TIERS = ("hot", "cold", "second")


class Place:
    """An index, a keyring and three tiers; the hot one has one pack."""

    def __init__(self, directory: Path) -> None:
        self.keyring = Keyring.create(directory / "keys", MasterKey.generate())
        self.store = LmdbStore(directory / "index", ALL_TABLES)
        self.buckets = {name: Bucket() for name in TIERS}
        self.now = 0
        self.segment, self.blob = self._packed()
        self.buckets["hot"].objects["segments/" + self.segment.hex()] = self.blob
        self.copying = self.started()

    def started(self) -> Copying:
        """As after a start."""
        tiers = {
            name: Tier(name, self.buckets[name], self.key_in(name), keeps_keys=name != "hot")
            for name in TIERS
        }
        return Copying(self.store, self.keyring, tiers, clock=self.clock)

    def clock(self) -> int:
        self.now += 1
        return self.now

    @staticmethod
    def key_in(tier: str) -> Callable[[bytes], str]:
        return pack_key if tier != "hot" else lambda segment: "segments/" + segment.hex()

    def _packed(self) -> tuple[bytes, bytes]:
        blobs = MemoryBlobs()
        log = SegmentLog(blobs, self.keyring)
        writer = PackWriter(log, arena_bytes=1 << 20)
        for n in range(3):
            writer.append([RecordIn(1, (b"row", b"header", random.Random(n).randbytes(200_000), b""))])
        end = writer.finish(b"made by a test", 3)
        (segment,) = writer.own_segments
        writer.close()
        blob = blobs.read("segments/" + segment.hex(), 0, blobs.size("segments/" + segment.hex()))
        batch = Batch()
        plan_pack(batch, segment, PackRow(SERIES, len(blob), 3, 1, end.digest, {"hot": CopyRow(1, 1)}))
        self.store.commit(batch)
        return segment, blob

    def copies(self) -> set[str]:
        row = self.copying.packs.get(self.segment)
        assert row is not None
        return set(row.copies)

    def right(self) -> set[str]:
        """The tiers whose bytes are right."""
        return {n for n in TIERS if self.buckets[n].objects.get(self.key_in(n)(self.segment)) == self.blob}

    def spoil(self, tier: str, at: int = 150_000) -> None:
        bucket, key = self.buckets[tier], self.key_in(tier)(self.segment)
        data = bytearray(bucket.objects[key])
        data[at] ^= 1
        bucket.objects[key] = bytes(data)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    made.store.close()


def test_a_copy_is_the_same_bytes_with_what_opens_them(place: Place) -> None:
    moved: list[int] = []
    row = place.copying.copy(place.segment, "cold", pace=moved.append)
    assert set(row.copies) == {"hot", "cold"}
    assert place.right() == {"hot", "cold"}
    assert sum(moved) == 2 * len(place.blob)  # put, and read back
    objects = place.buckets["cold"].objects
    assert objects[segment_key_name(place.segment)] == place.keyring.wrapped_key(
        "segment", place.segment.hex()
    )
    assert objects["keys/root"] == place.keyring.wrapped_root()
    assert not any(name.startswith("keys/") for name in place.buckets["hot"].objects)
    reads = place.buckets["cold"].reads
    place.copying.copy(place.segment, "cold")
    assert place.buckets["cold"].reads == reads


def test_a_move_there_and_back_leaves_the_same_bytes(place: Place) -> None:
    place.copying.copy(place.segment, "cold")
    place.copying.drop(place.segment, "hot")
    assert place.right() == place.copies() == {"cold"}
    place.copying.copy(place.segment, "hot")
    place.copying.drop(place.segment, "cold")
    assert place.right() == place.copies() == {"hot"}
    assert segment_key_name(place.segment) not in place.buckets["cold"].objects


def test_the_last_copy_stays(place: Place) -> None:
    with pytest.raises(LastCopyError):
        place.copying.drop(place.segment, "hot")
    place.copying.copy(place.segment, "cold")
    with pytest.raises(LastCopyError):
        place.copying.drop(place.segment, "hot", others_min=2)
    assert place.right() == {"hot", "cold"}


def test_what_the_local_disk_took_wrong_is_found_before_others_go(place: Place) -> None:
    place.copying.copy(place.segment, "cold")
    place.copying.drop(place.segment, "hot")
    place.copying.copy(place.segment, "hot")  # which is believed to be there
    place.spoil("hot")
    place.buckets["cold"].failure = AwayError("away")
    with pytest.raises(NoCopyError):
        place.copying.drop(place.segment, "cold")
    assert place.copies() == {"hot", "cold"}
    place.buckets["cold"].failure = None
    place.copying.drop(place.segment, "cold")
    assert place.right() == place.copies() == {"hot"}


def test_what_a_tier_gives_back_otherwise_is_never_named(place: Place) -> None:
    place.buckets["cold"].forgetful = True
    with pytest.raises(SealError):
        place.copying.copy(place.segment, "cold")
    assert place.copies() == {"hot"}


def test_a_wrong_copy_is_not_put_anywhere_and_the_other_one_is(place: Place) -> None:
    place.copying.copy(place.segment, "second")
    place.spoil("hot")
    place.copying.copy(place.segment, "cold")
    assert place.right() == {"cold", "second"}
    place.spoil("cold")
    place.spoil("second", at=len(place.blob) - 1)  # also in the padding
    with pytest.raises(SealError):
        place.copying.verify(place.segment, "second")
    before = dict(place.buckets["second"].objects)
    with pytest.raises(NoCopyError):
        place.copying.repair(place.segment, "second")
    assert place.buckets["second"].objects == before


@pytest.mark.parametrize("tier", TIERS)
def test_rot_in_any_copy_is_found_and_repaired_from_the_others(place: Place, tier: str) -> None:
    for name in ("cold", "second"):
        place.copying.copy(place.segment, name)
    place.spoil(tier)
    with pytest.raises(SealError):
        place.copying.verify(place.segment, tier)
    place.copying.repair(place.segment, tier)
    assert place.right() == set(TIERS)
    place.copying.verify(place.segment, tier)
    key = place.key_in(tier)(place.segment)
    place.buckets[tier].objects[key] = place.blob[:-5]
    with pytest.raises(ShortReadError):
        place.copying.verify(place.segment, tier)
    del place.buckets[tier].objects[key]
    with pytest.raises(BlobNotFoundError):
        place.copying.verify(place.segment, tier)
    place.copying.repair(place.segment, tier)
    assert place.right() == set(TIERS)


def test_another_pack_under_its_name_is_not_taken_for_it(place: Place) -> None:
    other = Place.__new__(Place)
    other.keyring, other.store = place.keyring, place.store
    _, blob = other._packed()
    place.copying.copy(place.segment, "cold")
    place.buckets["cold"].objects[pack_key(place.segment)] = blob
    with pytest.raises((SealError, ShortReadError)):
        place.copying.verify(place.segment, "cold")


def test_a_tier_that_is_away_or_full_changes_nothing(place: Place) -> None:
    for failure in (AwayError("away"), StoreFullError("full")):
        place.buckets["cold"].failure = failure
        with pytest.raises(type(failure)):
            place.copying.copy(place.segment, "cold")
        assert place.copies() == place.right() == {"hot"}
    place.buckets["cold"].failure = None
    place.copying.copy(place.segment, "cold")
    place.buckets["hot"].failure = AwayError("away")
    place.copying.copy(place.segment, "second")  # from the other one
    place.buckets["cold"].failure = AwayError("away")
    with pytest.raises(AwayError):
        place.copying.drop(place.segment, "cold")
    assert place.copies() == {"hot", "second"}
    place.buckets["cold"].failure = None
    assert place.copying.sweep("cold") == (1, 0)
    assert place.right() == {"hot", "second"}


class Killing:
    """Ends the process at one of its changes; ``unsettled``: one that happens all the same."""

    def __init__(self, changes: int, *, unsettled: bool) -> None:
        self.left = changes
        self.unsettled = unsettled

    def changing(self) -> bool:
        self.left -= 1
        if self.left < 0 and not self.unsettled:
            raise KilledError
        return self.left >= 0

    def over(self, place: Place, patch: pytest.MonkeyPatch) -> None:
        commit = place.store.commit

        def killed(batch: Batch) -> CommitResult:
            lives = self.changing()
            result = commit(batch)
            if not lives:
                raise KilledError
            return result

        patch.setattr(place.store, "commit", killed)
        for bucket in place.buckets.values():
            patch.setattr(bucket, "changing", self.changing)


@pytest.mark.parametrize("unsettled", [False, True])
def test_killed_at_every_step_nothing_is_lost_and_the_same_again_finishes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unsettled: bool
) -> None:
    """A move there and back, killed before (or after) each change of a tier and each commit."""

    def move(place: Place) -> None:
        place.copying.copy(place.segment, "cold")
        place.copying.drop(place.segment, "hot")
        place.copying.copy(place.segment, "hot")
        place.copying.drop(place.segment, "cold")

    stops, finished = 0, False
    while not finished:
        place = Place(tmp_path / str(stops))
        with monkeypatch.context() as patch:
            Killing(stops, unsettled=unsettled).over(place, patch)
            try:
                move(place)
                finished = True
            except KilledError:
                stops += 1
        assert place.copies() <= place.right()  # whatever is named is there, and right
        assert place.copies()
        place.copying = place.started()
        move(place)
        assert [place.copying.sweep(name)[1] for name in TIERS] == [0, 0, 0]
        assert place.right() == place.copies() == {"hot"}
        place.store.close()
    assert stops >= 10


def test_what_no_row_names_goes_and_what_nobody_knows_stays(place: Place) -> None:
    place.copying.copy(place.segment, "cold")
    cold = place.buckets["cold"].objects
    with place.store.snapshot() as snapshot:
        batch = Batch()
        plan_forget(snapshot, batch, place.segment)
    cold["packs/zz/not-one"] = b"somebody's"
    assert place.copying.sweep("cold") == (0, 0)
    place.store.commit(batch)  # as after the loss of the index
    assert place.copying.sweep("cold") == (0, 1)
    assert place.right() == {"hot", "cold"}
    place.keyring.destroy_key("segment", place.segment.hex())  # as when an older keyring was restored
    assert place.copying.sweep("cold") == (0, 1)
    del cold[f"keys/segment/{place.segment.hex()}.key"]  # nobody can read it any more
    assert place.copying.sweep("cold") == (1, 0)
    assert sorted(cold) == ["keys/root", "keys/tiers", "packs/zz/not-one"]
    with pytest.raises(PackGoneError):
        place.copying.copy(place.segment, "second")


def test_a_removed_pack_is_nowhere(place: Place) -> None:
    place.copying.copy(place.segment, "cold")
    place.copying.remove(place.segment)
    place.copying.remove(place.segment)
    assert not place.right()
    assert list(place.buckets["cold"].objects) == ["keys/root", "keys/tiers"]


def test_what_a_killed_step_left_in_the_hot_tier_goes(place: Place) -> None:
    assert not place.copying.sweep_one("hot", place.segment)
    place.copying.copy(place.segment, "cold")
    assert not place.copying.sweep_one("hot", place.segment)
    place.buckets["hot"].failure = AwayError("away")
    with pytest.raises(AwayError):
        place.copying.drop(place.segment, "hot")
    place.buckets["hot"].failure = None
    assert place.right() == {"hot", "cold"}
    assert place.copying.sweep_one("hot", place.segment)
    assert not place.copying.sweep_one("hot", b"0" * 16)
    assert place.right() == place.copies() == {"cold"}
