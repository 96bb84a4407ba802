"""Numbers that an object says of itself are no sizes: what is drawn is what is there."""

from __future__ import annotations

import io
import zlib

import imagecodecs
import numpy as np
import pytest
from PIL import Image as PilImage
from pydicom import Dataset
from pydicom.encaps import encapsulate

from support.archives import ct_slice, store

ROOT = "1.2.840.10008.1.2"
EXPLICIT, JPEG_LS, DEFLATED = f"{ROOT}.1", f"{ROOT}.4.80", f"{ROOT}.1.99"
JPEG, PNG, GIF, PARTS = "image/jpeg", "image/png", "image/gif", 'multipart/related; type="image/png"'
SIDE, FRAMES = 16, 5
_WRITTEN = b"999999999999"


def with_frames(said: str, frames: int, syntax: str = EXPLICIT) -> bytes:
    """An object of so many frames that says it has ``said``."""
    cells = [np.full((SIDE, SIDE), 100 * (n + 1), "<u2") for n in range(frames)]

    def change(data: Dataset) -> None:
        data.NumberOfFrames = _WRITTEN.decode()
        data.WindowCenter, data.WindowWidth = 300, 600
        data.SmallestImagePixelValue = 0
        if syntax == JPEG_LS:
            data.PixelData = encapsulate([imagecodecs.jpegls_encode(one) for one in cells], has_bot=True)
            data["PixelData"].VR, data["PixelData"].is_undefined_length = "OB", True

    pixels = b"".join(one.tobytes() for one in cells)
    plain = ct_slice(change=change, pixels=pixels, syntax=JPEG_LS if syntax == JPEG_LS else EXPLICIT)
    assert plain.count(_WRITTEN) == 1
    plain = plain.replace(_WRITTEN, said.encode().ljust(len(_WRITTEN)))
    if syntax != DEFLATED:
        return plain
    packer = zlib.compressobj(wbits=-15)
    packed = packer.compress(plain) + packer.flush()
    return packed + bytes(len(packed) % 2)


async def kept(archive, data: bytes, syntax: str) -> str:
    result = await store(archive.engine, data, syntax)
    url = f"/dicom-web/studies/{result.study_uid}/series/{result.series_uid}"
    return f"{url}/instances/{result.sop_instance_uid}"


@pytest.mark.parametrize("syntax", [EXPLICIT, JPEG_LS, DEFLATED])
@pytest.mark.parametrize(
    "said", ["100000000000", "20000000", "999999999999", "1e300", "1e11", "0", "-5", "3.7", "abc"]
)
async def test_a_number_of_frames_is_believed(archive, said: str, syntax: str) -> None:
    url = await kept(archive, with_frames(said, 1, syntax), syntax)
    async with archive.client() as client:
        for path, accept in (
            ("/rendered", JPEG), ("/rendered", PARTS), ("/thumbnail", JPEG), ("/frames/1/rendered", PNG),
            ("/frames/1/thumbnail", PNG), ("/rendered", GIF),
        ):  # fmt: skip
            answer = await client.get(url + path, headers={"Accept": accept})
            assert answer.status_code == 200, (path, answer.text)
        missing = await client.get(f"{url}/frames/2/rendered", headers={"Accept": PNG})
        assert missing.status_code == 404
        thumbnail = await client.get(f"{url.partition('/series')[0]}/thumbnail")
        assert thumbnail.status_code == 200


@pytest.mark.parametrize("syntax", [EXPLICIT, JPEG_LS, DEFLATED])
@pytest.mark.parametrize("said", ["1", "5"])
async def test_frames_that_are_there_are_not_drawn(archive, said: str, syntax: str) -> None:
    """Whatever is given as a frame is drawn as one, and nothing else is."""
    url = await kept(archive, with_frames(said, FRAMES, syntax), syntax)
    async with archive.client() as client:
        for number in range(1, FRAMES + 2):
            frame = await client.get(f"{url}/frames/{number}", headers={"Accept": "application/octet-stream"})
            drawn = await client.get(f"{url}/frames/{number}/rendered", headers={"Accept": PNG})
            assert frame.status_code == drawn.status_code, number
            if frame.status_code == 200:
                grey = np.asarray(PilImage.open(io.BytesIO(drawn.content)))
                assert np.abs(grey.astype(int) - 100 * number * 255 / 600).max() <= 1


