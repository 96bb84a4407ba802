"""DICOM servers of others, started for a test and stopped after it."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.peers.base import free_port

STARTING_S = 60


@dataclass(frozen=True)
class Server:
    """A server that accepts connections."""

    title: str
    port: int
    directory: Path
    """What it stores lies below this."""

    @property
    def target(self) -> str:
        return f"{self.title}@127.0.0.1:{self.port}"


@contextmanager
def dcmqrscp(directory: Path, known: Mapping[str, int] | None = None, *options: str) -> Iterator[Server]:
    """DCMTK's archive; ``known``: the ports of those to whom it moves, by AE title."""
    port, store = free_port(), directory / "qr"
    store.mkdir(parents=True)
    hosts = "".join(f"h{p} = ({title}, 127.0.0.1, {p})\n" for title, p in (known or {}).items())
    configuration = directory / "dcmqrscp.cfg"
    configuration.write_text(
        f"NetworkTCPPort = {port}\nMaxPDUSize = 65536\nMaxAssociations = 16\n"
        f"HostTable BEGIN\n{hosts}HostTable END\nVendorTable BEGIN\nVendorTable END\n"
        f"AETable BEGIN\nQR {store} RW (1000, 1024mb) ANY\nAETable END\n"
    )
    with _running(["dcmqrscp", "-c", str(configuration), "+B", *options], port, directory / "dcmqrscp.log"):
        yield Server("QR", port, store)


@contextmanager
def storescp(directory: Path, *options: str) -> Iterator[Server]:
    """DCMTK's receiver."""
    port, store = free_port(), directory / "received"
    store.mkdir(parents=True)
    command = ["storescp", *options, "+xa", "+B", "-aet", "DEST", "-od", str(store), str(port)]
    with _running(command, port, directory / "storescp.log"):
        yield Server("DEST", port, store)


@contextmanager
def orthanc(directory: Path, known: Mapping[str, int] | None = None, **settings: Any) -> Iterator[Server]:
    """Orthanc without plugins; ``known`` as for :func:`dcmqrscp`."""
    program = shutil.which("Orthanc") or shutil.which("Orthanc", path="/usr/sbin:/usr/local/sbin")
    assert program is not None
    port, store = free_port(), directory / "orthanc"
    store.mkdir(parents=True)
    configuration = directory / "orthanc.json"
    configuration.write_text(
        json.dumps(
            {
                "StorageDirectory": str(store),
                "IndexDirectory": str(store),
                "DicomAet": "ORTHANC",
                "DicomPort": port,
                "HttpServerEnabled": False,
                "DicomAlwaysAllowEcho": True,
                "DicomAlwaysAllowStore": True,
                "DicomAlwaysAllowFind": True,
                "DicomAlwaysAllowGet": True,
                "DicomAlwaysAllowMove": True,
                "DicomModalities": {t: [t, "127.0.0.1", p] for t, p in (known or {}).items()},
                **settings,
            }
        )
    )
    with _running([program, str(configuration)], port, directory / "orthanc.log"):
        yield Server("ORTHANC", port, store)


@contextmanager
def _running(command: list[str], port: int, log: Path) -> Iterator[None]:
    environment = {**os.environ, "TCP_NODELAY": "1"}  # DCMTK's answers are two writes, 40 ms apart without
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
        try:
            deadline = time.monotonic() + STARTING_S
            while not _accepts(port):
                assert process.poll() is None, log.read_text(errors="replace")[-2000:]
                assert time.monotonic() < deadline, f"{command[0]} does not start"
                time.sleep(0.05)
            yield
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _accepts(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
    except OSError:
        return False
