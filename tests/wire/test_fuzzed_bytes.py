"""The danger: bytes nobody thought of. A short run of the fuzz target; ``make fuzz`` runs it for longer."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import fuzz_wire


def test_a_thousand_damaged_conversations() -> None:
    totals = fuzz_wire.fuzz(cases=1000, seed=20261122)
    assert totals.cases == 1000
    assert totals.errors > 200  # the damage reaches the parser, and below: not only its first lines
    assert {"AssociateRequest", "AssociateAccept", "AssociateReject", "DataFragment", "Abort"} <= totals.kinds
    assert {
        "ReleaseRequest",
        "ReleaseReply",
        "TransportClosed",
    } <= totals.kinds


def test_the_target_runs_alone() -> None:
    target = Path(fuzz_wire.__file__)
    made = subprocess.run(
        [sys.executable, str(target), "--cases", "20", "--seed", "1"], capture_output=True, check=True
    )
    assert b"20 cases from seed 1" in made.stdout
