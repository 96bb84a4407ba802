"""A backup made while four senders store, studies go and segments are compacted; then the machine is lost."""

from __future__ import annotations

import hashlib
import random
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from support.load import Made, StoreLoad
from support.server import ArchiveServer, archive_server, until, value

COMPARED = 150
SETTINGS = ("storage.segment_bytes_max=2097152",)


def _delete(archive: ArchiveServer, study: str, *, compact: bool) -> None:
    done = archive.run("delete", study, "--reason", "a test", "--yes")
    assert done.returncode == 0, done.stderr
    if compact:
        done = archive.run("compact", "run", "--now")
        assert done.returncode in {0, 4}, done.stderr


def _check(archive: ArchiveServer, acknowledged: list[Made], deleted: set[str]) -> None:
    rows = archive.instances()
    listed = {value(row, "00080018") for row in rows}
    assert not {value(row, "0020000D") for row in rows} & deleted, "deleted, and back"
    expected = [made for made in acknowledged if made.study not in deleted]
    assert {made.sop for made in expected} <= listed, "acknowledged and lost"
    # Every seal of the rest is opened by fsck; these are compared with what was sent.
    for made in random.Random(7).sample(expected, min(len(expected), COMPARED)):
        data = archive.dataset_bytes(made.study, made.series, made.sop)
        assert hashlib.sha256(data).hexdigest() == made.digest


def test_a_lost_machine_comes_back_from_its_backup_and_what_its_disk_still_had(tmp_path: Path) -> None:
    deleted: set[str] = set()
    with archive_server(tmp_path / "server", *SETTINGS) as archive:
        first = StoreLoad(archive.dicom_port, seed=40, associations=4).start()
        until(lambda: len(first.acknowledged) >= 60, "a load")
        first.finish()
        studies = sorted({made.study for made in first.acknowledged})
        load = StoreLoad(archive.dicom_port, seed=41, associations=4).start()
        until(lambda: len(load.acknowledged) >= 20, "a load")
        with ThreadPoolExecutor(1) as beside:
            deleting = beside.submit(_delete, archive, studies[0], compact=True)
            backup = archive.run("backup", str(tmp_path / "backup"), "--segments", "--json")
            assert backup.returncode == 0, backup.stderr
            deleting.result()
        before = len(load.acknowledged)
        _delete(archive, studies[1], compact=False)  # after the backup: it must not come back
        deleted = set(studies[:2])
        until(lambda: len(load.acknowledged) >= before + 20, "the load going on")
        archive.kill_all()
        load.finish()
        acknowledged = first.acknowledged + load.acknowledged
        survivors = tmp_path / "survivors"
        for folder in ("segments", "ledger", "keys"):
            shutil.copytree(archive.data / folder, survivors / folder)
        shutil.rmtree(archive.data)

        restore = archive.run(
            "restore", str(tmp_path / "backup"), "--segments-from", str(survivors), "--json"
        )
        assert restore.returncode == 0, restore.stderr
        check = archive.run("fsck", "--json")
        assert check.returncode == 0, check.stdout
        archive.start()
        _check(archive, acknowledged, deleted)
        assert archive.terminate() == 0

        # And from the backup alone: everything that was acknowledged before it began.
        shutil.rmtree(archive.data)
        restore = archive.run("restore", str(tmp_path / "backup"))
        assert restore.returncode == 0, restore.stderr
        archive.start()
        _check(archive, [made for made in first.acknowledged if made.study != studies[0]], set())
        assert archive.terminate() == 0
        assert "Traceback" not in archive.log_text()
