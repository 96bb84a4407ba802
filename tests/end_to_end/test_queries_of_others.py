"""DCMTK's findscu and pynetdicom ask a real server, in their own character sets, and read what it says."""

from __future__ import annotations

import secrets
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.dataset import FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from pynetdicom import AE
from pynetdicom.pdu_primitives import SOPClassExtendedNegotiation
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    PatientRootQueryRetrieveInformationModelFind,
    PatientStudyOnlyQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelFind,
)

from hounsfield.codecs.registry import EXPLICIT_VR_LITTLE_ENDIAN
from support.identifiers import data_set, keys, read
from support.server import PATIENCE_S, ArchiveServer
from support.slow_matcher import tag_of

#: The names of PS3.5 H, I, J and K, and others, each asked for in its own character set.
NAMES = (
    (b"ISO_IR 100", "Äneas^Rüdiger"),
    (b"ISO_IR 101", "Wałęsa^Żaneta"),
    (b"ISO_IR 109", "Ħaġar^Ġorġ"),
    (b"ISO_IR 110", "Bērziņš^Jānis"),
    (b"ISO_IR 148", "Çiçek^Şule"),
    (b"ISO_IR 203", "Cœur^Žofie"),
    (b"ISO_IR 144", "Люкceмбypг^Иван"),
    (b"ISO_IR 126", "Διονυσιος^Άρης"),
    (b"ISO_IR 127", "قباني^لنزار"),
    (b"ISO_IR 138", "שרון^דבורה"),
    (b"ISO_IR 166", "สมชาย^ใจดี"),
    (b"ISO 2022 IR 13\\ISO 2022 IR 87", "ﾔﾏﾀﾞ^ﾀﾛｳ=山田^太郎=やまだ^たろう"),
    (b"\\ISO 2022 IR 87", "Suzuki^Hanako=鈴木^花子=すずき^はなこ"),
    (b"\\ISO 2022 IR 149", "Hong^Gildong=洪^吉洞=홍^길동"),
    (b"\\ISO 2022 IR 58", "Zhang^XiaoDong=张^小东"),
    (b"GB18030", "Wang^XiaoDong=王^小东"),
    (b"GBK", "Li^Si=李^四"),
    (b"ISO_IR 192", "Ångström^名前"),
)
#: Latin 9 is newer than both, DCMTK on glibc has no Japanese sets, pydicom leaves the escapes of GB2312.
NOT_DCMTKS = {b"ISO_IR 203", *(declared for declared, _ in NAMES if b"IR 87" in declared)}
NOT_PYDICOMS = {b"ISO_IR 203", b"\\ISO 2022 IR 58"}
RETURNED = keys(PatientName="", StudyInstanceUID="", NumberOfStudyRelatedInstances="")


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[bytes, str, str]]:
    """Character set, name and Study Instance UID of each study; the same in all of this module's tests."""
    return [(declared, name, f"2.25.{secrets.randbits(100)}") for declared, name in NAMES]


@pytest.fixture
def filled(
    archive: ArchiveServer, studies: list[tuple[bytes, str, str]], tmp_path: Path
) -> Iterator[ArchiveServer]:
    """The shared server with one object of each study."""
    folder = tmp_path / "sent"
    folder.mkdir()
    for number, (declared, name, uid) in enumerate(studies):
        values = keys(
            SOPClassUID=CTImageStorage, SOPInstanceUID=f"{uid}.1", StudyInstanceUID=uid, StudyDate="20250314",
            SeriesInstanceUID=f"{uid}.0", PatientName=name, PatientID=f"Q{number}", Modality="CT",
        )  # fmt: skip
        save(folder / f"{number}.dcm", data_set(values, EXPLICIT_VR_LITTLE_ENDIAN, declared), f"{uid}.1")
    archive.run_json("send", archive.dicom_target, str(folder))
    yield archive


def save(path: Path, raw: bytes, sop_uid: str = "2.25.1") -> Path:
    """A Part 10 file with these elements."""
    data = read(raw, EXPLICIT_VR_LITTLE_ENDIAN)
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CTImageStorage, sop_uid
    data.file_meta = meta
    pydicom.dcmwrite(path, data, enforce_file_format=True)
    return path


def findscu(
    archive: ArchiveServer, folder: Path, model: str, raw: bytes, *options: str
) -> tuple[list[Path], str]:
    """The answers as files, and what it said."""
    folder.mkdir()
    asked = save(folder / "query.dcm", raw)
    done = subprocess.run(
        ["findscu", "-v", model, "-X", "-od", folder, *options, "-aec", "HOUNSFIELD", "127.0.0.1",
         str(archive.dicom_port), asked],
        capture_output=True, text=True, timeout=PATIENCE_S, check=False, errors="replace",
    )  # fmt: skip
    return sorted(folder.glob("rsp*.dcm")), done.stdout + done.stderr


@pytest.mark.peer("findscu")
def test_findscu_in_every_character_set(
    filled: ArchiveServer, studies: list[tuple[bytes, str, str]], tmp_path: Path
) -> None:
    for number, (declared, name, uid) in enumerate(studies):
        asked = {**RETURNED, **keys(QueryRetrieveLevel="STUDY", PatientName=f"{name.split('=')[-1]}*")}
        raw = data_set(asked, EXPLICIT_VR_LITTLE_ENDIAN, declared)
        answers, said = findscu(filled, tmp_path / str(number), "-S", raw)
        found = [path for path in answers if pydicom.dcmread(path).StudyInstanceUID == uid]
        assert len(found) == 1, (name, said)
        assert declared in found[0].read_bytes()
        if declared not in NOT_PYDICOMS:
            assert str(pydicom.dcmread(found[0]).PatientName) == name
        if declared in NOT_DCMTKS:
            continue
        utf8 = tmp_path / f"{number}.dcm"
        subprocess.run(["dcmconv", "+U8", found[0], utf8], check=True, timeout=PATIENCE_S)
        assert str(pydicom.dcmread(utf8).PatientName) == name


