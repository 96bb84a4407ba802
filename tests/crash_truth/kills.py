"""kill -9 at random moments under a load, again and again, on one archive that grows.

    python -m crash_truth.kills [--rounds 500] [--seed 1] [--json]        (make kills)

Each round starts the server, lets eight associations store, and kills the supervisor and every worker at a
random moment: 0 to 400 ms after the first acknowledgement. What the server lists is compared with what was
acknowledged and sent after every round, the bytes of what the round stored after every start, and all bytes
at the end. ``kill -9`` keeps the page cache: what a power cut takes is ``crash_truth.explore``'s to find.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from support.load import Made, StoreLoad
from support.server import ArchiveServer, archive_server, until, value

ASSOCIATIONS = 8
KILL_WITHIN_S = 0.4
OBJECTS_MAX = 60  # of one association in one round: an archive that lists in no time after 500 rounds


@dataclass
class Tally:
    """What happened over all rounds."""

    rounds: int = 0
    sent: int = 0
    acknowledged: int = 0
    cut_off: int = 0
    """Sent and never answered: there or not, but never in part."""
    there_though_unanswered: int = 0
    lost: list[str] = field(default_factory=list)
    half_visible: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    start_seconds_max: float = 0.0
    seconds: float = 0.0

    @property
    def well(self) -> bool:
        return not (self.lost or self.half_visible or self.failures)


def run(
    directory: Path, rounds: int, seed: int, *, progress: Callable[[Tally], None] = lambda _: None
) -> Tally:
    """So many rounds on a new archive below ``directory``."""
    rng = random.Random(seed)
    tally, began = Tally(), time.monotonic()
    acknowledged: dict[str, Made] = {}
    sent: set[str] = set()
    settings = ("storage.segment_bytes_max=16777216", "storage.study_stable_seconds=1")
    with archive_server(directory, *settings) as server:
        for number in range(rounds):
            load = StoreLoad(
                server.dicom_port,
                seed=seed * 1_000_000 + number,
                associations=ASSOCIATIONS,
                objects_max=OBJECTS_MAX,
            ).start()
            until(lambda load=load: load.acknowledged or load.failures, "a first answer")
            time.sleep(rng.random() * KILL_WITHIN_S)
            server.kill_all()
            load.finish()
            tally.failures += load.failures
            new = {made.sop: made for made in load.acknowledged}
            acknowledged |= new
            sent |= load.sent
            starting = time.monotonic()
            server.start()
            tally.start_seconds_max = max(tally.start_seconds_max, time.monotonic() - starting)
            check_round(server, tally, acknowledged, sent, load.sent)
            tally.rounds, tally.sent, tally.acknowledged = number + 1, len(sent), len(acknowledged)
            tally.seconds = time.monotonic() - began
            progress(tally)
            if not tally.well:
                break
        check_round(server, tally, acknowledged, sent, sent)
        check_numbers(server, tally)
        if server.terminate():
            tally.failures.append("the last end was not an orderly one")
        if "Traceback" in server.log_text():
            tally.failures.append("a traceback in the log")
    tally.cut_off = len(sent) - len(acknowledged)
    tally.seconds = time.monotonic() - began
    return tally


def check_round(
    server: ArchiveServer, tally: Tally, acknowledged: dict[str, Made], sent: set[str], look_at: set[str]
) -> None:
    """Everything acknowledged is listed, once, and nothing else but what was sent; ``look_at`` is read."""
    rows = {value(row, "00080018"): row for row in server.instances()}
    tally.lost += sorted(set(acknowledged) - set(rows))
    tally.half_visible += sorted(set(rows) - sent)
    tally.there_though_unanswered = len(set(rows) - set(acknowledged))
    for sop in look_at & set(rows):
        study, series = (value(rows[sop], tag) for tag in ("0020000D", "0020000E"))
        try:
            digest = hashlib.sha256(server.dataset_bytes(study, series, sop)).hexdigest()
        except AssertionError:
            digest = "not served"
        if sop in acknowledged and digest != acknowledged[sop].digest:
            tally.lost.append(sop)
        elif digest == "not served":
            tally.half_visible.append(sop)


def check_numbers(server: ArchiveServer, tally: Tally) -> None:
    """What studies say of their numbers is what is listed."""
    listed = Counter(value(row, "0020000D") for row in server.instances())
    found: dict[str, int] = {}
    while True:
        page = server.client.get(
            "/dicom-web/studies", params={"limit": 1000, "offset": len(found), "includefield": "00201208"}
        ).json()
        found |= {value(row, "0020000D"): int(value(row, "00201208")) for row in page}
        if len(page) < 1000:
            break
    if found != listed:
        tally.half_visible.append("a study says another number than it has")


def table(tally: Tally) -> str:
    lines = [
        ("rounds", tally.rounds),
        ("objects sent", tally.sent),
        ("acknowledged", tally.acknowledged),
        ("cut off unanswered", tally.cut_off),
        ("  of these there, whole", tally.there_though_unanswered),
        ("acknowledged and lost", len(tally.lost)),
        ("half visible", len(tally.half_visible)),
        ("other failures", len(tally.failures)),
        ("slowest start, s", f"{tally.start_seconds_max:.1f}"),
        ("seconds", f"{tally.seconds:.0f}"),
    ]
    return "\n".join(f"{name:26}{number:>10}" for name, number in lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)

    def progress(tally: Tally) -> None:
        if not options.json and tally.rounds % 25 == 0:
            print(f"{tally.rounds} rounds, {tally.acknowledged} acknowledged", file=sys.stderr)  # noqa: T201

    with tempfile.TemporaryDirectory(prefix="hounsfield-kills-") as directory:
        tally = run(Path(directory) / "server", options.rounds, options.seed, progress=progress)
    print(json.dumps(asdict(tally)) if options.json else table(tally))  # noqa: T201
    return 0 if tally.well else 1


if __name__ == "__main__":
    sys.exit(main())
