"""Objects of one association overlap when it negotiated so, and none is answered before it is durable."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import trio

from hounsfield.archive.engine.errors import NotFoundError, OutOfResourcesError
from hounsfield.archive.engine.types import Outcome, StoreResult
from hounsfield.archive.net.limits import NetLimits
from hounsfield.archive.net.policy import ListenerPolicy
from hounsfield.archive.wire import (
    Abort,
    AsynchronousOperations,
    CEchoRequest,
    CStoreRequest,
    DataFragment,
    PresentationContext,
    ReleaseReply,
    ReleaseRequest,
    UserInformation,
    encode_command,
)
from support.archives import ct_slice

EXPLICIT = "1.2.840.10008.1.2.1"
CT = "1.2.840.10008.5.1.4.1.1.2"
ECHO_CONTEXT = PresentationContext(1, "1.2.840.10008.1.1", (EXPLICIT,))
CT_CONTEXT = PresentationContext(3, CT, (EXPLICIT,))
OPEN = ListenerPolicy()


def window(invoked: int) -> UserInformation:
    return UserInformation(max_pdu_length=16384, asynchronous_operations=AsynchronousOperations(invoked, 1))


def store(message_id: int) -> CStoreRequest:
    return CStoreRequest(message_id, CT, f"1.2.{message_id}")


class Gated:
    """Takes objects, and commits each when its gate is opened."""

    def __init__(self) -> None:
        self.gates: dict[str, trio.Event] = {}
        self.committing: list[str] = []
        self.durable: list[str] = []
        self.abandoned = 0
        self.failing: set[str] = set()

    def begin(self, *, sop_instance_uid: str, **_: Any) -> GatedSession:
        self.gates[sop_instance_uid] = trio.Event()
        return GatedSession(self, sop_instance_uid)

    def open(self, message_id: int) -> None:
        self.gates[f"1.2.{message_id}"].set()


class GatedSession:
    def __init__(self, sink: Gated, uid: str) -> None:
        self.sink, self.uid = sink, uid
        self.over = False

    async def write(self, data: Any, /) -> None:
        pass

    async def commit(self) -> StoreResult:
        self.sink.committing.append(self.uid)
        await self.sink.gates[self.uid].wait()
        if self.uid in self.sink.failing:
            raise OutOfResourcesError("no room")
        self.sink.durable.append(self.uid)
        self.over = True
        return StoreResult(Outcome.STORED, CT, self.uid, "", "")

    def abandon(self) -> None:
        if not self.over:
            self.over = True
            self.sink.abandoned += 1


async def test_each_is_answered_when_it_is_durable_whatever_the_order(serve: Any, peer_to: Any) -> None:
    sink = Gated()
    async with serve(sink, OPEN) as archive:
        peer = await peer_to(archive)
        await peer.associate(ECHO_CONTEXT, CT_CONTEXT, user=window(4))
        for number in (1, 2, 3):
            await peer.say(3, store(number), b"12345678")
        await archive.until(lambda: len(sink.committing) == 3)
        await peer.say(1, CEchoRequest(9))
        assert (await peer.response()).message_id_responded_to == 9  # nothing else is answered yet
        for number in (2, 3, 1):
            sink.open(number)
            answer = await peer.response()
            assert (answer.message_id_responded_to, answer.status) == (number, 0)
            assert answer.affected_sop_instance_uid == f"1.2.{number}"
        await peer.send(ReleaseRequest())
        assert await peer.event() == ReleaseReply()
        assert archive.listener.statistics().objects_received == 3


async def test_one_that_cannot_be_kept_fails_alone_among_many(serve: Any, peer_to: Any) -> None:
    sink = Gated()
    sink.failing = {"1.2.2"}
    async with serve(sink, OPEN) as archive:
        peer = await peer_to(archive)
        await peer.associate(CT_CONTEXT, user=window(4))
        for number in (1, 2, 3):
            await peer.say(3, store(number), b"12345678")
        await archive.until(lambda: len(sink.committing) == 3)
        for number, status in ((3, 0), (2, 0xA700), (1, 0)):
            sink.open(number)
            answer = await peer.response()
            assert (answer.message_id_responded_to, answer.status) == (number, status)
            assert answer.affected_sop_instance_uid == f"1.2.{number}"
        assert sink.durable == ["1.2.3", "1.2.1"]
        await peer.send(ReleaseRequest())
        assert await peer.event() == ReleaseReply()
        statistics = archive.listener.statistics()
        assert (statistics.objects_received, statistics.objects_failed) == (2, 1)


async def test_an_abort_among_many_takes_nothing_back(open_archive: Callable[..., Any], peer_to: Any) -> None:
    """What was answered is there, and whole; so is what was received whole; half an object is not."""
    async with open_archive() as archive:
        peer = await peer_to(archive)
        await peer.associate(CT_CONTEXT, user=window(4))
        names = [f"1.2.{number}" for number in range(1, 6)]
        slices = [ct_slice(sop_uid=name, study_uid="1.2", series_uid="1.3") for name in names]
        for number in range(4):
            await peer.say(3, store(number + 1), slices[number])
        answered = {(await peer.response()).message_id_responded_to for _ in range(2)}
        await peer.send(DataFragment(3, True, True, encode_command(store(5))))
        await peer.send(DataFragment(3, False, False, slices[4][:400]))
        await peer.send(Abort())
        await archive.until(lambda: archive.listener.statistics().connections_open == 0)
        assert len(answered) == 2
        for name, each in zip(names[:4], slices, strict=False):
            assert await archive.stored("1.2", "1.3", name) == each
        with pytest.raises(NotFoundError):
            await archive.stored("1.2", "1.3", names[4])


async def test_past_the_window_nothing_is_read(serve: Any, peer_to: Any) -> None:
    sink = Gated()
    async with serve(sink, OPEN, limits=NetLimits(operations_invoked_max=2, linger_s=0.2)) as archive:
        peer = await peer_to(archive)
        await peer.associate(ECHO_CONTEXT, CT_CONTEXT, user=window(100))
        for number in range(1, 6):
            await peer.say(3, store(number), b"12345678")
        await archive.until(lambda: len(sink.gates) == 3)  # the third one waits for room
        with trio.move_on_after(0.05):
            await archive.until(lambda: len(sink.gates) > 3)
        assert (len(sink.committing), len(sink.gates)) == (2, 3)
        for number in range(1, 6):
            await archive.until(lambda number=number: f"1.2.{number}" in sink.committing)
            sink.open(number)
            assert (await peer.response()).message_id_responded_to == number


async def test_without_a_window_the_next_object_waits_for_the_answer(serve: Any, peer_to: Any) -> None:
    sink = Gated()
    async with serve(sink, OPEN) as archive:
        peer = await peer_to(archive)
        accept = await peer.associate(CT_CONTEXT)
        assert accept.user.asynchronous_operations is None
        for number in (1, 2):
            await peer.say(3, store(number), b"12345678")
        await archive.until(lambda: len(sink.committing) == 1)
        with trio.move_on_after(0.05):
            await archive.until(lambda: len(sink.gates) > 1)
        assert len(sink.gates) == 1
        for number in (1, 2):
            await archive.until(lambda number=number: f"1.2.{number}" in sink.committing)
            sink.open(number)
            assert (await peer.response()).message_id_responded_to == number


@pytest.mark.parametrize("how", ["abort", "vanish", "release"])
async def test_what_was_received_whole_becomes_durable_when_its_sender_goes(
    serve: Any, peer_to: Any, how: str
) -> None:
    sink = Gated()
    async with serve(sink, OPEN, limits=NetLimits(linger_s=0.2)) as archive:
        peer = await peer_to(archive)
        await peer.associate(CT_CONTEXT, user=window(4))
        for number in (1, 2):
            await peer.say(3, store(number), b"12345678")
        await archive.until(lambda: len(sink.committing) == 2)
        if how == "abort":
            await peer.send(Abort())
        elif how == "vanish":
            await trio.aclose_forcefully(peer.stream)
        else:
            await peer.send(ReleaseRequest())  # before its answers: a breach
        sink.open(1)
        sink.open(2)
        if how == "release":
            assert isinstance(await peer.event(), Abort)
        await archive.until(lambda: archive.listener.statistics().associations_aborted == 1)
        await archive.until(lambda: len(sink.durable) == 2)
        assert sink.abandoned == 0


async def test_what_waits_for_room_is_given_back_when_the_association_is_cut(
    serve: Any, peer_to: Any
) -> None:
    sink = Gated()
    async with serve(sink, OPEN, limits=NetLimits(operations_invoked_max=2, linger_s=0.2)) as archive:
        peer = await peer_to(archive)
        await peer.associate(CT_CONTEXT, user=window(2))
        for number in (1, 2, 3):
            await peer.say(3, store(number), b"12345678")
        await archive.until(lambda: len(sink.gates) == 3)
        archive.nursery.cancel_scope.cancel()
    assert sink.abandoned == 3
    assert archive.listener.statistics().objects_abandoned == 3


async def test_a_drain_answers_all_that_was_received(serve: Any, peer_to: Any) -> None:
    sink = Gated()
    limits = NetLimits(drain_release_s=30, linger_s=0.2)
    async with serve(sink, OPEN, limits=limits) as archive:
        peer = await peer_to(archive)
        await peer.associate(CT_CONTEXT, user=window(4))
        for number in (1, 2):
            await peer.say(3, store(number), b"12345678")
        await archive.until(lambda: len(sink.committing) == 2)
        archive.nursery.start_soon(archive.listener.drain)
        await archive.until(lambda: archive.listener.draining)
        sink.open(1)
        sink.open(2)
        assert {(await peer.response()).status for _ in range(2)} == {0}
        await peer.send(ReleaseRequest())
        assert await peer.event() == ReleaseReply()
        await peer.stream.aclose()
        with trio.fail_after(30):
            await archive.listener.drain()
        assert archive.listener.statistics().associations_aborted == 0


@pytest.mark.parametrize(("invoked", "groups_max"), [(1, 24), (8, 12)])
async def test_one_association_fills_a_group_commit(
    open_archive: Callable[..., Any], peer_to: Any, invoked: int, groups_max: int
) -> None:
    objects = [
        ct_slice(sop_uid=f"1.2.{number}", study_uid="1.2", series_uid="1.3") for number in range(1, 25)
    ]
    async with open_archive() as archive:
        peer = await peer_to(archive)
        await peer.associate(CT_CONTEXT, user=window(invoked))
        outstanding: set[int] = set()
        for number, data in enumerate(objects, 1):
            await peer.say(3, store(number), data)
            outstanding.add(number)
            if len(outstanding) == invoked:
                answer = await peer.response()
                assert answer.status == 0
                outstanding.remove(answer.message_id_responded_to)
        while outstanding:
            outstanding.remove((await peer.response()).message_id_responded_to)
        figures = archive.engine.statistics()
        assert figures.groups <= groups_max
        assert archive.listener.statistics().objects_received == 24
        for number, data in enumerate(objects, 1):
            assert await archive.stored("1.2", "1.3", f"1.2.{number}") == data
