"""A second reader of JPEG XL: jxl-oxide, written in Rust from ISO 18181 and not from libjxl's code."""

from __future__ import annotations

import struct
import subprocess
from collections.abc import Sequence
from pathlib import Path

import imagecodecs
import numpy as np

from viewers.npm_packages import JXL_OXIDE

_PROGRAM = Path(__file__).with_suffix(".mjs")
_TIMEOUT_S = 60.0


def decoded_by_jxl_oxide(frames: Sequence[tuple[bytes, int]]) -> list[np.ndarray]:
    """Codestreams with their bits a sample, as arrays (rows, columns, samples) of sample values."""
    asked = b"".join(struct.pack("<I", len(frame)) + frame for frame, _ in frames)
    command = ["node", str(_PROGRAM), str(JXL_OXIDE.directory)]
    done = subprocess.run(command, input=asked, capture_output=True, timeout=_TIMEOUT_S)
    assert done.returncode == 0, done.stderr.decode()[-500:]
    answers, at = [], 0
    for _, bits in frames:
        (length,) = struct.unpack_from("<I", done.stdout, at)
        picture = imagecodecs.png_decode(done.stdout[at + 4 : at + 4 + length])
        at += 4 + length
        # A PNG's samples reach from black to white in 8 or 16 bits: every value of fewer bits has its own.
        scale = ((1 << bits) - 1) / np.iinfo(picture.dtype).max
        answers.append(np.rint(picture.reshape(*picture.shape[:2], -1) * scale).astype(np.uint16))
    assert at == len(done.stdout)
    return answers
