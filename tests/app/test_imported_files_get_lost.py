"""Danger: of a tree of files some are left out, taken for objects, read twice, or stored torn."""

from __future__ import annotations

import gzip
import io
import json
import os
import struct
import sys
import uuid
import zipfile
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import trio
from pydicom.uid import generate_uid

from hounsfield.archive.app.importing import reading
from hounsfield.archive.app.importing.fates import Fate, ReportError, Tally, open_report
from hounsfield.archive.app.importing.recognising import Kind, recognised
from hounsfield.archive.app.importing.run import ImportOptions, run_import
from hounsfield.archive.app.importing.state import StateError
from hounsfield.archive.app.importing.tree import Tree
from hounsfield.archive.app.offline import open_here
from hounsfield.archive.dicom.part10 import split
from support.archives import ct_slice
from support.imports import CT, Archive, dicomdir, part10, write_study


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    return Archive.make(tmp_path / "ours")


def test_what_is_dicom_is_brought_in_whatever_its_name_and_the_rest_is_counted(
    archive: Archive, tmp_path: Path
) -> None:
    tree = tmp_path / "tree"
    uids = write_study(tree / "a" / "b", 3) + write_study(tree, 2, name="IM{}")
    bare = str(generate_uid())
    (tree / "bare").write_bytes(ct_slice(sop_uid=bare))
    implicit = str(generate_uid())
    (tree / "bare implicit").write_bytes(ct_slice(sop_uid=implicit, syntax="1.2.840.10008.1.2"))
    big = str(generate_uid())
    (tree / "bare big endian").write_bytes(ct_slice(sop_uid=big, syntax="1.2.840.10008.1.2.2"))
    with zipfile.ZipFile(tree / "export.zip", "w") as packed:
        zipped = str(generate_uid())
        packed.writestr("DICOM/IM1", part10(ct_slice(sop_uid=zipped), zipped))
        packed.writestr("readme.txt", "no")
    (tree / "empty").write_bytes(b"")
    (tree / "letter.txt").write_text("FOO US presidents, and other things that are no data element")
    (tree / "picture.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(500))
    (tree / "table.csv").write_text("a,b\n" * 100)
    (tree / "DICOMDIR").write_bytes(dicomdir([b"A"]))
    (tree / "b\udce9d").write_bytes(b"odd name")

    assert archive.bring(tree) == {"imported": 9, "not DICOM": 7}
    assert archive.stored() == sorted([*uids, bare, implicit, big, zipped])
    assert archive.bring(tree) == {
        "before": 14,
        "not DICOM": 1,
    }  # the ZIP archive is one; a DICOMDIR is looked at


def test_objects_are_kept_byte_for_byte(archive: Archive, tmp_path: Path) -> None:
    (uid,) = write_study(tmp_path / "tree", 1)
    (file,) = (tmp_path / "tree").iterdir()
    archive.bring(tmp_path / "tree")
    with open_here(archive.config) as here:
        (row,) = here.call("search", level="instance", parameters=[])["rows"]
        study, series = row["study"]["0020000D"], row["series"]["0020000E"]
        here.call("export-instance", study=study, series=series, instance=uid, path=str(tmp_path / "out.dcm"))
    ours, theirs = (tmp_path / "out.dcm").read_bytes(), file.read_bytes()
    assert ours[split(ours).offset :] == theirs[split(theirs).offset :]


def test_each_file_is_opened_once_and_read_once_and_not_again_by_the_next_run(
    archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = tmp_path / "tree"
    write_study(tree / "one", 5)
    write_study(tree / "two", 5)
    large = str(generate_uid())
    (tree / "large").write_bytes(part10(ct_slice(sop_uid=large, pixels=bytes(5 << 20)), large))
    (tree / "text").write_text("no")
    os.link(tree / "text", tree / "the same text")
    os.link(tree / "large", tree / "one" / "the same object")
    size = sum(
        path.stat().st_size for path in {p.stat().st_ino: p for p in tree.rglob("*") if p.is_file()}.values()
    )
    opened: Counter[str] = Counter()
    read = 0
    plain_open, plain_read = os.open, os.read

    def counting_open(path: Any, *rest: Any, **more: Any) -> int:
        if str(path).startswith(str(tree)):
            opened[str(path)] += 1
        return plain_open(path, *rest, **more)

    def counting_read(fd: int, count: int) -> bytes:
        nonlocal read
        data = plain_read(fd, count)
        read += len(data)
        return data

    monkeypatch.setattr(reading.os, "open", counting_open)
    monkeypatch.setattr(reading.os, "read", counting_read)
    assert archive.bring(tree, tree / "one", tree / "text") == {"imported": 11, "not DICOM": 1}
    assert set(opened.values()) == {1}
    assert len(opened) == 12
    assert read == size
    opened.clear()
    assert archive.bring(tree) == {"before": 12}
    assert not opened
    path = next(iter((tree / "two").iterdir()))
    os.utime(path, ns=(0, 0))  # changed: it is another file now
    assert archive.bring(tree) == {"already there": 1, "before": 11}
    assert archive.bring(tree, afresh=True) == {"already there": 11, "not DICOM": 1}
    opened.clear()
    assert archive.bring(path, tree / "text") == {"before": 2}  # also what is named by itself
    assert not opened


def test_of_a_zip_archive_nothing_is_read_twice(
    archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "export.zip"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as packed:
        for number in range(4):
            uid = str(generate_uid())
            packed.writestr(f"{number}.dcm", part10(ct_slice(sop_uid=uid, pixels=bytes(900_000)), uid))
    read = 0
    plain_read, plain_pread = os.read, os.pread

    def counting(data: bytes) -> bytes:
        nonlocal read
        read += len(data)
        return data

    monkeypatch.setattr(reading.os, "read", lambda fd, count: counting(plain_read(fd, count)))
    monkeypatch.setattr(reading.os, "pread", lambda fd, count, at: counting(plain_pread(fd, count, at)))
    assert archive.bring(file, jobs=1) == {"imported": 4}
    assert (
        file.stat().st_size <= read < file.stat().st_size + (100 << 10)
    )  # its directory, and what is buffered


def test_a_damaged_zip_archive_costs_what_is_damaged(archive: Archive, tmp_path: Path) -> None:
    file = tmp_path / "export.zip"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as packed:
        for number in range(3):
            uid = str(generate_uid())
            packed.writestr(f"{number}.dcm", part10(ct_slice(sop_uid=uid), uid))
    whole = file.read_bytes()
    second = whole.index(b"PK\x03\x04", 10)
    file.write_bytes(whole[: second + 200] + bytes(50) + whole[second + 250 :])
    assert archive.bring(file) == {"imported": 2, "unreadable": 1}
    assert list(archive.reasons().values()) == ["damaged in its ZIP archive"]
    assert archive.bring(file) == {"unreadable": 1, "before": 2}  # what was bad is tried again
    file.write_bytes(whole)
    assert archive.bring(file) == {"imported": 1, "already there": 2}
    assert archive.bring(file) == {"before": 1}
    file.write_bytes(whole[:-30])
    assert archive.bring(file) == {"unreadable": 1}


@pytest.mark.parametrize(
    "way", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]
)
def test_a_byte_that_rots_in_a_zip_archive_costs_its_files_at_most(way: int) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", way) as archive:
        archive.writestr("one.dcm", bytes(range(256)))
        archive.writestr("zw\xf6lf.dcm", b"abc" * 40)
    whole = packed.getvalue()
    rotten = [
        bytes([*whole[:at], value, *whole[at + 1 :]]) for at in range(len(whole)) for value in (0, 0xB5, 0xFF)
    ]
    damaged = 0
    for file in [
        *rotten,
        *(whole[at:] for at in range(4, len(whole), 3)),
        *(whole[:-at] for at in range(1, 60)),
    ]:
        try:
            with reading.open_zip(io.BytesIO(file)) as opened:
                for member in reading.members(opened):
                    reading.begin_member(opened, member).blocks.close()
        except reading.UnreadableError:
            damaged += 1  # nothing else may leave it: it would end the import
    assert damaged > len(rotten) // 2


def test_what_is_packed_within_a_zip_archive_is_told_to_be_missing(archive: Archive, tmp_path: Path) -> None:
    inner, letter = io.BytesIO(), io.BytesIO()
    uid = str(generate_uid())
    with zipfile.ZipFile(inner, "w") as packed:
        packed.writestr("1.dcm", part10(ct_slice(sop_uid=uid), uid))
    with zipfile.ZipFile(letter, "w") as packed:
        packed.writestr("[Content_Types].xml", "<Types/>")
    file = tmp_path / "export.zip"
    with zipfile.ZipFile(file, "w") as packed:
        packed.writestr("exams.zip", inner.getvalue())
        packed.writestr("letter.docx", letter.getvalue())
        packed.writestr("exam.dcm.gz", gzip.compress(part10(ct_slice(sop_uid=uid), uid)))
    for _ in range(2):  # never done with
        assert archive.bring(file)["unreadable"] == 2
        assert all("unpack" in reason for reason in archive.reasons().values())


def test_what_the_archive_refuses_is_said_and_tried_again(tmp_path: Path) -> None:
    archive = Archive.make(tmp_path / "ours", "ingest.object_bytes_max=100000")
    tree = tmp_path / "tree"
    write_study(tree, 2)
    uid = str(generate_uid())
    (tree / "large").write_bytes(part10(ct_slice(sop_uid=uid, pixels=bytes(200_000)), uid))
    assert archive.bring(tree) == {"imported": 2, "rejected": 1}
    assert "object_bytes_max" in archive.reasons(Fate.REJECTED)["large"]
    assert archive.bring(tree) == {"before": 2, "rejected": 1}


def test_an_archive_without_room_ends_it(tmp_path: Path) -> None:
    archive = Archive.make(tmp_path / "ours", f"storage.disk_reserve_bytes={1 << 40}")
    write_study(tmp_path / "one", 3)
    write_study(tmp_path / "two", 3)
    assert archive.bring(tmp_path / "one", tmp_path / "two", pauses_s=(0.0, 0.0)) == {}
    (complaint,) = archive.tally.complaints
    assert complaint.startswith("the archive takes no more: the disk is full")


def test_loops_and_links_end(archive: Archive, tmp_path: Path) -> None:
    tree, outside = tmp_path / "tree", tmp_path / "outside"
    write_study(tree, 2)
    write_study(outside, 1)
    (tree / "round").symlink_to(tree)
    (tree / "out").symlink_to(outside)
    (tree / "to a file").symlink_to(outside / "0.dcm")
    (tree / "to nothing").symlink_to(tree / "gone")
    os.mkfifo(tree / "pipe")
    assert archive.bring(tree) == {"imported": 2, "not DICOM": 5}
    (tmp_path / "link").symlink_to(tree)
    assert archive.bring(tmp_path / "link") == {"before": 2, "not DICOM": 5}  # one that is named is meant


def test_what_cannot_be_read_is_said_and_the_rest_comes_in(
    archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = tmp_path / "tree"
    write_study(tree, 3)
    plain = os.open

    def open_(path: Any, *rest: Any, **more: Any) -> int:  # root may read everything: tests may be root's
        if str(path).endswith("1.dcm"):
            raise PermissionError(13, "Permission denied")
        return plain(path, *rest, **more)

    monkeypatch.setattr(reading.os, "open", open_)
    assert archive.bring(tree) == {"imported": 2, "unreadable": 1}
    assert archive.reasons() == {"1.dcm": "cannot be read: Permission denied"}
    monkeypatch.setattr(reading.os, "open", plain)
    assert archive.bring(tree) == {"imported": 1, "before": 2}


def test_a_file_that_changes_while_it_is_read_is_not_kept(
    archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    uids = [str(generate_uid()) for _ in range(3)]
    for name, uid in zip(("grows", "shrinks", "stays"), uids, strict=True):
        (tree / name).write_bytes(part10(ct_slice(sop_uid=uid, pixels=bytes(3 << 20)), uid))
    plain = os.read
    reads: Counter[str] = Counter()

    def read(fd: int, count: int) -> bytes:
        data = plain(fd, count)
        name = Path(f"/proc/self/fd/{fd}").readlink().name
        reads[name] += 1
        if reads[name] == 2 and name == "grows":
            with (tree / name).open("ab") as file:
                file.write(b"more")
        if reads[name] == 2 and name == "shrinks":
            os.truncate(tree / name, 2 << 20)
        return data

    monkeypatch.setattr(reading.os, "read", read)
    assert archive.bring(tree, jobs=1) == {"imported": 1, "unreadable": 2}
    assert set(archive.reasons()) == {"grows", "shrinks"}
    monkeypatch.undo()
    assert archive.stored() == [uids[2]]
    counts = archive.bring(tree)
    assert counts == {"imported": 2, "before": 1}  # one of them cut short: kept, and flagged
    assert archive.reasons(Fate.IMPORTED)["shrinks"] == "truncated"


def test_truncated_and_broken_objects_are_kept_and_flagged(archive: Archive, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    uid = str(generate_uid())
    whole = part10(ct_slice(sop_uid=uid), uid)
    (tree / "cut").write_bytes(whole[:-100])
    (tree / "meta only").write_bytes(whole[: split(whole).offset])
    (tree / "half a header").write_bytes(whole[: split(whole).offset - 20])
    (tree / "preamble only").write_bytes(bytes(128) + b"DICM")
    (tree / "no preamble's end").write_bytes(bytes(100))
    counts = archive.bring(tree)
    assert counts == {"imported": 1, "quarantined": 3, "not DICOM": 1}
    assert archive.tally.flagged == 1


def test_other_content_under_the_same_uids_is_kept_and_said(archive: Archive, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    study, series, uid = (str(generate_uid()) for _ in range(3))
    for number in range(2):
        data = ct_slice(sop_uid=uid, study_uid=study, series_uid=series, number=number)
        (tree / str(number)).write_bytes(part10(data, uid))
    (tree / "2").write_bytes((tree / "1").read_bytes())
    counts = archive.bring(tree, jobs=1)
    assert counts == {"imported": 1, "other content": 1, "already there": 1}


# ---------------------------------------------------------------- Orthanc


def orthanc_path(root: Path) -> Path:
    name = str(uuid.uuid4())
    path = root / name[:2] / name[2:4] / name
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def squeezed(data: bytes) -> bytes:
    return struct.pack("<Q", len(data)) + zlib.compress(data)


def test_an_orthanc_folder_gives_its_objects_and_not_their_shadows(archive: Archive, tmp_path: Path) -> None:
    root, uids = tmp_path / "db", []
    for number in range(6):
        uid = str(generate_uid())
        pixels = bytes(2 << 20) if number > 3 else None
        file = part10(ct_slice(sop_uid=uid, pixels=pixels), uid)
        header = file[: file.index(struct.pack("<HH", 0x7FE0, 0x0010))]
        about = json.dumps({"SOPInstanceUID": uid}).encode()
        pack = squeezed if number % 2 else bytes
        for data in (file, about, header):
            orthanc_path(root).write_bytes(pack(data))
        uids.append(uid)
    (root / "index").write_bytes(b"SQLite format 3\0" + bytes(4096))
    whole = squeezed(part10(ct_slice(), "1.2.3"))
    orthanc_path(root).write_bytes(whole[:-30])
    orthanc_path(root).write_bytes(struct.pack("<Q", 7) + whole[8:])
    report = str(generate_uid())
    from support.imports import EXPLICIT

    def no_image(data: Any) -> None:
        for keyword in ("Rows", "Columns", "PixelData", "BitsAllocated", "BitsStored", "HighBit"):
            delattr(data, keyword)

    orthanc_path(root).write_bytes(part10(ct_slice(sop_uid=report, change=no_image), report, syntax=EXPLICIT))

    assert archive.bring(root) == {"imported": 7, "not DICOM": 13, "unreadable": 2}
    assert archive.stored() == sorted([*uids, report])
    assert set(archive.reasons().values()) == {
        "compressed by Orthanc, and cut short",
        "compressed by Orthanc, and not as long as it says",
    }


# ---------------------------------------------------------------- DICOMDIR


def test_a_dicomdir_stands_for_what_it_lists_and_what_is_missing_is_said(
    archive: Archive, tmp_path: Path
) -> None:
    disc = tmp_path / "disc"
    write_study(disc / "images", 1, name="im0001.;1")
    write_study(disc / "IMAGES2", 1, name="IM2.")
    write_study(disc, 2, name="UNLISTED{}")
    write_study(disc, 1, name="TWICE")
    write_study(tmp_path, 1, name="SECRET")
    (disc / "TEXT").write_text("what the DICOMDIR says is an image")
    ids = [
        b"IMAGES\\IM0001",
        b"IMAGES2\\IM2;1",
        b"GONE\\IM1",
        b"..\\SECRET",
        b"TEXT",
        b"TWICE",
        b"TWICE",
        b"twice",
    ]
    (disc / "DICOMDIR").write_bytes(dicomdir(ids))
    counts = archive.bring(disc / "DICOMDIR")
    assert counts == {"imported": 3, "not DICOM": 1, "unreadable": 2}
    assert archive.reasons() == {
        "IM1": "listed by the DICOMDIR, and not there",
        "DICOMDIR": "the DICOMDIR names a file outside its folder, or none that can be",
    }
    assert archive.bring(disc / "DICOMDIR") == {"before": 4, "unreadable": 2}


@pytest.mark.parametrize("cut", [140, 200, 300])
def test_a_broken_dicomdir_is_said(archive: Archive, tmp_path: Path, cut: int) -> None:
    (tmp_path / "DICOMDIR").write_bytes(dicomdir([b"A\\B"] * 5)[:cut])
    counts = archive.bring(tmp_path / "DICOMDIR")
    assert sum(counts.values()) >= 1
    assert "imported" not in counts


# ---------------------------------------------------------------- what is remembered and written


def test_the_state_says_nothing_and_is_of_one_archive(archive: Archive, tmp_path: Path) -> None:
    tree = tmp_path / "MUELLER^HANS"
    (uid,) = write_study(tree, 1)
    state = tmp_path / "state"
    assert archive.bring(tree, state=state) == {"imported": 1}
    assert archive.bring(tree, state=state) == {"before": 1}
    for path in tmp_path.glob("state*"):
        assert path.stat().st_mode & 0o777 == 0o600
        for secret in (b"MUELLER", uid.encode(), b".dcm"):
            assert secret not in path.read_bytes()
    other = Archive.make(tmp_path / "another")
    with pytest.raises(StateError, match="another archive"):
        other.bring(tree, state=state)
    state.write_bytes(b"damaged" * 1000)
    for path in tmp_path.glob("state-*"):
        path.unlink()
    with pytest.raises(StateError, match="remove it"):
        archive.bring(tree, state=state)


def test_the_report_names_places_and_reasons_and_no_patient(archive: Archive, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    write_study(tree, 2)
    uid = str(generate_uid())
    (tree / "cut").write_bytes(part10(ct_slice(sop_uid=uid, patient_name="Secret^Name"), uid)[:-50])
    (tree / "text").write_text("no")
    with open_report(tmp_path / "report") as file:
        tally = Tally(file)

        async def run() -> None:
            await run_import(archive.config, [Tree(tree)], tally, ImportOptions())

        trio.run(run)
    text = (tmp_path / "report").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert sorted((Path(one["place"]).name, one["fate"]) for one in lines) == [
        ("cut", "imported"),
        ("text", "not_dicom"),
    ]
    assert uid not in text
    assert "Secret" not in text
    assert (tmp_path / "report").stat().st_mode & 0o777 == 0o600


def test_a_report_goes_on_and_never_replaces_a_file(tmp_path: Path) -> None:
    path = tmp_path / "report.jsonl"
    for place in "ab":
        with open_report(path) as file:
            Tally(file).object(place, Fate.CONFLICT, "why")
    assert [json.loads(line)["place"] for line in path.read_text().splitlines()] == ["a", "b"]
    exam = tmp_path / "1.dcm"
    exam.write_bytes(bytes(128) + b"DICM")
    with pytest.raises(ReportError, match="no report"):
        open_report(exam)
    assert exam.read_bytes() == bytes(128) + b"DICM"


def test_objects_say_that_they_were_imported_and_rules_hold_for_them(tmp_path: Path) -> None:
    rule = 'coercions=[{name="x", match={protocol="import"}, set={InstitutionName="NORTH"}}]'
    archive = Archive.make(tmp_path / "ours", rule)
    write_study(tmp_path / "tree", 1)
    assert archive.bring(tmp_path / "tree") == {"imported": 1}
    with open_here(archive.config) as here:
        found = here.call("search", level="instance", parameters=[["InstitutionName", "NORTH"]])
    assert len(found["rows"]) == 1


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"", Kind.EMPTY),
        (b"PK\x03\x04" + bytes(100), Kind.ZIP),
        (b"abcdUS" + bytes(200), Kind.OTHER),
        (b"\x08\x00\x05\x00CS\x0a\x00ISO_IR 100" + b"\x08\x00\x16\x00UI\x04\x001.2\0", Kind.OTHER),
        (bytes(128) + b"DICN" + bytes(100), Kind.OTHER),
        (dicomdir([b"A"]), Kind.DICOMDIR),
        (gzip.compress(bytes(300), mtime=0), Kind.PACKED),
        (b"7z\xbc\xaf\x27\x1c" + bytes(300), Kind.PACKED),
        (b"name.dcm" + bytes(249) + b"ustar\x0000" + bytes(300), Kind.PACKED),
        (bytes(0x8001) + b"CD001" + bytes(300), Kind.PACKED),
    ],
)
def test_what_is_no_object_is_told_apart(data: bytes, kind: Kind) -> None:
    assert recognised(data) is kind


def test_memory_does_not_grow_with_a_file(archive: Archive, tmp_path: Path) -> None:
    """Sparse, so that the disk has no work: a quarter of a gigabyte read, a few blocks held."""
    uid = str(generate_uid())
    length = 256 << 20
    data = ct_slice(sop_uid=uid, pixels=b"")
    at = data.index(struct.pack("<HH", 0x7FE0, 0x0010))
    head = part10(data[:at], uid, sop_class=CT) + struct.pack("<HH2sHL", 0x7FE0, 0x10, b"OW", 0, length)
    file = tmp_path / "tree" / "long"
    file.parent.mkdir()
    with file.open("wb") as out:
        out.write(head)
        out.truncate(len(head) + length)
    import resource

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert archive.bring(file) == {"imported": 1}
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 150 << 10, f"{grown} KiB"
    assert sys.getsizeof(head) < 1 << 20
