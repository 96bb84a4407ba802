"""Reading goes on while compaction moves records: what vanished under a reader is read at its new place.

A row says where a record is; between looking it up and reading, the segment may have been rewritten and
removed. The record kept its id, and the row was switched before the segment went: so the row is looked up
again, and the same record is read there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Concatenate, ParamSpec, TypeVar

from hounsfield.archive.engine.buffers import BufferPool
from hounsfield.archive.engine.errors import DamagedError
from hounsfield.archive.engine.records import Records
from hounsfield.archive.engine.types import Frame, Header
from hounsfield.archive.index.rows import InstanceRow, SourceRow
from hounsfield.archive.index.tables import INSTANCE
from hounsfield.storage_backends.api import Buffer

MOVES_MAX = 8  # of one record during one read; it is one, or the disk is what fails

Result = TypeVar("Result")
Arguments = ParamSpec("Arguments")


class UndisturbedRecords(Records):
    """As :class:`Records`, of objects that may be moved meanwhile. Any number of threads at once."""

    def frame_nowait(self, row: InstanceRow, number: int, pool: BufferPool | None = None) -> Frame | None:
        """As of :class:`Records`; what moved just now is not to be had at once."""
        try:
            return super().frame_nowait(row, number, pool)
        except DamagedError:
            return None  # `frame` looks again, where it may take its time

    def frame(self, row: InstanceRow, number: int) -> Frame:
        return self._wherever(super().frame, row, number)

    def header_nowait(self, row: InstanceRow) -> Header | None:
        try:
            return super().header_nowait(row)
        except DamagedError:
            return None  # as of a frame

    def header(self, row: InstanceRow) -> Header:
        return self._wherever(super().header, row)

    def ends(self, row: InstanceRow) -> tuple[Header, int, int]:
        return self._wherever(super().ends, row)

    def source(self, row: InstanceRow) -> SourceRow:
        return self._wherever(super().source, row)

    def data_set_bytes(self, row: InstanceRow) -> int:
        return self._wherever(super().data_set_bytes, row)

    def data_set_into(self, row: InstanceRow, into: memoryview, *, wait: bool) -> bool:
        """As of :class:`Records`; what moved just now is not to be had so, but by :meth:`pieces`."""
        try:
            return super().data_set_into(row, into, wait=wait)
        except DamagedError:
            return False

    def bulk(self, row: InstanceRow) -> list[Buffer]:
        return self._wherever(super().bulk, row)

    def pixel_places(self, row: InstanceRow) -> list[tuple[int, int]] | None:
        return self._wherever(super().pixel_places, row)

    def pieces(self, row: InstanceRow, start: int = 0, stop: int | None = None) -> Iterator[list[Buffer]]:
        """As of :class:`Records`; a long download that was in the middle goes on where it was."""
        for _ in range(MOVES_MAX):
            try:
                for piece in super().pieces(row, start, stop):
                    yield piece
                    start += sum(map(len, piece))
            except DamagedError:
                moved = self._moved(row)
                if moved is None:
                    raise
                row = moved
            else:
                return
        raise DamagedError("the record was moved again and again while it was read; try again")

    def _wherever(
        self,
        read: Callable[Concatenate[InstanceRow, Arguments], Result],
        row: InstanceRow,
        *arguments: Arguments.args,
        **named: Arguments.kwargs,
    ) -> Result:
        for _ in range(MOVES_MAX):
            try:
                return read(row, *arguments, **named)
            except DamagedError:
                moved = self._moved(row)
                if moved is None:
                    raise
                row = moved
        raise DamagedError("the record was moved again and again while it was read; try again")

    def _moved(self, row: InstanceRow) -> InstanceRow | None:
        """The row of the same record at another place; None when it is nowhere else."""
        catalog = self._indexer.catalog
        record_id = row.location.record_id
        with self._indexer.store.snapshot() as snapshot:
            for series_key in catalog.places(snapshot, "instance", row.sop_uid):
                key = series_key + catalog.sop_hash(row.sop_uid)
                held = snapshot.get(INSTANCE, key)
                if held is None:
                    continue
                served = catalog.open_row(INSTANCE, key, held, InstanceRow)
                for one in (served, *catalog.versions(snapshot, key)):
                    if one.location.record_id == record_id and one.location != row.location:
                        return one
        return None
