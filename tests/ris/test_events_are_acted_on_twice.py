"""Consumers of the journal act on an event twice, or never, or one event stops all that follow."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from structlog.testing import capture_logs

from hounsfield.archive.plugins import Change, EngineError, Event, GoneError, Key, Kind
from hounsfield.ris_plugin.actors import SYSTEM
from hounsfield.ris_plugin.errors import ForbiddenError, NotNowError, RisError, StaleError, UnknownError
from hounsfield.ris_plugin.following import (
    TRIES,
    Consumer,
    Heeded,
    act_again,
    asides,
    dismiss,
    follow,
    identity,
    leading,
)
from hounsfield.ris_plugin.journal import PAGE_EVENTS
from hounsfield.ris_plugin.records.base import Row
from ris.conftest import ADMINISTRATOR
from ris.following import Department, department

BAD = 10_013


class Done(Row, frozen=True):
    number: int
    times: int = 1


DONE = Kind("test-done", Done, lambda one: [Key("number", str(one.number)), Key("all", "", one.number)])


@pytest.fixture
async def archive(tmp_path: Path) -> AsyncIterator[Department]:
    async with department(tmp_path / "data") as found:
        yield found


def note(change: Change, event: Event) -> None:
    number = event.body["number"]
    if number == BAD:
        raise NotNowError("not this one")
    found = change.first(DONE, "number", str(number))
    if found is None:
        change.put(DONE, change.new_id(), Done(number=number))
    else:
        change.put(DONE, found[0], Done(number=number, times=found[1].times + 1))


NOTING = Consumer("noting", {"rang"}, note)


async def ring(archive: Department, *numbers: int) -> None:
    def plan(change: Change) -> None:
        for number in numbers:
            change.say("rang", {"number": number})

    await archive.commit(plan)


def done(archive: Department) -> dict[int, int]:
    return {one.number: one.times for _, one in archive.look(lambda view: list(view.find(DONE, "all", "")))}


async def test_each_event_is_acted_on_once_across_restarts(tmp_path: Path) -> None:
    directory = tmp_path / "data"
    for start in range(3):
        async with department(directory) as archive:
            await ring(archive, *range(start * 250, start * 250 + 250))
            await archive.catch_up(NOTING)
            await archive.catch_up(NOTING)
            assert done(archive) == dict.fromkeys(range(start * 250 + 250), 1)


async def test_of_two_that_lead_at_once_one_acts(archive: Department) -> None:
    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(follow, archive.ris, NOTING)
        for number in range(0, 400, 20):
            await ring(archive, *range(number, number + 20))
        with trio.fail_after(30):
            while len(done(archive)) < 400:
                await trio.sleep(0.01)
        nursery.cancel_scope.cancel()
    assert set(done(archive).values()) == {1}


async def test_who_is_cancelled_in_the_middle_has_done_all_or_nothing(archive: Department) -> None:
    await ring(archive, *range(300))
    for _ in range(40):
        with trio.move_on_after(0.004):
            await follow(archive.ris, NOTING)
    await archive.catch_up(NOTING)
    assert done(archive) == dict.fromkeys(range(300), 1)


async def test_a_bad_event_stops_nothing_and_is_acted_on_later(archive: Department) -> None:
    await ring(archive, *range(BAD - 3, BAD + 4))
    with capture_logs() as logs:
        await archive.catch_up(NOTING)
    assert done(archive) == dict.fromkeys([BAD + n for n in (-3, -2, -1, 1, 2, 3)], 1)
    assert [log["event"] for log in logs][-1] == "an event was set aside"
    ((aside_id, aside),) = archive.look(asides)
    assert (aside.consumer, aside.kind, aside.error) == ("noting", "rang", "not this one")
    with pytest.raises(UnknownError):
        await act_again(archive.ris, ADMINISTRATOR, aside_id)
    leading(archive.ris, NOTING)
    with pytest.raises(NotNowError):
        await act_again(archive.ris, ADMINISTRATOR, aside_id)
    with pytest.raises(ForbiddenError):
        await act_again(archive.ris, SYSTEM, aside_id)
    better = replace(NOTING, act=lambda change, _: note(change, Event("", "", 0, {"number": 99})))
    with pytest.raises(ValueError, match="two consumers"):
        leading(archive.ris, better)
    archive.ris.journal.consumers["noting"] = better
    await act_again(archive.ris, ADMINISTRATOR, aside_id)
    assert done(archive)[99] == 1
    assert archive.look(asides) == []
    with pytest.raises(NotNowError):
        await archive.do(dismiss, ADMINISTRATOR, aside_id)


async def test_what_fails_for_a_defect_tells_the_place_and_not_the_text(archive: Department) -> None:
    def fail(change: Change, event: Event) -> None:
        raise RuntimeError("SECRET^NAME")

    await ring(archive, 1)
    with capture_logs() as logs:
        await archive.catch_up(Consumer("failing", {"rang"}, fail))
    ((aside_id, aside),) = archive.look(asides)
    assert "RuntimeError" in aside.error
    assert "SECRET" not in aside.error + str(logs)
    await archive.do(dismiss, ADMINISTRATOR, aside_id)
    assert archive.look(asides) == []


async def test_what_is_prepared_is_tried_again_when_that_can_help(
    archive: Department, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hounsfield.ris_plugin.following.PAUSE_SECONDS", 0.001)
    tried: list[int] = []

    async def prepare(event: Heeded) -> int:
        number: int = event.body["number"]
        tried.append(number)
        if (number, tried.count(number)) in {(1, 1), (1, 2)}:
            raise StaleError("later")
        if number == 2:
            raise RisError("never")
        return number * 10

    def act(change: Change, event: Event, data: int) -> None:
        note(change, Event("", "", 0, {"number": data}))

    await ring(archive, 1, 2, 3)
    await archive.catch_up(Consumer("preparing", {"rang"}, act, prepare))
    assert tried == [1, 1, 1, 2, 3]
    assert done(archive) == {10: 1, 30: 1}
    assert [one.error for _, one in archive.look(asides)] == ["never"]


async def test_what_never_gets_better_is_set_aside(
    archive: Department, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hounsfield.ris_plugin.following.PAUSE_SECONDS", 0.001)
    tried = []

    async def prepare(event: Heeded) -> None:
        tried.append(event)
        raise StaleError("later")

    await ring(archive, 1)
    await archive.catch_up(Consumer("preparing", {"rang"}, lambda *_: None, prepare))
    assert len(tried) == TRIES
    assert len(archive.look(asides)) == 1


async def test_events_of_one_thing_are_acted_on_together(archive: Department) -> None:
    seen: list[tuple[int, int]] = []

    def act(_: Change, event: Heeded) -> None:
        seen.append((event.body["number"], len(event.earlier)))

    together = Consumer("together", {"rang"}, act, together=lambda event: str(event.body["number"] % 2))
    await ring(archive, *range(1, 10), 12)
    await archive.catch_up(together)
    assert seen == [(9, 4), (12, 4)]


async def test_together_and_one_of_them_fails(archive: Department) -> None:
    def act(change: Change, event: Heeded) -> None:
        for one in (*event.earlier, event):
            note(change, one)

    together = Consumer("together", {"rang"}, act, together=lambda event: str(event.body["number"] % 2))
    await ring(archive, *range(BAD - 3, BAD + 7))
    await archive.catch_up(together)
    assert done(archive) == dict.fromkeys(range(BAD - 3, BAD + 7, 2), 1)
    assert len(archive.look(asides)) == 1


async def test_a_journal_made_anew_is_told_from_the_beginning(
    archive: Department, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    consumer = Consumer("seeing", {"rang"}, lambda _, event: seen.append(identity(event)))
    await ring(archive, 1, 2)
    await archive.catch_up(consumer)
    real = archive.ris.archive.events
    gone: list[str] = []

    async def events(after: str, limit: int) -> Any:
        if after and limit == PAGE_EVENTS and not gone:  # not for who looks whether all is done
            gone.append(after)
            raise GoneError("gone")
        return await real(after, limit)

    monkeypatch.setattr(archive.ris.archive, "events", events)
    await ring(archive, 3)
    await archive.catch_up(consumer)
    assert len(seen) == 5
    assert seen[:2] == seen[2:4]  # what must not go out twice knows it by its identity
    assert len(set(seen)) == 3


async def test_who_begins_later_does_not_look_back_when_told_so(
    archive: Department, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hounsfield.ris_plugin.following.BEFORE_NS", 0)
    await ring(archive, 1)
    late = Consumer("late", {"rang"}, note, since_begun=True)
    await archive.catch_up(late)
    await ring(archive, 2)
    await archive.catch_up(late)
    assert done(archive) == {2: 1}


async def test_following_what_is_not_heeded_writes_nothing(
    archive: Department, monkeypatch: pytest.MonkeyPatch
) -> None:
    quiet = Consumer("quiet", {"nothing"}, note)
    wait = archive.ris.journal.wait
    reached = ""

    async def noted(cursor: str) -> None:
        nonlocal reached
        reached = cursor
        await wait(cursor)

    async def ring_and_be_heard(number: int) -> None:
        await ring(archive, number)
        with trio.fail_after(30):
            while reached != await archive.ris.archive.latest():
                await trio.sleep(0.005)

    monkeypatch.setattr(archive.ris.journal, "wait", noted)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(follow, archive.ris, quiet)
        await ring_and_be_heard(1)
        before = archive.engine.record_keeping.commits
        for number in range(5):
            await ring_and_be_heard(number)
        assert archive.engine.record_keeping.commits == before + 5
        nursery.cancel_scope.cancel()


async def test_more_than_a_page_is_acted_on_in_pages(archive: Department) -> None:
    await ring(archive, *range(20, 20 + 3 * PAGE_EVENTS))
    before = archive.engine.record_keeping.commits
    await archive.catch_up(NOTING)
    assert archive.engine.record_keeping.commits <= before + 5
    assert len(done(archive)) == 3 * PAGE_EVENTS


def told_anew(archive: Department, monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on the journal is one that was made anew, once."""
    real = archive.ris.archive.events
    gone: list[str] = []

    async def events(after: str, limit: int) -> Any:
        if after and limit == PAGE_EVENTS and not gone:  # not for who looks whether all is done
            gone.append(after)
            raise GoneError("gone")
        return await real(after, limit)

    monkeypatch.setattr(archive.ris.archive, "events", events)


