"""What goes to another tier and comes back is not what was sent, or is in the way of those who read."""

from __future__ import annotations

import random
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import trio
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from hounsfield.archive.dicom.rules import parse_rule
from hounsfield.archive.engine.engine import Engine, EngineOptions, open_engine
from hounsfield.archive.engine.errors import DamagedError, NotFoundError, UnavailableError
from hounsfield.archive.engine.ingest import IngestLimits
from hounsfield.archive.engine.stores import Stores
from hounsfield.archive.engine.tier_planning import PlanLimits
from hounsfield.archive.engine.tier_rules import TierRule
from hounsfield.archive.engine.tiers import TieringLimits, TieringOptions, TierOptions
from hounsfield.archive.engine.types import Outcome, StoreResult
from hounsfield.archive.index import leases
from hounsfield.archive.index.deletion import Target
from hounsfield.archive.index.demand import Pin, pin
from hounsfield.archive.index.packs import Packs
from hounsfield.archive.index.prefetching import Prefetch
from hounsfield.archive.index.tables import META
from hounsfield.storage_backends.api import Batch
from hounsfield.storage_backends.range_cache import RangeCacheLimits
from support.archives import ct_slice, store, stored_bytes, stores_in

NEVER = 1e12
LIMITS = TieringLimits(
    bytes_per_second=0, check_s=0.05, tidy_s=NEVER, sweep_s=NEVER, plan_s=NEVER,
    recall_when_opened=False,  # or it comes back half a second after a test has read it
)  # fmt: skip
NOW = PlanLimits(quiet_s=-3600.0, recalled_s=0.0)  # also what came this moment


def rule(action: str = "move", *to: str, **conditions: object) -> TierRule:
    match = conditions.pop("match", {})
    tiers = to or (("cold",) if action in {"move", "copy"} else ())
    name = str(conditions.pop("name", "r"))
    return TierRule(name, parse_rule(match, "match"), action, tiers, **conditions)  # type: ignore[arg-type]


@dataclass
class Place:
    """A data directory and two more disks, with an archive that can be opened again and again."""

    root: Path
    rules: tuple[TierRule, ...] = (rule(),)
    limits: TieringLimits = LIMITS
    plan: PlanLimits = NOW
    sent: dict[str, tuple[bytes, StoreResult]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("cold", "second"):
            (self.root / name).mkdir(parents=True, exist_ok=True)

    @property
    def options(self) -> EngineOptions:
        tiers = tuple(TierOptions(name, self.root / name) for name in ("cold", "second"))
        return EngineOptions(
            ingest=IngestLimits(stream_bytes_min=1 << 20),
            tiering=TieringOptions(tiers, self.rules, self.limits, self.plan, RangeCacheLimits()),
        )

    @contextmanager
    def stores(self) -> Iterator[Stores]:
        with stores_in(self.root / "data", self.options) as stores:
            stores.catch_up(at_start=True)
            yield stores

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Engine]:
        with self.stores() as stores:
            async with open_engine(stores, self.options, owner="test") as engine:
                yield engine

    async def send(self, engine: Engine, count: int = 4, *, pixels: bytes = b"", **more: str) -> str:
        """Send a series; its UID."""
        study, series = (
            more.pop("study_uid", "") or generate_uid(),
            more.pop("series_uid", "") or generate_uid(),
        )
        for number in range(count):
            data = ct_slice(
                study_uid=study, series_uid=series, number=number,
                pixels=pixels or picture(len(self.sent)), **more,
            )  # fmt: skip
            result = await store(engine, data, ExplicitVRLittleEndian)
            self.sent[result.sop_instance_uid] = data, result
        return str(series)

    async def require_all(self, engine: Engine) -> None:
        """Every object is what was sent, byte for byte."""
        for data, result in self.sent.values():
            assert await stored_bytes(engine, result) == data

    def packs(self, tier: str) -> set[str]:
        """The packs that lie in a tier, by name."""
        if tier == "hot":
            return {path.name for path in (self.root / "data" / "segments").iterdir()}
        return {path.name for path in (self.root / tier / "packs").glob("*/*")}

    def named(self, stores: Stores) -> dict[str, set[str]]:
        """Which tiers each pack is said to lie in."""
        pages = Packs(stores.store).pages()
        return {segment.hex(): set(row.copies) for page in pages for segment, row in page}


