"""A study that changes at the worst moment of merging stays fresh, and of two mergers one stops."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hounsfield.archive.dicom.levels import Level
from hounsfield.archive.dicom.query import parse_qido
from hounsfield.archive.index.merging import Merger
from hounsfield.archive.index.rows import StudyRow
from hounsfield.archive.index.tables import FRESH, META, STUDY
from hounsfield.archive.index.tokens import TOKENIZER, plan_tokens
from hounsfield.storage_backends.api import Batch
from hounsfield.storage_backends.errors import PreconditionError
from support.archives import stores_in

STUDY_UID = "2.25.1"
NAME = 0x00100010


def put(stores, name: str | None) -> None:  # type: ignore[no-untyped-def]
    """The study as a row, nothing below it; None deletes it."""
    study_id = stores.catalog.study_id(STUDY_UID)
    with stores.store.snapshot() as snapshot:
        old = stores.catalog.study(snapshot, STUDY_UID)
    batch = Batch()
    new = None
    if name is None:
        batch.delete(STUDY, study_id)
    else:
        attributes = {NAME: name, 0x0020000D: STUDY_UID, 0x00080020: f"2024010{len(name) % 9 + 1}"}
        new = StudyRow(STUDY_UID, attributes, 1, 1, ("CT",), (), os.urandom(12), TOKENIZER, 1, 1)
        stores.catalog.put_row(batch, STUDY, study_id, new)
    plan_tokens(batch, stores.hashes, study_id, old, new)
    stores.store.commit(batch)


def names(stores, key: str) -> list[str]:  # type: ignore[no-untyped-def]
    query = parse_qido(Level.STUDY, [("PatientName", key)])
    return [row.study[NAME] for row in stores.planner.find(query)]


@pytest.mark.parametrize("after", [None, "Roe^Jane", "Doe^John"])
def test_a_change_before_any_commit_of_a_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: str | None
) -> None:
    """``after`` is what the study becomes, each time one commit later in the round."""
    with stores_in(tmp_path / "data") as stores:
        stores.sealer.prepare(1000)
        stores.merger.merge_all()
        commit = Merger._commit
        for at in range(8):
            put(stores, "Doering^Hans")
            commits = 0

            def interrupted(self: Merger, batch: Batch, at: int = at) -> None:
                nonlocal commits
                if commits == at:
                    put(stores, after)
                commits += 1
                commit(self, batch)

            monkeypatch.setattr(Merger, "_commit", interrupted)
            list(stores.merger.round())
            monkeypatch.setattr(Merger, "_commit", commit)
            if commits <= at:
                break
            expected = [] if after is None else [after]
            for _ in range(2):
                assert names(stores, "*oer*") == []
                assert names(stores, "*o?*") == expected
                assert names(stores, "R*") == [name for name in expected if name.startswith("R")]
                stores.merger.merge_all()
            with stores.store.snapshot() as snapshot:
                assert not list(snapshot.scan(FRESH))
        assert at >= 3


def test_of_two_mergers_the_first_stops(tmp_path: Path) -> None:
    with stores_in(tmp_path / "data") as stores:
        stores.sealer.prepare(1000)
        stores.merger.merge_all()
        put(stores, "Doe^John")
        steps = stores.merger.round()
        next(steps)
        Merger(stores.store, stores.sealer, stores.hashes).merge_all()
        with pytest.raises(PreconditionError) as raised:
            list(steps)
        assert raised.value.table == META.name
        assert names(stores, "*oh*") == ["Doe^John"]
