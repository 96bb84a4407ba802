"""The change feed: nothing missed, nobody named, and no feed holds up the archive."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import trio

from hounsfield.archive.engine import changes as engine_changes
from hounsfield.archive.index.deletion import Target
from hounsfield.archive.web import WebLimits
from hounsfield.archive.web import changes as web_changes
from support.archives import ct_slice, store

EXPLICIT = "1.2.840.10008.1.2.1"
STREAM = {"accept": "text/event-stream"}


async def put(archive, number: int, **more: Any) -> None:
    data = ct_slice(
        study_uid="2.25.1",
        series_uid="2.25.11",
        sop_uid=f"2.25.111.{number}",
        patient_name="Secret^Name",
        **more,
    )
    await store(archive.engine, data, EXPLICIT)


def heard(answer: httpx.Response) -> list[tuple[str, list[str]]]:
    """Kinds and instances."""
    assert answer.status_code == 200, answer.text
    return [
        (one["kind"], [member["instance"] for member in one.get("instances", [])])
        for one in answer.json()["changes"]
    ]


def stored(*numbers: int) -> list[tuple[str, list[str]]]:
    return [("instances-stored", [f"2.25.111.{number}"]) for number in numbers]


async def test_pages_tell_everything_once_and_in_order(archive):
    for number in range(1, 8):
        await put(archive, number)
    async with archive.client() as client:
        everything = heard(await client.get("/changes"))
        assert everything == stored(*range(1, 8))
        cursor, got = "0", []
        while True:
            answer = await client.get("/changes", params={"since": cursor, "limit": 3})
            got += heard(answer)
            assert len(answer.json()["changes"]) <= 3
            assert "again" not in answer.json()
            cursor = answer.json()["next"]
            if not answer.json()["more"]:
                break
        assert got == everything
        assert answer.headers["cache-control"] == "no-store"
        # From any event's own cursor one goes on after it.
        one = (await client.get("/changes")).json()["changes"][3]
        assert heard(await client.get("/changes", params={"since": one["cursor"]})) == everything[4:]
        now = (await client.get("/changes?since=now")).json()
        assert (now["changes"], now["more"]) == ([], False)
        await put(archive, 8)
        assert heard(await client.get("/changes", params={"since": now["next"]})) == stored(8)


async def test_every_kind_is_told_and_names_nobody(archive):
    await put(archive, 1, patient_id="SECRET-ID")
    await put(archive, 1, patient_id="SECRET-ID", pixels=bytes(512))
    await store(archive.engine, b"\x08\0\x05\0CS\x0a\0ISO_IR 100", EXPLICIT)
    await archive.engine.deleting.hold(patient_id="SECRET-ID", by="SECRET", why="SECRET")
    async with archive.client() as client:
        answer = await client.get("/changes")
        kinds = [kind for kind, _ in heard(answer)]
        assert kinds == ["instances-stored", "conflict-kept", "object-quarantined"]
        assert "secret" not in answer.text.lower()
        for one in answer.json()["changes"]:
            assert set(one) <= {"cursor", "kind", "at", "study", "instances", "correction"}
            assert one["at"].endswith("Z")


async def test_deletions_are_told(archive):
    await put(archive, 1)
    await put(archive, 2)
    await archive.engine.delete(Target("2.25.1"), reason="a reason", actor="an actor")
    async with archive.client() as client:
        answer = await client.get("/changes")
        kind, members = heard(answer)[-1]
        assert (kind, sorted(members)) == ("instances-deleted", ["2.25.111.1", "2.25.111.2"])
        assert "reason" not in answer.text
        assert "actor" not in answer.text


async def test_a_long_poll_is_woken(archive):
    async with archive.client() as client:
        now = (await client.get("/changes?since=now")).json()["next"]
        answers: list[httpx.Response] = []

        async def poll() -> None:
            answers.append(await client.get("/changes", params={"since": now, "wait": 60}))

        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(poll)
                while not archive.engine.changes.waiting:
                    await trio.lowlevel.checkpoint()
                await put(archive, 1)
        assert heard(answers[0]) == stored(1)


@pytest.mark.parametrize("wait", ["0.05", "0"])
async def test_a_long_poll_ends_empty_when_its_time_is_over(archive, wait):
    async with archive.client() as client:
        answer = (await client.get("/changes", params={"since": "now", "wait": wait})).json()
        assert (answer["changes"], answer["more"]) == ([], False)


@contextlib.asynccontextmanager
async def stream(client: httpx.AsyncClient, **headers: str) -> AsyncIterator[AsyncIterator[dict[str, str]]]:
    async with client.stream("GET", "/changes", headers={**STREAM, **headers}) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        yield messages(answer)


async def messages(answer: httpx.Response) -> AsyncIterator[dict[str, str]]:
    """As WHATWG HTML 9.2.6 reads them, comments and blocks without data too."""
    block: dict[str, str] = {}
    async for line in answer.aiter_lines():
        if line:
            name, _, value = line.partition(":")
            block[name] = value.removeprefix(" ")
        else:
            yield block
            block = {}


async def test_a_stream_goes_on_where_it_broke_off(archive):
    for number in (1, 2, 3):
        await put(archive, number)
    async with archive.client() as client:
        seen: list[dict[str, Any]] = []
        last = ""
        with trio.fail_after(30):
            async with stream(client) as events:
                first = await anext(events)
                assert "data" not in first
                assert int(first["retry"]) > 0
                for _ in range(2):
                    block = await anext(events)
                    assert block["event"] == "instances-stored"
                    assert json.loads(block["data"])["cursor"] == block["id"]
                    seen.append(json.loads(block["data"]))
                    last = block["id"]
            await put(archive, 4)
            async with stream(client, **{"last-event-id": last}) as events:
                assert (await anext(events))["id"] == last
                seen += [json.loads((await anext(events))["data"]) for _ in range(2)]
                await put(archive, 5)  # while it waits
                seen.append(json.loads((await anext(events))["data"]))
        assert [one["instances"][0]["instance"] for one in seen] == [f"2.25.111.{n}" for n in range(1, 6)]


async def test_a_stream_says_that_it_is_alive_and_ends(archive, monkeypatch):
    monkeypatch.setattr(web_changes, "ALIVE_S", 0.01)
    await put(archive, 1)
    async with archive.client() as client:
        with trio.fail_after(30):
            async with stream(client, **{"last-event-id": "now"}) as events:
                first = await anext(events)
                assert await anext(events) == {"": "alive"}
        monkeypatch.setattr(web_changes, "STREAM_S_MAX", 0.05)
        with trio.fail_after(30):
            async with stream(client, **{"last-event-id": first["id"]}) as events:
                blocks = [one async for one in events]
                assert blocks[0]["id"] == first["id"]


async def test_what_is_not_told_is_passed(archive, monkeypatch):
    """A cursor moves over facts, so that its holder does not read them for ever."""
    monkeypatch.setattr(engine_changes, "EVENTS_LOOKED_AT_MAX", 32)
    for number in range(70):
        await archive.engine.commit_fact("other", f"{number}", {"a": 1}, 1)
    await put(archive, 1)
    async with archive.client() as client:
        first = await client.get("/changes")
        assert first.json()["changes"] == []
        assert first.json()["more"]
        polled = await client.get("/changes?wait=30")
        assert polled.json()["more"] or heard(polled) == stored(1)
        cursor, got = first.json()["next"], []
        for _ in range(10):
            answer = await client.get("/changes", params={"since": cursor})
            got += heard(answer)
            cursor = answer.json()["next"]
        assert got == stored(1)


async def test_pages_are_bounded(archive, monkeypatch):
    monkeypatch.setattr(engine_changes, "PAGE_BYTES_MAX", 300)
    for number in range(1, 6):
        await put(archive, number)
    async with archive.client() as client:
        answer = await client.get("/changes?limit=1000000")
        assert 1 <= len(answer.json()["changes"]) < 5
        assert answer.json()["more"]


async def test_so_many_feeds_and_no_more(archives, settings):
    limited = settings(limits=WebLimits(feeds_max=2))
    async with archives(settings=limited) as archive, archive.client() as client:
        with trio.fail_after(30):
            async with stream(client) as first, stream(client) as second:
                await anext(first)
                await anext(second)
                for headers, query in ((STREAM, "since=now"), ({}, "since=now&wait=9")):
                    refused = await client.get(f"/changes?{query}", headers=headers)
                    assert refused.status_code == 503
                    assert int(refused.headers["retry-after"]) > 0
                assert (await client.get("/changes?since=now")).status_code == 200
            while archive.engine.changes.waiting:
                await trio.lowlevel.checkpoint()
            async with stream(client) as third:
                await anext(third)


async def test_who_goes_away_leaves_no_feed_behind(archive):
    head = b"GET /changes?since=now%s HTTP/1.1\r\nHost: a\r\nAccept: %s\r\n\r\n"
    for query, accept in ((b"", b"text/event-stream"), (b"&wait=60", b"*/*")):
        peer = await trio.open_tcp_stream("127.0.0.1", archive.port)
        await peer.send_all(head % (query, accept))
        with trio.fail_after(30):
            while not archive.engine.changes.waiting:
                await trio.lowlevel.checkpoint()
            await peer.aclose()
            while archive.engine.changes.waiting:
                await trio.lowlevel.checkpoint()


async def test_closing_ends_feeds(archives):
    closing = trio.Event()
    async with archives(closing=closing) as archive, archive.client() as client:
        polled: list[httpx.Response] = []

        async def poll() -> None:
            polled.append(await client.get("/changes?since=now&wait=60"))

        with trio.fail_after(30):
            async with trio.open_nursery() as nursery, stream(client) as events:
                nursery.start_soon(poll)
                await anext(events)
                while archive.engine.changes.waiting < 2:
                    await trio.lowlevel.checkpoint()
                closing.set()
                assert [one async for one in events] == []
        assert polled[0].json()["changes"] == []


@pytest.mark.parametrize(
    ("query", "headers", "status"),
    [
        ("since=x", {}, 400),
        ("since=-1", {}, 400),
        ("since=0000000000000000-", {}, 400),
        ("since=0000000000000000-99999999999999999999", {}, 400),
        ("since=ffffffffffffffff-1", {}, 410),
        ("since=ffffffffffffffff-1&wait=5", {}, 410),
        ("since=ffffffffffffffff-1", STREAM, 410),
        ("", {**STREAM, "last-event-id": "ffffffffffffffff-1"}, 410),
        ("", {**STREAM, "last-event-id": "nonsense"}, 400),
        ("limit=0", {}, 400),
        ("limit=x", {}, 400),
        ("limit=-1", {}, 400),
        ("wait=x", {}, 400),
        ("wait=nan", {}, 400),
        ("wait=-1", {}, 400),
        ("wait=inf", {}, 400),
        ("limit=1&limit=2", {}, 400),
        ("", {"accept": "image/png"}, 406),
    ],
)
async def test_what_cannot_be_answered(archive, query, headers, status):
    async with archive.client() as client:
        answer = await client.get(f"/changes?{query}", headers=headers)
        assert answer.status_code == status
        assert answer.headers["content-type"] == "application/problem+json"


async def test_head_does_not_wait(archive):
    async with archive.client() as client:
        for headers in ({}, STREAM):
            answer = await client.head("/changes?since=now&wait=60", headers=headers)
            assert (answer.status_code, answer.content) == (200, b"")
        assert (await client.get("/changes?since=0000000000000000-999")).json()["changes"] == []
