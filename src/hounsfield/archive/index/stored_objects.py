"""What was stored of an object, read again as it was received; and whether two are the same.

An object may lie as it came, with frames that are compressed at rest, or in pieces: nobody who compares or
copies it needs to know. Everything here reads the log, and no index.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Protocol

from hounsfield.archive.index.contents import open_pieces, same_stretches
from hounsfield.archive.index.rows import InstanceRow, Location, ObjectRow
from hounsfield.archive.index.use import stored_bytes
from hounsfield.codecs import at_rest
from hounsfield.codecs.errors import CodecError
from hounsfield.codecs.pixels import same_bytes
from hounsfield.storage_backends.api import Buffer
from hounsfield.storage_backends.errors import BlobNotFoundError, KeyringError, SealError, StorageError
from hounsfield.storage_backends.object_store import ForeignTierError, StoreAwayError, StoreRefusedError
from hounsfield.storage_backends.segment_format import PartRef, RecordRef
from hounsfield.storage_backends.segment_scan import ScannedRecord
from hounsfield.storage_backends.segments import SegmentLog

#: What reading raises when the segment that a row names was removed since the row was read.
VANISHED = (BlobNotFoundError, KeyringError)

#: What reading raises of a record that lies in a tier which does not give it now.
OUT_OF_REACH = (StoreAwayError, StoreRefusedError, ForeignTierError)


class IsStored(Protocol):
    """What of a stored object says where its bytes are, and how to read them."""

    @property
    def transfer_syntax_uid(self) -> str: ...
    @property
    def stored_as(self) -> str: ...
    @property
    def location(self) -> Location: ...


class StoredObjects:
    """Those in one log. Blocking; any number of threads at once."""

    def __init__(self, log: SegmentLog) -> None:
        self._log = log

    def holds(
        self, held: InstanceRow, row: ObjectRow, lengths: Sequence[int], pieces: Iterable[Buffer]
    ) -> bool:
        """Whether a stored record is, byte for byte, in one syntax and stored alike, the one in ``pieces``.

        ``lengths`` are theirs: header, frames…, trailer. Pieces are only taken when all lengths agree.
        """
        if held.transfer_syntax_uid != row.transfer_syntax_uid or held.stored_as != row.stored_as:
            return False
        if held.location.stream is not None:
            return held.location.stream.data_bytes == sum(lengths) and same_stretches(
                self.data_set(held.location), pieces
            )
        ref = self.ref_of(held.location)
        if ref.part_lengths[1:] != tuple(lengths):
            return False
        parts = islice(ref.parts(), 1, None)
        opened = (self._log.open_part(part) for part in parts)
        return all(same_bytes(one, other) for one, other in zip(opened, pieces, strict=True))

    def data_set_bytes(self, location: Location, stored_as: str = "") -> int:
        """The length of an object's data set as received."""
        if location.stream is not None:
            return location.stream.data_bytes
        return sum(lengths_as_received(self.ref_of(location), stored_as))

    def data_set(self, location: Location, stored_as: str = "") -> Iterator[Buffer]:
        """An object's data set as received, stretch by stretch."""
        if location.stream is not None:
            return open_pieces(self._log, location).stretches()
        parts = islice(self.ref_of(location).parts(), 1, None)
        return (as_received(stored_as, part, self._log.open_part(part)) for part in parts)

    def stored_bytes(self, location: Location) -> int:
        """Stored bytes of an object, with its framing and pieces; what the index knows when it is damaged."""
        length = stored_bytes(location)
        if length is None:
            try:
                length = self.ref_of(location).length
            except (StorageError, ValueError):
                length = location.row_bytes + location.header_bytes + location.trailer_bytes
        return length

    def ref_of(self, location: Location) -> RecordRef:
        """The record with its whole part table, which is read from the record when the row lacks it."""
        if location.has_table:
            return location.ref()
        record = next(self._log.scan(location.segment, start=location.offset), None)
        if not isinstance(record, ScannedRecord) or record.ref.record_id != location.record_id:
            raise SealError("the record that the index points at is damaged")
        return record.ref

    def are_alike(self, one: IsStored, other: IsStored) -> bool:
        """Whether two records hold the same bytes as received, however each is stored.

        Raises as reading them does.
        """
        if one.transfer_syntax_uid != other.transfer_syntax_uid:
            return False
        if one.location.stream is not None or other.location.stream is not None:
            return self._same_data_set(one, other)
        mine, its = self.ref_of(one.location), self.ref_of(other.location)
        if lengths_as_received(mine, one.stored_as) != lengths_as_received(its, other.stored_as):
            return False
        pairs = zip(islice(mine.parts(), 1, None), islice(its.parts(), 1, None), strict=True)
        try:
            return all(
                same_bytes(
                    as_received(one.stored_as, part, self._log.open_part(part)),
                    as_received(other.stored_as, match, self._log.open_part(match)),
                )
                for part, match in pairs
            )
        except CodecError:
            return False  # not known to be: both are kept

    def _same_data_set(self, one: IsStored, other: IsStored) -> bool:
        """As :meth:`are_alike`, when one of the two lies in pieces: stretch by stretch."""
        if self.data_set_bytes(one.location, one.stored_as) != self.data_set_bytes(
            other.location, other.stored_as
        ):
            return False
        try:
            return same_stretches(
                self.data_set(one.location, one.stored_as), self.data_set(other.location, other.stored_as)
            )
        except CodecError:
            return False


def as_received(stored_as: str, part: PartRef, data: memoryview) -> memoryview:
    """A part's bytes as they were received: frames that are stored otherwise are decoded.

    ``CodecError`` when they cannot be.
    """
    if stored_as and 1 < part.part < part.part_count - 1:
        return at_rest.decoded(data)
    return data


def lengths_as_received(ref: RecordRef, stored_as: str) -> tuple[int, ...]:
    """The lengths of header, frames… and trailer as they were received."""
    header, *frames, trailer = ref.part_lengths[1:]
    if stored_as:
        frames = [at_rest.frame_bytes_of(stored_as)] * len(frames)
    return header, *frames, trailer
