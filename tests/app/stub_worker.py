"""A worker with a stub for an archive: real supervisor, channel, scoreboard and drain, no storage.

Run by the supervisor in tests as ``python stub_worker.py --channel-fd N``. Each connection is told which
worker took it, and stays open until the client closes it.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import trio

from hounsfield.archive.app.resources import Resources, Services
from hounsfield.archive.app.worker import main
from hounsfield.archive.errors import HounsfieldError


class StubError(HounsfieldError):
    """What a worker that cannot start says."""


@asynccontextmanager
async def build(resources: Resources) -> AsyncIterator[Services]:
    board, worker = resources.board, resources.boot.worker
    if "FAIL" in resources.config.archive.ae_title:
        raise StubError("the stub was told to fail")
    if (worker == 0 and "LONG" in resources.config.archive.ae_title) or (
        worker == 1 and "STUCK" in resources.config.archive.ae_title
    ):
        await trio.sleep(2)
    died = Path(resources.boot.directory) / "died"
    if worker == 1 and "DIES" in resources.config.archive.ae_title and not died.exists():
        died.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    stopping = trio.Event()
    idle = trio.Event()
    open_connections = 0

    async def greet(stream: trio.SocketStream) -> None:
        nonlocal open_connections
        open_connections += 1
        board.add("worker_connections")
        board.add("http_requests_total")
        try:
            with suppress(trio.BrokenResourceError):  # who goes without having read it resets the connection
                await stream.send_all(f"{worker} {os.getpid()}\n".encode())
                while await stream.receive_some():
                    pass
        finally:
            board.add("worker_connections", -1)
            open_connections -= 1
            if stopping.is_set() and not open_connections:
                idle.set()

    async def serve(task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        listeners = [
            trio.SocketListener(trio.socket.from_stdlib_socket(sock)) for _, sock in resources.listeners
        ]
        async with trio.open_nursery() as connections:
            with trio.CancelScope() as accepting:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(_cancel_after, stopping, accepting)
                    task_status.started()
                    await trio.serve_listeners(greet, listeners, handler_nursery=connections)

    async def drain() -> None:
        stopping.set()
        if open_connections:
            await idle.wait()

    async def whoami() -> dict[str, Any]:
        key = resources.boot.root_key
        return {
            "worker": worker,
            "pid": os.getpid(),
            "key_bytes": len(key),
            "ae": resources.config.archive.ae_title,
        }

    async def fail() -> None:
        raise StubError("asked to fail")

    reloaded: dict[str, Any] = {}

    async def reload(message: dict[str, Any]) -> None:
        reloaded.update(message)

    async def tokens() -> list[str]:
        file = reloaded.get("config", {}).get("http", {}).get("bearer_token_file")
        return Path(file).read_text(encoding="ascii").split() if file else []

    async def ring() -> str:
        resources.wakeups.notify_others()
        return "rung"

    async def count_rings() -> None:
        while True:
            await resources.wakeups.wait()
            board.add("commits_total")

    async def call() -> str:
        peer = {
            "calling_ae": "CT1",
            "called_ae": "US",
            "address": "127.0.0.1",
            "outcome": "refused",
            "reason": "title",
        }
        await resources.tell_supervisor({"type": "peer", **peer})
        return "called"

    yield Services(
        listeners=[serve],
        drains=[drain],
        background=[count_rings],
        operations={"whoami": whoami, "fail": fail, "tokens": tokens, "ring": ring, "call": call},
        reload=reload,
    )


async def _cancel_after(event: trio.Event, scope: trio.CancelScope) -> None:
    await event.wait()
    scope.cancel()


if __name__ == "__main__":
    sys.exit(main(build=build))
