"""A deflated data set passes by: stored as it is, inflated on the way for what is in it (PS3.5 A.5)."""

from __future__ import annotations

import dataclasses
import zlib
from typing import Final, TypeAlias

from hounsfield.archive.dicom.cuts import Layout
from hounsfield.archive.dicom.incremental import IncrementalLimits, IncrementalScan, StreamScanned
from hounsfield.archive.dicom.problems import Problem
from hounsfield.archive.dicom.scan import Buffer
from hounsfield.codecs.registry import TransferSyntax

__all__ = ["DeflatedScan", "PassingScan", "open_scan"]

_INFLATE_STEP_BYTES: Final = 512  # what damage costs of the output before it; as in ``inflate``


class DeflatedScan:
    """One pass over one deflated data set (PS3.5 A.5), with the methods of :class:`IncrementalScan`."""

    def __init__(self, syntax: TransferSyntax, limits: IncrementalLimits | None = None) -> None:
        limits = limits or IncrementalLimits()
        self._syntax = syntax
        self._scan = IncrementalScan(dataclasses.replace(syntax, deflated=False), limits)
        self._received = 0
        self._inflated_max = limits.scan.inflated_bytes_max
        self._inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        self._carry = bytearray()
        self._begun = bytearray()  # all input so far, until there is output: for a second try
        self._inflated = 0
        self._problems: dict[Problem, None] = {}
        self._done = False

    @property
    def held_bytes(self) -> int:
        """Bytes of memory that this scan holds, and will hold at its end, about."""
        return self._scan.held_bytes + len(self._begun)

    def feed(self, data: Buffer) -> None:
        """Take the next bytes; in steps of a fixed size, so that damage costs the same however they came."""
        view = memoryview(data).cast("B")
        self._received += len(view)
        while view and not self._done:
            taken = _INFLATE_STEP_BYTES - len(self._carry)
            self._carry += view[:taken]
            view = view[taken:]
            if len(self._carry) == _INFLATE_STEP_BYTES:
                step = bytes(self._carry)
                self._carry.clear()
                self._step(step)

    def so_far(self) -> StreamScanned | None:
        """What the header says, as if nothing followed it; None as long as it is not there whole."""
        return self._scan.so_far()

    def _step(self, step: bytes) -> None:
        if not self._inflated:
            self._begun += step
        try:
            self._inflate(step)
        except zlib.error:
            again = bytes(self._begun)
            first = Problem.BAD_DEFLATE not in self._problems
            self._problems[Problem.BAD_DEFLATE] = None
            if self._inflated or not first:
                self._done = True
                return
            # Some writers add a zlib header.
            self._inflater = zlib.decompressobj(zlib.MAX_WBITS)
            self._begun.clear()
            for start in range(0, len(again), _INFLATE_STEP_BYTES):
                if not self._done:
                    self._step(again[start : start + _INFLATE_STEP_BYTES])

    def _inflate(self, step: bytes) -> None:
        out: list[bytes] = []
        size = self._inflated
        while step and not self._inflater.eof:
            if size >= self._inflated_max:
                self._problems[Problem.INFLATES_TOO_FAR] = None
                self._done = True
                break
            plain = self._inflater.decompress(step, self._inflated_max - size)
            step = self._inflater.unconsumed_tail
            out.append(plain)
            size += len(plain)
        for plain in out:
            self._scan.feed(plain)
        self._inflated = size
        self._done = self._done or self._inflater.eof

    def finish(self) -> StreamScanned:
        """What the data set was. Its elements lie in what was inflated and kept."""
        if self._carry and not self._done:
            step = bytes(self._carry)
            self._carry.clear()
            self._step(step)
        if Problem.INFLATES_TOO_FAR not in self._problems and not self._inflater.eof:
            self._problems[Problem.TRUNCATED] = None
        found = self._scan.finish()
        inner = found.scanned
        inner.syntax = self._syntax
        inner.layout, inner.cuts, inner.inflated = Layout.HEADER_ONLY, [0, self._received], found.rest
        inner.problems = tuple(dict.fromkeys((*self._problems, *inner.problems)))
        return StreamScanned(inner, found.rest, b"", self._received)


PassingScan: TypeAlias = IncrementalScan | DeflatedScan


def open_scan(syntax: TransferSyntax, limits: IncrementalLimits | None = None) -> PassingScan:
    """A scan of one data set that passes by, whatever its transfer syntax."""
    return DeflatedScan(syntax, limits) if syntax.deflated else IncrementalScan(syntax, limits)
