"""A load generator that loses, invents or hides objects makes every figure worthless."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from benchmarks.cstore_load import CONTEXT_ID, Load, PreparedObject, identity_of, run_load
from benchmarks.peers.base import free_port
from benchmarks.peers.ours import Hounsfield
from benchmarks.peers.servers import Bare, Discard, Pynetdicom
from benchmarks.processes import tree
from benchmarks.studies import Identity, Kind, template
from benchmarks.upper_layer import PDU_HEADER, PDV_HEADER, parse_command

ASSOCIATIONS, COUNT, RUN = 2, 5, 424242


def load_for(peer: Bare | Pynetdicom, **more: object) -> Load:
    common = {"host": "127.0.0.1", "port": peer.endpoints.dicom_port, "kind": "small", "seconds": 20.0}
    return Load(**(common | {"associations": ASSOCIATIONS, "count": COUNT, "run": RUN} | more))  # type: ignore[arg-type]


def expected(load: Load) -> dict[str, bytes]:
    out = {}
    for association in range(load.associations):
        for index in range(load.count):
            identity = identity_of(Identity, load, RUN, association, index)
            source = template(Kind(load.kind), variant=index % load.variants)
            out[identity.sop_instance_uid()] = bytes(source.encode(identity))
    return out


@pytest.mark.parametrize("server", [Bare, Pynetdicom])
@pytest.mark.parametrize("study_per_object", [False, True])
def test_every_byte_arrives(server: type[Bare | Pynetdicom], study_per_object: bool, tmp_path: Path) -> None:
    with server(scratch=tmp_path) as peer:
        load = load_for(peer, study_per_object=study_per_object)
        report = run_load(load)
        assert (report.acknowledged, report.failures) == (ASSOCIATIONS * COUNT, {})
        stored = {path.name: path.read_bytes() for path in (peer.directory / "store").iterdir()}
        assert stored == expected(load)
        assert peer.stored() == ASSOCIATIONS * COUNT
        assert report.rate > 0
        assert 0 < report.p50_ms <= report.p99_ms <= report.worst_ms


@pytest.mark.parametrize("server", [Hounsfield, Bare])  # one grants a window, one does not
def test_with_a_window_each_object_is_answered_once(server: type[Hounsfield | Bare], tmp_path: Path) -> None:
    with server(scratch=tmp_path) as peer:
        report = run_load(load_for(peer, called_ae=peer.endpoints.ae_title, window=4))  # type: ignore[arg-type]
        assert (report.acknowledged, report.failures) == (ASSOCIATIONS * COUNT, {})
        assert peer.stored() == ASSOCIATIONS * COUNT


@pytest.mark.parametrize("max_pdu", ["4096", "16384"])
def test_objects_larger_than_the_acceptors_buffer_arrive(max_pdu: str, tmp_path: Path) -> None:
    class SmallPdu(Bare):
        extra = ("--max-pdu", max_pdu)

    with SmallPdu(scratch=tmp_path) as peer:
        load = load_for(peer, kind="us", associations=1, count=2, variants=1)
        report = run_load(load)
        assert (report.acknowledged, report.max_pdu) == (2, int(max_pdu))
        stored = {path.name: path.read_bytes() for path in (peer.directory / "store").iterdir()}
        assert stored == expected(load)


def test_failure_statuses_are_counted_and_not_acknowledged(tmp_path: Path) -> None:
    class OutOfResources(Bare):
        extra = ("--status", "A700")

    with OutOfResources(scratch=tmp_path) as peer:
        report = run_load(load_for(peer))
    assert report.acknowledged == 0
    assert report.failures == {"status A700": ASSOCIATIONS * COUNT}
    assert report.rate == 0


def test_warnings_are_acknowledged_and_counted(tmp_path: Path) -> None:
    class Coerces(Bare):
        extra = ("--status", "B000")

    with Coerces(scratch=tmp_path) as peer:
        report = run_load(load_for(peer))
    assert (report.acknowledged, report.warnings, report.failures) == (10, 10, {})


def test_nobody_listening_is_a_failure_of_each_association() -> None:
    report = run_load(Load(host="127.0.0.1", port=free_port(), kind="small", associations=2, seconds=1.0))
    assert report.acknowledged == 0
    assert sum(report.failures.values()) == 2


@contextmanager
def answering(answer: bytes) -> Iterator[int]:
    """A server that reads once, gives `answer` and closes."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(20)

        def serve() -> None:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            with sock:
                sock.recv(65536)
                sock.sendall(answer)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        thread.join(20)


@pytest.mark.parametrize(
    ("answer", "word"),
    [
        (b"\x03\x00\x00\x00\x00\x04\x00\x01\x01\x07", "rejected"),
        (b"\x07\x00\x00\x00\x00\x04\x00\x00\x02\x01", "aborted"),
        (b"", "closed"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", ""),
    ],
)
def test_refusals_are_named(answer: bytes, word: str) -> None:
    with answering(answer) as port:
        report = run_load(Load(host="127.0.0.1", port=port, kind="small", seconds=5.0))
    assert report.acknowledged == 0
    (reason,) = report.failures
    assert word in reason


@pytest.mark.parametrize("max_pdu", [128, 1000, 16384, 262_144])
def test_framing_is_what_the_standard_says_at_every_pdu_length(max_pdu: int) -> None:
    source = template(Kind.SMALL)
    prepared = PreparedObject(source, max_pdu)
    identity = Identity(7, 8, 9, 3, 123)
    prepared.patch(identity.values(), 513)
    command, data, last = b"", b"", []
    framed = bytes(prepared.framed)
    offset = 0
    while offset < len(framed):
        kind, length = PDU_HEADER.unpack_from(framed, offset)
        size, context, control = PDV_HEADER.unpack_from(framed, offset + 6)
        value = framed[offset + 12 : offset + 6 + length]
        assert (kind, context, size) == (4, CONTEXT_ID, len(value) + 2)
        if control & 1:
            command += value
        else:
            assert length <= max_pdu
            data += value
            last.append(bool(control & 2))
        offset += 6 + length
    assert data == bytes(source.encode(identity))
    assert last == [False] * (len(last) - 1) + [True]
    values = parse_command(command)
    assert values[0x1000] == identity.sop_instance_uid().encode()
    assert int.from_bytes(values[0x0110], "little") == 513
    assert int.from_bytes(values[0x0000], "little") == len(command) - 12


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    with Discard(scratch=tmp_path) as peer:
        pid = peer.pid
        run_load(load_for(peer))
        assert pid in tree(pid)
    assert tree(pid) == []
    assert list(tmp_path.iterdir()) == []
