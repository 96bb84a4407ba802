"""``hounsfield find``, ``get``, ``move``, ``send``, ``commit`` against archives that others wrote."""

from __future__ import annotations

import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pydicom
import pytest
from benchmarks.peers.base import free_port
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset

from hounsfield.archive.cli.identifiers import model_of_keys, parse_keys, retrieval_identifiers
from hounsfield.archive.dicom import part10
from support.foreign_servers import Server, dcmqrscp, orthanc, storescp
from support.pki import Authority

NAMES = ["CT_small.dcm", "MR_small_implicit.dcm", "rtplan.dcm"]
HOUNSFIELD = (sys.executable, "-m", "hounsfield.archive.cli")


def _file(name: str) -> Path:
    path = get_testdata_file(name)
    assert path is not None
    return Path(path)


def _dataset(path: Path) -> bytes:
    raw = path.read_bytes()
    return raw[part10.split(raw).offset :]


CT = pydicom.dcmread(_file("CT_small.dcm"), stop_before_pixels=True)
MR = pydicom.dcmread(_file("MR_small_implicit.dcm"), stop_before_pixels=True)
STUDIES = {str(ds.StudyInstanceUID) for ds in map(pydicom.dcmread, map(_file, NAMES))}


@pytest.fixture(scope="module")
def destination(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with storescp(tmp_path_factory.mktemp("destination")) as server:
        yield server


@pytest.fixture(scope="module", params=[pytest.param("dcmqrscp"), pytest.param("Orthanc")])
def other(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, destination: Server
) -> Iterator[Server]:
    """An archive with some studies in it."""
    start = {"dcmqrscp": dcmqrscp, "Orthanc": orthanc}[request.param]
    with start(tmp_path_factory.mktemp("other"), {"DEST": destination.port}) as server:
        sent = subprocess.run(
            [*HOUNSFIELD, "send", server.target, *map(_file, NAMES)], capture_output=True, check=False
        )
        assert sent.returncode == 0, sent.stderr
        yield server


def _lines(result: Any) -> list[dict[str, Any]]:
    assert result.code == 0, result.err
    return [json.loads(line) for line in result.out.splitlines()]


def _values(answer: dict[str, Any], tag: str) -> Any:
    return answer[tag].get("Value", [None])[0]


# ---------------------------------------------------------------- find


@pytest.mark.peer("dcmqrscp", "Orthanc", "storescp")
def test_find_at_every_level(cli: Any, other: Server) -> None:
    studies = _lines(cli("find", other.target, "--json"))
    assert {_values(one, "0020000D") for one in studies} == STUDIES
    study = f"StudyInstanceUID={CT.StudyInstanceUID}"
    (series,) = _lines(cli("find", other.target, "--level", "series", study, "--json"))
    assert _values(series, "0020000E") == CT.SeriesInstanceUID
    image = cli(
        "find", other.target, "--level", "image", study, f"SeriesInstanceUID={CT.SeriesInstanceUID}", "--json"
    )
    assert _values(_lines(image)[0], "00080018") == CT.SOPInstanceUID
    patients = cli("find", other.target, "--level", "patient", "PatientID=4MR1", "--json")
    assert [_values(one, "00100010") for one in _lines(patients)] == [{"Alphabetic": "CompressedSamples^MR1"}]


@pytest.mark.peer("dcmqrscp", "Orthanc", "storescp")
def test_find_as_a_table_with_what_else_was_asked_for(cli: Any, other: Server) -> None:
    found = cli("find", other.target, "PatientName=CompressedSamples^CT*", "StudyTime", "0008,0090")
    assert found.code == 0, found.err
    assert str(CT.StudyInstanceUID) in found.out
    assert str(MR.StudyInstanceUID) not in found.out
    assert "StudyTime" in found.out
    assert "ReferringPhysicianName" in found.out
    nothing = cli("find", other.target, "PatientID=NOBODY")
    assert (nothing.code, nothing.out) == (0, "")
    assert "nothing to show" in nothing.err


@pytest.mark.peer("dcmqrscp")
def test_find_says_which_keys_were_not_matched(cli: Any, tmp_path: Path) -> None:
    """It returns what does not match a key that it does not support, as it may (PS3.4 C.2.2.1.3)."""
    step = "RequestAttributesSequence.ScheduledProcedureStepID"
    keys = (
        f"StudyInstanceUID={CT.StudyInstanceUID}",
        f"{step}=NO_SUCH_STEP",
        "Modality=CT",
    )
    with dcmqrscp(tmp_path) as server:
        assert cli("send", server.target, _file("CT_small.dcm")).code == 0
        result = cli("find", server.target, "--level", "series", *keys)
    assert result.code == 0, result.err
    assert str(CT.SeriesInstanceUID) in result.out
    (note,) = [line for line in result.err.splitlines() if line.startswith("note:")]
    assert note == f"note: 1 answers say nothing of {step}: {server.target} may not match it"


@pytest.mark.peer("dcmqrscp", "Orthanc", "storescp")
def test_find_stops_at_the_limit(cli: Any, other: Server) -> None:
    result = cli("find", other.target, "--limit", "1", "--json")
    assert len(_lines(result)) == 1
    assert "more than 1" in result.err


@pytest.mark.peer("dcmqrscp", "storescp")
def test_a_refused_query_says_what_it_may_lack(cli: Any, tmp_path: Path) -> None:
    with dcmqrscp(tmp_path) as server:
        assert cli("send", server.target, _file("CT_small.dcm")).code == 0
        result = cli("find", server.target, "--level", "series")
        assert result.code == 1
        assert "StudyInstanceUID, or --relational" in result.err
        relational = cli("find", server.target, "--relational", "--fuzzy")
        assert "does not agree to relational queries" in relational.err
        assert "does not agree to fuzzy matching" in relational.err


# ---------------------------------------------------------------- get


@pytest.mark.peer("dcmqrscp", "Orthanc", "storescp")
def test_get_writes_what_was_sent(cli: Any, other: Server, tmp_path: Path) -> None:
    result = cli("get", other.target, "--to", tmp_path / "out", *sorted(STUDIES), "--json")
    assert result.code == 0, result.err
    report = result.json()
    assert (report["requests"], report["completed"], report["failed"]) == (3, 3, 0)
    files = [Path(name) for name in report["files"]]
    assert {file.relative_to(tmp_path / "out").parts[0] for file in files} == STUDIES
    written = {str(pydicom.dcmread(file).SOPInstanceUID): file for file in files}
    # both archives encode what they send anew: what it says is the same, if not how
    for name in NAMES:
        original = pydicom.dcmread(_file(name))
        got = pydicom.dcmread(written[str(original.SOPInstanceUID)])
        assert got.PatientName == original.PatientName
        assert got.get("PixelData") == original.get("PixelData")
    assert not list((tmp_path / "out").rglob("*.part"))


@pytest.mark.peer("dcmqrscp", "Orthanc", "storescp")
def test_get_of_one_image_and_of_nothing(cli: Any, other: Server, tmp_path: Path) -> None:
    one = "/".join((CT.StudyInstanceUID, CT.SeriesInstanceUID, CT.SOPInstanceUID))
    result = cli("get", other.target, "--to", tmp_path, one)
    assert result.code == 0, result.err
    assert "1 files" in result.err
    assert (tmp_path / f"{one}.dcm").is_file()
    nothing = cli("get", other.target, "--to", tmp_path, "1.2.3.4.5")
    assert nothing.code == 1, nothing.err


@pytest.mark.peer("dcmqrscp", "storescp")
def test_get_of_what_no_context_can_carry_says_what_failed(cli: Any, tmp_path: Path) -> None:
    with dcmqrscp(tmp_path) as server:
        assert cli("send", server.target, _file("CT_small.dcm")).code == 0
        mr = "1.2.840.10008.5.1.4.1.1.4"
        result = cli(
            "get", server.target, "--to", tmp_path / "out", CT.StudyInstanceUID, "--sop-class", mr, "--json"
        )
        assert result.code == 1, result.err
        report = result.json()
        assert report["failed"] == 1
        assert report["failed_uids"] == [CT.SOPInstanceUID]
        assert report["files"] == []


@pytest.mark.peer("dcmqrscp")
def test_get_of_compressed_and_uncompressed_from_an_archive_that_converts_nothing(
    cli: Any, tmp_path: Path
) -> None:
    names = [
        "CT_small.dcm",
        "JPEG-LL.dcm",
    ]  # dcmqrscp takes the first context of a class, whatever its syntax
    with dcmqrscp(tmp_path, None, "+xs") as server:
        assert cli("send", server.target, *map(_file, names)).code == 0
        studies = [pydicom.dcmread(_file(name)).StudyInstanceUID for name in names]
        result = cli("get", server.target, "--to", tmp_path / "out", *studies, "--json")
        assert result.code == 0, result.err
        report = result.json()
        assert (report["completed"], report["failed"], report["complaints"]) == (2, 0, [])
        syntaxes = {pydicom.dcmread(file).file_meta.TransferSyntaxUID for file in report["files"]}
        assert syntaxes == {"1.2.840.10008.1.2.1", "1.2.840.10008.1.2.4.70"}


# ---------------------------------------------------------------- move


@pytest.mark.peer("dcmqrscp", "Orthanc", "storescp")
def test_move_to_another(cli: Any, other: Server, destination: Server) -> None:
    for file in destination.directory.iterdir():
        file.unlink()
    result = cli("move", other.target, "--to", "DEST", CT.StudyInstanceUID, MR.StudyInstanceUID, "--json")
    assert result.code == 0, result.err
    report = result.json()
    assert (report["requests"], report["completed"], report["failed"]) == (2, 2, 0)
    came = {str(pydicom.dcmread(file).SOPInstanceUID) for file in destination.directory.iterdir()}
    assert came == {CT.SOPInstanceUID, MR.SOPInstanceUID}


@pytest.mark.peer("dcmqrscp", "Orthanc", "storescp")
def test_move_to_nobody(cli: Any, other: Server) -> None:
    result = cli("move", other.target, "--to", "NOBODY", CT.StudyInstanceUID)
    assert result.code == 1, result.err
    assert "0 sent to NOBODY" in result.err


# ---------------------------------------------------------------- TLS


@pytest.mark.peer("Orthanc")
def test_everything_over_tls(cli: Any, tmp_path: Path) -> None:
    authority = Authority(tmp_path / "pki")
    theirs, ours = authority.sign("orthanc"), authority.sign("us")
    settings = {
        "DicomTlsEnabled": True,
        "DicomTlsCertificate": str(theirs.pem),
        "DicomTlsPrivateKey": str(theirs.key),
        "DicomTlsTrustedCertificates": str(authority.pem),
    }
    tls = ("--tls-ca", authority.pem, "--tls-certificate", ours.pem, "--tls-key", ours.key)
    with orthanc(tmp_path / "server", **settings) as server:
        sent = cli("send", server.target, _file("CT_small.dcm"), *tls)
        assert sent.code == 0, sent.err
        (found,) = _lines(cli("find", server.target, "--json", *tls))
        assert _values(found, "0020000D") == CT.StudyInstanceUID
        got = cli("get", server.target, "--to", tmp_path / "out", CT.StudyInstanceUID, *tls)
        assert got.code == 0, got.err
        stranger = cli("echo", server.target, "--tls")  # the system's authorities do not know it
        assert stranger.code == 1
        assert "no TLS with" in stranger.err
        plain = cli("echo", server.target, "--timeout", "5")
        assert plain.code != 0


@pytest.mark.peer("storescp")
def test_send_over_tls_to_storescp_that_wants_a_certificate(cli: Any, tmp_path: Path) -> None:
    authority = Authority(tmp_path / "pki")
    theirs, ours = authority.sign("dest"), authority.sign("us")
    options = ("+tls", str(theirs.key), str(theirs.pem), "+cf", str(authority.pem), "-rc")
    with storescp(tmp_path / "server", *options) as server:
        tls = ("--tls-ca", authority.pem, "--tls-certificate", ours.pem, "--tls-key", ours.key)
        sent = cli("send", server.target, _file("CT_small.dcm"), *tls)
        assert sent.code == 0, sent.err
        (file,) = server.directory.iterdir()
        assert _dataset(file) == _dataset(_file("CT_small.dcm"))
        # TLS 1.3: the peer refuses us when we have sent something already
        assert cli("send", server.target, _file("CT_small.dcm"), "--tls-ca", authority.pem).code != 0


# ---------------------------------------------------------------- pynetdicom: commitment, and what is rare


@contextmanager
def _pynetdicom(entity: Any, handlers: list[Any], tls: Any = None) -> Iterator[int]:
    server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers, ssl_context=tls)
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()


