"""How a bucket is reached, with whose keys, and what is said when it cannot be."""

from __future__ import annotations

import os
import pickle
import ssl
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hounsfield.storage_backends.object_store import StoreAwayError, StoreRefusedError, claim_tier
from hounsfield.storage_backends.s3_credentials import credential_source
from hounsfield.storage_backends.s3_store import S3Limits, S3Options, S3Store
from support.faulty_store import FaultyStore, faulty_store
from support.pki import Authority
from support.s3_servers import ACCESS_KEY, DOMAIN, SECRET_KEY, S3Server, s3_server  # noqa: F401 - a fixture

ONCE = S3Limits(connect_s=1, silence_s=5, request_s=5, retries=0)
KEYS = {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY}


@pytest.fixture(autouse=True)
def no_keys_of_ours(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_") or name == "CREDENTIALS_DIRECTORY"]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


def works(options: S3Options, limits: S3Limits = ONCE) -> bool:
    store = S3Store(options, limits)
    store.put("object", [b"content"], 7)
    return store.read("object", 0, 7) == b"content"


# ---------------------------------------------------------------- addresses


@pytest.mark.parametrize(
    "wrong",
    [
        {"bucket": ""},
        {"bucket": "a/b"},
        {"prefix": "../up"},
        {"prefix": "/root"},
        {"prefix": "ends/"},
        {"endpoint": "http://store.example"},
        {"endpoint": "store.example"},
        {"endpoint": "ftp://store.example"},
        {"endpoint": "https://store.example/path"},
        {"endpoint": "https://store.example?x=1"},
        {"endpoint": "https://"},
        {"endpoint": f"https://{ACCESS_KEY}:{SECRET_KEY}@store.example"},
        # At these obstore panics, which no handler of errors sees.
        {"bucket": "a b"},
        {"bucket": "bü"},
        {"region": "eu west"},
        {"endpoint": "https://störe.example"},
        {"endpoint": "https://st re.example"},
        {"endpoint": "https://store%20.example"},
        {"endpoint": "https://store.example:99999"},
        {"endpoint": "https://store.example:0"},
        {"endpoint": "https://127.0.0.1:9000", "path_style": False},
        {"endpoint": "https://[::1]:9000", "path_style": False},
    ],
)
def test_an_address_that_is_none_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError) as raised:
        S3Options(**{"bucket": "bucket", **wrong})
    assert SECRET_KEY not in str(raised.value)


def test_http_only_when_told() -> None:
    with pytest.raises(ValueError, match="permit"):
        S3Options("bucket", endpoint="http://store.example")
    S3Options("bucket", endpoint="http://store.example", allow_http=True)


def test_parts_are_not_smaller_than_servers_take() -> None:
    with pytest.raises(ValueError, match="5 MiB"):
        S3Limits(part_bytes=(5 << 20) - 1)


