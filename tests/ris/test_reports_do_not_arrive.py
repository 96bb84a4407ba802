"""A signed report is not in the archive, is there twice, under another's name, or cannot be read."""

from __future__ import annotations

import io
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from zoneinfo import ZoneInfo

import pydicom
import pypdfium2
import pytest
from msgspec import structs

from hounsfield.archive.app.plugin_archive import PluginArchive
from hounsfield.archive.plugins import Change, Stored
from hounsfield.ris_plugin import distribution, orders, patients, reporting
from hounsfield.ris_plugin.distribution.objects import ENCAPSULATED_PDF, TEXT_SR, structured
from hounsfield.ris_plugin.distribution.printing import pdf, person
from hounsfield.ris_plugin.distribution.said import Said, gather
from hounsfield.ris_plugin.orders import NewOrder
from hounsfield.ris_plugin.records.base import NS, Code
from hounsfield.ris_plugin.records.catalog import PERSON, PROCEDURE, Person, Procedure
from hounsfield.ris_plugin.records.messages import CURSOR
from hounsfield.ris_plugin.records.orders import Order
from hounsfield.ris_plugin.records.patients import Identifier, Patient
from hounsfield.ris_plugin.records.reports import Report, Section, Version
from hounsfield.ris_plugin.settings import RisSettings
from ris.conftest import CLERK, INTERFACE, NOON_NS, RADIOLOGIST, REFERRER
from ris.following import Department, department

SETTINGS = RisSettings(
    institution="St. Hounsfield", department="Radiology", address="1 Computed Lane", time_zone="Europe/Vienna"
)
TEXT = (Section(name="findings", text="Nothing.\nLungs clear."), Section(name="impression", text="Normal."))
UTC = ZoneInfo("UTC")


@dataclass
class Kept:
    files: list[bytes] = field(default_factory=list)
    outcomes: list[str] = field(default_factory=list)
    fail_at: int = 0

    def datasets(self) -> list[pydicom.Dataset]:
        return [pydicom.dcmread(io.BytesIO(one)) for one in self.files]


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> Kept:
    """What is handed to the archive."""
    kept, store = Kept(), PluginArchive.store

    async def recording(self: PluginArchive, data: bytes) -> Stored:
        kept.fail_at -= 1
        if kept.fail_at == 0:
            raise RuntimeError("the power fails")
        stored = await store(self, data)
        kept.files.append(data)
        kept.outcomes.append(stored.outcome)
        return stored

    monkeypatch.setattr(PluginArchive, "store", recording)
    return kept


async def signed(room: Department) -> str:
    """A report that is signed; its images are in the archive under another spelling of the name."""

    def catalog(change: Change) -> None:
        head = Procedure(
            code=Code(value="CTHEAD", scheme="99H", meaning="CT of the head"),
            modality="CT",
            needs_protocol=False,
        )
        change.put(PROCEDURE, change.new_id(), head)
        change.put(PERSON, change.new_id(), Person(code="radiologist", name="ROENTGEN^WILHELM^^DR"))

    await room.commit(catalog)
    jane = Patient(
        identifiers=(Identifier(value="P1", issuer="HOSP"),), name="DOE^JANE", birth_day="19700101"
    )
    patient = await room.do(patients.register, CLERK, jane)
    order = await room.do(
        orders.place,
        REFERRER,
        SETTINGS,
        NewOrder(patient=patient, procedure="CTHEAD", referring="WARD^WILMA"),
    )
    study = room.look(orders.get, order).study_uid
    await room.store(StudyInstanceUID=study, PatientID="P1", PatientName="Doe^Jane^Q", StudyID="S7")
    report = await room.do(reporting.ready, INTERFACE, [order])
    await room.do(reporting.assign, RADIOLOGIST, SETTINGS, report)
    await room.do(reporting.draft, RADIOLOGIST, SETTINGS, report, TEXT)
    await room.do(reporting.sign, RADIOLOGIST, report)
    return report


