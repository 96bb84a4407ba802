"""How a server, or a part of it, ends or falls silent in the middle of its work."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable

import psutil

from support.server import ArchiveServer, runs, until

STOPPED_S = 17.0
"""More than the lease of who leads."""


def kill_all(server: ArchiveServer, rng: random.Random) -> None:
    del rng
    server.kill_all()


def kill_supervisor(server: ArchiveServer, rng: random.Random) -> None:
    """Its workers go on with what is under way for a moment, and end."""
    del rng
    assert server.process is not None
    alive = psutil.Process(server.process.pid)
    workers = alive.children(recursive=True)
    alive.kill()
    server.wait()
    until(lambda: not any(map(runs, workers)), "the end of the workers")


def kill_worker(server: ArchiveServer, rng: random.Random) -> None:
    """One, which may be who leads. Another takes its place."""
    pids = server.worker_pids()
    victim = psutil.Process(rng.choice(pids))
    victim.kill()
    until(lambda: not runs(victim), "its end")
    until(lambda: len(set(server.worker_pids()) - {victim.pid}) == server.workers, "another worker")


def stop_worker(server: ArchiveServer, rng: random.Random) -> None:
    """For longer than who leads may be silent; then it goes on, and learns who leads now."""
    victim = psutil.Process(rng.choice(server.worker_pids()))
    victim.send_signal(signal.SIGSTOP)
    time.sleep(STOPPED_S)
    victim.send_signal(signal.SIGCONT)


END: dict[str, Callable[[ArchiveServer, random.Random], None]] = {
    "all": kill_all,
    "supervisor": kill_supervisor,
    "worker": kill_worker,
    "stopped": stop_worker,
}
KINDS = ("all", "all", "supervisor", "worker")
