"""What rotted or came broken is listed, shown and taken out, and names nobody unasked."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

import pydicom
import pytest
import trio

from hounsfield.archive.app.data_directory import open_data_directory
from hounsfield.archive.engine.engine import EngineOptions, open_engine
from hounsfield.archive.engine.stores import Stores
from hounsfield.archive.index import locations
from hounsfield.archive.index.rows import InstanceRow
from hounsfield.storage_backends.master_key import create_master_key_file
from support.archives import ct_slice, open_stores, store

EXPLICIT = "1.2.840.10008.1.2.1"
OPTIONS = EngineOptions(direct_writes=False)
SECRETS = ("Muster", "P-0001", "ACC-77", "1.2.77")


def _open(folder: Path) -> Stores:
    return open_stores(folder / "a", f"file:{folder}/state/hounsfield/development-master.key", OPTIONS)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole object, one without UIDs, a truncated one, and two under the same UIDs."""
    folder = tmp_path_factory.mktemp("template")
    create_master_key_file(folder / "state/hounsfield/development-master.key")
    open_data_directory(folder / "a", create=True).close()

    def no_uid(data: Any) -> None:
        del data.SOPInstanceUID

    async def fill() -> None:
        stores = _open(folder)
        async with open_engine(stores, OPTIONS, owner="a test") as engine:
            await store(engine, ct_slice(study_uid="1.2.77", sop_uid="1.2.77.1"), EXPLICIT)
            nameless = ct_slice(study_uid="1.2.77", change=no_uid)
            (folder / "nameless").write_bytes(nameless)
            await store(engine, nameless, EXPLICIT)
            truncated = ct_slice(study_uid="1.2.77", sop_uid="1.2.77.2")[:-100]
            (folder / "truncated").write_bytes(truncated)
            await store(engine, truncated, EXPLICIT)
            for _ in range(2):
                await store(
                    engine, ct_slice(study_uid="1.2.77", series_uid="1.5", sop_uid="1.2.77.3"), EXPLICIT
                )
        stores.close()

    trio.run(fill)
    return folder


@pytest.fixture
def filled(cli: Any, template: Path, tmp_path: Path) -> Path:
    shutil.copytree(template, tmp_path, dirs_exist_ok=True)
    return tmp_path / "a"


def _damage(tmp_path: Path, sop_uid: str) -> None:
    stores = _open(tmp_path)
    (place,) = [
        one.row.location
        for _, rows in locations.walk(stores.store, stores.catalog)
        for one in rows
        if isinstance(one.row, InstanceRow) and one.row.sop_uid == sop_uid
    ]
    stores.close()
    path = tmp_path / "a/segments" / place.segment.hex()
    raw = bytearray(path.read_bytes())
    raw[place.offset + place.ref().length - 40] ^= 1
    path.write_bytes(raw)


def test_each_sort_is_listed_and_names_nobody(cli: Any, filled: Path, tmp_path: Path) -> None:
    _damage(tmp_path, "1.2.77.1")
    scrubbed = cli("scrub", "start", "--data", filled, "--json")
    assert scrubbed.code == 4
    assert len(scrubbed.json()["damaged"]) == 1
    listed = cli("quarantine", "list", "--data", filled, "--json")
    assert listed.code == 0
    by_kind = {one["kind"]: one for one in listed.json()["objects"]}
    assert sorted(one["kind"] for one in listed.json()["objects"]) == [
        "conflict",
        "damaged",
        "quarantined",
        "spoilt",
    ]
    assert "truncated" in by_kind["spoilt"]["reasons"]
    assert by_kind["quarantined"]["reasons"] == ["missing-sop-instance-uid"]
    assert by_kind["damaged"]["reasons"] == ["does not open"]
    shown = cli("quarantine", "list", "--data", filled)
    everything = listed.out + shown.out + shown.err + scrubbed.out
    assert not [secret for secret in SECRETS if secret in everything]
    only = cli("quarantine", "list", "--kind", "damaged", "--identify", "--json", "--data", filled).json()
    assert [one["instance"] for one in only["objects"]] == ["1.2.77.1"]
    assert only["objects"][0]["study"] == "1.2.77"
    limited = cli("quarantine", "list", "--limit", "2", "--json", "--data", filled).json()
    assert (len(limited["objects"]), limited["more"]) == (2, True)


def test_an_object_is_shown_and_its_patient_only_when_asked(cli: Any, filled: Path) -> None:
    (one,) = cli("quarantine", "list", "--kind", "quarantined", "--json", "--data", filled).json()["objects"]
    shown = cli("quarantine", "show", one["record"], "--json", "--data", filled)
    assert shown.json()["problems"]
    assert shown.json()["from"]["protocol"] == "import"
    assert not [secret for secret in SECRETS if secret in shown.out]
    assert cli("quarantine", "show", one["record"], "--data", filled).code == 0
    named = cli("quarantine", "show", one["record"], "--identify", "--json", "--data", filled).json()
    assert named["attributes"]["00100020"] == "P-0001"


def test_objects_are_taken_out_as_they_came(cli: Any, filled: Path, tmp_path: Path) -> None:
    listed = cli("quarantine", "list", "--json", "--data", filled).json()["objects"]
    records = {one["kind"]: one["record"] for one in listed}
    out = tmp_path / "out"
    assert cli("quarantine", "export", *records.values(), "--raw", "--to", out, "--data", filled).code == 0
    assert (out / f"{records['quarantined']}.bin").read_bytes() == (tmp_path / "nameless").read_bytes()
    assert (out / f"{records['spoilt']}.bin").read_bytes() == (tmp_path / "truncated").read_bytes()
    done = cli("quarantine", "export", records["conflict"], "--to", out, "--json", "--data", filled)
    assert (done.code, done.json()["written"]) == (0, 1)
    data = pydicom.dcmread(io.BytesIO((out / f"{records['conflict']}.dcm").read_bytes()))
    assert data.SOPInstanceUID == "1.2.77.3"
    assert cli("quarantine", "export", records["quarantined"], "--to", out, "--data", filled).code == 0
    some = cli("quarantine", "export", "ab" * 16, records["conflict"], "--to", out, "--data", filled)
    assert some.code == 4
    assert cli("quarantine", "export", "no hex", "--to", out, "--data", filled).code == 1


def test_damage_is_repaired_from_a_backup(cli: Any, filled: Path, tmp_path: Path) -> None:
    assert cli("backup", tmp_path / "b", "--segments", "--data", filled).code == 0
    _damage(tmp_path, "1.2.77.1")
    assert cli("scrub", "start", "--data", filled).code == 4
    status = cli("scrub", "status", "--data", filled)
    assert status.code == 4
    assert "scrub.copies" in status.err
    copies = f'scrub.copies=["{tmp_path / "b"}"]'
    mended = cli("scrub", "start", "--data", filled, "--set", copies)
    assert mended.code == 0
    assert cli("scrub", "status", "--data", filled).code == 0
    assert cli("scrub", "status", "--data", filled, "--json").json()["damaged"] == []
    assert cli("fsck", "--data", filled, "--json").code == 0


def test_one_segment_can_be_named(cli: Any, filled: Path) -> None:
    (segment,) = (filled / "segments").iterdir()
    assert cli("scrub", "start", "--segment", segment.name, "--data", filled).code == 0
    status = cli("scrub", "status", "--json", "--data", filled).json()
    assert status["verified"] == 1
    wrong = cli("scrub", "start", "--segment", "00" * 16, "--data", filled)
    assert wrong.code == 1
    assert wrong.err.count("\n") == 1
