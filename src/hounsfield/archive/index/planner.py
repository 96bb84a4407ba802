"""The query planner: blind tokens give candidates, newest study first; opened rows decide.

Every candidate is verified with ``dicom.query.matches`` (PS3.4 C.2.2.2), level by level, so a token
must only be complete. UIDs lead straight to their rows; exact tokens to short lists; wildcards, words and
what else is merged later to an intersection of blocks, beside which every fresh study is a candidate
too. What none of these narrows is read study by study. In all cases a range of study dates is a range
of the order in which studies are read.

Candidates are taken for a while from one snapshot, then from the next one, behind the last, so that a
long search neither pins the index's pages nor loses its place.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from hounsfield.archive.dicom.levels import COMPUTED_STUDY, MODALITIES_IN_STUDY, Level
from hounsfield.archive.dicom.query import Query, matches
from hounsfield.archive.index import merging, postings, tokens, wanted
from hounsfield.archive.index.catalog import Catalog
from hounsfield.archive.index.patients import PATIENT_LEVEL
from hounsfield.archive.index.postings import Term
from hounsfield.archive.index.rows import Attributes, InstanceRow, SeriesRow, StudyRow
from hounsfield.archive.index.sealed import KeyedHash
from hounsfield.archive.index.tables import DAY_BYTES, FRESH, STUDY, STUDY_ID_BYTES, TOKEN
from hounsfield.archive.index.wanted import Alternative, Days
from hounsfield.storage_backends.api import KeyValueStore, Snapshot

SNAPSHOT_S = 0.1  # a search holds one snapshot no longer than this, and one study's rows
ANSWERS_PER_SNAPSHOT = 1024
POSTINGS_PER_READ = 128
#: Studies whose rows are read while others wait: 20 µs each.
QUICK_ROWS = 16
#: Exact lists this short are followed without looking at anything else: opening their rows takes 2 ms.
EXACT_FEW = 128
#: Exact lists that are all longer meet in blocks: walking them costs 2 µs a step.
EXACT_MANY = 10_000
#: With more studies unmerged (after a reindex) than are read in some milliseconds, all are read in order.
FRESH_MAX = 20_000
#: Lists that one key's alternatives may be united from in one reading of exact tokens.
UNITED_MAX = 1024

STUDY_UID, SERIES_UID, SOP_UID = 0x0020000D, 0x0020000E, 0x00080018
SERIES_NUMBER, INSTANCE_NUMBER = 0x00200011, 0x00200013
_SOP_CLASSES, _STUDY_SERIES, _STUDY_INSTANCES = 0x00080062, 0x00201206, 0x00201208
_SERIES_INSTANCES, _TRANSFER_SYNTAX, _AVAILABILITY = 0x00201209, 0x00083002, 0x00080056

Candidate = tuple[bytes, StudyRow]
"""A study's place in the order (inverted day, study id), and its row."""


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


class Turn(NamedTuple):
    """What one snapshot gave; ``last``: there is nothing more to look at."""

    found: list[FoundRow]
    last: bool


