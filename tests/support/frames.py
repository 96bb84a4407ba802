"""Frames to code: real ones out of the files that packages carry, and made ones of every shape."""

from __future__ import annotations

import importlib.util
import io
import subprocess
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pydicom
import pydicom.data
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    SecondaryCaptureImageStorage,
    generate_uid,
)

from hounsfield.codecs.pixels import PixelFormat

FRAMES_PER_FILE_MAX = 3  # the others are alike
#: Its codestream is broken on purpose: it says that one tile is 16 million wide.
UNDECODABLE = "JPEG2000-embedded-sequence-delimiter.dcm"


@dataclass(frozen=True)
class RealFrame:
    """One frame as it stands in a file."""

    path: Path
    number: int
    transfer_syntax_uid: str
    data: bytes
    pixels: PixelFormat

    @property
    def name(self) -> str:
        return f"{self.path.name}#{self.number}"


def test_files() -> Iterator[Path]:
    """Every file of pydicom's and of pydicom-data's, as far as they are installed."""
    roots = [Path(str(pydicom.data.__file__)).parent / "test_files"]
    found = importlib.util.find_spec("data_store")
    if found is not None and found.origin:
        roots.append(Path(found.origin).parent / "data")
    for root in roots:
        yield from (path for path in sorted(root.rglob("*")) if path.is_file())


def pixel_format(dataset: pydicom.Dataset) -> PixelFormat:
    """What the attributes say."""
    return PixelFormat(
        rows=int(dataset.Rows),
        columns=int(dataset.Columns),
        samples=int(dataset.SamplesPerPixel),
        bits_allocated=int(dataset.BitsAllocated),
        bits_stored=int(dataset.BitsStored),
        signed=bool(dataset.PixelRepresentation),
        planar=bool(dataset.get("PlanarConfiguration", 0)),
        in_words=dataset["PixelData"].VR == "OW",
        photometric=str(dataset.PhotometricInterpretation),
        high_bit=int(dataset.HighBit),
    )


@cache
def real_frames() -> tuple[RealFrame, ...]:
    """The first frames of every file that has whole ones, native or encapsulated."""
    out: list[RealFrame] = []
    for path in test_files():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                dataset = pydicom.dcmread(io.BytesIO(path.read_bytes()))
                pixels = pixel_format(dataset)
                count = int(dataset.get("NumberOfFrames", 1) or 1)
                if dataset["PixelData"].is_undefined_length:
                    frames = list(generate_frames(dataset.PixelData, number_of_frames=count))
                else:
                    size = pixels.frame_bytes
                    frames = [dataset.PixelData[size * n : size * (n + 1)] for n in range(count)]
                    frames = [frame for frame in frames if len(frame) == size and size]
                uid = str(dataset.file_meta.TransferSyntaxUID)
            except Exception:  # no DICOM file, or no image: another test's business
                continue
        out += (
            RealFrame(path, number, uid, frame, pixels)
            for number, frame in enumerate(frames[:FRAMES_PER_FILE_MAX], start=1)
        )
    return tuple(out)


def reference(frame: RealFrame, *, raw: bool = True) -> np.ndarray:
    """What others make of it: pydicom with its plugins, else DCMTK out of a file of that frame alone.

    ``raw``: components as they were coded, else RGB.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            if frame.transfer_syntax_uid == DeflatedExplicitVRLittleEndian:
                dataset = pydicom.dcmread(frame.path)
                dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian  # as it was read
                array = pydicom.pixels.pixel_array(dataset, index=frame.number - 1, raw=raw)
            else:
                array = pydicom.pixels.pixel_array(frame.path, index=frame.number - 1, raw=raw)
        except Exception:
            array = _by_dcmtk(frame) if UID(frame.transfer_syntax_uid).is_compressed else _cells(frame)
    return array[:, :, np.newaxis] if array.ndim == 2 else array


def _cells(frame: RealFrame) -> np.ndarray:
    """Of a file without file meta information, or with a number of frames that is none."""
    dataset = pydicom.dcmread(frame.path, force=True)
    shape = (dataset.Rows, dataset.Columns, dataset.SamplesPerPixel)
    frames = np.frombuffer(dataset.PixelData, f"<u{dataset.BitsAllocated // 8}").reshape(-1, *shape)
    return frames[frame.number - 1]


def _by_dcmtk(frame: RealFrame) -> np.ndarray:
    """JPEG; Photometric Interpretation says what its components are."""
    pixels = frame.pixels
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = SecondaryCaptureImageStorage, generate_uid()
    dataset.Rows, dataset.Columns, dataset.SamplesPerPixel = pixels.shape
    dataset.BitsAllocated, dataset.BitsStored = pixels.bits_allocated, pixels.bits_stored
    dataset.HighBit, dataset.PixelRepresentation = pixels.bits_stored - 1, int(pixels.signed)
    dataset.PhotometricInterpretation = pixels.photometric
    if pixels.samples > 1:
        dataset.PlanarConfiguration = 0
    dataset.PixelData = encapsulate([frame.data])
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = UID(frame.transfer_syntax_uid)
    with tempfile.TemporaryDirectory() as folder:
        coded, plain = Path(folder) / "coded.dcm", Path(folder) / "plain.dcm"
        dataset.save_as(coded, enforce_file_format=True)
        subprocess.run(["dcmdjpeg", str(coded), str(plain)], check=True, capture_output=True)
        array: np.ndarray = pydicom.dcmread(plain).pixel_array
        return array


def made_frame(pixels: PixelFormat, seed: int = 0, *, noise: int = 4) -> bytes:
    """A native frame (little endian) like a picture: smooth, noisy, and with the extreme values."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[0 : pixels.rows, 0 : pixels.columns]
    limits = np.iinfo(pixels.dtype)
    stored = 1 << min(pixels.bits_stored, 62)
    wave = (np.sin(x / 9) + np.cos(y / 7) + 2) / 4 * (stored - 1) - (stored / 2 if pixels.signed else 0)
    planes = [np.rint(wave + generator.normal(0, noise, wave.shape)) for _ in range(pixels.samples)]
    array = np.stack(planes, axis=-1)
    low, high = (-(stored // 2), stored // 2 - 1) if pixels.signed else (0, stored - 1)
    array = np.clip(array, max(low, limits.min), min(high, limits.max)).astype(pixels.dtype)
    array.reshape(-1)[0], array.reshape(-1)[-1] = limits.min, limits.max
    if pixels.planar:
        array = array.transpose(2, 0, 1)
    return np.ascontiguousarray(array, pixels.dtype.newbyteorder("<")).tobytes()
