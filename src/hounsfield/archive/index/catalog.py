"""The catalog: patient → study → series → instance, as sealed rows below keyed hashes.

Writing is planned, not performed: :meth:`Catalog.plan_study` reads one snapshot and returns the
batch that adds a group of objects to one study. The batch requires the study's row to be as it was
read, so whoever commits second reads again and plans again; nothing is ever half-visible.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from hounsfield.archive.index import tokens
from hounsfield.archive.index.rows import (
    Attributes,
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
    INSTANCE,
    PATIENT,
    PLACE,
    PLACE_KEY_BYTES,
    QUARANTINE,
    SERIES,
    SERIES_HASH_BYTES,
    SOP_HASH_BYTES,
    STUDY,
    STUDY_ID_BYTES,
    TOKEN,
    VERSION,
)
from hounsfield.storage_backends.api import Batch, Snapshot, Table

PATIENT_ID = 0x00100020
ISSUER_OF_PATIENT_ID = 0x00100021
MODALITY = 0x00080060
#: Everything that the catalog hashes, each field with a key of its own.
HASHED_FIELDS = (
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "SOPInstanceUID",
    "place-series",
    "place-instance",
    "patient",
    "patient-of-study",
    tokens.ANY,
    *tokens.EXACT_FIELDS.values(),
)
PATIENT_LEVEL = 0x0010  # group of the patient's own attributes (PS3.3 C.7.1.1)

FLAG_CONFLICT = "conflicting-version-kept"
FLAG_DEMOGRAPHICS = "attributes-disagree"


@dataclass(frozen=True, slots=True)
class Stored:
    """An object whose record is durable and that the index does not know yet."""

    row: ObjectRow
    location: Location


class Catalog:
    """Rows by identifier, and the plans that change them."""

    def __init__(self, sealer: RowSealer, hashes: KeyedHash) -> None:
        self._sealer = sealer
        self._hashes = hashes

    # ------------------------------------------------------------ keys

    def study_id(self, study_uid: str) -> bytes:
        return self._hashes.digest("StudyInstanceUID", study_uid, STUDY_ID_BYTES)

    def series_key(self, study_uid: str, series_uid: str) -> bytes:
        return self.study_id(study_uid) + self._hashes.digest(
            "SeriesInstanceUID", series_uid, SERIES_HASH_BYTES
        )

    def instance_key(self, study_uid: str, series_uid: str, sop_uid: str) -> bytes:
        return self.series_key(study_uid, series_uid) + self._hashes.digest(
            "SOPInstanceUID", sop_uid, SOP_HASH_BYTES
        )

    def place_key(self, level: str, uid: str) -> bytes:
        return self._hashes.digest(f"place-{level}", uid, PLACE_KEY_BYTES)

    def patient_key(self, attributes: Attributes, study_uid: str) -> bytes:
        """A patient is (id, issuer); without an id, each study is a patient of its own (RAD-TF is silent)."""
        patient_id = attributes.get(PATIENT_ID, "")
        if not patient_id:
            return self._hashes.digest("patient-of-study", study_uid, STUDY_ID_BYTES)
        issuer = attributes.get(ISSUER_OF_PATIENT_ID, "")
        return self._hashes.digest("patient", f"{issuer}\\{patient_id}", STUDY_ID_BYTES)

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

    def plan_study(
        self, snapshot: Snapshot, objects: Sequence[Stored], patients: dict[bytes, bytes]
    ) -> Batch:
        """The batch that adds ``objects``, all of one study and none known yet, to the catalog.

        ``patients``: rows of patients as the batches planned before, and committed before, leave them; this
        one's is added. Without it many new studies of one patient would fail each other.
        """
        first = objects[0].row
        now_ns = max(stored.row.received_ns for stored in objects)
        batch = Batch()
        study_id = self.study_id(first.study_uid)
        held = snapshot.get(STUDY, study_id)
        batch.require(STUDY, study_id, held)
        old = None if held is None else self.open_row(STUDY, study_id, held, StudyRow)

        attributes: Attributes = dict(old.attributes) if old else {}
        flags = set(old.flags) if old else set()
        for stored in objects:
            _merge(attributes, stored.row.study, flags)
        series_added = self._plan_series(snapshot, batch, study_id, objects, now_ns)
        patient_key = old.patient_key if old else self.patient_key(attributes, first.study_uid)
        new = StudyRow(
            uid=first.study_uid,
            attributes=attributes,
            series=(old.series if old else 0) + series_added,
            instances=(old.instances if old else 0) + len(objects),
            modalities=_union(
                old.modalities if old else (), (s.row.series.get(MODALITY, "") for s in objects)
            ),
            sop_classes=_union(old.sop_classes if old else (), (s.row.sop_class_uid for s in objects)),
            patient_key=patient_key,
            tokenizer=tokens.TOKENIZER,
            received_ns=old.received_ns if old else now_ns,
            changed_ns=now_ns,
            flags=tuple(sorted(flags)),
        )
        self._put(batch, STUDY, study_id, new)
        self._plan_tokens(batch, study_id, old, new)
        if old is None:
            self._plan_patient(snapshot, batch, patient_key, attributes, now_ns, patients)
        return batch

    def plan_version(self, snapshot: Snapshot, stored: Stored, *, newest_current: bool) -> Batch:
        """The batch that keeps ``stored`` beside the current instance of the same UIDs (or in its place).

        Which is first is when it was received, not when it is indexed: a reindex meets segments in any order.
        """
        row = stored.row
        batch = Batch()
        key = self.instance_key(row.study_uid, row.series_uid, row.sop_uid)
        held = snapshot.get(INSTANCE, key)
        if held is None:
            raise LookupError("the instance that this one conflicts with is gone")
        batch.require(INSTANCE, key, held)
        current = self.open_row(INSTANCE, key, held, InstanceRow)
        served, kept = _instance_row(stored), current
        if newest_current != (served.received_ns >= current.received_ns):
            served, kept = kept, served
        self._put(batch, INSTANCE, key, _conflicting(served))
        self._put(batch, VERSION, key + kept.location.record_id, _conflicting(kept))
        return batch

    def plan_quarantine(self, stored: Stored) -> Batch:
        """The batch that lists an object which has no usable place in the catalog."""
        row = stored.row
        batch = Batch()
        self._put(batch, QUARANTINE, stored.location.record_id, QuarantineRow(
            row.quarantine, stored.location, row.sop_class_uid, row.transfer_syntax_uid,
            row.received_ns, row.source,
        ))  # fmt: skip
        return batch

    def _put(
        self,
        batch: Batch,
        table: Table,
        key: bytes,
        row: PatientRow | StudyRow | SeriesRow | InstanceRow | QuarantineRow,
    ) -> None:
        batch.put(table, key, self._sealer.seal(table, key, encode(row)))

    def _plan_series(
        self, snapshot: Snapshot, batch: Batch, study_id: bytes, objects: Sequence[Stored], now_ns: int
    ) -> int:
        by_series: dict[str, list[Stored]] = {}
        for stored in objects:
            by_series.setdefault(stored.row.series_uid, []).append(stored)
        added = 0
        for series_uid, members in by_series.items():
            key = study_id + self._hashes.digest("SeriesInstanceUID", series_uid, SERIES_HASH_BYTES)
            old = self._row(snapshot, SERIES, key, SeriesRow)
            attributes = dict(old.attributes) if old else {}
            flags = set(old.flags) if old else set()
            for stored in members:
                _merge(attributes, stored.row.series, flags)
                sop_uid = stored.row.sop_uid
                instance_key = key + self._hashes.digest("SOPInstanceUID", sop_uid, SOP_HASH_BYTES)
                self._put(batch, INSTANCE, instance_key, _instance_row(stored))
                batch.add(PLACE, self.place_key("instance", sop_uid), key)
            self._put(batch, SERIES, key, SeriesRow(
                uid=series_uid,
                attributes=attributes,
                instances=(old.instances if old else 0) + len(members),
                sop_classes=_union(old.sop_classes if old else (), (s.row.sop_class_uid for s in members)),
                transfer_syntaxes=_union(
                    old.transfer_syntaxes if old else (), (s.row.transfer_syntax_uid for s in members)
                ),
                changed_ns=now_ns,
                flags=tuple(sorted(flags)),
            ))  # fmt: skip
            if old is None:
                batch.add(PLACE, self.place_key("series", series_uid), key)
                added += 1
        return added

    def _plan_tokens(self, batch: Batch, study_id: bytes, old: StudyRow | None, new: StudyRow) -> None:
        if old is not None and old.attributes == new.attributes and old.modalities == new.modalities:
            return
        after = {
            (token, tokens.inverted_day(new.attributes) + study_id)
            for token in tokens.study_tokens(self._hashes, new)
        }
        before = set()
        if old is not None:
            value = tokens.inverted_day(old.attributes) + study_id
            before = {(token, value) for token in tokens.study_tokens(self._hashes, old)}
        for token, value in before - after:
            batch.remove(TOKEN, token, value)
        for token, value in after - before:
            batch.add(TOKEN, token, value)

    def _plan_patient(  # noqa: PLR0917
        self,
        snapshot: Snapshot,
        batch: Batch,
        key: bytes,
        study_attributes: Attributes,
        now_ns: int,
        planned: dict[bytes, bytes],
    ) -> None:
        held = planned.get(key) or snapshot.get(PATIENT, key)
        batch.require(PATIENT, key, held)
        old = None if held is None else self.open_row(PATIENT, key, held, PatientRow)
        attributes = dict(old.attributes) if old else {}
        own = {tag: text for tag, text in study_attributes.items() if tag >> 16 == PATIENT_LEVEL}
        _merge(attributes, own, set())
        row = PatientRow(attributes, (old.studies if old else 0) + 1, now_ns)
        planned[key] = self._sealer.seal(PATIENT, key, encode(row))
        batch.put(PATIENT, key, planned[key])


def _instance_row(stored: Stored) -> InstanceRow:
    row = stored.row
    return InstanceRow(
        row.sop_uid, row.sop_class_uid, row.transfer_syntax_uid, stored.location, row.layout,
        row.instance, row.received_ns, row.problems, row.stored_as,
    )  # fmt: skip


def _conflicting(row: InstanceRow) -> InstanceRow:
    flags = tuple(sorted({*row.flags, FLAG_CONFLICT}))
    return InstanceRow(
        row.sop_uid, row.sop_class_uid, row.transfer_syntax_uid, row.location, row.layout,
        row.attributes, row.received_ns, flags, row.stored_as,
    )  # fmt: skip


def _merge(into: Attributes, new: Attributes, flags: set[str]) -> None:
    """First value wins; what was missing is filled in; what disagrees is flagged."""
    for tag, text in new.items():
        held = into.get(tag)
        if not held:
            into[tag] = text
        elif text and text != held:
            flags.add(f"{FLAG_DEMOGRAPHICS}:{tag:08X}")


def _union(old: tuple[str, ...], new: Iterator[str]) -> tuple[str, ...]:
    known = set(old)
    added = {value for value in new if value} - known
    return old if not added else tuple(sorted(known | added))
