"""What the archive refuses to open to a network. Each rule, from both sides."""

from __future__ import annotations

from pathlib import Path

import pytest

from hounsfield.archive.config import Config, check_safety, is_loopback, load_config
from hounsfield.archive.errors import ConfigError, UnsafeConfigError

KEY = "keys.master_key=file:/nowhere/master.key"
LISTS = ('dicom.calling_titles=["CT1"]', 'dicom.sources=["192.0.2.0/24"]')
PLAIN = 'dicom.listeners=[{host="0.0.0.0", port=104, plain=true}]'


def config(*overrides: str) -> Config:
    return load_config(None, overrides)


@pytest.fixture
def tls(tmp_path: Path) -> str:
    """The TLS keys of an inline table, with files that exist."""
    for name in ("cert.pem", "key.pem"):
        (tmp_path / name).write_text("", encoding="ascii")
    return f'tls_certificate="{tmp_path}/cert.pem", tls_key="{tmp_path}/key.pem"'


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "::1", "[::1]", "localhost"])
def test_loopback(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "", "192.0.2.1", "pacs.example.org", "localhost.example.org"]
)
def test_beyond_loopback(host: str) -> None:
    assert not is_loopback(host)


def test_the_defaults_are_safe_and_announce_the_development_key() -> None:
    assert ["development key" in line for line in check_safety(Config())] == [True]


@pytest.mark.parametrize("section", ["dicom", "http"])
def test_the_development_key_stays_on_loopback(section: str, tls: str) -> None:
    unsafe = config(
        f'{section}.listeners=[{{host="0.0.0.0", {tls}}}]', *LISTS, "http.bearer_token_file=/etc/tokens"
    )
    with pytest.raises(UnsafeConfigError, match=r"development key: set keys\.master_key"):
        check_safety(unsafe)


def test_http_beyond_loopback_needs_tls() -> None:
    with pytest.raises(UnsafeConfigError, match="needs TLS: set tls_certificate and tls_key"):
        check_safety(config(KEY, 'http.listeners=[{host="0.0.0.0"}]', "http.bearer_token_file=/etc/tokens"))


def test_http_beyond_loopback_needs_authentication(tls: str) -> None:
    with pytest.raises(UnsafeConfigError, match=r"needs authentication: set http\.bearer_token_file"):
        check_safety(config(KEY, f'http.listeners=[{{host="0.0.0.0", {tls}}}]'))


def test_http_beyond_loopback_with_both_is_fine(tls: str) -> None:
    listener = f'http.listeners=[{{host="0.0.0.0", {tls}}}]'
    assert check_safety(config(KEY, listener, "http.bearer_token_file=/etc/tokens")) == []


@pytest.mark.parametrize(
    ("lists", "missing"),
    [
        ((), "dicom.calling_titles"),
        (LISTS[:1], "dicom.sources"),
        (LISTS[1:], "dicom.calling_titles"),
        (('aes=[{title="CT1"}]',), "dicom.calling_titles"),
        ((LISTS[0], 'aes=[{title="CT2", sources=["192.0.2.3"]}]'), "dicom.sources"),
    ],
)
def test_dicom_beyond_loopback_needs_both_lists(lists: tuple[str, ...], missing: str) -> None:
    with pytest.raises(UnsafeConfigError) as caught:
        check_safety(config(KEY, PLAIN, *lists))
    assert f"set {missing} too" in str(caught.value)


@pytest.mark.parametrize("everyone", ["0.0.0.0/0", "::/0"])
def test_a_list_of_everyone_is_no_list(everyone: str) -> None:
    with pytest.raises(UnsafeConfigError, match="lets every address in"):
        check_safety(config(KEY, PLAIN, LISTS[0], f'dicom.sources=["{everyone}"]'))


def test_plain_dicom_beyond_loopback_is_permitted_per_listener() -> None:
    two = 'dicom.listeners=[{host="192.0.2.1", plain=true}, {host="192.0.2.2"}]'
    with pytest.raises(UnsafeConfigError, match=r"dicom\.listeners\[1\].*permit it with plain = true"):
        check_safety(config(KEY, two, *LISTS))


@pytest.mark.parametrize("lists", [LISTS, ('aes=[{title="CT1", sources=["192.0.2.3"]}]',)])
def test_plain_dicom_beyond_loopback_is_announced(lists: tuple[str, ...]) -> None:
    (line,) = check_safety(config(KEY, PLAIN, *lists))
    assert "speaks plain DICOM" in line


