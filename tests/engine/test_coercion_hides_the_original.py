"""What is coerced on receipt is shown everywhere, told as coerced, and undone with the bytes as received."""

from __future__ import annotations

import io
import shutil
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from hounsfield.archive.app.route_options import coercions_of
from hounsfield.archive.config import Config
from hounsfield.archive.config.sections import CoercionEntry
from hounsfield.archive.dicom.attributes import LEVEL_OF, Extracted
from hounsfield.archive.dicom.coercion import Coercions, Origin, applied
from hounsfield.archive.dicom.dictionary import TAG_OF
from hounsfield.archive.dicom.levels import Level
from hounsfield.archive.dicom.query import parse_qido
from hounsfield.archive.engine.correction_requests import Request
from hounsfield.archive.engine.engine import Engine, EngineOptions, open_engine
from hounsfield.archive.engine.ingest import IngestLimits
from hounsfield.archive.engine.stores import Stores
from hounsfield.archive.engine.types import COERCED, Outcome, Source, StoreResult
from hounsfield.archive.errors import ConfigError
from hounsfield.archive.index.rows import InstanceRow, SeriesRow, StudyRow
from hounsfield.archive.index.tables import INSTANCE, SERIES, STUDY
from hounsfield.archive.net.statuses import answer_of
from hounsfield.archive.wire import Status
from support.archives import ct_slice, stores_in

CT = Source("dimse", "CT1", "HOUNSFIELD", "192.0.2.1")
ENTRIES = (
    CoercionEntry(
        name="north",
        match={"calling_ae": "CT*"},
        copy={"InstitutionalDepartmentName": "StudyDescription"},
        map={"StudyDescription": {"Thorax nativ": "CHEST", "*": "OTHER"}},
        set={"IssuerOfPatientID": "NORTH", "InstitutionName": "Krankenhaus Süd", "InstitutionAddress": "A 1"},
        remove=("PatientBirthDate", "AccessionNumber", "PatientSex"),
    ),
    CoercionEntry(name="second", match={"StudyDescription": "CHEST"}, set={"StudyID": "CHEST-1"}),
    CoercionEntry(name="never", match={"Modality": "MR"}, set={"StudyID": "MR"}),
)


def coercions(*entries: CoercionEntry) -> Coercions | None:
    return coercions_of(Config(coercions=entries))


@asynccontextmanager
async def coercing(
    stores: Stores, *entries: CoercionEntry, options: EngineOptions | None = None
) -> AsyncIterator[Engine]:
    async with open_engine(stores, options or EngineOptions(), owner="test") as engine:
        engine.use_coercions(coercions(*entries))
        yield engine


async def put(
    engine: Engine, data: bytes, syntax: str = ExplicitVRLittleEndian, source: Source = CT
) -> StoreResult:
    session = engine.begin(transfer_syntax_uid=syntax, source=source)
    try:
        for start in range(0, len(data), 65536):
            await session.write(data[start : start + 65536])
        return await session.commit()
    finally:
        session.abandon()


async def given_out(engine: Engine, result: StoreResult, *, as_received: bool = False) -> bytes:
    (found,) = await engine.instances(result.study_uid, result.series_uid, result.sop_instance_uid)
    pieces = [bytes(piece) async for piece in engine.dataset(found, as_received=as_received)]
    if not as_received:
        assert await engine.dataset_bytes(found) == sum(map(len, pieces))
    return b"".join(pieces)


def read(data: bytes, syntax: str = ExplicitVRLittleEndian) -> pydicom.Dataset:
    meta = pydicom.dataset.FileMetaDataset()
    meta.TransferSyntaxUID = syntax
    if syntax == DeflatedExplicitVRLittleEndian:
        import zlib

        data, syntax = zlib.decompress(data, -zlib.MAX_WBITS), ExplicitVRLittleEndian
    return pydicom.dcmread(io.BytesIO(_file(data, syntax)), force=True)


def _file(data: bytes, syntax: str) -> bytes:
    from hounsfield.archive.dicom.part10 import file_header

    return file_header(syntax, "1.2.840.10008.5.1.4.1.1.2", "2.25.1") + data


async def study_of(engine: Engine, **query: str) -> Mapping[int, str] | None:
    page = await engine.search(parse_qido(Level.STUDY, list(query.items())))
    return page.rows[0].study if page.rows else None