COMMITMENT = "1.2.840.10008.1.20.1"


def _report_on(asked: Dataset) -> tuple[Dataset, int]:
    """The CT is committed, nothing else."""
    report = Dataset()
    report.TransactionUID = asked.TransactionUID
    kept = [one for one in asked.ReferencedSOPSequence if one.ReferencedSOPInstanceUID == CT.SOPInstanceUID]
    lost = [one for one in asked.ReferencedSOPSequence if one not in kept]
    for one in lost:
        one.FailureReason = 0x0112
    report.ReferencedSOPSequence = kept
    if lost:
        report.FailedSOPSequence = lost
    return report, 2 if lost else 1


@contextmanager
def _committing(way: str, port: int = 0, status: int = 0, tls: Any = None) -> Iterator[int]:
    """An SCP of storage commitment that reports on the association that asks, on another, or not at all.

    ``tls``: its contexts for being called and for calling.
    """
    from pynetdicom import AE, build_role, evt

    entity = AE("SC")
    entity.add_supported_context(COMMITMENT)
    threads: list[threading.Thread] = []

    def report(association: Any, asked: Dataset) -> None:
        content, event = _report_on(asked)
        instance = f"{COMMITMENT}.1"
        if way == "same":
            association.send_n_event_report(content, event, COMMITMENT, instance)
            return
        caller = AE("SC")
        caller.add_requested_context(COMMITMENT)
        role = build_role(COMMITMENT, scp_role=True)
        calling = association.requestor.ae_title
        back = caller.associate(
            "127.0.0.1", port, ae_title=calling, ext_neg=[role], tls_args=tls and (tls[1], None)
        )
        assert back.is_established
        answer = back.send_n_event_report(content, event, COMMITMENT, instance)
        assert answer[0].Status == 0
        back.release()

    def on_action(event: Any) -> tuple[int, None]:
        if way != "never" and status == 0:
            thread = threading.Thread(target=report, args=(event.assoc, event.action_information))
            threads.append(thread)
            thread.start()
        return status, None

    with _pynetdicom(entity, [(evt.EVT_N_ACTION, on_action)], tls and tls[0]) as listening:
        yield listening
        for thread in threads:
            thread.join(20)


