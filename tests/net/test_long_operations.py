"""A long operation keeps nobody from being heard, hears what is for it, and ends with its association."""

from __future__ import annotations

import math
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from hounsfield.archive.engine.errors import StorageFailedError
from hounsfield.archive.net.errors import NoAcceptedContextError, PeerGoneError
from hounsfield.archive.net.limits import NetLimits
from hounsfield.archive.net.policy import ListenerPolicy
from hounsfield.archive.net.sending import MessageSender
from hounsfield.archive.net.services import Service
from hounsfield.archive.net.tls import server_context
from hounsfield.archive.net.transport import SocketTransport, StreamTransport
from hounsfield.archive.wire import (
    Abort,
    AbortSource,
    AssociateAccept,
    AssociateRequest,
    Association,
    AsynchronousOperations,
    CCancelRequest,
    CEchoRequest,
    CEchoResponse,
    CFindRequest,
    CFindResponse,
    CGetRequest,
    CGetResponse,
    CStoreRequest,
    CStoreResponse,
    DataFragment,
    NActionRequest,
    NActionResponse,
    NEventReportRequest,
    NEventReportResponse,
    PresentationContext,
    PresentationResult,
    ReleaseReply,
    ReleaseRequest,
    Role,
    RoleSelection,
    UserInformation,
    encode_command,
)
from support.pki import Authority

EXPLICIT = "1.2.840.10008.1.2.1"
CT = "1.2.840.10008.5.1.4.1.1.2"
MR = "1.2.840.10008.5.1.4.1.1.4"
FIND = "1.2.840.10008.5.1.4.1.2.2.1"
GET = "1.2.840.10008.5.1.4.1.2.2.3"
COMMITMENT = "1.2.840.10008.1.20.1"
ECHO_CONTEXT = PresentationContext(1, "1.2.840.10008.1.1", (EXPLICIT,))
CT_CONTEXT = PresentationContext(3, CT, (EXPLICIT,))
FIND_CONTEXT = PresentationContext(5, FIND, (EXPLICIT,))
GET_CONTEXT = PresentationContext(7, GET, (EXPLICIT,))
COMMITMENT_CONTEXT = PresentationContext(9, COMMITMENT, (EXPLICIT,))
ALL = (ECHO_CONTEXT, CT_CONTEXT, FIND_CONTEXT, GET_CONTEXT, COMMITMENT_CONTEXT)
OPEN = ListenerPolicy()
PENDING, CANCEL = 0xFF00, 0xFE00
QUICK = NetLimits(linger_s=0.2)


class Provider:
    """Performs whatever comes with ``work``, and remembers how it went."""

    def __init__(self, work: Callable[[Any, Any, Any, bytes], Awaitable[None]]) -> None:
        self._work = work
        self.begun: list[tuple[Any, bytes]] = []
        self.ended = 0
        self.errors: list[BaseException] = []

    async def __call__(self, operation: Any, context: Any, request: Any, identifier: bytes) -> None:
        self.begun.append((request, identifier))
        try:
            await self._work(operation, context, request, identifier)
        except BaseException as error:
            self.errors.append(error)
            raise
        finally:
            self.ended += 1

    @property
    def services(self) -> list[Service]:
        return [
            Service("find", frozenset({FIND}), {CFindRequest: self}),
            Service("get", frozenset({GET}), {CGetRequest: self}),
            Service("commit", frozenset({COMMITMENT}), {NActionRequest: self}),
        ]


def provider(work: Callable[[Any, Any, Any, bytes], Awaitable[None]]) -> Provider:
    return Provider(work)


def find(message_id: int = 1) -> CFindRequest:
    return CFindRequest(message_id, FIND)


def pending(message_id: int) -> CFindResponse:
    return CFindResponse(message_id, PENDING, FIND, has_dataset=True)


def asking(
    window: int = 0, performed: int = 1, scp_of: tuple[str, ...] = (), pdu: int = 16384
) -> UserInformation:
    return UserInformation(
        max_pdu_length=pdu,
        asynchronous_operations=AsynchronousOperations(window, performed) if window else None,
        roles=tuple(RoleSelection(uid, scu=False, scp=True) for uid in scp_of),
    )


async def _pieces(*data: bytes) -> AsyncIterator[tuple[bytes, bool]]:
    for number, piece in enumerate(data):
        yield piece, number == len(data) - 1


class Hold:
    """Work that answers when it is told to."""

    def __init__(self) -> None:
        self.go = trio.Event()

    async def __call__(self, operation: Any, context: Any, request: Any, identifier: bytes) -> None:
        await self.go.wait()
        await operation.respond(CFindResponse(request.message_id, 0, FIND))


# ---------------------------------------------------------------- what is heard meanwhile


@provider
async def _until_cancelled(operation: Any, context: Any, request: Any, identifier: bytes) -> None:
    while not operation.cancelled:  # never blocks: the kernel, or a peer that reads, takes all of it
        await operation.respond(pending(request.message_id), b"\x08\x00\x05\x00CS\x00\x00")
    await operation.respond(CFindResponse(request.message_id, CANCEL, FIND))


