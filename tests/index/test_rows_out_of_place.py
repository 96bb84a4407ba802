"""A sealed row opens at its place only, and keys never seal more than they may."""

from __future__ import annotations

from pathlib import Path

import pytest

from hounsfield.archive.index import sealed
from hounsfield.archive.index.rows import RECORD_KIND_OBJECT, Location
from hounsfield.archive.index.sealed import KeyedHash, RowSealer
from hounsfield.archive.index.tables import ALL_TABLES, SERIES, STUDY
from hounsfield.storage_backends.errors import SealError
from hounsfield.storage_backends.keyring import Keyring
from hounsfield.storage_backends.master_key import MasterKey
from hounsfield.storage_backends.memory_store import MemoryStore
from hounsfield.storage_backends.segment_format import RecordRef


@pytest.fixture
def keyring(tmp_path: Path) -> Keyring:
    return Keyring.create(tmp_path / "keys", MasterKey.generate())


def sealer_of(keyring: Keyring, store: MemoryStore) -> RowSealer:
    sealer = RowSealer(store, keyring)
    sealer.prepare(10)
    return sealer


def test_a_row_opens_where_it_was_sealed_and_nowhere_else(keyring: Keyring) -> None:
    sealer = sealer_of(keyring, MemoryStore(ALL_TABLES))
    row = sealer.seal(STUDY, b"key-1", b"plain")
    assert sealer.open(STUDY, b"key-1", row) == b"plain"
    for table, key in ((STUDY, b"key-2"), (SERIES, b"key-1"), (STUDY, b"")):
        with pytest.raises(SealError):
            sealer.open(table, key, row)


def test_every_flipped_bit_and_every_cut_is_noticed(keyring: Keyring) -> None:
    sealer = sealer_of(keyring, MemoryStore(ALL_TABLES))
    row = sealer.seal(STUDY, b"k", b"plain text")
    for index in range(4, len(row)):
        changed = bytearray(row)
        changed[index] ^= 1
        with pytest.raises(SealError):
            sealer.open(STUDY, b"k", bytes(changed))
    for length in range(len(row)):
        with pytest.raises(SealError):
            sealer.open(STUDY, b"k", row[:length])


def test_sealing_without_a_reservation_is_refused(keyring: Keyring) -> None:
    with pytest.raises(SealError):
        RowSealer(MemoryStore(ALL_TABLES), keyring).seal(STUDY, b"k", b"plain")


def test_an_epoch_that_is_used_up_is_followed_by_another(
    keyring: Keyring, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sealed, "SEALS_PER_EPOCH", 64)
    monkeypatch.setattr(sealed, "SEALS_PER_RESERVATION", 16)
    monkeypatch.setattr(sealed, "SEALS_MARGIN", 1)
    store = MemoryStore(ALL_TABLES)
    writers = [RowSealer(store, keyring), RowSealer(store, keyring)]  # two workers share the epochs
    rows = []
    for number in range(200):
        writer = writers[number % 2]
        writer.prepare(1)
        rows.append((number, writer.seal(STUDY, b"k%d" % number, b"row %d" % number)))
    epochs = [int.from_bytes(row[:4], "big") for _, row in rows]
    assert len(set(epochs)) >= 3
    assert max(epochs.count(epoch) for epoch in set(epochs)) <= 64 + 2 * 17
    reader = RowSealer(store, keyring)
    for number, row in rows:
        assert reader.open(STUDY, b"k%d" % number, row) == b"row %d" % number


def test_keyed_hashes_differ_by_field_and_archive(keyring: Keyring, tmp_path: Path) -> None:
    other = Keyring.create(tmp_path / "other", MasterKey.generate())
    hashes = [
        KeyedHash(keyring).digest("PatientID", "1", 16),
        KeyedHash(keyring).digest("StudyID", "1", 16),
        KeyedHash(other).digest("PatientID", "1", 16),
    ]
    assert len(set(hashes)) == 3
    assert KeyedHash(keyring).digest("PatientID", "1", 16) == hashes[0]


def test_a_frame_is_where_the_record_says_whatever_form_its_table_has() -> None:
    for frames in ((), (700,), (512, 512, 512), (3, 1 << 21, 5), (1 << 21,) * 4):
        ref = RecordRef(b"s" * 16, b"r" * 16, 4096, (100, 2000, *frames, 8), RECORD_KIND_OBJECT)
        location = Location.of(ref, None)
        assert location.ref() == ref
        for number in range(1, len(frames) + 1):
            assert location.frame_part(number) == ref.part(1 + number)
