"""What was opened before is what the row says now, and costs nothing again; memory for it is bounded."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydicom.uid import ExplicitVRLittleEndian

from hounsfield.archive.engine.engine import EngineOptions, open_engine
from hounsfield.archive.engine.errors import NotFoundError
from hounsfield.archive.index.catalog import Catalog
from hounsfield.archive.index.corrections_in_force import InForce, Opened
from hounsfield.archive.index.rows import CorrectionRow
from support.archives import ct_slice, store, stores_in
from support.rejection import SAFETY, note

STUDY = "1.2.3.1"
SERIES = f"{STUDY}.1"


def row(number: int) -> tuple[CorrectionRow, ...]:
    return (CorrectionRow(number=number, kind="reject", at_ns=1, actor="a", reason="r"),)


async def test_a_long_row_is_opened_once_for_many_objects(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[int] = []
    plain = Catalog._opened_corrections

    def counted(self: Catalog, key: bytes, sealed: bytes) -> tuple[CorrectionRow, ...]:
        opened.append(len(sealed))
        return plain(self, key, sealed)

    monkeypatch.setattr(Catalog, "_opened_corrections", counted)
    with stores_in(tmp_path / "archive") as stores:
        async with open_engine(stores, EngineOptions(), owner="test") as engine:
            named = {STUDY: {SERIES: [f"{SERIES}.{i}" for i in range(1000)]}}
            await store(engine, note(named, SAFETY), ExplicitVRLittleEndian)
            opened.clear()
            for i in range(990, 1010):
                sent = ct_slice(study_uid=STUDY, series_uid=SERIES, sop_uid=f"{SERIES}.{i}")
                await store(engine, sent, ExplicitVRLittleEndian)
            assert len([size for size in opened if size > 10_000]) == 1
            assert len(await engine.instances(STUDY)) == 10
            (made,) = await engine.rejecting.all()
            assert made["hidden"] == 11
            # A row that was written anew, or is gone, is not taken for what it was.
            await engine.rejecting.undo(made["id"], actor="tester", reason="mistaken")
            assert len(await engine.instances(STUDY)) == 21
            await store(engine, note({STUDY: {SERIES: [f"{SERIES}.7"]}}, SAFETY), ExplicitVRLittleEndian)
            for i in (7, 8):
                sent = ct_slice(study_uid=STUDY, series_uid=SERIES, sop_uid=f"{SERIES}.{i}")
                await store(engine, sent, ExplicitVRLittleEndian)
            with pytest.raises(NotFoundError):
                await engine.instances(STUDY, SERIES, f"{SERIES}.7")
            assert len(await engine.instances(STUDY)) == 22


def test_what_is_kept_is_bounded_and_is_of_the_bytes_that_are_there() -> None:
    asked: list[bytes] = []

    def opened(_: bytes, sealed: bytes) -> tuple[CorrectionRow, ...]:
        asked.append(sealed)
        return row(sealed[0])

    kept = Opened(bytes_max=10)
    for _ in range(2):
        assert kept.of(b"a", b"\1" * 5, opened).corrections == row(1)
        assert kept.of(b"b", b"\2" * 5, opened).corrections == row(2)
    assert len(asked) == 2
    assert kept.of(b"a", b"\3" * 5, opened).corrections == row(3)  # the row was changed
    assert kept.of(b"b", b"\2" * 5, opened).corrections == row(2)
    assert len(asked) == 3
    assert kept.of(b"c", b"\4" * 11, opened).corrections == row(4)  # longer than all that is kept
    assert kept.of(b"c", b"\4" * 11, opened).corrections == row(4)
    assert len(asked) == 5
    kept.of(b"d", b"\5" * 6, opened)  # a and b make room for it
    assert kept.of(b"b", b"\2" * 4, opened).corrections == row(2)
    assert kept.of(b"a", b"\3" * 5, opened).corrections == row(3)
    assert len(asked) == 8


def test_an_object_asks_only_the_rejections_that_name_it() -> None:
    rows = tuple(
        CorrectionRow(
            number=number, kind="reject", at_ns=1, actor="a", reason="r",
            rejected={STUDY: {SERIES: (f"{SERIES}.{number}", f"{SERIES}.0")}},
        )
        for number in range(1, 4)
    )  # fmt: skip
    found = InForce(rows).rejections(STUDY)[SERIES]
    assert {uid: [one.number for one in named] for uid, named in found.items()} == {
        f"{SERIES}.1": [1],
        f"{SERIES}.2": [2],
        f"{SERIES}.3": [3],
        f"{SERIES}.0": [1, 2, 3],
    }
