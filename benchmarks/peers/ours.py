"""This archive as a `Peer`: `hounsfield serve` with its defaults, sealed, durable and indexed.

Its ports are learnt from the control socket, by the protocol and not by its code.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import socket
from pathlib import Path
from typing import Any

from benchmarks.peers.base import PYTHON, Endpoints, Peer, PeerError, http_get

AE_TITLE = "HOUNSFIELD"
CONTROL_SOCKET = "control.sock"
COMMAND = (PYTHON, "-c", "from hounsfield.archive.cli import main; main()")
STUDIES_A_PAGE = 1000


class Hounsfield(Peer):
    """Hounsfield with a generated development key, everything else as it comes."""

    name = "hounsfield"
    label = "Hounsfield"
    durable = "sealed, synced and indexed"
    tuning = "defaults"
    arguments: tuple[str, ...] = ()

    @classmethod
    def missing(cls) -> str | None:
        try:
            found = importlib.util.find_spec("hounsfield.archive.cli")
            module = __import__("hounsfield.archive.cli", fromlist=["main"]) if found else None
        except ImportError:
            module = None
        return None if module is not None and hasattr(module, "main") else "make setup"

    def version(self) -> str:
        return f"hounsfield {importlib.metadata.version('hounsfield')}"

    def _launch(self) -> Endpoints:
        listeners = ("--dicom", "127.0.0.1:0", "--http", "127.0.0.1:0")
        # The development key goes where the rest of this run is, not into the user's home.
        state = {"XDG_STATE_HOME": str(self.directory / "state")}
        command = [*COMMAND, "serve", "--data", str(self._data), *listeners, *self.arguments]
        self._start(command, environment=state)
        self._wait(lambda: (self._status() or {}).get("state") == "serving", "the state 'serving'")
        status = self._status() or {}
        ports = {listener["kind"]: int(listener["port"]) for listener in status["listeners"]}
        return Endpoints(dicom_port=ports["dicom"], http_port=ports["http"], ae_title=AE_TITLE)

    @property
    def _data(self) -> Path:
        return self.directory / "data"

    def add_ae(self, title: str, host: str, port: int) -> None:
        """Makes an application entity known to the running server."""
        if self.asked("ae-add", title=title, host=host, port=port) is None:
            raise PeerError(f"{self.label} did not take the AE {title}:\n{self.log_tail()}")

    def _status(self) -> dict[str, Any] | None:
        """The server's own account of itself, None while it does not answer."""
        return self.asked("status")

    def asked(self, operation: str, **arguments: object) -> dict[str, Any] | None:
        """What the server answers over its control socket, None when it answers nothing or an error."""
        if not self._data.is_dir():
            return None
        folder = os.open(self._data, os.O_RDONLY | os.O_DIRECTORY)
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
                sock.settimeout(5.0)
                # Through the descriptor, because a socket's name may be no longer than 108 bytes.
                sock.connect(f"/proc/self/fd/{folder}/{CONTROL_SOCKET}")
                sock.sendall(json.dumps({"op": operation, "args": arguments}).encode() + b"\n")
                with sock.makefile("rb") as lines:
                    answer = json.loads(lines.readline() or b"{}")
        except (OSError, ValueError):
            return None
        finally:
            os.close(folder)
        result: dict[str, Any] | None = answer.get("result")
        return result

    def stored(self) -> int | None:
        """What QIDO-RS counts: the sum of NumberOfStudyRelatedInstances over all studies."""
        total = offset = 0
        while True:
            url = (
                f"http://127.0.0.1:{self.endpoints.http_port}/dicom-web/studies"
                f"?limit={STUDIES_A_PAGE}&offset={offset}&includefield=00201208"
            )
            body = http_get(url)
            if body is None:
                return None
            page = json.loads(body) if body.strip() else []
            total += sum(int(study["00201208"]["Value"][0]) for study in page)
            offset += len(page)
            if len(page) < STUDIES_A_PAGE:
                return total
