"""Uploads at once are bounded over all workers: one more waits unread, then is told to come back."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from hounsfield.archive.engine.errors import OutOfResourcesError
from hounsfield.archive.web.limits import WebLimits, WebSettings
from hounsfield.archive.web.uploads import OwnCount, Uploads

HEADERS = {"content-type": 'multipart/related; type="application/dicom"; boundary="b:0"'}


def body_of(*parts: bytes) -> bytes:
    head = b"\r\n--b:0\r\nContent-Type: application/dicom\r\n\r\n"
    return b"".join(head + one for one in parts) + b"\r\n--b:0--\r\n"


async def test_one_more_waits_for_another_to_end(autojump_clock: trio.testing.MockClock) -> None:
    uploads = Uploads(1, 20.0)
    order: list[str] = []

    async def second() -> None:
        async with uploads.one():
            order.append("second")

    async with trio.open_nursery() as nursery, uploads.one():
        nursery.start_soon(second)
        await trio.sleep(10)
        order.append("first")
    assert order == ["first", "second"]
    assert uploads.open == 0


async def test_waiting_is_bounded_and_leaves_nothing(autojump_clock: trio.testing.MockClock) -> None:
    uploads = Uploads(1, 20.0)
    async with uploads.one():
        began = trio.current_time()
        with pytest.raises(OutOfResourcesError) as caught:
            async with uploads.one():
                pass
        assert caught.value.retry
        assert trio.current_time() - began == pytest.approx(20.0, abs=0.1)
        assert uploads.open == 1
        with trio.move_on_after(1):
            async with uploads.one():
                pass
        assert uploads.open == 1
    assert uploads.open == 0


async def test_other_workers_uploads_count(autojump_clock: trio.testing.MockClock) -> None:
    shared = OwnCount()
    one, other = Uploads(2, 5.0, shared), Uploads(2, 5.0, shared)
    async with one.one(), other.one():
        with pytest.raises(OutOfResourcesError):
            async with one.one():
                pass

        async def leave_later() -> None:
            await trio.sleep(2)
            shared.add(-1)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(leave_later)
            async with one.one():
                assert trio.current_time() >= 7
        shared.add(1)


async def test_503_says_when_to_come_back_and_the_rest_goes_on(archives, sample) -> None:
    settings = WebSettings(limits=WebLimits(uploads_max=1, upload_wait_s=0.05))
    begun, go_on = trio.Event(), trio.Event()
    whole = body_of(sample["CT_small.dcm"])

    async def slowly():
        yield whole[:5000]
        begun.set()
        await go_on.wait()
        yield whole[5000:]

    async with archives(settings=settings) as archive, archive.client() as client:
        statuses: list[int] = []

        async def first() -> None:
            statuses.append(
                (await client.post("/dicom-web/studies", content=slowly(), headers=HEADERS)).status_code
            )

        async with trio.open_nursery() as nursery:
            nursery.start_soon(first)
            await begun.wait()
            while not archive.engine.statistics().sessions_open:
                await trio.sleep(0.001)
            refused = await client.post(
                "/dicom-web/studies", content=body_of(sample["MR_small.dcm"]), headers=HEADERS
            )
            assert refused.status_code == 503
            assert int(refused.headers["retry-after"]) > 0
            assert refused.headers["content-type"] == "application/problem+json"
            assert (await client.get("/dicom-web/studies")).status_code == 200
            go_on.set()
        assert statuses == [200]
        again = await client.post(
            "/dicom-web/studies", content=body_of(sample["MR_small.dcm"]), headers=HEADERS
        )
        assert again.status_code == 200
