"""Danger: tables that we read or copy without importing pydicom are not pydicom's."""

from __future__ import annotations

import pydicom.charset
import pydicom.datadict
from pydicom._dicom_dict import DicomDictionary

from hounsfield.archive.dicom import dictionary, text


def test_character_sets() -> None:
    assert pydicom.charset.python_encoding == text._BY_TERM
    assert pydicom.charset.CODES_TO_ENCODINGS == text._BY_ESCAPE


def test_attributes() -> None:
    assert dictionary.VR_OF.keys() == DicomDictionary.keys()
    for tag, vr in dictionary.VR_OF.items():
        known = DicomDictionary[tag][0]
        assert vr == known or known in dictionary._RESOLVED
    assert dictionary._private_tables() == pydicom.datadict.private_dictionaries  # type: ignore[attr-defined, unused-ignore]
