"""The same content in another transfer syntax is plain success; what only looks the same is kept beside."""

from __future__ import annotations

import io
import secrets
import subprocess
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from hounsfield.archive.dicom.part10 import split
from hounsfield.archive.engine.engine import EngineOptions, open_engine
from hounsfield.archive.engine.types import Outcome
from hounsfield.codecs.by_imagecodecs import imagecodecs
from hounsfield.codecs.coders import CODERS
from hounsfield.codecs.pixels import from_native
from support.archives import encode, store, stored_bytes, stores_in
from support.frames import pixel_format

JPEG_XL_LOSSLESS = "1.2.840.10008.1.2.4.110"
NATIVE = [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian]
CODED = [RLELossless, JPEGLSLossless, JPEG2000Lossless, HTJ2KLossless, JPEG_XL_LOSSLESS]


def picture(
    *, signed: bool = False, samples: int = 1, bits: int = 16, frames: int = 1, seed: int = 1
) -> Dataset:
    """A valid image with sequences, text beyond ASCII, numbers of every kind, and private data."""
    data = Dataset()
    data.SpecificCharacterSet = "ISO_IR 192"
    data.SOPClassUID = "1.2.840.10008.5.1.4.1.1.7.3"
    data.SOPInstanceUID, data.StudyInstanceUID, data.SeriesInstanceUID = "1.2.3.4", "1.2.3", "1.2.3.1"
    data.StudyDate, data.StudyTime, data.Modality = "20250314", "101112", "OT"
    data.PatientName, data.PatientID = "Müller^Ada=小林", "P-7"
    data.PatientWeight = "61.5"
    item = Dataset()
    item.ReferencedSOPInstanceUID, item.TextValue = "1.2.9", "größer"
    inner = Dataset()
    inner.CodeValue, inner.CodeMeaning = "T-1", "Kopf"
    item.ConceptNameCodeSequence = Sequence([inner])
    data.ReferencedImageSequence = Sequence([item, Dataset()])
    data.add_new(0x00186011, "SQ", [])
    data.add_new(0x00189345, "FD", 3.25)
    data.add_new(0x00720078, "UL", [1, 70000])
    data.add_new(0x00091010, "UN", b"\1\2\3\4")
    data.add_new(0x00090010, "LO", "HOUNSFIELD TEST")
    data.SmallestImagePixelValue = 1
    data.FrameIncrementPointer = 0x00181063
    data.SamplesPerPixel, data.PhotometricInterpretation = samples, "RGB" if samples == 3 else "MONOCHROME2"
    if samples == 3:
        data.PlanarConfiguration = 0
    data.Rows, data.Columns, data.NumberOfFrames = 24, 20, frames
    data.BitsAllocated = bits
    data.BitsStored = 12 if bits == 16 else bits
    data.HighBit, data.PixelRepresentation = data.BitsStored - 1, int(signed)
    low, high = (
        (-(1 << (data.BitsStored - 1)), 1 << (data.BitsStored - 1)) if signed else (0, 1 << data.BitsStored)
    )
    generator = np.random.default_rng(seed)
    shape = (frames, 24, 20, samples)
    array = np.clip(
        np.cumsum(generator.integers(-9, 10, shape), axis=2) + (0 if signed else 99), low, high - 1
    )
    array = array.astype(f"<{'i' if signed else 'u'}{bits // 8}")
    data.PixelData = array.tobytes()
    data["PixelData"].VR = "OW" if bits == 16 else "OB"
    data.DataSetTrailingPadding = b"\0" * 6
    return data


