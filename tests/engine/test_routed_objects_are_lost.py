"""What is routed arrives, in order, once: whoever fails, hangs, refuses or is killed on the way."""

from __future__ import annotations

import json
import shutil
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from hounsfield.archive.dicom.rules import parse_rule
from hounsfield.archive.engine.correction_requests import Request
from hounsfield.archive.engine.engine import Engine, EngineOptions, open_engine
from hounsfield.archive.engine.route_queue import Lane, Route, RoutingLimits, pause_s
from hounsfield.archive.engine.route_reading import Waiting
from hounsfield.archive.engine.route_ways import Answer, Pair, Verdict, Way, WayError
from hounsfield.archive.engine.routing import LOOK_S, Routing
from hounsfield.archive.engine.stores import Stores
from hounsfield.archive.engine.types import Instance, Source
from hounsfield.archive.index import leases
from hounsfield.archive.index.deletion import Target
from hounsfield.archive.index.route_lanes import LaneKey, LaneRow, RouteLanes
from hounsfield.storage_backends.errors import StoreFullError
from support.archives import ct_slice, stores_in
from support.killed_commits import KilledError, kill_after

PATIENCE_S = 60
LIMITS = RoutingLimits(linger_s=0.05, mark_margin_s=0.0, mark_s=0.0, mark_idle_s=1e9)
OPTIONS = EngineOptions(study_stable_s=0.1)
SENT = Answer(Verdict.SENT)


def route(name: str = "all", *to: str, **more: Any) -> Route:
    match = more.pop("match", {})
    return Route(
        name, parse_rule(match, name), to or ("A",), **{"back_off_s": 0.02, "back_off_s_max": 0.05, **more}
    )


Behaviour = Callable[[str, int], Answer]


@dataclass
class Peers:
    """Destinations, and what each got. ``behave(to, n)`` answers the n-th object that came there."""

    behave: dict[str, Behaviour] = field(default_factory=dict)
    unreachable: set[str] = field(default_factory=set)
    hanging: set[str] = field(default_factory=set)
    got: list[tuple[str, str]] = field(default_factory=list)
    tried: list[tuple[str, str]] = field(default_factory=list)
    opened: list[str] = field(default_factory=list)
    heard: trio.Event = field(default_factory=trio.Event)
    released: trio.Event = field(default_factory=trio.Event)

    @asynccontextmanager
    async def open(self, to: str, pairs: Sequence[Pair], _: Sequence[str]) -> AsyncIterator[Way]:
        await trio.lowlevel.checkpoint()
        if to in self.unreachable:
            raise WayError("nobody there")
        self.opened.append(to)
        peers, known = self, set(pairs)

        class Open:
            def carries(self, pair: Pair) -> bool:
                return pair in known

            async def send(self, instance: Instance) -> Answer:
                uid = instance.row.sop_uid
                peers.tried.append((to, uid))
                await trio.lowlevel.checkpoint()
                if to in peers.hanging:
                    await peers.released.wait()
                behave = peers.behave.get(to)
                answer = SENT if behave is None else behave(uid, len(peers.tried))
                if answer.verdict is Verdict.SENT:
                    peers.got.append((to, uid))
                peers.heard.set()
                peers.heard = trio.Event()
                return answer

        yield Open()

    def at(self, to: str) -> list[str]:
        return [uid for where, uid in self.got if where == to]

    async def until(self, done: Callable[[], bool]) -> None:
        with trio.fail_after(PATIENCE_S):
            while not done():
                with trio.move_on_after(0.02):
                    await self.heard.wait()

    async def until_got(self, to: str, uids: Sequence[str]) -> None:
        await self.until(lambda: set(uids) <= set(self.at(to)))


