"""An HTTP proxy in front of a real object server that does to chosen requests what servers do on bad days."""

from __future__ import annotations

import http.client
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "server", "date"}


@dataclass(frozen=True)
class Request:
    """What a client asked for."""

    method: str
    path: str
    range: str | None
    body: bytes

    @property
    def is_part(self) -> bool:
        return self.method == "PUT" and "uploadId=" in self.path


@dataclass
class Answer:
    """What the server said, for a fault to change."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes

    def header(self, name: str, value: str) -> None:
        self.headers = [(n, v) for n, v in self.headers if n.lower() != name.lower()] + [(name, value)]


Fault = Callable[["Exchange"], None]


@dataclass
class Exchange:
    """One request, and what a fault may do about it; nobody answers when it does nothing."""

    proxy: FaultyStore
    handler: BaseHTTPRequestHandler
    request: Request

    def forward(self) -> Answer:
        """Have the real server do it."""
        return self.proxy.ask(self.request, self.handler)

    def answer(self, answer: Answer, *, of_body: int | None = None) -> None:
        """Answer; of the body only the first ``of_body`` bytes, after which the connection breaks."""
        handler = self.handler
        handler.send_response_only(answer.status)
        said = str(len(answer.body))
        if self.request.method == "HEAD":
            said = next((v for n, v in answer.headers if n.lower() == "content-length"), said)
        for name, value in answer.headers:
            if name.lower() not in _HOP_BY_HOP:
                handler.send_header(name, value)
        handler.send_header("Content-Length", said)
        handler.end_headers()
        if self.request.method != "HEAD":
            handler.wfile.write(answer.body[:of_body])
        if of_body is not None:
            self.hang_up()

    def hang_up(self) -> None:
        """Close the connection without another word."""
        self.handler.close_connection = True
        with suppress(OSError):
            self.handler.connection.shutdown(socket.SHUT_RDWR)


# ---------------------------------------------------------------- faults


def status(code: int, name: str) -> Fault:
    """The server says no, with an S3 error of that name."""
    body = f"<?xml version='1.0'?><Error><Code>{name}</Code><Message>as told</Message></Error>".encode()
    return lambda exchange: exchange.answer(Answer(code, [("Content-Type", "application/xml")], body))


def half_a_body(exchange: Exchange) -> None:
    """The connection breaks in the middle of the answer."""
    answer = exchange.forward()
    exchange.answer(answer, of_body=len(answer.body) // 2)


def half_a_body_called_whole(exchange: Exchange) -> None:
    """Half the bytes, with a length that agrees with them."""
    answer = exchange.forward()
    answer.body = answer.body[: len(answer.body) // 2]
    exchange.answer(answer)


def whole_object_for_a_range(data: bytes) -> Fault:
    """A server, or a cache before it, that does not know ranges."""
    return lambda exchange: exchange.answer(Answer(200, [("ETag", '"whole"')], data))


def another_range(exchange: Exchange) -> None:
    """The right number of bytes from somewhere else."""
    answer = exchange.forward()
    said = next((v for n, v in answer.headers if n.lower() == "content-range"), "bytes 0-0/1")
    span, total = said.removeprefix("bytes ").split("/")
    first, last = (int(part) for part in span.split("-"))
    answer.header("Content-Range", f"bytes {first + 1}-{last + 1}/{total}")
    exchange.answer(answer)


def wrong_bytes(exchange: Exchange) -> None:
    """As many bytes as asked for; others."""
    answer = exchange.forward()
    answer.body = bytes(byte ^ 0x55 for byte in answer.body)
    exchange.answer(answer)


def damaged_request(exchange: Exchange) -> None:
    """What is sent arrives changed."""
    request = exchange.request
    body = bytes(byte ^ 0x55 for byte in request.body)
    exchange.answer(exchange.proxy.ask(replace(request, body=body), exchange.handler))


def not_http(exchange: Exchange) -> None:
    """What a port that somebody else has may say."""
    exchange.handler.wfile.write(b"220 mail.example ESMTP\r\n")
    exchange.hang_up()


def silence(exchange: Exchange) -> None:
    """Nothing, until the client gives up or the proxy closes."""
    exchange.proxy.closing.wait(60)
    exchange.hang_up()


def drip(exchange: Exchange) -> None:
    """A byte now and then: never silent long enough to look dead."""
    answer = exchange.forward()
    handler = exchange.handler
    handler.send_response_only(answer.status)
    for name, value in answer.headers:
        if name.lower() not in _HOP_BY_HOP:
            handler.send_header(name, value)
    handler.send_header("Content-Length", str(len(answer.body)))
    handler.end_headers()
    with suppress(OSError):
        for place in range(len(answer.body)):
            handler.wfile.write(answer.body[place : place + 1])
            handler.wfile.flush()
            if exchange.proxy.closing.wait(0.1):
                break
    exchange.hang_up()


def after(count: int, fault: Fault) -> Fault:
    """``fault``, once so many such requests went well."""
    left = iter(range(count))
    return lambda exchange: (
        fault(exchange) if next(left, None) is None else exchange.answer(exchange.forward())
    )


def lost_answer(exchange: Exchange) -> None:
    """The server does it; nobody hears of it."""
    exchange.forward()
    exchange.hang_up()


def hang_up(exchange: Exchange) -> None:
    """The connection breaks before an answer, and nothing was done."""
    exchange.hang_up()


# ---------------------------------------------------------------- the proxy


@dataclass
class _Rule:
    matches: Callable[[Request], bool]
    fault: Fault
    times: int


@dataclass
class FaultyStore:
    """The proxy; ``endpoint`` is what a client is given instead of the real one."""

    upstream: tuple[str, int]
    port: int = 0
    scheme: str = "http"
    requests: list[Request] = field(default_factory=list)
    """All that came in; bodies left out."""
    closing: threading.Event = field(default_factory=threading.Event)
    at_once_max: int = 0
    """How many requests the real server had together."""
    breaks_puts_after: int | None = None
    """Close the connection once this many bytes of the next request's body were read."""
    _rules: list[_Rule] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _under_way: int = 0

    @property
    def endpoint(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}"

    def on(self, fault: Fault, matches: Callable[[Request], bool], times: int = 1 << 30) -> None:
        """Do ``fault`` to the next ``times`` requests that match."""
        with self._lock:
            self._rules.append(_Rule(matches, fault, times))

    def on_method(self, fault: Fault, method: str, times: int = 1 << 30) -> None:
        self.on(fault, lambda request: request.method == method, times)

    def behave(self) -> None:
        """No more faults; what was asked so far is forgotten."""
        with self._lock:
            self._rules.clear()
            self.requests.clear()
            self.at_once_max = 0
            self.breaks_puts_after = None

    @contextmanager
    def _counted(self) -> Iterator[None]:
        with self._lock:
            self._under_way += 1
            self.at_once_max = max(self.at_once_max, self._under_way)
        try:
            yield
        finally:
            with self._lock:
                self._under_way -= 1

    def fault_for(self, request: Request) -> Fault | None:
        with self._lock:
            self.requests.append(Request(request.method, request.path, request.range, b""))
            for rule in self._rules:
                if rule.times and rule.matches(request):
                    rule.times -= 1
                    return rule.fault
        return None

    def ask(self, request: Request, handler: BaseHTTPRequestHandler) -> Answer:
        with self._counted():
            return self._ask(request, handler)

    def _ask(self, request: Request, handler: BaseHTTPRequestHandler) -> Answer:
        connection = http.client.HTTPConnection(*self.upstream, timeout=30)
        try:
            connection.putrequest(request.method, request.path, skip_host=True, skip_accept_encoding=True)
            for name, value in handler.headers.items():
                if name.lower() in {"connection", "content-length"} or (
                    name.lower() == "range" and not request.range
                ):
                    continue
                connection.putheader(name, value)
            connection.putheader("Content-Length", str(len(request.body)))
            connection.endheaders(request.body or None)
            response = connection.getresponse()
            return Answer(response.status, response.getheaders(), response.read())
        finally:
            connection.close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: ClassVar[FaultyStore]

    def _serve(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        stop = self.proxy.breaks_puts_after
        if stop is not None and length > stop:
            self.rfile.read(stop)
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        body = self.rfile.read(length)
        request = Request(self.command, self.path, self.headers.get("Range"), body)
        exchange = Exchange(self.proxy, self, request)
        fault = self.proxy.fault_for(request)
        with suppress(ConnectionError, TimeoutError):  # the client gave up
            if fault is None:
                exchange.answer(exchange.forward())
            else:
                fault(exchange)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _serve  # noqa: N815

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # a client that hangs up is what many of these tests are about


@contextmanager
def faulty_store(upstream_port: int, tls: ssl.SSLContext | None = None) -> Iterator[FaultyStore]:
    """A proxy on 127.0.0.1 before the server on ``upstream_port``."""
    proxy = FaultyStore(("127.0.0.1", upstream_port), scheme="https" if tls else "http")
    handler = type("Handler", (_Handler,), {"proxy": proxy})
    server = _Server(("127.0.0.1", 0), handler)
    proxy.port = server.server_address[1]
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        proxy.closing.set()
        server.shutdown()
        server.server_close()
        thread.join()
