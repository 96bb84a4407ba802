"""A signed report is not in the archive, is there twice, under another's name, or cannot be read."""

from __future__ import annotations

import io
import re
import subprocess
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import pydicom
import pypdfium2
import pytest
from msgspec import structs
from PIL import Image

from hounsfield.archive.app.plugin_archive import PluginArchive
from hounsfield.archive.plugins import Change, Stored
from hounsfield.ris_plugin import distribution, orders, patients, reacting
from hounsfield.ris_plugin.distribution.objects import ENCAPSULATED_PDF, TEXT_SR, encapsulated, structured
from hounsfield.ris_plugin.distribution.printing import pdf, person
from hounsfield.ris_plugin.distribution.said import Said, gather
from hounsfield.ris_plugin.distribution.words import ENGLISH, WORDS, faults
from hounsfield.ris_plugin.orders import NewOrder
from hounsfield.ris_plugin.reading import reporting
from hounsfield.ris_plugin.records.base import NS, Code
from hounsfield.ris_plugin.records.catalog import PERSON, PROCEDURE, Person, Procedure
from hounsfield.ris_plugin.records.messages import CURSOR
from hounsfield.ris_plugin.records.orders import Order
from hounsfield.ris_plugin.records.patients import Identifier, Patient
from hounsfield.ris_plugin.records.reports import (
    Field,
    Report,
    Section,
    Template,
    TemplateSection,
    Version,
)
from hounsfield.ris_plugin.settings import RisSettings
from ris.conftest import CLERK, INTERFACE, NOON_NS, RADIOLOGIST, REFERRER
from ris.following import Department, department

SETTINGS = RisSettings(
    institution="St. Hounsfield", department="Radiology", address="1 Computed Lane", time_zone="Europe/Vienna"
)
TEXT = (Section(name="findings", text="Nothing.\nLungs clear."), Section(name="impression", text="Normal."))
UTC = ZoneInfo("UTC")
MOMENT = datetime(2026, 11, 22, 12, tzinfo=UTC)


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
        await room.store(StudyInstanceUID=final.study_uid, PatientID="P1", PatientName="Doe^Jane^Q")
        await room.catch_up(consumer)
        assert kept.outcomes == ["stored"] * 6  # the documents, and the images before them and after them
        assert room.look(reporting.get, report).documents == final.documents

        found = await room.ris.archive.search("instance", {"StudyInstanceUID": final.study_uid})
        uids = {uid for one in final.documents for uid in (one.pdf_uid, one.sr_uid)}
        assert uids < {one["SOPInstanceUID"] for one in found}
        assert len(found) == 6
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
        (study,) = first.CurrentRequestedProcedureEvidenceSequence  # the images, and none of our documents
        (series,) = study.ReferencedSeriesSequence
        assert len(series.ReferencedSOPSequence) == 1
        assert (
            second.CurrentRequestedProcedureEvidenceSequence
            == first.CurrentRequestedProcedureEvidenceSequence
        )
        document = printed.EncapsulatedDocument[: printed.EncapsulatedDocumentLength]
        assert "Signed electronically by DR WILHELM ROENTGEN" in words(document)


async def test_documents_are_the_patients_whose_images_are_through_merges_and_back(tmp_path: Path) -> None:
    async with department(tmp_path / "data", settings=SETTINGS) as room:
        report = await signed(room)
        everybody = (*reacting.consumers(room.ris), distribution.consumer(room.ris))
        await room.catch_up(*everybody)
        first = room.look(reporting.get, report)
        other = Patient(
            identifiers=(Identifier(value="P2", issuer="HOSP"),), name="DOE-ROE^JANE", birth_day="19700101"
        )
        survivor = await room.do(patients.register, CLERK, other)
        merged = await room.do(patients.merge, CLERK, survivor=survivor, merged=first.patient)
        await room.catch_up(*everybody)
        late = (Section(name="findings", text="A nodule."),)
        await room.do(reporting.correct, RADIOLOGIST, report, late, reason="seen later")
        await room.catch_up(*everybody)

        async def of_whom() -> list[tuple[str, str]]:
            found = await room.ris.archive.search("instance", {"StudyInstanceUID": first.study_uid})
            return [(one["PatientID"], one["PatientName"]) for one in found]

        assert await of_whom() == [("P2", "DOE-ROE^JANE")] * 5
        assert len(await room.ris.archive.search("study", {"PatientID": "P2"})) == 1
        assert not await room.ris.archive.search("study", {"PatientID": "P1"})
        await room.do(patients.unmerge, CLERK, merged, "they are two")
        await room.catch_up(*everybody)
        assert {number for number, _ in await of_whom()} == {"P1"}


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
        assert kept.outcomes == ["stored", "stored"]
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
    patient = Patient(identifiers=(Identifier(value="P1", issuer="HOSP"),), name="YAMADA^TARO", sex="M")
    return Said(report, one, patient, (order,), "TRAINEE^TIM", "ROENTGEN^WILHELM" if signer else "")


