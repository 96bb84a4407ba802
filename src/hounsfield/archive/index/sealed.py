"""Index rows are sealed, index keys are keyed hashes: nothing on disk says who was examined.

A sealed row is ``epoch (4 bytes, big endian) | nonce (12) | AES-256-GCM ciphertext and tag``. The
associated data is the table's name and the row's key, so a row moved to another place does not open.

Nonces are random, so one key may seal only so many rows (NIST SP 800-38D 8.3: at most 2^32 for a
collision risk of 2^-32). Rows are rewritten often, therefore sealing keys are *epochs*: processes
reserve seals from the current epoch in blocks, in the index itself, and an epoch that has given
out ``SEALS_PER_EPOCH`` is followed by a new one with a fresh random key. Old epochs only open.
"""

from __future__ import annotations

import hashlib
import os
import struct
import threading
from collections.abc import Iterable
from functools import lru_cache
from typing import Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from hounsfield.archive.index.tables import META
from hounsfield.storage_backends.api import Batch, KeyValueStore, Table
from hounsfield.storage_backends.errors import PreconditionError, SealError

SEALS_PER_EPOCH = 1 << 29  # half of the 2^30 that the design allows, so that a block may overshoot
SEALS_PER_RESERVATION = 1 << 20  # lost at a crash; 512 reservations to an epoch
SEALS_MARGIN = 1 << 14  # a reservation is renewed while this many are left: more than any one commit seals

DIGESTS_REMEMBERED = 8192  # half a megabyte: the UIDs of what is being received and looked at now

EPOCH_KEY = b"epoch"
_EPOCH_ROW = struct.Struct(">IQ")  # epoch, seals reserved so far
_EPOCH_PREFIX = struct.Struct(">I")
_NONCE_BYTES = 12
_OVERHEAD = 4 + _NONCE_BYTES + 16


def last_epoch(held: bytes | None) -> int:
    """The number of the last sealing key that was used, from what is held under ``EPOCH_KEY``; 0 for none."""
    return 0 if held is None else int(_EPOCH_ROW.unpack(held)[0])


class Keys(Protocol):
    """The part of a keyring that the index needs."""

    def key(self, purpose: str, key_id: str) -> bytes: ...

    def ensure_key(self, purpose: str, key_id: str) -> bytes: ...

    def ensure_keys(self, purpose: str, key_ids: Iterable[str]) -> list[bytes]: ...

    def key_ids(self, purpose: str) -> list[str]: ...


class RowSealer:
    """Seals and opens index rows. Thread-safe; one per process and store.

    ``purpose`` is what the keyring calls the keys; no two stores of an archive share one.
    """

    def __init__(self, store: KeyValueStore, keys: Keys, *, purpose: str = "index") -> None:
        self._store = store
        self._keys = keys
        self._purpose = purpose
        self._lock = threading.Lock()
        self._ciphers: dict[int, AESGCM] = {}
        self._epoch = 0
        self._left = 0

    def prepare(self, seals: int = 0) -> None:
        """Reserve so that at least ``seals`` more rows can be sealed. Never call it inside a commit."""
        with self._lock:
            if self._left >= seals + SEALS_MARGIN:
                return
            while True:
                with self._store.snapshot() as snapshot:
                    held = snapshot.get(META, EPOCH_KEY)
                epoch, used = _EPOCH_ROW.unpack(held) if held is not None else (1, 0)
                if used >= SEALS_PER_EPOCH:
                    epoch, used = epoch + 1, 0
                # Durable before the first row that it seals.
                key = self._keys.ensure_key(self._purpose, str(epoch))
                wanted = SEALS_PER_RESERVATION + seals
                batch = Batch(uses_reserve=True)  # one row, without which a full archive could not start
                batch.require(META, EPOCH_KEY, held)
                batch.put(META, EPOCH_KEY, _EPOCH_ROW.pack(epoch, used + wanted))
                try:
                    self._store.commit(batch)
                except PreconditionError:
                    continue  # another process reserved first
                self._ciphers[epoch] = AESGCM(key)
                self._epoch, self._left = epoch, wanted
                return

    def start_new_epoch(self) -> None:
        """Seal nothing more with the keys so far: an older index does not count all that they sealed."""
        made = [int(key_id) for key_id in self._keys.key_ids(self._purpose) if key_id.isdigit()]
        with self._lock:
            with self._store.snapshot() as snapshot:
                held = snapshot.get(META, EPOCH_KEY)
            epoch = max([last_epoch(held), *made])
            batch = Batch(uses_reserve=True)
            batch.require(META, EPOCH_KEY, held)
            batch.put(META, EPOCH_KEY, _EPOCH_ROW.pack(epoch, SEALS_PER_EPOCH))
            self._store.commit(batch)
            self._left = 0

    def seal(self, table: Table, key: bytes, plaintext: bytes) -> bytes:
        """The sealed row for ``key`` of ``table``; ``prepare`` must have reserved for it."""
        with self._lock:
            if self._left <= 0:
                raise SealError(
                    "no seals are reserved; the engine must call prepare() before it builds a commit"
                )
            self._left -= 1
            epoch = self._epoch
        nonce = os.urandom(_NONCE_BYTES)
        sealed = self._ciphers[epoch].encrypt(nonce, plaintext, _bound_to(table, key))
        return _EPOCH_PREFIX.pack(epoch) + nonce + sealed

    def open(self, table: Table, key: bytes, sealed: bytes) -> bytes:
        """The plaintext; ``SealError`` when the row was changed, moved or sealed with another key."""
        if len(sealed) < _OVERHEAD:
            raise SealError(f"a row of table {table.name!r} is cut short; run `hounsfield reindex`")
        (epoch,) = _EPOCH_PREFIX.unpack_from(sealed)
        cipher = self._ciphers.get(epoch)
        if cipher is None:
            cipher = self._ciphers[epoch] = AESGCM(self._keys.key(self._purpose, str(epoch)))
        try:
            return cipher.decrypt(sealed[4:16], sealed[16:], _bound_to(table, key))
        except InvalidTag:
            raise SealError(
                f"a row of table {table.name!r} does not open: it was changed or moved; "
                "run `hounsfield reindex`"
            ) from None


def _bound_to(table: Table, key: bytes) -> bytes:
    return table.name.encode() + b"\0" + key


class KeyedHash:
    """Keyed hashes of identifiers: keyed BLAKE2b (RFC 7693), one independent random key per field."""

    def __init__(self, keys: Keys) -> None:
        self._keys = keys
        self._fields: dict[str, bytes] = {}
        # An object's UIDs are hashed a dozen times on its way in, its study's for every object.
        self.digest = lru_cache(maxsize=DIGESTS_REMEMBERED)(self._digest)

    def prepare(self, fields: Iterable[str]) -> None:
        """Have the fields' keys at hand: making one takes several syncs, which no object should wait for."""
        wanted = list(fields)
        self._fields.update(zip(wanted, self._keys.ensure_keys("token", wanted), strict=True))

    def digest_once(self, field: str, value: str, length: int) -> bytes:
        """As :meth:`digest`, without remembering it: for values that would push out what comes again."""
        return self._digest(field, value, length)

    def _digest(self, field: str, value: str, length: int) -> bytes:
        """``length`` (at most 64) bytes that say nothing about ``value`` without the field's key."""
        key = self._fields.get(field)
        if key is None:
            key = self._fields[field] = self._keys.ensure_key("token", field)
        return hashlib.blake2b(value.encode(), key=key, digest_size=length).digest()
