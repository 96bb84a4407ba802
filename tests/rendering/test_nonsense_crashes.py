"""Damaged headers, presentation states and cells: a picture, or an error of ours, never another."""

from __future__ import annotations

import contextlib
import io
import random

import numpy as np
import pytest
from PIL import Image as PilImage

from hounsfield.archive.dicom.part10 import split
from hounsfield.archive.rendering.elements import Elements
from hounsfield.archive.rendering.errors import RenderingError
from hounsfield.archive.rendering.image import Image
from hounsfield.archive.rendering.pipeline import Cells, FilmDrawing, file_of
from hounsfield.archive.rendering.presentation import PresentationState
from hounsfield.archive.rendering.request import GIF, JPEG, PNG, Rendering, Viewport
from hounsfield.codecs.registry import lookup
from support.archives import encode
from support.rendering import image_of, paths
from support.states import annotated_state

ROUNDS = 120
SIDE_MAX = 512
ASKED = (
    Rendering(),
    Rendering(PNG, viewport=Viewport(40, 30, 1, 2, -9, 5), annotations=frozenset({"patient", "technique"})),
    Rendering(GIF, icc="no"),
    Rendering(JPEG, icc="srgb"),
)
FILES = (
    "CT_small.dcm", "examples_overlay.dcm", "OBXXXX1A.dcm", "vlut_04.dcm", "mlut_18.dcm", "emri_small.dcm",
    "eCT_Supplemental.dcm", "SC_rgb_small_odd.dcm", "MR_small_bigendian.dcm", "liver_1frame.dcm",
)  # fmt: skip


def damaged(data: bytes, chance: random.Random) -> bytes:
    """Some bytes other than they were, here and there one that counts."""
    out = bytearray(data)
    for _ in range(chance.choice((1, 2, 5, 20))):
        at = chance.randrange(len(out))
        out[at] = chance.choice((0, 1, 2, 0x7F, 0x80, 0xFF, chance.randrange(256)))
    return bytes(out)


def shown(image: Image, asked: Rendering, state: PresentationState | None = None) -> None:
    """Render a frame of noise that has the shape that the header says."""
    shape = image.format.shape
    words = {1: "u1", 8: "u1", 16: "u2", 32: "u4", 64: "u8"}.get(image.format.bits_allocated)
    if max(shape) > SIDE_MAX or words is None:
        return  # the decoder says what is wrong with it
    kind = words.replace("u", "i") if image.format.signed else words
    array = np.random.default_rng(1).integers(0, 256, shape).astype(np.dtype(kind))
    cells = Cells(array, image.photometric, as_stored=True)
    how = state.of_image("1.2.3", 1) if state else None
    if asked.media_type != GIF:
        assert file_of(image, 1, cells, asked, how)
        return
    film = FilmDrawing(image, asked, how)
    numbers = sorted({1, image.frames, image.representative_frame})
    for n in filter(film.is_measured, numbers):
        film.measure(n, cells)
    pixels = film.pixels()
    for n in numbers:
        film.draw(n, cells)
    data = film.finish()
    film.close()
    with PilImage.open(io.BytesIO(data)) as made:
        assert made.width * made.height == pixels


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_header_crashes(name: str) -> None:
    raw = paths()[name].read_bytes()
    found = split(raw)
    syntax = lookup(found.transfer_syntax_uid)
    whole = raw[found.offset :]
    mark = b"\xe0\x7f\x10\x00" if syntax.little_endian else b"\x7f\xe0\x00\x10"
    head = whole[: whole.rindex(mark) + 12]
    chance = random.Random(name)
    rendered = 0
    for n in range(ROUNDS):
        with contextlib.suppress(RenderingError):
            elements = Elements.of_header(damaged(head, chance) if n else head, syntax.uid)
            shown(Image(elements), ASKED[n % len(ASKED)])
            rendered += 1
    assert rendered > ROUNDS // 4


def test_a_damaged_presentation_state_crashes() -> None:
    _, image = image_of("CT_small.dcm")
    uid = "1.2.840.10008.1.2.1"
    data = encode(annotated_state(), uid)
    chance = random.Random(1)
    rendered = 0
    for n in range(3 * ROUNDS):
        with contextlib.suppress(RenderingError):
            state = PresentationState(Elements.of_header(damaged(data, chance) if n else data, uid))
            shown(image, ASKED[n % 2], state)
            rendered += 1
    assert rendered > ROUNDS