async def test_each_version_is_stored_once_under_its_study(tmp_path: Path, kept: Kept) -> None:
    async with department(tmp_path / "data", settings=SETTINGS) as room:
        report = await signed(room)
        consumer = distribution.consumer(room.ris)
        kept.files.clear()
        await room.catch_up(consumer)
        late = (Section(name="findings", text="A nodule."),)
        await room.do(reporting.correct, RADIOLOGIST, report, late, reason="seen later")
        await room.catch_up(consumer)
        final = room.look(reporting.get, report)
        assert [one.number for one in final.versions] == [one.version for one in final.documents] == [1, 2]

        # All told again, as after a reindex: the same objects, no second ones.
        def forget(change: Change) -> None:
            found = change.first(CURSOR, "name", "distribution")
            assert found is not None
            change.delete(CURSOR, found[0])

        await room.commit(forget)
        await room.catch_up(consumer)
        assert kept.outcomes[-8:] == ["stored"] * 4 + ["duplicate"] * 4
        assert room.look(reporting.get, report).documents == final.documents

        found = await room.ris.archive.search("instance", {"StudyInstanceUID": final.study_uid})
        uids = {uid for one in final.documents for uid in (one.pdf_uid, one.sr_uid)}
        assert uids < {one["SOPInstanceUID"] for one in found}
        assert len(found) == 5
        first, printed, second, _ = kept.datasets()[:4]
        assert {str(one.PatientName) for one in (first, printed)} == {"Doe^Jane^Q"}  # as the archive shows it
        assert (first.StudyID, first.AccessionNumber) == ("S7", printed.AccessionNumber)
        assert (first.SOPClassUID, printed.SOPClassUID) == (TEXT_SR, ENCAPSULATED_PDF)
        assert (first.VerificationFlag, first.CompletionFlag) == ("VERIFIED", "COMPLETE")
        assert first.VerifyingObserverSequence[0].VerifyingObserverName == "ROENTGEN^WILHELM^^DR"
        (before,) = second.PredecessorDocumentsSequence[0].ReferencedSeriesSequence[0].ReferencedSOPSequence
        assert before.ReferencedSOPInstanceUID == first.SOPInstanceUID
        texts = [
            one.ContentSequence[0].TextValue for one in first.ContentSequence if one.ValueType == "CONTAINER"
        ]
        assert texts == ["Nothing.\r\nLungs clear.", "Normal."]
        document = printed.EncapsulatedDocument[: printed.EncapsulatedDocumentLength]
        assert "Signed electronically by DR WILHELM ROENTGEN" in words(document)


async def test_a_crash_between_the_two_leaves_both(tmp_path: Path, kept: Kept) -> None:
    async with department(tmp_path / "data", settings=SETTINGS) as room:
        report = await signed(room)
        (event,) = [one for one in await room.events() if one.kind == "ris.report-signed"]
        consumer = distribution.consumer(room.ris)
        assert consumer.prepare is not None
        kept.fail_at = 2
        kept.outcomes.clear()
        with pytest.raises(RuntimeError):
            await consumer.prepare(event)  # type: ignore[arg-type]
        await room.catch_up(consumer)
        assert kept.outcomes == ["stored", "duplicate", "stored"]
        assert len(room.look(reporting.get, report).documents) == 1


# ---------------------------------------------------------------- read by people, and by others


def said(kind: str = "final", text: str = "Nothing.", **fields: object) -> Said:
    signer = "" if kind == "preliminary" else "r"
    one = Version(
        number=2, kind=kind, author="t", at_ns=NOON_NS, signer=signer, signed_ns=NOON_NS if signer else 0,
        sections=(Section(name="findings", text=text), Section(name="Dose", text="3 mGy")), reason="side",
    )  # fmt: skip
    before = structs.replace(one, number=1, kind="final", signer="r", signed_ns=1)
    report = Report(
        number="R7", patient="p", orders=("o",), study_uid="1.2.3", state="final", accession="A1",
        modality="CT", versions=(before, one),
    )  # fmt: skip
    order = Order(
        patient="p", accession="A1", study_uid="1.2.3", state="completed", placed_ns=NOON_NS - NS,
        procedure=Code(value="CTHEAD", scheme="99H", meaning="CT of the head"), placer_number="PL1",
    )  # fmt: skip
    patient = Patient(
        identifiers=(Identifier(value="P1", issuer="HOSP"),), name="YAMADA^TARO=山田^太郎", sex="M"
    )
    return Said(report, one, patient, (order,), "TRAINEE^TIM", "ROENTGEN^WILHELM" if signer else "")


