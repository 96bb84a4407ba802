"""Danger: an import, or the server that it fills, is killed, and something is lost, or stored twice."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from hounsfield.archive.dicom.part10 import split
from support.imports import write_study
from support.server import HOUNSFIELD, PATIENCE_S, ArchiveServer, archive_server, until, value

KILLS = int(os.environ.get("IMPORT_KILLS", "4"))
FILES = 100 * KILLS


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ArchiveServer]:
    with archive_server(tmp_path / "server") as one:
        yield one
        assert "Traceback" not in one.log_text()


def starting(server: ArchiveServer, *words: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [*HOUNSFIELD, "import", "--data", str(server.data), *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=server.environment,
    )


def done_with(server: ArchiveServer) -> int:
    """How many files imports have done with."""
    path = server.data / "import" / "state.db"
    if not path.exists():
        return 0
    with contextlib.closing(sqlite3.connect(path, timeout=PATIENCE_S)) as db:
        try:
            return int(db.execute("SELECT count(*) FROM done").fetchone()[0])
        except sqlite3.OperationalError:  # not made yet
            return 0


def wait_for(server: ArchiveServer, process: subprocess.Popen[bytes], count: int) -> None:
    """Until more than so many files are done with, or the import has ended."""
    until(lambda: process.poll() is not None or done_with(server) > count, f"more than {count} files")


def test_importer_and_server_are_killed_again_and_again(server: ArchiveServer, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    uids = write_study(tree / "one", FILES // 2) + write_study(tree / "two", FILES // 2)
    chance = random.Random(7)
    for number in range(KILLS):
        before = done_with(server)
        process = starting(server, str(tree), "--jobs", "3")
        wait_for(server, process, before)
        until(lambda: chance.random() < 0.3, "the moment of the kill")
        if number % 3 == 0:
            process.kill()
        elif number % 3 == 1:
            os.kill(chance.choice(server.worker_pids()), signal.SIGKILL)
            process.send_signal(signal.SIGKILL if chance.random() < 0.5 else signal.SIGINT)
        else:
            server.kill_all()
            server.start()
            if chance.random() < 0.5:
                process.kill()
        _, error = process.communicate(timeout=PATIENCE_S)
        assert b"Traceback" not in error, error.decode()
    until(lambda: all(one["ready"] for one in server.status()["workers"]), "all workers")
    last = server.run("import", str(tree), "--json")
    assert last.returncode == 0, last.stderr
    counts = json.loads(last.stdout)
    assert counts["counts"]["other_content"] == 0
    assert len(server.listed()) == len(set(server.listed())) == FILES
    assert sorted(server.listed()) == sorted(uids)
    again = json.loads(server.run("import", str(tree), "--json").stdout)
    assert again["before"] == FILES
    assert sum(again["counts"].values()) == 0
    files = {path.read_bytes()[-40:]: path for path in tree.rglob("*.dcm")}
    row = chance.choice(server.instances())
    sent = server.dataset_bytes(*(value(row, tag) for tag in ("0020000D", "0020000E", "00080018")))
    theirs = files[sent[-40:]].read_bytes()
    assert theirs[split(theirs).offset :] == sent


def test_a_server_that_is_drained_ends_the_import_in_good_order(
    server: ArchiveServer, tmp_path: Path
) -> None:
    write_study(tmp_path / "tree", 200)
    process = starting(server, str(tmp_path / "tree"), "--jobs", "2", "--set", "archive.workers=1")
    wait_for(server, process, 5)
    assert server.terminate() == 0
    server.start()  # as a service manager does
    _, error = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, error.decode()
    assert len(server.listed()) == 200


def test_without_a_server_it_is_killed_as_well(tmp_path: Path) -> None:
    server = ArchiveServer(tmp_path / "server")
    server.directory.mkdir()
    assert server.run("init").returncode == 0
    uids = write_study(tmp_path / "tree", 150)
    for count in (20, 90):
        process = starting(server, str(tmp_path / "tree"), "--jobs", "2")
        wait_for(server, process, count)
        process.kill()
        process.communicate()
    done = server.run("import", str(tmp_path / "tree"), "--json")
    assert done.returncode == 0, done.stderr
    counts = json.loads(done.stdout)
    assert counts["before"] + sum(counts["counts"].values()) == len(uids)
    listed = server.run("ls", "instances", "--limit", "1000", "--json").stdout
    assert sorted(uid for uid in uids if uid in listed) == uids


@pytest.mark.parametrize("way", ["DICOMweb", "C-GET"])
def test_workers_are_killed_while_studies_come_over_a_network(
    server: ArchiveServer, tmp_path: Path, way: str
) -> None:
    uids = [uid for number in range(3) for uid in write_study(tmp_path / "tree" / str(number), 60)]
    with archive_server(tmp_path / "theirs", workers=1) as theirs:
        assert theirs.run("import", str(tmp_path / "tree")).returncode == 0
        source = theirs.url if way == "DICOMweb" else f"ae:{theirs.dicom_target}"
        process = starting(server, source, "--jobs", "2", "--json")
        for count in (10, 60):
            until(lambda c=count: process.poll() is not None or stored(server) > c, f"more than {count}")
            os.kill(server.worker_pids()[0], signal.SIGKILL)
        out, error = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, error.decode() + out.decode()
    until(lambda: all(one["ready"] for one in server.status()["workers"]), "all workers")
    assert sorted(server.listed()) == sorted(uids)


def stored(server: ArchiveServer) -> int:
    totals = server.status()["totals"]
    return int(sum(number for name, number in totals.items() if name.startswith("objects_total")))
