"""Users and their passcodes on the command line: asked for, kept as hashes, never shown; AEs key by key."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import click
import pytest

from support.pki import Authority

PASSCODE = "correct horse battery"


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> Any:
    """``typed(text)``: what stands on standard input."""

    def typed(text: str) -> None:
        monkeypatch.setattr("sys.stdin", io.StringIO(text))

    return typed


def test_users_come_and_go(cli: Any, archive: Path, typed: Any) -> None:
    data = ("--data", archive)
    typed(f"{PASSCODE}\n")
    added = cli("ae", "user", "add", "reader", "--passcode-stdin", "--comment", "night shift", *data)
    assert added.code == 0
    listed = cli("ae", "user", "list", "--json", *data)
    (user,) = listed.json()
    assert (user["name"], user["comment"]) == ("reader", "night shift")
    shown = cli("ae", "user", "list", *data)
    assert "reader" in shown.out
    for result in (added, listed, shown):
        assert PASSCODE not in result.out + result.err
        assert "scrypt" not in result.out + result.err
    assert cli("reindex", *data).code == 0
    assert len(cli("ae", "user", "list", "--json", *data).json()) == 1, "facts come back"
    assert cli("ae", "user", "remove", "reader", *data).code == 0
    assert "no user 'reader' is known" in cli("ae", "user", "remove", "reader", *data).err


def test_a_passcode_is_asked_for_on_a_terminal_only(
    cli: Any, archive: Path, typed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = ("--data", archive)
    typed("")
    refused = cli("ae", "user", "add", "reader", *data)
    assert refused.code == 2
    assert "--passcode-stdin" in refused.err
    typed("short\n")
    assert "8 characters or more" in cli("ae", "user", "add", "reader", "--passcode-stdin", *data).err
    asked: list[dict[str, Any]] = []

    def prompt(_: str, **how: Any) -> str:
        asked.append(how)
        return PASSCODE

    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr(click, "prompt", prompt)
    assert cli("ae", "user", "add", "reader", *data).code == 0
    (how,) = asked
    assert how["hide_input"] is True
    assert how["confirmation_prompt"] is True


def test_an_entity_is_changed_key_by_key(cli: Any, archive: Path, tmp_path: Path) -> None:
    authority = Authority(tmp_path / "pki")
    data = ("--data", archive)
    shown = authority.sign("WS")
    words = ("--tls", "--tls-ca", authority.pem, "--certificate", shown.pin, "--user", "a", "--user", "b")
    assert cli("ae", "add", "WS", "192.0.2.1:2762", *words, *data).code == 0
    kept = cli("ae", "show", "WS", "--json", *data).json()
    assert (kept["tls_ca"], kept["certificates"], kept["users"]) == (
        str(authority.pem),
        [shown.pin],
        ["a", "b"],
    )
    changed = cli("ae", "set", "WS", "--no-tls", "--clear", "users", "--json", *data).json()
    assert (changed["tls"], changed["users"], changed["tls_ca"]) == (False, [], str(authority.pem))
    table = cli("ae", "show", "WS", *data).out
    assert shown.pin in table
    for words, expected in (
        ((), "nothing to change was given"),
        (("--clear", "title"), "no 'title' to clear"),
        (("--certificate", "sha256:AB"), "64 hexadecimal digits"),
        (("--associations-max", "-1"), "Invalid value"),
        (("--service", "print"), "there is no service 'print'"),
    ):
        result = cli("ae", "set", "WS", *words, *data)
        assert result.code in {1, 2}
        assert expected in result.err
    assert "no AE 'X' was added" in cli("ae", "set", "X", "--tls", *data).err


def test_config_check_reads_certificates(cli: Any, tmp_path: Path) -> None:
    authority = Authority(tmp_path / "pki")
    shown, other = authority.sign("ARCHIVE", days=3), authority.sign("OTHER")

    def check(certificate: Path, key: Path) -> Any:
        files = f'tls_certificate="{certificate}", tls_key="{key}"'
        return cli("config", "check", "--set", f'dicom.listeners=[{{host="127.0.0.1", {files}}}]')

    good = check(shown.pem, shown.key)
    assert good.code == 0
    assert "ends in 3 days: renew it" in good.err
    wrong = check(shown.pem, other.key)
    assert wrong.code == 2
    assert "are not a PEM certificate and its key" in wrong.err


def test_config_check_reads_revocation_lists(cli: Any, tmp_path: Path) -> None:
    """Once such a list has ended, nobody gets in or is called: that is said before it happens."""
    authority = Authority(tmp_path / "pki")

    def check(crl: Path) -> Any:
        named = (f"dicom.tls_client_ca={authority.pem}", f"dicom.tls_client_crl={crl}")
        return cli("config", "check", *(word for name in named for word in ("--set", name)))

    assert "revocation list" not in check(authority.revoke(days=2)).err
    assert "ends in 12 hours, past its end nobody is trusted" in check(authority.revoke(days=0.501)).err
    assert "ended 12 hours ago" in check(authority.revoke(days=-0.501)).err
    alone = cli("echo", "A@127.0.0.1:1", "--tls-crl", str(authority.revoke()))
    assert alone.code == 2
    assert "--tls-crl goes with --tls-ca" in alone.err
