"""What is sent to others is what is stored: as it is where they take that, with the same pixels where not."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file

from hounsfield.archive.dicom import part10
from hounsfield.archive.engine.engine import Engine
from hounsfield.archive.engine.transcoding import TARGETS
from hounsfield.archive.engine.types import Instance, Source
from hounsfield.archive.net.outgoing import (
    CONTEXTS_MAX,
    LOSSLESS,
    Sent,
    batches_of,
    contexts_for,
    pair_of,
    send,
)
from hounsfield.archive.wire import AcceptedContext, Buffer, Category, CStoreResponse
from hounsfield.codecs.registry import lookup

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

    async def store(
        self,
        context: AcceptedContext,
        sop_instance_uid: str,
        pieces: AsyncIterator[tuple[Buffer, bool]],
        *,
        sop_class_uid: str = "",
        move_originator: tuple[str, int] | None = None,
    ) -> CStoreResponse:
        data = bytearray()
        ended = False
        async for piece, last in pieces:
            assert not ended
            data += piece
            self.pieces.append(len(piece))
            ended = last
        assert ended
        self.taken.append((context.transfer_syntax, sop_instance_uid, bytes(data)))
        self.originators.append(move_originator)
        return CStoreResponse(1, self.status)


async def stored(engine: Engine, raw: bytes, syntax: str = "") -> Instance:
    """A Part 10 file's object, stored."""
    found = part10.split(raw)
    session = engine.begin(transfer_syntax_uid=syntax or found.transfer_syntax_uid, source=Source("import"))
    await session.write(raw[found.offset :])
    result = await session.commit()
    (instance,) = await engine.instances(result.study_uid, result.series_uid, result.sop_instance_uid)
    return instance


def sample(name: str) -> bytes:
    path = get_testdata_file(name)
    assert path is not None
    return Path(str(path)).read_bytes()


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
        assert contexts_for([instance])[0][0].transfer_syntaxes == (pair_of(instance)[1],)
        taker = Taker(EXPLICIT, IMPLICIT, pair_of(instance)[1], sop_class=instance.row.sop_class_uid)
        sent = await send(taker, archive.engine, instance, move_originator=("MOVER", 7))
        raw = sample(name)
        data = raw[part10.split(raw).offset :]
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
