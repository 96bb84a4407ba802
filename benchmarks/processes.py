"""Worker processes that start together, and what a tree of processes costs.

Workers are started by exec, not fork, so that a measurement may be run from any program (a test runner with
threads included). What they all need (encoded templates, URLs) is pickled once into a file in memory.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

ROOT = Path(__file__).resolve().parents[1]
_TICKS = os.sysconf("SC_CLK_TCK")
_SAMPLE_SECONDS = 0.25
_MEMORY = Path("/dev/shm")


class Fleet:
    """Starts one `python -m MODULE --worker` per input, releases them together, gathers a JSON line from
    each.
    """

    def __init__(self, module: str, inputs: list[dict[str, Any]], *, shared: Any) -> None:
        self._module = module
        self._inputs = inputs
        self._shared_value = shared
        self._processes: list[subprocess.Popen[str]] = []
        self._shared: Path | None = None

    def __enter__(self) -> Self:
        directory = _MEMORY if os.access(_MEMORY, os.W_OK) else None
        handle, name = tempfile.mkstemp(prefix="hounsfield-bench-", dir=directory)
        self._shared = Path(name)
        with os.fdopen(handle, "wb") as file:
            pickle.dump(self._shared_value, file, protocol=5)
        environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
        try:
            for task in self._inputs:
                process = subprocess.Popen(
                    [sys.executable, "-m", self._module, "--worker"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                    cwd=ROOT,
                    env=environment,
                )
                self._processes.append(process)
                assert process.stdin
                process.stdin.write(json.dumps({"shared": name} | task) + "\n")
                process.stdin.flush()
        except BaseException:
            self.__exit__()
            raise
        return self

    def run(self, *, timeout_seconds: float) -> list[dict[str, Any]]:
        """Waits until all are ready, lets them go at once, returns their results in order.

        Raises RuntimeError when a worker dies or `timeout_seconds` pass.
        """
        watchdog = threading.Timer(timeout_seconds, self._kill)
        watchdog.start()
        try:
            for process in self._processes:
                self._line(process, "ready")
            for process in self._processes:
                assert process.stdin
                process.stdin.write("go\n")
                process.stdin.flush()
            results = []
            for process in self._processes:
                assert process.stdout
                line = process.stdout.readline()
                if not line:
                    raise RuntimeError(f"a worker of {self._module} died or ran past {timeout_seconds:.0f} s")
                results.append(json.loads(line))
            return results
        finally:
            watchdog.cancel()

    def __exit__(self, *_: object) -> None:
        self._kill()
        for process in self._processes:
            process.wait()
            for pipe in (process.stdin, process.stdout):
                with contextlib.suppress(OSError):
                    if pipe:
                        pipe.close()
        if self._shared:
            self._shared.unlink(missing_ok=True)

    def _line(self, process: subprocess.Popen[str], expected: str) -> None:
        assert process.stdout
        line = process.stdout.readline().strip()
        if line != expected:
            raise RuntimeError(f"a worker of {self._module} said {line!r} instead of {expected!r}")

    def _kill(self) -> None:
        for process in self._processes:
            if process.poll() is None:
                process.kill()


def worker_input() -> tuple[dict[str, Any], Any]:
    """In a worker: its own task, and what all workers share."""
    task = json.loads(sys.stdin.readline())
    with Path(task["shared"]).open("rb") as file:
        return task, pickle.load(file)


def worker_ready() -> None:
    """In a worker: says that it is ready and returns when all are."""
    print("ready", flush=True)
    if sys.stdin.readline().strip() != "go":
        sys.exit(1)


@dataclass(frozen=True, slots=True)
class _Process:
    pid: int
    parent: int
    session: int
    zombie: bool
    cpu_seconds: float


def _processes() -> list[_Process]:
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            # The name is in parentheses and may hold anything; the fields follow the last one.
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        cpu = sum(int(value) for value in fields[11:15]) / _TICKS
        found.append(_Process(int(entry.name), int(fields[1]), int(fields[3]), fields[0] == "Z", cpu))
    return found


def tree(root: int) -> list[int]:
    """The living processes that `root` started: its session and its descendants, itself included."""
    return [process.pid for process in _tree(root) if not process.zombie]


def _tree(root: int) -> list[_Process]:
    everything = _processes()
    members = {root}
    grew = True
    while grew:
        grew = False
        for process in everything:
            if process.pid not in members and (process.session == root or process.parent in members):
                members.add(process.pid)
                grew = True
    return [process for process in everything if process.pid in members]


def cpu_seconds(root: int) -> float:
    """User and system time of the tree, reaped children included."""
    return sum(process.cpu_seconds for process in _tree(root))


class MemoryWatch:
    """Samples the proportional (PSS) and resident (RSS) memory of a tree; keeps the peaks, in bytes."""

    def __init__(self, root: int) -> None:
        self._root = root
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.peak_pss = 0
        self.peak_rss = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while True:
            pss = rss = 0
            for pid in tree(self._root):
                try:
                    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
                except OSError:
                    continue
                for line in text.splitlines():
                    if line.startswith("Pss:"):
                        pss += int(line.split()[1]) * 1024
                    elif line.startswith("Rss:"):
                        rss += int(line.split()[1]) * 1024
            self.peak_pss = max(self.peak_pss, pss)
            self.peak_rss = max(self.peak_rss, rss)
            if self._stop.wait(_SAMPLE_SECONDS):
                return


def wait_idle(root: int, *, timeout_seconds: float = 3.0) -> None:
    """Returns when the tree's CPU time has not grown for 0.2 s, or after `timeout_seconds`."""
    deadline = time.monotonic() + timeout_seconds
    before = -1.0
    while time.monotonic() < deadline:
        now = cpu_seconds(root)
        if now == before:
            return
        before = now
        time.sleep(0.2)
