"""Fuzz target: whatever a compressed frame holds, it costs that frame at most.

Standalone: ``python tests/engine/fuzz_decoders.py --seconds 60`` (or ``--cases N``, ``--seed N``). Every
compressed transfer syntax that is decoded here takes its turn: a sound frame, of a real file or made by an
encoder, is damaged, and decoded or transcoded by the pool of decoding processes. Each case must end in the
right number of pixels or in ``DecodingError``; afterwards sound frames are decoded as before, by no more
processes than are allowed, none of which ever had more memory than it may have.

A failure prints the seed of its case; ``--case SEED`` runs that one again.
"""

from __future__ import annotations

import argparse
import io
import random
import sys
import time
import zlib
from collections import Counter
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

if __name__ == "__main__":  # pytest has them on its path
    sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

import imagecodecs
import numpy as np
from PIL import Image

from hounsfield.archive.engine.isolation import DecodingError, Isolation, IsolationLimits
from hounsfield.codecs.coders import CODERS
from hounsfield.codecs.pixels import PixelFormat, decoded_format, from_native
from support.frames import UNDECODABLE, made_frame, real_frames

ROOT = "1.2.840.10008.1.2"
HTJ2K = f"{ROOT}.4.201"
COMPRESSED = [uid for uid, coder in CODERS.items() if coder.isolated and coder.decoders]
GREY = PixelFormat(33, 40, 1, 16, 12, photometric="MONOCHROME2")
GREY_8 = PixelFormat(33, 40, 1, 8, 8, photometric="MONOCHROME2")
COLOUR = PixelFormat(24, 31, 3, 8, 8, photometric="RGB")
REAL_FRAME_BYTES_MAX = 60_000
HEADER_BYTES = 200  # where a codestream says what it is: every second byte is changed there
SOUND_EVERY = 25  # cases
#: A frame may take a second of CPU time, on a machine that may have other things to do.
LIMITS = IsolationLimits(cpu_s_max=1, wall_s_max=60.0)


@dataclass(frozen=True)
class Sample:
    """A sound frame."""

    uid: str
    frame: bytes
    pixels: PixelFormat


@dataclass
class Figures:
    """What became of the cases, by transfer syntax."""

    decoded: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)


@cache
def samples_of(uid: str) -> tuple[Sample, ...]:
    """Real frames where there are some, and made ones, grey and in colour."""
    found = [
        Sample(uid, frame.data, frame.pixels)
        for frame in real_frames()
        if frame.transfer_syntax_uid == uid
        and frame.path.name != UNDECODABLE
        and len(frame.data) <= REAL_FRAME_BYTES_MAX
    ][:2]
    for seed, pixels in enumerate((GREY, GREY_8, COLOUR)):
        array = from_native(made_frame(pixels, seed), pixels)
        frame = _encoded(uid, array, pixels)
        if frame:
            found.append(Sample(uid, frame, pixels))
    return tuple(found)


def _encoded(uid: str, array: np.ndarray, pixels: PixelFormat) -> bytes | None:
    picture = array if pixels.samples == 3 else array[:, :, 0]
    wide = pixels.bits_allocated > 8
    if CODERS[uid].encoders:
        return None if uid == f"{ROOT}.4.50" and wide else CODERS[uid].encode(array, pixels)
    suffix = uid.removeprefix(ROOT)
    if suffix in {".4.53", ".4.55"}:
        if wide:
            return None
        out = io.BytesIO()
        Image.fromarray(picture).save(out, "JPEG", progressive=True, quality=90)
        return out.getvalue()
    twelve_bits = picture & 0x0FFF if wide else picture
    made = {
        ".4.51": lambda: imagecodecs.jpeg8_encode(twelve_bits, bitspersample=12 if wide else 8, level=90),
        ".4.57": lambda: imagecodecs.jpeg8_encode(
            twelve_bits, lossless=True, predictor=4, bitspersample=12 if wide else 8
        ),
        ".4.81": lambda: imagecodecs.jpegls_encode(picture, level=2),
        ".4.111": lambda: None if wide else imagecodecs.jpegxl_encode_jpeg(imagecodecs.jpeg8_encode(picture)),
        ".8.1": lambda: _deflated(array.tobytes()),
    }
    frame: bytes | None = made[suffix]()
    return frame


