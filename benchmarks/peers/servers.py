"""Every server that is measured, as a `Peer`. `ALL` is their order in tables."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import shutil
import subprocess
from pathlib import Path
from typing import ClassVar

from benchmarks.peers.base import (
    MAX_PDU_DCMTK,
    MAX_PDU_OURS,
    PYTHON,
    Endpoints,
    Peer,
    free_port,
    http_get,
)
from benchmarks.peers.ours import Hounsfield

# DCMTK sends a response in two small writes; with Nagle's algorithm on, the second waits 40 ms for the
# delayed ACK.
NO_DELAY = {"TCP_NODELAY": "1"}
ORTHANC_PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")


class Orthanc(Peer):
    """Orthanc with its DICOMweb plugin, tuned for ingest without giving up what it syncs."""

    name = "orthanc"
    label = "Orthanc, tuned"
    durable = "file synced, SQLite index not"
    tuning = (
        "TCP_NODELAY=1, DicomThreadsCount 16, MaximumPduLength 131072, no attachment MD5, no jobs saved, "
        "no metrics, StableAge 3600, 512 MiB storage cache; SyncStorageArea stays on"
    )
    packages = ("orthanc", "orthanc-dicomweb")
    settings: ClassVar[dict[str, object]] = {
        "ConcurrentJobs": 8,
        "DicomThreadsCount": 16,
        "MaximumPduLength": MAX_PDU_DCMTK,
        "StoreMD5ForAttachments": False,
        "StorageCompression": False,
        "SaveJobs": False,
        "MetricsEnabled": False,
        "StableAge": 3600,
        "MaximumStorageCacheSize": 512,
        "HttpThreadsCount": 16,
        "KeepAlive": True,
        "TcpNoDelay": True,
        "OverwriteInstances": False,
        "SyncStorageArea": True,
    }
    environment: ClassVar[dict[str, str]] = NO_DELAY

    @classmethod
    def missing(cls) -> str | None:
        if _orthanc() and ORTHANC_PLUGIN.exists():
            return None
        return "apt-get install -y --no-install-recommends orthanc orthanc-dicomweb"

    def version(self) -> str:
        return _first_line([str(_orthanc()), "--version"])

    def _launch(self) -> Endpoints:
        dicom, http = free_port(), free_port()
        store = self.directory / "store"
        store.mkdir()
        configuration = {
            "Name": "BENCH",
            "StorageDirectory": str(store),
            "IndexDirectory": str(store),
            "Plugins": [str(ORTHANC_PLUGIN)],
            "DicomAet": "ORTHANC",
            "DicomPort": dicom,
            "HttpPort": http,
            "DicomAlwaysAllowStore": True,
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": False,
            "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
            **self.settings,
        }
        path = self.directory / "orthanc.json"
        path.write_text(json.dumps(configuration))
        self._start([str(_orthanc()), str(path)], environment=self.environment)
        self._wait_http(f"http://127.0.0.1:{http}/system")
        self._wait_port(dicom)
        return Endpoints(dicom_port=dicom, http_port=http, ae_title="ORTHANC")

    def stored(self) -> int | None:
        body = http_get(f"http://127.0.0.1:{self.endpoints.http_port}/statistics")
        return int(json.loads(body)["CountInstances"]) if body else None


class OrthancAsShipped(Orthanc):
    """Orthanc with Debian's configuration; only ports, folders and the plugin are set."""

    name = "orthanc-shipped"
    label = "Orthanc, as shipped"
    tuning = "Debian's defaults; every response stalls 40 ms between Nagle and delayed ACK"
    settings: ClassVar[dict[str, object]] = {}
    environment: ClassVar[dict[str, str]] = {}


class Storescp(Peer):
    """DCMTK's storescp: a process per association, a Part 10 file per object, nothing synced."""

    name = "storescp"
    label = "DCMTK storescp"
    durable = "nothing synced, no index"
    tuning = "--fork, 128 KiB PDU, bit preserving, TCP_NODELAY=1"
    packages = ("dcmtk",)

    @classmethod
    def missing(cls) -> str | None:
        return None if shutil.which("storescp") else "apt-get install -y --no-install-recommends dcmtk"

    def version(self) -> str:
        return _first_line(["storescp", "--version"])

    def _launch(self) -> Endpoints:
        port = free_port()
        store = self.directory / "store"
        store.mkdir()
        self._start(
            [
                "storescp",
                "--fork",
                "--max-pdu",
                str(MAX_PDU_DCMTK),
                "+B",
                "+xa",
                "-od",
                str(store),
                str(port),
            ],
            environment=NO_DELAY,
        )
        self._wait_port(port)
        return Endpoints(dicom_port=port, ae_title="STORESCP")

    def stored(self) -> int | None:
        return _files(self.directory / "store")