def test_dicom_with_tls_needs_no_permission(tls: str) -> None:
    assert check_safety(config(KEY, f'dicom.listeners=[{{host="0.0.0.0", {tls}}}]', *LISTS)) == []


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (('http.listeners=[{tls_certificate="a.pem"}]',), "set tls_key too"),
        (('dicom.listeners=[{tls_key="a.pem"}]',), "set tls_certificate too"),
        (('dicom.listeners=[{tls_client_ca="a.pem"}]',), "tls_client_ca needs"),
        (('http.listeners=[{tls_certificate="/no/a.pem", tls_key="/no/b.pem"}]',), "no such file: /no/a.pem"),
        (('dicom.sources=["ct1"]',), "'ct1' is not an address or network"),
        (('aes=[{title="A", sources=["300.1.1.1"]}]',), "is not an address or network"),
        (('aes=[{title="A"}, {title="A"}]',), "listed more than once"),
        (('aes=[{title="A", port=0}]',), "0 is no port to call"),
        (('aes=[{title="A", called_title="A\\\\B"}]',), "is no AE title"),
        (('aes=[{title="A", refused_sop_classes=["CT"]}]',), "'CT' is no UID"),
        (('aes=[{title="A", preferred_transfer_syntaxes=["1.02"]}]',), "'1.02' is no UID"),
        (
            ('aes=[{title="A", refused_transfer_syntaxes=["1.2"], preferred_transfer_syntaxes=["1.2"]}]',),
            "1.2 is among its refused and its preferred",
        ),
        (('aes=[{title="A", tls_key="a.pem"}]',), "set tls_certificate too"),
        (('aes=[{title="A", tls_ca="/no/a.pem"}]',), "no such file: /no/a.pem"),
        (('aes=[{title="A", certificates=["sha1:AA:BB"]}]',), "write sha256: and 64 hexadecimal digits"),
        (('aes=[{title="A", certificates=["sha256:AA"]}]',), "write sha256: and 64 hexadecimal digits"),
        (('aes=[{title="A", certificates=[" "]}]',), "neither sha256:HEX nor a name"),
        (
            ('aes=[{title="A", certificates=["a.example.org"], sources=["192.0.2.1"]}]',),
            "bound to a certificate, and nobody is asked for one",
        ),
        (("dicom.tls_client_key=a.pem",), "set dicom.tls_client_certificate too"),
        (("dicom.tls_client_ca=/no/a.pem",), "no such file: /no/a.pem"),
        (('dicom.listeners=[{tls_client_crl="a.pem"}]',), "tls_client_crl needs tls_client_ca"),
        (("http.listeners=[]", "dicom.listeners=[]"), "nothing to listen on"),
    ],
)
def test_what_does_not_fit_together_is_refused(overrides: tuple[str, ...], expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_safety(config(*overrides))
    assert expected in str(caught.value)


def test_passcodes_are_not_asked_for_in_clear(tls: str) -> None:
    asking = 'identity_required=true, host="0.0.0.0"'
    with pytest.raises(UnsafeConfigError, match="anybody on its network could read: identity_required needs"):
        check_safety(config(KEY, f"dicom.listeners=[{{{asking}, plain=true}}]", *LISTS))
    assert check_safety(config(KEY, f"dicom.listeners=[{{{asking}, {tls}}}]", *LISTS)) == []
    check_safety(config("dicom.listeners=[{identity_required=true}]"))


def test_a_bound_entity_is_asked_for_its_certificate(tls: str, tmp_path: Path) -> None:
    bound = 'aes=[{title="A", certificates=["a.example.org"], sources=["192.0.2.1"]}]'
    asking = f'dicom.listeners=[{{{tls}, tls_client_ca="{tmp_path}/cert.pem"}}]'
    check_safety(config(bound, asking))


@pytest.mark.parametrize("key", ["deletion_by", "tiering_by"])
def test_who_may_delete_or_move_is_known_by_a_token(key: str) -> None:
    with pytest.raises(ConfigError, match=r"set http\.bearer_token_file"):
        check_safety(config(f'http.{key}=["keeper"]'))
    check_safety(config(f'http.{key}=["keeper"]', "http.bearer_token_file=/etc/tokens"))


@pytest.mark.parametrize(
    "origin",
    ["viewer.example", "https://viewer.example/app", "https://viéwer.example", "null", "https://", ""],
)
def test_origins_are_what_browsers_send(origin: str) -> None:
    with pytest.raises(ConfigError, match="is not an origin"):
        check_safety(config(f'http.cors_origins=["{origin}"]'))


def test_origins_that_browsers_send_are_taken() -> None:
    check_safety(config('http.cors_origins=["*", "https://viewer.example", "http://[::1]:3000/"]'))
