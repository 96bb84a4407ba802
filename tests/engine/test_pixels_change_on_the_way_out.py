"""Danger: an object in another transfer syntax shows something else, or says something wrong about itself.

What is written here is read by others: DCMTK where it has a reader (RLE, JPEG, JPEG-LS), jxl-oxide (JPEG XL),
GDCM and pylibjpeg-openjpeg, through pydicom, for the rest.
"""

from __future__ import annotations

import io
import subprocess
import warnings
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.encaps import generate_frames
from pydicom.uid import (
    MPEG2MPML,
    UID,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
    generate_uid,
)

from hounsfield.archive.dicom.part10 import Part10Error
from hounsfield.archive.engine.corrections import Request
from hounsfield.archive.engine.engine import EngineOptions
from hounsfield.archive.engine.errors import NotFoundError, NotSeparableError, NotTranscodableError
from hounsfield.archive.engine.ingest import IngestLimits
from hounsfield.archive.engine.isolation import IsolationLimits
from hounsfield.archive.engine.target_syntaxes import SAME_FRAMES, TARGETS, transcodable
from hounsfield.archive.engine.transcoding import TranscodingLimits
from hounsfield.codecs.at_rest import Encoding
from hounsfield.codecs.coders import CODERS
from hounsfield.codecs.errors import CodecError
from hounsfield.codecs.pixels import PixelFormat, samples
from hounsfield.codecs.registry import lookup
from support.archives import ct_slice, encode
from support.frames import UNDECODABLE, RealFrame, real_frames, reference
from support.frames import test_files as files_at_hand
from support.jxl_oxide import decoded_by_jxl_oxide
from support.transcoded import archive, file_named, given, part10, stored, stored_file

DEFLATED, JPEG_XL = "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.4.110"
#: JPEG's inverse transforms and colour conversions may differ by rounding (ISO 10918-2: 1; chrominance
#: upsampled otherwise than pydicom's library does it: more, at edges).
LOSSY_TOLERANCE = 2
CUT_SHORT = "MR_truncated.dcm"
#: Lossless targets, and DCMTK's reader where there is one.
DCMTK_READER = {
    RLELossless: ["dcmdrle"],
    JPEGLosslessSV1: ["dcmdjpeg", "--conv-never"],
    JPEGLSLossless: ["dcmdjpls"],
}
#: Of every kind: signed, 12 bits, 8 bits, colour, palette, several frames, 32 bits, big endian, compressed.
OBJECTS = [
    "CT_small.dcm", "MR_small_bigendian.dcm", "emri_small.dcm", "SC_rgb_rle_2frame.dcm", "OBXXXX1A.dcm",
    "MR_small_jp2klossless.dcm", "J2K_pixelrep_mismatch.dcm", "JPEG-LL.dcm", "SC_rgb_small_odd.dcm",
    "emri_small_jpeg_ls_lossless.dcm", "rtdose.dcm", "examples_rgb_color.dcm", "mlut_18.dcm",
    "image_dfl.dcm", "SC_ybr_full_422_uncompressed.dcm",
]  # fmt: skip


def cells(array: np.ndarray) -> np.ndarray:
    return array[:, :, np.newaxis] if array.ndim == 2 else array


