"""The supervisor: opens the sockets, locks the data directory, starts workers and keeps them running.

It serves no request itself and holds no image, so nothing that a peer sends can bring it down::

    starting ──all workers ready──▸ serving ──signal──▸ draining ──last worker gone──▸ stopped
        └──a worker fails──▸ stopped                       └──second signal: stop now, third: kill──▸ stopped

Workers are started with exec, never by fork alone: an event loop, threads and locks do not survive a fork.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Callable, Sequence
from enum import Enum
from typing import Any

import trio

from hounsfield import __version__
from hounsfield.archive.app.boot import Channel, ChannelClosed
from hounsfield.archive.app.config_checks import check_for_start, check_whole, ending_certificates
from hounsfield.archive.app.control import ControlServer
from hounsfield.archive.app.data_directory import CONTROL_SOCKET
from hounsfield.archive.app.keys import key_source
from hounsfield.archive.app.lean_structlog import structlog
from hounsfield.archive.app.listeners import allow_descriptors
from hounsfield.archive.app.place import WORKER_COMMAND, Place, ending
from hounsfield.archive.app.premises import Premises
from hounsfield.archive.app.recent import RecentPeers
from hounsfield.archive.app.scoreboard import Kind
from hounsfield.archive.app.talking import Talking
from hounsfield.archive.config import Config
from hounsfield.archive.errors import ConfigError, HounsfieldError

RESTART_SECONDS_MIN = 0.1
RESTART_SECONDS_MAX = 10.0  # a worker that cannot start must not fill the disk with logs
STEADY_SECONDS = 60.0  # a worker that ran this long is restarted at once again
READY_SECONDS_MAX = 120.0  # from the moment the archive is open: a worker then only imports and listens
RECOVERY_NOTE_SECONDS = 60.0  # how often a long recovery is mentioned: it may take hours, and is no failure
LAST_WORDS_SECONDS = 1.0
KILL_SECONDS = 5.0  # after a drain's grace or a stop, until SIGKILL


class State(Enum):
    """Where the server is in its life."""

    STARTING = "starting"
    SERVING = "serving"
    DRAINING = "draining"
    STOPPED = "stopped"


class StartError(HounsfieldError):
    """A worker could not start."""


class Supervisor:
    """One server on one data directory. :meth:`run` returns when it has stopped."""

    def __init__(
        self,
        config: Config,
        *,
        reload_config: Callable[[], Config] | None = None,
        on_ready: Callable[[dict[str, Any]], None] | None = None,
        worker_command: Sequence[str] = WORKER_COMMAND,
        ready_seconds_max: float = READY_SECONDS_MAX,
        recovery_note_seconds: float = RECOVERY_NOTE_SECONDS,
    ) -> None:
        self.config = config
        self.state = State.STARTING
        self.announcements: list[str] = []
        self.recovery_key: str | None = None
        self._reload_config = reload_config or (lambda: config)
        self._on_ready = on_ready
        self._worker_command = tuple(worker_command)
        self._ready_seconds_max = ready_seconds_max
        self._recovery_note_seconds = recovery_note_seconds
        self._log = structlog.get_logger()
        self._recent = RecentPeers()
        self._signals_seen = 0
        self._failure: str | None = None
        self._all_ready = trio.Event()
        self._opened = trio.Event()  # worker 0 was ready once: the archive is recovered
        self._started_at = time.monotonic()

    async def run(self) -> None:
        """Serve until told to stop. Raises HounsfieldError or StorageError when the start fails."""
        with contextlib.ExitStack() as stack:
            self._prepare(stack)
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                await nursery.start(self._hear_signals)
                control = ControlServer(self._premises.directory / CONTROL_SOCKET, self._operations())
                await nursery.start(control.serve)
                try:
                    async with trio.open_nursery() as workers:
                        for place in self._places:
                            workers.start_soon(self._keep_running, place)
                        workers.start_soon(self._become_ready)
                finally:
                    self.state = State.STOPPED
                    control.remove()
                    nursery.cancel_scope.cancel()
        if self._failure:
            raise StartError(f"the archive could not start: {self._failure}")

    # ------------------------------------------------------------------ start

    def _prepare(self, stack: contextlib.ExitStack) -> None:
        config = self.config
        self.announcements = check_for_start(config)
        self._premises = premises = Premises(config, stack)
        self.recovery_key = premises.recovery_key
        if premises.created:
            self.announcements.insert(0, f"made a new archive in {premises.directory}")
        if not config.keys.master_key:
            self.announcements.append(
                f"the key is the {key_source(config)}; the archive stays on loopback with it"
            )
        if too_few := allow_descriptors(config):
            self.announcements.append(too_few)
        for announcement in self.announcements:
            self._log.warning("announcement", announcement=announcement)
        premises.open_shared(config)
        self._places = [Place(number) for number in range(premises.workers)]
        self._talking = Talking(self._places, premises.board)
        self._log.info(
            "starting",
            version=__version__,
            workers=premises.workers,
            directory=str(premises.directory),
            key_source=key_source(config),
        )

    async def _become_ready(self) -> None:
        while not self._opened.is_set():
            with trio.move_on_after(self._recovery_note_seconds) as waited:
                await self._opened.wait()
            if waited.cancelled_caught:
                self._log.warning(
                    "the archive is still being opened: what its logs hold is put into the index",
                    seconds=round(time.monotonic() - self._started_at),
                )
        with trio.move_on_after(self._ready_seconds_max) as patience:
            await self._all_ready.wait()
        if self.state is not State.STARTING:
            return
        if patience.cancelled_caught:
            self._failure = f"not every worker was ready after {self._ready_seconds_max:.0f} s"
            self._shut_down(State.STOPPED, "stop")
            return
        self.state = State.SERVING
        status = self.status()
        self._log.info(
            "ready",
            listeners=[f"{each['kind']} {each['host']}:{each['port']}" for each in status["listeners"]],
            workers=self._premises.workers,
            seconds=round(time.monotonic() - self._started_at, 2),
        )
        if self._on_ready:
            self._on_ready(status)

    # ------------------------------------------------------------------ workers

    async def _keep_running(self, place: Place) -> None:
        delay = RESTART_SECONDS_MIN
        while self._now() in {State.STARTING, State.SERVING}:
            code = await self._run_once(place)
            self._premises.board.clear_gauges(place.number)
            place.ready = False
            match self._now():
                case State.STARTING if place.failure or not self._opened.is_set():
                    self._failure = place.failure or f"a worker ended with {ending(code)} at its start"
                    self._shut_down(State.STOPPED, "stop")
                    return
                case State.DRAINING | State.STOPPED:
                    return
            if time.monotonic() - place.started_at >= STEADY_SECONDS:
                delay = RESTART_SECONDS_MIN
            self._log.error(
                "a worker ended; starting another",
                result=ending(code),
                what=f"worker {place.number}",
                delay_seconds=delay,
                restarts=place.restarts,
            )
            place.restarts += 1
            await trio.sleep(delay)
            delay = min(delay * 2, RESTART_SECONDS_MAX)

    def _now(self) -> State:
        """The state as it is after an await: others may have changed it."""
        return self.state

    async def _run_once(self, place: Place) -> int:
        """Start a worker, talk with it until it ends; its return code."""
        channel = place.start(
            self._worker_command, self._premises.descriptors(), without=self._premises.key_variable
        )
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._hear_worker, place, channel)
                code = await place.ended()
                # Its last words may still be in the channel, whose end is near.
                nursery.cancel_scope.deadline = trio.current_time() + LAST_WORDS_SECONDS
        finally:
            await place.end()
        return code

    async def _hear_worker(self, place: Place, channel: Channel) -> None:
        try:
            if place.number > 0:
                # Worker 0 recovers the archive alone. The others import meanwhile and wait for this message.
                await self._opened.wait()
                if self._now() not in {State.STARTING, State.SERVING}:
                    await channel.aclose()
                    return
            self._talking.begin(place)
            first = not self._opened.is_set()
            await channel.send(self._premises.boot(place.number, self.config, first=first))
            while True:
                message = await channel.receive()
                match message["type"]:
                    case "ready":
                        place.ready = True
                        self._opened.set()
                        if all(each.ready for each in self._places):
                            self._all_ready.set()
                    case "failed":
                        place.failure = message["error"]
                    case "aes-changed":
                        await self._talking.hand_out(self.config)
                    case "reloaded":
                        self._talking.taken(place, message["number"])
                    case "peer":
                        self._recent.note(message)
                    case "reply":
                        self._talking.answered(message)
        except ChannelClosed:
            return

    def _shut_down(self, state: State, message: str) -> None:
        self.state = state
        self._all_ready.set()
        self._opened.set()
        for place in self._places:
            if place.told:
                self._nursery.start_soon(self._talking.tell, place, message)
        grace = self.config.archive.drain_seconds if message == "drain" else 0.0
        self._nursery.start_soon(self._kill_after, grace + KILL_SECONDS)

    async def _kill_after(self, seconds: float) -> None:
        await trio.sleep(seconds)
        self._kill_all()

    def _kill_all(self) -> None:
        for place in self._places:
            if place.kill():
                self._log.warning("killed a worker that did not end", what=f"worker {place.number}")

    # ------------------------------------------------------------------ signals and requests

    async def _hear_signals(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
            task_status.started()
            async for number in signals:
                if number == signal.SIGHUP:
                    try:
                        await self.reload()
                    except HounsfieldError as error:
                        self._log.error("the configuration was not loaded anew", error=str(error))
                    continue
                self._signals_seen += 1
                self._log.info("signal", signal=signal.Signals(number).name, count=self._signals_seen)
                if self._signals_seen == 1:
                    self.drain()
                elif self._signals_seen == 2:
                    self._shut_down(State.DRAINING, "stop")
                else:
                    self._kill_all()

    def drain(self) -> None:
        """Stop accepting, let what is under way finish within ``archive.drain_seconds``, then stop."""
        if self.state in {State.STARTING, State.SERVING}:
            self._premises.close_listeners()
            self._shut_down(State.DRAINING, "drain")

    async def reload(self) -> None:
        """Read AE lists, certificates and tokens anew and tell the workers. ConfigError: nothing changed."""
        config = self._reload_config()
        check_whole(config)
        if config.plugins != self.config.plugins:
            raise ConfigError("[plugins] changed: restart the server for that")
        if config.dicom.listeners != self.config.dicom.listeners:
            raise ConfigError("dicom.listeners changed: restart the server for that")
        if config.http.listeners != self.config.http.listeners:
            raise ConfigError("http.listeners changed: restart the server for that")
        self.config = config
        await self._talking.hand_out(config)
        self._log.info("loaded AE lists, certificates and tokens anew")

    def status(self) -> dict[str, Any]:
        """What runs, where it listens, and the archive's totals."""
        return {
            "version": __version__,
            "pid": os.getpid(),
            "state": self.state.value,
            "data": str(self._premises.directory),
            "ae_title": self.config.archive.ae_title,
            "seconds": round(time.monotonic() - self._started_at, 1),
            "listeners": self._premises.listeners(),
            "workers": [place.describe() for place in self._places],
            "totals": {
                metric.key: self._premises.board.total(metric.key)
                for metric in self._premises.board.metrics
                if metric.kind in {Kind.COUNTER, Kind.GAUGE}
            },
            "announcements": [*self.announcements, *ending_certificates(self.config)],
        }

    def _operations(self) -> dict[str, Callable[..., Any]]:
        async def status() -> dict[str, Any]:
            return self.status()

        async def ae_recent() -> list[dict[str, Any]]:
            return self._recent.rows()

        async def drain() -> str:
            self.drain()
            return "draining"

        async def reload() -> str:
            await self.reload()
            await self._talking.all_taken()
            return "loaded"

        async def ask_worker(op: str, args: dict[str, Any]) -> Any:
            return await self._talking.ask(op, args, state=self.state.value)

        return {
            "status": status,
            "ae-recent": ae_recent,
            "drain": drain,
            "reload": reload,
            "": ask_worker,
        }


def ready_line(status: dict[str, Any]) -> str:
    """What is written to ``--ready-fd``: one line of JSON with the addresses really listened on."""
    keep = {key: status[key] for key in ("version", "pid", "data", "ae_title", "listeners")}
    return json.dumps(keep) + "\n"
