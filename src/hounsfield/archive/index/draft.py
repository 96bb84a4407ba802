"""A study as it will be: read from a snapshot, changed in memory, committed as one batch.

Everything that changes the catalog goes this way: objects that come in, deletions, corrections. The
batch requires the study's row to be as it was read, and every finished draft rewrites (or removes) that
row; so of two who change one study the second reads again, and nothing is ever half-visible.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from msgspec import structs

from hounsfield.archive.dicom.attributes import SERIES_INSTANCE_UID
from hounsfield.archive.dicom.problems import CUT_SHORT
from hounsfield.archive.index import corrections, tokens
from hounsfield.archive.index.corrections import CORRECTIONS, Group, View, is_hidden, number_key
from hounsfield.archive.index.rows import (
    Attributes,
    InstanceRow,
    ObjectRow,
    PatientRow,
    ReceivedRow,
    SeriesRow,
    StudyRow,
)
from hounsfield.archive.index.tables import (
    CORRECTED,
    INSTANCE,
    INSTANCE_KEY_BYTES,
    META,
    PATIENT,
    PLACE,
    SERIES,
    STUDY,
    VERSION,
)
from hounsfield.storage_backends.api import Batch, Snapshot

if TYPE_CHECKING:
    from hounsfield.archive.index.catalog import Catalog

MODALITY = 0x00080060
PATIENT_LEVEL = 0x0010  # group of the patient's own attributes (PS3.3 C.7.1.1)
FLAG_DEMOGRAPHICS = "attributes-disagree"
FLAG_CONFLICT = "conflicting-version-kept"
#: Of a version: it is, byte for byte, another that is there, and nothing that anybody has to decide on.
FLAG_AGAIN = "received-again"

Patients = dict[bytes, bytes | None]
"""Rows of patients as batches planned before, and committed before, leave them; None: removed."""


Said = tuple[Attributes, Attributes]
"""The attributes that were merged last, and into which."""
_NOTHING: Said = ({}, {})


class Removed(NamedTuple):
    """What a draft takes out of one instance: all its rows, or some of several versions."""

    series_uid: str
    sop_uid: str
    rows: list[InstanceRow]


class SeriesDraft:
    """One series of a draft."""

    __slots__ = (
        "added",
        "attributes",
        "flags",
        "held",
        "kept",
        "key",
        "old",
        "removed",
        "restated",
        "said",
        "sop_classes",
        "versions",
    )

    def __init__(self, key: bytes, old: SeriesRow | None) -> None:
        self.key = key
        self.old = old
        self.attributes: Attributes = dict(old.attributes) if old else {}
        self.flags = set(old.flags) if old else set()
        self.said = _NOTHING
        self.added: dict[str, InstanceRow] = {}
        self.removed: dict[str, InstanceRow] = {}
        # Of those removed: their keys, and the sealed rows that this was decided on.
        self.held: dict[str, tuple[bytes, bytes]] = {}
        self.versions: list[tuple[bytes, bytes]] = []  # keys and sealed rows of kept versions that go too
        self.restated = False
        self.kept: list[InstanceRow] = []  # versions of instances in ``added`` that stay beside them
        self.sop_classes: tuple[str, ...] = old.sop_classes if old else ()

    @property
    def instances(self) -> int:
        """How many instances the series will have."""
        return (self.old.instances if self.old else 0) + len(self.added) - len(self.removed)


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
        self._patients: Patients = {} if patients is None else patients
        self.uid = study_uid
        self.study_id = catalog.study_id(study_uid)
        self._held = snapshot.get(STUDY, self.study_id)
        self.old = (
            None if self._held is None else catalog.open_row(STUDY, self.study_id, self._held, StudyRow)
        )
        self.attributes: Attributes = dict(self.old.attributes) if self.old else {}
        self.flags = set(self.old.flags) if self.old else set()
        self._said = _NOTHING
        self._series: dict[str, SeriesDraft] = {}
        self._generation = corrections.generation(snapshot)
        self._view = view or catalog.view(snapshot)
        self._groups = self._received() if self._view is not None else None
        self.new: StudyRow | None = None  # what the study will be, once the draft is finished

    def _received(self) -> dict[Group, ReceivedRow]:
        """What the study is made of, as it was received. Kept only where there are corrections."""
        if self.old is None:
            return {}
        own = ReceivedRow(self.uid, (), self.old.attributes)
        return {(one.study_uid, one.path): one for one in self.old.received or (own,)}

    # ------------------------------------------------------------ changing

    def series(self, series_uid: str) -> SeriesDraft:
        """The draft of one series, which may be new."""
        draft = self._series.get(series_uid)
        if draft is None:
            key = self._catalog.series_key(self.uid, series_uid)
            old = self._catalog.series_by_key(self._snapshot, key)
            draft = self._series[series_uid] = SeriesDraft(key, old)
        return draft

    def add(self, series_uid: str, row: InstanceRow, study: Attributes, series: Attributes) -> None:
        """Add an instance that the study does not have, with the attributes that it brings."""
        draft = self.series(series_uid)
        if self._groups is None:
            self._said = merge_once(self.attributes, study, self.flags, self._said)
        else:
            group = self._group_of(series_uid, row)
            held = self._groups.get(group) or ReceivedRow(*group, {})
            attributes = dict(held.attributes)
            merge(attributes, study, self.flags)
            self._groups[group] = structs.replace(held, attributes=attributes)
        draft.said = merge_once(draft.attributes, series, draft.flags, draft.said)
        draft.added[row.sop_uid] = row

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
        draft = self.series(series_uid)
        key = self._catalog.instance_key(self.uid, series_uid, sop_uid)
        held = self._snapshot.get(INSTANCE, key)
        if held is None or sop_uid in draft.removed:
            return None
        versions = list(self._snapshot.scan(VERSION, prefix=key))
        if records is None:
            return self._removed(series_uid, draft, held, key, versions)
        served = self._catalog.open_row(INSTANCE, key, held, InstanceRow)
        opened = [(one, self._catalog.open_row(VERSION, one, row, InstanceRow)) for one, row in versions]
        every = [served, *(row for _, row in opened)]
        gone = [row for row in every if row.location.record_id in records]
        left = [row for row in every if row.location.record_id not in records]
        if not gone:
            return None
        if not left:
            return self._removed(series_uid, draft, held, key, versions)
        # Of those received at one moment the one that is served now stays so.
        now = served_of(left, newest_current)
        draft.removed[sop_uid], draft.held[sop_uid] = served, (key, held)
        draft.versions += versions
        draft.added[sop_uid] = conflicting(now, len(left) > 1)
        draft.kept += [conflicting(row, True) for row in left if row is not now]
        return Removed(series_uid, sop_uid, gone)

    def remove_series(self, series_uid: str) -> list[Removed]:
        """Take out every instance of a series, with the versions kept beside them."""
        draft = self.series(series_uid)
        versions: dict[bytes, list[tuple[bytes, bytes]]] = {}
        for key, held in self._snapshot.scan(VERSION, prefix=draft.key):
            versions.setdefault(key[:INSTANCE_KEY_BYTES], []).append((key, held))
        return [
            self._removed(series_uid, draft, held, key, versions.get(key, []))
            for key, held in self._snapshot.scan(INSTANCE, prefix=draft.key)
        ]

    def remove_all(self) -> list[Removed]:
        """Take out the whole study."""
        found = []
        for _, series in self._catalog.series_of(self._snapshot, self.study_id):
            found += self.remove_series(series.uid)
        return found

    def _removed(
        self,
        series_uid: str,
        draft: SeriesDraft,
        held: bytes,
        key: bytes,
        versions: list[tuple[bytes, bytes]],
    ) -> Removed:
        row = self._catalog.open_row(INSTANCE, key, held, InstanceRow)
        draft.removed[row.sop_uid], draft.held[row.sop_uid] = row, (key, held)
        draft.versions += versions
        kept = [self._catalog.open_row(VERSION, one, sealed, InstanceRow) for one, sealed in versions]
        return Removed(series_uid, row.sop_uid, [row, *kept])

    def _group_of(self, series_uid: str, row: InstanceRow) -> Group:
        assert self._view is not None
        received = row.received or (self.uid, series_uid)
        return received[0], self._view.route(*received, row.sop_uid, row.received_ns).path

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
        self.series(series_uid).restated = True

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
            draft.restated, series[uid] = True, {}
        for uid, row, carried in rows:
            into = own if self._groups is None else groups.setdefault(self._group_of(uid, row), {})
            merge(into, carried.study, self.flags)
            if uid in series:
                merge(series[uid], carried.series, self._series[uid].flags)
        if self._groups is None:
            self.attributes = own
        else:
            for group, attributes in groups.items():
                held = self._groups.get(group) or ReceivedRow(*group, {})
                self._groups[group] = structs.replace(held, attributes=attributes)
        for uid, attributes in series.items():
            # A series that was moved is another one than its objects say.
            said = self._series[uid].attributes.get(SERIES_INSTANCE_UID)
            self._series[uid].attributes = attributes | ({SERIES_INSTANCE_UID: said} if said else {})

    def regroup(self) -> None:
        """Tell anew in which ways the objects came that will be there; ``remerge`` must follow.

        For when corrections changed, and with them the ways, or which of several versions is the first.
        """
        if self._groups is None:
            return
        before = self._groups
        said = {group[0]: one.attributes for group, one in before.items()}
        speaking = {self._group_of(uid, row) for uid, row in self.remaining()}
        others = {self._group_of(uid, row) for uid, row in self._versions()} - speaking
        self._groups = {
            **{group: ReceivedRow(*group, said.get(group[0], {})) for group in speaking},
            **{group: ReceivedRow(*group, {}) for group in others},
        }

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
        if self._groups is None:
            return False
        group = self._group_of(series_uid, row)
        if group in self._groups:
            return False
        self._groups[group] = ReceivedRow(*group, {})
        return True

    def came_otherwise(self, groups: set[Group]) -> bool:
        """Whether objects that came in just these ways are not what the study says that it is made of."""
        return self._groups is not None and self._groups.keys() != groups

    def is_changed(self) -> bool:
        """Whether anything came or went."""
        return any(draft.added or draft.removed for draft in self._series.values())

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
        if self._groups is None or self._view is None:
            return self.attributes, (), ()
        groups = self._groups
        attributes, numbers = self._view.shown(
            self.uid, {group: one.attributes for group, one in groups.items()}
        )
        own = groups.get((self.uid, ()))
        if len(groups) == 1 and own is not None and not numbers:
            return own.attributes, (), ()
        return attributes, tuple(groups[group] for group in sorted(groups)), numbers

    def finish(self, now_ns: int) -> Batch:
        """The batch that makes the catalog hold the study as it is now drafted; removed when it is empty."""
        catalog, old = self._catalog, self.old
        batch = Batch()
        batch.require(STUDY, self.study_id, self._held)
        batch.require(META, CORRECTIONS, self._generation)
        series = old.series if old else 0
        instances = old.instances if old else 0
        shrunk = False
        for uid, draft in self._series.items():
            if not draft.added and not draft.removed and not draft.restated:
                continue
            instances += len(draft.added) - len(draft.removed)
            series += (draft.instances > 0) - (draft.old is not None)
            shrunk = shrunk or bool(draft.removed)
            self._finish_series(batch, uid, draft, now_ns)
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
        self._plan_patients(batch, old, new, now_ns)
        return batch

    def _touch_series(self, batch: Batch, now_ns: int) -> None:
        """What is delivered of every series changes, also of those in which nothing came or went."""
        catalog = self._catalog
        changed = {draft.key for draft in self._series.values() if draft.added or draft.removed}
        for key, row in catalog.series_of(self._snapshot, self.study_id):
            if key not in changed:
                catalog.put_row(batch, SERIES, key, structs.replace(row, changed_ns=now_ns))

    def _finish_series(self, batch: Batch, uid: str, draft: SeriesDraft, now_ns: int) -> None:
        catalog = self._catalog
        # A version that is kept, or a record that is moved, rewrites the instance's row and not the study's.
        for key, held in draft.held.values():
            batch.require(INSTANCE, key, held)
        for key, held in draft.versions:
            batch.require(VERSION, key, held)
            batch.delete(VERSION, key)
        for row in draft.kept:
            key = catalog.instance_key(self.uid, uid, row.sop_uid) + row.location.record_id
            catalog.put_row(batch, VERSION, key, row)
        found = not is_hidden(self.uid)
        for sop_uid in draft.removed.keys() - draft.added.keys():
            batch.delete(INSTANCE, draft.held[sop_uid][0])
            if found:
                batch.remove(PLACE, catalog.place_key("instance", sop_uid), draft.key)
        for sop_uid, row in draft.added.items():
            catalog.put_row(batch, INSTANCE, draft.key + catalog.sop_hash(sop_uid), row)
            if found:
                batch.add(PLACE, catalog.place_key("instance", sop_uid), draft.key)
        if not draft.instances:
            if draft.old is not None:
                batch.delete(SERIES, draft.key)
                if found:
                    batch.remove(PLACE, catalog.place_key("series", uid), draft.key)
            return
        draft.sop_classes, transfer_syntaxes = self._series_summary(draft)
        catalog.put_row(batch, SERIES, draft.key, SeriesRow(
            uid=uid,
            attributes=draft.attributes,
            instances=draft.instances,
            sop_classes=draft.sop_classes,
            transfer_syntaxes=transfer_syntaxes,
            changed_ns=now_ns,
            flags=tuple(sorted(draft.flags)),
        ))  # fmt: skip
        if draft.old is None and found:
            batch.add(PLACE, catalog.place_key("series", uid), draft.key)

    def _series_summary(self, draft: SeriesDraft) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """SOP classes and transfer syntaxes; looked at instance by instance only when some went."""
        rows: Sequence[InstanceRow] = list(draft.added.values())
        classes: tuple[str, ...] = ()
        syntaxes: tuple[str, ...] = ()
        if draft.removed:
            rows = [*rows, *(
                row for row in self._catalog.instances_of(self._snapshot, draft.key)
                if row.sop_uid not in draft.removed and row.sop_uid not in draft.added
            )]  # fmt: skip
        elif draft.old is not None:
            classes, syntaxes = draft.old.sop_classes, draft.old.transfer_syntaxes
        return (
            union(classes, (row.sop_class_uid for row in rows)),
            union(syntaxes, (row.transfer_syntax_uid for row in rows)),
        )

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

    def _plan_patients(self, batch: Batch, old: StudyRow | None, new: StudyRow | None, now_ns: int) -> None:
        if old is not None and new is not None and old.patient_key == new.patient_key:
            return
        if is_hidden(self.uid):
            return
        if old is not None:
            self._count_patient(batch, old.patient_key, -1, {}, now_ns)
        if new is not None:
            own = {tag: text for tag, text in new.attributes.items() if tag >> 16 == PATIENT_LEVEL}
            self._count_patient(batch, new.patient_key, +1, own, now_ns)

    def _count_patient(
        self, batch: Batch, key: bytes, change: int, attributes: Attributes, now_ns: int
    ) -> None:
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


def plan_corrected(batch: Batch, study_id: bytes, old: StudyRow | None, new: StudyRow | None) -> None:
    """Have ``batch`` keep the list of the studies that each correction has a part in."""
    before = set(old.corrections) if old else set()
    after = set(new.corrections) if new else set()
    for number in before - after:
        batch.remove(CORRECTED, number_key(number), study_id)
    for number in after - before:
        batch.add(CORRECTED, number_key(number), study_id)


_BESIDE_OTHERS = frozenset({FLAG_CONFLICT, FLAG_AGAIN})


def served_of(rows: Iterable[InstanceRow], newest_current: bool) -> InstanceRow:
    """Which of several received under the same UIDs is served: one that came whole before one that was cut
    short, then the first or the newest; of those of one moment the one that is given first."""
    sign = -1 if newest_current else 1
    return min(rows, key=lambda row: (not CUT_SHORT.isdisjoint(row.flags), sign * row.received_ns))


def conflicting(row: InstanceRow, is_so: bool) -> InstanceRow:
    """The row as it is beside others of its UIDs, or alone. What else was noted stands as it was noted."""
    flags = tuple(flag for flag in row.flags if flag not in _BESIDE_OTHERS)
    return structs.replace(row, flags=(*flags, FLAG_CONFLICT) if is_so else flags)


def received_again(row: InstanceRow) -> InstanceRow:
    """The row of a version that is the same, byte for byte, as another that is there."""
    return structs.replace(row, flags=(*row.flags, FLAG_AGAIN))


def merge(into: Attributes, new: Attributes, flags: set[str]) -> None:
    """First value wins; what was missing is filled in; what disagrees is flagged."""
    if new.items() <= into.items():
        return  # as it is with all instances of a series but the first
    for tag, text in new.items():
        held = into.get(tag)
        if not held:
            into[tag] = text
        elif text and text != held:
            flags.add(f"{FLAG_DEMOGRAPHICS}:{tag:08X}")


def merge_once(into: Attributes, new: Attributes, flags: set[str], said: Said) -> Said:
    """As :func:`merge`, but for what ``said`` tells was merged just before: objects of a series share it."""
    if said[0] is into and said[1] is new:
        return said
    merge(into, new, flags)
    return into, new


def union(old: tuple[str, ...], new: Iterable[str]) -> tuple[str, ...]:
    """Both, sorted, without repetition; ``old`` itself when nothing is new."""
    known = set(old)
    added = {value for value in new if value} - known
    return old if not added else tuple(sorted(known | added))
