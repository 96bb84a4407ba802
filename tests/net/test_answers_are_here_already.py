"""Answers of a fast peer are taken without waiting for them: none is lost, and none is taken for another."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pydicom
import pytest
import trio
from pynetdicom import AE, build_role, evt

from hounsfield.archive.net import suboperations
from hounsfield.archive.net.connection import Connection
from hounsfield.archive.net.getting import get_service
from hounsfield.archive.net.outgoing import Accepted, pack
from hounsfield.archive.net.requests import Requests
from hounsfield.archive.net.scu import RemoteEntity, associate
from hounsfield.archive.net.suboperations import Patience, RetrieveLimits, Suboperations, run_line
from hounsfield.archive.wire import PresentationContext
from support.retrieving import CT, EXPLICIT, STUDY_GET, slices, stored


@pytest.fixture
def slow_opening(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that whoever answers from another thread has done so when the next object is open."""

    async def slowly(*arguments: Any) -> Any:
        time.sleep(0.02)
        return await pack(*arguments)

    monkeypatch.setattr(suboperations, "pack", slowly)


def counted(monkeypatch: pytest.MonkeyPatch, owner: type, name: str, hit: Callable[[Any], bool]) -> list[int]:
    hits = [0]
    inner = getattr(owner, name)

    def wrapped(self: Any, *arguments: Any) -> Any:
        found = inner(self, *arguments)
        hits[0] += hit(found)
        return found

    monkeypatch.setattr(owner, name, wrapped)
    return hits


def received(taken: list[str], status: Callable[[int], int] = lambda _: 0) -> Callable[..., int]:
    def one(event: Any) -> int:
        taken.append(str(event.request.AffectedSOPInstanceUID))
        return status(len(taken))

    return one


@pytest.mark.usefixtures("slow_opening")
async def test_of_a_get(open_archive: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    early = counted(monkeypatch, Connection, "response_nowait", lambda found: found is not None)
    taken: list[str] = []
    async with open_archive(provide=lambda engine: [get_service(engine)]) as archive:
        for raw in slices(8):
            await stored(archive.engine, raw)

        def get() -> Any:
            ae = AE()
            ae.add_requested_context(STUDY_GET, EXPLICIT)
            ae.add_requested_context(CT, EXPLICIT)
            association = ae.associate(
                "127.0.0.1",
                archive.port,
                ext_neg=[build_role(CT, scp_role=True)],
                ae_title="HOUNSFIELD",
                evt_handlers=[(evt.EVT_C_STORE, received(taken, lambda n: 0xB000 if n == 4 else 0))],
            )
            asked = pydicom.Dataset()
            asked.QueryRetrieveLevel, asked.StudyInstanceUID = "STUDY", "1.2.3.4"
            *_, (status, _) = association.send_c_get(asked, STUDY_GET)
            association.release()
            return status

        status = await trio.to_thread.run_sync(get)
        assert (status.Status, status.NumberOfCompletedSuboperations) == (0xB000, 7)
        assert status.NumberOfWarningSuboperations == 1
        assert len(taken) == len(set(taken)) == 8
        assert early[0]


@pytest.mark.usefixtures("slow_opening")
async def test_of_a_destination(open_archive: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    early = [0]
    inner = Requests._hear_nowait

    async def counting(self: Requests) -> bool:
        found = await inner(self)
        early[0] += found
        return found

    monkeypatch.setattr(Requests, "_hear_nowait", counting)
    taken: list[str] = []
    ae = AE()
    ae.add_supported_context(CT, EXPLICIT)
    server = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, received(taken))])
    assert server is not None
    try:
        async with open_archive() as archive:
            instances = [await stored(archive.engine, raw) for raw in slices(8)]
            names = [
                archive.engine.listing.instance(one.study_uid, one.series_uid, one.row.sop_uid)
                for one in instances
            ]
            operations = Suboperations([name for name in names if name], lambda: False)
            remote = RemoteEntity("127.0.0.1", server.server_address[1], called_ae="ANY")
            async with associate(remote, [PresentationContext(1, CT, (EXPLICIT,))]) as association:
                limits = RetrieveLimits()
                await run_line(
                    archive.engine,
                    operations,
                    association,
                    Accepted(association.contexts.values()),
                    window=1,
                    limits=limits,
                    patience=Patience(limits),
                )
            assert operations.tally.completed == 8
            assert len(taken) == len(set(taken)) == 8
            assert early[0]
    finally:
        server.shutdown()
