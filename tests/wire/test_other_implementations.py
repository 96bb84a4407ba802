"""The danger: a protocol that only we speak. pynetdicom on the other end of a real socket, in both roles."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pynetdicom import AE, evt
from pynetdicom.pdu_primitives import SOPClassExtendedNegotiation, UserIdentityNegotiation
from wire_strategies import CT, EXPLICIT, IMPLICIT, VERIFICATION

from hounsfield.archive.wire import (
    NEED_DATA,
    AssociateAccept,
    AssociateReject,
    AssociateRequest,
    Association,
    CEchoRequest,
    CEchoResponse,
    CommandReceived,
    CStoreRequest,
    CStoreResponse,
    DataFragment,
    DatasetFragment,
    Event,
    MessageReader,
    MessageWriter,
    PresentationContext,
    PresentationResult,
    RejectReason,
    ReleaseReply,
    ReleaseRequest,
    Role,
    TransportClosed,
    UserInformation,
)


def _next(association: Association, connection: socket.socket) -> Event:
    while (event := association.next_event()) is NEED_DATA:
        if association.should_close:
            return TransportClosed(orderly=True)
        association.received(connection.recv_into(association.receive_buffer()))
    return event


class _Acceptor(threading.Thread):
    """The smallest archive there can be: one association, blocking."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.listener.getsockname()[1]
        self.request: AssociateRequest | None = None
        self.commands: list[Any] = []
        self.dataset = b""
        self.failure: BaseException | None = None

    def run(self) -> None:
        try:
            connection, _ = self.listener.accept()
            with connection:
                connection.settimeout(20)
                self._serve(connection)
        except BaseException as error:
            self.failure = error
        finally:
            self.listener.close()

    def _serve(self, connection: socket.socket) -> None:
        association, reader = Association(Role.ACCEPTOR), MessageReader()
        writer = MessageWriter(association)
        while not isinstance(event := _next(association, connection), TransportClosed):
            if isinstance(event, AssociateRequest):
                self.request = event
                if event.calling_ae == "STRANGER":
                    reject = AssociateReject(reason=RejectReason.CALLING_AE_NOT_RECOGNIZED)
                    connection.sendmsg(association.send(reject))
                    continue
                results = tuple(
                    PresentationResult(c.context_id, 0, c.transfer_syntaxes[0])
                    if c.abstract_syntax in (VERIFICATION, CT)
                    else PresentationResult(c.context_id, 3)
                    for c in event.contexts
                )
                user = UserInformation(
                    implementation_class_uid="1.2.3",
                    roles=event.user.roles,
                    extended=event.user.extended,
                    identity_response=b"welcome" if event.user.identity else None,
                )
                accept = AssociateAccept(
                    called_ae=event.called_ae, calling_ae=event.calling_ae, contexts=results, user=user
                )
                connection.sendmsg(association.send(accept))
            elif isinstance(event, DataFragment):
                self._message(reader.receive(event), writer, connection)
            elif isinstance(event, ReleaseRequest):
                connection.sendmsg(association.send(ReleaseReply()))

    def _message(self, message: Any, writer: MessageWriter, connection: socket.socket) -> None:
        if isinstance(message, CommandReceived):
            self.commands.append(message.command)
            if isinstance(message.command, CEchoRequest):
                connection.sendmsg(
                    writer.command(message.context_id, CEchoResponse(message.command.message_id, 0))
                )
        elif isinstance(message, DatasetFragment):
            self.dataset += bytes(message.data)
            if message.last:
                store = self.commands[-1]
                response = CStoreResponse(
                    store.message_id, 0xB000, store.affected_sop_class_uid, store.affected_sop_instance_uid
                )
                connection.sendmsg(writer.command(message.context_id, response))


