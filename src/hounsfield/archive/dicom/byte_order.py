"""Words in the other byte order (PS3.5 7.3)."""

from __future__ import annotations

from array import array
from typing import Final

Buffer = bytes | bytearray | memoryview

#: Bytes of the words that a VR's values consist of; of others the byte order does not matter.
WORD_BYTES: Final = {
    "AT": 2, "US": 2, "SS": 2, "OW": 2, "UL": 4, "SL": 4, "FL": 4, "OF": 4, "OL": 4, "FD": 8, "OD": 8,
    "OV": 8, "SV": 8, "UV": 8,
}  # fmt: skip
#: Bytes of a word to the type code of :class:`array.array`.
_WORDS: Final = {array(code).itemsize: code for code in "HIQ"}


def swapped(data: Buffer, size: int) -> Buffer:
    """Words of 2, 4 or 8 bytes with their bytes in the other order; a rest that is no word stays."""
    if size not in _WORDS:
        return data
    whole = len(data) - len(data) % size
    words = array(_WORDS[size], memoryview(data)[:whole].tobytes())
    words.byteswap()
    return words.tobytes() + bytes(data[whole:])
