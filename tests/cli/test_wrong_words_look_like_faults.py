"""Danger: a script takes a word that was mistyped for a failure it could try again, or for a success.

Exit code 2 is for what has to be written differently, whoever finds out: the command, the archive opened by
it, or a server that runs.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hounsfield.archive.cli.identifiers import parse_keys

LONG = "A_TITLE_OF_MORE_THAN_16"


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (("audit", "--since", "yesterday"), "is no time"),
        (("ae", "add", LONG, "127.0.0.1:104"), "is no AE title"),
        (("ae", "add", "A\nB", "127.0.0.1:104"), "is no AE title"),
        (("ae", "add", "CT1", "127.0.0.1:104", "--called-title", "A\n"), "is no AE title"),
        (("ae", "add", "CT1", "127.0.0.1:0"), "no port to call"),
        (("ae", "add", "CT1", "127.0.0.1:²"), "write HOST:PORT"),
        (("ae", "add", "CT1", "pacs..example.org:104"), "is no name or address of a host"),
        (("ae", "add", "CT1", "reading room:104"), "is no name or address of a host"),
        (("ae", "add", "CT1", "--source", "somewhere"), "is not an address or network"),
        (("ae", "set", "NOBODY", "--tls"), "no AE 'NOBODY' was added"),
        (("ae", "set", "NOBODY", "--clear", "nothing"), "no 'nothing' to clear"),
        (("ae", "show", "NOBODY"), "no AE 'NOBODY' is known"),
        (("ae", "remove", "NOBODY"), "no AE 'NOBODY' is known"),
        (("ae", "test", "NOBODY"), "no AE 'NOBODY' is known"),
        (("ae", "test", "--timeout", "nan"), "--timeout"),
        (("ae", "user", "remove", "nobody"), "no user 'nobody' is known"),
        (("echo", "NOBODY"), "no AE NOBODY is known"),
    ],
)
def test_what_the_archive_finds_wrong(cli: Any, archive: Path, words: tuple[str, ...], hint: str) -> None:
    result = cli(*words, "--data", archive)
    assert (result.code, hint in result.err) == (2, True), (result.code, result.err)


@pytest.mark.parametrize(
    ("table", "hint"),
    [
        (b"title,host,port\nCT1,192.0.2.1,many\n", "line 2: port"),
        (b"name\nCT1\n", "no column 'name'"),
        (b"\xff\xfet\0i\0", "is no text in UTF-8"),
        (b"title,host\nCT1,\0\n", "line 2"),
    ],
)
def test_tables_of_entities(cli: Any, archive: Path, tmp_path: Path, table: bytes, hint: str) -> None:
    file = tmp_path / "devices.csv"
    file.write_bytes(table)
    result = cli("ae", "import", file, "--data", archive)
    assert (result.code, hint in result.err) == (2, True), (result.code, result.err)


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (("--user", "jane", "--passcode", "file:/no/such"), "--passcode: /no/such cannot be read"),
        (("--user", "jane", "--passcode", "env:NO_SUCH_NAME"), "has no NO_SUCH_NAME"),
        (("--user", "jane", "--passcode", "file:EMPTY"), "--passcode: EMPTY is empty"),
        (("--jwt", "file:EMPTY"), "--jwt: EMPTY is empty"),
        (("--jwt", "file:/no/such"), "--jwt: /no/such cannot be read"),
        (("--user", ""), "--user"),
        (("--user", "a" * 70_000), "--user"),
        (("--jwt", "file:LONG"), "longer than"),
        (("--calling", LONG), "1 to 16 ASCII characters"),
        (("--calling", "A\nB"), "1 to 16 ASCII characters"),
        (("--called", "Ä"), "1 to 16 ASCII characters"),
        (("--timeout", "nan"), "--timeout"),
        (("--tls-ca", "EMPTY"), "holds no PEM certificates"),
        (("--tls-certificate", "EMPTY", "--tls-key", "EMPTY"), "not a PEM certificate and its key"),
    ],
)
def test_what_is_found_wrong_before_anybody_is_called(
    cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], hint: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("EMPTY").write_text("\n")
    Path("LONG").write_text("e" * 70_000)
    result = cli("echo", "PACS@127.0.0.1:1", *words)
    assert (result.code, hint in result.err) == (2, True), (result.code, result.err[:500])
    assert len(result.err) < 500, "what was written is not written back at such a length"


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (("find", "RequestAttributesSequence=4711"), "SEQUENCE.KEY=VALUE"),
        (("find", "PatientName.PatientID=4711"), "SEQUENCE.KEY=VALUE"),
        (("find", "PatientID=1", "PatientID=2"), "is given twice"),
        (("find", "--level", "patient", "--model", "study"), "has no level patient"),
        (("find", "--level", "series", "--model", "patient-study-only"), "has no level series"),
        (("move", "--to", "", "1.2"), "1 to 16 ASCII characters"),
        (("move", "--to", LONG, "1.2"), "1 to 16 ASCII characters"),
        (("move", "--to", "WS", "PatientID=1", "--model", "study"), "has no level patient"),
        (("get", "--to", "out", "1.2", "--sop-class", "CT"), "is no UID"),
        (("get", "--to", "out", "1.2", "--syntax", "1..2"), "is no UID"),
    ],
)
def test_what_would_ask_for_something_else_is_not_asked(
    cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], hint: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = cli(words[0], "PACS@127.0.0.1:1", *words[1:])
    assert (result.code, hint in result.err) == (2, True), result.err


def test_a_key_that_is_returned_too_is_matched() -> None:
    name = (0x00100010,)
    for words in (["PatientName=A", "PatientName"], ["PatientName", "PatientName=A"], ["00100010=A"] * 2):
        assert parse_keys(words) == {name: "A"}


@pytest.mark.parametrize("words", [("version", "--json"), ("--help",), ("find", "--help")])
def test_who_stops_reading_is_no_failure(words: tuple[str, ...]) -> None:
    """``hounsfield find --json | head -1``"""
    read_end, write_end = os.pipe()
    os.close(read_end)
    command = [sys.executable, "-m", "hounsfield.archive.cli", *words]
    done = subprocess.run(command, stdout=write_end, stderr=subprocess.PIPE, timeout=60, check=False)
    os.close(write_end)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("host", ["pacs..example.org", "a" * 70, "reading room"])
@pytest.mark.parametrize("tls", [(), ("--tls",)])
def test_hosts_that_no_name_can_be_of(cli: Any, host: str, tls: tuple[str, ...]) -> None:
    result = cli("echo", f"PACS@{host}:104", *tls)
    assert (result.code, "no such host" in result.err) == (3, True), result.err


@pytest.mark.parametrize("target", ["NOBODY", "", "PACS@127.0.0.1:", "PACS@127.0.0.1:²"])
def test_targets_that_are_none(cli: Any, tmp_path: Path, target: str) -> None:
    """Also where there is no archive that could know the title."""
    result = cli("echo", target, "--data", tmp_path / "no-archive")
    assert result.code == 2, result.err
    assert "HOST:PORT" in result.err
