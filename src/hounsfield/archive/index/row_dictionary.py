"""Instance rows are compressed with a dictionary that every release carries: 470 bytes become 140.

Millions of instance rows say nearly the same, in the same order: SOP class, transfer syntax, rows and
columns, the forms of dates, times and UIDs. A row alone is too short for a compressor to learn that from;
the dictionary knows it beforehand. It was trained on synthetic studies and on the test files that come
with pydicom (``python -m benchmarks.row_dictionary``), so it names nobody.

    compressed row   C1 (no MessagePack value begins with it) │ dictionary version (1) │ Zstandard frame,
                     without magic number, content size, checksum and dictionary id

A dictionary is part of the format: version 1 opens for ever, a better one is version 2 beside it. A row
that does not shrink stays as it is.
"""

from __future__ import annotations

import threading
from importlib.resources import files

import msgspec
import zstandard

MARK = 0xC1
VERSION = 1
LEVEL = 6  # 10 µs a row; higher levels save two bytes more, level 5 takes 4 µs and 4 bytes more
ROW_BYTES_MAX = 16 << 20  # as much as the segment log takes for a row
ROW_BYTES_USUAL = 4096  # room for nearly every row; the most that one may have costs 20 µs only to be mapped


class RowDictionaryError(msgspec.DecodeError):
    """A row that this release cannot have written."""


class _Coders(threading.local):
    """Each thread's compressor and decompressor: they are not made for several."""

    def __init__(self) -> None:
        dictionary = zstandard.ZstdCompressionDict(
            files(__package__).joinpath(f"instance_rows.{VERSION}.zdict").read_bytes()
        )
        parameters = zstandard.ZstdCompressionParameters.from_level(
            LEVEL,
            format=zstandard.FORMAT_ZSTD1_MAGICLESS,
            write_content_size=0,
            write_checksum=0,
            write_dict_id=0,
        )
        self.compressor = zstandard.ZstdCompressor(dict_data=dictionary, compression_params=parameters)
        self.decompressor = zstandard.ZstdDecompressor(
            dict_data=dictionary, format=zstandard.FORMAT_ZSTD1_MAGICLESS
        )


_coders = _Coders()
_PREFIX = bytes((MARK, VERSION))


def compress(row: bytes) -> bytes:
    """The row's shorter form, or the row itself."""
    short = _PREFIX + _coders.compressor.compress(row)
    return short if len(short) < len(row) else row


def decompress(data: bytes | memoryview) -> bytes | memoryview:
    """What :func:`compress` was given. Raises ``RowDictionaryError``."""
    if not len(data) or data[0] != MARK:
        return data
    if len(data) < len(_PREFIX) or data[1] != VERSION:
        raise RowDictionaryError("an instance row is compressed with the dictionary of a later release")
    try:
        return _coders.decompressor.decompress(data[2:], max_output_size=ROW_BYTES_USUAL)
    except zstandard.ZstdError:
        pass  # longer than usual, or damaged
    try:
        return _coders.decompressor.decompress(data[2:], max_output_size=ROW_BYTES_MAX)
    except zstandard.ZstdError as error:
        raise RowDictionaryError("an instance row does not decompress; run `hounsfield reindex`") from error
