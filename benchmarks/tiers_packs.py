"""HTJ2K packs: how small beside lossless JPEG 2000, and how fast. Sizes: --size slices=200

The work is `benchmarks.gathering`'s: a CT series gathered end to end, and frames one by one, the real ones
of pydicom's test files among them.
"""

from __future__ import annotations

import sys

from benchmarks import bars
from benchmarks.bars import Figure, Say, Settings
from benchmarks.compression import REAL, frames
from benchmarks.gathering import gather, ratios
from hounsfield.codecs.at_rest import Encoding

RATIO_BAR = 0.9
RATE_BAR = 25.0
EXPERIMENT = "packs"


def run(settings: Settings, say: Say) -> list[Figure]:
    """Ratios once, since they do not vary; rates every round."""
    slices = settings.size("slices", 200, 8)
    figures = []
    for name, (frame, pixels) in frames().items():
        one = ratios(name, frame, pixels)
        if one is not None:
            share = one.htj2k / one.jpeg_2000
            say(f"{name}: HTJ2K {one.htj2k:.2f}, JPEG 2000 {one.jpeg_2000:.2f}")
            bar = RATIO_BAR if name in REAL else None
            what = f"{name}: ratio of HTJ2K over lossless JPEG 2000's"
            detail = {"htj2k": one.htj2k, "jpeg_2000": one.jpeg_2000}
            figures.append(Figure(EXPERIMENT, what, [share], "×", at_least=bar, detail=detail))
    rates: list[float] = []
    for _ in range(settings.rounds):
        done = gather(Encoding.HTJ2K, slices, settings.scratch)
        rates.append(done.mb_per_cpu_s)
        say(f"gathered as HTJ2K: {rates[-1]:.0f} MB a second of CPU, {done.ratio:.2f} times smaller")
    what = "CT gathered as HTJ2K, end to end, a second of CPU"
    return [*figures, Figure(EXPERIMENT, what, rates, "MB", at_least=RATE_BAR)]


if __name__ == "__main__":
    sys.exit(bars.main(run, __doc__))
