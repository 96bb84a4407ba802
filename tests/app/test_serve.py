"""``hounsfield serve`` as users run it: real workers, real sockets, the other commands beside it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydicom import dcmread
from pydicom.data import get_testdata_file

FILES = [Path(str(get_testdata_file(name))) for name in ("CT_small.dcm", "MR_small.dcm")]


@dataclass
class Archive:
    """A running archive and its command line."""

    process: subprocess.Popen[bytes]
    ready: dict[str, Any]
    data: Path
    log: Path
    environment: dict[str, str]

    def address(self, kind: str) -> str:
        return next(
            f"{each['host']}:{each['port']}" for each in self.ready["listeners"] if each["kind"] == kind
        )

    @property
    def url(self) -> str:
        return f"http://{self.address('http')}"

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "hounsfield.archive.cli", *arguments],
            capture_output=True,
            text=True,
            env=self.environment,
            timeout=60,
            check=False,
        )

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


Start = Callable[..., Archive]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Start]:
    """Run ``hounsfield serve`` on an archive below ``tmp_path``."""
    started: list[subprocess.Popen[bytes]] = []
    environment = {**os.environ, "XDG_STATE_HOME": str(tmp_path / "state")}

    def start(*arguments: str, workers: int = 2) -> Archive:
        data, log = tmp_path / "archive", tmp_path / f"log-{len(started)}"
        read, write = os.pipe()
        command = [sys.executable, "-m", "hounsfield.archive.cli", "serve", "--data", str(data)]
        command += ["--dicom", "127.0.0.1:0", "--http", "127.0.0.1:0", "--ready-fd", str(write)]
        command += ["--workers", str(workers), *arguments]
        with log.open("wb") as output:
            process = subprocess.Popen(
                command, pass_fds=[write], stdout=output, stderr=output, env=environment
            )
        started.append(process)
        os.close(write)
        with os.fdopen(read) as ready:
            line = ready.readline()
        assert line, log.read_text()
        return Archive(process, json.loads(line), data, log, environment)

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.wait(60)


def test_objects_go_in_and_are_found_by_every_worker_and_command(serve: Start, tmp_path: Path) -> None:
    archive = serve()
    data = ("--data", str(archive.data))
    sent = archive.command("send", f"HOUNSFIELD@{archive.address('dicom')}", *map(str, FILES))
    assert sent.returncode == 0, sent.stderr
    for _ in range(8):  # new connections, so that both workers answer
        answer = httpx.get(f"{archive.url}/dicom-web/studies", timeout=30)
        assert len(answer.json()) == len(FILES)
    studies = json.loads(archive.command("ls", "--json", *data).stdout)["rows"]
    uids = [row["study"]["0020000D"] for row in studies]
    exported = archive.command("export", *uids, "--to", str(tmp_path / "out"), "--json", *data)
    assert json.loads(exported.stdout)["written"] == len(FILES), exported.stderr
    for file in FILES:
        original = dcmread(file)
        (copy,) = (tmp_path / "out").rglob(f"{original.SOPInstanceUID}.dcm")
        assert dcmread(copy) == original
    again = archive.command("export", *uids, "--to", str(tmp_path / "out"), "--json", *data)
    assert json.loads(again.stdout) == {"written": 0, "skipped": len(FILES), "failed": 0, "bytes": 0}
    assert archive.stop() == 0
    offline = json.loads(archive.command("ls", "--json", *data).stdout)["rows"]
    assert offline == studies, "the same answer without a server"


def test_no_log_line_and_no_metric_names_a_patient(serve: Start) -> None:
    archive = serve("--set", "logs.level=debug")
    archive.command("send", f"HOUNSFIELD@{archive.address('dicom')}", *map(str, FILES))
    ct = dcmread(FILES[0])
    httpx.get(f"{archive.url}/dicom-web/studies", params={"PatientName": str(ct.PatientName)}, timeout=30)
    httpx.get(f"{archive.url}/dicom-web/studies/{ct.StudyInstanceUID}/metadata", timeout=30)
    httpx.get(f"{archive.url}/dicom-web/studies/{ct.StudyInstanceUID}.1/metadata", timeout=30)
    metrics = httpx.get(f"{archive.url}/metrics", timeout=30).text
    assert archive.stop() == 0
    shown = archive.log.read_text() + metrics
    for secret in ("CompressedSamples", ct.PatientID, ct.StudyInstanceUID, ct.SOPInstanceUID):
        assert str(secret) not in shown


def test_metrics_show_the_whole_archive(serve: Start) -> None:
    archive = serve()
    archive.command("send", f"HOUNSFIELD@{archive.address('dicom')}", *map(str, FILES))

    def stored() -> float:
        for line in httpx.get(f"{archive.url}/metrics", timeout=30).text.splitlines():
            if line.startswith('hounsfield_objects_total{outcome="stored"}'):
                return float(line.split()[-1])
        raise AssertionError("not published")

    deadline = time.monotonic() + 30
    while stored() != len(FILES):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_an_added_ae_may_call_at_once_and_is_remembered(serve: Start) -> None:
    archive = serve("--set", 'dicom.calling_titles=["ONLY"]')
    data = ("--data", str(archive.data))
    call = ("echo", f"HOUNSFIELD@{archive.address('dicom')}", "--calling", "CT1")
    refused = archive.command(*call)
    assert refused.returncode == 1
    assert refused.stderr.count("\n") == 1
    rows = json.loads(archive.command("ae", "recent", "--refused", "--json", *data).stdout)
    assert [(row["calling_ae"], row["outcome"]) for row in rows] == [("CT1", "refused")]
    assert archive.command("ae", "add", "CT1", "--source", "127.0.0.1", *data).returncode == 0
    for _ in range(6):
        assert archive.command(*call).returncode == 0
    assert archive.stop() == 0
    again = serve("--set", 'dicom.calling_titles=["ONLY"]')
    echoed = again.command("echo", f"HOUNSFIELD@{again.address('dicom')}", "--calling", "CT1")
    assert echoed.returncode == 0, echoed.stderr


def test_bearer_tokens_are_asked_for_and_rotate(serve: Start, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text("viewer:the-first-token-0123456789\n")
    tokens.chmod(0o600)
    archive = serve("--set", f"http.bearer_token_file={tokens}", workers=1)

    def status(token: str | None) -> int:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        return httpx.get(f"{archive.url}/dicom-web/studies", headers=headers, timeout=30).status_code

    assert status(None) == 401
    assert status("the-first-token-0123456789") in {200, 204}
    tokens.write_text("viewer:the-other-token-0123456789\n")
    archive.process.send_signal(signal.SIGHUP)
    deadline = time.monotonic() + 30
    while status("the-other-token-0123456789") == 401:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert status("the-first-token-0123456789") == 401
    assert httpx.get(f"{archive.url}/healthz", timeout=30).status_code == 200


def test_a_wrong_master_key_is_one_clear_error(serve: Start, tmp_path: Path) -> None:
    archive = serve(workers=1)
    assert archive.stop() == 0
    other = tmp_path / "other.key"
    other.write_text(os.urandom(32).hex())
    done = archive.command(
        "serve", "--data", str(archive.data), "--dicom", "127.0.0.1:0", "--http", "127.0.0.1:0",
        "--set", f"keys.master_key=file:{other}",
    )  # fmt: skip
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert "Traceback" not in done.stderr
    assert "key" in line
