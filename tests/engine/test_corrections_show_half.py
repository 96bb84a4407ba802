"""Corrections are seen everywhere or nowhere, in what was there and in what comes; and can be taken back."""

from __future__ import annotations

import io
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian
from pydicom.uid import generate_uid as new_uid

from hounsfield.archive.dicom.incremental import IncrementalLimits
from hounsfield.archive.dicom.levels import Level
from hounsfield.archive.dicom.part10 import file_header
from hounsfield.archive.dicom.query import parse_qido
from hounsfield.archive.engine.corrections import CorrectionError, Request
from hounsfield.archive.engine.engine import Engine, EngineOptions, open_engine
from hounsfield.archive.engine.errors import NotFoundError
from hounsfield.archive.engine.ingest import IngestLimits
from hounsfield.archive.engine.large_storing import LargeLimits
from hounsfield.archive.engine.types import Outcome
from support.archives import ct_slice, sample_files, store, stores_in

NAME, ID, ISSUER, BIRTH, COMMENTS = 0x00100010, 0x00100020, 0x00100021, 0x00100030, 0x00104000
ACCESSION, STUDY, SERIES, SOP = 0x00080050, 0x0020000D, 0x0020000E, 0x00080018


def request(kind: str, **what: Any) -> Request:
    return Request(kind=kind, actor="tester", reason="it was wrong", **what)


async def rows(engine: Engine, level: Level = Level.STUDY, **keys: str) -> list[Any]:
    parameters = [("limit", "10000"), *keys.items()]
    return list((await engine.search(parse_qido(level, parameters))).rows)


async def delivered(
    engine: Engine, study: str, series: str, sop: str, *, as_received: bool = False
) -> Dataset:
    (one,) = await engine.instances(study, series, sop)
    data = b"".join([bytes(piece) async for piece in engine.dataset(one, as_received=as_received)])
    assert len(data) == await engine.dataset_bytes(one, as_received=as_received)
    prefix = file_header(ExplicitVRLittleEndian, "1.2.840.10008.5.1.4.1.1.2", sop)
    return pydicom.dcmread(io.BytesIO(prefix + data))


@dataclass
class Sent:
    """A study that was sent: series → SOP Instance UIDs, and all of its bytes."""

    uid: str = field(default_factory=lambda: str(new_uid()))
    patient_id: str = "A"
    name: str = "Alt^Anna"
    series: dict[str, list[str]] = field(default_factory=dict)
    data: dict[str, bytes] = field(default_factory=dict)

    async def send(self, engine: Engine, series: str | None = None, count: int = 2, **more: Any) -> str:
        series = series or str(new_uid())
        for number in range(count):
            sop = str(new_uid())
            data = ct_slice(
                study_uid=self.uid, series_uid=series, sop_uid=sop, number=number + 1,
                patient_id=self.patient_id, patient_name=self.name, **more,
            )  # fmt: skip
            assert (await store(engine, data, ExplicitVRLittleEndian)).outcome is Outcome.STORED
            self.series.setdefault(series, []).append(sop)
            self.data[sop] = data
        return series


async def test_a_patient_is_set_in_every_study_and_in_those_that_come(tmp_path: Path) -> None:
    with stores_in(tmp_path / "data") as stores:
        async with open_engine(stores, EngineOptions(), owner="test") as engine:
            studies = [Sent(), Sent(), Sent(patient_id="B", name="Berg^Bo")]
            for one in studies:
                await one.send(engine)
            before = await rows(engine, Level.INSTANCE)
            wanted = request("set-patient", patient=("A", ""), values={NAME: "Ärmel^Änne", BIRTH: ""})
            looked = await engine.correcting.look(wanted)
            assert (looked["studies"], looked["instances"]) == (2, 4)
            assert looked["changes"][0]["after"]["attributes"]["00100010"] == "Ärmel^Änne"
            assert await rows(engine, Level.INSTANCE) == before
            made = await engine.correcting.make(wanted)
            await studies[0].send(engine)
            late = Sent()
            await late.send(engine)
            assert len(await rows(engine, PatientName="Ärmel*")) == 3
            assert len(await rows(engine, PatientName="Alt*")) == 0
            assert len(await rows(engine, PatientName="Berg*")) == 1
            for one in (studies[0], late):
                for series, sops in one.series.items():
                    for sop in sops:
                        got = await delivered(engine, one.uid, series, sop)
                        assert (got.PatientName, got.PatientBirthDate) == ("Ärmel^Änne", "")
                        (item,) = got.OriginalAttributesSequence
                        assert item.ModifiedAttributesSequence[0].PatientName == "Alt^Anna"
                        assert item.ReasonForTheAttributeModification == "CORRECT"
                        raw = await delivered(engine, one.uid, series, sop, as_received=True)
                        assert raw.PatientName == "Alt^Anna"
                        assert "OriginalAttributesSequence" not in raw
                        frame = await engine.frame(one.uid, series, sop, 1)
                        assert bytes(frame.data) == got.PixelData == raw.PixelData
            await engine.correcting.revert(made["id"], "tester", "it was right")
            assert len(await rows(engine, PatientName="Alt*")) == 3
            got = await delivered(engine, late.uid, *next((s, i[0]) for s, i in late.series.items()))
            assert got.PatientName == "Alt^Anna"
            assert "OriginalAttributesSequence" not in got
            with pytest.raises(CorrectionError, match="taken back already"):
                await engine.correcting.revert(made["id"], "tester", "again")


