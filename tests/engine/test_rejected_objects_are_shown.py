"""What a rejection note names is seen nowhere, now and later, until somebody brings it back."""

from __future__ import annotations

import json
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import trio
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from hounsfield.archive.dicom.levels import Level
from hounsfield.archive.dicom.query import parse_qido
from hounsfield.archive.engine.corrections import Request
from hounsfield.archive.engine.engine import Engine, EngineOptions, open_engine
from hounsfield.archive.engine.errors import HeldError, NotFoundError, RefusedError
from hounsfield.archive.engine.types import Outcome
from hounsfield.archive.index import checking, tables
from hounsfield.archive.index.deletion import Target
from hounsfield.archive.index.rewriting import RewriteLimits, Rewriter
from hounsfield.storage_backends.api import Batch
from hounsfield.storage_backends.errors import PreconditionError
from support.archives import ct_slice, encode, store, stores_in
from support.contents import contents
from support.rejection import EXPIRED, QUALITY, REASONS, SAFETY, WORKLIST, note, note_data_set

STUDY, OTHER = "1.2.3.1", "1.2.3.2"
FIRST, SECOND = f"{STUDY}.1", f"{STUDY}.2"
A, B, C = f"{FIRST}.1", f"{FIRST}.2", f"{SECOND}.1"
CHECKS = [
    (name, getattr(checking, f"check_{name}")) for name in ("rows", "counts", "places", "tokens", "grams")
]


def one(series: str, sop: str, study: str = STUDY, **more: Any) -> bytes:
    return ct_slice(study_uid=study, series_uid=series, sop_uid=sop, **more)


def three() -> list[bytes]:
    """Two instances in the first series of the study, one in the second."""
    return [one(FIRST, A), one(FIRST, B), one(SECOND, C)]


async def send(engine: Engine, *sent: bytes) -> list[Outcome]:
    return [(await store(engine, data, ExplicitVRLittleEndian)).outcome for data in sent]


async def found(engine: Engine, level: Level = Level.STUDY, **keys: str) -> list[Any]:
    parameters = [("limit", "1000"), *keys.items()]
    return list((await engine.search(parse_qido(level, parameters))).rows)


async def shown(engine: Engine) -> dict[str, set[str]]:
    """The SOP Instance UIDs that searches find, by study; all that retrieves and counts must agree."""
    seen: dict[str, set[str]] = {}
    for study in await found(engine):
        uid = study.study[0x0020000D]
        rows = await found(engine, Level.INSTANCE, StudyInstanceUID=uid)
        seen[uid] = {row.instance[0x00080018] for row in rows}
        assert study.study[0x00201208] == str(len(seen[uid]))
        assert study.study[0x00201206] == str(len({row.series[0x0020000E] for row in rows}))
        assert {one.row.sop_uid for one in await engine.instances(uid)} == seen[uid]
    for series, sop in ((FIRST, A), (FIRST, B), (SECOND, C)):
        visible = sop in seen.get(STUDY, set())
        for way in (engine.instances, lambda *uids: engine.frame(*uids, 1)):
            if visible:
                await way(STUDY, series, sop)
            else:
                with pytest.raises(NotFoundError):
                    await way(STUDY, series, sop)
        by_uid = await found(engine, Level.INSTANCE, SOPInstanceUID=sop)
        assert len(by_uid) == visible
    assert_sound(engine.stores)
    return seen


def assert_sound(stores: Any) -> None:
    archive = checking.Archive(
        stores.store, stores.keyring, stores.catalog, stores.sealer, stores.hashes, stores.journal,
        stores.log, stores.ledger,
    )  # fmt: skip
    for _ in range(10):
        with suppress(PreconditionError):  # the engine's own merging was first
            stores.merger.merge_all()
            break
    assert checking.check_all(archive, CHECKS) == []


