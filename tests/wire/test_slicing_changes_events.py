"""The danger: TCP cuts the stream somewhere else and something else is understood."""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from wire_strategies import ACCEPT, REQUEST, coalesce, encode, events, keep

from hounsfield.archive.wire import (
    NEED_DATA,
    Abort,
    AssociateRequest,
    Association,
    DataFragment,
    Event,
    ReleaseReply,
    ReleaseRequest,
    RemoteProtocolError,
    Role,
    TransportClosed,
    WireLimits,
)

fragments = st.builds(
    DataFragment,
    st.sampled_from([1, 3, 3, 3, 5, 7]),  # 5 was refused and 7 never proposed: errors must not move either
    st.booleans(),
    st.booleans(),
    st.binary(max_size=300),
)
pdus = st.one_of(
    fragments, fragments, fragments, fragments, st.sampled_from([ReleaseRequest(), ReleaseReply(), Abort()])
)


@st.composite
def streams(draw: st.DrawFn) -> bytes:
    """A conversation's bytes; sometimes with several PDVs in a PDU, sometimes with bytes spoilt."""
    stream = bytearray(encode(REQUEST))
    for pdu in draw(st.lists(pdus, max_size=12)):
        stream += encode(pdu)
    if draw(st.booleans()):
        values = [encode(pdu)[6:] for pdu in draw(st.lists(fragments, min_size=1, max_size=4))]
        body = b"".join(values)
        stream += b"\x04\x00" + len(body).to_bytes(4, "big") + body
    for _ in range(draw(st.integers(0, 2))):
        stream[draw(st.integers(0, len(stream) - 1))] = draw(st.integers(0, 255))
    return bytes(stream)


def _answer(association: Association, event: Event) -> None:
    """What an acceptor would do: the states that follow must not depend on the cuts."""
    if isinstance(event, AssociateRequest) and event == REQUEST:
        association.send(ACCEPT)
    elif isinstance(event, ReleaseRequest) and association.release_reply_due:
        association.send(ReleaseReply())


def _understood(pieces: list[bytes], *, into_buffer: bool) -> tuple[list[Any], int]:
    association = Association(Role.ACCEPTOR, WireLimits(receive_buffer_bytes=1024, associate_bytes_max=1024))
    found: list[Any] = []
    for whole in [*pieces, b""]:
        piece = memoryview(whole)
        while True:
            if into_buffer:
                buffer = association.receive_buffer()
                count = min(len(buffer), len(piece))
                buffer[:count] = piece[:count]
                association.received(count)
            else:
                count = len(piece)
                association.receive_data(piece)
            piece = piece[count:]
            try:
                while (event := association.next_event()) is not NEED_DATA:
                    found.append(keep(event))
                    if isinstance(event, TransportClosed):
                        break
                    _answer(association, event)
            except RemoteProtocolError as error:
                found.append((str(error), error.reply))
            if not piece:
                break
    return coalesce(found), association.state.value


@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(streams(), st.data())
def test_any_slicing_gives_the_same_events(stream: bytes, data: st.DataObject) -> None:
    whole = _understood([stream], into_buffer=False)
    cuts = sorted(data.draw(st.sets(st.integers(1, len(stream) - 1), max_size=20)))
    pieces = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    assert _understood(pieces, into_buffer=False) == whole
    assert _understood(pieces, into_buffer=True) == whole
    assert _understood([stream], into_buffer=True) == whole


def test_a_byte_at_a_time() -> None:
    stream = b"".join(
        map(
            encode,
            [
                REQUEST,
                DataFragment(1, True, True, b"c" * 77),
                DataFragment(3, False, False, b"d" * 200),
                DataFragment(3, False, True, b""),
                ReleaseRequest(),
            ],
        )
    )
    whole = _understood([stream], into_buffer=False)
    crumbs = [stream[i : i + 1] for i in range(len(stream))]
    assert _understood(crumbs, into_buffer=True) == whole
    assert [type(event).__name__ for event in whole[0]] == [
        "AssociateRequest",
        "DataFragment",
        "DataFragment",
        "ReleaseRequest",
        "TransportClosed",
    ]


def test_bytes_left_over_wait_for_the_next_call() -> None:
    association = Association(Role.ACCEPTOR)
    association.receive_data(encode(REQUEST) + encode(Abort())[:7])
    assert events(association) == [REQUEST]
    association.receive_data(encode(Abort())[7:])
    assert events(association) == [Abort()]
