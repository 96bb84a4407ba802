"""A compressed image whose sender does not say what it is: told from its headers, or not at all."""

from __future__ import annotations

from typing import Any

import imagecodecs
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hounsfield.archive.dicom.codestreams import transfer_syntax_of, without_container
from hounsfield.archive.dicom.scan import scan

ROOT = "1.2.840.10008.1.2.4"
TOLD = ("image/jpeg", "image/jls", "image/jp2", "image/jphc")


def first_frame(sample: Any) -> bytes:
    fragments = bytes(scan(sample.data, sample.syntax).slices(sample.data)[1])
    assert fragments[:4] == b"\xfe\xff\0\xe0"
    return fragments[8 : 8 + int.from_bytes(fragments[4:8], "little")]


def test_every_real_image_is_of_the_transfer_syntax_that_its_file_says(samples: list[Any]) -> None:
    seen: dict[str, int] = {}
    for sample in samples:
        if (
            sample.syntax.media_type not in TOLD
            or len(scan(sample.data, sample.syntax).slices(sample.data)) < 3
        ):
            continue
        uid = transfer_syntax_of(sample.syntax.media_type, first_frame(sample))
        if sample.syntax.uid == f"{ROOT}.91" and uid == f"{ROOT}.90":
            continue  # both processes may be used there
        assert uid == sample.syntax.uid, sample.name
        seen[uid] = seen.get(uid, 0) + 1
    assert set(seen) == {f"{ROOT}.{n}" for n in (50, 51, 70, 80, 81, 90, 91)}


@pytest.mark.parametrize("reversible", [True, False])
def test_jpeg_2000_in_and_out_of_its_file(reversible: bool) -> None:
    pixels = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64)
    options = {"reversible": reversible, "level": 0 if reversible else 60}
    bare = imagecodecs.jpeg2k_encode(pixels, codecformat="J2K", **options)
    file = imagecodecs.jpeg2k_encode(pixels, codecformat="JP2", **options)
    assert without_container(bare) == bare
    assert without_container(file)[:4] == bare[:4]
    assert len(without_container(file)) < len(file)
    assert (imagecodecs.jpeg2k_decode(without_container(file)) == imagecodecs.jpeg2k_decode(file)).all()
    expected = f"{ROOT}.{90 if reversible else 91}"
    assert transfer_syntax_of("image/jp2", bare) == transfer_syntax_of("image/jp2", file) == expected
    high = imagecodecs.htj2k_encode(pixels, reversible=reversible)
    assert transfer_syntax_of("image/jphc", high) == f"{ROOT}.{201 if reversible else 203}"


def test_what_cannot_be_told_is_not_guessed() -> None:
    for media_type in (*TOLD, "image/png", "application/octet-stream", ""):
        for image in (
            b"",
            b"\xff\xd8",
            b"\xff\xd8\xff\xe0\0\0",
            b"\xff\xd8\xff\xff\xff",
            b"\xff\x4f\xff\x51\0\x04\0\0",
        ):
            assert transfer_syntax_of(media_type, image) is None
    assert transfer_syntax_of("image/dicom-rle", b"") == "1.2.840.10008.1.2.5"


@given(st.sampled_from(TOLD), st.binary(max_size=64))
def test_any_bytes(media_type: str, data: bytes) -> None:
    for start in (b"", b"\xff\xd8", b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP  \r\n\x87\n"):
        transfer_syntax_of(media_type, start + data)
        without_container(start + data)
