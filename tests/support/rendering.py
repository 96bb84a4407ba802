"""Images to render: real files, and their cells as pydicom's decoders give them."""

from __future__ import annotations

import warnings
from functools import cache
from pathlib import Path

import numpy as np
import pydicom
from pydicom.pixels import pixel_array

from hounsfield.archive.dicom.part10 import split
from hounsfield.archive.rendering.elements import Elements
from hounsfield.archive.rendering.image import Image
from hounsfield.archive.rendering.pipeline import Cells
from hounsfield.codecs.registry import lookup
from support.frames import test_files

#: Signed and unsigned, 8, 12 and 16 bits, MONOCHROME1 and 2, with and without rescale, both byte orders.
MONOCHROME_FILES = (
    "CT_small.dcm", "MR_small.dcm", "MR_small_bigendian.dcm", "RG1_UNCI.dcm", "RG3_UNCI.dcm", "MR2_UNCI.dcm",
    "693_UNCI.dcm", "JPEG2000_UNC.dcm", "emri_small.dcm", "mlut_18.dcm", "vlut_04.dcm",
    "MR-SIEMENS-DICOM-WithOverlays.dcm",
)  # fmt: skip


@cache
def paths() -> dict[str, Path]:
    """Every file of pydicom's and pydicom-data's, by name."""
    return {path.name: path for path in test_files()}


@cache
def image_of(name: str) -> tuple[Path, Image]:
    path = paths()[name]
    raw = path.read_bytes()
    found = split(raw)
    return path, Image(Elements.of_header(raw[found.offset :], found.transfer_syntax_uid))


def cells_of(path: Path, image: Image, index: int = 0) -> Cells:
    """One frame, decoded by pydicom, not converted."""
    dataset = pydicom.dcmread(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        array = pixel_array(dataset, index=index, raw=True)
    if array.ndim == 2:
        array = array[:, :, np.newaxis]
    native = not lookup(str(dataset.file_meta.TransferSyntaxUID)).encapsulated
    return Cells(array, image.photometric, native)
