"""Patients are there as long as they have studies: each change of a study counts here.

A patient's row says how many studies there are and what they say of the patient, the first of them first; it
goes with the last of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hounsfield.archive.index.merged_attributes import merge
from hounsfield.archive.index.rows import Attributes, PatientRow, StudyRow
from hounsfield.archive.index.tables import PATIENT
from hounsfield.storage_backends.api import Batch, Snapshot

if TYPE_CHECKING:
    from hounsfield.archive.index.catalog import Catalog

PATIENT_LEVEL = 0x0010  # group of the patient's own attributes (PS3.3 C.7.1.1)

Patients = dict[bytes, bytes | None]
"""Rows of patients as batches planned before, and committed before, leave them; None: removed."""


class PatientCount:
    """Counts the studies of patients, on one snapshot."""

    def __init__(self, catalog: Catalog, snapshot: Snapshot, patients: Patients) -> None:
        """``patients`` is read and written, so that batches planned one after the other count on."""
        self._catalog = catalog
        self._snapshot = snapshot
        self._patients = patients

    def plan(self, batch: Batch, old: StudyRow | None, new: StudyRow | None, now_ns: int) -> None:
        """Have ``batch`` count what becomes of one study; None: it was not there, or goes."""
        if old is not None and new is not None and old.patient_key == new.patient_key:
            return
        if old is not None:
            self._count(batch, old.patient_key, -1, {}, now_ns)
        if new is not None:
            own = {tag: text for tag, text in new.attributes.items() if tag >> 16 == PATIENT_LEVEL}
            self._count(batch, new.patient_key, +1, own, now_ns)

    def _count(self, batch: Batch, key: bytes, change: int, attributes: Attributes, now_ns: int) -> None:
        catalog = self._catalog
        held = self._patients[key] if key in self._patients else self._snapshot.get(PATIENT, key)
        batch.require(PATIENT, key, held)
        old = None if held is None else catalog.open_row(PATIENT, key, held, PatientRow)
        studies = (old.studies if old else 0) + change
        if studies <= 0:
            self._patients[key] = None
            batch.delete(PATIENT, key)
            return
        merged: Attributes = dict(old.attributes) if old else {}
        merge(merged, attributes, set())
        sealed = catalog.seal_row(PATIENT, key, PatientRow(merged, studies, now_ns))
        self._patients[key] = sealed
        batch.put(PATIENT, key, sealed)
