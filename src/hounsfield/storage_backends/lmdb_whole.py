"""Whether an LMDB data file is as long as its trees are: one that was cut off would end the process.

LMDB reads through a memory map, and a page beyond the end of the file is not an error there but a signal,
SIGBUS, that kills whoever looks. So the length is compared with what the newest meta page says before the
file is mapped. A file may rightly be a little shorter: pages that a transaction took and gave back are never
written, and stand in the list of free pages; that list is read, with plain reads, only then.

Layout of LMDB's data format 1 (0.9), 64 bits, little-endian: see :mod:`.lmdb_checkpoints`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from struct import Struct

from hounsfield.storage_backends.errors import StorageError

__all__ = ["CutOffError", "require_whole"]

_MAGIC, _VERSION = 0xBEEFC0DE, 1
# Page header; magic, version; address and map size; page size; flags, depth, counts; root of the free list;
# the other tree; last page, transaction.
_META = Struct("<16x II 16x I 36x Q 48x QQ")
_PAGE = Struct(
    "<QHHHH"
)  # number, padding, flags, end of the node pointers (or count of pages), start of nodes
_NODE = Struct("<HHHH")  # low and high of the length or page number, flags, length of the key
_NUMBER = Struct("<Q")
_IS_BRANCH, _IS_LEAF = 0x01, 0x02
_DATA_ELSEWHERE = 0x01
_NO_PAGE = (1 << 64) - 1
_HEAD_BYTES = 16
_PAGE_BYTES = range(512, 1 << 16)
_DEPTH_MAX = 32  # of any tree: deeper is damage
_WHAT_TO_DO = "`hounsfield reindex` makes an index anew, `hounsfield restore` takes a backup's"


class CutOffError(StorageError):
    """The data file ends before its own pages do: it was truncated, or not copied whole."""


def require_whole(data: Path) -> None:
    """Raise ``CutOffError`` when pages of the newest transaction lie beyond the file's end.

    Nobody may write meanwhile. What is no data file of LMDB's at all is left for LMDB to refuse.
    """
    descriptor = os.open(data, os.O_RDONLY | os.O_CLOEXEC)
    try:
        size = os.fstat(descriptor).st_size
        newest = _newest(descriptor)
        if newest is None:
            if size:
                return
            raise CutOffError(f"{data} is empty; {_WHAT_TO_DO}")
        page_bytes, free_root, last_page = newest
        first = size // page_bytes  # that is not all there
        missing = last_page + 1 - first
        if missing > 0 and missing > sum(
            number >= first for number in _free(descriptor, page_bytes, free_root)
        ):
            raise CutOffError(
                f"{data} is cut off, {size} bytes of {(last_page + 1) * page_bytes}; {_WHAT_TO_DO}"
            )
    finally:
        os.close(descriptor)


def _newest(descriptor: int) -> tuple[int, int, int] | None:
    """Page size, root of the free list and last page, of the newest transaction; None: no such file."""
    first = os.pread(descriptor, _META.size, 0)
    if len(first) < _META.size:
        return None
    page_bytes = _META.unpack(first)[2]
    if page_bytes not in _PAGE_BYTES:
        return None
    found = []
    for meta in (first, os.pread(descriptor, _META.size, page_bytes)):
        if len(meta) < _META.size:
            continue
        magic, version, _, root, last_page, transaction = _META.unpack(meta)
        if (magic, version) == (_MAGIC, _VERSION):
            found.append((transaction, root, last_page))
    if not found:
        return None
    _, root, last_page = max(found)
    return page_bytes, root, last_page


def _free(descriptor: int, page_bytes: int, root: int, depth: int = 0) -> Iterator[int]:
    """The page numbers in the list of free pages, as far as it can be read."""
    if root == _NO_PAGE or depth > _DEPTH_MAX:
        return
    page = os.pread(descriptor, page_bytes, root * page_bytes)
    if len(page) < page_bytes:
        return
    _, _, flags, lower, _ = _PAGE.unpack_from(page)
    if not flags & (_IS_BRANCH | _IS_LEAF) or not _HEAD_BYTES <= lower <= page_bytes:
        return
    for at in range(_HEAD_BYTES, lower, 2):
        node = int.from_bytes(page[at : at + 2], "little")
        if node + _NODE.size > page_bytes:
            return
        low, high, node_flags, key_bytes = _NODE.unpack_from(page, node)
        if flags & _IS_BRANCH:
            yield from _free(descriptor, page_bytes, low | high << 16 | node_flags << 32, depth + 1)
            continue
        length, start = low | high << 16, node + _NODE.size + key_bytes
        held = page[start : start + length]
        if node_flags & _DATA_ELSEWHERE:
            elsewhere = int.from_bytes(page[start : start + _NUMBER.size], "little")
            held = os.pread(descriptor, length, elsewhere * page_bytes + _HEAD_BYTES)
        numbers = [number for (number,) in _NUMBER.iter_unpack(held[: len(held) // 8 * 8])]
        yield from numbers[1 : numbers[0] + 1] if numbers else ()
