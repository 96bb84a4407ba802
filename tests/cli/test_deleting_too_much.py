"""`delete`, `hold` and `compact`: nobody deletes by mistake, and what is held stays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trio
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from hounsfield.archive.engine.engine import EngineOptions, open_engine
from hounsfield.archive.engine.stores import Stores
from support.archives import ct_slice, store

REASON = ("--reason", "test")


@pytest.fixture
def stored(cli: Any, archive: Path) -> tuple[Path, str, str]:
    """An archive with a study of two series of two instances; its UID and that of a series."""
    from hounsfield.archive.app.offline import open_stores
    from hounsfield.archive.cli.options import effective_config

    study, series = str(generate_uid()), [str(generate_uid()), str(generate_uid())]

    async def fill(stores: Stores) -> None:
        async with open_engine(stores, EngineOptions(), owner="test") as engine:
            for uid in series * 2:
                await store(engine, ct_slice(study_uid=study, series_uid=uid), ExplicitVRLittleEndian)

    with open_stores(effective_config(None, (), str(archive))) as stores:
        trio.run(fill, stores)
    return archive, study, series[0]


def test_delete_asks_shows_and_deletes(cli: Any, stored: tuple[Path, str, str]) -> None:
    archive, study, series = stored
    assert cli("delete", study, "--data", archive).code == 2, "a reason is needed"
    assert "give --yes" in cli("delete", study, *REASON, "--data", archive).err
    dry = cli("delete", study, *REASON, "--dry-run", "--json", "--data", archive).json()
    assert (dry["instances"], dry["series"], dry["studies"], dry["dry_run"]) == (4, 2, 1, True)
    wrong = cli("delete", generate_uid(), *REASON, "--yes", "--data", archive)
    assert (wrong.code, wrong.err) == (1, "error: no such study in this archive\n")
    done = cli("delete", study, "--series", series, *REASON, "--yes", "--data", archive)
    assert done.code == 0
    assert done.err.startswith("deleted 2 instances: 1 whole series (")
    assert [row["study"]["00201208"] for row in cli("ls", "--json", "--data", archive).json()["rows"]] == [
        "2"
    ]
    assert "the whole study" in cli("delete", study, *REASON, "--yes", "--data", archive).err
    assert cli("ls", "--json", "--data", archive).json()["rows"] == []


def test_what_is_held_is_not_deleted(cli: Any, stored: tuple[Path, str, str]) -> None:
    archive, study, series = stored
    assert cli("hold", "add", *REASON, "--data", archive).code == 2
    first = cli("hold", "add", "--study", study, *REASON, "--json", "--data", archive).json()
    second = cli("hold", "add", "--patient", "P-0001", *REASON, "--json", "--data", archive).json()
    assert (first["studies"], second["studies"]) == (1, 1)
    other = cli("hold", "add", "--patient", "P-0001", "--issuer", "ELSEWHERE", *REASON, "--data", archive)
    assert "on nothing that is here now" in other.err
    cli("hold", "release", other.err.split()[1], *REASON, "--data", archive)
    assert "no Study Instance UID" in cli("hold", "add", "--study", "4711/8", *REASON, "--data", archive).err
    far = cli("hold", "add", "--study", study, *REASON, "--until", "2999-12-31", "--data", archive)
    assert far.code == 2
    assert "2262" in far.err
    ended = cli("hold", "add", "--study", study, *REASON, "--until", "2020-01-01", "--data", archive)
    assert ended.code == 1
    refused = cli("delete", study, "--series", series, *REASON, "--yes", "--data", archive)
    assert refused.code == 1
    assert first["hold_id"] in refused.err
    assert second["hold_id"] in refused.err
    assert "on legal hold" in cli("delete", study, *REASON, "--dry-run", "--data", archive).err
    assert len(cli("hold", "list", "--json", "--data", archive).json()) == 2
    assert cli("hold", "release", first["hold_id"], *REASON, "--data", archive).code == 0
    assert cli("hold", "release", first["hold_id"], *REASON, "--data", archive).code == 1
    assert second["hold_id"] in cli("delete", study, *REASON, "--yes", "--data", archive).err
    assert cli("hold", "release", second["hold_id"], *REASON, "--data", archive).code == 0
    assert len(cli("hold", "list", "--json", "--data", archive).json()) == 0
    assert len(cli("hold", "list", "--all", "--json", "--data", archive).json()) == 3
    assert cli("hold", "list", "--all", "--data", archive).code == 0
    assert cli("delete", study, *REASON, "--yes", "--data", archive).code == 0


def test_compact_gives_the_disk_back(cli: Any, stored: tuple[Path, str, str]) -> None:
    archive, study, series = stored
    cli("delete", study, "--series", series, *REASON, "--yes", "--data", archive)
    status = cli("compact", "status", "--json", "--data", archive).json()
    assert status["dead_records"] == 2
    assert cli("compact", "status", "--data", archive).code == 0
    assert cli("compact", "run", "--json", "--data", archive).json()["segments"] == [], "not due yet"
    before = {path.name for path in (archive / "segments").iterdir()}
    done = cli("compact", "run", "--now", "--json", "--data", archive).json()
    assert (done["removed"], done["segments"][0]["moved"]) == (1, 2)
    assert not before & {path.name for path in (archive / "segments").iterdir()}
    assert cli("compact", "status", "--json", "--data", archive).json()["dead_records"] == 0
    assert cli("ls", "--json", "--data", archive).json()["rows"][0]["study"]["00201208"] == "2"
