"""What the supervisor opens once, and every worker inherits: directory, keys, sockets, the page they share.

What cannot be opened ends the start, and what was opened before it is closed.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path
from typing import Any

from hounsfield.archive.app.boot import Boot, ListenerFd
from hounsfield.archive.app.data_directory import open_data_directory
from hounsfield.archive.app.keys import open_keyring, open_master_key
from hounsfield.archive.app.listeners import Listener, open_listeners
from hounsfield.archive.app.scoreboard import Scoreboard, metrics_with
from hounsfield.archive.app.wakeups import Wakeups
from hounsfield.archive.config import Config


class Premises:
    """One server's, from its start to its end. ``stack`` closes what is opened here.

    The directory and its keys are open at once; what is shared is opened by :meth:`open_shared`. Both raise
    HounsfieldError or StorageError.
    """

    def __init__(self, config: Config, stack: contextlib.ExitStack) -> None:
        self._stack = stack
        self._data = open_data_directory(Path(config.archive.data), create=True)
        stack.callback(self._data.close)
        self.directory = self._data.path
        self.created = self._data.created
        """Whether there was no archive before."""
        keyring = open_keyring(self.directory, open_master_key(config, self.directory), create=True)
        recovery = keyring.take_recovery_key()
        self.recovery_key = recovery.text() if recovery else None
        """Of an archive that was made just now: shown once."""
        self._root_key = keyring.reveal_root()
        scheme, _, name = config.keys.master_key.partition(":")
        self.key_variable = name if scheme == "env" else ""
        """The variable of the environment that holds the master key, workers must not inherit it; or ""."""

    def open_shared(self, config: Config) -> None:
        """Open what workers share: listening sockets, scoreboard, bells."""
        self._listeners: list[Listener] = open_listeners(config)
        self._stack.callback(self.close_listeners)
        self.workers = config.archive.workers or os.cpu_count() or 1
        self._board_tiers = tuple(tier.name for tier in config.tiers)
        self._board_fd, self.board = Scoreboard.create(self.workers, metrics_with(self._board_tiers))
        self._stack.callback(self.board.close)
        self._stack.callback(os.close, self._board_fd)
        self._bells = Wakeups.create(self.workers)
        for fd in self._bells:
            self._stack.callback(os.close, fd)
        self._salt = secrets.token_bytes(32)

    def descriptors(self) -> list[int]:
        """What a worker inherits besides its channel."""
        return [
            *(each.sock.fileno() for each in self._listeners),
            self._board_fd,
            self._data.lock_fd,
            *self._bells,
        ]

    def boot(self, worker: int, config: Config, *, first: bool) -> Boot:
        """All that a worker is told at its start. ``first``: nobody else has the archive open yet."""
        return Boot(
            worker=worker,
            workers=self.workers,
            config=config,
            directory=str(self.directory),
            listeners=tuple(
                ListenerFd(each.kind, each.index, each.sock.fileno(), *each.address)
                for each in self._listeners
            ),
            scoreboard_fd=self._board_fd,
            scoreboard_tiers=self._board_tiers,
            wakeup_fds=tuple(self._bells),
            lock_fd=self._data.lock_fd,
            root_key=self._root_key,
            log_salt=self._salt,
            first=first,
        )

    def listeners(self) -> list[dict[str, Any]]:
        """Where it listens, for people."""
        return [_description(listener) for listener in self._listeners]

    def close_listeners(self) -> None:
        """Accept nobody any more here; workers have sockets of their own. Idempotent."""
        for listener in self._listeners:
            listener.sock.close()


def _description(listener: Listener) -> dict[str, Any]:
    host, port = listener.address if listener.sock.fileno() >= 0 else ("closed", 0)
    return {"kind": listener.kind, "host": host, "port": port, "tls": listener.tls}