class Planner:
    """Answers queries from the catalog. Blocking."""

    def __init__(self, store: KeyValueStore, catalog: Catalog, hashes: KeyedHash) -> None:
        self._store = store
        self._catalog = catalog
        self._hashes = hashes

    def find(self, query: Query) -> Iterator[FoundRow]:
        """Every answer, newest study first; stop iterating when there are enough."""
        portion = ANSWERS_PER_SNAPSHOT
        if query.limit is not None:
            portion = min(portion, query.offset + query.limit + 1)
        for turn in self.turns(query, portion):
            yield from turn.found

    def is_quick(self, query: Query) -> bool:
        """Whether keys lead straight to the few rows that can match: less work than to ask a thread for it.

        As with every look-up by a key, what it reads of the index is nearly always in memory.
        """
        if query.level not in {Level.PATIENT, Level.STUDY}:
            return False
        if STUDY_UID in query.matches:
            return len(_uids(query, STUDY_UID)) <= QUICK_ROWS
        for tag in (tokens.PATIENT_ID, tokens.ACCESSION_NUMBER):
            key = query.matches.get(tag, "")
            if key and not any(character in key for character in "*?\\"):
                with self._store.snapshot() as snapshot:
                    token = tokens.token(self._hashes, tokens.EXACT_FIELDS[tag], key)
                    return snapshot.count(TOKEN, token) <= QUICK_ROWS
        days = wanted.days_of(query.matches)
        if days is not None and days.after is None and days.before is None:
            return self._few_merged(query)
        if days is None or days.after is None or days.before is None:
            return False
        every, odd = (tokens.token(self._hashes, field, "") for field in (tokens.ANY, tokens.ODD_DATE))
        with self._store.snapshot() as snapshot:
            within = snapshot.intersect(
                TOKEN, (every,), after=days.after, before=days.before, limit=QUICK_ROWS + 1
            )
            return len(within) <= QUICK_ROWS and snapshot.count(TOKEN, odd) <= QUICK_ROWS

    def _few_merged(self, query: Query) -> bool:
        """Whether a wildcard's or a word's lists say that only few studies can match."""
        keys = list(wanted.of_keys(self._hashes, query.matches, fuzzy=query.fuzzy))
        with self._store.snapshot() as snapshot:
            if any(True for _ in _exact_terms(snapshot, keys)) or not merging.is_complete(snapshot):
                return False
            lengths = (
                sum(postings.count(snapshot, token) for token in term)
                for term in _merged_terms(snapshot, keys)
            )
            few = min(lengths, default=QUICK_ROWS + 1)
            if few > QUICK_ROWS:
                return False
            return few + sum(1 for _ in snapshot.scan(FRESH, limit=QUICK_ROWS + 1)) <= QUICK_ROWS

    def turns(self, query: Query, portion: int) -> Iterator[Turn]:
        """Every answer likewise, some at a time as they are found; a turn without any is a moment's pause.

        No turn holds a snapshot longer than ``SNAPSHOT_S``, and one study's rows. The first ends at
        ``portion`` answers, so that it comes soon; each later one at twice as many, up to
        ``ANSWERS_PER_SNAPSHOT``.
        """
        search = _Search(self._catalog, self._hashes, query)
        patients: set[bytes] = set()
        seen: set[bytes] = set()  # a study whose date changes meanwhile may come by again
        computed = not COMPUTED_STUDY.keys().isdisjoint(query.matches)
        while not search.exhausted:
            found: list[FoundRow] = []
            with self._store.snapshot() as snapshot:
                until = 0.0  # counted from the first candidate: each snapshot gets on by some
                for position, row in search.candidates(snapshot):
                    until = until or time.monotonic() + SNAPSHOT_S
                    study = study_attributes(row) if computed else row.attributes
                    if matches(query, study) and position[DAY_BYTES:] not in seen:
                        seen.add(position[DAY_BYTES:])
                        study = study if computed else study_attributes(row)
                        if query.level is Level.PATIENT:
                            if row.patient_key not in patients:
                                patients.add(row.patient_key)
                                found.append(FoundRow(study))
                        elif query.level is Level.STUDY:
                            found.append(FoundRow(study))
                        else:
                            found.extend(self._below(snapshot, query, position[DAY_BYTES:], study))
                    if len(found) >= portion or time.monotonic() > until:
                        break
            yield Turn(found, search.exhausted)
            portion = min(portion * 2, max(portion, ANSWERS_PER_SNAPSHOT))

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


