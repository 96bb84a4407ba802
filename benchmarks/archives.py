"""An archive's stores in this process, in a folder that is gone afterwards, and objects put into them.

For what is measured below the network: reindexing, the size of the index, a large index.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import trio

from benchmarks.studies import Instance
from hounsfield.archive.app.data_directory import open_data_directory
from hounsfield.archive.engine.engine import Engine, EngineOptions, open_engine
from hounsfield.archive.engine.stores import Stores
from hounsfield.archive.engine.types import Outcome, Source
from hounsfield.storage_backends.keyring import Keyring
from hounsfield.storage_backends.master_key import create_master_key_file, load_master_key

SENDERS = 16  # objects that are being stored at once: groups of the size that eight associations make
OPTIONS = EngineOptions(study_stable_s=86_400.0)


@contextmanager
def folder(scratch: Path | None) -> Iterator[Path]:
    """A folder that is gone afterwards."""
    made = Path(tempfile.mkdtemp(prefix="hounsfield-bench-", dir=scratch))
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


@contextmanager
def stores_in(place: Path, options: EngineOptions = OPTIONS) -> Iterator[Stores]:
    """The stores of an archive in ``place``/data, made at the first time, with a key beside it."""
    key, data = place / "master.key", place / "data"
    if key.exists():
        keyring = Keyring.open(data / "keys", load_master_key(f"file:{key}"))
    else:
        create_master_key_file(key)
        open_data_directory(data, create=True).close()  # so that a server takes it for its own later
        keyring = Keyring.create(data / "keys", load_master_key(f"file:{key}"))
    stores = Stores.open(data, keyring, options)
    try:
        yield stores
    finally:
        stores.close()


def fill(stores: Stores, instances: Iterable[Instance]) -> int:
    """Store objects as the network layer does, many at once; how many there were."""
    return trio.run(_fill, stores, iter(instances))


async def _fill(stores: Stores, instances: Iterator[Instance]) -> int:
    stored = 0

    async def send(engine: Engine) -> None:
        nonlocal stored
        for one in instances:
            session = engine.begin(
                transfer_syntax_uid=one.transfer_syntax_uid,
                sop_class_uid=one.sop_class_uid,
                sop_instance_uid=one.sop_instance_uid,
                source=Source("import"),
            )
            try:
                await session.write(one.data)
                result = await session.commit()
            finally:
                session.abandon()
            if result.outcome is not Outcome.STORED:
                raise RuntimeError(f"an object was not stored but {result.outcome}")
            stored += 1

    async with open_engine(stores, OPTIONS, owner="benchmark") as engine, trio.open_nursery() as nursery:
        for _ in range(SENDERS):
            nursery.start_soon(send, engine)
    return stored
