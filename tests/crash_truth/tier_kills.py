"""kill -9 while series move between tiers, are stored and are read, again and again, on one archive.

    python -m crash_truth.tier_kills [--rounds 20] [--seed 1]        (make tier-kills)

A rule has every series go to a directory at once, compressed, and what is opened is brought back. Each round
lets associations store in series of their own, reads what is there, and kills the supervisor and every worker
at a random moment. At the end all that was acknowledged is listed once and is what was sent, byte for byte;
the plan is empty; and fsck finds every pack where its row says, and nothing else in the tier.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import random
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console

from hounsfield.archive.app.asking import ask
from support.load import Made, StoreLoad
from support.server import ArchiveServer, archive_server, until, value

ASSOCIATIONS = 3
OBJECTS_MAX = 6  # of one association in one round: many series, and small ones
KILL_WITHIN_S = 1.5
READ_BEFORE = 8


@dataclass
class Tally:
    """What happened."""

    kills: int = 0
    acknowledged: int = 0
    packs: int = 0
    """In the tier at the end."""
    found: str = ""
    """By fsck, at the end; "" for nothing but notes that cost nothing."""


def settings(cold: Path) -> tuple[str, ...]:
    cold.mkdir(parents=True, exist_ok=True)
    return (
        f'tiers=[{{name="cold", directory="{cold}"}}]',
        'tier_rules=[{name="all", action="move", to=["cold"], compress="zstd"}]',
        "tiering.quiet_minutes=0",
        "tiering.plan_minutes=1000",
        "tiering.recalled_days=0",
    )


def run(directory: Path, *, rounds: int, seed: int) -> Tally:
    """Kill so many times; ``AssertionError`` when anything is lost, doubled or left over."""
    tally = Tally()
    rng = random.Random(seed)
    made: dict[str, Made] = {}
    sent: set[str] = set()
    with archive_server(directory, *settings(directory / "cold")) as server:
        for number in range(rounds):
            load = StoreLoad(
                server.dicom_port, seed * 1000 + number, ASSOCIATIONS, reconnect=True, objects_max=OBJECTS_MAX
            ).start()
            until(lambda load=load: load.acknowledged, "a load")
            ends = time.monotonic() + rng.random() * KILL_WITHIN_S
            while time.monotonic() < ends:
                with contextlib.suppress(Exception):
                    ask(server.data / "control.sock", "tier-apply")
                _read_some(server, rng, list(made.values()))
            server.kill_all()
            tally.kills += 1
            load.objects_max = 0
            load.finish()
            made |= {one.sop: one for one in load.acknowledged}
            sent |= load.sent
            server.start()
        tally.acknowledged = len(made)
        _require_all(server, made, sent)
        _settle(server)
        found = ask(server.data / "control.sock", "tier-status")["tiers"]
        tally.packs = next(one["packs"] for one in found if one["tier"] == "cold")
        assert server.terminate() == 0
        sets = [word for setting in server.settings for word in ("--set", setting)]
        done = server.run("fsck", "--json", *sets)
        wrong = [
            one
            for one in json.loads(done.stdout)["findings"]
            if one["check"] in {"packs", "segments", "keys"}
        ]
        tally.found = "; ".join(f"{one['what']}: {one['examples']}" for one in wrong if _matters(one))
    assert not tally.found, tally.found
    assert tally.packs
    return tally


def _matters(finding: dict[str, Any]) -> bool:
    """Whether it is more than what a killed append leaves, of which nothing was acknowledged."""
    return finding["what"] not in {
        "the rest of an append that a crash cut short",
        "a key seals nothing that is here",
        "a segment was compacted and is to be removed",
    }


def _read_some(server: ArchiveServer, rng: random.Random, known: list[Made]) -> None:
    for one in rng.sample(known, min(READ_BEFORE, len(known))):
        try:
            data = server.dataset_bytes(one.study, one.series, one.sop)
        except (httpx.HTTPError, OSError):
            return
        assert hashlib.sha256(data).hexdigest() == one.digest


def _settle(server: ArchiveServer) -> None:
    """Have the rules carried out until there is nothing to do."""

    ask(server.data / "control.sock", "tier-apply")

    def nothing_to_do() -> bool:
        status = ask(server.data / "control.sock", "tier-status")
        hot = next(one["packs"] for one in status["tiers"] if one["tier"] == "hot")
        if hot and not status["plan_asked"]:  # what was opened came back after the plan
            ask(server.data / "control.sock", "tier-apply")
        return not hot and not status["plan_asked"] and not status["recalls"]

    until(nothing_to_do, "an empty plan", seconds=120)
    assert json.loads(server.run("tier", "plan", "--json").stdout)["totals"]["series"] == 0


def _require_all(server: ArchiveServer, made: dict[str, Made], sent: set[str]) -> None:
    listed = Counter(value(row, "00080018") for row in server.instances())
    assert set(listed.values()) <= {1}, "listed twice"
    assert made.keys() <= listed.keys(), "acknowledged and lost"
    assert listed.keys() <= sent, "listed and never sent"
    for one in made.values():
        data = server.dataset_bytes(one.study, one.series, one.sop)
        assert hashlib.sha256(data).hexdigest() == one.digest


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        Console().print(run(Path(folder), rounds=given.rounds, seed=given.seed))
    return 0


if __name__ == "__main__":
    sys.exit(main())
