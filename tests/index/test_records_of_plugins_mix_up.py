"""Records of plugins: found by what they are not, changed in part, doubled by many, lost by a reindex."""

from __future__ import annotations

import shutil
import threading
from collections import defaultdict
from pathlib import Path
from typing import Any
from unittest.mock import patch

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hounsfield.archive.engine.stores import Stores
from hounsfield.archive.index import records
from hounsfield.archive.index.records import (
    KEYS_MAX,
    RECORD_BYTES_MAX,
    RECORDS_MAX,
    Change,
    Key,
    Kind,
    Planned,
    RecordError,
    TakenError,
)
from hounsfield.archive.index.tables import JOURNAL, LOOKUP, RECORD
from support.archives import stores_in

PLUGIN = "test"


class Visit(msgspec.Struct, frozen=True):
    number: str
    room: str = ""
    at: int = 0
    words: tuple[str, ...] = ()


VISIT = Kind(
    "visit",
    Visit,
    lambda visit: [
        Key("number", visit.number, unique=True),
        Key("room", visit.room, visit.at),
        *(Key("word", word, visit.at) for word in visit.words),
    ],
)


def commit(stores: Stores, *plans: Any) -> list[Any]:
    return stores.plugin_records.commit([Planned(PLUGIN, plan) for plan in plans], 1)


def found(stores: Stores, lookup: str, text: str, **bounds: Any) -> list[Visit]:
    with stores.store.snapshot() as snapshot:
        view = stores.plugin_records.view(PLUGIN, snapshot)
        return [visit for _, visit in view.find(VISIT, lookup, text, **bounds)]


@st.composite
def steps(draw: st.DrawFn) -> list[tuple[str, int, Visit | None]]:
    """Groups' boundaries, puts and deletes, of few records and keys, so that they meet."""
    rooms, words = st.sampled_from("AB"), st.lists(st.sampled_from("xyz"), max_size=3).map(tuple)
    visits = st.builds(Visit, number=st.sampled_from("123"), room=rooms, at=st.integers(0, 3), words=words)
    return draw(
        st.lists(
            st.tuples(
                st.sampled_from(("same plan", "same commit", "next commit")),
                st.integers(0, 4),
                st.none() | visits,
            ),
            max_size=30,
        )
    )


@given(steps(), st.sampled_from((1, records.TAILS_KNOWN_MAX)))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_found_is_what_a_plain_table_says(
    stores: Stores, steps: list[tuple[str, int, Visit | None]], remembered: int
) -> None:
    with patch.object(records, "TAILS_KNOWN_MAX", remembered):
        _check_against_a_plain_table(stores, steps)


def _check_against_a_plain_table(stores: Stores, steps: list[tuple[str, int, Visit | None]]) -> None:
    ids = [f"{number:032x}" for number in range(5)]
    model: dict[str, Visit] = {}

    def check(change: Change, state: dict[str, Visit]) -> None:
        for lookup, texts in (("room", "AB"), ("word", "xyz"), ("number", "123")):
            for text in texts:
                expected = defaultdict(list)
                for record_id, visit in state.items():
                    for key in dict.fromkeys(VISIT.keys(visit)):
                        if (key.lookup, key.text) == (lookup, text):
                            expected[key.ordinal].append(record_id)
                ordered = [one for at in sorted(expected) for one in sorted(expected[at])]
                assert change.ids(VISIT, lookup, text) == ordered
                assert change.ids(VISIT, lookup, text, reverse=True) == ordered[::-1]
                assert change.ids(VISIT, lookup, text, limit=2) == ordered[:2]
                some = [one for at in sorted(expected) if 1 <= at <= 2 for one in sorted(expected[at])]
                assert change.ids(VISIT, lookup, text, at_least=1, at_most=2) == some
                assert change.ids(VISIT, lookup, text, at_least=1, at_most=2, reverse=True) == some[::-1]

    def plan_of(part: list[tuple[int, Visit | None]]) -> Any:
        def plan(change: Change) -> None:
            state = dict(model)
            for number, visit in part:
                if visit is None:
                    change.delete(VISIT, ids[number])
                    state.pop(ids[number], None)
                else:
                    taken = any(
                        one.number == visit.number for key, one in state.items() if key != ids[number]
                    )
                    if taken:
                        with pytest.raises(TakenError):
                            change.put(VISIT, ids[number], visit)
                    else:
                        change.put(VISIT, ids[number], visit)
                        state[ids[number]] = visit
                check(change, state)
            model.clear()
            model.update(state)

        return plan

    commits: list[list[list[tuple[int, Visit | None]]]] = [[[]]]
    for where, number, visit in steps:
        if where == "next commit":
            commits.append([[]])
        elif where == "same commit":
            commits[-1].append([])
        commits[-1][-1].append((number, visit))

    def clear(change: Change) -> None:
        for record_id in ids:
            change.delete(VISIT, record_id)

    commit(stores, clear)
    for plans in commits:
        for result in commit(stores, *(plan_of(part) for part in plans)):
            assert result is None, result
    commit(stores, lambda change: check(change, model))
    with stores.store.snapshot() as snapshot:
        kept = sum(len(set(VISIT.keys(visit))) for visit in model.values())
        assert len(list(snapshot.scan(LOOKUP))) == kept


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with stores_in(tmp_path_factory.mktemp("records") / "data") as opened:
        yield opened


