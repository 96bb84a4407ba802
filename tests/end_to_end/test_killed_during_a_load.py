"""kill -9, of one worker or of everything, and SIGTERM during a load: nothing acknowledged is lost."""

from __future__ import annotations

import hashlib
import os
import signal
from collections import Counter
from pathlib import Path

import psutil

from crash_truth import kills
from support.load import Made, StoreLoad
from support.server import ArchiveServer, runs, until, value

ASSOCIATIONS = 8
LIVES = 3


def check_all_there(archive: ArchiveServer, acknowledged: list[Made], sent: set[str]) -> None:
    """Everything acknowledged is served bit for bit, once; nothing is listed that cannot be read."""
    rows = archive.instances()
    listed = Counter(value(row, "00080018") for row in rows)
    assert set(listed.values()) <= {1}
    assert {made.sop for made in acknowledged} <= set(listed), "acknowledged and lost"
    assert set(listed) <= sent, "listed and never sent"
    expected = {made.sop: made.digest for made in acknowledged}
    for row in rows:  # all that is listed, acknowledged or not, is whole
        study, series, sop = (value(row, tag) for tag in ("0020000D", "0020000E", "00080018"))
        data = archive.dataset_bytes(study, series, sop)
        if sop in expected:
            assert hashlib.sha256(data).hexdigest() == expected[sop]
    check_counts(archive, rows)


def check_counts(archive: ArchiveServer, rows: list[dict[str, object]]) -> None:
    """What studies and series say of their numbers is what is listed."""
    per_study = Counter(value(row, "0020000D") for row in rows)
    per_series = Counter(value(row, "0020000E") for row in rows)
    wanted = {"limit": 1000, "includefield": ["00201206", "00201208", "00201209"]}
    studies = archive.client.get("/dicom-web/studies", params=wanted).json()
    assert {value(study, "0020000D"): int(value(study, "00201208")) for study in studies} == per_study
    series = archive.client.get("/dicom-web/series", params=wanted).json()
    assert {value(each, "0020000E"): int(value(each, "00201209")) for each in series} == per_series
    for study in studies:
        uid = value(study, "0020000D")
        metadata = archive.client.get(f"/dicom-web/studies/{uid}/metadata").json()
        assert len(metadata) == per_study[uid]


def test_a_killed_worker_is_replaced_and_costs_nothing(own_archive: ArchiveServer) -> None:
    load = StoreLoad(own_archive.dicom_port, seed=1, associations=ASSOCIATIONS, reconnect=True).start()
    until(lambda: len(load.acknowledged) >= 40, "a load")
    victim = next(each for each in own_archive.status()["workers"] if each["worker"] == 1)
    os.kill(victim["pid"], signal.SIGKILL)

    def replaced() -> bool:
        now = own_archive.status()["workers"][1]
        return bool(now["ready"]) and now["pid"] != victim["pid"]

    until(replaced, "another worker")
    before = len(load.acknowledged)
    until(lambda: len(load.acknowledged) >= before + 40, "the load going on")
    load.finish()
    assert load.lost_associations > 0
    assert load.failures == []
    check_all_there(own_archive, load.acknowledged, load.sent)
    assert own_archive.status()["workers"][1]["restarts"] == 1
    assert own_archive.terminate() == 0


def test_everything_killed_at_random_moments(tmp_path: Path) -> None:
    """The same directory is killed and started again, several times; 500 times is ``make kills``."""
    tally = kills.run(tmp_path / "server", rounds=LIVES, seed=11)
    assert tally.rounds == LIVES
    assert tally.well, tally
    assert tally.objects_read >= tally.acknowledged
    assert tally.acknowledged > 0


def test_a_killed_supervisor_takes_its_workers_along(own_archive: ArchiveServer) -> None:
    """Else they would go on with the directory's lock, and nobody to replace them."""
    load = StoreLoad(own_archive.dicom_port, seed=3, associations=ASSOCIATIONS).start()
    until(lambda: len(load.acknowledged) >= 40, "a load")
    workers = [psutil.Process(pid) for pid in own_archive.worker_pids()]
    own_archive.signal(signal.SIGKILL)
    own_archive.wait()
    try:
        until(lambda: not any(map(runs, workers)), "the end of workers without supervisor", 20)
    finally:
        for worker in filter(runs, workers):
            worker.kill()
        load.finish()
    own_archive.start()
    check_all_there(own_archive, load.acknowledged, load.sent)


def test_a_polite_end_answers_what_is_under_way(own_archive: ArchiveServer) -> None:
    load = StoreLoad(own_archive.dicom_port, seed=5, associations=ASSOCIATIONS).start()
    until(lambda: len(load.acknowledged) >= 60, "a load")
    assert own_archive.terminate() == 0
    load.finish()
    assert load.failures == [], "told of a failure instead of being drained"
    log = own_archive.log_text()
    assert "Traceback" not in log
    assert "killed a worker" not in log
    assert "connections were cut" not in log, "busy senders held it until the end of its patience"
    own_archive.start()
    check_all_there(own_archive, load.acknowledged, load.sent)