@pytest.mark.parametrize("code", REASONS)
async def test_what_is_rejected_is_found_nowhere_and_counted_nowhere(tmp_path: Path, code: str) -> None:
    with stores_in(tmp_path / "archive") as stores:
        async with open_engine(stores, EngineOptions(), owner="test") as engine:
            await send(engine, *three())
            assert await send(engine, note({STUDY: {FIRST: [A]}}, code)) == [Outcome.STORED]
            assert await shown(engine) == {STUDY: {B, C}}
            await send(engine, note({STUDY: {FIRST: [B], SECOND: [C]}}, code))
            assert await shown(engine) == {}  # nor the notes: what is left of a study is not a note
            assert await found(engine, Level.SERIES, PatientName="*") == []
            assert await found(engine, PatientID="P-0001") == []
            first, second = await engine.rejecting.all()
            assert (first["hidden"], second["hidden"], first["code"]) == (2, 3, code)
            assert first["actor"] == "import"  # how it came, when no AE sent it
            await engine.rejecting.undo(first["id"], actor="tester", reason="mistaken")
            assert await shown(engine) == {STUDY: {A, first["note"]}}
            await engine.rejecting.undo(second["id"], actor="tester", reason="mistaken")
            assert await shown(engine) == {STUDY: {A, B, C, first["note"], second["note"]}}


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian])
async def test_a_note_is_understood_in_any_transfer_syntax(tmp_path: Path, syntax: str) -> None:
    with stores_in(tmp_path / "archive") as stores:
        async with open_engine(stores, EngineOptions(), owner="test") as engine:
            await send(engine, *three())
            await store(engine, note({STUDY: {FIRST: [A, B]}}, SAFETY, syntax=syntax), syntax)
            assert await shown(engine) == {STUDY: {C}}


async def test_of_two_notes_of_one_uid_both_are_followed(tmp_path: Path) -> None:
    with stores_in(tmp_path / "archive") as stores:
        async with open_engine(
            stores, EngineOptions(rejection_notes=frozenset({SAFETY})), owner="test"
        ) as engine:
            await send(engine, *three())
            first = note_data_set({STUDY: {FIRST: [A]}}, "113000")
            second = note_data_set({STUDY: {FIRST: [B]}}, SAFETY, sop_uid=first.SOPInstanceUID)
            second.SeriesInstanceUID = first.SeriesInstanceUID
            assert await send(engine, encode(first), encode(second)) == [Outcome.STORED, Outcome.CONFLICT]
            assert await shown(engine) == {STUDY: {A, C}}
            assert not waiting(stores)


def two_notes(first: list[str], second: list[str], code: str = SAFETY) -> tuple[bytes, bytes]:
    """Two notes of one SOP Instance UID, which differ at least in their time."""
    one_note = note_data_set({STUDY: {FIRST: first}}, code, sop_uid="1.2.9.1")
    other = note_data_set({STUDY: {FIRST: second}}, code, sop_uid="1.2.9.1")
    other.SeriesInstanceUID = one_note.SeriesInstanceUID
    other.ContentTime = "101113"
    return encode(one_note), encode(other)


async def after_a_reindex(directory: Path) -> tuple[dict[str, set[str]], list[Any]]:
    shutil.rmtree(directory / "index")
    with stores_in(directory) as stores:
        stores.reindex(lambda _done, _all: None)
        assert not waiting(stores)
        async with open_engine(stores, EngineOptions(), owner="test") as engine:
            return await shown(engine), await engine.rejecting.all()


async def test_a_note_that_is_hidden_itself_is_followed(tmp_path: Path) -> None:
    with stores_in(tmp_path / "archive") as stores:
        async with open_engine(stores, EngineOptions(), owner="test") as engine:
            await send(engine, *three())
            hidden = note_data_set({STUDY: {SECOND: [C]}}, SAFETY, sop_uid="1.2.9.2")
            of_it = note({STUDY: {hidden.SeriesInstanceUID: ["1.2.9.2"]}}, SAFETY, sop_uid="1.2.9.3")
            assert await send(engine, of_it, encode(hidden)) == [Outcome.STORED, Outcome.STORED]
            assert await shown(engine) == {STUDY: {A, B}}
            assert await send(engine, *two_notes([A], [A, B])) == [Outcome.STORED, Outcome.CONFLICT]
            assert await shown(engine) == {}
            assert not waiting(stores)
            rejections = await engine.rejecting.all()
            assert len(rejections) == 4
    assert await after_a_reindex(tmp_path / "archive") == ({}, rejections)