def _instance(size: int) -> Dataset:
    dataset = Dataset()
    dataset.SOPClassUID = CT
    dataset.SOPInstanceUID = "1.2.3.4.5"
    dataset.PixelData = bytes(range(256)) * (size // 256)
    dataset["PixelData"].VR = "OW"
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = EXPLICIT
    return dataset


def test_pynetdicom_sends_to_us() -> None:
    acceptor = _Acceptor()
    acceptor.start()
    ae = AE("PEER")
    ae.add_requested_context(VERIFICATION, IMPLICIT)
    ae.add_requested_context(CT, EXPLICIT)
    ae.add_requested_context("1.2.3.4", EXPLICIT)
    identity = UserIdentityNegotiation()
    identity.user_identity_type, identity.primary_field, identity.secondary_field = 2, b"user", b"secret"
    identity.positive_response_requested = True
    extended = SOPClassExtendedNegotiation()
    extended.sop_class_uid, extended.service_class_application_information = CT, b"\2\0\3"
    peer = ae.associate(
        "127.0.0.1", acceptor.port, ae_title="ARCHIVE", ext_neg=[identity, extended], max_pdu=20000
    )
    assert peer.is_established
    assert [str(cx.abstract_syntax) for cx in peer.rejected_contexts] == ["1.2.3.4"]
    assert peer.acceptor.user_identity.server_response == b"welcome"
    assert peer.acceptor.sop_class_extended == {CT: b"\2\0\3"}
    assert peer.send_c_echo().Status == 0
    status = peer.send_c_store(_instance(700_000), originator_aet="MOVER", originator_id=9)
    assert status.Status == 0xB000
    peer.release()
    assert peer.is_released
    acceptor.join(20)
    assert acceptor.failure is None
    assert acceptor.request is not None
    assert acceptor.request.called_ae == "ARCHIVE"
    assert acceptor.request.user.max_pdu_length == 20000
    assert acceptor.request.user.identity is not None
    assert acceptor.request.user.identity.secondary == b"secret"
    echo, store = acceptor.commands
    assert isinstance(echo, CEchoRequest)
    assert store == CStoreRequest(store.message_id, CT, "1.2.3.4.5", store.priority, "MOVER", 9)
    assert len(acceptor.dataset) > 699_000
    assert acceptor.dataset.endswith(bytes(range(256)))


def test_pynetdicom_understands_our_rejection() -> None:
    acceptor = _Acceptor()
    acceptor.start()
    ae = AE("STRANGER")
    ae.add_requested_context(VERIFICATION)
    peer = ae.associate("127.0.0.1", acceptor.port)
    assert peer.is_rejected
    acceptor.join(20)
    assert acceptor.failure is None


@contextmanager
def _peer_listens(received: list[Any], *, max_pdu: int) -> Iterator[int]:
    def store(event: Any) -> int:
        received.append((event.request.MessageID, event.request.DataSet.getvalue()))
        return 0

    ae = AE("PEER")
    ae.maximum_pdu_size = max_pdu
    ae.add_supported_context(VERIFICATION, IMPLICIT)
    ae.add_supported_context(CT, [EXPLICIT, IMPLICIT])
    server = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, store)])
    try:
        yield server.socket.getsockname()[1]
    finally:
        server.shutdown()


@pytest.mark.parametrize("max_pdu", [0, 4096, 16382])
def test_we_send_to_pynetdicom(max_pdu: int) -> None:
    received: list[Any] = []
    data = bytes(range(256)) * 1000
    with (
        _peer_listens(received, max_pdu=max_pdu) as port,
        socket.create_connection(("127.0.0.1", port)) as peer,
    ):
        peer.settimeout(20)
        association, reader = Association(Role.REQUESTOR), MessageReader()
        writer = MessageWriter(association)
        request = AssociateRequest(
            called_ae="PEER",
            calling_ae="US",
            contexts=(
                PresentationContext(1, VERIFICATION, (IMPLICIT,)),
                PresentationContext(3, CT, (EXPLICIT,)),
                PresentationContext(5, "1.2.3.4", (EXPLICIT,)),
            ),
            user=UserInformation(implementation_class_uid="1.2.3", implementation_version="TEST"),
        )
        peer.sendmsg(association.send(request))
        assert isinstance(_next(association, peer), AssociateAccept)
        assert set(association.contexts) == {1, 3}

        def answer() -> Any:
            while True:
                event = _next(association, peer)
                assert isinstance(event, DataFragment)
                message = reader.receive(event)
                if isinstance(message, CommandReceived):
                    return message.command

        peer.sendmsg(writer.command(1, CEchoRequest(7)))
        assert answer() == CEchoResponse(7, 0)
        for number in (8, 9):
            store = CStoreRequest(number, CT, f"1.2.{number}")
            for batch in writer.message(3, store, [data[:100], data[100:]]):
                peer.sendall(b"".join(batch))
            response = answer()
            assert (response.message_id_responded_to, response.status) == (number, 0)
        peer.sendmsg(association.send(ReleaseRequest()))
        assert _next(association, peer) == ReleaseReply()
        assert association.should_close
    assert received == [(8, data), (9, data)]
