"""Why an association is refused or aborted is said as the standard says it (PS3.8 9.3.4, 9.3.8)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import trio

from hounsfield.archive.net.limits import NetLimits
from hounsfield.archive.net.policy import ListenerPolicy, RemoteAe
from hounsfield.archive.wire import (
    Abort,
    AbortReason,
    AbortSource,
    AssociateReject,
    AssociateRequest,
    CStoreRequest,
    DataFragment,
    PresentationContext,
    RejectReason,
    RejectResult,
    RejectSource,
    ReleaseReply,
    ReleaseRequest,
    UserInformation,
    WireLimits,
    encode_command,
)

EXPLICIT = "1.2.840.10008.1.2.1"
CT = "1.2.840.10008.5.1.4.1.1.2"
CT_CONTEXT = PresentationContext(3, CT, (EXPLICIT,))
PERMANENT, TRANSIENT = RejectResult.PERMANENT, RejectResult.TRANSIENT
USER, ACSE, PRESENTATION = (
    RejectSource.SERVICE_USER,
    RejectSource.PROVIDER_ACSE,
    RejectSource.PROVIDER_PRESENTATION,
)
QUICK = NetLimits(linger_s=0.2)


# ---------------------------------------------------------------- A-ASSOCIATE-RJ (Table 9-21)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            {"application_context": "1.2.3"},
            AssociateReject(PERMANENT, USER, RejectReason.APPLICATION_CONTEXT_NOT_SUPPORTED),
        ),
        ({"calling_ae": "EVIL"}, AssociateReject(PERMANENT, USER, RejectReason.CALLING_AE_NOT_RECOGNIZED)),
        ({"called_ae": "OTHER"}, AssociateReject(PERMANENT, USER, RejectReason.CALLED_AE_NOT_RECOGNIZED)),
        (
            {"protocol_version": 2},
            AssociateReject(PERMANENT, ACSE, RejectReason.PROTOCOL_VERSION_NOT_SUPPORTED),
        ),
        (
            {"calling_ae": "BUSY"},
            AssociateReject(TRANSIENT, PRESENTATION, RejectReason.LOCAL_LIMIT_EXCEEDED),
        ),
        (
            {"contexts": (CT_CONTEXT, PresentationContext(5, CT, (EXPLICIT,) * 3))},
            AssociateReject(PERMANENT, PRESENTATION, RejectReason.LOCAL_LIMIT_EXCEEDED),
        ),
    ],
)
async def test_refusals(
    serve: Any, sink: Any, peer_to: Any, words: dict[str, Any], expected: AssociateReject
) -> None:
    policy = ListenerPolicy(calling_titles=frozenset({"PEER", "BUSY"}))
    options: dict[str, Any] = {
        "limits": QUICK,
        "wire_limits": WireLimits(transfer_syntaxes_max=2),
        "aes": {"BUSY": RemoteAe("BUSY", associations_max=1)},
    }
    async with serve(sink, policy, **options) as archive:
        first = await peer_to(archive)
        await first.associate(CT_CONTEXT, calling_ae="BUSY")
        peer = await peer_to(archive)
        request: dict[str, Any] = {
            "called_ae": "HOUNSFIELD",
            "calling_ae": "PEER",
            "contexts": (CT_CONTEXT,),
            "user": UserInformation(max_pdu_length=16384),
            **words,
        }
        await peer.send(AssociateRequest(**request))
        assert await peer.event() == expected


async def test_an_archive_that_is_going_is_congested(serve: Any, sink: Any, peer_to: Any) -> None:
    async with serve(sink, ListenerPolicy(), limits=QUICK) as archive:
        peer = await peer_to(archive)
        await archive.until(lambda: archive.listener.statistics().connections_open == 1)
        # its request is on the way while the drain begins: a connection without one would be closed
        (connection,) = archive.listener.conversations
        connection._draining = True
        assert await peer.request(CT_CONTEXT) == AssociateReject(
            TRANSIENT, PRESENTATION, RejectReason.TEMPORARY_CONGESTION
        )


# ---------------------------------------------------------------- A-ABORT (Table 9-26)

PROVIDER = AbortSource.SERVICE_PROVIDER
BY_US = Abort(AbortSource.SERVICE_USER, AbortReason.NOT_SPECIFIED)
COMMAND = encode_command(CStoreRequest(1, CT, "1.2.3"))


def _pdata(*values: tuple[int, int, bytes]) -> bytes:
    body = b"".join(
        (len(data) + 2).to_bytes(4, "big") + bytes((context, control)) + data
        for context, control, data in values
    )
    return b"\4\0" + len(body).to_bytes(4, "big") + body


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (b"\x0b\0\0\0\0\4\0\0\0\0", Abort(PROVIDER, AbortReason.UNRECOGNIZED_PDU)),
        (b"\1\0\0\0\0\x44" + bytes(0x44), Abort(PROVIDER, AbortReason.UNEXPECTED_PDU)),  # a second request
        (b"\2\0\0\0\0\x44" + bytes(0x44), Abort(PROVIDER, AbortReason.UNEXPECTED_PDU)),
        (b"\3\0\0\0\0\4\0\1\1\1", Abort(PROVIDER, AbortReason.UNEXPECTED_PDU)),
        (b"\6\0\0\0\0\4\0\0\0\0", Abort(PROVIDER, AbortReason.UNEXPECTED_PDU)),
        (b"\5\0\0\0\0\5\0\0\0\0\0", Abort(PROVIDER, AbortReason.INVALID_PARAMETER)),  # of a wrong length
        (b"\4\0\x7f\xff\xff\xff", Abort(PROVIDER, AbortReason.INVALID_PARAMETER)),
        (_pdata((99, 3, COMMAND)), Abort(PROVIDER, AbortReason.INVALID_PARAMETER)),  # no such context
        # what is said in valid PDUs and is no DIMSE is for the user to judge: it has no reasons to give
        (_pdata((3, 3, b"nonsense")), BY_US),
        (_pdata((3, 2, b"12")), BY_US),  # a data set without a command
        (_pdata((3, 3, COMMAND), (3, 3, COMMAND)), BY_US),  # a command in place of a data set
        (_pdata((3, 3, COMMAND)) + b"\5\0\0\0\0\4\0\0\0\0", BY_US),  # a release within a message
    ],
)
async def test_aborts(serve: Any, sink: Any, peer_to: Any, said: bytes, expected: Abort) -> None:
    async with serve(sink, ListenerPolicy(), limits=QUICK) as archive:
        peer = await peer_to(archive)
        await peer.associate(CT_CONTEXT)
        await peer.raw(said)
        assert await peer.event() == expected
        await archive.until(lambda: sink.abandoned == sink.begun)


@pytest.mark.parametrize("said", [b"\x47ET / HTTP/1.1\r\n", b"\4\0\0\0\0\4\0\0\0\0", b"\5\0\0\0\0\4\0\0\0\0"])
async def test_before_the_association_everything_else_is_the_users_abort(
    serve: Any, sink: Any, peer_to: Any, said: bytes
) -> None:
    async with serve(sink, ListenerPolicy(), limits=QUICK) as archive:  # AA-1 in Sta2
        peer = await peer_to(archive)
        await peer.raw(said)
        with trio.fail_after(30):
            assert await peer.stream.receive_some(100) == b"\7\0\0\0\0\4\0\0\0\0"


async def _idle(peer: Any) -> None:
    """Says nothing more."""


async def _stuck(peer: Any) -> None:
    await peer.send(DataFragment(3, True, True, COMMAND))


@pytest.mark.parametrize("how", [_idle, _stuck])
async def test_who_is_too_slow_is_aborted_by_the_user(
    serve: Any, sink: Any, peer_to: Any, how: Callable[[Any], Any]
) -> None:
    limits = NetLimits(idle_s=0.05, dimse_s=0.05, linger_s=0.2)
    async with serve(sink, ListenerPolicy(), limits=limits) as archive:
        peer = await peer_to(archive)
        await peer.associate(CT_CONTEXT)
        await how(peer)
        assert await peer.event() == BY_US


async def test_a_release_is_never_an_abort(serve: Any, sink: Any, peer_to: Any) -> None:
    async with serve(sink, ListenerPolicy(), limits=QUICK) as archive:
        peer = await peer_to(archive)
        await peer.associate(CT_CONTEXT)
        await peer.send(ReleaseRequest())
        assert await peer.event() == ReleaseReply()