async def test_a_million_frames_are_listed(archive) -> None:
    """As many as can be there, of one bit: asked for in parts or as a film, none is made before its turn."""
    frames = 1_000_000

    def change(data: Dataset) -> None:
        data.Rows = data.Columns = 1
        data.BitsAllocated = data.BitsStored = 1
        data.HighBit, data.NumberOfFrames = 0, frames

    url = await kept(archive, ct_slice(change=change, pixels=b"\xaa" * (frames // 8)), EXPLICIT)
    async with archive.client() as client:
        film = await client.get(f"{url}/rendered", headers={"Accept": GIF})
        assert (film.status_code, "too many frames" in film.text) == (406, True)
        last = await client.get(f"{url}/frames/{frames}/rendered", headers={"Accept": PNG})
        assert np.asarray(PilImage.open(io.BytesIO(last.content))).tolist() == [[255]]
        beyond = await client.get(f"{url}/frames/{frames + 1}/rendered", headers={"Accept": PNG})
        assert beyond.status_code == 404
        middle = await client.get(f"{url}/rendered", headers={"Accept": PNG})
        assert middle.status_code == 200
        async with client.stream("GET", f"{url}/rendered", headers={"Accept": PARTS}) as answer:
            assert answer.status_code == 200
            async for _ in answer.aiter_bytes():
                break


def _spacing(data: Dataset) -> None:
    data.PixelSpacing = ["1e-300", "1e300"]


def _ratio(data: Dataset) -> None:
    data.PixelAspectRatio = ["1", "1000000000"]


def _no_bits(data: Dataset) -> None:
    data.BitsAllocated = data.BitsStored = data.HighBit = 0
    data.PixelRepresentation = 1


def _many_bits(data: Dataset) -> None:
    data.add_new(0x00280100, "UL", 4_000_000_000)
    data.add_new(0x00280101, "UL", 4_000_000_000)
    data.PixelPaddingValue = 1


def _wide_shutter(data: Dataset) -> None:
    data.ShutterShape, data.CenterOfCircularShutter = "CIRCULAR", [8, 8]
    data.RadiusOfCircularShutter = "1" + "0" * 11
    data.add_new(0x00181612, "FD", 1e300)


def _far_table(data: Dataset) -> None:
    item = Dataset()
    item.add_new(0x00283002, "FD", [4.0, 1e300, 16.0])
    item.add_new(0x00283006, "OW", np.arange(4, dtype="<u2").tobytes())
    data.VOILUTSequence = [item]


@pytest.mark.parametrize(
    ("change", "statuses"),
    [
        (_spacing, {200}), (_ratio, {200}), (_wide_shutter, {200}), (_far_table, {200}),
        (_no_bits, {406}), (_many_bits, {406}),
    ],
)  # fmt: skip
async def test_numbers_that_cannot_be_fail_the_server(archive, change, statuses: set[int]) -> None:
    url = await kept(archive, ct_slice(change=change), EXPLICIT)
    async with archive.client() as client:
        for path, accept in (
            ("/rendered", JPEG), ("/rendered", GIF), ("/thumbnail", JPEG), ("/rendered?viewport=8,8", PNG),
        ):  # fmt: skip
            answer = await client.get(url + path, headers={"Accept": accept})
            assert answer.status_code in statuses, (path, answer.status_code, answer.text)


async def test_nothing_is_given_as_a_frame(archive) -> None:
    """A fragment without bytes is no JPEG-LS; who takes parts of any kind takes the other's."""

    def change(data: Dataset) -> None:
        data.NumberOfFrames = 2
        coded = imagecodecs.jpegls_encode(np.zeros((SIDE, SIDE), "u2"))
        data.PixelData = encapsulate([coded, coded], has_bot=False)
        data["PixelData"].VR, data["PixelData"].is_undefined_length = "OB", True

    whole = ct_slice(change=change, syntax=JPEG_LS)
    begin = whole.rindex(b"\xfe\xff\x00\xe0")
    empty = whole[:begin] + b"\xfe\xff\x00\xe0" + bytes(4) + b"\xfe\xff\xdd\xe0" + bytes(4)
    url = await kept(archive, empty, JPEG_LS)
    async with archive.client() as client:
        for accept in ("image/jls", "application/octet-stream; transfer-syntax=*", "multipart/*"):
            one = await client.get(f"{url}/frames/1", headers={"Accept": accept})
            two = await client.get(f"{url}/frames/2", headers={"Accept": accept})
            assert (one.status_code, two.status_code) == (200, 404), accept
        parts = await client.get(f"{url}/frames/1/rendered", headers={"Accept": "multipart/*"})
        assert parts.headers["content-type"].startswith('multipart/related; type="image/jpeg"')