def _deflated(plain: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(plain) + packer.flush()


def damaged(frame: bytes, generator: random.Random) -> bytes:
    """Some bytes other than they were, or fewer, or more of them."""
    broken = bytearray(frame)
    for _ in range(generator.choice((1, 1, 2, 4, 16, 64))):
        end = min(len(broken), HEADER_BYTES) if generator.random() < 0.5 else len(broken)
        at = generator.randrange(end)
        kind = generator.randrange(4)
        if kind == 0:
            broken[at] ^= 1 << generator.randrange(8)
        elif kind == 1:
            broken[at] = generator.choice((0, 1, 0x7F, 0x80, 0xFE, 0xFF))
        else:
            broken[at] = generator.randrange(256)
    last = generator.random()
    if last < 0.15:
        del broken[generator.randrange(1, len(broken)) :]
    elif last < 0.25:
        start, at = generator.randrange(len(broken)), generator.randrange(len(broken))
        broken[at:at] = broken[start : start + generator.randrange(1, 64)]
    elif last < 0.3:
        broken += bytes(generator.randrange(1, 64))
    return bytes(broken)


def one(isolation: Isolation, seed: int, figures: Figures) -> None:
    """One case. Seeds that follow each other take the transfer syntaxes in turn."""
    generator = random.Random(seed)
    uid = COMPRESSED[seed % len(COMPRESSED)]
    sample = generator.choice(samples_of(uid))
    frame, pixels = damaged(sample.frame, generator), sample.pixels
    if generator.random() < 0.1:
        pixels = replace(pixels, rows=max(1, pixels.rows + generator.choice((-1, 1, 1000))))
    try:
        if generator.random() < 0.25 and uid != HTJ2K:
            assert isolation.transcode(uid, HTJ2K, frame, pixels)
        else:
            decoded = isolation.decode(uid, frame, pixels)
            assert len(decoded) == decoded_format(uid, pixels).frame_bytes
        figures.decoded[uid] += 1
    except DecodingError:
        figures.refused[uid] += 1
    for process in isolation.processes:
        assert _peak_bytes(process.pid) <= isolation.limits.memory_bytes_max


def _peak_bytes(pid: int) -> int:
    """The most address space that a process ever had; 0 of one that has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    said = [line.split()[1] for line in status.splitlines() if line.startswith("VmPeak")]
    return int(said[0]) * 1024 if said else 0


class Sound:
    """Sound frames, and what they were decoded to before anything else was."""

    def __init__(self, isolation: Isolation) -> None:
        self._isolation = isolation
        self._samples = [samples_of(uid)[-1] for uid in COMPRESSED]
        self._before = [self._decoded(sample) for sample in self._samples]

    def check(self, number: int) -> None:
        at = number % len(self._samples)
        assert self._decoded(self._samples[at]) == self._before[at], self._samples[at].uid

    def _decoded(self, sample: Sample) -> bytearray:
        return self._isolation.decode(sample.uid, sample.frame, sample.pixels)


def run(seeds: range, seconds_max: float) -> tuple[Figures, Isolation]:
    """Cases until they or the time are at an end; what became of them, and the pool, closed."""
    figures = Figures()
    isolation = Isolation(LIMITS)
    end = time.monotonic() + seconds_max
    try:
        sound = Sound(isolation)
        for number, seed in enumerate(seeds):
            if time.monotonic() > end:
                break
            try:
                one(isolation, seed, figures)
                assert len(isolation.processes) <= 1  # one at a time was asked for
                if number % SOUND_EVERY == 0:
                    sound.check(number // SOUND_EVERY)
            except BaseException:
                sys.stderr.write(f"seed {seed}\n")
                raise
        for number in range(len(COMPRESSED)):
            sound.check(number)
    finally:
        isolation.close()
    return figures, isolation


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--cases", type=int, default=sys.maxsize)
    parser.add_argument("--seed", type=int, default=0, help="of the first case")
    parser.add_argument("--case", type=int, help="run one case alone")
    asked = parser.parse_args()
    first, count = (asked.seed, asked.cases) if asked.case is None else (asked.case, 1)
    seeds = range(first, first + count)
    figures, isolation = run(seeds, asked.seconds)
    for uid in COMPRESSED:
        print(f"{uid:26} {figures.decoded[uid]:7} decoded {figures.refused[uid]:7} refused")  # noqa: T201
    print(f"processes: {isolation.started} started, {isolation.failed} ended by a frame")  # noqa: T201


if __name__ == "__main__":
    main()
