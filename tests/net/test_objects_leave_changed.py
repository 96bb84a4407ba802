"""What is sent to others is what is stored: as it is where they take that, with the same pixels where not."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator, Callable
from typing import Any

import numpy as np
import pydicom
import pytest

from hounsfield.archive.dicom import part10
from hounsfield.archive.dicom.levels import Level
from hounsfield.archive.engine.corrections import Request
from hounsfield.archive.engine.errors import DamagedError
from hounsfield.archive.engine.opening import Opening
from hounsfield.archive.engine.target_syntaxes import TARGETS
from hounsfield.archive.engine.types import Source
from hounsfield.archive.net.outgoing import (
    CONTEXTS_MAX,
    GATHERED_BYTES_MAX,
    LOSSLESS,
    Sent,
    UnfinishedError,
    batches_of,
    pair_of,
    send,
)
from hounsfield.archive.net.selection import keys_of, select
from hounsfield.archive.wire import AcceptedContext, Buffer, Category, CStoreResponse
from hounsfield.codecs.registry import lookup
from support.rejection import QUALITY, note
from support.retrieving import dataset_of, identifier, sample, slices, stored

ROOT = "1.2.840.10008.1.2"
IMPLICIT, EXPLICIT, DEFLATED, BIG = ROOT, f"{ROOT}.1", f"{ROOT}.1.99", f"{ROOT}.2"
BASELINE, EXTENDED = f"{ROOT}.4.50", f"{ROOT}.4.51"
JPEG_LOSSLESS, JPEG_2000, RLE, VIDEO = f"{ROOT}.4.70", f"{ROOT}.4.90", f"{ROOT}.5", f"{ROOT}.4.102"
CT, SC = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.7"


class Taker:
    """Takes what is sent, in one syntax for each class; remembers the pieces."""

    def __init__(self, *syntaxes: str, sop_class: str, status: int = 0) -> None:
        self.contexts = {
            2 * n + 1: AcceptedContext(2 * n + 1, sop_class, uid) for n, uid in enumerate(syntaxes)
        }
        self.status = status
        self.taken: list[tuple[str, str, bytes]] = []
        self.pieces: list[int] = []
        self.originators: list[tuple[str, int] | None] = []

    async def begin_store(
        self,
        context: AcceptedContext,
        sop_instance_uid: str,
        dataset: Buffer | AsyncIterator[tuple[Buffer, bool]],
        *,
        sop_class_uid: str = "",
        move_originator: tuple[str, int] | None = None,
    ) -> Answer:
        data = bytearray()
        ended = False
        pieces = dataset if isinstance(dataset, AsyncIterator) else one_piece(dataset)
        async for piece, last in pieces:
            assert not ended
            data += piece
            self.pieces.append(len(piece))
            ended = last
        assert ended
        self.taken.append((context.transfer_syntax, sop_instance_uid, bytes(data)))
        self.originators.append(move_originator)
        return Answer(CStoreResponse(1, self.status))


class Answer:
    """It came at once."""

    def __init__(self, came: CStoreResponse) -> None:
        self._came = came

    async def response(self) -> CStoreResponse:
        return self._came

    def give_up(self) -> None:
        pass


async def one_piece(data: Buffer) -> AsyncIterator[tuple[Buffer, bool]]:
    yield data, True


def opened(data: bytes, syntax: str) -> pydicom.Dataset:
    meta = part10.file_header(syntax, "1.2", "1.2.3")
    return pydicom.dcmread(io.BytesIO(meta + data))


# ---------------------------------------------------------------- what is proposed


def test_every_stored_syntax_has_a_context_alone_and_each_class_its_fallbacks() -> None:
    (batch,) = batches_of([(CT, EXPLICIT), (CT, JPEG_2000), (SC, VIDEO), (SC, EXTENDED), (CT, EXPLICIT)])
    proposed = [(context.abstract_syntax, context.transfer_syntaxes) for context in batch.contexts]
    assert (CT, (EXPLICIT,)) in proposed
    assert (CT, (JPEG_2000,)) in proposed
    assert (CT, (IMPLICIT,)) in proposed  # what is left of the uncompressed ones
    assert (SC, (VIDEO,)) in proposed
    assert (SC, (EXPLICIT, IMPLICIT)) in proposed
    assert (SC, (BASELINE,)) in proposed  # for what has lost something
    assert not any(sop_class == CT and BASELINE in syntaxes for sop_class, syntaxes in proposed)
    assert [context.context_id for context in batch.contexts] == [2 * n + 1 for n in range(len(proposed))]


def test_video_and_unknown_syntaxes_are_proposed_as_they_are_only() -> None:
    (batch,) = batches_of([(SC, VIDEO), (CT, "1.2.3.4")])
    assert [context.transfer_syntaxes for context in batch.contexts] == [(VIDEO,), ("1.2.3.4",)]


def test_no_association_has_too_many_contexts_and_no_class_is_forgotten() -> None:
    pairs = [(f"1.2.840.10008.5.1.4.1.1.{n}", uid) for n in range(100) for uid in (EXPLICIT, RLE)]
    found = batches_of(pairs)
    assert len(found) > 1
    assert all(len(batch.contexts) <= CONTEXTS_MAX for batch in found)
    assert sorted(pair for batch in found for pair in batch.pairs) == sorted(pairs)
    for batch in found:
        ids = [context.context_id for context in batch.contexts]
        assert ids == sorted(set(ids))
        assert max(ids) < 256


def test_what_has_no_usable_uid_is_not_proposed() -> None:
    assert batches_of([("", EXPLICIT), (CT, "x"), ("1" * 65, EXPLICIT)]) == []


def test_everything_chosen_without_loss_can_be_written() -> None:
    assert set(LOSSLESS) | {BASELINE} == set(TARGETS)
    assert LOSSLESS[0] == EXPLICIT
    assert not any(lookup(uid).encapsulated for uid in LOSSLESS[:3])


# ---------------------------------------------------------------- what is sent


@pytest.mark.parametrize(
    "name",
    ["CT_small.dcm", "MR_small_implicit.dcm", "MR_small_bigendian.dcm", "JPEG-LL.dcm", "image_dfl.dcm"],
)
async def test_what_is_taken_as_it_is_stored_is_not_touched(
    open_archive: Callable[..., Any], name: str
) -> None:
    async with open_archive() as archive:
        instance = await stored(archive.engine, sample(name))
        assert batches_of([pair_of(instance)])[0].contexts[0].transfer_syntaxes == (pair_of(instance)[1],)
        taker = Taker(EXPLICIT, IMPLICIT, pair_of(instance)[1], sop_class=instance.row.sop_class_uid)
        sent = await send(taker, archive.engine, instance, move_originator=("MOVER", 7))
        data = dataset_of(sample(name))
        assert taker.taken == [(pair_of(instance)[1], instance.row.sop_uid, data)]
        assert taker.pieces == [len(data)]  # in one piece: one write
        assert taker.originators == [("MOVER", 7)]
        assert sent == Sent(Category.SUCCESS, 0, size=len(data), transfer_syntax_uid=pair_of(instance)[1])


@pytest.mark.parametrize(
    ("name", "syntaxes", "chosen"),
    [
        ("CT_small.dcm", [RLE, JPEG_2000, IMPLICIT], IMPLICIT),
        ("CT_small.dcm", [RLE, JPEG_2000], JPEG_2000),
        ("CT_small.dcm", [DEFLATED, BASELINE], DEFLATED),
        ("MR_small_implicit.dcm", [JPEG_LOSSLESS, EXPLICIT], EXPLICIT),
        ("MR_small_bigendian.dcm", [IMPLICIT, EXPLICIT], EXPLICIT),
        ("MR_small_RLE.dcm", [BASELINE, JPEG_LOSSLESS, IMPLICIT], IMPLICIT),
        ("MR_small_jp2klossless.dcm", [f"{ROOT}.4.91", EXPLICIT], f"{ROOT}.4.91"),
        ("image_dfl.dcm", [IMPLICIT, RLE], IMPLICIT),
        ("image_dfl.dcm", [RLE], RLE),
        ("image_dfl.dcm", [JPEG_LOSSLESS, JPEG_2000], JPEG_LOSSLESS),
        ("rtplan.dcm", [RLE, EXPLICIT], EXPLICIT),
        ("SC_rgb_jpeg_gdcm.dcm", [EXPLICIT], EXPLICIT),
    ],
)
async def test_the_pixels_are_the_same_in_what_is_taken(
    open_archive: Callable[..., Any], name: str, syntaxes: list[str], chosen: str
) -> None:
    async with open_archive() as archive:
        instance = await stored(archive.engine, sample(name))
        taker = Taker(*syntaxes, sop_class=instance.row.sop_class_uid)
        sent = await send(taker, archive.engine, instance)
        ((syntax, uid, data),) = taker.taken
        assert (syntax, uid) == (chosen, instance.row.sop_uid)
        assert (sent.category, sent.transfer_syntax_uid, sent.size) == (Category.SUCCESS, chosen, len(data))
        before = pydicom.dcmread(io.BytesIO(sample(name)))
        after = opened(data, chosen)
        assert after.SOPInstanceUID == before.SOPInstanceUID
        if "PixelData" in before:
            assert np.array_equal(after.pixel_array, before.pixel_array)
        else:
            assert after == before


async def test_nothing_is_lost_that_was_not_lost_before(open_archive: Callable[..., Any]) -> None:
    async with open_archive() as archive:
        ct = await stored(archive.engine, sample("CT_small.dcm"))
        taker = Taker(BASELINE, sop_class=ct.row.sop_class_uid)
        sent = await send(taker, archive.engine, ct)
        assert (sent.category, sent.status, sent.retry) == (Category.FAILURE, None, False)
        assert not taker.taken
        # 8 bits, and lossy before: it is another object then, and says so
        dataset = pydicom.dcmread(io.BytesIO(sample("SC_rgb_jpeg_gdcm.dcm")))
        dataset.decompress()
        dataset.SOPInstanceUID = dataset.SOPInstanceUID[:-1] + "9"
        dataset.LossyImageCompression = "01"
        out = io.BytesIO()
        dataset.save_as(out)
        plain = await stored(archive.engine, out.getvalue())
        taker = Taker(BASELINE, sop_class=plain.row.sop_class_uid)
        assert (await send(taker, archive.engine, plain)).category is Category.SUCCESS
        ((syntax, uid, data),) = taker.taken
        again = opened(data, syntax)
        assert syntax == BASELINE
        assert uid == again.SOPInstanceUID != plain.row.sop_uid


async def test_what_was_deflated_and_has_no_frames_fails_where_frames_are_wanted(
    open_archive: Callable[..., Any],
) -> None:
    dataset = pydicom.dcmread(io.BytesIO(sample("rtplan.dcm")))
    dataset.file_meta.TransferSyntaxUID = DEFLATED
    out = io.BytesIO()
    dataset.save_as(out, implicit_vr=False, little_endian=True)
    async with open_archive() as archive:
        plan = await stored(archive.engine, out.getvalue())
        assert plan.row.transfer_syntax_uid == DEFLATED
        taker = Taker(RLE, sop_class=plan.row.sop_class_uid)
        sent = await send(taker, archive.engine, plan)
        assert (sent.category, sent.status, taker.taken) == (Category.FAILURE, None, [])


async def test_a_class_that_is_not_taken_is_a_failure_and_nothing_is_sent(
    open_archive: Callable[..., Any],
) -> None:
    async with open_archive() as archive:
        ct = await stored(archive.engine, sample("CT_small.dcm"))
        taker = Taker(EXPLICIT, sop_class=SC)
        sent = await send(taker, archive.engine, ct)
        assert (sent.category, sent.status, sent.retry, taker.taken) == (Category.FAILURE, None, False, [])


@pytest.mark.parametrize(
    ("status", "category", "retry"),
    [
        (0x0000, Category.SUCCESS, False),
        (0xB000, Category.WARNING, False),
        (0xB007, Category.WARNING, False),
        (0xA700, Category.FAILURE, True),
        (0xA7FF, Category.FAILURE, True),
        (0xA900, Category.FAILURE, False),
        (0xC123, Category.FAILURE, False),
        (0x0111, Category.FAILURE, False),
        (0xFF00, Category.FAILURE, False),  # of no sense here
        (0xFE00, Category.FAILURE, False),
    ],
)
async def test_the_answer_decides(
    open_archive: Callable[..., Any], status: int, category: Category, retry: bool
) -> None:
    async with open_archive() as archive:
        ct = await stored(archive.engine, sample("CT_small.dcm"))
        sent = await send(Taker(EXPLICIT, sop_class=CT, status=status), archive.engine, ct)
        assert (sent.category, sent.status, sent.retry) == (category, status, retry)


async def test_corrections_go_out_in_every_syntax(open_archive: Callable[..., Any]) -> None:
    async with open_archive() as archive:
        files = slices(2)
        instances = [await stored(archive.engine, raw) for raw in files]
        request = Request(
            kind="set-study", actor="a test", reason="it was wrong", study="1.2.3.4",
            values={0x00100020: "K-4711"},
        )  # fmt: skip
        await archive.engine.correcting.make(request)
        for syntax in (EXPLICIT, IMPLICIT, JPEG_LOSSLESS):
            taker = Taker(syntax, sop_class=CT)
            sent = await send(taker, archive.engine, instances[0])  # as it was looked up before
            assert sent.category is Category.SUCCESS
            ((_, _, data),) = taker.taken
            after = opened(data, syntax)
            assert after.PatientID == "K-4711"
            assert np.array_equal(after.pixel_array, pydicom.dcmread(io.BytesIO(files[0])).pixel_array)


async def test_what_is_rejected_is_not_sent_though_it_was_found_before(
    open_archive: Callable[..., Any],
) -> None:
    async with open_archive() as archive:
        instances = [await stored(archive.engine, raw) for raw in slices(2)]

        async def found(level: str, **keys: str) -> list[str]:
            asked = keys_of(identifier(level, **keys), EXPLICIT, tuple(Level))
            return [one.sop_uid for one in await select(archive.engine, asked)]

        both = "1.2.3.4.1.1\\1.2.3.4.1.2"
        assert len(await found("IMAGE", SOPInstanceUID=both)) == 2
        rejection = note({"1.2.3.4": {"1.2.3.4.1": ["1.2.3.4.1.1"]}}, QUALITY)
        session = archive.engine.begin(transfer_syntax_uid=EXPLICIT, source=Source("import"))
        await session.write(rejection)
        await session.commit()
        taker = Taker(EXPLICIT, sop_class=CT)
        gone, there = [await send(taker, archive.engine, one) for one in instances]
        told = gone.category, gone.status, gone.reason
        assert told == (Category.FAILURE, None, "it is not stored any more")
        assert there.category is Category.SUCCESS
        assert [uid for _, uid, _ in taker.taken] == ["1.2.3.4.1.2"]
        for level, keys in {
            "IMAGE": {"SOPInstanceUID": both},
            "SERIES": {"SeriesInstanceUID": "1.2.3.4.1"},
            "STUDY": {"StudyInstanceUID": "1.2.3.4"},
            "PATIENT": {"PatientID": "1CT1"},
        }.items():
            assert await found(level, **keys) == ["1.2.3.4.1.2"]


async def nothing(*_: Any) -> None:
    return None


async def test_damage_that_is_met_half_way_ends_the_association_and_that_object(
    open_archive: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_archive() as archive:
        instance = await stored(archive.engine, slices(1)[0])

        async def damaged(_: Any) -> AsyncIterator[bytes]:
            yield bytes(GATHERED_BYTES_MAX)
            yield b"more"
            raise DamagedError("the record does not open")

        monkeypatch.setattr(archive.engine, "dataset", damaged)
        monkeypatch.setattr(Opening, "open", nothing)
        with pytest.raises(UnfinishedError) as told:
            await send(Taker(EXPLICIT, sop_class=CT), archive.engine, instance)
        assert (told.value.sent.category, told.value.retry) == (Category.FAILURE, False)


async def test_damage_that_is_met_first_costs_nobody_an_association(
    open_archive: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_archive() as archive:
        instance = await stored(archive.engine, slices(1)[0])

        async def damaged(_: Any) -> AsyncIterator[bytes]:
            yield b"something"
            raise DamagedError("the record does not open")

        monkeypatch.setattr(archive.engine, "dataset", damaged)
        monkeypatch.setattr(Opening, "open", nothing)
        taker = Taker(EXPLICIT, sop_class=CT)
        sent = await send(taker, archive.engine, instance)
        told = sent.category, sent.reason, taker.taken
        assert told == (Category.FAILURE, "its stored record is damaged", [])


async def test_what_was_moved_to_another_study_is_found_and_sent_there(
    open_archive: Callable[..., Any],
) -> None:
    async with open_archive() as archive:
        for raw in (*slices(2), sample("MR_small_RLE.dcm")):
            there = await stored(archive.engine, raw)
        await archive.engine.correcting.make(
            Request(
                kind="move-series", actor="a test", reason="another patient's", study="1.2.3.4",
                series=("1.2.3.4.1",), to_study=there.study_uid,
            )
        )  # fmt: skip

        async def found(level: str, **keys: str) -> list[Any]:
            return await select(archive.engine, keys_of(identifier(level, **keys), EXPLICIT, tuple(Level)))

        assert len(await found("STUDY", StudyInstanceUID=there.study_uid)) == 3
        assert await found("STUDY", StudyInstanceUID="1.2.3.4") == []
        (image,) = await found("IMAGE", SOPInstanceUID="1.2.3.4.1.2")
        assert image.study_uid == there.study_uid
        series = await found("SERIES", SeriesInstanceUID=image.series_uid)
        assert [one.sop_uid for one in series] == ["1.2.3.4.1.1", "1.2.3.4.1.2"]
        (instance,) = await archive.engine.instances(*image[:3])
        taker = Taker(EXPLICIT, sop_class=CT)
        assert (await send(taker, archive.engine, instance)).category is Category.SUCCESS
        ((_, _, data),) = taker.taken
        assert opened(data, EXPLICIT).StudyInstanceUID == there.study_uid
