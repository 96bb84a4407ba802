"""Data sets that no standard describes, one for each way in which senders (or liars) get them wrong."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field

CT = "1.2.840.10008.5.1.4.1.1.2"
MR = "1.2.840.10008.5.1.4.1.1.4"
IMPLICIT, EXPLICIT = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1"
BIG_ENDIAN, DEFLATED = "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99"
JPEG, J2K = "1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.90"
UNKNOWN_SYNTAX = "1.2.826.0.1.3680043.9.9999.1"

_LONG = {"OB", "OW", "SQ", "UN", "UT", "UC", "ZZ"}


@dataclass(frozen=True)
class Uids:
    """Of one object, so that no two cases meet."""

    study: str
    series: str
    sop: str


def uids_of(case: str, door: str) -> Uids:
    number = int.from_bytes(f"{case}/{door}".encode()[-12:], "big") % 10**24
    root = f"1.2.826.0.1.3680043.9.7777.{zlib.crc32(f'{case}/{door}'.encode())}.{number}"
    return Uids(f"{root}.1", f"{root}.2", f"{root}.3")


def element(tag: int, vr: str, value: bytes, *, length: int | None = None, little: bool = True) -> bytes:
    """One element in explicit VR, its value and length as given, however wrong."""
    order = "<" if little else ">"
    size = len(value) if length is None else length
    head = struct.pack(f"{order}HH", tag >> 16, tag & 0xFFFF) + vr.encode()
    if vr in _LONG:
        return head + struct.pack(f"{order}xxL", size) + value
    return head + struct.pack(f"{order}H", size) + value


def implicit(tag: int, value: bytes) -> bytes:
    return struct.pack("<HHL", tag >> 16, tag & 0xFFFF, len(value)) + value


def padded(text: str | bytes, pad: bytes = b" ") -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return raw + pad * (len(raw) % 2)


def uid(text: str) -> bytes:
    return padded(text, b"\0")


@dataclass
class Parts:
    """A small valid CT image in parts; a case changes what it wants to get wrong."""

    uids: Uids
    order: list[int] = field(default_factory=list)
    by_tag: dict[int, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        us = struct.Struct("<H").pack
        for tag, vr, value in [
            (0x00080005, "CS", b"ISO_IR 192"), (0x00080016, "UI", uid(CT)),
            (0x00080018, "UI", uid(self.uids.sop)), (0x00080020, "DA", b"20250314"),
            (0x00080060, "CS", b"CT"), (0x00100010, "PN", b"Muster^Erika"),
            (0x00100020, "LO", b"P-1 "), (0x0020000D, "UI", uid(self.uids.study)),
            (0x0020000E, "UI", uid(self.uids.series)), (0x00200013, "IS", b"1 "), (0x00280002, "US", us(1)),
            (0x00280004, "CS", b"MONOCHROME2 "), (0x00280010, "US", us(8)), (0x00280011, "US", us(8)),
            (0x00280100, "US", us(16)), (0x00280101, "US", us(12)), (0x00280102, "US", us(11)),
            (0x00280103, "US", us(0)), (0x7FE00010, "OW", bytes(range(128))),
        ]:  # fmt: skip
            self.put(tag, element(tag, vr, value))

    def put(self, tag: int, encoded: bytes) -> Parts:
        """Put an element at its place, or in the place of the one that is there."""
        if tag not in self.by_tag:
            self.order.append(tag)
            self.order.sort()
        self.by_tag[tag] = encoded
        return self

    def set(self, tag: int, vr: str, value: bytes, **how: int) -> Parts:
        return self.put(tag, element(tag, vr, value, **how))

    def without(self, *tags: int) -> Parts:
        for tag in tags:
            self.order.remove(tag)
        return self

    def before(self, tag: int) -> bytes:
        return b"".join(self.by_tag[one] for one in self.order if one < tag)

    def bytes(self) -> bytes:
        return b"".join(self.by_tag[one] for one in self.order)


def fragments(*values: bytes, end: bool = True) -> bytes:
    """Encapsulated pixel data: an empty offset table, the fragments, the delimiter."""
    items = [struct.pack("<HHL", 0xFFFE, 0xE000, len(value)) + value for value in (b"", *values)]
    return b"".join(items) + (struct.pack("<HHL", 0xFFFE, 0xE0DD, 0) if end else b"")


def nested(depth: int, *, closed: bool = True) -> bytes:
    """Sequences of undefined length in each other."""
    item = struct.pack("<HHL", 0xFFFE, 0xE000, 0xFFFFFFFF)
    open_ = element(0x00081140, "SQ", b"", length=0xFFFFFFFF) + item
    close = struct.pack("<HHL", 0xFFFE, 0xE00D, 0) + struct.pack("<HHL", 0xFFFE, 0xE0DD, 0)
    return open_ * depth + (close * depth if closed else b"")


def big_endian(parts: Parts) -> bytes:
    uids = parts.uids
    us = struct.Struct(">H").pack
    return b"".join(
        element(tag, vr, value, little=False)
        for tag, vr, value in [
            (0x00080016, "UI", uid(CT)), (0x00080018, "UI", uid(uids.sop)),
            (0x0020000D, "UI", uid(uids.study)), (0x0020000E, "UI", uid(uids.series)),
            (0x00280010, "US", us(8)),
        ]
    )  # fmt: skip


def implicit_object(parts: Parts) -> bytes:
    uids = parts.uids
    return b"".join(
        implicit(tag, value)
        for tag, value in [
            (0x00080016, uid(CT)), (0x00080018, uid(uids.sop)), (0x00100020, b"P-1 "),
            (0x0020000D, uid(uids.study)), (0x0020000E, uid(uids.series)),
        ]
    )  # fmt: skip


@dataclass(frozen=True)
class Nonsense:
    """One case: how it is made, in which syntax it is announced, and what must become of it.

    ``problems`` are flags that it must bear; ``quarantine`` the reason it is in quarantine for, "" when it is
    filed. ``sop_class`` and ``sop`` are announced; ``mismatch``: they are not what the data set says.
    ``series``: where it is filed, if not in its own. ``meta``: it begins with file meta information, of which
    a file has one already.
    """

    name: str
    make: Callable[[Parts], bytes]
    problems: tuple[str, ...] = ()
    quarantine: str = ""
    syntax: str = EXPLICIT
    sop_class: str = CT
    sop: str | None = None
    series: str | None = None
    mismatch: bool = False
    meta: bool = False


def _deflated(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-15)
    return padded(packer.compress(data) + packer.flush(), b"\0")


NO_STUDY, NO_SERIES, NO_SOP = (f"missing-{level}-instance-uid" for level in ("study", "series", "sop"))
BAD_STUDY, BAD_SERIES, BAD_SOP = (f"invalid-{level}-instance-uid" for level in ("study", "series", "sop"))
STUDY, SERIES, SOP = 0x0020000D, 0x0020000E, 0x00080018
PIXELS = 0x7FE00010

#: What is announced and what is in the data set disagree, or the data set does not say.
M = True

CASES: tuple[Nonsense, ...] = (
    Nonsense("nothing is wrong", lambda p: p.bytes()),
    # ---- no data set
    Nonsense("empty", lambda p: b"", ("empty",), NO_STUDY, mismatch=M),
    Nonsense("one byte", lambda p: b"\x08", ("truncated",), NO_STUDY, mismatch=M),
    Nonsense("zeros", lambda p: bytes(4096), ("trailing-bytes",), NO_STUDY, mismatch=M),
    Nonsense("ones", lambda p: b"\xff" * 4096, (), NO_STUDY, mismatch=M),
    Nonsense("text", lambda p: b"this is no DICOM data set at all\n" * 40, (), NO_STUDY, mismatch=M),
    Nonsense("every byte", lambda p: bytes(range(256)) * 20, (), NO_STUDY, mismatch=M),
    # ---- VRs and lengths
    Nonsense("a wrong VR", lambda p: p.set(0x00100010, "US", b"\1\0").bytes()),
    Nonsense("an unknown VR", lambda p: p.set(0x00100010, "ZZ", b"Muster").bytes(), ("unknown-vr",)),
    Nonsense(
        "a VR of no letters",
        lambda p: p.put(0x00080060, b"\x08\0\x60\0\x02\0\0\0CT").bytes(),
        ("unexpected-vr-encoding",),
    ),
    Nonsense("an odd length", lambda p: p.set(0x00100020, "LO", b"P-1").bytes()),
    Nonsense("an odd UID", lambda p: p.set(STUDY, "UI", p.uids.study.encode()).bytes()),
    Nonsense(
        "an absurd length",
        lambda p: p.set(0x00100010, "UN", b"abcd", length=0xFFFFFFF0).bytes(),
        ("truncated",),
        NO_STUDY,
    ),
    Nonsense(
        "an absurd length at the end",
        lambda p: p.set(PIXELS, "OW", bytes(128), length=0xFFFFFFF0).bytes(),
        ("truncated",),
    ),
    Nonsense(
        "an undefined length of a name",
        lambda p: p.set(0x00100010, "UN", b"abcd", length=0xFFFFFFFF).bytes(),
        ("bad-sequence",),
        NO_STUDY,
    ),
    # ---- cut off
    Nonsense("cut in an early header", lambda p: p.bytes()[:60], ("truncated",), NO_STUDY, mismatch=M),
    Nonsense("cut behind the UIDs", lambda p: p.before(0x00280002) + b"\x28\0\x02\0U", ("truncated",)),
    Nonsense("cut in the pixels", lambda p: p.bytes()[:-50], ("truncated",)),
    Nonsense(
        "cut in a sequence",
        lambda p: (
            p.before(0x00280002)
            + element(0x00400275, "SQ", b"", length=0xFFFFFFFF)
            + struct.pack("<HHL", 0xFFFE, 0xE000, 0xFFFFFFFF)
            + element(0x00400009, "SH", b"X1")
        ),
        ("truncated",),
    ),
    Nonsense(
        "cut in a sequence of known length",
        lambda p: p.before(0x00280002) + element(0x00400275, "SQ", b"\xfe\xff\0\xe0", length=400),
        ("truncated",),
    ),
    # ---- another transfer syntax than announced
    Nonsense("implicit, announced explicit", implicit_object, ("unexpected-vr-encoding",)),
    Nonsense(
        "explicit, announced implicit", lambda p: p.bytes(), ("unexpected-vr-encoding",), syntax=IMPLICIT
    ),
    Nonsense("little endian, announced big", lambda p: p.bytes(), (), NO_STUDY, BIG_ENDIAN, mismatch=M),
    Nonsense("big endian, announced little", big_endian, (), NO_STUDY, mismatch=M),
    Nonsense("native, announced JPEG", lambda p: p.bytes(), ("not-encapsulated",), syntax=JPEG),
    Nonsense(
        "JPEG 2000, announced native",
        lambda p: p.set(PIXELS, "OB", fragments(b"\xff\x4f\xff\x51ab"), length=0xFFFFFFFF).bytes(),
        ("unexpectedly-encapsulated",),
    ),
    Nonsense(
        "explicit, announced deflated", lambda p: p.bytes(), ("bad-deflate",), NO_STUDY, DEFLATED, mismatch=M
    ),
    Nonsense(
        "a syntax of nobody's", lambda p: p.bytes(), ("unknown-transfer-syntax",), syntax=UNKNOWN_SYNTAX
    ),
    # ---- what does not belong into a data set
    Nonsense(
        "meta information inside",
        lambda p: element(0x00020010, "UI", uid(EXPLICIT)) + p.bytes(),
        meta=True,
    ),
    Nonsense(
        "a command group inside",
        lambda p: element(0x00000002, "UI", uid(CT)) + p.bytes(),
        ("trailing-bytes",),
        NO_STUDY,
        mismatch=M,
    ),
    Nonsense("a whole file inside", lambda p: bytes(128) + b"DICM" + p.bytes(), (), NO_STUDY, mismatch=M),
    # ---- UIDs
    Nonsense("no study", lambda p: p.without(STUDY).bytes(), ("missing-study-uid",), NO_STUDY),
    Nonsense("no series", lambda p: p.without(SERIES).bytes(), ("missing-series-uid",), NO_SERIES),
    Nonsense(
        "no instance", lambda p: p.without(SOP).bytes(), ("missing-sop-instance-uid",), NO_SOP, mismatch=M
    ),
    Nonsense("an empty study", lambda p: p.set(STUDY, "UI", b"").bytes(), ("missing-study-uid",), NO_STUDY),
    Nonsense(
        "words for a series",
        lambda p: p.set(SERIES, "UI", b"not a UID!").bytes(),
        ("invalid-uid",),
        BAD_SERIES,
    ),
    Nonsense(
        "a UID of 66", lambda p: p.set(STUDY, "UI", b"1." + b"2" * 64).bytes(), ("invalid-uid",), BAD_STUDY
    ),
    Nonsense(
        "a UID of 4,000",
        lambda p: p.set(STUDY, "UI", b"1." + b"2" * 3998).bytes(),
        ("invalid-uid",),
        BAD_STUDY,
    ),
    Nonsense(
        "two studies in one value",
        lambda p: p.set(STUDY, "UI", padded(f"{p.uids.study}\\{p.uids.study}")).bytes(),
        ("invalid-uid",),
        BAD_STUDY,
    ),
    Nonsense("a UID with spaces", lambda p: p.set(STUDY, "UI", p.uids.study.encode() + b"    ").bytes()),
    Nonsense("a UID with nulls", lambda p: p.set(SOP, "UI", p.uids.sop.encode() + b"\0\0\0\0").bytes()),
    Nonsense(
        "a UID with a leading zero",
        lambda p: p.set(SERIES, "UI", uid("1.2.03.4")).bytes(),
        ("invalid-uid",),
        series="1.2.03.4",
    ),
    Nonsense("no SOP class", lambda p: p.without(0x00080016).bytes(), ("missing-sop-class-uid",), mismatch=M),
    Nonsense("another class than announced", lambda p: p.bytes(), sop_class=MR, mismatch=M),
    Nonsense("another instance than announced", lambda p: p.bytes(), sop="1.2.3.4.5", mismatch=M),
    # ---- text
    Nonsense(
        "no such character set",
        lambda p: p.set(0x00080005, "CS", b"KLINGON ").bytes(),
        ("bad-character-set",),
    ),
    Nonsense("text that is none", lambda p: p.set(0x00100010, "PN", b"M\xfcller").bytes(), ("bad-text",)),
    Nonsense(
        "control characters",
        lambda p: p.set(0x00100010, "PN", b"A\x1b$B\0\x07\x7f\x01").bytes(),
        ("bad-text",),
    ),
    # ---- pixels
    Nonsense("too few pixels", lambda p: p.set(PIXELS, "OW", bytes(100)).bytes(), ("pixels-too-short",)),
    Nonsense("too many pixels", lambda p: p.set(PIXELS, "OW", bytes(200)).bytes(), ("pixels-too-long",)),
    Nonsense("no pixels", lambda p: p.set(PIXELS, "OW", b"").bytes(), ("pixels-too-short",)),
    Nonsense("no rows", lambda p: p.set(0x00280010, "US", b"\0\0").bytes(), ("no-frame-shape",)),
    Nonsense("zero frames", lambda p: p.set(0x00280008, "IS", b"0 ").bytes(), ("bad-number",)),
    Nonsense("minus three frames", lambda p: p.set(0x00280008, "IS", b"-3").bytes(), ("bad-number",)),
    Nonsense(
        "words for a number of frames", lambda p: p.set(0x00280008, "IS", b"many").bytes(), ("bad-number",)
    ),
    Nonsense(
        "4 000 000 000 frames", lambda p: p.set(0x00280008, "IS", b"4000000000").bytes(), ("too-many-frames",)
    ),
    Nonsense(
        "fragments without an end",
        lambda p: p.set(PIXELS, "OB", fragments(b"\xff\xd8\xffab", end=False), length=0xFFFFFFFF).bytes(),
        ("no-sequence-end",),
        syntax=JPEG,
    ),
    Nonsense(
        "a fragment that is cut",
        lambda p: p.set(
            PIXELS, "OB", fragments(b"\xff\xd8" * 50, end=False)[:-20], length=0xFFFFFFFF
        ).bytes(),
        ("truncated",),
        syntax=JPEG,
    ),
    Nonsense(
        "no fragments",
        lambda p: p.set(PIXELS, "OB", fragments(), length=0xFFFFFFFF).bytes(),
        ("pixels-too-short",),
        syntax=JPEG,
    ),
    # ---- structure
    Nonsense(
        "1,000 deep before the UIDs",
        lambda p: p.put(0x00081140, nested(1000)).bytes(),
        ("too-deep",),
        NO_STUDY,
    ),
    Nonsense("1,000 deep behind them", lambda p: p.put(0x00400275, nested(1000)).bytes(), ("too-deep",)),
    Nonsense(
        "100,000 deep and open",
        lambda p: p.put(0x00400275, nested(100_000, closed=False)).bytes(),
        ("too-deep",),
    ),
    Nonsense(
        "a patient twice",
        lambda p: p.put(
            0x00100020, element(0x00100020, "LO", b"P-1 ") + element(0x00100020, "LO", b"P-2 ")
        ).bytes(),
        ("duplicate-element",),
    ),
    Nonsense("out of order", lambda p: p.bytes() + element(0x00100040, "CS", b"F ")),
    Nonsense("backwards", lambda p: b"".join(p.by_tag[tag] for tag in reversed(p.order))),
    Nonsense(
        "a stray delimiter",
        lambda p: (
            p.before(0x00280002)
            + struct.pack("<HHL", 0xFFFE, 0xE0DD, 0)
            + p.bytes()[len(p.before(0x00280002)) :]
        ),
        ("misplaced-delimiter",),
    ),
    Nonsense(
        "deflated garbage", lambda p: b"\x99garbage" * 50, ("bad-deflate",), NO_STUDY, DEFLATED, mismatch=M
    ),
    Nonsense("deflated and cut", lambda p: _deflated(p.bytes())[:-30], ("truncated",), syntax=DEFLATED),
    Nonsense("deflated and well", lambda p: _deflated(p.bytes()), syntax=DEFLATED),
)