@pytest.mark.peer("dcmdjpeg")
async def test_every_real_frame_is_decoded_as_others_decode_it(tmp_path: Path) -> None:
    compared: dict[str, int] = {}
    undecoded = []
    frames_at_hand = {(frame.path, frame.number): frame for frame in real_frames()}
    options = EngineOptions(duplicates="newest-current")  # some files have the UIDs of others
    async with archive(tmp_path, options) as engine:
        for path in files_at_hand():
            try:
                instance = await stored_file(engine, path)
            except (Part10Error, AssertionError):
                continue
            uid = instance.row.transfer_syntax_uid
            if 0x00280010 not in instance.row.attributes or path.name == UNDECODABLE:
                continue
            if path.name == CUT_SHORT:
                continue  # another has its UIDs and came whole: that one is served
            said = instance.row.attributes.get(0x00280008, "")
            frames = min(3, int(said) if said.isdigit() else 1)  # one file says 1A
            for number in range(1, frames + 1):
                try:
                    decoded = await engine.decoded(instance, number)
                except (CodecError, NotSeparableError):
                    undecoded.append(path.name)
                    continue
                assert not decoded.pixels.flags.writeable
                said = instance.row.attributes[0x00280004]
                as_coded = decoded.photometric in {said, "YBR_FULL"} or said in {"YBR_RCT", "YBR_ICT"}
                as_read = RealFrame(path, number, uid, b"", decoded.format)
                expected = reference(frames_at_hand.get((path, number), as_read), raw=as_coded)
                values = samples(decoded.pixels, decoded.format)
                if as_coded and CODERS[uid].lossless:
                    assert np.array_equal(values, expected), path.name
                else:
                    difference = np.abs(values.astype(int) - expected)
                    assert difference.max() <= LOSSY_TOLERANCE, path.name
                compared[uid] = compared.get(uid, 0) + 1
        figures = engine.decoding.figures
    assert sum(compared.values()) > 100
    assert len(compared) >= 8, compared
    assert figures.bytes_held <= EngineOptions().decoding.cache_bytes_max
    # Floating point numbers, bytes in words with an odd number of them.
    assert {name.partition(".")[0] for name in undecoded} <= {
        "parametric_map_float",
        "SC_rgb_small_odd_big_endian",
    }


@pytest.mark.parametrize("name", OBJECTS)
async def test_what_loses_nothing_is_read_by_others_as_it_was(tmp_path: Path, name: str) -> None:
    async with archive(tmp_path) as engine:
        instance = await stored_file(engine, file_named(name))
        frames = int(instance.row.attributes.get(0x00280008) or 1)
        before = [await engine.decoded(instance, n + 1) for n in range(min(frames, 3))]
        read = set()
        for uid in TARGETS:
            if uid == JPEGBaseline8Bit or uid.endswith((".110", ".112")):
                continue
            try:
                file, dataset = await given(engine, instance, uid)
            except NotTranscodableError:
                assert before[0].format.bits_allocated == 32 or name == "image_dfl.dcm"
                assert lookup(uid).encapsulated
                continue
            assert int(dataset.get("NumberOfFrames", 1)) == frames
            read.add(uid)
            if uid in DCMTK_READER:
                plain = tmp_path / "plain.dcm"
                (tmp_path / "coded.dcm").write_bytes(file)
                command = [*DCMTK_READER[UID(uid)], str(tmp_path / "coded.dcm"), str(plain)]
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                assert done.returncode == 0, (uid, done.stderr)
                file = plain.read_bytes()
            for number, one in enumerate(before):
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    array = frame_of(file, uid, number)
                format_ = PixelFormat(
                    *one.format.shape, one.format.bits_allocated, one.format.bits_stored, one.format.signed
                )
                wide = array.astype(one.pixels.dtype)
                assert np.array_equal(samples(wide, format_), samples(one.pixels, one.format)), (uid, number)
        assert {str(ExplicitVRLittleEndian), str(ImplicitVRLittleEndian), DEFLATED} - read <= {
            instance.row.transfer_syntax_uid
        }


def frame_of(file: bytes, uid: str, number: int) -> np.ndarray:
    """A frame as other libraries have it; pixel_array does not look into deflated data sets."""
    dataset = pydicom.dcmread(io.BytesIO(file))
    if uid != DEFLATED:
        if dataset.file_meta.TransferSyntaxUID in (HTJ2KLossless, HTJ2KLosslessRPCL) or uid.endswith(".203"):
            import openjpeg

            coded = list(
                generate_frames(dataset.PixelData, number_of_frames=int(dataset.get("NumberOfFrames", 1)))
            )
            return cells(openjpeg.decode(coded[number]))
        return cells(pydicom.pixels.pixel_array(dataset, index=number, raw=True))
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return cells(pydicom.pixels.pixel_array(dataset, index=number, raw=True))


