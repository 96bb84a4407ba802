"""However a multipart body is sliced on its way, the parts are the same; and nothing grows without bound."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hounsfield.archive.web.multipart import (
    MultipartError,
    MultipartReader,
    PartBegin,
    PartData,
    closing,
    new_boundary,
    part_head,
)

BOUNDARY = "b0u"
# Bytes that look like what the reader looks for, more often than chance would have it.
TRICKY = st.lists(
    st.sampled_from(
        [
            b"\r",
            b"\n",
            b"\r\n",
            b"-",
            b"--",
            b"b0u",
            b"\r\n--b0",
            b"\r\n-",
            b"x",
            b"\0\xff",
            b" ",
            b"\r\n\r\n",
        ]
    ),
    max_size=20,
).map(b"".join)
CONTENT = (TRICKY | st.binary(max_size=60)).filter(lambda c: b"--b0u" not in c)


def read(body: bytes, cuts: list[int]) -> list[tuple[dict[str, str], bytes]] | str:
    reader = MultipartReader(BOUNDARY)
    parts: list[tuple[dict[str, str], bytearray]] = []
    whole = 0
    try:
        for start, end in zip([0, *cuts], [*cuts, len(body)], strict=True):
            for event in reader.feed(body[start:end]):
                if isinstance(event, PartBegin):
                    parts.append((dict(event.headers), bytearray()))
                elif isinstance(event, PartData):
                    parts[-1][1].extend(event.data)
                else:
                    whole += 1
            assert len(reader._held) <= 8192 + 256
        reader.finish()
    except MultipartError as error:
        return str(error)
    assert whole == len(parts)
    return [(headers, bytes(content)) for headers, content in parts]


def cut_up(data, body):
    return sorted(data.draw(st.lists(st.integers(0, len(body)), max_size=12)))


@settings(max_examples=300, deadline=None)
@given(st.data(), st.lists(CONTENT, min_size=1, max_size=4), TRICKY)
def test_any_slicing_gives_the_same_parts(data, contents, preamble):
    if b"--b0u" in preamble:
        preamble = b""
    body = (preamble + b"\r\n" if preamble else b"") + b"--b0u\r\n"
    body += b"\r\n--b0u\t \r\n".join(b"Content-Type: application/dicom\r\n\r\n" + one for one in contents)
    body += b"\r\n--b0u--\r\nepilogue --b0u"
    expected = [({"content-type": "application/dicom"}, one) for one in contents]
    assert read(body, []) == expected
    assert read(body, cut_up(data, body)) == expected
    assert read(body, list(range(1, len(body)))) == expected


@settings(max_examples=300, deadline=None)
@given(st.data(), TRICKY)
def test_any_slicing_of_nonsense_is_judged_the_same(data, body):
    assert read(body, cut_up(data, body)) == read(body, [])


@given(st.lists(st.binary(max_size=40), min_size=1, max_size=4))
def test_what_we_write_we_read(contents):
    boundary = new_boundary()
    body = b"".join(
        part_head(boundary, b"a/b; c=d", len(one), b"/x", first=not n) + one for n, one in enumerate(contents)
    ) + closing(boundary)
    reader = MultipartReader(boundary.decode())
    events = reader.feed(body)
    reader.finish()
    begins = [event for event in events if isinstance(event, PartBegin)]
    assert [int(begin.headers["content-length"]) for begin in begins] == [len(one) for one in contents]
    assert all(begin.headers["content-location"] == "/x" for begin in begins)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"--b0u\r\n\r\n\r\n--b0u--", [({}, b"")]),
        (b"--b0u\r\nA: 1\r\n\r\n--b0u--", [({"a": "1"}, b"")]),
        (b"--b0u\r\nA: 1\r\n two\r\nB:x\r\n\r\nc\r\n--b0u--", [({"a": "1 two", "b": "x"}, b"c")]),
        (b"--b0u\r\n\r\n--b0\r\n--b0u--", [({}, b"--b0")]),
    ],
)
def test_edges(body, expected):
    for cut in range(len(body)):
        assert read(body, [cut]) == expected


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"--b0u",
        b"--b0u\r\n\r\nabc",
        b"--b0u\r\n\r\nabc\r\n--b0u-",
        b"--b0ux\r\n",
        b"--b0u\r\nno colon\r\n\r\nx\r\n--b0u--",
        b"--b0u\r\nbad name: x\r\n\r\nx\r\n--b0u--",
        b"--b0u\r\nA: " + b"x" * 9000 + b"\r\n\r\nx\r\n--b0u--",
        b"p" * 70_000,
        b"--b0u" + b" " * 70 + b"\r\n\r\nx\r\n--b0u--",
    ],
)
def test_broken_bodies_are_refused(body):
    outcome = read(body, [])
    assert isinstance(outcome, str) and outcome
    assert read(body, list(range(1, min(len(body), 12_000)))) == outcome


@pytest.mark.parametrize("boundary", ["", "x" * 71, "a\r\nb", "ends ", "é"])
def test_boundaries_that_may_not_be(boundary):
    with pytest.raises(MultipartError):
        MultipartReader(boundary)
