"""A plugin that somebody else installed: it has what it was promised, and its defects are its own."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pynetdicom import AE, evt
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, CloseConnection, Event, RejectConnection, Request, TextMessage

from hounsfield.archive.app.asking import ask
from hounsfield.archive.errors import ControlError
from support.plugins import install
from support.server import ArchiveServer, archive_server, samples, until

FIND = "1.2.840.10008.5.1.4.31"
STEP = "1.2.840.10008.3.1.2.3.3"
SECRET = "SECRET^NAME"
TOKEN = "0123456789abcdef-of-a-test"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ArchiveServer]:
    folder = tmp_path_factory.mktemp("plugins")
    tokens = folder / "tokens"
    tokens.write_text(f"somebody:{TOKEN}\n")
    tokens.chmod(0o600)
    settings = (
        "plugins.notes.lines=[{}, {connections_max=2}]",
        "plugins.notes.count=200",
        f"http.bearer_token_file={tokens}",
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(install(folder / "site")))
        with archive_server(folder / "archive", *settings, workers=2) as running:
            running.client.headers["authorization"] = f"Bearer {TOKEN}"
            yield running
            assert SECRET not in running.log_text()


def call(server: ArchiveServer, operation: str, **words: Any) -> Any:
    return ask(server.data / "control.sock", f"notes.{operation}", **words)


# ---------------------------------------------------------------- DICOM


def associated(server: ArchiveServer, calling: str = "SOMEBODY") -> Any:
    entity = AE(ae_title=calling)
    entity.add_requested_context(FIND)
    entity.add_requested_context(STEP)
    association = entity.associate("127.0.0.1", server.dicom_port, ae_title="HOUNSFIELD")
    assert association.is_established
    return association


def words(text: str = "X") -> Dataset:
    dataset = Dataset()
    dataset.PatientName = text
    return dataset


def test_answers_stream_and_say_what_was_not_supported(server: ArchiveServer) -> None:
    association = associated(server)
    found = list(association.send_c_find(words(), FIND))
    assert [status.Status for status, _ in found] == [0xFF00, 0xFF01] * 100 + [0]
    assert all(identifier.PatientName == "X" for _, identifier in found[:-1])
    association.release()


def test_a_cancel_ends_answers_that_have_no_end(server: ArchiveServer) -> None:
    association = associated(server)
    found = []
    for status, _ in association.send_c_find(words("ENDLESS"), FIND, msg_id=7):
        found.append(status.Status)
        if len(found) == 5:
            association.send_c_cancel(7, query_model=FIND)
    assert found[-1] == 0xFE00
    association.release()


def test_refusals_and_defects_end_one_request(server: ArchiveServer) -> None:
    association = associated(server)
    assert [status.Status for status, _ in association.send_c_find(words("REFUSE"), FIND)] == [0xA700]
    assert [status.Status for status, _ in association.send_c_find(words("FAIL"), FIND)] == [0xC000]
    assert association.send_n_create(words("FAIL"), STEP, "1.2.9")[0].Status == 0x0110
    assert association.send_n_set(words(), STEP, "1.2.99")[0].Status == 0x0112
    assert association.send_c_echo if association.is_established else False
    association.release()


def test_steps_are_created_changed_and_shown(server: ArchiveServer) -> None:
    association = associated(server)
    status, created = association.send_n_create(words("MADE"), STEP, "1.2.3")
    assert (status.Status, created.PatientName) == (0, "MADE")
    assert association.send_n_create(words("AGAIN"), STEP, "1.2.3")[0].Status == 0x0111
    assert association.send_n_set(words("SET"), STEP, "1.2.3")[0].Status == 0
    status, shown = association.send_n_get([0x00100010], STEP, "1.2.3")
    assert (status.Status, status.AttributeIdentifierList) == (0, 0x00100010)
    assert shown.PatientName == "SET"  # written twice: the last one counts
    association.release()


def test_who_may_not_use_a_service_of_a_plugin_gets_no_context(server: ArchiveServer) -> None:
    add = ("ae", "add", "READER", "192.0.2.1:104", "--source", "127.0.0.1")
    unknown = server.run(*add, "--service", "nots")
    assert unknown.returncode == 2
    assert "there are echo, store, find, move, get, commit, notes, steps" in unknown.stderr
    assert server.run(*add, "--service", "notes").returncode == 0
    association = associated(server, "READER")
    assert [str(each.abstract_syntax) for each in association.accepted_contexts] == [FIND]
    association.release()


def test_others_are_told_in_a_syntax_that_they_take(server: ArchiveServer) -> None:
    """Implicit VR alone, as many a device speaks; the second request is refused."""
    heard: list[tuple[str, bytes]] = []

    def encoded(dataset: Dataset) -> bytes:
        file = DicomBytesIO()
        file.is_little_endian, file.is_implicit_VR = True, True
        write_dataset(file, dataset)
        return file.getvalue()

    def created(event: Any) -> tuple[int, Dataset]:
        heard.append(("create", encoded(event.attribute_list)))
        return 0x0000, event.attribute_list

    def changed(event: Any) -> tuple[int, Dataset]:
        heard.append(("set", encoded(event.modification_list)))
        return 0x0110, event.modification_list

    listening = AE(ae_title="MANAGER")
    listening.add_supported_context(STEP, "1.2.840.10008.1.2")
    handlers = [(evt.EVT_N_CREATE, created), (evt.EVT_N_SET, changed)]
    manager = listening.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
    try:
        port = manager.socket.getsockname()[1]
        assert server.run("ae", "add", "MANAGER", f"127.0.0.1:{port}").returncode == 0
        assert call(server, "send", title="MANAGER", uid="1.2.3") == [0, 0x0110]
    finally:
        manager.shutdown()
    head = b"\x08\x00\x60\x00\x02\x00\x00\x00"
    assert heard == [("create", head + b"CT"), ("set", head + b"MR")]
    with pytest.raises(ControlError, match="cannot reach MANAGER"):
        call(server, "send", title="MANAGER", uid="1.2.3")
    with pytest.raises(ControlError, match="no address is known of NOBODY"):
        call(server, "send", title="NOBODY", uid="1.2.3")


# ---------------------------------------------------------------- objects and events


def test_objects_are_kept_found_corrected_and_told_of(server: ArchiveServer, tmp_path: Path) -> None:
    (sample,) = samples(tmp_path, "CT_small.dcm")
    study, series, sop = sample.ids
    kept = call(server, "store", path=str(sample.path))
    assert kept == {"outcome": "stored", "study_uid": study, "series_uid": series, "sop_uid": sop}
    assert call(server, "store", path=str(sample.path))["outcome"] == "duplicate"
    (row,) = call(server, "search", level="instance", matches={"StudyInstanceUID": study})
    assert (row["Modality"], row["SOPInstanceUID"]) == ("CT", sop)
    assert row["PatientID"] == str(sample.dataset.PatientID)
    for wrong in ({"Patient": "X"}, {"PixelSpacing": "1"}, {"StudyDate": "yesterday"}):
        with pytest.raises(ControlError):
            call(server, "search", level="study", matches=wrong)
    number = call(server, "correct", study=study, description="CORRECTED")
    asked = {"StudyInstanceUID": study}
    assert call(server, "search", level="study", matches=asked)[0]["StudyDescription"] == "CORRECTED"
    call(server, "revert", number=number)
    assert call(server, "search", level="study", matches=asked)[0].get("StudyDescription") != "CORRECTED"
    call(server, "prefetch", name="4711")
    assert "notes/4711" in [each["name"] for each in ask(server.data / "control.sock", "tier-prefetches")]
    call(server, "add", text="an event")
    told = call(server, "events")
    assert "notes.noted" not in call(server, "events", new=True)
    assert {"instances-stored", "corrected", "notes.noted"} <= set(told)
    assert "prefetch" not in told
    feed = server.client.get("/changes", params={"limit": 1000}).json()["changes"]
    assert {each["kind"] for each in feed} <= {"instances-stored", "corrected", "study-stable"}


def test_a_file_that_is_none_is_refused(server: ArchiveServer, tmp_path: Path) -> None:
    file = tmp_path / "none.dcm"
    file.write_bytes(b"this is no DICOM file")
    with pytest.raises(ControlError, match="not a DICOM file"):
        call(server, "store", path=str(file))


# ---------------------------------------------------------------- HTTP


def test_routes_are_behind_the_guard_and_errors_are_problems(server: ArchiveServer) -> None:
    stranger = httpx.get(f"{server.client.base_url}/notes")
    assert stranger.status_code == 401
    answer = server.client.get("/notes").json()
    assert answer["who"] == "somebody"
    for path, status in (("/notes/wrong/asked", 418), ("/notes/wrong/defect", 500), ("/notes/nowhere", 404)):
        problem = server.client.get(path)
        assert problem.status_code == problem.json()["status"] == status
        assert problem.headers["content-type"] == "application/problem+json"
        assert SECRET not in problem.text
    assert server.client.post("/notes/").status_code == 405
    assert '<a href="/notes">' in server.client.get("/").text
    assert "hounsfield_notes_colours 1.0" in server.client.get("/metrics").text


def spoken(server: ArchiveServer, path: str, *headers: tuple[bytes, bytes]) -> list[Event]:
    """What comes on a web socket that says "behave"."""
    events: list[Event] = []
    client = WSConnection(ConnectionType.CLIENT)
    with socket.create_connection(server.address("http"), timeout=20) as sock:
        sock.sendall(client.send(Request(host="127.0.0.1", target=path, extra_headers=list(headers))))
        while not events or not isinstance(events[-1], CloseConnection | RejectConnection):
            data = sock.recv(4096)
            client.receive_data(data or None)
            for event in client.events():
                events.append(event)
                if isinstance(event, AcceptConnection):
                    sock.sendall(client.send(TextMessage("behave")))
            if not data:
                break
    return events


def test_web_sockets_are_behind_the_guard_too(server: ArchiveServer) -> None:
    token = (b"authorization", f"Bearer {TOKEN}".encode())
    accepted, text, *_ = spoken(server, "/notes/socket", token)
    assert isinstance(accepted, AcceptConnection)
    assert isinstance(text, TextMessage)
    assert text.data == "behave yourself"
    assert isinstance(spoken(server, "/notes/socket")[0], RejectConnection)
    assert isinstance(spoken(server, "/notes/nowhere", token)[0], RejectConnection)


# ---------------------------------------------------------------- sockets and commands


def test_listeners_are_shared_and_their_limit_is_the_archives(server: ArchiveServer) -> None:
    def connected() -> socket.socket:
        return socket.create_connection(server.address("notes.line1"), timeout=20)

    first, second = connected(), connected()
    for each in (first, second):
        each.sendall(b"one")
        assert each.recv(100) == b"line1:one"
    with connected() as third:
        assert third.recv(100) == b""  # over all workers
    second.sendall(b"FAIL")
    assert second.recv(100) == b""
    first.sendall(b"two")
    assert first.recv(100) == b"line1:two"
    first.close()
    second.close()
    with socket.create_connection(server.address("notes.line0"), timeout=20) as other:
        other.sendall(b"x")
        assert other.recv(100) == b"line0:x"


def test_commands_have_the_common_options(server: ArchiveServer) -> None:
    added = server.run("notes", "add", "by hand", "--json")
    assert (added.returncode, added.stderr) == (0, "")
    rows = server.run_json("notes", "list")
    assert any(row["text"].startswith("by hand") for row in rows)
    assert "Number" in server.run("notes", "list").stdout
    failed = server.run("notes", "fail")
    assert (failed.returncode, failed.stderr) == (1, "it cannot be done\nerror: it was not done\n")
    assert "notes" in server.run("--help", data=False).stdout
    near = server.run("nots", data=False)
    assert near.returncode == 2
    assert "did you mean notes?" in near.stderr


# ---------------------------------------------------------------- several workers, and the end


def test_a_killed_leader_is_succeeded_and_nothing_is_doubled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(install(tmp_path / "site")))
    settings = ("plugins.notes.lines=[{}]", "plugins.notes.ticks=true")
    with archive_server(tmp_path / "a", *settings, workers=4) as server:

        def followed() -> list[dict[str, Any]]:
            return [note for note in call(server, "every") if note["text"].endswith("!")]

        leaders = []
        for number in (1, 2):
            assert call(server, "add", text="note") == number
            until(lambda number=number: len(followed()) == number, "a leader follows")
            assert all(note["text"].count("!") == 1 for note in followed())
            leaders.append(int(followed()[-1]["text"].split()[1].strip("!")))
            assert leaders[-1] in server.worker_pids()
            psutil.Process(leaders[-1]).kill()
            until(lambda: leaders[-1] not in server.worker_pids(), "the supervisor sees it")
        assert len(set(leaders)) == 2
        ticks = call(server, "ticks")
        turns = [worker for worker, before in zip(ticks, [0, *ticks], strict=False) if worker != before]
        assert len(turns) == len(set(turns)), "two led at once"

        waiting = socket.create_connection(server.address("notes.line0"), timeout=20)
        waiting.sendall(b"x")
        assert waiting.recv(100) == b"line0:x"
        assert server.terminate() == 0  # a connection that says nothing keeps nobody
        assert waiting.recv(100) == b""
        waiting.close()
        # records and events outlive the index
        assert server.run("reindex").returncode == 0
        notes = server.run("notes", "list", "--json", "--set", "plugins.notes={}")
        assert notes.stdout.count("note ") == 2, notes.stderr
        assert server.run("fsck").returncode == 0
        backup, again = tmp_path / "backup", str(tmp_path / "again")
        assert server.run("backup", str(backup), "--segments").returncode == 0
        restored = server.run("restore", str(backup), "--data", again, data=False)
        assert restored.returncode == 0, restored.stderr
        words = ("notes", "list", "--json", "--set", "plugins.notes={}", "--data", again)
        assert server.run(*words, data=False).stdout == notes.stdout


FAULTS = {
    "start": "the plugin notes could not start: RuntimeError at hounsfield_notes.py",
    "check": "plugins.notes: this cannot be",
    "service": "the plugin notes provides 'other', which is not one of its services",
    "class": "a plugin's service notes is for 1.2.840.10008.5.1.4.1.1.2, the archive's own",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_plugin_that_fails_at_start_is_one_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(install(tmp_path / "site")))
    server = ArchiveServer(tmp_path / "a", 1, (f"plugins.notes.fail={fault}",))
    with pytest.raises(AssertionError):  # it says no ready line
        server.start()
    assert server.process is not None
    assert server.wait() in {1, 2}
    assert FAULTS[fault] in server.log_text()
    assert SECRET not in server.log_text()
    assert "Traceback" not in server.log_text()


def test_a_plugin_that_fails_at_a_later_start_says_why_and_ends_no_other_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a file that it needs and that was removed: who serves, serves on, and the rest when it is back."""
    monkeypatch.setenv("PYTHONPATH", str(install(tmp_path / "site")))
    fault = tmp_path / "fault"
    with archive_server(tmp_path / "a", f"plugins.notes.fail={fault}", workers=2) as server:
        fault.touch()
        victim = server.worker_pids()[0]
        psutil.Process(victim).kill()
        until(lambda: server.log_text().count(FAULTS["start"]) >= 2, "it is tried again")
        assert call(server, "every") == []
        assert server.client.get("/dicom-web/studies").json() == []
        assert sorted(one["ready"] for one in server.status()["workers"]) == [False, True]
        assert SECRET not in server.log_text()
        fault.unlink()
        until(lambda: all(one["ready"] for one in server.status()["workers"]), "both serve")


def test_a_leading_part_that_fails_is_begun_again_and_ends_no_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(install(tmp_path / "site")))
    with archive_server(tmp_path / "a", "plugins.notes.fail=leading", workers=1) as server:
        until(lambda: server.log_text().count("a part of a plugin failed") >= 2, "it is begun again")
        assert server.status()["workers"][0]["restarts"] == 0
        assert SECRET not in server.log_text()


def test_without_its_extra_a_plugin_is_only_missed_where_it_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = "import hounsfield_needs_this\n"
    monkeypatch.setenv("PYTHONPATH", str(install(tmp_path / "site", source, name="half", extras="more")))
    with archive_server(tmp_path / "a", workers=1) as server:
        assert server.run("ls").returncode == 0
        assert server.run("--help", data=False).returncode == 0
    for command in (("config", "check"), ("serve",)):
        refused = server.run(*command, "--set", "plugins.half={}")
        assert refused.returncode == 2
        assert "No module named 'hounsfield_needs_this'" in refused.stderr
        assert 'pip install "hounsfield_half[more]" brings what it needs' in refused.stderr
        assert refused.stderr.count("\n") == 1