def picture(seed: int) -> bytes:
    """A smooth picture of 16-bit cells, 16×16, which compresses."""
    noise = np.random.default_rng(seed).integers(0, 3, (16, 16))
    return (np.add.outer(np.arange(16) * 40, np.arange(16) * 25) + noise).astype("<u2").tobytes()


async def applied(engine: Engine) -> None:
    """Carry out the rules now."""
    await engine.tiering.apply()
    await engine.tiering.leading.run(engine.tiering.step)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


async def test_a_series_goes_and_comes_back_bit_for_bit(place: Place) -> None:
    async with place.open() as engine:
        await place.send(engine)
        await place.send(engine, 1, pixels=random.Random(1).randbytes(1 << 21))  # in pieces
        await applied(engine)
        named = place.named(engine.stores)
        assert named
        assert all(tiers == {"cold"} for tiers in named.values())
        assert place.packs("cold") == set(named)
        assert not place.packs("hot") & set(named)
        await place.require_all(engine)
        assert engine.tiering.figures.failures == 0
    place.rules = (rule("pin"),)
    async with place.open() as engine:
        await place.require_all(engine)
        await applied(engine)
        assert all(tiers == {"cold", "hot"} for tiers in place.named(engine.stores).values())
        await place.require_all(engine)
    place.rules = (rule(),)
    async with place.open() as engine:
        await applied(engine)
        assert engine.tiering.figures.copied_bytes == 0  # the cold copy was still there
        assert all(tiers == {"cold"} for tiers in place.named(engine.stores).values())
        await place.require_all(engine)


@pytest.mark.parametrize("encoding", ["zstd", "htj2k", "jpegxl"])
async def test_what_goes_smaller_comes_back_as_it_was(place: Place, encoding: str) -> None:
    place.rules = (rule(compress=encoding),)
    async with place.open() as engine:
        cells = np.add.outer(np.arange(128), np.arange(128)).astype("<u2")
        await place.send(engine, pixels=cells.tobytes()[:512])
        await applied(engine)
        figures = engine.tiering.figures
        assert figures.gathered_objects == 4
        assert figures.packed_bytes <= figures.gathered_bytes
        await place.require_all(engine)


async def test_what_lies_elsewhere_already_is_made_smaller_once(place: Place) -> None:
    place.limits = replace(LIMITS, remove_after_s=0.0)
    async with place.open() as engine:
        await place.send(engine)
        await applied(engine)
        (before,) = place.named(engine.stores)
    place.rules = (rule(compress="zstd"),)
    async with place.open() as engine:
        await applied(engine)
        assert engine.tiering.figures.gathered_objects == 4
        await tidied(engine)
        ((after, tiers),) = place.named(engine.stores).items()
        assert after != before
        assert tiers == {"cold"}
        assert place.packs("cold") == {after}
        await applied(engine)
        assert engine.tiering.figures.gathered_objects == 4  # also what did not shrink was tried
        await place.require_all(engine)
    place.rules = (rule("recompress", compress="htj2k"),)
    async with place.open() as engine:
        await applied(engine)
        await applied(engine)
        assert engine.tiering.figures.gathered_objects == 4
        await tidied(engine)
        assert list(place.named(engine.stores).values()) == [{"cold"}]  # where it was
        await place.require_all(engine)


async def test_two_copies_elsewhere_are_two(place: Place) -> None:
    place.rules = (rule("move", "cold", "second"),)
    async with place.open() as engine:
        await place.send(engine)
        await applied(engine)
        assert place.packs("cold") == place.packs("second") == set(place.named(engine.stores))
        for path in (place.root / "cold" / "packs").glob("*/*"):
            path.unlink()
        await place.require_all(engine)


async def test_a_tier_that_is_not_there_costs_only_what_lies_there(place: Place) -> None:
    async with place.open() as engine:
        await place.send(engine)
        await applied(engine)
    async with place.open() as engine:  # nothing of it is in memory
        away = dict(place.sent)
        place.sent = {}
        (place.root / "cold").rename(place.root / "gone")
        await place.send(engine)
        await applied(engine)
        assert engine.tiering.figures.failures
        await place.require_all(engine)
        for _, result in away.values():
            with pytest.raises(UnavailableError):
                await stored_bytes(engine, result)
        (place.root / "gone").rename(place.root / "cold")
        place.sent |= away
        await place.require_all(engine)
        await applied(engine)
        assert all(tiers == {"cold"} for tiers in place.named(engine.stores).values())
        await place.require_all(engine)


