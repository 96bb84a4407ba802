"""Whatever happens in whatever order, the archive holds what a list of what was sent and deleted says."""

from __future__ import annotations

import random
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import trio
from pydicom.uid import ExplicitVRLittleEndian

from hounsfield.archive.dicom.levels import Level
from hounsfield.archive.dicom.query import parse_qido
from hounsfield.archive.engine.engine import EngineOptions, open_engine
from hounsfield.archive.engine.stores import Stores
from hounsfield.archive.engine.types import Outcome
from hounsfield.archive.index.deletion import Target
from hounsfield.archive.index.gathering import Gatherer, GatherLimits
from hounsfield.archive.index.packs import Packs, packs_of
from hounsfield.archive.index.rewriting import RewriteLimits, Rewriter
from hounsfield.archive.index.rows import InstanceRow, QuarantineRow
from hounsfield.archive.index.smaller_frames import SmallerLimits
from hounsfield.archive.index.tables import QUARANTINE, SERIES
from hounsfield.archive.index.use import uses
from hounsfield.codecs.at_rest import Encoding
from hounsfield.storage_backends.packs import checked
from support.archives import ct_slice, store, stores_in
from support.contents import contents

Uids = tuple[str, str, str]
NAMES = ["Alpha^A", "Beta^B"]
SEXES = ["F", None]
STEPS = ["new", "new", "new", "again", "back", "delete", "odd", "compact", "gather"]
LIMITS = RewriteLimits(group_bytes=8192, group_records=3)


@dataclass
class Model:
    """What should be there: for each instance every object kept, in the order received."""

    newest_current: bool
    objects: dict[Uids, list[tuple[int, bytes, str, str | None]]] = field(default_factory=dict)
    gone: list[tuple[Uids, bytes]] = field(default_factory=list)
    quarantined: int = 0
    sent: int = 0

    def store(self, uids: Uids, data: bytes, name: str, sex: str | None) -> Outcome:
        held = self.objects.setdefault(uids, [])
        if any(data == other for _, other, _, _ in held):
            return Outcome.DUPLICATE
        self.sent += 1
        held.append((self.sent, data, name, sex))
        return Outcome.STORED if len(held) == 1 else Outcome.CONFLICT

    def delete(self, chosen: list[Uids]) -> None:
        for uids in chosen:
            self.gone += [(uids, data) for _, data, _, _ in self.objects.pop(uids)]

    def served(self, uids: Uids) -> bytes:
        return self.objects[uids][-1 if self.newest_current else 0][1]

    def said(self, study: str) -> tuple[str, str]:
        """Name and sex of a study: the first received says, the next fill in."""
        first = sorted(held[0] for uids, held in self.objects.items() if uids[0] == study)
        return first[0][2], next((sex for _, _, _, sex in first if sex), "")


