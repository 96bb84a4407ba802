"""`backup`, `restore` and what they say when something is wrong."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import trio

from hounsfield.archive.engine.engine import EngineOptions, open_engine
from support.archives import ct_slice, open_stores, store

EXPLICIT = "1.2.840.10008.1.2.1"


@pytest.fixture
def filled(cli: Any, tmp_path: Path) -> Path:
    """An archive with one object."""
    key = f"file:{tmp_path}/state/hounsfield/development-master.key"
    made = cli("init", "--data", tmp_path / "a", "--json")
    (tmp_path / "recovery").write_text(made.json()["recovery_key"])

    async def fill() -> None:
        stores = open_stores(tmp_path / "a", key)
        async with open_engine(stores, EngineOptions(), owner="a test") as engine:
            await store(engine, ct_slice(), EXPLICIT)
        stores.close()

    trio.run(fill)
    return tmp_path / "a"


def test_a_backup_is_made_listed_checked_and_restored(cli: Any, filled: Path, tmp_path: Path) -> None:
    made = cli("backup", tmp_path / "b", "--segments", "--data", filled, "--json")
    assert made.code == 0
    assert made.json()["copied"] == 1
    (listed,) = cli("backup", tmp_path / "b", "--list", "--data", filled, "--json").json()
    assert listed["snapshot"] == made.json()["snapshot"]
    assert (listed["segments"], listed["segments_copied"]) == (1, 1)
    assert cli("backup", tmp_path / "b", "--list", "--data", filled).code == 0
    checked = cli("restore", tmp_path / "b", "--check", "--json")
    assert (checked.code, checked.json()["whole"]) == (0, True)
    restored = cli("restore", tmp_path / "b", "--data", tmp_path / "new", "--json")
    assert restored.code == 0
    assert restored.json()["lost"] == 0
    assert not (tmp_path / "new" / "restore-unfinished").exists()
    before = cli("ls", "instances", "--json", "-l", "--data", filled).json()
    assert cli("ls", "instances", "--json", "-l", "--data", tmp_path / "new").json() == before
    assert len(before["rows"]) == 1
    again = cli("restore", tmp_path / "b", "--data", tmp_path / "new")
    assert again.code == 1
    assert "never overwrites" in again.err


def test_segments_that_survived_are_linked(cli: Any, filled: Path, tmp_path: Path) -> None:
    assert cli("backup", tmp_path / "b", "--data", filled).code == 0
    missing = cli("restore", tmp_path / "b", "--data", tmp_path / "new")
    assert missing.code == 1
    assert "--segments-from" in missing.err
    assert (
        cli("restore", tmp_path / "b", "--data", tmp_path / "new", "--segments-from", filled, "--link").code
        == 0
    )
    (segment,) = (filled / "segments").iterdir()
    assert (tmp_path / "new/segments" / segment.name).stat().st_ino == segment.stat().st_ino
    assert len(cli("ls", "--json", "--data", tmp_path / "new").json()["rows"]) == 1


def test_a_lost_master_key_does_not_matter_with_the_recovery_key(
    cli: Any, filled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli("backup", tmp_path / "b", "--segments", "--data", filled).code == 0
    other = tmp_path / "other.key"
    other.write_text(bytes(range(32)).hex())
    wrong = ("--set", f"keys.master_key=file:{other}")
    refused = cli("restore", tmp_path / "b", "--data", tmp_path / "new", *wrong)
    assert refused.code == 1
    assert "is not the key" in refused.err
    assert not (tmp_path / "new").exists()
    for step in (
        ("restore", tmp_path / "b", "--data", tmp_path / "new", "--with-recovery-key", *wrong),
        ("keys", "rotate-master", "--to", f"file:{other}", "--with-recovery-key", "--data", tmp_path / "new"),
    ):
        monkeypatch.setattr("sys.stdin", io.StringIO((tmp_path / "recovery").read_text() + "\n"))
        assert cli(*step).code == 0
    assert len(cli("ls", "--json", "--data", tmp_path / "new", *wrong).json()["rows"]) == 1


def test_what_cannot_be_a_backup_is_one_line(cli: Any, filled: Path, tmp_path: Path) -> None:
    assert cli("backup", filled / "inside", "--data", filled).err.startswith("error: ")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("x")
    for command in (("backup", tmp_path / "mine"), ("restore", tmp_path / "mine")):
        result = cli(*command, "--data", filled)
        assert result.code == 1
        assert result.err.count("\n") == 1
