"""Prepared metadata is never anything else than metadata made afresh, whatever happened in between."""

from __future__ import annotations

import json
import random
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.uid import ExplicitVRLittleEndian

from hounsfield.archive.dicom.json import to_json
from hounsfield.archive.engine import prepared_build
from hounsfield.archive.engine.corrections import Request
from hounsfield.archive.engine.engine import Engine, EngineOptions, open_engine
from hounsfield.archive.engine.errors import DamagedError, NotFoundError
from hounsfield.archive.engine.gate import Gate
from hounsfield.archive.engine.gzip_pieces import GzipJoin, gzip_length, pack, unpack
from hounsfield.archive.engine.prepared import Answer
from hounsfield.archive.engine.prepared_store import BODY, DROPPED, HEAD, MEMBERS, PreparedLimits
from hounsfield.archive.engine.quiet import Consumer, QuietStudies
from hounsfield.archive.engine.stable import EVENT_STABLE
from hounsfield.archive.engine.stores import Stores
from hounsfield.archive.index import leases
from hounsfield.archive.index.catalog import Catalog
from hounsfield.archive.index.deletion import Target
from hounsfield.archive.index.draft import StudyDraft
from hounsfield.codecs.registry import lookup
from hounsfield.storage_backends.api import Batch, Table
from hounsfield.storage_backends.errors import StoreFullError
from support.archives import ct_slice, store, stores_in

STUDY, SERIES = "2.25.100", "2.25.200"
LINKS = "http://archive.example/dicom-web"
#: Everything small, so that a few slices are many pieces; and nothing prepared unless a test says so.
SMALL = PreparedLimits(piece_instances_max=4, quiet_s=1e6)


@asynccontextmanager
async def archive(
    directory: Path, limits: PreparedLimits = SMALL, **options: object
) -> AsyncIterator[Engine]:
    chosen = EngineOptions(metadata=limits, study_stable_s=1e6, **options)  # type: ignore[arg-type]
    with stores_in(directory / "data", chosen) as stores:
        async with open_engine(stores, chosen, owner="test") as engine:
            yield engine


async def add(
    engine: Engine, number: int, *, series: str = SERIES, study: str = STUDY, **how: object
) -> None:
    sop_uid = f"2.25.3{series[5:]}{number:06d}"
    data = ct_slice(study_uid=study, series_uid=series, sop_uid=sop_uid, number=number, **how)  # type: ignore[arg-type]
    await store(engine, data, ExplicitVRLittleEndian)


async def gzipped(answer: Answer) -> bytes:
    body = b"".join([bytes(b) async for piece in answer.gzip() for b in piece])
    assert answer.gzip_bytes in {None, len(body)}
    unpacker = zlib.decompressobj(31)
    text = unpacker.decompress(body)
    assert unpacker.eof and not unpacker.unused_data  # one member, checksum and length right
    return text


async def plain(answer: Answer) -> bytes:
    return b"".join([bytes(b) async for piece in answer.identity() for b in piece])


async def fresh(engine: Engine, series: str | None = SERIES, links: str = LINKS, study: str = STUDY) -> bytes:
    """What the standard wants, made from the stored objects one by one."""
    texts = []
    for one in await engine.instances(study, series):
        header = await engine.header(one)
        base = f"{links}/studies/{study}/series/{one.series_uid}/instances/{one.row.sop_uid}/"
        texts.append(to_json(header.head, header.trailer, lookup(header.transfer_syntax_uid), base_uri=base))
    return b"[" + b",".join(texts) + b"]"


async def check(engine: Engine, series: str | None = SERIES, links: str = LINKS, study: str = STUDY) -> None:
    expected = await fresh(engine, series, links, study)
    for _ in range(2):  # built, and kept
        assert await gzipped(await engine.metadata.open(study, series, links=links)) == expected
    assert await plain(await engine.metadata.open(study, series, links=links)) == expected


def entries(stores: Stores, table: Table) -> list[bytes]:
    with stores.derived.snapshot() as snapshot:
        return [key for key, _ in snapshot.scan(table)]


