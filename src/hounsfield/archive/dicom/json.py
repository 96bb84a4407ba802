"""DICOM JSON (PS3.18 Annex F) straight from encoded bytes: no data set object is built in between.

Input is what an archive keeps of an object: the header slice and the trailer slice of ``scan``'s cuts (the
frames in between are not needed), or the whole data set where that is one slice. Output is UTF-8.

* Text is decoded and trimmed; (0008,0005) becomes ISO_IR 192, since that is what the text is in now.
* Values are those of :mod:`~hounsfield.archive.dicom.json_model`; a NaN or infinity is null.
* Binary values up to ``inline_bytes_max`` are InlineBinary, little endian; longer ones, and top-level pixel
  data always, are a BulkDataURI that ends in ``bulkdata/`` and the path to the element:
  ``00880200/1/7FE00010`` is an element of the first item of a sequence. ``bulk.find_bulk`` follows it.
* UN gets the VR that PS3.6 or a known private creator gives the element (PS3.5 6.2.2).
* A sequence that takes an object past ``ELEMENTS_MAX`` is a UN with a BulkDataURI: its encoded items.
* Group lengths, group 2 and trailing padding are left out.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Final

from hounsfield.archive.dicom.deflated import plain_header
from hounsfield.archive.dicom.ends import may_have_elements, trailer_start
from hounsfield.archive.dicom.json_elements import Encoder, Memo
from hounsfield.archive.dicom.json_likeness import Likeness, Met
from hounsfield.archive.dicom.text import DEFAULT_CHARACTER_SET, CharacterSet
from hounsfield.archive.dicom.walk import Budget, looks_implicit
from hounsfield.codecs.registry import TransferSyntax

Buffer = bytes | bytearray | memoryview

#: Longer binary values become links. What viewers compute with (private scale factors, small lookup tables)
#: is shorter.
INLINE_BYTES_MAX: Final = 1024
#: What a ``JsonWriter`` remembers; a series of CT slices needs 0.1 MB and two of the values of each slice.
MEMO_BYTES_MAX: Final = 8 << 20
LIKENESS_BYTES_MAX: Final = 1 << 20  # of a header whose stretches are compared; two are held


def to_json(
    header: Buffer,
    trailer: Buffer,
    transfer_syntax: TransferSyntax,
    *,
    base_uri: str = "",
    inline_bytes_max: int = INLINE_BYTES_MAX,
) -> bytes:
    """One object's metadata as a DICOM JSON object (PS3.18 F.2). ``base_uri`` is put before ``bulkdata/…``.

    Never raises on bytes. Several objects are these, joined by commas, in brackets; for those a
    :class:`JsonWriter` is faster.
    """
    return JsonWriter(inline_bytes_max).write(header, trailer, transfer_syntax, base_uri=base_uri)


class JsonWriter:
    """Makes the metadata of objects that resemble each other, such as the slices of a series.

    An element that was met before, in the same bytes and under the same circumstances, is not encoded again:
    of a CT slice that is nine in ten. Not thread-safe. What it remembers is bounded by ``memo_bytes_max``.
    """

    def __init__(
        self, inline_bytes_max: int = INLINE_BYTES_MAX, memo_bytes_max: int = MEMO_BYTES_MAX
    ) -> None:
        self._inline_bytes_max = inline_bytes_max
        self._memo = Memo(memo_bytes_max)
        self._likeness: dict[tuple[bool, bool], Likeness] = {}

    def write(
        self, header: Buffer, trailer: Buffer, transfer_syntax: TransferSyntax, *, base_uri: str = ""
    ) -> bytes:
        """As :func:`to_json`."""
        body = plain_header(header, transfer_syntax)
        little = transfer_syntax.little_endian
        implicit = looks_implicit(body, 0, len(body), transfer_syntax.implicit_vr)
        encoder = Encoder(little, base_uri, self._inline_bytes_max, self._memo)
        likeness = self._likeness.setdefault((implicit, little), Likeness(implicit, little))
        met: list[Met] | None = None
        if len(body) <= LIKENESS_BYTES_MAX and not likeness.is_hopeless and not may_have_elements(trailer):

            def encode(start: int, end: int, charset: CharacterSet, signed: bool, out: list[bytes]) -> None:
                encoder.signed = signed
                encoder.dataset(body, start, end, implicit, out, charset, "", 0)

            if (found := likeness.write(body, encode)) is not None:
                return b"{" + b",".join(found) + b"}"
            encoder = Encoder(little, base_uri, self._inline_bytes_max, self._memo)
            met = []
        fragments: list[bytes] = []
        charset = encoder.dataset(body, 0, len(body), implicit, fragments, DEFAULT_CHARACTER_SET, "", 0, met)
        if met is not None:
            likeness.learn(body, met, fragments)
        if may_have_elements(trailer):
            tail = bytes(trailer)
            start = trailer_start(body, tail, implicit, little, encoder.budget)
            encoder.budget = Budget(ends={})
            encoder.dataset(tail, start, len(tail), implicit, fragments, charset, "", 0)
        if any(a[:9] >= b[:9] for a, b in pairwise(fragments)):
            fragments = sorted({fragment[:9]: fragment for fragment in fragments}.values())
        return b"{" + b",".join(fragments) + b"}"
