"""Objects are filed elsewhere: out of one study and into another, in one commit.

Where an object belongs is what corrections make of the UIDs that it was received with, so filing anew is
comparing that with where it is. Every row of an instance goes its own way: versions that met under the same
UIDs because one of them was moved there part again when the move is taken back. What the studies then say
of themselves is made anew of what their objects carry, the first received first; so also when all stay where
they are and came there on another way, as when a move there and back is taken back in part.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from msgspec import structs

from hounsfield.archive.dicom.attributes import SERIES_INSTANCE_UID
from hounsfield.archive.index.catalog import Catalog
from hounsfield.archive.index.corrections import Group, View
from hounsfield.archive.index.draft import StudyDraft
from hounsfield.archive.index.indexing import Indexer
from hounsfield.archive.index.patients import Patients
from hounsfield.archive.index.remaining import Carried
from hounsfield.archive.index.rows import InstanceRow, Location, StudyRow
from hounsfield.archive.index.tables import PATIENT
from hounsfield.archive.index.versions import FLAG_CONFLICT, conflicting, received_again, served_of
from hounsfield.storage_backends.api import Batch, Snapshot, Table
from hounsfield.storage_backends.errors import StorageError


class StudyChange(NamedTuple):
    """A study before and after; None: there is none."""

    uid: str
    before: StudyRow | None
    after: StudyRow | None


class _Filed(NamedTuple):
    """A row of an instance, and the UIDs that it was received with."""

    row: InstanceRow
    study_uid: str
    series_uid: str


class Refiling:
    """Plans where objects go."""

    def __init__(self, catalog: Catalog, indexer: Indexer, *, newest_current: bool) -> None:
        self._catalog = catalog
        self._indexer = indexer
        self._carried = Carried(indexer)
        self._newest_current = newest_current
        self._alike: dict[frozenset[bytes], bool] = {}  # records that were compared, and came out the same

    def forget(self) -> None:
        """Drop what was read for earlier plans."""
        self._carried = Carried(self._indexer)
        self._alike.clear()

    def look(self, snapshot: Snapshot, view: View, study_ids: Iterable[bytes]) -> tuple[int, list[Location]]:
        """How many rows filing the objects of these studies anew may write, and what it reads for that."""
        uids: set[str] = set()
        for study_id in study_ids:
            row = self._catalog.study_by_id(snapshot, study_id)
            if row is not None:
                uids.add(row.uid)
                for key, series in self._catalog.series_of(snapshot, study_id):
                    for one in self._catalog.instances_of(snapshot, key):
                        received = one.received or (row.uid, series.uid)
                        uids.add(view.route(*received, one.sop_uid, one.received_ns).study_uid)
        rows = 0
        locations: list[Location] = []
        for uid in uids:
            for key, series in self._catalog.series_of(snapshot, self._catalog.study_id(uid)):
                rows += 2 * (series.instances + 1)
                locations += [one.location for one in self._catalog.instances_of(snapshot, key)]
        return rows, locations

    def read(self, locations: Iterable[Location]) -> None:
        """Read what records carry, beside everybody: a plan that follows has it at hand."""
        for location in locations:
            self._carried.row(location)

    def plan(
        self, snapshot: Snapshot, batch: Batch, view: View, study_ids: Iterable[bytes], at_ns: int
    ) -> list[StudyChange]:
        """Have ``batch`` file the objects of these studies where ``view`` wants them; what that changes."""
        patients: Patients = {}
        drafts: dict[str, StudyDraft] = {}

        def draft_of(uid: str) -> StudyDraft:
            if uid not in drafts:
                drafts[uid] = StudyDraft(self._catalog, snapshot, uid, patients, view)
            return drafts[uid]

        places: dict[tuple[str, str, str], list[_Filed]] = {}
        other_ways: set[str] = set()
        for study_id in study_ids:
            study = self._catalog.study_by_id(snapshot, study_id)
            if study is not None:
                draft = draft_of(study.uid)
                if draft.came_otherwise(self._take_out(snapshot, view, draft, places)):
                    other_ways.add(study.uid)
        for (study_uid, series_uid, sop_uid), filed in places.items():
            draft = draft_of(study_uid)
            there = draft.remove(series_uid, sop_uid)
            if there is not None:
                filed += [_filed(row, study_uid, series_uid) for row in there.rows]
            self._put_in(draft, series_uid, filed)
        changes: list[StudyChange] = []
        made: list[Batch] = []
        for uid, draft in drafts.items():
            if draft.is_changed() or uid in other_ways:
                self._carried.settle(draft, always=True)
                made.append(draft.finish(max(at_ns, draft.old.changed_ns + 1 if draft.old else 0)))
                changes.append(StudyChange(uid, draft.old, draft.new))
        absorb(batch, made)
        return changes

    def _take_out(
        self,
        snapshot: Snapshot,
        view: View,
        draft: StudyDraft,
        places: dict[tuple[str, str, str], list[_Filed]],
    ) -> set[Group]:
        """Take out of a study what belongs elsewhere, into ``places``; in which ways came what stays."""
        staying: set[Group] = set()
        for key, series in self._catalog.series_of(snapshot, draft.study_id):
            for instance in self._catalog.instances_of(snapshot, key):
                here = (draft.uid, series.uid)
                rows = [instance]
                if FLAG_CONFLICT in instance.flags:
                    rows += self._catalog.versions(
                        snapshot, self._catalog.instance_key(*here, instance.sop_uid)
                    )
                filed = [_filed(row, *here) for row in rows]
                routes = [
                    view.route(one.study_uid, one.series_uid, one.row.sop_uid, one.row.received_ns)
                    for one in filed
                ]
                if all(route[:2] == here for route in routes):
                    staying.update(
                        (one.study_uid, route.path) for one, route in zip(filed, routes, strict=True)
                    )
                    continue
                draft.remove(series.uid, instance.sop_uid)
                for route, one in zip(routes, filed, strict=True):
                    place = (route.study_uid, route.series_uid, instance.sop_uid)
                    places.setdefault(place, []).append(one)
        return staying

    def _put_in(self, draft: StudyDraft, series_uid: str, filed: list[_Filed]) -> None:
        place = (draft.uid, series_uid)
        rows = []
        for one in filed:
            received = (one.study_uid, one.series_uid)
            row = structs.replace(one.row, received=None if received == place else received)
            rows.append(conflicting(row, len(filed) > 1))
        served = served_of(rows, self._newest_current)
        series = draft.series(series_uid)
        series.attributes.setdefault(SERIES_INSTANCE_UID, series_uid)
        series.added[served.sop_uid] = served
        others: list[InstanceRow] = []
        for row in sorted(rows, key=lambda one: one.received_ns):
            if row is not served:
                again = any(self._are_alike(row, one) for one in (served, *others))
                others.append(received_again(row) if again else row)
        series.kept += others

    def _are_alike(self, one: InstanceRow, other: InstanceRow) -> bool:
        """Whether two that meet under the same UIDs are the same bytes: sent again when one was hidden.

        Compared once, mostly when a plan is first looked at, with nobody waiting; bytes of objects received
        with other UIDs, or of another length, are not read.
        """
        if one.received != other.received:
            return False
        pair = frozenset({one.location.record_id, other.location.record_id})
        if pair not in self._alike:
            try:
                self._alike[pair] = self._indexer.objects.are_alike(one, other)
            except (StorageError, ValueError):
                return False  # damaged, or moved just now: both are told
        return self._alike[pair]


def _filed(row: InstanceRow, study_uid: str, series_uid: str) -> _Filed:
    return _Filed(row, *(row.received or (study_uid, series_uid)))


def absorb(batch: Batch, others: Iterable[Batch]) -> None:
    """Have ``batch`` do what ``others``, planned one after the other on one snapshot, do.

    Several of them may count one patient: the last has the sum, the first says what was there.
    """
    required = {(table.name, key) for table, key, _ in batch.preconditions}
    patients: dict[bytes, tuple[Table, bytes | None]] = {}
    for other in others:
        for table, key, value in other.preconditions:
            if (table.name, key) not in required:
                required.add((table.name, key))
                batch.preconditions.append((table, key, value))
        for table, key, value in other.puts:
            if table is PATIENT:
                patients[key] = (table, value)
            else:
                batch.puts.append((table, key, value))
        for table, key in other.deletes:
            if table is PATIENT:
                patients[key] = (table, None)
            else:
                batch.deletes.append((table, key))
        batch.adds += other.adds
        batch.removes += other.removes
        batch.appends += other.appends
        batch.before_commit += other.before_commit
    for key, (table, value) in patients.items():
        if value is None:
            batch.delete(table, key)
        else:
            batch.put(table, key, value)