async def test_what_was_undone_stays_so_when_the_index_is_lost(tmp_path: Path) -> None:
    directory, saved = tmp_path / "archive", tmp_path / "saved"
    with stores_in(directory) as stores:
        async with open_engine(stores, EngineOptions(), owner="test") as engine:
            await send(engine, *three())
    shutil.copytree(directory / "index", saved)
    with stores_in(directory) as stores:
        async with open_engine(stores, EngineOptions(), owner="test") as engine:
            await send(engine, *two_notes([A], [A]), note({STUDY: {SECOND: [C]}}, SAFETY, sop_uid="1.2.9.2"))
            for made in await engine.rejecting.all():
                await engine.rejecting.undo(made["id"], actor="t", reason="mistaken")
            expected = {STUDY: {A, B, C, "1.2.9.1", "1.2.9.2"}}
            assert await shown(engine) == expected
            rejections = await engine.rejecting.all()
            assert len(rejections) == 2  # a further note that says the same adds nothing
    assert await after_a_reindex(directory) == (expected, rejections)
    shutil.rmtree(directory / "index")
    saved.rename(directory / "index")
    with stores_in(directory) as stores:
        stores.catch_up(at_start=True)
        async with open_engine(stores, EngineOptions(), owner="test") as engine:
            assert (await shown(engine), await engine.rejecting.all()) == (expected, rejections)


@pytest.mark.parametrize("code", REASONS)
async def test_what_was_deleted_and_sent_again_and_undone_stays_so(tmp_path: Path, code: str) -> None:
    with stores_in(tmp_path / "archive") as stores:
        async with open_engine(stores, EngineOptions(), owner="test") as engine:
            sent = one(FIRST, A)
            rejection = note({STUDY: {FIRST: [A]}}, code, sop_uid="1.2.9.1")
            await send(engine, sent, rejection)
            await engine.rejecting.delete(1, actor="t", reason="over")
            assert await send(engine, rejection, sent) == [Outcome.STORED, Outcome.STORED]
            (made,) = await engine.rejecting.all()
            await engine.rejecting.undo(made["id"], actor="t", reason="mistaken")
            assert await shown(engine) == {STUDY: {A, "1.2.9.1"}}
            rejections = await engine.rejecting.all()
    assert await after_a_reindex(tmp_path / "archive") == ({STUDY: {A, "1.2.9.1"}}, rejections)


async def test_a_further_note_after_an_undoing_is_followed(tmp_path: Path) -> None:
    with stores_in(tmp_path / "archive") as stores:
        async with open_engine(stores, EngineOptions(), owner="test") as engine:
            first, second = two_notes([A], [A])
            await send(engine, *three(), first)
            await engine.rejecting.undo(1, actor="t", reason="mistaken")
            assert await send(engine, first, second) == [Outcome.DUPLICATE, Outcome.CONFLICT]
            assert await shown(engine) == {STUDY: {B, C}}
            rejections = await engine.rejecting.all()
    assert await after_a_reindex(tmp_path / "archive") == ({STUDY: {B, C}}, rejections)


async def test_a_rejection_whose_row_is_lost_keeps_no_note_from_being_followed(tmp_path: Path) -> None:
    with stores_in(tmp_path / "archive") as stores:
        async with open_engine(stores, EngineOptions(), owner="test") as engine:
            first, second = two_notes([A], [A])
            await send(engine, *three(), first)
            batch = Batch()
            batch.delete(tables.STATE, stores.journal.state_key("rejection", "1"))
            stores.store.commit(batch)
            assert await send(engine, second) == [Outcome.CONFLICT]
            assert [made["id"] for made in await engine.rejecting.all()] == [2]
            assert not waiting(stores)


async def test_other_key_objects_reject_nothing(tmp_path: Path) -> None:
    with stores_in(tmp_path / "archive") as stores:
        async with open_engine(stores, EngineOptions(), owner="test") as engine:
            await send(engine, *three())
            others = [
                note({STUDY: {FIRST: [A]}}, "113000", sop_uid="1.2.9.1"),  # of interest
                note({STUDY: {FIRST: [A]}}, QUALITY, scheme="99LOCAL", sop_uid="1.2.9.2"),
                note({STUDY: {}}, QUALITY, sop_uid="1.2.9.3"),  # names nothing
            ]
            await send(engine, *others)
            assert await shown(engine) == {STUDY: {A, B, C, "1.2.9.1", "1.2.9.2", "1.2.9.3"}}
            assert await engine.rejecting.all() == []
            assert not waiting(stores)