class _Search:
    """One query's candidates: where they come from, and how far they were looked at."""

    def __init__(self, catalog: Catalog, hashes: KeyedHash, query: Query) -> None:
        self._catalog = catalog
        self._query = query
        self._keys = list(wanted.of_keys(hashes, query.matches, fuzzy=query.fuzzy))
        self._any: Term = (tokens.token(hashes, tokens.ANY, ""),)
        days = wanted.days_of(query.matches)
        self._parts: list[tuple[Days, tuple[Term, ...]]] = []
        if days is not None and () not in self._keys:
            self._parts.append((days, ()))
            if days.before is not None:  # studies of odd dates stand behind the last day, whatever they match
                odd: Term = (tokens.token(hashes, tokens.ODD_DATE, ""),)
                self._parts.append((Days(after=_before_undated()), (odd,)))
        self._after: bytes | None = self._parts[0][0].after if self._parts else None

    @property
    def exhausted(self) -> bool:
        return not self._parts

    def candidates(self, snapshot: Snapshot) -> Iterator[Candidate]:
        """Candidates in order, behind the last one that was taken, with rows as the snapshot has them."""
        while self._parts:
            days, besides = self._parts[0]
            for position, row in self._found(snapshot, days.before, besides):
                self._after = position
                yield position, row
            del self._parts[0]
            self._after = self._parts[0][0].after if self._parts else None

    def _found(
        self, snapshot: Snapshot, before: bytes | None, besides: tuple[Term, ...]
    ) -> Iterator[Candidate]:
        direct = self._direct(snapshot)
        if direct is not None:
            return self._by_id(snapshot, direct, before)
        exact = [*besides, *_exact_terms(snapshot, self._keys)]
        counted = sorted((sum(snapshot.count(TOKEN, one) for one in term), term) for term in exact)
        shortest = counted[0][0] if counted else None
        more = any(not one.exact for alternatives in self._keys for one in alternatives)
        many = more and (shortest is None or shortest > EXACT_FEW)
        if shortest is not None and shortest > EXACT_MANY and len(counted) > 1:
            many = True  # long lists intersect faster in blocks
        if many and not besides and merging.is_complete(snapshot):
            merged = _merged_terms(snapshot, self._keys)
            fresh = dict(snapshot.scan(FRESH, limit=FRESH_MAX + 1)) if merged else {}
            if merged and len(fresh) <= FRESH_MAX:
                return self._by_grams(snapshot, merged, before, fresh)
        return self._by_tokens(snapshot, [term for _, term in counted] or [self._any], before)

    # ------------------------------------------------------------ sources

    def _direct(self, snapshot: Snapshot) -> list[bytes] | None:
        """Study ids that the UIDs in a query lead to, None when it has none."""
        query = self._query
        if STUDY_UID in query.matches:
            return [self._catalog.study_id(uid) for uid in _uids(query, STUDY_UID)]
        for tag, level in ((SERIES_UID, "series"), (SOP_UID, "instance")):
            if tag in query.matches and query.level in {Level.SERIES, Level.INSTANCE}:
                places = [p for uid in _uids(query, tag) for p in self._catalog.places(snapshot, level, uid)]
                return list(dict.fromkeys(place[:STUDY_ID_BYTES] for place in places))
        return None

    def _by_id(
        self, snapshot: Snapshot, study_ids: Iterable[bytes], before: bytes | None
    ) -> Iterator[Candidate]:
        found = []
        for study_id in study_ids:
            row = self._catalog.study_by_id(snapshot, study_id)
            if row is not None:
                position = tokens.inverted_day(row.attributes) + study_id
                if self._is_ahead(position, before):
                    found.append((position, row))
        found.sort(key=lambda candidate: candidate[0])
        yield from found

    def _by_tokens(
        self, snapshot: Snapshot, terms: Sequence[Term], before: bytes | None
    ) -> Iterator[Candidate]:
        """Candidates of exact tokens: the intersection of single ones and of one union."""
        single = [term[0] for term in terms if len(term) == 1]
        united = next((term for term in terms if len(term) > 1), None)
        lists = [single] if united is None else [[one, *single] for one in united]
        streams = [self._intersection(snapshot, keys, before) for keys in lists]
        last = b""
        for position in heapq.merge(*streams) if len(streams) > 1 else streams[0]:
            if position != last:
                last = position
                row = self._catalog.study_by_id(snapshot, position[DAY_BYTES:])
                if row is not None:
                    yield position, row

    def _intersection(
        self, snapshot: Snapshot, keys: Sequence[bytes], before: bytes | None
    ) -> Iterator[bytes]:
        after = self._after
        limit = POSTINGS_PER_READ
        while True:
            found = snapshot.intersect(TOKEN, keys, after=after, before=before, limit=limit)
            yield from found
            if len(found) < limit:
                return
            after = found[-1]

    def _by_grams(
        self, snapshot: Snapshot, terms: Sequence[Term], before: bytes | None, fresh: dict[bytes, bytes]
    ) -> Iterator[Candidate]:
        """Candidates of merged tokens, and every study that is not merged yet, in one order."""
        positions = (tokens.fresh_day(value) + study_id for study_id, value in fresh.items())
        unmerged = sorted(position for position in positions if self._is_ahead(position, before))
        merged = self._merged(snapshot, terms, before, fresh)
        return heapq.merge(merged, self._opened(snapshot, unmerged), key=lambda candidate: candidate[0])

    def _merged(
        self, snapshot: Snapshot, terms: Sequence[Term], before: bytes | None, fresh: dict[bytes, bytes]
    ) -> Iterator[Candidate]:
        low = 0 if self._after is None else postings.value_of(self._after)
        high = postings.VALUE_MAX if before is None else postings.value_of(before)
        day = b""

        def beginnings(values: Iterable[int]) -> Iterator[bytes]:
            nonlocal day
            for value in values:
                held = value.to_bytes(postings.VALUE_BYTES, "big")
                day = held[:DAY_BYTES]
                yield held[DAY_BYTES:]

        for values in postings.intersect(snapshot, terms, low, high):
            for study_id, sealed in snapshot.scan_each(STUDY, beginnings(values)):
                position = day + study_id
                if study_id not in fresh and self._is_ahead(position, before):
                    row = self._catalog.open_row(STUDY, study_id, sealed, StudyRow)
                    if tokens.inverted_day(row.attributes) == day:
                        yield position, row

    def _opened(self, snapshot: Snapshot, positions: Iterable[bytes]) -> Iterator[Candidate]:
        for position in positions:
            row = self._catalog.study_by_id(snapshot, position[DAY_BYTES:])
            if row is not None:
                yield position, row

    def _is_ahead(self, position: bytes, before: bytes | None) -> bool:
        return (self._after is None or position > self._after) and (before is None or position < before)