@pytest.mark.parametrize("large", [False, True])
async def test_what_is_sent_again_while_it_lies_elsewhere(place: Place, large: bool) -> None:
    async with place.open() as engine:
        await place.send(engine, 2, pixels=random.Random(3).randbytes(1 << 21) if large else b"")
        await applied(engine)
    async with place.open() as engine:
        for data, _ in place.sent.values():
            assert (await store(engine, data, ExplicitVRLittleEndian)).outcome is Outcome.DUPLICATE
    (place.root / "cold").rename(place.root / "gone")
    async with place.open() as engine:  # nobody can say whether it is the same: both are kept, nobody waits
        for data, _ in place.sent.values():
            assert (await store(engine, data, ExplicitVRLittleEndian)).outcome is Outcome.CONFLICT
    (place.root / "gone").rename(place.root / "cold")
    async with place.open() as engine:
        await place.require_all(engine)


async def test_an_empty_mount_point_is_no_empty_tier(place: Place) -> None:
    async with place.open() as engine:
        await place.send(engine)
        await applied(engine)
    (place.root / "cold").rename(place.root / "disk")
    (place.root / "cold").mkdir()
    async with place.open() as engine:
        await place.send(engine)
        await applied(engine)
        assert engine.tiering.figures.failures
    assert not list((place.root / "cold").iterdir())


async def test_who_opens_a_series_brings_it_back(place: Place) -> None:
    place.limits = replace(LIMITS, recall_when_opened=True)
    async with place.open() as engine:
        await place.send(engine)
        await applied(engine)
        _, result = next(iter(place.sent.values()))
        frame = await engine.frame(result.study_uid, result.series_uid, result.sop_instance_uid, 1)
        assert len(frame.data) == 512
        with trio.fail_after(60):
            while engine.tiering.figures.recalled_series < 1:
                await trio.sleep(0.02)
        assert all("hot" in tiers for tiers in place.named(engine.stores).values())
        await place.require_all(engine)
        assert await engine.tiering.recall(result.study_uid) == 0
        with pytest.raises(NotFoundError):
            await engine.tiering.recall("1.2.3")


async def test_who_comes_tomorrow_has_his_priors_tonight(place: Place) -> None:
    async with place.open() as engine:
        await place.send(engine, patient_id="P-1")
        await place.send(engine, patient_id="P-2")
        await applied(engine)
        tiering = engine.tiering
        tiering.prefetching.announce(Prefetch("O-1", "P-2", tiering.now() + 10**13), tiering.now())
        await tidied(engine)
        assert tiering.figures.prefetched_series == tiering.figures.recalled_series == 1
        assert sorted(map(sorted, place.named(engine.stores).values())) == [["cold"], ["cold", "hot"]]
        assert not tiering.prefetching.waiting()


async def test_what_was_brought_back_is_kept_within_its_budget(place: Place) -> None:
    place.plan = replace(NOW, recalled_s=1e6)
    place.limits = replace(LIMITS, recalled_bytes_max=1)
    async with place.open() as engine:
        await place.send(engine)
        await applied(engine)
        (_, result), *_ = place.sent.values()
        assert await engine.tiering.recall(result.study_uid) == 1
        await engine.tiering.leading.run(engine.tiering.step)
        assert engine.tiering.figures.recalled_series == 1
        await applied(engine)
        assert all(tiers == {"cold"} for tiers in place.named(engine.stores).values())
        await place.require_all(engine)


async def test_what_is_deleted_is_gone_from_every_tier(place: Place) -> None:
    place.rules = (rule("move", "cold", "second"),)
    place.limits = replace(LIMITS, tidy_s=0.0, remove_after_s=0.0)
    async with place.open() as engine:
        await place.send(engine)
        await applied(engine)
        (segment,) = place.named(engine.stores)
        (_, result), *_ = place.sent.values()
        await engine.delete(Target(result.study_uid), reason="test", actor="tester")
        await engine.tiering.leading.run(engine.tiering.step)
        assert not place.packs("cold") | place.packs("second")
        assert not place.named(engine.stores)
        assert segment not in engine.stores.keyring.key_ids("segment")
        assert not list((place.root / "cold" / "keys" / "segment").iterdir())