class Dcmqrscp(Peer):
    """DCMTK's dcmqrscp: a process per association, files and one index file, nothing synced."""

    name = "dcmqrscp"
    label = "DCMTK dcmqrscp"
    durable = "nothing synced; index file rewritten in place"
    tuning = "128 KiB PDU, bit preserving, TCP_NODELAY=1, quota out of the way"
    packages = ("dcmtk",)
    hosts: ClassVar[dict[str, tuple[str, int]]] = {}
    """Where C-MOVE can send to: AE title to address."""

    @classmethod
    def missing(cls) -> str | None:
        return None if shutil.which("dcmqrscp") else "apt-get install -y --no-install-recommends dcmtk"

    def version(self) -> str:
        return _first_line(["dcmqrscp", "--version"])

    def _launch(self) -> Endpoints:
        port = free_port()
        store = self.directory / "store"
        store.mkdir()
        hosts = "".join(
            f"host{number} = ({title}, {address}, {there})\n"
            for number, (title, (address, there)) in enumerate(self.hosts.items())
        )
        configuration = self.directory / "dcmqrscp.cfg"
        configuration.write_text(
            f"NetworkTCPPort = {port}\nMaxPDUSize = {MAX_PDU_DCMTK}\nMaxAssociations = 64\n"
            f"HostTable BEGIN\n{hosts}HostTable END\nVendorTable BEGIN\nVendorTable END\n"
            f"AETable BEGIN\nDCMQRSCP {store} RW (10000, 1024gb) ANY\nAETable END\n"
        )
        self._start(
            ["dcmqrscp", "-c", str(configuration), "+B", "-pdu", str(MAX_PDU_DCMTK)], environment=NO_DELAY
        )
        self._wait_port(port)
        return Endpoints(dicom_port=port, ae_title="DCMQRSCP")

    def stored(self) -> int | None:
        return _files(self.directory / "store", but="index.dat")


class Pynetdicom(Peer):
    """pynetdicom: a thread per association in one Python process, a file per object, nothing synced."""

    name = "pynetdicom"
    label = "pynetdicom"
    durable = "nothing synced, no index"
    tuning = "256 KiB PDU, raw data set bytes to a file"
    modules = ("pynetdicom",)

    @classmethod
    def missing(cls) -> str | None:
        found = importlib.util.find_spec("pynetdicom")
        return None if found else f"{PYTHON} -m pip install pynetdicom"

    def version(self) -> str:
        return f"pynetdicom {importlib.metadata.version('pynetdicom')}"

    def _launch(self) -> Endpoints:
        store = self.directory / "store"
        store.mkdir()
        self._start(
            [PYTHON, "-m", "benchmarks.peers.pynetdicom_scp", "--directory", str(store), *_same_pdu()]
        )
        return Endpoints(dicom_port=self._wait_ready_line(), ae_title="PYNETDICOM")

    def stored(self) -> int | None:
        return _files(self.directory / "store")


class Bare(Peer):
    """A file and an fdatasync for each object: the floor of storing durably."""

    name = "bare"
    label = "bare: file + fdatasync"
    durable = "file synced; no index, no encryption"
    tuning = "a process per association, 256 KiB PDU, TCP_NODELAY"
    extra: tuple[str, ...] = ()

    def version(self) -> str:
        return "benchmarks.peers.bare"

    def _launch(self) -> Endpoints:
        store = self.directory / "store"
        store.mkdir()
        self._start(
            [PYTHON, "-m", "benchmarks.peers.bare", "--directory", str(store), *_same_pdu(), *self.extra]
        )
        return Endpoints(dicom_port=self._wait_ready_line(), ae_title="BARE")

    def stored(self) -> int | None:
        return _files(self.directory / "store")


class Discard(Bare):
    """Throws everything away: how fast the load generator can be on this machine."""

    name = "discard"
    label = "discards everything"
    durable = "stores nothing: the load generator's ceiling"
    extra = ("--discard",)

    def stored(self) -> int | None:
        return None


class FixedHttp(Peer):
    """Answers every request with the same 512 KiB: how fast the HTTP load generator can be on this
    machine.
    """

    name = "fixed-http"
    label = "fixed answer"
    durable = "stores nothing: the load generator's ceiling"
    tuning = "a process per connection, one send per answer"

    def version(self) -> str:
        return "benchmarks.peers.fixed_http"

    def _launch(self) -> Endpoints:
        self._start([PYTHON, "-m", "benchmarks.peers.fixed_http"])
        return Endpoints(dicom_port=0, http_port=self._wait_ready_line())


ALL: tuple[type[Peer], ...] = (
    Discard,
    Bare,
    Hounsfield,
    Orthanc,
    OrthancAsShipped,
    Storescp,
    Dcmqrscp,
    Pynetdicom,
)
"""Measured with C-STORE, in the order of the tables."""

FRAMES: tuple[type[Peer], ...] = (FixedHttp, Hounsfield, Orthanc)
"""Measured with frames over HTTP."""


def _same_pdu() -> list[str]:
    return ["--max-pdu", str(MAX_PDU_OURS)]


def _files(directory: Path, *, but: str = "") -> int:
    return sum(1 for path in directory.iterdir() if path.name != but)


def _orthanc() -> Path | None:
    found = shutil.which("Orthanc") or shutil.which("Orthanc", path="/usr/sbin:/usr/local/sbin")
    return Path(found) if found else None


def _first_line(command: list[str]) -> str:
    result = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    lines = [line for line in (result.stdout + result.stderr).splitlines() if line.strip()]
    return lines[0].strip("$ ").strip() if lines else "unknown version"