# ---------------------------------------------------------------- additions, deletions, replacements


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_additions_in_any_order(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    numbers = list(range(1, 61))
    chance.shuffle(numbers)
    async with archive(tmp_path) as engine:
        while numbers:
            for _ in range(chance.choice([1, 1, 2, 3, 11])):
                if numbers:
                    await add(engine, numbers.pop())
            await check(engine)
        figures = engine.metadata.figures
        assert figures.encoded == 60  # each once, however often the series was built
        assert figures.taken_over > 10
        assert len(entries(engine.stores, HEAD)) == 1


async def test_many_series_and_the_study_of_them(tmp_path: Path) -> None:
    async with archive(tmp_path) as engine:
        for number in range(1, 8):
            for series in ("2.25.201", "2.25.202", "2.25.203"):
                await add(engine, number, series=series)
            await check(engine, None)
            await check(engine, "2.25.202")
        assert engine.metadata.figures.encoded == 21
        await engine.metadata.open(STUDY, None, links=LINKS)


async def remove(engine: Engine, series: str, number: int) -> None:
    stores = engine.stores
    stores.sealer.prepare(100)
    with stores.store.snapshot() as snapshot:
        draft = StudyDraft(stores.catalog, snapshot, STUDY)
        assert draft.remove(series, f"2.25.3{series[5:]}{number:06d}") is not None
        batch = draft.finish(5)
    stores.store.commit(batch)


async def test_deletions(tmp_path: Path) -> None:
    async with archive(tmp_path) as engine:
        for number in range(1, 21):
            await add(engine, number)
        await check(engine)
        for number in (20, 1, 7, 8, 9, 10, 11):
            await remove(engine, SERIES, number)
            await check(engine)
        assert engine.metadata.figures.encoded == 20
        await add(engine, 8)
        await check(engine)


async def test_a_series_that_is_gone_is_forgotten(tmp_path: Path) -> None:
    limits = replace(SMALL, grace_s=0.0)
    async with archive(tmp_path, limits) as engine:
        await add(engine, 1)
        await add(engine, 1, series="2.25.201")
        await check(engine, None)
        await remove(engine, SERIES, 1)
        with pytest.raises(NotFoundError):
            await engine.metadata.open(STUDY, SERIES, links=LINKS)
        assert len(entries(engine.stores, HEAD)) == 2
        await engine.metadata.prepare(STUDY)
        await engine.metadata.prepare(STUDY)
        assert len(entries(engine.stores, HEAD)) == len(entries(engine.stores, BODY)) == 1


@pytest.mark.parametrize("duplicates", ["keep-first", "newest-current"])
async def test_other_content_under_the_same_uids(tmp_path: Path, duplicates: str) -> None:
    async with archive(tmp_path, duplicates=duplicates) as engine:
        await add(engine, 1)
        await check(engine)
        await add(engine, 1, patient_name="Other^Name")
        text = await gzipped(await engine.metadata.open(STUDY, SERIES, links=LINKS))
        assert (b"Other^Name" in text) == (duplicates == "newest-current")
        await check(engine)


async def test_corrections_are_in_it_and_out_again(tmp_path: Path) -> None:
    other = "2.25.101"
    async with archive(tmp_path) as engine:
        for number in range(1, 13):
            await add(engine, number)
            await add(engine, number, series="2.25.201")
        await check(engine, None)
        made = []
        name, description = 0x00100010, 0x00081030
        for wanted in (
            {"kind": "set-patient", "patient": ("P-0001", ""), "values": {name: "Anders^Ada"}},
            {"kind": "set-study", "study": STUDY, "values": {description: "Abdomen"}},
            {"kind": "split", "study": STUDY, "instances": ("2.25.3201000003",), "to_study": other},
            {"kind": "move-series", "study": STUDY, "series": (SERIES,), "to_study": other},
        ):
            request = Request(actor="tester", reason="it was wrong", **wanted)  # type: ignore[arg-type]
            made.append((await engine.correcting.make(request))["id"])
            await check(engine, None)
            await add(engine, 20 + len(made), series="2.25.201")
            await check(engine, None)
            if len(made) > 2:
                await check(engine, None, study=other)
        text = await plain(await engine.metadata.open(STUDY, None, links=LINKS))
        assert b"Anders^Ada" in text and b"Abdomen" in text
        for correction in reversed(made):
            await engine.correcting.revert(correction, "tester", "it was right")
            await check(engine, None)
        text = await plain(await engine.metadata.open(STUDY, None, links=LINKS))
        assert b"Anders^Ada" not in text and b"Abdomen" not in text


async def test_what_is_deleted_is_not_kept(tmp_path: Path) -> None:
    async with archive(tmp_path, replace(SMALL, grace_s=0.0)) as engine:
        for number in range(1, 7):
            await add(engine, number)
        await check(engine)
        watch = watcher(engine, "a")
        await watch.step(0.0)
        await watch.step(20.0)
        await engine.delete(Target(STUDY), actor="tester", reason="consent withdrawn")
        with pytest.raises(NotFoundError):
            await engine.metadata.open(STUDY, None, links=LINKS)
        await watch.step(30.0)
        await watch.step(50.0)
        for table in (HEAD, BODY, MEMBERS):
            assert entries(engine.stores, table) == []
        assert engine.metadata._cache.bytes_used() == 0


async def test_asked_under_another_name(tmp_path: Path) -> None:
    def with_links(data: object) -> None:
        data.add_new(0x00091010, "OB", bytes(5000))  # type: ignore[attr-defined]
        data.SeriesDescription = f'"BulkDataURI":"{LINKS}/studies/'  # type: ignore[attr-defined]

    async with archive(tmp_path) as engine:
        for number in range(1, 11):
            await add(engine, number, change=with_links)
        await check(engine)
        for links in ("https://pacs.example.org/dicom-web", "/dicom-web", 'http://[::1]:80/"\\', LINKS):
            await check(engine, links=links)
        assert engine.metadata.figures.encoded == 10


# ---------------------------------------------------------------- the cache is a cache


async def test_what_is_lost_of_the_cache_is_made_again(tmp_path: Path) -> None:
    async with archive(tmp_path) as engine:
        for number in range(1, 11):
            await add(engine, number)
        for lost in (BODY, MEMBERS, HEAD):
            await check(engine)
            for key in entries(engine.stores, lost)[:1]:
                batch = Batch()
                batch.delete(lost, key)
                engine.stores.derived.commit(batch)
            if lost is MEMBERS:
                await add(engine, 20)
            await check(engine)


async def test_what_does_not_open_is_made_again(tmp_path: Path) -> None:
    async with archive(tmp_path) as engine:
        for number in range(1, 11):
            await add(engine, number)
        for table in (BODY, MEMBERS, HEAD):
            await check(engine)
            key = entries(engine.stores, table)[0]
            batch = Batch()
            batch.put(table, key, b"\0\0\0\1" + bytes(50))
            engine.stores.derived.commit(batch)
            await add(engine, 30 + len(table.name))
            await check(engine)


async def test_the_cache_may_be_deleted_at_any_time(tmp_path: Path) -> None:
    async with archive(tmp_path) as engine:
        for number in range(1, 4):
            await add(engine, number)
        await check(engine)
    for path in (tmp_path / "data" / "derived").iterdir():
        path.write_bytes(b"no database at all" * 1000)
    async with archive(tmp_path) as engine:
        await check(engine)
    for path in (tmp_path / "data" / "derived").iterdir():
        path.unlink()
    async with archive(tmp_path) as engine:
        await check(engine)
    for pages in (0, 2, 3, 5):  # cut off: a page that is not there would end the process
        with (tmp_path / "data" / "derived" / "data.mdb").open("r+b") as file:
            file.truncate(pages * 4096)
        async with archive(tmp_path) as engine:
            await check(engine)


async def test_the_oldest_goes_when_there_is_too_much(tmp_path: Path) -> None:
    limits = replace(SMALL, bytes_max=6000, grace_s=0.0)
    async with archive(tmp_path, limits) as engine:
        cache = engine.metadata._cache
        for number in range(1, 31):
            await add(engine, number, series=f"2.25.{1000 + number}")
            await engine.metadata.prepare(STUDY)
            assert cache.bytes_used() <= 6000
        kept = len(entries(engine.stores, HEAD))
        assert 3 < kept < 30
        assert len(entries(engine.stores, BODY)) <= kept + 1
        hits = engine.metadata.figures.hits
        await plain(await engine.metadata.open(STUDY, "2.25.1030", links="/dicom-web"))
        assert engine.metadata.figures.hits == hits + 1
        await check(engine, "2.25.1001")


async def test_replaced_pieces_stay_for_those_who_read_them(tmp_path: Path) -> None:
    async with archive(tmp_path, replace(SMALL, whole_bytes_max=0)) as engine:
        for number in range(1, 11):
            await add(engine, number)
        await check(engine)
        expected = await fresh(engine)
        reading = await engine.metadata.open(STUDY, SERIES, links=LINKS)
        assert reading.bodies is None
        await remove(engine, SERIES, 2)
        await check(engine)
        assert entries(engine.stores, DROPPED)
        assert await gzipped(reading) == expected


@pytest.mark.parametrize("method", ["publish", "put_ahead", "remember_links"])
async def test_without_room_everything_is_answered_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    def full(*_: object, **__: object) -> None:
        raise StoreFullError("no room")

    async with archive(tmp_path, replace(SMALL, held_bytes_max=500)) as engine:
        monkeypatch.setattr(engine.metadata._cache, method, full)
        for number in range(1, 31):
            await add(engine, number)
        await check(engine)


async def test_a_series_that_does_not_fit_into_memory(tmp_path: Path) -> None:
    limits = replace(SMALL, held_bytes_max=1000, whole_bytes_max=500)
    async with archive(tmp_path, limits) as engine:
        for number in range(1, 31):
            await add(engine, number)
        await check(engine)
        await add(engine, 31)
        await check(engine)
        assert engine.metadata.figures.encoded == 31
        assert len(entries(engine.stores, HEAD)) == 1
        assert not [key for key in entries(engine.stores, DROPPED) if key[:8] > b"\x7f" * 8]


async def test_no_identifier_stands_in_the_cache(tmp_path: Path) -> None:
    async with archive(tmp_path) as engine:
        await add(engine, 1)
        await check(engine)
    stored = b"".join(path.read_bytes() for path in (tmp_path / "data" / "derived").iterdir())
    assert len(stored) > 4096
    for word in (b"Muster", b"P-0001", b"ACC-77", STUDY.encode(), SERIES.encode(), b"00100010"):
        assert word not in stored


# ---------------------------------------------------------------- building


async def test_those_who_ask_at_once_share_one_build(tmp_path: Path) -> None:
    async with archive(tmp_path) as engine:
        for number in range(1, 21):
            await add(engine, number)
        expected = await fresh(engine)

        async def ask() -> None:
            assert await gzipped(await engine.metadata.open(STUDY, SERIES, links=LINKS)) == expected

        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(ask)
        assert engine.metadata.figures.builds == 1
        assert engine.metadata.figures.encoded == 20


async def test_one_who_leaves_does_not_take_the_build_along(tmp_path: Path) -> None:
    async with archive(tmp_path) as engine:
        for number in range(1, 21):
            await add(engine, number)
        with trio.CancelScope() as scope:
            async for _ in (await engine.metadata.open(STUDY, SERIES, links=LINKS)).gzip():
                scope.cancel()
        await check(engine)
        assert engine.metadata.figures.encoded == 20


async def test_additions_while_it_is_being_sent(tmp_path: Path) -> None:
    async with archive(tmp_path) as engine:
        for number in range(1, 21):
            await add(engine, number)
        reading = await engine.metadata.open(STUDY, SERIES, links=LINKS)
        await add(engine, 21)
        assert len(json.loads(await plain(reading))) == 20
        await check(engine)


async def test_rows_are_opened_once_as_long_as_the_series_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with archive(tmp_path) as engine:
        for number in range(1, 11):
            await add(engine, number)
        again = 0
        looked_up = Catalog.instance

        def counted(*arguments: Any) -> Any:
            nonlocal again
            again += 1
            return looked_up(*arguments)

        monkeypatch.setattr(Catalog, "instance", counted)
        assert len(json.loads(await plain(await engine.metadata.open(STUDY, SERIES, links=LINKS)))) == 10
        assert again == 0
        monkeypatch.setattr(prepared_build, "ROWS_HELD_MAX", 3)
        assert len(json.loads(await plain(await engine.metadata.open(STUDY, SERIES, links="/else")))) == 10
        await add(engine, 11)
        await check(engine)


@pytest.mark.parametrize("held", [0, 3, prepared_build.ROWS_HELD_MAX])
async def test_what_goes_between_listing_and_encoding_is_not_described(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, held: int
) -> None:
    monkeypatch.setattr(prepared_build, "ROWS_HELD_MAX", held)
    async with archive(tmp_path) as engine:
        for number in range(1, 9):
            await add(engine, number)
        blocking = engine.metadata._blocking
        plan = blocking.plan(blocking.series(STUDY, SERIES)[0], LINKS, None)
        first = blocking.make(plan, plan.pieces[0])
        assert first is not None and first.row.instances == 4
        await remove(engine, SERIES, 6)
        second = blocking.make(plan, plan.pieces[1])
        assert second is not None and second.row.instances == 3
        assert not plan.whole  # it is not kept for what the series is now


async def test_a_damaged_object_fails_the_answer_before_it_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with archive(tmp_path) as engine:
        await add(engine, 1)

        def damaged(*_: object) -> None:
            raise DamagedError("the record does not open")

        monkeypatch.setattr(engine.metadata._blocking, "_header", damaged)
        with pytest.raises(DamagedError):
            await engine.metadata.open(STUDY, SERIES, links=LINKS)


# ---------------------------------------------------------------- entity tags


async def test_entity_tags(tmp_path: Path) -> None:
    async with archive(tmp_path) as engine:
        await add(engine, 1)
        prepared = engine.metadata
        first = await prepared.open(STUDY, SERIES, links=LINKS)
        await plain(first)
        assert first.etag.startswith('W/"')
        again = await prepared.open(STUDY, SERIES, links=LINKS, known=frozenset({first.etag}))
        assert again.unchanged
        assert not (await prepared.open(STUDY, SERIES, links="x", known=frozenset({first.etag}))).unchanged
        one = await prepared.instance(STUDY, SERIES, "2.25.3200000001", links=LINKS)
        assert await plain(one) == await plain(first)
        assert one.etag != first.etag
        await add(engine, 2)
        for etag in (first.etag, one.etag):
            changed = await prepared.open(STUDY, SERIES, links=LINKS, known=frozenset({etag}))
            assert not changed.unchanged
            assert changed.etag != etag
        assert (await prepared.open(STUDY, None, links=LINKS, known=frozenset({"*"}))).unchanged


# ---------------------------------------------------------------- quiet studies


def watcher(engine: Engine, owner: str) -> QuietStudies:
    stores = engine.stores
    consumer = Consumer("watch", 10.0, heeds=lambda kind: kind != EVENT_STABLE, act=engine.metadata.prepare)
    return QuietStudies(stores.store, stores.journal, stores.sealer, Gate(), consumer, owner=owner)


async def test_what_is_quiet_is_prepared_and_what_is_busy_is_not(tmp_path: Path) -> None:
    async with archive(tmp_path) as engine:
        await plain(await _open_other(engine))
        await add(engine, 1)
        await add(engine, 2)
        watch = watcher(engine, "a")
        await watch.step(100.0)
        await add(engine, 3)
        await watch.step(109.0)
        await watch.step(118.0)
        assert engine.metadata.figures.encoded == 1
        await watch.step(119.0)
        assert engine.metadata.figures.encoded == 4
        hits = engine.metadata.figures.hits
        answer = await engine.metadata.open(STUDY, SERIES, links=LINKS)
        assert engine.metadata.figures.hits == hits + 1
        assert await gzipped(answer) == await fresh(engine)
        with engine.stores.store.snapshot() as snapshot:
            assert engine.stores.journal.cursor(snapshot, "watch") == 4


async def _open_other(engine: Engine) -> Answer:
    """Somebody looks at something: now it is known where clients see this archive."""
    await add(engine, 1, study="2.25.9", series="2.25.999")
    return await engine.metadata.open("2.25.9", None, links=LINKS)


async def test_one_worker_prepares_and_a_successor_goes_on(tmp_path: Path) -> None:
    async with archive(tmp_path) as engine:
        await add(engine, 1)
        first, second = watcher(engine, "a"), watcher(engine, "b")
        await first.step(0.0)
        await second.step(100.0)
        assert (
            engine.metadata.figures.builds == 0
        )  # the first one holds the lease, and was never called again
        leases.give_up(engine.stores.store, "watch", "a")
        await second.step(101.0)
        await second.step(111.0)
        assert engine.metadata.figures.builds == 1


async def test_the_engine_prepares_by_itself(tmp_path: Path) -> None:
    async with archive(tmp_path, replace(SMALL, quiet_s=0.01)) as engine:
        await add(engine, 1)
        with trio.fail_after(30):
            while not entries(engine.stores, HEAD):
                await trio.sleep(0.01)


# ---------------------------------------------------------------- gzip


@settings(max_examples=60, deadline=None)
@given(st.lists(st.binary(min_size=1, max_size=3000), min_size=1, max_size=12), st.integers(1, 9))
def test_pieces_join_to_one_gzip_member(texts: list[bytes], level: int) -> None:
    pieces = [pack(text, level) for text in texts]
    assert [unpack(piece.body, piece.length) for piece in pieces] == texts
    join, body = GzipJoin(), b""
    for piece in pieces:
        body += join.lead(piece.length, piece.crc_first, piece.crc_between) + piece.body
    body += join.end()
    assert len(body) == gzip_length(len(piece.body) for piece in pieces)
    unpacker = zlib.decompressobj(31)
    assert unpacker.decompress(body) == b"[" + b",".join(texts) + b"]"
    assert unpacker.eof and not unpacker.unused_data
