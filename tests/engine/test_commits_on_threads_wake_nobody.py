"""Who waits at the end of the journal is woken by commits on any thread, and none of those fails for it."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import trio
import trio.testing

from hounsfield.archive.engine.changes import SETTLE_S, Changes, Cursor
from hounsfield.archive.engine.engine import EngineOptions, open_engine
from hounsfield.archive.engine.gate import Gate
from support.archives import stores_in

PATIENCE_S = 20.0


async def test_a_commit_on_a_thread_wakes_who_waits(tmp_path: Path) -> None:
    with stores_in(tmp_path / "data", EngineOptions(direct_writes=False)) as stores:
        async with open_engine(stores, EngineOptions(), owner="a test") as engine:
            changes = engine.changes
            await trio.to_thread.run_sync(changes.committed)  # nobody waits yet
            woken: list[bool] = []

            async def wait() -> None:
                woken.append(await changes.wait(await changes.end(), PATIENCE_S))

            with trio.fail_after(2 * PATIENCE_S):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(wait)
                    while not changes.waiting:
                        await trio.sleep(0)
                    await trio.testing.wait_all_tasks_blocked(0.01)
                    event = partial(stores.journal.commit_fact, "note", "one", {}, 1)

                    def commit() -> None:
                        event()
                        changes.committed()

                    await trio.to_thread.run_sync(commit)
            assert woken == [True]


async def test_others_that_commit_all_the_time_are_heard_now_and_then(
    tmp_path: Path, mock_clock: trio.testing.MockClock
) -> None:
    heard = 0

    async def rings_again(_: int | None) -> int:
        nonlocal heard
        heard += 1
        assert heard < 100, "it is heard without an end"
        await trio.lowlevel.checkpoint()
        return heard

    with stores_in(tmp_path / "data", EngineOptions(direct_writes=False)) as stores:
        changes = Changes(stores.store, stores.journal, Gate(), lambda: None)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(changes.hear, rings_again)
            await trio.testing.wait_all_tasks_blocked()
            assert heard == 0  # nobody waits
            nursery.start_soon(changes.wait, Cursor(b"", 1), 60.0)
            await trio.testing.wait_all_tasks_blocked()
            for number in range(1, 4):
                assert heard == number
                mock_clock.jump(SETTLE_S)
                await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
