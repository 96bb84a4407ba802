"""Notes that name very much cost what they name, and are not followed beyond limits."""

from __future__ import annotations

from pathlib import Path

from pydicom.uid import ExplicitVRLittleEndian

from hounsfield.archive.engine.engine import EngineOptions, Stores, open_engine
from hounsfield.archive.index import tables
from support.archives import ct_slice, store, stores_in
from support.rejection import SAFETY, note


def studies(count: int) -> dict[str, dict[str, list[str]]]:
    """So many studies of one instance."""
    return {f"1.2.9.{i}": {f"1.2.9.{i}.1": [f"1.2.9.{i}.1.1"]} for i in range(1, count + 1)}


def overlay_bytes(stores: Stores) -> int:
    with stores.store.snapshot() as snapshot:
        return sum(len(sealed) for _, sealed in snapshot.scan(tables.CORRECTION))


async def test_a_note_of_many_studies_costs_what_it_names(tmp_path: Path) -> None:
    taken = {}
    for count in (100, 400):
        with stores_in(tmp_path / str(count)) as stores:
            async with open_engine(stores, EngineOptions(), owner="test") as engine:
                named = studies(count)
                (study, ((series, (sop,)),)) = next((k, tuple(v.items())) for k, v in reversed(named.items()))
                sent = ct_slice(study_uid=study, series_uid=series, sop_uid=sop)
                await store(engine, sent, ExplicitVRLittleEndian)
                await store(engine, note(named, SAFETY), ExplicitVRLittleEndian)
                taken[count] = overlay_bytes(stores)
                (made,) = await engine.rejecting.all()
                assert (made["named"], made["hidden"], len(made["studies"])) == (count + 1, 2, count)
                # Each study has its own part, and takes it away.
                late = ct_slice(study_uid="1.2.9.7", series_uid="1.2.9.7.1", sop_uid="1.2.9.7.1.1")
                await store(engine, late, ExplicitVRLittleEndian)
                assert (await engine.rejecting.all())[0]["hidden"] == 3
                await engine.rejecting.undo(made["id"], actor="tester", reason="mistaken")
                assert overlay_bytes(stores) == 0
                assert len(await engine.instances(study)) == 1
                assert len(await engine.instances("1.2.9.7")) == 1
    assert taken[400] < 5 * taken[100]