@pytest.mark.peer("pynetdicom")
@pytest.mark.parametrize("way", ["same", "other"])
def test_commitment_is_reported_either_way(cli: Any, way: str) -> None:
    port = free_port()
    listen = ("--listen", f"127.0.0.1:{port}", "--ae", "MODALITY") if way == "other" else ()
    with _committing(way, port) as scp:
        target = f"SC@127.0.0.1:{scp}"
        all_of_it = cli("commit", target, _file("CT_small.dcm"), *listen, "--json")
        assert all_of_it.code == 0, all_of_it.err
        assert all_of_it.json()["committed"] == 1
        part = cli("commit", target, _file("CT_small.dcm"), _file("rtplan.dcm"), *listen)
        assert part.code == 4, part.err
        assert "1 committed, 1 not" in part.err
        assert "no such SOP instance" in part.out
        none = cli("commit", target, _file("rtplan.dcm"), *listen)
        assert none.code == 1, none.err


@pytest.mark.peer("pynetdicom")
def test_a_report_may_come_over_tls(cli: Any, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    ours, theirs = authority.sign("us"), authority.sign("sc")
    called = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(authority.pem))
    called.verify_mode = ssl.CERT_REQUIRED
    calling = ssl.create_default_context(cafile=str(authority.pem))
    calling.check_hostname = False  # pynetdicom does not say whom it calls
    for context in (called, calling):
        context.load_cert_chain(theirs.pem, theirs.key)
    port = free_port()
    tls = ("--tls-certificate", ours.pem, "--tls-key", ours.key, "--tls-ca", authority.pem, "--listen-tls")
    with _committing("other", port, tls=(called, calling)) as scp:
        result = cli(
            "commit", f"SC@127.0.0.1:{scp}", _file("CT_small.dcm"), "--listen", f"127.0.0.1:{port}", *tls
        )
        assert result.code == 0, result.err