def waiting(stores: Any) -> list[bytes]:
    with stores.store.snapshot() as snapshot:
        return [key for key, _ in snapshot.scan(tables.META, prefix=b"rejecting/")]


@pytest.mark.parametrize("code", [QUALITY, SAFETY, WORKLIST])
async def test_what_comes_again_or_after_its_rejection_stays_out_of_sight(tmp_path: Path, code: str) -> None:
    sent = three()
    with stores_in(tmp_path / "archive") as stores:
        async with open_engine(stores, EngineOptions(), owner="test") as engine:
            await send(engine, sent[0])
            rejection = note({STUDY: {FIRST: [A, B], SECOND: [C]}}, code)
            await send(engine, rejection)
            assert await send(engine, rejection, sent[0], sent[1]) == [
                Outcome.DUPLICATE, Outcome.DUPLICATE, Outcome.STORED,
            ]  # fmt: skip
            assert await send(engine, one(FIRST, A)) == [Outcome.CONFLICT]  # other pixels under the same UIDs
            assert await shown(engine) == {}
            (made,) = await engine.rejecting.all()
            assert (made["named"], made["hidden"]) == (4, 3)
            await engine.rejecting.undo(made["id"], actor="tester", reason="mistaken")
            assert await shown(engine) == {STUDY: {A, B, made["note"]}}


async def test_what_had_expired_and_is_sent_again_is_shown(tmp_path: Path) -> None:
    sent = three()
    with stores_in(tmp_path / "archive") as stores:
        async with open_engine(stores, EngineOptions(), owner="test") as engine:
            await send(engine, *sent)
            await send(engine, note({STUDY: {FIRST: [A, B], SECOND: [C]}}, EXPIRED))
            assert await shown(engine) == {}
            assert await send(engine, sent[0]) == [Outcome.STORED]
            assert await send(engine, sent[0]) == [Outcome.DUPLICATE]
            assert await shown(engine) == {STUDY: {A}}
    shutil.rmtree(tmp_path / "archive" / "index")
    with stores_in(tmp_path / "archive") as stores:
        stores.reindex(lambda _done, _all: None)
        async with open_engine(stores, EngineOptions(), owner="test") as engine:
            assert await shown(engine) == {STUDY: {A}}
            (made,) = await engine.rejecting.all()
            assert made["hidden"] == 4


async def test_an_expired_note_that_is_sent_again_changes_nothing(tmp_path: Path) -> None:
    sent = three()
    with stores_in(tmp_path / "archive") as stores:
        async with open_engine(stores, EngineOptions(), owner="test") as engine:
            rejection = note({STUDY: {FIRST: [A, B]}}, EXPIRED)
            await send(engine, *sent, rejection)
            assert await send(engine, sent[0], rejection) == [Outcome.STORED, Outcome.DUPLICATE]
            assert await shown(engine) == {STUDY: {A, C}}
            rejections = await engine.rejecting.all()
            assert [made["hidden"] for made in rejections] == [3]
    assert await after_a_reindex(tmp_path / "archive") == ({STUDY: {A, C}}, rejections)


async def test_an_expired_note_with_something_else_in_it_is_a_note_of_its_own(tmp_path: Path) -> None:
    sent = three()
    with stores_in(tmp_path / "archive") as stores:
        async with open_engine(stores, EngineOptions(), owner="test") as engine:
            first, second = two_notes([A, B], [A, B], EXPIRED)
            await send(engine, *sent, first, sent[0])
            assert await send(engine, second) == [Outcome.CONFLICT]
            assert await shown(engine) == {STUDY: {C}}
            assert await send(engine, sent[1]) == [Outcome.STORED]
            assert await shown(engine) == {STUDY: {B, C}}
            rejections = await engine.rejecting.all()
    assert await after_a_reindex(tmp_path / "archive") == ({STUDY: {B, C}}, rejections)


