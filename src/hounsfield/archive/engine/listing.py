"""What is stored, by name: as little of each object as it takes to ask for it later.

Who sends ten thousand objects, one after the other, looks each up when its turn comes; until then a name is a
tenth of what its row takes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from hounsfield.archive.engine.records import number_of
from hounsfield.archive.index.catalog import Catalog
from hounsfield.archive.index.corrections import is_hidden
from hounsfield.archive.index.rows import Attributes, InstanceRow
from hounsfield.archive.index.tables import INSTANCE, STUDY_ID_BYTES
from hounsfield.storage_backends.api import KeyValueStore

_SERIES_NUMBER, _INSTANCE_NUMBER = 0x00200011, 0x00200013


class Named(NamedTuple):
    """One stored instance, and what decides in which presentation contexts it can be sent."""

    study_uid: str
    series_uid: str
    sop_uid: str
    sop_class_uid: str
    transfer_syntax_uid: str


class Listing:
    """Names of what is stored, nothing of what is hidden. Blocking; any number of threads at once."""

    def __init__(self, store: KeyValueStore, catalog: Catalog) -> None:
        self._store = store
        self._catalog = catalog

    def study(self, study_uid: str) -> Attributes | None:
        """A study's attributes, None when there is none."""
        with self._store.snapshot() as snapshot:
            row = self._catalog.study(snapshot, study_uid)
        return None if row is None or is_hidden(row.uid) else row.attributes

    def names(self, study_uid: str, series_uid: str | None = None) -> Iterator[Named]:
        """The current instances of a study, or of one series, by series and instance number.

        None when there is no such study or series.
        """
        catalog = self._catalog
        if is_hidden(study_uid):
            return
        with self._store.snapshot() as snapshot:
            if series_uid is None:
                all_series = list(catalog.series_of(snapshot, catalog.study_id(study_uid)))
            else:
                key = catalog.series_key(study_uid, series_uid)
                one = catalog.series_by_key(snapshot, key)
                all_series = [] if one is None else [(key, one)]
        by_number = [(number_of(row.attributes.get(_SERIES_NUMBER, "")), row.uid, key)
                     for key, row in all_series]  # fmt: skip
        seen: dict[str, str] = {}  # UIDs that most have in common
        for _, uid, key in sorted(by_number):
            with self._store.snapshot() as snapshot:  # one for each series: none is held for long
                rows = [
                    (
                        number_of(row.attributes.get(_INSTANCE_NUMBER, "")),
                        row.sop_uid,
                        seen.setdefault(row.sop_class_uid, row.sop_class_uid),
                        seen.setdefault(row.transfer_syntax_uid, row.transfer_syntax_uid),
                    )
                    for row in catalog.instances_of(snapshot, key)
                ]
            for _, sop_uid, sop_class, syntax in sorted(rows):
                yield Named(study_uid, uid, sop_uid, sop_class, syntax)

    def instance(self, study_uid: str, series_uid: str, sop_uid: str) -> Named | None:
        """The current instance of that name."""
        if is_hidden(study_uid):
            return None
        with self._store.snapshot() as snapshot:
            row = self._catalog.instance(snapshot, study_uid, series_uid, sop_uid)
        return None if row is None else _named(study_uid, series_uid, row)

    def series_anywhere(self, series_uid: str) -> list[tuple[Attributes, str]]:
        """The studies that have a series of that UID: their attributes and UIDs."""
        catalog, found = self._catalog, []
        with self._store.snapshot() as snapshot:
            for key in catalog.places(snapshot, "series", series_uid):
                series = catalog.series_by_key(snapshot, key)
                study = catalog.study_by_id(snapshot, key[:STUDY_ID_BYTES])
                if series is not None and study is not None and not is_hidden(study.uid):
                    found.append((study.attributes, study.uid))
        return found

    def instances_anywhere(self, sop_uid: str) -> list[tuple[Attributes, Named]]:
        """The current instances of that UID, each with its study's attributes."""
        catalog, found = self._catalog, []
        with self._store.snapshot() as snapshot:
            for series_key in catalog.places(snapshot, "instance", sop_uid):
                key = series_key + catalog.sop_hash(sop_uid)
                sealed = snapshot.get(INSTANCE, key)
                series = catalog.series_by_key(snapshot, series_key)
                study = catalog.study_by_id(snapshot, series_key[:STUDY_ID_BYTES])
                if sealed is None or series is None or study is None or is_hidden(study.uid):
                    continue
                row = catalog.open_row(INSTANCE, key, sealed, InstanceRow)
                found.append((study.attributes, _named(study.uid, series.uid, row)))
        return found


def _named(study_uid: str, series_uid: str, row: InstanceRow) -> Named:
    return Named(study_uid, series_uid, row.sop_uid, row.sop_class_uid, row.transfer_syntax_uid)
