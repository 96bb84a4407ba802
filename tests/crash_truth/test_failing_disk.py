"""The disk refuses: full at every write, short writes, failed syncs, reads that fail. Of the running server.

Whatever is refused is answered so that its sender tries again, what was acknowledged stays and is served, and
when the disk is well again so is the archive, without a restart.
"""

from __future__ import annotations

import errno
import random
from collections.abc import Iterator
from contextlib import suppress

import pytest

from crash_truth.library import Do, On
from crash_truth.workload import Client, recorded_server
from hounsfield.archive.app.asking import ask
from hounsfield.archive.errors import ControlError
from support.server import until

OPERATIONS_MAX = 60  # of one small burst there are about a dozen
OUT_OF_RESOURCES = "A700"
TRIES = 4  # of a sender, once the disk is well


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A server that every test leaves well."""
    server = recorded_server(tmp_path_factory.mktemp("failing") / "server")
    client = Client(server, random.Random(5))
    try:
        server.start()
        client.store(client.objects(4))
        assert len(client.acked) == 4
        yield client
        assert server.terminate() == 0
        assert "Traceback" not in server.log_text()
    finally:
        if server.process is not None and server.process.poll() is None:
            server.kill_all()


def store_while_it_fails(client: Client, on: On, path: str, **fault: int) -> int:
    """Store a burst while the fault is armed, and again without; how often it happened."""
    recorder = client.server.recorder
    assert recorder is not None
    objects = client.objects(2, sizes=(9_000, 70_000))
    cut_off = client.cut_off
    recorder.arm(on, path, **fault)
    client.store(objects, associations=2)
    fired = recorder.fired()
    served = client.acked[0]
    assert client.server.dataset_bytes(served.study, served.series, served.sop) == served.data
    recorder.disarm()
    assert set(client.refused) <= {OUT_OF_RESOURCES}
    for _ in range(TRIES):  # a failed sync is told to each process that has the file open
        client.refused.clear()
        client.store(objects, associations=2)
        if not client.refused:
            break
    assert client.refused == []
    assert client.cut_off == cut_off, "an association was cut off"
    assert {one.sop for one in objects} <= {one.sop for one in client.acked}
    return fired


def check_all_there(client: Client) -> None:
    listed = client.server.listed()
    assert len(listed) == len(set(listed))
    assert {one.sop for one in client.acked} <= set(listed) <= {one.sop for one in client.sent}
    for one in {one.sop: one for one in client.acked}.values():
        assert client.server.dataset_bytes(one.study, one.series, one.sop) == one.data


@pytest.mark.parametrize(
    ("what", "on", "fault"),
    [
        ("full from then on", On.WRITE | On.NAME, {"error": errno.ENOSPC, "times": 1_000_000}),
        ("full once", On.WRITE | On.NAME, {"error": errno.ENOSPC}),
        ("fails once", On.WRITE | On.NAME, {"error": errno.EIO}),
        ("short once", On.WRITE, {"do": Do.SHORT, "short_bytes": 100}),
        ("sync fails once", On.SYNC, {"error": errno.EIO}),
        ("syncs fail from then on", On.SYNC, {"error": errno.EIO, "times": 1_000_000}),
    ],
)
@pytest.mark.parametrize("path", ["/segments/", "/index/", "/archive/"])
def test_at_every_operation(client: Client, what: str, on: On, path: str, fault: dict[str, int]) -> None:
    for number in range(OPERATIONS_MAX):
        if not store_while_it_fails(client, on, path, skip=number, **fault):
            break
    else:
        pytest.fail("the fault always happens: it was not the disk's")
    assert number > 0 or (path == "/index/" and on is On.SYNC)  # flushed twice a second, not by each burst
    check_all_there(client)


@pytest.mark.parametrize("times", [1, 3])
def test_the_index_cannot_be_flushed(client: Client, times: int) -> None:
    """Checkpoints fail beside the load; commits wait for one that succeeds, and nothing is lost for it."""
    recorder = client.server.recorder
    assert recorder is not None
    recorder.arm(On.SYNC, "/index/", times=times, error=errno.EIO)

    def met() -> bool:
        client.store(client.objects(2, sizes=(512,)), associations=2)  # what is held already needs no commit
        return recorder.fired() >= times

    until(met, "checkpoints that fail")
    assert set(client.refused) <= {OUT_OF_RESOURCES}
    client.refused.clear()
    store_while_it_fails(client, On.SYNC, "/nowhere/")
    check_all_there(client)


def test_a_new_segment_meets_a_full_disk(client: Client) -> None:
    """Its key, its name and its first write, each refused in turn."""
    for number in range(20):
        client.store(client.objects(4, sizes=(300_000,)), associations=2)  # fill the present one
        client.refused.clear()
        store_while_it_fails(client, On.WRITE | On.NAME | On.SYNC, "/keys/", skip=number, error=errno.ENOSPC)
    check_all_there(client)


def facts_of(client: Client) -> set[str]:
    return {str(row["title"]) for row in ask(client.server.data / "control.sock", "ae-list")}


@pytest.mark.parametrize(
    ("on", "fault"),
    [
        (On.WRITE, {"error": errno.ENOSPC}),
        (On.WRITE, {"do": Do.SHORT, "short_bytes": 100}),
        (On.SYNC, {"error": errno.EIO}),
    ],
)
@pytest.mark.parametrize("path", ["/ledger/", "/index/"])
def test_a_fact_is_recorded_or_refused(client: Client, on: On, path: str, fault: dict[str, int]) -> None:
    recorder = client.server.recorder
    assert recorder is not None
    for number in range(6):
        title = f"AE{random.Random(str((on, path, fault, number))).randrange(10**9)}"
        recorder.arm(on, path, skip=number, **fault)
        try:
            client.add_ae(title)
            added = True
        except ControlError:
            added = False
        recorder.disarm()
        assert (title in facts_of(client)) == added
        for _ in range(TRIES):
            with suppress(ControlError):
                client.add_ae(title + "B")
                break
        assert title + "B" in facts_of(client)


def is_registered(client: Client, number: str) -> bool:
    words = {"user": "a test", "path": {}, "body": None, "query": {"number": number}}
    found = ask(client.server.data / "control.sock", "ris.do", endpoint="SearchPatients", **words)["items"]
    assert len(found) < 2, "a record is there twice"
    return bool(found)


@pytest.mark.parametrize(
    ("on", "fault"),
    [(On.WRITE, {"error": errno.ENOSPC}), (On.WRITE, {"error": errno.EIO}), (On.SYNC, {"error": errno.EIO})],
)
@pytest.mark.parametrize("path", ["/ledger/", "/index/"])
def test_a_record_of_a_plugin_is_kept_or_refused(
    client: Client, on: On, path: str, fault: dict[str, int]
) -> None:
    recorder = client.server.recorder
    assert recorder is not None
    for skip in range(6):
        number = f"R{random.Random(str((on, path, fault, skip))).randrange(10**9)}"
        recorder.arm(on, path, skip=skip, **fault)
        try:
            client.register(number)
            registered = True
        except ControlError:
            registered = False
        recorder.disarm()
        assert is_registered(client, number) == registered
        for _ in range(TRIES):
            with suppress(ControlError):
                client.register(number + "B")
                break
        assert is_registered(client, number + "B")


def test_a_record_that_cannot_be_read_costs_itself(client: Client) -> None:
    recorder = client.server.recorder
    assert recorder is not None
    client.store(client.objects(2))
    segments = sorted((client.server.data / "segments").iterdir(), key=lambda path: path.stat().st_mtime)
    failing = segments[-1].name
    recorder.arm(On.READ, f"/segments/{failing}", times=1_000_000)
    failed = 0
    for one in {one.sop: one for one in client.acked}.values():
        path = f"/dicom-web/studies/{one.study}/series/{one.series}/instances/{one.sop}"
        answer = client.server.client.get(path, headers={"Accept": "application/dicom; transfer-syntax=*"})
        if answer.status_code == 200:
            assert answer.content.endswith(one.data)
        else:
            assert answer.status_code in {500, 503}
            assert one.sop not in answer.text
            failed += 1
    assert recorder.fired() > 0
    recorder.disarm()
    assert 0 < failed < len(client.acked)
    check_all_there(client)


def test_all_of_it_after_a_kill_and_a_start(client: Client) -> None:
    """What the disk refused left nothing behind that a start trips over."""
    client.server.kill_all()
    client.server.start()
    check_all_there(client)
    client.store(client.objects(2))
    assert client.refused == []
    until(lambda: all(one["ready"] for one in client.server.status()["workers"]), "both workers")
