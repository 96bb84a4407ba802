"""Who asks for storage commitment gets an answer: here or on another association, also after a restart."""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, generate_uid
from pynetdicom import AE, evt
from pynetdicom.sop_class import StorageCommitmentPushModel, StorageCommitmentPushModelInstance

from hounsfield.archive.dicom.commitment import CommitmentRequest, Reference
from hounsfield.archive.engine.commitments import Commitments, Owed
from hounsfield.archive.engine.engine import Engine, EngineOptions
from hounsfield.archive.engine.gate import Gate
from hounsfield.archive.engine.leadership import Leadership
from hounsfield.archive.net.calling_back import CallingBackLimits
from hounsfield.archive.net.commitment import CommitmentLimits, StorageCommitment
from hounsfield.archive.net.destinations import Destinations
from hounsfield.archive.net.policy import RemoteAe
from hounsfield.storage_backends.errors import StoreFullError
from hounsfield.storage_backends.lmdb_store import LmdbLimits
from hounsfield.storage_backends.local_blobs import LocalBlobLimits
from support.archives import ct_slice, store, stores_in

CT = "1.2.840.10008.5.1.4.1.1.2"
AT_ONCE = CallingBackLimits(poll_s=0.02, pause_s=0.05, pause_s_max=0.1)
SOON = CommitmentLimits(same_association_s=0.2, calling_back=AT_ONCE)
PATIENT = CommitmentLimits(same_association_s=30.0, calling_back=AT_ONCE)


class Reports:
    """What a pynetdicom peer was told."""

    def __init__(self, statuses: tuple[int, ...] = ()) -> None:
        self.told: list[tuple[int, Dataset]] = []
        self.statuses = list(statuses)
        self.came = threading.Semaphore(0)

    def take(self, event: Any) -> tuple[int, None]:
        self.told.append((event.request.EventTypeID, event.event_information))
        self.came.release()
        return (self.statuses.pop(0) if self.statuses else 0x0000), None

    def wait(self) -> tuple[int, Dataset]:
        assert self.came.acquire(timeout=30), "no report"
        return self.told[-1]


def request(*references: Reference, transaction: str = "2.25.77") -> Dataset:
    data = Dataset()
    data.TransactionUID = transaction
    data.ReferencedSOPSequence = []
    for one in references:
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = one
        data.ReferencedSOPSequence.append(item)
    return data


