"""Commands on an archive that no server runs on: exit codes, one-line errors, JSON."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from hounsfield.archive.app.data_directory import open_data_directory
from hounsfield.archive.cli.options import split_address


def test_init_prints_the_recovery_key_once(cli: Any, tmp_path: Path) -> None:
    first = cli("init", "--data", tmp_path / "a", "--json")
    assert first.code == 0
    assert re.fullmatch(r"HFR1(-[A-Z2-7]{4}){14}", first.json()["recovery_key"])
    again = cli("init", "--data", tmp_path / "a")
    assert again.code == 1
    assert again.err == f"error: {tmp_path / 'a'} is an archive already; nothing was changed\n"


def test_init_makes_a_master_key_outside_the_data_directory(cli: Any, tmp_path: Path) -> None:
    key, data = tmp_path / "etc" / "master.key", tmp_path / "a"
    inside = cli("init", "--data", data, "--set", f"keys.master_key=file:{data}/k", "--new-key")
    assert inside.code == 2
    assert "lies inside the data directory" in inside.err
    assert cli("init", "--data", data, "--set", f"keys.master_key=file:{key}", "--new-key").code == 0
    assert key.stat().st_mode & 0o777 == 0o600
    wrong = tmp_path / "wrong.key"
    wrong.write_text("5a" * 31 + "00")
    other = cli("ls", "--data", data)
    assert other.code == 1, "the development key does not open it"
    assert other.err.count("\n") == 1
    assert cli("ls", "--data", data, "--set", f"keys.master_key=file:{key}").code == 0


def test_a_missing_archive_is_one_line(cli: Any, tmp_path: Path) -> None:
    none = tmp_path / "none"
    result = cli("ls", "--data", none)
    assert result.code == 1
    assert result.err == f"error: no data directory {none}: `hounsfield init --data {none}` makes one\n"


def test_a_held_archive_is_one_line(cli: Any, archive: Path) -> None:
    held = open_data_directory(archive, create=False)
    try:
        result = cli("reindex", "--data", archive)
    finally:
        held.close()
    assert result.code == 1
    assert result.err.startswith("error: another Hounsfield (process ")


@pytest.mark.parametrize("command", [("status",), ("ae", "recent")])
def test_no_server_is_exit_code_three(cli: Any, archive: Path, command: tuple[str, ...]) -> None:
    result = cli(*command, "--data", archive)
    assert result.code == 3
    assert result.err == f"error: no server is running on {archive}\n"


def test_ls_of_an_empty_archive(cli: Any, archive: Path) -> None:
    assert cli("ls", "--data", archive).code == 0
    for level in ("patients", "studies", "series", "instances"):
        assert cli("ls", level, "--json", "--data", archive).json() == {"rows": [], "more": False}


@pytest.mark.parametrize(
    ("words", "code", "expected"),
    [
        (
            ["stduies"],
            2,
            "write a level (patients, studies, series, instances), then conditions as KEY=VALUE",
        ),
        (["StudyDate=monday"], 1, "StudyDate must be a date"),
    ],
)
def test_ls_says_what_is_wrong_with_a_condition(
    cli: Any, archive: Path, words: list[str], code: int, expected: str
) -> None:
    result = cli("ls", *words, "--data", archive)
    assert result.code == code
    assert expected in result.err
    assert result.err.count("\n") == 1


def test_aes_are_added_listed_and_removed(cli: Any, archive: Path) -> None:
    data = ("--data", archive)
    assert cli("ae", "add", "CT1", "192.0.2.1:104", "--source", "192.0.2.0/28", *data).code == 0
    assert cli("ae", "add", "CT1", "192.0.2.2:11112", *data).code == 0
    (kept,) = cli("ae", "list", "--json", *data).json()
    default = {
        "tls": False, "sources": [], "comment": "", "configured": False, "services": [],
        "associations_max": 0, "refused_sop_classes": [], "refused_transfer_syntaxes": [],
        "preferred_transfer_syntaxes": [], "called_title": "", "calling_title": "", "tls_ca": "",
        "tls_crl": "", "tls_certificate": "", "tls_key": "", "certificates": [], "identity_required": False,
        "users": [], "commitment_to": "", "move_associations": 0,
    }  # fmt: skip
    assert kept == {"title": "CT1", "host": "192.0.2.2", "port": 11112, **default}
    assert cli("ae", "remove", "CT1", *data).code == 0
    assert cli("ae", "list", "--json", *data).json() == []
    assert "no AE 'CT1' is known" in cli("ae", "remove", "CT1", *data).err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["A\\B"], "is no AE title"),
        (["SEVENTEEN LETTERS"], "is no AE title"),
        (["CT1", "--source", "everywhere"], "is not an address or network"),
        (["CT1", "--source", "0.0.0.0/0"], "lets every address in"),
        (["CT1", "192.0.2.1"], "write HOST:PORT"),
    ],
)
def test_a_bad_ae_is_refused(cli: Any, archive: Path, arguments: list[str], expected: str) -> None:
    result = cli("ae", "add", *arguments, "--data", archive)
    assert result.code in {1, 2}
    assert expected in result.err


def test_configured_aes_are_listed_and_changed_in_the_file_only(cli: Any, archive: Path) -> None:
    options = ("--data", archive, "--set", 'aes=[{title="MR1", host="192.0.2.9"}]')
    (only,) = cli("ae", "list", "--json", *options).json()
    assert (only["title"], only["configured"]) == ("MR1", True)
    assert "configuration file: change it there" in cli("ae", "add", "MR1", "192.0.2.8:104", *options).err
    assert "change it there" in cli("ae", "remove", "MR1", *options).err


def test_reindex_keeps_what_objects_cannot_reproduce(cli: Any, archive: Path) -> None:
    cli("ae", "add", "CT1", "192.0.2.1:104", "--data", archive)
    report = cli("reindex", "--data", archive, "--json")
    assert report.code == 0
    assert report.json()["facts"] == 1
    assert [ae["title"] for ae in cli("ae", "list", "--json", "--data", archive).json()] == ["CT1"]
    assert [path.name for path in archive.glob("index*")] == ["index"]


def test_a_failed_reindex_puts_the_old_index_back(
    cli: Any, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hounsfield.archive.engine.stores import Stores
    from hounsfield.storage_backends.errors import StoreFullError

    cli("ae", "add", "CT1", "192.0.2.1:104", "--data", archive)

    def full(*_: object, **__: object) -> None:
        raise StoreFullError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(Stores, "reindex", full)
        assert cli("reindex", "--data", archive).err == "error: the disk is full\n"
    assert [path.name for path in archive.glob("index*")] == ["index"]
    assert [ae["title"] for ae in cli("ae", "list", "--json", "--data", archive).json()] == ["CT1"]


def test_a_reindex_after_one_that_was_killed_leaves_nothing_behind(cli: Any, archive: Path) -> None:
    cli("ae", "add", "CT1", "192.0.2.1:104", "--data", archive)
    (archive / "index").rename(archive / "index.aside-20260101-000000")
    (archive / "index").mkdir(mode=0o700)  # as far as it came
    assert cli("reindex", "--data", archive, "--keep-old").code == 0
    assert sorted(path.name for path in archive.glob("index*")) == ["index", "index.old-20260101-000000"]
    assert [ae["title"] for ae in cli("ae", "list", "--json", "--data", archive).json()] == ["CT1"]


def test_export_of_nothing_is_an_error(cli: Any, archive: Path, tmp_path: Path) -> None:
    result = cli("export", "1.2.3", "--to", tmp_path / "out", "--data", archive)
    assert result.code == 1
    assert result.err.startswith("error: no such study")


def test_config_check_says_why_not(cli: Any, tmp_path: Path) -> None:
    assert cli("config", "check").code == 0
    file = tmp_path / "c.toml"
    file.write_text("[htpp]\n")
    result = cli("config", "check", "--config", file)
    assert result.code == 2
    assert result.err == f"error: {file}:1: unknown key htpp; the nearest is http\n"
    unsafe = cli("config", "check", "--set", 'http.listeners=[{host="0.0.0.0"}]')
    assert unsafe.code == 2
    assert "http.listeners[0] (0.0.0.0:8042)" in unsafe.err


def test_config_show_shows_sources_never_secrets(cli: Any, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text("viewer:the-secret-token-itself-0123456789\n")
    settings = (
        "--set",
        f"http.bearer_token_file={tokens}",
        "--set",
        "keys.master_key=command:vault read TOKEN=s3cr3t",
        "--set",
        'tiers=[{name="cold", bucket="b", credentials="AKIA:s3cr3t"}]',  # where only their place belongs
    )
    shown = cli("config", "show", "--json", *settings)
    assert shown.json()["http"]["bearer_token_file"] == str(tokens)
    assert shown.json()["keys"]["master_key"] == "command:…"
    text = cli("config", "show", *settings).out
    assert "s3cr3t" not in shown.out + text
    assert "the-secret-token" not in shown.out + text


def test_what_rules_name_is_shown_as_a_config_file(cli: Any, tmp_path: Path) -> None:
    from hounsfield.archive.config import load_config

    file = tmp_path / "rules.toml"
    file.write_text(
        """
        [[routes]]
        name = "a"
        to = ["X"]
        match = { Modality = ["CT"], not = { calling_ae = "Q" }, any = [{ StudyID = "1" }, { StudyID = "" }] }
        [[coercions]]
        name = "c"
        map = { StationName = { "CT 01" = "X", "*" = "Y" } }
        """
    )
    shown = tmp_path / "shown.toml"
    shown.write_text(cli("config", "show", "--config", str(file)).out)
    assert load_config(shown) == load_config(file)


def test_config_show_is_a_config_file(cli: Any, tmp_path: Path) -> None:
    from hounsfield.archive.config import load_config

    override = 'aes=[{title="CT1", sources=["192.0.2.1"]}]'
    (tmp_path / "shown.toml").write_text(cli("config", "show", "--set", override).out)
    assert load_config(tmp_path / "shown.toml") == load_config(None, [override])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("127.0.0.1:104", ("127.0.0.1", 104)),
        ("[::1]:104", ("::1", 104)),
        (":104", ("127.0.0.1", 104)),
        ("104", ("127.0.0.1", 104)),
        ("pacs.example.org:0", ("pacs.example.org", 0)),
    ],
)
def test_addresses(text: str, expected: tuple[str, int]) -> None:
    assert split_address(text) == expected


@pytest.mark.parametrize("text", ["localhost", "host:http", "host:70000", "host:-1", ""])
def test_bad_addresses(cli: Any, text: str) -> None:
    result = cli("serve", "--dicom", text)
    assert result.code == 2
    assert "write HOST:PORT" in result.err


def test_a_fault_of_ours_keeps_its_traceback(
    cli: Any, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hounsfield.archive.app import offline

    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(offline.OpenedArchive, "call", broken)
    with pytest.raises(ZeroDivisionError):
        cli("ls", "--data", archive)
