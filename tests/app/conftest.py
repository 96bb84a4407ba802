"""A supervisor on stub workers, in a process of its own, as the command line runs it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from hounsfield.archive.app.asking import ask

HERE = Path(__file__).parent

_LAUNCH = """
import os, sys, trio, json
from hounsfield.archive.app.logs import set_up_logs
from hounsfield.archive.app.supervisor import Supervisor, ready_line
from hounsfield.archive.config import load_config
from hounsfield.archive.errors import HounsfieldError
set_up_logs(level="info", form="json", salt=b"test")
load = lambda: load_config(None, sys.argv[2:])
ready = lambda status: print(ready_line(status), end="", flush=True)
command = (sys.executable, sys.argv[1])
try:
    limits = json.loads(os.environ.get("SUPERVISOR_LIMITS", "{}"))
    trio.run(Supervisor(load(), reload_config=load, on_ready=ready, worker_command=command, **limits).run)
except HounsfieldError as error:
    print(json.dumps({"error": str(error)}), flush=True)
    sys.exit(1)
"""


@dataclass
class Server:
    """A running supervisor and how to talk to it."""

    process: subprocess.Popen[str]
    ready: dict[str, Any]
    data: Path
    log: Path = field(repr=False)

    def ask(self, op: str, **args: Any) -> Any:
        return ask(self.data / "control.sock", op, **args)

    def address(self, kind: str) -> tuple[str, int]:
        return next((each["host"], each["port"]) for each in self.ready["listeners"] if each["kind"] == kind)

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(60)

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]


StartServer = Callable[..., Server]


@pytest.fixture
def start_server(tmp_path: Path) -> Iterator[StartServer]:
    """Start a server on stub workers; whatever is still running at the end is killed, by its id."""
    started: list[subprocess.Popen[str]] = []

    def start(*overrides: str, workers: int = 2, data: Path | None = None) -> Server:
        directory = data or tmp_path / "data"
        settings = [
            f'archive.data="{directory}"',
            f"archive.workers={workers}",
            "dicom.listeners=[{port=0}]",
            "http.listeners=[{port=0}]",
            *overrides,
        ]
        log = tmp_path / f"log-{len(started)}"
        with log.open("w") as errors:
            process = subprocess.Popen(
                [sys.executable, "-c", _LAUNCH, str(HERE / "stub_worker.py"), *settings],
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env={**os.environ, "XDG_STATE_HOME": str(tmp_path / "state")},
            )
        started.append(process)
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, log.read_text()
        return Server(process, json.loads(line), directory, log)

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.wait(60)
        assert process.stdout is not None
        process.stdout.close()
