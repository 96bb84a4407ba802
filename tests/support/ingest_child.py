"""A process that ingests until it is killed and says, line by line, what was acknowledged to it.

``python ingest_child.py DIRECTORY KEY SEED COUNT ASSOCIATIONS``; a line per acknowledged object:
study, series and SOP Instance UID, and the SHA-256 of its data set.
"""

from __future__ import annotations

import hashlib
import os
import random
import sys
from pathlib import Path

import trio
from pydicom.uid import ExplicitVRLittleEndian

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from hounsfield.archive.engine.engine import EngineOptions, open_engine
from support.archives import ct_slice, open_stores, store


async def main(directory: str, key: str, seed: int, count: int, associations: int, shared: str) -> None:
    source = random.Random(seed)
    options = EngineOptions()
    stores = open_stores(Path(directory), key, options)
    async with (
        open_engine(stores, options, owner=f"child-{os.getpid()}") as engine,
        trio.open_nursery() as nursery,
    ):

        async def send(which: int) -> None:
            study = shared or f"2.25.{seed}{which}1"
            for number in range(count):
                pixels = source.randbytes(512 if number % 3 else 200_000)
                data = ct_slice(
                    study_uid=study, series_uid=f"{study}.{which}", sop_uid=f"2.25.{seed}.{which}.{number}",
                    number=number, pixels=pixels,
                )  # fmt: skip
                result = await store(engine, data, ExplicitVRLittleEndian)
                digest = hashlib.sha256(data).hexdigest()
                line = f"{result.study_uid} {result.series_uid} {result.sop_instance_uid} {digest}\n"
                os.write(1, line.encode())  # one write: a line is whole or not there

        for which in range(associations):
            nursery.start_soon(send, which)
    stores.close()


if __name__ == "__main__":
    trio.run(
        main,
        sys.argv[1],
        sys.argv[2],
        int(sys.argv[3]),
        int(sys.argv[4]),
        int(sys.argv[5]),
        *sys.argv[6:7] or [""],
    )
