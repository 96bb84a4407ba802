"""What storing native frames smaller costs and saves: `python -m benchmarks.compression [--json OUT]`.

CPU time of one thread (not the wall's, so that a busy machine does not matter) for frames like those that
modalities send: synthetic ones with a detector's noise, and real ones that packages carry. *Verify* is the
decoding and comparing that each frame goes through before it is stored, so ingest pays encode + verify, and a
frame that is read pays decode. Beside them stand sealing and the bytes that need not be written.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pydicom
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from pydicom.data import get_testdata_file
from rich.console import Console
from rich.table import Table

from benchmarks import machine
from benchmarks.pictures import picture
from hounsfield.codecs.at_rest import Encoding, compressed, decoded
from hounsfield.codecs.pixels import PixelFormat

SYNTHETIC = {
    "CT 512×512, noise": ("ct", PixelFormat(512, 512, 1, 16, 12)),
    "MR 256×256, noise": ("mr", PixelFormat(256, 256, 1, 16, 12)),
    "CR 2500×2048, noise": ("cr", PixelFormat(2500, 2048, 1, 16, 12)),
    "US 640×480 RGB": ("us", PixelFormat(480, 640, 3, 8, 8)),
}
#: From pydicom and pydicom-data.
REAL = {
    "CT, real": "693_UNCR.dcm",
    "CT 128×128, real": "CT_small.dcm",
    "MR 1024×1024, real": "MR2_UNCR.dcm",
    "CR 1955×1841, real": "RG1_UNCR.dcm",
    "CR 1760×1760, real": "RG3_UNCR.dcm",
    "US 640×480 RGB, real": "US1_UNCR.dcm",
    "visible light RGB, real": "VL1_UNCR.dcm",
}
REPEATS = 5
CPU_S_EACH = 0.15  # of one measurement; the median of REPEATS counts


@dataclass(frozen=True, slots=True)
class Cell:
    """One frame in one encoding. Times are CPU milliseconds of one thread."""

    frame: str
    encoding: str
    bytes_received: int
    bytes_stored: int
    encode_ms: float
    verify_ms: float
    decode_ms: float

    @property
    def ratio(self) -> float:
        return self.bytes_received / self.bytes_stored


def frames() -> dict[str, tuple[bytes, PixelFormat]]:
    """Every frame that is measured, by name; real ones as far as their packages are installed."""
    found = {
        name: (picture(kind, 0)[: pixels.frame_bytes], pixels) for name, (kind, pixels) in SYNTHETIC.items()
    }
    for name, file in REAL.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            path = get_testdata_file(file, download=False)
            if path is None:
                continue
            dataset = pydicom.dcmread(Path(str(path)))
        pixels = PixelFormat(
            int(dataset.Rows), int(dataset.Columns), int(dataset.SamplesPerPixel), int(dataset.BitsAllocated),
            int(dataset.BitsStored), bool(dataset.PixelRepresentation),
            bool(dataset.get("PlanarConfiguration", 0)),
        )  # fmt: skip
        found[name] = (dataset.PixelData[: pixels.frame_bytes], pixels)
    return found


def measure(name: str, frame: bytes, pixels: PixelFormat, encoding: Encoding) -> Cell:
    """One cell of the table."""
    stored = compressed(frame, encoding, pixels)
    both = cpu_ms(lambda: compressed(frame, encoding, pixels))
    decode = cpu_ms(lambda: decoded(stored))
    return Cell(name, encoding.value, len(frame), len(stored), max(both - decode, 0.0), decode, decode)


def cpu_ms(call: Callable[[], object]) -> float:
    """Median CPU milliseconds of one call, after a warm-up."""
    call()
    started = time.process_time()
    call()
    calls = max(1, int(CPU_S_EACH / max(time.process_time() - started, 1e-5)))
    found = []
    for _ in range(REPEATS):
        started = time.process_time()
        for _ in range(calls):
            call()
        found.append(1000 * (time.process_time() - started) / calls)
    return statistics.median(found)


def sealing_ms(length: int) -> float:
    """CPU milliseconds to seal so many bytes, as every frame is."""
    key, data, into = AESGCM(bytes(32)), os.urandom(length), bytearray(length + 16)
    return cpu_ms(lambda: key.encrypt_into(bytes(12), data, None, into))


def show(cells: list[Cell], console: Console) -> None:
    table = Table(title="Native frames stored smaller: CPU ms of one thread, every frame verified")
    for column in (
        "frame",
        "encoding",
        "KiB",
        "stored KiB",
        "ratio",
        "encode",
        "verify",
        "decode",
        "ms a MiB",
    ):
        table.add_column(column, justify="left" if column in {"frame", "encoding"} else "right")
    before = ""
    for cell in cells:
        table.add_row(
            cell.frame if cell.frame != before else "",
            cell.encoding,
            f"{cell.bytes_received / 1024:,.0f}",
            f"{cell.bytes_stored / 1024:,.0f}",
            f"{cell.ratio:.2f}",
            f"{cell.encode_ms:.2f}",
            f"{cell.verify_ms:.2f}",
            f"{cell.decode_ms:.2f}",
            f"{(cell.encode_ms + cell.verify_ms) / cell.bytes_received * 2**20:.2f}",
            end_section=cell.encoding == list(Encoding)[-1].value,
        )
        before = cell.frame
    console.print(table)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compression", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="OUT")
    options = parser.parse_args(arguments)
    cells = [
        measure(name, frame, pixels, encoding)
        for name, (frame, pixels) in frames().items()
        for encoding in Encoding
    ]
    show(cells, Console(width=130 if not sys.stdout.isatty() else None))
    seal = sealing_ms(512 << 10)
    print(f"sealing 512 KiB: {seal:.2f} ms CPU")
    if options.json:
        result: dict[str, Any] = {
            "machine": machine.describe(Path.cwd()),
            "sealing_512_kib_ms": seal,
            "cells": [asdict(cell) for cell in cells],
        }
        options.json.write_text(json.dumps(result, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
