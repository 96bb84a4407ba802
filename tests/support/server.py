"""The real server, as a user starts it: supervisor, workers, sockets on loopback; and how to read from it."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import pydicom
import pydicom.data
from pydicom.uid import DeflatedExplicitVRLittleEndian

from hounsfield.archive.app.asking import ask
from hounsfield.archive.dicom.part10 import split

HOUNSFIELD = (sys.executable, "-m", "hounsfield.archive.cli")
AS_STORED = {"Accept": "application/dicom; transfer-syntax=*"}
# Longer than anything here takes, so that a fault ends a test and not the run.
PATIENCE_S = 60.0
_WITHOUT_LIMIT = 10_000


@dataclass
class ArchiveServer:
    """One data directory, and the server on it while it runs. Start it again after any end."""

    directory: Path
    """Holds the data directory, the development key beside it, and one log for each start."""
    workers: int = 2
    settings: tuple[str, ...] = ()
    listens: tuple[str, ...] = ("--dicom", "127.0.0.1:0", "--http", "127.0.0.1:0")
    """What is not named here listens as the settings say."""
    process: subprocess.Popen[bytes] | None = None
    ready: dict[str, Any] = field(default_factory=dict)
    logs: list[Path] = field(default_factory=list)
    client: httpx.Client = field(init=False)

    @property
    def data(self) -> Path:
        return self.directory / "archive"

    @property
    def environment(self) -> dict[str, str]:
        ours = {"XDG_STATE_HOME": str(self.directory / "state"), "TCP_NODELAY": "1"}
        # An installed archive has its bytecode: without, each process compiles 200 modules at each start.
        kept = {name: text for name, text in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        return {**kept, **ours}

    def start(self) -> ArchiveServer:
        """Returns once every worker serves."""
        read_end, write_end = os.pipe()
        self.directory.mkdir(parents=True, exist_ok=True)
        self.logs.append(self.directory / f"server-{len(self.logs)}.log")
        with self.logs[-1].open("wb") as log:
            self.process = subprocess.Popen(
                self.command(write_end), pass_fds=[write_end], stdout=log, stderr=log, env=self.environment
            )
        os.close(write_end)
        with os.fdopen(read_end) as ready:
            line = ready.readline()
        assert line, self.log_text()
        self.ready = json.loads(line)
        host, port = self.address("http")
        self.client = httpx.Client(base_url=f"http://{host}:{port}", timeout=PATIENCE_S)
        return self

    def command(self, ready_fd: int) -> list[str]:
        """What starts it."""
        words = [*HOUNSFIELD, "serve", "--data", str(self.data), "--ready-fd", str(ready_fd)]
        words += [*self.listens, "--workers", str(self.workers)]
        for setting in self.settings:
            words += ["--set", setting]
        return words

    def address(self, kind: str) -> tuple[str, int]:
        """Host and port of the first listener of a kind."""
        return next((each["host"], each["port"]) for each in self.ready["listeners"] if each["kind"] == kind)

    @property
    def dicom_port(self) -> int:
        return self.address("dicom")[1]

    @property
    def dicom_target(self) -> str:
        return f"HOUNSFIELD@127.0.0.1:{self.dicom_port}"

    @property
    def url(self) -> str:
        """Of DICOMweb."""
        host, port = self.address("http")
        return f"http://{host}:{port}/dicom-web"

    def log_text(self) -> str:
        """Everything that the server has said, over all its starts."""
        return "".join(path.read_text(errors="replace") for path in self.logs)

    def status(self) -> dict[str, Any]:
        answer: dict[str, Any] = ask(self.data / "control.sock", "status")
        return answer

    def worker_pids(self) -> list[int]:
        return [each["pid"] for each in self.status()["workers"] if each["pid"]]

    def run(self, *arguments: str, data: bool = True) -> subprocess.CompletedProcess[str]:
        """``hounsfield`` with these words, on this archive."""
        words = [*HOUNSFIELD, *arguments, *(("--data", str(self.data)) if data else ())]
        return subprocess.run(
            words, capture_output=True, text=True, env=self.environment, timeout=PATIENCE_S, check=False
        )

    def run_json(self, *arguments: str) -> Any:
        """What ``hounsfield … --json`` prints; it must succeed."""
        done = self.run(*arguments, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    # ------------------------------------------------------------------ ends

    def signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def terminate(self) -> int:
        """SIGTERM; the exit code."""
        self.signal(signal.SIGTERM)
        return self.wait()

    def wait(self) -> int:
        assert self.process is not None
        with contextlib.suppress(AttributeError):
            self.client.close()
        return self.process.wait(PATIENCE_S)

    def kill_all(self) -> None:
        """``kill -9`` of the supervisor and every worker, as near to one moment as it can be done."""
        assert self.process is not None
        # psutil remembers when each process began: a number that now belongs to somebody else is left alone.
        alive = psutil.Process(self.process.pid)
        workers = alive.children(recursive=True)
        for each in (alive, *workers):
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
        self.wait()
        until(lambda: not any(map(runs, workers)), "the end of what was killed")

    # ------------------------------------------------------------------ reads

    def instances(self) -> list[dict[str, Any]]:
        """Every instance that QIDO-RS lists, as DICOM JSON, page by page."""
        found: list[dict[str, Any]] = []
        while True:
            page = self.client.get(
                "/dicom-web/instances", params={"limit": _WITHOUT_LIMIT, "offset": len(found)}
            )
            assert page.status_code == 200, page.text
            rows = page.json()
            found += rows
            if len(rows) < _WITHOUT_LIMIT:
                return found

    def listed(self) -> list[str]:
        """SOP Instance UID of every instance that QIDO-RS lists."""
        return [value(row, "00080018") for row in self.instances()]

    def part10(self, study: str, series: str, sop: str) -> bytes:
        """The instance as a DICOM file, in the transfer syntax it was received in."""
        path = f"/dicom-web/studies/{study}/series/{series}/instances/{sop}"
        answer = self.client.get(path, headers=AS_STORED)
        assert answer.status_code == 200, answer.text[:500]
        return answer.content

    def series_files(self, study: str, series: str) -> list[bytes]:
        """Every instance of a series as a DICOM file, as received; one answer of several parts."""
        wanted = {"Accept": 'multipart/related; type="application/dicom"; transfer-syntax=*'}
        answer = self.client.get(f"/dicom-web/studies/{study}/series/{series}", headers=wanted)
        assert answer.status_code == 200, answer.text[:500]
        boundary = answer.headers["content-type"].partition("boundary=")[2].strip('"').encode()
        first, *parts, last = (b"\r\n" + answer.content).split(b"\r\n--" + boundary)
        assert (first, last.strip()) == (b"", b"--"), "not whole"
        return [part.partition(b"\r\n\r\n")[2] for part in parts]

    def dataset_bytes(self, study: str, series: str, sop: str) -> bytes:
        """The data set alone, as received."""
        raw = self.part10(study, series, sop)
        return raw[split(raw).offset :]


def value(row: dict[str, Any], tag: str) -> str:
    """The first value of an element of DICOM JSON, "" when there is none."""
    return str(next(iter(row.get(tag, {}).get("Value", [])), ""))


@contextlib.contextmanager
def archive_server(directory: Path, *settings: str, workers: int = 2, **more: Any) -> Iterator[ArchiveServer]:
    """A server on a new data directory below ``directory``; nothing of it runs afterwards."""
    server = ArchiveServer(directory, workers, settings, **more)
    try:
        server.start()
        yield server
    finally:
        if server.process is not None and server.process.poll() is None:
            server.kill_all()


def until(condition: Callable[[], object], what: str, seconds: float = PATIENCE_S) -> None:
    """Return when ``condition`` is true; fails after ``seconds``. For what another process does soon."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not after {seconds:.0f} s: {what}"
        time.sleep(0.02)


