"""Requests per second count only when the bytes were right."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import pytest
from benchmarks.http_load import FRAMES_ACCEPT, HttpLoad, Target, run_http_load

FRAME = bytes(range(256)) * 512
DIGEST = hashlib.sha256(FRAME).hexdigest()
HEAD = b"Content-Type: application/octet-stream\r\n\r\n"
MULTIPART = b"--xyz\r\n" + HEAD + FRAME + b"\r\n--xyz--\r\n"

Serve = Callable[[Callable[[Any], None]], int]


@pytest.fixture
def serve() -> Iterator[Serve]:
    servers = []

    def start(answer: Callable[[Any], None]) -> int:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                answer(self)

            def log_message(self, *_: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        servers.append(server)
        return server.server_address[1]

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def send(handler: Any, body: bytes, *, status: int = 200, multipart: bool = True, chunks: int = 0) -> None:
    handler.send_response(status)
    kind = "multipart/related; boundary=xyz" if multipart else "application/octet-stream"
    handler.send_header("Content-Type", kind)
    if not chunks:
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)
        return
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    for start in range(0, len(body), chunks):
        piece = body[start : start + chunks]
        handler.wfile.write(b"%x\r\n" % len(piece) + piece + b"\r\n")
    handler.wfile.write(b"0\r\n\r\n")


def ask(port: int, *, clients: int = 2, count: int = 6) -> Any:
    target = Target("/frames/1", accept=FRAMES_ACCEPT, size=len(FRAME), digest=DIGEST)
    return run_http_load(HttpLoad("127.0.0.1", port, clients=clients, count=count, seconds=20.0), [target])


@pytest.mark.parametrize("chunks", [0, 1000, 65536])
@pytest.mark.parametrize("multipart", [True, False])
def test_right_answers_count(serve: Serve, chunks: int, multipart: bool) -> None:
    body = MULTIPART if multipart else FRAME
    report = ask(serve(lambda handler: send(handler, body, multipart=multipart, chunks=chunks)))
    assert (report.completed, report.compared, report.failures) == (12, 2, {})
    assert report.body_bytes == 12 * len(body)


def test_wrong_bytes_are_found(serve: Serve) -> None:
    wrong = MULTIPART.replace(FRAME, FRAME[:-1] + b"\x00")
    report = ask(serve(lambda handler: send(handler, wrong)))
    assert report.failures == {"wrong bytes": 2}


def test_short_bodies_and_error_statuses_do_not_count(serve: Serve) -> None:
    report = ask(serve(lambda handler: send(handler, b"short")))
    assert (report.completed, report.failures) == (0, {"body too short": 12})
    report = ask(serve(lambda handler: send(handler, MULTIPART, status=404)))
    assert (report.completed, report.failures) == (0, {"status 404": 12})


def test_a_server_that_hangs_up_is_a_failure_not_a_wait(serve: Serve) -> None:
    def cut(handler: Any) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(FRAME)))
        handler.end_headers()
        handler.wfile.write(FRAME[:100])
        handler.close_connection = True

    report = ask(serve(cut))
    assert report.completed == 0
    assert sum(report.failures.values()) == 12


@pytest.mark.parametrize("framing", ["length", "chunks", "a chunk longer than the buffer", "close"])
@pytest.mark.parametrize("kept", [True, False])
def test_a_body_has_its_length_however_it_is_framed(serve: Serve, framing: str, kept: bool) -> None:
    long = b"x" * (5 << 20)

    def answer(handler: Any) -> None:
        if framing == "close":
            handler.send_response(200)
            handler.send_header("Connection", "close")
            handler.end_headers()
            handler.wfile.write(long)
            handler.close_connection = True
            return
        chunks = {"length": 0, "chunks": 70_001, "a chunk longer than the buffer": 3 << 20}[framing]
        send(handler, long, multipart=False, chunks=chunks)

    load = HttpLoad("127.0.0.1", serve(answer), clients=1, count=3, seconds=30)
    report = run_http_load(load, [Target("/a", size=len(long), kept=kept)])
    assert (report.completed, report.failures, report.body_bytes) == (3, {}, 3 * len(long))
    assert run_http_load(load, [Target("/a", size=len(long) + 1, kept=kept)]).failures == {
        "body too short": 3
    }
