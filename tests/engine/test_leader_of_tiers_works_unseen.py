"""Danger: nobody sees what the leader of tiering is at, or sees what is not so any more."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import pytest

from hounsfield.archive.engine import tier_standing
from hounsfield.archive.engine.engine import EngineOptions, open_engine
from hounsfield.archive.engine.stores import Stores
from hounsfield.archive.engine.tier_moves import EVENT_TIERED
from hounsfield.archive.engine.tier_oversight import TierOversight
from hounsfield.archive.engine.tier_progress import SAVE_S, SILENT_S, TieringFigures, TierProgress, runs, sums
from hounsfield.archive.engine.tier_standing import TierStanding
from hounsfield.archive.engine.tier_sums import NOTHING, added, seconds_of
from hounsfield.archive.engine.tiers import TieringOptions, TierOptions
from hounsfield.archive.index.demand import RecallRow, ask_for
from hounsfield.archive.index.packs import CopyRow, PackRow, plan_pack
from hounsfield.archive.index.rows import Event
from hounsfield.archive.index.verifying import Damage, DamageRow
from hounsfield.storage_backends.api import Batch
from hounsfield.storage_backends.object_store import TIER_MARKER
from support.archives import stores_in

SECOND = 1_000_000_000


class Clock:
    def __init__(self) -> None:
        self.now = 1_000 * SECOND

    def __call__(self) -> int:
        return self.now


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow the machine is, a directory that is there answers."""
    monkeypatch.setattr(tier_standing, "LEADER_WAIT_S", 60.0)


@pytest.fixture
def stores(tmp_path: Path) -> Iterator[Stores]:
    (tmp_path / "cold").mkdir()
    options = EngineOptions(tiering=TieringOptions((TierOptions("cold", tmp_path / "cold"),)))
    with stores_in(tmp_path / "data", options) as opened:
        yield opened


def seen(stores: Stores, clock: Clock) -> dict[str, dict[str, object]]:
    with stores.store.snapshot() as snapshot:
        return runs(snapshot, clock.now)


def summed(stores: Stores) -> dict[str, int]:
    with stores.store.snapshot() as snapshot:
        return sums(snapshot)


def test_how_far_it_is_is_seen_and_costs_a_row_every_other_second(stores: Stores) -> None:
    clock, figures = Clock(), TieringFigures()
    progress = TierProgress(stores.store, figures, clock=clock)
    with (
        patch.object(stores.store, "commit", wraps=stores.store.commit) as commit,
        progress.of("plan", lambda _: None) as (pace, looked),
    ):
        for number in range(1, 1001):  # for ten seconds
            clock.now += SECOND // 100
            figures.copied_bytes += 7
            pace(5)
            looked(number)
        assert commit.call_count <= 10 / SAVE_S + 1
        plan = seen(stores, clock)["plan"]
        assert (plan["running"], plan["ended"]) == (True, None)
        assert 4000 < plan["bytes"] <= 5000  # type: ignore[operator]
        assert plan["looked"] > 700  # type: ignore[operator]
        assert plan["copied_bytes"] > 5000  # type: ignore[operator]
    plan = seen(stores, clock)["plan"]
    assert (plan["running"], plan["bytes"], plan["looked"]) == (False, 5000, 1000)
    assert plan["copied_bytes"] == summed(stores)["copied_bytes"] == 7000


def test_what_stops_is_not_shown_as_under_way(stores: Stores) -> None:
    clock, figures = Clock(), TieringFigures()
    run = TierProgress(stores.store, figures, clock=clock).of("verify", lambda _: None)
    run.__enter__()  # and its process is killed
    assert seen(stores, clock)["verify"]["running"]
    clock.now += int(SILENT_S * SECOND)
    assert not seen(stores, clock)["verify"]["running"]
    with (
        pytest.raises(ZeroDivisionError),
        TierProgress(stores.store, figures, clock=clock).of("verify", lambda _: None),
    ):
        raise ZeroDivisionError
    assert seen(stores, clock)["verify"]["ended"] is not None


def test_sums_are_those_of_all_workers_and_starts(stores: Stores) -> None:
    clock = Clock()
    one, other = TieringFigures(), TieringFigures()
    first, second = (TierProgress(stores.store, figures, clock=clock) for figures in (one, other))
    one.freed_bytes, other.freed_bytes = 5, 7
    first.save()
    second.save()
    one.freed_bytes += 1
    first.save()
    with patch.object(stores.store, "commit", wraps=stores.store.commit) as commit:
        first.save()  # nothing was done since
        assert not commit.call_count
    again = TieringFigures(freed_bytes=100)
    TierProgress(stores.store, again, clock=clock).save()
    assert summed(stores)["freed_bytes"] == 5 + 7 + 1 + 100


def test_a_recall_that_fails_again_and_again_writes_little(stores: Stores) -> None:
    clock, figures = Clock(), TieringFigures()
    progress = TierProgress(stores.store, figures, clock=clock)
    with patch.object(stores.store, "commit", wraps=stores.store.commit) as commit:
        for _ in range(100):
            clock.now += SECOND // 10
            with progress.of("recall", lambda _: None):
                pass
        assert commit.call_count <= 10 / SAVE_S + 1


# ---------------------------------------------------------------- how it stands


def standing_of(stores: Stores, damaged: list[Damage] | None = None) -> TierStanding:
    return TierStanding(
        stores.store, stores.tiers, stores.keyring.root_id, lambda: damaged or [], clock=Clock()
    )


