"""Danger: a hundred viewers ask for a frame and it is decoded a hundred times, or never, or kept for ever."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from hounsfield.archive.engine.shared_work import SharedWork


async def test_who_asks_meanwhile_gets_the_same() -> None:
    work: SharedWork[str, bytes] = SharedWork(100, len)
    go, calls, answers = trio.Event(), [], []

    async def make() -> bytes:
        calls.append(1)
        await go.wait()
        return b"made"

    async def ask() -> None:
        answers.append(await work.get("a", make))

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(ask)
        await trio.testing.wait_all_tasks_blocked()
        go.set()
    assert (len(calls), answers) == (1, [b"made"] * 5)
    assert (work.figures.made, work.figures.shared) == (1, 4)
    assert await work.get("a", make) is answers[0]


async def test_who_goes_away_takes_nothing_from_who_waits() -> None:
    work: SharedWork[str, bytes] = SharedWork(100, len)
    calls, answers = [], []

    async def make() -> bytes:
        calls.append(1)
        if len(calls) == 1:
            await trio.sleep_forever()
        return b"made"

    async def ask() -> None:
        answers.append(await work.get("a", make))

    scope = trio.CancelScope()

    async def leave() -> None:
        with scope:
            await ask()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(leave)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(ask)
        nursery.start_soon(ask)
        await trio.testing.wait_all_tasks_blocked()
        scope.cancel()
    assert (len(calls), answers) == (2, [b"made"] * 2)


async def test_an_error_is_everybody_s_and_is_not_kept() -> None:
    work: SharedWork[str, bytes] = SharedWork(100, len)
    go, errors = trio.Event(), []

    async def fail() -> bytes:
        await go.wait()
        raise ValueError("no")

    async def ask() -> None:
        try:
            await work.get("a", fail)
        except ValueError as error:
            errors.append(error)

    async def make() -> bytes:
        return b"made"

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(ask)
        await trio.testing.wait_all_tasks_blocked()
        go.set()
    assert len(errors) == 3
    assert await work.get("a", make) == b"made"


async def test_what_is_kept_has_a_limit_and_the_oldest_goes() -> None:
    work: SharedWork[int, bytes] = SharedWork(100, len)
    calls: list[int] = []

    async def ask(key: int, size: int = 40) -> None:
        async def make() -> bytes:
            calls.append(key)
            return bytes(size)

        assert len(await work.get(key, make)) == size
        assert work.figures.bytes_held <= 100

    for key in (1, 2, 1, 3, 1, 2):  # 3 pushes 2 out, which was used longer ago than 1
        await ask(key)
    assert calls == [1, 2, 3, 2]
    await ask(9, 101)
    await ask(9, 101)
    assert calls[4:] == [9, 9]  # larger than all there is: made, and not kept


@pytest.mark.parametrize("bytes_max", [0, -1])
async def test_nothing_is_kept_where_there_is_no_room(bytes_max: int) -> None:
    work: SharedWork[str, bytes] = SharedWork(bytes_max, len)

    async def make() -> bytes:
        return b"made"

    assert await work.get("a", make) == b"made"
    assert work.figures.bytes_held == 0