def in_syntax(data: Dataset, uid: str) -> bytes:
    """The data set's bytes in a transfer syntax, its frames encoded when that takes encoding."""
    data = pydicom.dcmread(io.BytesIO(part10(data)))
    if uid not in NATIVE:
        pixels = pixel_format(data)
        frames = [
            data.PixelData[at : at + pixels.frame_bytes]
            for at in range(0, pixels.frame_bytes * int(data.NumberOfFrames), pixels.frame_bytes)
        ]
        data.PixelData = encapsulate([encoded(frame, pixels, uid) for frame in frames])
        data["PixelData"].is_undefined_length = True
        data["PixelData"].VR = "OB"
        if data.SamplesPerPixel == 3 and uid == JPEG2000Lossless:
            data.PhotometricInterpretation = "YBR_RCT"
    elif uid == ExplicitVRBigEndian:
        return big_endian(data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # pydicom does not know JPEG XL; a data set is written alike for all of these.
        return encode(data, JPEG2000Lossless if uid == JPEG_XL_LOSSLESS else uid)


def big_endian(data: Dataset) -> bytes:
    pixels = pixel_format(data)
    if pixels.bits_allocated == 16:
        data.PixelData = np.frombuffer(data.PixelData, "<u2").byteswap().tobytes()
    return encode(data, ExplicitVRBigEndian)


def part10(data: Dataset) -> bytes:
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    out = io.BytesIO()
    pydicom.dcmwrite(out, data, enforce_file_format=True)
    return out.getvalue()


def encoded(frame: bytes, pixels, uid: str) -> bytes:
    array = from_native(frame, pixels)
    if CODERS[uid].encode is not None:
        return CODERS[uid].encode(array, pixels)
    plain = np.ascontiguousarray(array if pixels.samples > 1 else array[:, :, 0])
    if uid == JPEG2000Lossless:
        return imagecodecs().jpeg2k_encode(plain, reversible=True, codecformat="j2k")
    if uid == JPEGLSLossless:
        return imagecodecs().jpegls_encode(plain.view(f"u{pixels.bits_allocated // 8}"), level=0)
    assert uid == RLELossless
    return rle(array, pixels)


def rle(array: np.ndarray, pixels) -> bytes:
    from pydicom.pixels.encoders import RLELosslessEncoder

    return RLELosslessEncoder.encode(
        np.ascontiguousarray(array if pixels.samples > 1 else array[:, :, 0]),
        rows=pixels.rows, columns=pixels.columns, samples_per_pixel=pixels.samples, number_of_frames=1,
        bits_allocated=pixels.bits_allocated, bits_stored=pixels.bits_stored,
        pixel_representation=int(pixels.signed), planar_configuration=0,
        photometric_interpretation="RGB" if pixels.samples == 3 else "MONOCHROME2",
        encoding_plugin="pydicom",
    )  # fmt: skip


async def outcomes(tmp_path: Path, *sent: tuple[bytes, str]) -> list[Outcome]:
    """What becomes of objects sent one after the other; the first is still what is served, to the bit."""
    with stores_in(tmp_path / f"data-{secrets.token_hex(4)}") as stores:
        async with open_engine(stores, EngineOptions(), owner="test") as engine:
            results = [await store(engine, data, uid) for data, uid in sent]
            assert results[0].outcome is Outcome.STORED
            assert await stored_bytes(engine, results[0]) == sent[0][0]
            return [result.outcome for result in results[1:]]


IMAGES = {
    "unsigned": picture(),
    "signed": picture(signed=True),
    "colour": picture(samples=3, bits=8),
    "three frames": picture(frames=3),
    "eight bits": picture(bits=8),
}


@pytest.mark.parametrize("name", IMAGES)
async def test_the_same_content_in_another_syntax_is_success_and_kept_once(tmp_path: Path, name: str) -> None:
    data = IMAGES[name]
    explicit = in_syntax(data, ExplicitVRLittleEndian)
    others = [
        uid
        for uid in [*NATIVE[:1], *NATIVE[2:], *CODED]
        if not (name == "signed" and uid == JPEG_XL_LOSSLESS)
    ]
    sent = [(in_syntax(data, uid), uid) for uid in others]
    found = await outcomes(tmp_path, (explicit, ExplicitVRLittleEndian), *sent)
    assert dict(zip(others, found, strict=True)) == dict.fromkeys(others, Outcome.DUPLICATE)


@pytest.mark.parametrize(
    "first", [ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, RLELossless, JPEG2000Lossless]
)
async def test_whichever_comes_first(tmp_path: Path, first: str) -> None:
    data = IMAGES["unsigned"]
    others = [ExplicitVRLittleEndian, JPEGLSLossless, HTJ2KLossless]
    found = await outcomes(
        tmp_path, (in_syntax(data, first), first), *((in_syntax(data, uid), uid) for uid in others)
    )
    assert found == [Outcome.DUPLICATE] * len(others)


def other_value(data: Dataset) -> None:
    data.PatientWeight = "61.6"


def other_nested_value(data: Dataset) -> None:
    data.ReferencedImageSequence[0].ConceptNameCodeSequence[0].CodeMeaning = "Fuß"


def one_element_more(data: Dataset) -> None:
    data.ImageComments = "x"


def one_item_less(data: Dataset) -> None:
    del data.ReferencedImageSequence[1]


def one_pixel(data: Dataset) -> None:
    pixels = bytearray(data.PixelData)
    pixels[100] ^= 1
    data.PixelData = bytes(pixels)


def called_lossy(data: Dataset) -> None:
    data.LossyImageCompression = "01"


def another_private_byte(data: Dataset) -> None:
    data[0x00091010].value = b"\1\2\3\5"


def another_float(data: Dataset) -> None:
    data[0x00189345].value = 3.5


def inverted(data: Dataset) -> None:
    data.PhotometricInterpretation = "MONOCHROME1"


@pytest.mark.parametrize("uid", [ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, JPEG2000Lossless])
@pytest.mark.parametrize(
    "change",
    [
        other_value, other_nested_value, one_element_more, one_item_less, one_pixel, called_lossy,
        another_private_byte, another_float, inverted,
    ],
)  # fmt: skip
async def test_any_difference_keeps_both(tmp_path: Path, change: Callable[[Dataset], None], uid: str) -> None:
    explicit = in_syntax(picture(), ExplicitVRLittleEndian)
    changed = picture()
    change(changed)
    found = await outcomes(tmp_path, (explicit, ExplicitVRLittleEndian), (in_syntax(changed, uid), uid))
    assert found == [Outcome.CONFLICT]


async def test_a_syntax_that_may_lose_is_never_the_same(tmp_path: Path) -> None:
    """Not even when it lost nothing: nobody can know what was compressed."""
    data = picture()
    coded = in_syntax(data, JPEGLSLossless)
    explicit = in_syntax(data, ExplicitVRLittleEndian)
    found = await outcomes(
        tmp_path, (explicit, ExplicitVRLittleEndian), (coded, JPEGLSNearLossless), (coded, JPEGBaseline8Bit)
    )
    assert found == [Outcome.CONFLICT, Outcome.CONFLICT]


async def test_what_stands_in_unused_bits_is_not_lost(tmp_path: Path) -> None:
    """An overlay above the high bit, as old objects have it: a compressor drops it."""
    data = picture()
    with_overlay = picture()
    cells = np.frombuffer(with_overlay.PixelData, "<u2").copy()
    cells[::7] |= 0x8000
    with_overlay.PixelData = cells.tobytes()
    native, other = (in_syntax(with_overlay, uid) for uid in (ExplicitVRLittleEndian, ImplicitVRLittleEndian))
    coded = in_syntax(data, JPEG2000Lossless)
    found = await outcomes(
        tmp_path, (native, ExplicitVRLittleEndian), (coded, JPEG2000Lossless), (other, ImplicitVRLittleEndian)
    )
    assert found == [Outcome.CONFLICT, Outcome.DUPLICATE]


async def test_text_in_another_character_set(tmp_path: Path) -> None:
    def latin(term: str, name: str) -> bytes:
        data = picture()
        data.PatientName = name
        data.SpecificCharacterSet = term
        return encode(data, ExplicitVRLittleEndian)

    utf8 = latin("ISO_IR 192", "Müller^Ada")
    sent = [latin("ISO_IR 100", "Müller^Ada"), latin("ISO_IR 100", "Möller^Ada")]
    found = await outcomes(tmp_path, *((each, ExplicitVRLittleEndian) for each in (utf8, *sent)))
    assert found == [Outcome.DUPLICATE, Outcome.CONFLICT]


async def test_sequences_of_undefined_length_say_the_same(tmp_path: Path) -> None:
    def written(undefined: bool) -> bytes:
        data = picture()
        for element in data.iterall():
            if element.VR == "SQ":
                element.is_undefined_length = undefined
                for item in element.value:
                    item.is_undefined_length_sequence_item = undefined
        return encode(data, ExplicitVRLittleEndian)

    one, other = written(True), written(False)
    assert one != other
    assert await outcomes(tmp_path, *((each, ExplicitVRLittleEndian) for each in (one, other))) == [
        Outcome.DUPLICATE
    ]


@pytest.mark.parametrize(
    "damage",
    [lambda coded: coded[:-300], lambda coded: coded.replace(b"\xff\x4f\xff\x51", b"\xff\x4f\xff\x52")],
)
async def test_what_cannot_be_decoded_is_kept(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    data = picture()
    explicit, coded = (in_syntax(data, uid) for uid in (ExplicitVRLittleEndian, JPEG2000Lossless))
    found = await outcomes(tmp_path, (explicit, ExplicitVRLittleEndian), (damage(coded), JPEG2000Lossless))
    assert found == [Outcome.CONFLICT]


@pytest.mark.peer("dcmdump")
@pytest.mark.parametrize("name", ["CT_small.dcm", "MR_small.dcm", "SC_rgb.dcm"])
async def test_what_dcmtk_makes_of_real_files(tmp_path: Path, name: str) -> None:
    """DCMTK writes other group lengths, other lengths of sequences, another offset table: all the same.

    To JPEG it adds a Derivation Description, which the original has not: that is kept, unless it is removed.
    """
    original = Path(str(get_testdata_file(name)))
    sent: dict[str, tuple[bytes, str]] = {}
    commands = [
        "dcmconv +ti", "dcmconv +te -e +g", "dcmconv +tb", "dcmconv +td", "dcmcrle", "dcmcjpls +el",
        "dcmcjpeg +e1", "dcmcjpeg +el",
    ]  # fmt: skip
    for number, command in enumerate(commands):
        target = tmp_path / f"{number}.dcm"
        subprocess.run([*command.split(), original, target], check=True, capture_output=True)
        if "jpeg" in command:
            sent[f"{command}, as it is"] = body(target)
            subprocess.run(["dcmodify", "-nb", "-ea", "(0008,2111)", target], check=True, capture_output=True)
        sent[command] = body(target)
    found = await outcomes(tmp_path, body(original), *sent.values())
    expected = {key: Outcome.CONFLICT if "as it is" in key else Outcome.DUPLICATE for key in sent}
    assert dict(zip(sent, found, strict=True)) == expected


def body(path: Path) -> tuple[bytes, str]:
    """A file's data set and its transfer syntax."""
    raw = path.read_bytes()
    return raw[split(raw).offset :], split(raw).transfer_syntax_uid
