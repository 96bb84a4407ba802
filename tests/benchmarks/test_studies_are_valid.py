"""A benchmark on data that no scanner would send measures nothing."""

from __future__ import annotations

import io
import re
from pathlib import Path

import numpy as np
import pydicom
import pytest
import zstandard
from benchmarks.headers import REPERTOIRES
from benchmarks.studies import Identity, Kind, part10, studies, template, write_part10

SHAPES = {
    Kind.CT: (512, 512),
    Kind.MR: (256, 256),
    Kind.CR: (2500, 2048),
    Kind.US: (10, 480, 640, 3),
    Kind.SMALL: (128, 128),
}


@pytest.mark.parametrize("kind", list(Kind))
def test_pydicom_reads_every_kind(kind: Kind) -> None:
    instance = next(studies(kind, run=77, variants=1))
    dataset = pydicom.dcmread(io.BytesIO(part10(instance)))
    assert dataset.pixel_array.shape == SHAPES[kind]
    assert dataset.SOPInstanceUID == dataset.file_meta.MediaStorageSOPInstanceUID == instance.sop_instance_uid
    assert dataset.SOPClassUID == instance.sop_class_uid
    assert sum(1 for _ in dataset.iterall()) >= 110
    assert any(element.tag.is_private for element in dataset)
    assert any(element.VR == "SQ" for element in dataset)


def test_a_ct_slice_is_512_kibibytes_with_a_full_header() -> None:
    dataset = pydicom.dcmread(io.BytesIO(part10(next(studies(Kind.CT, run=1)))))
    assert len(dataset.PixelData) == 512 * 1024
    assert 120 <= len(dataset) <= 150


def test_identities_agree_within_a_study_and_never_repeat() -> None:
    seen: set[str] = set()
    parents: dict[str, str] = {}
    for instance in studies(
        Kind.SMALL, run=5, patients=3, studies_per_patient=2, series_per_study=2, instances_per_series=4
    ):
        dataset = pydicom.dcmread(io.BytesIO(part10(instance)), stop_before_pixels=True)
        for uid in (dataset.SOPInstanceUID, dataset.SeriesInstanceUID, dataset.StudyInstanceUID):
            assert re.fullmatch(r"[0-9.]{1,64}", uid)
            assert uid.is_valid
        assert dataset.SOPInstanceUID not in seen
        seen.add(dataset.SOPInstanceUID)
        assert (
            parents.setdefault(dataset.SeriesInstanceUID, dataset.StudyInstanceUID)
            == dataset.StudyInstanceUID
        )
        assert parents.setdefault(dataset.StudyInstanceUID, dataset.PatientID) == dataset.PatientID
        assert dataset.InstanceNumber == instance.identity.instance + 1
        assert "Marker" not in str(dataset.PatientName)
        assert dataset.StudyDate == dataset.SeriesDate != "19020304"
    assert len(seen) == 3 * 2 * 2 * 4


def test_runs_differ_and_the_same_run_is_the_same() -> None:
    first, again, other = (
        [bytes(instance.data) for instance in studies(Kind.SMALL, run=run, instances_per_series=3)]
        for run in (1, 1, 2)
    )
    assert first == again
    assert not set(first) & set(other)


@pytest.mark.parametrize("repertoire", list(REPERTOIRES))
def test_names_in_every_repertoire_are_read_back(repertoire: str) -> None:
    instance = next(studies(Kind.SMALL, run=9, repertoires=(repertoire,)))
    dataset = pydicom.dcmread(io.BytesIO(part10(instance)))
    if repertoire != "latin":
        assert str(dataset.PatientName) == REPERTOIRES[repertoire][1]
    assert str(dataset.PatientName).strip()


def test_pixels_compress_as_a_scanners_do() -> None:
    offset, length = template(Kind.CT).pixels
    pixels = template(Kind.CT).data[offset : offset + length]
    assert 1.7 < length / len(zstandard.compress(pixels, 1)) < 3.0
    assert 1000 < np.frombuffer(pixels, "<u2").max() < 4096


def test_every_slot_value_is_as_long_as_its_slot() -> None:
    edge = Identity(10**14 - 1, 10**9, 10**9 - 1, 9999, 10**6)
    source = template(Kind.CT)
    for identity in (edge, Identity(0, 0, 0, 0, 0)):
        values = identity.values()
        assert all(len(values[name]) == length for name, _, length in source.slots)
        assert len(source.encode(identity)) == len(source.data)


def test_files_are_written_where_they_are_said_to_be(tmp_path: Path) -> None:
    paths = {
        write_part10(instance, tmp_path) for instance in studies(Kind.SMALL, run=3, instances_per_series=3)
    }
    assert len(paths) == 3
    assert all(pydicom.dcmread(path).pixel_array.size == 128 * 128 for path in paths)