async def test_what_happens_after_the_clock_was_put_back_is_acted_on_also_when_told_not_to_look_back(
    archive: Department, monkeypatch: pytest.MonkeyPatch
) -> None:
    late = Consumer("late", {"rang"}, note, since_begun=True)
    await ring(archive, 0)
    await archive.catch_up(late)
    hours_ns = 5 * 3600 * 10**9
    with monkeypatch.context() as clock:
        real = time.time_ns
        clock.setattr("hounsfield.archive.engine.record_keeping.time.time_ns", lambda: real() - hours_ns)
        await ring(archive, 1)
        await archive.catch_up(late)
    assert done(archive) == {0: 1, 1: 1}


async def test_whether_it_is_told_again_is_known_until_the_end_was_reached(
    archive: Department, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, bool]] = []
    consumer = Consumer("seeing", {"rang"}, lambda _, event: seen.append((event.body["number"], event.again)))
    await ring(archive, 0)
    await archive.catch_up(consumer)
    assert seen.pop() == (0, True)  # nobody knows
    await ring(archive, 1)
    await archive.catch_up(consumer)
    told_anew(archive, monkeypatch)
    await ring(archive, 2)
    await archive.catch_up(consumer)
    await ring(archive, 3)
    await archive.catch_up(consumer)
    assert seen == [(1, False), (0, True), (1, True), (2, True), (3, False)]


async def test_what_waits_for_the_archive_is_not_set_aside(
    archive: Department, autojump_clock: trio.testing.MockClock
) -> None:
    tries = 0

    class FullError(EngineError):
        retry = True

    async def prepare(event: Heeded) -> str:
        nonlocal tries
        tries += 1
        if tries <= 3 * TRIES:
            raise FullError("the disk is full")
        return ""

    careful = Consumer("careful", {"rang"}, lambda change, event, _: note(change, event), prepare=prepare)
    await ring(archive, 1)
    await archive.catch_up(careful)
    assert done(archive) == {1: 1}
    assert archive.look(asides) == []
