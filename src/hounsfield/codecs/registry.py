"""The one table of transfer syntaxes: what each says about the bytes, and how its frames are named over HTTP.

Everything that needs to know about a transfer syntax asks ``lookup(uid)``; there is no second list. A row
says

* how the *data set* is written: implicit or explicit VR, byte order, deflated or not (PS3.5 10 and Annex A);
* how the *pixel data* is written: native or encapsulated in fragments, able to lose information or not;
* the media type of one frame in DICOMweb (PS3.18 8.7.3.3, Tables 8.7.3-4 and 8.7.3-5).

The rows are PS3.6 Annex A's, retired ones included because archives live longer than syntaxes do, and the few
private ones met in practice. A syntax that is not here is still stored and forwarded: ``lookup`` then answers
with an *unknown* row, explicit VR little endian as PS3.5 10.1 demands of every syntax, and the scanner
decides from the pixel data element itself whether it is encapsulated. How frames are decoded
and encoded says the table in :mod:`hounsfield.codecs.coders`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

OCTETS: Final = "application/octet-stream"


@dataclass(frozen=True, slots=True)
class TransferSyntax:
    """One row: how data sets of this transfer syntax are written."""

    uid: str
    name: str
    implicit_vr: bool = False
    little_endian: bool = True
    #: The whole data set is one raw deflate stream (PS3.5 A.5).
    deflated: bool = False
    #: Pixel data is a sequence of fragments (PS3.5 A.4), not plain pixel cells.
    encapsulated: bool = False
    #: True: pixels come back bit for bit; False: the codec may lose; None: not known, or no pixels here at
    #: all.
    lossless: bool | None = True
    #: Media type of one frame, PS3.18 8.7.3.3.
    media_type: str = OCTETS
    retired: bool = False
    #: False for a row that ``lookup`` made up.
    known: bool = True
    #: Pixel cells are big endian although the data set is not (GE's private syntax does this).
    big_endian_pixels: bool = False

    @property
    def is_video(self) -> bool:
        """The fragments together are one stream in which frames have no bytes of their own."""
        return self.media_type.startswith("video/")


_ROOT: Final = "1.2.840.10008.1.2"


def _native(uid: str, name: str, **how: bool) -> TransferSyntax:
    return TransferSyntax(
        uid,
        name,
        implicit_vr=how.get("implicit_vr", False),
        little_endian=how.get("little_endian", True),
        deflated=how.get("deflated", False),
        retired=how.get("retired", False),
        big_endian_pixels=how.get("big_endian_pixels", False),
    )


def _coded(
    suffix: str, name: str, media_type: str, lossless: bool | None, *, retired: bool = False
) -> TransferSyntax:
    return TransferSyntax(
        f"{_ROOT}.{suffix}",
        name,
        encapsulated=True,
        lossless=lossless,
        media_type=media_type,
        retired=retired,
    )


def _referenced(suffix: str, name: str, *, deflated: bool = False) -> TransferSyntax:
    """Pixels are elsewhere, behind a URL in the data set (PS3.5 A.6, A.7)."""
    return TransferSyntax(f"{_ROOT}.{suffix}", name, deflated=deflated, lossless=None)


IMPLICIT_VR_LITTLE_ENDIAN: Final = _native(_ROOT, "Implicit VR Little Endian", implicit_vr=True)
EXPLICIT_VR_LITTLE_ENDIAN: Final = _native(f"{_ROOT}.1", "Explicit VR Little Endian")
DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN: Final = _native(
    f"{_ROOT}.1.99", "Deflated Explicit VR Little Endian", deflated=True
)
EXPLICIT_VR_BIG_ENDIAN: Final = _native(
    f"{_ROOT}.2", "Explicit VR Big Endian", little_endian=False, retired=True
)

_JPEG, _MPEG, _MP4, _HEVC = "image/jpeg", "video/mpeg", "video/mp4", "video/H265"

_ROWS: Final[tuple[TransferSyntax, ...]] = (
    IMPLICIT_VR_LITTLE_ENDIAN,
    EXPLICIT_VR_LITTLE_ENDIAN,
    _coded("1.98", "Encapsulated Uncompressed Explicit VR Little Endian", OCTETS, True),
    DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN,
    EXPLICIT_VR_BIG_ENDIAN,
    _coded("4.50", "JPEG Baseline (Process 1)", _JPEG, False),
    _coded("4.51", "JPEG Extended (Process 2 and 4)", _JPEG, False),
    _coded("4.52", "JPEG Extended (Process 3 and 5)", _JPEG, False, retired=True),
    _coded("4.53", "JPEG Spectral Selection, Non-Hierarchical (Process 6 and 8)", _JPEG, False, retired=True),
    _coded("4.54", "JPEG Spectral Selection, Non-Hierarchical (Process 7 and 9)", _JPEG, False, retired=True),
    _coded("4.55", "JPEG Full Progression, Non-Hierarchical (Process 10 and 12)", _JPEG, False, retired=True),
    _coded("4.56", "JPEG Full Progression, Non-Hierarchical (Process 11 and 13)", _JPEG, False, retired=True),
    _coded("4.57", "JPEG Lossless, Non-Hierarchical (Process 14)", _JPEG, True),
    _coded("4.58", "JPEG Lossless, Non-Hierarchical (Process 15)", _JPEG, True, retired=True),
    _coded("4.59", "JPEG Extended, Hierarchical (Process 16 and 18)", _JPEG, False, retired=True),
    _coded("4.60", "JPEG Extended, Hierarchical (Process 17 and 19)", _JPEG, False, retired=True),
    _coded("4.61", "JPEG Spectral Selection, Hierarchical (Process 20 and 22)", _JPEG, False, retired=True),
    _coded("4.62", "JPEG Spectral Selection, Hierarchical (Process 21 and 23)", _JPEG, False, retired=True),
    _coded("4.63", "JPEG Full Progression, Hierarchical (Process 24 and 26)", _JPEG, False, retired=True),
    _coded("4.64", "JPEG Full Progression, Hierarchical (Process 25 and 27)", _JPEG, False, retired=True),
    _coded("4.65", "JPEG Lossless, Hierarchical (Process 28)", _JPEG, True, retired=True),
    _coded("4.66", "JPEG Lossless, Hierarchical (Process 29)", _JPEG, True, retired=True),
    _coded(
        "4.70",
        "JPEG Lossless, Non-Hierarchical, First-Order Prediction (Process 14 [Selection Value 1])",
        _JPEG,
        True,
    ),
    _coded("4.80", "JPEG-LS Lossless Image Compression", "image/jls", True),
    _coded("4.81", "JPEG-LS Lossy (Near-Lossless) Image Compression", "image/jls", False),
    _coded("4.90", "JPEG 2000 Image Compression (Lossless Only)", "image/jp2", True),
    _coded("4.91", "JPEG 2000 Image Compression", "image/jp2", False),
    _coded("4.92", "JPEG 2000 Part 2 Multi-component Image Compression (Lossless Only)", "image/jpx", True),
    _coded("4.93", "JPEG 2000 Part 2 Multi-component Image Compression", "image/jpx", False),
    _referenced("4.94", "JPIP Referenced"),
    _referenced("4.95", "JPIP Referenced Deflate", deflated=True),
    _coded("4.100", "MPEG2 Main Profile / Main Level", _MPEG, False),
    _coded("4.100.1", "Fragmentable MPEG2 Main Profile / Main Level", _MPEG, False),
    _coded("4.101", "MPEG2 Main Profile / High Level", _MPEG, False),
    _coded("4.101.1", "Fragmentable MPEG2 Main Profile / High Level", _MPEG, False),
    _coded("4.102", "MPEG-4 AVC/H.264 High Profile / Level 4.1", _MP4, False),
    _coded("4.102.1", "Fragmentable MPEG-4 AVC/H.264 High Profile / Level 4.1", _MP4, False),
    _coded("4.103", "MPEG-4 AVC/H.264 BD-compatible High Profile / Level 4.1", _MP4, False),
    _coded("4.103.1", "Fragmentable MPEG-4 AVC/H.264 BD-compatible High Profile / Level 4.1", _MP4, False),
    _coded("4.104", "MPEG-4 AVC/H.264 High Profile / Level 4.2 For 2D Video", _MP4, False),
    _coded("4.104.1", "Fragmentable MPEG-4 AVC/H.264 High Profile / Level 4.2 For 2D Video", _MP4, False),
    _coded("4.105", "MPEG-4 AVC/H.264 High Profile / Level 4.2 For 3D Video", _MP4, False),
    _coded("4.105.1", "Fragmentable MPEG-4 AVC/H.264 High Profile / Level 4.2 For 3D Video", _MP4, False),
    _coded("4.106", "MPEG-4 AVC/H.264 Stereo High Profile / Level 4.2", _MP4, False),
    _coded("4.106.1", "Fragmentable MPEG-4 AVC/H.264 Stereo High Profile / Level 4.2", _MP4, False),
    _coded("4.107", "HEVC/H.265 Main Profile / Level 5.1", _HEVC, False),
    _coded("4.108", "HEVC/H.265 Main 10 Profile / Level 5.1", _HEVC, False),
    _coded("4.110", "JPEG XL Lossless", "image/jxl", True),
    _coded("4.111", "JPEG XL JPEG Recompression", "image/jxl", False),
    _coded("4.112", "JPEG XL", "image/jxl", False),
    _coded("4.201", "High-Throughput JPEG 2000 Image Compression (Lossless Only)", "image/jphc", True),
    _coded(
        "4.202",
        "High-Throughput JPEG 2000 with RPCL Options Image Compression (Lossless Only)",
        "image/jphc",
        True,
    ),
    _coded("4.203", "High-Throughput JPEG 2000 Image Compression", "image/jphc", False),
    _referenced("4.204", "JPIP HTJ2K Referenced"),
    _referenced("4.205", "JPIP HTJ2K Referenced Deflate", deflated=True),
    _coded("5", "RLE Lossless", "image/dicom-rle", True),
    _native(f"{_ROOT}.6.1", "RFC 2557 MIME encapsulation", retired=True),
    _native(f"{_ROOT}.6.2", "XML Encoding", retired=True),
    TransferSyntax(f"{_ROOT}.7.1", "SMPTE ST 2110-20 Uncompressed Progressive Active Video", lossless=None),
    TransferSyntax(f"{_ROOT}.7.2", "SMPTE ST 2110-20 Uncompressed Interlaced Active Video", lossless=None),
    TransferSyntax(f"{_ROOT}.7.3", "SMPTE ST 2110-30 PCM Digital Audio", lossless=None),
    _coded("8.1", "Deflated Image Frame Compression", "application/x-deflate", True),
    _native("1.2.840.10008.1.20", "Papyrus 3 Implicit VR Little Endian", implicit_vr=True, retired=True),
    # GE's "implicit VR big endian": the data set is implicit VR *little* endian, the pixel cells are big
    # endian.
    _native(
        "1.2.840.113619.5.2",
        "GE Private Implicit VR, Big Endian Pixels",
        implicit_vr=True,
        big_endian_pixels=True,
    ),
    _native("1.3.46.670589.33.1.4.1", "Philips Private CT, Explicit VR Little Endian"),
)

TRANSFER_SYNTAXES: Final[dict[str, TransferSyntax]] = {row.uid: row for row in _ROWS}


def lookup(uid: str) -> TransferSyntax:
    """The row of that UID; for a UID that no row has, a row that says so (``known`` is false).

    Never raises.
    """
    row = TRANSFER_SYNTAXES.get(uid)
    if row is not None:
        return row
    trimmed = uid.strip(" \0")
    row = TRANSFER_SYNTAXES.get(trimmed)
    if row is not None:
        return row
    return TransferSyntax(trimmed, "Unknown transfer syntax", lossless=None, known=False)