@asynccontextmanager
async def routed(
    stores: Stores, peers: Peers, *routes: Route, limits: RoutingLimits = LIMITS
) -> AsyncIterator[tuple[Engine, Routing]]:
    """An engine that routes. Left as a clean end leaves it."""
    async with open_engine(stores, OPTIONS, owner="test") as engine, trio.open_nursery() as nursery:
        routing = Routing(stores, engine.records, engine.gate, engine.changes, peers.open, "test", limits)
        await routing.configure(routes)
        nursery.start_soon(routing.run)
        yield engine, routing
        with trio.move_on_after(5):
            await routing.drain()
        nursery.cancel_scope.cancel()


async def store_one(engine: Engine, data: bytes, source: Source | None = None) -> None:
    session = engine.begin(
        transfer_syntax_uid=ExplicitVRLittleEndian, source=source or Source("dimse", "CT1", "X", "192.0.2.1")
    )
    try:
        await session.write(data)
        await session.commit()
    finally:
        session.abandon()


async def store_some(engine: Engine, count: int, **same: Any) -> list[str]:
    uids = [str(generate_uid()) for _ in range(count)]
    for number, uid in enumerate(uids):
        await store_one(engine, ct_slice(sop_uid=uid, number=number + 1, **same))
    return uids


def rows(stores: Stores, routing: Routing) -> dict[LaneKey, LaneRow]:
    with stores.store.snapshot() as snapshot:
        return routing.rows.rows(snapshot)


def queued(stores: Stores, routing: Routing) -> int | None:
    """How many objects wait, as the leader tells."""
    with stores.store.snapshot() as snapshot:
        told = json.loads(routing.rows.told(snapshot) or b"null")
    return None if told is None else sum(lane["queued"] for lane in told["lanes"])


def aside_count(stores: Stores, routing: Routing) -> int:
    """How many objects are set aside."""
    with stores.store.snapshot() as snapshot:
        return sum(len(entry.objects) for entry in routing.rows.aside(snapshot))


# ------------------------------------------------------------ the ordinary case


async def test_everything_arrives_once_and_in_order(tmp_path: Path) -> None:
    peers = Peers()
    with stores_in(tmp_path / "data") as stores:
        async with routed(stores, peers, route("all", "A", "B")) as (engine, routing):
            uids = await store_some(engine, 30, study_uid="2.25.1", series_uid="2.25.2")
            await peers.until_got("A", uids)
            await peers.until_got("B", uids)
        assert peers.at("A") == peers.at("B") == uids
        row = rows(stores, routing)[LaneKey("all", "A")]
        assert (row.sent, row.member, row.beyond) == (30, 0, ())
        assert peers.opened.count("A") < 30, "the association is kept open while there is work"


async def test_rules_say_what_goes_where(tmp_path: Path) -> None:
    peers = Peers()
    routes = (
        route("ct", "A", match={"Modality": "CT", "PatientID": "P-1"}),
        route("from", "B", match={"calling_ae": "MR*"}),
        route("both", "A", match={"PatientID": "P-*"}),
    )
    with stores_in(tmp_path / "data") as stores:
        async with routed(stores, peers, *routes) as (engine, _):
            (first,) = await store_some(engine, 1, patient_id="P-1")
            (second,) = await store_some(engine, 1, patient_id="Q-1")
            third = generate_uid()
            await store_one(engine, ct_slice(sop_uid=third, patient_id="P-2"), Source("dimse", "MR7"))
            await peers.until_got("A", [first, third])
            await peers.until_got("B", [third])
        assert peers.at("A") == [first, third], "what two routes send to one AE goes once"
        assert peers.at("B") == [third]
        assert second not in {uid for _, uid in peers.tried}


async def test_nothing_goes_back_to_where_it_came_from(tmp_path: Path) -> None:
    peers = Peers()
    routes = (route("all", "A", "CT1"), route("echo", "CT1", back_to_sender=True, match={"PatientID": "E"}))
    with stores_in(tmp_path / "data") as stores:
        async with routed(stores, peers, *routes) as (engine, routing):
            uids = await store_some(engine, 3)
            await peers.until_got("A", uids)
            await peers.until(lambda: rows(stores, routing)[LaneKey("all", "CT1")].passed_over == 3)
            (wanted,) = await store_some(engine, 1, patient_id="E")
            await peers.until_got("CT1", [wanted])
        assert peers.at("CT1") == [wanted]