def add_pack(stores: Stores, segment: bytes, *tiers: str) -> None:
    batch = Batch()
    copies = {tier: CopyRow(1) for tier in tiers}
    plan_pack(batch, segment, PackRow(bytes(20), 1000, 10, 1, bytes(32), copies))
    stores.store.commit(batch)


def test_what_is_told_is_what_was_looked_up_and_waiting_recalls_are_news(stores: Stores) -> None:
    add_pack(stores, b"a" * 16, "hot")
    add_pack(stores, b"b" * 16, "hot", "gone")
    standing = standing_of(stores, [Damage(b"b" * 16, "gone", DamageRow())])
    assert standing.told().at_ns == 0
    standing.tell(again=True)
    told = standing.told()
    hot, cold, gone = (told.tiers[name] for name in ("hot", "cold", "gone"))
    assert (hot.packs, hot.bytes, hot.objects, hot.trouble) == (2, 2000, 20, "")
    assert (cold.packs, cold.trouble) == (0, "")
    assert (gone.packs, gone.damaged, gone.configured, bool(gone.trouble)) == (1, 1, False, True)
    assert told.damaged == 1
    ask_for(stores.store, [bytes(20)], RecallRow(77, "asked"))
    add_pack(stores, b"c" * 16, "hot")
    standing.tell(again=False)
    told = standing_of(stores).told()
    assert (told.recalls, told.oldest_recall_ns) == (1, 77)
    assert told.tiers["hot"].packs == 2  # looked up when it is due
    with patch.object(stores.store, "commit", wraps=stores.store.commit) as commit:
        standing.tell(again=False)
        assert not commit.call_count


def test_a_place_without_its_mark_is_trouble_once_it_was_used(stores: Stores, tmp_path: Path) -> None:
    standing = standing_of(stores)
    assert standing.look().tiers["cold"].trouble == ""  # nothing was put there yet
    add_pack(stores, b"a" * 16, "cold")
    assert "mount" in standing.look().tiers["cold"].trouble
    (tmp_path / "cold" / TIER_MARKER).write_text('{"format": 1, "archive": "00", "tier": "cold"}')
    assert "belongs to" in standing.look().tiers["cold"].trouble
    (tmp_path / "cold" / TIER_MARKER).unlink()
    (tmp_path / "cold").rmdir()
    assert standing.look().tiers["cold"].trouble


async def test_an_unused_tier_whose_directory_is_not_there_is_trouble(stores: Stores, tmp_path: Path) -> None:
    (tmp_path / "cold").rmdir()
    options = EngineOptions(tiering=stores.tiers.options)
    async with open_engine(stores, options, owner="test") as engine:
        engine.tiering.standing.tell(again=True)
    assert "mount" in standing_of(stores).told().tiers["cold"].trouble


# ---------------------------------------------------------------- sums of plans


def test_pages_of_a_plan_add_up() -> None:
    rule = {
        "action": "move", "series": 1, "bytes": 5, "gathered_bytes": 5, "copied": {"cold": 5},
        "moved_bytes": 5,
    }  # fmt: skip
    page = {"looked": 3, "quiet": 1, "unmatched": 0, "settled": {"r": 1}, "rules": {"r": rule}, "series": [1]}
    found = added(added(NOTHING, page), {**page, "rules": {"r": {**rule, "copied": {"second": 2}}}})
    assert (found["looked"], found["settled"], found["series"]) == (6, {"r": 2}, [1, 1])
    assert found["rules"]["r"] == {
        "action": "move", "series": 2, "bytes": 10, "gathered_bytes": 10, "copied": {"cold": 5, "second": 2},
        "moved_bytes": 10,
    }  # fmt: skip
    assert seconds_of(found, 2) == 10 / 2
    assert seconds_of(found, 0) is None
    assert NOTHING["rules"] == {}


# ---------------------------------------------------------------- history


async def test_history_is_whole_however_little_of_a_journal_it_is(stores: Stores) -> None:
    options = EngineOptions(tiering=stores.tiers.options)
    async with open_engine(stores, options, owner="test") as engine:
        for number in range(40):
            kind = EVENT_TIERED if number % 20 == 0 else "something-else"
            stores.journal.commit_events([Event(kind, number, {"rule": str(number)})])
        oversight = TierOversight(engine)
        with (
            patch("hounsfield.archive.engine.tier_oversight.HISTORY_PAGE", 3),
            patch("hounsfield.archive.engine.tier_oversight.HISTORY_PAGES_MAX", 2),
        ):
            found: list[str] = []
            before: int | None = None
            for _ in range(100):
                page = await oversight.history(1, before)
                assert len(page["events"]) <= 1
                found += [one["rule"] for one in page["events"]]
                before = page["before"]
                if before is None:
                    break
        assert found == ["20", "0"]


def test_a_tier_that_hangs_does_not_hold_up_the_leader(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_pack(stores, b"a" * 16, "cold")
    standing = standing_of(stores)
    answers, asked = threading.Event(), []

    def hang(*_: object, **__: object) -> None:
        asked.append(1)
        answers.wait(60)

    monkeypatch.setattr(tier_standing, "claim_tier", hang)
    monkeypatch.setattr(tier_standing, "LEADER_WAIT_S", 0.0)
    for _ in range(3):  # returns although nothing has answered
        standing.tell(again=True)
        assert "has not answered" in standing.told().tiers["cold"].trouble
    assert len(asked) <= 1  # one thread, however often it is asked
    answers.set()
    assert "has not answered" not in standing.look(wait_s=60).tiers["cold"].trouble
