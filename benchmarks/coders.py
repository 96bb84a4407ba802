"""What each library takes for a frame of each transfer syntax: `python -m benchmarks.coders [--json OUT]`.

CPU time of one thread for every decoder and every encoder in the table of coders, for frames like those that
modalities send. The order in the table is what this says: a row whose first library is not the fastest that
takes the frame is marked, and the command's status is 1 when it is slower by more than the tolerance.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks import machine
from benchmarks.pictures import picture
from hounsfield.codecs.coders import CODERS, Coder
from hounsfield.codecs.errors import CodecError
from hounsfield.codecs.pixels import PixelFormat, Pixels, from_native, samples
from hounsfield.codecs.registry import lookup

FRAMES = {
    "CT 512×512": ("ct", PixelFormat(512, 512, 1, 16, 12, photometric="MONOCHROME2")),
    "CR 2500×2048": ("cr", PixelFormat(2500, 2048, 1, 16, 12, photometric="MONOCHROME2")),
    "US 640×480 RGB": ("us", PixelFormat(480, 640, 3, 8, 8, photometric="RGB")),
}
REPEATS = 3
CPU_S_EACH = 0.1  # of one measurement; the median of REPEATS counts
#: The first library may be slower than another by this much: less is noise, or not worth another order.
TOLERANCE = 1.15


@dataclass(frozen=True, slots=True)
class Cell:
    """One library, one direction, one frame. CPU milliseconds of one thread."""

    uid: str
    frame: str
    direction: str
    library: str
    place: int
    ms: float
    bytes_coded: int


def cpu_ms(function: Callable[[], object]) -> float:
    """The median CPU time of a call."""
    started = time.process_time()
    function()
    once = max(time.process_time() - started, 1e-6)
    count = max(1, int(CPU_S_EACH / once))
    times = []
    for _ in range(REPEATS if once < CPU_S_EACH else 1):
        started = time.process_time()
        for _ in range(count):
            function()
        times.append((time.process_time() - started) / count * 1000)
    return statistics.median(times)


def measured(coder: Coder, name: str, array: Pixels, pixels: PixelFormat) -> list[Cell]:
    """Every library of a row that takes the frame."""
    cells = []
    coded = b""
    for place, encoder in enumerate(coder.encoders):
        try:
            made = encoder.encode(array, pixels)
        except CodecError:
            continue
        coded = coded or made
        spent = cpu_ms(lambda encoder=encoder: encoder.encode(array, pixels))
        cells.append(Cell(coder.uid, name, "encode", encoder.library, place, spent, len(made)))
    for place, decoder in enumerate(coder.decoders if coded else ()):
        try:
            back = decoder.decode(coded, pixels)
        except CodecError:
            continue
        if coder.encodes_lossless and not np.array_equal(samples(back, pixels), samples(array, pixels)):
            raise SystemExit(f"{coder.uid}: {decoder.library} gave other pixels")
        spent = cpu_ms(lambda decoder=decoder: decoder.decode(coded, pixels))
        name_of = f"{decoder.library}{_which(coder, place)}"
        cells.append(Cell(coder.uid, name, "decode", name_of, place, spent, len(coded)))
    return cells


def _which(coder: Coder, place: int) -> str:
    """A number for a library that stands in a row more than once."""
    library = coder.decoders[place].library
    earlier = sum(one.library == library for one in coder.decoders[:place])
    return f" ({earlier + 1})" if earlier else ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    cells: list[Cell] = []
    seen: list[object] = []
    for coder in CODERS.values():
        libraries = (coder.decoders, coder.encoders)
        if not coder.encoders or not coder.isolated or libraries in seen:
            continue  # .203 is coded as .201 is, .112 as .110
        seen.append(libraries)
        for name, (kind, pixels) in FRAMES.items():
            array = from_native(picture(kind, 0)[: pixels.frame_bytes], pixels)
            cells += measured(coder, name, array, pixels)
    table = Table(title="CPU ms a frame, one thread")
    for column in ("transfer syntax", "frame", "", "library", "ms", "ratio"):
        table.add_column(column, justify="right" if column in {"ms", "ratio"} else "left")
    wrong = 0
    for cell in cells:
        kind, pixels = FRAMES[cell.frame]
        rivals = [o for o in cells if (o.uid, o.frame, o.direction) == (cell.uid, cell.frame, cell.direction)]
        late = cell.place == 0 and cell.ms > TOLERANCE * min(one.ms for one in rivals)
        wrong += late
        table.add_row(
            lookup(cell.uid).name.partition("(")[0][:44], cell.frame, cell.direction, cell.library,
            f"{cell.ms:.2f}{' !' if late else ''}", f"{pixels.frame_bytes / cell.bytes_coded:.2f}",
        )  # fmt: skip
    Console(width=150).print(table)
    if options.json:
        found = {"machine": machine.describe(Path.cwd()), "cells": [asdict(cell) for cell in cells]}
        options.json.write_text(json.dumps(found, indent=1))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
