"""Danger: a DICOMDIR names files outside its own folder, and ``send`` sends them."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from hounsfield.archive.dicom.dicomdir import DicomdirError, file_ids, referenced_files
from hounsfield.archive.dicom.part10 import file_header


def dicomdir(*ids: bytes) -> bytes:
    items = b""
    for name in ids:
        name += b" " * (len(name) % 2)
        element = struct.pack("<HH2sH", 4, 0x1500, b"CS", len(name)) + name
        items += struct.pack("<HHL", 0xFFFE, 0xE000, len(element)) + element
    sequence = struct.pack("<HH2sHL", 4, 0x1220, b"SQ", 0, len(items)) + items
    return file_header("1.2.840.10008.1.2.1", "1.2.840.10008.1.3.10", "1.2.3") + sequence


def listed(folder: Path) -> list[str]:
    return [str(path.relative_to(folder)) for path in referenced_files(folder / "DICOMDIR")]


def test_files_are_listed_once_each_and_in_order(tmp_path: Path) -> None:
    (tmp_path / "A").mkdir()
    for name in ("A/ONE", "A/TWO", "THREE"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "DICOMDIR").write_bytes(dicomdir(b"A\\TWO", b"THREE", b"A\\TWO", b"A\\ONE ", b"A\\GONE"))
    assert listed(tmp_path) == ["A/TWO", "THREE", "A/ONE"]


def test_names_that_a_copy_made_small_are_found(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "im0001").write_bytes(b"")
    (tmp_path / "DICOMDIR").write_bytes(dicomdir(b"IMAGES\\IM0001"))
    assert listed(tmp_path) == ["images/im0001"]


@pytest.mark.parametrize(
    "name",
    [
        b"..\\SECRET",
        b"A\\..\\..\\SECRET",
        b"/etc/passwd",
        b"A/../../SECRET",
        b"\\SECRET",
        b"A\\\\B",
        b".",
        b"C:\\X",
        b"A\0B",
        b"X\\" * 20 + b"X",
        b"X" * 300,
    ],
)
def test_ids_that_lead_out_are_left_out(tmp_path: Path, name: bytes) -> None:
    inside = tmp_path / "disc"
    inside.mkdir()
    (tmp_path / "SECRET").write_bytes(b"secret")
    (inside / "DICOMDIR").write_bytes(dicomdir(name))
    assert list(file_ids((inside / "DICOMDIR").read_bytes())) == []
    assert listed(inside) == []


def test_links_that_lead_out_are_not_followed(tmp_path: Path) -> None:
    inside = tmp_path / "disc"
    inside.mkdir()
    (tmp_path / "SECRET").write_bytes(b"secret")
    (inside / "LINK").symlink_to(tmp_path / "SECRET")
    (inside / "DICOMDIR").write_bytes(dicomdir(b"LINK"))
    assert listed(inside) == []


@pytest.mark.parametrize("data", [b"", b"no dicom", file_header("1.2.840.10008.1.2.1", "1.2", "1.3")])
def test_what_is_no_dicomdir_says_so(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "DICOMDIR").write_bytes(data)
    with pytest.raises(DicomdirError):
        listed(tmp_path)


def test_real_ones_list_their_files() -> None:
    import pydicom

    folder = Path(pydicom.__file__).parent / "data" / "test_files" / "dicomdirtests"
    for name in ("DICOMDIR", "DICOMDIR-bigEnd", "DICOMDIR-implicit", "DICOMDIR-nooffset"):
        assert len(list(referenced_files(folder / name))) == 31