def each_page(document: bytes) -> list[str]:
    return [page.get_textpage().get_text_bounded() for page in pypdfium2.PdfDocument(document)]


def words(document: bytes) -> str:
    return "\n".join(each_page(document))


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
        "2026-11-22 12:00 UTC", "Report R7, version 2", "Page 1 of 1", "Replaces preliminary version 1",
    ):  # fmt: skip
        assert expected in document, expected


def test_long_reports_in_any_script_are_printed_whole_and_the_same_each_time() -> None:
    text = "Größe 3 µm² ≤ 4. Лёгкие чистые. Οι πνεύμονες. הריאות תקינות. الرئتان سليمتان. \u0378\x00\n" * 60
    printed = pdf(said(text=text), SETTINGS, UTC)
    assert printed == pdf(said(text=text), SETTINGS, UTC)
    pages = pypdfium2.PdfDocument(printed)
    assert len(pages) == 2
    read = words(printed)
    assert read.count("Größe 3 µm² ≤ 4. Лёгкие чистые. Οι πνεύμονες.") == 60
    assert "stands for a character" in read
    assert [f"Page {number} of 2" in page for number, page in enumerate(each_page(printed), 1)] == [True] * 2


def test_only_what_was_written_is_printed_however_it_looks() -> None:
    """Not pages in place of ``{nb}``, no markup, no text turned around by characters that nobody sees."""
    text = (
        "{nb} <b>7</b> **8** \u202e9 mm left\u202c \x1b[1m\a&amp;\u200b "
        + "and so on " * 9
        + "x"
        + "\u0301" * 60
        + "\n"
    )
    first, *others = each_page(pdf(said(text=text * 60 + "W" * 500), SETTINGS, UTC))
    assert "{nb} <b>7</b> **8** 9 mm left [1m&amp;" in first
    assert others
    assert all(one.startswith("TARO YAMADA · P1 · CT of the head") for one in others)
    assert (
        "".join((first, *others)).count("W") == 500 + 2
    )  # long words are parted; and "Written by", and Wilhelm's
    assert "stands for a character" in others[-1]


def test_lines_after_one_in_another_font_are_in_their_own(tmp_path: Path) -> None:
    """A department's font that has only Latin; fpdf2 took the other font's glyphs for the next lines."""
    from fontTools.subset import Options, Subsetter
    from fontTools.ttLib import TTFont

    from hounsfield.ris_plugin.distribution.typefaces import OWN

    with TTFont(OWN) as font:
        subsetter = Subsetter(Options(glyph_names=True))
        subsetter.populate(unicodes=range(0x20, 0x7F))
        subsetter.subset(font)
        font.save(tmp_path / "Latin-Regular.ttf")
    settings = structs.replace(SETTINGS, report_fonts=(str(tmp_path / "Latin-Regular.ttf"),))
    lines = "Лёгкие чистые.\nThe lungs are clear.\n" * 60
    read = words(pdf(said(text=lines), settings, UTC))
    assert read.count("Лёгкие чистые.") == read.count("The lungs are clear.") == 60


def test_an_addendum_is_printed_and_kept_with_what_it_adds_to() -> None:
    one = said("addendum", text="Compared with March.")
    before = structs.replace(one.version, number=1, kind="final", sections=TEXT)
    one = replace(one, report=structs.replace(one.report, versions=(before, one.version)), names={"r": "R^W"})
    read = words(pdf(one, SETTINGS, UTC))
    assert "ADDENDUM: version 2, adds to version 1 of 2026-11-22 12:00 UTC" in read
    assert read.index("Reason: side") < read.index("Compared with March.") < read.index("Lungs clear.")
    assert read.count("Signed electronically by") == 2
    kept = pydicom.dcmread(io.BytesIO(structured(one, "ab" * 16, MOMENT, organisation="St. H")))
    containers = [item for item in kept.ContentSequence if item.ValueType == "CONTAINER"]
    assert [
        (item.ConceptNameCodeSequence[0].CodeMeaning, [text.TextValue for text in item.ContentSequence])
        for item in containers
    ] == [
        ("Findings", ["Nothing.\r\nLungs clear."]),
        ("Impressions", ["Normal."]),
        ("Addendum", ["Compared with March.", "3 mGy"]),
    ]


