"""What is taken for one whole message without a data set is just that: everything else goes the long way."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hounsfield.archive.wire import (
    CFindResponse,
    Command,
    CStoreResponse,
    Status,
    encode_command,
    lone_command,
)
from hounsfield.archive.wire.pdu_writer import data_header

RESPONSE = CStoreResponse(7, 0, "1.2.840.10008.5.1.4.1.1.2", "1.2.3.4")


def pdu(command: Command, context_id: int = 3, *, last: bool = True, is_command: bool = True) -> bytes:
    encoded = encode_command(command)
    return data_header(context_id, is_command, last, len(encoded)) + encoded


def test_a_response_alone_is_one() -> None:
    assert lone_command(pdu(RESPONSE)) == (3, RESPONSE)


def test_what_comes_with_more_is_none() -> None:
    whole = pdu(RESPONSE)
    assert lone_command(whole + whole) is None
    assert lone_command(whole + b"\4") is None
    assert all(lone_command(whole[:length]) is None for length in range(len(whole)))


def test_a_part_of_a_message_is_none() -> None:
    assert lone_command(pdu(RESPONSE, last=False)) is None
    assert lone_command(pdu(RESPONSE, is_command=False)) is None
    assert lone_command(pdu(CFindResponse(7, Status.PENDING, "1.2", has_dataset=True))) is None


def test_two_fragments_in_one_pdu_are_none() -> None:
    one = pdu(RESPONSE)
    joined = one[6:] + one[6:]
    assert lone_command(one[:2] + len(joined).to_bytes(4, "big") + joined) is None


@given(st.binary(max_size=200), st.integers(0, 150), st.integers(0, 255))
def test_nothing_that_can_come_raises(noise: bytes, at: int, byte: int) -> None:
    lone_command(noise)
    changed = bytearray(pdu(RESPONSE))
    changed[at % len(changed)] = byte
    lone_command(bytes(changed))
