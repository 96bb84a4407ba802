"""What a measured server is, and how one is started, watched and ended."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from benchmarks.processes import ROOT, tree

# The PDU length that our listener announces; acceptors that let it be chosen get the same.
MAX_PDU_OURS = 262_144
# The longest PDU that DCMTK (and so Orthanc) can be told to accept.
MAX_PDU_DCMTK = 131_072
READY_SECONDS = 30.0
STOP_SECONDS = 10.0


class PeerError(Exception):
    """A server did not come up, or answered nonsense; the message holds the end of its log."""


@dataclass(frozen=True, slots=True)
class Endpoints:
    """Where a running server listens on 127.0.0.1."""

    dicom_port: int
    ae_title: str = "ANY-SCP"
    http_port: int | None = None


class Peer(ABC):
    """A server that can be measured. Use as a context manager: started on entry, gone with its folder on
    exit.
    """

    name: str
    """Short, unique, for --only and the results."""
    label: str
    """For tables."""
    durable: str
    """What it has done when it answers success."""
    tuning: str
    """How it is set up, in one line."""
    packages: tuple[str, ...] = ()
    """Debian packages that it needs."""
    modules: tuple[str, ...] = ()
    """PyPI packages that it needs."""

    def __init__(self, *, scratch: Path | None = None) -> None:
        self._scratch = scratch
        self._process: subprocess.Popen[bytes] | None = None
        self._directory: Path | None = None

    @classmethod
    def missing(cls) -> str | None:
        """The command that installs what is missing, None when nothing is."""
        return None

    @abstractmethod
    def version(self) -> str:
        """Name and version of the program."""

    @abstractmethod
    def _launch(self) -> Endpoints:
        """Starts the program (`self._start`) and returns when it answers."""

    def stored(self) -> int | None:
        """How many objects it holds now, None when there is no way to ask."""
        return None

    def __enter__(self) -> Self:
        self._directory = Path(tempfile.mkdtemp(prefix=f"hounsfield-bench-{self.name}-", dir=self._scratch))
        try:
            self.endpoints = self._launch()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._process:
            _end(self._process)
            self._process = None
        if self._directory:
            shutil.rmtree(self._directory, ignore_errors=True)
            self._directory = None

    @property
    def pid(self) -> int:
        """The process whose tree is the server."""
        assert self._process
        return self._process.pid

    @property
    def directory(self) -> Path:
        """The server's own folder, gone after exit."""
        assert self._directory
        return self._directory

    def log_tail(self) -> str:
        """The last lines the server printed."""
        with contextlib.suppress(OSError):
            return "\n".join((self.directory / "log").read_text(errors="replace").splitlines()[-15:])
        return ""

    def _start(self, command: list[str], *, environment: dict[str, str] | None = None) -> None:
        """Starts `command` in a session of its own, printing into the folder's `log`."""
        with (self.directory / "log").open("wb") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.directory,
                env=os.environ | {"PYTHONPATH": str(ROOT)} | (environment or {}),
                start_new_session=True,
            )

    def _wait_port(self, port: int) -> None:
        """Returns when 127.0.0.1:`port` accepts connections."""

        def answers() -> bool:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                return True
            return False

        self._wait(answers, f"port {port}")

    def _wait_http(self, url: str) -> None:
        """Returns when a GET of `url` gives 2xx."""
        self._wait(lambda: http_get(url) is not None, url)

    def _wait_ready_line(self) -> int:
        """Returns the port that the program prints as `ready PORT`."""
        found: list[int] = []

        def said() -> bool:
            for line in (self.directory / "log").read_text(errors="replace").splitlines():
                if line.startswith("ready "):
                    found.append(int(line.split()[1]))
                    return True
            return False

        self._wait(said, "its ready line")
        return found[0]

    def _wait(self, done: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + READY_SECONDS
        assert self._process
        while time.monotonic() < deadline:
            if done():
                return
            if self._process.poll() is not None:
                code = self._process.returncode
                raise PeerError(f"{self.label} ended with {code} before {what} was there:\n{self.log_tail()}")
            time.sleep(0.05)
        raise PeerError(f"{self.label}: {what} not there after {READY_SECONDS:.0f} s:\n{self.log_tail()}")


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nothing listens on now, for programs that cannot choose one themselves.

    None of those that systems give to whoever calls (Linux from 32768): one of them may be taken by then.
    """
    while True:
        port = 10_000 + secrets.randbelow(22_000)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


def http_get(url: str, *, timeout: float = 30.0) -> bytes | None:
    """The body of a 2xx answer, None for anything else."""
    try:
        with urllib.request.urlopen(url, timeout=timeout) as response:
            body: bytes = response.read()
            return body
    except (OSError, urllib.error.URLError):
        return None


def _end(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM, then SIGKILL for whatever of the session is left."""
    members = tree(process.pid)
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_SECONDS)
    for pid in {*members, *tree(process.pid)}:
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + STOP_SECONDS
    while tree(process.pid) and time.monotonic() < deadline:
        time.sleep(0.02)


PYTHON = sys.executable