async def test_a_note_may_name_objects_as_they_came_or_as_they_are_shown(tmp_path: Path) -> None:
    with stores_in(tmp_path / "archive") as stores:
        async with open_engine(stores, EngineOptions(), owner="test") as engine:
            sent = [*three(), one("1.2.3.2.1", "1.2.3.2.1.1", OTHER)]
            await send(engine, *sent)
            moved = await engine.correcting.make(
                Request(
                    kind="move-series", actor="t", reason="wrong study", study=STUDY, series=(FIRST,),
                    to_study=OTHER,
                )
            )  # fmt: skip
            await send(engine, note({STUDY: {FIRST: [A]}}, WORKLIST))  # as the modality knows it
            await send(engine, note({OTHER: {FIRST: [B]}}, WORKLIST))  # as a viewer got it
            assert await shown(engine) == {STUDY: {C}, OTHER: {"1.2.3.2.1.1"}}
            # What was wrong stays wrong, wherever it is filed.
            await engine.correcting.revert(moved["id"], "t", "the study was right")
            assert await shown(engine) == {STUDY: {C}, OTHER: {"1.2.3.2.1.1"}}
            assert await send(engine, sent[0]) == [Outcome.DUPLICATE]
            for made in await engine.rejecting.all():
                await engine.rejecting.undo(made["id"], actor="t", reason="mistaken")
            notes = [made["note"] for made in await engine.rejecting.all()]
            assert await shown(engine) == {
                STUDY: {A, B, C, notes[0]}, OTHER: {"1.2.3.2.1.1", notes[1]},
            }  # fmt: skip


@pytest.mark.parametrize("b_comes", ["before", "moved", "taken back"])
async def test_what_comes_and_is_named_as_shown_stays_hidden_without_its_correction(
    tmp_path: Path, b_comes: str
) -> None:
    elsewhere, moved = "1.2.3.3", f"{STUDY}.3"
    left, b = f"{moved}.1", f"{moved}.2"

    def moving(study: str, to_study: str) -> Request:
        return Request(
            kind="move-series", actor="t", reason="wrong", study=study, series=(moved,), to_study=to_study
        )

    with stores_in(tmp_path / "archive") as stores:
        async with open_engine(stores, EngineOptions(), owner="test") as engine:
            await send(engine, one(moved, left), one(SECOND, C))
            first = await engine.correcting.make(moving(STUDY, OTHER))
            second = await engine.correcting.make(moving(OTHER, elsewhere))
            if b_comes == "before":
                await send(engine, one(moved, b))
            await send(engine, note({elsewhere: {moved: [b]}}, SAFETY))
            if b_comes == "moved":
                assert await send(engine, one(moved, b)) == [Outcome.STORED]
            assert await shown(engine) == {STUDY: {C}, elsewhere: {left}}
            await engine.correcting.revert(second["id"], "t", "right")
            assert await shown(engine) == {STUDY: {C}, OTHER: {left}}
            await engine.correcting.revert(first["id"], "t", "right")
            if b_comes == "taken back":
                await send(engine, one(moved, b))
            assert await shown(engine) == {STUDY: {left, C}}
            rejections = await engine.rejecting.all()
    assert await after_a_reindex(tmp_path / "archive") == ({STUDY: {left, C}}, rejections)
    with stores_in(tmp_path / "archive") as stores:
        async with open_engine(stores, EngineOptions(), owner="test") as engine:
            await engine.rejecting.undo(rejections[0]["id"], actor="t", reason="mistaken")
            assert (await shown(engine))[STUDY] == {left, b, C}


async def test_what_came_where_a_named_object_would_have_been_received_is_hidden_at_once(
    tmp_path: Path,
) -> None:
    """As it is after a reindex: its way leads past a place that the note means."""
    elsewhere, moved = "1.2.3.3", f"{STUDY}.3"

    def moving(study: str, to_study: str) -> Request:
        return Request(
            kind="move-series", actor="t", reason="wrong", study=study, series=(moved,), to_study=to_study
        )

    with stores_in(tmp_path / "archive") as stores:
        async with open_engine(stores, EngineOptions(), owner="test") as engine:

            async def places() -> list[tuple[str, str]]:
                rows = await found(engine, Level.INSTANCE)
                return sorted((row.study[0x0020000D], row.series[0x0020000E]) for row in rows)

            await send(engine, one(moved, A), one(moved, A, elsewhere), one(SECOND, C))
            await engine.correcting.make(moving(STUDY, OTHER))
            back = await engine.correcting.make(moving(elsewhere, STUDY))
            await send(engine, note({OTHER: {moved: [A]}}, SAFETY))
            assert await places() == [(STUDY, SECOND)]
    shutil.rmtree(tmp_path / "archive" / "index")
    with stores_in(tmp_path / "archive") as stores:
        stores.reindex(lambda _done, _all: None)
        async with open_engine(stores, EngineOptions(), owner="test") as engine:
            assert await places() == [(STUDY, SECOND)]
            await engine.correcting.revert(back["id"], "t", "right")
            assert await places() == [(STUDY, SECOND), (elsewhere, moved)]


