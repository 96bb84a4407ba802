"""Danger: what comes through the door of an import is nonsense, and costs the server something."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
import trio
import trio.testing
from pydicom.uid import generate_uid
from trio.testing import MockClock

from hounsfield.archive.app.importing.doors import (
    ABANDON,
    BEGIN,
    COMMIT,
    DATA,
    HEAD,
    REFUSED,
    RESULT,
    STALL_S,
    Announced,
    ImportDoor,
    Reader,
    Refusal,
    Stored,
)
from hounsfield.archive.app.importing.sink import Doors, ServerGoneError, ServerLostError, Session
from hounsfield.archive.engine.engine import Engine, EngineOptions, open_engine
from hounsfield.archive.engine.errors import ClosedError, ObjectTooLargeError
from hounsfield.archive.engine.ingest import IngestLimits
from hounsfield.archive.engine.types import Outcome, Source
from support.archives import ct_slice, stores_in
from support.imports import CT, EXPLICIT

BEGUN = msgspec.msgpack.encode(Announced(EXPLICIT, CT, "1.2.3", "", "", ""))


@asynccontextmanager
async def door_in(
    folder: Path, options: EngineOptions | None = None
) -> AsyncIterator[tuple[Engine, ImportDoor]]:
    options = options or EngineOptions()
    with stores_in(folder / "data", options) as stores:
        async with open_engine(stores, options, owner="test") as engine:
            door = ImportDoor(engine, folder / "0.sock")
            async with trio.open_nursery() as nursery:
                await nursery.start(door.serve)
                yield engine, door
                nursery.cancel_scope.cancel()


async def connected(folder: Path) -> tuple[trio.socket.SocketType, Reader]:
    sock = trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    await sock.connect(str(folder / "0.sock"))
    reader = Reader(sock)
    head = await reader.head()
    assert head is not None
    await reader.words(head[1])
    return sock, reader


def begun(doors: Doors) -> Session:
    return doors.begin(
        transfer_syntax_uid=EXPLICIT, sop_class_uid=CT, sop_instance_uid="", source=Source("import")
    )


async def test_an_object_goes_through_and_is_durable(tmp_path: Path) -> None:
    async with door_in(tmp_path) as (engine, _):
        doors = Doors(tmp_path)
        await doors.available()
        assert doors.state_key == engine.stores.keyring.derived_key("import state")
        for number in range(3):
            session = begun(doors)
            await session.write(ct_slice(number=number))
            assert (await session.commit()).outcome is Outcome.STORED
            session.abandon()
            with pytest.raises(ClosedError):
                await session.write(b"more")
        doors.close()
        assert engine.statistics().objects_stored == 3
        assert engine.statistics().sessions_open == 0


async def test_what_is_abandoned_is_forgotten_and_the_line_goes_on(tmp_path: Path) -> None:
    async with door_in(tmp_path) as (engine, _):
        doors = Doors(tmp_path)
        for commit in (False, True, False, True):
            session = begun(doors)
            await session.write(ct_slice())
            if commit:
                await session.commit()
            session.abandon()
        await trio.testing.wait_all_tasks_blocked()
        doors.close()
        assert engine.statistics().objects_stored == 2


@pytest.mark.parametrize(
    "nonsense",
    [
        b"GET / HTTP/1.1\r\n\r\n" * 10,
        HEAD.pack(BEGIN, 1 << 30),
        HEAD.pack(BEGIN, 3) + b"abc",
        HEAD.pack(COMMIT, 0),
        HEAD.pack(BEGIN, len(BEGUN)) + BEGUN + HEAD.pack(BEGIN, 0),
        HEAD.pack(BEGIN, len(BEGUN)) + BEGUN + HEAD.pack(DATA, 0xFFFFFFFF),
        HEAD.pack(BEGIN, len(BEGUN)) + BEGUN + HEAD.pack(DATA, 1000) + b"cut",
        HEAD.pack(BEGIN, len(BEGUN)) + BEGUN[:-3],
        b"",
    ],
)
async def test_nonsense_ends_its_own_connection(tmp_path: Path, nonsense: bytes) -> None:
    async with door_in(tmp_path) as (engine, _):
        sock, reader = await connected(tmp_path)
        await sock.send(nonsense)
        sock.shutdown(socket.SHUT_WR)
        with trio.fail_after(60):
            assert await reader.head() is None
        await trio.testing.wait_all_tasks_blocked()
        sock.close()
        assert engine.statistics().sessions_open == 0
        assert engine.statistics().bytes_in_flight == 0
        sock, reader = await connected(tmp_path)
        uid = str(generate_uid())
        data = ct_slice(sop_uid=uid)
        frames = [HEAD.pack(BEGIN, len(BEGUN)) + BEGUN]
        frames += [HEAD.pack(DATA, 1) + data[at : at + 1] for at in range(len(data))]  # a byte at a time
        await trio.SocketStream(sock).send_all(b"".join(frames) + HEAD.pack(COMMIT, 0))
        head = await reader.head()
        assert head is not None
        assert head[0] == RESULT
        assert msgspec.msgpack.decode(await reader.words(head[1]), type=Stored).sop_instance == uid


async def test_what_the_engine_refuses_is_told_at_the_end_by_its_own_name(tmp_path: Path) -> None:
    options = EngineOptions(ingest=IngestLimits(object_bytes_max=1000))
    async with door_in(tmp_path, options) as (engine, _):
        doors = Doors(tmp_path)
        for _ in range(2):  # the line is good for the next one
            session = begun(doors)
            await session.write(ct_slice(pixels=bytes(5000)))
            with pytest.raises(ObjectTooLargeError, match="1000"):
                await session.commit()
            session.abandon()
        sock, reader = await connected(tmp_path)
        await sock.send(HEAD.pack(BEGIN, len(BEGUN)) + BEGUN + HEAD.pack(DATA, 2000) + bytes(2000))
        await sock.send(HEAD.pack(ABANDON, 0) + HEAD.pack(BEGIN, len(BEGUN)) + BEGUN)
        await sock.send(HEAD.pack(DATA, 2000) + bytes(2000) + HEAD.pack(COMMIT, 0))
        head = await reader.head()
        assert head is not None
        assert head[0] == REFUSED
        refusal = msgspec.msgpack.decode(await reader.words(head[1]), type=Refusal)
        assert refusal.error == "ObjectTooLargeError"
        assert engine.statistics().sessions_open == 0


async def test_an_importer_that_hangs_within_an_object_gives_the_memory_back(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with door_in(tmp_path) as (engine, _):
        sock, reader = await connected(tmp_path)
        await sock.send(HEAD.pack(BEGIN, len(BEGUN)) + BEGUN + HEAD.pack(DATA, 5000) + bytes(100))
        began = trio.current_time()
        assert await reader.head() is None
        assert trio.current_time() - began >= STALL_S
        assert engine.statistics().bytes_in_flight == 0
        sock.close()


async def test_a_drain_waits_for_what_is_under_way_and_takes_nothing_new(tmp_path: Path) -> None:
    async with door_in(tmp_path) as (engine, door):
        busy, idle = await connected(tmp_path), await connected(tmp_path)
        data = ct_slice()
        await busy[0].send(HEAD.pack(BEGIN, len(BEGUN)) + BEGUN + HEAD.pack(DATA, len(data)) + data[:50])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(door.drain)
            assert await idle[1].head() is None
            with pytest.raises(OSError, match=r"refused|No such file"):
                await connected(tmp_path)
            await busy[0].send(data[50:] + HEAD.pack(COMMIT, 0))
            head = await busy[1].head()
            assert head is not None
            assert head[0] == RESULT
        assert engine.statistics().objects_stored == 1


async def test_a_server_that_is_away_is_waited_for_and_not_for_ever(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    doors = Doors(tmp_path, away_s=30.0)
    session = begun(doors)
    with pytest.raises(ServerLostError):
        await session.write(b"data")
    began = trio.current_time()
    with pytest.raises(ServerGoneError, match="start the import again"):
        await doors.available()
    assert trio.current_time() - began >= 30.0