@pytest.mark.peer("node", "jxl-oxide-wasm")
async def test_jpeg_xl_comes_back(tmp_path: Path) -> None:
    async with archive(tmp_path) as engine:
        coded, expected = [], []
        for name in ("MR2_UNCR.dcm", "examples_rgb_color.dcm", "emri_small.dcm"):
            instance = await stored_file(engine, file_named(name))
            _, dataset = await given(engine, instance, JPEG_XL)
            count = int(dataset.get("NumberOfFrames", 1))
            frames = list(generate_frames(dataset.PixelData, number_of_frames=count))
            before = await engine.decoded(instance, count)
            after = CODERS[JPEG_XL].decode(frames[-1], before.format)
            assert np.array_equal(samples(after, before.format), samples(before.pixels, before.format))
            coded.append((frames[-1], before.format.bits_stored))
            expected.append(samples(before.pixels, before.format))
        for theirs, ours in zip(decoded_by_jxl_oxide(coded), expected, strict=True):
            assert np.array_equal(theirs, ours)
        signed = await stored_file(engine, file_named("CT_small.dcm"))
        with pytest.raises(NotTranscodableError):
            await engine.transcoded_frame(signed, 1, JPEG_XL)


async def test_attributes_say_what_is_there(tmp_path: Path) -> None:
    async with archive(tmp_path) as engine:
        rgb = await stored_file(engine, file_named("SC_rgb_small_odd.dcm"))
        for uid, photometric in [
            (JPEG2000Lossless, "YBR_RCT"), (HTJ2KLossless, "YBR_RCT"), (RLELossless, "RGB"),
            (JPEGLosslessSV1, "RGB"), (JPEGLSLossless, "RGB"), (JPEG_XL, "RGB"),
        ]:  # fmt: skip
            _, dataset = await given(engine, rgb, uid)
            assert (dataset.PhotometricInterpretation, dataset.PlanarConfiguration) == (photometric, 0), uid
            assert dataset.SOPInstanceUID == rgb.row.sop_uid
            assert "LossyImageCompression" not in dataset or dataset.LossyImageCompression == "00"
        lossy = await stored_file(engine, file_named("examples_ybr_color.dcm"))
        _, dataset = await given(engine, lossy, ExplicitVRLittleEndian)
        assert (dataset.PhotometricInterpretation, dataset.PlanarConfiguration) == ("RGB", 0)
        assert dataset.LossyImageCompression == "01"
        assert dataset.SOPInstanceUID == lossy.row.sop_uid
        assert len(dataset.PixelData) == 3 * dataset.Rows * dataset.Columns * dataset.NumberOfFrames


async def test_what_loses_something_is_another_object_and_says_so(tmp_path: Path) -> None:
    async with archive(tmp_path) as engine:
        for name in (
            "examples_rgb_color.dcm",
            "OBXXXX1A.dcm",
            "CT_small.dcm",
            "emri_small.dcm",
            "693_J2KI.dcm",
        ):
            instance = await stored_file(engine, file_named(name))
            if name != "examples_rgb_color.dcm":  # palette, and more than 8 bits: not to be had in 8 bits
                with pytest.raises(NotTranscodableError):
                    await given(engine, instance, JPEGBaseline8Bit)
                continue
            file, dataset = await given(engine, instance, JPEGBaseline8Bit)
            again, _ = await given(engine, instance, JPEGBaseline8Bit)
            assert again == file
            assert dataset.PhotometricInterpretation == "YBR_FULL_422"
            assert dataset.LossyImageCompression == "01"
            assert dataset.LossyImageCompressionMethod == "ISO_10918_1"
            coded = len(next(generate_frames(dataset.PixelData, number_of_frames=1)))
            native = 3 * dataset.Rows * dataset.Columns
            assert float(dataset.LossyImageCompressionRatio) == pytest.approx(native / coded, rel=0.01)
            assert dataset.ImageType[0] == "DERIVED"
            assert dataset.SOPInstanceUID != instance.row.sop_uid
            assert dataset.SOPInstanceUID.is_valid
            (source,) = dataset.SourceImageSequence
            assert source.ReferencedSOPInstanceUID == instance.row.sop_uid
            assert source.PurposeOfReferenceCodeSequence[0].CodeValue == "121320"
            assert dataset.DerivationCodeSequence[-1].CodeValue == "113040"
            (tmp_path / "coded.dcm").write_bytes(file)
            command = ["dcmdjpeg", str(tmp_path / "coded.dcm"), str(tmp_path / "plain.dcm")]
            subprocess.run(command, capture_output=True, check=True)
            plain = pydicom.dcmread(tmp_path / "plain.dcm").pixel_array
            before = (await engine.decoded(instance, 1)).pixels
            assert np.abs(plain.astype(int) - before).mean() < 6