def test_a_plan_that_raises_changes_nothing_and_its_neighbours_happen(tmp_path: Path) -> None:
    with stores_in(tmp_path / "data") as stores:

        def good(change: Change) -> str:
            change.put(VISIT, change.new_id(), Visit("1", "A"))
            change.say("came", {"number": "1"})
            return "done"

        def bad(change: Change) -> None:
            change.put(VISIT, change.new_id(), Visit("2", "A"))
            change.say("came", {"number": "2"})
            raise LookupError("no such room")

        def again(change: Change) -> None:
            assert change.first(VISIT, "number", "2") is None
            change.put(VISIT, change.new_id(), Visit("1", "B"))

        results = commit(stores, good, bad, again)
        assert results[0] == "done"
        assert isinstance(results[1], LookupError)
        assert isinstance(results[2], TakenError)
        assert (results[2].kind, results[2].lookup) == ("visit", "number")
        assert [visit.number for visit in found(stores, "room", "A")] == ["1"]
        with stores.store.snapshot() as snapshot:
            said = [event for _, event in stores.journal.read(snapshot, 0, 100)]
            assert [(event.kind, event.body) for event in said] == [("test.came", {"number": "1"})]


def test_a_commit_in_which_every_plan_raises_or_reads_only_leaves_no_fact(tmp_path: Path) -> None:
    with stores_in(tmp_path / "data") as stores:

        def bad(change: Change) -> None:
            change.put(VISIT, change.new_id(), Visit("2"))
            raise LookupError("no")

        results = commit(stores, bad, lambda change: change.first(VISIT, "number", "2"))
        assert isinstance(results[0], LookupError)
        assert results[1] is None
        with stores.store.snapshot() as snapshot:
            assert stores.journal.facts(snapshot) == 0
            assert snapshot.last(JOURNAL) == 0


def test_records_keys_and_events_are_the_same_after_a_reindex_without_the_plugin(tmp_path: Path) -> None:
    directory = tmp_path / "data"
    with stores_in(directory) as stores:
        for number in range(5):
            commit(
                stores,
                *(
                    lambda change, n=number, i=i: (
                        change.put(VISIT, f"{n:032x}", Visit(str(n), "ABC"[(n + i) % 3], n, ("w",))),
                        change.say("moved", {"number": n}),
                        change.count("visits"),
                    )
                    for i in range(3)
                ),
            )
        commit(stores, lambda change: change.delete(VISIT, f"{4:032x}"))
        before = _contents(stores)
    shutil.rmtree(directory / "index")
    with stores_in(directory) as stores:
        assert stores.reindex(lambda _done, _total: None).facts == 16
        assert _contents(stores) == before
        assert commit(stores, lambda change: change.count("visits")) == [16]


def _contents(stores: Stores) -> dict[str, Any]:
    with stores.store.snapshot() as snapshot:
        view = stores.plugin_records.view(PLUGIN, snapshot)
        return {
            "records": [(key, stores.sealer.open(RECORD, key, row)) for key, row in snapshot.scan(RECORD)],
            "lookups": [key for key, _ in snapshot.scan(LOOKUP)],
            "visits": list(view.every(VISIT)),
            "events": [event.body for _, event in stores.journal.read(snapshot, 0, 100)],
        }


