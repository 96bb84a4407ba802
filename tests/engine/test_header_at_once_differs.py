"""A header that is read without a thread is the one that a thread reads, or none."""

from __future__ import annotations

from pathlib import Path

from hounsfield.archive.engine.corrections import Request
from hounsfield.archive.engine.engine import EngineOptions, open_engine
from hounsfield.archive.engine.records import HEADER_NOWAIT_BYTES_MAX
from support.archives import ct_slice, store, stores_in

UID = "1.2.840.10008.1.2.1"


async def test_it_is_the_same_or_waits_for_a_thread(tmp_path: Path) -> None:
    def long(data) -> None:  # type: ignore[no-untyped-def]
        data.TextValue = "x" * HEADER_NOWAIT_BYTES_MAX  # VR UT, of any length

    def trailed(data) -> None:  # type: ignore[no-untyped-def]
        data.DataSetTrailingPadding = bytes(100)

    with stores_in(tmp_path / "data") as stores:
        async with open_engine(stores, EngineOptions(), owner="test") as engine:
            retrieve = engine._retrieve
            found = {}
            for name, change in (("short", None), ("long", long), ("trailed", trailed)):
                result = await store(engine, ct_slice(change=change) if change else ct_slice(), UID)
                uids = (result.study_uid, result.series_uid, result.sop_instance_uid)
                (one,) = await engine.instances(*uids)
                await engine.header(one)  # from now on it is in memory
                found[name] = uids, retrieve.header_nowait(one)
            assert found["long"][1] is None
            assert found["trailed"][1] is None
            uids, at_once = found["short"]
            (one,) = await engine.instances(*uids)
            assert at_once is not None
            assert bytes(at_once.head) == bytes((await engine.header(one)).head)
            wanted = Request(
                kind="set-study", actor="test", reason="test", study=uids[0], values={0x00100010: "Else"}
            )
            await engine.correcting.make(wanted)
            (one,) = await engine.instances(*uids)
            assert retrieve.header_nowait(one) is None
