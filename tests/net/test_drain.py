"""A drain loses no answer and waits for nobody who has nothing under way."""

from __future__ import annotations

from typing import Any

import trio

from hounsfield.archive.net.limits import NetLimits
from hounsfield.archive.net.policy import ListenerPolicy
from hounsfield.archive.wire import (
    Abort,
    CStoreRequest,
    DataFragment,
    PresentationContext,
    ReleaseReply,
    ReleaseRequest,
    encode_command,
)

CT = "1.2.840.10008.5.1.4.1.1.2"
CT_CONTEXT = PresentationContext(3, CT, ("1.2.840.10008.1.2.1",))
OPEN = ListenerPolicy()


async def test_idle_and_silent_peers_are_sent_away_at_once(serve: Any, sink: Any, peer_to: Any) -> None:
    async with serve(sink, OPEN) as archive:
        silent, idle = await peer_to(archive), await peer_to(archive)
        await idle.associate(CT_CONTEXT)
        with trio.fail_after(30):
            await archive.until(lambda: archive.listener.statistics().connections_open == 2)
            archive.nursery.start_soon(archive.listener.drain)
            assert isinstance(await idle.event(), Abort)
            await silent.closed()
            await idle.stream.aclose()
            await archive.listener.drain()
        assert archive.listener.statistics().connections_open == 0


async def test_an_object_under_way_is_finished_answered_and_may_be_released(
    serve: Any, sink: Any, peer_to: Any
) -> None:
    async with serve(sink, OPEN, limits=NetLimits(drain_release_s=30, linger_s=0.2)) as archive:
        sink.hold = trio.Event()
        peer = await peer_to(archive)
        await peer.associate(CT_CONTEXT)
        await peer.send(DataFragment(3, True, True, encode_command(CStoreRequest(1, CT, "1.2.3"))))
        await archive.until(lambda: sink.begun == 1)
        archive.nursery.start_soon(archive.listener.drain)
        await archive.until(lambda: archive.listener.draining)
        await peer.send(DataFragment(3, False, True, b"12345678"))  # the rest comes during the drain
        await sink.committing.wait()
        sink.hold.set()
        assert (await peer.response()).status == 0
        await peer.send(ReleaseRequest())
        assert await peer.event() == ReleaseReply()
        await peer.stream.aclose()
        with trio.fail_after(30):
            await archive.listener.drain()
        assert sink.objects == [b"12345678"]
        assert archive.listener.statistics().associations_aborted == 0


async def test_who_lingers_after_the_answer_is_aborted(serve: Any, sink: Any, peer_to: Any) -> None:
    async with serve(sink, OPEN, limits=NetLimits(drain_release_s=0.01, linger_s=0.2)) as archive:
        sink.hold = trio.Event()
        peer = await peer_to(archive)
        await peer.associate(CT_CONTEXT)
        await peer.say(3, CStoreRequest(1, CT, "1.2.3"), b"12345678")
        await sink.committing.wait()
        archive.nursery.start_soon(archive.listener.drain)
        await archive.until(lambda: archive.listener.draining)
        sink.hold.set()
        assert (await peer.response()).status == 0
        assert isinstance(await peer.event(), Abort)
        with trio.fail_after(30):
            await archive.listener.drain()


async def test_who_goes_on_sending_is_aborted_after_the_answer(serve: Any, sink: Any, peer_to: Any) -> None:
    async with serve(sink, OPEN, limits=NetLimits(drain_release_s=30, linger_s=0.2)) as archive:
        sink.hold = trio.Event()
        peer = await peer_to(archive)
        await peer.associate(CT_CONTEXT)
        await peer.say(3, CStoreRequest(1, CT, "1.2.3"), b"12345678")
        await sink.committing.wait()
        archive.nursery.start_soon(archive.listener.drain)
        await archive.until(lambda: archive.listener.draining)
        await peer.say(3, CStoreRequest(2, CT, "1.2.4"), b"12345678")
        sink.hold.set()
        assert (await peer.response()).message_id_responded_to == 1
        assert isinstance(await peer.event(), Abort)
        with trio.fail_after(30):
            await archive.listener.drain()
        assert sink.begun == 1


async def test_a_draining_listener_leaves_new_connections_to_others(
    serve: Any, sink: Any, peer_to: Any
) -> None:
    async with serve(sink, OPEN) as archive:
        with trio.fail_after(30):
            await archive.listener.drain()
        late = await peer_to(archive)  # the kernel takes it; the socket is not ours alone
        assert archive.listener.statistics().connections_total == 0
        await late.stream.aclose()


async def test_serve_returns_after_a_drain(serve: Any, sink: Any, peer_to: Any) -> None:
    async with serve(sink, OPEN) as archive:
        with trio.fail_after(30):
            await archive.listener.drain()
            await archive.until(lambda: not archive.nursery.child_tasks)


async def test_cancelling_cuts_what_is_left(serve: Any, sink: Any, peer_to: Any) -> None:
    async with serve(sink, OPEN) as archive:
        peer = await peer_to(archive)
        await peer.associate(CT_CONTEXT)
        await peer.send(DataFragment(3, True, True, encode_command(CStoreRequest(1, CT, "1.2.3"))))
        await archive.until(lambda: sink.begun == 1)
        archive.nursery.cancel_scope.cancel()
        await peer.closed()
    assert sink.abandoned == 1
    assert archive.listener.statistics().connections_open == 0
