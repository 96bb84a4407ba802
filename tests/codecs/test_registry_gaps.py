"""Danger: a transfer syntax is missing from the table, or the table says the wrong thing about one."""

from __future__ import annotations

import pytest
from pydicom.uid import UID, UID_dictionary

from hounsfield.codecs.registry import TRANSFER_SYNTAXES, lookup

STANDARD = sorted(uid for uid, row in UID_dictionary.items() if row[1] == "Transfer Syntax")


@pytest.mark.parametrize("uid", STANDARD)
def test_every_transfer_syntax_of_the_standard_is_in_the_table(uid: str) -> None:
    row = TRANSFER_SYNTAXES[uid]
    assert row.uid == uid
    assert row.name == UID_dictionary[uid][0]
    assert row.retired == (UID_dictionary[uid][3] == "Retired")
    assert row.known
    if not row.retired and "Referenced" not in row.name and "SMPTE" not in row.name:
        reference = UID(uid)
        assert row.implicit_vr == reference.is_implicit_VR
        assert row.little_endian == reference.is_little_endian
        assert row.deflated == reference.is_deflated
        assert row.encapsulated == reference.is_encapsulated


NEWER = ["4.110", "4.111", "4.112", "4.201", "4.202", "4.203", "8.1"]


@pytest.mark.parametrize("suffix", NEWER)
def test_the_ones_newer_than_the_dictionary_are_there(suffix: str) -> None:
    row = TRANSFER_SYNTAXES[f"1.2.840.10008.1.2.{suffix}"]
    assert row.encapsulated
    assert not row.implicit_vr


def test_each_uid_is_there_once() -> None:
    assert all(uid == row.uid for uid, row in TRANSFER_SYNTAXES.items())
    assert len({row.name for row in TRANSFER_SYNTAXES.values()}) == len(TRANSFER_SYNTAXES)


@pytest.mark.parametrize(
    ("suffix", "media_type", "lossless"),
    [
        ("1", "application/octet-stream", True), ("4.50", "image/jpeg", False), ("4.57", "image/jpeg", True),
        ("4.70", "image/jpeg", True), ("4.80", "image/jls", True), ("4.81", "image/jls", False),
        ("4.90", "image/jp2", True), ("4.91", "image/jp2", False), ("4.92", "image/jpx", True),
        ("4.201", "image/jphc", True), ("4.203", "image/jphc", False), ("4.110", "image/jxl", True),
        ("5", "image/dicom-rle", True), ("4.100", "video/mpeg", False), ("4.102", "video/mp4", False),
    ],
)  # fmt: skip
def test_media_types(suffix: str, media_type: str, lossless: bool) -> None:
    row = lookup(f"1.2.840.10008.1.2.{suffix}")
    assert (row.media_type, row.lossless) == (media_type, lossless)
    assert row.is_video is media_type.startswith("video/")


@pytest.mark.parametrize("uid", ["1.2.840.113619.5.2", "1.2.840.113619.5.2\0", "1.2.840.113619.5.2 "])
def test_padding_is_no_part_of_a_uid(uid: str) -> None:
    row = lookup(uid)
    assert row.known
    assert row.implicit_vr
    assert row.big_endian_pixels


@pytest.mark.parametrize("uid", ["", "1.2.3", "nonsense", "1.2.840.10008.1.2.4.999"])
def test_an_unknown_syntax_is_explicit_little_endian_and_says_that_it_is_unknown(uid: str) -> None:
    row = lookup(uid)
    assert not row.known
    assert not row.implicit_vr
    assert row.little_endian
    assert not row.deflated
    assert row.lossless is None
