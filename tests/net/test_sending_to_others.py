"""What we send to other archives arrives as it is in the file; what does not is told, with the reason."""

from __future__ import annotations

import socket
import ssl
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pydicom
import pytest
import trio
from pydicom.data import get_testdata_file

from hounsfield.archive.dicom import part10
from hounsfield.archive.engine import errors
from hounsfield.archive.net.errors import (
    AbortedError,
    ConnectError,
    ConnectionLostError,
    RejectedError,
    TimedOutError,
    TlsError,
)
from hounsfield.archive.net.policy import ListenerPolicy
from hounsfield.archive.net.scu import VERIFICATION_CONTEXT, RemoteEntity, ScuLimits, associate
from hounsfield.archive.net.send import Outcome, Sender, SendPlan, plan_contexts
from hounsfield.archive.net.survey import Sendable, Unsendable, examine, survey
from hounsfield.archive.net.tls import client_context, server_context
from hounsfield.archive.wire import CStoreResponse
from support.scripted_scp import ScriptedScp, scripted

NAMES = [
    "CT_small.dcm",
    "MR_small_implicit.dcm",
    "MR_small_bigendian.dcm",
    "JPEG-LL.dcm",
    "MR_small_RLE.dcm",
    "MR_small_jp2klossless.dcm",
    "rtplan.dcm",
    "image_dfl.dcm",
]
QUICK = SendPlan(retries=2, pause_s=0.001)


def _file(name: str) -> Path:
    path = get_testdata_file(name)
    assert path is not None
    return Path(path)


def _dataset(path: Path) -> bytes:
    raw = path.read_bytes()
    return raw[part10.split(raw).offset :]


def _to(port: int, **more: Any) -> RemoteEntity:
    return RemoteEntity("127.0.0.1", port, called_ae="HOUNSFIELD", calling_ae="PEER", **more)


async def _send(remote: RemoteEntity, *paths: Path, plan: SendPlan = QUICK) -> Any:
    with trio.fail_after(60):
        return await Sender(remote, plan, ScuLimits(response_s=30)).send(list(survey(paths)))


# ---------------------------------------------------------------- to ourselves


async def test_every_byte_arrives_over_several_associations(open_archive: Callable[..., Any]) -> None:
    async with open_archive() as archive:
        report = await _send(_to(archive.port), *map(_file, NAMES), plan=SendPlan(associations=3))
        assert report.count(Outcome.FAILED) == 0, report
        assert report.count(Outcome.SENT) + report.count(Outcome.WARNED) == len(NAMES)
        assert archive.listener.statistics().associations_accepted == 3
        ds = pydicom.dcmread(_file("CT_small.dcm"))
        got = await archive.stored(ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.SOPInstanceUID)
        assert got == _dataset(_file("CT_small.dcm"))


async def test_a_private_class_in_a_private_syntax_is_kept(open_archive: Callable[..., Any]) -> None:
    path, syntax = _file("CT_small.dcm"), "1.2.840.113619.5.99"
    found = examine(path)
    assert isinstance(found, Sendable)
    private = replace(found, sop_class_uid="1.2.840.113619.4.26", transfer_syntax_uid=syntax)
    async with open_archive() as archive:
        with trio.fail_after(60):
            report = await Sender(_to(archive.port), QUICK).send([private])
        assert report.results[0].status == 0xB007  # the data set says that it is a CT
        ds = pydicom.dcmread(path)
        uids = (ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.SOPInstanceUID)
        assert await archive.stored(*uids) == _dataset(path)
        (instance,) = await archive.engine.instances(*uids)
        assert instance.row.transfer_syntax_uid == syntax