async def test_a_stable_study_goes_whole_and_what_comes_later_goes_alone(tmp_path: Path) -> None:
    peers = Peers()
    with stores_in(tmp_path / "data") as stores:
        async with routed(stores, peers, route("stable", "A", stable=True)) as (engine, _):
            uids = await store_some(engine, 5, study_uid="2.25.1")
            await peers.until_got("A", uids)
            later = await store_some(engine, 2, study_uid="2.25.1")
            await peers.until_got("A", later)
        async with routed(stores, peers, route("stable", "A", stable=True)) as (engine, _):
            last = await store_some(engine, 1, study_uid="2.25.1")
            await peers.until_got("A", last)
        assert peers.at("A") == [*uids, *later, *last]


async def test_a_study_that_spans_a_restart_goes_whole(tmp_path: Path) -> None:
    """What was stored before the leader read the journal is part of the study that is announced later."""
    peers = Peers()
    slow = replace(OPTIONS, study_stable_s=3600.0)
    with stores_in(tmp_path / "data") as stores:
        async with open_engine(stores, slow, owner="before") as engine:
            routing = Routing(stores, engine.records, engine.gate, engine.changes, peers.open, "before")
            await routing.configure([route("stable", "A", stable=True)])
            uids = await store_some(engine, 3, study_uid="2.25.1")
        async with routed(stores, peers, route("stable", "A", stable=True)) as (engine, _):
            uids += await store_some(engine, 1, study_uid="2.25.1")
            await peers.until_got("A", uids)
        assert peers.at("A") == uids


# ------------------------------------------------------------ destinations that fail


async def test_one_that_does_not_answer_holds_up_nobody(tmp_path: Path) -> None:
    peers = Peers(unreachable={"DEAD"}, hanging={"STUCK"})
    with stores_in(tmp_path / "data") as stores:
        async with routed(stores, peers, route("all", "DEAD", "STUCK", "A")) as (engine, _):
            uids = await store_some(engine, 10)
            await peers.until_got("A", uids)
            assert not peers.at("DEAD")
            peers.unreachable.clear()
            await peers.until_got("DEAD", uids)
            assert {uid for to, uid in peers.tried if to == "STUCK"} == {uids[0]}
            peers.released.set()
            await peers.until_got("STUCK", uids)
        assert peers.at("DEAD") == peers.at("STUCK") == uids


async def test_one_that_is_full_gets_it_later_in_order(tmp_path: Path) -> None:
    full = Answer(Verdict.LATER, "A700H: refused: out of resources", 0xA700)
    answers = iter([SENT, SENT, full, full, full])
    peers = Peers({"A": lambda *_: next(answers, SENT)})
    with stores_in(tmp_path / "data") as stores:
        async with routed(stores, peers, route()) as (engine, _):
            uids = await store_some(engine, 6)
            await peers.until_got("A", uids)
        assert peers.at("A") == uids
        assert len(peers.tried) == 6 + 3


async def test_what_is_refused_is_set_aside_and_can_be_sent_again(tmp_path: Path) -> None:
    refused = Answer(Verdict.REFUSED, "0122H: refused: SOP class not supported", 0x0122)
    bad: set[str] = set()
    peers = Peers({"A": lambda uid, _: refused if uid in bad else SENT})
    with stores_in(tmp_path / "data") as stores:
        async with routed(stores, peers, route()) as (engine, routing):
            uids = [generate_uid() for _ in range(8)]
            bad.update((uids[2], uids[3], uids[7]))
            for uid in uids:
                await store_one(engine, ct_slice(sop_uid=uid))
            await peers.until(lambda: rows(stores, routing)[LaneKey("all", "A")].set_aside == 3)
            assert peers.at("A") == [uid for uid in uids if uid not in bad]
            with stores.store.snapshot() as snapshot:
                entries = routing.rows.aside(snapshot)
            objects = [one for entry in entries for one in entry.objects]
            assert [one.instance for one in objects] == [uids[2], uids[3], uids[7]]
            assert {one.status for one in objects} == {0x0122}
            still = bad.pop()
            bad.clear()
            bad.add(still)
            assert routing.rows.send_again([entry.entry_id for entry in entries]) == 3
            await peers.until_got("A", [uid for uid in uids if uid != still])
            await peers.until(lambda: sum(uid == still for _, uid in peers.tried) == 2)
        with stores.store.snapshot() as snapshot:
            (entry,) = routing.rows.aside(snapshot)
        assert [(one.instance, one.again) for one in entry.objects] == [(still, False)]
        assert sorted(peers.at("A")) == sorted(set(uids) - {still})


