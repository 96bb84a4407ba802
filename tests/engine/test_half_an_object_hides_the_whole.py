"""An object that was cut short on its way is kept; its whole self, sent again, is what is served."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from pydicom.uid import ExplicitVRLittleEndian

from hounsfield.archive.dicom.problems import Problem
from hounsfield.archive.engine.engine import EngineOptions, open_engine
from hounsfield.archive.engine.types import Outcome
from support.archives import ct_slice, store, stored_bytes, stores_in


@pytest.mark.parametrize("duplicates", ["keep-first", "newest-current"])
@pytest.mark.parametrize("whole_first", [False, True], ids=["cut first", "whole first"])
async def test_the_whole_one_is_served_whichever_came_first(
    tmp_path: Path, duplicates: str, whole_first: bool
) -> None:
    whole = ct_slice()
    cut = whole[:-100]
    options = EngineOptions(duplicates=duplicates)
    directory = tmp_path / "data"
    with stores_in(directory, options) as stores:
        async with open_engine(stores, options, owner="test") as engine:
            sent = [whole, cut] if whole_first else [cut, whole]
            first, second = [await store(engine, one, ExplicitVRLittleEndian) for one in sent]
            assert (first.outcome, second.outcome) == (Outcome.STORED, Outcome.CONFLICT)
            assert Problem.TRUNCATED in (second if whole_first else first).warnings
            assert await stored_bytes(engine, first) == whole
            again = await store(engine, cut, ExplicitVRLittleEndian)
            assert again.outcome is Outcome.DUPLICATE
            assert await stored_bytes(engine, first) == whole
    shutil.rmtree(directory / "index")
    with stores_in(directory, options) as stores:
        stores.reindex(lambda _done, _segments: None)
        async with open_engine(stores, options, owner="test") as engine:
            assert await stored_bytes(engine, first) == whole


@pytest.mark.parametrize(("duplicates", "served"), [("keep-first", 0), ("newest-current", 1)])
async def test_of_two_that_were_cut_it_is_as_configured(tmp_path: Path, duplicates: str, served: int) -> None:
    whole = ct_slice()
    sent = [whole[:-200], whole[:-100]]
    options = EngineOptions(duplicates=duplicates)
    with stores_in(tmp_path / "data", options) as stores:
        async with open_engine(stores, options, owner="test") as engine:
            first, _ = [await store(engine, one, ExplicitVRLittleEndian) for one in sent]
            assert await stored_bytes(engine, first) == sent[served]
