"""``hounsfield`` beside a running server, and without one, says and does the same."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hounsfield.archive.dicom.part10 import split
from support.server import HOUNSFIELD, PATIENCE_S, ArchiveServer, Sample, value


def listing(archive: ArchiveServer, level: str = "instances") -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = archive.run_json("ls", level, "--limit", "1000")["rows"]
    return sorted(rows, key=json.dumps)


def test_list_export_and_reindex(
    own_archive: ArchiveServer, every_kind: list[Sample], tmp_path: Path
) -> None:
    archive = own_archive
    archive.run_json("send", archive.dicom_target, str(every_kind[0].path.parent))
    levels = ("studies", "instances")
    online = {level: listing(archive, level) for level in levels}
    uids = sorted(row["instance"]["00080018"] for row in online["instances"])
    assert uids == sorted(sample.ids[2] for sample in every_kind) == sorted(archive.listed())
    qido = {value(row, "00080018"): row for row in archive.instances()}

    studies = [row["study"]["0020000D"] for row in online["studies"]]
    target = tmp_path / "out"
    assert archive.run_json("export", *studies, "--to", str(target))["written"] == len(every_kind)
    for sample in every_kind:
        study, series, sop = sample.ids
        raw = (target / study / series / f"{sop}.dcm").read_bytes()
        part10 = split(raw)
        assert part10.transfer_syntax_uid == sample.transfer_syntax_uid
        assert raw[part10.offset :] == sample.data, sample.path.name

    assert archive.run("reindex").returncode != 0, "not beside a running server"
    assert archive.terminate() == 0
    assert {level: listing(archive, level) for level in levels} == online
    shutil.rmtree(archive.data / "index")
    report = archive.run_json("reindex")
    assert (report["objects"], report["damage"], report["unreadable_segments"]) == (len(every_kind), {}, 0)
    assert {level: listing(archive, level) for level in levels} == online
    archive.start()
    assert {level: listing(archive, level) for level in levels} == online
    assert {value(row, "00080018"): row for row in archive.instances()}.keys() == qido.keys()
    for sample in every_kind:
        assert archive.dataset_bytes(*sample.ids) == sample.data


def test_an_index_that_is_gone_does_not_hide_the_archive(
    own_archive: ArchiveServer, uncompressed: list[Sample]
) -> None:
    """Starting without the index must not show an empty archive as if nothing had been stored."""
    archive = own_archive
    archive.run_json("send", archive.dicom_target, str(uncompressed[0].path.parent))
    assert archive.terminate() == 0
    shutil.rmtree(archive.data / "index")
    archive.start()
    assert sorted(archive.listed()) == sorted(sample.ids[2] for sample in uncompressed)


def test_sent_twice_is_counted_once(own_archive: ArchiveServer, every_kind: list[Sample]) -> None:
    folder = str(every_kind[0].path.parent)
    for _ in range(2):
        summary = own_archive.run_json("send", own_archive.dicom_target, folder, "--associations", "4")
        assert {each["outcome"] for each in summary["files"]} == {"sent"}
    for level in ("instances", "series", "studies"):
        rows = listing(own_archive, level)
        keys = [json.dumps({kind: row[kind].get(tag) for kind, tag in _UIDS if kind in row}) for row in rows]
        assert len(keys) == len(set(keys))
    assert sorted(own_archive.listed()) == sorted(sample.ids[2] for sample in every_kind)
    for row in listing(own_archive, "studies"):
        sent = [sample for sample in every_kind if sample.ids[0] == row["study"]["0020000D"]]
        assert row["study"]["00201208"] == str(len(sent))


_UIDS = (("study", "0020000D"), ("series", "0020000E"), ("instance", "00080018"))


def test_application_entities(own_archive: ArchiveServer) -> None:
    archive = own_archive
    assert archive.run("ae", "add", "CT1", "192.0.2.10:104", "--source", "192.0.2.0/24").returncode == 0
    online = archive.run_json("ae", "list")
    assert [(ae["title"], ae["host"], ae["port"], ae["sources"]) for ae in online] == [
        ("CT1", "192.0.2.10", 104, ["192.0.2.0/24"])
    ]
    echoed = archive.run("echo", archive.dicom_target, "--calling", "SOMEBODY")
    assert echoed.returncode == 0, echoed.stderr
    wrong = archive.run("echo", f"NOTUS@127.0.0.1:{archive.dicom_port}", "--calling", "SOMEBODY")
    assert wrong.returncode == 1
    assert "AE title" in wrong.stderr
    recent = {(row["called_ae"], row["outcome"]): row for row in archive.run_json("ae", "recent")}
    assert set(recent) == {("HOUNSFIELD", "accepted"), ("NOTUS", "refused")}
    assert {row["calling_ae"] for row in recent.values()} == {"SOMEBODY"}
    (refused,) = archive.run_json("ae", "recent", "--refused")
    assert refused["reason"]
    mistaken = (("ae", "remove", "MR1"), ("ae", "user", "remove", "x"), ("audit", "--since", "yesterday"))
    for words in mistaken:  # found out by a worker
        assert archive.run(*words).returncode == 2
    assert archive.terminate() == 0
    assert archive.run_json("ae", "list") == online
    assert archive.run("ae", "add", "MR1", "192.0.2.11:104").returncode == 0
    gone = archive.run("ae", "recent")
    assert gone.returncode == 3, "nobody there to remember callers"
    archive.start()
    assert [ae["title"] for ae in archive.run_json("ae", "list")] == ["CT1", "MR1"]


@pytest.mark.peer("echoscu")
def test_a_wrong_called_title_is_refused(archive: ArchiveServer) -> None:
    command = ["echoscu", "-v", "-aec", "SOMEBODY", "127.0.0.1", str(archive.dicom_port)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode != 0
    assert "Called AE Title Not Recognized" in done.stdout + done.stderr


# ---------------------------------------------------------------------- refusals to start


def run_alone(directory: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """``hounsfield`` with these words, where nothing was set up; it must end by itself."""
    return subprocess.run(
        [*HOUNSFIELD, *words],
        capture_output=True,
        text=True,
        env={**os.environ, "XDG_STATE_HOME": str(directory / "state")},
        timeout=PATIENCE_S,
        check=False,
    )


OPEN_HTTP = 'http.listeners=[{host="0.0.0.0", port=0}]'
OPEN_DICOM = 'dicom.listeners=[{host="0.0.0.0", port=0, plain=true}]'


def test_a_development_key_stays_on_loopback(tmp_path: Path) -> None:
    listens = ("--set", OPEN_HTTP, "--data", str(tmp_path / "archive"))
    done = run_alone(tmp_path, "serve", *listens)
    assert done.returncode == 2
    assert "keys.master_key" in done.stderr
    assert not (tmp_path / "archive").exists()


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        (OPEN_HTTP, ("0.0.0.0", "TLS")),
        (OPEN_DICOM, ("0.0.0.0", "calling_titles")),
        ("http.port=80", ("http.port",)),
        ("archive.worker=2", ("archive.worker", "archive.workers")),
        ("dicom.check_called_titel=false", ("check_called_titel", "check_called_title")),
        ("archive.workers=many", ("archive.workers",)),
    ],
)
def test_what_is_unsafe_or_unknown_is_refused_before_anything_is_made(
    tmp_path: Path, setting: str, says: tuple[str, ...]
) -> None:
    data = tmp_path / "archive"
    settings = ["--data", str(data), "--set", setting, "--set", "keys.master_key=env:NOWHERE"]
    for words in (("config", "check"), ("serve",)):
        done = run_alone(tmp_path, *words, *settings)
        assert done.returncode == 2, (words, done.stdout, done.stderr)
        said = done.stdout + done.stderr
        assert "Traceback" not in said
        assert all(word in said for word in says), said
    assert not data.exists()


def test_a_second_server_on_the_same_directory_is_refused(archive: ArchiveServer) -> None:
    done = archive.run("serve", "--dicom", "127.0.0.1:0", "--http", "127.0.0.1:0")
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("error")
    assert archive.client.get("/healthz").status_code == 200


def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        listens = ("--dicom", f"127.0.0.1:{port}", "--http", "127.0.0.1:0")
        done = run_alone(tmp_path, "serve", "--data", str(tmp_path / "archive"), *listens)
    assert done.returncode != 0
    assert str(port) in done.stderr


def test_another_key_is_one_clear_error(
    own_archive: ArchiveServer, sample_files: Callable[..., list[Sample]]
) -> None:
    (sample,) = sample_files("CT_small.dcm")
    own_archive.run_json("send", own_archive.dicom_target, str(sample.path))
    assert own_archive.terminate() == 0
    other = own_archive.directory / "other.key"
    other.write_bytes(os.urandom(32))
    other.chmod(0o600)
    words = (
        "serve",
        "--dicom",
        "127.0.0.1:0",
        "--http",
        "127.0.0.1:0",
        "--set",
        f"keys.master_key=file:{other}",
    )
    done = own_archive.run(*words)
    assert done.returncode == 1
    assert "key" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_what_is_fixed_beside_the_server_is_shown_by_every_worker(
    own_archive: ArchiveServer, uncompressed: list[Sample]
) -> None:
    archive = own_archive
    archive.run_json("send", archive.dicom_target, str(uncompressed[0].path.parent))
    study, series, sop = uncompressed[0].ids
    before = listing(archive, "studies")
    how = ("--reason", "wrong order", "--yes")
    made = archive.run_json("fix", "study", study, "AccessionNumber=FIXED-1", *how)
    for _ in range(8):  # whichever worker answers
        rows = {value(row, "00080018"): value(row, "00080050") for row in archive.instances()}
        assert rows[sop] == "FIXED-1"
        assert b"FIXED-1" in archive.dataset_bytes(study, series, sop)
    assert archive.terminate() == 0
    assert listing(archive, "studies") != before
    shutil.rmtree(archive.data / "index")
    archive.run_json("reindex")
    assert archive.run_json("fix", "revert", str(made["id"]), *how)["in_force"] is False
    assert listing(archive, "studies") == before