async def test_an_object_of_many_pdus_and_reads(serve: Any, sink: Any, tmp_path: Path) -> None:
    ds = pydicom.dcmread(_file("CT_small.dcm"))
    ds.Rows, ds.Columns, ds.PixelData = 2048, 1024, bytes(range(256)) * (2048 * 1024 * 2 // 256)
    path = tmp_path / "large.dcm"
    ds.save_as(path)
    async with serve(sink, ListenerPolicy()) as archive:
        report = await _send(_to(archive.port), path)
        assert report.count(Outcome.SENT) == 1, report
        assert sink.objects == [_dataset(path)]
        assert report.bytes_sent == len(_dataset(path))


async def test_retries_where_they_help(serve: Any, sink: Any) -> None:
    async with serve(sink, ListenerPolicy()) as archive:
        sink.failing["commit"] = errors.OutOfResourcesError("full")
        report = await _send(_to(archive.port), _file("CT_small.dcm"))
        (result,) = report.results
        assert (result.outcome, result.status, result.attempts, result.retry) == (
            Outcome.FAILED,
            0xA700,
            3,
            True,
        )


async def test_no_retries_where_they_do_not(serve: Any, sink: Any) -> None:
    async with serve(sink, ListenerPolicy()) as archive:
        sink.failing["commit"] = errors.ObjectTooLargeError("large")
        report = await _send(_to(archive.port), _file("CT_small.dcm"))
        (result,) = report.results
        assert (result.outcome, result.status, result.attempts, result.retry) == (
            Outcome.FAILED,
            0x0213,
            1,
            False,
        )
        assert "larger" in result.reason


async def test_a_response_that_names_another_object_is_no_success() -> None:
    named = iter(("1.2.3", None, "", "1.2.3"))
    statuses = iter((0, 0, 0, 0xB000))

    async def script(scp: ScriptedScp) -> None:
        await scp.accept()
        while True:
            command = (await scp.message()).command
            response = CStoreResponse(
                command.message_id, next(statuses), command.affected_sop_class_uid, next(named)
            )
            await scp.say(1, response)

    async with scripted(script) as scp:
        results = [
            (await _send(_to(scp.port), _file("CT_small.dcm"), plan=SendPlan(window=1))).results[0]
            for _ in range(4)
        ]
    assert [(one.outcome, one.status, one.attempts, one.retry) for one in results] == [
        (Outcome.FAILED, 0, 1, False),
        (Outcome.SENT, 0, 1, False),
        (Outcome.SENT, 0, 1, False),
        (Outcome.FAILED, 0xB000, 1, False),
    ]
    assert "names another SOP instance" in results[0].reason
    assert results[1].reason == ""


async def test_a_lost_connection_is_made_again(serve: Any, sink: Any) -> None:
    async with serve(sink, ListenerPolicy()) as archive:
        remaining = [ZeroDivisionError("a defect"), ZeroDivisionError("a defect")]
        begin = sink.begin

        def flaky(**announced: Any) -> Any:
            if remaining:
                raise remaining.pop()
            return begin(**announced)

        sink.begin = flaky
        report = await _send(_to(archive.port), _file("CT_small.dcm"), _file("rtplan.dcm"))
        assert report.count(Outcome.SENT) == 2, report
        assert max(result.attempts for result in report.results) == 3


async def test_a_refusal_for_good_ends_it(serve: Any, sink: Any) -> None:
    policy = ListenerPolicy(calling_titles=frozenset({"SOMEBODY"}))
    async with serve(sink, policy) as archive:
        report = await _send(_to(archive.port), *map(_file, NAMES[:3]))
        assert report.count(Outcome.FAILED) == 3
        assert all("does not know our AE title" in result.reason for result in report.results)
        assert not any(result.retry for result in report.results)
        assert archive.listener.statistics().associations_refused == 1


async def test_no_accepted_syntax_is_said_clearly(serve: Any, sink: Any) -> None:
    policy = ListenerPolicy(refused_sop_classes=frozenset({"1.2.840.10008.5.1.4.1.1.2"}))
    async with serve(sink, policy) as archive:
        report = await _send(_to(archive.port), _file("CT_small.dcm"), _file("rtplan.dcm"))
        assert report.count(Outcome.SENT) == 1
        (failed,) = [result for result in report.results if result.outcome is Outcome.FAILED]
        assert "takes no SOP class 1.2.840.10008.5.1.4.1.1.2 in Explicit VR Little Endian" in failed.reason


async def test_nobody_there(serve: Any, sink: Any) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound and not listening: refused, and nobody else can take it
        report = await _send(_to(unused.getsockname()[1]), _file("CT_small.dcm"))
        (result,) = report.results
        assert (result.outcome, result.retry) == (Outcome.FAILED, True)
        assert "Connection refused" in result.reason
        with pytest.raises(ConnectError):
            async with associate(_to(unused.getsockname()[1]), [VERIFICATION_CONTEXT]):
                pass


async def test_a_file_that_shrinks_does_not_stop_the_others(serve: Any, sink: Any, tmp_path: Path) -> None:
    good, bad = _file("CT_small.dcm"), tmp_path / "bad.dcm"
    bad.write_bytes(_file("rtplan.dcm").read_bytes())
    async with serve(sink, ListenerPolicy()) as archive:
        found = list(survey([bad, good]))
        bad.write_bytes(bad.read_bytes()[:1000])
        with trio.fail_after(60):
            report = await Sender(_to(archive.port), QUICK).send(found)
        outcomes = {result.path: result.outcome for result in report.results}
        assert outcomes == {bad: Outcome.FAILED, good: Outcome.SENT}
        assert sink.objects == [_dataset(good)]


# ---------------------------------------------------------------- several outstanding


def _many(directory: Path, number: int) -> list[Path]:
    """Files longer than one read, so that each takes its time."""
    raw = _file("CT_small.dcm").read_bytes()
    paths = [directory / f"{each}.dcm" for each in range(number)]
    for path in paths:
        path.write_bytes(raw + bytes(2_000_000))  # data set trailing padding, as far as a sender is concerned
    return paths


async def test_several_outstanding_on_one_association(serve: Any, sink: Any, tmp_path: Path) -> None:
    paths = _many(tmp_path, 20)
    async with serve(sink, ListenerPolicy()) as archive:
        report = await _send(_to(archive.port), *paths, plan=replace(QUICK, window=6))
        assert report.count(Outcome.SENT) == 20, report
        assert archive.listener.statistics().associations_accepted == 1
        assert sink.objects == [_dataset(path) for path in paths]


async def test_a_file_that_shrinks_takes_nobody_along(serve: Any, sink: Any, tmp_path: Path) -> None:
    paths = _many(tmp_path, 8)
    async with serve(sink, ListenerPolicy()) as archive:
        found = list(survey(paths))
        bad = paths[3]
        bad.write_bytes(bad.read_bytes()[:1_500_000])
        with trio.fail_after(60):  # no retries: those that were outstanding beside it have not failed
            report = await Sender(_to(archive.port), SendPlan(retries=0, window=4)).send(found)
        outcomes = {result.path: result.outcome for result in report.results}
        assert outcomes == {path: Outcome.FAILED if path == bad else Outcome.SENT for path in paths}
        assert {result.attempts for result in report.results} == {1}
        assert set(sink.objects) == {_dataset(path) for path in paths if path != bad}


async def test_a_lost_connection_with_several_outstanding_is_made_again(
    serve: Any, sink: Any, tmp_path: Path
) -> None:
    paths = _many(tmp_path, 8)
    async with serve(sink, ListenerPolicy()) as archive:
        begin, begun = sink.begin, 0

        def flaky(**announced: Any) -> Any:
            nonlocal begun
            begun += 1
            if begun == 4:
                raise ZeroDivisionError("a defect")
            return begin(**announced)

        sink.begin = flaky
        report = await _send(_to(archive.port), *paths, plan=replace(QUICK, window=4))
        assert report.count(Outcome.SENT) == 8, report
        assert {result.path for result in report.results} == set(paths)
        assert len(report.results) == 8


# ---------------------------------------------------------------- peers that misbehave


@asynccontextmanager
async def _scripted(script: Callable[[trio.SocketStream], Any]) -> AsyncIterator[int]:
    """A server that does what ``script`` does with each connection."""
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(lambda **kw: trio.serve_tcp(script, 0, host="127.0.0.1", **kw))
        yield listeners[0].socket.getsockname()[1]
        nursery.cancel_scope.cancel()


async def _echo(port: int) -> None:
    limits = ScuLimits(connect_s=30, associate_s=0.2, response_s=0.2, release_s=0.2)
    with trio.fail_after(60):
        async with associate(_to(port), [VERIFICATION_CONTEXT], limits) as association:
            await association.echo()


async def _silent(stream: trio.SocketStream) -> None:
    while await stream.receive_some(4096):
        pass


async def _hangs_up(stream: trio.SocketStream) -> None:
    await stream.receive_some(4096)


async def _talks_http(stream: trio.SocketStream) -> None:
    await stream.receive_some(4096)
    await stream.send_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    await _silent(stream)


async def _aborts(stream: trio.SocketStream) -> None:
    await stream.receive_some(4096)
    await stream.send_all(b"\x07\x00\x00\x00\x00\x04\x00\x00\x02\x01")
    await _silent(stream)


async def _rejects(stream: trio.SocketStream) -> None:
    await stream.receive_some(4096)
    await stream.send_all(b"\x03\x00\x00\x00\x00\x04\x00\x02\x03\x02")
    await _silent(stream)


@pytest.mark.parametrize(
    ("script", "error"),
    [
        (_silent, TimedOutError),
        (_hangs_up, ConnectionLostError),
        (_talks_http, AbortedError),
        (_aborts, AbortedError),
        (_rejects, RejectedError),
    ],
)
async def test_peers_that_misbehave_are_named(script: Any, error: type[Exception]) -> None:
    async with _scripted(script) as port:
        with pytest.raises(error) as raised:
            await _echo(port)
        assert raised.value.retry is True  # type: ignore[attr-defined]


# ---------------------------------------------------------------- TLS


@contextmanager
def _certificate(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(
        [
            "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
            "-days", "2", "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1",
            "-keyout", key, "-out", certificate,
        ],
        check=True,
        capture_output=True,
    )  # fmt: skip
    yield certificate, key


@pytest.mark.peer("openssl")
async def test_objects_over_tls(serve: Any, sink: Any, tmp_path: Path) -> None:
    with _certificate(tmp_path) as (certificate, key):
        tls = server_context(certificate, key, client_ca=certificate)
        async with serve(sink, ListenerPolicy(), tls=tls) as archive:
            ours = client_context(ca=certificate, certificate=certificate, key=key)
            report = await _send(_to(archive.port, tls=ours), _file("CT_small.dcm"))
            assert report.count(Outcome.SENT) == 1, report
            assert sink.objects == [_dataset(_file("CT_small.dcm"))]


@pytest.mark.peer("openssl")
async def test_several_outstanding_over_tls(serve: Any, sink: Any, tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    paths = _many(tmp_path / "files", 12)
    with _certificate(tmp_path) as (certificate, key):
        async with serve(sink, ListenerPolicy(), tls=server_context(certificate, key)) as archive:
            remote = _to(archive.port, tls=client_context(ca=certificate))
            report = await _send(remote, *paths, plan=replace(QUICK, window=5))
            assert report.count(Outcome.SENT) == 12, report
            assert sink.objects == [_dataset(path) for path in paths]


@pytest.mark.peer("openssl")
async def test_strangers_in_tls(serve: Any, sink: Any, tmp_path: Path) -> None:
    with _certificate(tmp_path) as (certificate, key):
        tls = server_context(certificate, key)
        async with serve(sink, ListenerPolicy(), tls=tls) as archive:
            with pytest.raises(TlsError):
                async with associate(_to(archive.port, tls=ssl.create_default_context()), []):
                    pass
            with pytest.raises((ConnectionLostError, AbortedError)):  # plain DICOM to a TLS port
                async with associate(_to(archive.port), [VERIFICATION_CONTEXT]):
                    pass
            await archive.until(lambda: archive.listener.statistics().connections_failed == 2)
    with pytest.raises(TlsError):
        server_context(tmp_path / "none.pem", tmp_path / "none.pem")


# ---------------------------------------------------------------- other people's archives


@pytest.mark.peer("storescp")
async def test_storescp_keeps_what_we_send(tmp_path: Path) -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        port = reserved.getsockname()[1]
    process = await trio.lowlevel.open_process(
        ["storescp", "+xa", "-od", str(tmp_path), "--bit-preserving", str(port)]
    )
    try:
        remote = _to(port)
        limits = ScuLimits(connect_s=1.0)
        with trio.fail_after(30):
            while True:  # until it listens
                try:
                    async with associate(remote, [VERIFICATION_CONTEXT], limits) as association:
                        assert (await association.echo()).status == 0
                    break
                except ConnectError:
                    await trio.sleep(0.01)
        names = ["CT_small.dcm", "MR_small_implicit.dcm", "JPEG-LL.dcm", "rtplan.dcm"]
        report = await _send(remote, *map(_file, names))
        assert report.count(Outcome.SENT) == len(names), report
    finally:
        process.terminate()
        await process.wait()
    kept = {_dataset(path) for path in tmp_path.iterdir()}
    assert kept == {_dataset(_file(name)) for name in names}


@pytest.mark.peer("pynetdicom")
@pytest.mark.parametrize("maximum", [0, 4096, 16382])
async def test_pynetdicom_receives_within_its_maximum(maximum: int) -> None:
    from pynetdicom import AE, evt

    received: list[bytes] = []
    sizes: list[int] = []

    def on_store(event: Any) -> int:
        received.append(event.request.DataSet.getvalue())
        return 0xB000

    def on_pdu(event: Any) -> None:
        if event.pdu.pdu_type == 4:
            sizes.append(event.pdu.pdu_length)

    entity = AE(ae_title="HOUNSFIELD")
    entity.maximum_pdu_size = maximum
    entity.add_supported_context("1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.1.2.1")
    entity.add_supported_context("1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.1.2")
    handlers = [(evt.EVT_C_STORE, on_store), (evt.EVT_PDU_RECV, on_pdu)]
    server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
    try:
        remote = _to(server.server_address[1])
        report = await _send(
            remote, _file("CT_small.dcm"), _file("MR_small_implicit.dcm"), _file("MR_small_bigendian.dcm")
        )
    finally:
        await trio.to_thread.run_sync(server.shutdown)
    assert report.count(Outcome.WARNED) == 2, report
    (failed,) = [result for result in report.results if result.outcome is Outcome.FAILED]
    assert "not take this SOP class in Explicit VR Big Endian, only in Implicit" in failed.reason
    assert set(received) == {_dataset(_file("CT_small.dcm")), _dataset(_file("MR_small_implicit.dcm"))}
    assert max(sizes) <= (maximum or 256 * 1024)


# ---------------------------------------------------------------- what is sendable


def test_files_that_cannot_be_sent_have_a_reason(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("not an image at all, and longer than an element")
    (tmp_path / "empty").write_bytes(b"")
    ds = pydicom.dcmread(_file("CT_small.dcm"))
    del ds.SOPInstanceUID, ds.file_meta.MediaStorageSOPInstanceUID
    pydicom.dcmwrite(tmp_path / "nameless.dcm", ds, enforce_file_format=False)
    reasons = {one.path.name: one.reason for one in survey([tmp_path]) if isinstance(one, Unsendable)}
    assert reasons == {
        "text.txt": "not a DICOM file",
        "empty": "not a DICOM file",
        "nameless.dcm": "lacks a SOP instance UID",
    }


def test_a_file_says_what_a_store_request_must(tmp_path: Path) -> None:
    for name in NAMES:
        path = _file(name)
        found = examine(path)
        ds = pydicom.dcmread(path)
        assert isinstance(found, Sendable)
        assert (found.sop_class_uid, found.sop_instance_uid) == (ds.SOPClassUID, ds.SOPInstanceUID)
        assert found.transfer_syntax_uid == ds.file_meta.TransferSyntaxUID
        assert found.size == len(_dataset(path))


def test_a_dicomdir_stands_for_its_files_and_each_file_is_sent_once() -> None:
    dicomdir = _file("DICOMDIR")
    listed = list(survey([dicomdir]))
    assert len(listed) > 20
    assert all(isinstance(one, Sendable) for one in listed)
    both = [one for one in survey([dicomdir, dicomdir.parent]) if isinstance(one, Sendable)]
    assert len({one.path.resolve() for one in both}) == len(both)
    assert {one.path for one in listed} <= {one.path for one in both}


def test_more_contexts_than_an_association_has() -> None:
    items = [
        Sendable(Path(f"{i}.dcm"), 0, 10, f"1.2.{i % 200}", f"1.3.{i}", "1.2.840.10008.1.2")
        for i in range(400)
    ]
    batches = plan_contexts(items)
    assert [len(contexts) for contexts, _ in batches] == [128, 72]
    assert sum(len(batch) for _, batch in batches) == 400
    for contexts, batch in batches:
        offered = {context.abstract_syntax for context in contexts}
        assert {item.sop_class_uid for item in batch} == offered
        assert all(context.context_id % 2 == 1 and context.context_id < 256 for context in contexts)


async def test_more_contexts_than_an_association_has_are_sent_over_several(
    serve: Any, sink: Any, tmp_path: Path
) -> None:
    path = tmp_path / "data"
    path.write_bytes(b"12345678")
    items = [Sendable(path, 0, 8, f"1.2.{i}", f"1.3.{i}", "1.2.840.10008.1.2") for i in range(130)]
    async with serve(sink, ListenerPolicy()) as archive:
        with trio.fail_after(60):
            report = await Sender(_to(archive.port), QUICK).send(items)
        assert report.count(Outcome.SENT) == 130
        assert archive.listener.statistics().associations_accepted == 2
