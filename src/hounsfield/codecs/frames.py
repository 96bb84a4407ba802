"""Frame layout arithmetic: how many bytes one native frame has, and how to lift one out of packed bits."""

from __future__ import annotations

from dataclasses import dataclass

#: PS3.3 C.7.6.3.1.2: two pixels share one pair of chrominance samples, so three samples take the room of two.
_HALF_CHROMA = frozenset({"YBR_FULL_422", "YBR_PARTIAL_422"})
_QUARTER_CHROMA = frozenset({"YBR_PARTIAL_420"})


@dataclass(frozen=True, slots=True)
class FrameShape:
    """What the image pixel attributes say about one native frame (PS3.3 C.7.6.3)."""

    rows: int
    columns: int
    samples_per_pixel: int
    bits_allocated: int
    photometric: str = ""

    @property
    def bits(self) -> int:
        """Bits of one native frame, chrominance subsampling counted.

        Frames follow each other without padding.
        """
        full = self.full_bits
        if self.samples_per_pixel == 3:
            if self.photometric in _HALF_CHROMA:
                return full // 3 * 2
            if self.photometric in _QUARTER_CHROMA:
                return full // 2
        return full

    @property
    def full_bits(self) -> int:
        """Bits of one native frame if every pixel had all its samples.

        Which some writers do whatever they claim.
        """
        return self.rows * self.columns * self.samples_per_pixel * self.bits_allocated

    @property
    def byte_aligned(self) -> bool:
        """Every frame begins and ends on a byte (always so unless pixel cells are single bits.

        PS3.5 8.1.1).
        """
        return self.bits % 8 == 0


def extract_bits(pixels: bytes | memoryview, number: int, frame_bits: int) -> bytes:
    """Frame ``number`` (from 1) of frames packed bit after bit, first pixel in the lowest bit (PS3.5 8.2).

    The answer starts on a byte; unused high bits of its last byte are zero. IndexError when there is no such
    frame.
    """
    start = (number - 1) * frame_bits
    end = start + frame_bits
    if number < 1 or frame_bits < 1 or end > len(pixels) * 8:
        raise IndexError(f"no frame {number} in {len(pixels)} bytes of {frame_bits}-bit frames")
    first, shift = divmod(start, 8)
    chunk = pixels[first : -(-end // 8)]
    if shift == 0 and frame_bits % 8 == 0:
        return bytes(chunk)
    value = (int.from_bytes(chunk, "little") >> shift) & ((1 << frame_bits) - 1)
    return value.to_bytes(-(-frame_bits // 8), "little")


class JoinedBits:
    """Frames of ``frame_bits`` packed bits, put behind each other without alignment (PS3.5 8.1.1).

    The inverse of :func:`extract_bits`. ``skipped``: frames before the first one given; what comes begins
    with the byte in which that one begins then, the bits of the frame before zero.
    """

    def __init__(self, frame_bits: int, skipped: int = 0) -> None:
        self._frame_bits = frame_bits
        self._held, self._held_bits = 0, skipped * frame_bits % 8

    def add(self, frame: bytes | bytearray | memoryview) -> bytes | bytearray | memoryview:
        """The next frame, from the start of its first byte: as many bytes as are complete now."""
        if self._held_bits == 0 and self._frame_bits % 8 == 0:
            return frame
        self._held |= int.from_bytes(frame, "little") << self._held_bits
        whole, left = divmod(self._held_bits + self._frame_bits, 8)
        data = self._held.to_bytes(whole + 1, "little")
        self._held, self._held_bits = data[-1], left
        return data[:-1]

    def rest(self) -> bytes:
        """The last byte, if it is not full: its unused high bits are zero."""
        return bytes([self._held]) if self._held_bits else b""
