"""What must hold after any power cut: start as a server does, then look at everything that was promised."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from crash_truth.trace import Entry, Kind
from crash_truth.workload import ISSUER, PATIENT, SETTINGS
from hounsfield.archive.app.ae_registry import FACT_KIND
from hounsfield.archive.app.data_directory import open_data_directory
from hounsfield.archive.app.engine_options import engine_options
from hounsfield.archive.app.keys import open_keyring, open_master_key
from hounsfield.archive.config import Config
from hounsfield.archive.config.load import load_config
from hounsfield.archive.dicom.levels import Level
from hounsfield.archive.dicom.query import parse_qido
from hounsfield.archive.engine.group_commit import GroupCommit, Received
from hounsfield.archive.engine.receiving import scanned
from hounsfield.archive.engine.records import Records
from hounsfield.archive.engine.stores import Stores
from hounsfield.archive.engine.types import Outcome, Source, StoreResult
from hounsfield.archive.index.planner import FoundRow
from hounsfield.archive.index.rows import InstanceRow
from hounsfield.ris_plugin.patients import owner
from hounsfield.ris_plugin.records.patients import PATIENT as RECORD
from support.archives import ct_slice

STUDY_UID, SERIES_UID, SOP_UID, PATIENT_ID = 0x0020000D, 0x0020000E, 0x00080018, 0x00100020
STUDY_SERIES, STUDY_INSTANCES, SERIES_INSTANCES = 0x00201206, 0x00201208, 0x00201209


class BrokenPromiseError(AssertionError):
    """Something acknowledged is not there, or something is there in part."""


def require(condition: object, what: str) -> None:
    if not condition:
        raise BrokenPromiseError(what)


@dataclass
class Promises:
    """What clients asked for and were told, up to some entry of a log."""

    sent: dict[str, tuple[str, str, set[str]]] = field(default_factory=dict)
    """SOP Instance UID → study, series, digests of what was sent under it."""
    acked: dict[str, set[str]] = field(default_factory=dict)
    deleted: dict[str, bool] = field(default_factory=dict)
    """SOP Instance UID → whether the deletion was acknowledged, not only asked for."""
    facts: dict[str, set[bool]] = field(default_factory=dict)
    """Name → which states it may be in."""
    count: int = 0
    """How many notes were taken: promises grow with it."""

    def take(self, entry: Entry) -> None:
        if entry.kind is not Kind.NOTE:
            return
        note = entry.note
        if "sent" in note:
            self.sent.setdefault(note["sent"], (note["study"], note["series"], set()))[2].add(note["digest"])
        elif "acked" in note:
            self.acked.setdefault(note["acked"], set()).add(note["digest"])
            self.count += 1
        elif "deletes" in note:
            self.deleted.update(dict.fromkeys(note["deletes"], False))
        elif "deleted" in note:
            self.deleted.update(dict.fromkeys(note["deleted"], True))
            self.count += 1
        elif "wants" in note:
            self.facts.setdefault(note["wants"], {False}).add(note["there"])
        elif "done" in note:
            self.facts[note["done"]] = {note["there"]}
            self.count += 1


def configuration(data: Path) -> Config:
    return load_config(None, [f'archive.data="{data}"', *SETTINGS])


@contextmanager
def started(disk: Path, *, reindexed: bool = False) -> Iterator[Stores]:
    """The archive below ``disk`` as the first worker of a server has it when it begins to serve.

    ``reindexed``: with an index made anew, as ``hounsfield reindex`` makes it.
    """
    os.environ["XDG_STATE_HOME"] = str(disk / "state")
    config = configuration(disk / "archive")
    directory = open_data_directory(disk / "archive", create=True)
    try:
        master = open_master_key(config, directory.path)
        keyring = open_keyring(directory.path, master, create=True)
        stores = Stores.open(directory.path, keyring, engine_options(config, workers=2))
        try:
            if reindexed:
                stores.reindex(lambda *_: None)
            else:
                stores.catch_up(at_start=True)
            yield stores
        finally:
            stores.close()
    finally:
        directory.close()


def found_rows(stores: Stores, level: Level, *parameters: tuple[str, str]) -> list[FoundRow]:
    return list(stores.planner.find(parse_qido(level, list(parameters))))


def bytes_of(records: Records, row: InstanceRow) -> bytes:
    return b"".join(bytes(buffer) for pieces in records.pieces(row) for buffer in pieces)


def check(disk: Path, promises: Promises, *, thorough: bool = False) -> None:
    """Raise unless the archive below ``disk`` starts, keeps promises, shows nothing in part, and goes on."""
    with started(disk) as stores:
        check_objects(stores, promises)
        check_counts(stores)
        check_facts(stores, promises)
        added = store_one(stores, ct_slice())
        require(added.outcome is Outcome.STORED, f"a new object was not stored but {added.outcome}")
    for reindexed in (False, True) if thorough else ():
        # A second start finds the same, and the new object; so does an index made from segments and ledger.
        if reindexed:
            shutil.rmtree(disk / "archive" / "index")
        with started(disk, reindexed=reindexed) as stores:
            check_objects(stores, promises, also=added.sop_instance_uid)
            check_counts(stores)
            check_facts(stores, promises)


def check_objects(stores: Stores, promises: Promises, also: str = "") -> None:
    served: dict[str, set[str]] = {}
    records = Records(stores.indexer)
    for found in found_rows(stores, Level.INSTANCE):
        assert found.series is not None
        assert found.instance is not None
        study, series = found.study[STUDY_UID], found.series[SERIES_UID]
        sop = found.instance[SOP_UID]
        require(sop not in served, "an object is listed twice")
        with stores.store.snapshot() as snapshot:
            row = stores.catalog.instance(snapshot, study, series, sop)
            require(row is not None, "an object is listed and not to be had")
            assert row is not None
            key = stores.catalog.instance_key(study, series, sop)
            versions = stores.catalog.versions(snapshot, key)
        data = bytes_of(records, row)
        require(bytes(records.frame(row, 1).data) in data, "a frame is not the object's")
        served[sop] = {hashlib.sha256(data).hexdigest()}
        served[sop] |= {hashlib.sha256(bytes_of(records, one)).hexdigest() for one in versions}
        if sop != also:
            require(sop in promises.sent, "an object is listed that was never sent")
            require(served[sop] <= promises.sent[sop][2], "an object has bytes that were never sent")
    for sop, digests in promises.acked.items():
        if sop in promises.deleted:
            require(sop not in served or not promises.deleted[sop], "a deleted object is there again")
            if sop not in served:
                continue
        require(sop in served, f"an acknowledged object is lost ({sop[-6:]})")
        require(digests <= served[sop], f"an acknowledged object's bytes are lost ({sop[-6:]})")
        study, series, _ = promises.sent[sop]
        for level, parameter in (
            (Level.SERIES, ("SeriesInstanceUID", series)),
            (Level.STUDY, ("PatientID", study[-8:])),
        ):
            require(found_rows(stores, level, parameter), f"an acknowledged object's {level} is not found")
    if also:
        require(also in served, "what was stored after the recovery is lost")


def check_counts(stores: Stores) -> None:
    instances = Counter(found.study[STUDY_UID] for found in found_rows(stores, Level.INSTANCE))
    series_of = Counter[str]()
    for found in found_rows(stores, Level.SERIES):
        assert found.series is not None
        series_of[found.study[STUDY_UID]] += 1
        uid = found.series[SERIES_UID]
        listed = len(found_rows(stores, Level.INSTANCE, ("SeriesInstanceUID", uid)))
        require(listed == int(found.series[SERIES_INSTANCES]), "a series says another number than it has")
    for found in found_rows(stores, Level.STUDY):
        uid = found.study[STUDY_UID]
        require(
            int(found.study[STUDY_INSTANCES]) == instances[uid], "a study says another number than it has"
        )
        require(int(found.study[STUDY_SERIES]) == series_of[uid], "a study says another number of series")


def check_facts(stores: Stores, promises: Promises) -> None:
    with stores.store.snapshot() as snapshot:
        known = {str(body["title"]) for body in stores.journal.state(snapshot, FACT_KIND)}
        view = stores.plugin_records.view("ris", snapshot)
        patients = [one.identifiers[0].value for _, one in view.every(RECORD)]
        for number in patients:
            require(owner(view, number, ISSUER) is not None, "a record is there and not found by its key")
        require(len(patients) == len(set(patients)), "a record is there twice")
        known |= {f"{PATIENT}{number}" for number in patients}
    for name, states in promises.facts.items():
        require((name in known) in states, f"a fact is {'there' if name in known else 'lost'}: {name}")
    require(known <= set(promises.facts), "a fact is there that nobody asked for")


def received(data: bytes) -> Received:
    return scanned(memoryview(data), str(ExplicitVRLittleEndian), str(CTImageStorage), "", Source("import"))


def store_one(stores: Stores, data: bytes) -> StoreResult:
    (fate,) = GroupCommit(stores.indexer).store([received(data)])
    if isinstance(fate, Exception):
        raise BrokenPromiseError("the recovered archive takes nothing more") from fate
    return fate