@pytest.mark.parametrize(
    "syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian]
)
async def test_it_is_shown_searched_and_delivered_and_the_original_is_there(
    tmp_path: Path, syntax: str
) -> None:
    data = ct_slice(syntax=syntax)
    with stores_in(tmp_path / "data") as stores:
        async with coercing(stores, *ENTRIES) as engine:
            result = await put(engine, data, syntax)
            assert (result.outcome, result.warnings) == (Outcome.STORED, (COERCED,))
            assert answer_of(result).status is Status.COERCION_OF_DATA_ELEMENTS
            found = await study_of(
                engine, StudyDescription="CHEST", IssuerOfPatientID="NORTH", StudyID="CHEST-1"
            )
            assert found is not None
            assert found[TAG_OF["PatientBirthDate"]] == found[TAG_OF["AccessionNumber"]] == ""
            assert await study_of(engine, StudyDescription="Thorax nativ") is None
            shown = read(await given_out(engine, result), syntax)
            assert await given_out(engine, result, as_received=True) == data
    assert shown.StudyDescription == "CHEST"
    assert shown.InstitutionalDepartmentName == "Thorax nativ", "copied before it was mapped"
    assert shown.InstitutionName == "Krankenhaus Süd"
    assert shown.InstitutionAddress == "A 1"
    assert (shown.IssuerOfPatientID, shown.StudyID) == ("NORTH", "CHEST-1")
    assert (shown.PatientBirthDate, shown.PatientSex) == ("", "")
    (item,) = shown.OriginalAttributesSequence
    assert (item.ReasonForTheAttributeModification, item.SourceOfPreviousValues) == ("COERCE", "CT1")
    assert item.ModifyingSystem == "Hounsfield"
    (before,) = item.ModifiedAttributesSequence
    assert (before.StudyDescription, before.AccessionNumber) == ("Thorax nativ", "ACC-77")
    assert (before.PatientBirthDate, before.PatientSex) == ("19640812", "F")
    assert read(data, syntax).PixelData == shown.PixelData


async def test_who_is_not_named_is_left_alone(tmp_path: Path) -> None:
    data = ct_slice()
    with stores_in(tmp_path / "data") as stores:
        async with coercing(stores, ENTRIES[0]) as engine:
            result = await put(engine, data, source=Source("dimse", "MR1"))
            assert result.warnings == ()
            assert answer_of(result).status is Status.SUCCESS
            assert await given_out(engine, result) == data


async def test_what_is_already_so_is_no_coercion(tmp_path: Path) -> None:
    entry = CoercionEntry(name="x", set={"StudyID": "S1"}, remove=("OtherPatientIDs",))
    with stores_in(tmp_path / "data") as stores:
        async with coercing(stores, entry) as engine:
            result = await put(engine, ct_slice())
            assert result.warnings == ()


async def test_the_same_again_is_held_whatever_the_rules_are_now(tmp_path: Path) -> None:
    data = ct_slice()
    other = CoercionEntry(name="other", set={"StudyDescription": "LATER"})
    with stores_in(tmp_path / "data") as stores:
        async with coercing(stores, *ENTRIES) as engine:
            await put(engine, data)
            assert (await put(engine, data)).outcome is Outcome.DUPLICATE
            engine.use_coercions(coercions(other))
            again = await put(engine, data)
            assert again.outcome is Outcome.DUPLICATE
            assert read(await given_out(engine, again)).StudyDescription == "CHEST"
            engine.use_coercions(None)
            assert (await put(engine, data)).outcome is Outcome.DUPLICATE


async def test_a_large_object_is_coerced_too(tmp_path: Path) -> None:
    options = EngineOptions(ingest=IngestLimits(stream_bytes_min=1 << 20))

    def larger(data: Any) -> None:
        data.Rows = data.Columns = 1024

    data = ct_slice(change=larger, pixels=bytes(2 << 20))
    with stores_in(tmp_path / "data", options) as stores:
        async with coercing(stores, *ENTRIES, options=options) as engine:
            result = await put(engine, data)
            assert result.warnings == (COERCED,)
            assert read(await given_out(engine, result)).StudyDescription == "CHEST"
            assert await given_out(engine, result, as_received=True) == data


async def test_corrections_come_on_top_and_can_be_taken_back(tmp_path: Path) -> None:
    with stores_in(tmp_path / "data") as stores:
        async with coercing(stores, *ENTRIES) as engine:
            result = await put(engine, ct_slice())
            request = Request(
                kind="set-study",
                actor="test",
                reason="test",
                study=result.study_uid,
                values={TAG_OF["StudyDescription"]: "CORRECTED"},
            )
            made = await engine.correcting.make(request)
            shown = read(await given_out(engine, result))
            assert (shown.StudyDescription, shown.StudyID) == ("CORRECTED", "CHEST-1")
            first, second = shown.OriginalAttributesSequence
            assert first.ReasonForTheAttributeModification == "COERCE"
            assert first.ModifiedAttributesSequence[0].StudyDescription == "Thorax nativ"
            assert second.ModifiedAttributesSequence[0].StudyDescription == "CHEST"
            assert (await study_of(engine, StudyDescription="CORRECTED")) is not None
            await engine.correcting.revert(made["id"], "test", "test")
            assert read(await given_out(engine, result)).StudyDescription == "CHEST"


