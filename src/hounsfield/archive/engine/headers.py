"""Attributes that no index row holds, read from the stored headers of a search's answers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Final

from hounsfield.archive.dicom.json_model import Model
from hounsfield.archive.dicom.selection import Path, select
from hounsfield.archive.engine.delivery import Overlays
from hounsfield.archive.engine.types import FoundRow, Header, Instance
from hounsfield.archive.index.catalog import Catalog
from hounsfield.archive.index.rows import InstanceRow
from hounsfield.codecs.registry import lookup
from hounsfield.storage_backends.api import KeyValueStore, Snapshot

_STUDY_UID: Final = 0x0020000D
_SERIES_UID: Final = 0x0020000E
_SOP_UID: Final = 0x00080018


class HeaderAttributes:
    """Reads them, with the corrections that are in force. Blocking; any number of threads at once."""

    def __init__(self, store: KeyValueStore, catalog: Catalog, header: Callable[[Instance], Header]) -> None:
        self._store = store
        self._catalog = catalog
        self._header = header

    def of(self, row: FoundRow, paths: Iterable[Path], links: str) -> tuple[Model, int]:
        """What ``paths`` lead to in an answer's instance, and how many bytes were read for it.

        Of a series or a study one instance speaks for all: ask for what is the same in all of them. Empty
        when the answer is gone meanwhile. ``links`` stands before the ``/studies/…`` of each BulkDataURI.
        ``DamagedError`` when the header does not open.
        """
        instance = self._instance(row)
        if instance is None:
            return {}, 0
        header = self._header(instance)
        url = f"{links}/studies/{instance.study_uid}/series/{instance.series_uid}"
        found = select(
            header.head,
            lookup(header.transfer_syntax_uid),
            paths,
            base_uri=f"{url}/instances/{instance.row.sop_uid}/",
        )
        return found, len(header.head) + len(header.trailer)

    def _instance(self, row: FoundRow) -> Instance | None:
        study_uid = row.study.get(_STUDY_UID, "")
        with self._store.snapshot() as snapshot:
            for series_uid, found in self._candidates(snapshot, row, study_uid):
                overlays = Overlays.of(self._catalog, snapshot, study_uid)
                return Instance(study_uid, series_uid, found, overlays.overlay(series_uid, found))
        return None

    def _candidates(
        self, snapshot: Snapshot, row: FoundRow, study_uid: str
    ) -> Iterator[tuple[str, InstanceRow]]:
        series_uid = None if row.series is None else row.series.get(_SERIES_UID, "")
        if series_uid is not None and row.instance is not None:
            sop_uid = row.instance.get(_SOP_UID, "")
            found = self._catalog.instance(snapshot, study_uid, series_uid, sop_uid)
            if found is not None:
                yield series_uid, found
            return
        for key, series in self._catalog.series_of(snapshot, self._catalog.study_id(study_uid)):
            if series_uid in (None, series.uid):
                for found in self._catalog.instances_of(snapshot, key):
                    yield series.uid, found