class History:
    """One history, operation by operation."""

    def __init__(self, directory: Path, seed: int) -> None:
        self.directory = directory
        self.source = random.Random(seed)
        policy = self.source.choice(["keep-first", "newest-current"])
        self.options = EngineOptions(duplicates=policy)
        self.model = Model(policy == "newest-current")
        self.data: dict[tuple[Uids, bytes], tuple[str, str | None]] = {}

    def new(self, uids: Uids) -> tuple[bytes, str, str | None]:
        name, sex = self.source.choice(NAMES), self.source.choice(SEXES)

        def change(data) -> None:  # type: ignore[no-untyped-def]
            if sex is None:
                del data.PatientSex

        pixels = self.source.randbytes(4) * 128
        data = ct_slice(
            study_uid=uids[0],
            series_uid=uids[1],
            sop_uid=uids[2],
            patient_name=name,
            pixels=pixels,
            change=change,
        )
        self.data[uids, data] = name, sex
        return data, name, sex

    def uids(self) -> Uids:
        study, series, number = (self.source.randrange(n) for n in (3, 2, 4))
        return f"2.25.{study}", f"2.25.{study}.{series}", f"2.25.{study}.{series}.{number}"

    async def act(self, stores: Stores) -> None:
        """A handful of operations in one life of the process."""
        async with open_engine(stores, self.options, owner="test") as engine:

            async def send(uids: Uids, data: bytes) -> None:
                expected = self.model.store(uids, data, *self.data[uids, data])
                assert (await store(engine, data, ExplicitVRLittleEndian)).outcome is expected

            for _ in range(self.source.randrange(1, 9)):
                held = list(self.model.objects)
                match self.source.choice(STEPS):
                    case "new":
                        uids = self.uids()
                        await send(uids, self.new(uids)[0])
                    case "again" if held:
                        uids = self.source.choice(held)
                        await send(uids, self.source.choice(self.model.objects[uids])[1])
                    case "back" if self.model.gone:
                        await send(*self.source.choice(self.model.gone))
                    case "delete" if held:
                        await self.delete(stores, self.source.choice(held))
                    case "odd":
                        await self.quarantine(stores, engine)
                    case "compact":
                        await trio.to_thread.run_sync(self.compact, stores)
                    case "gather":
                        await trio.to_thread.run_sync(self.gather, stores)
            page = await engine.search(parse_qido(Level.STUDY, [("limit", "100")]))
            found = {
                row.study[0x0020000D]: (row.study[0x00100010], row.study.get(0x00100040, ""))
                for row in page.rows
            }
            assert found == {
                study: self.model.said(study) for study in {uids[0] for uids in self.model.objects}
            }

    async def delete(self, stores: Stores, uids: Uids) -> None:
        level = self.source.choice(["study", "series", "instance", "version"])
        depth = {"study": 1, "series": 2, "instance": 3, "version": 3}[level]
        chosen = [one for one in self.model.objects if one[:depth] == uids[:depth]]
        target = Target(uids[0], uids[1] if depth > 1 else "", (uids[2],) if depth > 2 else ())
        if level == "version":
            number = self.source.randrange(len(self.model.objects[uids]))
            data = self.model.objects[uids][number][1]
            with stores.store.snapshot() as snapshot:
                served = stores.catalog.instance(snapshot, *uids)
                assert served is not None
                rows = [served, *stores.catalog.versions(snapshot, stores.catalog.instance_key(*uids))]
            (row,) = [row for row in rows if received(stores, row) == data]
            target = Target(*uids[:2], (uids[2],), version=row.location.record_id)
            self.model.objects[uids].pop(number)
            self.model.gone.append((uids, data))
            if not self.model.objects[uids]:
                del self.model.objects[uids]
        else:
            self.model.delete(chosen)
        stores.deletions.delete(target, reason="test", actor="test", now_ns=1)

    async def quarantine(self, stores: Stores, engine: Any) -> None:
        def spoil(data) -> None:  # type: ignore[no-untyped-def]
            del data.StudyInstanceUID

        with stores.store.snapshot() as snapshot:
            held = [key for key, _ in snapshot.scan(QUARANTINE)]
        if held and self.source.random() < 0.5:
            target = Target(quarantined=self.source.choice(held))
            stores.deletions.delete(target, reason="test", actor="test", now_ns=1)
            self.model.quarantined -= 1
        else:
            await store(engine, ct_slice(change=spoil), ExplicitVRLittleEndian)
            self.model.quarantined += 1

    def compact(self, stores: Stores) -> None:
        rewriter = Rewriter(stores.indexer, LIMITS)
        with stores.store.snapshot() as snapshot:
            todo = [segment for segment, _ in uses(snapshot)]
        if self.source.random() < 0.3:
            stores.log.start_anew()
        for segment in todo:
            rewriter.rewrite_segment(segment)

    def gather(self, stores: Stores) -> None:
        """Some series come into packs, smaller or not; some packs are made anew."""
        gatherer = Gatherer(stores.indexer, GatherLimits(8192, 3, 4000), compression=SmallerLimits(1, 9.0))
        with stores.store.snapshot() as snapshot:
            series = [key for key, _ in snapshot.scan(SERIES)]
            known = {key: {segment for segment, _ in packs_of(snapshot, key)} for key in series}
        for key in series:
            if self.source.random() < 0.7:
                encoding = self.source.choice([None, Encoding.ZSTD, Encoding.HTJ2K])
                renew = known[key] if self.source.random() < 0.3 else ()
                report = gatherer.gather(key, quiet_before_ns=1 << 62, recompress=encoding, renew=renew)
                assert not report.skipped

    def check(self, stores: Stores) -> dict[str, Any]:
        """The contents, which are what the model says."""
        found = contents(stores)
        with stores.store.snapshot() as snapshot:
            studies = {uids[0] for uids in self.model.objects}
            for study in studies:
                row = stores.catalog.study(snapshot, study)
                assert row is not None
                mine = [uids for uids in self.model.objects if uids[0] == study]
                assert (row.instances, row.series) == (len(mine), len({uids[1] for uids in mine}))
            for uids, held in self.model.objects.items():
                served = stores.catalog.instance(snapshot, *uids)
                assert served is not None
                assert received(stores, served) == self.model.served(uids)
                versions = stores.catalog.versions(snapshot, stores.catalog.instance_key(*uids))
                kept = {received(stores, one) for one in versions}
                assert kept == {data for _, data, _, _ in held} - {self.model.served(uids)}
                assert ("conflicting-version-kept" in served.flags) == (len(held) > 1)
            for key, held_row in snapshot.scan(QUARANTINE):
                stores.catalog.open_row(QUARANTINE, key, held_row, QuarantineRow)
        found["pack"] = {
            segment: (row.series_key, row.size, row.objects, row.made_ns, row.digest)
            for page in Packs(stores.store).pages()
            for segment, row in page
        }
        for segment, (_, size, objects, _, digest) in found["pack"].items():
            pieces = stores.log.stretches(segment, 0, size)
            end = checked(pieces, segment, stores.keyring.key("segment", segment.hex()))
            assert (end.objects, end.digest) == (objects, digest)
        assert len(found["study"]) == len(studies)
        assert len(found["instance"]) == len(self.model.objects)
        assert len(found["quarantine"]) == self.model.quarantined
        assert len(found["patient"]) == (1 if studies else 0)
        return found


def received(stores: Stores, row: InstanceRow) -> bytes:
    return b"".join(map(bytes, stores.indexer.objects.data_set(row.location, row.stored_as)))


@pytest.mark.parametrize("seed", range(6))
def test_any_history(tmp_path: Path, seed: int) -> None:
    history = History(tmp_path / "data", seed)
    with stores_in(history.directory, history.options) as stores:
        trio.run(history.act, stores)
        history.check(stores)
    for _ in range(5):
        with stores_in(history.directory, history.options) as stores:
            assert stores.catch_up(at_start=True).damaged == 0
            trio.run(history.act, stores)
            before = history.check(stores)
        if history.source.random() < 0.6:
            shutil.rmtree(history.directory / "index")
            with stores_in(history.directory, history.options) as stores:
                assert stores.reindex(lambda _done, _total: None).damaged == 0
                after = history.check(stores)
            for found in (before, after):
                for name in ("tombstone", "use"):  # of segments that are gone only the ledger knows
                    del found[name]
            assert after == before
