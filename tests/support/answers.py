"""Multipart answers, taken apart."""

from __future__ import annotations

from email import message_from_bytes

import httpx


def parts_of(answer: httpx.Response) -> list[tuple[dict[str, str], bytes]]:
    """The parts of a multipart answer, cut by hand: mail parsers change line ends."""
    kind = answer.headers["content-type"]
    boundary = message_from_bytes(f"content-type: {kind}\r\n\r\n".encode()).get_boundary().encode()
    body = answer.content
    assert body.startswith(b"--" + boundary + b"\r\n")
    assert body.endswith(b"\r\n--" + boundary + b"--\r\n")
    body = b"\r\n" + body[: -len(b"--\r\n")]
    found = []
    for piece in body.split(b"\r\n--" + boundary)[1:-1]:
        head, _, content = piece.removeprefix(b"\r\n").partition(b"\r\n\r\n")
        fields = dict(line.split(": ", 1) for line in head.decode().split("\r\n"))
        assert int(fields["Content-Length"]) == len(content)
        found.append((fields, content))
    return found