async def test_a_find_is_cancelled_in_its_middle(serve: Any, sink: Any, peer_to: Any) -> None:
    async with serve(sink, OPEN, services=_until_cancelled.services) as archive:
        peer = await peer_to(archive)
        await peer.associate(*ALL)
        await peer.say(5, find(7), b"identify")
        for _ in range(3):
            assert await peer.message() == (5, pending(7), b"\x08\x00\x05\x00CS\x00\x00")
        await peer.say(5, CCancelRequest(99))  # of something else
        assert (await peer.message())[1] == pending(7)
        await peer.say(5, CCancelRequest(7))
        while (answer := (await peer.message())[1]).status == PENDING:
            pass
        assert answer == CFindResponse(7, CANCEL, FIND)
        assert _until_cancelled.begun[-1] == (find(7), b"identify")
        await peer.send(ReleaseRequest())
        assert await peer.event() == ReleaseReply()


@pytest.mark.peer("pynetdicom")
async def test_pynetdicom_cancels_its_find(serve: Any, sink: Any) -> None:
    from pydicom.dataset import Dataset
    from pynetdicom import AE

    def call(port: int) -> list[int]:
        entity = AE("PYNETDICOM")
        entity.add_requested_context(FIND, EXPLICIT)
        association = entity.associate("127.0.0.1", port, ae_title="HOUNSFIELD")
        assert association.is_established
        query = Dataset()
        query.QueryRetrieveLevel = "STUDY"
        seen = []
        for status, _ in association.send_c_find(query, FIND, msg_id=12):
            seen.append(int(status.Status))
            if len(seen) == 5:
                association.send_c_cancel(12, association.accepted_contexts[0].context_id)
        association.release()
        return seen

    async with serve(sink, OPEN, services=_until_cancelled.services) as archive:
        seen = await trio.to_thread.run_sync(call, archive.port)
        assert seen[-1] == CANCEL
        assert set(seen[:-1]) == {PENDING}
        await archive.until(lambda: archive.listener.statistics().associations_released == 1)


