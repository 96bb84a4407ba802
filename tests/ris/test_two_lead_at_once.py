"""Danger: a worker that was stopped for a while goes on leading beside another one, and all is done twice."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio
from structlog.testing import capture_logs

from hounsfield.archive.app.plugin_parts import _in
from hounsfield.archive.app.plugin_terms import Term
from hounsfield.archive.index import leases
from hounsfield.archive.plugins import Change, Outgoing, SucceededError
from hounsfield.ris_plugin.hl7.mllp import Framer
from hounsfield.ris_plugin.hl7.sending import Sender
from hounsfield.ris_plugin.records.messages import MESSAGE, WAITING, Message
from hounsfield.ris_plugin.settings import Hl7Destination, RisSettings
from ris.following import Department, department

LEASE, ME, OTHER = "plugin ris a part", "worker 0 100", "worker 1 101"
LEASE_NS = 15 * 10**9


@pytest.fixture
async def archive(tmp_path: Path) -> AsyncIterator[Department]:
    async with department(tmp_path / "data", settings=RisSettings(hl7_retry_seconds=0.001)) as found:
        yield found


def take(archive: Department, owner: str, *, later_ns: int = 0) -> None:
    assert leases.hold(archive.stores.store, LEASE, owner, time.time_ns() + later_ns, LEASE_NS)


async def lead(archive: Department, part: Any) -> None:
    """``part`` as a leading part of worker 0, until it ends or fails for the first time."""
    term = Term(archive.stores.store, LEASE, ME)

    async def once() -> None:
        try:
            await part()
        finally:
            ended.set()

    ended = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_in, term, "a part", once)
        with trio.fail_after(20):
            await ended.wait()
        nursery.cancel_scope.cancel()


async def test_who_goes_on_after_another_took_the_lease_changes_nothing(archive: Department) -> None:
    take(archive, ME)
    done: list[str] = []
    stopped, goes_on = trio.Event(), trio.Event()

    def plan(change: Change) -> None:
        change.say("rang", {"number": len(done)})

    async def refused(what: Any, *arguments: Any, **more: Any) -> None:
        with pytest.raises(SucceededError):
            await what(*arguments, **more)
        done.append("refused")

    async def part() -> None:
        ris = archive.ris
        assert ris.archive.leads()
        await ris.commit(plan)
        done.append("committed")
        stopped.set()
        await goes_on.wait()
        assert not ris.archive.leads()
        async with trio.open_nursery() as nursery:  # what it begins is of the same term
            nursery.start_soon(refused, ris.commit, plan)
        await refused(ris.archive.correct, "set-study", actor="a", reason="b", study="1.2", values={})
        await refused(ris.archive.revert, 1, actor="a", reason="b")
        await refused(ris.archive.send, "CT1", [Outgoing("create", "1.2", "1.3", b"")])

    async with trio.open_nursery() as nursery:
        nursery.start_soon(lead, archive, part)
        await stopped.wait()
        take(archive, OTHER, later_ns=LEASE_NS + 1)
        goes_on.set()
    assert done == ["committed", *["refused"] * 4]
    assert [one.kind for one in await archive.events()] == ["ris.rang"]
    await archive.commit(plan)  # who leads nothing is not asked
    assert archive.ris.archive.leads()


async def test_a_lease_that_ran_out_and_that_nobody_took_goes_on(archive: Department) -> None:
    take(archive, ME, later_ns=-10 * LEASE_NS)

    async def part() -> None:
        await archive.commit(lambda change: change.say("rang", {}))

    await lead(archive, part)
    assert len(await archive.events()) == 1


async def test_a_message_goes_out_from_who_leads_alone(archive: Department) -> None:
    got: list[bytes] = []
    heard = trio.Event()

    async def serve(stream: trio.abc.Stream) -> None:
        framer = Framer(1 << 20)
        heard.set()
        async for data in stream:
            got.extend(one for one in framer.feed(data) if isinstance(one, bytes))

    (listener, *_) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    to = Hl7Destination(name="epr", host="127.0.0.1", port=listener.socket.getsockname()[1])
    one = Message(destination="epr", number=1, control_id="1", kind="ORM^O01", body=b"MSH|", state=WAITING)
    await archive.commit(lambda change: change.put(MESSAGE, change.new_id(), one))
    take(archive, OTHER)
    with capture_logs() as logs:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, serve, [listener])
            await lead(archive, Sender(archive.ris, to).run)
            await heard.wait()  # it was connected to, and told nothing
            nursery.cancel_scope.cancel()
    assert got == []
    assert [each["error_type"] for each in logs] == ["SucceededError"]
    found = archive.look(lambda view: [each for _, each in view.find(MESSAGE, WAITING, "epr")])
    assert [each.attempts for each in found] == [0]