@pytest.mark.peer("pynetdicom")
def test_a_commitment_that_is_refused_or_never_reported(cli: Any) -> None:
    with _committing("never") as scp:
        silent = cli("commit", f"SC@127.0.0.1:{scp}", _file("CT_small.dcm"), "--wait", "0.3")
        assert silent.code == 3, silent.err
        assert "no report on 1" in silent.err
    with _committing("never", status=0x0122) as scp:
        refused = cli("commit", f"SC@127.0.0.1:{scp}", _file("CT_small.dcm"))
        assert refused.code == 1
        assert "0122H" in refused.err
    nobody = cli("commit", f"SC@127.0.0.1:{free_port()}", _file("CT_small.dcm"), "--timeout", "2")
    assert nobody.code == 3
    assert cli("commit", "SC@127.0.0.1:1", "no-such-file").code == 2


def _knock(port: int, *, with_tls: bool) -> None:
    """Call the door of ``--listen`` as an archive that is set up otherwise, once it is open."""
    from pynetdicom import AE

    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        with (
            suppress(ConnectionRefusedError),
            socket.create_connection(("127.0.0.1", port), timeout=20) as door,
        ):
            if with_tls:
                with suppress(OSError):
                    ssl._create_unverified_context().wrap_socket(door)
                return
            break
        time.sleep(0.02)
    caller = AE("SC")
    caller.add_requested_context(COMMITMENT)
    assert caller.associate("127.0.0.1", port, ae_title="OLDNAME").is_rejected