def test_the_file_is_made_to_be_kept_and_names_nobody_who_has_not_opened_it(tmp_path: Path) -> None:
    """Clauses of ISO 19005-2 (PDF/A-2b) that can be seen from outside: 6.1.2, 6.1.3, 6.2.3, 6.2.11, 6.6."""
    logo = tmp_path / "logo.png"
    Image.new("RGBA", (300, 100), (10, 60, 90, 128)).save(logo)
    settings = structs.replace(SETTINGS, report_logo=str(logo))
    one = replace(said("preliminary"), language="de-AT")
    made = pdf(one, settings, UTC)
    assert made.startswith(b"%PDF-1.7\n%")
    assert min(made[10:14]) > 127
    document = pypdfium2.PdfDocument(made)
    assert b"<pdfaid:part>2</pdfaid:part>" in made
    assert b"<pdfaid:conformance>B</pdfaid:conformance>" in made
    assert b"/GTS_PDFA1" in made
    assert re.search(rb"/ID \[<(\w{32})><\1>\]", made)
    assert b"/Lang (de-AT)" in made
    for forbidden in (b"/Encrypt", b"/SMask", b"/JavaScript", b"/LZWDecode", b"/EmbeddedFile", b"/Launch"):
        assert forbidden not in made, forbidden
    fonts = made.count(b"/Type /FontDescriptor")
    assert fonts == made.count(b"/FontFile2 ") + made.count(b"/FontFile3 ") > 0
    assert made.count(b"/ToUnicode") == fonts
    page = document[0].get_textpage().get_text_bounded()
    assert "VORLÄUFIG: nicht freigegeben, kann sich ändern" in page
    assert "Seite 1 von 1" in page
    for name in (b"YAMADA", b"Yamada", b"P1"):  # texts are compressed, what the file says of itself is not
        assert name not in made
    assert b"Befund R7, Version 2" in made


def test_words_and_languages_are_the_departments() -> None:
    own = {"de": {"findings": "Befund und Verlauf"}, "th": {"page": "{page}/{pages}"}}
    settings = structs.replace(SETTINGS, report_words=own, report_foot="For physicians only")
    german = words(pdf(replace(said("correction"), language="de"), settings, UTC))
    assert "Befund und Verlauf" in german
    assert "KORRIGIERT: Version 2, ersetzt Version 1 vom" in german
    assert "For physicians only" in german
    thai = words(pdf(replace(said(), language="th"), settings, UTC))
    assert "1/1" in thai
    assert "Signed electronically by" in thai  # what it leaves out is in English
    for wrong in (
        {"findigs": "x"},
        {"page": "Page {page}"},
        {"page": "{page} {pages} {0}"},
        {"page": "{page"},
    ):
        assert faults(wrong), wrong
    assert not [fault for one in WORDS.values() for fault in faults(one)]
    assert all(one.keys() == ENGLISH.keys() for one in WORDS.values())


def test_names_are_read_as_they_are_spoken() -> None:
    assert person("DOE^JANE^Q^DR^MD") == "DR JANE Q DOE, MD"
    assert person("YAMADA^TARO=山田^太郎") == "TARO YAMADA · 山田 太郎"
    assert person("radiologist") == "radiologist"
    assert person("") == ""


CHEST = Template(
    name="Chest",
    language="de",
    sections=(
        TemplateSection(
            name="findings",
            fields=(
                Field(
                    name="size", unit="mm", code=Code(value="246120007", scheme="SCT", meaning="Nodule size")
                ),
                Field(name="side", label="Seite", choices=("links", "rechts")),
            ),
        ),
    ),
)


