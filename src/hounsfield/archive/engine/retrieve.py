"""A frame goes out: index get → location → one read → open the seal. Nothing else is read or decoded.

The ``nowait`` path answers from memory (the index's map and the page cache) on the event loop; only
when the disk must be waited for does the request take a thread.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from itertools import islice

from hounsfield.archive.dicom.cuts import FrameError, Layout, fragments_of, frame_bytes, undivided_frame
from hounsfield.archive.engine.errors import DamagedError, NotFoundError, NotSeparableError
from hounsfield.archive.engine.gate import Gate
from hounsfield.archive.engine.types import Frame, Header, Instance
from hounsfield.archive.index.catalog import Catalog
from hounsfield.archive.index.indexing import Indexer
from hounsfield.archive.index.rows import Attributes, InstanceRow
from hounsfield.codecs.frames import FrameShape
from hounsfield.storage_backends.api import Buffer, KeyValueStore
from hounsfield.storage_backends.errors import BlobNotFoundError, FormatError, SealError, ShortReadError
from hounsfield.storage_backends.segments import PartRef, SegmentLog

#: What reading a damaged or missing record raises.
UNREADABLE = (SealError, BlobNotFoundError, ShortReadError, FormatError)
PIECE_BYTES = 4 << 20  # of a data set on its way out: parts are read together up to this


@dataclass(slots=True)
class RetrieveFigures:
    frames: int = 0
    frames_cached: int = 0


class Retrieve:
    """Reads what is stored. Any number of callers at once."""

    def __init__(self, indexer: Indexer, gate: Gate) -> None:
        self._indexer = indexer
        self._catalog: Catalog = indexer.catalog
        self._store: KeyValueStore = indexer.store
        self._log: SegmentLog = indexer.log
        self._gate = gate
        self.figures = RetrieveFigures()

    # ------------------------------------------------------------ frames

    def frame_nowait(self, study_uid: str, series_uid: str, sop_uid: str, number: int) -> Frame | None:
        """Frame ``number`` (from 1) if no disk has to be waited for, else None; errors as :meth:`frame`."""
        row = self._instance_row(study_uid, series_uid, sop_uid)
        if not row.location.has_table:
            return None
        part = _frame_part(row, number)
        if part is None:
            return None
        try:
            data = self._log.try_open_part(part)
        except UNREADABLE as error:
            raise _damaged() from error
        if data is None:
            return None
        self.figures.frames += 1
        self.figures.frames_cached += 1
        return Frame(frame_bytes(data, Layout(row.layout)), row.transfer_syntax_uid)

    async def frame(self, study_uid: str, series_uid: str, sop_uid: str, number: int) -> Frame:
        """Frame ``number``, from 1, as stored.

        Raises ``NotFoundError``, ``NotSeparableError`` (the object's frames have no bytes of their own)
        or ``DamagedError``.
        """
        found = self.frame_nowait(study_uid, series_uid, sop_uid, number)
        if found is None:
            found = await self._gate.read(self._frame, study_uid, series_uid, sop_uid, number)
        return found

    def _frame(self, study_uid: str, series_uid: str, sop_uid: str, number: int) -> Frame:
        row = self._instance_row(study_uid, series_uid, sop_uid)
        layout = Layout(row.layout)
        try:
            part = _frame_part(row, number)
            if part is None:
                ref = self._indexer.ref_of(row.location)
                part = ref.part(1 + number if layout.has_frames else 2)
            data = self._log.open_part(part)
        except UNREADABLE as error:
            raise _damaged() from error
        self.figures.frames += 1
        if layout is Layout.UNDIVIDED_NATIVE:
            try:
                return Frame(
                    undivided_frame(data, layout, _shape(row.attributes), number), row.transfer_syntax_uid
                )
            except FrameError as error:
                raise NotSeparableError(str(error)) from error
        return Frame(frame_bytes(data, layout), row.transfer_syntax_uid)

    # ------------------------------------------------------------ instances

    async def instances(
        self, study_uid: str, series_uid: str | None = None, sop_uid: str | None = None
    ) -> list[Instance]:
        """The current instances of a study, a series, or the one named, by series and instance number.

        ``NotFoundError`` when there is none.
        """
        if series_uid is not None and sop_uid is not None:
            return [Instance(study_uid, series_uid, self._instance_row(study_uid, series_uid, sop_uid))]
        return await self._gate.read(self._instances, study_uid, series_uid)

    def _instances(self, study_uid: str, series_uid: str | None) -> list[Instance]:
        found: list[tuple[int, int, Instance]] = []
        with self._store.snapshot() as snapshot:
            for key, series in self._catalog.series_of(snapshot, self._catalog.study_id(study_uid)):
                if series_uid is not None and series.uid != series_uid:
                    continue
                series_number = _number(series.attributes.get(0x00200011, ""))
                for row in self._catalog.instances_of(snapshot, key):
                    number = _number(row.attributes.get(0x00200013, ""))
                    found.append((series_number, number, Instance(study_uid, series.uid, row)))
        if not found:
            raise NotFoundError("no such study or series in this archive")
        found.sort(key=lambda entry: (entry[0], entry[2].series_uid, entry[1], entry[2].row.sop_uid))
        return [instance for _, _, instance in found]

    def _instance_row(self, study_uid: str, series_uid: str, sop_uid: str) -> InstanceRow:
        with self._store.snapshot() as snapshot:
            row = self._catalog.instance(snapshot, study_uid, series_uid, sop_uid)
        if row is None:
            raise NotFoundError("no such instance in this archive")
        return row

    async def header(self, instance: Instance) -> Header:
        """The data set without its pixel data's value."""
        return await self._gate.read(self.header_blocking, instance)

    def header_blocking(self, instance: Instance) -> Header:
        """As :meth:`header`, on a thread of the caller's."""
        row = instance.row
        location = row.location
        try:
            ref = self._indexer.ref_of(location)
            head = self._log.open_part(ref.part(1))
            trailer: Buffer = (
                self._log.open_part(ref.part(len(ref.part_lengths) - 1)) if location.trailer_bytes else b""
            )
        except UNREADABLE as error:
            raise _damaged() from error
        return Header(head, trailer, row.transfer_syntax_uid)

    async def dataset(self, instance: Instance) -> AsyncIterator[Buffer]:
        """The data set's bytes as received, in pieces of a few megabytes (or of one large frame)."""
        parts = self._parts(instance)
        while True:
            piece = await self._gate.read(self._next_piece, parts)
            if not piece:
                return
            for buffer in piece:
                yield buffer

    def dataset_bytes(self, instance: Instance) -> int:
        """The data set's length in bytes, without reading it when the index knows."""
        return sum(self._indexer.ref_of(instance.row.location).part_lengths[1:])

    def _parts(self, instance: Instance) -> Iterator[PartRef]:
        ref = self._indexer.ref_of(instance.row.location)
        return (part for part in islice(ref.parts(), 1, None) if part.length)

    def _next_piece(self, parts: Iterator[PartRef]) -> list[Buffer]:
        piece: list[Buffer] = []
        size = 0
        try:
            for part in parts:
                data = self._log.open_part(part)
                piece.append(data)
                size += len(data)
                if size >= PIECE_BYTES:
                    break
        except UNREADABLE as error:
            raise _damaged() from error
        return piece

    async def bulk(self, instance: Instance) -> list[Buffer]:
        """The whole pixel data: of encapsulated data the fragments, else the frames."""
        return await self._gate.read(self._bulk, instance)

    def _bulk(self, instance: Instance) -> list[Buffer]:
        ref = self._indexer.ref_of(instance.row.location)
        layout = Layout(instance.row.layout)
        out: list[Buffer] = []
        try:
            for part in islice(ref.parts(), 2, len(ref.part_lengths) - 1):
                data = self._log.open_part(part)
                out.extend(
                    fragments_of(data)
                    if layout is Layout.UNDIVIDED_ENCAPSULATED
                    else [frame_bytes(data, layout)]
                )
        except UNREADABLE as error:
            raise _damaged() from error
        return out


def _frame_part(row: InstanceRow, number: int) -> PartRef | None:
    """Where frame ``number`` lies, None when it takes more than the index to say."""
    layout = Layout(row.layout)
    location = row.location
    if layout.has_frames:
        if not 1 <= number <= location.frames:
            raise NotFoundError(f"this instance has {location.frames} frames; there is no frame {number}")
        return location.frame_part(number) if location.has_table else None
    if layout is Layout.HEADER_ONLY:
        raise NotSeparableError(
            "this instance has no pixel data that can be read frame by frame; fetch it whole"
        )
    frames = max(1, _number(row.attributes.get(0x00280008, ""), 1))
    if not 1 <= number <= frames:
        raise NotFoundError(f"this instance has {frames} frames; there is no frame {number}")
    if layout is Layout.UNDIVIDED_NATIVE:
        return None
    if frames > 1:
        raise NotSeparableError(
            "the frames of this instance cannot be told apart without decoding; fetch it whole"
        )
    return location.frame_part(1) if location.has_table else None


def _shape(attributes: Attributes) -> FrameShape:
    return FrameShape(
        rows=_number(attributes.get(0x00280010, "")),
        columns=_number(attributes.get(0x00280011, "")),
        samples_per_pixel=_number(attributes.get(0x00280002, ""), 1),
        bits_allocated=_number(attributes.get(0x00280100, ""), 1),
        photometric=attributes.get(0x00280004, ""),
    )


def _number(text: str, default: int = 0) -> int:
    try:
        return int(text.split("\\", maxsplit=1)[0].strip() or default)
    except ValueError:
        return default


def _damaged() -> DamagedError:
    return DamagedError("the stored record does not open: it is damaged; restore it from a backup")
