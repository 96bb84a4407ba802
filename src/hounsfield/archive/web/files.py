"""Stored objects as Part 10 files on their way out: what each is, how long, and its bytes."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing
from functools import lru_cache

from hounsfield.archive.dicom.cuts import Layout
from hounsfield.archive.dicom.part10 import file_header
from hounsfield.archive.engine.engine import Engine
from hounsfield.archive.engine.target_syntaxes import sop_uid_of
from hounsfield.archive.engine.types import Instance, Overlay
from hounsfield.archive.web.conditional import Validators, entity_tag
from hounsfield.codecs.registry import EXPLICIT_VR_LITTLE_ENDIAN, lookup
from hounsfield.storage_backends.api import Buffer


class Files:
    """Gives instances as files, with the corrections that are in force."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def is_known(self, one: Instance) -> bool:
        """Whether a file's length is known without reading: a corrected header must be made first."""
        return one.row.location.has_table and not self._engine.is_corrected(one)

    async def length(self, one: Instance) -> int:
        """Bytes of the file."""
        return len(meta_of(one)) + await self._engine.dataset_bytes(one)

    async def recoded(
        self, one: Instance, syntax: str, *, before: bytes = b""
    ) -> AsyncGenerator[Sequence[Buffer], None]:
        """``before``, and the file in another transfer syntax, as it is made."""
        yield (before + meta_of(one, syntax),)
        async with aclosing(self._engine.transcoded(one, syntax)) as buffers:  # type: ignore[type-var]
            async for buffer in buffers:
                yield (buffer,)

    async def data_set(self, one: Instance, *, before: bytes) -> AsyncGenerator[Sequence[Buffer], None]:
        """``before``, and the data set as it is delivered."""
        yield (before,)
        async with aclosing(self._engine.dataset(one)) as buffers:  # type: ignore[type-var]
            async for buffer in buffers:
                yield (buffer,)

    async def pieces(
        self, one: Instance, start: int = 0, stop: int | None = None
    ) -> AsyncGenerator[Sequence[Buffer], None]:
        """The file's bytes from ``start`` to ``stop``; no empty read follows the last.

        Of an object that is not corrected, bytes that are not asked for are not read.
        """
        meta = meta_of(one)
        if stop is None and self.is_known(one):
            stop = await self.length(one)
        left = -1 if stop is None else stop - start
        first = meta[start : len(meta) if stop is None else stop]
        waiting: tuple[bytes, ...] = (first,) if first else ()
        left -= len(first) if left >= 0 else 0
        start = max(start - len(meta), 0)
        if left:
            if self._engine.is_corrected(one):
                found, skip = self._engine.dataset(one), start
            else:
                end = None if stop is None else stop - len(meta)
                found, skip = self._engine.dataset(one, start=start, stop=end), 0
            async with aclosing(found) as buffers:  # type: ignore[type-var]
                async for buffer in buffers:
                    if skip >= len(buffer):
                        skip -= len(buffer)
                        continue
                    data = memoryview(buffer)[skip:]
                    skip = 0
                    if left >= 0:
                        data = data[:left]
                        left -= len(data)
                    yield (*waiting, data)
                    waiting = ()
                    if left == 0:
                        return
        if waiting:
            yield waiting


def given_as(one: Instance, wanted: str) -> str:
    """The transfer syntax in which an instance leaves when ``wanted`` is asked for, "" meaning as stored.

    What has no pixel data cannot be encapsulated: it is Explicit VR Little Endian then.
    """
    stored = lookup(one.row.transfer_syntax_uid)
    if wanted in ("", stored.uid):
        return one.row.transfer_syntax_uid
    if Layout(one.row.layout) is Layout.HEADER_ONLY and not stored.deflated and lookup(wanted).encapsulated:
        return EXPLICIT_VR_LITTLE_ENDIAN.uid
    return wanted


def meta_of(one: Instance, syntax: str = "") -> bytes:
    """Preamble and file meta information; ``syntax``: the transfer syntax into which it was brought."""
    syntax = syntax or one.row.transfer_syntax_uid
    return _file_header(syntax, one.row.sop_class_uid, sop_uid_of(one, syntax))


_file_header = lru_cache(maxsize=64)(file_header)  # asked for its length, then for itself


def validators_of(one: Instance, *given: str, weak: bool = False) -> Validators:
    """What tells one state of an instance from another; ``given``: what of it is given, and how."""
    changed = 0 if isinstance(one.overlay, Overlay) else one.row.received_ns
    return Validators(entity_tag(*given, *_state(one), weak=weak), changed)


def validators_of_all(found: Iterable[Instance], *given: str) -> Validators:
    """The same of several instances together, with new framing each time."""
    parts = [part for one in found for part in _state(one)]
    return Validators(entity_tag(*given, *parts, weak=True))


def _state(one: Instance) -> tuple[bytes, str]:
    return one.row.location.record_id, one.overlay.stamp if isinstance(one.overlay, Overlay) else ""


def part_type(one: Instance, syntax: str = "") -> bytes:
    """The Content-Type of the file."""
    uid = syntax or one.row.transfer_syntax_uid
    if not uid.replace(".", "").isdigit():  # a stored object can say anything; a header line cannot
        return b"application/dicom"
    return b"application/dicom; transfer-syntax=" + uid.encode("ascii")
