"""One worker's place in the supervisor: the process in it now, and how often it was replaced."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

import trio

from hounsfield.archive.app.boot import Channel

WORKER_COMMAND = (sys.executable, "-m", "hounsfield.archive.app.worker")


class Place:
    """Where a worker runs. Empty until :meth:`start`, and again after :meth:`end`."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.popen: subprocess.Popen[bytes] | None = None
        self.channel: Channel | None = None
        self.told = False  # it has its boot message: it hears others
        self.ready = False
        self.lists = 0  # which of the supervisor's hand-outs it uses
        self.restarts = 0
        self.started_at = 0.0
        self.failure: str | None = None  # what a worker that could not start said

    def start(self, command: Sequence[str], fds: Sequence[int], *, without: str = "") -> Channel:
        """Start a worker that inherits ``fds``; the channel to it. Raises OSError.

        ``without`` names a variable of the environment that it must not inherit: the master key's.

        Not with trio's own means: they start children from a helper thread, and block no shorter.
        """
        ours, theirs = socket.socketpair()
        try:
            self.popen = subprocess.Popen(
                [*command, "--channel-fd", str(theirs.fileno())],
                pass_fds=[*fds, theirs.fileno()],
                env={name: value for name, value in os.environ.items() if name != without},
                stdin=subprocess.DEVNULL,
                stdout=sys.stderr.fileno(),
                process_group=0,  # a terminal's Ctrl-C is for the supervisor, which drains them
            )
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
        self.failure = None
        self.started_at = time.monotonic()
        self.channel = Channel(ours)
        return self.channel

    async def ended(self) -> int:
        """Wait until the process has ended, and reap it; its return code."""
        assert self.popen is not None
        fd = os.pidfd_open(self.popen.pid)
        try:
            await trio.lowlevel.wait_readable(fd)
            return self.popen.wait()  # it has ended: returns at once
        finally:
            trio.lowlevel.notify_closing(fd)
            os.close(fd)

    def kill(self) -> bool:
        """Kill the process if there is one; whether there was."""
        if self.popen is None or self.popen.poll() is not None:
            return False
        self.popen.kill()
        return True

    async def end(self) -> None:
        """Leave nothing behind: neither process nor channel."""
        popen, channel = self.popen, self.channel
        self.popen = self.channel = None
        self.told = self.ready = False
        if popen is not None and popen.poll() is None:
            popen.kill()
            popen.wait()
        if channel is not None:
            with trio.CancelScope(shield=True):
                await channel.aclose()

    def describe(self) -> dict[str, Any]:
        """For ``hounsfield status``."""
        return {
            "worker": self.number,
            "pid": self.popen.pid if self.popen else None,
            "ready": self.ready,
            "restarts": self.restarts,
            "seconds": round(time.monotonic() - self.started_at, 1) if self.popen else 0,
        }


def ending(code: int) -> str:
    """A return code in words."""
    if code >= 0:
        return f"exit code {code}"
    with contextlib.suppress(ValueError):
        return f"signal {signal.Signals(-code).name}"
    return f"signal {-code}"
