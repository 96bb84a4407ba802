"""Sealing and opening the parts of one record: plaintext to ciphertext in one pass, no copy between.

Buffers are the caller's: ``encrypt_into`` and ``decrypt_into`` work outside the interpreter lock,
while the allocating calls hold it (512 KiB takes about 60 µs; two threads run side by side).
"""

from __future__ import annotations

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from hounsfield.storage_backends import segment_format as layout
from hounsfield.storage_backends.api import Buffer
from hounsfield.storage_backends.errors import SealError

__all__ = ["PartSeal", "RecordSeal", "open_short_part"]


class RecordSeal:
    """The key of one record, and what binds its parts to their places."""

    __slots__ = ("_aead", "_kind", "_part_count", "_record_id", "_segment")

    def __init__(
        self, segment_key: bytes, segment: bytes, record_id: bytes, kind: int, part_count: int
    ) -> None:
        self._aead = AESGCM(layout.record_key(segment_key, record_id))
        self._segment = segment
        self._record_id = record_id
        self._kind = kind
        self._part_count = part_count

    def part(self, number: int) -> PartSeal:
        """The seal of one part."""
        bound_to = layout.associated_data(
            self._segment, self._record_id, kind=self._kind, part=number, part_count=self._part_count
        )
        return PartSeal(self._aead, self._record_id, number, bound_to)


def open_short_part(  # noqa: PLR0917
    segment_key: bytes,
    segment: bytes,
    record_id: bytes,
    kind: int,
    number: int,
    part_count: int,
    sealed: Buffer,
) -> bytes:
    """The plaintext of a part that is one chunk, for rows and headers: thousands are opened in a row.

    Holds the interpreter's lock, which for a few kilobytes takes less than to let go of it. ``SealError``.
    """
    bound_to = layout.associated_data(segment, record_id, kind=kind, part=number, part_count=part_count)
    try:
        return AESGCM(layout.record_key(segment_key, record_id)).decrypt(
            layout.nonce(number, 0, True), sealed, bound_to
        )
    except InvalidTag:
        raise _changed(number, record_id) from None


def _changed(number: int, record_id: bytes) -> SealError:
    return SealError(
        f"part {number} of record {record_id.hex()} does not open: its bytes were changed; "
        "restore it from another copy"
    )


class PartSeal:
    """Seals or opens the chunks of one part."""

    __slots__ = ("_aead", "_bound_to", "_number", "_record_id")

    def __init__(self, aead: AESGCM, record_id: bytes, number: int, bound_to: bytes) -> None:
        self._aead = aead
        self._record_id = record_id
        self._number = number
        self._bound_to = bound_to

    def seal(self, chunk: int, last: bool, plain: Buffer, into: memoryview) -> None:
        """Fill ``into`` (16 bytes longer than ``plain``) with ciphertext and tag."""
        self._aead.encrypt_into(layout.nonce(self._number, chunk, last), plain, self._bound_to, into)

    def open(self, chunk: int, last: bool, sealed: Buffer, into: memoryview) -> None:
        """Fill ``into`` (16 bytes shorter than ``sealed``), or raise ``SealError``."""
        try:
            self._aead.decrypt_into(layout.nonce(self._number, chunk, last), sealed, self._bound_to, into)
        except InvalidTag:
            raise _changed(self._number, self._record_id) from None
