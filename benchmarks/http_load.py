"""An HTTP load generator for lists of URLs: one process per client, keep-alive, one request at a time.

Requests are built once; bodies are received into one reused buffer and judged by length. Every status and
every length is checked; a sample of the bodies is compared byte for byte (by digest) with what was stored.
Bodies too long to be kept (a whole series) are counted as they come.
Answers framed by Content-Length, by chunked coding, or by a close that is announced are understood (RFC 9112
6.3), others are failures. What a close frames may have been cut: such a target needs its size.

    python -m benchmarks.http_load http://127.0.0.1:8042/dicom-web/... [--clients 8] [--seconds 5]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import socket
import sys
import time
from dataclasses import asdict, dataclass
from urllib.parse import urlsplit

from benchmarks.figures import due, together
from benchmarks.processes import Fleet, worker_input, worker_ready

FRAMES_ACCEPT = 'multipart/related; type="application/octet-stream"'
RESPONSE_TIMEOUT_SECONDS = 60.0
BUFFER_BYTES = 2 * 1024 * 1024
# One body in so many is compared with what was stored; the first of each client always is.
SAMPLE = 40


@dataclass(frozen=True, slots=True)
class Target:
    """One URL. `digest` is the sha256 of the payload (of a multipart body: of its first part), `size` its
    length. `coding`: the Accept-Encoding that is sent, none when it is empty. `kept` False: the body is read
    and not kept, its length is all that is judged.
    """

    path: str
    accept: str = "*/*"
    size: int | None = None
    digest: str | None = None
    coding: str = ""
    kept: bool = True


@dataclass(frozen=True, slots=True)
class HttpLoad:
    """Who asks how much of whom. A client stops after `count` requests or `seconds`, whichever comes
    first.
    """

    host: str
    port: int
    clients: int = 1
    seconds: float = 5.0
    count: int = 10_000_000
    in_order: bool = False  # as a viewer scrolls; otherwise at random
    interval_s: float = 0.0  # a request is due so long after the one before, and timed from when it is due
    untimed_s: float = 0.0  # what was asked for so early is not counted


@dataclass(frozen=True, slots=True)
class HttpReport:
    """What came back. A request counts in `completed` when status and length were right, and the sample
    agreed.
    """

    completed: int
    compared: int
    failures: dict[str, int]
    seconds: float
    rate: float
    p50_ms: float
    p99_ms: float
    worst_ms: float
    body_bytes: int
    bytes_per_second: float


class AnswerError(Exception):
    """An answer that cannot be understood or was cut."""


class Client:
    """A keep-alive connection that reopens when the server closes it."""

    def __init__(self, host: str, port: int) -> None:
        self._address = (host, port)
        self._buffer = bytearray(BUFFER_BYTES)
        self._view = memoryview(self._buffer)
        self._socket: socket.socket | None = None

    def get(self, request: bytes) -> tuple[int, memoryview, bytes]:
        """Sends a request, returns status, body (a view, valid until the next call) and the header block."""
        sock, head, have = self._asked(request)
        lower = head.lower()
        start = len(head) + 2
        length = _header(lower, b"content-length")
        if length is not None:
            stop = start + int(length)
            self._reserve(stop)
            while have < stop:
                have += self._receive(sock, have, stop)
            body = self._view[start:stop]
        elif _header(lower, b"transfer-encoding") == b"chunked":
            body = self._chunked(sock, start, have)
        elif _header(lower, b"connection") == b"close":
            while got := sock.recv_into(self._view[have:]):
                have += got
                if have == len(self._buffer):
                    self._reserve(2 * have)
            body = self._view[start:have]
        else:
            raise AnswerError("neither Content-Length nor chunked nor closed")
        if _header(lower, b"connection") == b"close":
            self.close()
        return int(head[9:12]), body, head

    def drain(self, request: bytes) -> tuple[int, int]:
        """Sends a request and reads its answer without keeping it; returns status and length of the body."""
        sock, head, have = self._asked(request)
        lower = head.lower()
        start = len(head) + 2
        length = _header(lower, b"content-length")
        if length is not None:
            total = int(length)
            self._skip(sock, total - (have - start))
        elif _header(lower, b"transfer-encoding") == b"chunked":
            total = self._chunks_skipped(sock, start, have)
        elif _header(lower, b"connection") == b"close":
            total = have - start
            while got := sock.recv_into(self._view):
                total += got
        else:
            raise AnswerError("neither Content-Length nor chunked nor closed")
        if _header(lower, b"connection") == b"close":
            self.close()
        return int(head[9:12]), total

    def _asked(self, request: bytes) -> tuple[socket.socket, bytes, int]:
        """The socket, the header block, and how many bytes of the answer are in the buffer."""
        if self._socket is None:
            self._socket = socket.create_connection(self._address, timeout=RESPONSE_TIMEOUT_SECONDS)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock = self._socket
        sock.sendall(request)
        have = 0
        while (end := self._buffer.find(b"\r\n\r\n", 0, have)) < 0:
            have += self._receive(sock, have)
        return sock, bytes(self._view[: end + 2]), have

    def _skip(self, sock: socket.socket, left: int) -> None:
        while left > 0:
            left -= self._receive(sock, 0, min(left, len(self._buffer)))

    def _chunks_skipped(self, sock: socket.socket, read: int, have: int) -> int:
        total = 0
        while True:
            while (line := self._buffer.find(b"\r\n", read, have)) < 0:
                have += self._receive(sock, have)
            size = int(bytes(self._view[read:line]).split(b";")[0], 16)
            read = line + 2
            total += size
            left = size + 2 - (have - read)
            if left > 0:
                self._skip(sock, left)
                read = have = 0
            else:
                read += size + 2
            if read == have:
                read = have = 0
            if size == 0:
                return total

    def close(self) -> None:
        """Closes the connection; the next get opens another."""
        if self._socket:
            self._socket.close()
            self._socket = None

    def _chunked(self, sock: socket.socket, start: int, have: int) -> memoryview:
        """Reads chunks and moves their data together, in place, from `start` on."""
        write = read = start
        while True:
            while (line := self._buffer.find(b"\r\n", read, have)) < 0:
                have += self._receive(sock, have)
            size = int(bytes(self._view[read:line]).split(b";")[0], 16)
            read = line + 2
            self._reserve(read + size + 2)
            while have < read + size + 2:
                have += self._receive(sock, have)
            if size == 0:
                return self._view[start:write]
            self._view[write : write + size] = self._view[read : read + size]
            write += size
            read += size + 2

    def _receive(self, sock: socket.socket, have: int, stop: int | None = None) -> int:
        if have == len(self._buffer):
            self._reserve(2 * have)
        got = sock.recv_into(self._view[have : stop or len(self._buffer)])
        if got == 0:
            self.close()
            raise AnswerError("connection closed inside an answer")
        return got

    def _reserve(self, size: int) -> None:
        if size > len(self._buffer):
            bigger = bytearray(2 * size)
            bigger[: len(self._buffer)] = self._buffer
            self._buffer = bigger
            self._view = memoryview(bigger)


def payload(body: memoryview, head: bytes) -> memoryview:
    """The bytes asked for: of a multipart body the first part's content, of any other the body itself."""
    content_type = _header(head.lower(), b"content-type") or b""
    if not content_type.startswith(b"multipart/"):
        return body
    text = bytes(body[:4096])
    boundary = text[: text.index(b"\r\n", 2)].strip()
    start = text.index(b"\r\n\r\n") + 4
    whole = bytes(body)
    return body[start : whole.index(b"\r\n" + boundary, start)]


