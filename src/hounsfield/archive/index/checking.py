"""Checking a whole archive at rest: what is wrong, how bad that is, and which command repairs it.

Each check is a line of :data:`CHECKS`; a check yields findings, the same sort of finding counts up in one
:class:`Finding`. What must be equal on both sides (postings and rows, places and records) is compared by sums
of hashes, which take no memory however large the archive is; only where sums differ is each one looked for.

Nobody may write meanwhile, and nothing is changed. Findings name segments, records and tables, nobody's name.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, TypeVar

import msgspec

from hounsfield.archive.index import merging, postings, suspects, tokens
from hounsfield.archive.index.catalog import Catalog
from hounsfield.archive.index.corrections import is_hidden
from hounsfield.archive.index.journal import Journal
from hounsfield.archive.index.records import RecordRow, is_record_key, lookup_keys
from hounsfield.archive.index.rows import (
    CorrectionsRow,
    Event,
    InstanceRow,
    PatientRow,
    QuarantineRow,
    SegmentRow,
    SeriesRow,
    SpareRow,
    StudyRow,
    UseRow,
    decode,
)
from hounsfield.archive.index.sealed import KeyedHash, RowSealer
from hounsfield.archive.index.tables import (
    CORRECTION,
    FRESH,
    GRAM,
    GRAMS,
    INSTANCE,
    INSTANCE_KEY_BYTES,
    JOURNAL,
    LOOKUP,
    PATIENT,
    PLACE,
    QUARANTINE,
    RECORD,
    SCRUB,
    SEGMENT,
    SERIES,
    SERIES_HASH_BYTES,
    SPARE,
    STATE,
    STUDY,
    STUDY_ID_BYTES,
    TOKEN,
    TOKEN_BYTES,
    USE,
    VERSION,
)
from hounsfield.archive.index.tier_places import Tier
from hounsfield.storage_backends.api import KeyValueStore, Snapshot, Table
from hounsfield.storage_backends.errors import KeyringError, SealError
from hounsfield.storage_backends.keyring import Keyring
from hounsfield.storage_backends.segments import SegmentLog

EXAMPLES_MAX = 5
MODALITY = 0x00080060
_STUDY = STUDY_ID_BYTES
_SERIES = STUDY_ID_BYTES + SERIES_HASH_BYTES
_SEQUENCE = struct.Struct(">Q")
_MASK = (1 << 128) - 1

REINDEX = "hounsfield reindex"
RESTORE = "restore the files named from a backup"
START = "nothing to do: the next start sees to it"
SCRUB_REPAIR = "hounsfield scrub start, with scrub.copies naming a backup; else send the objects again"


class Severity(StrEnum):
    """How bad a finding is."""

    LOSS = "loss"  # something that was acknowledged cannot be read here any more
    INDEX = "index"  # the index says something wrong: the objects are there, a command makes it right
    NOTE = "note"  # worth knowing, costs nothing


@dataclass(slots=True)
class Finding:
    """One sort of thing that is wrong: how often, with some examples, and what repairs it."""

    check: str
    severity: Severity
    what: str
    repair: str
    count: int = 0
    examples: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Wrong:
    """One thing that a check met."""

    severity: Severity
    what: str
    example: str = ""
    repair: str = REINDEX


@dataclass(slots=True)
class Archive:
    """What is checked."""

    store: KeyValueStore
    keyring: Keyring
    catalog: Catalog
    sealer: RowSealer
    hashes: KeyedHash
    journal: Journal
    log: SegmentLog
    ledger: SegmentLog
    tiers: Mapping[str, Tier] = field(default_factory=dict)  # those that are configured
    quick: bool = False
    progress: Callable[[str, int, int], None] = lambda _what, _done, _total: None

    def entries(self, table: Table) -> int:
        """How many entries a table has, as far as the store counts them; for progress only."""
        return int(self.store.statistics().get(f"entries_{table.name}", 0))


Check = Callable[[Archive, Snapshot], Iterator[Wrong]]


def check_all(archive: Archive, checks: Iterable[tuple[str, Check]]) -> list[Finding]:
    """Run the checks in order; what they found, worst first. A check that fails is a finding itself."""
    found: dict[tuple[str, Severity, str], Finding] = {}
    for name, check in checks:
        archive.progress(name, 0, 0)
        with archive.store.snapshot() as snapshot:
            for wrong in _guarded(check(archive, snapshot)):
                key = (name, wrong.severity, wrong.what)
                finding = found.setdefault(key, Finding(name, wrong.severity, wrong.what, wrong.repair))
                finding.count += 1
                if wrong.example and len(finding.examples) < EXAMPLES_MAX:
                    finding.examples.append(wrong.example)
    order = list(Severity)
    return sorted(found.values(), key=lambda finding: order.index(finding.severity))


def _guarded(found: Iterator[Wrong]) -> Iterator[Wrong]:
    try:
        yield from found
    except (SealError, msgspec.MsgspecError, ValueError, KeyringError) as error:
        yield Wrong(Severity.INDEX, f"the check could not go on ({type(error).__name__}: {error})")


# ---------------------------------------------------------------- rows


def check_rows(archive: Archive, snapshot: Snapshot) -> Iterator[Wrong]:
    """Every row opens and decodes, and stands where its contents belong."""
    for table, opened, belongs in _ROWS:
        total = archive.entries(table)
        for number, (key, value) in enumerate(snapshot.scan(table)):
            if number % 1000 == 0:
                archive.progress(f"table {table.name}", number, total)
            try:
                row = opened(archive, table, key, value)
            except (SealError, msgspec.MsgspecError, KeyringError):
                yield Wrong(Severity.INDEX, f"a row of table {table.name} does not open", key.hex())
                continue
            if row is not None and not belongs(archive, key, row):
                yield Wrong(Severity.INDEX, f"a row of table {table.name} stands at a wrong key", key.hex())


Opened = Callable[[Archive, Table, bytes, bytes], Any]


def _sealed(kind: type[msgspec.Struct]) -> Opened:
    def opened(archive: Archive, table: Table, key: bytes, value: bytes) -> Any:
        return decode(kind, archive.sealer.open(table, key, value))

    return opened


def _plain(kind: type[msgspec.Struct]) -> Opened:
    return lambda _archive, _table, _key, value: msgspec.msgpack.decode(value, type=kind)


def _scrub_row(archive: Archive, table: Table, key: bytes, value: bytes) -> Any:
    if key.startswith(suspects.SUSPECT):
        return _sealed(suspects.SuspectRow)(archive, table, key, value)
    return None


def _series_hash(archive: Archive, uid: str) -> bytes:
    return archive.catalog.series_key("", uid)[_STUDY:]


def _anywhere(_archive: Archive, _key: bytes, _row: Any) -> bool:
    return True


_ROWS: tuple[tuple[Table, Opened, Callable[[Archive, bytes, Any], bool]], ...] = (
    (PATIENT, _sealed(PatientRow), _anywhere),
    (STUDY, _sealed(StudyRow), lambda a, key, row: key == a.catalog.study_id(row.uid)),
    (SERIES, _sealed(SeriesRow), lambda a, key, row: key[_STUDY:] == _series_hash(a, row.uid)),
    (INSTANCE, _sealed(InstanceRow), lambda a, key, row: key[_SERIES:] == a.catalog.sop_hash(row.sop_uid)),
    (VERSION, _sealed(InstanceRow), lambda _a, key, row: key[INSTANCE_KEY_BYTES:] == row.location.record_id),
    (QUARANTINE, _sealed(QuarantineRow), lambda _a, key, row: key == row.location.record_id),
    (STATE, _sealed(Event), lambda _a, key, row: key.startswith(row.kind.encode() + b"\0")),
    (CORRECTION, _sealed(CorrectionsRow), _anywhere),
    (GRAMS, _sealed(merging.GramsRow), _anywhere),
    (RECORD, _sealed(RecordRow), lambda _a, key, _row: is_record_key(key)),
    (SEGMENT, _plain(SegmentRow), _anywhere),
    (USE, _plain(UseRow), _anywhere),
    (SPARE, _plain(SpareRow), _anywhere),
    (SCRUB, _scrub_row, _anywhere),
)  # fmt: skip


# ---------------------------------------------------------------- counts and parents


def check_counts(archive: Archive, snapshot: Snapshot) -> Iterator[Wrong]:
    """Every row has its parent, and every number in a row is the number of what is there."""
    patients = _Sum()
    seen_series = seen_instances = 0
    total = archive.entries(STUDY)
    for number, (study_id, study) in enumerate(_studies(archive, snapshot)):
        archive.progress("counts", number, total)
        if not is_hidden(study.uid):
            patients.add(study.patient_key, b"", +1)
            if snapshot.get(PATIENT, study.patient_key) is None:
                yield Wrong(Severity.INDEX, "a study's patient is missing", study_id.hex())
        series_count = instance_count = 0
        modalities: set[str] = set()
        for key, sealed in snapshot.scan(SERIES, prefix=study_id):
            series_count += 1
            count = sum(1 for _ in snapshot.scan(INSTANCE, prefix=key))
            instance_count += count
            row = _row(archive, SERIES, key, sealed, SeriesRow)
            if row is None:
                continue
            modalities.add(row.attributes.get(MODALITY, ""))
            if row.instances != count:
                yield Wrong(
                    Severity.INDEX, "a series has another number of instances than it says", key.hex()
                )
        if study.series != series_count:
            yield Wrong(Severity.INDEX, "a study has another number of series than it says", study_id.hex())
        if study.instances != instance_count:
            yield Wrong(
                Severity.INDEX, "a study has another number of instances than it says", study_id.hex()
            )
        if set(study.modalities) != modalities - {""}:
            yield Wrong(Severity.INDEX, "a study has other modalities than it says", study_id.hex())
        seen_series += series_count
        seen_instances += instance_count
    if seen_series != sum(1 for _ in snapshot.scan(SERIES)):
        for key, _ in snapshot.scan(SERIES):
            if snapshot.get(STUDY, key[:STUDY_ID_BYTES]) is None:
                yield Wrong(Severity.INDEX, "a series has no study", key.hex())
    if seen_instances != sum(1 for _ in snapshot.scan(INSTANCE)):
        for key, _ in snapshot.scan(INSTANCE):
            if snapshot.get(SERIES, key[:_SERIES]) is None:
                yield Wrong(Severity.INDEX, "an instance has no series", key.hex())
    for key, _ in snapshot.scan(VERSION):
        if snapshot.get(INSTANCE, key[:INSTANCE_KEY_BYTES]) is None:
            yield Wrong(Severity.INDEX, "a kept version has no instance", key.hex())
    for key, sealed in snapshot.scan(PATIENT):
        patient = _row(archive, PATIENT, key, sealed, PatientRow)
        if patient is not None:
            patients.add(key, b"", -patient.studies)
    if patients.value:
        yield from _patients_one_by_one(archive, snapshot)


def _patients_one_by_one(archive: Archive, snapshot: Snapshot) -> Iterator[Wrong]:
    counted: dict[bytes, int] = {}
    for _, study in _found_studies(archive, snapshot):
        counted[study.patient_key] = counted.get(study.patient_key, 0) + 1
    for key, sealed in snapshot.scan(PATIENT):
        patient = _row(archive, PATIENT, key, sealed, PatientRow)
        if patient is not None and patient.studies != counted.get(key, 0):
            yield Wrong(Severity.INDEX, "a patient has another number of studies than it says", key.hex())


# ---------------------------------------------------------------- places and tokens


def check_places(archive: Archive, snapshot: Snapshot) -> Iterator[Wrong]:
    """Each series and each instance is found by its UID alone, and nothing else is."""
    yield from _compare(archive, snapshot, PLACE, "places", _places)


def _places(archive: Archive, snapshot: Snapshot) -> Iterator[tuple[bytes, bytes]]:
    catalog = archive.catalog
    total = archive.entries(INSTANCE)
    hidden = {study_id for study_id, study in _studies(archive, snapshot) if is_hidden(study.uid)}
    for key, sealed in snapshot.scan(SERIES):
        series = _row(archive, SERIES, key, sealed, SeriesRow)
        if series is not None and key[:_STUDY] not in hidden:
            yield catalog.place_key("series", series.uid), key
    for number, (key, sealed) in enumerate(snapshot.scan(INSTANCE)):
        if number % 1000 == 0:
            archive.progress("places", number, total)
        instance = _row(archive, INSTANCE, key, sealed, InstanceRow)
        if instance is not None and key[:_STUDY] not in hidden:
            yield catalog.place_key("instance", instance.sop_uid), key[:_SERIES]


def check_tokens(archive: Archive, snapshot: Snapshot) -> Iterator[Wrong]:
    """Each study is found by its exact values, and by nothing else."""
    yield from _compare(archive, snapshot, TOKEN, "tokens", _tokens)


def _tokens(archive: Archive, snapshot: Snapshot) -> Iterator[tuple[bytes, bytes]]:
    total = archive.entries(STUDY)
    for number, (study_id, study) in enumerate(_found_studies(archive, snapshot)):
        archive.progress("tokens", number, total)
        yield from tokens.exact_postings(archive.hashes, study_id, study)


def check_lookups(archive: Archive, snapshot: Snapshot) -> Iterator[Wrong]:
    """Each record of a plugin is found by its keys, and by nothing else."""
    yield from _compare(archive, snapshot, LOOKUP, "lookups", _lookups)


def _lookups(archive: Archive, snapshot: Snapshot) -> Iterator[tuple[bytes, bytes]]:
    total = archive.entries(RECORD)
    for number, (key, sealed) in enumerate(snapshot.scan(RECORD)):
        if number % 1000 == 0:
            archive.progress("lookups", number, total)
        record = _row(archive, RECORD, key, sealed, RecordRow)
        if record is not None and is_record_key(key):
            for lookup in lookup_keys(archive.hashes, key, record):
                yield lookup, b""


def _compare(
    archive: Archive,
    snapshot: Snapshot,
    table: Table,
    what: str,
    expected: Callable[[Archive, Snapshot], Iterator[tuple[bytes, bytes]]],
) -> Iterator[Wrong]:
    """That a table of postings holds what is expected; one by one only when the sums differ."""
    difference = _Sum()
    for key, value in expected(archive, snapshot):
        difference.add(key, value, +1)
    for key, value in _entries(snapshot, table):
        difference.add(key, value, -1)
    if not difference.value:
        return
    wanted = set(expected(archive, snapshot))
    for key, value in _entries(snapshot, table):
        if (key, value) not in wanted:
            yield Wrong(
                Severity.INDEX, f"a stray posting in {what}: something is found that is not there", key.hex()
            )
        wanted.discard((key, value))
    for key, _ in sorted(wanted):
        yield Wrong(
            Severity.INDEX, f"a posting is missing in {what}: something that is there is not found", key.hex()
        )


def _entries(snapshot: Snapshot, table: Table) -> Iterator[tuple[bytes, bytes]]:
    return snapshot.scan(table) if table is LOOKUP else snapshot.entries(table)


def check_grams(archive: Archive, snapshot: Snapshot) -> Iterator[Wrong]:
    """What wildcards and words find: studies that are not fresh have their merged postings, all of them."""
    if archive.quick:
        return
    difference = _Sum()
    fresh = {key for key, _ in snapshot.scan(FRESH)}
    total = archive.entries(STUDY)
    for number, (study_id, study) in enumerate(_found_studies(archive, snapshot)):
        archive.progress("grams", number, total)
        if study_id in fresh:
            continue
        for token, value in _gram_postings(archive, study_id, study):
            difference.add(token, value, +1)
        held = _row(archive, GRAMS, study_id, snapshot.get(GRAMS, study_id), merging.GramsRow)
        if held is None and study.tokenizer == tokens.TOKENIZER:
            yield Wrong(
                Severity.INDEX, "a study that is not fresh has no record of its grams", study_id.hex()
            )
    for key, block in snapshot.scan(GRAM):
        token, last = key[:TOKEN_BYTES], key[TOKEN_BYTES:] == b"\xff" * postings.VALUE_BYTES
        for value in _values(block[postings.VALUE_BYTES :] if last else block):
            difference.add(token, value, -1)
    if not difference.value:
        return
    wanted: dict[bytes, set[bytes]] = {}
    for study_id, study in _found_studies(archive, snapshot):
        if study_id not in fresh:
            for token, value in _gram_postings(archive, study_id, study):
                wanted.setdefault(token, set()).add(value)
    for key, block in snapshot.scan(GRAM):
        last = key[TOKEN_BYTES:] == b"\xff" * postings.VALUE_BYTES
        held_values = wanted.get(key[:TOKEN_BYTES], set())
        for value in _values(block[postings.VALUE_BYTES :] if last else block):
            if value in held_values:
                held_values.discard(value)
            elif not fresh:  # of fresh studies former and present grams may both stand
                yield Wrong(Severity.INDEX, "a stray gram: a study is looked at in vain", key.hex())
    for token in (token for token, values in wanted.items() for _ in values):
        yield Wrong(Severity.INDEX, "a gram is missing: a wildcard does not find a study", token.hex())


def _gram_postings(archive: Archive, study_id: bytes, study: StudyRow) -> Iterator[tuple[bytes, bytes]]:
    value = (tokens.inverted_day(study.attributes) + study_id)[: postings.VALUE_BYTES]
    for token in tokens.merged_tokens(archive.hashes, tokens.merged_attributes(study)):
        yield token, value


def _values(block: bytes) -> Iterator[bytes]:
    for start in range(0, len(block), postings.VALUE_BYTES):
        yield block[start : start + postings.VALUE_BYTES]


# ---------------------------------------------------------------- journal


def check_journal(archive: Archive, snapshot: Snapshot) -> Iterator[Wrong]:
    """Every number has its event, and every event opens."""
    expected: int | None = None
    total = snapshot.last(JOURNAL)
    for key, sealed in snapshot.scan(JOURNAL):
        sequence = int(_SEQUENCE.unpack(key)[0])
        if sequence % 1000 == 0:
            archive.progress("journal", sequence, total)
        if expected is not None and sequence != expected:
            yield Wrong(Severity.INDEX, "events of the journal are missing", f"{expected} to {sequence - 1}")
        expected = sequence + 1
        try:
            if not archive.quick:
                decode(Event, archive.sealer.open(JOURNAL, key, sealed))
        except (SealError, msgspec.MsgspecError):
            yield Wrong(Severity.INDEX, "an event of the journal does not open", str(sequence))


# ---------------------------------------------------------------- sums


class _Sum:
    """A sum of hashes of pairs: zero when as many of each were added as were taken away."""

    def __init__(self) -> None:
        self.value = 0

    def add(self, key: bytes, value: bytes, times: int) -> None:
        digest = hashlib.blake2b(key + b"\0" + value, digest_size=16).digest()
        self.value = (self.value + times * int.from_bytes(digest, "big")) & _MASK


def _studies(archive: Archive, snapshot: Snapshot) -> Iterator[tuple[bytes, StudyRow]]:
    for key, sealed in snapshot.scan(STUDY):
        row = _row(archive, STUDY, key, sealed, StudyRow)
        if row is not None:
            yield key, row


def _found_studies(archive: Archive, snapshot: Snapshot) -> Iterator[tuple[bytes, StudyRow]]:
    """Those that searches find: not those of rejected objects."""
    return ((key, study) for key, study in _studies(archive, snapshot) if not is_hidden(study.uid))


AnyRow = TypeVar("AnyRow", bound=msgspec.Struct)


def _row(
    archive: Archive, table: Table, key: bytes, sealed: bytes | None, kind: type[AnyRow]
) -> AnyRow | None:
    """The row, or None when it does not open, which the check of the rows says."""
    if sealed is None:
        return None
    try:
        return decode(kind, archive.sealer.open(table, key, sealed))
    except (SealError, msgspec.MsgspecError, KeyringError):
        return None