async def test_on_a_full_disk_nothing_is_sent_again_and_again(tmp_path: Path, monkeypatch: Any) -> None:
    """What became of an object cannot be noted: it goes once, others go on, and later it is noted."""
    refuses, full = {"A"}, False
    peers = Peers({"A": lambda *_: Answer(Verdict.REFUSED, "no") if "A" in refuses else SENT})

    def on_a_full_disk(done: Callable[..., Any]) -> Callable[..., Any]:
        def do(*arguments: Any) -> Any:
            if full:
                raise StoreFullError("nothing is free")
            return done(*arguments)

        return do

    for name in ("change_aside", "tell", "mark", "move", "set_aside"):
        monkeypatch.setattr(RouteLanes, name, on_a_full_disk(getattr(RouteLanes, name)))
    with stores_in(tmp_path / "data") as stores:
        async with routed(stores, peers, route("all", "A", "B")) as (engine, routing):
            uids = await store_some(engine, 3)
            await peers.until(lambda: aside_count(stores, routing) == 3)
            await peers.until_got("B", uids)
            with stores.store.snapshot() as snapshot:
                entries = routing.rows.aside(snapshot)
            refuses.clear()
            routing.rows.send_again([entry.entry_id for entry in entries])
            full = True
            await peers.until_got("A", uids)
            more = await store_some(engine, 2)
            await peers.until_got("B", uids + more)
            await peers.until_got("A", uids + more)
            routing.rows.ask()  # it is looked at what is to be sent again
            await trio.sleep(2.5 * LOOK_S)
            full = False
            await peers.until(lambda: aside_count(stores, routing) == 0)
            lanes = [LaneKey("all", "A"), LaneKey("all", "B")]
            await peers.until(lambda: [rows(stores, routing)[key].sent for key in lanes] == [5, 5])
        assert sorted(peers.at("A")) == sorted(peers.at("B")) == sorted(uids + more)


async def test_an_object_that_breaks_every_association_is_set_aside(tmp_path: Path) -> None:
    poison: list[str] = []

    def behave(uid: str, _: int) -> Answer:
        if uid in poison:
            raise WayError("the connection was lost")
        return SENT

    peers = Peers({"A": behave})
    with stores_in(tmp_path / "data") as stores:
        async with routed(stores, peers, route(retries=3)) as (engine, routing):
            uids = [generate_uid() for _ in range(5)]
            poison.append(uids[1])
            for uid in uids:
                await store_one(engine, ct_slice(sop_uid=uid))
            await peers.until_got("A", [uid for uid in uids if uid not in poison])
        assert sum(uid == uids[1] for _, uid in peers.tried) == 4
        with stores.store.snapshot() as snapshot:
            (entry,) = routing.rows.aside(snapshot)
        assert [one.instance for one in entry.objects] == poison
        assert "lost 4 times" in entry.objects[0].reason


