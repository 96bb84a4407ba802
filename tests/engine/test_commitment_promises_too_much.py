"""Storage commitment: for what is here and sound, and for nothing else; what is owed stays owed."""

from __future__ import annotations

from pathlib import Path

from hounsfield.archive.dicom.commitment import CommitmentRequest, FailureReason, Reference
from hounsfield.archive.engine.commitments import FACT_KIND, Owed
from hounsfield.archive.engine.engine import Engine, EngineOptions, open_engine
from hounsfield.archive.index.deletion import Target
from hounsfield.storage_backends.segment_appending import SegmentLimits
from support.archives import ct_slice, store, stores_in
from support.rejection import QUALITY, note

EXPLICIT = "1.2.840.10008.1.2.1"
CT, MR = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.4"
OPTIONS = EngineOptions(segments=SegmentLimits(segment_bytes=16 << 10), direct_writes=False)
STUDY, SERIES = "1.2.3", "1.2.3.4"


async def filled(engine: Engine, count: int = 3) -> list[Reference]:
    made = []
    for number in range(count):
        data = ct_slice(number=number, study_uid=STUDY, series_uid=SERIES)
        made.append(Reference(CT, (await store(engine, data, EXPLICIT)).sop_instance_uid))
    return made


def owed(*references: Reference, transaction: str = "2.25.7", at_ns: int = 5) -> Owed:
    return Owed("CT1", "HOUNSFIELD", CommitmentRequest(transaction, references), at_ns)


async def test_only_what_is_here_and_of_that_class(tmp_path: Path) -> None:
    with stores_in(tmp_path / "archive", OPTIONS) as stores:
        async with open_engine(stores, OPTIONS, owner="test") as engine:
            here = await filled(engine, 70)  # more than one portion
            strange, other = Reference(CT, "1.2.9.9"), Reference(MR, here[0].sop_instance_uid)
            verdict = await engine.commitments.judge([*here, strange, other])
    assert verdict.committed == tuple(here)
    assert verdict.failed == (
        (strange, FailureReason.NO_SUCH_OBJECT_INSTANCE),
        (other, FailureReason.CLASS_INSTANCE_CONFLICT),
    )


async def test_what_is_rejected_or_deleted_is_not_here(tmp_path: Path) -> None:
    with stores_in(tmp_path / "archive", OPTIONS) as stores:
        async with open_engine(stores, OPTIONS, owner="test") as engine:
            here = await filled(engine)
            await store(engine, note({STUDY: {SERIES: [here[0].sop_instance_uid]}}, QUALITY), EXPLICIT)
            target = Target(STUDY, SERIES, (here[1].sop_instance_uid,))
            await engine.delete(target, actor="test", reason="a test")
            verdict = await engine.commitments.judge(here)
    assert verdict.committed == (here[2],)
    assert verdict.failed == tuple((one, FailureReason.NO_SUCH_OBJECT_INSTANCE) for one in here[:2])


async def test_what_does_not_open_is_not_committed_though_nobody_noticed_yet(tmp_path: Path) -> None:
    with stores_in(tmp_path / "archive", OPTIONS) as stores:
        async with open_engine(stores, OPTIONS, owner="test") as engine:
            here = await filled(engine)
            (found,) = await engine.instances(STUDY, SERIES, here[1].sop_instance_uid)
            place = found.row.location
            with (tmp_path / "archive" / "segments" / place.segment.hex()).open("r+b") as file:
                start = place.offset + place.row_bytes
                file.seek(start)
                held = file.read(place.header_bytes)
                file.seek(start)
                file.write(bytes(byte ^ 0x40 for byte in held))
            verdict = await engine.commitments.judge(here)
    assert verdict.committed == (here[0], here[2])
    assert verdict.failed == ((here[1], FailureReason.PROCESSING_FAILURE),)


async def test_what_is_owed_outlives_the_process_and_the_index(tmp_path: Path) -> None:
    directory = tmp_path / "archive"
    first = owed(Reference(CT, "1.2.3.1"), Reference(MR, "1.2.3.2"), Reference(CT, "1.2.3.3"))
    second = owed(Reference(CT, "1.2.4.1"), transaction="2.25.8", at_ns=1)
    with stores_in(directory, OPTIONS) as stores:
        async with open_engine(stores, OPTIONS, owner="test") as engine:
            await engine.commitments.promise(first)
            await engine.commitments.promise(second)
            await engine.commitments.promise(first)  # asked again: owed once
    with stores_in(directory, OPTIONS) as stores:
        stores.reindex(lambda _done, _all: None)
        async with open_engine(stores, OPTIONS, owner="test") as engine:
            found = await engine.commitments.owed()
            assert [one.request.transaction_uid for one in found] == ["2.25.8", "2.25.7"]
            assert set(found[1].request.references) == set(first.request.references)
            await engine.commitments.settle(found[0])
            await engine.commitments.settle(found[1])
            assert await engine.commitments.owed() == []
            assert await engine.state(FACT_KIND) == []


async def test_a_large_request_costs_the_ledger_little(tmp_path: Path) -> None:
    """The ledger is never shortened: a UID that is much like the one before it must not cost 64 bytes."""
    references = [Reference(CT, f"1.2.840.113619.2.55.3.604688119.{number:09d}.1") for number in range(5000)]
    ledger = tmp_path / "archive" / "ledger"
    with stores_in(tmp_path / "archive", OPTIONS) as stores:
        async with open_engine(stores, OPTIONS, owner="test") as engine:
            before = sum(file.stat().st_size for file in ledger.iterdir()) if ledger.exists() else 0
            await engine.commitments.promise(owed(*references))
            after = sum(file.stat().st_size for file in ledger.iterdir())
    assert after - before < 8 * len(references)
