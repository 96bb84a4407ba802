"""Postings of merged tokens: sorted blocks of eight-byte values in a plain table.

::

    key     token (16) | the highest value that may stand in the block (8); ff… for a token's last block
    value   [in the last block: number of postings of the token (8)] value (8) …   ascending, big-endian

A value is the beginning of what ``token`` holds: ``inverted study day (4) | beginning of the study id (4)``.
Two studies of one day may share it (at 50 million studies some dozens do): who follows a value opens all of
them, who removes one sees to the others.

Blocks, because a common gram stands in many studies of a day: a batch of studies changes one block for
each token, not one posting for each study and token, and a list of a million is read at 5 ns a posting.
Two blocks fill a page. A block that overflows because new studies came in front leaves a full one behind.

One process at a time writes (:mod:`~hounsfield.archive.index.merging`); anyone reads.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from hounsfield.archive.index.tables import DAY_BYTES, GRAM, TOKEN_BYTES
from hounsfield.storage_backends.api import Batch, Snapshot

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray

    Values = NDArray[numpy.uint64]

VALUE_BYTES = 8
STUDY_ID_BYTES_HELD = VALUE_BYTES - DAY_BYTES
VALUE_MAX = (1 << 64) - 1
BLOCK_VALUES_MAX = 240  # two blocks in a page of 4 KiB; what is longer gets pages of its own
CHUNK_VALUES_FIRST = 512  # of the shortest list, read before the other lists are looked at
CHUNK_GROWTH = 4
CHUNK_VALUES_MAX = 1 << 18
LISTS_MAX = 8  # more say little that opening the rows that are left would not
#: A list so many times longer than the shortest costs more to read than opening the rows that it excludes.
LENGTH_RATIO_MAX = 1000

Term = tuple[bytes, ...]
"""Tokens of which a study has at least one."""

_LAST = b"\xff" * VALUE_BYTES


def value_of(position: bytes) -> int:
    """The value for a place in the order of studies: ``inverted day (4) | study id (12)``, or less of it."""
    return int.from_bytes(position[:VALUE_BYTES], "big")


# ---------------------------------------------------------------- reading


def count(snapshot: Snapshot, token: bytes) -> int:
    """How many values a token has."""
    held = snapshot.get(GRAM, token + _LAST)
    return 0 if held is None else int.from_bytes(held[:VALUE_BYTES], "big")


def intersect(snapshot: Snapshot, terms: Sequence[Term], low: int, high: int) -> Iterator[list[int]]:
    """Values from ``low`` to ``high`` that may satisfy every term, ascending, in growing portions.

    A value that is not in every term's lists may be given (long lists beside a short one are left out);
    none that is in all of them is missing.
    """
    counted = sorted((sum(count(snapshot, token) for token in term), term) for term in terms)
    shortest, lead = counted[0]
    if not shortest:
        return
    others = [term for length, term in counted[1:LISTS_MAX] if length <= LENGTH_RATIO_MAX * shortest]
    portion = CHUNK_VALUES_FIRST
    while low <= high:
        values, complete_to = _first_of(snapshot, lead, low, high, portion)
        for term in others:
            if not len(values):
                break
            values = _common(values, _union(snapshot, term, int(values[0]), int(values[-1])))
        if len(values):
            yield values.tolist()
        low = complete_to + 1
        portion = min(portion * CHUNK_GROWTH, CHUNK_VALUES_MAX)


def _first_of(snapshot: Snapshot, term: Term, low: int, high: int, portion: int) -> tuple[Values, int]:
    """About ``portion`` values of a term from ``low`` on, and up to where they are all."""
    pieces = []
    complete_to = high
    for token in term:
        values, reached = _read(snapshot, token, low, high, portion)
        pieces.append(values)
        complete_to = min(complete_to, reached)
    values = _joined(pieces)
    return values[: values.searchsorted(_scalar(complete_to), "right")], complete_to


def _union(snapshot: Snapshot, term: Term, low: int, high: int) -> Values:
    return _joined([_read(snapshot, token, low, high, None)[0] for token in term])


def _joined(pieces: list[Values]) -> Values:
    import numpy

    return pieces[0] if len(pieces) == 1 else numpy.unique(numpy.concatenate(pieces))


def _common(values: Values, others: Values) -> Values:
    if not len(others):
        return others
    at = others.searchsorted(values)
    at[at == len(others)] = 0
    found: Values = values[others[at] == values]
    return found


def _read(snapshot: Snapshot, token: bytes, low: int, high: int, portion: int | None) -> tuple[Values, int]:
    """Values of one token from ``low`` to ``high``, whole blocks until ``portion``, and up to where."""
    import numpy

    pieces: list[bytes] = []
    wanted = None if portion is None else portion * VALUE_BYTES
    reached = high
    after = token + (low - 1).to_bytes(VALUE_BYTES, "big") if low else None
    for key, block in snapshot.scan(GRAM, prefix=token, after=after):
        bound = key[TOKEN_BYTES:]
        pieces.append(block[VALUE_BYTES:] if bound == _LAST else block)
        last = int.from_bytes(bound, "big")
        if last >= high:
            break
        if wanted is not None:
            wanted -= len(block)
            if wanted <= 0:
                reached = last
                break
    values = numpy.frombuffer(b"".join(pieces), ">u8").astype(numpy.uint64)
    begin = values.searchsorted(_scalar(low))
    return values[begin : values.searchsorted(_scalar(high), "right")], reached


def _scalar(value: int) -> numpy.uint64:
    import numpy

    return numpy.uint64(value)


# ---------------------------------------------------------------- writing


def plan_change(snapshot: Snapshot, batch: Batch, token: bytes, adds: set[int], removes: set[int]) -> None:
    """Add to ``batch`` what makes ``token`` hold ``adds``, and none of ``removes`` that are not added.

    Nothing is added when it is so already.
    """
    wanted = sorted(adds | removes)
    last_key = token + _LAST
    held_last = snapshot.get(GRAM, last_key)
    total = before = 0 if held_last is None else int.from_bytes(held_last[:VALUE_BYTES], "big")
    last = () if held_last is None else _unpacked(held_last[VALUE_BYTES:])
    new_last: Sequence[int] = last
    i = 0
    while i < len(wanted):
        key, values = _block_for(snapshot, token, wanted[i], last_key, last)
        bound = int.from_bytes(key[TOKEN_BYTES:], "big")
        end = i
        while end < len(wanted) and wanted[end] <= bound:
            end += 1
        here = wanted[i:end]
        i = end
        new = sorted((set(values) - removes).union(value for value in here if value in adds))
        if len(new) == len(values) and tuple(new) == tuple(values):
            continue
        total += len(new) - len(values)
        pieces = _pieces(new, newest=len(values) > 0 and here[-1] < values[0])
        for piece in pieces[:-1]:
            batch.put(GRAM, token + piece[-1].to_bytes(VALUE_BYTES, "big"), _packed(piece))
        if key == last_key:
            new_last = pieces[-1]
        elif pieces[-1]:
            batch.put(GRAM, key, _packed(pieces[-1]))
        else:
            batch.delete(GRAM, key)
    if not total:
        if before:
            batch.delete(GRAM, last_key)
    elif total != before or new_last is not last:
        batch.put(GRAM, last_key, total.to_bytes(VALUE_BYTES, "big") + _packed(new_last))


def _block_for(
    snapshot: Snapshot, token: bytes, value: int, last_key: bytes, last: Sequence[int]
) -> tuple[bytes, Sequence[int]]:
    """The block in which ``value`` stands, or would."""
    after = token + (value - 1).to_bytes(VALUE_BYTES, "big") if value else None
    found = next(iter(snapshot.scan(GRAM, prefix=token, after=after, limit=1)), None)
    if found is None or found[0] == last_key:
        return last_key, last
    return found[0], _unpacked(found[1])


def _pieces(values: list[int], *, newest: bool) -> list[list[int]]:
    """A block's values in as many blocks as they need.

    ``newest``: they grow in front, where later studies will come too; what is behind is full for good.
    """
    if len(values) <= BLOCK_VALUES_MAX:
        return [values]
    if newest:
        size = BLOCK_VALUES_MAX
        first = len(values) % size or size
    else:
        count_ = -(-len(values) // BLOCK_VALUES_MAX)
        size = -(-len(values) // count_)
        first = len(values) - (count_ - 1) * size
    return [values[:first], *(values[at : at + size] for at in range(first, len(values), size))]


def _packed(values: Sequence[int]) -> bytes:
    return struct.pack(f">{len(values)}Q", *values)


def _unpacked(block: bytes) -> tuple[int, ...]:
    return struct.unpack(f">{len(block) // VALUE_BYTES}Q", block)
