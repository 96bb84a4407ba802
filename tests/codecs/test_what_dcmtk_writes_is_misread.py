"""Danger: a frame is decoded otherwise than the library decodes it that wrote it.

DCMTK writes the processes of JPEG, at 8 and at 12 bits, JPEG-LS with and without loss, and RLE. What its own
decoders give back ours give, to the bit also where something was lost.
"""

from __future__ import annotations

import subprocess
import warnings
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.encaps import generate_frames

from hounsfield.codecs.coders import CODERS
from hounsfield.codecs.pixels import decoded_format, samples
from support.frames import pixel_format
from support.frames import test_files as files_at_hand

ROOT = "1.2.840.10008.1.2"
#: Transfer syntax, DCMTK's encoder, its decoder.
WRITTEN = {
    "baseline": (f"{ROOT}.4.50", ["dcmcjpeg", "+eb"], "dcmdjpeg"),
    "extended": (f"{ROOT}.4.51", ["dcmcjpeg", "+ee"], "dcmdjpeg"),
    "spectral selection": (f"{ROOT}.4.53", ["dcmcjpeg", "+es"], "dcmdjpeg"),
    "progressive": (f"{ROOT}.4.55", ["dcmcjpeg", "+ep"], "dcmdjpeg"),
    "lossless, predictor 4": (f"{ROOT}.4.57", ["dcmcjpeg", "+el", "+sv", "4"], "dcmdjpeg"),
    "lossless, predictor 7": (f"{ROOT}.4.57", ["dcmcjpeg", "+el", "+sv", "7"], "dcmdjpeg"),
    "lossless, predictor 1": (f"{ROOT}.4.70", ["dcmcjpeg", "+e1"], "dcmdjpeg"),
    "JPEG-LS": (f"{ROOT}.4.80", ["dcmcjpls", "+el"], "dcmdjpls"),
    "JPEG-LS, near lossless": (f"{ROOT}.4.81", ["dcmcjpls", "+en", "+md", "2"], "dcmdjpls"),
    "RLE": (f"{ROOT}.5", ["dcmcrle"], "dcmdrle"),
}
#: Signed and unsigned, 8, 10, 12, 16 bits, grey, colour, palette, several frames.
FILES = [
    "CT_small.dcm", "MR_small.dcm", "emri_small.dcm", "examples_rgb_color.dcm", "RG1_UNCI.dcm",
    "examples_palette.dcm", "MR2_UNCR.dcm", "SC_rgb_small_odd.dcm",
]  # fmt: skip
#: What DCMTK does not write, or cannot read again.
NOT_BY_DCMTK = {
    ("JPEG-LS, near lossless", "CT_small.dcm"), ("JPEG-LS, near lossless", "MR_small.dcm"),
    ("JPEG-LS, near lossless", "examples_palette.dcm"), ("JPEG-LS, near lossless", "SC_rgb_small_odd.dcm"),
}  # fmt: skip


@pytest.mark.peer("dcmdjpeg")
@pytest.mark.parametrize("how", WRITTEN)
def test_what_dcmtk_writes_is_read_as_it_reads_it(how: str, tmp_path: Path) -> None:
    uid, encoder, decoder = WRITTEN[how]
    paths = {path.name: path for path in files_at_hand()}
    coded, plain = tmp_path / "coded.dcm", tmp_path / "plain.dcm"
    for name in FILES:
        if (how, name) in NOT_BY_DCMTK:
            continue
        subprocess.run([*encoder, str(paths[name]), str(coded)], check=True, capture_output=True)
        subprocess.run([decoder, str(coded), str(plain)], check=True, capture_output=True)
        dataset = pydicom.dcmread(coded)
        assert str(dataset.file_meta.TransferSyntaxUID) == uid
        pixels = pixel_format(dataset)
        frames = generate_frames(dataset.PixelData, number_of_frames=int(dataset.get("NumberOfFrames", 1)))
        ours = samples(CODERS[uid].decode(next(frames), pixels), decoded_format(uid, pixels))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs = pydicom.pixels.pixel_array(plain, index=0, raw=True)
        assert np.array_equal(ours, theirs.reshape(ours.shape)), name
