"""Keys are listed, checked, rotated and saved without ever locking anybody out."""

from __future__ import annotations

import contextlib
import io
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import trio

from hounsfield.archive.cli.main import COMMANDS
from hounsfield.archive.engine.engine import EngineOptions, open_engine
from hounsfield.archive.index.tier_notes import TierNotes
from hounsfield.archive.index.tier_places import Tier, pack_key
from hounsfield.storage_backends.directory_store import DirectoryStore
from hounsfield.storage_backends.object_store import claim_tier
from hounsfield.storage_backends.tier_holder import TIER_HOLDER
from support.archives import ct_slice, open_stores, store

EXPLICIT = "1.2.840.10008.1.2.1"


@pytest.fixture
def key(tmp_path: Path) -> str:
    return f"file:{tmp_path}/etc/master.key"


@pytest.fixture
def recovery(cli: Any, key: str, tmp_path: Path) -> str:
    """An archive in ``a`` under ``key``; its recovery key."""
    made = cli("init", "--data", tmp_path / "a", "--set", f"keys.master_key={key}", "--new-key", "--json")
    assert made.code == 0
    return str(made.json()["recovery_key"])


@pytest.fixture
def call(cli: Any, key: str, recovery: str, tmp_path: Path) -> Any:
    def call(*arguments: object, with_key: str = key) -> Any:
        return cli(*arguments, "--data", tmp_path / "a", "--set", f"keys.master_key={with_key}")

    return call


async def _fill(tmp_path: Path, key: str) -> None:
    stores = open_stores(tmp_path / "a", key)
    try:
        async with open_engine(stores, EngineOptions(), owner="a test") as engine:
            await store(engine, ct_slice(), EXPLICIT)
    finally:
        stores.close()


async def test_keys_are_listed_and_checked(call: Any, key: str, tmp_path: Path) -> None:
    await _fill(tmp_path, key)
    listed = call("keys", "list", "--json").json()
    assert listed["root_opened_by"] == ["master", "recovery"]
    purposes = {row["purpose"]: row for row in listed["purposes"]}
    assert purposes["segment"]["keys"] == 1
    assert purposes["segment"]["seals_bytes"] > 8192
    assert {"index", "token", "segment"} <= set(purposes)
    (segment,) = [
        row for row in call("keys", "list", "--all", "--json").json() if row["purpose"] == "segment"
    ]
    assert segment["seals"] == f"segments/{segment['key_id']}"
    checked = call("keys", "check", "--json")
    assert (checked.code, checked.json()["bad"], checked.json()["unused"]) == (0, [], [])
    assert call("keys", "list").code == call("keys", "check").code == 0


async def test_a_missing_damaged_or_unused_key_is_named(call: Any, key: str, tmp_path: Path) -> None:
    await _fill(tmp_path, key)
    (path,) = (tmp_path / "a/keys/segment").iterdir()
    good = path.read_bytes()
    path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    damaged = call("keys", "check", "--json")
    assert damaged.code == 1
    assert [bad["key_id"] for bad in damaged.json()["bad"]] == [path.stem]
    path.unlink()
    missing = call("keys", "check")
    assert missing.code == 1
    assert f"segment {path.stem}: the key is missing: restore keys/ from a backup" in missing.err
    path.write_bytes(good)
    (tmp_path / "a/segments" / path.stem).rename(tmp_path / "aside")
    unused = call("keys", "check", "--json")
    assert unused.code == 0
    assert [one["key_id"] for one in unused.json()["unused"]] == [path.stem]


def test_the_master_key_is_rotated(call: Any, key: str, recovery: str, tmp_path: Path) -> None:
    new = f"file:{tmp_path}/etc/new.key"
    done = call("keys", "rotate-master", "--to", new, "--new-key")
    assert done.code == 0
    assert "before the next start" in done.err
    refused = call("ls")
    assert refused.code == 1
    assert refused.err.count("\n") == 1
    assert call("ls", with_key=new).code == 0
    again = call("keys", "rotate-master", "--to", new, "--json")
    assert (again.code, again.json()["changed"]) == (0, False)
    assert "never overwritten" in call("keys", "rotate-master", "--to", new, "--new-key").err
    inside = call("keys", "rotate-master", "--to", f"file:{tmp_path}/a/k", "--new-key", with_key=new)
    assert inside.code == 2
    assert "inside the data directory" in inside.err


def test_a_lost_master_key_is_replaced_with_the_recovery_key(
    call: Any, recovery: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "etc/master.key").unlink()
    new = f"file:{tmp_path}/etc/new.key"
    monkeypatch.setattr("sys.stdin", io.StringIO(recovery.replace("-", " ").lower() + "\n"))
    assert call("keys", "rotate-master", "--to", new, "--new-key", "--with-recovery-key").code == 0
    assert call("keys", "check", with_key=new).code == 0


