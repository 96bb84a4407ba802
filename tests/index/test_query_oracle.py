"""Random queries against random catalogs give exactly what a slow, obvious look at every study gives.

In every state of the index: merged, not merged, merging interrupted anywhere, studies changed and deleted
meanwhile. ``ORACLE_ROUNDS=2000 pytest tests/index/test_query_oracle.py`` looks for longer.
"""

from __future__ import annotations

import os
import random
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
import pytest

from hounsfield.archive.dicom.levels import Level
from hounsfield.archive.dicom.query import Query, parse_qido
from hounsfield.archive.engine.search import Search
from hounsfield.archive.index import merging, planner, postings, tokens
from hounsfield.archive.index.catalog import Catalog
from hounsfield.archive.index.draft import StudyDraft
from hounsfield.archive.index.merging import MergeLimits, Merger
from hounsfield.archive.index.planner import FoundRow, Planner
from hounsfield.archive.index.rows import InstanceRow, Location, StudyRow
from hounsfield.archive.index.sealed import KeyedHash, RowSealer
from hounsfield.archive.index.tables import ALL_TABLES, FRESH, GRAM, GRAMS, META, STUDY, TOKEN
from hounsfield.storage_backends.api import Batch, KeyValueStore
from hounsfield.storage_backends.errors import PreconditionError
from hounsfield.storage_backends.lmdb_store import LmdbLimits, LmdbStore
from hounsfield.storage_backends.memory_store import MemoryStore
from support.random_queries import INSTANCE_VALUES, SERIES_VALUES, STUDY_VALUES, random_key
from support.slow_matcher import satisfies, tag_of

ROUNDS = int(os.environ.get("ORACLE_ROUNDS", "3"))
QUERIES_PER_STATE = 12

UIDS = {
    Level.STUDY: tag_of("StudyInstanceUID"),
    Level.SERIES: tag_of("SeriesInstanceUID"),
    Level.INSTANCE: tag_of("SOPInstanceUID"),
}
LEVELS = {
    Level.STUDY: STUDY_VALUES,
    Level.SERIES: STUDY_VALUES | SERIES_VALUES,
    Level.INSTANCE: STUDY_VALUES | SERIES_VALUES | INSTANCE_VALUES,
}


class Keys:
    """A keyring of nothing but its own random keys."""

    def __init__(self) -> None:
        self._held: dict[tuple[str, str], bytes] = {}

    def key(self, purpose: str, key_id: str) -> bytes:
        return self._held[purpose, key_id]

    def ensure_key(self, purpose: str, key_id: str) -> bytes:
        return self._held.setdefault((purpose, key_id), os.urandom(32))

    def ensure_keys(self, purpose: str, key_ids: Iterable[str]) -> list[bytes]:
        return [self.ensure_key(purpose, key_id) for key_id in key_ids]

    def key_ids(self, purpose: str) -> list[str]:
        return [key_id for held, key_id in self._held if held == purpose]


@dataclass
class Series:
    attributes: dict[int, str]
    instances: dict[str, dict[int, str]] = field(default_factory=dict)


@dataclass
class Study:
    attributes: dict[int, str]
    series: dict[str, Series] = field(default_factory=dict)


class CrowdedCatalog(Catalog):
    """Study ids begin alike, as some do among many millions."""

    def study_id(self, study_uid: str) -> bytes:
        whole = super().study_id(study_uid)
        return bytes([whole[0] % 3, 0, 0, 0]) + whole[4:]