async def test_what_is_deleted_of_a_pack_is_erased_and_the_rest_stays(place: Place) -> None:
    place.limits = replace(LIMITS, tidy_s=0.0, remove_after_s=0.0, erase_s=0.0)
    async with place.open() as engine:
        series = await place.send(engine)
        await applied(engine)
        (segment,) = place.named(engine.stores)
        sop, (_, result) = next(iter(place.sent.items()))
        target = Target(result.study_uid, series, (sop,))
        await engine.delete(target, reason="test", actor="tester")
        del place.sent[sop]
        for _ in range(3):
            await applied(engine)
        assert segment not in place.packs("cold")
        assert segment not in engine.stores.keyring.key_ids("segment")
        assert all(tiers == {"cold"} for tiers in place.named(engine.stores).values())
        await place.require_all(engine)


async def test_what_is_on_hold_never_expires(place: Place) -> None:
    place.rules = (rule("expire", keep_years=0.0),)
    async with place.open() as engine:
        await place.send(engine)
        await place.send(engine)
        (_, held), *_ = place.sent.values()
        await engine.deleting.hold(study_uid=held.study_uid, by="tester", why="court")
        await applied(engine)
        assert engine.tiering.figures.held_series == 1
        assert engine.tiering.figures.expired_series == 1
        place.sent = {sop: one for sop, one in place.sent.items() if one[1].study_uid == held.study_uid}
        await place.require_all(engine)


@pytest.mark.parametrize("pinned", [True, False])
async def test_what_changed_since_the_plan_does_not_expire(place: Place, pinned: bool) -> None:
    place.plan = PlanLimits(quiet_s=0.0, recalled_s=0.0)
    place.rules = (rule("expire", keep_years=0.0),)
    async with place.open() as engine:
        series = await place.send(engine)
        (_, result), *_ = place.sent.values()
        now = engine.tiering.now()
        (task,) = engine.tiering.planned(now)
        if pinned:
            pin(engine.stores.journal, Pin(result.study_uid, "tester", "board", now))
        else:
            await place.send(engine, 1, study_uid=result.study_uid, series_uid=series)
            engine.tiering._clock = lambda: now
        await trio.to_thread.run_sync(engine.tiering._moves.carry_out, task, lambda _: None)
        await place.require_all(engine)
        if pinned:
            return
        engine.tiering._clock = time.time_ns
        await applied(engine)
        assert engine.tiering.figures.expired_series == 1


def spoil(path: Path, at: int = 20_000) -> None:
    """One byte of a file is another one."""
    data = bytearray(path.read_bytes())
    data[at % len(data)] ^= 1
    path.write_bytes(data)


async def tidied(engine: Engine) -> None:
    """Do now what is done once a minute."""
    engine.tiering._tidied_ns = -(10**22)
    await engine.tiering.leading.run(engine.tiering.step)


@pytest.mark.parametrize("rotten", ["cold", "second", "hot"])
async def test_rot_that_a_reader_meets_is_mended_from_the_other_copy(place: Place, rotten: str) -> None:
    place.rules = (rule("copy", "cold", "second") if rotten == "hot" else rule("move", "cold", "second"),)
    async with place.open() as engine:
        await place.send(engine, pixels=random.Random(2).randbytes(512))
        await applied(engine)
        (segment,) = place.named(engine.stores)
    folder = (
        place.root / "data" / "segments" if rotten == "hot" else place.root / rotten / "packs" / segment[:2]
    )
    whole = (folder / segment).read_bytes()
    for at in range(9000, len(whole) - 8192, 600):  # something of every object
        spoil(folder / segment, at)
    async with place.open() as engine:
        await place.require_all(engine)
        if rotten == "second":  # nobody read there
            engine.tiering.verifying.ask(engine.tiering.now())
        with trio.fail_after(60):
            while not engine.tiering.figures.repaired_packs:
                await trio.sleep(0.6)
                await tidied(engine)
        assert (folder / segment).read_bytes() == whole
        assert not engine.tiering.verifying.damaged()
        await place.require_all(engine)


