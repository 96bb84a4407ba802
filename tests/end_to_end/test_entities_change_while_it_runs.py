"""AEs, users and certificates of a running server, over its workers: changed, limited, seen in the audit."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from pydicom.data import get_testdata_file
from pynetdicom import AE, evt
from pynetdicom.pdu import A_ASSOCIATE_RJ
from pynetdicom.pdu_primitives import UserIdentityNegotiation

from hounsfield.archive.app.asking import ask
from support.pki import Authority
from support.server import HOUNSFIELD, ArchiveServer, archive_server, until

VERIFICATION = "1.2.840.10008.1.1"
CT_CLASS = "1.2.840.10008.5.1.4.1.1.2"
MR_CLASS = "1.2.840.10008.5.1.4.1.1.4"
LOCAL_LIMIT = (2, 3, 2)  # transient, presentation related, local limit exceeded (PS3.8 9.3.4)
REJECTED = (1, 2, 1)
CT = get_testdata_file("CT_small.dcm")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ArchiveServer]:
    with archive_server(tmp_path_factory.mktemp("entities")) as running:
        yield running


@contextmanager
def calling(
    server: ArchiveServer, title: str, *classes: str, user: tuple[str, str] | None = None
) -> Iterator[Any]:
    """An association of pynetdicom's, or what rejected it."""
    requestor = AE(title)
    for sop_class in classes or (VERIFICATION,):
        requestor.add_requested_context(sop_class)
    rejections: list[tuple[int, int, int]] = []

    def heard(event: Any) -> None:
        if isinstance(event.pdu, A_ASSOCIATE_RJ):
            rejections.append((event.pdu.result, event.pdu.source, event.pdu.reason_diagnostic))

    items = []
    if user is not None:
        item = UserIdentityNegotiation()
        item.user_identity_type = 2
        item.primary_field, item.secondary_field = (word.encode() for word in user)
        item.positive_response_requested = True
        items.append(item)
    made = requestor.associate(
        "127.0.0.1", server.dicom_port, ae_title="HOUNSFIELD", ext_neg=items,
        evt_handlers=[(evt.EVT_PDU_RECV, heard)],
    )  # fmt: skip
    try:
        yield made if made.is_established else rejections[0]
    finally:
        if made.is_established:
            made.release()


def change(server: ArchiveServer, *words: str, stdin: str | None = None) -> None:
    """Run a command that changes AEs or users: when it returns, every worker has taken it."""
    command = [*HOUNSFIELD, *words, "--data", str(server.data)]
    subprocess.run(command, input=stdin, text=True, check=True, env=server.environment, capture_output=True)


def open_associations(server: ArchiveServer) -> int:
    return int(server.status()["totals"]["associations"])


def test_a_command_returns_when_every_worker_knows(server: ArchiveServer) -> None:
    """An AE that was removed gets in nowhere from then on; one that was added is refused by nobody."""

    def outcomes() -> set[bool]:
        found = set()
        for _ in range(6):
            with calling(server, "GUEST") as made:
                found.add(made == REJECTED)
        return found

    control = server.data / "control.sock"
    for _ in range(8):
        ask(control, "ae-add", title="GUEST", identity_required=True)
        assert outcomes() == {True}
        ask(control, "ae-remove", title="GUEST")
        assert outcomes() == {False}


def test_an_entity_has_its_own_limit_over_all_workers(server: ArchiveServer) -> None:
    change(server, "ae", "add", "LIMITED")
    with ExitStack() as stack:
        opened = [stack.enter_context(calling(server, "LIMITED")) for _ in range(2)]
        change(server, "ae", "set", "LIMITED", "--associations-max", "3")  # those that are open count
        opened.append(stack.enter_context(calling(server, "LIMITED")))
        assert all(each.is_established for each in opened)
        with calling(server, "LIMITED") as beyond:
            assert beyond == LOCAL_LIMIT
        with calling(server, "OTHER") as another:
            assert another.is_established
        by_worker = [each["ready"] for each in server.status()["workers"]]
        assert by_worker == [True, True]
        opened[0].release()
        until(lambda: open_associations(server) == 2, "the end of one")
        with calling(server, "LIMITED") as again:
            assert again.is_established
        change(server, "ae", "set", "LIMITED", "--associations-max", "4")
        for _ in range(2):
            assert stack.enter_context(calling(server, "LIMITED")).is_established
        with calling(server, "LIMITED") as beyond:
            assert beyond == LOCAL_LIMIT
    until(lambda: open_associations(server) == 0, "the end of all")
    refused = [row for row in server.run_json("ae", "recent", "--refused") if row["calling_ae"] == "LIMITED"]
    assert {row["reason"]: row["count"] for row in refused} == {
        "more than 3 associations of this AE": 1,
        "more than 4 associations of this AE": 1,
    }


