"""Request smuggling: one literal table of doubtful requests and the one right answer to each (RFC 9112).

Every row is sent whole, a byte at a time, and over a real socket. What follows a refused request on the wire is
never taken for a request: the application must not see it.
"""

# ruff: noqa: E501 - one row of the table, one line
from __future__ import annotations

import socket

import pytest
import trio

H = b"Host: a\r\n"
SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"
GET = b"GET /first HTTP/1.1\r\n"
POST = b"POST /first HTTP/1.1\r\n" + H
TE = b"Transfer-Encoding: chunked\r\n"
NEXT = b"GET /next HTTP/1.1\r\nHost: a\r\n\r\n"

ok, refused = [("GET", "/first", b"")], []


def posted(body: bytes) -> list:
    return [("POST", "/first", body), ("GET", "/next", b"")]


# name, bytes on the wire, statuses answered, requests the application saw
TABLE: list[tuple[str, bytes, list[int], list]] = [
    # both framings, or two of one
    ("cl+te", POST + b"Content-Length: 4\r\n" + TE + b"\r\n0\r\n\r\n" + SMUGGLED, [400], refused),
    ("te+cl", POST + TE + b"Content-Length: 4\r\n\r\n0\r\n\r\n" + SMUGGLED, [400], refused),
    ("cl twice, differing", POST + b"Content-Length: 5\r\nContent-Length: 0\r\n\r\n" + SMUGGLED, [400], refused),
    ("cl twice, alike", POST + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello" + SMUGGLED, [400], refused),
    ("cl list", POST + b"Content-Length: 5, 5\r\n\r\nhello" + SMUGGLED, [400], refused),
    ("te twice", POST + TE + TE + b"\r\n0\r\n\r\n" + SMUGGLED, [400], refused),
    # Content-Length that is not a plain number
    ("cl plus", POST + b"Content-Length: +5\r\n\r\nhello" + SMUGGLED, [400], refused),
    ("cl negative", POST + b"Content-Length: -1\r\n\r\n" + SMUGGLED, [400], refused),
    ("cl hex", POST + b"Content-Length: 0x5\r\n\r\nhello" + SMUGGLED, [400], refused),
    ("cl float", POST + b"Content-Length: 5.0\r\n\r\nhello" + SMUGGLED, [400], refused),
    ("cl underscore", POST + b"Content-Length: 1_0\r\n\r\nhellohello" + SMUGGLED, [400], refused),
    ("cl empty", POST + b"Content-Length:\r\n\r\n" + SMUGGLED, [400], refused),
    ("cl of 20 digits", POST + b"Content-Length: 99999999999999999999\r\n\r\n" + SMUGGLED, [400], refused),
    ("cl past the limit", POST + b"Content-Length: 999999999999999\r\n\r\n" + SMUGGLED, [413], refused),
    ("cl inner space", POST + b"Content-Length: 5 5\r\n\r\nhello" + SMUGGLED, [400], refused),
    ("cl arabic digits", POST + "Content-Length: ٥\r\n\r\nhello".encode() + SMUGGLED, [400], refused),
    ("cl leading zeros are a number", POST + b"Content-Length: 005\r\n\r\nhello" + NEXT, [200, 200], posted(b"hello")),
    ("cl space around", POST + b"Content-Length:  5 \t\r\n\r\nhello" + NEXT, [200, 200], posted(b"hello")),
    # Transfer-Encoding that is not exactly chunked
    ("te xchunked", POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n" + SMUGGLED, [400], refused),
    ("te identity", POST + b"Transfer-Encoding: identity\r\n\r\n" + SMUGGLED, [400], refused),
    ("te quoted", POST + b'Transfer-Encoding: "chunked"\r\n\r\n0\r\n\r\n' + SMUGGLED, [400], refused),
    ("te parameter", POST + b"Transfer-Encoding: chunked;q=1\r\n\r\n0\r\n\r\n" + SMUGGLED, [400], refused),
    ("te comma", POST + b"Transfer-Encoding: chunked,\r\n\r\n0\r\n\r\n" + SMUGGLED, [400], refused),
    ("te leading comma", POST + b"Transfer-Encoding: ,chunked\r\n\r\n0\r\n\r\n" + SMUGGLED, [400], refused),
    ("te chunked chunked", POST + b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n" + SMUGGLED, [400], refused),
    ("te chunked not last", POST + b"Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n" + SMUGGLED, [400], refused),
    ("te vertical tab", POST + b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n" + SMUGGLED, [400], refused),
    ("te empty", POST + b"Transfer-Encoding:\r\n\r\n0\r\n\r\n" + SMUGGLED, [400], refused),
    ("te underscore name is another header", POST + b"Transfer_Encoding: chunked\r\n\r\n" + NEXT, [200, 200], posted(b"")),
    ("te gzip, chunked: a coding we lack", POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n" + SMUGGLED, [501], refused),
    ("te in capitals is chunked", POST + b"Transfer-Encoding: CHUNKED\r\n\r\n0\r\n\r\n" + NEXT, [200, 200], posted(b"")),
    ("te on HTTP/1.0", b"POST /first HTTP/1.0\r\n" + H + TE + b"\r\n0\r\n\r\n" + SMUGGLED, [400], refused),
    # lines
    ("obs-fold", GET + H + b"A: b\r\n c\r\n\r\n" + SMUGGLED, [400], refused),
    ("obs-fold with tab", GET + H + b"A: b\r\n\tc\r\n\r\n" + SMUGGLED, [400], refused),
    ("fold before the first header", GET + b" Host: a\r\n\r\n" + SMUGGLED, [400], refused),
    ("space before colon", GET + b"Host : a\r\n\r\n" + SMUGGLED, [400], refused),
    ("tab before colon", GET + H + b"A\t: b\r\n\r\n" + SMUGGLED, [400], refused),
    ("header without colon", GET + H + b"A\r\n\r\n" + SMUGGLED, [400], refused),
    ("header without name", GET + H + b": b\r\n\r\n" + SMUGGLED, [400], refused),
    ("separator in a name", GET + H + b"A(b): c\r\n\r\n" + SMUGGLED, [400], refused),
    ("non-ASCII in a name", GET + H + b"\xc3\xa4: c\r\n\r\n" + SMUGGLED, [400], refused),
    ("bare LF ends a header", GET + H + b"A: b\nC: d\r\n\r\n" + SMUGGLED, [400], refused),
    ("bare LF everywhere", b"GET /first HTTP/1.1\nHost: a\n\n" + SMUGGLED, [400], refused),
    ("bare CR in a value", GET + H + b"A: b\rC: d\r\n\r\n" + SMUGGLED, [400], refused),
    ("CR CR LF", GET + H + b"A: b\r\r\n\r\n" + SMUGGLED, [400], refused),
    ("LF CR LF ends the head", GET + H + b"A: b\n\r\n" + SMUGGLED, [400], refused),
    ("NUL in a value", GET + H + b"A: b\0c\r\n\r\n" + SMUGGLED, [400], refused),
    ("NUL in a name", GET + H + b"A\0: c\r\n\r\n" + SMUGGLED, [400], refused),
    ("control byte in a value", GET + H + b"A: b\x08\r\n\r\n" + SMUGGLED, [400], refused),
    ("DEL in a value", GET + H + b"A: b\x7f\r\n\r\n" + SMUGGLED, [400], refused),
    ("obs-text in a value passes", GET + H + b"A: \xff\r\n\r\n", [200], ok),
    ("one empty line before is forgiven", b"\r\n" + GET + H + b"\r\n", [200], ok),
    ("two empty lines are not", b"\r\n\r\n" + GET + H + b"\r\n" + SMUGGLED, [400], refused),
    # the request line
    ("HTTP/0.9", b"GET /first\r\n" + SMUGGLED, [400], refused),
    ("HTTP/0.9 named", b"GET /first HTTP/0.9\r\n\r\n" + SMUGGLED, [505], refused),
    ("HTTP/2 preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + SMUGGLED, [505], refused),
    ("HTTP/1.2", b"GET /first HTTP/1.2\r\n" + H + b"\r\n" + SMUGGLED, [505], refused),
    ("HTTP/1.10", b"GET /first HTTP/1.10\r\n" + H + b"\r\n" + SMUGGLED, [400], refused),
    ("lower-case version", b"GET /first http/1.1\r\n" + H + b"\r\n" + SMUGGLED, [400], refused),
    ("RTSP", b"GET /first RTSP/1.0\r\n" + H + b"\r\n" + SMUGGLED, [400], refused),
    ("two spaces", b"GET  /first HTTP/1.1\r\n" + H + b"\r\n" + SMUGGLED, [400], refused),
    ("tab for space", b"GET\t/first HTTP/1.1\r\n" + H + b"\r\n" + SMUGGLED, [400], refused),
    ("space after the version", b"GET /first HTTP/1.1 \r\n" + H + b"\r\n" + SMUGGLED, [400], refused),
    ("space in the target", b"GET /fi rst HTTP/1.1\r\n" + H + b"\r\n" + SMUGGLED, [400], refused),
    ("a second request in the line", b"GET /first HTTP/1.1 GET /smuggled HTTP/1.1\r\n" + H + b"\r\n", [400], refused),
    ("space before the method", b" GET /first HTTP/1.1\r\n" + H + b"\r\n" + SMUGGLED, [400], refused),
    ("lower-case method", b"get /first HTTP/1.1\r\n" + H + b"\r\n" + SMUGGLED, [501], refused),
    ("unknown method", b"BREW /first HTTP/1.1\r\n" + H + b"\r\n" + SMUGGLED, [501], refused),
    ("CONNECT", b"CONNECT a:443 HTTP/1.1\r\n" + H + b"\r\n" + SMUGGLED, [501], refused),
    ("TRACE", b"TRACE /first HTTP/1.1\r\n" + H + b"\r\n" + SMUGGLED, [501], refused),
    ("fragment", b"GET /first#x HTTP/1.1\r\n" + H + b"\r\n" + SMUGGLED, [400], refused),
    ("broken escape", b"GET /first%zz HTTP/1.1\r\n" + H + b"\r\n" + SMUGGLED, [400], refused),
    ("escaped NUL", b"GET /first%00 HTTP/1.1\r\n" + H + b"\r\n" + SMUGGLED, [400], refused),
    ("escape that is not UTF-8", b"GET /%ff HTTP/1.1\r\n" + H + b"\r\n" + SMUGGLED, [400], refused),
    ("non-ASCII target", b"GET /\xe4 HTTP/1.1\r\n" + H + b"\r\n" + SMUGGLED, [400], refused),
    ("relative target", b"GET first HTTP/1.1\r\n" + H + b"\r\n" + SMUGGLED, [400], refused),
    ("asterisk for GET", b"GET * HTTP/1.1\r\n" + H + b"\r\n" + SMUGGLED, [400], refused),
    ("asterisk for OPTIONS", b"OPTIONS * HTTP/1.1\r\n" + H + b"\r\n", [200], [("OPTIONS", "*", b"")]),
    ("TLS hello on a plain port", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + SMUGGLED, [400], refused),
    # hosts
    ("no Host", GET + b"\r\n" + SMUGGLED, [400], refused),
    ("no Host on HTTP/1.0", b"GET /first HTTP/1.0\r\n\r\n", [200], ok),
    ("two Hosts", GET + H + b"Host: b\r\n\r\n" + SMUGGLED, [400], refused),
    ("two Hosts alike", GET + H + H + b"\r\n" + SMUGGLED, [400], refused),
    ("two Hosts on HTTP/1.0", b"GET /first HTTP/1.0\r\n" + H + H + b"\r\n" + SMUGGLED, [400], refused),
    ("Host with a path", GET + b"Host: a/b\r\n\r\n" + SMUGGLED, [400], refused),
    ("Host with user info", GET + b"Host: u@a\r\n\r\n" + SMUGGLED, [400], refused),
    ("Host list", GET + b"Host: a b\r\n\r\n" + SMUGGLED, [400], refused),
    ("Host empty", GET + b"Host:\r\n\r\n", [200], ok),
    ("Host IPv6", GET + b"Host: [::1]:8042\r\n\r\n", [200], ok),
    ("absolute form", b"GET http://a/first HTTP/1.1\r\n" + H + b"\r\n", [200], ok),
    ("absolute form, other Host", b"GET http://b/first HTTP/1.1\r\n" + H + b"\r\n" + SMUGGLED, [400], refused),
    ("absolute form, no Host", b"GET http://a/first HTTP/1.1\r\n\r\n" + SMUGGLED, [400], refused),
    ("absolute form, user info", b"GET http://u@a/first HTTP/1.1\r\n" + H + b"\r\n" + SMUGGLED, [400], refused),
    ("absolute form, other scheme", b"GET ftp://a/first HTTP/1.1\r\n" + H + b"\r\n" + SMUGGLED, [400], refused),
    # chunks
    ("chunked", POST + TE + b"\r\n5\r\nhello\r\n1\r\n!\r\n0\r\n\r\n" + NEXT, [200, 200], posted(b"hello!")),
    ("chunk size in hex", POST + TE + b"\r\nA\r\n0123456789\r\n00\r\n\r\n" + NEXT, [200, 200], posted(b"0123456789")),
    ("chunk size negative", POST + TE + b"\r\n-1\r\n" + SMUGGLED, [400], refused),
    ("chunk size plus", POST + TE + b"\r\n+5\r\nhello\r\n0\r\n\r\n" + SMUGGLED, [400], refused),
    ("chunk size 0x", POST + TE + b"\r\n0x5\r\nhello\r\n0\r\n\r\n" + SMUGGLED, [400], refused),
    ("chunk size empty", POST + TE + b"\r\n\r\nhello\r\n0\r\n\r\n" + SMUGGLED, [400], refused),
    ("chunk size with space before", POST + TE + b"\r\n 5\r\nhello\r\n0\r\n\r\n" + SMUGGLED, [400], refused),
    ("chunk size with space after", POST + TE + b"\r\n5 \r\nhello\r\n0\r\n\r\n" + SMUGGLED, [400], refused),
    ("chunk size underscore", POST + TE + b"\r\n1_0\r\nhello\r\n0\r\n\r\n" + SMUGGLED, [400], refused),
    ("chunk size past 64 bits", POST + TE + b"\r\n10000000000000005\r\nhello\r\n0\r\n\r\n" + SMUGGLED, [400], refused),
    ("chunk size past the limit", POST + TE + b"\r\nFFFFFFFFFFFFFF\r\n" + SMUGGLED, [413], refused),
    ("chunk longer than its size", POST + TE + b"\r\n3\r\nhello\r\n0\r\n\r\n" + SMUGGLED, [400], refused),
    ("chunk shorter than its size", POST + TE + b"\r\n6\r\nhello\r\n0\r\n\r\n" + SMUGGLED, [400], refused),
    ("chunk size ends in bare LF", POST + TE + b"\r\n5\nhello\r\n0\r\n\r\n" + SMUGGLED, [400], refused),
    ("chunk data ends in bare LF", POST + TE + b"\r\n5\r\nhello\n0\r\n\r\n" + SMUGGLED, [400], refused),
    ("chunk data ends in bare CR", POST + TE + b"\r\n5\r\nhello\r0\r\n\r\n" + SMUGGLED, [400], refused),
    ("last chunk ends in bare LF", POST + TE + b"\r\n0\r\n\n" + SMUGGLED, [400], refused),
    ("chunk extension is skipped", POST + TE + b"\r\n5;a=b\r\nhello\r\n0;c\r\n\r\n" + NEXT, [200, 200], posted(b"hello")),
    ("chunk extension with bare LF", POST + TE + b"\r\n5;a\nb\r\nhello\r\n0\r\n\r\n" + SMUGGLED, [400], refused),
    ("chunk extension with bare CR", POST + TE + b"\r\n5;a\rb\r\nhello\r\n0\r\n\r\n" + SMUGGLED, [400], refused),
    ("chunk extension too long", POST + TE + b"\r\n5;" + b"a" * 300 + b"\r\nhello\r\n0\r\n\r\n" + SMUGGLED, [400], refused),
    ("trailers are dropped", POST + TE + b"\r\n0\r\nContent-Length: 9\r\nX: y\r\n\r\n" + NEXT, [200, 200], posted(b"")),
    ("trailer folded", POST + TE + b"\r\n0\r\nX: y\r\n z\r\n\r\n" + SMUGGLED, [400], refused),
    ("trailer without colon", POST + TE + b"\r\n0\r\nGET /smuggled HTTP/1.1\r\n\r\n", [400], refused),
    ("trailer with NUL", POST + TE + b"\r\n0\r\nX: \0\r\n\r\n" + SMUGGLED, [400], refused),
    ("body ends early", POST + b"Content-Length: 5\r\n\r\nhel", [400], refused),
    ("chunks end early", POST + TE + b"\r\n5\r\nhel", [400], refused),
    ("head ends early", GET + H, [400], refused),
    # expectations and upgrades
    ("unknown expectation", POST + b"Expect: 200-ok\r\nContent-Length: 0\r\n\r\n" + SMUGGLED, [417], refused),
    ("upgrade to h2c is ignored", GET + H + b"Connection: Upgrade\r\nUpgrade: h2c\r\n\r\n" + NEXT, [200, 200], [*ok, ("GET", "/next", b"")]),
    ("WebSocket with a body", GET + H + b"Connection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 36\r\n\r\n" + SMUGGLED, [400], refused),
    ("WebSocket of another version", GET + H + b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 12\r\n\r\n" + SMUGGLED, [426], refused),
    ("close wins over keep-alive", GET + H + b"Connection: close\r\nConnection: keep-alive\r\n\r\n" + SMUGGLED, [200], ok),
]  # fmt: skip

ROWS = [pytest.param(*row[1:], id=row[0]) for row in TABLE]


def check(raw, answers_of, statuses):
    methods = ["GET"] * len(statuses)
    answers, rest = answers_of(raw, methods)
    assert [answer.status for answer in answers] == statuses
    assert rest == b""
    if statuses[-1] >= 400:
        assert answers[-1].headers[b"connection"] == b"close"
        assert answers[-1].headers[b"content-type"] == b"application/problem+json"
    return answers


@pytest.mark.parametrize(("wire", "statuses", "seen"), ROWS)
async def test_sent_whole(wire, statuses, seen, connect, recorder, answers_of, autojump_clock):
    peer = await connect(recorder)
    check(await peer.exchange(wire), answers_of, statuses)
    assert recorder.seen == seen


@pytest.mark.parametrize(("wire", "statuses", "seen"), ROWS)
async def test_sent_a_byte_at_a_time(wire, statuses, seen, connect, recorder, answers_of, mock_clock):
    peer = await connect(recorder)
    check(await peer.exchange(wire, range(1, len(wire))), answers_of, statuses)
    assert recorder.seen == seen


async def test_sent_over_a_real_socket(listening, recorder, answers_of):
    """The raw socket path (sendmsg, lingering close): no answer is lost to a reset."""

    def talk(port: int, wire: bytes) -> bytes:
        with socket.create_connection(("127.0.0.1", port), timeout=20) as sock:
            sock.sendall(wire)
            sock.shutdown(socket.SHUT_WR)
            data = b""
            while piece := sock.recv(65536):
                data += piece
            return data

    async with listening(recorder) as (_, port):
        for _, wire, statuses, seen in TABLE:
            recorder.seen.clear()
            raw = await trio.to_thread.run_sync(talk, port, wire)
            check(raw, answers_of, statuses)
            assert recorder.seen == seen
