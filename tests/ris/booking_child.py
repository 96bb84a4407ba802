"""A process that books, moves and cancels among others on the same archive.

``python booking_child.py DIRECTORY KEY SEED ORDER…``: begins when a line comes on standard input; says how
often it booked, and how often it was refused.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Sequence
from pathlib import Path
from zoneinfo import ZoneInfo

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from hounsfield.ris_plugin.errors import NotNowError
from hounsfield.ris_plugin.schedule.scheduling import act, book, move
from ris.conftest import CLERK, NOON_NS, Desk
from support.archives import open_stores

UTC = ZoneInfo("UTC")
STARTS = 12
STEP_NS = 10 * 60 * 1_000_000_000
DAY_NS = 24 * 3600 * 1_000_000_000


def push(desk: Desk, orders: Sequence[str], source: random.Random) -> tuple[int, int]:
    """Book each order at one of a few times, move and cancel it; how often that could be, and could not."""
    could = refused = 0
    for order in orders:
        appointment = ""
        for _ in range(6):
            start = NOON_NS + DAY_NS + source.randrange(STARTS) * STEP_NS
            try:
                if not appointment:
                    appointment = desk.do(book, CLERK, UTC, orders=[order], from_ns=start)
                elif source.random() < 0.8:
                    desk.do(move, CLERK, UTC, appointment, from_ns=start)
                else:
                    desk.do(act, CLERK, appointment, "cancel", why="another time")
                    appointment = ""
                could += 1
            except NotNowError:
                refused += 1
    return could, refused


def main(directory: str, key: str, seed: str, *orders: str) -> None:
    stores = open_stores(Path(directory), key)
    try:
        print("ready", flush=True)  # noqa: T201 - who started it reads that
        sys.stdin.readline()
        print(*push(Desk(stores), orders, random.Random(int(seed))), flush=True)  # noqa: T201
    finally:
        stores.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