async def test_a_destination_that_breaks_every_association_gets_it_later(tmp_path: Path) -> None:
    """It is not the object: nothing is set aside, however long it takes."""

    def behave(_: str, tried: int) -> Answer:
        if tried < 25:
            raise WayError("the connection was lost")
        return SENT

    peers = Peers({"A": behave})
    with stores_in(tmp_path / "data") as stores:
        async with routed(stores, peers, route(retries=2)) as (engine, routing):
            uids = await store_some(engine, 5)
            await peers.until_got("A", uids)
        assert sorted(peers.at("A")) == sorted(uids)
        with stores.store.snapshot() as snapshot:
            assert routing.rows.aside(snapshot) == []


async def test_who_gives_up_sets_aside_what_is_too_old(tmp_path: Path) -> None:
    peers = Peers(unreachable={"A"})
    with stores_in(tmp_path / "data") as stores:
        async with routed(stores, peers, route(give_up_s=0.01)) as (engine, routing):
            uids = await store_some(engine, 3)
            await peers.until(lambda: rows(stores, routing)[LaneKey("all", "A")].set_aside == 3)
        with stores.store.snapshot() as snapshot:
            objects = [one for entry in routing.rows.aside(snapshot) for one in entry.objects]
        assert sorted(one.instance for one in objects) == sorted(uids)
        assert objects[0].reason == "given up: nobody there"


async def test_several_associations_lose_nothing(tmp_path: Path) -> None:
    peers = Peers()
    with stores_in(tmp_path / "data") as stores:
        async with routed(stores, peers, route(associations=4)) as (engine, routing):
            uids = await store_some(engine, 40)
            await peers.until_got("A", uids)
            key = LaneKey("all", "A")
            await peers.until(lambda: rows(stores, routing)[key].sent == 40)
            await peers.until(lambda: rows(stores, routing)[key].beyond == ())
        assert sorted(peers.at("A")) == sorted(uids)


def test_pauses_double_to_a_ceiling_and_differ() -> None:
    one = route(back_off_s=1.0, back_off_s_max=60.0)
    pauses = [pause_s(one, failures) for failures in range(1, 40)]
    assert all(0.75 * min(2**n, 60) <= pause <= 1.25 * min(2**n, 60) for n, pause in enumerate(pauses))
    assert len(set(pauses[10:])) > 10


# ------------------------------------------------------------ what becomes of objects meanwhile


async def test_what_was_deleted_meanwhile_is_passed_over_and_what_was_moved_is_found(tmp_path: Path) -> None:
    full: list[Answer] = [Answer(Verdict.LATER, "full", 0xA700)]
    peers = Peers({"A": lambda *_: full[0] if full else SENT})
    with stores_in(tmp_path / "data") as stores:
        async with routed(stores, peers, route()) as (engine, routing):
            (gone,) = await store_some(engine, 1, study_uid="2.25.1", series_uid="2.25.11")
            (moved,) = await store_some(engine, 1, study_uid="2.25.2", series_uid="2.25.22")
            await peers.until(lambda: bool(peers.tried))
            await engine.delete(Target("2.25.1"), reason="test", actor="test")
            move = Request(
                kind="move-series",
                actor="test",
                reason="test",
                study="2.25.2",
                series=("2.25.22",),
                to_study="2.25.3",
            )
            await engine.correcting.make(move)
            full.clear()
            await peers.until_got("A", [moved])
            await peers.until(lambda: rows(stores, routing)[LaneKey("all", "A")].passed_over == 1)
        assert peers.at("A") == [moved]
        assert peers.tried[0] == ("A", gone)


async def test_of_two_versions_only_the_one_that_is_served_goes(tmp_path: Path) -> None:
    peers = Peers()
    uids: dict[str, Any] = {"study_uid": "2.25.1", "series_uid": "2.25.2", "sop_uid": "2.25.3"}
    with stores_in(tmp_path / "data") as stores:
        async with routed(stores, peers, route()) as (engine, _):
            await store_one(engine, ct_slice(**uids))
            await store_one(engine, ct_slice(**uids))
            await store_one(engine, ct_slice(sop_uid="2.25.4"))
            await peers.until_got("A", ["2.25.4"])
        assert peers.at("A") == ["2.25.3", "2.25.4"]


# ------------------------------------------------------------ what administrators do