def test_an_entity_may_do_what_its_entry_says(server: ArchiveServer) -> None:
    def accepted(*classes: str) -> set[str]:
        """On several associations: every worker says the same."""
        answers = []
        with ExitStack() as stack:
            for _ in range(4):
                made = stack.enter_context(calling(server, "VIEWER", *classes))
                answers.append({str(context.abstract_syntax) for context in made.accepted_contexts})
        assert all(answer == answers[0] for answer in answers)
        return answers[0]

    everything = (VERIFICATION, CT_CLASS, MR_CLASS)
    change(server, "ae", "add", "VIEWER", "--service", "find", "--service", "echo")
    assert accepted(*everything) == {VERIFICATION}
    change(server, "ae", "set", "VIEWER", "--service", "store", "--refuse-sop-class", MR_CLASS)
    assert accepted(*everything) == {VERIFICATION, CT_CLASS}
    change(server, "ae", "set", "VIEWER", "--clear", "services", "--clear", "refused_sop_classes")
    assert accepted(*everything) == set(everything)
    assert "no 'colour' to clear" in server.run("ae", "set", "VIEWER", "--clear", "colour").stderr


def test_users_are_known_to_every_worker_at_once(server: ArchiveServer) -> None:
    def add(passcode: str) -> None:
        change(server, "ae", "user", "add", "reader", "--passcode-stdin", stdin=passcode)

    add("a good passcode")
    assert [user["name"] for user in server.run_json("ae", "user", "list")] == ["reader"]
    change(server, "ae", "add", "WORKSTATION", "--identity-required")
    for _ in range(3):
        with calling(server, "WORKSTATION", user=("reader", "a good passcode")) as made:
            assert made.is_established
        with calling(server, "WORKSTATION") as rejected:
            assert rejected == REJECTED
    add("another passcode")
    with calling(server, "WORKSTATION", user=("reader", "a good passcode")) as rejected:
        assert rejected == REJECTED
    with calling(server, "WORKSTATION", user=("reader", "another passcode")) as made:
        assert made.is_established
    of_reader = ("audit", "--user", "reader", "--what", "accepted")
    until(lambda: len(server.run_json(*of_reader)["records"]) == 4, "the records of both workers")
    everything = server.log_text() + json.dumps(server.run_json("audit"))
    assert "passcode" not in everything.replace("passcode or token", "").replace(
        "user name or passcode not recognized", ""
    ).replace("a user has to be named and proved", "")


@pytest.mark.peer("storescu")
def test_what_was_done_is_found_later(server: ArchiveServer) -> None:
    program = shutil.which("storescu")
    assert program is not None
    assert CT is not None
    words = [program, "-aet", "CT7", "-aec", "HOUNSFIELD", "127.0.0.1", str(server.dicom_port), CT, CT]
    subprocess.run(words, check=True, capture_output=True, env=server.environment)
    subprocess.run(
        [*words[:4], "NOBODY", *words[5:]], check=False, capture_output=True, env=server.environment
    )

    def of_ct7() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = server.run_json("audit", "--ae", "CT7", "--since", "1h")["records"]
        return found

    # each worker keeps its own some seconds before it writes them; the one that is asked writes its at once
    until(lambda: len(of_ct7()) == 3, "the records of both workers")
    by_kind = {record["what"]: record for record in of_ct7()}
    assert by_kind["refused"]["called_ae"] == "NOBODY"
    assert by_kind["refused"]["reason"] == "called AE title not recognized"
    assert by_kind["accepted"]["address"] == "127.0.0.1"
    ended = by_kind["ended"]
    assert (ended["reason"], ended["objects"]) == ("released", 2)
    assert ended["bytes_in"] > 2 * Path(CT).stat().st_size * 0.9
    assert not {"study", "instance", "patient"} & set(ended)
    feed = server.client.get("/changes")
    assert feed.status_code == 200
    assert "CT7" not in feed.text, "nothing for viewers"
    assert server.run("audit", "--since", "yesterday").returncode == 2
    assert "CT7" in server.run("audit", "--limit", "500").stdout


