"""The danger: copies of pixel data, PDUs the peer cannot take, and responses in two writes (40 ms each)."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wire_strategies import CT, established, events, wire

from hounsfield.archive.wire import (
    CommandReceived,
    CStoreRequest,
    CStoreResponse,
    DataFragment,
    DatasetFragment,
    LocalProtocolError,
    MessageReader,
    MessageWriter,
    ReleaseRequest,
    Role,
    Status,
    WireLimits,
)

STORE = CStoreRequest(1, CT, "1.2.3")


def _read(stream: bytes) -> tuple[list[Any], bytes]:
    """What an acceptor understands of ``stream``: commands, and the data sets' bytes."""
    association, reader = established(Role.ACCEPTOR, our_max=0), MessageReader()
    association.receive_data(stream)
    commands, data = [], b""
    for event in events(association):
        assert isinstance(event, DataFragment)
        message = reader.receive(event)
        if isinstance(message, CommandReceived):
            commands.append(message.command)
        elif isinstance(message, DatasetFragment):
            data += bytes(message.data)
    assert reader.idle
    return commands, data


def _pdu_lengths(stream: bytes) -> list[int]:
    lengths, position = [], 0
    while position < len(stream):
        assert stream[position] == 4
        lengths.append(int.from_bytes(stream[position + 2 : position + 6], "big"))
        position += 6 + lengths[-1]
    return lengths


def test_a_response_is_one_buffer() -> None:
    writer = MessageWriter(established(Role.ACCEPTOR, peer_max=16384))
    response = CStoreResponse(1, Status.SUCCESS, CT, "1.2.3")
    buffers = writer.command(3, response)
    assert len(buffers) == 1
    assert _read(bytes(buffers[0])) == ([response], b"")


def test_a_response_is_one_buffer_even_for_a_peer_with_tiny_pdus() -> None:
    writer = MessageWriter(established(Role.ACCEPTOR, peer_max=64))
    response = CStoreResponse(1, Status.SUCCESS, CT, "1.2.3")
    buffers = writer.command(3, response)
    assert len(buffers) == 1
    assert max(_pdu_lengths(bytes(buffers[0]))) <= 64
    assert _read(bytes(buffers[0])) == ([response], b"")


@given(
    st.lists(st.binary(max_size=700), max_size=8),
    st.one_of(st.just(0), st.just(None), st.integers(64, 1000)),
)
def test_any_data_set_in_any_buffers_within_the_maximum(parts: list[bytes], peer_max: int | None) -> None:
    writer = MessageWriter(established(Role.REQUESTOR, peer_max=peer_max))
    batches = list(writer.message(3, STORE, parts))
    stream = b"".join(wire(batch) for batch in batches)
    assert max(_pdu_lengths(stream)) <= (peer_max or 256 * 1024)
    assert _read(stream) == ([STORE], b"".join(parts))


@given(st.lists(st.binary(max_size=700), max_size=5), st.integers(64, 1000))
def test_a_data_set_given_bit_by_bit(parts: list[bytes], peer_max: int) -> None:
    writer = MessageWriter(established(Role.REQUESTOR, peer_max=peer_max))
    stream = wire(writer.command(3, STORE))
    for part in parts:
        stream += b"".join(wire(batch) for batch in writer.dataset(3, part, last=False))
    stream += b"".join(wire(batch) for batch in writer.dataset(3, b"", last=True))
    assert _read(stream) == ([STORE], b"".join(parts))


def test_pixel_data_is_sliced_not_copied() -> None:
    pixels = bytearray(3_000_000)
    writer = MessageWriter(established(Role.REQUESTOR, peer_max=131072))
    batches = list(writer.message(3, STORE, [pixels]))
    assert len(batches) > 1
    slices = [buffer for batch in batches for buffer in batch if isinstance(buffer, memoryview)]
    assert all(buffer.obj is pixels for buffer in slices)
    assert sum(map(len, slices)) == len(pixels)


def test_a_batch_is_never_more_than_one_sendmsg_takes() -> None:
    """Linux refuses more than 1,024 buffers (IOV_MAX)."""
    writer = MessageWriter(established(Role.REQUESTOR, peer_max=64))
    crumbs = [b"x"] * 5000
    for dataset in (crumbs, [bytes(200_000)]):
        batches = list(writer.message(3, STORE, dataset))
        assert max(map(len, batches)) <= 1024
    big = MessageWriter(established(Role.REQUESTOR))
    batches = list(big.message(3, STORE, crumbs))
    assert max(map(len, batches)) <= 1024
    assert _read(b"".join(wire(batch) for batch in batches)) == ([STORE], b"x" * 5000)


def test_a_view_of_other_items_is_sent_as_its_bytes() -> None:
    from array import array

    pixels = array("H", range(1000))
    writer = MessageWriter(established(Role.REQUESTOR))
    stream = b"".join(wire(batch) for batch in writer.message(3, STORE, [memoryview(pixels)]))
    assert _read(stream) == ([STORE], pixels.tobytes())


def test_our_own_ceiling_holds_for_peers_without_one() -> None:
    limits = WireLimits(send_pdu_bytes_max=1000)
    for peer_max in (0, 1 << 30):
        association = established(Role.REQUESTOR, limits, peer_max=peer_max)
        assert association.send_pdu_bytes_max == 1000
    assert established(Role.REQUESTOR, peer_max=None).send_pdu_bytes_max == 16384


def test_what_may_not_be_sent_now_is_our_error() -> None:
    association = established(Role.REQUESTOR)
    writer = MessageWriter(association)
    with pytest.raises(LocalProtocolError, match="context 5"):
        writer.command(5, STORE)
    with pytest.raises(LocalProtocolError, match="context 5"):
        writer.dataset(5, b"", last=True)
    with pytest.raises(LocalProtocolError, match="no data set"):
        writer.message(3, CStoreResponse(1, 0), [b""])
    with pytest.raises(LocalProtocolError, match="context 5"):
        association.send(DataFragment(5, False, True, b""))
    with pytest.raises(LocalProtocolError, match="peer takes"):
        association.send(DataFragment(3, False, True, bytes(256 * 1024)))
    pending = writer.message(3, STORE, [bytes(5_000_000)])
    next(pending)
    association.send(ReleaseRequest())
    with pytest.raises(LocalProtocolError):
        next(pending)  # nothing goes out after the release request
    with pytest.raises(LocalProtocolError):
        writer.command(3, STORE)
