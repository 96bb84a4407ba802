"""A slow, broken or hostile peer is cut, told why, leaves nothing behind, and hurts nobody else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import trio

from hounsfield.archive.engine import errors
from hounsfield.archive.net.connection import Connection
from hounsfield.archive.net.limits import NetLimits
from hounsfield.archive.net.policy import ListenerPolicy
from hounsfield.archive.wire import (
    Abort,
    AbortReason,
    AssociateReject,
    CCancelRequest,
    CEchoRequest,
    CEchoResponse,
    CFindRequest,
    CStoreRequest,
    CStoreResponse,
    DataFragment,
    NActionRequest,
    NGetRequest,
    PresentationContext,
    ReleaseReply,
    ReleaseRequest,
    TransportClosed,
    WireLimits,
    encode_command,
)

CT = "1.2.840.10008.5.1.4.1.1.2"
EXPLICIT = "1.2.840.10008.1.2.1"
ECHO_CONTEXT = PresentationContext(1, "1.2.840.10008.1.1", (EXPLICIT,))
CT_CONTEXT = PresentationContext(3, CT, (EXPLICIT,))
OPEN = ListenerPolicy()
HASTE = NetLimits(artim_s=0.05, idle_s=0.05, dimse_s=0.05, linger_s=0.2, write_s=0.2)
GARBAGE = b"GET / HTTP/1.1\r\nHost: pacs\r\n\r\n"


def store(message_id: int = 1) -> CStoreRequest:
    return CStoreRequest(message_id, CT, "1.2.3")


# ---------------------------------------------------------------- before the association


async def test_who_says_nothing_is_cut(serve: Any, sink: Any, peer_to: Any) -> None:
    async with serve(sink, OPEN, limits=HASTE) as archive:
        peer = await peer_to(archive)
        await peer.closed()
        await archive.until(lambda: archive.listener.statistics().connections_failed == 1)


async def test_an_association_request_byte_by_byte_is_cut(serve: Any, sink: Any, peer_to: Any) -> None:
    async with serve(sink, OPEN, limits=HASTE) as archive:
        peer = await peer_to(archive)
        with trio.fail_after(30), pytest.raises(trio.BrokenResourceError):
            await peer.raw(b"\x01\x00\x00\x00\xff\xff")
            while True:  # each byte comes in time, the request never
                await peer.raw(b"\0")
                await trio.lowlevel.checkpoint()


async def test_garbage_is_answered_with_an_abort(serve: Any, sink: Any, peer_to: Any) -> None:
    async with serve(sink, OPEN) as archive:
        peer = await peer_to(archive)
        await peer.raw(GARBAGE)
        with trio.fail_after(30):
            assert (await peer.stream.receive_some(100))[:1] == b"\x07"
        await peer.closed()
        await archive.until(lambda: archive.listener.statistics().connections_open == 0)
        assert archive.listener.statistics().connections_failed == 1


async def test_a_request_over_the_limit_is_cut_at_its_header(serve: Any, sink: Any, peer_to: Any) -> None:
    async with serve(sink, OPEN) as archive:
        peer = await peer_to(archive)
        await peer.raw(b"\x01\x00\x7f\xff\xff\xff")
        with trio.fail_after(30):
            assert (await peer.stream.receive_some(100))[:1] == b"\x07"


async def test_too_many_connections_without_a_request_evict_the_oldest(
    serve: Any, sink: Any, peer_to: Any
) -> None:
    async with serve(sink, OPEN, limits=NetLimits(pending_connections_max=2, linger_s=0.2)) as archive:
        idle = [await peer_to(archive) for _ in range(4)]
        await idle[0].closed()
        await idle[1].closed()
        await idle[3].associate(ECHO_CONTEXT)
        await archive.until(lambda: archive.listener.statistics().connections_open == 2)


async def test_one_address_cannot_evict_the_others(serve: Any, sink: Any, peer_to: Any) -> None:
    async with serve(sink, OPEN, limits=NetLimits(pending_connections_max=4, linger_s=0.2)) as archive:
        device = await peer_to(archive)
        await archive.until(lambda: archive.listener.statistics().connections_open == 1)
        many = [
            await trio.open_tcp_stream("127.0.0.1", archive.port, local_address="127.0.0.2")
            for _ in range(12)
        ]
        await archive.until(lambda: archive.listener.statistics().connections_failed == 9)
        await device.associate(ECHO_CONTEXT)
        for stream in many:
            await stream.aclose()


async def test_who_is_refused_and_stays_does_not_pile_up(serve: Any, sink: Any, peer_to: Any) -> None:
    limits = NetLimits(pending_connections_max=2, linger_s=3600)
    async with serve(sink, OPEN, limits=limits) as archive:
        refused = []
        for _ in range(4):
            refused.append(await peer_to(archive))
            answer = await refused[-1].request(ECHO_CONTEXT, called_ae="SOMEBODY")
            assert isinstance(answer, AssociateReject)
        await refused[0].closed()
        await refused[1].closed()
        await (await peer_to(archive)).associate(ECHO_CONTEXT)
        statistics = archive.listener.statistics()
        assert (statistics.associations_refused, statistics.connections_failed) == (4, 0)


async def test_who_talks_nonsense_and_stays_does_not_pile_up(serve: Any, sink: Any, peer_to: Any) -> None:
    limits = NetLimits(pending_connections_max=2, linger_s=3600)
    async with serve(sink, OPEN, limits=limits) as archive:
        peers = []
        for _ in range(4):
            peers.append(await peer_to(archive))
            await peers[-1].raw(GARBAGE)
            assert (await peers[-1].stream.receive_some(100))[:1] == b"\x07"
        await peers[0].closed()
        await peers[1].closed()
        await (await peer_to(archive)).associate(ECHO_CONTEXT)


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ({"called_ae": "SOMEBODY"}, AssociateReject(1, 1, 7)),
        ({"application_context": "1.2.3"}, AssociateReject(1, 1, 2)),
        ({"calling_ae": "EVIL"}, AssociateReject(1, 1, 3)),
    ],
)
async def test_refusals_are_told_and_remembered(
    serve: Any, sink: Any, peer_to: Any, words: dict[str, str], expected: AssociateReject
) -> None:
    policy = ListenerPolicy(calling_titles=frozenset({"PEER"}))
    async with serve(sink, policy) as archive:
        peer = await peer_to(archive)
        assert await peer.request(ECHO_CONTEXT, **words) == expected
        await peer.closed()
        (call,) = archive.observer.calls
        assert (call.outcome, call.address) == ("refused", "127.0.0.1")
        assert call.calling_ae == words.get("calling_ae", "PEER")
        assert call.reason
        assert archive.listener.statistics().associations_refused == 1
        assert archive.observer.associations_open() == 0


async def test_titles_of_strangers_are_made_printable(serve: Any, sink: Any, peer_to: Any) -> None:
    async with serve(sink, OPEN) as archive:
        peer = await peer_to(archive)
        await peer.request(ECHO_CONTEXT, calling_ae="A\x1b[31mB\xe9")
        assert archive.observer.calls[0].calling_ae == "A?[31mB?"


@pytest.mark.parametrize(
    "limits",
    [NetLimits(associations_max=2, linger_s=0.2), NetLimits(associations_per_address_max=2, linger_s=0.2)],
)
async def test_over_the_limit_is_a_transient_refusal_and_a_place_is_given_back(
    serve: Any, sink: Any, peer_to: Any, limits: NetLimits
) -> None:
    async with serve(sink, OPEN, limits=limits) as archive:
        first, second, third = [await peer_to(archive) for _ in range(3)]
        await first.associate(ECHO_CONTEXT)
        await second.associate(ECHO_CONTEXT)
        assert await third.request(ECHO_CONTEXT) == AssociateReject(2, 3, 2)
        await first.send(ReleaseRequest())
        assert await first.event() == ReleaseReply()
        await first.stream.aclose()
        await archive.until(lambda: archive.observer.associations_open() == 1)
        fourth = await peer_to(archive)
        await fourth.associate(ECHO_CONTEXT)


# ---------------------------------------------------------------- within the association


async def test_an_idle_association_is_aborted(serve: Any, sink: Any, peer_to: Any) -> None:
    async with serve(sink, OPEN, limits=HASTE) as archive:
        peer = await peer_to(archive)
        await peer.associate(ECHO_CONTEXT)
        assert isinstance(await peer.event(), Abort)
        await archive.until(lambda: archive.listener.statistics().associations_timed_out == 1)
        assert archive.observer.aborted == 1


async def test_a_sender_that_stops_within_an_object_is_cut_and_nothing_is_kept(
    serve: Any, sink: Any, peer_to: Any
) -> None:
    limits = NetLimits(dimse_s=0.05, linger_s=0.2)
    async with serve(sink, OPEN, limits=limits) as archive:
        peer = await peer_to(archive)
        await peer.associate(CT_CONTEXT)
        await peer.say(3, store(), b"")  # the last fragment is left out below
        assert (await peer.response()).status == 0
        await peer.send(DataFragment(3, True, True, encode_command(store(2))))
        await peer.send(DataFragment(3, False, False, b"12345678"))
        assert isinstance(await peer.event(), Abort)
        await archive.until(lambda: archive.listener.statistics().objects_abandoned == 1)
        assert sink.abandoned == 1
        assert sink.objects == [b""]


async def test_a_trickle_is_too_slow(serve: Any, sink: Any, peer_to: Any) -> None:
    limits = NetLimits(dimse_s=0.2, receive_rate_min=10**9, linger_s=0.2)
    async with serve(sink, OPEN, limits=limits) as archive:
        peer = await peer_to(archive)
        await peer.associate(CT_CONTEXT)
        await peer.send(DataFragment(3, True, True, encode_command(store())))
        with trio.fail_after(30), pytest.raises(trio.BrokenResourceError):
            while True:  # never silent for long, never done
                await peer.send(DataFragment(3, False, False, b"12"))
                await trio.lowlevel.checkpoint()
        assert archive.listener.statistics().associations_timed_out == 1


async def test_who_vanishes_within_an_object_leaves_nothing(
    open_archive: Callable[..., Any], peer_to: Any
) -> None:
    async with open_archive() as archive:
        peer = await peer_to(archive)
        await peer.associate(CT_CONTEXT)
        await peer.send(DataFragment(3, True, True, encode_command(store())))
        await peer.send(DataFragment(3, False, False, bytes(10_000)))
        await archive.until(lambda: archive.engine.statistics().sessions_open == 1)
        await trio.aclose_forcefully(peer.stream)
        await archive.until(lambda: archive.listener.statistics().connections_open == 0)
        figures = archive.engine.statistics()
        assert (figures.sessions_open, figures.bytes_in_flight, figures.groups) == (0, 0, 0)
        assert archive.listener.statistics().objects_abandoned == 1


@pytest.mark.parametrize(
    "nonsense",
    [
        GARBAGE,
        b"\x04\x00\x7f\xff\xff\xff",  # longer than we announced
        b"\x04\x00\x00\x00\x00\x0a\x00\x00\x00\x06\x63\x00abcd",  # a context that nobody accepted
        b"\x04\x00\x00\x00\x00\x0a\x00\x00\x00\x06\x03\x00abcd",  # a data set without a command
        b"\x04\x00\x00\x00\x00\x0a\x00\x00\x00\x06\x03\x03abcd",  # a command that is none
        b"\x01\x00\x00\x00\x00\x44" + bytes(0x44),  # a second request
    ],
)
async def test_nonsense_is_answered_with_an_abort(
    serve: Any, sink: Any, peer_to: Any, nonsense: bytes
) -> None:
    async with serve(sink, OPEN) as archive:
        peer = await peer_to(archive)
        await peer.associate(CT_CONTEXT)
        await peer.raw(nonsense)
        assert isinstance(await peer.event(), Abort)
        await peer.closed()
        await archive.until(lambda: archive.listener.statistics().associations_aborted == 1)


async def test_half_a_pdu_and_then_nothing(serve: Any, sink: Any, peer_to: Any) -> None:
    async with serve(sink, OPEN) as archive:
        peer = await peer_to(archive)
        await peer.associate(CT_CONTEXT)
        await peer.raw(b"\x04\x00\x00\x00")
        await trio.aclose_forcefully(peer.stream)
        await archive.until(lambda: archive.listener.statistics().associations_aborted == 1)


async def test_half_a_pdu_and_then_silence(serve: Any, sink: Any, peer_to: Any) -> None:
    limits = NetLimits(dimse_s=0.05, linger_s=0.2)  # the idle time is long: this is not idle
    async with serve(sink, OPEN, limits=limits) as archive:
        peer = await peer_to(archive)
        await peer.associate(CT_CONTEXT)
        await peer.raw(b"\x04\x00\x00\x00")
        assert isinstance(await peer.event(), Abort)
        await archive.until(lambda: archive.listener.statistics().associations_timed_out == 1)


@pytest.mark.parametrize(
    "wire_limits", [WireLimits(command_bytes_max=64), WireLimits(dataset_bytes_max=1000)]
)
async def test_messages_over_the_limits_are_aborted(
    serve: Any, sink: Any, peer_to: Any, wire_limits: WireLimits
) -> None:
    async with serve(sink, OPEN, wire_limits=wire_limits) as archive:
        peer = await peer_to(archive)
        await peer.associate(CT_CONTEXT)
        await peer.say(3, store(), bytes(2000))
        assert isinstance(await peer.event(), Abort)
        await archive.until(lambda: archive.listener.statistics().connections_open == 0)
        assert sink.objects == []
        assert sink.abandoned == sink.begun


async def test_a_release_within_an_object_is_an_abort(serve: Any, sink: Any, peer_to: Any) -> None:
    async with serve(sink, OPEN) as archive:
        peer = await peer_to(archive)
        await peer.associate(CT_CONTEXT)
        await peer.send(DataFragment(3, True, True, encode_command(store())))
        await peer.send(ReleaseRequest())
        assert isinstance(await peer.event(), Abort)
        await archive.until(lambda: sink.abandoned == 1)


async def test_the_peers_abort_ends_it(serve: Any, sink: Any, peer_to: Any) -> None:
    async with serve(sink, OPEN) as archive:
        peer = await peer_to(archive)
        await peer.associate(CT_CONTEXT)
        await peer.send(Abort())
        assert isinstance(await peer.event(), TransportClosed)
        await archive.until(lambda: archive.listener.statistics().associations_aborted == 1)


@pytest.mark.parametrize("content", [b"", b"x"])
async def test_crumbs_do_not_keep_the_others_waiting(
    serve: Any, sink: Any, peer_to: Any, content: bytes
) -> None:
    """Each fragment costs the same, however little is in it: turns are counted in fragments, too."""
    limits = NetLimits(unyielded_fragments_max=20, linger_s=0.2)
    async with serve(sink, OPEN, limits=limits) as archive:
        peer = await peer_to(archive)
        await peer.associate(CT_CONTEXT)
        crumb = (len(content) + 2).to_bytes(4, "big") + b"\x03\x00" + content
        data = b"\x04\x00" + (2000 * len(crumb)).to_bytes(4, "big") + 2000 * crumb
        turns = 0

        async def somebody_else() -> None:
            nonlocal turns
            while True:
                await trio.lowlevel.checkpoint()
                turns += 1

        read: list[int] = []
        receive = Connection.next_fragment

        async def counted(self: Any) -> Any:
            read.append(turns)
            return await receive(self)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Connection, "next_fragment", counted)
            archive.nursery.start_soon(somebody_else)
            await peer.say(3, store(), b"")  # one whole object: everything is warm
            await peer.send(DataFragment(3, True, True, encode_command(store(2))))
            await peer.raw(data)
            await archive.until(lambda: len(read) > 2000)
        between = [read[at + 100] - read[at] for at in range(1, 1800, 100)]
        assert min(between) >= 2, between


async def test_one_bad_peer_does_not_touch_another(serve: Any, sink: Any, peer_to: Any) -> None:
    async with serve(sink, OPEN) as archive:
        good, bad = await peer_to(archive), await peer_to(archive)
        await good.associate(CT_CONTEXT)
        await bad.associate(CT_CONTEXT)
        await good.send(DataFragment(3, True, True, encode_command(store())))
        await bad.raw(GARBAGE)
        assert isinstance(await bad.event(), Abort)
        await good.send(DataFragment(3, False, True, b"12345678"))
        assert (await good.response()).status == 0
        assert sink.objects == [b"12345678"]


# ---------------------------------------------------------------- commands


async def test_commands_that_nobody_provides_are_refused_and_the_association_goes_on(
    serve: Any, sink: Any, peer_to: Any
) -> None:
    async with serve(sink, OPEN) as archive:
        peer = await peer_to(archive)
        await peer.associate(ECHO_CONTEXT, CT_CONTEXT)
        await peer.say(3, CFindRequest(7, CT), b"12345678")
        answer = await peer.response()
        assert (answer.message_id_responded_to, answer.status) == (7, 0x0211)
        assert answer.affected_sop_class_uid == CT
        await peer.say(3, NGetRequest(8, CT, "1.2.3"))
        answer = await peer.response()
        assert (answer.status, answer.affected_sop_instance_uid) == (0x0211, "1.2.3")
        await peer.say(3, NActionRequest(9, CT, "1.2.3", 1, has_dataset=True), b"1234")
        assert (await peer.response()).status == 0x0211
        await peer.say(3, CCancelRequest(7))  # has no response
        await peer.say(1, CEchoRequest(10))
        assert (await peer.response()) == CEchoResponse(10, 0)


async def test_storing_on_a_verification_context(serve: Any, sink: Any, peer_to: Any) -> None:
    async with serve(sink, OPEN) as archive:
        peer = await peer_to(archive)
        await peer.associate(ECHO_CONTEXT)
        await peer.say(1, store(), b"12345678")
        assert (await peer.response()).status == 0x0122
        assert sink.begun == 0


async def test_a_response_that_nobody_asked_for_is_an_abort(serve: Any, sink: Any, peer_to: Any) -> None:
    async with serve(sink, OPEN) as archive:
        peer = await peer_to(archive)
        await peer.associate(CT_CONTEXT)
        await peer.say(3, CStoreResponse(1, 0))
        assert isinstance(await peer.event(), Abort)


@pytest.mark.parametrize("where", ["begin", "write", "commit"])
@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.OutOfResourcesError("full"), 0xA700),
        (errors.ObjectTooLargeError("large"), 0x0213),
        (errors.StorageFailedError("broken"), 0xA700),
        (errors.ClosedError("closed"), 0xA700),
    ],
)
async def test_a_failure_is_answered_when_the_data_set_is_taken_and_the_next_object_is_stored(
    serve: Any, sink: Any, peer_to: Any, where: str, error: Exception, status: int
) -> None:
    async with serve(sink, OPEN) as archive:
        peer = await peer_to(archive)
        await peer.associate(CT_CONTEXT)
        sink.failing[where] = error
        await peer.say(3, store(1), bytes(600_000))
        answer = await peer.response()
        assert (answer.status, answer.message_id_responded_to) == (status, 1)
        assert (answer.affected_sop_class_uid, answer.affected_sop_instance_uid) == (CT, "1.2.3")
        assert answer.error_comment
        sink.failing.clear()
        await peer.say(3, store(2), b"12345678")
        assert (await peer.response()).status == 0
        assert sink.objects == [b"12345678"]
        figures = archive.listener.statistics()
        assert (figures.objects_failed, figures.objects_received) == (1, 1)


async def test_a_defect_ends_one_association_only(serve: Any, sink: Any, peer_to: Any) -> None:
    async with serve(sink, OPEN) as archive:
        peer, other = await peer_to(archive), await peer_to(archive)
        await other.associate(ECHO_CONTEXT)
        await peer.associate(CT_CONTEXT)
        sink.failing["commit"] = ZeroDivisionError("a defect")
        await peer.say(3, store(), b"12345678")
        assert isinstance(await peer.event(), Abort)
        await other.say(1, CEchoRequest(1))
        assert (await other.response()).status == 0


async def test_an_abort_says_why(serve: Any, sink: Any, peer_to: Any) -> None:
    async with serve(sink, OPEN) as archive:
        peer = await peer_to(archive)
        await peer.associate(CT_CONTEXT)
        await peer.raw(b"\x63\x00\x00\x00\x00\x00")
        assert await peer.event() == Abort(2, AbortReason.UNRECOGNIZED_PDU)