@pytest.mark.peer("findscu")
def test_findscu_at_every_level(
    filled: ArchiveServer, studies: list[tuple[bytes, str, str]], tmp_path: Path
) -> None:
    _, name, uid = studies[0]
    above = {"PatientID": "Q0", "StudyInstanceUID": uid, "SeriesInstanceUID": f"{uid}.0"}
    for model, levels in (
        ("-P", ("PATIENT", "STUDY", "SERIES", "IMAGE")),
        ("-S", ("STUDY", "SERIES", "IMAGE")),
        ("-O", ("PATIENT", "STUDY")),
    ):
        for level in levels:
            known = dict(list(above.items())[: ("PATIENT", "STUDY", "SERIES", "IMAGE").index(level)])
            asked = keys(QueryRetrieveLevel=level, **{"PatientName": name, "SOPInstanceUID": "", **known})
            if level != "IMAGE":
                del asked[tag_of("SOPInstanceUID")]
            raw = data_set(asked, EXPLICIT_VR_LITTLE_ENDIAN, b"ISO_IR 192")
            answers, said = findscu(filled, tmp_path / f"{model}{level}", model, raw)
            assert len(answers) == 1, said
            answer = pydicom.dcmread(answers[0])
            assert (answer.QueryRetrieveLevel, answer.RetrieveAETitle) == (level, "HOUNSFIELD")
            assert (answer.InstanceAvailability, str(answer.PatientName)) == ("ONLINE", name)
            if level == "IMAGE":
                assert answer.SOPInstanceUID == f"{uid}.1"
        if model != "-S":
            raw = data_set(keys(QueryRetrieveLevel="STUDY"), EXPLICIT_VR_LITTLE_ENDIAN)
            _, said = findscu(filled, tmp_path / f"{model}none", model, raw, "-d")
            assert "0xa900" in said.lower() and "PatientID missing" in said


@pytest.mark.peer("findscu")
def test_findscu_cancels(filled: ArchiveServer, tmp_path: Path) -> None:
    raw = data_set({**RETURNED, **keys(QueryRetrieveLevel="STUDY")}, EXPLICIT_VR_LITTLE_ENDIAN)
    answers, said = findscu(filled, tmp_path / "cancelled", "-S", raw, "--cancel", "1")
    assert answers
    assert "Cancel" in said or "Success" in said, said  # all may have been sent before it came


@pytest.fixture
def associate(filled: ArchiveServer) -> Iterator[Callable[..., Any]]:
    """``associate(model, agreed)``: an association of pynetdicom's, with SOP class extended negotiation."""
    made = []

    def called(model: str, asked: bytes | None = None) -> Any:
        entity = AE("PYNETDICOM")
        entity.add_requested_context(model)
        items: list[Any] = []
        if asked is not None:
            item = SOPClassExtendedNegotiation()
            item.sop_class_uid, item.service_class_application_information = model, asked
            items.append(item)
        found = entity.associate("127.0.0.1", filled.dicom_port, ae_title="HOUNSFIELD", ext_neg=items)
        assert found.is_established
        made.append(found)
        return found

    yield called
    for each in made:
        each.release()


def asked_by(association: Any, model: str, **values: str) -> tuple[list[int], list[pydicom.Dataset]]:
    """Statuses and answers."""
    question = pydicom.Dataset()
    question.SpecificCharacterSet = "ISO_IR 192"
    for keyword, value in values.items():
        setattr(question, keyword, value)
    told = list(association.send_c_find(question, model))
    return [status.Status for status, _ in told], [answer for _, answer in told if answer is not None]


@pytest.mark.peer("pynetdicom")
def test_pynetdicom_negotiates(associate: Callable[..., Any], studies: list[tuple[bytes, str, str]]) -> None:
    model = PatientRootQueryRetrieveInformationModelFind
    uid = studies[2][2]
    plain = associate(model)
    statuses, _ = asked_by(plain, model, QueryRetrieveLevel="SERIES", StudyInstanceUID=uid)
    assert statuses == [0xA900]
    relational = associate(model, b"\1\1\1")
    (agreed,) = relational.acceptor.sop_class_extended.items()
    assert agreed == (model, b"\1\1\1")
    statuses, answers = asked_by(
        relational, model, QueryRetrieveLevel="SERIES", StudyInstanceUID=uid, PatientName=""
    )
    assert statuses == [0xFF00, 0x0000]
    assert str(answers[0].PatientName) == studies[2][1]
    statuses, answers = asked_by(
        relational, model, QueryRetrieveLevel="IMAGE", PatientName="jan berz", PatientID=""
    )
    assert [answer.PatientID for answer in answers] == ["Q3"]  # fuzzy: words in any order, without accents


@pytest.mark.peer("pynetdicom")
def test_pynetdicom_asks_for_what_is_not_there(associate: Callable[..., Any]) -> None:
    for model in (
        StudyRootQueryRetrieveInformationModelFind, PatientStudyOnlyQueryRetrieveInformationModelFind,
    ):  # fmt: skip
        association = associate(model)
        level = "STUDY" if model == StudyRootQueryRetrieveInformationModelFind else "PATIENT"
        assert asked_by(association, model, QueryRetrieveLevel=level, PatientID="nobody") == ([0x0000], [])
        assert asked_by(association, model, QueryRetrieveLevel="IMAGES") == ([0xA900], [])
        statuses, _ = asked_by(association, model, QueryRetrieveLevel=level, PatientID="Q1", KVP="")
        assert statuses == [0xFF01, 0x0000]