async def test_a_cancel_is_heard_though_the_kernel_takes_every_answer_at_once(
    serve: Any, sink: Any, peer_to: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[bool] = []

    @provider
    async def work(operation: Any, context: Any, request: Any, identifier: bytes) -> None:
        monkeypatch.setattr(SocketTransport, "send_nowait", lambda *_: ())
        for number in range(100_000):
            if number == 1000:
                peer.stream.socket._sock.send(cancel)  # without a moment for anybody else
            await operation.respond(pending(request.message_id), b"\x08\x00\x05\x00CS\x00\x00")
            if operation.cancelled:
                break
        heard.append(operation.cancelled)

    async with serve(sink, OPEN, services=work.services) as archive:
        peer = await peer_to(archive)
        await peer.associate(*ALL)
        (cancel,) = peer.writer.command(5, CCancelRequest(7))
        await peer.say(5, find(7), b"identify")
        await archive.until(lambda: len(heard) == 1)
        assert heard == [True]


async def test_echo_and_store_are_answered_meanwhile(serve: Any, sink: Any, peer_to: Any) -> None:
    hold = Hold()
    async with serve(sink, OPEN, services=Provider(hold).services) as archive:
        peer = await peer_to(archive)
        await peer.associate(*ALL)
        await peer.say(5, find(1), b"12345678")
        await peer.say(1, CEchoRequest(2))
        assert await peer.response() == CEchoResponse(2, 0)
        await peer.say(3, CStoreRequest(3, CT, "1.2.3"), b"12345678")
        assert await peer.response() == CStoreResponse(3, 0, CT, "1.2.3")
        hold.go.set()
        assert await peer.response() == CFindResponse(1, 0, FIND)


async def test_what_is_sent_by_several_is_never_mixed(serve: Any, sink: Any, peer_to: Any) -> None:
    @provider
    async def talk(operation: Any, context: Any, request: Any, identifier: bytes) -> None:
        for _ in range(4):  # longer than the kernel takes at once
            await operation.respond(pending(request.message_id), bytes([request.message_id]) * 3_000_000)
        await operation.respond(CFindResponse(request.message_id, 0, FIND))

    async with serve(sink, OPEN, services=talk.services) as archive:
        peer = await peer_to(archive)
        await peer.associate(*ALL, user=asking(window=4))
        for number in (1, 2, 3):
            await peer.say(5, find(number), b"12345678")
        await peer.say(1, CEchoRequest(4))
        seen: dict[int, int] = {}
        for _ in range(3 * 5 + 1):
            _, command, dataset = await peer.message()  # the reader there raises for what is mixed
            number = command.message_id_responded_to
            seen[number] = seen.get(number, 0) + 1
            assert set(dataset) <= {number}
        assert seen == {1: 5, 2: 5, 3: 5, 4: 1}


async def test_who_sends_without_end_lets_others_speak(serve: Any, sink: Any, peer_to: Any) -> None:
    @provider
    async def flood(operation: Any, context: Any, request: Any, identifier: bytes) -> None:
        while not operation.cancelled:  # each blocks in its middle, and the next begins at once
            await operation.respond(pending(request.message_id), bytes(3_000_000))
        await operation.respond(CFindResponse(request.message_id, CANCEL, FIND))

    async with serve(sink, OPEN, services=flood.services) as archive:
        peer = await peer_to(archive)
        await peer.associate(*ALL)
        await peer.say(5, find(1), b"12345678")
        await peer.message()
        await peer.say(1, CEchoRequest(2))
        answers = [(await peer.message())[1] for _ in range(4)]
        assert CEchoResponse(2, 0) in answers
        await peer.say(5, CCancelRequest(1))
        while (await peer.message())[1].status != CANCEL:
            pass


async def test_over_tls_too_a_response_is_one_write_and_a_long_one_a_few() -> None:
    written: list[bytes] = []

    class Stream(trio.abc.Stream):
        async def send_all(self, data: Any) -> None:
            written.append(bytes(data))

        async def wait_send_all_might_not_block(self) -> None: ...

        async def receive_some(self, max_bytes: int | None = None) -> bytes:
            return b""

        async def aclose(self) -> None: ...

    transport = StreamTransport(Stream())
    await transport.send([b"header", b"", b"data" * 100, memoryview(b"x")])
    assert written == [b"header" + b"data" * 100 + b"x"]
    pieces = [bytes([number]) * 50_000 for number in range(6)]
    left: Any = pieces
    while left:  # what is left is what a deadline has to begin anew for
        left = await transport.send_some(left)
    assert len(written) - 1 == -(-300_000 // 65_536)
    assert b"".join(written[1:]) == b"".join(pieces)
    assert transport.bytes_out == 407 + 300_000


async def test_all_of_it_over_tls(serve: Any, sink: Any, peer_to: Any, tmp_path: Path) -> None:
    @provider
    async def work(operation: Any, context: Any, request: Any, identifier: bytes) -> None:
        while not operation.cancelled:
            await operation.respond(pending(request.message_id), bytes(300_000))
        answer = await operation.store(operation.contexts[3], "1.2.3", _pieces(bytes(700_000), b"12"))
        await operation.respond(CFindResponse(request.message_id, 0xFE00 + answer.status, FIND))

    shown = Authority(tmp_path / "pki").sign("ARCHIVE")
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
    tls = server_context(shown.pem, shown.key)
    get = Service("get", frozenset({GET}), {CGetRequest: work})
    async with serve(sink, OPEN, services=[work.services[0], get], tls=tls) as archive:
        peer = await peer_to(archive)
        peer.stream = trio.SSLStream(peer.stream, client)
        await peer.associate(*ALL, user=asking(scp_of=(CT,)))
        await peer.say(5, find(1), b"12345678")
        await peer.message()
        await peer.say(1, CEchoRequest(2))
        await peer.say(5, CCancelRequest(1))
        said = []
        while not isinstance(command := (await peer.message())[1], CStoreRequest):
            said.append(command)
        assert CEchoResponse(2, 0) in said
        await peer.say(3, CStoreResponse(command.message_id, 0))
        assert await peer.response() == CFindResponse(1, CANCEL, FIND)
        await peer.send(ReleaseRequest())
        assert await peer.event() == ReleaseReply()


async def test_a_response_with_its_identifier_leaves_in_one_write(
    serve: Any, sink: Any, peer_to: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    writes: list[int] = []
    send = SocketTransport.send_nowait

    def counted(transport: SocketTransport, buffers: Any) -> Any:
        writes.append(sum(map(len, buffers)))
        return send(transport, buffers)

    @provider
    async def once(operation: Any, context: Any, request: Any, identifier: bytes) -> None:
        await operation.respond(pending(1), bytes(10_000))
        await operation.respond(CFindResponse(1, 0, FIND))

    async with serve(sink, OPEN, services=once.services) as archive:
        peer = await peer_to(archive)
        await peer.associate(*ALL)
        monkeypatch.setattr(SocketTransport, "send_nowait", counted)
        await peer.say(5, find(1), b"12345678")
        await peer.message()
        await peer.message()
        assert len(writes) == 2
        assert writes[0] > 10_000 > writes[1]


# ---------------------------------------------------------------- requests of ours


class _Getting:
    """Answers a C-GET with stores on the same association."""

    def __init__(self, *objects: tuple[bytes, ...], at_once: bool = False) -> None:
        self.objects = objects
        self.at_once = at_once
        self.answers: list[Any] = []
        self.by_uid: dict[str, Any] = {}

    async def __call__(self, operation: Any, context: Any, request: Any, identifier: bytes) -> None:
        target = next(c for c in operation.contexts.values() if c.abstract_syntax == CT)

        async def store(number: int, data: tuple[bytes, ...]) -> None:
            answer = await operation.store(target, f"1.2.{number}", _pieces(*data))
            self.by_uid[f"1.2.{number}"] = answer
            self.answers.append(answer)
            await operation.respond(
                CGetResponse(request.message_id, PENDING, GET, 9, len(self.answers), 0, 0)
            )

        if self.at_once:
            async with trio.open_nursery() as nursery:
                for number, data in enumerate(self.objects):
                    nursery.start_soon(store, number, data)
        else:
            for number, data in enumerate(self.objects):
                await store(number, data)
        await operation.respond(CGetResponse(request.message_id, 0, GET, None, len(self.answers), 0, 0))


async def test_a_get_stores_on_its_own_association(serve: Any, sink: Any, peer_to: Any) -> None:
    getting = _Getting((b"12345678",), (bytes(300_000), b"123456", bytes(2)), (b"", b"12"))
    async with serve(sink, OPEN, services=Provider(getting).services) as archive:
        peer = await peer_to(archive)
        accept = await peer.associate(*ALL, user=asking(scp_of=(CT,)))
        assert accept.user.roles == (RoleSelection(CT, scu=False, scp=True),)
        await peer.say(7, CGetRequest(41, GET, priority=1), b"identify")
        for number, data in enumerate(getting.objects):
            context_id, command, dataset = await peer.message()
            assert (context_id, dataset) == (3, b"".join(data))
            assert (command.affected_sop_class_uid, command.affected_sop_instance_uid) == (
                CT,
                f"1.2.{number}",
            )
            assert command.priority == 1  # that of the C-GET
            await peer.say(3, CStoreResponse(command.message_id, 0xB000 if number else 0))
            assert (await peer.message())[1] == CGetResponse(41, PENDING, GET, 9, number + 1, 0, 0)
        assert (await peer.message())[1] == CGetResponse(41, 0, GET, None, 3, 0, 0)
        assert [answer.status for answer in getting.answers] == [0, 0xB000, 0xB000]


async def test_stores_overlap_within_the_peers_window_and_answers_find_their_own(
    serve: Any, sink: Any, peer_to: Any
) -> None:
    getting = _Getting(*[(bytes([number]) * 8,) for number in range(5)], at_once=True)
    async with serve(sink, OPEN, services=Provider(getting).services) as archive:
        peer = await peer_to(archive)
        await peer.associate(*ALL, user=asking(window=1, performed=3, scp_of=(CT,)))
        await peer.say(7, CGetRequest(1, GET), b"identify")
        asked = [(await peer.message())[1] for _ in range(3)]
        assert len({command.message_id for command in asked}) == 3
        with trio.move_on_after(0.05) as waited:  # no fourth one
            await peer.message()
        assert waited.cancelled_caught
        waiting = list(reversed(asked))
        while waiting or len(getting.answers) < 5:
            if waiting:
                command = waiting.pop(0)
                uid = command.affected_sop_instance_uid
                await peer.say(3, CStoreResponse(command.message_id, 0, CT, uid))
            answer = (await peer.message())[1]
            if isinstance(answer, CStoreRequest):
                waiting.append(answer)
        assert {uid: answer.affected_sop_instance_uid for uid, answer in getting.by_uid.items()} == {
            uid: uid for uid in (f"1.2.{number}" for number in range(5))
        }


async def test_a_store_needs_the_scp_role_of_the_peer(serve: Any, sink: Any, peer_to: Any) -> None:
    work = Provider(_Getting((b"12345678",)))
    async with serve(sink, OPEN, services=work.services) as archive:
        peer = await peer_to(archive)
        await peer.associate(*ALL, user=asking(scp_of=(MR,)))
        await peer.say(7, CGetRequest(1, GET), b"identify")
        assert (await peer.response()).status == 0xC000  # the provider did not take care
        assert isinstance(work.errors[0], NoAcceptedContextError)


@pytest.mark.peer("pynetdicom")
async def test_pynetdicom_gets(serve: Any, sink: Any) -> None:
    from pydicom.dataset import Dataset
    from pynetdicom import AE, build_role, evt

    getting = _Getting(
        (b"\x08\x00\x18\x00UI\x06\x001.2.0\x00",), (b"\x08\x00\x18\x00UI\x06\x00", b"1.2.1\x00")
    )
    came: list[str] = []

    def store(event: Any) -> int:
        assert event.dataset.SOPInstanceUID == event.request.AffectedSOPInstanceUID
        came.append(event.request.AffectedSOPInstanceUID)
        return 0

    def call(port: int) -> list[int]:
        entity = AE("PYNETDICOM")
        entity.add_requested_context(GET, EXPLICIT)
        entity.add_requested_context(CT, EXPLICIT)
        association = entity.associate(
            "127.0.0.1",
            port,
            ae_title="HOUNSFIELD",
            ext_neg=[build_role(CT, scp_role=True)],
            evt_handlers=[(evt.EVT_C_STORE, store)],
        )
        assert association.is_established
        query = Dataset()
        query.QueryRetrieveLevel = "STUDY"
        seen = [int(status.Status) for status, _ in association.send_c_get(query, GET)]
        association.release()
        return seen

    async with serve(sink, OPEN, services=Provider(getting).services) as archive:
        assert await trio.to_thread.run_sync(call, archive.port) == [PENDING, PENDING, 0]
        assert came == ["1.2.0", "1.2.1"]
        await archive.until(lambda: archive.listener.statistics().associations_released == 1)


async def test_an_object_that_cannot_be_read_from_its_beginning_costs_nothing_else(
    serve: Any, sink: Any, peer_to: Any
) -> None:
    async def unreadable() -> AsyncIterator[tuple[bytes, bool]]:
        if archive:
            raise StorageFailedError("no")
        yield b"", True

    @provider
    async def work(operation: Any, context: Any, request: Any, identifier: bytes) -> None:
        with pytest.raises(StorageFailedError):
            await operation.store(operation.contexts[3], "1.2.3", unreadable())
        answer = await operation.store(operation.contexts[3], "1.2.4", _pieces(b"12"))
        await operation.respond(CGetResponse(request.message_id, answer.status, GET))

    async with serve(sink, OPEN, services=work.services) as archive:
        peer = await peer_to(archive)
        await peer.associate(*ALL, user=asking(scp_of=(CT,)))
        await peer.say(7, CGetRequest(1, GET), b"identify")
        command = (await peer.message())[1]
        assert command.affected_sop_instance_uid == "1.2.4"
        await peer.say(3, CStoreResponse(command.message_id, 0xA700))
        assert (await peer.response()).status == 0xA700


async def test_an_object_that_breaks_off_ends_the_association(serve: Any, sink: Any, peer_to: Any) -> None:
    async def torn() -> AsyncIterator[tuple[bytes, bool]]:
        yield b"1234", False
        raise StorageFailedError("no")

    @provider
    async def work(operation: Any, context: Any, request: Any, identifier: bytes) -> None:
        await operation.store(operation.contexts[3], "1.2.3", torn())

    async with serve(sink, OPEN, services=work.services) as archive:
        peer = await peer_to(archive)
        await peer.associate(*ALL, user=asking(scp_of=(CT,)))
        await peer.say(7, CGetRequest(1, GET), b"identify")
        while isinstance(event := await peer.event(), DataFragment):
            assert not event.last or event.is_command
        assert isinstance(event, Abort)
        await archive.until(lambda: archive.listener.statistics().associations_aborted == 1)


async def test_a_result_is_reported_after_the_last_response_and_a_release_ends_the_wait(
    serve: Any, sink: Any, peer_to: Any
) -> None:
    reports: list[Any] = []

    @provider
    async def commit(operation: Any, context: Any, request: Any, identifier: bytes) -> None:
        await operation.respond(NActionResponse(request.message_id, 0))
        for number in (1, 2):
            report = NEventReportRequest(0, COMMITMENT, "1.2.840.10008.1.20.1.1", number)
            reports.append(await operation.report(context, report, b"results!" if number == 1 else b""))

    request = NActionRequest(5, COMMITMENT, "1.2.840.10008.1.20.1.1", 1, has_dataset=True)
    async with serve(sink, OPEN, services=commit.services) as archive:
        peer = await peer_to(archive)
        await peer.associate(*ALL)
        await peer.say(9, request, b"12345678")
        assert (await peer.response()).status == 0
        context_id, report, dataset = await peer.message()
        assert (context_id, report.event_type_id, dataset) == (9, 1, b"results!")
        answer = NEventReportResponse(report.message_id, 0, COMMITMENT, has_dataset=True)
        await peer.say(9, answer, b"whatever")
        _, report, dataset = await peer.message()
        assert (report.event_type_id, dataset) == (2, b"")
        assert reports == [answer]
        await peer.send(ReleaseRequest())  # nothing of its own is outstanding
        assert await peer.event() == ReleaseReply()
        await archive.until(lambda: commit.ended == 1)
        assert isinstance(commit.errors[0], trio.Cancelled)


# ---------------------------------------------------------------- ends


@pytest.mark.parametrize("how", ["abort", "vanish", "release"])
async def test_an_operation_ends_with_its_association(serve: Any, sink: Any, peer_to: Any, how: str) -> None:
    work = Provider(Hold())
    async with serve(sink, OPEN, services=work.services, limits=QUICK) as archive:
        peer = await peer_to(archive)
        await peer.associate(*ALL)
        await peer.say(5, find(), b"12345678")
        await archive.until(lambda: len(work.begun) == 1)
        if how == "abort":
            await peer.send(Abort())
        elif how == "vanish":
            await trio.aclose_forcefully(peer.stream)
        else:  # before the answer that it asked for (PS3.8 9.2, AA-1)
            await peer.send(ReleaseRequest())
            assert await peer.event() == Abort(AbortSource.SERVICE_USER, 0)
        await archive.until(lambda: archive.listener.statistics().associations_aborted == 1)
        await archive.until(lambda: work.ended == 1)
        assert isinstance(work.errors[0], trio.Cancelled)
        await archive.until(lambda: archive.listener.statistics().connections_open <= (how == "release"))


async def test_who_aborts_within_an_answer_is_counted_once(serve: Any, sink: Any, peer_to: Any) -> None:
    @provider
    async def flood(operation: Any, context: Any, request: Any, identifier: bytes) -> None:
        await operation.respond(pending(1), bytes(100_000_000))

    async with serve(sink, OPEN, services=flood.services, limits=QUICK) as archive:
        peer = await peer_to(archive)
        await peer.associate(*ALL)
        await peer.say(5, find(), b"12345678")
        await archive.until(lambda: archive.listener.statistics().bytes_out > 100_000)
        await peer.send(Abort())
        await archive.until(lambda: archive.listener.statistics().connections_open == 0)
        assert archive.listener.statistics().associations_aborted == archive.observer.aborted == 1
        assert flood.ended == 1


async def test_who_waits_for_answers_is_not_idle_and_is_afterwards(
    serve: Any, sink: Any, peer_to: Any
) -> None:
    hold = Hold()
    limits = NetLimits(idle_s=0.05, linger_s=0.2)
    async with serve(sink, OPEN, services=Provider(hold).services, limits=limits) as archive:
        peer = await peer_to(archive)
        await peer.associate(*ALL)
        await peer.say(5, find(), b"12345678")
        with trio.move_on_after(0.3) as waited:
            await peer.event()
        assert waited.cancelled_caught
        hold.go.set()
        assert (await peer.response()).status == 0
        assert isinstance(await peer.event(), Abort)
        assert archive.listener.statistics().associations_timed_out == 1


async def test_who_does_not_answer_a_request_of_ours_is_cut(serve: Any, sink: Any, peer_to: Any) -> None:
    limits = NetLimits(dimse_s=0.05, linger_s=0.2)
    work = Provider(_Getting((b"12345678",)))
    async with serve(sink, OPEN, services=work.services, limits=limits) as archive:
        peer = await peer_to(archive)
        await peer.associate(*ALL, user=asking(scp_of=(CT,)))
        await peer.say(7, CGetRequest(1, GET), b"identify")
        assert isinstance((await peer.message())[1], CStoreRequest)
        assert isinstance(await peer.event(), Abort)
        await archive.until(lambda: archive.listener.statistics().associations_timed_out == 1)
        assert work.ended == 1


async def test_who_does_not_take_what_is_sent_is_cut(serve: Any, sink: Any, peer_to: Any) -> None:
    @provider
    async def flood(operation: Any, context: Any, request: Any, identifier: bytes) -> None:
        while True:
            await operation.respond(pending(1), bytes(1_000_000))

    limits = NetLimits(write_s=0.1, linger_s=0.1)
    async with serve(sink, OPEN, services=flood.services, limits=limits) as archive:
        peer = await peer_to(archive)
        await peer.associate(*ALL)
        await peer.say(5, find(), b"12345678")
        await archive.until(lambda: archive.listener.statistics().associations_timed_out == 1)
        await archive.until(lambda: archive.listener.statistics().connections_open == 0)
        assert flood.ended == 1


async def test_who_takes_what_is_sent_slowly_is_not_cut_before_it_stops(autojump_clock: Any) -> None:
    class Slow:
        """A transport that takes a kilobyte every nine seconds, and nothing after the hundredth."""

        taken = 0
        last = 0.0

        def send_nowait(self, buffers: Any) -> Any:
            return buffers

        async def send_some(self, buffers: Any) -> Any:
            await trio.sleep(9 if self.taken < 100 else math.inf)
            self.taken += 1
            self.last = trio.current_time()
            data = b"".join(buffers)
            return [data[1000:]] if len(data) > 1000 else []

    ends: list[tuple[str, bool]] = []

    def give_up(because: str, *, too_slow: bool = False) -> None:
        ends.append((because, too_slow))

    transport: Any = Slow()
    sender = MessageSender(_established(), transport, 10.0, give_up)
    await sender.message(5, pending(1), bytes(90_000))
    assert (transport.taken > 90, ends) == (True, [])
    with pytest.raises(PeerGoneError):
        await sender.message(5, pending(2), bytes(90_000))
    assert ends == [("the peer does not take what is sent", True)]
    assert trio.current_time() - transport.last == pytest.approx(10)


def _established() -> Association:
    """An acceptor's association, agreed upon."""
    ours, theirs = Association(Role.ACCEPTOR), Association(Role.REQUESTOR)
    request = AssociateRequest(called_ae="A", calling_ae="B", contexts=ALL, user=asking(pdu=0))
    ours.receive_data(b"".join(theirs.send(request)))
    assert ours.next_event() == request
    results = tuple(PresentationResult(context.context_id, 0, EXPLICIT) for context in ALL)
    ours.send(AssociateAccept(called_ae="A", calling_ae="B", contexts=results))
    return ours


async def test_a_defect_fails_its_operation_and_no_other(serve: Any, sink: Any, peer_to: Any) -> None:
    @provider
    async def broken(operation: Any, context: Any, request: Any, identifier: bytes) -> None:
        if identifier == b"raise me":
            raise ZeroDivisionError("a patient's name")

    async with serve(sink, OPEN, services=broken.services) as archive:
        peer = await peer_to(archive)
        await peer.associate(*ALL)
        await peer.say(5, find(1), b"raise me")
        answer = await peer.response()
        assert (answer.message_id_responded_to, answer.status, answer.affected_sop_class_uid) == (
            1,
            0xC000,
            FIND,
        )
        assert "patient" not in answer.error_comment
        await peer.say(5, find(2), b"say nothing.")  # and no last response
        assert (await peer.response()).status == 0xC000
        await peer.say(9, NActionRequest(3, COMMITMENT, "1.2", 1, has_dataset=True), b"raise me")
        assert (await peer.response()).status == 0x0110
        await peer.say(1, CEchoRequest(4))
        assert (await peer.response()).status == 0


async def test_a_draining_archive_finishes_what_is_under_way(serve: Any, sink: Any, peer_to: Any) -> None:
    hold = Hold()
    limits = NetLimits(drain_release_s=0.05, linger_s=0.2)
    async with serve(sink, OPEN, services=Provider(hold).services, limits=limits) as archive:
        peer = await peer_to(archive)
        await peer.associate(*ALL)
        await peer.say(5, find(), b"12345678")
        await peer.say(1, CEchoRequest(2))
        assert (await peer.response()).status == 0
        archive.nursery.start_soon(archive.listener.drain)
        await archive.until(lambda: archive.listener.draining)
        await peer.say(5, CCancelRequest(77))  # is still heard, and begins nothing
        hold.go.set()
        assert (await peer.response()).status == 0
        assert isinstance(await peer.event(), Abort)  # it had its moment to release
        with trio.fail_after(30):
            await archive.listener.drain()


async def test_a_draining_archive_begins_nothing_new(serve: Any, sink: Any, peer_to: Any) -> None:
    hold = Hold()
    work = Provider(hold)
    async with serve(sink, OPEN, services=work.services, limits=QUICK) as archive:
        peer = await peer_to(archive)
        await peer.associate(*ALL, user=asking(window=4))
        await peer.say(5, find(1), b"12345678")
        await archive.until(lambda: len(work.begun) == 1)
        archive.nursery.start_soon(archive.listener.drain)
        await archive.until(lambda: archive.listener.draining)
        await peer.say(5, CCancelRequest(77))
        await peer.say(5, find(2), b"12345678")
        hold.go.set()
        answer = await peer.response()
        assert (answer.message_id_responded_to, answer.status) == (1, 0)
        assert isinstance(await peer.event(), Abort)
        assert len(work.begun) == 1


# ---------------------------------------------------------------- windows


@pytest.mark.parametrize(("asked", "granted", "at_once"), [(0, None, 1), (2, 2, 2), (0xFFFF, 3, 3)])
async def test_operations_run_at_once_within_the_window_and_in_turn_past_it(
    serve: Any, sink: Any, peer_to: Any, asked: int, granted: int | None, at_once: int
) -> None:
    hold = Hold()
    work = Provider(hold)
    limits = NetLimits(operations_invoked_max=3, linger_s=0.2)
    async with serve(sink, OPEN, services=work.services, limits=limits) as archive:
        peer = await peer_to(archive)
        accept = await peer.associate(*ALL, user=asking(window=asked))
        window = accept.user.asynchronous_operations
        assert (window.invoked_max if window else None) == granted
        for number in range(1, 6):
            await peer.say(5, find(number), b"12345678")
        await archive.until(lambda: len(work.begun) == at_once)
        with trio.move_on_after(0.05):
            await archive.until(lambda: len(work.begun) > at_once)
        assert len(work.begun) == at_once
        hold.go.set()
        answers = {(await peer.response()).message_id_responded_to for _ in range(5)}
        assert answers == {1, 2, 3, 4, 5}


async def test_a_message_id_is_used_once_at_a_time(serve: Any, sink: Any, peer_to: Any) -> None:
    hold = Hold()
    async with serve(sink, OPEN, services=Provider(hold).services) as archive:
        peer = await peer_to(archive)
        await peer.associate(*ALL, user=asking(window=4))
        await peer.say(5, find(1), b"12345678")
        await peer.say(5, find(1), b"12345678")
        assert (await peer.response()).status == 0x0210
        hold.go.set()
        assert (await peer.response()).status == 0
        await peer.say(5, find(1), b"12345678")
        assert (await peer.response()).status == 0


# ---------------------------------------------------------------- hostile peers


async def test_too_long_an_identifier_is_let_go_and_refused(serve: Any, sink: Any, peer_to: Any) -> None:
    @provider
    async def ok(operation: Any, context: Any, request: Any, identifier: bytes) -> None:
        await operation.respond(CFindResponse(request.message_id, 0, FIND))

    limits = NetLimits(identifier_bytes_max=1000, linger_s=0.2)
    async with serve(sink, OPEN, services=ok.services, limits=limits) as archive:
        peer = await peer_to(archive)
        await peer.associate(*ALL)
        await peer.say(5, find(1), bytes(1000))
        assert (await peer.response()).status == 0
        await peer.say(5, find(2), bytes(5_000_000))
        answer = await peer.response()
        assert (answer.message_id_responded_to, answer.status) == (2, 0xA700)
        await peer.say(7, CGetRequest(3, GET), bytes(1002))
        assert (await peer.response()).status == 0xA701
        await peer.say(9, NActionRequest(4, COMMITMENT, "1.2", 1, has_dataset=True), bytes(1002))
        assert (await peer.response()).status == 0x0213
        await peer.say(1, CEchoRequest(5))
        assert (await peer.response()).status == 0
        assert [len(identifier) for _, identifier in ok.begun] == [1000]


async def test_identifiers_of_one_association_are_limited_together(
    serve: Any, sink: Any, peer_to: Any
) -> None:
    hold = Hold()
    limits = NetLimits(identifier_bytes_max=1000, linger_s=0.2)
    async with serve(sink, OPEN, services=Provider(hold).services, limits=limits) as archive:
        peer = await peer_to(archive)
        await peer.associate(*ALL, user=asking(window=8))
        await peer.say(5, find(1), bytes(600))
        await peer.say(5, find(2), bytes(402))
        assert (await peer.response()).status == 0xA700
        await peer.say(5, find(3), bytes(400))
        hold.go.set()
        assert {(await peer.response()).message_id_responded_to for _ in range(2)} == {1, 3}
        await peer.say(5, find(4), bytes(1000))  # their room is given back
        assert (await peer.response()).status == 0


@pytest.mark.parametrize(
    "response",
    [CStoreResponse(77, 0), NEventReportResponse(77, 0), NEventReportResponse(1, 0), CFindResponse(1, 0)],
)
async def test_a_response_to_nothing_is_a_breach(serve: Any, sink: Any, peer_to: Any, response: Any) -> None:
    work = Provider(_Getting((b"12345678",)))
    async with serve(sink, OPEN, services=work.services, limits=QUICK) as archive:
        peer = await peer_to(archive)
        await peer.associate(*ALL, user=asking(scp_of=(CT,)))
        await peer.say(7, CGetRequest(1, GET), b"identify")
        assert (await peer.message())[1].message_id == 1  # ours, and a C-STORE
        await peer.say(3, response)
        assert await peer.event() == Abort(AbortSource.SERVICE_USER, 0)
        await archive.until(lambda: work.ended == 1)


async def test_messages_mixed_while_an_operation_runs_are_a_breach(
    serve: Any, sink: Any, peer_to: Any
) -> None:
    work = Provider(Hold())
    async with serve(sink, OPEN, services=work.services, limits=QUICK) as archive:
        peer = await peer_to(archive)
        await peer.associate(*ALL, user=asking(window=4))
        await peer.say(5, find(1), b"12345678")
        await peer.send(DataFragment(5, True, True, encode_command(find(2))))
        await peer.send(DataFragment(3, False, False, b"1234"))
        assert isinstance(await peer.event(), Abort)
        await archive.until(lambda: work.ended == 1)


async def test_a_flood_of_cancels_changes_nothing(serve: Any, sink: Any, peer_to: Any) -> None:
    hold = Hold()
    async with serve(sink, OPEN, services=Provider(hold).services) as archive:
        peer, other = await peer_to(archive), await peer_to(archive)
        await peer.associate(*ALL)
        await other.associate(*ALL)
        await peer.say(5, find(1), b"12345678")
        flood = b"".join(
            bytes(buffer)
            for number in range(2, 300)
            for buffer in peer.writer.command(5, CCancelRequest(number))
        )
        for _ in range(10):
            await peer.raw(flood)
        await other.say(1, CEchoRequest(1))
        assert (await other.response()).status == 0
        hold.go.set()
        assert await peer.response() == CFindResponse(1, 0, FIND)
        await peer.say(1, CEchoRequest(2))
        assert (await peer.response()).status == 0


async def test_operations_that_outlive_their_answers_are_counted(serve: Any, sink: Any, peer_to: Any) -> None:
    hold = trio.Event()

    @provider
    async def linger(operation: Any, context: Any, request: Any, identifier: bytes) -> None:
        await operation.respond(NActionResponse(request.message_id, 0))
        await hold.wait()

    limits = NetLimits(operations_invoked_max=2, linger_s=0.2)
    async with serve(sink, OPEN, services=linger.services, limits=limits) as archive:
        peer = await peer_to(archive)
        await peer.associate(*ALL)
        statuses = []
        for number in range(1, 4):
            await peer.say(9, NActionRequest(number, COMMITMENT, "1.2", 1))
            statuses.append((await peer.response()).status)
        assert statuses == [0, 0, 0x0213]
        hold.set()
        await archive.until(lambda: linger.ended == 2)
        await peer.say(9, NActionRequest(9, COMMITMENT, "1.2", 1))
        assert (await peer.response()).status == 0