def strange(kind: str = "final") -> Said:
    """A report with all that there can be, of a device that says little."""
    one = said(kind, text="Größe " + "漢" * 3000 + "\x07\x1b\x00\r\nzwei\\drei \u202e")
    fields = (("size", "12 x 9"), ("side", "links"), ("a-name-of-more-than-16", "1"), ("empty", " "))
    sections = (
        structs.replace(one.version.sections[0], fields=fields),
        Section(name="Strahlen\\dosis im ganzen " + "x" * 80, text="3 mGy"),
        Section(name="comparison", text=" \n"),
    )
    version = structs.replace(one.version, sections=sections)
    order = structs.replace(
        one.orders[0],
        procedure=Code(value="CT\\HEAD", scheme="99H", meaning="CT\\of the head " * 9),
        placer_number="PL\\1\n",
    )
    return replace(
        one,
        report=structs.replace(one.report, versions=(one.report.versions[0], version)),
        version=version,
        orders=(order,),
        language="de",
        template=CHEST,
        study={"StudyDate": "20260701", "StudyTime": "101500.123", "PatientID": "P1", "PatientName": "A^B"},
        objects=tuple(
            {
                "SOPClassUID": "1.2.840.10008.5.1.4.1.1.2",
                "SeriesInstanceUID": f"1.2.{n % 2}",
                "SOPInstanceUID": f"1.3.{n}",
            }
            for n in range(5)
        ),
    )


def test_the_structured_report_says_all_of_it_and_by_what_codes() -> None:
    vienna = MOMENT.astimezone(ZoneInfo("Europe/Vienna"))
    kept = pydicom.dcmread(io.BytesIO(structured(strange(), "ab" * 16, vienna, organisation="St. H\\x")))
    language, *_ = kept.ContentSequence
    assert language.ConceptCodeSequence[0].CodeValue == "de"
    findings, dose = (item for item in kept.ContentSequence if item.ValueType == "CONTAINER")
    texts = [
        (item.ConceptNameCodeSequence[0].CodeMeaning, item.TextValue) for item in findings.ContentSequence
    ]
    assert texts == [
        ("Finding", "Größe " + "漢" * 3000 + "\r\nzwei\\drei \u202e"),
        ("Nodule size", "12 x 9 mm"),
        ("Seite", "links"),
        ("a-name-of-more-than-16", "1"),
    ]
    codes = [item.ConceptNameCodeSequence[0] for item in findings.ContentSequence]
    assert (codes[1].CodeValue, codes[1].CodingSchemeDesignator) == ("246120007", "SCT")
    assert codes[3].LongCodeValue == "a-name-of-more-than-16"
    assert "CodeValue" not in codes[3]
    assert dose.ConceptNameCodeSequence[0].CodingSchemeDesignator == "99RIS"
    (evidence,) = kept.CurrentRequestedProcedureEvidenceSequence
    assert [len(series.ReferencedSOPSequence) for series in evidence.ReferencedSeriesSequence] == [3, 2]
    assert kept.VerifyingObserverSequence[0].VerificationDateTime == "20261122130000+0100"
    assert kept.ContentTime == "130000"
    assert "TimezoneOffsetFromUTC" not in kept  # the study is of summer time, and one offset is for all
    now = replace(strange(), study={})
    kept = pydicom.dcmread(io.BytesIO(structured(now, "ab" * 16, vienna, organisation="")))
    assert kept.TimezoneOffsetFromUTC == "+0100"


@pytest.mark.peer("dsrdump", "dsr2html", "dciodvfy")
@pytest.mark.parametrize("kind", ["preliminary", "final", "correction"])
def test_others_read_the_documents_and_find_no_fault(tmp_path: Path, kind: str) -> None:
    one = strange(kind)
    paths = [tmp_path / "report.dcm", tmp_path / "printed.dcm"]
    paths[0].write_bytes(structured(one, "ab" * 16, MOMENT, organisation="St. H"))
    paths[1].write_bytes(encapsulated(one, "ab" * 16, MOMENT, b"%PDF-1.7 %%EOF"))

    def run(*command: object) -> subprocess.CompletedProcess[str]:
        words = [str(word) for word in command]
        return subprocess.run(words, capture_output=True, check=False, encoding="utf-8", errors="replace")

    dumped = run("dsrdump", paths[0])
    assert dumped.returncode == 0, dumped.stderr
    assert not [line for line in dumped.stderr.splitlines() if line.startswith("E:")]
    assert "Größe 漢漢" in dumped.stdout
    assert ("VERIFIED" in dumped.stdout and "UNVERIFIED" not in dumped.stdout) == (kind != "preliminary")
    page = run("dsr2html", "+U8", paths[0]).stdout
    assert "Größe 漢漢" in page
    assert "Predecessor Docs" in page
    for path in paths:
        found = run("dciodvfy", path).stderr
        assert "Error" not in found, found


def test_a_version_that_there_is_not_has_no_document(desk: object) -> None:
    from hounsfield.ris_plugin.errors import UnknownError

    with pytest.raises(UnknownError):
        desk.look(gather, "0" * 32, 1)  # type: ignore[attr-defined]
