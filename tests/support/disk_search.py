"""Looking for secrets on disk as somebody would who has the disk: raw, decompressed, in many encodings."""

from __future__ import annotations

import base64
import bz2
import contextlib
import lzma
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import zstandard

ENCODINGS = (
    "utf-8", "latin-1", "utf-16-le", "utf-16-be", "utf-32-le", "shift_jis", "iso2022_jp_2", "euc_kr",
    "gb18030", "iso8859_5", "iso8859_7", "cp037",
)  # fmt: skip
#: Shorter ones stand in random bytes by chance: in 100 MB, six given bytes once in three million searches.
#: Zeros do not count: a letter, a digit and zeros between them are two small integers of any file.
BYTES_MIN = 6
INFLATED_MAX = 8 << 20
PROBE_BYTES = 1 << 12
_INFLATE: tuple[tuple[bytes, Callable[[bytes], bytes]], ...] = (
    (b"\x28\xb5\x2f\xfd", lambda data: zstandard.ZstdDecompressor().decompressobj().decompress(data)),
    (b"\x1f\x8b\x08", lambda data: zlib.decompressobj(31).decompress(data, INFLATED_MAX)),
    *((head, lambda data: zlib.decompressobj().decompress(data, INFLATED_MAX))
      for head in (b"\x78\x01", b"\x78\x5e", b"\x78\x9c", b"\x78\xda")),
    (b"BZh", lambda data: bz2.BZ2Decompressor().decompress(data, INFLATED_MAX)),
    (b"\xfd7zXZ\0", lambda data: lzma.LZMADecompressor().decompress(data, INFLATED_MAX)),
)  # fmt: skip


def written(text: str) -> set[bytes]:
    """Every way in which a text may be written down: encoded, backwards, in hexadecimal and base 64."""
    found = set()
    for encoding in ENCODINGS:
        with contextlib.suppress(UnicodeEncodeError):
            raw = text.encode(encoding)
            found |= {raw, raw[::-1], raw.hex().encode(), raw.hex().upper().encode()}
            for before in range(3):  # base 64 looks different at each place of a longer text
                packed = base64.b64encode(b"\0" * before + raw)
                found.add(packed[-(-before * 4 // 3) : len(packed) - 4])
            found.add(base64.b64encode(raw).rstrip(b"="))
    return {form for form in found if len(form) - form.count(0) >= BYTES_MIN}


class Finder:
    """Finds any of many secrets in many megabytes."""

    def __init__(self, secrets: Iterable[bytes]) -> None:
        self._by_beginning: dict[bytes, list[bytes]] = defaultdict(list)
        for secret in secrets:
            assert len(secret) >= BYTES_MIN
            self._by_beginning[secret[:3]].append(secret)
        self._begins = np.zeros(1 << 24, bool)
        for beginning in self._by_beginning:
            self._begins[int.from_bytes(beginning, "little")] = True

    def found(self, data: bytes) -> list[bytes]:
        """Secrets that stand in ``data``."""
        if len(data) < BYTES_MIN:
            return []
        raw = np.frombuffer(data, np.uint8).astype(np.uint32)
        places = np.flatnonzero(self._begins[raw[:-2] | raw[1:-1] << 8 | raw[2:] << 16])
        return [
            secret
            for at in places.tolist()
            for secret in self._by_beginning[data[at : at + 3]]
            if data.startswith(secret, at)
        ]

    def found_in(self, path: Path) -> list[bytes]:
        """Secrets in a file's bytes, and in what its compressed streams inflate to."""
        data = without_holes(path)
        return [secret for reading in readings(data) for secret in self.found(reading)]


def readings(data: bytes) -> Iterator[bytes]:
    """The bytes, and what every compressed stream in them inflates to, and those in these."""
    yield data
    for magic, inflate in _INFLATE:
        at = data.find(magic)
        while at >= 0:
            with contextlib.suppress(zlib.error, zstandard.ZstdError, OSError, EOFError, lzma.LZMAError):
                if len(magic) < 4:  # stands in random bytes all the time: most are no stream at all
                    inflate(data[at : at + PROBE_BYTES])
                inflated = inflate(data[at : at + INFLATED_MAX])
                if len(inflated) >= BYTES_MIN:
                    yield inflated
                    if len(inflated) < len(data):
                        yield from readings(inflated)
            at = data.find(magic, at + 1)


def without_holes(path: Path) -> bytes:
    """A file without its blocks of zeros: the index is a huge, mostly empty one."""
    out = bytearray()
    with path.open("rb") as file:
        while block := file.read(1 << 16):
            if block.count(0) != len(block):
                out += block
    return bytes(out)
