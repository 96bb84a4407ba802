"""A fact and what it changes are one commit; and what never was committed is never replayed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from hounsfield.archive.index.rows import RECORD_KIND_FACT, Event, encode
from hounsfield.archive.index.tables import META
from hounsfield.storage_backends.api import Batch, Snapshot
from hounsfield.storage_backends.segment_appending import RecordIn
from support.archives import stores_in


def test_of_two_facts_of_one_number_only_the_committed_one_is_replayed(tmp_path: Path) -> None:
    """A worker dies between ledger and commit, another uses the number: its fact never happened."""
    directory = tmp_path / "data"
    with stores_in(directory) as stores:
        stores.journal.commit_fact("ae", "ONE", {"title": "ONE"}, 1)
        orphan = Event("ae", 2, {"name": "DEAD", "body": {"title": "DEAD"}}, fact=True)
        stores.ledger.append([RecordIn(RECORD_KIND_FACT, ((2).to_bytes(8, "big") + encode(orphan),))])
        stores.journal.commit_fact("ae", "TWO", {"title": "TWO"}, 3)
    for later in (False, True):
        with stores_in(directory) as stores:
            if later:
                stores.journal.commit_fact("ae", "THREE", {"title": "THREE"}, 4)
        shutil.rmtree(directory / "index")
        with stores_in(directory) as stores:
            stores.reindex(lambda _done, _total: None)
            with stores.store.snapshot() as snapshot:
                titles = {body["title"] for body in stores.journal.state(snapshot, "ae")}
        assert titles == ({"ONE", "TWO", "THREE"} if later else {"ONE", "TWO"})


def test_a_fact_and_what_it_changes_happen_together_or_not_at_all(tmp_path: Path) -> None:

    directory = tmp_path / "data"

    def apply(_: Snapshot, batch: Batch, event: Event) -> None:
        batch.put(META, b"changed", event.body["body"]["to"].encode())

    def refuse(_: Snapshot, batch: Batch) -> None:
        batch.put(META, b"changed", b"refused")
        raise ValueError("not this one")

    with stores_in(directory) as stores:
        calls = 0

        def change(snapshot: Snapshot, batch: Batch) -> None:
            nonlocal calls
            calls += 1
            batch.require(META, b"other", snapshot.get(META, b"other"))
            if calls < 6:  # somebody else is always first, until the plan is made under the store's lock
                other = Batch()
                other.put(META, b"other", str(calls).encode())
                if calls < 4:
                    stores.store.commit(other)
            batch.put(META, b"changed", b"here")

        body = {"to": "here", "padding": "x" * (3 << 20)}  # in several parts
        stores.journal.commit_fact("test", "A", body, 1, change=change)
        assert calls == 4
        with pytest.raises(ValueError, match="not this one"):
            stores.journal.commit_fact("test", "B", None, 2, change=refuse)
        with stores.store.snapshot() as snapshot:
            assert snapshot.get(META, b"changed") == b"here"
            assert stores.journal.facts(snapshot) == 1
    shutil.rmtree(directory / "index")
    with stores_in(directory) as stores:
        stores.journal.on_fact("test", apply)
        assert stores.reindex(lambda _done, _total: None).facts == 1
        with stores.store.snapshot() as snapshot:
            assert snapshot.get(META, b"changed") == b"here"
            assert list(stores.journal.state(snapshot, "test")) == []
