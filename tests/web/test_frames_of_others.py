"""Frames are opened into memory that is used again, by rows that are kept open: nobody may get another's."""

from __future__ import annotations

import socket

import pytest
import trio
from pydicom.dataset import Dataset

from hounsfield.archive.index.deletion import Target
from hounsfield.archive.web import create_app
from support.archives import ct_slice, store

EXPLICIT = "1.2.840.10008.1.2.1"
ONE = {"accept": "application/octet-stream; transfer-syntax=*"}
COLUMNS = 512


async def stored(archive, number: int, fill: int):
    """An instance whose pixels all say which it is; its path and its frame."""
    names = ("2.25.1", "2.25.2", f"2.25.3.{number}")
    frame = fill.to_bytes(2, "little") * COLUMNS * COLUMNS

    def large(data: Dataset) -> None:
        data.Rows = data.Columns = COLUMNS

    study, series, instance = names
    data = ct_slice(
        study_uid=study, series_uid=series, sop_uid=instance, number=number, change=large, pixels=frame
    )
    await store(archive.engine, data, EXPLICIT)
    return names, frame


def url(names) -> str:
    study, series, instance = names
    return f"/dicom-web/studies/{study}/series/{series}/instances/{instance}/frames/1"


async def test_a_frame_stays_what_it_is_until_it_is_sent(archive):
    (names, frame), (others, another) = [await stored(archive, number, number) for number in (1, 2)]
    engine = archive.engine
    for which in (names, others):
        await engine.frame(*which, 1)  # now they are in memory
    app = create_app(engine)
    sent = []

    async def send(message) -> None:
        if message["type"] == "http.response.body":
            meanwhile = engine.frame_nowait(engine.named(*others), 1)
            assert bytes(meanwhile.data) == another
            body = message["body"]
            sent.append(bytes(body) if not isinstance(body, tuple) else bytes(body[1]))
            engine.frame_sent(meanwhile)

    for accept in (ONE["accept"], "*/*"):
        headers = [(b"accept", accept.encode())]
        scope = {"type": "http", "method": "GET", "path": url(names), "query_string": b"", "headers": headers}
        await app(scope | {"scheme": "http"}, None, send)
    assert sent == [frame, frame]


async def test_a_client_that_leaves_takes_no_memory_that_another_reads(archive):
    (names, _), (others, frame) = [await stored(archive, number, number) for number in (1, 2)]
    async with archive.client(headers=ONE) as client:
        for _ in range(3):
            stream = await trio.open_tcp_stream("127.0.0.1", archive.port)
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            await stream.send_all(f"GET {url(names)} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
            await stream.receive_some(100)
            assert (await client.get(url(others))).content == frame
            await stream.aclose()
            assert (await client.get(url(others))).content == frame


async def test_the_memory_of_a_frame_is_used_again(archive):
    names, frame = await stored(archive, 1, 1)
    engine = archive.engine
    await engine.frame(*names, 1)  # now it is in memory
    first = engine.frame_nowait(engine.named(*names), 1)
    assert bytes(first.data) == frame
    other = engine.frame_nowait(engine.named(*names), 1)
    assert other.block is not first.block  # not while somebody may still read it
    engine.frame_sent(first)
    assert engine.frame_nowait(engine.named(*names), 1).block is first.block


async def test_a_row_is_opened_once_and_never_stale(archive, monkeypatch):
    (names, frame), (others, _) = [await stored(archive, number, number) for number in (1, 2)]
    catalog = archive.engine.stores.catalog
    opened = []
    plain = catalog.open_row
    monkeypatch.setattr(catalog, "open_row", lambda *a: opened.append(a) or plain(*a))
    async with archive.client(headers=ONE) as client:
        for _ in range(5):
            assert (await client.get(url(names))).content == frame
        assert len(opened) == 1
        await archive.engine.delete(Target(*names[:2], names[2:]), actor="tester", reason="wrong")
        assert (await client.get(url(names))).status_code == 404
        names, changed = await stored(archive, 1, 77)
        assert (await client.get(url(names))).content == changed != frame
        assert (await client.get(url(others))).status_code == 200


async def test_few_rows_are_kept_open(archive, monkeypatch):
    monkeypatch.setattr("hounsfield.archive.engine.retrieve.ROWS_MAX", 2)
    wanted = [await stored(archive, number, number) for number in range(1, 5)]
    for names, frame in wanted * 2:
        assert (await archive.engine.frame(*names, 1)).data == frame
    assert len(archive.engine._retrieve._rows) == 2


@pytest.mark.parametrize("accept", [ONE["accept"], "*/*"])
async def test_what_did_not_change_is_not_read(archive, accept):
    names, _ = await stored(archive, 1, 1)
    async with archive.client(headers={"accept": accept}) as client:
        tag = (await client.get(url(names))).headers["etag"]
        before = archive.engine.records.figures.frames
        assert (await client.get(url(names), headers={"if-none-match": tag})).status_code == 304
        assert archive.engine.records.figures.frames == before


async def test_a_walk_through_a_series_is_read_ahead(archive, monkeypatch):
    wanted = [(await stored(archive, number, number))[0] for number in range(1, 9)]
    told = []
    log = archive.engine.stores.log
    plain = log.read_ahead
    monkeypatch.setattr(log, "read_ahead", lambda parts: told.extend(parts) or plain(told))
    # As if they were on the disk only, whatever the file system keeps in memory.
    monkeypatch.setattr(archive.engine, "frame_nowait", lambda found, number: None)
    monkeypatch.setattr(log, "is_in_memory", lambda part: False)
    async with archive.client(headers=ONE) as client:
        for names in wanted[:3]:
            assert (await client.get(url(names))).status_code == 200
        with trio.fail_after(20):
            while not told:
                await trio.sleep(0.01)
    engine = archive.engine
    parts = [engine.named(*names).row.location.frame_part(1) for names in wanted]
    assert told == parts[3:]
    assert engine.reading_ahead.figures.announced == 5


async def test_transcoded_frames_are_made_before_they_are_asked_for(archive):
    wanted = [(await stored(archive, number, number))[0] for number in range(1, 9)]
    coded = {"accept": 'multipart/related; type="image/jls"'}
    async with archive.client(headers=coded) as client:
        for names in wanted[:3]:
            assert (await client.get(url(names))).status_code == 200
        figures = archive.engine.reading_ahead.figures
        with trio.fail_after(60):
            while figures.made < 2:
                await trio.sleep(0.01)
        made = archive.engine.transcoding.figures.made
        for names in wanted[3:5]:
            assert (await client.get(url(names))).status_code == 200
        assert archive.engine.transcoding.figures.found >= 2
        assert made == 5


async def test_the_disk_is_not_told_of_what_is_in_memory(archive):
    wanted = [(await stored(archive, number, number))[0] for number in (1, 2)]
    engine = archive.engine
    rows = [engine.named(*names).row for names in wanted]
    await engine.frame(*wanted[0], 1)
    assert engine.stores.log.is_in_memory(rows[0].location.frame_part(1))
    assert rows[0].location.frame_part(1) not in engine.records.frames_to_bring([(row, 1) for row in rows])
    assert engine.records.frames_to_bring([(rows[0], 2)]) == []  # there is none
    gone = rows[0].location.frame_part(1)._replace(segment=b"?" * 16)
    assert not engine.stores.log.is_in_memory(gone)
