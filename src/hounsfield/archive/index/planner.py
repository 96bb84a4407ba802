"""The query planner: blind tokens give candidates, newest study first; opened rows decide.

Every candidate is verified with ``dicom.query.matches`` (PS3.4 C.2.2.2), level by level, so a token
must only be complete. UIDs lead straight to their rows. Candidates are taken in batches, each with a
snapshot of its own, so that a long search neither pins the index's pages nor loses its place.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from hounsfield.archive.dicom.levels import MODALITIES_IN_STUDY, Level
from hounsfield.archive.dicom.query import Query, matches
from hounsfield.archive.index import tokens
from hounsfield.archive.index.catalog import Catalog
from hounsfield.archive.index.draft import PATIENT_LEVEL
from hounsfield.archive.index.rows import Attributes, InstanceRow, SeriesRow, StudyRow
from hounsfield.archive.index.sealed import KeyedHash
from hounsfield.archive.index.tables import DAY_BYTES, STUDY_ID_BYTES, TOKEN
from hounsfield.storage_backends.api import KeyValueStore, Snapshot

CANDIDATES_PER_SNAPSHOT = (
    128  # studies opened before the snapshot is renewed: a few milliseconds at study level
)

STUDY_UID, SERIES_UID, SOP_UID = 0x0020000D, 0x0020000E, 0x00080018
SERIES_NUMBER, INSTANCE_NUMBER = 0x00200011, 0x00200013
_SOP_CLASSES, _STUDY_SERIES, _STUDY_INSTANCES = 0x00080062, 0x00201206, 0x00201208
_SERIES_INSTANCES, _TRANSFER_SYNTAX, _AVAILABILITY = 0x00201209, 0x00083002, 0x00080056


@dataclass(frozen=True, slots=True)
class FoundRow:
    """One answer: the attributes of its level and of those above it, computed ones included."""

    study: Attributes
    series: Attributes | None = None
    instance: Attributes | None = None

    @property
    def patient(self) -> Attributes:
        """The patient's own attributes, which the study carries."""
        return {tag: text for tag, text in self.study.items() if tag >> 16 == PATIENT_LEVEL}


class Planner:
    """Answers queries from the catalog. Blocking."""

    def __init__(self, store: KeyValueStore, catalog: Catalog, hashes: KeyedHash) -> None:
        self._store = store
        self._catalog = catalog
        self._hashes = hashes

    def find(self, query: Query) -> Iterator[FoundRow]:
        """Every answer, newest study first; stop iterating when there are enough."""
        patients: set[bytes] = set()
        for candidates in self._candidates(query):
            with self._store.snapshot() as snapshot:
                found: list[FoundRow] = []
                for study_id in candidates:
                    row = self._catalog.study_by_id(snapshot, study_id)
                    if row is None:
                        continue
                    study = study_attributes(row)
                    if not matches(query, study):
                        continue
                    if query.level is Level.PATIENT:
                        if row.patient_key not in patients:
                            patients.add(row.patient_key)
                            found.append(FoundRow(study))
                    elif query.level is Level.STUDY:
                        found.append(FoundRow(study))
                    else:
                        found.extend(self._below(snapshot, query, study_id, study))
            yield from found

    def _candidates(self, query: Query) -> Iterator[list[bytes]]:
        """Batches of study ids that together hold every study with an answer."""
        direct = self._direct(query)
        if direct is not None:
            for start in range(0, len(direct), CANDIDATES_PER_SNAPSHOT):
                yield direct[start : start + CANDIDATES_PER_SNAPSHOT]
            return
        keys = tokens.key_tokens(self._hashes, query.matches, fuzzy=query.fuzzy)
        after: bytes | None = None
        while True:
            with self._store.snapshot() as snapshot:
                values = snapshot.intersect(TOKEN, keys, after=after, limit=CANDIDATES_PER_SNAPSHOT)
            if values:
                yield [value[DAY_BYTES:] for value in values]
            if len(values) < CANDIDATES_PER_SNAPSHOT:
                return
            after = values[-1]

    def _direct(self, query: Query) -> list[bytes] | None:
        """Study ids that the UIDs in a query lead to, None when it has none."""
        if STUDY_UID in query.matches:
            return [self._catalog.study_id(uid) for uid in _uids(query, STUDY_UID)]
        for tag, level in ((SERIES_UID, "series"), (SOP_UID, "instance")):
            if tag in query.matches and query.level in {Level.SERIES, Level.INSTANCE}:
                with self._store.snapshot() as snapshot:
                    places = [
                        p for uid in _uids(query, tag) for p in self._catalog.places(snapshot, level, uid)
                    ]
                return list(dict.fromkeys(place[:STUDY_ID_BYTES] for place in places))
        return None

    def _below(
        self, snapshot: Snapshot, query: Query, study_id: bytes, study: Attributes
    ) -> Iterator[FoundRow]:
        """Matching series, or instances, of one matching study, by their numbers."""
        all_series = sorted(
            self._catalog.series_of(snapshot, study_id),
            key=lambda entry: _order(entry[1].attributes, SERIES_NUMBER),
        )
        for series_key, series_row in all_series:
            series = series_attributes(series_row)
            if not matches(query, None, series):
                continue
            if query.level is Level.SERIES:
                yield FoundRow(study, series)
                continue
            rows = sorted(
                self._catalog.instances_of(snapshot, series_key),
                key=lambda row: (_order(row.attributes, INSTANCE_NUMBER), row.sop_uid),
            )
            for row in rows:
                instance = instance_attributes(row)
                if matches(query, None, None, instance):
                    yield FoundRow(study, series, instance)


def study_attributes(row: StudyRow) -> Attributes:
    """A study's attributes with those that the archive computes."""
    return {
        **row.attributes,
        MODALITIES_IN_STUDY: "\\".join(row.modalities),
        _SOP_CLASSES: "\\".join(row.sop_classes),
        _STUDY_SERIES: str(row.series),
        _STUDY_INSTANCES: str(row.instances),
        _AVAILABILITY: "ONLINE",
    }


def series_attributes(row: SeriesRow) -> Attributes:
    """A series' attributes with those that the archive computes."""
    return {**row.attributes, _SERIES_INSTANCES: str(row.instances), _AVAILABILITY: "ONLINE"}


def instance_attributes(row: InstanceRow) -> Attributes:
    """An instance's attributes with those that the archive computes."""
    return {**row.attributes, _TRANSFER_SYNTAX: row.transfer_syntax_uid, _AVAILABILITY: "ONLINE"}


def _uids(query: Query, tag: int) -> list[str]:
    return list(dict.fromkeys(uid.strip(" \0") for uid in query.matches[tag].split("\\") if uid))


def _order(attributes: Attributes, tag: int) -> tuple[int, str]:
    text = attributes.get(tag, "").strip()
    return (int(text), "") if text.removeprefix("-").isdigit() and text.isascii() else (1 << 31, text)
