"""A study as it will be: read from a snapshot, changed in memory, committed as one batch.

Everything that changes the catalog goes this way: objects that come in, deletions, corrections. The
batch requires the study's row to be as it was read, and every finished draft rewrites (or removes) that
row; so of two who change one study the second reads again, and nothing is ever half-visible.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from msgspec import structs

from hounsfield.archive.dicom.attributes import SERIES_INSTANCE_UID
from hounsfield.archive.index import corrections, tokens
from hounsfield.archive.index.corrections import CORRECTIONS, Group, View, is_hidden, number_key
from hounsfield.archive.index.merged_attributes import (
    FLAG_DEMOGRAPHICS,
    NOTHING_SAID,
    MadeOf,
    merge,
    merge_once,
    union,
)
from hounsfield.archive.index.patients import PatientCount, Patients
from hounsfield.archive.index.rows import Attributes, InstanceRow, ObjectRow, ReceivedRow, StudyRow
from hounsfield.archive.index.series_draft import Removed, SeriesDraft
from hounsfield.archive.index.tables import CORRECTED, META, SERIES, STUDY
from hounsfield.archive.index.versions import FLAG_CONFLICT
from hounsfield.storage_backends.api import Batch, Snapshot

if TYPE_CHECKING:
    from hounsfield.archive.index.catalog import Catalog

MODALITY = 0x00080060


class StudyDraft:
    """One study, being changed. Short-lived: it reads from the snapshot that it was made with."""

    def __init__(
        self,
        catalog: Catalog,
        snapshot: Snapshot,
        study_uid: str,
        patients: Patients | None = None,
        view: View | None = None,
    ) -> None:
        """``view``: the corrections as they will be, when that is not as the snapshot has them."""
        self._catalog = catalog
        self._snapshot = snapshot
        self._patients = PatientCount(catalog, snapshot, {} if patients is None else patients)
        self.uid = study_uid
        self.study_id = catalog.study_id(study_uid)
        self._held = snapshot.get(STUDY, self.study_id)
        self.old = (
            None if self._held is None else catalog.open_row(STUDY, self.study_id, self._held, StudyRow)
        )
        self.attributes: Attributes = dict(self.old.attributes) if self.old else {}
        self.flags = set(self.old.flags) if self.old else set()
        self._said = NOTHING_SAID
        self._series: dict[str, SeriesDraft] = {}
        self._generation = corrections.generation(snapshot)
        view = view or catalog.view(snapshot)
        # Kept only where there are corrections.
        self._made_of = None if view is None else MadeOf(study_uid, self.old, view)
        self.new: StudyRow | None = None  # what the study will be, once the draft is finished

    # ------------------------------------------------------------ changing

    def series(self, series_uid: str) -> SeriesDraft:
        """The draft of one series, which may be new."""
        draft = self._series.get(series_uid)
        if draft is None:
            draft = SeriesDraft(self._catalog, self._snapshot, self.uid, series_uid)
            self._series[series_uid] = draft
        return draft

    def add(self, series_uid: str, row: InstanceRow, study: Attributes, series: Attributes) -> None:
        """Add an instance that the study does not have, with the attributes that it brings."""
        if self._made_of is None:
            self._said = merge_once(self.attributes, study, self.flags, self._said)
        else:
            self._made_of.add(self._made_of.group_of(series_uid, row), study, self.flags)
        self.series(series_uid).add(row, series)

    def remove(
        self,
        series_uid: str,
        sop_uid: str,
        records: frozenset[bytes] | None = None,
        *,
        newest_current: bool = False,
    ) -> Removed | None:
        """Take an instance out with the versions kept beside it; None when there is nothing to take.

        ``records``: only those of its records. What is left is then served as it would be had the others
        never come; ``newest_current`` says which, as in ``Catalog.plan_version``.
        """
        return self.series(series_uid).remove(sop_uid, records, newest_current=newest_current)

    def remove_series(self, series_uid: str) -> list[Removed]:
        """Take out every instance of a series, with the versions kept beside them."""
        return self.series(series_uid).remove_all()

    def remove_all(self) -> list[Removed]:
        """Take out the whole study."""
        found = []
        for _, series in self._catalog.series_of(self._snapshot, self.study_id):
            found += self.remove_series(series.uid)
        return found

    # ------------------------------------------------------------ what is left

    def is_left(self) -> bool:
        """Whether the study will have any instance."""
        before = self.old.instances if self.old else 0
        return before + sum(len(one.added) - len(one.removed) for one in self._series.values()) > 0

    @property
    def is_corrected(self) -> bool:
        """Whether the study is shown otherwise than it was received."""
        return self.old is not None and bool(self.old.received)

    def left_series(self) -> list[str]:
        """Those of the series asked for that will have instances."""
        return [uid for uid, draft in self._series.items() if draft.instances > 0]

    def disagrees(self, flag: str) -> bool:
        """Whether the study, or a series asked for, has a flag that begins so."""
        flags = [*self.flags, *(one for uid in self.left_series() for one in self._series[uid].flags)]
        return any(one.startswith(flag) for one in flags)

    def touch(self, series_uid: str) -> None:
        """Have the series be written anew, although nothing comes or goes."""
        self.series(series_uid).touch()

    def remaining(self, series_uid: str | None = None) -> Iterator[tuple[str, InstanceRow]]:
        """Every instance that will be there (of one series), by the first received of its records."""
        for key, series in self._catalog.series_of(self._snapshot, self.study_id):
            if series_uid is not None and series.uid != series_uid:
                continue
            draft = self._series.get(series.uid)
            for row in self._catalog.instances_of(self._snapshot, key):
                if draft is None or row.sop_uid not in draft.removed:
                    yield series.uid, self._first_received(key, row)
        for uid, draft in self._series.items():
            if series_uid in {None, uid}:
                for row in draft.added.values():
                    beside = [one for one in draft.kept if one.sop_uid == row.sop_uid]
                    yield uid, min([row, *beside], key=lambda one: one.received_ns)

    def _first_received(self, series_key: bytes, row: InstanceRow) -> InstanceRow:
        if FLAG_CONFLICT not in row.flags:
            return row
        key = series_key + self._catalog.sop_hash(row.sop_uid)
        rows = [row, *self._catalog.versions(self._snapshot, key)]
        return min(rows, key=lambda one: one.received_ns)

    def remerge(self, rows: Iterable[tuple[str, InstanceRow, ObjectRow]]) -> None:
        """Make the attributes of the study, and of the series asked for, anew of what these objects carry.

        They are all that will be there, the first received first, each with its series.
        """
        self.flags = {flag for flag in self.flags if not flag.startswith(FLAG_DEMOGRAPHICS)}
        own: Attributes = {}
        groups: dict[Group, Attributes] = {}
        series: dict[str, Attributes] = {}
        for uid in self.left_series():
            draft = self._series[uid]
            draft.flags = {flag for flag in draft.flags if not flag.startswith(FLAG_DEMOGRAPHICS)}
            draft.touch()
            series[uid] = {}
        for uid, row, carried in rows:
            into = own
            if self._made_of is not None:
                into = groups.setdefault(self._made_of.group_of(uid, row), {})
            merge(into, carried.study, self.flags)
            if uid in series:
                merge(series[uid], carried.series, self._series[uid].flags)
        if self._made_of is None:
            self.attributes = own
        else:
            self._made_of.state(groups)
        for uid, attributes in series.items():
            # A series that was moved is another one than its objects say.
            said = self._series[uid].attributes.get(SERIES_INSTANCE_UID)
            self._series[uid].attributes = attributes | ({SERIES_INSTANCE_UID: said} if said else {})

    def regroup(self) -> None:
        """Tell anew in which ways the objects came that will be there; ``remerge`` must follow.

        For when corrections changed, and with them the ways, or which of several versions is the first.
        """
        if self._made_of is not None:
            group_of = self._made_of.group_of
            self._made_of.regroup(
                {group_of(uid, row) for uid, row in self.remaining()},
                {group_of(uid, row) for uid, row in self._versions()},
            )

    def _versions(self) -> Iterator[tuple[str, InstanceRow]]:
        """Every record that will be there beside another of its UIDs, and that other one."""
        for key, series in self._catalog.series_of(self._snapshot, self.study_id):
            draft = self._series.get(series.uid)
            for row in self._catalog.instances_of(self._snapshot, key):
                if FLAG_CONFLICT in row.flags and (draft is None or row.sop_uid not in draft.removed):
                    yield series.uid, row
                    versions = self._catalog.versions(
                        self._snapshot, key + self._catalog.sop_hash(row.sop_uid)
                    )
                    yield from ((series.uid, one) for one in versions)
        for uid, draft in self._series.items():
            yield from ((uid, row) for row in (*draft.added.values(), *draft.kept))

    def note(self, series_uid: str, row: InstanceRow) -> bool:
        """Note a record that is kept beside another; whether the study's row must say so."""
        made_of = self._made_of
        return made_of is not None and made_of.note(made_of.group_of(series_uid, row))

    def came_otherwise(self, groups: set[Group]) -> bool:
        """Whether objects that came in just these ways are not what the study says that it is made of."""
        return self._made_of is not None and not self._made_of.is_of(groups)

    def is_changed(self) -> bool:
        """Whether anything came or went."""
        return any(draft.is_changed for draft in self._series.values())

    # ------------------------------------------------------------ finishing

    def restate(self, now_ns: int) -> Batch | None:
        """The batch that shows the study as corrections now want it, None when it is shown so already."""
        if self.old is None:
            return None
        attributes, received, numbers = self._shown()
        if (attributes, received, numbers) == (self.old.attributes, self.old.received, self.old.corrections):
            return None
        return self.finish(now_ns)

    def _shown(self) -> tuple[Attributes, tuple[ReceivedRow, ...], tuple[int, ...]]:
        """The attributes that the study shows, what they were made of, and by which corrections."""
        return (self.attributes, (), ()) if self._made_of is None else self._made_of.shown()

    def finish(self, now_ns: int) -> Batch:
        """The batch that makes the catalog hold the study as it is now drafted; removed when it is empty."""
        catalog, old = self._catalog, self.old
        batch = Batch()
        batch.require(STUDY, self.study_id, self._held)
        batch.require(META, CORRECTIONS, self._generation)
        series = old.series if old else 0
        instances = old.instances if old else 0
        shrunk = False
        for draft in self._series.values():
            if not draft.is_changed and not draft.is_restated:
                continue
            instances += len(draft.added) - len(draft.removed)
            series += (draft.instances > 0) - (draft.old is not None)
            shrunk = shrunk or bool(draft.removed)
            draft.finish(batch, now_ns)
        new: StudyRow | None = None
        if instances:
            attributes, received, numbers = self._shown()
            patient_key = catalog.patient_key(attributes, self.uid)
            modalities, sop_classes = self._summary(shrunk)
            new = StudyRow(
                uid=self.uid,
                attributes=attributes,
                series=series,
                instances=instances,
                modalities=modalities,
                sop_classes=sop_classes,
                patient_key=patient_key,
                tokenizer=tokens.TOKENIZER,
                received_ns=old.received_ns if old else now_ns,
                changed_ns=now_ns,
                flags=tuple(sorted(self.flags)),
                received=received,
                corrections=numbers,
            )
            catalog.put_row(batch, STUDY, self.study_id, new)
            if (
                old is not None
                and (received or old.received)
                and (attributes != old.attributes or numbers != old.corrections)
            ):
                self._touch_series(batch, now_ns)
        elif old is not None:
            batch.delete(STUDY, self.study_id)
        self.new = new
        plan_corrected(batch, self.study_id, old, new)
        tokens.plan_tokens(batch, catalog.hashes, self.study_id, old, new)
        if not is_hidden(self.uid):
            self._patients.plan(batch, old, new, now_ns)
        return batch

    def _touch_series(self, batch: Batch, now_ns: int) -> None:
        """What is delivered of every series changes, also of those in which nothing came or went."""
        catalog = self._catalog
        changed = {draft.key for draft in self._series.values() if draft.is_changed}
        for key, row in catalog.series_of(self._snapshot, self.study_id):
            if key not in changed:
                catalog.put_row(batch, SERIES, key, structs.replace(row, changed_ns=now_ns))

    def _summary(self, shrunk: bool) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Modalities and SOP classes; looked at series by series only when something went."""
        drafts = [draft for draft in self._series.values() if draft.instances]
        modalities: tuple[str, ...] = ()
        classes: tuple[str, ...] = ()
        if self.old is not None and not shrunk:
            modalities, classes = self.old.modalities, self.old.sop_classes
        elif self.old is not None:
            touched = {draft.key for draft in self._series.values()}
            for key, row in self._catalog.series_of(self._snapshot, self.study_id):
                if key not in touched:
                    modalities = union(modalities, (row.attributes.get(MODALITY, ""),))
                    classes = union(classes, row.sop_classes)
        for draft in drafts:
            modalities = union(modalities, (draft.attributes.get(MODALITY, ""),))
            classes = union(classes, draft.sop_classes)
        return modalities, classes


def plan_corrected(batch: Batch, study_id: bytes, old: StudyRow | None, new: StudyRow | None) -> None:
    """Have ``batch`` keep the list of the studies that each correction has a part in."""
    before = set(old.corrections) if old else set()
    after = set(new.corrections) if new else set()
    for number in before - after:
        batch.remove(CORRECTED, number_key(number), study_id)
    for number in after - before:
        batch.add(CORRECTED, number_key(number), study_id)
