"""Danger: `import` says that all is here when it is not, or asks for what it could know."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydicom.uid import generate_uid

from support.archives import ct_slice
from support.imports import dicomdir, part10, write_study


def test_what_came_is_told_and_the_exit_code_says_whether_all(
    cli: Any, archive: Path, tmp_path: Path
) -> None:
    tree = tmp_path / "tree"
    write_study(tree, 3)
    (tree / "b\udce9d name").write_bytes(b"text")
    done = cli("import", tree, "--data", archive, "--report", tmp_path / "report", "--json")
    assert done.code == 0, done.err
    body = done.json()
    assert body["counts"] == {
        "imported": 3, "already_there": 0, "other_content": 0, "quarantined": 0, "rejected": 0,
        "not_dicom": 1, "unreadable": 0,
    }  # fmt: skip
    (line,) = [json.loads(line) for line in (tmp_path / "report").read_text().splitlines()]
    assert line["place"].endswith("b\\udce9d name")
    assert line["reason"] == "not a DICOM file"
    again = cli("import", tree, "--data", archive)
    assert again.code == 0
    assert "done with before" in again.out


def test_bad_files_are_named_with_the_reason(cli: Any, archive: Path, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    write_study(tree, 1)
    uid = str(generate_uid())
    (tree / "cut").write_bytes(part10(ct_slice(sop_uid=uid, patient_name="Secret^Name"), uid)[:-60])
    (tree / "broken.zip").write_bytes(b"PK\x03\x04 and no more")
    (tree / "odd\udce9.zip").write_bytes(b"PK\x03\x04 and no more")
    done = cli("import", tree, "--data", archive)
    assert done.code == 4
    assert "broken.zip" in done.out
    assert "a ZIP archive that is damaged" in done.out
    assert "truncated" in done.out
    assert "worth a look" in done.err
    assert "Secret" not in done.out + done.err
    assert uid not in done.out + done.err
    only = cli("import", tree / "broken.zip", "--data", archive, "--json")
    assert only.code == 1
    assert only.json()["noted"][0]["fate"] == "unreadable"
    assert cli("import", tree, "--data", archive, "--json").code == 4  # once more: tried again


def test_a_dry_run_lists_and_reads_nothing(cli: Any, archive: Path, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    write_study(tree, 2)
    (tree / "b\udce9d").write_bytes(b"text")
    done = cli("import", tree, "--data", archive, "--dry-run", "--json")
    assert done.code == 0
    lines = [json.loads(line) for line in done.out.splitlines()]
    assert sum(one["bytes"] for one in lines) == sum(path.stat().st_size for path in tree.iterdir())
    assert cli("ls", "instances", "--data", archive, "--json").json()["rows"] == []
    assert cli("import", tree, "--data", archive, "--dry-run").out.count("\n") == 3
    cli("import", tree, "--data", archive)
    assert cli("import", tree, "--data", archive, "--dry-run").out == ""
    assert cli("import", tree, "--data", archive, "--dry-run", "--again").out.count("\n") == 3
    assert cli("import", tree, "--data", archive, "--dry-run").out == "", "nothing was forgotten"


def test_a_dry_run_lists_what_a_dicomdir_lists(cli: Any, archive: Path, tmp_path: Path) -> None:
    disc = tmp_path / "disc"
    write_study(disc / "A", 2, name="IM{}")
    (disc / "DICOMDIR").write_bytes(dicomdir([b"A\\IM0", b"A\\IM1", b"A\\IM2"]))
    done = cli("import", disc / "DICOMDIR", "--data", archive, "--dry-run")
    assert [Path(line).name for line in done.out.splitlines()] == ["DICOMDIR", "IM0", "IM1"]
    assert done.code == 1, "one is listed and not there, and nothing is here"


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["/no/such/folder"], "ae:/no/such/folder"),
        (["PACS"], "an AE is ae:PACS"),
        (["x" * 300], "too long"),
        (["https://me:pass@127.0.0.1/dicom-web"], "--passcode"),
        (["https://127.0.0.1/dicom-web?limit=3"], "base alone"),
        (["https://127.0.0.1/dicom-web", "--user", "me"], "go together"),
        (["https://127.0.0.1/dicom-web", "--match", "Nonsense=1"], "no attribute"),
        (["https://127.0.0.1/dicom-web", "--bearer", "the-token-itself"], "says where it is"),
        (["ae:NOBODY"], "NOBODY"),
        (["ae:X@127.0.0.1:1", "--match", "Nonsense=1"], "no attribute"),
        (["ae:X@127.0.0.1:1", "--listen-tls"], "goes with --listen"),
        (["ae:X@127.0.0.1:1", "--listen", "127.0.0.1:0", "--listen-tls"], "needs --tls-certificate"),
    ],
)
def test_what_cannot_be_meant_is_said_before_anything_is_read(
    cli: Any, archive: Path, words: list[str], hint: str
) -> None:
    done = cli("import", *words, "--data", archive)
    assert done.code == 2, done.err
    assert hint in done.err
    assert "me:pass" not in done.err


@pytest.mark.parametrize("word", ["http://127.0.0.1:1/dicom-web", "ae:NOBODY@127.0.0.1:1"])
def test_nobody_there_is_its_own_exit_code(cli: Any, archive: Path, word: str) -> None:
    done = cli("import", word, "--timeout", "2", "--data", archive, "--json")
    assert done.code == 3, done.err
    assert "127.0.0.1:1" in done.err


def test_a_source_with_nothing_in_it_is_said(cli: Any, archive: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    done = cli("import", tmp_path / "empty", "--data", archive)
    assert done.code == 0
    assert "nothing was found" in done.err


def test_an_archive_that_is_none(cli: Any, tmp_path: Path) -> None:
    done = cli("import", tmp_path, "--data", tmp_path / "none")
    assert done.code == 1
    assert "hounsfield init" in done.err


@pytest.mark.parametrize("terminal", [False, True])
def test_ctrl_c_ends_it_with_what_is_here(archive: Path, tmp_path: Path, terminal: bool) -> None:
    tree = tmp_path / "tree"
    write_study(tree, 400)
    command = [sys.executable, "-m", "hounsfield.archive.cli", "import", str(tree), "--data", str(archive)]
    environment = {**os.environ, "XDG_STATE_HOME": str(tmp_path / "state"), "COLUMNS": "120"}
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*command, "--jobs", "1", *([] if terminal else ["--json"])],
        stdout=subprocess.PIPE,
        stderr=theirs if terminal else subprocess.PIPE,
        env=environment,
    )
    os.close(theirs)
    state = archive / "import" / "state.db-wal"
    while process.poll() is None and not (state.exists() and state.stat().st_size > 100_000):
        select.select([ours] if terminal else [], [], [], 0.01)
        if terminal and select.select([ours], [], [], 0)[0]:
            os.read(ours, 65536)
    process.send_signal(signal.SIGINT)
    drained = b""
    while terminal and select.select([ours], [], [], 20)[0]:
        try:
            drained += os.read(ours, 65536)
        except OSError:  # the terminal's other end is closed
            break
    out, _ = process.communicate(timeout=60)
    os.close(ours)
    assert process.returncode == 130, drained.decode(errors="replace")[-3000:]
    assert b"Traceback" not in drained
    if not terminal:
        body = json.loads(out)
        assert body["interrupted"]
        assert 0 < body["counts"]["imported"] < 400
    else:
        assert b"imported" in out