@pytest.mark.peer("pynetdicom")
@pytest.mark.parametrize(("with_tls", "hint"), [(True, "--listen-tls"), (False, "may not call us MODALITY")])
def test_who_calls_back_in_vain_is_told_of(cli: Any, with_tls: bool, hint: str) -> None:
    port = free_port()
    listen = ("--listen", f"127.0.0.1:{port}", "--ae", "MODALITY", "--wait", "1.5")
    knocking = threading.Thread(target=_knock, args=(port,), kwargs={"with_tls": with_tls})
    with _committing("never") as scp:
        knocking.start()
        silent = cli("commit", f"SC@127.0.0.1:{scp}", _file("CT_small.dcm"), *listen)
        knocking.join(20)
    assert silent.code == 3, silent.err
    assert hint in " ".join(silent.err.split())


@pytest.mark.peer("pynetdicom")
@pytest.mark.parametrize("roles", [True, False])
def test_get_of_a_part_names_what_is_missing(cli: Any, tmp_path: Path, roles: bool) -> None:
    from pynetdicom import AE, evt

    entity = AE("PART")
    entity.add_supported_context("1.2.840.10008.5.1.4.1.2.2.3")
    for ds in (CT, MR):
        role = True if roles else None
        entity.add_supported_context(ds.SOPClassUID, scu_role=False if roles else None, scp_role=role)

    def on_get(event: Any) -> Iterator[Any]:
        yield 2
        yield 0xFF00, pydicom.dcmread(_file("CT_small.dcm"))
        if not roles:
            broken = Dataset()
            broken.FailedSOPInstanceUIDList = [CT.SOPInstanceUID]
            yield 0xA702, broken
            return
        yield 0xFF00, pydicom.dcmread(_file("rtplan.dcm"))  # in no context

    with _pynetdicom(entity, [(evt.EVT_C_GET, on_get)]) as port:
        result = cli("get", f"PART@127.0.0.1:{port}", "--to", tmp_path, CT.StudyInstanceUID, "--json")
    report = result.json()
    if roles:
        assert result.code == 4, result.err
        assert (report["completed"], report["failed"], len(report["files"])) == (1, 1, 1)
        assert "B000H" in report["complaints"][0]
    else:
        assert result.code == 1, result.err
        assert report["files"] == []
        assert "SCP role for no class" in result.err