def build_request(host: str, port: int, target: Target) -> bytes:
    """A GET, ready to send."""
    lines = [f"GET {target.path} HTTP/1.1", f"Host: {host}:{port}", f"Accept: {target.accept}"]
    if target.coding:
        lines.append(f"Accept-Encoding: {target.coding}")
    lines += ["", ""]
    return "\r\n".join(lines).encode()


def run_http_load(load: HttpLoad, targets: list[Target]) -> HttpReport:
    """Runs the load and returns its report. Failures are counted, never hidden."""
    if not targets:
        raise ValueError("no URL to ask for")
    inputs = [{"load": asdict(load), "number": number} for number in range(load.clients)]
    with Fleet("benchmarks.http_load", inputs, shared=targets) as fleet:
        parts = fleet.run(timeout_seconds=load.seconds + 2 * RESPONSE_TIMEOUT_SECONDS)
    measured = together(parts)
    total = sum(part["bytes"] for part in parts)
    return HttpReport(
        **measured,
        completed=sum(len(part["latencies_ns"]) for part in parts),
        compared=sum(part["compared"] for part in parts),
        body_bytes=total,
        bytes_per_second=total / measured["seconds"] if measured["seconds"] else 0.0,
    )


def worker() -> None:
    """One client: reads what to do, says ready, waits for the others, asks, reports."""
    task, targets = worker_input()
    load = HttpLoad(**task["load"])
    order = list(range(len(targets)))
    if not load.in_order:
        random.Random(task["number"]).shuffle(order)
    requests = [build_request(load.host, load.port, target) for target in targets]
    client = Client(load.host, load.port)
    failures: dict[str, int] = {}
    latencies: list[int] = []
    total = compared = 0
    worker_ready()
    clock = time.monotonic_ns
    began = ended = time.monotonic()
    began_ns = clock()
    stop_ns = began_ns + int(load.seconds * 1e9)
    for index in range(load.count):
        number = order[(index + 37 * task["number"]) % len(order)]
        start = due(began_ns, index, load.interval_s)
        if start >= stop_ns:
            break
        target = targets[number]
        body, head = memoryview(b""), b""
        try:
            if target.kept:
                status, body, head = client.get(requests[number])
                length = len(body)
            else:
                status, length = client.drain(requests[number])
        except (OSError, AnswerError, ValueError) as error:
            client.close()
            _count(failures, f"lost: {error}")
            if sum(failures.values()) > 1000:
                break
            continue
        took = clock() - start
        problem = _wrong(target, status, length)
        looked = False
        if problem is None and target.digest and target.kept and index % SAMPLE == 0:
            problem, looked = _other_bytes(target.digest, body, head), True
        compared += looked
        if problem:
            _count(failures, problem)
            continue
        if start >= began_ns + int(load.untimed_s * 1e9):
            latencies.append(took)
        total += length
        ended = time.monotonic()
    client.close()
    result = {
        "failures": failures,
        "latencies_ns": latencies,
        "compared": compared,
        "bytes": total,
        "began": began,
        "ended": ended,
    }
    json.dump(result, sys.stdout)
    sys.stdout.write("\n")


