"""The control socket: how the command line talks to a running server. One JSON object a line, each way.

Request ``{"op": "status", "args": {}}``; answer ``{"result": …}`` or ``{"error": "…", "mistaken": false}``
(whether the request has to be written differently). The socket lies in the data directory with mode 0600,
so whoever may read the archive's files may talk to it, and nobody else.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import trio

from hounsfield.archive.app.asking import short_name
from hounsfield.archive.app.lean_structlog import structlog
from hounsfield.archive.app.logs import describe
from hounsfield.archive.errors import HounsfieldError

REQUEST_BYTES_MAX = 1 << 20
_OWNER_ONLY = 0o600


class ControlServer:
    """Answers requests with ``operations``; the one named ``""`` takes ``(op, args)`` of every other name."""

    def __init__(self, path: Path, operations: dict[str, Callable[..., Awaitable[Any]]]) -> None:
        self._path = path
        self._operations = operations

    async def serve(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Listen until cancelled. The caller holds the directory's lock, so an old socket is a dead one's."""
        self.remove()
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        mask = os.umask(0o177)
        try:
            with short_name(self._path) as name:
                sock.bind(name)
        finally:
            os.umask(mask)
        self._path.chmod(_OWNER_ONLY)
        sock.listen(16)
        sock.setblocking(False)
        listener = trio.SocketListener(trio.socket.from_stdlib_socket(sock))
        try:
            await trio.serve_listeners(self._answer, [listener], task_status=_Silent(task_status))
        finally:
            self.remove()

    def remove(self) -> None:
        """Take the socket's name away."""
        with contextlib.suppress(OSError):
            if stat.S_ISSOCK(self._path.lstat().st_mode):
                self._path.unlink()

    async def _answer(self, stream: trio.SocketStream) -> None:
        buffered = b""
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            async with stream:
                while True:
                    while b"\n" not in buffered:
                        if len(buffered) > REQUEST_BYTES_MAX:
                            return
                        chunk = await stream.receive_some(65536)
                        if not chunk:
                            return
                        buffered += chunk
                    line, _, buffered = buffered.partition(b"\n")
                    await stream.send_all(json.dumps(await self._one(line)).encode() + b"\n")

    async def _one(self, line: bytes) -> dict[str, Any]:
        try:
            request = json.loads(line)
            op, args = request["op"], request.get("args", {})
        except (ValueError, KeyError, TypeError, AttributeError):
            return {"error": "a request is one JSON object a line, with op and args"}
        try:
            if op and op in self._operations:
                return {"result": await self._operations[op](**args)}
            return {"result": await self._operations[""](op=op, args=args)}
        except HounsfieldError as error:
            return {"error": str(error), "mistaken": error.mistaken}
        except Exception as error:  # noqa: BLE001 - the server outlives a bad request
            structlog.get_logger().error("a control request failed", **describe(error))
            return {
                "error": f"the server failed on this request ({type(error).__name__}); its log says where"
            }


class _Silent:
    """Starts a task without passing on the listeners, which nobody needs."""

    def __init__(self, status: trio.TaskStatus[None]) -> None:
        self._status = status

    def started(self, _: object = None) -> None:
        self._status.started()
