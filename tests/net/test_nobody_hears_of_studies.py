"""Who wants to hear of studies hears of each that is stable, and what can be had, until it is taken."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import pytest
import trio
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE, evt

from hounsfield.archive.engine.engine import Engine, EngineOptions
from hounsfield.archive.engine.gate import Gate
from hounsfield.archive.engine.leadership import Leadership
from hounsfield.archive.engine.stable import EVENT_STABLE
from hounsfield.archive.index.deletion import Target
from hounsfield.archive.net.availability import AvailabilityNotices
from hounsfield.archive.net.calling_back import CallingBackLimits
from hounsfield.archive.net.destinations import Destinations
from hounsfield.archive.net.policy import RemoteAe
from support.archives import ct_slice, encode, store

NOTIFICATION = "1.2.840.10008.5.1.4.33"
EXPLICIT = "1.2.840.10008.1.2.1"
SOON = CallingBackLimits(poll_s=0.02, pause_s=0.05, pause_s_max=0.1)
MPPS = "1.2.840.10008.3.1.2.3.3"


class Heard:
    """What a pynetdicom SCP was told."""

    def __init__(self, statuses: tuple[int, ...] = ()) -> None:
        self.news: list[Dataset] = []
        self.statuses = list(statuses)
        self.came = threading.Semaphore(0)

    def take(self, event: Any) -> tuple[int, Dataset]:
        self.news.append(event.attribute_list)
        self.came.release()
        return (self.statuses.pop(0) if self.statuses else 0x0000), Dataset()

    def wait(self) -> Dataset:
        assert self.came.acquire(timeout=30), "nobody called"
        return self.news[-1]


@contextmanager
def listening(heard: Heard, syntax: str = ExplicitVRLittleEndian) -> Iterator[RemoteAe]:
    entity = AE("RIS")
    entity.add_supported_context(NOTIFICATION, syntax)
    server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_N_CREATE, heard.take)])
    try:
        yield RemoteAe("RIS", "127.0.0.1", server.socket.getsockname()[1])
    finally:
        server.shutdown()


@pytest.fixture
def notifying(open_archive: Callable[..., Any]) -> Callable[..., Any]:
    @asynccontextmanager
    async def opened(*known: RemoteAe, quiet_s: float = 0.05) -> AsyncIterator[Engine]:
        async with open_archive(engine_options=EngineOptions(study_stable_s=quiet_s)) as archive:
            engine = archive.engine
            engine.availability.to = tuple(ae.title for ae in known)
            table = {ae.title: ae for ae in known}
            notices = AvailabilityNotices(
                engine.availability,
                Destinations(lambda: table),
                Leadership(engine.stores.store, Gate(), "availability", owner="test", lease_s=10.0),
                ae_title="ARCHIVE",
                limits=SOON,
            )
            async with trio.open_nursery() as nursery:
                nursery.start_soon(notices.run)
                yield engine
                nursery.cancel_scope.cancel()

    return opened


def with_step(data: bytes) -> bytes:
    found = dcmread(DicomBytesIO(data), force=True)
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = MPPS, "1.2.7.7"
    found.ReferencedPerformedProcedureStepSequence = [item]
    return encode(found)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
async def test_a_stable_study_is_announced_with_all_of_it(notifying, syntax: str) -> None:
    heard = Heard()
    with listening(heard, syntax) as ris:
        async with notifying(ris) as engine:
            sent = {
                series: [
                    (await store(engine, with_step(_slice(series, number)), EXPLICIT)).sop_instance_uid
                    for number in range(2)
                ]
                for series in ("1.2.3.1", "1.2.3.2")
            }
            news = await trio.to_thread.run_sync(heard.wait)
            while await engine.availability.owed():
                await trio.sleep(0.01)
    assert news.StudyInstanceUID == "1.2.3"
    told = {
        series.SeriesInstanceUID: [one.ReferencedSOPInstanceUID for one in series.ReferencedSOPSequence]
        for series in news.ReferencedSeriesSequence
    }
    assert {series: set(uids) for series, uids in told.items()} == {
        series: set(uids) for series, uids in sent.items()
    }
    for series in news.ReferencedSeriesSequence:
        for one in series.ReferencedSOPSequence:
            assert (one.InstanceAvailability, one.RetrieveAETitle) == ("ONLINE", "ARCHIVE")
            assert one.ReferencedSOPClassUID == "1.2.840.10008.5.1.4.1.1.2"
    (step,) = news.ReferencedPerformedProcedureStepSequence
    assert (step.ReferencedSOPClassUID, step.ReferencedSOPInstanceUID) == (MPPS, "1.2.7.7")
    assert len(step.PerformedWorkitemCodeSequence) == 0


def _slice(series: str, number: int) -> bytes:
    return ct_slice(number=number, study_uid="1.2.3", series_uid=series)


async def test_who_is_away_or_refuses_hears_of_it_later_and_once(notifying) -> None:
    heard, other = Heard(statuses=(0x0110, 0x0110)), Heard()
    with listening(heard) as ris, listening(other) as second:
        away = RemoteAe("AWAY", "127.0.0.1", 1)
        other_ris = RemoteAe("OTHER", second.host, second.port)
        async with notifying(away, ris, other_ris) as engine:
            await store(engine, _slice("1.2.3.1", 1), EXPLICIT)
            await trio.to_thread.run_sync(other.wait)
            for _ in range(3):
                await trio.to_thread.run_sync(heard.wait)
            while len(await engine.availability.owed()) > 1:
                await trio.sleep(0.01)
            (left,) = await engine.availability.owed()
            assert left.ae_title == "AWAY"
    assert (len(heard.news), len(other.news)) == (3, 1)


async def test_what_is_gone_by_then_is_not_announced(notifying) -> None:
    heard = Heard(statuses=(0x0110,))
    with listening(heard) as ris:
        async with notifying(ris) as engine:
            await store(engine, _slice("1.2.3.1", 1), EXPLICIT)
            await trio.to_thread.run_sync(heard.wait)
            await engine.delete(Target("1.2.3"), actor="test", reason="a test")
            while await engine.availability.owed():
                await trio.sleep(0.01)
    assert len(heard.news) <= 2


async def test_nobody_is_told_of_what_was_there_before_anybody_asked(notifying) -> None:
    async with notifying() as engine:
        await store(engine, _slice("1.2.3.1", 1), EXPLICIT)
        while EVENT_STABLE not in kinds(engine):
            await trio.sleep(0.01)
        assert await engine.availability.owed() == []


def kinds(engine: Engine) -> list[str]:
    stores = engine.stores
    with stores.store.snapshot() as snapshot:
        return [event.kind for _, event in stores.journal.read(snapshot, 0, 100)]
