"""A plan forgets a series, wants again what is done, or changes something while it is made."""

from __future__ import annotations

import datetime
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from pydicom import Dataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from hounsfield.archive.dicom.rules import parse_rule
from hounsfield.archive.engine.engine import Engine, EngineOptions, open_engine
from hounsfield.archive.engine.stores import Stores
from hounsfield.archive.engine.tier_fill import draining_now, note_draining
from hounsfield.archive.engine.tier_order import in_order
from hounsfield.archive.engine.tier_planning import PackTask, PlanLimits, SeriesTask, TierPlanning
from hounsfield.archive.engine.tier_rules import Surroundings, TierRule
from hounsfield.archive.engine.types import StoreResult
from hounsfield.archive.index.demand import (
    Pin,
    PinError,
    RecallRow,
    ask_for,
    day_of,
    last_opened,
    note_opened,
    pin,
    pinned,
    recalls,
    satisfied,
    unpin,
)
from hounsfield.archive.index.packs import CopyRow, PackRow, Packs, plan_pack
from hounsfield.archive.index.rows import InstanceRow, SourceRow
from hounsfield.storage_backends.api import Batch
from support.archives import ct_slice, store, stores_in
from support.contents import contents

TODAY = datetime.date(2026, 11, 22)
AROUND = Surroundings(TODAY)
SECOND = 1_000_000_000
DAY = 86_400 * SECOND


class Archive:
    """An archive, and a clock that runs some hours ahead, so that nothing counts as just received."""

    def __init__(self, engine: Engine, stores: Stores) -> None:
        self.engine = engine
        self.stores = stores
        self.ahead_ns = 2 * 3600 * SECOND
        self.sources = 0

    async def receive(self, study: str, series: str, **more: str) -> StoreResult:
        return await store(
            self.engine, ct_slice(study_uid=study, series_uid=series, **more), ExplicitVRLittleEndian
        )

    def source(self, row: InstanceRow) -> SourceRow:
        self.sources += 1
        return self.engine.records.source(row)

    @property
    def now_ns(self) -> int:
        return time.time_ns() + self.ahead_ns

    def plan(self, *rules: TierRule, around: Surroundings = AROUND) -> list[SeriesTask]:
        planning = TierPlanning(self.stores.catalog, self.stores.journal, rules, self.source, PlanLimits())
        return list(planning.tasks(self.stores.store, around, self.now_ns))

    def ordered(
        self, *rules: TierRule, around: Surroundings = AROUND, remembered: int = 50_000, **told: Any
    ) -> Iterator[SeriesTask]:
        planning = TierPlanning(self.stores.catalog, self.stores.journal, rules, self.source, PlanLimits())
        index, now = self.stores.store, lambda: self.now_ns
        return in_order(planning, index, lambda: around, now, remembered=remembered, **told)

    def pack(self, study: str, series: str, *tiers: str, since_ns: int = 0) -> bytes:
        """Say that the segment in which the series lies is a pack of it, as if gathering had made it."""
        key = self.stores.catalog.series_key(study, series)
        with self.stores.store.snapshot() as snapshot:
            rows = list(self.stores.catalog.instances_of(snapshot, key))
        segment = rows[-1].location.segment
        made = time.time_ns()
        batch = Batch()
        copies = {tier: CopyRow(since_ns or made, made) for tier in tiers}
        plan_pack(batch, segment, PackRow(key, 1000, len(rows), made, bytes(32), copies))
        self.stores.store.commit(batch)
        return segment


@pytest.fixture
async def archive(tmp_path: Path) -> AsyncIterator[Archive]:
    with stores_in(tmp_path / "data") as stores:
        async with open_engine(stores, EngineOptions(), owner="test") as engine:
            yield Archive(engine, stores)


