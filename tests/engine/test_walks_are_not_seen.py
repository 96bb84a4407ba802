"""Reading ahead: a walk through a series that is not noticed, or chance that is taken for one."""

from __future__ import annotations

import random

import pytest
import trio
import trio.testing

from hounsfield.archive.engine.reading_ahead import ReadingAhead, ReadingAheadLimits
from hounsfield.archive.engine.types import Instance
from hounsfield.archive.index.rows import InstanceRow, Location

STEPS = ReadingAheadLimits().steps
AHEAD = ReadingAheadLimits().frames_ahead


def instance(number: int, frames: int = 1) -> Instance:
    place = Location(b"s" * 16, b"r" * 16, 0, 1, 1, 1, frames, 512)
    return Instance("2.25.1", "2.25.2", InstanceRow(f"2.25.3.{number}", "", "", place, 1, {}, 0))


class Viewer:
    """A series, who walks it, and what was read ahead of them."""

    def __init__(self, count: int, frames: int = 1, **limits) -> None:
        self.series = [instance(number, frames) for number in range(count)]
        self.frames = frames
        self.announced: list[int] = []
        self.made: list[tuple[int, str]] = []
        self.busy = self.in_memory = False
        self.broken = False
        self.looked = 0
        self.ahead = ReadingAhead(
            instances=self._instances,
            announce=self._announce,
            make=self._make,
            idle=lambda: not self.busy,
            limits=ReadingAheadLimits(**limits),
        )

    async def _instances(self, study, series):
        self.looked += 1
        if self.broken:
            raise OSError("the disk is gone")
        return self.series

    async def _announce(self, places) -> int:
        for row, number in places:
            self.announced.append(int(row.sop_uid.rpartition(".")[2]) * self.frames + number - 1)
        return 0 if self.in_memory else len(places)

    async def _make(self, study, series, sop, number, syntax) -> bool:
        self.made.append((int(sop.rpartition(".")[2]) * self.frames + number - 1, syntax))
        return True

    async def ask(self, *positions: int, at_once: bool = False, syntax: str = "") -> None:
        for position in positions:
            index, number = divmod(position, self.frames)
            self.ahead.asked(self.series[index], number + 1, at_once=at_once, syntax=syntax)
            await trio.testing.wait_all_tasks_blocked()


@pytest.fixture
async def viewer(nursery):
    def start(count: int = 100, **limits) -> Viewer:
        made = Viewer(count, **limits)
        nursery.start_soon(made.ahead.run)
        return made

    yield start
    nursery.cancel_scope.cancel()


async def test_what_comes_next_is_announced_once(viewer):
    one = viewer()
    await one.ask(10, 11)
    assert one.announced == []
    await one.ask(12)
    assert one.announced == list(range(13, 13 + AHEAD))
    await one.ask(*range(13, 60), at_once=True)  # they are in memory now, and it goes on
    assert one.announced == sorted(set(one.announced))
    assert set(range(13, 60 + AHEAD // 2)) <= set(one.announced)
    assert one.ahead.figures.announced == len(one.announced)
    assert one.looked == 1


async def test_backward_and_to_the_ends(viewer):
    one = viewer(20)
    await one.ask(5, 4, 3)
    assert one.announced == [2, 1, 0]
    await one.ask(2, 1, 0)
    assert one.announced == [2, 1, 0]
    await one.ask(17, 18, 19)
    assert one.announced == [2, 1, 0]


async def test_who_turns_round_is_followed(viewer):
    one = viewer()
    await one.ask(50, 51, 52)
    one.announced.clear()
    await one.ask(51, 50)
    assert one.announced == list(range(49, 49 - AHEAD, -1))


async def test_frames_of_several_objects_follow_each_other(viewer):
    one = viewer(10, frames=4)
    await one.ask(2, 3, 4)
    assert one.announced == list(range(5, 5 + AHEAD))


async def test_neighbours_may_be_apart_since_other_workers_are_asked_too(viewer):
    one = viewer()
    await one.ask(1, 4, 5)
    assert one.announced == list(range(6, 6 + AHEAD))


async def test_chance_is_no_walk(viewer):
    one = viewer(500)
    order = list(range(500))
    random.Random(3).shuffle(order)
    near = ReadingAheadLimits().stride_max
    order = [at for index, at in enumerate(order) if not index or abs(at - order[index - 1]) > near]
    await one.ask(*order[:200])
    await one.ask(7, 7, 7, 7)  # the same again is no step
    assert one.announced == []


async def test_what_is_in_memory_costs_nothing(viewer):
    one = viewer()
    await one.ask(*range(50), at_once=True)
    assert not one.announced
    assert not one.looked


async def test_a_walk_that_reaches_memory_is_followed_no_longer(viewer):
    one = viewer()
    one.in_memory = True
    await one.ask(1, 2, 3)
    await one.ask(*range(4, 60), at_once=True)
    assert one.ahead.figures.announced == 0
    assert (one.looked, len(one.announced)) == (1, AHEAD)  # it was looked at once, and left alone
    one.in_memory = False
    await one.ask(60, 61, 62)
    assert one.announced[AHEAD:] == list(range(63, 63 + AHEAD))


async def test_frames_are_made_ahead_while_a_decoder_is_idle(viewer):
    one = viewer()
    one.busy = True
    await one.ask(1, 2, 3, 4, syntax="1.2.3")
    assert one.made == []
    one.busy = False
    await one.ask(5, syntax="1.2.3")
    assert one.made == [(6, "1.2.3"), (7, "1.2.3")]
    assert one.ahead.figures.made == 2


async def test_a_series_that_changed_is_looked_at_again(viewer):
    one = viewer(10)
    await one.ask(1, 2, 3)
    one.series.append(instance(10))
    await one.ask(10)
    await one.ask(6, 7, 8)
    assert one.looked == 2
    assert one.announced[-2:] == [9, 10]


async def test_long_series_and_many_of_them_take_no_more_memory(viewer):
    one = viewer(11, instances_max=10, series_max=2)
    await one.ask(1, 2, 3, 4, 5)
    assert (one.announced, one.looked) == ([], 1)
    for number in range(5):
        other = Instance("2.25.1", f"2.25.2.{number}", one.series[0].row)
        one.ahead.asked(other, 1, at_once=False)
    assert len(one.ahead._walks) == 2


async def test_a_failure_is_nobodys(viewer):
    one = viewer()
    one.broken = True
    await one.ask(1, 2, 3)
    one.broken = False
    await one.ask(4, 5, 6)
    assert one.announced == list(range(7, 7 + AHEAD))