class World:
    """A catalog, and the same in plain dictionaries."""

    def __init__(self, store: KeyValueStore, source: random.Random) -> None:
        self.store = store
        self.source = source
        self.sealer = RowSealer(store, Keys())
        self.sealer.prepare(1 << 16)
        self.hashes = KeyedHash(Keys())
        self.catalog = source.choice((Catalog, CrowdedCatalog))(self.sealer, self.hashes)
        self.planner = Planner(store, self.catalog, self.hashes)
        self.merger = self.new_merger()
        self.studies: dict[str, Study] = {}
        self.count = 0

    def new_merger(self) -> Merger:
        limits = MergeLimits(
            studies_per_round=self.source.choice((3, 100)),
            changes_per_commit=self.source.choice((1, 16, 1000)),
        )
        return Merger(self.store, self.sealer, self.hashes, limits)

    # ------------------------------------------------------------ changing

    def attributes(self, values: dict[str, tuple[str, ...]]) -> dict[int, str]:
        chosen = (name for name in values if self.source.random() < 0.8)
        return {tag_of(name): self.source.choice(values[name]) for name in chosen}

    def add(self) -> None:
        """An object of a new study, or of a known one, which may bring what was missing."""
        self.count += 1
        known = sorted(self.studies)
        uid = self.source.choice(known) if known and self.source.random() < 0.4 else f"2.25.{self.count}"
        study = self.studies.get(uid)
        known_series = sorted(study.series) if study else []
        new = not known_series or self.source.random() < 0.5
        series_uid = f"{uid}.{self.count}" if new else self.source.choice(known_series)
        sop_uid = f"{uid}.0.{self.count}"
        of_study, of_series = self.attributes(STUDY_VALUES), self.attributes(SERIES_VALUES)
        of_instance = self.attributes(INSTANCE_VALUES)
        of_study[tag_of("StudyInstanceUID")] = uid
        of_series[tag_of("SeriesInstanceUID")] = series_uid
        of_instance[tag_of("SOPInstanceUID")] = sop_uid
        row = InstanceRow(
            sop_uid, "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.1.2.1",
            Location(b"s" * 16, os.urandom(16), 0, 0, 0, 0, 0), 0, of_instance, self.count,
        )  # fmt: skip
        with self.store.snapshot() as snapshot:
            draft = StudyDraft(self.catalog, snapshot, uid)
            draft.add(series_uid, row, of_study, of_series)
            batch = draft.finish(self.count)
        self.store.commit(batch)
        study = self.studies.setdefault(uid, Study({}))
        fill(study.attributes, of_study)
        series = study.series.setdefault(series_uid, Series({}))
        fill(series.attributes, of_series)
        series.instances[sop_uid] = of_instance

    def delete(self) -> None:
        """A whole study, or one instance."""
        if not self.studies:
            return
        uid = self.source.choice(sorted(self.studies))
        study = self.studies[uid]
        with self.store.snapshot() as snapshot:
            draft = StudyDraft(self.catalog, snapshot, uid)
            if self.source.random() < 0.6:
                draft.remove_all()
                del self.studies[uid]
            else:
                series_uid = self.source.choice(sorted(study.series))
                sop_uid = self.source.choice(sorted(study.series[series_uid].instances))
                assert draft.remove(series_uid, sop_uid)
                del study.series[series_uid].instances[sop_uid]
                if not study.series[series_uid].instances:
                    del study.series[series_uid]
                if not study.series:
                    del self.studies[uid]
            batch = draft.finish(self.count)
        self.store.commit(batch)
        if uid in self.studies:
            self.take_over(uid)

    def take_over(self, uid: str) -> None:
        """What is left of a study whose first object went is the draft's business, tested elsewhere."""
        with self.store.snapshot() as snapshot:
            row = self.catalog.study(snapshot, uid)
            assert row is not None
            study = self.studies[uid]
            study.attributes = dict(row.attributes)
            for _, series in self.catalog.series_of(snapshot, self.catalog.study_id(uid)):
                study.series[series.uid].attributes = dict(series.attributes)

    def correct(self) -> None:
        """Searched attributes change without an object, as a correction does it."""
        if not self.studies:
            return
        uid = self.source.choice(sorted(self.studies))
        study_id = self.catalog.study_id(uid)
        with self.store.snapshot() as snapshot:
            held = snapshot.get(STUDY, study_id)
            assert held is not None
            old = self.catalog.open_row(STUDY, study_id, held, StudyRow)
        changed = self.attributes(STUDY_VALUES)
        new = msgspec.structs.replace(old, attributes=old.attributes | changed)
        batch = Batch()
        self.catalog.put_row(batch, STUDY, study_id, new)
        tokens.plan_tokens(batch, self.hashes, study_id, old, new)
        self.store.commit(batch)
        self.studies[uid].attributes.update(changed)

    def merge_a_little(self) -> None:
        """Stop in the middle of a round, or let another merger take the turn."""
        steps = self.merger.round()
        for _ in islice(steps, self.source.randrange(12)):
            pass
        if self.source.random() < 0.3:
            self.new_merger().merge_all()
            with suppress(PreconditionError):  # the former leader goes on, as far as it gets
                list(steps)
        self.merger = self.new_merger()

    # ------------------------------------------------------------ asking

    def records(self, level: Level) -> list[dict[int, str]]:
        """Every record of a level with all its attributes, in the order of answers."""
        found: list[tuple[tuple[Any, ...], dict[int, str]]] = []
        for uid, study in self.studies.items():
            modalities = {s.attributes.get(tag_of("Modality"), "") for s in study.series.values()} - {""}
            whole = dict(study.attributes)
            whole[tag_of("ModalitiesInStudy")] = "\\".join(sorted(modalities))
            whole[tag_of("NumberOfStudyRelatedSeries")] = str(len(study.series))
            whole[tag_of("NumberOfStudyRelatedInstances")] = str(
                sum(len(series.instances) for series in study.series.values())
            )
            dates = study.attributes.get(tag_of("StudyDate"), "").strip().replace(".", "")
            valid = len(dates) == 8 and dates.isdigit() and "01" <= dates[4:6] <= "12"
            place = (0 if valid else 1, -int(dates) if valid else 0, self.catalog.study_id(uid))
            if level is Level.STUDY:
                found.append((place, whole))
                continue
            for series_uid, series in study.series.items():
                key = self.catalog.series_key(uid, series_uid)
                below = (*place, number(series.attributes, "SeriesNumber"), key)
                count = {tag_of("NumberOfSeriesRelatedInstances"): str(len(series.instances))}
                if level is Level.SERIES:
                    found.append((below, whole | series.attributes | count))
                    continue
                found += [
                    (
                        (*below, number(instance, "InstanceNumber"), sop_uid),
                        whole | series.attributes | count | instance,
                    )
                    for sop_uid, instance in series.instances.items()
                ]
        return [record for _, record in sorted(found, key=lambda entry: entry[0])]

    def keys(self, level: Level) -> dict[str, str]:
        values = LEVELS[level]
        keys = {}
        for name in self.source.sample(sorted(values), self.source.choice((0, 1, 1, 1, 2, 3))):
            keys[name] = random_key(self.source, name, values[name])
        if self.source.random() < 0.2:
            keys["ModalitiesInStudy"] = self.source.choice(("CT", "MR", "C*", "CT\\US", "XX", "?T"))
        if self.source.random() < 0.1:
            keys["NumberOfStudyRelatedInstances"] = self.source.choice(("1", "2", "02"))
        if self.source.random() < 0.1 and self.studies:
            uids = self.source.sample(sorted(self.studies), min(2, len(self.studies)))
            keys["StudyInstanceUID"] = "\\".join([*uids, "2.25.0"])
        if self.source.random() < 0.1 and level is not Level.STUDY and self.studies:
            study = self.studies[self.source.choice(sorted(self.studies))]
            keys["SeriesInstanceUID"] = self.source.choice(sorted(study.series))
        return keys

    def check(self) -> int:
        """One random query at a random level, and a page of it; how many answers it had."""
        source = self.source
        level = source.choice(list(LEVELS))
        keys = {name: key for name, key in self.keys(level).items() if key}
        fuzzy = source.random() < 0.2
        if fuzzy:
            keys = {name: key for name, key in keys.items() if "?" not in key and key.count(" ") < 4}
        query = parse_qido(level, [*keys.items(), ("fuzzymatching", "true" if fuzzy else "false")])
        assert not query.warnings
        records = self.records(level)
        expected = [record for record in records if satisfies(keys, record, fuzzy=fuzzy)]
        uid = UIDS[level]
        found = list(self.planner.find(query))
        if self.planner.is_quick(query):
            assert len(found) <= 2 * planner.QUICK_ROWS  # within the days, and of odd dates
        assert [whole(row)[uid] for row in found] == [record[uid] for record in expected], (keys, fuzzy)
        for row, record in zip(found, expected, strict=True):
            assert {tag: whole(row).get(tag) for tag in record} == record
        offset, limit = source.randrange(4), source.randrange(1, 4)
        page = Query(level, query.matches, query.includes, limit, offset, fuzzy)
        answer = Search(self.planner, None).search_blocking(page)  # type: ignore[arg-type]
        assert list(answer.rows) == found[offset : offset + limit]
        assert answer.more == (len(found) > offset + limit)
        return len(found)

    def check_postings(self) -> None:
        """When all is merged, merged postings are those of the present studies: none missing, none left."""
        expected: dict[bytes, set[int]] = {}
        exact: set[tuple[bytes, bytes]] = set()
        with self.store.snapshot() as snapshot:
            assert not list(snapshot.scan(FRESH))
            for study_id, sealed in snapshot.scan(STUDY):
                row = self.catalog.open_row(STUDY, study_id, sealed, StudyRow)
                value = postings.value_of(tokens.inverted_day(row.attributes) + study_id)
                for token in tokens.merged_tokens(self.hashes, tokens.merged_attributes(row)):
                    expected.setdefault(token, set()).add(value)
                exact |= tokens.exact_postings(self.hashes, study_id, row)
            held: dict[bytes, list[int]] = {}
            for key, block in snapshot.scan(GRAM):
                last = key[16:] == b"\xff" * 8
                values = list(struct.unpack(f">{len(block) // 8}Q", block))
                held.setdefault(key[:16], []).extend(values[last:])
                if last:
                    assert int.from_bytes(block[:8], "big") == len(held[key[:16]])
            assert held == {token: sorted(values) for token, values in expected.items()}
            assert {key for key, _ in snapshot.scan(GRAMS)} == {key for key, _ in snapshot.scan(STUDY)}
            assert set(snapshot.entries(TOKEN)) == exact