def test_recovery_keys_are_made_checked_and_removed(
    call: Any, recovery: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def opens(text: str) -> bool:
        monkeypatch.setattr("sys.stdin", io.StringIO(text + "\n"))
        return bool(call("keys", "recovery", "check").code == 0)

    assert opens(recovery)
    new = call("keys", "recovery", "new", "--json").json()["recovery_key"]
    assert opens(new)
    assert not opens(recovery)
    assert call("keys", "recovery", "remove", "--yes", "--json").json()["removed"]
    assert call("keys", "recovery", "remove", "--yes", "--json").json() == {"removed": False, "tiers": []}
    assert not opens(new)
    assert "there is no recovery key" in call("keys", "check").err
    assert not opens("HFR1-AAAA")


def test_what_must_be_saved_is_printed(call: Any, key: str, tmp_path: Path) -> None:
    things = {thing["what"]: thing for thing in call("keys", "backup", "--json").json()}
    assert things["keyring"]["where"] == str(tmp_path / "a/keys")
    assert things["master key"]["where"] == key
    assert set(things) == {"segments and ledger", "keyring", "index", "master key", "recovery key"}
    call("keys", "recovery", "remove", "--yes")
    assert "there is none" in call("keys", "backup").out


#: Every command that opens an archive by itself, and how it is called.
OPENERS: dict[str, tuple[object, ...]] = {
    "ls": ("ls",),
    "export": ("export", "1.2.3", "--to", "out"),
    "reindex": ("reindex",),
    "ae list": ("ae", "list"),
    "ae add": ("ae", "add", "CT1"),
    "ae remove": ("ae", "remove", "CT1"),
    "backup": ("backup", "elsewhere"),
    "fsck": ("fsck",),
    "quarantine list": ("quarantine", "list"),
    "quarantine show": ("quarantine", "show", "00"),
    "quarantine export": ("quarantine", "export", "00", "--to", "out"),
    "scrub status": ("scrub", "status"),
    "scrub start": ("scrub", "start"),
    "delete": ("delete", "1.2.3", "--reason", "a test", "--yes"),
    "hold": ("hold", "list"),
    "reject list": ("reject", "list"),
    "reject undo": ("reject", "undo", "1", "--reason", "a test"),
    "reject apply": ("reject", "apply", "1.2.3"),
    "reject delete": ("reject", "delete", "1", "--reason", "a test", "--yes"),
    "compact": ("compact", "status"),
    "fix": ("fix", "list"),
    "routes": ("routes", "status"),
    "audit": ("audit",),
    "tier status": ("tier", "status"),
    "import": ("import", "."),
    "keys list": ("keys", "list"),
    "keys check": ("keys", "check"),
    "keys backup": ("keys", "backup"),
    "keys rekey": ("keys", "rekey"),
    "keys recovery new": ("keys", "recovery", "new"),
    "keys recovery remove": ("keys", "recovery", "remove", "--yes"),
    "serve": ("serve", "--dicom", "127.0.0.1:0", "--http", "127.0.0.1:0"),
}
#: Those that open none, or only through a server; restore has tests of its own.
OTHERS = {
    "restore", "init", "status", "send", "echo", "find", "get", "move", "commit", "config", "version", "ae",
    "keys",
}  # fmt: skip


def test_every_command_is_tried() -> None:
    assert {name.split()[0] for name in OPENERS} | OTHERS >= set(COMMANDS), (
        "a new command that opens an archive belongs into OPENERS, another one into OTHERS"
    )


@pytest.mark.parametrize("how", ["wrong", "missing", "not a key", "no keyring"])
@pytest.mark.parametrize("name", OPENERS)
def test_a_wrong_or_missing_master_key_is_one_clear_error(
    call: Any, tmp_path: Path, name: str, how: str
) -> None:
    wrong = tmp_path / "wrong.key"
    if how in {"wrong", "not a key"}:
        wrong.write_text(bytes(range(32)).hex() if how == "wrong" else "correct horse")
    elif how == "no keyring":
        if name == "serve":
            return  # with nothing stored yet it makes one
        shutil.rmtree(tmp_path / "a/keys")
        wrong.write_text(bytes(range(32)).hex())
    result = call(*OPENERS[name], with_key=f"file:{wrong}")
    assert result.code in {1, 2}
    errors = [line for line in result.err.splitlines() if line.startswith("error:")]
    assert len(errors) == 1, result.err
    assert "Traceback" not in result.err
    assert "key" in errors[0]


def _fill_now(tmp_path: Path, key: str) -> None:
    trio.run(_fill, tmp_path, key)


def test_segments_get_new_keys(call: Any, key: str, recovery: str, tmp_path: Path) -> None:
    _fill_now(tmp_path, key)
    before = call("ls", "instances", "--json", "-l").json()
    old = {path.name for path in (tmp_path / "a/keys/segment").iterdir()}
    early = call("keys", "rekey", "--before", "2001-01-01", "--json").json()
    assert early["rekeyed"] == 0
    done = call("keys", "rekey", "--json")
    assert (done.code, done.json()["rekeyed"]) == (0, 1)
    new = {path.name for path in (tmp_path / "a/keys/segment").iterdir()}
    assert len(new) == 1
    assert not old & new
    assert call("ls", "instances", "--json", "-l").json() == before
    assert call("fsck", "--json").json()["findings"] == []
    again = call("keys", "rekey", "--before", _ago(done.json()["before"]), "--json").json()
    assert again["rekeyed"] == 0


def _ago(moment: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(moment - 1))


@pytest.mark.parametrize("purpose", ["token", "index"])
def test_an_index_whose_keys_are_lost_gets_no_new_ones_in_silence(
    call: Any, key: str, recovery: str, tmp_path: Path, purpose: str
) -> None:
    """Else everything would be there and nothing be found."""
    _fill_now(tmp_path, key)
    before = call("ls", "--json").json()
    shutil.rmtree(tmp_path / "a/keys" / purpose)
    refused = call("ls")
    assert refused.code == 1
    assert refused.err.count("\n") == 1
    assert "hounsfield reindex" in refused.err
    assert call("reindex").code == 0
    assert call("ls", "--json").json() == before


async def test_a_new_key_comes_to_every_tier_at_once(
    cli: Any, key: str, recovery: str, tmp_path: Path
) -> None:
    """A tier and the key of today are enough; what is away is named, and is told later."""
    for name in ("cold", "second", "third"):
        (tmp_path / name).mkdir()
    tiers = [
        f'[[tiers]]\nname = "{name}"\ndirectory = "{tmp_path / name}"' for name in ("cold", "second", "third")
    ]
    (tmp_path / "config.toml").write_text("\n".join(tiers))
    stores = open_stores(tmp_path / "a", key)
    with contextlib.closing(stores):
        places = {name: Tier(name, DirectoryStore(tmp_path / name), pack_key) for name in ("cold", "second")}
        for name, place in places.items():
            claim_tier(place.store, stores.keyring.root_id, first_time=True, name=name)
            TierNotes(stores.keyring, places).keep(name, places)
    (tmp_path / "second").rename(tmp_path / "gone")

    def call(*arguments: object, with_key: str = key) -> Any:
        there = ("--data", tmp_path / "a", "--config", tmp_path / "config.toml")
        return cli(*arguments, *there, "--set", f"keys.master_key={with_key}")

    def states(done: Any) -> dict[str, str]:
        assert done.code == 0, done.err
        return {one["tier"]: one["state"] for one in done.json()["tiers"]}

    new = f"file:{tmp_path}/etc/new.key"
    done = call("keys", "rotate-master", "--to", new, "--new-key", "--json")
    assert states(done) == {"cold": "current", "second": "unused", "third": "unused"}
    root = (tmp_path / "a/keys/root").read_bytes()
    assert (tmp_path / "cold/keys/root").read_bytes() == root
    assert not list((tmp_path / "third").iterdir())
    (tmp_path / "gone").rename(tmp_path / "second")
    checked = call("keys", "check", "--json", with_key=new)
    assert states(checked) == {"cold": "current", "second": "former", "third": "unused"}
    assert "tier second has the root key as it was wrapped before" in call("keys", "check", with_key=new).err
    again = call("keys", "rotate-master", "--to", new, "--json")  # done again it finishes
    assert states(again) == {"cold": "current", "second": "current", "third": "unused"}
    for words in (("new",), ("remove", "--yes")):
        changed = call("keys", "recovery", *words, "--json", with_key=new)
        assert states(changed)["cold"] == "current"
        now = (tmp_path / "a/keys/root").read_bytes()
        assert now != root
        assert (
            (tmp_path / "cold/keys/root").read_bytes() == (tmp_path / "second/keys/root").read_bytes() == now
        )
        root = now
    for words in (
        ("rotate-master", "--to", f"file:{tmp_path}/etc/third.key", "--new-key"),
        ("recovery", "new"),
    ):
        wrong = call("keys", *words, "--set", 'tiers=[{name="hot", directory="/x"}]', with_key=new)
        assert wrong.code == 2
        assert (tmp_path / "a/keys/root").read_bytes() == root  # said before anything is changed
    shutil.copytree(tmp_path / "a", tmp_path / "copy")
    (tmp_path / "copy" / TIER_HOLDER).unlink()  # as a backup has none
    there = ("--data", tmp_path / "copy", "--config", tmp_path / "config.toml")
    copied = cli("keys", "recovery", "new", "--json", *there, "--set", f"keys.master_key={new}")
    assert set(states(copied).values()) == {"held", "unused"}
    assert (tmp_path / "cold/keys/root").read_bytes() == root  # of the archive, not of its copy
    (tmp_path / "cold/hounsfield-tier").write_text("{}")
    assert states(call("keys", "check", "--json", with_key=new))["cold"] == "away"
