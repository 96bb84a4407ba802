"""One object of hundreds of megabytes on the real server: memory, frames, a sender that hangs up, kill -9."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from benchmarks.large_object import LargeObject, memory_growth, read_frames, send_dimse, send_stow

from support.server import PATIENCE_S, ArchiveServer

GROWTH_MAX = 64 << 20
FRAMES = 1150  # 603 MB


def digest(pieces: object) -> str:
    found = hashlib.sha256()
    for piece in pieces:  # type: ignore[attr-defined]
        found.update(piece)
    return found.hexdigest()


def until(done: Callable[[], bool]) -> None:
    """Wait for what another process does."""
    deadline = time.monotonic() + PATIENCE_S
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def files(server: ArchiveServer) -> tuple[int, int]:
    """Segments and segment keys."""
    segments = server.data / "segments"
    keys = server.data / "keys" / "segment"
    return (
        len(list(segments.iterdir())) if segments.exists() else 0,
        len(list(keys.glob("*.key"))) if keys.exists() else 0,
    )


def test_memory_stays_where_it_is_whatever_the_length(tmp_path: Path) -> None:
    server = ArchiveServer(tmp_path, workers=1).start()
    try:
        http = server.address("http")[1]
        assert send_dimse(LargeObject.of(1), server.dicom_port) == 0  # imports, keys, the index's pages
        (pid,) = server.worker_pids()
        objects = [LargeObject.of(FRAMES), LargeObject.of(FRAMES)]
        with memory_growth(pid) as by_dimse:
            assert send_dimse(objects[0], server.dicom_port) == 0
        with memory_growth(pid) as by_stow:
            assert send_stow(objects[1], http) == 200
        for one in objects:
            read_frames(one, http, [1, FRAMES, 600, 37])
        path = f"/dicom-web/studies/{objects[0].study_uid}"
        headers = {"Accept": "application/dicom; transfer-syntax=*"}
        with memory_growth(pid) as reading, server.client.stream("GET", path, headers=headers) as answer:
            assert answer.status_code == 200
            length = int(answer.headers["content-length"])
            body = hashlib.sha256()
            skip = length - objects[0].length  # preamble and file meta information
            for piece in answer.iter_bytes(1 << 20):
                body.update(piece[skip:])
                skip = max(0, skip - len(piece))
        assert body.hexdigest() == digest(objects[0].pieces())
        metadata = server.client.get(path + "/metadata", headers={"Accept": "application/dicom+json"}).json()
        assert metadata[0]["00280008"]["Value"] == [FRAMES]
    finally:
        assert server.terminate() == 0
    assert max(by_dimse[0], by_stow[0], reading[0]) <= GROWTH_MAX, (by_dimse, by_stow, reading)


def test_a_sender_that_hangs_up_leaves_nothing(tmp_path: Path) -> None:
    server = ArchiveServer(tmp_path, workers=1).start()
    try:
        assert send_dimse(LargeObject.of(100), server.dicom_port, stop_after=90) == -1
        until(lambda: files(server) == (0, 0))
        assert server.client.get("/dicom-web/studies").json() == []
    finally:
        assert server.terminate() == 0


def test_killed_in_the_middle_of_one(tmp_path: Path) -> None:
    server = ArchiveServer(tmp_path, workers=1).start()
    kept, lost = LargeObject.of(80), LargeObject.of(200)
    assert send_dimse(kept, server.dicom_port) == 0
    assert files(server) == (1, 1)

    class Cut(LargeObject):
        def frame(self, number: int) -> bytes:
            if number == 120:
                until(lambda: files(server)[0] == 2)
                server.kill_all()
            return super().frame(number)

    with pytest.raises(OSError):
        send_dimse(Cut(lost.frames, lost.study_uid, lost.series_uid, lost.sop_uid), server.dicom_port)
    assert files(server) == (2, 2)
    server.start()
    try:
        assert files(server) == (1, 1)
        assert [one["0020000D"]["Value"] for one in server.client.get("/dicom-web/studies").json()] == [
            [kept.study_uid]
        ]
        read_frames(kept, server.address("http")[1], [1, 80])
        assert send_dimse(lost, server.dicom_port) == 0
        assert files(server) == (2, 2)
    finally:
        assert server.terminate() == 0


def test_too_many_at_once_are_told_to_come_back_and_the_others_go_on(tmp_path: Path) -> None:
    """A budget of 52 MiB is four large objects; one more gets A700 or 503, and nobody runs out of memory."""
    go_on = threading.Event()

    class Halting(LargeObject):
        def frame(self, number: int) -> bytes:
            if number == 19:
                go_on.wait(PATIENCE_S)
            return super().frame(number)

    def halting() -> LargeObject:
        one = LargeObject.of(20)
        return Halting(one.frames, one.study_uid, one.series_uid, one.sop_uid)

    settings = (
        "ingest.stream_bytes_min=1048576",
        "ingest.memory_bytes_max=8388608",
        "ingest.memory_wait_seconds=0.5",
    )
    server = ArchiveServer(tmp_path, workers=1, settings=settings).start()
    http = server.address("http")[1]
    statuses: list[int] = []
    threads = [
        threading.Thread(target=lambda: statuses.append(send_dimse(halting(), server.dicom_port)))
        for _ in range(4)
    ]
    try:
        for thread in threads:
            thread.start()
        until(lambda: files(server)[0] == 4)
        assert send_dimse(LargeObject.of(20), server.dicom_port) == 0xA700
        assert send_stow(LargeObject.of(20), http) == 503
        go_on.set()
        for thread in threads:
            thread.join(PATIENCE_S)
        assert statuses == [0] * 4
        assert send_dimse(LargeObject.of(20), server.dicom_port) == 0
        until(lambda: files(server) == (5, 5))
    finally:
        go_on.set()
        assert server.terminate() == 0