async def test_two_rejections_of_one_object_are_undone_one_by_one(tmp_path: Path) -> None:
    with stores_in(tmp_path / "archive") as stores:
        async with open_engine(stores, EngineOptions(), owner="test") as engine:
            await send(engine, *three())
            await send(engine, note({STUDY: {FIRST: [A, B]}}, QUALITY, sop_uid="1.2.9.1"))
            await send(engine, note({STUDY: {FIRST: [A]}}, SAFETY, sop_uid="1.2.9.2"))
            first, second = await engine.rejecting.all()
            await engine.rejecting.undo(first["id"], actor="t", reason="sharp enough")
            assert await shown(engine) == {STUDY: {B, C, "1.2.9.1"}}
            await engine.rejecting.undo(second["id"], actor="t", reason="the right side")
            assert await shown(engine) == {STUDY: {A, B, C, "1.2.9.1", "1.2.9.2"}}
            with pytest.raises(RefusedError, match="undone already"):
                await engine.rejecting.undo(second["id"], actor="t", reason="again")
            with pytest.raises(RefusedError, match="reason"):
                await engine.rejecting.undo(first["id"], actor="t", reason=" ")
            made = await engine.rejecting.follow("1.2.9.2", actor="t")
            assert await shown(engine) == {STUDY: {B, C, "1.2.9.1"}}
            with pytest.raises(RefusedError, match=f"rejection {made['id']}"):
                await engine.rejecting.follow("1.2.9.2", actor="t")
            with pytest.raises(RefusedError, match="no rejection note"):
                await engine.rejecting.follow(B, actor="t")


async def test_only_reasons_that_are_followed_hide(tmp_path: Path) -> None:
    options = EngineOptions(rejection_notes=frozenset({SAFETY}))
    with stores_in(tmp_path / "archive", options) as stores:
        async with open_engine(stores, options, owner="test") as engine:
            await send(engine, *three())
            await send(engine, note({STUDY: {FIRST: [A]}}, QUALITY, sop_uid="1.2.9.1"))
            await send(engine, note({STUDY: {FIRST: [B]}}, SAFETY))
            assert await shown(engine) == {STUDY: {A, C, "1.2.9.1"}}
            assert not waiting(stores)
            await engine.rejecting.follow("1.2.9.1", actor="t")
            assert await shown(engine) == {STUDY: {C}}


async def test_what_is_held_is_kept_although_it_is_rejected(tmp_path: Path) -> None:
    with stores_in(tmp_path / "archive") as stores:
        async with open_engine(stores, EngineOptions(), owner="test") as engine:
            sent = three()
            await send(engine, *sent)
            hold = await engine.deleting.hold(study_uid=STUDY, by="t", why="a case")
            of_patient = await engine.deleting.hold(patient_id="P-0001", by="t", why="a case")
            await send(engine, note({STUDY: {FIRST: [A, B]}}, EXPIRED))
            assert await shown(engine) == {STUDY: {C}}
            (made,) = await engine.rejecting.all()
            for held in (hold, of_patient):
                with pytest.raises(HeldError):
                    await engine.rejecting.delete(made["id"], actor="t", reason="expired")
                await engine.deleting.release(held.hold_id, by="t", why="it is over")
            (report,) = await engine.rejecting.delete(made["id"], actor="t", reason="expired")
            assert report.instances == 3
            with pytest.raises(NotFoundError):
                await engine.rejecting.delete(made["id"], actor="t", reason="expired")
            assert await shown(engine) == {STUDY: {C}}
            before = contents(stores)
            await engine.rejecting.undo(made["id"], actor="t", reason="nothing is left")
            assert await shown(engine) == {STUDY: {C}}
            assert await send(engine, sent[0]) == [Outcome.STORED]
            assert await shown(engine) == {STUDY: {A, C}}
            assert before["tombstone"].keys() == contents(stores)["tombstone"].keys()


