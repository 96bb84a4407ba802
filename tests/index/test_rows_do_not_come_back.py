"""Instance rows are compressed at rest: each must open again, in this release and in every later one."""

from __future__ import annotations

import contextlib
import hashlib
import threading
from importlib.resources import files

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hounsfield.archive.index.row_dictionary import (
    MARK,
    ROW_BYTES_MAX,
    ROW_BYTES_USUAL,
    VERSION,
    compress,
    decompress,
)
from hounsfield.archive.index.rows import InstanceRow, Location, SeriesRow, decode, encode

ROW = InstanceRow(
    sop_uid="1.2.826.0.1.3680043.8.498.1",
    sop_class_uid="1.2.840.10008.5.1.4.1.1.2",
    transfer_syntax_uid="1.2.840.10008.1.2.1",
    location=Location(bytes(range(16)), bytes(range(16, 32)), 8192, 900, 4000, 0, 1, 524288),
    layout=1,
    attributes={0x00080018: "1.2.826.0.1.3680043.8.498.1", 0x00200013: "17", 0x00280010: "512"},
    received_ns=1_790_000_000_000_000_000,
)
#: What version 1 made of it. It must open for ever.
ROW_1 = bytes.fromhex(
    "c1010000ed020034049abb382e3439382e31000102030405060708090a0b0c0d0e0fc410101112131415161718191a1b"
    "1c1d1e1fcd2000cd0384cd0fa0833137cf18d75b8423f3000090a0c007fc8dce3148de050f154da54c6a42b4542f5cf8"
    "5df01b0e"
)
DICTIONARY_1 = "1883d4eae9e02458fa9d96a52d66dc52b9e638548fb0afcbdbb7f3861647e88e"

locations = st.builds(
    Location,
    segment=st.binary(min_size=16, max_size=16),
    record_id=st.binary(min_size=16, max_size=16),
    offset=st.integers(0, 2**40),
    row_bytes=st.integers(0, 2**20),
    header_bytes=st.integers(0, 2**20),
    trailer_bytes=st.integers(0, 2**20),
    frames=st.integers(0, 2**20),
    frame_bytes=st.integers(-1, 2**30),
    frames_inline=st.lists(st.integers(0, 2**30), max_size=64).map(tuple),
)
rows = st.builds(
    InstanceRow,
    sop_uid=st.text(max_size=64),
    sop_class_uid=st.text(max_size=64),
    transfer_syntax_uid=st.text(max_size=64),
    location=locations,
    layout=st.integers(0, 4),
    attributes=st.dictionaries(st.integers(0, 2**32 - 1), st.text(max_size=300), max_size=30),
    received_ns=st.integers(0, 2**63 - 1),
    flags=st.lists(st.text(max_size=30), max_size=4).map(tuple),
    stored_as=st.text(max_size=20),
)


@settings(deadline=None)
@given(rows)
def test_any_row_comes_back(row: InstanceRow) -> None:
    assert decode(InstanceRow, encode(row)) == row


@pytest.mark.parametrize("length", [ROW_BYTES_USUAL - 1, ROW_BYTES_USUAL, ROW_BYTES_USUAL + 1, 1 << 20])
def test_longer_rows_than_usual_come_back(length: int) -> None:
    row = b"\x9a" + bytes(length - 1)
    assert len(compress(row)) < length
    assert decompress(compress(row)) == row


def test_a_row_of_the_first_dictionary_opens() -> None:
    assert ROW_1[:2] == bytes((MARK, 1))
    assert decode(InstanceRow, ROW_1) == ROW


def test_a_dictionary_is_never_changed() -> None:
    data = files("hounsfield.archive.index").joinpath("instance_rows.1.zdict").read_bytes()
    assert hashlib.sha256(data).hexdigest() == DICTIONARY_1


def test_rows_of_before_are_read_as_they_are() -> None:
    plain = msgspec.msgpack.encode(ROW)
    assert plain[0] != MARK
    assert decode(InstanceRow, plain) == ROW
    assert len(encode(ROW)) < len(plain) * 2 // 3


def test_other_rows_are_not_touched() -> None:
    row = SeriesRow("1.2", {}, 1, (), (), 1)
    assert encode(row) == msgspec.msgpack.encode(row)


@pytest.mark.parametrize("cut", range(len(ROW_1)))
def test_a_row_cut_short_is_said_to_be_none(cut: int) -> None:
    with pytest.raises(msgspec.DecodeError):
        decode(InstanceRow, ROW_1[:cut])


@pytest.mark.parametrize("place", range(len(ROW_1)))
def test_a_row_that_was_changed_is_no_crash(place: int) -> None:
    for bit in range(8):
        changed = bytearray(ROW_1)
        changed[place] ^= 1 << bit
        with contextlib.suppress(ValueError):  # msgspec's, and of text that is none
            decode(InstanceRow, bytes(changed))


def test_a_later_dictionary_is_named() -> None:
    with pytest.raises(msgspec.DecodeError, match="later release"):
        decompress(bytes((MARK, VERSION + 1)) + b"...")


def test_no_row_is_too_long() -> None:
    row = b"\x93" + b"long" * (ROW_BYTES_MAX // 4 - 1)
    assert decompress(compress(row)) == row


def test_threads_have_coders_of_their_own() -> None:
    failed: list[Exception] = []

    def work() -> None:
        try:
            for _ in range(300):
                assert decode(InstanceRow, encode(ROW)) == ROW
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