def _exact_terms(snapshot: Snapshot, keys: Iterable[tuple[Alternative, ...]]) -> Iterator[Term]:
    for alternatives in keys:
        if len(alternatives) == 1:
            yield from ((one,) for one in alternatives[0].exact)
        elif len(alternatives) <= UNITED_MAX and all(one.exact for one in alternatives):
            yield tuple(dict.fromkeys(
                min(one.exact, key=lambda token: snapshot.count(TOKEN, token)) for one in alternatives
            ))  # fmt: skip


def _merged_terms(snapshot: Snapshot, keys: Iterable[tuple[Alternative, ...]]) -> list[Term]:
    def length(term: Term) -> int:
        return sum(postings.count(snapshot, token) for token in term)

    terms: list[Term] = []
    for alternatives in keys:
        if len(alternatives) == 1:
            terms += alternatives[0].merged
        elif all(one.merged for one in alternatives):
            best = (min(one.merged, key=length) for one in alternatives)
            terms.append(tuple(dict.fromkeys(token for term in best for token in term)))
    return terms


def _before_undated() -> bytes:
    """The last place before all studies without a day."""
    return (int.from_bytes(tokens.NO_DAY, "big") - 1).to_bytes(DAY_BYTES, "big") + b"\xff" * STUDY_ID_BYTES


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
