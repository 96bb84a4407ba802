"""The planner finds exactly what a slow look at every study finds, newest first."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from pydicom.uid import ExplicitVRLittleEndian

from hounsfield.archive.dicom.levels import Level
from hounsfield.archive.dicom.query import Query, matches, parse_qido
from hounsfield.archive.engine.engine import Engine, EngineOptions, open_engine
from hounsfield.archive.engine.types import FoundRow
from support.archives import ct_slice, store, stores_in

NAMES = ("Doe^John", "DOE^JOHN^^^", "Müller^Jürgen", "Mueller^J", "Yamada^Tarou=山田^太郎=やまだ^たろう", "")
IDS = ("1", "10", "A-1", "a-1", "")
DATES = ("20240101", "20240102", "20231231", "", "19991231")
MODALITIES = ("CT", "MR", "US")
KEYS: dict[str, tuple[str, ...]] = {
    "PatientName": (
        "Doe^John",
        "doe^john",
        "muller^jurgen",
        "山田^太郎",
        "D*",
        "*o*",
        "Doe^J?hn",
        "Nobody",
        "=山田^太郎",
    ),
    "PatientID": ("1", "A-1", "*1", "0", "a-1"),
    "StudyDate": ("20240101", "20240101-", "-20231231", "20231231-20240101", "2024.01.02"),
    "ModalitiesInStudy": ("CT", "MR", "C*", "CT\\US"),
    "AccessionNumber": ("ACC-77", "ACC*", "none"),
    "StudyDescription": ("Thorax nativ", "thorax nativ", "*nativ"),
    "fuzzymatching": ("true", "false"),
}


def order(row: FoundRow) -> str:
    return row.study[0x0020000D]


async def fill(engine: Engine, source: random.Random, studies: int) -> None:
    for number in range(studies):
        study_uid = f"2.25.{number + 1}"

        def change(data, n: int = number):  # type: ignore[no-untyped-def]
            data.StudyDate = source.choice(DATES)
            data.Modality = source.choice(MODALITIES)

        for member in range(source.randrange(1, 4)):
            data = ct_slice(
                patient_name=source.choice(NAMES), patient_id=source.choice(IDS), study_uid=study_uid,
                series_uid=f"{study_uid}.{member}", change=change, number=member,
            )  # fmt: skip
            await store(engine, data, ExplicitVRLittleEndian)


def random_query(source: random.Random, level: Level) -> Query:
    chosen = source.sample(sorted(KEYS), source.randrange(0, 4))
    return parse_qido(level, [(name, source.choice(KEYS[name])) for name in chosen])


@pytest.mark.parametrize("seed", range(3))
async def test_answers_are_those_of_a_slow_look(tmp_path: Path, seed: int) -> None:
    source = random.Random(seed)
    with stores_in(tmp_path / "data") as stores:
        async with open_engine(stores, EngineOptions(), owner="test") as engine:
            await fill(engine, source, 40)
            everything = {
                level: (await engine.search(Query(level))).rows
                for level in (Level.STUDY, Level.SERIES, Level.INSTANCE)
            }
            assert len(everything[Level.STUDY]) == 40
            answered = 0
            for _ in range(300):
                level = source.choice(list(everything))
                query = random_query(source, level)
                wanted = [
                    row for row in everything[level] if matches(query, row.study, row.series, row.instance)
                ]
                found = await engine.search(query)
                assert list(found.rows) == wanted, query
                answered += bool(wanted)
                if len(wanted) > 2:  # pages put together are the whole
                    page = parse_qido(level, [("limit", "2"), ("offset", "1")])
                    page = Query(level, query.matches, query.includes, page.limit, page.offset, query.fuzzy)
                    part = await engine.search(page)
                    assert list(part.rows) == wanted[1:3]
                    assert part.more == (len(wanted) > 3)
            assert answered > 50


async def test_newest_first_and_undated_last(tmp_path: Path) -> None:
    with stores_in(tmp_path / "data") as stores:
        async with open_engine(stores, EngineOptions(), owner="test") as engine:
            await fill(engine, random.Random(9), 30)
            dates = [row.study.get(0x00080020, "") for row in (await engine.search(Query(Level.STUDY))).rows]
    dated = [date for date in dates if date]
    assert dated == sorted(dated, reverse=True)
    assert dates == dated + [""] * (len(dates) - len(dated))


async def test_a_date_that_arrives_late_moves_the_study(tmp_path: Path) -> None:
    def undated(data):  # type: ignore[no-untyped-def]
        data.StudyDate = ""

    with stores_in(tmp_path / "data") as stores:
        async with open_engine(stores, EngineOptions(), owner="test") as engine:
            await store(engine, ct_slice(study_uid="2.25.1", change=undated), ExplicitVRLittleEndian)
            dated = parse_qido(Level.STUDY, [("StudyDate", "20250314")])
            assert (await engine.search(dated)).rows == ()
            await store(engine, ct_slice(study_uid="2.25.1"), ExplicitVRLittleEndian)
            assert len((await engine.search(dated)).rows) == 1
            assert len((await engine.search(Query(Level.STUDY))).rows) == 1


async def test_patients_are_by_id_and_studies_without_one_stand_alone(tmp_path: Path) -> None:
    with stores_in(tmp_path / "data") as stores:
        async with open_engine(stores, EngineOptions(), owner="test") as engine:
            for patient in ("A", "A", "B", "", ""):
                await store(engine, ct_slice(patient_id=patient), ExplicitVRLittleEndian)
            found = (await engine.search(Query(Level.PATIENT))).rows
    assert sorted(row.patient.get(0x00100020, "") for row in found) == ["", "", "A", "B"]
