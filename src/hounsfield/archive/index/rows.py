"""What the index holds, row by row. Arrays of MessagePack: compact, quick, and extended at the end only.

Attributes are text by tag (``{0x00100020: "..."}``), decoded once at ingest; values of one
attribute are joined by a backslash, as in the data set.
"""

from __future__ import annotations

import threading
from typing import Any, TypeVar

import msgspec

from hounsfield.archive.index.row_dictionary import compress, decompress
from hounsfield.storage_backends.segment_format import (
    PartRef,
    RecordRef,
    framing_length,
    sealed_length,
)

ROW_VERSION = 1
RECORD_KIND_OBJECT = 1
RECORD_KIND_FACT = 2
RECORD_KIND_FACT_FAILED = 3  # names the record of a fact whose commit failed
RECORD_KIND_PIECE = 4  # a stretch of a large object's data set; the record of its object comes after it
PIECE_ENTRY_BYTES = 24  # of a large object's piece table: record id (16), offset in the segment (8)
FRAMES_INLINE_MAX = 64  # longer tables of unequal frames stay in the record, where one read finds them

Attributes = dict[int, str]


class SourceRow(msgspec.Struct, array_like=True, frozen=True):
    """How an object came in. ``protocol`` is dimse, stow, import or plugin."""

    protocol: str = ""
    calling_ae: str = ""
    called_ae: str = ""
    address: str = ""


