"""What other people's senders store is what they sent, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.data import get_testdata_file

from hounsfield.archive.dicom import part10

CT = "CT_small.dcm"


def _file(name: str) -> Path:
    path = get_testdata_file(name)
    assert path is not None
    return Path(path)


@pytest.mark.peer("echoscu")
async def test_echoscu_is_answered(open_archive: Callable[..., Any]) -> None:
    async with open_archive() as archive:
        done = await archive.run("echoscu", "-aec", "HOUNSFIELD", "127.0.0.1", "PORT")
        assert done.returncode == 0, done.stdout
        assert archive.listener.statistics().echoes == 1
        await archive.until(lambda: archive.listener.statistics().associations_released == 1)


@pytest.mark.peer("storescu")
async def test_storescu_bits_are_kept(open_archive: Callable[..., Any]) -> None:
    path = _file(CT)
    async with open_archive() as archive:
        done = await archive.run("storescu", "-aec", "HOUNSFIELD", "127.0.0.1", "PORT", path)
        assert done.returncode == 0, done.stdout
        ds = pydicom.dcmread(path)
        raw = path.read_bytes()
        got = await archive.stored(ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.SOPInstanceUID)
        sent = raw[part10.split(raw).offset :]
        # DCMTK writes a data set anew: its group 0008 gains nothing here, but trailing padding goes
        assert got[:1000] == sent[:1000]