def fill(held: dict[int, str], new: dict[int, str]) -> None:
    for tag, text in new.items():
        if not held.get(tag):
            held[tag] = text


def number(attributes: dict[int, str], keyword: str) -> tuple[int, str]:
    text = attributes.get(tag_of(keyword), "").strip()
    return (int(text), "") if text.isdigit() else (1 << 31, text)


def whole(row: FoundRow) -> dict[int, str]:
    return {**row.study, **(row.series or {}), **(row.instance or {})}


@contextmanager
def opened(kind: str, path: Path) -> Iterator[KeyValueStore]:
    if kind == "memory":
        yield MemoryStore(ALL_TABLES)
        return
    store = LmdbStore(path, ALL_TABLES, limits=LmdbLimits(map_bytes=1 << 28, reserve_bytes=1 << 20))
    try:
        yield store
    finally:
        store.close()


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """What only matters in large indexes matters in small ones then."""
    monkeypatch.setattr(planner, "QUICK_ROWS", 2)
    monkeypatch.setattr(postings, "BLOCK_VALUES_MAX", 4)
    monkeypatch.setattr(postings, "CHUNK_VALUES_FIRST", 2)
    monkeypatch.setattr(planner, "EXACT_FEW", 2)
    monkeypatch.setattr(planner, "EXACT_MANY", 4)
    monkeypatch.setattr(planner, "FRESH_MAX", 6)
    monkeypatch.setattr(planner, "POSTINGS_PER_READ", 3)
    monkeypatch.setattr(planner, "ANSWERS_PER_SNAPSHOT", 2)
    monkeypatch.setattr(merging, "STUDIES_PER_READ", 5)
    monkeypatch.setattr(merging, "CHANGES_PER_COMMIT_MIN", 1)


@pytest.mark.parametrize("kind", ["lmdb", "memory"])
@pytest.mark.parametrize("seed", range(ROUNDS))
def test_answers_are_those_of_the_slow_matcher(tmp_path: Path, kind: str, seed: int) -> None:
    source = random.Random(seed)
    answered = 0
    with opened(kind, tmp_path / "index") as store:
        world = World(store, source)
        for _ in range(12):
            for _ in range(source.randrange(1, 12)):
                source.choices((world.add, world.delete, world.correct), (8, 1, 1))[0]()
            source.choices((world.merge_a_little, world.merger.merge_all, lambda: None), (5, 2, 2))[0]()
            for _ in range(QUERIES_PER_STATE):
                answered += bool(world.check())
        world.new_merger().merge_all()
        world.check_postings()
        for _ in range(QUERIES_PER_STATE):
            answered += bool(world.check())
        for _ in range(len(world.studies)):
            world.delete()
        world.new_merger().merge_all()
        world.check_postings()
        with store.snapshot() as snapshot:
            assert snapshot.get(META, b"grams/tokenizer") is not None
    assert answered > 30