def words(document: bytes) -> str:
    pages = pypdfium2.PdfDocument(document)
    return "\n".join(page.get_textpage().get_text_bounded() for page in pages)


@pytest.mark.parametrize(
    ("kind", "mark"),
    [
        ("preliminary", "PRELIMINARY"),
        ("correction", "CORRECTED: version 2"),
        ("addendum", "ADDENDUM: version 2"),
    ],
)
def test_what_is_not_the_only_final_version_says_so(kind: str, mark: str) -> None:
    document = words(pdf(said(kind), SETTINGS, UTC))
    assert mark in document
    assert ("not signed" in document) == (kind == "preliminary")
    assert mark.partition(":")[0] not in words(pdf(said(), SETTINGS, UTC))


def test_the_page_says_who_what_when_and_by_whom() -> None:
    document = words(pdf(said(), SETTINGS, UTC))
    for expected in (
        "St. Hounsfield", "Radiology", "1 Computed Lane", "CT of the head", "TARO YAMADA", "P1 (HOSP)", "A1",
        "PL1", "male", "Findings", "Nothing.", "Dose", "3 mGy", "WILHELM ROENTGEN", "TIM TRAINEE",
        "2026-11-22 12:00 UTC", "Report R7, version 2", "Page 1",
    ):  # fmt: skip
        assert expected in document, expected


def test_long_reports_in_any_script_are_printed_whole_and_the_same_each_time() -> None:
    text = (
        "Größe 3 µm² ≤ 4. Лёгкие чистые. Οι πνεύμονες. הריאות תקינות. الرئتان سليمتان. \U00013080\x00\n" * 60
    )
    printed = pdf(said(text=text), SETTINGS, UTC)
    assert printed == pdf(said(text=text), SETTINGS, UTC)
    pages = pypdfium2.PdfDocument(printed)
    assert len(pages) == 2
    read = words(printed)
    assert read.count("Größe 3 µm² ≤ 4. Лёгкие чистые. Οι πνεύμονες.") == 60
    assert "stands for a character" in read
    assert f"Page {len(pages)}" in read


def test_names_are_read_as_they_are_spoken() -> None:
    assert person("DOE^JANE^Q^DR^MD") == "DR JANE Q DOE, MD"
    assert person("YAMADA^TARO=山田^太郎") == "TARO YAMADA · 山田 太郎"
    assert person("radiologist") == "radiologist"
    assert person("") == ""


@pytest.mark.peer("dsrdump")
@pytest.mark.parametrize("kind", ["preliminary", "final", "correction"])
def test_others_read_the_structured_report(tmp_path: Path, kind: str) -> None:
    from datetime import datetime

    one = said(kind, text="Größe " + "漢" * 3000)
    moment = datetime(2026, 11, 22, 12, tzinfo=UTC)
    path = tmp_path / "report.dcm"
    path.write_bytes(
        structured(one, "ab" * 16, {}, moment, organisation="St. H", priors=one.report.versions[:1])
    )
    dumped = subprocess.run(
        ["dsrdump", str(path)], capture_output=True, check=False, encoding="utf-8", errors="replace"
    )
    assert dumped.returncode == 0, dumped.stderr
    assert not [line for line in dumped.stderr.splitlines() if line.startswith("E:")]
    assert "Größe 漢漢" in dumped.stdout
    assert ("VERIFIED" in dumped.stdout and "UNVERIFIED" not in dumped.stdout) == (kind != "preliminary")


def test_a_version_that_there_is_not_has_no_document(desk: object) -> None:
    from hounsfield.ris_plugin.errors import UnknownError

    with pytest.raises(UnknownError):
        desk.look(gather, "0" * 32, 1)  # type: ignore[attr-defined]