async def test_paused_waits_and_resumed_goes_on(tmp_path: Path) -> None:
    peers = Peers()
    key = LaneKey("all", "A")
    with stores_in(tmp_path / "data") as stores:
        async with routed(stores, peers, route("all", "A", "B")) as (engine, routing):
            routing.rows.pause(key, True, 1)
            uids = await store_some(engine, 3)
            await peers.until_got("B", uids)
            await trio.sleep(0.1)
            assert not peers.at("A")
            routing.rows.pause(key, False, 2)
            await peers.until_got("A", uids)
        assert peers.at("A") == uids


async def test_what_waits_can_be_left_out(tmp_path: Path) -> None:
    peers = Peers(unreachable={"A"})
    with stores_in(tmp_path / "data") as stores:
        async with routed(stores, peers, route()) as (engine, routing):
            await store_some(engine, 3)
            await peers.until(lambda: queued(stores, routing) == 3)
            routing.rows.leap([LaneKey("all", "A")], 1)
            await peers.until(lambda: queued(stores, routing) == 0)
            peers.unreachable.clear()
            uids = await store_some(engine, 2)
            await peers.until_got("A", uids)
        assert peers.at("A") == uids


async def test_routes_change_while_it_runs(tmp_path: Path) -> None:
    peers = Peers()
    with stores_in(tmp_path / "data") as stores:
        async with routed(stores, peers) as (engine, routing):
            await store_some(engine, 2)
            await routing.configure([route("new", "B")])
            second = await store_some(engine, 2)
            await peers.until_got("B", second)
            await routing.configure([])
            third = await store_some(engine, 2)
            await routing.configure([route("new", "B"), route("other", "A")])
            fourth = await store_some(engine, 2)
            await peers.until_got("A", fourth)
            await peers.until_got("B", fourth)
        assert peers.at("A") == fourth, "a new route begins with what comes after it"
        assert peers.at("B") == [*second, *third, *fourth], "one that comes back goes on where it was"


# ------------------------------------------------------------ ends of all kinds


@pytest.mark.parametrize("associations", [1, 3])
@pytest.mark.parametrize("commits", [1, 2, 3, 5, 8, 12, 13, 16])
async def test_killed_at_any_commit_nothing_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, commits: int, associations: int
) -> None:
    refused = Answer(Verdict.REFUSED, "no", 0xC000)
    bad: list[str] = []
    peers = Peers({"A": lambda uid, _: refused if uid in bad else SENT})
    routes = [route(associations=associations)]
    with stores_in(tmp_path / "data") as stores:
        async with open_engine(stores, OPTIONS, owner="before") as engine:
            routing = Routing(stores, engine.records, engine.gate, engine.changes, peers.open, "x", LIMITS)
            await routing.configure(routes)
            uids = await store_some(engine, 12, study_uid="2.25.1", series_uid="2.25.2")
        bad.append(uids[4])
        try:
            async with (
                open_engine(stores, OPTIONS, owner="killed") as engine,
                trio.open_nursery() as nursery,
            ):
                routing = Routing(
                    stores, engine.records, engine.gate, engine.changes, peers.open, "killed", LIMITS
                )
                await routing.configure(routes)
                with monkeypatch.context() as patch:
                    kill_after(stores, patch, commits)
                    nursery.start_soon(routing.run)
                    await peers.until(lambda: len(peers.at("A")) >= 11)
                    raise KilledError
        except* KilledError:
            pass
        got_before = len(peers.got)
        leases.give_up(stores.store, "routing", "killed")
        async with routed(stores, peers, *routes) as (_, routing):
            await peers.until_got("A", [uid for uid in uids if uid not in bad])
            await peers.until(lambda: rows(stores, routing)[LaneKey("all", "A")].set_aside == 1)
        twice = len(peers.got) - len(set(peers.got))
        assert twice <= associations, f"{twice} were sent twice, of {got_before} before the kill"
        with stores.store.snapshot() as snapshot:
            objects = [one for entry in routing.rows.aside(snapshot) for one in entry.objects]
        assert [one.instance for one in objects] == bad


