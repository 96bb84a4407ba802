"""Several senders, two workers, the same UIDs at the same moment: nothing is lost, nothing counted twice."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import trio
from pydicom import dcmread
from pydicom.filebase import DicomBytesIO
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from hounsfield.archive.engine.stores import Stores
from support.archives import encode, open_stores
from support.front_doors import Sender
from support.nonsense import CT, Parts, Uids
from support.server import ArchiveServer, archive_server

OBJECTS = 10
ASSOCIATIONS = 9
ROUNDS = 2


class Versions:
    """What is sent under one object's UIDs: one content in two syntaxes, and another content."""

    def __init__(self, number: int) -> None:
        root = f"1.2.826.0.1.3680043.9.5555.{number}"
        self.uids = Uids(f"{root}.1", f"{root}.2", f"{root}.3")
        self.explicit = Parts(self.uids).bytes()
        dataset = dcmread(DicomBytesIO(bytes(128) + b"DICM" + self.explicit), force=True)
        self.implicit = encode(dataset, ImplicitVRLittleEndian)
        self.other = Parts(self.uids).set(0x00100020, "LO", b"P-2 ").bytes()

    @property
    def sent(self) -> list[tuple[str, bytes]]:
        return [
            (ExplicitVRLittleEndian, self.explicit),
            (ImplicitVRLittleEndian, self.implicit),
            (ExplicitVRLittleEndian, self.other),
        ]


@contextlib.contextmanager
def stores_of(server: ArchiveServer) -> Iterator[Stores]:
    """The stores of a server that has ended, by its development key."""
    (key,) = [path for path in (server.directory / "state").rglob("*") if path.is_file()]
    stores = open_stores(server.data, f"file:{key}")
    try:
        yield stores
    finally:
        stores.close()


async def send_all(server: ArchiveServer, objects: list[Versions]) -> dict[str, list[int]]:
    """Everybody sends every object, in one order; the statuses heard, by SOP Instance UID."""
    heard: dict[str, list[int]] = {one.uids.sop: [] for one in objects}
    start = trio.Event()

    async def sender(number: int) -> None:
        stream = await trio.open_tcp_stream("127.0.0.1", server.dicom_port)
        async with stream:
            association = Sender(stream)
            await association.associate(((CT, ExplicitVRLittleEndian), (CT, ImplicitVRLittleEndian)))
            await start.wait()
            for _ in range(ROUNDS):
                for one in objects:
                    syntax, data = one.sent[number % 3]
                    answer = await association.store(CT, syntax, one.uids.sop, data)
                    heard[one.uids.sop].append(int(answer.status))

    async with trio.open_nursery() as nursery:
        for number in range(ASSOCIATIONS):
            nursery.start_soon(sender, number)
        start.set()
    return heard


async def test_the_same_uids_from_everywhere_at_once(tmp_path: Path) -> None:
    objects = [Versions(number) for number in range(OBJECTS)]
    with archive_server(tmp_path, workers=2) as server:
        heard = await send_all(server, objects)
        assert len({pid for pid in server.worker_pids() if pid}) == 2
        assert server.terminate() == 0
        kept = {one.uids.sop: kept_of(server, one) for one in objects}
        for one in objects:
            statuses = heard[one.uids.sop]
            assert len(statuses) == ASSOCIATIONS * ROUNDS
            assert set(statuses) == {0x0000, 0xB000}
            served, *beside = kept[one.uids.sop]
            everything = {served, *beside}
            assert everything <= {one.explicit, one.implicit, one.other}
            assert one.other in everything
            assert everything & {one.explicit, one.implicit}
            assert len(beside) == len(everything) - 1  # none twice
            assert len(beside) <= statuses.count(0xB000)  # each was said to somebody
        assert server.run("reindex").returncode == 0
        assert {one.uids.sop: kept_of(server, one) for one in objects} == kept


def kept_of(server: ArchiveServer, one: Versions) -> list[bytes]:
    """The data set that is served, then the versions kept beside it."""
    with stores_of(server) as stores, stores.store.snapshot() as snapshot:
        key = stores.catalog.instance_key(one.uids.study, one.uids.series, one.uids.sop)
        row = stores.catalog.instance(snapshot, one.uids.study, one.uids.series, one.uids.sop)
        assert row is not None
        rows = [row, *sorted(stores.catalog.versions(snapshot, key), key=lambda each: each.received_ns)]
        return [b"".join(map(bytes, stores.indexer.objects.data_set(each.location))) for each in rows]
