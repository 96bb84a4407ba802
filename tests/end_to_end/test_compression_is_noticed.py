"""A whole server that stores frames smaller: what is sent is what is given back and exported, to the bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from hounsfield.archive.dicom.part10 import split
from support.server import Sample, archive_server

NAMES = ("CT_small.dcm", "MR_small.dcm", "MR_small_bigendian.dcm", "examples_rgb_color.dcm", "rtdose.dcm")

pytestmark = pytest.mark.filterwarnings("ignore:Invalid value for VR:UserWarning")


@pytest.mark.parametrize("encoding", ["zstd", "htj2k"])
def test_what_is_sent_comes_back(
    tmp_path: Path, sample_files: Callable[..., list[Sample]], encoding: str
) -> None:
    sent = sample_files(*NAMES)
    with archive_server(tmp_path / "server", f"ingest.compression={encoding}", workers=1) as server:
        server.run_json("send", server.dicom_target, str(sent[0].path.parent))
        for sample in sent:
            assert server.dataset_bytes(*sample.ids) == sample.data, sample.path.name
        target = tmp_path / "out"
        studies = sorted({sample.ids[0] for sample in sent})
        assert server.run_json("export", *studies, "--to", str(target))["written"] == len(sent)
        stored = sum(path.stat().st_size for path in (server.data / "segments").iterdir())
    written = {split(raw).sop_instance_uid: raw[split(raw).offset :] for raw in files_below(target)}
    assert written == {sample.ids[2]: sample.data for sample in sent}
    assert stored < 0.7 * sum(len(sample.data) for sample in sent)


def files_below(directory: Path) -> list[bytes]:
    return [path.read_bytes() for path in directory.rglob("*.dcm")]