class StreamRow(msgspec.Struct, array_like=True, frozen=True):
    """Of an object that was stored while it came in: what its data set, a stream of pieces, looks like.

    ``[header][frame 1]…[frame N][trailer]`` as everywhere, at these offsets of the stream. Every piece but
    the last has ``piece_bytes``. ``frame_bytes`` is every frame's length when they are equal, else -1 and
    the record has a table; pixel data that is not divided is one frame.
    """

    data_bytes: int
    piece_bytes: int
    pixels_at: int
    trailer_at: int
    frames: int
    frame_bytes: int = -1

    @property
    def pieces(self) -> int:
        return -(-self.data_bytes // self.piece_bytes)

    @property
    def table_lengths(self) -> tuple[int, int]:
        """Bytes of the two tables: record id and offset of each piece; where frames begin, and the end."""
        ends = (self.frames + 1) * 8 if self.frame_bytes < 0 < self.frames else 0
        return self.pieces * PIECE_ENTRY_BYTES, ends


class CoercedRow(msgspec.Struct, array_like=True, frozen=True):
    """What coercions changed in an object when it came: text by tag, "" emptied, None removed; and which."""

    values: dict[int, str | None]
    names: tuple[str, ...] = ()


class ObjectRow(msgspec.Struct, array_like=True, frozen=True):
    """Part 0 of every object's record: all that reindexing needs, without opening anything else."""

    version: int
    study_uid: str
    series_uid: str
    sop_uid: str
    sop_class_uid: str
    transfer_syntax_uid: str
    study: Attributes
    series: Attributes
    instance: Attributes
    layout: int
    received_ns: int
    source: SourceRow
    problems: tuple[str, ...] = ()
    quarantine: str = ""
    stored_as: str = ""  # how the frames are encoded on disk, "" when as received
    stream: StreamRow | None = None  # of a large object, whose data set lies in pieces
    coerced: CoercedRow | None = None  # the attributes above are as coerced; the bytes are as received


class Location(msgspec.Struct, array_like=True, frozen=True):
    """Where an object's parts lie: ``[row][header][frame 1]…[frame N][trailer]`` in one record.

    With ``stream``, a large object's: ``[row][header][piece table][frame table]``, and the data set in
    pieces before the record, in a segment that holds nothing else. ``frame_bytes`` is every frame's length
    when they are equal; else ``frames_inline`` lists the
    lengths, or is empty when the record's own part table must be read.
    """

    segment: bytes
    record_id: bytes
    offset: int
    row_bytes: int
    header_bytes: int
    trailer_bytes: int
    frames: int
    frame_bytes: int = -1
    frames_inline: tuple[int, ...] = ()
    stream: StreamRow | None = None

    @classmethod
    def of(cls, ref: RecordRef, stream: StreamRow | None) -> Location:
        """The compact form of an object's record; ``stream`` is what its row says."""
        lengths = ref.part_lengths
        if stream is not None:
            if lengths[2:] != stream.table_lengths:
                raise ValueError("the tables of a large object are not as long as its row says")
            return cls(
                ref.segment, ref.record_id, ref.offset, lengths[0], lengths[1],
                stream.data_bytes - stream.trailer_at, stream.frames, stream.frame_bytes, (), stream,
            )  # fmt: skip
        frames = lengths[2:-1]
        uniform = frames[0] if frames and len(set(frames)) == 1 else -1
        inline = () if uniform >= 0 or len(frames) > FRAMES_INLINE_MAX else frames
        return cls(
            ref.segment, ref.record_id, ref.offset, lengths[0], lengths[1], lengths[-1], len(frames),
            uniform, inline,
        )  # fmt: skip

    @property
    def has_table(self) -> bool:
        """Whether the part lengths are known without reading the record."""
        return self.stream is not None or self.frame_bytes >= 0 or len(self.frames_inline) == self.frames

    def ref(self) -> RecordRef:
        """The record with all its part lengths; only when :attr:`has_table`."""
        if self.stream is not None:
            lengths = (self.row_bytes, self.header_bytes, *self.stream.table_lengths)
            return RecordRef(self.segment, self.record_id, self.offset, lengths, RECORD_KIND_OBJECT)
        frames = (self.frame_bytes,) * self.frames if self.frame_bytes >= 0 else self.frames_inline
        return RecordRef(
            self.segment, self.record_id, self.offset,
            (self.row_bytes, self.header_bytes, *frames, self.trailer_bytes), RECORD_KIND_OBJECT,
        )  # fmt: skip

    def header_part(self) -> PartRef:
        """The data set before its pixels; no table is needed for it. Not of a large object."""
        if self.stream is not None:
            raise ValueError("the header of a large object is not all in its record")
        part_count = self.frames + 3
        return PartRef(
            segment=self.segment,
            record_id=self.record_id,
            part=1,
            part_count=part_count,
            offset=self.offset + framing_length(part_count) + sealed_length(self.row_bytes),
            length=self.header_bytes,
            kind=RECORD_KIND_OBJECT,
        )

    def frame_part(self, number: int) -> PartRef:
        """Frame ``number``, from 1; only when :attr:`has_table`. Any frame of equal ones at the same cost.

        Not of a large object, whose frames are stretches of a stream.
        """
        if self.stream is not None:
            raise ValueError("the frames of a large object are not parts of its record")
        if self.frame_bytes < 0:
            return self.ref().part(1 + number)
        part_count = self.frames + 3
        before = sealed_length(self.row_bytes) + sealed_length(self.header_bytes)
        before += (number - 1) * sealed_length(self.frame_bytes)
        return PartRef(
            segment=self.segment,
            record_id=self.record_id,
            part=1 + number,
            part_count=part_count,
            offset=self.offset + framing_length(part_count) + before,
            length=self.frame_bytes,
            kind=RECORD_KIND_OBJECT,
        )


class InstanceRow(msgspec.Struct, array_like=True, frozen=True):
    """One SOP instance: where its bytes are and what QIDO says of it."""

    sop_uid: str
    sop_class_uid: str
    transfer_syntax_uid: str
    location: Location
    layout: int
    attributes: Attributes
    received_ns: int
    flags: tuple[str, ...] = ()
    stored_as: str = ""  # how the frames are encoded on disk, "" when as received
    received: tuple[str, str] | None = None  # study and series UID as received, None when they are those here
    coerced: CoercedRow | None = None


class SeriesRow(msgspec.Struct, array_like=True, frozen=True):
    uid: str
    attributes: Attributes
    instances: int
    sop_classes: tuple[str, ...]
    transfer_syntaxes: tuple[str, ...]
    changed_ns: int
    flags: tuple[str, ...] = ()


class ReceivedRow(msgspec.Struct, array_like=True, frozen=True):
    """Objects of one study that were received as one study and came here in one way, and what they brought.

    ``path``: the numbers of the corrections that moved them, in order; none when they were received here.
    Without attributes: all of them are further versions of other objects, which speak for the study.
    """

    study_uid: str
    path: tuple[int, ...]
    attributes: Attributes


class StudyRow(msgspec.Struct, array_like=True, frozen=True):
    """One study, as corrected. ``received``: what it is made of, none when nothing was corrected."""

    uid: str
    attributes: Attributes
    series: int
    instances: int
    modalities: tuple[str, ...]
    sop_classes: tuple[str, ...]
    patient_key: bytes
    tokenizer: int
    received_ns: int
    changed_ns: int
    flags: tuple[str, ...] = ()
    received: tuple[ReceivedRow, ...] = ()
    corrections: tuple[int, ...] = ()  # the numbers of those that had a part in it


class PatientRow(msgspec.Struct, array_like=True, frozen=True):
    attributes: Attributes
    studies: int
    changed_ns: int


class QuarantineRow(msgspec.Struct, array_like=True, frozen=True):
    """An object that cannot be indexed (it lacks a usable UID), kept with the reason."""

    reason: str
    location: Location
    sop_class_uid: str
    transfer_syntax_uid: str
    received_ns: int
    source: SourceRow
    problems: tuple[str, ...] = ()


class SegmentRow(msgspec.Struct, array_like=True, frozen=True):
    """How far a segment is in the index: records that begin at or past ``indexed_to`` may not be."""

    indexed_to: int
    closed: bool = False


class SpareRow(msgspec.Struct, array_like=True, frozen=True):
    """A further record of an object that is stored already: two were received at once, or a crash left both.

    It is deleted with the record of which it is a copy, or a reindex would bring the object back.
    """

    length: int


class UseRow(msgspec.Struct, array_like=True, frozen=True):
    """What of a segment nothing needs any more, and since when.

    ``damaged``: records and stretches for which compaction left it in its place. ``emptied``: no row needs
    anything of it; it is to be removed, with its key.
    """

    dead_bytes: int = 0
    dead_records: int = 0
    since_ns: int = 0
    changed_ns: int = 0
    damaged: int = 0
    emptied: bool = False


class CorrectionRow(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One correction; see :mod:`hounsfield.archive.index.corrections`, which says what each kind means."""

    number: int
    kind: str
    at_ns: int
    actor: str
    reason: str
    patient: tuple[str, str] = ("", "")
    study: str = ""
    series: dict[str, str] = {}
    instances: tuple[str, ...] = ()
    to_patient: tuple[str, str] = ("", "")
    to_study: str = ""
    values: Attributes = {}
    reverted_ns: int = 0
    reverted_by: str = ""
    reverted_because: str = ""
    # Of a rejection: objects by study and series, as received; why (a code of CID 7011); by which note (its
    # SOP Instance UID and its record); and, unless 0, that only what was received before then is meant. Of a
    # rejection that names many studies, each study's row has that study's part.
    rejected: dict[str, dict[str, tuple[str, ...]]] = {}
    code: str = ""
    note: str = ""
    note_record: str = ""
    before_ns: int = 0
    note_digest: str = ""  # of the note's bytes
    reverted_number: int = 0  # of the fact that took it back; an earlier release did not say it


class CorrectionsRow(msgspec.Struct, array_like=True, frozen=True):
    """The corrections in force for one patient or study, in the order of their numbers."""

    corrections: tuple[CorrectionRow, ...]


class Event(msgspec.Struct, array_like=True, frozen=True):
    """An entry of the journal. A ``fact`` carries what no object can reproduce: the ledger has it too.

    ``follows``: in the ledger, the record of the fact before; it tells a committed fact from one of the same
    number whose process died before its commit.
    """

    kind: str
    at_ns: int
    body: dict[str, Any]
    fact: bool = False
    follows: bytes = b""


Row = TypeVar("Row", bound=msgspec.Struct)

_encoder = msgspec.msgpack.Encoder()


class _Decoders(dict[type[msgspec.Struct], "msgspec.msgpack.Decoder[Any]"]):
    """A decoder for each kind of row, made when it is first asked for."""

    def __init__(self) -> None:
        super().__init__()
        self._making = threading.Lock()

    def __missing__(self, kind: type[msgspec.Struct]) -> msgspec.msgpack.Decoder[Any]:
        # One at a time: two threads that resolve the same annotations crash the process (msgspec 0.22).
        with self._making:
            decoder = self.get(kind)
            if decoder is None:
                decoder = self[kind] = msgspec.msgpack.Decoder(kind)
        return decoder


_decoders = _Decoders()


def encode(row: msgspec.Struct) -> bytes:
    data = _encoder.encode(row)
    return compress(data) if type(row) is InstanceRow else data


def decode(kind: type[Row], data: bytes | memoryview) -> Row:
    """The row; ``msgspec.DecodeError`` (a ``ValueError``) when the bytes are not one."""
    try:
        row: Row = _decoders[kind].decode(decompress(data) if kind is InstanceRow else data)
    except UnicodeDecodeError as error:
        raise msgspec.DecodeError("a row holds text that is not UTF-8") from error
    return row
