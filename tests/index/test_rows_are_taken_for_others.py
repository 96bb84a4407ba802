"""Reindexing decodes what a series says of itself once: every row must say what its own bytes say."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hounsfield.archive.index.object_rows import REMEMBERED_BYTES_MAX, REMEMBERED_MAX, ObjectRows
from hounsfield.archive.index.rows import ObjectRow, SourceRow, StreamRow, decode, encode

few = st.dictionaries(st.integers(0, 3), st.sampled_from(["", "a", "b", "ü" * 40]), max_size=3)
rows = st.builds(
    ObjectRow,
    version=st.just(1),
    study_uid=st.sampled_from(["1", "2"]),
    series_uid=st.sampled_from(["1", "2"]),
    sop_uid=st.text(max_size=64),
    sop_class_uid=st.just("1.2"),
    transfer_syntax_uid=st.just("1.2"),
    study=few,
    series=few,
    instance=few,
    layout=st.integers(0, 4),
    received_ns=st.integers(0, 2**63 - 1),
    source=st.builds(SourceRow, protocol=st.sampled_from(["dimse", "stow"]), calling_ae=st.text(max_size=16)),
    problems=st.lists(st.text(max_size=9), max_size=2).map(tuple),
    stored_as=st.sampled_from(["", "zstd"]),
    stream=st.none() | st.builds(StreamRow, *[st.integers(0, 2**40)] * 5),
)


@settings(deadline=None)
@given(st.lists(rows, max_size=20))
def test_each_row_is_its_own(some: list[ObjectRow]) -> None:
    together = ObjectRows()
    for row in some:
        data = encode(row)
        assert together.decode(data) == decode(ObjectRow, data) == row


def a_row(study: dict[int, str]) -> ObjectRow:
    return ObjectRow(1, "1", "2", "3", "4", "5", study, {}, {}, 1, 7, SourceRow())


def test_rows_that_share_bytes_share_values() -> None:
    together = ObjectRows()
    one, other = (together.decode(encode(a_row({1: "a"}))) for _ in range(2))
    assert one.study is other.study


def test_what_is_remembered_has_an_end() -> None:
    together = ObjectRows()
    long = {1: "x" * REMEMBERED_BYTES_MAX}
    for number in range(3 * REMEMBERED_MAX):
        assert together.decode(encode(a_row({1: str(number)}))).study == {1: str(number)}
        assert together.decode(encode(a_row(long))).study == long
    held = [len(one._values) for _, one in together._remembered]
    assert max(held) <= REMEMBERED_MAX


@pytest.mark.parametrize("study", [None, 7, [1], {"a": "b"}, {1: 2}])
def test_what_is_no_row_is_not_taken_for_one(study: object) -> None:
    data = msgspec.msgpack.encode([1, "1", "2", "3", "4", "5", study, {}, {}, 1, 7, ["", "", "", ""]])
    with pytest.raises(msgspec.MsgspecError):
        ObjectRows().decode(data)
    with pytest.raises(msgspec.MsgspecError):
        decode(ObjectRow, data)


def test_rows_of_before_have_fewer_fields() -> None:
    data = msgspec.msgpack.encode([1, "1", "2", "3", "4", "5", {1: "a"}, {}, {}, 1, 7, ["dimse"]])
    assert ObjectRows().decode(data) == decode(ObjectRow, data)


@pytest.mark.parametrize("at", ["sop_uid", "study", "series"])
def test_text_that_is_no_utf_8_is_no_row(at: str) -> None:
    """Whoever reads many rows counts one that is none, and goes on."""
    text = {"sop_uid": "qqqq", "study": {1: "qqqq"}, "series": {1: "qqqq"}}[at]
    data = encode(msgspec.structs.replace(a_row({}), **{at: text})).replace(b"qqqq", b"\xff\xfe\xff\xfe")
    for decoded in (lambda: decode(ObjectRow, data), lambda: ObjectRows().decode(data)):
        with pytest.raises(msgspec.MsgspecError):
            decoded()
