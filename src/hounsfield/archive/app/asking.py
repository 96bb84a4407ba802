"""What the command line asks a running server, by its control socket (:mod:`.control` is the other end).

Imports neither trio nor the engine: they cost a command 0.4 s of CPU time, and a server has both.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hounsfield.archive.app.data_directory import CONTROL_SOCKET
from hounsfield.archive.config import Config
from hounsfield.archive.errors import ControlError, NoServerError


class Archive:
    """An archive that answers :meth:`call`: this one through its server (:mod:`.offline` has the other)."""

    running = True
    """Whether a server answers."""

    def __init__(self, config: Config) -> None:
        self._config = config

    def call(self, op: str, /, **args: Any) -> Any:
        """Do one operation; its result. Blocking. Raises HounsfieldError, EngineError or StorageError."""
        return ask(control_socket(self._config), op, **args)

    def scrub(self, progress: Callable[[int, int], None]) -> dict[str, Any]:
        """Do what was asked of the scrub here and now; its status then. Only when no server runs.

        ``progress(bytes_done, bytes_in_all)``.
        """
        del progress
        raise ValueError("a server runs: it scrubs by itself")

    def apply_tier_rules(self, progress: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
        """Carry out the tier rules here and now; ``tier-progress`` then. Only when no server runs.

        ``progress`` is called with ``tier-progress`` now and then.
        """
        del progress
        raise ValueError("a server runs: it moves packs by itself")

    def verify_tiers(self, progress: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
        """Read every copy in a tier again, as :meth:`apply_tier_rules`, with ``tier-verifying``."""
        del progress
        raise ValueError("a server runs: it moves packs by itself")


def control_socket(config: Config) -> Path:
    """Where the server of this configuration's data directory listens for commands."""
    return Path(config.archive.data).expanduser().absolute() / CONTROL_SOCKET


def ask(path: Path, op: str, /, **args: Any) -> Any:
    """Send one request to the server whose control socket is ``path``; its result.

    Blocking: for the command line. Raises NoServerError when nobody listens, ControlError when it refuses.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with sock:
        try:
            with short_name(path) as name:
                sock.connect(name)
        except PermissionError as error:
            raise ControlError(
                f"no permission to talk to the server at {path}: be the user that runs it"
            ) from error
        except OSError as error:
            raise NoServerError(f"no server is running on {path.parent}") from error
        sock.sendall(json.dumps({"op": op, "args": args}).encode() + b"\n")
        with sock.makefile("rb") as lines:
            line = lines.readline()
    if not line:
        raise ControlError("the server ended before it answered")
    answer = json.loads(line)
    if "error" in answer:
        raise ControlError(answer["error"], mistaken=answer.get("mistaken", False))
    return answer["result"]


@contextlib.contextmanager
def short_name(path: Path) -> Iterator[str]:
    """A name for ``path`` that fits into a socket address (108 bytes), however deep it lies."""
    fd = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}/{path.name}"
    finally:
        os.close(fd)