@pytest.mark.peer("pynetdicom")
def test_a_move_with_warnings_and_failures_is_counted(cli: Any, destination: Server) -> None:
    from pynetdicom import AE, evt

    entity = AE("PART")
    entity.add_supported_context("1.2.840.10008.5.1.4.1.2.1.2")

    def on_move(event: Any) -> Iterator[Any]:
        assert event.identifier.QueryRetrieveLevel == "PATIENT"
        yield "127.0.0.1", destination.port
        yield 2
        yield 0xFF00, pydicom.dcmread(_file("CT_small.dcm"))
        unknown = pydicom.dcmread(_file("CT_small.dcm"))
        unknown.SOPClassUID = "1.2.3.4"
        yield 0xFF00, unknown

    entity.add_requested_context(CT.SOPClassUID)
    with _pynetdicom(entity, [(evt.EVT_C_MOVE, on_move)]) as port:
        result = cli("move", f"PART@127.0.0.1:{port}", "--to", "DEST", "PatientID=1CT1")
    assert result.code == 4, result.err
    assert "1 sent to DEST, 1 failed" in result.err


@pytest.mark.peer("pynetdicom")
def test_ctrl_c_cancels_a_query_and_releases(tmp_path: Path) -> None:
    from pynetdicom import AE, evt

    entity = AE("ENDLESS")
    entity.add_supported_context("1.2.840.10008.5.1.4.1.2.2.1")
    ends: list[str] = []
    begun = threading.Event()

    def on_find(event: Any) -> Iterator[tuple[int, Dataset | None]]:
        answer = Dataset()
        answer.QueryRetrieveLevel = "STUDY"
        for number in range(2000):
            if event.is_cancelled:
                ends.append("cancelled")
                yield 0xFE00, None
                return
            answer.StudyInstanceUID = f"1.2.{number}"
            yield 0xFF00, answer
            begun.set()
            time.sleep(0.01)

    handlers = [(evt.EVT_C_FIND, on_find), (evt.EVT_RELEASED, lambda _: ends.append("released"))]
    with _pynetdicom(entity, handlers) as port:
        process = subprocess.Popen(
            [*HOUNSFIELD, "find", f"ENDLESS@127.0.0.1:{port}", "--json"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "XDG_STATE_HOME": str(tmp_path)},
        )
        assert begun.wait(60)
        assert process.stdout is not None
        assert process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
        assert process.returncode == 130, err
        assert b"cancelled after" in err
        deadline = time.monotonic() + 20
        while len(ends) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
    assert ends == ["cancelled", "released"]


@pytest.mark.peer("pynetdicom")
@pytest.mark.parametrize(
    ("words", "kind", "fields"),
    [
        (("--user", "jane"), 1, (b"jane", b"")),
        (("--user", "jane", "--passcode", "env:SCU_TEST_PASSCODE"), 2, (b"jane", b"open sesame")),
        (("--jwt", "file:TOKEN"), 5, (b"aaa.bbb.ccc", b"")),
    ],
)
def test_our_user_is_told_and_no_secret_is_an_argument(
    cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: Any, kind: int, fields: Any
) -> None:
    from pynetdicom import AE, evt

    monkeypatch.setenv("SCU_TEST_PASSCODE", "open sesame")
    (tmp_path / "token").write_text("aaa.bbb.ccc\n")
    entity = AE("SAFE")
    entity.add_supported_context("1.2.840.10008.1.1")
    seen: list[Any] = []

    def on_identity(event: Any) -> tuple[bool, bytes]:
        seen.append((event.user_id_type, (event.primary_field, event.secondary_field or b"")))
        return True, b"yes"

    with _pynetdicom(entity, [(evt.EVT_USER_ID, on_identity)]) as port:
        given = [word.replace("TOKEN", str(tmp_path / "token")) for word in words]
        result = cli("echo", f"SAFE@127.0.0.1:{port}", *given, "--json")
        assert result.code == 0, result.err
    assert seen == [(kind, fields)]
    assert result.json()["identity_acknowledged"] is (kind == 5)  # pynetdicom does not answer the others
    bare = cli("echo", f"SAFE@127.0.0.1:{port}", "--user", "jane", "--passcode", "open sesame")
    assert bare.code == 2
    assert "open sesame" not in bare.err