async def test_a_hold_on_where_it_was_moved_holds_what_is_out_of_sight(tmp_path: Path) -> None:
    with stores_in(tmp_path / "archive") as stores:
        async with open_engine(stores, EngineOptions(), owner="test") as engine:
            await send(engine, one(FIRST, A))
            how = {"actor": "t", "reason": "wrong"}
            await engine.correcting.make(
                Request(kind="move-series", study=STUDY, series=(FIRST,), to_study=OTHER, **how)
            )
            await engine.correcting.make(
                Request(kind="set-study", study=OTHER, values={0x00100020: "P-9"}, **how)
            )
            await send(engine, note({OTHER: {FIRST: [A]}}, SAFETY))
            assert await shown(engine) == {}
            (made,) = await engine.rejecting.all()
            for on in (
                {"study_uid": STUDY},
                {"study_uid": OTHER},
                {"patient_id": "P-0001"},
                {"patient_id": "P-9"},
            ):
                hold = await engine.deleting.hold(**on, by="t", why="a case")
                with pytest.raises(HeldError):
                    await engine.rejecting.delete(made["id"], actor="t", reason="wrong")
                await engine.deleting.release(hold.hold_id, by="t", why="over")


async def test_the_change_feed_says_what_happened_and_no_more(tmp_path: Path) -> None:
    with stores_in(tmp_path / "archive") as stores:
        async with open_engine(stores, EngineOptions(), owner="test") as engine:
            sent = three()
            await send(engine, *sent[:2])
            cursor = await engine.changes.end()
            await send(engine, note({STUDY: {FIRST: [A, B], SECOND: [C]}}, SAFETY))
            await send(engine, sent[2])
            (made,) = await engine.rejecting.all()
            await engine.rejecting.undo(made["id"], actor="t", reason="mistaken")
            page = await engine.changes.read(cursor, 100)
            told = [json.loads(change.body) for change in page.changes]
            assert [one["kind"] for one in told] == [
                "instances-stored", "instances-rejected", "instances-restored",
            ]  # fmt: skip
            assert {one["study"] for one in told} == {STUDY}
            assert told[1]["rejection"] == told[2]["rejection"] == made["id"]


async def test_a_note_of_a_whole_study_is_followed(tmp_path: Path) -> None:
    uids = [f"{FIRST}.{n}" for n in range(400)]
    with stores_in(tmp_path / "archive") as stores:
        async with open_engine(stores, EngineOptions(), owner="test") as engine:
            async with trio.open_nursery() as nursery:
                for uid in uids:
                    nursery.start_soon(send, engine, one(FIRST, uid))
            await send(engine, one(SECOND, C))
            await send(engine, note({STUDY: {FIRST: uids[:399]}}, EXPIRED))
            (left,) = await found(engine)
            assert left.study[0x00201208] == "2"
            assert_sound(stores)


async def test_what_is_out_of_sight_moves_with_compaction_and_comes_back_whole(tmp_path: Path) -> None:
    directory = tmp_path / "archive"
    sent = three()
    with stores_in(directory) as stores:
        async with open_engine(stores, EngineOptions(), owner="test") as engine:
            await send(engine, *sent, note({STUDY: {FIRST: [A, B]}}, SAFETY))
            await engine.delete(Target(STUDY, SECOND, (C,)), reason="test", actor="t")
    with stores_in(directory) as stores:
        stores.catch_up(at_start=True)
        (segment,) = stores.log.segment_ids()
        report = Rewriter(stores.indexer, RewriteLimits()).rewrite_segment(segment)
        assert (report.moved, report.dropped, report.removed) == (3, 1, True)
        async with open_engine(stores, EngineOptions(), owner="test") as engine:
            (made,) = await engine.rejecting.all()
            assert made["hidden"] == 3
            await engine.rejecting.undo(made["id"], actor="t", reason="mistaken")
            assert await shown(engine) == {STUDY: {A, B, made["note"]}}
            for sop, data in ((A, sent[0]), (B, sent[1])):
                (found_one,) = await engine.instances(STUDY, FIRST, sop)
                assert b"".join([bytes(piece) async for piece in engine.dataset(found_one)]) == data
