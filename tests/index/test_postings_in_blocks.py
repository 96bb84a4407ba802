"""Blocks of postings hold what was added and not removed, and intersect as sets do."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from hounsfield.archive.index import postings
from hounsfield.archive.index.tables import GRAM
from hounsfield.storage_backends.api import Batch, KeyValueStore
from hounsfield.storage_backends.lmdb_store import LmdbLimits, LmdbStore
from hounsfield.storage_backends.memory_store import MemoryStore

TOKENS = [bytes([number]) * 16 for number in range(4)]


@pytest.fixture(params=["lmdb", "memory"])
def kv(request: pytest.FixtureRequest, tmp_path: Path) -> KeyValueStore:
    if request.param == "memory":
        return MemoryStore([GRAM])
    return LmdbStore(tmp_path / "index", [GRAM], limits=LmdbLimits(map_bytes=1 << 26, reserve_bytes=1 << 20))


def change(kv: KeyValueStore, token: bytes, adds: set[int], removes: set[int]) -> int:
    """How many writes it took."""
    batch = Batch()
    with kv.snapshot() as snapshot:
        postings.plan_change(snapshot, batch, token, adds, removes)
    kv.commit(batch)
    return len(batch.puts) + len(batch.deletes)


def read(kv: KeyValueStore, terms: list[postings.Term], low: int, high: int) -> list[int]:
    with kv.snapshot() as snapshot:
        return [value for portion in postings.intersect(snapshot, terms, low, high) for value in portion]


@pytest.mark.parametrize("span", [30, 300, 1 << 64])
@pytest.mark.parametrize("seed", range(2))
def test_as_sets(kv: KeyValueStore, span: int, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postings, "BLOCK_VALUES_MAX", 8)
    monkeypatch.setattr(postings, "CHUNK_VALUES_FIRST", 4)
    source = random.Random(seed)
    held: dict[bytes, set[int]] = {token: set() for token in TOKENS}
    for _ in range(25):
        for token in TOKENS:
            adds = {source.randrange(span) for _ in range(source.randrange(12))}
            if source.random() < 0.3:  # new studies come in front
                newest = min(held[token], default=span)
                adds = {newest - 1 - i for i in range(min(9, newest))}
            removes = {value for value in held[token] if source.random() < source.choice((0.1, 0.1, 1.0))}
            change(kv, token, adds, removes)
            held[token] = (held[token] - removes) | adds
            with kv.snapshot() as snapshot:
                assert postings.count(snapshot, token) == len(held[token])
            assert change(kv, token, adds, removes - adds) == 0  # it is so already
        for _ in range(5):
            terms = [
                tuple(source.sample(TOKENS, source.randrange(1, 3))) for _ in range(source.randrange(1, 4))
            ]
            low, high = sorted(source.randrange(span) for _ in range(2))
            if source.random() < 0.4:
                low, high = 0, postings.VALUE_MAX
            common = set.intersection(*(set().union(*(held[token] for token in term)) for term in terms))
            assert read(kv, terms, low, high) == sorted(v for v in common if low <= v <= high)
    for token in TOKENS:
        change(kv, token, set(), held[token])
    with kv.snapshot() as snapshot:
        assert not list(snapshot.scan(GRAM))


def test_studies_that_come_in_order_leave_full_blocks(kv: KeyValueStore) -> None:
    token = TOKENS[0]
    for start in range(10_000, 0, -100):
        change(kv, token, set(range(start - 100, start)), set())
    with kv.snapshot() as snapshot:
        blocks = [block for _, block in snapshot.scan(GRAM)]
    assert sum(len(block) for block in blocks) == 8 * 10_000 + 8
    assert len(blocks) <= 10_000 // postings.BLOCK_VALUES_MAX + 2
    assert max(len(block) for block in blocks) <= 8 * postings.BLOCK_VALUES_MAX + 8


def test_a_long_list_beside_a_short_one_is_not_read(
    kv: KeyValueStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postings, "LENGTH_RATIO_MAX", 10)
    change(kv, TOKENS[0], {5, 7}, set())
    change(kv, TOKENS[1], set(range(100, 200)), set())
    assert read(kv, [(TOKENS[0],), (TOKENS[1],)], 0, 1000) == [5, 7]  # more than matches, never less
    assert read(kv, [(TOKENS[0],), (TOKENS[2],)], 0, 1000) == []