def test_one_room_is_never_booked_twice_however_many_try(tmp_path: Path) -> None:
    with stores_in(tmp_path / "data") as stores:
        results: list[Any] = []

        def book(change: Change) -> bool:
            if change.ids(VISIT, "room", "A", at_least=7, at_most=7):
                return False
            change.put(VISIT, change.new_id(), Visit(str(change.count("visits")), "A", 7))
            return True

        def work() -> None:
            results.extend(commit(stores, book, book))

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(results) == [False] * 15 + [True]
        assert len(found(stores, "room", "A")) == 1


def test_nothing_that_is_looked_for_stands_on_the_disk(tmp_path: Path) -> None:
    directory = tmp_path / "data"
    with stores_in(directory) as stores:
        commit(
            stores,
            lambda change: change.put(
                VISIT, change.new_id(), Visit("SECRETNUMBER", "SECRETROOM", 1, ("SECRETWORD",))
            ),
        )
        assert found(stores, "room", "SECRETROOM")
    for path in directory.rglob("*"):
        if path.is_file():
            assert b"SECRET" not in path.read_bytes(), path


@pytest.mark.parametrize(
    ("visit", "message"),
    [
        (Visit("x" * (RECORD_BYTES_MAX + 1)), "more than is kept as a record"),
        (
            Visit("1", words=tuple(f"w{number}" for number in range(KEYS_MAX))),
            "more than is kept as a record",
        ),
    ],
)
def test_too_large_a_record_is_refused(tmp_path: Path, visit: Visit, message: str) -> None:
    with stores_in(tmp_path / "data") as stores:
        (error,) = commit(stores, lambda change: change.put(VISIT, change.new_id(), visit))
        assert isinstance(error, RecordError)
        assert message in str(error)
        assert "xxx" not in str(error)


def test_too_large_a_transaction_is_refused(tmp_path: Path) -> None:
    with stores_in(tmp_path / "data") as stores:

        def plan(change: Change) -> None:
            for number in range(RECORDS_MAX + 1):
                change.put(VISIT, change.new_id(), Visit(str(number)))

        (error,) = commit(stores, plan)
        assert isinstance(error, RecordError)
        assert found(stores, "number", "1") == []


def test_versions_count_and_other_plugins_see_nothing(tmp_path: Path) -> None:
    with stores_in(tmp_path / "data") as stores:
        record_id = "ab" * 16
        for room in "ABA":
            commit(stores, lambda change, room=room: change.put(VISIT, record_id, Visit("1", room)))
        with stores.store.snapshot() as snapshot:
            assert stores.plugin_records.view(PLUGIN, snapshot).version(VISIT, record_id) == 3
            other = stores.plugin_records.view("other", snapshot)
            assert other.get(VISIT, record_id) is None
            assert other.first(VISIT, "number", "1") is None
            assert list(other.every(VISIT)) == []
            assert stores.plugin_records.view(PLUGIN, snapshot).get(VISIT, "not an id") is None


def test_a_stamp_is_the_same_only_while_nobody_puts_the_record(stores: Stores) -> None:
    one, other = f"{0x51:032x}", f"{0x52:032x}"
    visit = Visit("stamped")

    def stamp(record_id: str = one) -> bytes | None:
        with stores.store.snapshot() as snapshot:
            return stores.plugin_records.view(PLUGIN, snapshot).stamp(VISIT, record_id)

    def put(change: Change) -> None:
        before = change.stamp(VISIT, one)
        change.put(VISIT, one, visit)
        assert change.stamp(VISIT, one) != before
        assert change.get(VISIT, one) == visit

    def delete(change: Change) -> None:
        change.delete(VISIT, one)
        assert change.stamp(VISIT, one) is None
        assert change.get(VISIT, one) is None

    assert stamp() is None
    seen = []
    for _ in range(3):  # the same again is put all the same
        assert not any(isinstance(each, Exception) for each in commit(stores, put))
        seen.append(stamp())
    commit(stores, lambda change: change.put(VISIT, other, Visit("other")))
    assert stamp() == seen[-1]
    assert len({*seen, stamp(other), None}) == 5
    assert commit(stores, delete) == [None]
    assert stamp() is None
