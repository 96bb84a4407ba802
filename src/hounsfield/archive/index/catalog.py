"""The catalog: patient → study → series → instance, as sealed rows below keyed hashes.

Writing is planned, not performed: :meth:`Catalog.plan_study` reads one snapshot and returns the
batch that adds a group of objects to one study. The batch requires the study's row to be as it was
read, so whoever commits second reads again and plans again; nothing is ever half-visible.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from msgspec import structs

from hounsfield.archive.dicom.attributes import SERIES_INSTANCE_UID
from hounsfield.archive.index import corrections, tokens
from hounsfield.archive.index.corrections import CORRECTIONS, View
from hounsfield.archive.index.corrections_in_force import NONE, InForce, Opened
from hounsfield.archive.index.draft import StudyDraft
from hounsfield.archive.index.patients import Patients
from hounsfield.archive.index.rows import (
    Attributes,
    CorrectionRow,
    CorrectionsRow,
    InstanceRow,
    Location,
    ObjectRow,
    PatientRow,
    QuarantineRow,
    Row,
    SeriesRow,
    StudyRow,
    decode,
    encode,
)
from hounsfield.archive.index.sealed import KeyedHash, RowSealer
from hounsfield.archive.index.tables import (
    CORRECTION,
    INSTANCE,
    META,
    PLACE,
    PLACE_KEY_BYTES,
    QUARANTINE,
    SERIES,
    SERIES_HASH_BYTES,
    SOP_HASH_BYTES,
    STUDY,
    STUDY_ID_BYTES,
    VERSION,
)
from hounsfield.archive.index.versions import conflicting, received_again, served_of
from hounsfield.storage_backends.api import Batch, Snapshot, Table

PATIENT_ID = 0x00100020
ISSUER_OF_PATIENT_ID = 0x00100021
#: Everything that the catalog hashes, each field with a key of its own.
HASHED_FIELDS = (
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "SOPInstanceUID",
    "place-family",
    "place-run",
    "place-series",
    "place-instance",
    "patient",
    "patient-of-study",
    "record",
    *tokens.HASHED_FIELDS,
)

_FAMILY_BYTES = 2  # of a UID without its last component: what one device, or one series, gives out
_RUN_BYTES = 2  # of a UID without its last digits: a hundred in a row
_RUN_DIGITS = 2

CatalogRow = PatientRow | StudyRow | SeriesRow | InstanceRow | QuarantineRow | CorrectionsRow


@dataclass(frozen=True, slots=True)
class Stored:
    """An object whose record is durable and that the index does not know yet.

    ``unlike``: records that are known to hold other bytes, so that nobody compares gigabytes again.
    """

    row: ObjectRow
    location: Location
    unlike: frozenset[bytes] = frozenset()


class Place(NamedTuple):
    """Where an instance is filed: the UIDs under which it is found."""

    study_uid: str
    series_uid: str
    sop_uid: str


class Catalog:
    """Rows by identifier, and the plans that change them."""

    def __init__(self, sealer: RowSealer, hashes: KeyedHash) -> None:
        self._sealer = sealer
        self.hashes = hashes
        self._seen = threading.local()
        self._opened = Opened()

    # ------------------------------------------------------------ keys

    def study_id(self, study_uid: str) -> bytes:
        return self.hashes.digest("StudyInstanceUID", study_uid, STUDY_ID_BYTES)

    def series_key(self, study_uid: str, series_uid: str) -> bytes:
        return self.study_id(study_uid) + self.hashes.digest(
            "SeriesInstanceUID", series_uid, SERIES_HASH_BYTES
        )

    def instance_key(self, study_uid: str, series_uid: str, sop_uid: str) -> bytes:
        return self.series_key(study_uid, series_uid) + self.sop_hash(sop_uid)

    def sop_hash(self, sop_uid: str) -> bytes:
        return self.hashes.digest("SOPInstanceUID", sop_uid, SOP_HASH_BYTES)

    def place_key(self, level: str, uid: str) -> bytes:
        """The key under which a UID is found without its study's.

        UIDs of one family, and in it those of one run, stand side by side: those that a device gives
        one after the other meet on a few pages, not each on a page of its own somewhere in gigabytes.
        """
        digest = self.hashes.digest
        return (
            digest("place-family", uid.rpartition(".")[0], _FAMILY_BYTES)
            + digest("place-run", uid[:-_RUN_DIGITS], _RUN_BYTES)
            + digest(f"place-{level}", uid, PLACE_KEY_BYTES - _FAMILY_BYTES - _RUN_BYTES)
        )

    def patient_key(self, attributes: Attributes, study_uid: str) -> bytes:
        """A patient is (id, issuer); without an id, each study is a patient of its own (RAD-TF is silent)."""
        patient_id = attributes.get(PATIENT_ID, "")
        if not patient_id:
            return self.hashes.digest("patient-of-study", study_uid, STUDY_ID_BYTES)
        issuer = attributes.get(ISSUER_OF_PATIENT_ID, "")
        return self.hashes.digest("patient", f"{issuer}\\{patient_id}", STUDY_ID_BYTES)

    # ------------------------------------------------------------ reading

    def open_row(self, table: Table, key: bytes, sealed: bytes, kind: type[Row]) -> Row:
        return decode(kind, self._sealer.open(table, key, sealed))

    def _row(self, snapshot: Snapshot, table: Table, key: bytes, kind: type[Row]) -> Row | None:
        sealed = snapshot.get(table, key)
        return None if sealed is None else self.open_row(table, key, sealed, kind)

    def study(self, snapshot: Snapshot, study_uid: str) -> StudyRow | None:
        return self._row(snapshot, STUDY, self.study_id(study_uid), StudyRow)

    def study_by_id(self, snapshot: Snapshot, study_id: bytes) -> StudyRow | None:
        return self._row(snapshot, STUDY, study_id, StudyRow)

    def series_by_key(self, snapshot: Snapshot, key: bytes) -> SeriesRow | None:
        return self._row(snapshot, SERIES, key, SeriesRow)

    def series_of(self, snapshot: Snapshot, study_id: bytes) -> Iterator[tuple[bytes, SeriesRow]]:
        """Every series of a study, with its key."""
        for key, sealed in snapshot.scan(SERIES, prefix=study_id):
            yield key, self.open_row(SERIES, key, sealed, SeriesRow)

    def instance(
        self, snapshot: Snapshot, study_uid: str, series_uid: str, sop_uid: str
    ) -> InstanceRow | None:
        return self._row(snapshot, INSTANCE, self.instance_key(study_uid, series_uid, sop_uid), InstanceRow)

    def instances_of(self, snapshot: Snapshot, series_key: bytes) -> Iterator[InstanceRow]:
        """Every current instance of a series, in no meaningful order."""
        for key, sealed in snapshot.scan(INSTANCE, prefix=series_key):
            yield self.open_row(INSTANCE, key, sealed, InstanceRow)

    def versions(self, snapshot: Snapshot, instance_key: bytes) -> list[InstanceRow]:
        """What else was received under the UIDs of one instance, and kept."""
        return [
            self.open_row(VERSION, key, sealed, InstanceRow)
            for key, sealed in snapshot.scan(VERSION, prefix=instance_key)
        ]

    def places(self, snapshot: Snapshot, level: str, uid: str) -> list[bytes]:
        """Series keys (study id, series hash) under which a series or SOP Instance UID was received."""
        return snapshot.postings(PLACE, self.place_key(level, uid))

    def quarantined(self, snapshot: Snapshot) -> Iterator[QuarantineRow]:
        for key, sealed in snapshot.scan(QUARANTINE):
            yield self.open_row(QUARANTINE, key, sealed, QuarantineRow)

    # ------------------------------------------------------------ planning

    def view(self, snapshot: Snapshot) -> View | None:
        """The corrections as a snapshot has them, None as long as there never was one."""
        seen: tuple[Snapshot | None, View | None] = getattr(self._seen, "view", (None, None))
        if seen[0] is not snapshot:
            there = corrections.generation(snapshot) is not None
            seen = self._seen.view = (snapshot, View(self, snapshot) if there else None)
        return seen[1]

    def in_force(self, snapshot: Snapshot, key: bytes) -> InForce:
        """The corrections in force for a patient or a study, by the key of either."""
        sealed = snapshot.get(CORRECTION, key)
        return NONE if sealed is None else self._opened.of(key, sealed, self._opened_corrections)

    def _opened_corrections(self, key: bytes, sealed: bytes) -> tuple[CorrectionRow, ...]:
        return self.open_row(CORRECTION, key, sealed, CorrectionsRow).corrections

    def place_of(self, snapshot: Snapshot, row: ObjectRow) -> Place:
        """Where an object belongs: where it says itself, or where corrections move it."""
        view = self.view(snapshot)
        if view is None:
            return Place(row.study_uid, row.series_uid, row.sop_uid)
        route = view.route(row.study_uid, row.series_uid, row.sop_uid, row.received_ns)
        return Place(route.study_uid, route.series_uid, row.sop_uid)

    def plan_study(
        self, snapshot: Snapshot, objects: Sequence[tuple[Place, Stored]], patients: Patients
    ) -> Batch:
        """The batch that adds ``objects``, all of one study and none known yet, to the catalog.

        ``patients``: see :data:`~hounsfield.archive.index.patients.Patients`; without it many new studies of
        one patient would fail each other.
        """
        draft = StudyDraft(self, snapshot, objects[0][0].study_uid, patients)
        for place, stored in objects:
            series = series_attributes(stored.row, place.series_uid)
            draft.add(place.series_uid, instance_row(stored, place), stored.row.study, series)
        return draft.finish(max(stored.row.received_ns for _, stored in objects))

    def plan_version(
        self,
        snapshot: Snapshot,
        place: Place,
        stored: Stored,
        *,
        newest_current: bool,
        again: bool = False,
    ) -> Batch:
        """The batch that keeps ``stored`` beside the current instance of the same UIDs (or in its place).

        Which is first is when it was received, not when it is indexed: a reindex meets segments in any order.
        ``again``: it is, byte for byte, one that is there.
        """
        key = self.instance_key(*place)
        held = snapshot.get(INSTANCE, key)
        if held is None:
            raise LookupError("the instance that this one conflicts with is gone")
        draft = StudyDraft(self, snapshot, place.study_uid)
        noted = draft.note(place.series_uid, instance_row(stored, place))
        batch = draft.finish(stored.row.received_ns) if noted else Batch()
        batch.require(INSTANCE, key, held)
        batch.require(META, CORRECTIONS, corrections.generation(snapshot))
        current = self.open_row(INSTANCE, key, held, InstanceRow)
        new = instance_row(stored, place)
        served = served_of((new, current) if newest_current else (current, new), newest_current)
        kept = current if served is new else new
        self.put_row(batch, INSTANCE, key, conflicting(served, True))
        kept_row = conflicting(kept, True)
        self.put_row(
            batch, VERSION, key + kept.location.record_id, received_again(kept_row) if again else kept_row
        )
        if kept is current:
            self._reseal_series(snapshot, batch, key[: STUDY_ID_BYTES + SERIES_HASH_BYTES])
        return batch

    def note_earlier(  # noqa: PLR0917
        self,
        snapshot: Snapshot,
        batch: Batch,
        place: Place,
        same: InstanceRow,
        received_ns: int,
        newest_current: bool,
    ) -> None:
        """Have ``batch`` say that ``same`` was received at ``received_ns`` already: another record of it was.

        Two workers may index in another order than they received. Which is served must not hang on that: a
        reindex meets the records in any order, too.
        """
        key = self.instance_key(*place)
        held = snapshot.get(INSTANCE, key)
        if held is None:
            return
        current = self.open_row(INSTANCE, key, held, InstanceRow)
        earlier = structs.replace(same, received_ns=received_ns)
        record_id = same.location.record_id
        rows = [
            row for row in (current, *self.versions(snapshot, key)) if row.location.record_id != record_id
        ]
        served = served_of((earlier, *rows), newest_current)
        batch.require(INSTANCE, key, held)
        batch.require(META, CORRECTIONS, corrections.generation(snapshot))
        for row in {id(row): row for row in (earlier, current, served)}.values():
            own = key + row.location.record_id
            version = snapshot.get(VERSION, own)
            if row is current and record_id == current.location.record_id:
                continue  # as ``earlier``
            batch.require(VERSION, own, version)
            if row is served:
                if version is not None:
                    batch.delete(VERSION, own)
            else:
                self.put_row(batch, VERSION, own, conflicting(row, True))
        self.put_row(batch, INSTANCE, key, conflicting(served, bool(rows)))
        if served.location.record_id != current.location.record_id:
            self._reseal_series(snapshot, batch, key[: STUDY_ID_BYTES + SERIES_HASH_BYTES])

    def _reseal_series(self, snapshot: Snapshot, batch: Batch, key: bytes) -> None:
        """Have the series' row sealed anew: what was prepared of the series is not what it shows any more."""
        sealed = snapshot.get(SERIES, key)
        if sealed is not None:
            batch.require(SERIES, key, sealed)
            self.put_row(batch, SERIES, key, self.open_row(SERIES, key, sealed, SeriesRow))

    def plan_quarantine(self, stored: Stored) -> Batch:
        """The batch that lists an object which has no usable place in the catalog."""
        row = stored.row
        batch = Batch()
        self.put_row(batch, QUARANTINE, stored.location.record_id, QuarantineRow(
            row.quarantine, stored.location, row.sop_class_uid, row.transfer_syntax_uid,
            row.received_ns, row.source, row.problems,
        ))  # fmt: skip
        return batch

    # ------------------------------------------------------------ writing

    def seal_row(self, table: Table, key: bytes, row: CatalogRow) -> bytes:
        """The row as it stands in the table."""
        return self._sealer.seal(table, key, encode(row))

    def put_row(self, batch: Batch, table: Table, key: bytes, row: CatalogRow) -> None:
        """Have ``batch`` put the row, sealed."""
        batch.put(table, key, self._sealer.seal(table, key, encode(row)))


def instance_row(stored: Stored, place: Place) -> InstanceRow:
    """What the catalog keeps of a stored object that is filed at ``place``."""
    row = stored.row
    received = (row.study_uid, row.series_uid)
    return InstanceRow(
        row.sop_uid, row.sop_class_uid, row.transfer_syntax_uid, stored.location, row.layout,
        row.instance, row.received_ns, row.problems, row.stored_as,
        None if received == place[:2] else received, row.coerced,
    )  # fmt: skip


def series_attributes(row: ObjectRow, series_uid: str) -> Attributes:
    """What an object brings to the series in which it is filed."""
    if row.series.get(SERIES_INSTANCE_UID) == series_uid or row.series_uid == series_uid:
        return row.series
    return {**row.series, SERIES_INSTANCE_UID: series_uid}
