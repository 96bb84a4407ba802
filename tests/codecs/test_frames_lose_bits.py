"""Danger: a frame comes out of a coder with another bit than went in, or a coder's table says too much."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from benchmarks.pictures import picture
from hypothesis import given, settings
from hypothesis import strategies as st

from hounsfield.codecs import at_rest
from hounsfield.codecs.at_rest import Encoding, Method, compressed, decoded, frame_bytes_of, is_cheap, name_of
from hounsfield.codecs.coders import CODERS, Encoder, FrameLayout, coder_of
from hounsfield.codecs.errors import CodecError, CorruptFrameError, UnsupportedPixelsError
from hounsfield.codecs.pixels import (
    PixelFormat,
    decoded_format,
    from_native,
    same_bytes,
    samples,
    significant,
)
from hounsfield.codecs.registry import TRANSFER_SYNTAXES, lookup
from support.frames import UNDECODABLE, made_frame, real_frames, reference

ROOT = "1.2.840.10008.1.2"
#: An inverse transform may be rounded otherwise (ISO 10918-2), and chrominance upsampled otherwise.
LOSSY_TOLERANCE = 2
METHOD_OF = {
    Encoding.ZSTD: Method.ZSTD, Encoding.JPEG_XL: Method.JPEG_XL, Encoding.HTJ2K: Method.HTJ2K,
}  # fmt: skip
SHAPES = [
    PixelFormat(rows, columns, samples, bits, stored, signed, planar)
    for (rows, columns), samples, (bits, stored), signed, planar in itertools.product(
        [(1, 1), (13, 17), (64, 63)],
        [1, 3],
        [(8, 8), (16, 12), (16, 16), (32, 32)],
        [False, True],
        [False, True],
    )
    if samples > 1 or not planar
]
CODED = [
    frame for frame in real_frames() if frame.transfer_syntax_uid in CODERS and frame.path.name != UNDECODABLE
]


@pytest.mark.peer("dcmdjpeg")
def test_every_real_frame_is_decoded_as_others_decode_it() -> None:
    """None is left out for want of a reference: what pydicom does not read DCMTK does."""
    compared = dict.fromkeys({frame.transfer_syntax_uid for frame in CODED}, 0)
    for frame in CODED:
        coder = CODERS[frame.transfer_syntax_uid]
        try:
            array = coder.decode(frame.data, frame.pixels)
        except UnsupportedPixelsError:
            # Bytes in words, the last of them cut in half: the byte that is wanted is the padding.
            assert frame.path.name == "SC_rgb_small_odd_big_endian.dcm"
            continue
        plain = decoded_format(frame.transfer_syntax_uid, frame.pixels)
        assert array.shape == frame.pixels.shape, frame.name
        assert array.dtype == plain.dtype, frame.name
        as_coded = plain.photometric in {frame.pixels.photometric, "YBR_FULL"}
        expected = reference(frame, raw=as_coded or frame.pixels.photometric in {"YBR_RCT", "YBR_ICT"})
        if coder.lossless:
            assert np.array_equal(samples(array, plain), expected), frame.name
        else:
            difference = np.abs(samples(array, plain).astype(int) - expected)
            assert difference.max() <= LOSSY_TOLERANCE, frame.name
        compared[frame.transfer_syntax_uid] += 1
    assert min(compared.values()) > 0
    assert len(compared) >= 12
    assert sum(compared.values()) == len(CODED) - 1


def test_the_same_object_in_two_syntaxes_is_decoded_to_the_same_pixels() -> None:
    """Where pydicom has no decoder: the file that was compressed is there beside the original."""
    by_name = {frame.name: frame for frame in real_frames()}
    for original, coded in [
        ("MR_small.dcm#1", "MR_small_jpeg_ls_lossless.dcm#1"),
        ("MR_small.dcm#1", "MR_small_RLE.dcm#1"),
        ("MR_small.dcm#1", "MR_small_jp2klossless.dcm#1"),
    ]:
        one, other = by_name[original], by_name[coded]
        pixels = CODERS[one.transfer_syntax_uid].decode(one.data, one.pixels)
        assert np.array_equal(pixels, CODERS[other.transfer_syntax_uid].decode(other.data, other.pixels))


@pytest.mark.parametrize("uid", [uid for uid, coder in CODERS.items() if coder.encoders])
def test_what_is_encoded_comes_back(uid: str) -> None:
    coder = CODERS[uid]
    taken = 0
    for seed, pixels in enumerate(SHAPES):
        array = from_native(made_frame(pixels, seed), pixels)
        try:
            coded = coder.encode(array, pixels)
        except UnsupportedPixelsError:
            assert pixels.bits_allocated == 32 or pixels.signed or not coder.encodes_lossless
            continue
        taken += 1
        back = coder.decode(coded, pixels)
        assert back.dtype == array.dtype
        if coder.encodes_lossless:
            assert np.array_equal(samples(back, pixels), samples(array, pixels))
        else:
            assert np.abs(back.astype(int) - array).mean() < 12  # extremes and noise in a small picture
    assert taken >= (10 if coder.encodes_lossless else 3)


EACH_ENCODER = [
    (uid, encoder) for uid, coder in CODERS.items() if coder.encodes_lossless for encoder in coder.encoders
]


@pytest.mark.parametrize(("uid", "encoder"), EACH_ENCODER, ids=lambda one: getattr(one, "library", one))
def test_every_library_reads_what_every_other_writes(uid: str, encoder: Encoder) -> None:
    """One library's frames in all others' decoders: none of them is in the table on trust."""
    read = set()
    for seed, pixels in enumerate(SHAPES):
        plain = replace(pixels, planar=False, photometric="RGB" if pixels.samples == 3 else "MONOCHROME2")
        array = from_native(made_frame(plain, seed), plain)
        words = array if seed % 2 else samples(array, plain)  # with extremes beyond the sample, and without
        try:
            coded = encoder.encode(words, plain)
        except UnsupportedPixelsError:
            continue
        except CodecError:  # a picture of one pixel, for some
            assert encoder is not CODERS[uid].encoders[0]
            continue
        for decoder in CODERS[uid].decoders:
            try:
                back = decoder.decode(coded, plain)
            except CodecError:
                assert decoder is not CODERS[uid].decoders[0]
                continue
            assert np.array_equal(samples(back, plain), samples(words, plain)), (decoder.library, plain)
            read.add(decoder)
    assert read == set(CODERS[uid].decoders)


@pytest.mark.parametrize("encoding", Encoding)
def test_native_frames_come_back_from_disk_as_they_were(encoding: Encoding) -> None:
    used = set()
    native = [frame for frame in real_frames() if not lookup(frame.transfer_syntax_uid).encapsulated]
    assert len(native) > 40
    for frame in native:
        little = lookup(frame.transfer_syntax_uid).little_endian
        stored = compressed(frame.data, encoding, frame.pixels, little_endian=little)
        assert decoded(stored) == frame.data, frame.name
        used.add(stored[0])
    assert METHOD_OF[encoding] in used


@pytest.mark.parametrize("encoding", Encoding)
@pytest.mark.parametrize("little_endian", [True, False])
def test_frames_of_every_shape_come_back(encoding: Encoding, little_endian: bool) -> None:
    for seed, pixels in enumerate(SHAPES):
        frame = made_frame(pixels, seed)
        if not little_endian:
            frame = bytes(np.frombuffer(frame, pixels.dtype.newbyteorder("<")).byteswap().tobytes())
        stored = compressed(frame, encoding, pixels, little_endian=little_endian)
        assert decoded(stored) == frame
        wants_image = encoding is not Encoding.ZSTD and pixels.bits_allocated <= 16 and pixels.rows == 64
        if wants_image:
            assert stored[0] == METHOD_OF[encoding], pixels


@pytest.mark.parametrize("encoding", Encoding)
@pytest.mark.parametrize(("kind", "pixels", "ratio"), [
    ("ct", PixelFormat(512, 512), 2.5), ("mr", PixelFormat(256, 256), 2.5),
    ("us", PixelFormat(480, 640, 3, 8, 8), 1.5),
])  # fmt: skip
def test_pictures_shrink(encoding: Encoding, kind: str, pixels: PixelFormat, ratio: float) -> None:
    frame = picture(kind, 0)[: pixels.frame_bytes]
    stored = compressed(frame, encoding, pixels)
    assert stored[0] == METHOD_OF[encoding]
    assert len(frame) / len(stored) > ratio


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(list(Encoding)), st.integers(1, 9), st.integers(1, 9), st.sampled_from([1, 2, 3, 4]),
    st.sampled_from([8, 16, 32, 64]), st.booleans(), st.booleans(), st.booleans(), st.data(),
)  # fmt: skip
def test_any_bytes_come_back(encoding, rows, columns, samples, bits, signed, planar, little, data) -> None:
    """Unused high bits, an overlay in them, words that mean nothing: bytes are bytes."""
    pixels = PixelFormat(rows, columns, samples, bits, bits, signed, planar)
    frame = data.draw(st.binary(min_size=pixels.frame_bytes, max_size=pixels.frame_bytes))
    stored = compressed(frame, encoding, pixels, little_endian=little)
    assert decoded(stored) == frame
    assert len(stored) <= 20 + len(frame)


@pytest.mark.parametrize("encoding", Encoding)
@pytest.mark.parametrize("pixels", [None, PixelFormat(10, 10), PixelFormat(0, 5), PixelFormat(8, 8, 1, 1, 1)])
def test_a_shape_that_does_not_fit_costs_the_ratio_and_not_a_bit(encoding: Encoding, pixels) -> None:
    frame = bytes(range(101)) * 31
    stored = compressed(frame, encoding, pixels)
    assert (stored[0], bytes(decoded(stored))) == (Method.ZSTD, frame)
    assert decoded(compressed(b"", encoding, pixels)) == b""


def test_an_encoder_that_is_wrong_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = PixelFormat(64, 64)
    frame = made_frame(pixels)

    def wrong(array, pixels, right=at_rest.encode_jpeg_xl):
        array = array.copy()
        array[3, 4] ^= 1
        return right(array, pixels)

    monkeypatch.setattr(at_rest, "encode_jpeg_xl", wrong)
    stored = compressed(frame, Encoding.JPEG_XL, pixels)
    assert (stored[0], bytes(decoded(stored))) == (Method.ZSTD, frame)


def test_what_takes_long_is_not_called_cheap() -> None:
    assert is_cheap(name_of(Encoding.ZSTD, 524288))
    assert not is_cheap(name_of(Encoding.ZSTD, at_rest.CHEAP_BYTES_MAX + 1))
    assert not is_cheap(name_of(Encoding.JPEG_XL, 512))
    assert frame_bytes_of(name_of(Encoding.HTJ2K, 131072)) == 131072


GOLDEN = json.loads((Path(__file__).parent / "vectors" / "frames_at_rest.json").read_text())


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: case["name"])
def test_what_was_stored_once_opens_for_ever(case: dict[str, str]) -> None:
    """Golden vectors, only ever added to: what encoders write may change, what was written may not."""
    assert bytes(decoded(bytes.fromhex(case["stored"]))).hex() == GOLDEN["frame"]


@pytest.mark.parametrize("change", ["head", "short", "method", "length", "payload"])
def test_a_stored_frame_that_is_none_is_an_error(change: str) -> None:
    stored = bytearray(compressed(made_frame(PixelFormat(64, 64)), Encoding.ZSTD, PixelFormat(64, 64)))
    if change == "head":
        del stored[10:]
    elif change == "short":
        del stored[-9:]
    elif change == "method":
        stored[0] = 77
    elif change == "length":
        stored[12] ^= 2
    else:
        stored[20:40] = bytes(20)
    with pytest.raises(CorruptFrameError):
        decoded(stored)


@pytest.mark.parametrize("uid", sorted(uid for uid, coder in CODERS.items() if coder.isolated))
@pytest.mark.parametrize(
    "frame", [b"", b"\xff", b"\0" * 64, b"\xff\x4f\xff\x51" + b"\0" * 90, b"\1\0\0\0" * 40]
)
def test_nonsense_is_an_error_of_ours(uid: str, frame: bytes) -> None:
    with pytest.raises(CodecError):
        CODERS[uid].decode(frame, PixelFormat(16, 16))


def test_a_frame_of_another_shape_than_announced_is_an_error() -> None:
    frame = next(one for one in CODED if one.path.name == "MR_small_jp2klossless.dcm")
    for pixels in [PixelFormat(64, 63), PixelFormat(64, 64, 3), PixelFormat(64, 64, 1, 8, 8)]:
        with pytest.raises(CorruptFrameError):
            CODERS[frame.transfer_syntax_uid].decode(frame.data, pixels)


@pytest.mark.parametrize(
    "name", ["MR_small_jp2klossless.dcm", "MR_small_jpeg_ls_lossless.dcm", "JPEG-LL.dcm"]
)
def test_a_codestream_that_says_to_be_enormous_is_not_decoded(name: str) -> None:
    frame = next(one for one in CODED if one.path.name == name)
    coder = CODERS[frame.transfer_syntax_uid]
    asked: list[int] = []

    def decode(data, pixels):
        asked.append(1)
        raise CorruptFrameError("asked")

    counted = replace(coder, decoders=(replace(coder.decoders[0], decode=decode),))
    with pytest.raises(CorruptFrameError, match="asked"):
        counted.decode(frame.data, frame.pixels)
    larger = replace(frame.pixels, rows=frame.pixels.rows + 1)
    with pytest.raises(CorruptFrameError, match="another size"):
        counted.decode(frame.data, larger)
    assert len(asked) == 1


def test_a_frame_that_inflates_without_end_is_cut_off() -> None:
    bomb = zlib.compressobj(wbits=-15)
    stream = bomb.compress(bytes(50 << 20)) + bomb.flush()
    with pytest.raises(CorruptFrameError):
        CODERS[f"{ROOT}.8.1"].decode(stream, PixelFormat(16, 16))


def test_the_table_agrees_with_the_transfer_syntaxes() -> None:
    for uid, coder in CODERS.items():
        syntax = TRANSFER_SYNTAXES[uid]
        assert coder.uid == uid
        assert coder.lossless is syntax.lossless
        assert coder.isolated is (syntax.encapsulated and uid != f"{ROOT}.1.98")
        assert (coder.layout is FrameLayout.CELLS) is not syntax.encapsulated
        assert (coder.layout is FrameLayout.STREAM) is syntax.is_video
        assert bool(coder.decoders) is not syntax.is_video
    assert coder_of(f"{ROOT}.5\0") is CODERS[f"{ROOT}.5"]
    assert coder_of("1.2.3") is None


def test_significant_bits() -> None:
    pixels = PixelFormat(1, 4, 1, 16, 12, signed=True)
    extended = np.array([-1, 5, -2048, 2047], np.int16).reshape(1, 4, 1)
    zeroed = extended & np.int16(0x0FFF)
    for array in (extended, zeroed):
        values = significant(array, pixels)
        assert values is not None
        assert np.array_equal(values, extended)
    with_overlay = zeroed | np.int16(0x4000)
    assert significant(with_overlay, pixels) is None


def test_same_bytes() -> None:
    assert same_bytes(b"", memoryview(b""))
    assert same_bytes(bytearray(b"abc"), memoryview(b"abc"))
    assert not same_bytes(b"abc", b"abd")
    assert not same_bytes(b"abc", b"ab")


def test_nothing_is_loaded_before_it_is_needed() -> None:
    code = (
        "import sys, hounsfield.codecs.at_rest, hounsfield.codecs.coders; print('imagecodecs' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
