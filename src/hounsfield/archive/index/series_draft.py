"""A series as it will be: its part of a study's draft (:mod:`~hounsfield.archive.index.draft`).

It writes the rows of the series and of its instances, of the versions kept beside them, and the places where
each UID is found; and requires what it decided on to be as it was read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from hounsfield.archive.index.corrections import is_hidden
from hounsfield.archive.index.merged_attributes import NOTHING_SAID, merge_once, union
from hounsfield.archive.index.rows import Attributes, InstanceRow, SeriesRow
from hounsfield.archive.index.tables import INSTANCE, INSTANCE_KEY_BYTES, PLACE, SERIES, VERSION
from hounsfield.archive.index.versions import conflicting, served_of
from hounsfield.storage_backends.api import Batch, Snapshot

if TYPE_CHECKING:
    from hounsfield.archive.index.catalog import Catalog


class Removed(NamedTuple):
    """What a draft takes out of one instance: all its rows, or some of several versions."""

    series_uid: str
    sop_uid: str
    rows: list[InstanceRow]


class SeriesDraft:
    """One series of a study's draft."""

    __slots__ = (
        "_catalog",
        "_held",
        "_said",
        "_snapshot",
        "_study_uid",
        "_versions",
        "added",
        "attributes",
        "flags",
        "is_restated",
        "kept",
        "key",
        "old",
        "removed",
        "sop_classes",
        "uid",
    )

    def __init__(self, catalog: Catalog, snapshot: Snapshot, study_uid: str, uid: str) -> None:
        self._catalog = catalog
        self._snapshot = snapshot
        self._study_uid = study_uid
        self.uid = uid
        self.key = catalog.series_key(study_uid, uid)
        old = self.old = catalog.series_by_key(snapshot, self.key)
        self.attributes: Attributes = dict(old.attributes) if old else {}
        self.flags = set(old.flags) if old else set()
        self._said = NOTHING_SAID
        self.added: dict[str, InstanceRow] = {}
        self.removed: dict[str, InstanceRow] = {}
        # Of those removed: their keys, and the sealed rows that this was decided on.
        self._held: dict[str, tuple[bytes, bytes]] = {}
        self._versions: list[tuple[bytes, bytes]] = []  # keys and sealed rows of kept versions that go too
        self.is_restated = False
        self.kept: list[InstanceRow] = []  # versions of instances in ``added`` that stay beside them
        self.sop_classes: tuple[str, ...] = old.sop_classes if old else ()

    @property
    def instances(self) -> int:
        """How many instances the series will have."""
        return (self.old.instances if self.old else 0) + len(self.added) - len(self.removed)

    @property
    def is_changed(self) -> bool:
        """Whether anything came or went."""
        return bool(self.added or self.removed)

    def add(self, row: InstanceRow, attributes: Attributes) -> None:
        """Add an instance that the series does not have, with the attributes that it brings."""
        self._said = merge_once(self.attributes, attributes, self.flags, self._said)
        self.added[row.sop_uid] = row

    def touch(self) -> None:
        """Be written anew, although nothing comes or goes."""
        self.is_restated = True

    def remove(
        self, sop_uid: str, records: frozenset[bytes] | None, *, newest_current: bool
    ) -> Removed | None:
        """As :meth:`StudyDraft.remove <hounsfield.archive.index.draft.StudyDraft.remove>`."""
        key = self.key + self._catalog.sop_hash(sop_uid)
        held = self._snapshot.get(INSTANCE, key)
        if held is None or sop_uid in self.removed:
            return None
        versions = list(self._snapshot.scan(VERSION, prefix=key))
        if records is None:
            return self._take_out(held, key, versions)
        served = self._catalog.open_row(INSTANCE, key, held, InstanceRow)
        opened = [(one, self._catalog.open_row(VERSION, one, row, InstanceRow)) for one, row in versions]
        every = [served, *(row for _, row in opened)]
        gone = [row for row in every if row.location.record_id in records]
        left = [row for row in every if row.location.record_id not in records]
        if not gone:
            return None
        if not left:
            return self._take_out(held, key, versions)
        # Of those received at one moment the one that is served now stays so.
        now = served_of(left, newest_current)
        self.removed[sop_uid], self._held[sop_uid] = served, (key, held)
        self._versions += versions
        self.added[sop_uid] = conflicting(now, len(left) > 1)
        self.kept += [conflicting(row, True) for row in left if row is not now]
        return Removed(self.uid, sop_uid, gone)

    def remove_all(self) -> list[Removed]:
        """Take out every instance, with the versions kept beside them."""
        versions: dict[bytes, list[tuple[bytes, bytes]]] = {}
        for key, held in self._snapshot.scan(VERSION, prefix=self.key):
            versions.setdefault(key[:INSTANCE_KEY_BYTES], []).append((key, held))
        return [
            self._take_out(held, key, versions.get(key, []))
            for key, held in self._snapshot.scan(INSTANCE, prefix=self.key)
        ]

    def _take_out(self, held: bytes, key: bytes, versions: list[tuple[bytes, bytes]]) -> Removed:
        row = self._catalog.open_row(INSTANCE, key, held, InstanceRow)
        self.removed[row.sop_uid], self._held[row.sop_uid] = row, (key, held)
        self._versions += versions
        kept = [self._catalog.open_row(VERSION, one, sealed, InstanceRow) for one, sealed in versions]
        return Removed(self.uid, row.sop_uid, [row, *kept])

    def finish(self, batch: Batch, now_ns: int) -> None:
        """Have ``batch`` make the catalog hold the series as it is now drafted; removed when it is empty."""
        catalog = self._catalog
        # A version that is kept, or a record that is moved, rewrites the instance's row and not the study's.
        for key, held in self._held.values():
            batch.require(INSTANCE, key, held)
        for key, held in self._versions:
            batch.require(VERSION, key, held)
            batch.delete(VERSION, key)
        for row in self.kept:
            key = self.key + catalog.sop_hash(row.sop_uid) + row.location.record_id
            catalog.put_row(batch, VERSION, key, row)
        found = not is_hidden(self._study_uid)
        for sop_uid in self.removed.keys() - self.added.keys():
            batch.delete(INSTANCE, self._held[sop_uid][0])
            if found:
                batch.remove(PLACE, catalog.place_key("instance", sop_uid), self.key)
        for sop_uid, row in self.added.items():
            catalog.put_row(batch, INSTANCE, self.key + catalog.sop_hash(sop_uid), row)
            if found:
                batch.add(PLACE, catalog.place_key("instance", sop_uid), self.key)
        if not self.instances:
            if self.old is not None:
                batch.delete(SERIES, self.key)
                if found:
                    batch.remove(PLACE, catalog.place_key("series", self.uid), self.key)
            return
        self.sop_classes, transfer_syntaxes = self._summary()
        catalog.put_row(batch, SERIES, self.key, SeriesRow(
            uid=self.uid,
            attributes=self.attributes,
            instances=self.instances,
            sop_classes=self.sop_classes,
            transfer_syntaxes=transfer_syntaxes,
            changed_ns=now_ns,
            flags=tuple(sorted(self.flags)),
        ))  # fmt: skip
        if self.old is None and found:
            batch.add(PLACE, catalog.place_key("series", self.uid), self.key)

    def _summary(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """SOP classes and transfer syntaxes; looked at instance by instance only when some went."""
        rows: Sequence[InstanceRow] = list(self.added.values())
        classes: tuple[str, ...] = ()
        syntaxes: tuple[str, ...] = ()
        if self.removed:
            rows = [*rows, *(
                row for row in self._catalog.instances_of(self._snapshot, self.key)
                if row.sop_uid not in self.removed and row.sop_uid not in self.added
            )]  # fmt: skip
        elif self.old is not None:
            classes, syntaxes = self.old.sop_classes, self.old.transfer_syntaxes
        return (
            union(classes, (row.sop_class_uid for row in rows)),
            union(syntaxes, (row.transfer_syntax_uid for row in rows)),
        )
