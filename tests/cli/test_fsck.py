"""Everything that can be wrong at rest is named by `fsck`, with how bad it is and what repairs it."""

from __future__ import annotations

import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
from msgspec import structs

from hounsfield.archive.app.data_directory import open_data_directory
from hounsfield.archive.engine.engine import EngineOptions, open_engine
from hounsfield.archive.engine.stores import Stores
from hounsfield.archive.index import locations, postings
from hounsfield.archive.index.catalog import Catalog
from hounsfield.archive.index.indexing import progress_batch
from hounsfield.archive.index.records import Key, Kind
from hounsfield.archive.index.rows import InstanceRow, PatientRow, SeriesRow, StudyRow, encode
from hounsfield.archive.index.tables import (
    FRESH,
    GRAM,
    INSTANCE,
    JOURNAL,
    LOOKUP,
    META,
    PATIENT,
    PLACE,
    RECORD,
    SEGMENT,
    SERIES,
    STATE,
    STUDY,
    TOKEN,
)
from hounsfield.storage_backends.api import Batch, Table
from hounsfield.storage_backends.master_key import create_master_key_file
from support.archives import ct_slice, open_stores, store


class Visit(msgspec.Struct, frozen=True):
    number: str


VISIT = Kind("visit", Visit, lambda visit: [Key("number", visit.number, unique=True), Key("all", "", 7)])
EXPLICIT = "1.2.840.10008.1.2.1"
OPTIONS = EngineOptions(direct_writes=False)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive with two studies of one patient, an object in quarantine, a conflict, and two facts."""
    folder = tmp_path_factory.mktemp("template")
    key = folder / "state/hounsfield/development-master.key"
    create_master_key_file(key)
    open_data_directory(folder / "a", create=True).close()

    async def fill() -> None:
        stores = _open(folder)
        async with open_engine(stores, OPTIONS, owner="a test") as engine:
            for study in ("1.2.3", "1.2.4"):
                for number in range(3):
                    await store(engine, ct_slice(study_uid=study, number=number), EXPLICIT)
            for _ in range(2):
                data = ct_slice(study_uid="1.2.3", series_uid="1.5", sop_uid="1.6")
                await store(engine, data, EXPLICIT)

            def no_uid(data: Any) -> None:
                del data.SOPInstanceUID

            await store(engine, ct_slice(change=no_uid), EXPLICIT)
            await engine.commit_fact("note", "one", {"text": "kept"}, 1)
            await engine.commit_fact("note", "two", {"text": "kept"}, 1)
            await engine.record_keeping.commit(
                "test", lambda change: change.put(VISIT, change.new_id(), Visit("4711"))
            )
        stores.merger.merge_all()
        stores.close()

    trio.run(fill)
    stores = _open(folder)
    stores.catch_up(at_start=True)
    stores.close()
    return folder


@pytest.fixture
def filled(cli: Any, template: Path, tmp_path: Path) -> Path:
    """A copy of the template, whose key is the development key of ``cli``."""
    shutil.copytree(template, tmp_path, dirs_exist_ok=True)
    return tmp_path / "a"


def _open(tmp_path: Path) -> Stores:
    return open_stores(tmp_path / "a", f"file:{tmp_path}/state/hounsfield/development-master.key", OPTIONS)


def _fsck(cli: Any, data: Path, *options: str) -> tuple[int, dict[str, str]]:
    """Exit code, and severity by what was found."""
    result = cli("fsck", "--json", "--data", data, *options)
    return result.code, {finding["what"]: finding["severity"] for finding in result.json()["findings"]}


def test_a_whole_archive_has_nothing_wrong(cli: Any, filled: Path) -> None:
    assert _fsck(cli, filled) == (0, {})
    assert _fsck(cli, filled, "--quick") == (0, {})
    assert "nothing is wrong" in cli("fsck", "--data", filled).err


def test_an_empty_archive_has_nothing_wrong(cli: Any, archive: Path) -> None:
    assert _fsck(cli, archive) == (0, {})


# ---------------------------------------------------------------- the index

Break = Callable[[Stores, Batch], None]


def _first(stores: Stores, table: Table) -> tuple[bytes, bytes]:
    with stores.store.snapshot() as snapshot:
        return next(iter(snapshot.scan(table)))


def _flip_row(table: Table) -> Break:
    def spoil(stores: Stores, batch: Batch) -> None:
        key, value = _first(stores, table)
        batch.put(table, key, value[:-1] + bytes([value[-1] ^ 1]))

    return spoil


def _record(stores: Stores) -> bytes:
    return stores.sealer.open(RECORD, *_first(stores, RECORD))


def _drop(table: Table) -> Break:
    return lambda stores, batch: batch.delete(table, _first(stores, table)[0])


def _change(table: Table, kind: Any, **fields: Any) -> Break:
    def spoil(stores: Stores, batch: Batch) -> None:
        key, sealed = _first(stores, table)
        catalog: Catalog = stores.catalog
        row = structs.replace(catalog.open_row(table, key, sealed, kind), **fields)
        batch.put(table, key, stores.sealer.seal(table, key, encode(row)))

    return spoil


def _misplace(stores: Stores, batch: Batch) -> None:
    key, sealed = _first(stores, INSTANCE)
    row = stores.sealer.open(INSTANCE, key, sealed)
    wrong = key[:-1] + bytes([key[-1] ^ 1])
    batch.put(INSTANCE, wrong, stores.sealer.seal(INSTANCE, wrong, row))


def _lose_posting(table: Table) -> Break:
    def spoil(stores: Stores, batch: Batch) -> None:
        with stores.store.snapshot() as snapshot:
            key, value = next(iter(snapshot.entries(table)))
        batch.remove(table, key, value)

    return spoil


def _stray_posting(table: Table) -> Break:
    def spoil(stores: Stores, batch: Batch) -> None:
        with stores.store.snapshot() as snapshot:
            key, value = next(iter(snapshot.entries(table)))
        batch.add(table, key, value[:-1] + bytes([value[-1] ^ 1]))

    return spoil


def _change_gram(*, add: bool) -> Break:
    def spoil(stores: Stores, batch: Batch) -> None:
        key, block = _first(stores, GRAM)
        value = int.from_bytes(block[-postings.VALUE_BYTES :], "big")
        with stores.store.snapshot() as snapshot:
            postings.plan_change(
                snapshot, batch, key[:16], {value - 1} if add else set(), set() if add else {value}
            )

    return spoil


def _point_beyond(stores: Stores, batch: Batch) -> None:
    _, (one, *_) = next(locations.walk(stores.store, stores.catalog))
    assert one.location is not None
    wrong = structs.replace(one.location, offset=one.location.offset + 4096)
    locations.point_elsewhere(batch, stores.sealer, one, wrong)


def _point_to_another_segment(stores: Stores, batch: Batch) -> None:
    _, (one, *_) = next(locations.walk(stores.store, stores.catalog))
    assert one.location is not None
    wrong = structs.replace(one.location, segment=bytes(16))
    locations.point_elsewhere(batch, stores.sealer, one, wrong)


def _forget_an_object(stores: Stores, batch: Batch) -> None:
    _, rows = next(locations.walk(stores.store, stores.catalog))
    batch.delete(rows[0].table, rows[0].key)


def _unclose(stores: Stores, batch: Batch) -> None:
    _forget_an_object(stores, batch)
    (segment,) = stores.log.segment_ids()
    batch.puts += progress_batch({segment: 8192}).puts


def _more_facts(stores: Stores, batch: Batch) -> None:
    batch.put(META, b"facts", struct.pack(">Q", 9))


def _fewer_facts(stores: Stores, batch: Batch) -> None:
    batch.put(META, b"facts", struct.pack(">Q", 1))


BROKEN: dict[str, tuple[Break, str, str]] = {
    "patient row": (_flip_row(PATIENT), "a row of table patient does not open", "index"),
    "study row": (_flip_row(STUDY), "a row of table study does not open", "index"),
    "series row": (_flip_row(SERIES), "a row of table series does not open", "index"),
    "instance row": (_flip_row(INSTANCE), "a row of table instance does not open", "index"),
    "state row": (_flip_row(STATE), "a row of table state does not open", "index"),
    "segment row": (
        lambda s, b: b.put(SEGMENT, _first(s, SEGMENT)[0], b"\xc1"),
        "a row of table segment does not open",
        "index",
    ),
    "record row": (_flip_row(RECORD), "a row of table record does not open", "index"),
    "record at no key": (
        lambda s, b: b.put(RECORD, b"test.visit", s.sealer.seal(RECORD, b"test.visit", _record(s))),
        "a row of table record stands at a wrong key",
        "index",
    ),
    "lookup of none": (
        lambda s, b: b.put(LOOKUP, bytes(36), b""),
        "a stray posting in lookups: something is found that is not there",
        "index",
    ),
    "lost lookup": (
        _drop(LOOKUP),
        "a posting is missing in lookups: something that is there is not found",
        "index",
    ),
    "lookup of a lost record": (
        _drop(RECORD),
        "a stray posting in lookups: something is found that is not there",
        "index",
    ),
    "moved row": (_misplace, "a row of table instance stands at a wrong key", "index"),
    "other uid": (_change(STUDY, StudyRow, uid="9"), "a row of table study stands at a wrong key", "index"),
    "no patient": (_drop(PATIENT), "a study's patient is missing", "index"),
    "no study": (_drop(STUDY), "a series has no study", "index"),
    "no series": (_drop(SERIES), "an instance has no series", "index"),
    "no instance": (_drop(INSTANCE), "a series has another number of instances than it says", "index"),
    "study count": (
        _change(STUDY, StudyRow, instances=77),
        "a study has another number of instances than it says",
        "index",
    ),
    "series of a study": (
        _change(STUDY, StudyRow, series=77),
        "a study has another number of series than it says",
        "index",
    ),
    "modalities": (
        _change(STUDY, StudyRow, modalities=("MR",)),
        "a study has other modalities than it says",
        "index",
    ),
    "series count": (
        _change(SERIES, SeriesRow, instances=77),
        "a series has another number of instances than it says",
        "index",
    ),
    "patient count": (
        _change(PATIENT, PatientRow, studies=77),
        "a patient has another number of studies than it says",
        "index",
    ),
    "place lost": (
        _lose_posting(PLACE),
        "a posting is missing in places: something that is there is not found",
        "index",
    ),
    "place stray": (
        _stray_posting(PLACE),
        "a stray posting in places: something is found that is not there",
        "index",
    ),
    "token lost": (
        _lose_posting(TOKEN),
        "a posting is missing in tokens: something that is there is not found",
        "index",
    ),
    "token stray": (
        _stray_posting(TOKEN),
        "a stray posting in tokens: something is found that is not there",
        "index",
    ),
    "gram lost": (_change_gram(add=False), "a gram is missing: a wildcard does not find a study", "index"),
    "gram stray": (_change_gram(add=True), "a stray gram: a study is looked at in vain", "index"),
    "journal row": (
        lambda s, b: None,
        "an event of the journal does not open",
        "index",
    ),
    "beyond": (_point_beyond, "the index points to a record that is not there", "loss"),
    "no such segment": (_point_to_another_segment, "a segment is missing that the index points into", "loss"),
    "not indexed": (_forget_an_object, "a stored object is not in the index", "index"),
    "not yet indexed": (_unclose, "a stored object is not indexed yet", "note"),
    "lost facts": (
        _more_facts,
        "the index knows facts that the ledger has lost: make a backup before any reindex",
        "loss",
    ),
    "later facts": (_fewer_facts, "facts in the ledger are not in the index yet", "note"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_wrong_in_the_index_is_named(cli: Any, filled: Path, tmp_path: Path, name: str) -> None:
    spoil, what, severity = BROKEN[name]
    stores = _open(tmp_path)
    stores.sealer.prepare()
    batch = Batch()
    spoil(stores, batch)
    if name == "journal row":
        _write_raw(stores, JOURNAL)
    else:
        stores.store.commit(batch)
    stores.close()
    code, found = _fsck(cli, filled)
    assert found.get(what) == severity, found
    assert code == {"index": 4, "loss": 1, "note": found and code}[severity]
    if severity == "note" and len(found) == 1:
        assert code == 0


def _write_raw(stores: Stores, table: Table) -> None:
    """Change a row of a log table, which no batch can."""
    handle = stores.store._handles[table.name]  # type: ignore[attr-defined]
    with stores.store._environment.begin(write=True) as transaction:  # type: ignore[attr-defined]
        key, value = next(iter(transaction.cursor(db=handle)))
        transaction.put(key, value[:-1] + bytes([value[-1] ^ 1]), db=handle)


def test_a_gap_in_the_journal_is_named(cli: Any, filled: Path, tmp_path: Path) -> None:
    stores = _open(tmp_path)
    handle = stores.store._handles["journal"]  # type: ignore[attr-defined]
    with stores.store._environment.begin(write=True) as transaction:  # type: ignore[attr-defined]
        transaction.delete((2).to_bytes(8, "big"), db=handle)
    stores.close()
    assert _fsck(cli, filled) == (4, {"events of the journal are missing": "index"})


def test_fresh_studies_are_no_fault(cli: Any, filled: Path, tmp_path: Path) -> None:
    stores = _open(tmp_path)
    batch = Batch()
    batch.put(FRESH, _first(stores, STUDY)[0], b"x" * 12)
    stores.store.commit(batch)
    stores.close()
    assert _fsck(cli, filled) == (0, {})


# ---------------------------------------------------------------- what it is a view of


def _segment(data: Path) -> Path:
    (path,) = (data / "segments").iterdir()
    return path


def _location(tmp_path: Path) -> Any:
    stores = _open(tmp_path)
    found = [
        one.location
        for _, rows in locations.walk(stores.store, stores.catalog)
        for one in rows
        if isinstance(one.row, InstanceRow)
    ]
    stores.close()
    return min((place for place in found if place is not None), key=lambda place: place.offset)


def _flip(path: Path, at: int) -> None:
    raw = bytearray(path.read_bytes())
    raw[at] ^= 0x20
    path.write_bytes(raw)


@pytest.mark.parametrize(("where", "quick"), [(0, True), (50, True), (100, True), (-30, False)])
def test_a_damaged_object_is_named(cli: Any, filled: Path, tmp_path: Path, where: int, quick: bool) -> None:
    place = _location(tmp_path)
    at = place.offset + (where if where >= 0 else place.ref().length + where)
    _flip(_segment(filled), at)
    assert _fsck(cli, filled) == (1, {"a stored object is damaged": "loss"})
    assert _fsck(cli, filled, "--quick")[0] == (1 if quick else 0)


def test_a_damaged_header_costs_nothing(cli: Any, filled: Path) -> None:
    _flip(_segment(filled), 10)
    assert _fsck(cli, filled) == (0, {"a copy of a segment's header is damaged": "note"})


def test_a_cut_segment_is_loss_and_a_torn_tail_is_not(cli: Any, filled: Path) -> None:
    path = _segment(filled)
    raw = path.read_bytes()
    path.write_bytes(raw + raw[8192:8300])
    assert _fsck(cli, filled) == (0, {"the rest of an append that a crash cut short": "note"})
    path.write_bytes(raw[:-600])
    code, found = _fsck(cli, filled)
    assert code == 1
    assert "loss" in found.values()


def test_missing_files_are_named(cli: Any, filled: Path, tmp_path: Path) -> None:
    segment = _segment(filled)
    segment.rename(tmp_path / "aside")
    assert _fsck(cli, filled) == (
        1,
        {
            "a segment is missing that the index points into": "loss",
            "a key seals nothing that is here": "note",
        },
    )
    (tmp_path / "aside").rename(segment)
    key = filled / "keys/segment" / f"{segment.name}.key"
    good = key.read_bytes()
    key.unlink()
    code, found = _fsck(cli, filled)
    assert (code, found["a segment has no key: nothing in it can be read"]) == (1, "loss")
    key.write_bytes(good[:20])
    code, found = _fsck(cli, filled)
    assert (code, found["a segment key does not open"]) == (1, "loss")


def test_a_damaged_or_lost_ledger_is_named(cli: Any, filled: Path) -> None:
    (path,) = (filled / "ledger").iterdir()
    raw = path.read_bytes()
    _flip(path, 8192 + 70)
    code, found = _fsck(cli, filled)
    assert code == 1
    assert found["a fact in the ledger does not open: a reindex would not know it"] == "loss"
    path.write_bytes(raw)
    path.unlink()
    code, found = _fsck(cli, filled)
    assert found["the index knows facts that the ledger has lost: make a backup before any reindex"] == "loss"


def test_a_token_key_that_was_lost_is_named(cli: Any, filled: Path) -> None:
    (filled / "keys/token/StudyInstanceUID.key").unlink()
    code, found = _fsck(cli, filled)
    assert code == 4
    assert found["a token key was missing and was made anew: what it named is not found"] == "index"
    assert found["a row of table study stands at a wrong key"] == "index"


def test_strangers_files_are_named(cli: Any, filled: Path) -> None:
    for name in ("notes.txt", "segments/readme", "keys/segment/.abc.new", "index/old.mdb"):
        (filled / name).write_text("x")
    result = cli("fsck", "--json", "--data", filled)
    assert result.code == 0
    (finding,) = result.json()["findings"]
    assert finding["count"] == 4
    assert sorted(finding["examples"]) == [
        "index/old.mdb",
        "keys/segment/.abc.new",
        "notes.txt",
        "segments/readme",
    ]


def test_nothing_is_changed_and_no_name_is_shown(cli: Any, filled: Path) -> None:
    _flip(_segment(filled), 8192 + 300)

    def contents() -> dict[str, bytes]:
        return {
            str(p.relative_to(filled)): p.read_bytes()
            for folder in ("segments", "ledger", "keys")
            for p in (filled / folder).rglob("*")
            if p.is_file()
        }

    before = contents()
    result = cli("fsck", "--data", filled)
    assert contents() == before
    assert result.code == 1
    for secret in ("Muster", "P-0001", "1.2.3", "ACC-77"):
        assert secret not in result.out + result.err
