"""The danger: a peer that says more, longer or other than it may, and makes us hold it or believe it."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace

import pytest
from wire_strategies import (
    ACCEPT,
    CT,
    EXPLICIT,
    IMPLICIT,
    REQUEST,
    encode,
    established,
    events,
    in_state,
    wire,
)

from hounsfield.archive.wire import (
    NEED_DATA,
    Abort,
    AbortReason,
    AbortSource,
    AssociateReject,
    AssociateRequest,
    Association,
    CommonExtendedNegotiation,
    DataFragment,
    LocalProtocolError,
    Pdu,
    PresentationContext,
    PresentationResult,
    RejectReason,
    RejectSource,
    RemoteProtocolError,
    Role,
    RoleSelection,
    State,
    TransportClosed,
    UserIdentity,
    UserInformation,
    WireLimits,
)

TOO_MUCH = AssociateReject(1, RejectSource.PROVIDER_PRESENTATION, RejectReason.LOCAL_LIMIT_EXCEEDED)
INVALID = Abort(AbortSource.SERVICE_PROVIDER, AbortReason.INVALID_PARAMETER)


def _refused(raw: bytes, limits: WireLimits | None = None) -> RemoteProtocolError:
    """What an acceptor that awaits a request makes of ``raw``."""
    association = Association(Role.ACCEPTOR, limits)
    association.receive_data(raw)
    with pytest.raises(RemoteProtocolError) as caught:
        association.next_event()
    assert association.state is State.AWAITING_CLOSE
    assert association.artim_running
    assert wire(association.answer(caught.value)) == encode(caught.value.reply)
    return caught.value


def _request(**user: object) -> AssociateRequest:
    return replace(REQUEST, user=UserInformation(**user))  # type: ignore[arg-type]


# ---------------------------------------------------------------- limits on the request

MANY = replace(REQUEST, contexts=tuple(PresentationContext(2 * i + 1, CT, (IMPLICIT,)) for i in range(128)))


@pytest.mark.parametrize(
    ("request_pdu", "limits", "reply"),
    [
        (MANY, WireLimits(presentation_contexts_max=127), TOO_MUCH),
        (REQUEST, WireLimits(transfer_syntaxes_max=1), TOO_MUCH),
        (_request(max_pdu_length=63), WireLimits(), TOO_MUCH),
        (
            _request(roles=(RoleSelection(CT, scu=True, scp=True),) * 3),
            WireLimits(user_items_max=3),
            TOO_MUCH,
        ),
        (
            _request(common_extended=(CommonExtendedNegotiation(CT, CT, (CT, CT)),)),
            WireLimits(related_classes_max=1),
            TOO_MUCH,
        ),
        (_request(identity=UserIdentity(4, bytes(101))), WireLimits(identity_bytes_max=100), TOO_MUCH),
        (_request(identity=UserIdentity(2, b"", bytes(101))), WireLimits(identity_bytes_max=100), TOO_MUCH),
        (_request(implementation_class_uid="1." + "2" * 127), WireLimits(), Abort()),
        (_request(implementation_version="v" * 65), WireLimits(), Abort()),
        (REQUEST, WireLimits(associate_bytes_max=100), Abort()),
        (
            replace(REQUEST, protocol_version=2),
            WireLimits(),
            AssociateReject(1, RejectSource.PROVIDER_ACSE, RejectReason.PROTOCOL_VERSION_NOT_SUPPORTED),
        ),
    ],
)
def test_a_request_over_a_limit_is_refused(
    request_pdu: AssociateRequest, limits: WireLimits, reply: Pdu
) -> None:
    assert _refused(encode(request_pdu), limits).reply == reply


def test_the_same_requests_are_served_within_the_limits() -> None:
    for pdu in (MANY, REQUEST, _request(max_pdu_length=64), _request(identity=UserIdentity(4, bytes(100)))):
        association = Association(Role.ACCEPTOR)
        association.receive_data(encode(pdu))
        assert association.next_event() == pdu


def test_a_request_that_would_not_fit_the_memory_is_refused_by_its_length_alone() -> None:
    """Only six bytes are needed to say no."""
    length = WireLimits().associate_bytes_max + 1
    assert "limit" in str(_refused(b"\x01\x00" + length.to_bytes(4, "big")))


def test_the_longest_request_fits_a_buffer_made_smaller_than_it() -> None:
    limits = WireLimits(receive_buffer_bytes=1024)
    assert len(encode(MANY)) > 1024
    association = Association(Role.ACCEPTOR, limits)
    stream = memoryview(encode(MANY))
    while stream:
        buffer = association.receive_buffer()
        count = min(100, len(buffer), len(stream))
        buffer[:count] = stream[:count]
        stream = stream[count:]
        association.received(count)
        event = association.next_event()
    assert event == MANY


# ---------------------------------------------------------------- bytes that are no request

BODY = encode(REQUEST)[6:]


def _pdu(pdu_type: int, body: bytes) -> bytes:
    return bytes((pdu_type, 0)) + len(body).to_bytes(4, "big") + body


def _items(extra: bytes) -> bytes:
    return _pdu(1, BODY[:68] + extra)


@pytest.mark.parametrize(
    "raw",
    [
        b"GET / HTTP/1.1\r\n",
        b"\x16\x03\x01\x02\x00\x01",  # a TLS hello
        b"\x00" * 6,
        b"\x08\x00\x00\x00\x00\x04",
        _pdu(1, b""),
        _pdu(1, BODY[:67]),
        _pdu(1, BODY + b"\x00"),
        _items(b"\x10\x00\x00\x05abcd"),
        _items(b"\x10\x00\x00\x01a" * 2),
        _items(b"\x50\x00\x00\x00" * 2),
        _items(b"\x20\x00\x00\x03\x01\x00\x00"),
        _items(b"\x20\x00\x00\x04\x02\x00\x00\x00"),  # even
        _items(b"\x20\x00\x00\x04\x01\x00\x00\x00" * 2),  # twice
        _items(b"\x20\x00\x00\x0c\x01\x00\x00\x00" + b"\x30\x00\x00\x00" * 2),  # two abstract syntaxes
        _items(b"\x50\x00\x00\x06\x51\x00\x00\x02\x40\x00"),
        _items(b"\x50\x00\x00\x10" + b"\x51\x00\x00\x04\x00\x00\x40\x00" * 2),
        _items(b"\x50\x00\x00\x06\x53\x00\x00\x02\x00\x01"),
        _items(b"\x50\x00\x00\x08\x54\x00\x00\x04\x00\xff\x31\x2e"),
        _items(b"\x50\x00\x00\x0a\x58\x00\x00\x06\x01\x00\x00\x01a\x00"),
        _items(b"\x50\x00\x00\x10" + b"\x58\x00\x00\x04\x01\x00\x00\x00" * 2),  # two identities
        _pdu(4, b"\x00\x00\x00\x02\x01\x00"),
        _pdu(5, b"\x00" * 4),
    ],
)
def test_what_is_no_request_is_aborted(raw: bytes) -> None:
    assert _refused(raw).reply == Abort()  # AA-1: as the user, PS3.8 Table 9-10


@pytest.mark.parametrize("pdu_type", [3, 5, 6, 7])
@pytest.mark.parametrize("length", [0, 3, 5, 0xFFFFFFFF])
def test_short_pdus_have_their_length_and_no_other(pdu_type: int, length: int) -> None:
    association = established(Role.ACCEPTOR)
    association.receive_data(bytes((pdu_type, 0)) + length.to_bytes(4, "big"))
    with pytest.raises(RemoteProtocolError) as caught:
        association.next_event()
    assert caught.value.reply == INVALID


# ---------------------------------------------------------------- data


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\x00\x00\x00\x02\x01",
        b"\x00\x00\x00\x01\x01\x00",  # a PDV shorter than its header
        b"\x00\x00\x00\x00\x01\x00",
        b"\x00\x00\x00\x03\x01\x00",  # longer than the PDU
        b"\xff\xff\xff\xff\x01\x00",
        b"\x00\x00\x00\x02\x01\x00\x00",  # a byte left over
        b"\x00\x00\x00\x02\x05\x00",  # context refused
        b"\x00\x00\x00\x02\x07\x00",  # context never proposed
        b"\x00\x00\x00\x02\x00\x00",
    ],
)
def test_data_that_is_not_framed_is_aborted(body: bytes) -> None:
    association = established(Role.ACCEPTOR)
    association.receive_data(_pdu(4, body))
    with pytest.raises(RemoteProtocolError) as caught:
        association.next_event()
    assert caught.value.reply == INVALID
    assert association.state is State.AWAITING_CLOSE


@pytest.mark.parametrize("role", Role)
def test_the_maximum_we_advertised_is_enforced_with_its_tolerance(role: Role) -> None:
    """PS3.8 D.1; ``pdata_tolerance_bytes`` more, for those who count PDV headers otherwise."""
    limits = WireLimits(pdata_tolerance_bytes=12)
    within, beyond = bytes(16384 + 12 - 6), bytes(16384 + 12 - 5)
    association = established(role, limits, our_max=16384)
    association.receive_data(encode(DataFragment(3, False, True, within)))
    assert events(association) == [DataFragment(3, False, True, within)]
    association.receive_data(encode(DataFragment(3, False, True, beyond))[:6])
    with pytest.raises(RemoteProtocolError) as caught:
        association.next_event()
    assert caught.value.reply == INVALID


def test_no_maximum_is_still_a_limit() -> None:
    association = established(Role.ACCEPTOR, WireLimits(pdata_unlimited_bytes_max=1000), our_max=0)
    association.receive_data(b"\x04\x00" + (1001).to_bytes(4, "big"))
    with pytest.raises(RemoteProtocolError):
        association.next_event()


def test_a_pdu_longer_than_the_buffer_streams_and_is_never_held() -> None:
    limits = WireLimits(receive_buffer_bytes=4096, associate_bytes_max=2048)
    association = established(Role.ACCEPTOR, limits, our_max=0)
    size = 32 * 1024 * 1024
    association.receive_data(encode(DataFragment(3, False, True, b""))[:2] + (size + 6).to_bytes(4, "big"))
    association.receive_data((size + 2).to_bytes(4, "big") + b"\x03\x02")
    tracemalloc.start()
    got, last = 0, False
    while not last:
        buffer = association.receive_buffer()
        association.received(min(len(buffer), size - got))
        while (event := association.next_event()) is not NEED_DATA:
            assert isinstance(event, DataFragment)
            got += len(event.data)
            last = event.last
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert got == size
    assert peak < 64 * 1024


def test_payload_is_a_view_that_cannot_be_written() -> None:
    association = established(Role.ACCEPTOR)
    association.receive_data(encode(DataFragment(3, False, True, b"data")))
    event = association.next_event()
    assert isinstance(event, DataFragment)
    assert isinstance(event.data, memoryview)
    assert event.data.readonly


def test_after_an_error_everything_is_ignored_and_nothing_kept() -> None:
    association = Association(Role.ACCEPTOR, WireLimits(receive_buffer_bytes=1024, associate_bytes_max=1024))
    association.receive_data(b"GET / HTTP/1.1\r\n")
    with pytest.raises(RemoteProtocolError):
        association.next_event()
    for _ in range(100):
        room = len(association.receive_buffer())
        assert room > 1000
        association.received(room)
        association.receive_data(encode(REQUEST))
        assert association.next_event() is NEED_DATA
    with pytest.raises(LocalProtocolError):
        association.send(Abort())
    association.received(0)
    assert association.next_event() == TransportClosed(orderly=True)


def test_a_flood_in_the_last_state_is_answered_once() -> None:
    association = in_state(State.AWAITING_CLOSE)
    association.receive_data(encode(REQUEST) * 5)
    with pytest.raises(RemoteProtocolError):
        association.next_event()
    assert len(wire(association.data_to_send())) == 10
    assert association.next_event() is NEED_DATA
    assert association.data_to_send() == []


# ---------------------------------------------------------------- an acceptor that lies


@pytest.mark.parametrize(
    "contexts",
    [
        (PresentationResult(7, 0, IMPLICIT),),
        (PresentationResult(1, 0, EXPLICIT),),
        (PresentationResult(1, 0, IMPLICIT), PresentationResult(1, 0, IMPLICIT)),
        (PresentationResult(2, 0, IMPLICIT),),
    ],
)
def test_an_acceptor_may_only_accept_what_was_proposed(contexts: tuple[PresentationResult, ...]) -> None:
    items = b"".join(
        bytes((0x21, 0, 0, 8 + len(c.transfer_syntax), c.context_id, 0, c.result, 0))
        + bytes((0x40, 0, 0, len(c.transfer_syntax)))
        + c.transfer_syntax.encode()
        for c in contexts
    )
    association = Association(Role.REQUESTOR)
    association.send(REQUEST)
    association.receive_data(_pdu(2, BODY[:68] + items))
    with pytest.raises(RemoteProtocolError) as caught:
        association.next_event()
    assert caught.value.reply == INVALID
    assert dict(association.contexts) == {}


def test_we_do_not_lie_either() -> None:
    association = in_state(State.AWAITING_LOCAL_ASSOCIATE)
    for wrong in (PresentationResult(9, 0, IMPLICIT), PresentationResult(1, 0, EXPLICIT)):
        with pytest.raises(LocalProtocolError):
            association.send(replace(ACCEPT, contexts=(wrong,)))
    assert association.state is State.AWAITING_LOCAL_ASSOCIATE
    association.send(ACCEPT)
    assert set(association.contexts) == {1, 3}


def test_a_tiny_maximum_of_an_acceptor_is_refused_too() -> None:
    association = Association(Role.REQUESTOR)
    association.send(REQUEST)
    association.receive_data(encode(replace(ACCEPT, user=UserInformation(max_pdu_length=7))))
    with pytest.raises(RemoteProtocolError):
        association.next_event()


# ---------------------------------------------------------------- our own misuse


def test_a_full_buffer_says_that_events_were_not_taken() -> None:
    association = Association(Role.ACCEPTOR, WireLimits(receive_buffer_bytes=1024, associate_bytes_max=1024))
    association.received(len(association.receive_buffer()))
    with pytest.raises(LocalProtocolError, match="next_event"):
        association.receive_buffer()


def test_more_than_the_buffer_cannot_have_been_received() -> None:
    association = Association(Role.ACCEPTOR)
    for count in (-1, len(association.receive_buffer()) + 1):
        with pytest.raises(LocalProtocolError):
            association.received(count)


def test_copying_receive_takes_any_length_and_gives_the_memory_back() -> None:
    association = established(Role.ACCEPTOR, WireLimits(receive_buffer_bytes=4096, associate_bytes_max=2048))
    stream = encode(DataFragment(3, False, True, bytes(1000))) * 100
    association.receive_data(stream)
    assert len(events(association)) == 100
    assert len(association.receive_buffer()) == 4096


def test_who_only_connects_costs_little_memory_and_a_fast_sender_is_read_in_few_calls() -> None:
    association = Association(Role.ACCEPTOR)
    first = association.receive_buffer()
    assert len(first) == WireLimits().receive_buffer_bytes_first
    beginning = b"\x01\x00" + (200_000).to_bytes(4, "big") + bytes(len(first) - 6)
    first[:] = beginning
    association.received(len(first))
    assert association.next_event() is NEED_DATA
    assert len(association.receive_buffer()) == WireLimits().receive_buffer_bytes - len(first)


@pytest.mark.parametrize(
    "wrong", [{"receive_buffer_bytes": 100}, {"peer_pdu_bytes_min": 8}, {"send_pdu_bytes_max": 10}]
)
def test_limits_that_make_no_sense_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must"):
        WireLimits(**wrong)
