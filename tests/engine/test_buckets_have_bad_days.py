"""A bucket that answers badly, late or not at all loses what lies there, or holds up who does not need it."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import trio
from pydicom.uid import ExplicitVRLittleEndian
from structlog.testing import capture_logs

from engine.test_tiers_lose_what_they_move import Place, applied, rule, spoil, tidied
from hounsfield.archive.engine import tier_returns, tiering, tiers
from hounsfield.archive.engine.engine import Engine, EngineOptions
from hounsfield.archive.engine.errors import DamagedError, UnavailableError
from hounsfield.archive.engine.gate import FAR_READERS_MAX
from hounsfield.archive.engine.tiers import TierOptions
from hounsfield.archive.engine.types import Outcome, StoreResult
from hounsfield.storage_backends.s3_store import S3Limits, S3Options, S3Store
from support import faulty_store as faults
from support.archives import store, stored_bytes
from support.faulty_store import Exchange, FaultyStore, Request, faulty_store
from support.s3_servers import S3Server, s3_server

pytestmark = [pytest.mark.peer("weed"), pytest.mark.usefixtures("s3_server")]
__all__ = ["s3_server"]

NAMES = ("cold", "second")
RETRY_S = 0.1
PATIENT_S, IMPATIENT_S = 60.0, 0.3  # the latter where a bucket is to say nothing


@dataclass
class Buckets(Place):
    """An archive whose further tiers are buckets, each behind a proxy of its own."""

    proxies: dict[str, FaultyStore] = field(default_factory=dict)
    places: dict[str, S3Options] = field(default_factory=dict)
    real: dict[str, S3Store] = field(default_factory=dict)
    """The same, past the proxies."""
    silence_s: float = PATIENT_S

    @property
    def options(self) -> EngineOptions:
        of = super().options
        tiers = tuple(
            TierOptions(name, place, retry_s=RETRY_S, silence_s=self.silence_s)
            for name, place in self.places.items()
        )
        return replace(of, tiering=replace(of.tiering, tiers=tiers))

    def packs(self, tier: str) -> set[str]:
        if tier == "hot":
            return super().packs(tier)
        return {name.rpartition("/")[2] for name in self.real[tier].names("packs/")}

    def behave(self) -> None:
        for proxy in self.proxies.values():
            proxy.behave()

    async def require_settled(self, engine: Engine, *tiers: str) -> None:
        """All is well again: everything is where the rules want it, once, and as it was sent."""
        self.behave()
        with trio.fail_after(60):  # what was under way while it was not well may fail once more
            while True:
                engine.tiering._swept_ns = 0
                forget_troubles(engine)
                await applied(engine)
                if not list(engine.tiering.planned(engine.tiering.now())):
                    break
                await trio.sleep(0.02)
        named = self.named(engine.stores)
        assert all(of == set(tiers) for of in named.values())
        for tier in (*NAMES, "hot"):
            held = self.packs(tier)
            assert held & set(named) == {one for one, of in named.items() if tier in of}
            assert tier == "hot" or held <= set(named)
        await self.require_all(engine)
        found = [
            one.row.sop_uid
            for study in {result.study_uid for _, result in self.sent.values()}
            for one in await engine.instances(study)
        ]
        assert sorted(found) == sorted(self.sent)


def forget_troubles(engine: Engine) -> None:
    """A store that is back is asked at once: that it is left alone for a while is not waited for here."""
    for one in engine.stores.tiers._memories.values():
        one._reads.failed_at = one._writes.failed_at = float("-inf")


@pytest.fixture
def place(tmp_path: Path, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Buckets]:
    # That the client asks again within a second is tested where it does: here it fails at once.
    monkeypatch.setattr(tiers, "S3Limits", partial(S3Limits, retries=0))
    with ExitStack() as stack:
        made = Buckets(tmp_path)
        for name in NAMES:
            proxy = made.proxies[name] = stack.enter_context(faulty_store(s3_server.port))
            where = s3_server.options()
            made.places[name] = replace(where, endpoint=proxy.endpoint)
            made.real[name] = S3Store(where)
            stack.callback(made.real[name].close)
        yield made


def gets(request: Request) -> bool:
    return request.method == "GET" and "/packs/" in request.path


def puts(request: Request) -> bool:
    return request.method == "PUT" and "/packs/" in request.path


def anything(request: Request) -> bool:
    return True


@dataclass
class Held:
    """A fault: an answer is held back until the test lets go."""

    released: threading.Event = field(default_factory=threading.Event)
    count: int = 0

    def __call__(self, exchange: Exchange) -> None:
        self.count += 1
        self.released.wait(60)
        exchange.answer(exchange.forward())


ERRORS = {
    "500": faults.status(500, "InternalError"),
    "503": faults.status(503, "SlowDown"),
    "403": faults.status(403, "AccessDenied"),
    "404": faults.status(404, "NoSuchKey"),
    "half": faults.half_a_body,
    "half called whole": faults.half_a_body_called_whole,
    "wrong bytes": faults.wrong_bytes,
    "hangs up": faults.hang_up,
    "no HTTP": faults.not_http,
    "silence": faults.silence,
}


# ---------------------------------------------------------------- moving


@pytest.mark.parametrize(
    ("fault", "matches"),
    [
        ("500", anything),
        ("403", anything),
        ("half", gets),
        ("404", gets),
        ("wrong bytes", gets),
        ("half called whole", gets),
        ("hangs up", puts),
        ("lost answer", puts),
        ("arrives changed", puts),
    ],
)
async def test_a_move_meets_it_and_is_done_later(
    place: Buckets, fault: str, matches: Callable[[Request], bool]
) -> None:
    met = {"lost answer": faults.lost_answer, "arrives changed": faults.damaged_request, **ERRORS}[fault]
    async with place.open() as engine:
        await place.send(engine)
        place.proxies["cold"].on(met, matches)
        await applied(engine)
        assert engine.tiering.figures.failures
        assert all("hot" in tiers for tiers in place.named(engine.stores).values())
        await place.require_all(engine)
        await place.require_settled(engine, "cold")
        assert engine.tiering.figures.freed_bytes
    async with place.open() as engine:
        await place.require_all(engine)


async def test_the_store_dies_at_each_step_of_a_move_and_comes_back(place: Buckets) -> None:
    proxy = place.proxies["cold"]
    async with place.open() as engine:
        for step in range(30):
            await place.send(engine, 1)
            proxy.on(faults.after(step, faults.hang_up), anything)
            before = engine.tiering.figures.failures
            await applied(engine)
            failed = engine.tiering.figures.failures > before
            await place.require_settled(engine, "cold")
            if not failed:
                break
        assert 3 < step < 29


async def test_one_request_in_four_ends_badly(place: Buckets) -> None:
    choose = random.Random(1)
    mine = [one for name, one in ERRORS.items() if name not in {"silence", "wrong bytes"}]
    place.rules = (rule("move", *NAMES),)

    def any_of_them(exchange: Exchange) -> None:
        choose.choice([*mine, faults.lost_answer])(exchange)

    async with place.open() as engine:
        for proxy in place.proxies.values():
            proxy.on(any_of_them, lambda _: choose.random() < 0.25)
        for _ in range(3):
            await place.send(engine, 2)
            await applied(engine)
        await place.require_settled(engine, *NAMES)


# ---------------------------------------------------------------- reading


async def moved(place: Buckets, *tiers: str, count: int = 3) -> None:
    """An archive with one series, whose packs lie in ``tiers`` only."""
    place.rules = (rule("move", *tiers),)
    async with place.open() as engine:
        await place.send(engine, count)
        await applied(engine)
        assert all(of == set(tiers) for of in place.named(engine.stores).values())


async def frame_of(engine: Engine, result: StoreResult) -> bytes:
    frame = await engine.frame(result.study_uid, result.series_uid, result.sop_instance_uid, 1)
    return bytes(frame.data)


async def header_of(engine: Engine, result: StoreResult) -> bytes:
    (instance,) = await engine.instances(result.study_uid, result.series_uid, result.sop_instance_uid)
    return bytes((await engine.header(instance)).head)


@pytest.mark.parametrize("fault", ERRORS)
async def test_who_reads_is_told_whether_waiting_helps(place: Buckets, fault: str) -> None:
    await moved(place, "cold", count=1)
    expected = DamagedError if fault in {"404", "wrong bytes"} else UnavailableError
    place.silence_s = IMPATIENT_S if fault == "silence" else PATIENT_S
    async with place.open() as engine:
        place.proxies["cold"].on(ERRORS[fault], anything)
        for _, result in place.sent.values():
            for read in (frame_of, header_of, stored_bytes):
                with pytest.raises(expected) as told:
                    await read(engine, result)
                assert result.sop_instance_uid not in str(told.value)
    place.behave()
    place.silence_s = PATIENT_S
    async with place.open() as engine:
        await place.require_settled(engine, "cold")
        for data, result in place.sent.values():
            assert await frame_of(engine, result) in data
            assert await header_of(engine, result) in data


async def test_a_store_that_is_away_is_not_asked_by_every_reader(place: Buckets) -> None:
    await moved(place, "cold")
    proxy = place.proxies["cold"]
    proxy.on(faults.hang_up, anything)
    async with place.open() as engine:
        for _ in range(40):
            for _, result in place.sent.values():
                with pytest.raises(UnavailableError):
                    await frame_of(engine, result)
        assert len(proxy.requests) < 80  # of 160 reads, each of which would ask often
        await place.require_settled(engine, "cold")


@pytest.mark.parametrize(
    "fault", [name for name in ERRORS if name not in {"503", "no HTTP", "hangs up", "silence"}]
)
async def test_what_one_copy_does_not_give_is_read_from_the_other(place: Buckets, fault: str) -> None:
    await moved(place, *NAMES)
    async with place.open() as engine:
        place.proxies["cold"].on(ERRORS[fault], anything)
        for _ in range(2):
            await place.require_all(engine)
            for data, result in place.sent.values():
                assert await frame_of(engine, result) in data
        await place.require_settled(engine, *NAMES)


async def test_a_copy_that_is_away_holds_up_nobody_who_has_another(place: Buckets) -> None:
    await moved(place, *NAMES)
    place.silence_s = IMPATIENT_S
    async with place.open() as engine:
        held = Held()
        place.proxies["cold"].on(held, anything)
        segments = [bytes.fromhex(one) for one in place.named(engine.stores)]
        with trio.fail_after(60):
            for _ in range(20):
                for segment in segments:
                    engine.stores.reading._far.forget(f"segments/{segment.hex()}")
                await place.require_all(engine)
        assert held.count < 10
        held.released.set()


async def test_a_wrong_copy_beside_one_that_is_away_is_no_damage(place: Buckets) -> None:
    await moved(place, *NAMES)
    async with place.open() as engine:
        place.proxies["cold"].on(faults.wrong_bytes, gets)
        place.proxies["second"].on(faults.hang_up, anything)
        for _, result in place.sent.values():
            with pytest.raises(UnavailableError):
                await frame_of(engine, result)
        await place.require_settled(engine, *NAMES)


async def test_rot_in_a_bucket_is_read_round_and_repaired(place: Buckets, tmp_path: Path) -> None:
    await moved(place, *NAMES)
    cold = place.real["cold"]
    (key,) = cold.names("packs/")
    whole = cold.read(key, 0, cold.size(key))
    file = tmp_path / "pack"
    file.write_bytes(whole)
    for at in range(9000, len(whole) - 8192, 600):
        spoil(file, at)
    cold.put(key, [file.read_bytes()], len(whole))
    async with place.open() as engine:
        await place.require_all(engine)
        with trio.fail_after(60):
            while not engine.tiering.figures.repaired_packs:
                await trio.sleep(0.1)
                await tidied(engine)
        assert cold.read(key, 0, len(whole)) == whole
        await place.require_settled(engine, *NAMES)


async def test_rot_without_another_copy_is_looked_into_once(
    place: Buckets, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiering, "TOGETHER_S", 0.05)
    await moved(place, "cold")
    async with place.open() as engine:
        place.proxies["cold"].on(faults.wrong_bytes, gets)
        (_, result), *_ = place.sent.values()
        doubt, doubted = engine.tiering.verifying.doubt, 0

        def count(segments: set[bytes]) -> None:
            nonlocal doubted
            doubt(segments)
            doubted += 1

        monkeypatch.setattr(engine.tiering.verifying, "doubt", count)
        heads = []  # each look at a whole copy begins with its size
        for number in range(3):
            with pytest.raises(DamagedError):
                await frame_of(engine, result)
            with trio.fail_after(60):
                while doubted <= number:
                    await trio.sleep(0.02)
            await tidied(engine)
            assert engine.tiering.verifying.damaged()
            heads.append(sum(one.method == "HEAD" for one in place.proxies["cold"].requests))
        assert heads[0] == heads[-1]
        place.behave()
        await engine.tiering.verify()
        await tidied(engine)
        assert not engine.tiering.verifying.damaged()
        await place.require_settled(engine, "cold")


# ---------------------------------------------------------------- nobody else


async def test_who_reads_and_stores_what_is_hot_goes_on_while_the_bucket_hangs(place: Buckets) -> None:
    await moved(place, "cold")
    cold, place.sent = place.sent, {}
    held = Held()
    place.rules = (rule("move", "second"),)
    async with place.open() as engine, trio.open_nursery() as nursery:
        for proxy in place.proxies.values():
            proxy.on(held, anything)
        read: list[bytes] = []

        async def wait_for_it(result: StoreResult) -> None:
            with suppress(UnavailableError):
                read.append(await frame_of(engine, result))

        for _ in range(FAR_READERS_MAX + 4):
            for _, result in cold.values():
                nursery.start_soon(wait_for_it, result)
        await place.send(engine)
        nursery.start_soon(engine.tiering.apply)
        with trio.fail_after(60):
            while held.count < 2:
                await trio.sleep(0.01)
            for _ in range(5):
                await place.send(engine)
                await place.require_all(engine)
                for data, result in place.sent.values():
                    assert await frame_of(engine, result) in data
        assert not read
        nursery.cancel_scope.cancel()
        held.released.set()
    place.sent |= cold
    place.behave()
    async with place.open() as engine:
        await place.require_all(engine)


async def test_what_is_sent_again_while_its_bucket_hangs_is_kept_and_acknowledged(place: Buckets) -> None:
    await moved(place, "cold")
    place.proxies["cold"].on(faults.hang_up, anything)
    async with place.open() as engine:
        for data, _ in place.sent.values():
            assert (await store(engine, data, ExplicitVRLittleEndian)).outcome is Outcome.CONFLICT
    place.behave()
    async with place.open() as engine:
        await place.require_all(engine)


# ---------------------------------------------------------------- bringing back, and reading again


async def test_series_of_another_tier_come_back_while_one_is_away(
    place: Buckets, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = 0.0
    monkeypatch.setattr(tier_returns, "time", SimpleNamespace(monotonic=lambda: seconds))
    monkeypatch.setattr(tier_returns, "RECALLS_AT_ONCE", 2)
    async with place.open() as engine:
        for _ in range(3):
            await place.send(engine, 1)
        await applied(engine)
    away, place.sent = place.sent, {}
    place.rules = (rule("move", "second"),)
    place.proxies["cold"].on(faults.hang_up, anything)
    async with place.open() as engine:
        await place.send(engine, 1)
        await applied(engine)
        with capture_logs() as logged:
            for _, result in [*away.values(), *place.sent.values()]:
                await engine.tiering.recall(result.study_uid)
            for _ in range(20):
                await engine.tiering.leading.run(engine.tiering.step)
        assert engine.tiering.figures.recalled_series == 1
        said = [entry for entry in logged if "brought back" in entry["event"]]
        assert {entry["tier"] for entry in said} == {"cold"}
        assert sum(entry["count"] for entry in said) == len(away)  # no time has passed: each had one turn
        assert not any(result.series_uid in str(said) for _, result in away.values())
        place.behave()
        place.sent |= away
        with trio.fail_after(60):
            while engine.tiering.figures.recalled_series < 4:
                seconds += tier_returns.RECALL_AGAIN_S
                forget_troubles(engine)
                await engine.tiering.leading.run(engine.tiering.step)
                await trio.sleep(0.02)
        await place.require_all(engine)


async def test_a_tier_that_is_away_keeps_none_of_another_from_being_verified(place: Buckets) -> None:
    await moved(place, *NAMES)
    place.proxies["cold"].on(faults.hang_up, anything)
    async with place.open() as engine:
        await engine.tiering.verify()
        await tidied(engine)
        assert engine.tiering.figures.verified_copies == len(place.named(engine.stores))
        place.behave()
        await trio.to_thread.run_sync(engine.tiering.verifying.ask, engine.tiering.now())
        await place.require_settled(engine, *NAMES)
        await tidied(engine)
        assert engine.tiering.figures.verified_copies >= 2
        assert not engine.tiering.verifying.damaged()


async def test_one_pack_that_cannot_be_copied_stops_none_of_the_others(place: Buckets) -> None:
    place.rules = (rule("copy", "second"),)
    async with place.open() as engine:
        for _ in range(3):
            await place.send(engine, 1)
        await applied(engine)
        wrong = min(place.named(engine.stores))
    place.rules = (rule("move", "cold"),)
    path = place.root / "data" / "segments" / wrong
    whole = path.read_bytes()
    spoil(path)
    place.real["second"].delete(f"packs/{wrong[:2]}/{wrong}")
    async with place.open() as engine:
        await applied(engine)
        assert engine.tiering.figures.failures == 1
        assert place.packs("cold") == set(place.named(engine.stores)) - {wrong}
        path.write_bytes(whole)
        await place.require_settled(engine, "cold")