def rule(action: str = "move", *to: str, **conditions: object) -> TierRule:
    match = conditions.pop("match", {})
    tiers = to or (("cold",) if action in {"move", "copy"} else ())
    name = str(conditions.pop("name", "r"))
    return TierRule(name, parse_rule(match, "match"), action, tiers, **conditions)  # type: ignore[arg-type]


async def test_what_no_rule_wants_and_what_is_growing_stays(archive: Archive) -> None:
    study, series = generate_uid(), generate_uid()
    await archive.receive(study, series)
    assert archive.plan() == []
    assert archive.plan(rule(match={"Modality": "MR"})) == []
    assert len(archive.plan(rule())) == 1
    archive.ahead_ns = 3599 * SECOND
    assert archive.plan(rule()) == []


async def test_every_series_is_looked_at_and_nothing_changes(archive: Archive) -> None:
    wanted = set()
    for _ in range(7):
        study = generate_uid()
        for _ in range(3):
            series = generate_uid()
            wanted.add((study, series))
            await archive.receive(study, series)
    before = contents(archive.stores)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hounsfield.archive.engine.tier_planning.PAGE_SERIES", 4)
        found = archive.plan(rule(compress="zstd"))
    assert {(task.study_uid, task.series_uid) for task in found} == wanted
    assert len(found) == len(wanted)
    assert all(task.gather and task.gather_bytes > 512 and task.compress == "zstd" for task in found)
    assert all(task.copied_bytes == task.freed_bytes == task.gather_bytes for task in found)
    assert contents(archive.stores) == before
    assert not archive.sources


def dated(day: str, data: Dataset) -> None:
    data.StudyDate = day


async def received_on_days(archive: Archive, days: Sequence[int]) -> list[str]:
    """A study of each of these days of a November, by its series."""
    series = [generate_uid() for _ in days]
    for uid, day in zip(series, days, strict=True):
        data = ct_slice(series_uid=uid, change=partial(dated, f"202511{day:02}"))
        await store(archive.engine, data, ExplicitVRLittleEndian)
    return series


@pytest.mark.parametrize("remembered", [1, 2, 50])
async def test_the_oldest_studies_go_first(archive: Archive, remembered: int) -> None:
    days = [5, 3, 9, 1, 7, 2, 8]
    series = await received_on_days(archive, days)
    wanted = [uid for _, uid in sorted(zip(days, series, strict=True))]
    progress: list[int] = []
    found = archive.ordered(rule(), remembered=remembered, progress=progress.append)
    assert [task.series_uid for task in found] == wanted
    assert progress == sorted(progress)
    assert progress[-1] == len(days)


async def test_under_a_mark_of_fill_goes_first_what_was_opened_longest_ago(archive: Archive) -> None:
    days = [1, 2, 3, 4, 5]
    series = await received_on_days(archive, days)
    keys = {task.series_uid: task.series_key for task in archive.plan(rule())}
    today = datetime.datetime.now().astimezone().date() + datetime.timedelta(100)
    for uid, ago in zip(series[:4], (10, 40, 20, 30), strict=True):
        note_opened(archive.stores.store, [keys[uid]], today - datetime.timedelta(ago))
    around = Surroundings(today, hot_fill=0.9)
    rules = (rule(name="other", match={"StudyDate": "20251101"}), rule(name="mark", fill_above=0.8))
    found = [task.series_uid for task in archive.ordered(*rules, around=around)]
    assert found == [series[4], series[1], series[3], series[2], series[0]]


async def test_what_is_opened_while_others_move_stays(archive: Archive) -> None:
    series = await received_on_days(archive, [1, 2, 3])
    today = datetime.datetime.now().astimezone().date() + datetime.timedelta(100)
    around = Surroundings(today)
    going = archive.ordered(rule(not_opened_days=30), around=around)
    assert next(going).series_uid == series[0]
    key = next(task for task in archive.plan(rule()) if task.series_uid == series[1]).series_key
    note_opened(archive.stores.store, [key], around.today)
    assert [task.series_uid for task in going] == [series[2]]


