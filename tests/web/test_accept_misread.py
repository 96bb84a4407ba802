"""Every Accept form that viewers send, against every way that pixels are stored."""

from __future__ import annotations

import pytest

from hounsfield.archive.web import accept

EXPLICIT, IMPLICIT, BIG = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2", "1.2.840.10008.1.2.2"
JPEG, J2K, HTJ2K, RLE, JXL = (f"1.2.840.10008.1.2.{tail}" for tail in ("4.50", "4.90", "4.201", "5", "4.110"))
OCTETS = "application/octet-stream"

# Accept → what a frame stored in each syntax is delivered as: (multipart?, media type), None for 406.
FRAMES = [
    (None, EXPLICIT, (True, OCTETS)),
    (None, J2K, (True, "image/jp2")),
    ("*/*", JPEG, (True, "image/jpeg")),
    ("*/*", BIG, (True, OCTETS)),
    ('multipart/related; type="application/octet-stream"; transfer-syntax="*"', EXPLICIT, (True, OCTETS)),
    ("multipart/related; type=application/octet-stream; transfer-syntax=*", J2K, (True, "image/jp2")),
    ('multipart/related; type="application/octet-stream; transfer-syntax=*"', HTJ2K, (True, "image/jphc")),
    ('multipart/related;type="application/octet-stream"', IMPLICIT, (True, OCTETS)),
    ('multipart/related; type="application/octet-stream"', J2K, None),
    (f"multipart/related; type={OCTETS}; transfer-syntax={EXPLICIT}", EXPLICIT, (True, OCTETS)),
    (f"multipart/related; type={OCTETS}; transfer-syntax={EXPLICIT}", BIG, (True, OCTETS)),
    (f"multipart/related; type={OCTETS}; transfer-syntax={EXPLICIT}", RLE, None),
    ("multipart/related; type=image/jls", EXPLICIT, None),
    ("multipart/related", RLE, (True, "image/dicom-rle")),
    ('multipart/related; type="image/jphc"', HTJ2K, (True, "image/jphc")),
    ('multipart/related; type="image/jhc"', HTJ2K, (True, "image/jphc")),
    ("multipart/related; type=image/jxl", JXL, (True, "image/jxl")),
    ("image/jpeg", JPEG, (False, "image/jpeg")),
    ("image/*", J2K, (False, "image/jp2")),
    ("IMAGE/JPEG; q=0.5", JPEG, (False, "image/jpeg")),
    ("application/octet-stream", EXPLICIT, (False, OCTETS)),
    ("application/octet-stream; transfer-syntax=*", JPEG, (False, "image/jpeg")),
    ("image/jpeg;q=0, */*;q=0.1", JPEG, (True, "image/jpeg")),
    ("image/png, image/jpeg", JPEG, (False, "image/jpeg")),
    ("image/png", JPEG, None),
    ("application/dicom", EXPLICIT, None),
    (
        'multipart/related; type="image/jls"; q=0.9, multipart/related; type="application/octet-stream"; '
        "transfer-syntax=*; q=0.8",
        EXPLICIT,
        (True, OCTETS),
    ),
    ("application/octet-stream;q=0.2, multipart/related;q=0.9", EXPLICIT, (True, OCTETS)),
    ("*", EXPLICIT, (True, OCTETS)),
    ("text/html,application/xhtml+xml,*/*;q=0.8", EXPLICIT, (True, OCTETS)),
    (f"multipart/related; type=image/jp2; transfer-syntax={JPEG}", J2K, None),
    (f"multipart/related; type=image/jp2; transfer-syntax={J2K}", J2K, (True, "image/jp2")),
]


@pytest.mark.parametrize(("header", "syntax", "expected"), FRAMES)
def test_frames(header, syntax, expected):
    ranges = accept.ranges_of((header,) if header else ())
    delivery = accept.for_frames(ranges, syntax, alone=True)
    assert (delivery and (delivery.multipart, delivery.media_type)) == expected
    if delivery:
        assert delivery.transfer_syntax == (EXPLICIT if delivery.media_type == OCTETS else syntax)


def test_the_accept_parameter_takes_the_headers_place():
    ranges = accept.ranges_of(("application/octet-stream",), ("image/jpeg",))
    assert accept.for_frames(ranges, JPEG, alone=True).media_type == "image/jpeg"


def test_several_frames_are_never_given_alone():
    assert accept.for_frames(accept.ranges_of(("image/jpeg",)), JPEG, alone=False) is None


DICOM = [
    (None, [EXPLICIT], True),
    ('multipart/related; type="application/dicom"', [J2K], True),
    ('multipart/related; type="application/dicom"; transfer-syntax=*', [J2K, EXPLICIT], True),
    (f'multipart/related; type="application/dicom"; transfer-syntax={EXPLICIT}', [J2K, EXPLICIT], None),
    (f'multipart/related; type="application/dicom"; transfer-syntax={J2K}', [J2K], True),
    ("application/dicom", [J2K], False),
    ("application/dicom; transfer-syntax=*", [J2K], False),
    ("application/json", [J2K], None),
    ("application/zip, multipart/related; type=application/dicom", [J2K], False),
]


@pytest.mark.parametrize(("header", "syntaxes", "expected"), DICOM)
def test_whole_objects(header, syntaxes, expected):
    ranges = accept.ranges_of((header,) if header else ())
    delivery = accept.for_instances(ranges, syntaxes, alone=len(syntaxes) == 1)
    assert (delivery and delivery.multipart) == expected


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, "application/dicom+json"),
        ("*/*", "application/dicom+json"),
        ("application/json", "application/json"),
        ("application/dicom+json, */*;q=0.1", "application/dicom+json"),
        ('multipart/related; type="application/dicom+json"', "application/dicom+json"),
        ("application/*", "application/dicom+json"),
        ('multipart/related; type="application/dicom+xml"', None),
        ("text/html", None),
    ],
)
def test_json(header, expected):
    assert accept.for_json(accept.ranges_of((header,) if header else ())) == expected


@pytest.mark.parametrize("header", ["é", "a;;b=\0", '"', "text/html image/png", 'a/b; c="unclosed'])
def test_nonsense_is_an_error_that_says_so(header):
    with pytest.raises(accept.AcceptError):
        accept.parse(header)


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("", False),
        ("gzip", True),
        ("br, gzip;q=0.5", True),
        ("gzip;q=0", False),
        ("*", True),
        ("*;q=0", False),
        ("gzip;q=0, *", False),
        ("identity", False),
        ("gzip;q=x", False),
    ],
)
def test_gzip(header, expected):
    assert accept.takes_gzip(header) is expected


@pytest.mark.parametrize(
    ("header", "expected"),
    [("gzip", False), ("gzip;q=0, zstd", True), ("ZSTD;q=0.1", True), ("zstd;q=0", False)],
)
def test_zstd(header, expected):
    assert accept.takes_zstd(header) is expected