async def test_merged_patients_are_one_with_all_that_comes_and_come_apart_again(tmp_path: Path) -> None:
    with stores_in(tmp_path / "data") as stores:
        async with open_engine(stores, EngineOptions(), owner="test") as engine:
            first, second, third = (
                Sent(),
                Sent(patient_id="B", name="Berg^Bo"),
                Sent(patient_id="C", name="Cro^Cy"),
            )
            for one in (first, second, third):
                await one.send(engine)
            before = await rows(engine, Level.INSTANCE)
            one = await engine.correcting.make(request("merge", patient=("A", ""), to_patient=("B", "")))
            assert [row.study[NAME] for row in await rows(engine, PatientID="B")] == ["Berg^Bo"] * 2
            assert await rows(engine, PatientID="A") == []
            with pytest.raises(CorrectionError, match=rf"merged into another by correction {one['id']}"):
                await engine.correcting.make(request("merge", patient=("B", ""), to_patient=("A", "")))
            two = await engine.correcting.make(request("merge", patient=("B", ""), to_patient=("C", "")))
            later = Sent()
            await later.send(engine)
            assert len(await rows(engine, PatientID="C")) == 4
            got = await delivered(engine, later.uid, *next((s, i[0]) for s, i in later.series.items()))
            assert (got.PatientID, got.PatientName) == ("C", "Cro^Cy")
            assert [item.ReasonForTheAttributeModification for item in got.OriginalAttributesSequence] == [
                "COERCE", "COERCE",
            ]  # fmt: skip
            assert await engine.correcting.merge_of(("A", "")) == one["id"]
            await engine.correcting.revert(one["id"], "tester", "two people")
            assert len(await rows(engine, PatientID="A")) == 2
            assert len(await rows(engine, PatientID="C")) == 2
            await engine.correcting.revert(two["id"], "tester", "two people")
            assert [
                row for row in await rows(engine, Level.INSTANCE) if row.study[STUDY] != later.uid
            ] == before


async def test_a_series_moves_with_what_comes_later_and_duplicates_are_recognised(tmp_path: Path) -> None:
    with stores_in(tmp_path / "data") as stores:
        async with open_engine(stores, EngineOptions(), owner="test") as engine:
            here, there = Sent(), Sent(patient_id="B", name="Berg^Bo")
            keeps, goes = await here.send(engine), await here.send(engine)
            await there.send(engine)
            before = await rows(engine, Level.INSTANCE)
            wanted = request("move-series", study=here.uid, series=(goes,), to_study=there.uid)
            assert (await engine.correcting.look(wanted))["studies"] == 2
            assert await rows(engine, Level.INSTANCE) == before
            made = await engine.correcting.make(wanted)
            sop = here.series[goes][0]
            with pytest.raises(NotFoundError):
                await engine.instances(here.uid, goes, sop)
            got = await delivered(engine, there.uid, goes, sop)
            assert (got.StudyInstanceUID, got.PatientID, got.SOPInstanceUID) == (there.uid, "B", sop)
            assert (
                got.PixelData
                == pydicom.dcmread(
                    io.BytesIO(file_header(ExplicitVRLittleEndian, "1.2", sop) + here.data[sop])
                ).PixelData
            )
            again = await store(engine, here.data[sop], ExplicitVRLittleEndian)
            assert again.outcome is Outcome.DUPLICATE
            changed = ct_slice(study_uid=here.uid, series_uid=goes, sop_uid=sop, patient_id="A")
            assert (await store(engine, changed, ExplicitVRLittleEndian)).outcome is Outcome.CONFLICT
            await here.send(engine, goes)
            await here.send(engine, keeps)
            counts = {row.study[STUDY]: row.study[0x00201208] for row in await rows(engine)}
            assert counts == {here.uid: "4", there.uid: "6"}
            assert {row.study[ID] for row in await rows(engine, Level.SERIES, SeriesInstanceUID=goes)} == {
                "B"
            }
            await engine.correcting.revert(made["id"], "tester", "it was right")
            counts = {row.study[STUDY]: row.study[0x00201208] for row in await rows(engine)}
            assert counts == {here.uid: "8", there.uid: "2"}
            assert (await delivered(engine, here.uid, goes, sop)).PatientID == "A"