async def test_a_reindex_sends_nothing_again_and_loses_nothing(tmp_path: Path) -> None:
    refused = Answer(Verdict.REFUSED, "no", 0xC000)
    bad: list[str] = []
    peers = Peers({"A": lambda uid, _: refused if uid in bad else SENT})
    data = tmp_path / "data"
    with stores_in(data) as stores:
        async with routed(stores, peers, route("all", "A", "B"), route("stable", "S", stable=True)) as (
            engine,
            routing,
        ):
            uids = [generate_uid() for _ in range(6)]
            bad.append(uids[1])
            for uid in uids:
                await store_one(engine, ct_slice(sop_uid=uid, study_uid="2.25.1"))
            await peers.until_got("A", [uid for uid in uids if uid not in bad])
            await peers.until_got("B", uids)
            await peers.until_got("S", uids)
            peers.unreachable |= {"A", "S"}
            waiting = await store_some(engine, 2, study_uid="2.25.2")
            await peers.until_got("B", waiting)
    shutil.rmtree(data / "index")
    with stores_in(data) as stores:
        stores.reindex(lambda *_: None)
        peers.unreachable.clear()
        async with routed(stores, peers, route("all", "A", "B"), route("stable", "S", stable=True)) as (
            engine,
            routing,
        ):
            later = await store_some(engine, 2, study_uid="2.25.3")
            for to in "ABS":
                await peers.until_got(to, [*waiting, *later])
        with stores.store.snapshot() as snapshot:
            objects = [one for entry in routing.rows.aside(snapshot) for one in entry.objects]
        assert [one.instance for one in objects] == bad
    assert sorted(peers.at("B")) == sorted([*uids, *waiting, *later])
    assert sorted(peers.at("A")) == sorted([*(set(uids) - set(bad)), *waiting, *later])
    assert sorted(peers.at("S")) == sorted([*uids, *waiting, *later])


async def test_after_a_reindex_nothing_is_set_aside_twice(tmp_path: Path) -> None:
    """Also when no mark says that it was done with."""
    peers = Peers({"A": lambda *_: Answer(Verdict.REFUSED, "no", 0xC000)})
    forgetful = replace(LIMITS, mark_margin_s=1e6)
    data = tmp_path / "data"
    for _ in range(2):
        with stores_in(data) as stores:
            if peers.tried:
                stores.reindex(lambda *_: None)
            async with routed(stores, peers, route(), limits=forgetful) as (engine, routing):
                count = len(peers.tried) + 2  # before any of them can be tried
                await store_some(engine, 2)
                await peers.until(lambda count=count: aside_count(stores, routing) == count)  # type: ignore[misc]
        shutil.rmtree(data / "index")
    assert len(peers.tried) == len(set(peers.tried)) == 4


async def test_an_older_index_sends_again_only_what_was_not_marked(tmp_path: Path) -> None:
    peers = Peers()
    data = tmp_path / "data"
    with stores_in(data) as stores:
        async with routed(stores, peers, route()) as (engine, _):
            first = await store_some(engine, 3)
            await peers.until_got("A", first)
    shutil.copytree(data / "index", tmp_path / "older")
    with stores_in(data) as stores:
        async with routed(stores, peers, route()) as (engine, _):
            second = await store_some(engine, 3)
            await peers.until_got("A", second)
        # Not through routing: the archive ends before these are sent.
        async with open_engine(stores, OPTIONS, owner="no routing") as engine:
            third = await store_some(engine, 2)
    shutil.rmtree(data / "index")
    shutil.copytree(tmp_path / "older", data / "index")
    with stores_in(data) as stores:
        stores.catch_up(at_start=True)
        async with routed(stores, peers, route()):
            await peers.until_got("A", third)
    assert sorted(peers.at("A")) == sorted([*first, *second, *third])


