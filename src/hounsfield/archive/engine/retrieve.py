"""A frame goes out: index get → location → one read → open the seal. Nothing else is read or decoded.

The ``nowait`` path answers from memory (the index's map and the page cache) on the event loop; only
when the disk must be waited for does the request take a thread. How an object's bytes lie is
:mod:`~hounsfield.archive.engine.records`' concern, who is who is this module's.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from itertools import islice
from typing import Final

from hounsfield.archive.dicom.rewrite import RewriteError
from hounsfield.archive.engine.buffers import BufferPool
from hounsfield.archive.engine.delivery import Corrected, Ends, Overlays, spliced
from hounsfield.archive.engine.errors import DamagedError, NotFoundError
from hounsfield.archive.engine.gate import Gate
from hounsfield.archive.engine.records import Records, number_of
from hounsfield.archive.engine.types import Frame, Header, Instance, Overlay, Unlooked
from hounsfield.archive.index.catalog import Catalog
from hounsfield.archive.index.indexing import Indexer
from hounsfield.archive.index.packs import SERIES_KEY_BYTES
from hounsfield.archive.index.rows import InstanceRow
from hounsfield.archive.index.tables import INSTANCE
from hounsfield.storage_backends.api import Buffer, KeyValueStore, Snapshot

SHARED_BYTES: Final = 1 << 20
"""Of data sets on their way out one after the other, opened into the same memory: what was opened is still in
the processor's cache when it is sent."""
SENT_BYTES: Final = 512 << 10
"""Short ones leave together from here on: a system call for each would cost more than they do."""
BROUGHT_MAX: Final = 16
"""Data sets of which the disk is told once one was not in memory: eight megabytes of CT slices."""
ROWS_MAX: Final = 1024
"""Instance rows that one worker keeps open, some 3 MB: a series that is walked to and fro, or one object's
thousand frames, is decrypted and decoded once. The sealed row is what tells whether one is still right."""