@contextmanager
def listening(reports: Reports) -> Iterator[int]:
    """A modality that takes reports at a port of its own, as the role selection of PS3.4 J.3.3 wants."""
    entity = AE("CT1")
    entity.add_supported_context(StorageCommitmentPushModel, scu_role=False, scp_role=True)
    server = entity.start_server(
        ("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_N_EVENT_REPORT, reports.take)]
    )
    try:
        yield server.socket.getsockname()[1]
    finally:
        server.shutdown()


def ask(
    port: int,
    data: Dataset,
    reports: Reports | None = None,
    *,
    syntax: str = ExplicitVRLittleEndian,
    action: int = 1,
    instance: str = StorageCommitmentPushModelInstance,
) -> Dataset:
    """Ask, and with ``reports`` stay until the answer came. The status."""
    entity = AE("CT1")
    entity.add_requested_context(StorageCommitmentPushModel, syntax)
    answered = threading.Event()  # or the release would overtake the answer to the report

    def sent(event: evt.Event) -> None:
        if type(event.message).__name__ == "N_EVENT_REPORT_RSP":
            answered.set()

    handlers = [] if reports is None else [(evt.EVT_N_EVENT_REPORT, reports.take), (evt.EVT_DIMSE_SENT, sent)]
    association = entity.associate("127.0.0.1", port, ae_title="HOUNSFIELD", evt_handlers=handlers)
    assert association.is_established
    status, _ = association.send_n_action(data, action, StorageCommitmentPushModel, instance)
    if reports is not None:
        reports.wait()
        assert answered.wait(30)
    association.release()
    return status


@pytest.fixture
def committing(open_archive: Callable[..., Any]) -> Callable[..., Any]:
    """``async with committing(limits, aes) as (archive, service)``: a listener that commits."""

    @asynccontextmanager
    async def opened(
        limits: CommitmentLimits, known: dict[str, RemoteAe] | None = None
    ) -> AsyncIterator[tuple[Any, StorageCommitment]]:
        made: list[StorageCommitment] = []

        def provide(engine: Engine) -> list[Any]:
            made.append(service_of(engine, limits, known or {}))
            return [made[0].service()]

        async with open_archive(provide=provide) as archive, trio.open_nursery() as nursery:
            nursery.start_soon(made[0].run)
            yield archive, made[0]
            nursery.cancel_scope.cancel()

    return opened


def service_of(engine: Engine, limits: CommitmentLimits, known: dict[str, RemoteAe]) -> StorageCommitment:
    stores = engine.stores
    leadership = Leadership(stores.store, Gate(), "commitment", owner="test", lease_s=10.0)
    return StorageCommitment(engine.commitments, Destinations(lambda: known), leadership, limits=limits)


async def stored(engine: Engine, count: int = 2) -> list[Reference]:
    results = [
        await store(
            engine, ct_slice(number=number, study_uid="1.2.3", series_uid="1.2.3.4"), "1.2.840.10008.1.2.1"
        )
        for number in range(count)
    ]
    return [Reference(CT, one.sop_instance_uid) for one in results]


def uids(sequence: Any) -> list[str]:
    return [item.ReferencedSOPInstanceUID for item in sequence]


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
async def test_who_stays_is_answered_on_the_association_that_asked(committing, syntax: str) -> None:
    reports = Reports()
    async with committing(PATIENT) as (archive, service):
        here = await stored(archive.engine)
        asked = request(*here)
        status = await trio.to_thread.run_sync(partial(ask, archive.port, asked, reports, syntax=syntax))
        assert status.Status == 0
        event_type, report = reports.told[0]
        assert event_type == 1
        assert report.TransactionUID == "2.25.77"
        assert uids(report.ReferencedSOPSequence) == [one.sop_instance_uid for one in here]
        assert "FailedSOPSequence" not in report
        await archive.until(lambda: service.reports == 1)
        while await archive.engine.commitments.owed():
            await trio.sleep(0.01)


@pytest.mark.parametrize("limits", [SOON, PATIENT])
async def test_who_left_is_called_back_and_told_what_is_missing(committing, limits) -> None:
    """At once, however long others would wait."""
    reports = Reports()
    with listening(reports) as port:
        known = {"CT1": RemoteAe("CT1", "127.0.0.1", port)}
        async with committing(limits, known) as (archive, _):
            here = await stored(archive.engine)
            missing = Reference(CT, generate_uid())
            await trio.to_thread.run_sync(ask, archive.port, request(here[0], missing))
            event_type, report = await trio.to_thread.run_sync(reports.wait)
            assert event_type == 2
            assert uids(report.ReferencedSOPSequence) == [here[0].sop_instance_uid]
            assert uids(report.FailedSOPSequence) == [missing.sop_instance_uid]
            assert report.FailedSOPSequence[0].FailureReason == 0x0112
            while await archive.engine.commitments.owed():
                await trio.sleep(0.01)
    assert len(reports.told) == 1


async def test_who_asks_for_many_is_not_told_twice(committing, monkeypatch: pytest.MonkeyPatch) -> None:
    """Judging takes its time, longer than a small request's: nobody is called back meanwhile."""
    reports, noted = Reports(), threading.Event()

    class Staying(Reports):
        def wait(self) -> Any:  # its answer is not overtaken by its release
            assert noted.wait(60)

    here_reports = Staying()
    judge = Commitments.judge

    async def slowly(self: Commitments, references: Any) -> Any:
        await trio.sleep(0.3)
        return await judge(self, references)

    monkeypatch.setattr(Commitments, "judge", slowly)
    limits = CommitmentLimits(same_association_s=0.01, instance_s=5.0, calling_back=AT_ONCE)
    with listening(reports) as port:
        async with committing(limits, {"CT1": RemoteAe("CT1", "127.0.0.1", port)}) as (archive, _):
            here = await stored(archive.engine)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.to_thread.run_sync, ask, archive.port, request(*here), here_reports)
                await archive.until(lambda: here_reports.told or reports.told)
                while await archive.engine.commitments.owed():
                    await trio.sleep(0.01)
                noted.set()
    assert (len(here_reports.told), len(reports.told)) == (1, 0)


