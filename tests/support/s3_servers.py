"""Real object servers for tests: SeaweedFS, from PyPI, and whatever else speaks S3 beside it."""

from __future__ import annotations

import atexit
import ctypes
import functools
import hashlib
import hmac
import itertools
import re
import shutil
import signal
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

import pytest
from benchmarks.peers.seaweedfs import set_up

from hounsfield.storage_backends.s3_store import S3Options

STARTING_S = 60
ACCESS_KEY, SECRET_KEY = "hounsfield-tests", "not-so-secret-0123456789"
DOMAIN = "store.example"  # bucket.store.example: reached through a proxy, as nobody knows the name

_numbers = itertools.count()


@dataclass(frozen=True)
class S3Server:
    """A server that answers, and its one bucket."""

    name: str
    port: int
    directory: Path
    bucket: str = "hounsfield-tests"

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def keys(self) -> Path:
        return self.directory / "keys"

    def options(self, prefix: str | None = None, *, endpoint: str | None = None) -> S3Options:
        """Of a place in the bucket that nobody else uses, or of ``prefix``; ``endpoint``: a proxy's."""
        return S3Options(
            self.bucket,
            endpoint=endpoint or self.endpoint,
            prefix=prefix or f"p{next(_numbers)}-{time.monotonic_ns()}",
            allow_http=True,
            credentials=f"file:{self.keys}",
        )

    def ask(self, method: str, path: str, query: dict[str, str] | None = None) -> bytes:
        """A signed request of our own, for what obstore does not do (signature version 4)."""
        moment = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
        asked = "&".join(f"{quote(k, safe='')}={quote(v, safe='')}" for k, v in sorted((query or {}).items()))
        empty = hashlib.sha256(b"").hexdigest()
        headers = {"host": f"127.0.0.1:{self.port}", "x-amz-content-sha256": empty, "x-amz-date": moment}
        names = ";".join(headers)
        lines = "".join(f"{name}:{value}\n" for name, value in headers.items())
        request = "\n".join([method, quote(path), asked, lines, names, empty])
        scope = f"{moment[:8]}/us-east-1/s3/aws4_request"
        text = f"AWS4-HMAC-SHA256\n{moment}\n{scope}\n{hashlib.sha256(request.encode()).hexdigest()}"
        key = b"AWS4" + SECRET_KEY.encode()
        for part in scope.split("/"):
            key = hmac.digest(key, part.encode(), "sha256")
        headers["authorization"] = (
            f"AWS4-HMAC-SHA256 Credential={ACCESS_KEY}/{scope}, SignedHeaders={names}, "
            f"Signature={hmac.digest(key, text.encode(), 'sha256').hex()}"
        )
        url = f"{self.endpoint}{quote(path)}" + (f"?{asked}" if asked else "")
        with urllib.request.urlopen(urllib.request.Request(url, method=method, headers=headers)) as answer:
            body: bytes = answer.read()
            return body

    def unfinished_uploads(self, prefix: str) -> list[tuple[str, str]]:
        """Key and id of the multipart uploads that were neither completed nor aborted."""
        listed = self.ask("GET", f"/{self.bucket}", {"uploads": "", "prefix": prefix}).decode()
        uploads = re.findall(r"<Upload>(.*?)</Upload>", listed, re.DOTALL)
        named = [
            (re.search(r"<Key>(.*?)</Key>", u), re.search(r"<UploadId>(.*?)</UploadId>", u)) for u in uploads
        ]
        return [(key[1], upload[1]) for key, upload in named if key and upload]

    def abort_uploads(self, uploads: list[tuple[str, str]]) -> None:
        """What a lifecycle rule does after some days."""
        for key, upload in uploads:
            self.ask("DELETE", f"/{self.bucket}/{key}", {"uploadId": upload})

    def make_bucket(self) -> None:
        deadline = time.monotonic() + STARTING_S
        while True:
            try:
                self.ask("PUT", f"/{self.bucket}")
            except (urllib.error.URLError, ConnectionError):  # it listens before it can do anything
                assert time.monotonic() < deadline, f"{self.name} makes no bucket"
                time.sleep(0.1)
            else:
                return


def start_program(command: list[str], log: Path) -> subprocess.Popen[bytes]:
    """A program that ends when this process does, however that ends."""
    with log.open("ab") as output:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            preexec_fn=_end_with_parent,
        )


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def stop_program(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def wait_until(ready: Callable[[], bool], process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + STARTING_S
    while not ready():
        assert process.poll() is None, log.read_text(errors="replace")[-3000:]
        assert time.monotonic() < deadline, log.read_text(errors="replace")[-3000:]
        time.sleep(0.05)


def answers(url: str) -> bool:
    """Whether somebody speaks HTTP there."""
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except urllib.error.HTTPError as error:
        return error.code < 500
    except OSError:
        return False


@functools.cache
def seaweedfs() -> S3Server:
    """SeaweedFS, started once for this process and stopped with it (some 3 s)."""
    weed = Weed()
    atexit.register(weed.end)
    weed.server.make_bucket()
    return weed.server


class Weed:
    """A SeaweedFS that can be killed, and started again on what it wrote."""

    def __init__(self) -> None:
        directory = Path(tempfile.mkdtemp(prefix="hounsfield-seaweedfs-"))
        made = set_up(directory, ACCESS_KEY, SECRET_KEY, volume_mb=256, domain=DOMAIN)
        self._command = made.command
        self.server = S3Server("SeaweedFS", made.port, directory)
        self.start()

    def start(self) -> None:
        """Returns once it answers."""
        log = self.server.directory / "log"
        self._process = start_program(self._command, log)
        wait_until(lambda: answers(f"{self.server.endpoint}/healthz"), self._process, log)

    def kill(self) -> None:
        """``kill -9``."""
        self._process.kill()
        self._process.wait()

    def end(self) -> None:
        """Kill it, and remove what it wrote: asked politely it takes ten seconds."""
        self.kill()
        shutil.rmtree(self.server.directory, ignore_errors=True)


@pytest.fixture(scope="session")
def s3_server() -> S3Server:
    """SeaweedFS. A test that asks for it is marked ``peer("seaweedfs")``."""
    return seaweedfs()