def overlay_in_high_bits(data: Dataset) -> None:
    pixels = np.arange(256, dtype="<u2").reshape(16, 16) * 16
    pixels[3:9, 4] |= 0x8000
    data.PixelData = pixels.tobytes()
    data.add_new(0x60000010, "US", 16)
    data.add_new(0x60000011, "US", 16)
    data.add_new(0x60000100, "US", 16)
    data.add_new(0x60000102, "US", 15)


@pytest.mark.parametrize(
    "uid", [RLELossless, JPEGLosslessSV1, JPEGLSLossless, JPEG2000Lossless, HTJ2KLossless, JPEG_XL]
)
async def test_an_overlay_in_high_bits_is_not_lost(tmp_path: Path, uid: str) -> None:
    async with archive(tmp_path) as engine:
        instance = await stored(engine, ct_slice(change=overlay_in_high_bits), ExplicitVRLittleEndian)
        before = await engine.decoded(instance, 1)
        assert before.pixels[4, 4, 0] & 0x8000
        frame = await engine.transcoded_frame(instance, 1, uid)
        assert np.array_equal(CODERS[uid].decode(frame, before.format), before.pixels)


async def test_what_follows_the_pixels_follows_them_still(tmp_path: Path) -> None:
    def odd(data: Dataset) -> None:
        data.Rows, data.Columns, data.BitsAllocated, data.BitsStored, data.HighBit = 3, 3, 8, 8, 7
        data.PixelData = bytes(range(9)) + b"\0"
        data.add_new(0xFFFCFFFC, "OB", b"\1\2\3\4")

    for source in (ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian):
        data = pydicom.dcmread(io.BytesIO(part10(ct_slice(change=odd), ExplicitVRLittleEndian)))
        data["PixelData"].VR = "OW" if source == ImplicitVRLittleEndian else "OB"
        raw = encode(data, source)
        (tmp_path / source).mkdir()
        async with archive(tmp_path / source) as engine:
            instance = await stored(engine, raw, source)
            for uid in (ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless, DEFLATED):
                _, dataset = await given(engine, instance, uid)
                assert dataset[0xFFFCFFFC].value == b"\1\2\3\4", (source, uid)
                assert dataset.PatientName == "Muster^Erika"
                if uid != RLELossless:
                    assert dataset.PixelData == bytes(range(9)) + b"\0", (source, uid)


async def test_a_frame_that_does_not_decode_is_one_request_refused(tmp_path: Path) -> None:
    dataset = pydicom.dcmread(file_named("MR_small_jp2klossless.dcm"))
    broken = bytearray(dataset.PixelData)
    broken[40:400] = bytes(360)
    dataset.PixelData = bytes(broken)
    dataset.SOPInstanceUID = generate_uid()
    async with archive(tmp_path) as engine:
        instance = await stored(engine, encode(dataset, JPEG2000Lossless), JPEG2000Lossless)
        sound = await stored_file(engine, file_named("MR_small_jp2klossless.dcm"))
        with pytest.raises(NotTranscodableError):
            await engine.transcoded_frame(instance, 1, HTJ2KLossless)
        with pytest.raises(CodecError):
            await engine.decoded(instance, 1)
        with pytest.raises(NotTranscodableError):
            async for _ in engine.transcoded(instance, ExplicitVRLittleEndian):
                pytest.fail("a piece was given before the first frame was decoded")
        assert b"".join([bytes(one) async for one in engine.transcoded(instance, JPEG2000Lossless)])
        assert (await engine.decoded(sound, 1)).pixels.shape == (64, 64, 1)