@pytest.mark.parametrize("how", [spoil, Path.unlink])
async def test_keys_in_a_tier_are_verified_too(place: Place, how: Callable[[Path], None]) -> None:
    async with place.open() as engine:
        await place.send(engine)
        await applied(engine)
        keys = sorted((place.root / "cold" / "keys").rglob("*"))
        right = {path: path.read_bytes() for path in keys if path.is_file() and path.name != "tiers"}
        assert len(right) == 2  # of the pack, and the root
        for path in right:
            path.chmod(0o600)
            how(path)
        for _ in range(2):  # what is beside packs is looked after before they are
            engine.tiering.verifying.ask(engine.tiering.now())
            await tidied(engine)
        assert {path: path.read_bytes() for path in right} == right
        assert engine.tiering.figures.repaired_packs == 1


async def test_a_pack_without_a_right_copy_is_said_and_what_opens_is_read(place: Place) -> None:
    async with place.open() as engine:
        await place.send(engine)
        await applied(engine)
        (segment,) = place.named(engine.stores)
    path = place.root / "cold" / "packs" / segment[:2] / segment
    whole = path.read_bytes()
    spoil(path, 9000)
    async with place.open() as engine:
        engine.tiering.verifying.ask(engine.tiering.now())
        await tidied(engine)
        assert engine.tiering.verifying.damaged() == [(bytes.fromhex(segment), "cold")]
        await tidied(engine)  # it is not read again and again
        read = 0
        for data, result in place.sent.values():
            try:
                read += await stored_bytes(engine, result) == data
            except DamagedError:
                continue
        assert read >= len(place.sent) - 1
        path.write_bytes(whole)  # somebody brought it back
        engine.tiering.verifying.ask(engine.tiering.now())
        await tidied(engine)
        assert not engine.tiering.verifying.damaged()
        assert engine.tiering.figures.verified_copies
        await place.require_all(engine)


async def test_every_copy_is_read_again_in_its_time(place: Place) -> None:
    async with place.open() as engine:
        await place.send(engine)
        await applied(engine)
        await tidied(engine)
        assert not engine.tiering.figures.verified_copies
        verifying, walks = engine.tiering.verifying, []
        pages = engine.tiering.copying.packs.pages
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(engine.tiering.copying.packs, "pages", lambda: (walks.append(1), pages())[1])
            for _ in range(3):
                assert not verifying.due(engine.tiering.now(), engine.tiering._intervals, 9)
            assert not walks  # nothing can be due before so many days
            assert verifying.due(engine.tiering.now(), {"cold": 1}, 9)
            assert walks
        engine.tiering._clock = lambda: time.time_ns() + 91 * 86_400 * 1_000_000_000
        await tidied(engine)
        assert engine.tiering.figures.verified_copies == 1
        await tidied(engine)
        assert engine.tiering.figures.verified_copies == 1


async def test_a_clock_that_is_put_back_stops_nothing(place: Place) -> None:
    place.limits = replace(LIMITS, tidy_s=60.0, check_s=NEVER)  # nobody works but the test
    async with place.open() as engine:
        tiering, ahead = engine.tiering, 10 * 366 * 86_400 * 1_000_000_000
        tiering._clock = lambda: time.time_ns() + ahead
        asked = Batch()
        asked.put(META, b"tiering/asked", tiering.now().to_bytes(8, "big"))
        engine.stores.store.commit(asked)
        await place.send(engine)
        await tiering.leading.run(tiering.step)
        engine.stores.store.commit(asked)
        tiering.verifying.ask(tiering.now())
        assert leases.hold(engine.stores.store, "some", "who is gone", tiering.now(), 1)
        tiering._clock = time.time_ns
        assert leases.hold(engine.stores.store, "some", "another", tiering.now(), 1)
        await place.send(engine)
        assert tiering._is_plan_due()
        for _ in range(2):
            await tiering.leading.run(tiering.step)
        assert [*place.named(engine.stores).values()] == [{"cold"}] * 2
        assert tiering.figures.verified_copies == 1
        assert not tiering._is_anything_due()  # and it does not go on for ten years
        await place.require_all(engine)


async def test_two_workers_do_not_move_the_same(place: Place) -> None:
    with place.stores() as stores:
        async with (
            open_engine(stores, place.options, owner="one") as one,
            open_engine(stores, place.options, owner="two") as two,
        ):
            await place.send(one)
            await one.tiering.apply()
            with trio.fail_after(60):
                while not any(engine.tiering.figures.series for engine in (one, two)):
                    await trio.sleep(0.02)
            assert one.tiering.figures.series + two.tiering.figures.series == 1
            await place.require_all(two)
