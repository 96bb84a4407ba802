"""Leading parts of plugins: who lost the lease, or cannot know, stops; what fails is begun again in time."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from structlog.testing import capture_logs

from hounsfield.archive.app import plugin_parts
from hounsfield.archive.app.plugin_parts import PAUSE_S_MAX, STEADY_S
from hounsfield.archive.engine.leadership import RENEW_S, Leadership
from hounsfield.archive.index import leases
from hounsfield.storage_backends.errors import StoreFullError
from support.archives import stores_in

NOW, LONG = 10**18, 10**12


class Told:
    """A lease whose fate a test tells."""

    def __init__(self, *answers: bool | Exception) -> None:
        self._answers: Iterator[bool | Exception] = iter(answers)

    async def lead(self) -> bool:
        answer = next(self._answers)
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.mark.parametrize("end", [False, StoreFullError("full")])
async def test_who_does_not_hold_the_lease_stops_at_once(
    end: Any, autojump_clock: trio.testing.MockClock
) -> None:
    ended: list[float] = []

    async def part() -> None:
        try:
            await trio.sleep_forever()
        finally:
            ended.append(trio.current_time())

    began = trio.current_time()
    lease: Any = Told(True, True, end)
    await plugin_parts._while_leading(lease, part)
    assert [at - began for at in ended] == [RENEW_S]


async def test_who_cannot_renew_does_not_hold_it_until_it_can() -> None:
    failures = [StoreFullError("full")]

    class Gate:
        async def read(self, *_: Any) -> bool:
            if failures:
                raise failures.pop()
            return False

    gate, store = Gate(), None
    leadership = Leadership(store, gate, "name", owner="me", lease_s=15)  # type: ignore[arg-type]
    leadership.held = True
    leadership._renewed = -RENEW_S
    with pytest.raises(StoreFullError):
        await leadership.lead()
    assert not await leadership.lead()  # it is asked for again, not taken for granted


def test_what_a_dead_worker_held_is_free_and_nothing_else_is(tmp_path: Path) -> None:
    with stores_in(tmp_path / "data") as stores:
        for name, owner in (("a", "worker 1 100"), ("b", "worker 1 100"), ("c", "worker 10 101")):
            assert leases.hold(stores.store, name, owner, NOW, LONG)
        leases.end_those_of(stores.store, "worker 1 ")
        taken = [leases.hold(stores.store, name, "worker 2 102", NOW, LONG) for name in "abc"]
        assert taken == [True, True, False]


async def test_what_fails_is_begun_again_with_longer_pauses(
    autojump_clock: trio.testing.MockClock,
) -> None:
    begun: list[float] = []

    async def part() -> None:
        begun.append(trio.current_time())
        if len(begun) == 10:
            await trio.sleep(STEADY_S)
        if len(begun) == 12:
            return
        raise RuntimeError("SECRET^NAME")

    with capture_logs() as logs:
        await plugin_parts._kept_running("a part", part)
    pauses = [round(after - before, 3) for before, after in pairwise(begun)]
    assert pauses[:8] == [1, 2, 4, 8, 16, 32, PAUSE_S_MAX, PAUSE_S_MAX]
    assert pauses[8:] == [PAUSE_S_MAX, STEADY_S + PAUSE_S_MAX, 1]  # it had run for long
    assert len(logs) == 11
    assert "SECRET" not in str(logs)