async def test_instances_are_split_off_into_a_study_of_their_own(tmp_path: Path) -> None:
    directory = tmp_path / "data"
    with stores_in(directory) as stores:
        async with open_engine(stores, EngineOptions(), owner="test") as engine:
            here = Sent()
            series = await here.send(engine, count=5)
            sops = tuple(here.series[series][:2])
            made = await engine.correcting.make(
                request("split", study=here.uid, instances=sops, values={ACCESSION: "NEW-1"})
            )
            new_study, new_series = made["to_study"], made["series"][series]
            assert new_series != series
            got = await delivered(engine, new_study, new_series, sops[0])
            assert (got.StudyInstanceUID, got.SeriesInstanceUID) == (new_study, new_series)
            assert (got.AccessionNumber, got.PatientID) == ("NEW-1", "A")
            await engine.correcting.make(
                request(
                    "move-study", study=new_study, to_patient=("N", "HOSPITAL"), values={NAME: "Neu^Nora"}
                )
            )
            got = await delivered(engine, new_study, new_series, sops[1])
            assert (got.PatientID, got.IssuerOfPatientID, got.PatientName) == ("N", "HOSPITAL", "Neu^Nora")
            assert len(got.OriginalAttributesSequence) == 2
            before = await rows(engine, Level.INSTANCE)
    shutil.rmtree(directory / "index")
    with stores_in(directory) as stores:
        stores.reindex(lambda _done, _total: None)
        async with open_engine(stores, EngineOptions(), owner="test") as engine:
            assert await rows(engine, Level.INSTANCE) == before
            assert await delivered(engine, new_study, new_series, sops[1]) == got


async def test_objects_that_lie_in_pieces_are_delivered_corrected_too(tmp_path: Path) -> None:
    """Byte for byte what an object kept in one piece would be, however it is stored."""
    streamed = EngineOptions(
        ingest=IngestLimits(
            stream_bytes_min=1000,
            large=LargeLimits(piece_bytes=512, scan=IncrementalLimits(aside_bytes_min=100)),
        )
    )
    samples = [one for one in sample_files() if 3000 < len(one.data) < 100_000][::5]
    answers: list[list[bytes]] = []
    lengths = 0
    for options in (EngineOptions(), streamed):
        got: list[bytes] = []
        with stores_in(tmp_path / str(len(answers)), options) as stores:
            async with open_engine(stores, options, owner="test") as engine:
                for sample in samples:
                    result = await store(engine, sample.data, sample.transfer_syntax_uid)
                    if result.outcome is not Outcome.STORED:
                        continue
                    made = await engine.correcting.make(
                        request("set-study", study=result.study_uid, values={NAME: "Ελλάς^Œ", ID: "K-4711"})
                    )
                    (one,) = await engine.instances(
                        result.study_uid, result.series_uid, result.sop_instance_uid
                    )
                    lengths += one.row.location.stream is not None
                    data = b"".join([bytes(piece) async for piece in engine.dataset(one)])
                    assert len(data) == await engine.dataset_bytes(one)
                    raw = b"".join([bytes(piece) async for piece in engine.dataset(one, as_received=True)])
                    assert raw == sample.data
                    assert b"K-4711" in data or sample.transfer_syntax_uid.endswith(".99")
                    moment = time.strftime("%Y%m%d", time.gmtime(made["at_ns"] / 1e9)).encode()
                    at = data.find(moment)
                    got.append(data[:at] + data[at + 26 :] if at >= 0 else b"deflated")
                    await engine.correcting.revert(made["id"], "tester", "it was right")
        answers.append(got)
    assert lengths > 5
    assert answers[0] == answers[1]
