"""What cannot be done now, or needs not be done any more, is in the way of what can."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from pydicom.uid import ExplicitVRLittleEndian
from structlog.testing import capture_logs

from engine.test_tiers_lose_what_they_move import LIMITS, NEVER, Place, applied, rule, spoil, tidied
from hounsfield.archive.engine import tier_returns
from hounsfield.archive.engine.errors import DamagedError
from hounsfield.archive.engine.types import Outcome
from hounsfield.archive.index import locations
from support.archives import ct_slice, store


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path, limits=replace(LIMITS, recall_when_opened=False))


async def test_what_cannot_be_brought_back_does_not_hold_up_what_can(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tier_returns, "RECALLS_AT_ONCE", 2)
    place.rules = (
        rule("move", "cold", match={"PatientID": "P-1"}),
        rule("move", "second", match={"PatientID": "P-2"}, name="s"),
    )
    async with place.open() as engine:
        for patient in ("P-1", "P-1", "P-1", "P-2"):
            await place.send(engine, 1, patient_id=patient)
        await applied(engine)
    (place.root / "cold").rename(place.root / "gone")
    place.limits = replace(place.limits, plan_s=NEVER)
    place.rules = ()
    async with place.open() as engine:
        for _, result in place.sent.values():
            assert await engine.tiering.recall(result.study_uid) == 1
        await engine.tiering.leading.run(engine.tiering.step)
        assert engine.tiering.figures.recalled_series == 1
        failures = engine.tiering.figures.failures
        await engine.tiering.leading.run(engine.tiering.step)
        assert engine.tiering.figures.failures == failures  # not again and again
        (place.root / "gone").rename(place.root / "cold")
        monkeypatch.setattr(tier_returns, "RECALL_AGAIN_S", 0.0)
        engine.tiering._returns.put_off.clear()
        await engine.tiering.leading.run(engine.tiering.step)
        assert engine.tiering.figures.recalled_series == 4


async def test_another_version_of_an_object_follows_it(place: Place) -> None:
    async with place.open() as engine:
        await place.send(engine, 2)
        await applied(engine)
        (_, first), *_ = place.sent.values()
        uids = {"study_uid": first.study_uid, "series_uid": first.series_uid}
        other = ct_slice(**uids, sop_uid=first.sop_instance_uid)
        assert (await store(engine, other, ExplicitVRLittleEndian)).outcome is Outcome.CONFLICT
        await applied(engine)
        named = place.named(engine.stores)
        for _, rows in locations.walk(engine.stores.store, engine.stores.catalog):
            assert all(named[one.location.segment.hex()] == {"cold"} for one in rows if one.location)


async def test_what_is_no_segment_is_left_alone(place: Place) -> None:
    place.limits = replace(place.limits, sweep_s=0.0)
    async with place.open() as engine:
        await place.send(engine, 1)
        for folder in ("data/segments", "cold/packs", "cold/packs/ab", "cold/keys/segment"):
            (place.root / folder).mkdir(parents=True, exist_ok=True)
            (place.root / folder / "notes").write_text("somebody's")
        await applied(engine)
        await applied(engine)
        assert engine.tiering.figures.series == 1
    assert len(list(place.root.rglob("notes"))) == 4


async def test_the_lower_mark_ends_what_the_upper_one_began(place: Place) -> None:
    """Each series is a tenth of the disk."""
    place.rules = (rule(fill_above=0.8, fill_until=0.6),)
    async with place.open() as engine:
        for _ in range(9):
            await place.send(engine, 1)
        figures = engine.tiering.figures
        engine.tiering.hot_fill = lambda *_: 0.9 - 0.1 * figures.series  # type: ignore[method-assign]
        await applied(engine)
        assert figures.series == 3
        await applied(engine)
        assert figures.series == 3


async def test_what_compaction_is_about_to_free_counts_as_free(place: Place) -> None:
    """A series leaves its old place when that is compacted; until then its bytes are there twice or once."""
    place.rules = (rule(fill_above=0.8, fill_until=0.6),)
    async with place.open() as engine:
        for _ in range(9):
            await place.send(engine, 1, pixels=bytes(1 << 17))
        size = sum(map(engine.stores.log.size, engine.stores.log.segment_ids()))
        engine.tiering.hot_fill = lambda free=0: 0.9 * (1 - free / size)  # type: ignore[method-assign]
        await applied(engine)
        assert engine.tiering.figures.series in {3, 4}


async def test_a_tier_that_is_away_is_asked_once_a_round_and_said_once(place: Place) -> None:
    async with place.open() as engine:
        for _ in range(4):
            await place.send(engine, 1)
        await applied(engine)
    (place.root / "cold").rename(place.root / "gone")
    place.rules = (rule("pin"),)  # so that plans want them here, too
    place.limits = replace(place.limits, check_s=NEVER)
    async with place.open() as engine:
        asked = engine.stores.tiers.metered["cold"].figures
        for _, result in place.sent.values():  # which wakes nobody: the test is to hear what is said
            assert engine.tiering._returns.ask_for_study(result.study_uid, "", "asked") == 1
        for step in (engine.tiering._returns.bring_back, engine.tiering._carry_out_plan):
            before = sum(of.calls for of in asked.values())
            with capture_logs() as logged:
                await engine.tiering.leading.run(step)
            (said,) = [entry for entry in logged if entry["log_level"] == "warning"]
            assert (said["tier"], said["count"]) == ("cold", 4)
            assert sum(of.calls for of in asked.values()) - before <= 1


async def test_a_damaged_pack_is_not_read_again_for_whoever_waits_for_it(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = 1000.0
    monkeypatch.setattr(tier_returns, "time", SimpleNamespace(monotonic=lambda: seconds))
    async with place.open() as engine:
        await place.send(engine, 1)
        await applied(engine)
        (segment,) = place.named(engine.stores)
    path = place.root / "cold" / "packs" / segment[:2] / segment
    whole = path.read_bytes()
    spoil(path, 9000)
    place.rules = ()
    place.limits = replace(place.limits, check_s=NEVER)
    async with place.open() as engine:
        reads = engine.stores.tiers.metered["cold"].figures["stream"]
        (_, result), *_ = place.sent.values()
        assert await engine.tiering.recall(result.study_uid) == 1
        await tidied(engine)  # read by the recall, and once more by who looks into it
        assert engine.tiering.verifying.damaged() == [(bytes.fromhex(segment), "cold")]
        before = reads.bytes
        for _ in range(20):
            seconds += 600
            await engine.tiering.leading.run(engine.tiering.step)
        assert reads.bytes == before
        held = engine.tiering.standing.look()
        assert (held.recalls, held.stuck, held.damaged) == (1, 1, 1)
        path.write_bytes(whole)
        await engine.tiering.verify()
        await tidied(engine)
        seconds += 600
        await engine.tiering.leading.run(engine.tiering.step)
        assert engine.tiering.figures.recalled_series == 1
        await place.require_all(engine)


async def test_a_pack_that_is_gone_and_comes_back_is_found_without_being_asked(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with place.open() as engine:
        await place.send(engine, 1)
        await applied(engine)
        (segment,) = place.named(engine.stores)
    path = place.root / "cold" / "packs" / segment[:2] / segment
    path.rename(place.root / "gone")
    place.limits = replace(place.limits, check_s=NEVER)
    place.rules = (rule("pin"),)
    async with place.open() as engine:
        tiering = engine.tiering
        ahead = 0
        monkeypatch.setattr(tiering, "_clock", lambda: time.time_ns() + ahead)
        (_, result), *_ = place.sent.values()
        with pytest.raises(DamagedError, match="missing"):
            await engine.frame(result.study_uid, result.series_uid, result.sop_instance_uid, 1)
        tiering.verifying.doubt([bytes.fromhex(segment)])  # as the reader does, a moment later
        await tidied(engine)
        held = tiering.standing.look()
        assert (held.damaged, held.missing) == (1, 1)
        page = tiering.plan_page(None)
        assert (page.damaged, page.tasks) == (1, [])  # nothing can be done, and that is said
        asked = engine.stores.tiers.metered["cold"].figures["size"]
        before = asked.calls
        for _ in range(10):
            await tidied(engine)
        assert asked.calls == before  # not every minute
        (place.root / "gone").rename(path)
        ahead = 700 * 10**9
        await tidied(engine)
        assert not tiering.verifying.damaged()
        assert tiering.standing.look().missing == 0
        await place.require_all(engine)
        await applied(engine)
        assert place.named(engine.stores)[segment] == {"cold", "hot"}
