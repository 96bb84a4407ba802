"""How fast cold series come back, what reading, making and moving them costs: `python -m benchmarks tiers`.

A server of SeaweedFS is the bucket, on the same machine. Each experiment also runs alone
(`python -m benchmarks.tiers_recall`).
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from functools import partial

from benchmarks import engine
from benchmarks.bars import Experiment

EXPERIMENTS: dict[str, tuple[str, str]] = {
    "recall": ("benchmarks.tiers_recall", "bringing a series back, beside obstore alone"),
    "first-cold-frame": ("benchmarks.tiers_frames", "frames of cold series, beside one ranged GET"),
    "packs": ("benchmarks.tiers_packs", "HTJ2K packs, beside lossless JPEG 2000"),
    "foreground": ("benchmarks.tiers_foreground", "C-STORE and frames while series are moved, and while not"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the experiments; 1 when a bar was not held or an experiment failed."""

    def experiment(module: str) -> Experiment:
        run: Experiment = importlib.import_module(module).run
        return run

    found = {name: (partial(experiment, module), title) for name, (module, title) in EXPERIMENTS.items()}
    return engine.run_named(arguments, found, name="tiers", document=__doc__)


if __name__ == "__main__":
    sys.exit(main())