@pytest.mark.peer("pynetdicom")
def test_an_entry_says_how_its_ae_is_called(cli: Any, tmp_path: Path) -> None:
    from pynetdicom import AE, evt

    authority = Authority(tmp_path)
    ours, theirs = authority.sign("us"), authority.sign("pacs")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(authority.pem))
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(theirs.pem, theirs.key)
    entity = AE("SECRET_NAME")
    entity.require_called_aet = True
    entity.require_calling_aet = ["ALIAS"]
    entity.add_supported_context("1.2.840.10008.1.1")
    with _pynetdicom(entity, [(evt.EVT_C_ECHO, lambda _: 0)], context) as port:
        config = tmp_path / "config.toml"
        config.write_text(
            f'''
[[aes]]
title = "PACS"
host = "127.0.0.1"
port = {port}
called_title = "SECRET_NAME"
calling_title = "ALIAS"
tls = true
tls_ca = "{authority.pem}"
tls_certificate = "{ours.pem}"
tls_key = "{ours.key}"
'''
        )
        assert cli("echo", "PACS", "--config", config).code == 0
        other = cli("echo", "PACS", "--config", config, "--calling", "SOMEBODY")
        assert other.code == 1
        assert "does not know our AE title" in other.err


# ---------------------------------------------------------------- the command line


def test_instances_of_a_series_are_one_request_and_studies_one_each() -> None:
    words = ["1.2/1.3/1.4", "1.2/1.3/1.5", "1.9", "1.2/1.3/1.4", "1.9", "1.2/1.7", "PatientID=4711"]
    found = [
        (level.name, {tag: entry.get("Value") for tag, entry in model.items()})
        for level, model in retrieval_identifiers(words, None)
    ]
    study, series, instance = "0020000D", "0020000E", "00080018"
    assert found == [
        ("PATIENT", {"00080052": ["PATIENT"], "00100020": ["4711"]}),
        ("STUDY", {"00080052": ["STUDY"], study: ["1.9"]}),
        ("SERIES", {"00080052": ["SERIES"], study: ["1.2"], series: ["1.7"]}),
        ("IMAGE", {"00080052": ["IMAGE"], study: ["1.2"], series: ["1.3"], instance: ["1.4", "1.5"]}),
    ]


def test_keys_in_sequences_by_keyword_and_by_tag() -> None:
    words = [
        "RequestAttributesSequence.ScheduledProcedureStepID=7",
        "00400275.RequestedProcedureID",
        "Rows=512",
    ]
    assert model_of_keys(parse_keys(words)) == {
        "00280010": {"vr": "US", "Value": [512]},
        "00400275": {
            "vr": "SQ",
            "Value": [{"00400009": {"vr": "SH", "Value": ["7"]}, "00401001": {"vr": "SH"}}],
        },
    }


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (("find", "X@127.0.0.1:1", "NoSuchKeyword=1"), "no attribute"),
        (("get", "X@127.0.0.1:1", "--to", "out", "PatientName=DOE"), "names StudyInstanceUID"),
        (("move", "X@127.0.0.1:1", "--to", "Y", "1.2/3.4/5.6/7.8"), "STUDY/SERIES/INSTANCE"),
        (("commit", "X@127.0.0.1:1", "1.2", "--listen-tls"), "goes with --listen"),
        (("find", "X@127.0.0.1:1", "--jwt", "eyJ"), "file:PATH or env:NAME"),
        (("find", "X@127.0.0.1:1", "--passcode", "ask"), "--user"),
    ],
)
def test_what_makes_no_sense_is_said_before_anybody_is_called(cli: Any, arguments: Any, hint: str) -> None:
    result = cli(*arguments)
    assert result.code == 2, result.err
    assert hint in result.err


@pytest.mark.parametrize("command", [("find",), ("get", "--to", "out", "1.2"), ("move", "--to", "X", "1.2")])
def test_nobody_there_is_an_exit_code_of_its_own(
    cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    result = cli(command[0], f"X@127.0.0.1:{free_port()}", *command[1:])
    assert result.code == 3, result.err
    assert "cannot reach" in result.err
