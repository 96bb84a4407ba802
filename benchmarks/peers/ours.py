"""This archive as a `Peer`: `hounsfield serve` with its defaults, sealed, durable and indexed."""

from __future__ import annotations

import importlib.metadata
import importlib.util

from benchmarks.peers.base import PYTHON, Endpoints, Peer

AE_TITLE = "HOUNSFIELD"


class Hounsfield(Peer):
    """Hounsfield with a generated development key, everything else as it comes."""

    name = "hounsfield"
    label = "Hounsfield"
    durable = "sealed, synced and indexed (index synced)"
    tuning = "defaults"

    @classmethod
    def missing(cls) -> str | None:
        return None if importlib.util.find_spec("hounsfield.archive.cli.serve") else "make setup"

    def version(self) -> str:
        return f"hounsfield {importlib.metadata.version('hounsfield')}"

    def _launch(self) -> Endpoints:
        self._start(
            [PYTHON, "-m", "hounsfield.archive.cli", "serve", "--data", str(self.directory / "data"),
             "--dicom", "127.0.0.1:0", "--http", "127.0.0.1:0"],
        )  # fmt: skip
        return self._ports()

    def _ports(self) -> Endpoints:
        raise NotImplementedError
