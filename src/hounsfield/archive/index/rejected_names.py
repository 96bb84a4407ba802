"""What a rejection note means by the names that it uses: objects by the UIDs they were received with.

A note may name objects as they are shown, which corrections may have filed elsewhere, and before they come.
A rejection has to hide them whatever becomes of these corrections, so it is made to name them, too, as they
are received when they are shown under that name: a move that is taken back later does not show them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from hounsfield.archive.dicom.rejection import RejectionNote
from hounsfield.archive.index import corrections as overlay
from hounsfield.archive.index.catalog import Catalog, Place
from hounsfield.archive.index.correcting import FACT_KIND, row_of
from hounsfield.archive.index.corrections import MOVES_OBJECTS, View
from hounsfield.archive.index.journal import Journal
from hounsfield.archive.index.rows import CorrectionRow
from hounsfield.archive.index.versions import FLAG_CONFLICT
from hounsfield.archive.index.waiting_notes import WaitingRow
from hounsfield.storage_backends.api import Snapshot

Named = dict[str, dict[str, tuple[str, ...]]]
"""SOP Instance UIDs by study and series."""


Move = tuple[CorrectionRow, frozenset[str]]
"""One that moves objects, and which of the instances of its series: none named, all of them."""


class _Moves(NamedTuple):
    """The moves in force, by the study to which they go; as they are when so many facts were made."""

    facts: int
    to: Mapping[str, list[Move]]


class RejectedNames:
    """Finds what is meant. Any number of threads at once."""

    def __init__(self, catalog: Catalog, journal: Journal) -> None:
        self._catalog = catalog
        self._journal = journal
        self._known: _Moves | None = None

    def meant(self, snapshot: Snapshot, content: RejectionNote, note: WaitingRow) -> Named:
        """What a note means, by the UIDs it was received with, and as it is named.

        What is not here is meant by its name, and as what it would have to be received to be shown under it.
        The note itself goes with them.
        """
        found: dict[str, dict[str, dict[str, None]]] = {}

        def add(study_uid: str, series_uid: str, sop_uid: str) -> None:
            found.setdefault(study_uid, {}).setdefault(series_uid, {})[sop_uid] = None

        view = View(self._catalog, snapshot)
        moves = self._moves(snapshot)
        for study_uid, by_series in content.rejected.items():
            for series_uid, sop_uids in by_series.items():
                for sop_uid in sop_uids:
                    place = Place(study_uid, series_uid, sop_uid)
                    add(*place)
                    for one in (*self._here(snapshot, place), *origins(view, moves, place)):
                        add(*one)
        add(note.study_uid, note.series_uid, note.sop_uid)
        return {
            study_uid: {series_uid: tuple(sop_uids) for series_uid, sop_uids in by_series.items()}
            for study_uid, by_series in found.items()
        }

    def _here(self, snapshot: Snapshot, place: Place) -> Iterator[Place]:
        """As what the objects were received that are shown in a place."""
        row = self._catalog.instance(snapshot, *place)
        if row is None:
            return
        rows = [row]
        if FLAG_CONFLICT in row.flags:
            rows += self._catalog.versions(snapshot, self._catalog.instance_key(*place))
        for one in rows:
            yield Place(*(one.received or place[:2]), place.sop_uid)

    def _moves(self, snapshot: Snapshot) -> Mapping[str, list[Move]]:
        if overlay.generation(snapshot) is None:
            return {}
        facts = self._journal.facts(snapshot)
        known = self._known
        if known is None or known.facts != facts:
            rows = map(row_of, self._journal.state(snapshot, FACT_KIND))
            in_force = (row for row in rows if row.kind in MOVES_OBJECTS and not row.reverted_ns)
            known = self._known = _Moves(facts, moves_by_study(in_force))
        return known.to


def moves_by_study(rows: Iterable[CorrectionRow]) -> dict[str, list[Move]]:
    """Moves by the study to which they go."""
    to: dict[str, list[Move]] = {}
    for row in rows:
        to.setdefault(row.to_study, []).append((row, frozenset(row.instances)))
    return to


def origins(view: View, moves: Mapping[str, list[Move]], place: Place) -> Iterator[Place]:
    """As what an object may be received that then comes to ``place`` on its way; ``moves`` by where they go.

    Every place from which moves lead there is asked for once, however often series went to and fro; whether
    what is received there comes that way, in the order of the moves, is what its own way says.
    """
    reached, ahead = {place}, [place]
    while ahead:
        here = ahead.pop()
        for row, instances in moves.get(here.study_uid, ()):
            if instances and here.sop_uid not in instances:
                continue
            for series_uid, to_series in row.series.items():
                origin = Place(row.study, series_uid, here.sop_uid)
                if to_series != here.series_uid or origin in reached:
                    continue
                reached.add(origin)
                ahead.append(origin)
                if place[:2] in view.way(*origin):
                    yield origin