def test_the_audit_survives_the_end_of_the_server(tmp_path: Path) -> None:
    with archive_server(tmp_path, workers=1) as server:
        with calling(server, "CT8") as made:
            assert made.is_established
        until(lambda: open_associations(server) == 0, "its end")
        assert server.terminate() == 0  # before the next batch was due
        records = server.run_json("audit", "--ae", "CT8")["records"]
        assert [record["what"] for record in records] == ["ended", "accepted"]


def test_a_table_of_devices(server: ArchiveServer, tmp_path: Path) -> None:
    table = tmp_path / "devices.csv"
    table.write_text(
        "title,host,port,sources,services,identity_required\n"
        "T1,192.0.2.10,104,192.0.2.10 192.0.2.11,store commit,\n"
        "T2,,,192.0.2.20,,true\n",
        encoding="utf-8",
    )
    assert server.run("ae", "import", str(table)).returncode == 0
    first, second = (server.run_json("ae", "show", title) for title in ("T1", "T2"))
    assert first["sources"] == ["192.0.2.10", "192.0.2.11"]
    assert (first["services"], first["port"]) == (["commit", "store"], 104)
    assert (second["identity_required"], second["host"]) == (True, "")
    for text, words in (
        ("title,colour\nT3,red\n", "no column 'colour' is known"),
        ("title,port\nT3,104\nT4,many\n", "line 3: port"),
        ("title,services\nT3,print\n", "line 2: services"),
    ):
        table.write_text(text, encoding="utf-8")
        failed = server.run("ae", "import", str(table))
        assert failed.returncode == 2
        assert words in failed.stderr
    assert "T3" not in {ae["title"] for ae in server.run_json("ae", "list")}


def test_devices_are_asked_whether_they_are_there(server: ArchiveServer) -> None:
    host, port = server.address("dicom")
    for title, address in (("US", f"{host}:{port}"), ("GONE", "127.0.0.1:1")):
        assert server.run("ae", "add", title, address, "--called-title", "HOUNSFIELD").returncode == 0
    assert server.run("ae", "add", "SILENT").returncode == 0
    asked = server.run("ae", "test", "US", "GONE", "SILENT", "--json")
    assert asked.returncode == 4
    rows = {row["title"]: row for row in json.loads(asked.stdout)}
    assert (rows["US"]["answers"], rows["GONE"]["answers"]) == (True, False)
    assert "Connection refused" in rows["GONE"]["error"]
    assert rows["SILENT"]["error"] == "no address of it is known"
    assert server.run("ae", "test", "US").returncode == 0
    assert server.run("ae", "test", "STRANGER").returncode == 2


def test_certificates_are_renewed_without_a_restart(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "pki")
    shown = authority.sign("ARCHIVE", days=9)
    files = f'tls_certificate="{shown.pem}", tls_key="{shown.key}"'
    settings = (f'dicom.listeners=[{{host="127.0.0.1", port=0, {files}}}]',)
    with archive_server(tmp_path / "server", *settings, listens=("--http", "127.0.0.1:0")) as server:

        def echo(ca: Path) -> int:
            return server.run(
                "echo", server.dicom_target, "--tls", "--tls-ca", str(ca), data=False
            ).returncode

        assert echo(authority.pem) == 0
        (announced,) = [line for line in server.status()["announcements"] if line.endswith(": renew it")]
        assert "ends in 9 days: renew it" in announced
        until(lambda: server.status()["totals"]["tls_certificate_days"] == 8, "the gauge")

        good = shown.pem.read_bytes()
        shown.pem.write_text("nothing", encoding="ascii")
        server.signal(signal.SIGHUP)
        until(lambda: "the configuration was not loaded anew" in server.log_text(), "the refusal")
        assert server.run("ae", "add", "CT1").returncode == 0, "what has nothing to do with it goes on"
        assert echo(authority.pem) == 0
        shown.pem.write_bytes(good)

        other = Authority(tmp_path / "pki", "another")
        other.sign("ARCHIVE", file="archive", days=400)
        server.signal(signal.SIGHUP)
        until(lambda: "loaded AE lists, certificates and tokens anew" in server.log_text(), "the reload")
        until(lambda: echo(other.pem) == 0, "the new certificate")
        assert echo(authority.pem) != 0
        assert not [line for line in server.status()["announcements"] if line.endswith(": renew it")]