async def test_the_cache_of_frames_has_an_end_and_work_is_done_once(tmp_path: Path) -> None:
    options = EngineOptions(isolation=IsolationLimits(processes_max=2))
    async with archive(tmp_path, options) as engine:
        instance = await stored_file(engine, file_named("emri_small.dcm"))
        for _ in range(2):
            for number in range(1, 11):
                await engine.transcoded_frame(instance, number, HTJ2KLossless)
        figures = engine.transcoding.figures
        assert (figures.made, figures.found) == (10, 10)
        held = sum([len(await engine.transcoded_frame(instance, n, HTJ2KLossless)) for n in range(1, 11)])
        assert figures.bytes_held == held
        assert engine.isolation.started <= 2


async def test_only_what_others_compressed_goes_to_another_process(tmp_path: Path) -> None:
    """Plain cells are encoded on a thread, unless the encoder keeps the GIL; what is stored so is no work."""
    async with archive(tmp_path) as engine:
        plain = await stored_file(engine, file_named("CT_small.dcm"))
        big_endian = await stored_file(engine, file_named("MR_small_bigendian.dcm"))
        for instance in (plain, big_endian):
            before = await engine.decoded(instance, 1)
            for uid in (HTJ2KLossless, HTJ2KLosslessRPCL, JPEG2000Lossless, JPEGLSLossless, JPEGLosslessSV1):
                coded = await engine.transcoded_frame(instance, 1, uid)
                after = CODERS[uid].decode(coded, before.format)
                assert np.array_equal(samples(after, before.format), samples(before.pixels, before.format))
        assert engine.isolation.started == 0
        frame = await engine.transcoded_frame(plain, 1, HTJ2KLossless)
        _, dataset = await given(engine, plain, HTJ2KLossless)
        made = engine.transcoding.figures.made
        dataset.SOPInstanceUID = generate_uid()
        as_stored = await stored(engine, encode(dataset, HTJ2KLossless), HTJ2KLossless)
        assert await engine.transcoded_frame(as_stored, 1, HTJ2KLossless) == frame + bytes(len(frame) % 2)
        assert (engine.transcoding.figures.made, engine.isolation.started) == (made, 0)
        await engine.transcoded_frame(plain, 1, RLELossless)  # its encoder keeps the GIL
        assert engine.isolation.started == 1
        await engine.transcoded_frame(as_stored, 1, JPEGLSLossless)
        assert engine.isolation.failed == 0
        assert engine.transcoding.figures.made == made + 2


@pytest.mark.parametrize("at_rest", ["htj2k", "zstd", "jpegxl"])
async def test_frames_that_are_htj2k_on_disk_are_given_as_they_are(tmp_path: Path, at_rest: str) -> None:
    """Without work, and only where they hold what the attributes say; read by OpenJPEG."""
    import openjpeg

    def padded_with_zeros(data: Dataset) -> None:
        """Twelve signed bits, the sign not extended: on disk they are coded as whole words."""
        rng = np.random.default_rng(2)
        data.Rows = data.Columns = 64
        data.PixelRepresentation = 1
        data.PixelData = (rng.integers(-9, 9, (64, 64)) & 0x0FFF).astype("<u2").tobytes()

    async with archive(tmp_path, EngineOptions(compression=Encoding(at_rest))) as engine:
        instances = [
            await stored_file(engine, file_named(name))
            for name in (
                "CT_small.dcm",
                "MR_small_bigendian.dcm",
                "SC_rgb_small_odd.dcm",
                "examples_rgb_color.dcm",
            )
        ]
        instances.append(await stored(engine, ct_slice(change=padded_with_zeros), ExplicitVRLittleEndian))
        for instance in instances:
            decoded = await engine.decoded(instance, 1)
            made = engine.transcoding.figures.made
            coded = await engine.transcoded_frame(instance, 1, HTJ2KLossless)
            theirs = cells(openjpeg.decode(bytes(coded)))
            expected = samples(decoded.pixels, decoded.format)
            assert np.array_equal(theirs, expected)
            large = len(decoded.pixels.tobytes()) >= 4096
            given_as_it_is = at_rest == "htj2k" and large and instance is not instances[-1]
            assert instance.row.stored_as.startswith(at_rest) is large
            assert (engine.transcoding.figures.made == made) is given_as_it_is
            _, dataset = await given(engine, instance, HTJ2KLossless)
            frames = list(generate_frames(dataset.PixelData, number_of_frames=1))
            assert np.array_equal(cells(openjpeg.decode(frames[0])), expected)
            await engine.transcoded_frame(instance, 1, HTJ2KLosslessRPCL)
            assert engine.transcoding.figures.made > made
            with pytest.raises(NotFoundError):
                await engine.transcoded_frame(instance, 2, HTJ2KLossless)