@pytest.mark.parametrize("length,part", [(1, 8), (80_000 << 20, 8), (80_001 << 20, 9), (5 << 40, 525)])
def test_very_large_objects_have_larger_parts(length: int, part: int) -> None:
    """Ten thousand of them at most: 5 TiB is the largest object."""
    store = S3Store(S3Options("bucket", credentials="anonymous"))
    assert store._part_bytes(length) == part << 20
    assert -(-length // (part << 20)) <= 10_000


@pytest.mark.peer("weed")
def test_a_bucket_is_a_part_of_the_path(s3_server: S3Server) -> None:  # noqa: F811
    with faulty_store(s3_server.port) as proxy:
        assert works(s3_server.options(endpoint=proxy.endpoint))
        assert all(request.path.startswith(f"/{s3_server.bucket}/") for request in proxy.requests)


@pytest.mark.peer("weed")
def test_a_bucket_is_a_part_of_the_hosts_name(s3_server: S3Server) -> None:  # noqa: F811
    """And a proxy is asked: nobody else knows that name."""
    with faulty_store(s3_server.port) as proxy:
        endpoint = f"http://{DOMAIN}:{s3_server.port}"
        options = replace(s3_server.options(), endpoint=endpoint, path_style=False, proxy=proxy.endpoint)
        assert works(options)
        host = f"http://{s3_server.bucket}.{DOMAIN}:{s3_server.port}/{options.prefix}/"
        assert all(request.path.startswith(host) for request in proxy.requests)


@pytest.mark.peer("weed")
def test_a_bucket_that_is_not_there(s3_server: S3Server) -> None:  # noqa: F811
    options = replace(s3_server.options(), bucket="nobody-made-this")
    with pytest.raises(StoreRefusedError, match="no such bucket"):
        S3Store(options, ONCE).read("object", 0, 1)
    with pytest.raises(StoreRefusedError, match="no such bucket"):
        list(S3Store(options, ONCE).names())
    with pytest.raises(StoreRefusedError, match="no such bucket"):
        claim_tier(S3Store(options, ONCE), bytes(16), first_time=True)


def test_nobody_listens() -> None:
    options = S3Options("bucket", endpoint="http://127.0.0.1:1", allow_http=True, credentials="anonymous")
    with pytest.raises(StoreAwayError, match="nobody listens"):
        S3Store(options, ONCE).size("object")


# ---------------------------------------------------------------- certificates


@pytest.fixture
def with_tls(s3_server: S3Server, tmp_path: Path) -> Iterator[tuple[FaultyStore, Path]]:  # noqa: F811
    authority = Authority(tmp_path / "pki")
    shown = authority.sign("server")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(shown.pem, shown.key)
    with faulty_store(s3_server.port, tls=context) as proxy:
        yield proxy, authority.pem


@pytest.mark.peer("weed")
def test_an_authority_of_ones_own(s3_server: S3Server, with_tls: tuple[FaultyStore, Path]) -> None:  # noqa: F811
    proxy, authority = with_tls
    options = replace(s3_server.options(endpoint=proxy.endpoint), allow_http=False)
    assert works(replace(options, ca_file=authority))
    with pytest.raises(StoreRefusedError, match="authority"):
        works(options)


def test_an_authority_that_cannot_be_read(tmp_path: Path) -> None:
    options = S3Options("bucket", credentials="anonymous", ca_file=tmp_path / "none.pem")
    with pytest.raises(StoreRefusedError, match="cannot be read"):
        S3Store(options)
    (tmp_path / "none.pem").write_text("-----BEGIN CERTIFICATE-----\nno\n-----END CERTIFICATE-----\n")
    with pytest.raises(StoreRefusedError):
        S3Store(options)


# ---------------------------------------------------------------- keys


@pytest.mark.peer("weed")
@pytest.mark.parametrize("source", ["environment", "shared", "profile", "file", "env", "credential"])
def test_keys_come_from_the_usual_places(
    s3_server: S3Server,  # noqa: F811
    source: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spec = "default"
    profiles = f"[default]\naws_access_key_id = {ACCESS_KEY}\naws_secret_access_key={SECRET_KEY}\n"
    if source == "environment":
        for name, value in KEYS.items():
            monkeypatch.setenv(name, value)
    elif source == "shared":
        folder = tmp_path / "home" / ".aws"
        folder.mkdir(parents=True)
        (folder / "credentials").write_text(profiles)
    elif source == "profile":
        (tmp_path / "profiles").write_text(profiles.replace("default", "cold"))
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "profiles"))
        spec = "profile:cold"
    elif source == "file":
        (tmp_path / "keys").write_text(f" {ACCESS_KEY}:{SECRET_KEY}\n")
        spec = f"file:{tmp_path / 'keys'}"
    elif source == "env":
        monkeypatch.setenv("COLD_KEYS", f"{ACCESS_KEY}:{SECRET_KEY}")
        spec = "env:COLD_KEYS"
    else:
        (tmp_path / "cold").write_text(f"{ACCESS_KEY}:{SECRET_KEY}")
        monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
        spec = "credential:cold"
    assert works(replace(s3_server.options(), credentials=spec))


