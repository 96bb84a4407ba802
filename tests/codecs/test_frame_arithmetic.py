"""Danger: a frame has one byte or one bit too many."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hounsfield.codecs.frames import FrameShape, JoinedBits, extract_bits


@pytest.mark.parametrize(
    ("shape", "bits"),
    [
        (FrameShape(512, 512, 1, 16), 512 * 512 * 16),
        (FrameShape(3, 3, 3, 8, "RGB"), 9 * 24),
        (FrameShape(4, 4, 3, 8, "YBR_FULL_422"), 16 * 16),
        (FrameShape(4, 4, 3, 8, "YBR_PARTIAL_420"), 16 * 12),
        (FrameShape(4, 4, 1, 8, "YBR_FULL_422"), 16 * 8),
        (FrameShape(3, 3, 1, 1), 9),
    ],
)
def test_bits_of_a_frame(shape: FrameShape, bits: int) -> None:
    assert shape.bits == bits
    assert shape.byte_aligned is (bits % 8 == 0)


@given(st.integers(1, 40), st.integers(1, 6), st.data())
def test_packed_frames_come_out_as_they_went_in(bits: int, frames: int, data: st.DataObject) -> None:
    values = [data.draw(st.integers(0, (1 << bits) - 1)) for _ in range(frames)]
    packed = sum(value << (bits * n) for n, value in enumerate(values)).to_bytes(
        (bits * frames + 7) // 8, "little"
    )
    for number, value in enumerate(values, start=1):
        frame = extract_bits(memoryview(packed), number, bits)
        assert len(frame) == (bits + 7) // 8
        assert int.from_bytes(frame, "little") == value


@given(st.integers(1, 40), st.integers(1, 6), st.data())
def test_frames_are_joined_as_they_are_packed(bits: int, frames: int, data: st.DataObject) -> None:
    """From the first, or from any other: what comes then is the end of the whole, but for a bit or seven."""
    values = [data.draw(st.integers(0, (1 << bits) - 1)) for _ in range(frames)]
    packed = sum(value << (bits * n) for n, value in enumerate(values)).to_bytes(
        (bits * frames + 7) // 8, "little"
    )
    first = data.draw(st.integers(0, frames - 1))
    joined = JoinedBits(bits, skipped=first)
    found = b"".join(joined.add(value.to_bytes((bits + 7) // 8, "little")) for value in values[first:])
    begin, foreign = divmod(first * bits, 8)
    whole = bytearray(packed[begin:])
    whole[0] &= 0xFF << foreign & 0xFF
    assert found + joined.rest() == whole


@pytest.mark.parametrize(("number", "bits"), [(0, 4), (3, 4), (1, 0), (1, 9), (-1, 4)])
def test_frames_that_are_not_there(number: int, bits: int) -> None:
    with pytest.raises(IndexError):
        extract_bits(b"\xff", number, bits)
