"""What a worker is given (:class:`Resources`) and what it is made of (:class:`Services`)."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from hounsfield.archive.app.boot import Boot, ListenerFd
from hounsfield.archive.app.scoreboard import Scoreboard
from hounsfield.archive.app.wakeups import Wakeups
from hounsfield.archive.config import Config


async def _nothing(_: dict[str, Any]) -> None:
    """Nothing to load anew."""


@dataclass(frozen=True)
class Resources:
    """What the supervisor gave this worker, ready to use."""

    boot: Boot
    board: Scoreboard
    wakeups: Wakeups
    tell_supervisor: Callable[[dict[str, Any]], Awaitable[None]]
    listeners: tuple[tuple[ListenerFd, socket.socket], ...]

    @property
    def config(self) -> Config:
        """The configuration in effect."""
        return self.boot.config


@dataclass
class Services:
    """What a worker runs. Everything listed runs in the worker's nursery, whose cancellation ends it.

    ``listeners`` are started in order and report ``task_status.started()`` once they accept. ``drains`` stop
    accepting and return when the last connection is done. ``background`` runs until cancelled. ``operations``
    answer the command line. ``reload`` takes what SIGHUP read anew.
    """

    listeners: list[Callable[..., Awaitable[None]]] = field(default_factory=list)
    drains: list[Callable[[], Awaitable[None]]] = field(default_factory=list)
    background: list[Callable[[], Awaitable[None]]] = field(default_factory=list)
    operations: dict[str, Callable[..., Awaitable[Any]]] = field(default_factory=dict)
    reload: Callable[[dict[str, Any]], Awaitable[None]] = _nothing