@pytest.mark.peer("weed")
def test_wrong_keys_are_refused(
    s3_server: S3Server,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLD_KEYS", f"{ACCESS_KEY}:wrong-secret-wrong")
    options = replace(s3_server.options(), credentials="env:COLD_KEYS")
    for spec in ("env:COLD_KEYS", "anonymous"):
        with pytest.raises(StoreRefusedError, match="credentials") as raised:
            works(replace(options, credentials=spec))
        assert "wrong-secret" not in str(raised.value)


def test_keys_of_the_environment_are_not_mixed_with_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """A token that belongs to other keys would have these refused."""
    monkeypatch.setenv("AWS_SESSION_TOKEN", "of-other-keys")
    monkeypatch.setenv("COLD_KEYS", "id:secret")
    source = credential_source("env:COLD_KEYS")
    assert source is not None
    assert source()["token"] is None


def test_keys_that_are_replaced_are_read_again(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("old:secret")
    source = credential_source(f"file:{tmp_path / 'keys'}")
    assert source is not None
    assert source()["access_key_id"] == "old"
    (tmp_path / "keys").write_text("new:secret:token")
    assert source()["access_key_id"] == "new"
    assert source()["token"] == "token"
    assert source()["expires_at"] is not None


@pytest.mark.parametrize(
    "content",
    ["", "id", "id:", ":secret", "a:b:c:d", "id:se cret", "id:secret\nid:secret", "x" * 20_000, b"\xff\xfe"],
)
def test_a_file_that_holds_no_keys_is_not_shown(tmp_path: Path, content: str | bytes) -> None:
    (tmp_path / "keys").write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(StoreRefusedError) as raised:
        credential_source(f"file:{tmp_path / 'keys'}")
    assert "cret" not in str(raised.value)


@pytest.mark.parametrize(
    "spec",
    [
        "file:/none/of/these",
        "env:NOT_SET",
        "credential:none",
        "profile:none",
        "profile:",
        "instance:",
        "",
        "MY-KEY:MY-SECRET",
    ],
)
def test_a_source_that_is_none_is_refused(spec: str) -> None:
    with pytest.raises(StoreRefusedError) as raised:
        credential_source(spec)
    assert "MY-SECRET" not in str(raised.value)


def test_a_profile_that_is_damaged_is_not_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "profiles").write_text("aws_secret_access_key = MY-SECRET\n[default\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "profiles"))
    with pytest.raises(StoreRefusedError) as raised:
        credential_source("profile:default")
    assert "MY-SECRET" not in str(raised.value)
    assert raised.value.__suppress_context__  # the parser's own error shows the line


def test_without_keys_the_metadata_services_are_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which nobody has here: the error says so."""
    assert credential_source("default") is None
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", "http://127.0.0.1:1")
    options = S3Options("bucket", endpoint="http://127.0.0.1:1", allow_http=True)
    with pytest.raises(StoreAwayError, match="no keys"):
        S3Store(options, ONCE).size("object")


def test_keys_show_themselves_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLD_KEYS", f"{ACCESS_KEY}:{SECRET_KEY}")
    options = S3Options("bucket", credentials="env:COLD_KEYS")
    store = S3Store(options)
    source = credential_source("env:COLD_KEYS")
    for shown in (repr(options), repr(store), repr(source), repr(store._store), str(store._store.config)):
        assert ACCESS_KEY not in shown
        assert SECRET_KEY not in shown
    with pytest.raises(TypeError):
        pickle.dumps(source)


# ---------------------------------------------------------------- obstore


def test_without_obstore_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore.store", None)
    with pytest.raises(StoreRefusedError, match=r"pip install 'hounsfield\[s3\]'"):
        S3Store(S3Options("bucket", credentials="anonymous"))


def test_obstore_is_loaded_with_the_first_bucket() -> None:
    """An archive without one neither needs nor waits for it."""
    code = "import hounsfield.storage_backends.s3_store, sys; print('obstore' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "False\n"