async def test_another_takes_over_from_a_leader_that_died(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says nothing at its end: its lease runs out."""
    peers = Peers()
    limits = replace(LIMITS, lease_s=0.2)
    monkeypatch.setattr(leases, "give_up", lambda *_: None)
    with stores_in(tmp_path / "data") as stores:
        async with open_engine(stores, OPTIONS, owner="x") as engine, trio.open_nursery() as nursery:
            first, second = (
                Routing(stores, engine.records, engine.gate, engine.changes, peers.open, owner, limits)
                for owner in ("first", "second")
            )
            await first.configure([route()])
            await second.configure([route()])
            dying = trio.CancelScope()

            async def lead() -> None:
                with dying:
                    await first.run()

            nursery.start_soon(lead)
            before = await store_some(engine, 3)
            await peers.until_got("A", before)
            dying.cancel()
            nursery.start_soon(second.run)
            after = await store_some(engine, 3)
            await peers.until_got("A", after)
            await second.drain()
            nursery.cancel_scope.cancel()
    assert list(dict.fromkeys(peers.at("A"))) == [*before, *after]
    assert len(peers.got) <= 7


async def test_a_leader_that_was_succeeded_moves_nothing(tmp_path: Path) -> None:
    """Its cursor is not its own any more; it reads anew."""
    peers = Peers()
    key = LaneKey("all", "A")
    with stores_in(tmp_path / "data") as stores:
        async with routed(stores, peers, route()) as (engine, routing):
            uids = await store_some(engine, 2)
            await peers.until(lambda: rows(stores, routing)[key].sent == 2)
            held = rows(stores, routing)[key]
            routing.rows.move(key, held, LaneRow(held.sequence, sent=100))  # another one's doing
            more = await store_some(engine, 2)
            await peers.until(lambda: rows(stores, routing)[key].sent == 102)
        assert set(peers.at("A")) == {*uids, *more}
        assert len(peers.got) <= 5


# ------------------------------------------------------------ the cursor, in any order


_POSITIONS = [(sequence, member) for sequence in (3, 4, 7) for member in range(4)]


def _waiting(position: tuple[int, int]) -> Waiting:
    return Waiting(*position, "2.25.1", "2.25.2", f"2.25.{position[0]}{position[1]}", b"r", 5, "1.2", "1.2")


def _lane(row: LaneRow) -> Lane:
    """A lane that has read its journal, in which every second object matches."""
    lane = Lane(LaneKey("r", "A"), route(), row, LIMITS)
    lane.want.found = [_waiting(one) for one in _POSITIONS if one[1] % 2 == 0 and one[0] > lane.want.read_to]
    lane.want.read_to = 7
    lane.take_found()
    return lane


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5)), max_size=40))
def test_the_cursor_tells_exactly_what_is_not_done(steps: list[tuple[int, int]]) -> None:
    """Whoever opens the row anew finds each object that was not done with, and none that was."""
    lane = _lane(LaneRow(2))
    over: set[tuple[int, int]] = set()
    for what, which in steps:
        if what == 0 and (head := lane.head()) is not None:
            lane.waiting.popleft()
            assert lane.start(head.position, head)
            continue
        busy = sorted(lane.busy.values())
        if not busy:
            continue
        one = busy[which % len(busy)]
        if what == 1:
            lane.done(one, sent=True)
            over.add(one.position)
        elif what == 2:
            lane.put_back(one)
        else:
            lane.refuse(one, "no", None)
            row = lane.next_row(tuple(lane.refused))
            over.update(refused.position for refused, _ in lane.refused)
            lane.refused.clear()
            lane.row = row
        if which % 3 == 0:
            lane.row = lane.next_row()
        again = _lane(lane.next_row())
        assert {entry.position for entry in again.waiting} == {
            one for one in _POSITIONS if one[1] % 2 == 0
        } - over
        assert list(again.waiting) == sorted(again.waiting)
    assert [entry for entry in lane.waiting if entry.position in lane._positions] == sorted(
        entry for entry in lane.waiting if entry.position in lane._positions
    )