async def test_a_mark_that_was_passed_is_known_to_the_next_leader(archive: Archive) -> None:
    index, rules = archive.stores.store, [rule(fill_above=0.9, fill_until=0.8)]
    assert draining_now(index, rules, 0.85) == frozenset()
    note_draining(index, draining_now(index, rules, 0.95))
    assert draining_now(index, rules, 0.85) == {"r"}  # of whatever process
    note_draining(index, draining_now(index, rules, 0.75))
    assert draining_now(index, rules, 0.85) == frozenset()


async def test_what_comes_late_keeps_its_series_for_its_own_years(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, old, mixed = generate_uid(), generate_uid(), generate_uid()
    for series in (old, mixed):
        await archive.receive(study, series)
    came = time.time_ns()
    with monkeypatch.context() as patch:
        patch.setattr(time, "time_ns", lambda: came + 9 * 366 * DAY)
        await archive.receive(study, mixed)
    archive.ahead_ns = 11 * 366 * DAY
    around = Surroundings(day_of(archive.now_ns))
    found = archive.plan(rule("expire", keep_years=10.0), around=around)
    assert [task.series_uid for task in found] == [old]


async def test_each_step_that_was_done_is_not_wanted_again(archive: Archive) -> None:
    study, series = generate_uid(), generate_uid()
    await archive.receive(study, series)
    segment = archive.pack(study, series, "hot")
    packs = Packs(archive.stores.store)
    (task,) = archive.plan(rule())
    assert not task.gather
    assert task.packs == (PackTask(segment, 1000, ("cold",), ("hot",)),)
    assert (task.copied_bytes, task.freed_bytes) == (1000, 1000)
    packs.name_copy(segment, "cold", CopyRow(1))
    (task,) = archive.plan(rule())
    assert task.packs == (PackTask(segment, 1000, (), ("hot",)),)
    packs.unname_copy(segment, "hot")
    assert archive.plan(rule()) == []
    (task,) = archive.plan(rule("copy", "cold", "second"))
    assert task.packs == (PackTask(segment, 1000, ("hot", "second"), ()),)
    assert (task.copied_bytes, task.freed_bytes) == (2000, -1000)


async def test_what_comes_late_is_packed_by_itself(archive: Archive) -> None:
    study, series = generate_uid(), generate_uid()
    await archive.receive(study, series)
    archive.pack(study, series, "cold")
    assert archive.plan(rule()) == []
    archive.stores.log.start_anew()
    await archive.receive(study, series, patient_name="Spät^Paula")
    (task,) = archive.plan(rule())
    assert task.gather
    assert task.gather_bytes == task.copied_bytes == task.freed_bytes
    assert not task.packs


async def test_a_pinned_study_comes_back_and_stays(archive: Archive) -> None:
    study, series = generate_uid(), generate_uid()
    await archive.receive(study, series)
    (stored,) = archive.plan(rule())
    assert stored.action == "move"
    pin(archive.stores.journal, Pin(study, "tester", "conference", 1, until_ns=archive.now_ns + DAY))
    assert archive.plan(rule()) == []
    segment = archive.pack(study, series, "cold")
    (task,) = archive.plan(rule())
    assert (task.action, task.packs) == ("pin", (PackTask(segment, 1000, ("hot",), ()),))
    archive.ahead_ns += 2 * DAY
    assert archive.plan(rule()) == []


async def test_what_was_brought_back_lately_is_not_sent_away_again(archive: Archive) -> None:
    study, series = generate_uid(), generate_uid()
    await archive.receive(study, series)
    archive.pack(study, series, "cold", "hot", since_ns=time.time_ns() + SECOND)
    assert archive.plan(rule()) == []
    archive.ahead_ns += 8 * DAY
    (task,) = archive.plan(rule())
    assert task.packs[0].drop_from == ("hot",)


async def test_opened_series_stay_and_how_they_came_is_known(archive: Archive) -> None:
    study, series = generate_uid(), generate_uid()
    await archive.receive(study, series)
    key = archive.stores.catalog.series_key(study, series)
    today = datetime.datetime.now().astimezone().date()
    around = Surroundings(today + datetime.timedelta(100))
    wanted = rule(not_opened_days=90, match={"protocol": "import"})
    assert len(archive.plan(wanted, around=around)) == 1
    assert archive.sources == 1
    note_opened(archive.stores.store, [key], around.today - datetime.timedelta(3))
    assert archive.plan(wanted, around=around) == []
    assert archive.plan(rule(match={"protocol": "dimse"}), around=around) == []


async def test_sizes_are_those_of_what_is_stored(archive: Archive) -> None:
    study, series = generate_uid(), generate_uid()
    await archive.receive(study, series)
    (task,) = archive.plan(rule())
    assert archive.plan(rule(bytes_min=task.gather_bytes + 1)) == []
    assert archive.plan(rule(bytes_min=task.gather_bytes)) == [task]
    assert archive.plan(rule(bytes_max=task.gather_bytes - 1)) == []


async def test_what_expires_is_named_once_and_only_when_its_time_is_over(archive: Archive) -> None:
    study, series = generate_uid(), generate_uid()
    await archive.receive(study, series)
    assert archive.plan(rule("expire", keep_years=10)) == []
    (task,) = archive.plan(rule("expire", keep_years=10), around=Surroundings(datetime.date(2040, 1, 1)))
    assert (task.study_uid, task.series_uid, task.action, task.gather) == (study, series, "expire", False)


async def test_pins_are_facts_and_are_taken_back(archive: Archive) -> None:
    journal, index = archive.stores.journal, archive.stores.store
    wanted = Pin("1.2.3", "tester", "conference", 5)
    pin(journal, wanted)
    with index.snapshot() as snapshot:
        assert pinned(snapshot, journal, 6) == {"1.2.3"}
        assert journal.facts(snapshot) == 1
    with pytest.raises(PinError):
        unpin(journal, index, "1.2.4", 7)
    unpin(journal, index, "1.2.3", 7)
    with index.snapshot() as snapshot:
        assert not pinned(snapshot, journal, 8)
    for study, until_ns in (("", 0), ("Meier", 0), ("1.2.3", 4)):
        with pytest.raises(PinError):
            pin(journal, Pin(study, "tester", "", 5, until_ns))


async def test_the_last_day_on_which_a_series_was_opened_stays(archive: Archive) -> None:
    index, key = archive.stores.store, b"k" * 20
    with index.snapshot() as snapshot:
        assert last_opened(snapshot, key) is None
    assert note_opened(index, [key, key], TODAY) == 1
    assert note_opened(index, [key], TODAY) == 0
    assert note_opened(index, [key], TODAY - datetime.timedelta(1)) == 0
    with index.snapshot() as snapshot:
        assert last_opened(snapshot, key) == TODAY


async def test_who_waits_goes_before_what_is_wanted_tomorrow(archive: Archive) -> None:
    index = archive.stores.store
    one, two, three = b"1" * 20, b"2" * 20, b"3" * 20
    assert ask_for(index, [one, two], RecallRow(1, "prefetch")) == 2
    assert ask_for(index, [three], RecallRow(9, "opened")) == 1
    assert ask_for(index, [two], RecallRow(5, "asked")) == 1
    assert ask_for(index, [three], RecallRow(10, "prefetch")) == 0
    assert [key for key, _ in recalls(index, 10)] == [three, two, one]
    assert [key for key, _ in recalls(index, 2)] == [three, two]
    satisfied(index, two, RecallRow(1, "prefetch"))  # it was asked for more urgently since
    satisfied(index, three, RecallRow(9, "opened"))
    assert [key for key, _ in recalls(index, 10)] == [two, one]
