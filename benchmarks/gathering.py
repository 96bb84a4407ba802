"""What gathering a series into a pack costs, and how small it gets: `python -m benchmarks.gathering`.

A synthetic CT series is stored as received and gathered by one thread, with each encoding. CPU time is the
process's (not the wall's, so that a busy machine does not matter), everything included: reading and opening
records, coding, decoding and comparing each frame, sealing, writing, reading back, the rows. Beside it
stand the ratios of HTJ2K and of lossless JPEG 2000 (OpenJPEG) on frames one by one, real ones among them.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks import archives, machine
from benchmarks.compression import frames
from benchmarks.studies import Kind, studies
from hounsfield.archive.index.gathering import Gatherer
from hounsfield.archive.index.tables import SERIES
from hounsfield.codecs.at_rest import Encoding, compressed
from hounsfield.codecs.by_imagecodecs import encode_jpeg_2000
from hounsfield.codecs.errors import CodecError
from hounsfield.codecs.pixels import PixelFormat, from_native

SLICES = 200


@dataclass(frozen=True, slots=True)
class Gathered:
    """One series. Bytes are stored bytes of its records, before and after."""

    encoding: str
    objects: int
    bytes_before: int
    bytes_after: int
    cpu_s: float
    wall_s: float

    @property
    def ratio(self) -> float:
        return self.bytes_before / self.bytes_after

    @property
    def mb_per_cpu_s(self) -> float:
        return self.bytes_before / self.cpu_s / 1e6


@dataclass(frozen=True, slots=True)
class Ratios:
    """One frame."""

    frame: str
    htj2k: float
    jpeg_2000: float


def gather(encoding: Encoding | None, slices: int, scratch: Path | None) -> Gathered:
    """Store a series, then gather it; only the gathering is measured."""
    with archives.folder(scratch) as place, archives.stores_in(place) as stores:
        archives.fill(stores, studies(Kind.CT, run=1, instances_per_series=slices))
        with stores.store.snapshot() as snapshot:
            ((key, _),) = snapshot.scan(SERIES)
        gatherer = Gatherer(stores.indexer)
        if encoding is not None:  # what a coder costs at its first frame is not the series's
            ((_, (frame, pixels)), *_) = frames().items()
            compressed(frame, encoding, pixels)
        cpu, wall = time.process_time(), time.monotonic()
        report = gatherer.gather(key, quiet_before_ns=1 << 62, recompress=encoding)
        cpu, wall = time.process_time() - cpu, time.monotonic() - wall
        name = "as received" if encoding is None else encoding.value
        return Gathered(name, report.objects, report.bytes_before, report.bytes_after, cpu, wall)


def ratios(name: str, frame: bytes, pixels: PixelFormat) -> Ratios | None:
    """How many times smaller a frame gets; None where JPEG 2000 does not take it."""
    try:
        reference = len(encode_jpeg_2000(from_native(frame, pixels), pixels))
    except CodecError:
        return None
    return Ratios(name, len(frame) / len(compressed(frame, Encoding.HTJ2K, pixels)), len(frame) / reference)


def show(series: list[Gathered], found: list[Ratios], console: Console) -> None:
    table = Table(title="A CT series gathered into a pack by one thread")
    for column in ("stored as", "objects", "MB", "packed MB", "ratio", "CPU s", "MB a CPU s", "wall s"):
        table.add_column(column, justify="left" if column == "stored as" else "right")
    for one in series:
        table.add_row(
            one.encoding, f"{one.objects:,}", f"{one.bytes_before / 1e6:.1f}", f"{one.bytes_after / 1e6:.1f}",
            f"{one.ratio:.2f}", f"{one.cpu_s:.2f}", f"{one.mb_per_cpu_s:.0f}", f"{one.wall_s:.2f}",
        )  # fmt: skip
    console.print(table)
    table = Table(title="Ratios frame by frame")
    for column in ("frame", "HTJ2K", "JPEG 2000", "share"):
        table.add_column(column, justify="left" if column == "frame" else "right")
    for row in found:
        share = f"{row.htj2k / row.jpeg_2000:.2f}"
        table.add_row(row.frame, f"{row.htj2k:.2f}", f"{row.jpeg_2000:.2f}", share)
    console.print(table)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gathering", description=__doc__)
    parser.add_argument("--slices", type=int, default=SLICES)
    parser.add_argument("--scratch", type=Path, metavar="FOLDER", help="where the archives are made")
    parser.add_argument("--json", type=Path, metavar="OUT")
    options = parser.parse_args(arguments)
    series = [gather(encoding, options.slices, options.scratch) for encoding in (None, *Encoding)]
    every = (ratios(name, frame, pixels) for name, (frame, pixels) in frames().items())
    found = [one for one in every if one is not None]
    show(series, found, Console(width=110 if not sys.stdout.isatty() else None))
    if options.json:
        result = {
            "machine": machine.describe(Path.cwd()),
            "series": [asdict(one) for one in series],
            "ratios": [asdict(one) for one in found],
        }
        options.json.write_text(json.dumps(result, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
