"""The HTTP servers of one worker: one for each TLS certificate, all of them running the same application."""

from __future__ import annotations

import math
import os
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

import trio
from prometheus_client.metrics_core import Metric
from starlette.routing import BaseRoute

from hounsfield.archive.app.metrics import prometheus_text
from hounsfield.archive.app.resources import Resources
from hounsfield.archive.app.tier_options import tried_rules
from hounsfield.archive.config import Config
from hounsfield.archive.engine.engine import Engine
from hounsfield.archive.security.bearer import BearerTokens
from hounsfield.archive.web.application import create_app
from hounsfield.archive.web.http.limits import HttpLimits
from hounsfield.archive.web.http.records import RequestRecord
from hounsfield.archive.web.http.server import HttpServer
from hounsfield.archive.web.http.tls import server_context
from hounsfield.archive.web.limits import WebLimits, WebSettings

_Serve = Callable[..., Awaitable[None]]


class HttpService:
    """The servers and what they share: application, tokens, figures."""

    def __init__(
        self,
        resources: Resources,
        engine: Engine,
        more_metrics: Callable[[], Iterable[Metric]] = tuple,
        plugins: Mapping[str, Sequence[BaseRoute]] | None = None,
    ) -> None:
        """``more_metrics``: what ``/metrics`` shows besides the scoreboard. ``plugins``: their routes."""
        config = resources.config
        self._board = resources.board
        self._directory = resources.boot.directory
        self._reserve = config.storage.disk_reserve_bytes
        token_file = config.http.bearer_token_file
        self._tokens = BearerTokens(Path(token_file)) if token_file else None
        self._connections = self._board.cell("worker_connections")
        self._counted = 0
        self._responses = [self._board.cell(f"http_responses_total.{number}xx") for number in range(1, 6)]
        self._closing = trio.Event()
        app = create_app(
            engine,
            settings=WebSettings(
                base_url=config.http.base_url,
                trusted_proxies=config.http.trusted_proxies,
                cors_origins=config.http.cors_origins,
                deletion_by=config.http.deletion_by,
                tiering_by=config.http.tiering_by,
                tier_rules=partial(tried_rules, tiers=[tier.name for tier in config.tiers]),
                limits=WebLimits(
                    uploads_max=config.http.uploads_max,
                    upload_wait_s=config.ingest.memory_wait_seconds,
                    feeds_max=config.http.feeds_max,
                ),
            ),
            uploads_open=self._board.cell("http_uploads"),
            feeds_open=self._board.cell("http_feeds"),
            closing=self._closing,
            metrics=(lambda: prometheus_text(self._board, more_metrics()))
            if config.metrics.enabled
            else None,
            health=self._health,
            tokens=self._tokens,
            plugins=plugins,
        )
        limits = http_limits(config, resources.boot.workers)
        groups: dict[tuple[str, str], list[socket.socket]] = {}
        for fd, sock in resources.listeners:
            if fd.kind == "http":
                entry = config.http.listeners[fd.index]
                groups.setdefault((entry.tls_certificate, entry.tls_key), []).append(sock)
        self._servers = [
            (
                HttpServer(
                    app,
                    limits,
                    ssl_context=_tls(*files),
                    accept_gate=self._accept_gate,
                    on_request=self._on_request,
                ),
                socks,
                trio.Event(),
            )
            for files, socks in groups.items()
        ]

    def listeners(self) -> list[_Serve]:
        """What serves; each reports when it accepts."""

        def serving(
            server: HttpServer, socks: list[socket.socket], done: trio.Event
        ) -> Callable[..., Awaitable[None]]:
            async def serve(task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
                try:
                    await server.serve(socks, task_status=task_status)
                finally:
                    done.set()

            return serve

        return [serving(*each) for each in self._servers]

    async def drain(self) -> None:
        """Stop accepting; return when every request in flight is answered."""
        self._closing.set()
        for server, _, _ in self._servers:
            server.drain()
        for _, _, done in self._servers:
            await done.wait()

    def reload(self) -> None:
        """Read the bearer tokens anew. Raises TokenFileError, and goes on with the old ones."""
        if self._tokens is not None:
            self._tokens.reload()

    def figures(self) -> Mapping[str, int]:
        """For the scoreboard."""
        every = [server.statistics() for server, _, _ in self._servers]
        self._count_connections(sum(each.connections_open for each in every))
        return {
            "http_connections": sum(each.connections_open for each in every),
            "http_requests_total": sum(each.requests_total for each in every),
            "http_bytes_total.in": sum(each.bytes_in for each in every),
            "http_bytes_total.out": sum(each.bytes_out for each in every),
            "http_refused_total": sum(each.refused for each in every),
            "http_errors_total.timeout": sum(each.timed_out for each in every),
            "http_errors_total.malformed": sum(each.parse_errors for each in every),
            "http_errors_total.application": sum(each.app_errors for each in every),
        }

    def _accept_gate(self) -> float:
        self._count_connections(sum(server.statistics().connections_open for server, _, _ in self._servers))
        return self._board.accept_delay()

    def _count_connections(self, now: int) -> None:
        """Beside those of DICOM, which the listener counts itself."""
        self._connections.add(now - self._counted)
        self._counted = now

    def _on_request(self, record: RequestRecord) -> None:
        if 100 <= record.status < 600:
            self._responses[record.status // 100 - 1].add()
            self._board.observe("http_request_seconds", record.seconds)

    def _health(self) -> Mapping[str, bool]:
        """``/healthz/ready``: this worker accepts, and there is room to store."""
        disk = os.statvfs(self._directory)
        return {
            "accepting": bool(self._board.own("worker_ready")),
            "disk": disk.f_bavail * disk.f_frsize > self._reserve,
        }


def http_limits(config: Config, workers: int) -> HttpLimits:
    """The servers' limits. Connections are the archive's, shared out, as accepting is balanced."""
    http = config.http
    return HttpLimits(
        header_bytes_max=http.header_bytes_max,
        header_s=http.header_seconds,
        first_byte_s=http.header_seconds,
        keep_alive_s=http.keep_alive_seconds,
        body_idle_s=http.body_idle_seconds,
        write_stall_s=http.write_stall_seconds,
        grace_s=config.archive.drain_seconds,
        body_bytes_max=http.body_bytes_max,
        connections_max=math.ceil(http.connections_max / workers),
    )


def _tls(certificate: str, key: str) -> ssl.SSLContext | None:
    return server_context(Path(certificate), Path(key)) if certificate else None