def runs(process: psutil.Process) -> bool:
    """Whether it still does anything: an orphan's body may wait for a parent that never looks."""
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


@dataclass(frozen=True)
class Sample:
    """A DICOM file that a test sends, and what it says of itself."""

    path: Path
    dataset: pydicom.FileDataset
    transfer_syntax_uid: str
    data: bytes
    """The data set's bytes."""

    @property
    def ids(self) -> tuple[str, str, str]:
        ds = self.dataset
        return str(ds.StudyInstanceUID), str(ds.SeriesInstanceUID), str(ds.SOPInstanceUID)

    @property
    def url(self) -> str:
        study, series, sop = self.ids
        return f"/dicom-web/studies/{study}/series/{series}/instances/{sop}"


def samples(directory: Path, *names: str) -> list[Sample]:
    """Copies of pydicom's own files, as studies that no other call gives.

    Every study, series and instance UID is replaced by one of the same length, everywhere it stands: nothing
    else of a file changes, and tests that share a server do not meet.
    """
    directory.mkdir(parents=True, exist_ok=True)
    uids: dict[str, str] = {}
    found: list[Sample] = []
    for number, name in enumerate(names):
        source = pydicom.data.get_testdata_file(name)
        assert source is not None, name
        raw = Path(str(source)).read_bytes()
        part10 = split(raw)
        meta, data = raw[: part10.offset], raw[part10.offset :]
        deflated = part10.transfer_syntax_uid == DeflatedExplicitVRLittleEndian
        if deflated:
            data = zlib.decompress(data, -zlib.MAX_WBITS)
        header = pydicom.dcmread(Path(str(source)), stop_before_pixels=True)
        study, series, sop = (
            str(header[keyword].value)
            for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
        )
        uids.pop(sop, None)  # several encodings of one object become several objects
        for uid in sorted({study, series, sop}, key=len, reverse=True):
            fresh = uids.setdefault(uid, _another(uid)).encode()
            meta, data = meta.replace(uid.encode(), fresh), data.replace(uid.encode(), fresh)
        if deflated:
            packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
            data = packer.compress(data) + packer.flush()
            data += b"\0" * (len(data) % 2)
        path = directory / f"{number:02d}-{Path(name).name}"
        path.write_bytes(meta + data)
        dataset = pydicom.dcmread(path)
        assert dataset.SOPInstanceUID == uids[sop]
        found.append(Sample(path, dataset, part10.transfer_syntax_uid, data))
    return found


def _another(uid: str) -> str:
    """A UID of the same length and shape, with other digits at its end."""
    head, tail = uid[:-14], uid[-14:]
    return head + "".join("." if c == "." else str(secrets.randbelow(9) + 1) for c in tail)
