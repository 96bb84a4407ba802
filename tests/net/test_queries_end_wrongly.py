"""Danger: a C-FIND ends with a status that says something else than what happened, or not when it should."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pydicom
import pytest
import trio
from pydicom.uid import ExplicitVRLittleEndian

from hounsfield.archive.dicom.find_request import PATIENT_ROOT_FIND, STUDY_ROOT_FIND
from hounsfield.archive.engine import finding
from hounsfield.archive.engine.corrections import Request
from hounsfield.archive.engine.finding import FindLimits
from hounsfield.archive.net import find
from hounsfield.archive.net.find import find_service
from hounsfield.archive.net.services import Peer
from hounsfield.archive.wire import (
    AcceptedContext,
    CCancelRequest,
    CFindRequest,
    ExtendedNegotiation,
    PresentationContext,
    UserInformation,
)
from hounsfield.codecs.registry import (
    EXPLICIT_VR_BIG_ENDIAN,
    EXPLICIT_VR_LITTLE_ENDIAN,
    IMPLICIT_VR_LITTLE_ENDIAN,
    TransferSyntax,
)
from support.archives import ct_slice, store
from support.identifiers import data_set, keys, read, text_in
from support.rejection import QUALITY, note
from support.slow_matcher import tag_of

PATIENT, STUDY = 1, 3
SYNTAXES = (EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN, EXPLICIT_VR_BIG_ENDIAN)


async def caller(
    peer_to: Callable[..., Any], archive: Any, syntax: TransferSyntax = SYNTAXES[0], extended: bytes = b""
) -> Any:
    """A peer with a context for each root."""
    peer = await peer_to(archive)
    roots = {PATIENT: PATIENT_ROOT_FIND, STUDY: STUDY_ROOT_FIND}
    items = tuple(ExtendedNegotiation(root, extended) for root in roots.values()) if extended else ()
    await peer.associate(
        *(PresentationContext(number, root, (syntax.uid,)) for number, root in roots.items()),
        user=UserInformation(extended=items),
    )
    return peer


async def ask(
    peer: Any, context_id: int, syntax: TransferSyntax = SYNTAXES[0], **values: str
) -> tuple[Any, list[pydicom.Dataset]]:
    """Its last response, and the answers before it."""
    return await ask_raw(peer, context_id, data_set(keys(**values), syntax), syntax)


async def ask_raw(
    peer: Any, context_id: int, raw: bytes, syntax: TransferSyntax = SYNTAXES[0]
) -> tuple[Any, list[pydicom.Dataset]]:
    root = {PATIENT: PATIENT_ROOT_FIND, STUDY: STUDY_ROOT_FIND}[context_id]
    await peer.say(context_id, CFindRequest(7, root), raw)
    answers = []
    while True:
        answered, response, identifier = await peer.message()
        assert (answered, response.message_id_responded_to) == (context_id, 7)
        assert response.affected_sop_class_uid == root
        if response.status & 0xFF00 != 0xFF00:
            return response, answers
        answer = read(identifier, syntax)
        answer.pending = response.status
        answers.append(answer)


async def fill(engine: Any, studies: int) -> None:
    for number in range(studies):
        raw = ct_slice(patient_id=f"P{number % 3}", study_uid=f"2.25.{number + 1}")
        await store(engine, raw, ExplicitVRLittleEndian)


async def test_statuses(open_archive: Callable[..., Any], peer_to: Callable[..., Any]) -> None:
    async with open_archive(provide=lambda engine: [find_service(engine)]) as archive:
        await fill(archive.engine, 2)
        peer = await caller(peer_to, archive)
        for context, values, status, offending in (
            (STUDY, {"QueryRetrieveLevel": "STUDY"}, 0x0000, None),
            (STUDY, {}, 0xA900, (0x00080052,)),
            (STUDY, {"QueryRetrieveLevel": "PATIENT"}, 0xA900, (0x00080052,)),
            (STUDY, {"QueryRetrieveLevel": "SERIES"}, 0xA900, (0x0020000D,)),
            (PATIENT, {"QueryRetrieveLevel": "STUDY"}, 0xA900, (0x00100020,)),
            (STUDY, {"QueryRetrieveLevel": "STUDY", "StudyDate": "heute"}, 0xC000, (0x00080020,)),
            (STUDY, {"QueryRetrieveLevel": "STUDY", "PatientID": "none such"}, 0x0000, None),
        ):
            response, answers = await ask(peer, context, **values)
            assert (response.status, response.offending_elements) == (status, offending), values
            if status:
                assert response.error_comment and not answers
        response, _ = await ask_raw(peer, STUDY, b"\x08\0\x52\0CS\x06\0STU")
        assert response.status == 0xC000
        response, answers = await ask(peer, STUDY, QueryRetrieveLevel="STUDY")  # and the association lives on
        assert len(answers) == 2
        await peer.stream.aclose()


async def test_relational_queries_without_negotiation(
    open_archive: Callable[..., Any], peer_to: Callable[..., Any]
) -> None:
    service = lambda engine: [find_service(engine, relational=True)]  # noqa: E731
    async with open_archive(provide=service) as archive:
        await fill(archive.engine, 2)
        peer = await caller(peer_to, archive)
        response, answers = await ask(peer, PATIENT, QueryRetrieveLevel="SERIES", Modality="CT")
        assert (response.status, len(answers)) == (0, 2)
        assert {text_in(one, tag_of("PatientID")) for one in answers} == {"P0", "P1"}
        await peer.stream.aclose()


async def test_keys_that_are_not_supported_are_said_so(
    open_archive: Callable[..., Any], peer_to: Callable[..., Any]
) -> None:
    """FF01, and they are not in the answer (PS3.4 C.2.2.1.3, C.4.1.1.4)."""
    async with open_archive(provide=lambda engine: [find_service(engine)]) as archive:
        await fill(archive.engine, 1)
        peer = await caller(peer_to, archive)
        for values, pending in (
            ({"PatientName": "", "Allergies": ""}, 0xFF00),
            ({"SeriesNumber": ""}, 0xFF01),
            ({"KVP": "120"}, 0xFF01),
            ({"Modality": "CT"}, 0xFF01),
            ({"NumberOfPatientRelatedStudies": "7"}, 0xFF01),
        ):
            _, (answer,) = await ask(peer, STUDY, QueryRetrieveLevel="STUDY", **values)
            assert answer.pending == pending
            told = {tag_of(name) for name in values} & set(answer.keys())
            supported = {"PatientName", "Allergies", "NumberOfPatientRelatedStudies"}
            assert told == {tag_of(name) for name in values if name in supported}
        _, answers = await ask(peer, STUDY, QueryRetrieveLevel="STUDY", Modality="MR")
        assert not answers  # it stands for Modalities in Study
        await peer.stream.aclose()


async def test_more_matches_than_one_request_may_have(
    open_archive: Callable[..., Any], peer_to: Callable[..., Any]
) -> None:
    limits = FindLimits(answers_max=5, headers_max=8)
    async with open_archive(provide=lambda engine: [find_service(engine, limits)]) as archive:
        await fill(archive.engine, 6)
        peer = await caller(peer_to, archive, extended=b"\1")
        response, answers = await ask(peer, STUDY, QueryRetrieveLevel="STUDY")
        assert (response.status, len(answers)) == (0xA700, 5)
        assert "more" in response.error_comment
        response, answers = await ask(peer, STUDY, QueryRetrieveLevel="STUDY", PatientID="P1")
        assert (response.status, len(answers)) == (0, 2)
        await fill_more(archive.engine)
        response, answers = await ask(peer, STUDY, QueryRetrieveLevel="IMAGE", KVP="120")
        assert (response.status, len(answers)) == (0xA700, 0)
        response, answers = await ask(peer, STUDY, QueryRetrieveLevel="IMAGE", KVP="120", PatientID="P2")
        assert (response.status, len(answers)) == (0, 0)
        await peer.stream.aclose()


async def fill_more(engine: Any) -> None:
    for number in range(6):
        await store(engine, ct_slice(study_uid=f"2.25.9{number}"), ExplicitVRLittleEndian)


async def test_exactly_as_many_as_there_may_be(
    open_archive: Callable[..., Any], peer_to: Callable[..., Any]
) -> None:
    limits = FindLimits(answers_max=6)
    async with open_archive(provide=lambda engine: [find_service(engine, limits)]) as archive:
        await fill(archive.engine, 6)
        peer = await caller(peer_to, archive)
        response, answers = await ask(peer, STUDY, QueryRetrieveLevel="STUDY")
        assert (response.status, len(answers)) == (0, 6)
        await peer.stream.aclose()


async def test_a_cancel_ends_it_soon(
    open_archive: Callable[..., Any], peer_to: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """FE00, after at most what was found already; the next request is answered whole."""
    monkeypatch.setattr(finding, "ANSWERS_FIRST", 1)
    monkeypatch.setattr(finding, "ANSWERS_PER_TURN", 1)
    monkeypatch.setattr(find, "ANSWERS_AT_ONCE", 1)
    async with open_archive(provide=lambda engine: [find_service(engine)]) as archive:
        await fill(archive.engine, 60)
        peer = await caller(peer_to, archive)
        await peer.say(
            STUDY, CFindRequest(9, STUDY_ROOT_FIND), data_set(keys(QueryRetrieveLevel="STUDY"), SYNTAXES[0])
        )
        _, first, _ = await peer.message()
        assert first.status == 0xFF00
        await peer.say(STUDY, CCancelRequest(9))
        count = 1
        while True:
            _, response, _ = await peer.message()
            if response.status != 0xFF00:
                break
            count += 1
        # On loopback all may have been sent before the cancel was read.
        assert response.status == 0xFE00 or count == 60
        response, answers = await ask(peer, STUDY, QueryRetrieveLevel="STUDY")
        assert (response.status, len(answers)) == (0, 60)
        await peer.stream.aclose()


class CancelledAfter:
    """An operation whose C-CANCEL came after so many answers."""

    def __init__(self, answers: int) -> None:
        self.peer = Peer("CALLER", "HOUNSFIELD", "127.0.0.1")
        self.said: list[tuple[Any, bytes | None]] = []
        self._answers = answers

    @property
    def cancelled(self) -> bool:
        return len(self.said) >= self._answers

    async def answer(self, pending: Any, identifiers: Sequence[bytes], final: Any = None) -> None:
        self.said += [(pending, identifier) for identifier in identifiers]
        if final is not None:
            self.said.append((final, None))


@pytest.mark.parametrize("answers", [0, 2])
async def test_nothing_is_sent_after_a_cancel(
    open_archive: Callable[..., Any], answers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(find, "ANSWERS_AT_ONCE", 1)
    async with open_archive() as archive:
        await fill(archive.engine, 4)
        provider = find_service(archive.engine).providers[CFindRequest]
        operation = CancelledAfter(answers)
        context = AcceptedContext(1, STUDY_ROOT_FIND, SYNTAXES[0].uid)
        question = data_set(keys(QueryRetrieveLevel="STUDY"), SYNTAXES[0])
        await provider(operation, context, CFindRequest(1, STUDY_ROOT_FIND), question)  # type: ignore[arg-type]
    assert [response.status for response, _ in operation.said] == [0xFF00] * answers + [0xFE00]


async def test_counts_of_a_patient(open_archive: Callable[..., Any], peer_to: Callable[..., Any]) -> None:
    counts = dict.fromkeys(
        ("NumberOfPatientRelatedStudies", "NumberOfPatientRelatedSeries", "NumberOfPatientRelatedInstances"),
        "",
    )
    async with open_archive(provide=lambda engine: [find_service(engine)]) as archive:
        engine = archive.engine
        for patient, study, series in (
            ("P1", 1, 1),
            ("P1", 1, 2),
            ("P1", 2, 3),
            ("", 3, 4),
            ("", 4, 5),
            ("P*", 5, 6),
        ):
            for number in range(2):
                raw = ct_slice(
                    patient_id=patient,
                    study_uid=f"2.25.{study}",
                    series_uid=f"2.25.0.{series}",
                    number=number,
                )
                await store(engine, raw, ExplicitVRLittleEndian)
        peer = await caller(peer_to, archive)
        _, answers = await ask(peer, PATIENT, QueryRetrieveLevel="PATIENT", **counts)
        told = sorted(
            tuple(text_in(one, tag_of(name)) or "" for name in ("PatientID", *counts)) for one in answers
        )
        assert told == [
            ("", "1", "1", "2"),
            ("", "1", "1", "2"),
            ("P*", "1", "1", "2"),
            ("P1", "2", "3", "6"),
        ]
        _, answers = await ask(peer, PATIENT, QueryRetrieveLevel="STUDY", PatientID="P1", **counts)
        assert {text_in(one, tag_of("NumberOfPatientRelatedSeries")) for one in answers} == {"3"}
        await peer.stream.aclose()


@pytest.mark.parametrize("syntax", SYNTAXES, ids=lambda one: one.name)
async def test_values_of_every_kind(
    open_archive: Callable[..., Any], peer_to: Callable[..., Any], syntax: TransferSyntax
) -> None:
    """Numbers, tags, bytes and nested sequences from the index and from the header, in each encoding."""

    def change(data: pydicom.Dataset) -> None:
        data.PixelSpacing = [0.5, 0.25]
        data.KVP = "120.5"
        data.FrameIncrementPointer = [0x00181063, 0x00181065]
        data.ExposureIndex = "7"
        data.RealWorldValueIntercept = -2.5
        data.ICCProfile = b"\x01\x02\x03\x04"
        data.SmallestImagePixelValue = 3
        code = pydicom.Dataset()
        code.CodeValue, code.CodeMeaning = "T-D3000", "Brust"
        modifier = pydicom.Dataset()
        modifier.CodeValue = "M1"
        code.AnatomicRegionModifierSequence = [modifier]
        data.AnatomicRegionSequence = [code]

    async with open_archive(provide=lambda engine: [find_service(engine)]) as archive:
        await store(archive.engine, ct_slice(study_uid="2.25.1", change=change), ExplicitVRLittleEndian)
        peer = await caller(peer_to, archive, syntax, b"\1")
        names = (
            "Rows", "PixelSpacing", "KVP", "FrameIncrementPointer", "ExposureIndex",
            "RealWorldValueIntercept", "ICCProfile", "SmallestImagePixelValue", "PixelData",
        )  # fmt: skip
        values: dict[int, Any] = keys(QueryRetrieveLevel="IMAGE") | dict.fromkeys(map(tag_of, names), "")
        values[tag_of("AnatomicRegionSequence")] = []
        _, (answer,) = await ask_raw(peer, STUDY, data_set(values, syntax), syntax)
        assert answer.Rows == 16
        assert answer.PixelSpacing == [0.5, 0.25]
        assert answer.KVP == 120.5
        assert list(answer.FrameIncrementPointer) == [0x00181063, 0x00181065]
        assert answer.ExposureIndex == 7
        assert answer.RealWorldValueIntercept == -2.5
        assert answer.ICCProfile == b"\x01\x02\x03\x04"
        assert answer.SmallestImagePixelValue == 3
        (region,) = answer.AnatomicRegionSequence
        assert region.CodeMeaning == "Brust"
        assert region.AnatomicRegionModifierSequence[0].CodeValue == "M1"
        assert "PixelData" not in answer
        # As keys: one matches, another does not, in sequences too.
        for matched, count in (({"KVP": "120.5*"}, 0), ({"KVP": "120.5"}, 1), ({"KVP": "80"}, 0)):
            _, answers = await ask(peer, STUDY, syntax, QueryRetrieveLevel="IMAGE", **matched)
            assert len(answers) == count
        for meaning, count in (("Brust", 1), ("B*", 1), ("Bauch", 0)):
            values[tag_of("AnatomicRegionSequence")] = [keys(CodeMeaning=meaning, CodeValue="T*")]
            _, answers = await ask_raw(peer, STUDY, data_set(values, syntax), syntax)
            assert len(answers) == count
        await peer.stream.aclose()


async def test_corrections_and_rejections_are_heeded(
    open_archive: Callable[..., Any], peer_to: Callable[..., Any]
) -> None:
    async with open_archive(provide=lambda engine: [find_service(engine)]) as archive:
        engine = archive.engine
        raw = ct_slice(study_uid="2.25.1", series_uid="2.25.1.1", sop_uid="2.25.1.1.1")
        await store(engine, raw, ExplicitVRLittleEndian)
        await fill(engine, 3)
        values = {tag_of("PatientName"): "Richtig^Name", tag_of("PatientComments"): "corrected"}
        request = Request(kind="set-study", actor="t", reason="wrong", study="2.25.1", values=values)
        await engine.correcting.make(request)
        peer = await caller(peer_to, archive, extended=b"\1")
        _, (answer,) = await ask(
            peer, STUDY, QueryRetrieveLevel="IMAGE", PatientName="richtig*", SOPInstanceUID="2.25.1.1.1",
            OriginalAttributesSequence="",
        )  # fmt: skip
        assert str(answer.PatientName) == "Richtig^Name"
        assert answer.OriginalAttributesSequence[0].ReasonForTheAttributeModification == "CORRECT"
        before = len((await ask(peer, STUDY, QueryRetrieveLevel="IMAGE"))[1])
        rows = (await ask(peer, STUDY, QueryRetrieveLevel="IMAGE", StudyInstanceUID="2.25.2"))[1]
        target = rows[0]
        names = {str(target.StudyInstanceUID): {str(target.SeriesInstanceUID): [str(target.SOPInstanceUID)]}}
        await store(engine, note(names, QUALITY), ExplicitVRLittleEndian)
        after = (await ask(peer, STUDY, QueryRetrieveLevel="IMAGE"))[1]
        assert len(after) < before
        assert str(target.SOPInstanceUID) not in {str(one.SOPInstanceUID) for one in after}
        await peer.stream.aclose()


class Hearing(CancelledAfter):
    """An operation that is told how many answers came together."""

    def __init__(self) -> None:
        super().__init__(1 << 30)
        self.together: list[int] = []

    async def answer(self, pending: Any, identifiers: Sequence[bytes], final: Any = None) -> None:
        self.together.append(len(identifiers))
        await super().answer(pending, identifiers, final)


async def test_answers_come_as_they_are_found(
    open_archive: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A few at once, then more together, never all: nothing but a turn's answers is held."""
    monkeypatch.setattr(finding, "ANSWERS_FIRST", 2)
    monkeypatch.setattr(finding, "ANSWERS_PER_TURN", 8)
    async with open_archive() as archive:
        await fill(archive.engine, 30)
        provider = find_service(archive.engine).providers[CFindRequest]
        operation = Hearing()
        context = AcceptedContext(1, STUDY_ROOT_FIND, SYNTAXES[0].uid)
        question = data_set(keys(QueryRetrieveLevel="STUDY"), SYNTAXES[0])
        await provider(operation, context, CFindRequest(1, STUDY_ROOT_FIND), question)  # type: ignore[arg-type]
    assert sum(operation.together) == 30
    assert operation.together[0] == 2
    assert max(operation.together) <= 8
    assert [response.status for response, _ in operation.said] == [0xFF00] * 30 + [0]


async def test_queries_that_come_all_at_once_are_answered_in_turn(
    open_archive: Callable[..., Any], peer_to: Callable[..., Any]
) -> None:
    """Those that need no task of their own, too, and beside one that cannot be answered."""
    async with open_archive(provide=lambda engine: [find_service(engine)]) as archive:
        await fill(archive.engine, 3)
        peer = await caller(peer_to, archive)
        good = data_set(keys(QueryRetrieveLevel="STUDY", PatientID="P1"), SYNTAXES[0])
        bad = data_set(keys(QueryRetrieveLevel="STUDY", StudyDate="heute"), SYNTAXES[0])
        asked = bytearray()
        for number in range(1, 301):
            request = CFindRequest(number, STUDY_ROOT_FIND)
            for batch in peer.writer.message(STUDY, request, [bad if number % 7 == 0 else good]):
                asked += b"".join(batch)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(peer.raw, bytes(asked))
            for number in range(1, 301):
                _, response, _ = await peer.message()
                if number % 7:
                    assert (response.message_id_responded_to, response.status) == (number, 0xFF00)
                    _, response, _ = await peer.message()
                assert response.message_id_responded_to == number
                assert response.status == (0 if number % 7 else 0xC000)
        await peer.stream.aclose()
