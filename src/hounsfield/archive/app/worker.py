"""One worker process: ``python -m hounsfield.archive.app.worker --channel-fd N``, started by the supervisor.

It takes its configuration and secrets from the channel, builds the archive (:mod:`.build`), serves until
it is told to drain, and leaves when the supervisor does: the end of the channel drains it, and a thread
that watches the same socket ends the process even if its event loop hangs.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import trio

from hounsfield.archive.app.boot import Boot, Channel, ChannelClosed, receive_boot
from hounsfield.archive.app.lean_structlog import structlog
from hounsfield.archive.app.logs import describe, is_refusal, set_up_logs
from hounsfield.archive.app.resources import Resources, Services
from hounsfield.archive.app.scoreboard import Scoreboard, metrics_with
from hounsfield.archive.app.wakeups import Wakeups
from hounsfield.archive.engine.gate import SWITCH_SECONDS

Build = Callable[[Resources], AbstractAsyncContextManager[Services]]

EXIT_FAILED = 1
EXIT_ORPHANED = 3
# After the supervisor is gone: what drain_seconds allows, and then this much until the process ends itself.
ORPHAN_SECONDS_EXTRA = 5.0


def main(argv: list[str] | None = None, build: Build | None = None) -> int:
    """Run one worker to its end; the exit code. Tests give ``build``, in place of :func:`build_services`."""
    parser = argparse.ArgumentParser(prog="hounsfield worker", description="Started by `hounsfield serve`.")
    parser.add_argument("--channel-fd", type=int, required=True)
    options = parser.parse_args(argv)
    sys.setswitchinterval(SWITCH_SECONDS)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the supervisor decides; a terminal's Ctrl-C reaches it
    sock = socket.socket(fileno=options.channel_fd)
    sock.set_inheritable(False)
    gc.disable()  # imports make no garbage, and walking what they make takes a seventh of a start
    if build is None:
        from hounsfield.archive.app.build import build_services

        build = build_services  # imported while worker 0 recovers, or the supervisor does something else
    try:
        boot = receive_boot(sock)
    except ChannelClosed:  # the supervisor ended or gave up
        return EXIT_ORPHANED
    for fd in (boot.scoreboard_fd, boot.lock_fd, *boot.wakeup_fds, *(each.fd for each in boot.listeners)):
        os.set_inheritable(fd, False)
    set_up_logs(
        level=boot.config.logs.level, form=boot.config.logs.format, salt=boot.log_salt, worker=boot.worker
    )
    _watch_supervisor(sock, boot.config.archive.drain_seconds + ORPHAN_SECONDS_EXTRA)
    return trio.run(_run, boot, sock, build)


async def _run(boot: Boot, sock: socket.socket, build: Build) -> int:
    log = structlog.get_logger()
    channel = Channel(sock)
    board = Scoreboard(boot.scoreboard_fd, worker=boot.worker, metrics=metrics_with(boot.scoreboard_tiers))
    resources = Resources(
        boot=boot,
        board=board,
        wakeups=Wakeups(boot.wakeup_fds, boot.worker),
        tell_supervisor=channel.send,
        listeners=tuple((each, socket.socket(fileno=each.fd)) for each in boot.listeners),
    )
    try:
        await _serve(resources, channel, build)
    except BaseExceptionGroup as group:
        _, failed = group.split(ChannelClosed)
        if failed is None:
            return EXIT_ORPHANED
        if failed.split(Exception)[1] is not None:
            raise
        keys = describe(failed)
    except ChannelClosed:
        return EXIT_ORPHANED
    except Exception as error:  # noqa: BLE001 - the last place to say why
        keys = describe(error)
    else:
        return 0
    log.error("the worker failed", **keys)
    with contextlib.suppress(ChannelClosed):
        await channel.send({"type": "failed", "error": keys.get("error") or _brief(keys)})
    return EXIT_FAILED


async def _serve(resources: Resources, channel: Channel, build: Build) -> None:
    async with build(resources) as services, trio.open_nursery() as nursery:
        nursery.start_soon(resources.wakeups.run)
        for run in services.background:
            nursery.start_soon(run)
        for serve in services.listeners:
            await nursery.start(serve)
        gc.freeze()  # what start-up made lives as long as the process: do not walk it, now or later
        gc.enable()
        resources.board.set("worker_ready", 1)
        worker = _Worker(resources.boot, channel, services, nursery, resources.board)
        nursery.start_soon(worker.listen)
        nursery.start_soon(worker.on_sigterm)
        await channel.send({"type": "ready"})


def _brief(keys: dict[str, Any]) -> str:
    return f"{keys['error_type']} at {keys.get('where', 'an unknown place')}"


class _Worker:
    """Hears the supervisor: drain, stop, reload, and questions for this worker's services."""

    def __init__(
        self, boot: Boot, channel: Channel, services: Services, nursery: trio.Nursery, board: Scoreboard
    ) -> None:
        self._boot = boot
        self._channel = channel
        self._services = services
        self._nursery = nursery
        self._board = board
        self._draining = False

    async def listen(self) -> None:
        """Do what the supervisor says, until it is gone; then drain."""
        try:
            while True:
                message = await self._channel.receive()
                match message["type"]:
                    case "drain":
                        self._start_drain()
                    case "stop":
                        self._nursery.cancel_scope.cancel()
                    case "reload":
                        await self._services.reload(message)
                        await self._channel.send({"type": "reloaded", "number": message["number"]})
                    case "ask":
                        self._nursery.start_soon(self._answer, message)
        except ChannelClosed:
            structlog.get_logger().warning("the supervisor is gone: draining")
            self._start_drain()

    async def on_sigterm(self) -> None:
        """SIGTERM straight to a worker (a service manager signals the whole group) drains it too."""
        with trio.open_signal_receiver(signal.SIGTERM) as signals:
            async for _ in signals:
                self._start_drain()

    def _start_drain(self) -> None:
        if not self._draining:
            self._draining = True
            self._nursery.start_soon(self._drain)

    async def _drain(self) -> None:
        self._board.set("worker_ready", 0)
        with trio.move_on_after(self._boot.config.archive.drain_seconds) as grace:
            async with trio.open_nursery() as nursery:
                for drain in self._services.drains:
                    nursery.start_soon(drain)
        if grace.cancelled_caught:
            structlog.get_logger().warning(
                "connections were cut at the end of the grace time",
                grace_seconds=self._boot.config.archive.drain_seconds,
                count=self._board.own("worker_connections"),
            )
        self._nursery.cancel_scope.cancel()

    async def _answer(self, message: dict[str, Any]) -> None:
        reply: dict[str, Any] = {"type": "reply", "id": message["id"]}
        operation: Callable[..., Awaitable[Any]] | None = self._services.operations.get(message["op"])
        if operation is None:
            reply["error"] = f"this server does not know {message['op']!r}"
        else:
            try:
                reply["result"] = await operation(**message["args"])
            except Exception as error:  # noqa: BLE001 - one bad question must not end the worker
                keys = describe(error)
                log = structlog.get_logger()
                say = log.info if is_refusal(error) else log.error
                say("a request of the command line failed", **keys)
                reply["error"] = keys.get("error") or _brief(keys)
                reply["mistaken"] = bool(getattr(error, "mistaken", False))
        with contextlib.suppress(ChannelClosed):
            await self._channel.send(reply)


def _watch_supervisor(sock: socket.socket, seconds: float) -> None:
    """From a thread, end this process ``seconds`` after the other end of ``sock`` closed, come what may."""

    def watch() -> None:
        poll = select.poll()
        poll.register(sock.fileno(), select.POLLRDHUP)
        poll.poll()
        time.sleep(seconds)
        os._exit(EXIT_ORPHANED)

    threading.Thread(target=watch, name="supervisor-watch", daemon=True).start()


if __name__ == "__main__":
    sys.exit(main())
