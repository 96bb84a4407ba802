"""A real server routes to real peers: none is lost, whoever is killed, hangs, refuses or fills up."""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from benchmarks.peers.base import free_port
from pydicom.uid import ExplicitVRLittleEndian, generate_uid
from pynetdicom import AE, AllStoragePresentationContexts, evt
from pynetdicom.sop_class import CTImageStorage  # type: ignore[attr-defined]

from hounsfield.archive.app.asking import ask
from hounsfield.archive.dicom.part10 import file_header
from hounsfield.archive.errors import ControlError
from support.archives import ct_slice
from support.server import ArchiveServer, archive_server, until

STORESCP = shutil.which("storescp")


@dataclass
class Peer:
    """A storage SCP that notes what it gets. ``answer`` is asked for each object's status."""

    title: str
    port: int = 0
    got: list[str] = field(default_factory=list)
    objects: list[Any] = field(default_factory=list)
    answer: Callable[[int], int] = lambda _: 0
    delay_s: float = 0.0
    _server: Any = None

    def start(self) -> Peer:
        ae = AE(self.title)
        ae.supported_contexts = AllStoragePresentationContexts
        ae.maximum_associations = 10

        def stored(event: Any) -> int:
            time.sleep(self.delay_s)
            status = self.answer(len(self.got))
            if status == 0:
                self.objects.append(event.dataset)
                self.got.append(str(event.request.AffectedSOPInstanceUID))
            return status

        self._server = ae.start_server(
            ("127.0.0.1", self.port), block=False, evt_handlers=[(evt.EVT_C_STORE, stored)]
        )
        self.port = self._server.server_address[1]
        return self

    def stop(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server = None


@contextmanager
def peer(title: str, **more: Any) -> Iterator[Peer]:
    one = Peer(title, **more).start()
    try:
        yield one
    finally:
        one.stop()


def settings(routes: list[dict[str, Any]], *peers: tuple[str, int]) -> tuple[str, ...]:
    def toml(value: Any) -> str:
        if isinstance(value, dict):
            return "{" + ", ".join(f"{key} = {toml(one)}" for key, one in value.items()) + "}"
        if isinstance(value, list | tuple):
            return "[" + ", ".join(map(toml, value)) + "]"
        return json.dumps(value)

    aes = [{"title": title, "host": "127.0.0.1", "port": port} for title, port in peers]
    quick = {"back_off_seconds": 0.2, "back_off_seconds_max": 0.5}
    return (f"aes={toml(aes)}", f"routes={toml([{**quick, **one} for one in routes])}")


def write_files(folder: Path, count: int) -> list[str]:
    """Files to send, by name in the order of their numbers; the SOP Instance UIDs."""
    folder.mkdir(parents=True, exist_ok=True)
    study, series = generate_uid(), generate_uid()
    uids = []
    for number in range(count):
        uid = str(generate_uid())
        data = ct_slice(sop_uid=uid, study_uid=study, series_uid=series, number=number + 1)
        header = file_header(ExplicitVRLittleEndian, CTImageStorage, uid)
        (folder / f"{number:04}.dcm").write_bytes(header + data)
        uids.append(uid)
    return uids


def send(server: ArchiveServer, folder: Path) -> None:
    done = server.run(
        "send", "--associations", "1", "--window", "1", server.dicom_target, str(folder), data=False
    )
    assert done.returncode == 0, done.stderr


def test_killed_in_the_middle_nothing_is_lost_and_few_go_twice(tmp_path: Path) -> None:
    with peer("DEST", delay_s=0.01) as dest:
        config = settings([{"name": "all", "to": ["DEST"]}], ("DEST", dest.port))
        server = ArchiveServer(tmp_path / "server", settings=config)
        uids = write_files(tmp_path / "files", 100)
        kills = 0
        try:
            server.start()
            send(server, tmp_path / "files")
            for target in (30, 70):
                until(lambda target=target: len(dest.got) >= target, "objects")  # type: ignore[misc]
                server.kill_all()
                kills += 1
                server.start()
            until(lambda: set(dest.got) >= set(uids), "all objects")
            until(lambda: _status(server)[0]["queued"] == 0, "an empty queue")
            (lane,) = server.run_json("routes", "status")
            assert lane["sent"] == 100
            metrics = server.client.get("/metrics").text
            assert 'hounsfield_routing_sent_total{route="all",to="DEST"} 100.0' in metrics
            assert "Traceback" not in server.log_text()
        finally:
            server.kill_all()
        assert len(dest.got) - len(set(dest.got)) <= kills, "more than what was on its way went twice"
        first_of = list(dict.fromkeys(dest.got))
        assert first_of == uids, "the order in which they were stored is kept"


def test_bad_destinations_hold_up_nobody(tmp_path: Path) -> None:
    """One refuses connections, one hangs in the middle, one is full, one dies after every third object."""
    hangs, full = threading.Event(), threading.Event()

    def hanging(_: int) -> int:
        hangs.wait(60)
        return 0

    def filling(count: int) -> int:
        return 0xA700 if count >= 2 and not full.is_set() else 0

    with peer("GOOD") as good, peer("HANGS", answer=hanging) as hang, peer("FULL", answer=filling) as fill:
        dead = Peer("DEAD", free_port())
        titles = ["GOOD", "HANGS", "FULL", "DEAD"]
        addresses = [("GOOD", good.port), ("HANGS", hang.port), ("FULL", fill.port), ("DEAD", dead.port)]
        config = settings([{"name": "all", "to": titles}], *addresses)
        with archive_server(tmp_path / "server", *config) as server:
            uids = write_files(tmp_path / "files", 20)
            send(server, tmp_path / "files")
            until(lambda: good.got == uids, "what is sent to who is there")
            until(lambda: fill.got == uids[:2], "what there is room for")
            expected = {"GOOD": 0, "HANGS": 20, "FULL": 18, "DEAD": 20}

            def is_told() -> bool:  # an object is there before its answer is
                lanes = {one["to"]: one for one in _status(server)}
                return (
                    {to: one["queued"] for to, one in lanes.items()} == expected
                    and lanes["DEAD"]["failures"] > 1
                    and "A700H" in (lanes["FULL"]["error"] or "")
                )

            until(is_told, "what became of each")
            more = write_files(tmp_path / "more", 5)
            send(server, tmp_path / "more")
            until(lambda: good.got == uids + more, "what comes later")
            hangs.set()
            full.set()
            dead.start()
            try:
                for one in (hang, fill, dead):
                    until(lambda one=one: one.got == uids + more, f"what waited for {one.title}")  # type: ignore[misc]
            finally:
                dead.stop()
            assert "Traceback" not in server.log_text()


def _status(server: ArchiveServer) -> list[dict[str, Any]]:
    """What `hounsfield routes status` shows, without a process for each look."""
    found: list[dict[str, Any]] = ask(server.data / "control.sock", "routes-status")
    return found


@pytest.mark.skipif(STORESCP is None, reason="DCMTK is not installed")
def test_dcmtk_takes_what_is_routed_and_refusals_are_set_aside(tmp_path: Path) -> None:
    """A peer that takes other SOP classes only, then one that takes all; by the command line in between."""
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    with peer("PICKY", answer=lambda _: 0xC123) as picky:
        port = picky.port
        config = settings([{"name": "ct", "to": ["PICKY"], "match": {"Modality": "CT"}}], ("PICKY", port))
        with archive_server(tmp_path / "server", *config) as server:
            uids = write_files(tmp_path / "files", 6)
            send(server, tmp_path / "files")
            until(lambda: _status(server)[0]["set_aside"] == 6, "what is refused")
            queue = server.run_json("routes", "queue", "ct")
            assert {one["instance"] for one in queue["set_aside"]} == set(uids)
            assert {one["status"] for one in queue["set_aside"]} == {0xC123}
            picky.stop()
            assert server.terminate() == 0
            (lane,) = server.run_json("routes", "status")
            assert lane["set_aside"] == 6, "also without a server"
            assert server.run_json("routes", "pause", "ct")["lanes"] == 1
            assert server.run_json("routes", "retry", "ct")["objects"] == 6
            assert STORESCP is not None
            words = [STORESCP, "-aet", "PICKY", "-od", str(inbox), "+uf", str(port)]
            with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as scp:
                try:
                    server.start()
                    assert _status(server)[0]["paused"]
                    server.run_json("routes", "resume", "ct")
                    until(lambda: len(list(inbox.iterdir())) == 6, "files")
                    until(lambda: _status(server)[0]["set_aside"] == 0, "an empty list")
                finally:
                    scp.terminate()
            assert server.run("routes", "status", "nobody").returncode == 1
            assert "routes that are known: ct" in server.run("routes", "status", "nobody").stderr


class _WithFile(ArchiveServer):
    """A server that has a configuration file, which SIGHUP reads anew."""

    def command(self, ready_fd: int) -> list[str]:
        return [*super().command(ready_fd), "--config", str(self.file)]

    @property
    def file(self) -> Path:
        return self.directory / "config.toml"


def test_routes_and_coercions_are_loaded_anew_and_a_mistake_changes_nothing(tmp_path: Path) -> None:
    with peer("DEST") as dest:
        server = _WithFile(tmp_path / "server")
        server.directory.mkdir()
        ae = f'[[aes]]\ntitle = "DEST"\nhost = "127.0.0.1"\nport = {dest.port}\n'
        to = '[[routes]]\nname = "all"\nto = ["DEST"]\n'
        north = '[[coercions]]\nname = "north"\nset = { InstitutionName = "North" }\n'
        server.file.write_text(ae)
        try:
            server.start()
            before = write_files(tmp_path / "before", 2)
            send(server, tmp_path / "before")
            server.file.write_text(ae + to + north)
            ask(server.data / "control.sock", "reload")
            until(lambda: _status(server), "the route")
            uids = write_files(tmp_path / "files", 3)
            send(server, tmp_path / "files")
            until(lambda: dest.got == uids, "what was sent since")
            shown = dest.objects[0]
            assert shown.InstitutionName == "North"
            assert shown.OriginalAttributesSequence[0].ReasonForTheAttributeModification == "COERCE"
            server.file.write_text(
                ae + to + '[[routes]]\nname = "bad"\nto = ["X"]\nmatch = { Modalty = "CT" }\n'
            )
            with pytest.raises(ControlError, match=r"routes 'bad' match\.Modalty: nothing is called Modalty"):
                ask(server.data / "control.sock", "reload")
            more = write_files(tmp_path / "more", 2)
            send(server, tmp_path / "more")
            until(lambda: dest.got == uids + more, "what is sent as before")
            assert not set(before) & set(dest.got)
            done = server.run("config", "check", "--config", str(server.file))
            assert (done.returncode, "did you mean Modality?" in done.stderr) == (2, True)
        finally:
            server.kill_all()
