"""What another release wrote into the index is not misread: it is made anew from what is stored."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import trio
from pydicom.uid import ExplicitVRLittleEndian

from hounsfield.archive.engine.engine import EngineOptions, open_engine
from hounsfield.archive.index import layout
from hounsfield.archive.index.tables import META
from hounsfield.storage_backends.api import Batch
from hounsfield.storage_backends.errors import StorageError
from support.archives import ct_slice, store, stores_in


@pytest.mark.parametrize("says", [None, b"1", b"3"], ids=["nothing", "an older one", "a newer one"])
def test_it_is_refused_until_it_is_made_anew(tmp_path: Path, says: bytes | None) -> None:
    directory = tmp_path / "data"
    with stores_in(directory) as stores:

        async def one() -> None:
            async with open_engine(stores, EngineOptions(), owner="test") as engine:
                await store(engine, ct_slice(sop_uid="2.25.3"), ExplicitVRLittleEndian)

        trio.run(one)
    with stores_in(directory) as stores:  # its own is taken
        batch = Batch()
        if says is None:
            batch.delete(META, layout._KEY)
        else:
            batch.put(META, layout._KEY, says)
        stores.store.commit(batch)
    with pytest.raises(StorageError, match="hounsfield reindex"), stores_in(directory):
        pass
    shutil.rmtree(directory / "index")
    with stores_in(directory) as stores:
        stores.reindex(lambda _done, _segments: None)
    with stores_in(directory) as stores, stores.store.snapshot() as snapshot:
        assert len(stores.catalog.places(snapshot, "instance", "2.25.3")) == 1