async def test_what_is_delivered_while_it_is_looked_up_is_not_told_twice(
    committing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is owed is read, then delivered by a call that was under way: the reading is of yesterday."""
    owed, settle, reports = Commitments.owed, Commitments.settle, Reports()
    settled, serving = trio.Event(), []

    async def late(self: Commitments) -> Any:
        found = await owed(self)
        if reports.told:
            await settled.wait()
            while serving[0]._calling_back._busy:  # the call that is under way ends
                await trio.sleep(0.01)
        return found

    async def settling(self: Commitments, one: Owed) -> None:
        await trio.sleep(0.1)  # it is looked up meanwhile
        await settle(self, one)
        settled.set()

    monkeypatch.setattr(Commitments, "owed", late)
    monkeypatch.setattr(Commitments, "settle", settling)
    with listening(reports) as port:
        async with committing(SOON, {"CT1": RemoteAe("CT1", "127.0.0.1", port)}) as (archive, service):
            serving.append(service)
            (one,) = await stored(archive.engine, 1)
            asked = CommitmentRequest("2.25.5", (one,))
            await archive.engine.commitments.promise(Owed("CT1", "HOUNSFIELD", asked, _long_ago()))
            await trio.to_thread.run_sync(reports.wait)
            await archive.until(settled.is_set)
            await trio.sleep(0.2)
            assert service.reports == 1
    assert len(reports.told) == 1


async def test_a_disk_that_refuses_ends_nothing(committing, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is owed cannot be read or noted for a while: it is told when it can be."""
    faults = [StoreFullError("full"), OSError(5, "no"), StoreFullError("full")]
    owed, reports = Commitments.owed, Reports()

    async def failing(self: Commitments) -> Any:
        if faults:
            raise faults.pop()
        return await owed(self)

    monkeypatch.setattr(Commitments, "owed", failing)
    with listening(reports) as port:
        async with committing(SOON, {"CT1": RemoteAe("CT1", "127.0.0.1", port)}) as (archive, _):
            (one,) = await stored(archive.engine, 1)
            asked = CommitmentRequest("2.25.5", (one,))
            await archive.engine.commitments.promise(Owed("CT1", "HOUNSFIELD", asked, _long_ago()))
            await trio.to_thread.run_sync(reports.wait)
    assert not faults


async def test_what_was_owed_before_a_restart_is_told_after_it(committing) -> None:
    """The request is in the ledger; whoever leads next finds it there."""
    reports = Reports()
    with listening(reports) as port:
        async with committing(SOON, {"CT1": RemoteAe("CT1", "127.0.0.1", port)}) as (archive, _):
            (one,) = await stored(archive.engine, 1)
            owed = Owed("CT1", "HOUNSFIELD", CommitmentRequest("2.25.99", (one,)), 1 + _long_ago())
            await archive.engine.commitments.promise(owed)
            event_type, report = await trio.to_thread.run_sync(reports.wait)
    assert (event_type, report.TransactionUID) == (1, "2.25.99")


def _long_ago() -> int:
    return time.time_ns() - 3600 * 10**9


async def test_an_ae_that_refuses_or_is_away_is_called_again_and_keeps_nobody_else(committing) -> None:
    reports, others = Reports(statuses=(0x0110, 0x0110)), Reports()
    with listening(reports) as port, listening(others) as other_port:
        known = {
            "AWAY": RemoteAe("AWAY", "127.0.0.1", 1),
            "CT1": RemoteAe("CT1", "127.0.0.1", port),
            "CT2": RemoteAe("CT2", "127.0.0.1", other_port),
        }
        async with committing(SOON, known) as (archive, service):
            (one,) = await stored(archive.engine, 1)
            for title in ("AWAY", "NOBODY", "CT1", "CT2"):
                asked = CommitmentRequest("2.25.5", (one,))
                await archive.engine.commitments.promise(Owed(title, "HOUNSFIELD", asked, _long_ago()))
            await trio.to_thread.run_sync(others.wait)
            for _ in range(3):
                await trio.to_thread.run_sync(reports.wait)
            await archive.until(lambda: service.reports == 2)
            while len(await archive.engine.commitments.owed()) > 2:
                await trio.sleep(0.01)
            assert {one.ae_title for one in await archive.engine.commitments.owed()} == {"AWAY", "NOBODY"}


async def test_what_nobody_ever_takes_is_given_up(committing) -> None:
    limits = CommitmentLimits(calling_back=CallingBackLimits(poll_s=0.02, give_up_s=60.0))
    async with committing(limits) as (archive, service):
        asked = CommitmentRequest("2.25.5", (Reference(CT, "1.2.3"),))
        await archive.engine.commitments.promise(Owed("CT1", "HOUNSFIELD", asked, _long_ago()))
        await archive.until(lambda: service.figures()["commitment_given_up_total"] == 1)
        while await archive.engine.commitments.owed():
            await trio.sleep(0.01)


@pytest.mark.parametrize(
    ("data", "more", "expected"),
    [
        (request(Reference(CT, "1.2.3")), {"action": 2}, 0x0123),
        (request(Reference(CT, "1.2.3")), {"instance": "1.2.840.10008.1.20.1.2"}, 0x0112),
        (request(), {}, 0x0115),
        (request(Reference(CT, "1.2.3"), transaction=""), {}, 0x0115),
        (request(*(Reference(CT, f"1.2.{number}") for number in range(3))), {}, 0x0213),
    ],
)
async def test_what_is_no_request_is_refused_and_nothing_is_owed(
    committing, data: Dataset, more: dict[str, Any], expected: int
) -> None:
    async with committing(CommitmentLimits(instances_max=2)) as (archive, _):
        status = await trio.to_thread.run_sync(partial(ask, archive.port, data, **more))
        assert status.Status == expected
        assert "1.2.3" not in str(status.get("ErrorComment", ""))
        assert await archive.engine.commitments.owed() == []


def test_what_was_told_is_noted_on_a_full_disk(tmp_path: Path) -> None:
    """Else it would be told again, every ten minutes, until there is room."""
    full = EngineOptions(
        index=LmdbLimits(reserve_bytes=1 << 39), blobs=LocalBlobLimits(reserve_bytes=1 << 50)
    )
    with stores_in(tmp_path / "data") as stores:
        stores.journal.commit_fact("commitment", "CT1", {"ae": "CT1"}, 1)
    with stores_in(tmp_path / "data", full) as stores:
        with pytest.raises(StoreFullError):
            stores.journal.commit_fact("commitment", "CT2", {"ae": "CT2"}, 2)
        stores.journal.commit_fact("commitment", "CT1", None, 2)
        with stores.store.snapshot() as snapshot:
            assert list(stores.journal.state(snapshot, "commitment")) == []