async def test_plain_cells_that_no_encoder_takes_are_refused(tmp_path: Path) -> None:
    limits = IsolationLimits(frame_bytes_max=20_000)
    async with archive(tmp_path, EngineOptions(isolation=limits)) as engine:
        for name in ("rtdose.dcm", "CT_small.dcm"):  # words of 32 bits; 32 KiB
            instance = await stored_file(engine, file_named(name))
            with pytest.raises(NotTranscodableError):
                await engine.transcoded_frame(instance, 1, HTJ2KLossless)
        small = await stored_file(engine, file_named("MR_small.dcm"))
        assert await engine.transcoded_frame(small, 1, HTJ2KLossless)


def test_what_can_be_had() -> None:
    for uid in CODERS:
        possible = transcodable(uid)
        assert possible[0] == uid
        assert len(set(possible)) == len(possible)
        for target in possible[1:]:
            assert CODERS[target].encoders or target in SAME_FRAMES[uid]
    assert transcodable(MPEG2MPML) == (MPEG2MPML,)
    assert transcodable("1.2.3") == ("1.2.3",)
    assert {uid for uid, coder in CODERS.items() if coder.encoders} == set(TARGETS)


async def test_a_large_object_is_transcoded_piece_by_piece_and_with_its_corrections(tmp_path: Path) -> None:
    """Stored while it came in, corrected since; frames come in order, none is held for the next."""
    frames = 40
    rng = np.random.default_rng(1)
    volume = (rng.integers(0, 40, (frames, 256, 256)) + 1000).astype("<u2")

    def many(data: Dataset) -> None:
        data.Rows = data.Columns = 256
        data.NumberOfFrames = frames
        data.PixelData = volume.tobytes()

    options = EngineOptions(
        ingest=IngestLimits(stream_bytes_min=1 << 20), transcoding=TranscodingLimits(cache_bytes_max=1 << 18)
    )
    async with archive(tmp_path, options) as engine:
        instance = await stored(engine, ct_slice(change=many), ExplicitVRLittleEndian)
        assert instance.row.location.stream is not None
        await engine.correcting.make(
            Request(
                kind="set-patient",
                actor="tester",
                reason="misspelt",
                patient=("P-0001", ""),
                values={0x00100010: "Neu^Name"},
            )
        )
        (instance,) = await engine.instances(instance.study_uid, instance.series_uid, instance.row.sop_uid)
        for uid in (HTJ2KLossless, ImplicitVRLittleEndian):
            sizes = []
            pieces = []
            async for piece in engine.transcoded(instance, uid):
                sizes.append(len(piece))
                pieces.append(bytes(piece))
            assert max(sizes) <= 2 * 256 * 256
            dataset = pydicom.dcmread(io.BytesIO(part10(b"".join(pieces), uid)))
            assert dataset.PatientName == "Neu^Name"
            if uid == ImplicitVRLittleEndian:
                assert dataset.PixelData == volume.tobytes()
                continue
            coded = list(generate_frames(dataset.PixelData, number_of_frames=frames))
            assert len(coded) == frames
            last = await engine.decoded(instance, frames)
            assert np.array_equal(CODERS[uid].decode(coded[-1], last.format)[:, :, 0], volume[-1])
        assert engine.transcoding.figures.bytes_held <= 1 << 18
