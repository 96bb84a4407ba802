"""Small objects (32 KiB) at eight associations, in series and a study each: ours beside tuned Orthanc.

As `python -m benchmarks ingest --scenarios small,small-studies`, but with the bars and nobody else.
"""

from __future__ import annotations

import sys

from benchmarks import bars, ingest
from benchmarks.bars import Figure, Say, Settings
from benchmarks.peers.base import Peer
from benchmarks.peers.ours import Hounsfield
from benchmarks.peers.servers import Orthanc
from benchmarks.results import OURS, paired_ratios

BARS = {"small": ("in series", 5.0), "small-studies": ("a study each", 3.0)}


def run(settings: Settings, say: Say) -> list[Figure]:
    """Ratios of both scenarios; without Orthanc only our own rates."""
    peers: list[type[Peer]] = [Hounsfield]
    if Orthanc.missing() is None:
        peers.append(Orthanc)
    else:
        say(f"no Orthanc to compare with: {Orthanc.missing()}")
    figures = []
    for name, (title, bar) in BARS.items():
        cells = ingest.rounds(
            peers,
            ingest.SCENARIOS[name],
            number=settings.rounds,
            seconds=settings.seconds,
            scratch=settings.scratch,
            progress=lambda cell: say(f"{cell['server']:>12} {cell['rate']:8,.0f}/s {cell.get('error', '')}"),
        )
        ours = [cell for cell in cells if cell["server"] == OURS]
        theirs = [cell for cell in cells if cell["server"] == Orthanc.name]
        failed = [cell for cell in ours if cell.get("error") or cell.get("failures") or cell.get("lost")]
        if failed:
            raise RuntimeError(f"ours failed: {failed[0].get('error') or failed[0]['failures']}")
        figures.append(
            Figure(
                "small",
                f"C-STORE of 32 KiB objects {title}, 8 associations",
                [cell["rate"] for cell in ours],
                "instances/s",
            )
        )
        figures.append(
            Figure(
                "small",
                f"the same over tuned Orthanc, {title}",
                paired_ratios(ours, theirs),
                "×",
                at_least=bar,
                detail={"orthanc": [cell["rate"] for cell in theirs]},
            )
        )
    return figures


if __name__ == "__main__":
    sys.exit(bars.main(run, __doc__))