class Retrieve:
    """Finds and reads what is stored. Any number of callers at once."""

    def __init__(self, indexer: Indexer, records: Records, gate: Gate, pool: BufferPool) -> None:
        self._catalog: Catalog = indexer.catalog
        self._store: KeyValueStore = indexer.store
        self._records = records
        self._gate = gate
        self._pool = pool
        self._corrected = Corrected(records)
        self._rows: dict[bytes, tuple[bytes, InstanceRow]] = {}
        self.opened: Callable[[bytes], None] = lambda series_key: None  # noqa: ARG005
        """Told the key of each series of which something is looked up to be read."""

    # ------------------------------------------------------------ frames

    def named(self, study_uid: str, series_uid: str, sop_uid: str) -> Instance:
        """The instance of that name; what corrections change in it is not looked up. ``NotFoundError``."""
        with self._store.snapshot() as snapshot:
            row = self._row(snapshot, study_uid, series_uid, sop_uid)
        return Instance(study_uid, series_uid, row)

    def frame_nowait(self, instance: Instance, number: int) -> Frame | None:
        """Frame ``number`` (from 1) if no disk has to be waited for, else None; errors as :meth:`frame`.

        Whoever is done with its data says so (:meth:`frame_sent`), or lets go of it.
        """
        return self._records.frame_nowait(instance.row, number, self._pool)

    def frame_sent(self, frame: Frame) -> None:
        """The frame's data will not be looked at again: the next frame may take its memory."""
        if frame.block is not None:
            self._pool.give_back(frame.block)

    async def read_ahead(self, frames: Sequence[tuple[InstanceRow, int]]) -> int:
        """Tell the disk of those of these frames that are not in memory; of how many."""
        parts = self._records.frames_to_bring(frames)
        if parts:
            await self._gate.read(self._records.bring, parts)
        return len(parts)

    async def frame(self, study_uid: str, series_uid: str, sop_uid: str, number: int) -> Frame:
        """Frame ``number``, from 1, as received.

        Raises ``NotFoundError``, ``NotSeparableError`` (the object's frames have no bytes of their own)
        or ``DamagedError``.
        """
        row = self.named(study_uid, series_uid, sop_uid).row
        found = self._records.frame_nowait(row, number)
        if found is None:
            found = await self._gate.read(self._records.frame, row, number)
        return found

    # ------------------------------------------------------------ instances

    async def instances(
        self, study_uid: str, series_uid: str | None = None, sop_uid: str | None = None
    ) -> list[Instance]:
        """The current instances of a study, a series, or the one named, by series and instance number.

        ``NotFoundError`` when there is none.
        """
        if series_uid is not None and sop_uid is not None:
            with self._store.snapshot() as snapshot:
                row = self._row(snapshot, study_uid, series_uid, sop_uid)
                overlays = Overlays.of(self._catalog, snapshot, study_uid)
                return [Instance(study_uid, series_uid, row, overlays.overlay(series_uid, row))]
        return await self._gate.read(self.instances_blocking, study_uid, series_uid)

    def instances_blocking(self, study_uid: str, series_uid: str | None = None) -> list[Instance]:
        """As :meth:`instances`, on a thread of the caller's."""
        found: list[tuple[int, int, Instance]] = []
        with self._store.snapshot() as snapshot:
            overlays = Overlays.of(self._catalog, snapshot, study_uid)
            for key, series in self._catalog.series_of(snapshot, self._catalog.study_id(study_uid)):
                if series_uid is not None and series.uid != series_uid:
                    continue
                self.opened(key)
                series_number = number_of(series.attributes.get(0x00200011, ""))
                for row in self._catalog.instances_of(snapshot, key):
                    number = number_of(row.attributes.get(0x00200013, ""))
                    one = Instance(study_uid, series.uid, row, overlays.overlay(series.uid, row))
                    found.append((series_number, number, one))
        if not found:
            raise NotFoundError("no such study or series in this archive")
        found.sort(key=lambda entry: (entry[0], entry[2].series_uid, entry[1], entry[2].row.sop_uid))
        return [instance for _, _, instance in found]

    def _row(self, snapshot: Snapshot, study_uid: str, series_uid: str, sop_uid: str) -> InstanceRow:
        """The row as the snapshot has it, opened once as long as it is the same. Event loop only."""
        key = self._catalog.instance_key(study_uid, series_uid, sop_uid)
        sealed = snapshot.get(INSTANCE, key)
        if sealed is None:
            raise NotFoundError("no such instance in this archive")
        self.opened(key[:SERIES_KEY_BYTES])
        held = self._rows.get(key)
        if held is not None and held[0] == sealed:
            return held[1]
        row = self._catalog.open_row(INSTANCE, key, sealed, InstanceRow)
        if held is None and len(self._rows) >= ROWS_MAX:
            del self._rows[next(iter(self._rows))]
        self._rows[key] = sealed, row
        return row

    def _overlay(self, instance: Instance) -> Overlay | None:
        if not isinstance(instance.overlay, Unlooked):
            return instance.overlay
        with self._store.snapshot() as snapshot:
            overlays = Overlays.of(self._catalog, snapshot, instance.study_uid)
            return overlays.overlay(instance.series_uid, instance.row)

    def is_corrected(self, instance: Instance) -> bool:
        """Whether the header is delivered otherwise than it was received: its length takes a read then."""
        return self._overlay(instance) is not None

    async def header(self, instance: Instance, *, as_received: bool = False) -> Header:
        """The data set without its pixel data's value, as it is delivered: with its corrections."""
        if as_received:
            return await self._gate.read(self._records.header, instance.row)
        return await self._gate.read(self.header_blocking, instance)

    def header_blocking(self, instance: Instance) -> Header:
        """As :meth:`header`, on a thread of the caller's."""
        overlay = self._overlay(instance)
        if overlay is None:
            return self._records.header(instance.row)
        with _refused():
            return self._corrected.header(instance.row, overlay)

    def header_nowait(self, instance: Instance) -> Header | None:
        """As :meth:`header` of what is not corrected and can be had at once, else None."""
        return None if self._overlay(instance) is not None else self._records.header_nowait(instance.row)

    async def dataset(
        self, instance: Instance, *, as_received: bool = False, start: int = 0, stop: int | None = None
    ) -> AsyncIterator[Buffer]:
        """The data set's bytes as it is delivered, in pieces of a few megabytes (or of one large frame).

        ``start`` and ``stop``, of an object that is not corrected or as received: which bytes.
        """
        pieces: Iterator[list[Buffer]] | None = None
        if not as_received and self.is_corrected(instance):
            if start or stop is not None:
                raise ValueError("of a corrected object no stretch is read; cut what it gives")
            pieces = await self._gate.read(self._pieces, instance)
        if pieces is None:
            pieces = self._records.pieces(instance.row, start, stop)
        while True:
            piece = await self._gate.read(_next, pieces, instance)
            if piece is None:
                return
            for buffer in piece:
                yield buffer

    async def received(
        self, instance: Instance, places: Sequence[tuple[int, int]], start: int, stop: int
    ) -> AsyncIterator[Buffer]:
        """Bytes ``start`` to ``stop`` of these places of the data set as received, put behind each other."""
        at = 0
        for begin, end in places:
            first, last = begin + max(start - at, 0), min(begin + stop - at, end)
            at += end - begin
            if first >= last:
                continue
            pieces = self.dataset(instance, as_received=True, start=first, stop=last)
            async with aclosing(pieces) as buffers:  # type: ignore[type-var]
                async for buffer in buffers:
                    yield buffer

    async def datasets(
        self, instances: Sequence[Instance], before: Callable[[Instance], bytes]
    ) -> AsyncIterator[list[Buffer]]:
        """The data sets of many as they are delivered, in lists of buffers, each behind what ``before`` says.

        The buffers of a list may be used again as soon as the next one is asked for. What is in memory is
        opened on the event loop. Where the disk must be waited for, a thread reads, calls ``before``, and
        the disk is told of those that follow.
        """
        block = self._pool.take(SHARED_BYTES)
        view = memoryview(block)[:SHARED_BYTES]
        n = brought = 0
        try:
            while n < len(instances):
                piece, n = self._opened(instances, n, before, view, wait=False)
                if not piece:
                    if n >= brought:
                        brought = n + BROUGHT_MAX
                        await self.bring(instances[n:brought])
                    piece, n = await self._gate.read(self._opened, instances, n, before, view)
                if piece:
                    yield piece
                    continue
                pieces = self._behind(before, instances[n])
                while (read := await self._gate.read(_next, pieces, instances[n])) is not None:
                    yield read
                n += 1
        finally:
            view.release()
            self._pool.give_back(block)

    def _opened(
        self,
        instances: Sequence[Instance],
        n: int,
        before: Callable[[Instance], bytes],
        view: memoryview,
        wait: bool = True,
    ) -> tuple[list[Buffer], int]:
        """Data sets from the ``n``-th on, opened into ``view`` one behind the other; the number of the next.

        None of them when the first is corrected, too long, or not to be had so.
        """
        piece: list[Buffer] = []
        used = 0
        for one in islice(instances, n, None):
            length = self.whole_bytes(one)
            if length is None or used + length > len(view):
                break
            into = view[used : used + length]
            if not self.whole_into(one, into, wait=wait):
                break
            piece += (before(one), into)
            used += length
            n += 1
            if used >= SENT_BYTES and not wait:
                break
        return piece, n

    def whole_bytes(self, instance: Instance) -> int | None:
        """The data set's length where :meth:`whole_into` gives it; None: it takes :meth:`dataset`."""
        return None if self.is_corrected(instance) else self._records.plain_bytes(instance.row)

    def whole_into(self, instance: Instance, into: memoryview, *, wait: bool) -> bool:
        """Fill ``into``, of :meth:`whole_bytes`, with the data set; see :meth:`Records.data_set_into`."""
        return self._records.data_set_into(instance.row, into, wait=wait)

    async def bring(self, instances: Sequence[Instance]) -> None:
        """Tell the disk of data sets that will be asked for soon."""
        await self._gate.read(self._records.bring_all, [one.row for one in instances])

    def _behind(self, before: Callable[[Instance], bytes], one: Instance) -> Iterator[list[Buffer]]:
        first: list[Buffer] = [before(one)]
        for piece in self._pieces(one):
            yield first + piece
            first = []
        if first:
            yield first

    def _pieces(self, instance: Instance) -> Iterator[list[Buffer]]:
        overlay = self._overlay(instance)
        pieces = self._records.pieces(instance.row)
        return pieces if overlay is None else spliced(pieces, self._ends(instance, overlay))

    def _ends(self, instance: Instance, overlay: Overlay) -> Ends:
        with _refused():
            return self._corrected.ends(instance.row, overlay)

    async def dataset_bytes(self, instance: Instance, *, as_received: bool = False) -> int:
        """The length in bytes of what :meth:`dataset` gives, without reading when the index knows."""
        if as_received or not self.is_corrected(instance):
            if instance.row.location.has_table:
                return self._records.data_set_bytes(instance.row)
            return await self._gate.read(self._records.data_set_bytes, instance.row)
        return await self._gate.read(self.dataset_bytes_blocking, instance)

    def dataset_bytes_blocking(self, instance: Instance) -> int:
        """As :meth:`dataset_bytes`, on a thread, or anywhere: the index knows and nothing is corrected."""
        overlay = self._overlay(instance)
        if overlay is None:
            return self._records.data_set_bytes(instance.row)
        header, head_bytes, trailer_at = self._ends(instance, overlay)
        return len(header.head) + (trailer_at - head_bytes) + len(header.trailer)

    async def pixel_places(self, instance: Instance) -> list[tuple[int, int]] | None:
        """Where in the data set as received the values of its pixel data are; None: frames are.

        See :meth:`Records.pixel_places`.
        """
        return await self._gate.read(self._records.pixel_places, instance.row)

    def ends_blocking(self, instance: Instance) -> Header:
        """All bytes before the pixels and behind them, with corrections; see :meth:`Records.ends`."""
        overlay = self._overlay(instance)
        if overlay is None:
            return self._records.ends(instance.row)[0]
        return self._ends(instance, overlay).header

    async def bulk(self, instance: Instance) -> list[Buffer]:
        """The whole pixel data: of encapsulated data the fragments, else the frames."""
        return await self._gate.read(self._records.bulk, instance.row)


def _next(pieces: Iterator[list[Buffer]], of: Instance) -> list[Buffer] | None:  # noqa: ARG001  for the gate
    return next(pieces, None)


@contextmanager
def _refused() -> Iterator[None]:
    try:
        yield
    except RewriteError as error:
        raise DamagedError(f"{error}; it can be had as it was received") from error