def _rows(stores: Stores) -> list[object]:
    """What is shown, but for when studies came and changed: a reindex commits many objects together."""
    kinds: Mapping[Any, Any] = {STUDY: StudyRow, SERIES: SeriesRow, INSTANCE: InstanceRow}
    found = []
    with stores.store.snapshot() as snapshot:
        for table, kind in kinds.items():
            for key, sealed in snapshot.scan(table):
                row = stores.catalog.open_row(table, key, sealed, kind)
                times = {"changed_ns": 0} if kind is SeriesRow else {"changed_ns": 0, "received_ns": 0}
                found.append(msgspec.structs.asdict(row) | ({} if kind is InstanceRow else times))
    return found


async def test_a_reindex_gives_the_same_by_rows_and_by_headers(tmp_path: Path) -> None:
    """Without the rules: they may be others by then."""
    directory = tmp_path / "data"
    with stores_in(directory) as stores:
        async with coercing(stores, *ENTRIES) as engine:
            for number in range(3):
                await put(engine, ct_slice(study_uid="2.25.1", series_uid="2.25.2", number=number))
            await put(engine, ct_slice(study_uid="2.25.1", series_uid="2.25.3"), source=Source("dimse", "MR"))
        before = _rows(stores)
    assert sum("CHEST" in str(row) for row in before) > 3
    for rescan in (False, True):
        shutil.rmtree(directory / "index")
        with stores_in(directory) as stores:
            stores.reindex(lambda *_: None, rescan=rescan)
            assert _rows(stores) == before


# ------------------------------------------------------------ the function


ORIGIN = Origin("1.2", "1.2", "dimse", "CT1", "H", "192.0.2.1")


@given(
    st.dictionaries(st.sampled_from(["StudyDescription", "StationName", "PatientID"]), st.text(max_size=40)),
    st.dictionaries(st.sampled_from(["StudyDescription", "StationName"]), st.sampled_from(["", "A", "B\\C"])),
    st.sets(st.sampled_from(["PatientID", "PatientAge"])),
)
def test_what_is_found_is_never_changed_and_what_comes_out_is_what_was_set(
    texts: dict[str, str], given_: dict[str, str], removed: set[str]
) -> None:
    levels: tuple[dict[int, str], ...] = ({}, {}, {})
    for name, text in texts.items():
        levels[LEVEL_OF[TAG_OF[name]][0]][TAG_OF[name]] = text
    found = Extracted(*levels, ())
    copied = [dict(level) for level in levels]
    if not given_ and not removed:
        return
    made = coercions(CoercionEntry(name="x", set=given_, remove=tuple(removed)))
    assert made is not None
    coerced = made.coerce(found, ORIGIN)
    assert [found.study, found.series, found.instance] == copied, "others share these"
    after = applied(found, coerced.values) if coerced is not None else found
    for name, text in given_.items():
        level = (after.study, after.series, after.instance)[LEVEL_OF[TAG_OF[name]][0]]
        assert (level.get(TAG_OF[name]) or "") == text
    for name in removed:
        assert not after.study.get(TAG_OF[name])
    if coerced is not None:
        again = made.coerce(after, ORIGIN)
        assert again is None, "doing it twice changes nothing"


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        (CoercionEntry(name="a b", set={"StudyID": "1"}), "a name is up to 64 letters"),
        (CoercionEntry(name="x"), "it does nothing"),
        (CoercionEntry(name="x", set={"StudyInstanceUID": "2.25.1"}), "is a UID: identity is never coerced"),
        (CoercionEntry(name="x", set={"Rows": "1"}), "only attributes that are text"),
        (CoercionEntry(name="x", remove=("PhotometricInterpretation",)), "describes pixels"),
        (CoercionEntry(name="x", set={"SpecificCharacterSet": "ISO_IR 192"}), "cannot be coerced"),
        (CoercionEntry(name="x", set={"ImagePositionPatient": "0\\0\\0"}), "what is in the object"),
        (CoercionEntry(name="x", remove=("RequestAttributesSequence",)), "cannot be coerced"),
        (CoercionEntry(name="x", set={"StudyDate": "20251341"}), "'20251341' is no DA value"),
        (CoercionEntry(name="x", set={"PatientSex": "female"}), "'female' is no CS value"),
        (CoercionEntry(name="x", set={"StationName": "A" * 17}), "SH has at most 16"),
        (CoercionEntry(name="x", set={"StudyIdd": "1"}), "did you mean StudyID?"),
        (CoercionEntry(name="x", set={"StudyID": "1"}, remove=("StudyID",)), "both set and removed"),
        (CoercionEntry(name="x", copy={"StudyID": "PatientAddress"}), "not among the attributes"),
        (CoercionEntry(name="x", map={"StudyID": {}}), "expected a table of values"),
        (CoercionEntry(name="x", map={"StudyID": {"A": "B\\C"}}), "not for several"),
        (CoercionEntry(name="x", match={"Modalty": "CT"}, set={"StudyID": "1"}), "did you mean Modality?"),
    ],
)
def test_what_cannot_be_is_said(entry: CoercionEntry, said: str) -> None:
    with pytest.raises(ConfigError, match=r"^coercions '") as error:
        coercions(entry)
    assert said in str(error.value)
