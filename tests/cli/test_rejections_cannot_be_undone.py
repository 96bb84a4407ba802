"""``hounsfield reject`` shows what notes took out of sight, brings it back, deletes it when told to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trio
from pydicom.uid import ExplicitVRLittleEndian

from hounsfield.archive.app.offline import open_stores
from hounsfield.archive.config import load_config
from hounsfield.archive.engine.engine import EngineOptions, open_engine
from support.archives import ct_slice, store
from support.rejection import EXPIRED, SAFETY, note

STUDY, SERIES, NOTE = "1.2.840.99.1", "1.2.840.99.1.1", "1.2.840.99.9"


@pytest.fixture
def filled(archive: Path) -> Path:
    """A study of two instances; a note rejected one of them."""
    put(
        archive,
        ct_slice(study_uid=STUDY, series_uid=SERIES, sop_uid=f"{SERIES}.1"),
        ct_slice(study_uid=STUDY, series_uid=SERIES, sop_uid=f"{SERIES}.2"),
        note({STUDY: {SERIES: [f"{SERIES}.1"]}}, SAFETY, sop_uid=NOTE),
    )
    return archive


def put(archive: Path, *sent: bytes) -> None:
    async def fill(stores: Any) -> None:
        async with open_engine(stores, EngineOptions(), owner="test") as engine:
            for data in sent:
                await store(engine, data, ExplicitVRLittleEndian)

    with open_stores(load_config(None, [f'archive.data="{archive}"'])) as stores:
        trio.run(fill, stores)


def instances(cli: Any, data: Path) -> str:
    (row,) = cli("ls", "--data", data, "--json").json()["rows"]
    return str(row["study"]["00201208"])


def test_it_is_listed_undone_and_followed_again(cli: Any, filled: Path) -> None:
    assert instances(cli, filled) == "1"
    (made,) = cli("reject", "list", "--data", filled, "--json").json()
    assert (made["reason"], made["studies"], made["note"]) == ("patient-safety", [STUDY], NOTE)
    assert (made["hidden"], made["named"]) == (2, 2)  # one instance, and the note
    table = cli("reject", "list", "--data", filled)
    assert "patient-safety" in table.out
    number = made["id"]
    undone = cli("reject", "undo", number, "--reason", "mistaken", "--data", filled)
    assert undone.code == 0
    assert NOTE in undone.err
    assert instances(cli, filled) == "3"
    assert cli("reject", "list", "--data", filled, "--json").json() == []
    (kept,) = cli("reject", "list", "--all", "--data", filled, "--json").json()
    assert (kept["undone_because"], kept["in_force"], kept["hidden"]) == ("mistaken", False, 0)
    again = cli("reject", "undo", number, "--reason", "mistaken", "--data", filled)
    assert again.code == 1
    assert "undone already" in again.err
    assert cli("reject", "apply", NOTE, "--data", filled).code == 0
    assert instances(cli, filled) == "1"
    twice = cli("reject", "apply", NOTE, "--data", filled)
    assert twice.code == 1
    assert "followed already" in twice.err


def test_nonsense_is_refused(cli: Any, filled: Path) -> None:
    for what in (("undo", 99, "--reason", "x"), ("apply", "1.2.3"), ("apply", f"{SERIES}.2")):
        result = cli("reject", *what, "--data", filled)
        assert result.code == 1
        assert "Traceback" not in result.err
    (made,) = cli("reject", "list", "--data", filled, "--json").json()
    assert cli("reject", "delete", made["id"], "--reason", " ", "--yes", "--data", filled).code == 2
    assert (
        cli("reject", "delete", made["id"], "--reason", "over", "--data", filled).code == 2
    )  # nobody to ask


def test_what_is_hidden_is_deleted_only_when_no_hold_is_on_it(cli: Any, filled: Path) -> None:
    put(filled, note({STUDY: {SERIES: [f"{SERIES}.2"]}}, EXPIRED))
    hold = cli("hold", "add", "--study", STUDY, "--reason", "a case", "--data", filled, "--json").json()
    expired = cli("reject", "list", "--data", filled, "--json").json()[1]
    delete = ("reject", "delete", expired["id"], "--reason", "over", "--yes", "--data", filled)
    refused = cli(*delete)
    assert refused.code == 1
    assert "on legal hold" in refused.err
    assert cli("hold", "release", hold["hold_id"], "--reason", "over", "--data", filled).code == 0
    assert "deleted objects: 2" in cli(*delete).err
    assert [one["hidden"] for one in cli("reject", "list", "--data", filled, "--json").json()] == [2, 0]
    checked = cli("fsck", "--data", filled)
    assert checked.code == 0, checked.out
