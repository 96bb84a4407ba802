"""A sender's associations, a series each, arriving in turns: each header is read by its own neighbour."""

from __future__ import annotations

import pytest
from benchmarks.studies import Identity, Kind, template
from msgspec import structs

from hounsfield.archive.dicom.scan import Scanned
from hounsfield.archive.engine import receiving
from hounsfield.archive.engine.receiving import SHAPES_MAX, Shapes, scanned
from hounsfield.archive.engine.types import Source

EXPLICIT = "1.2.840.10008.1.2.1"
CT = "1.2.840.10008.5.1.4.1.1.2"


def slice_of(series: int, instance: int) -> memoryview:
    identity = Identity(run=3, patient=series, study=series, series=series, instance=instance)
    return memoryview(bytes(template(Kind.SMALL).encode(identity)))


@pytest.fixture
def walks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each data set that was walked element by element."""
    seen: list[int] = []
    walk = receiving.scan

    def counted(data: memoryview, syntax: object) -> Scanned:
        seen.append(len(data))
        return walk(data, syntax)  # type: ignore[arg-type]

    monkeypatch.setattr(receiving, "scan", counted)
    return seen


def test_each_association_has_its_own_neighbour(walks: list[int]) -> None:
    shapes = Shapes()
    sources = [Source("dimse", "CT1", "HOUNSFIELD", "127.0.0.1") for _ in range(8)]
    changed, learnt = [], 0
    for instance in range(1, 12):
        for series, source in enumerate(sources):
            data = slice_of(series, instance)
            with_shape = scanned(data, EXPLICIT, CT, "", source, shapes)
            alone = scanned(data, EXPLICIT, CT, "", source)
            walks.pop()
            assert structs.replace(with_shape.row, received_ns=0) == structs.replace(alone.row, received_ns=0)
            assert [bytes(piece) for piece in with_shape.slices] == [bytes(piece) for piece in alone.slices]
            shape = shapes.get((EXPLICIT, CT, "CT1", "127.0.0.1"), source)
            assert shape is not None
            changed.append(shape.study)
        if instance == 2:
            learnt = len(walks)
    assert learnt <= 2 + len(sources)  # a header; how series differ; in each, how slices do
    assert len(walks) == learnt
    # Between two slices of one association the study's values were not even read again.
    last, before = changed[-8:], changed[-16:-8]
    assert all(a is b for a, b in zip(last, before, strict=True))


def test_no_more_than_so_many_are_remembered(walks: list[int]) -> None:
    shapes = Shapes()
    sources = [Source("dimse", f"CT{n}", "HOUNSFIELD", "127.0.0.1") for n in range(SHAPES_MAX + 1)]
    for n, source in enumerate(sources):
        scanned(slice_of(n, 1), EXPLICIT, CT, "", source, shapes)
    key = (EXPLICIT, CT, "CT0", "127.0.0.1")
    assert shapes.get(key, sources[0]) is None
    assert shapes.get((EXPLICIT, CT, "CT1", "127.0.0.1"), sources[1]) is not None
    assert len(walks) == SHAPES_MAX + 1
