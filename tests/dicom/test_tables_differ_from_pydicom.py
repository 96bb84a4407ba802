"""Danger: tables that we read or copy without importing pydicom are not pydicom's."""

from __future__ import annotations

import subprocess
import sys

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


def test_neither_start_nor_tables_import_the_libraries() -> None:
    """Half of a worker's start was theirs."""
    program = (
        "import sys, hounsfield.archive.app.build;"
        "from hounsfield.archive.dicom.dictionary import private_vr_of;"
        "assert private_vr_of('GEMS_IDEN_01', 0x00091001) == 'LO';"
        "print(*{'numpy', 'pydicom', 'imagecodecs', 'PIL', 'requests'}.intersection(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