def _wrong(target: Target, status: int, length: int) -> str | None:
    """What is wrong with an answer by its status and length, None when nothing is."""
    if status not in {200, 206}:
        return f"status {status}"
    if target.size is not None and length < target.size:
        return "body too short"
    return None


def _other_bytes(digest: str, body: memoryview, head: bytes) -> str | None:
    try:
        content = payload(body, head)
    except ValueError:
        return "malformed multipart"
    return None if hashlib.sha256(content).hexdigest() == digest else "wrong bytes"


def _count(failures: dict[str, int], name: str) -> None:
    failures[name] = failures.get(name, 0) + 1


def _header(lower: bytes, name: bytes) -> bytes | None:
    """A header's value in a lower-cased header block."""
    start = lower.find(b"\r\n" + name + b":")
    if start < 0:
        return None
    start += len(name) + 3
    return lower[start : lower.index(b"\r\n", start)].strip()


def main() -> None:
    """Asks for the given URLs (of one server) and prints the report as JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.http_load", description=__doc__)
    parser.add_argument("urls", nargs="+")
    parser.add_argument("--accept", default=FRAMES_ACCEPT)
    parser.add_argument("--clients", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=5.0)
    arguments = parser.parse_args()
    parts = [urlsplit(url) for url in arguments.urls]
    targets = [
        Target(path=part.path + (f"?{part.query}" if part.query else ""), accept=arguments.accept)
        for part in parts
    ]
    load = HttpLoad(
        host=parts[0].hostname or "127.0.0.1",
        port=parts[0].port or 80,
        clients=arguments.clients,
        seconds=arguments.seconds,
    )
    report = run_http_load(load, targets)
    print(json.dumps(asdict(report), indent=2))
    if report.failures:
        sys.exit(1)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        worker()
    else:
        main()
