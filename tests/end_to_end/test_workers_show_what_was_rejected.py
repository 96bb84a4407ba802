"""A rejection note that one worker received over DICOM holds in all; undone beside the server, too."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import pydicom
from pydicom.uid import ExplicitVRLittleEndian

from support.rejection import SAFETY, note_data_set
from support.server import ArchiveServer, Sample, value


def shown(archive: ArchiveServer) -> set[str]:
    return {value(row, "00080018") for row in archive.instances()}


def test_a_note_over_dicom_holds_in_every_worker(
    own_archive: ArchiveServer, uncompressed: list[Sample], tmp_path: Path
) -> None:
    archive = own_archive
    archive.run_json("send", archive.dicom_target, str(uncompressed[0].path.parent))
    everything = shown(archive)
    study, series, sop = uncompressed[0].ids
    data = note_data_set({study: {series: [sop]}}, SAFETY)
    out = io.BytesIO()
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    pydicom.dcmwrite(out, data, enforce_file_format=True)
    path = tmp_path / "note.dcm"
    path.write_bytes(out.getvalue())
    archive.run_json("send", archive.dicom_target, str(path))
    for _ in range(8):  # whichever worker answers
        assert shown(archive) == everything - {sop}
    archive.run_json("send", archive.dicom_target, str(uncompressed[0].path))
    for _ in range(8):
        assert shown(archive) == everything - {sop}
    (made,) = archive.run_json("reject", "list")
    assert (made["actor"], made["hidden"]) == ("HOUNSFIELD", 2)

    assert archive.terminate() == 0
    shutil.rmtree(archive.data / "index")
    archive.run_json("reindex")
    archive.start()
    assert shown(archive) == everything - {sop}
    undone = archive.run_json("reject", "undo", str(made["id"]), "--reason", "mistaken")
    assert not undone["in_force"]
    for _ in range(8):
        assert shown(archive) == everything | {data.SOPInstanceUID}
    assert archive.dataset_bytes(study, series, sop) == uncompressed[0].data
