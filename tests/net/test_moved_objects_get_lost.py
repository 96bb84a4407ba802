"""A C-MOVE sends what was asked for to whom it was asked for, and tells truly what arrived."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import trio

from hounsfield.archive.engine.errors import OutOfResourcesError, StorageFailedError
from hounsfield.archive.engine.opening import Opening
from hounsfield.archive.index.deletion import Target
from hounsfield.archive.net.limits import NetLimits
from hounsfield.archive.net.moving import move_service
from hounsfield.archive.net.policy import ListenerPolicy
from hounsfield.archive.net.scu import RemoteEntity, ScuLimits, associate
from hounsfield.archive.net.suboperations import RetrieveFigures, RetrieveLimits
from hounsfield.archive.wire import (
    NEED_DATA,
    AssociateAccept,
    AssociateRequest,
    Association,
    CMoveRequest,
    CMoveResponse,
    CommandReceived,
    ContextResult,
    CStoreResponse,
    DataFragment,
    MessageReader,
    MessageWriter,
    PresentationContext,
    PresentationResult,
    ReleaseReply,
    ReleaseRequest,
    Role,
)
from hounsfield.storage_backends.local_blobs import LocalBlobs
from support.retrieving import (
    EXPLICIT,
    IMPLICIT,
    PATIENCE_S,
    PATIENT_MOVE,
    PATIENT_STUDY_MOVE,
    STUDY_MOVE,
    Known,
    at,
    by_uid,
    dataset_of,
    failed_uids,
    free_port,
    identifier,
    sample,
    slices,
    stored,
    storescp,
)

QUICK = RetrieveLimits(pause_s=0.001, poll_s=0.005)
OPEN = ListenerPolicy()


async def ask(
    archive: Any, keys: bytes, *, sop_class: str = STUDY_MOVE, to: str = "DEST"
) -> tuple[Any, bytes, Any]:
    """C-MOVE: the final response and its identifier, and the pending ones."""
    pending = []
    with trio.fail_after(PATIENCE_S):
        async with associate(
            at(archive.port, calling_ae="ASKING"), [PresentationContext(1, sop_class, (EXPLICIT,))]
        ) as association:
            request = CMoveRequest(association.next_message_id(), sop_class, to)
            async with aclosing(association.request(association.contexts[1], request, keys)) as responses:
                async for response, data in responses:
                    assert isinstance(response, CMoveResponse)
                    if response.status == 0xFF00:
                        assert not data
                        pending.append(response)
                    else:
                        final = response, data
    return (*final, pending)


def counts(response: Any) -> tuple[Any, ...]:
    return (
        response.remaining_suboperations,
        response.completed_suboperations,
        response.failed_suboperations,
        response.warning_suboperations,
    )


@pytest.fixture
def moving(open_archive: Callable[..., Any], serve: Any, sink: Any) -> Callable[..., Any]:
    """``async with moving() as (archive, destination)``: DEST is a listener over ``sink``."""
    stack = AsyncExitStack()

    class Both:
        def __init__(
            self,
            limits: RetrieveLimits = QUICK,
            scu_limits: ScuLimits | None = None,
            policy: ListenerPolicy = OPEN,
            **entities: RemoteEntity,
        ) -> None:
            self.limits, self.scu_limits, self.policy, self.entities = limits, scu_limits, policy, entities

        async def __aenter__(self) -> tuple[Any, Any]:
            destination = await stack.enter_async_context(serve(sink, self.policy))
            known = Known(**{"DEST": at(destination.port), **self.entities})
            archive = await stack.enter_async_context(
                open_archive(
                    provide=lambda engine: [move_service(engine, known, self.limits, self.scu_limits)]
                )
            )
            return archive, destination

        async def __aexit__(self, *error: object) -> None:
            await stack.aclose()

    return Both


# ---------------------------------------------------------------- what is sent


@pytest.mark.parametrize(
    ("sop_class", "keys", "expected"),
    [
        (PATIENT_MOVE, {"level": "PATIENT", "PatientID": "P1"}, 6),
        (PATIENT_MOVE, {"level": "STUDY", "PatientID": "P1", "StudyInstanceUID": "1.2.3.4"}, 6),
        (PATIENT_MOVE, {"level": "STUDY", "PatientID": "P2", "StudyInstanceUID": "1.2.3.4"}, 0),
        (STUDY_MOVE, {"level": "STUDY", "StudyInstanceUID": "1.2.3.4\\1.2.3.5"}, 6),
        (PATIENT_STUDY_MOVE, {"level": "STUDY", "StudyInstanceUID": "1.2.3.4"}, 6),
        (STUDY_MOVE, {"level": "SERIES", "StudyInstanceUID": "1.2.3.4", "SeriesInstanceUID": "1.2.3.4.1"}, 3),
        (STUDY_MOVE, {"level": "SERIES", "SeriesInstanceUID": "1.2.3.4.2\\1.2.3.4.1"}, 6),
        (
            STUDY_MOVE,
            {
                "level": "IMAGE",
                "StudyInstanceUID": "1.2.3.4",
                "SeriesInstanceUID": "1.2.3.4.1",
                "SOPInstanceUID": "1.2.3.4.1.1\\1.2.3.4.1.3\\1.2.3.4.1.99",
            },
            2,
        ),
        (STUDY_MOVE, {"level": "IMAGE", "SOPInstanceUID": "1.2.3.4.1.1\\1.2.3.4.2.2"}, 2),
        (STUDY_MOVE, {"level": "IMAGE", "StudyInstanceUID": "9.9", "SOPInstanceUID": "1.2.3.4.1.1"}, 0),
        (STUDY_MOVE, {"level": "STUDY", "StudyInstanceUID": "9.9"}, 0),
        (PATIENT_MOVE, {"level": "PATIENT", "PatientID": "P?"}, 0),
    ],
)
async def test_the_keys_of_every_level_name_what_is_sent(
    moving: Any, sink: Any, sop_class: str, keys: dict[str, str], expected: int
) -> None:
    async with moving() as (archive, _):
        files = slices(6, series=2, patient="P1")
        for raw in files:
            await stored(archive.engine, raw)
        final, data, _ = await ask(archive, identifier(**keys), sop_class=sop_class)
        assert (final.status, counts(final), data) == (0, (None, expected, 0, 0), b"")
        assert len(sink.objects) == expected
        assert set(sink.objects) <= {dataset_of(raw) for raw in files}


@pytest.mark.parametrize(
    ("sop_class", "data", "status", "offending"),
    [
        (STUDY_MOVE, identifier("PATIENT", PatientID="P1"), 0xA900, (0x00080052,)),
        (PATIENT_STUDY_MOVE, identifier("SERIES", SeriesInstanceUID="1.2.3"), 0xA900, (0x00080052,)),
        (STUDY_MOVE, identifier("NONSENSE", StudyInstanceUID="1.2"), 0xA900, (0x00080052,)),
        (STUDY_MOVE, identifier("STUDY", StudyInstanceUID=""), 0xA900, (0x0020000D,)),
        (STUDY_MOVE, identifier("STUDY", PatientID="P1"), 0xA900, (0x0020000D,)),
        (PATIENT_MOVE, identifier("PATIENT", PatientID="*"), 0xA900, (0x00100020,)),
        (STUDY_MOVE, identifier("STUDY", StudyInstanceUID="1.2.3.4")[:-3], 0xC000, None),
    ],
)
async def test_an_identifier_that_fits_nothing_sends_nothing(
    moving: Any, sink: Any, sop_class: str, data: bytes, status: int, offending: Any
) -> None:
    async with moving() as (archive, _):
        for raw in slices(2, patient="P1"):
            await stored(archive.engine, raw)
        final, _, pending = await ask(archive, data, sop_class=sop_class)
        assert final.status == status
        assert offending is None or final.offending_elements == offending
        assert not pending
        assert not sink.objects


async def test_an_unknown_destination_is_named_so(moving: Any, sink: Any) -> None:
    async with moving() as (archive, _):
        await stored(archive.engine, slices(1)[0])
        final, *_ = await ask(archive, identifier("STUDY", StudyInstanceUID="1.2.3.4"), to="NOBODY")
        assert (final.status, sink.objects) == (0xA801, [])


async def test_the_destination_hears_whose_request_it_is(moving: Any, serve: Any, sink: Any) -> None:
    async with moving() as (archive, destination):
        heard: list[Any] = []
        store = destination.listener.providers
        provider = store[next(iter(cls for cls in store if cls.__name__ == "CStoreRequest"))]

        async def listening(link: Any, context: Any, request: Any) -> None:
            heard.append((request.move_originator_ae, request.move_originator_message_id))
            await provider(link, context, request)

        for cls in list(store):
            if store[cls] is provider:
                store[cls] = listening
        await stored(archive.engine, slices(1)[0])
        final, *_ = await ask(archive, identifier("STUDY", StudyInstanceUID="1.2.3.4"))
        assert final.status == 0
        assert heard == [("ASKING", 1)]


# ---------------------------------------------------------------- what does not arrive


async def test_failures_are_counted_and_listed(moving: Any, sink: Any) -> None:
    async with moving() as (archive, _):
        for raw in slices(3):
            await stored(archive.engine, raw)
        sink.failing["commit"] = StorageFailedError("no")
        final, data, _ = await ask(archive, identifier("STUDY", StudyInstanceUID="1.2.3.4"))
        assert final.status == 0xA702
        assert counts(final) == (None, 0, 3, 0)
        assert sorted(failed_uids(data)) == ["1.2.3.4.1.1", "1.2.3.4.1.2", "1.2.3.4.1.3"]


async def test_what_there_was_no_room_for_is_sent_again(moving: Any, sink: Any) -> None:
    async with moving() as (archive, _):
        files = slices(3)
        for raw in files:
            await stored(archive.engine, raw)
        sink.failing["commit"] = OutOfResourcesError("full")
        begin = sink.begin

        def begins(**announced: Any) -> Any:
            if sink.begun >= 2:
                sink.failing.clear()
            return begin(**announced)

        sink.begin = begins
        final, *_ = await ask(archive, identifier("STUDY", StudyInstanceUID="1.2.3.4"))
        assert (final.status, counts(final)) == (0, (None, 3, 0, 0))
        assert sorted(sink.objects) == sorted(map(dataset_of, files))


async def test_a_destination_that_is_down_is_told_before_anything_is_sent(moving: Any) -> None:
    async with moving(DOWN=at(free_port())) as (archive, _):
        for raw in slices(2):
            await stored(archive.engine, raw)
        final, data, _ = await ask(archive, identifier("STUDY", StudyInstanceUID="1.2.3.4"), to="DOWN")
        assert (final.status, counts(final)) == (0xA702, (None, 0, 2, 0))
        assert len(failed_uids(data)) == 2
        assert final.error_comment == "the destination cannot be reached"


async def test_a_destination_that_refuses_us_is_not_asked_again(moving: Any, sink: Any) -> None:
    policy = ListenerPolicy(calling_titles=frozenset({"SOMEBODY"}), open=False)
    async with moving(policy=policy) as (archive, destination):
        await stored(archive.engine, slices(1)[0])
        final, *_ = await ask(archive, identifier("STUDY", StudyInstanceUID="1.2.3.4"))
        assert (final.status, counts(final)) == (0xA702, (None, 0, 1, 0))
        assert final.error_comment == "the destination refuses the association"
        assert len(destination.observer.calls) == 1


async def test_a_destination_that_takes_none_of_the_classes(moving: Any, sink: Any) -> None:
    policy = ListenerPolicy(refused_sop_classes=frozenset({"1.2.840.10008.5.1.4.1.1.2"}))
    async with moving(policy=policy) as (archive, _):
        await stored(archive.engine, slices(1)[0])
        final, data, _ = await ask(archive, identifier("STUDY", StudyInstanceUID="1.2.3.4"))
        assert (final.status, counts(final), len(failed_uids(data))) == (0xA702, (None, 0, 1, 0), 1)


async def test_some_succeed_and_some_fail(moving: Any, sink: Any) -> None:
    policy = ListenerPolicy(refused_sop_classes=frozenset({"1.2.840.10008.5.1.4.1.1.4"}))
    async with moving(policy=policy) as (archive, _):
        for raw in (*slices(2), sample("MR_small_implicit.dcm")):
            instance = await stored(archive.engine, raw)
        keys = identifier("STUDY", StudyInstanceUID=f"1.2.3.4\\{instance.study_uid}")
        final, data, _ = await ask(archive, keys)
        assert (final.status, counts(final)) == (0xB000, (None, 2, 1, 0))
        assert failed_uids(data) == [instance.row.sop_uid]


def in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have every object be sent as large ones are."""

    async def no_opening(*_: Any) -> None:
        return None

    monkeypatch.setattr("hounsfield.archive.net.outgoing.GATHERED_BYTES_MAX", 1000)
    monkeypatch.setattr("hounsfield.archive.engine.opening.Opening.open", no_opening)


async def test_what_is_deleted_or_damaged_meanwhile_fails_alone(
    moving: Any, sink: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with moving(limits=RetrieveLimits(pause_s=0.001, poll_s=0.005)) as (archive, _):
        for raw in slices(4):
            await stored(archive.engine, raw)
        instances = archive.engine.instances

        async def gone(*name: str) -> Any:
            if name[2] == "1.2.3.4.1.2":
                await archive.engine.delete(
                    Target(name[0], name[1], (name[2],)), reason="a test", actor="a test"
                )
            return await instances(*name)

        monkeypatch.setattr(archive.engine, "instances", gone)
        final, data, _ = await ask(archive, identifier("STUDY", StudyInstanceUID="1.2.3.4"))
        assert (final.status, counts(final)) == (0xB000, (None, 3, 1, 0))
        assert failed_uids(data) == ["1.2.3.4.1.2"]


async def test_a_defect_that_one_object_meets_in_its_middle_fails_it_alone(
    moving: Any, sink: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with moving(limits=RetrieveLimits(pause_s=0.001, poll_s=0.005)) as (archive, _):
        for raw in slices(4):
            await stored(archive.engine, raw)
        in_pieces(monkeypatch)
        dataset = archive.engine.dataset

        async def faulty(instance: Any, *more: Any) -> Any:
            async for piece in dataset(instance, *more):
                for start in range(0, len(piece), 1500):
                    yield piece[start : start + 1500]
                    if instance.row.sop_uid == "1.2.3.4.1.2" and start:
                        raise ZeroDivisionError

        monkeypatch.setattr(archive.engine, "dataset", faulty)
        final, data, _ = await ask(archive, identifier("STUDY", StudyInstanceUID="1.2.3.4"))
        assert (final.status, counts(final)) == (0xB000, (None, 3, 1, 0))
        assert failed_uids(data) == ["1.2.3.4.1.2"]
        assert final.error_comment == "a fault of the archive; see its log"


# ---------------------------------------------------------------- destinations that misbehave


class Scripted:
    """An SCP made of raw sockets: answers each C-STORE as ``script`` says, by how many came before."""

    def __init__(self, script: Callable[[int], Any]) -> None:
        self.script = script
        self.named: Callable[[str], str | None] = lambda uid: uid
        self.poison = ""  # within which it dies
        self.died = trio.Event()
        self.associations = 0
        self.stores: list[str] = []
        self.largest_gap = 0
        self.outstanding = 0

    async def serve(self, stream: trio.SocketStream) -> None:
        self.associations += 1
        association = Association(Role.ACCEPTOR)
        reader, writer = MessageReader(), MessageWriter(association)
        command: Any = None
        async with stream:
            try:
                while True:
                    while (event := association.next_event()) is NEED_DATA:
                        association.receive_data(await stream.receive_some(1 << 20))
                    if isinstance(event, AssociateRequest):
                        answer = self.accept(event)
                        for buffer in association.send(answer):
                            await stream.send_all(buffer)
                    elif isinstance(event, ReleaseRequest):
                        for buffer in association.send(ReleaseReply()):
                            await stream.send_all(buffer)
                        return
                    elif isinstance(event, DataFragment):
                        message = reader.receive(event)
                        if isinstance(message, CommandReceived):
                            command = message.command
                            if command.affected_sop_instance_uid == self.poison:
                                self.stores.append(self.poison)
                                await stream.aclose()
                                self.died.set()
                                return
                        elif message is not None and message.last:
                            number = len(self.stores)
                            self.stores.append(command.affected_sop_instance_uid)
                            status = self.script(number)
                            if status == "hang":
                                await trio.sleep_forever()
                            if status == "die":
                                return
                            response = CStoreResponse(
                                command.message_id,
                                status,
                                command.affected_sop_class_uid,
                                self.named(command.affected_sop_instance_uid),
                            )
                            for buffer in writer.command(message.context_id, response):
                                await stream.send_all(buffer)
                    else:
                        return
            except trio.BrokenResourceError:
                return

    @staticmethod
    def accept(request: AssociateRequest) -> AssociateAccept:
        return AssociateAccept(
            called_ae=request.called_ae,
            calling_ae=request.calling_ae,
            contexts=tuple(
                PresentationResult(one.context_id, ContextResult.ACCEPTANCE, one.transfer_syntaxes[0])
                for one in request.contexts
            ),
        )


@asynccontextmanager
async def scripted(script: Callable[[int], Any]) -> AsyncIterator[tuple[Scripted, int]]:
    peer = Scripted(script)
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, peer.serve, 0, host="127.0.0.1"))
        yield peer, listeners[0].socket.getsockname()[1]
        nursery.cancel_scope.cancel()


STUDY = identifier("STUDY", StudyInstanceUID="1.2.3.4")


async def test_what_was_not_acknowledged_is_sent_again_on_a_new_association(moving: Any) -> None:
    async with (
        scripted(lambda number: "die" if number in (2, 5) else 0) as (peer, port),
        moving(DYING=at(port)) as (archive, _),
    ):
        for raw in slices(6):
            await stored(archive.engine, raw)
        final, data, _ = await ask(archive, STUDY, to="DYING")
        assert (final.status, counts(final), data) == (0, (None, 6, 0, 0), b"")
        assert peer.associations == 3
        assert len(peer.stores) == 8  # two twice, none of those that were acknowledged
        assert len(set(peer.stores)) == 6


@pytest.mark.parametrize("poison", ["1.2.3.4.1.1", "1.2.3.4.1.2", "1.2.3.4.1.5"])
async def test_an_object_that_ends_every_association_fails_alone(moving: Any, poison: str) -> None:
    async with (
        scripted(lambda _: "die" if peer.stores[-1] == poison else 0) as (peer, port),
        moving(DYING=at(port)) as (archive, _),
    ):
        for raw in slices(5):
            await stored(archive.engine, raw)
        final, data, _ = await ask(archive, STUDY, to="DYING")
        assert (final.status, counts(final)) == (0xB000, (None, 4, 1, 0))
        assert failed_uids(data) == [poison]
        assert peer.stores.count(poison) == 3


@pytest.mark.parametrize("poison", ["1.2.3.4.1.1", "1.2.3.4.1.2", "1.2.3.4.1.5"])
async def test_an_object_within_which_every_association_ends_fails_alone(
    moving: Any, monkeypatch: pytest.MonkeyPatch, poison: str
) -> None:
    """The next one is not open yet then, since this one goes in pieces: it is tried all the same."""
    in_pieces(monkeypatch)
    async with scripted(lambda _: 0) as (peer, port), moving(DYING=at(port)) as (archive, _):
        peer.poison = poison
        for raw in slices(5):
            await stored(archive.engine, raw)
        dataset = archive.engine.dataset

        async def slowly(instance: Any, *more: Any) -> Any:
            data = b"".join([bytes(piece) async for piece in dataset(instance, *more)])
            for start in range(0, len(data), 1500):
                if instance.row.sop_uid == poison and start > 3000:
                    await peer.died.wait()
                yield data[start : start + 1500]
            peer.died = trio.Event()

        monkeypatch.setattr(archive.engine, "dataset", slowly)
        final, data, _ = await ask(archive, STUDY, to="DYING")
        assert (final.status, counts(final)) == (0xB000, (None, 4, 1, 0))
        assert failed_uids(data) == [poison]
        assert peer.stores.count(poison) == 3


async def test_a_destination_that_dies_each_time_is_given_up(moving: Any) -> None:
    async with scripted(lambda _: "die") as (peer, port), moving(DYING=at(port)) as (archive, _):
        for raw in slices(4):
            await stored(archive.engine, raw)
        final, data, _ = await ask(archive, STUDY, to="DYING")
        assert (final.status, counts(final)) == (0xA702, (None, 0, 4, 0))
        assert len(failed_uids(data)) == 4
        assert peer.associations == 3


async def test_warnings_are_counted_as_such(moving: Any) -> None:
    statuses = [0xB000, 0, 0xB007, 0xC000]
    async with scripted(statuses.__getitem__) as (_, port), moving(WARNING=at(port)) as (archive, _):
        for raw in slices(4):
            await stored(archive.engine, raw)
        final, data, _ = await ask(archive, STUDY, to="WARNING")
        assert (final.status, counts(final)) == (0xB000, (None, 1, 1, 2))
        assert failed_uids(data) == ["1.2.3.4.1.4"]


async def test_a_response_that_names_another_object_is_no_success(moving: Any) -> None:
    statuses = [0, 0xB000, 0, 0xC000, 0]
    async with scripted(statuses.__getitem__) as (peer, port), moving(ODD=at(port)) as (archive, _):
        peer.named = lambda uid: {"1": "1.2.3", "2": "1.2.3", "3": None, "4": "1.2.3"}.get(uid[-1], uid)
        for raw in slices(5):
            await stored(archive.engine, raw)
        final, data, _ = await ask(archive, STUDY, to="ODD")
        assert (final.status, counts(final)) == (0xB000, (None, 2, 3, 0))
        assert failed_uids(data) == ["1.2.3.4.1.1", "1.2.3.4.1.2", "1.2.3.4.1.4"]
        assert (peer.associations, len(peer.stores)) == (1, 5), "the others are sent, each once"
        statuses[:] = [0, 0, 0, 0, 0, *[0] * 5]
        peer.named = lambda _: "1.2.3"
        final, data, _ = await ask(archive, STUDY, to="ODD")
        assert (final.status, counts(final)) == (0xA702, (None, 0, 5, 0))
        assert final.error_comment == "the response names another SOP instance"


async def test_only_warnings_are_a_warning_without_a_list(moving: Any) -> None:
    async with scripted(lambda _: 0xB000) as (_, port), moving(WARNING=at(port)) as (archive, _):
        for raw in slices(2):
            await stored(archive.engine, raw)
        final, data, _ = await ask(archive, STUDY, to="WARNING")
        assert (final.status, counts(final), data) == (0xB000, (None, 0, 0, 2), b"")


async def test_who_talks_nonsense_is_not_said_to_have_aborted(moving: Any) -> None:
    async def web(stream: trio.SocketStream) -> None:
        await stream.receive_some(1000)
        await stream.send_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, web, 0, host="127.0.0.1"))
        port = listeners[0].socket.getsockname()[1]
        async with moving(WEB=at(port)) as (archive, _):
            (raw,) = slices(1)
            await stored(archive.engine, raw)
            final, *_ = await ask(archive, STUDY, to="WEB")
        assert (final.status, final.error_comment) == (0xA702, "the destination breaks the protocol")
        nursery.cancel_scope.cancel()


async def test_a_destination_that_hangs_is_given_up_and_others_are_served(moving: Any, sink: Any) -> None:
    limits = ScuLimits(response_s=0.2)
    async with (
        scripted(lambda _: "hang") as (peer, port),
        moving(scu_limits=limits, HANGING=at(port)) as (archive, _),
    ):
        for raw in slices(3):
            await stored(archive.engine, raw)
        answers: list[Any] = []

        async def asking() -> None:
            answers.append(await ask(archive, STUDY, to="HANGING"))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(asking)
            await archive.until(lambda: bool(peer.stores))
            final, *_ = await ask(archive, STUDY)  # meanwhile
            assert (final.status, len(sink.objects), answers) == (0, 3, [])
        final, data, _ = answers[0]
        assert (final.status, counts(final), len(failed_uids(data))) == (0xA702, (None, 0, 3, 0), 3)
        assert final.error_comment == "the destination does not answer"


async def test_a_cancelled_move_says_what_is_left(moving: Any) -> None:
    held = trio.Event()

    async with (
        scripted(lambda number: 0 if number < 2 else "hang") as (peer, port),
        moving(limits=replace(QUICK, cancel_s=0.05, pending_s=0.0, still_there_s=0.0), HANGING=at(port)) as (
            archive,
            _,
        ),
    ):
        for raw in slices(5):
            await stored(archive.engine, raw)
        with trio.fail_after(PATIENCE_S):
            async with associate(
                at(archive.port), [PresentationContext(1, STUDY_MOVE, (EXPLICIT,))]
            ) as association:
                context = association.contexts[1]
                request = CMoveRequest(association.next_message_id(), STUDY_MOVE, "HANGING")
                responses = association.request(context, request, STUDY)
                async with aclosing(responses):
                    async for response, data in responses:
                        if response.status == 0xFF00 and len(peer.stores) == 3 and not held.is_set():
                            held.set()
                            await association.cancel(context, request.message_id)
                        final = response, data
        response, data = final
        assert (response.status, counts(response), data) == (0xFE00, (3, 2, 0, 0), b"")


async def test_pending_responses_count_down(moving: Any) -> None:
    async with moving(limits=replace(QUICK, pending_s=0.0, poll_s=0.0)) as (archive, _):
        for raw in slices(12):
            await stored(archive.engine, raw)
        final, _, pending = await ask(archive, STUDY)
        assert counts(final) == (None, 12, 0, 0)
        told = [counts(response) for response in pending]
        assert told[0] == (12, 0, 0, 0)
        assert all(sum(one) == 12 for one in told)
        assert told == sorted(told, reverse=True)


@pytest.mark.parametrize(("everywhere", "there"), [(3, 0), (1, 3)])
async def test_several_associations_share_the_work(
    moving: Any, serve: Any, sink: Any, everywhere: int, there: int
) -> None:
    async with (
        serve(sink, OPEN) as destination,
        moving(
            limits=replace(QUICK, associations=everywhere), WIDE=at(destination.port, associations=there)
        ) as (archive, _),
    ):
        files = slices(9)
        for raw in files:
            await stored(archive.engine, raw)
        sink.hold = trio.Event()
        answers: list[Any] = []

        async def asking() -> None:
            answers.append(await ask(archive, STUDY, to="WIDE"))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(asking)
            await archive.until(lambda: sink.begun >= 3)
            assert destination.listener.statistics().associations_accepted == 3
            sink.hold.set()
        assert answers[0][0].status == 0
        assert sorted(sink.objects) == sorted(map(dataset_of, files))


async def test_a_destination_that_takes_one_association_gets_all_on_it(
    moving: Any, serve: Any, sink: Any
) -> None:
    limits = NetLimits(linger_s=0.2, associations_max=1)
    async with (
        serve(sink, OPEN, limits=limits) as small,
        moving(limits=replace(QUICK, associations=3), SMALL=at(small.port)) as (archive, _),
    ):
        files = slices(9)
        for raw in files:
            await stored(archive.engine, raw)
        final, *_ = await ask(archive, STUDY, to="SMALL")
        assert (final.status, counts(final)) == (0, (None, 9, 0, 0))
        assert sorted(sink.objects) == sorted(map(dataset_of, files))


async def test_nobody_holds_more_than_their_share_of_a_destination(moving: Any, sink: Any) -> None:
    limits = replace(QUICK, associations_per_destination_max=1)
    async with moving(limits=limits) as (archive, destination):
        await stored(archive.engine, slices(1)[0])
        sink.hold = trio.Event()
        answers: list[Any] = []

        async def asking() -> None:
            answers.append(await ask(archive, STUDY))

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(asking)
            await archive.until(lambda: sink.begun == 1)
            for _ in range(50):
                await trio.lowlevel.checkpoint()
            assert destination.listener.statistics().associations_accepted == 1
            sink.hold.set()
        assert [final.status for final, *_ in answers] == [0, 0, 0]
        assert len(sink.objects) == 3


async def test_when_the_requestor_goes_nothing_more_is_sent(moving: Any) -> None:
    async with (
        scripted(lambda number: 0 if number < 1 else "hang") as (peer, port),
        moving(HANGING=at(port)) as (archive, _),
    ):
        for raw in slices(4):
            await stored(archive.engine, raw)
        with trio.move_on_after(PATIENCE_S) as scope:
            async with trio.open_nursery() as nursery:

                async def asking() -> None:
                    with scope:
                        await ask(archive, STUDY, to="HANGING")

                nursery.start_soon(partial(ask, archive, STUDY, to="HANGING"))
                await archive.until(lambda: len(peer.stores) == 2)
                nursery.cancel_scope.cancel()
        await archive.until(lambda: not archive.listener.statistics().associations_open)
        assert len(peer.stores) == 2


async def test_objects_come_in_their_order(moving: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async with scripted(lambda _: 0) as (peer, port), moving(ORDERED=at(port)) as (archive, _):
        for raw in reversed(slices(12)):
            await stored(archive.engine, raw)
        opens = Opening.open

        async def slowly(self: Opening, instance: Any) -> Any:
            if instance.row.sop_uid.endswith(("1.1", "5", "9")):  # the others are ready before
                for _ in range(20):
                    await trio.lowlevel.checkpoint()
            return await opens(self, instance)

        monkeypatch.setattr(Opening, "open", slowly)
        final, *_ = await ask(archive, STUDY, to="ORDERED")
        assert final.status == 0
        assert peer.stores == [f"1.2.3.4.1.{number + 1}" for number in range(12)]


async def test_what_is_not_in_memory_is_sent_and_the_disk_is_told_of_the_next(
    moving: Any, sink: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with moving() as (archive, _):
        files = slices(40)
        for raw in files:
            await stored(archive.engine, raw)
        told: list[int] = []
        bring = archive.engine.bring

        async def telling(coming: Any) -> None:
            told.append(len(coming))
            await bring(coming)

        monkeypatch.setattr(archive.engine, "bring", telling)
        monkeypatch.setattr(LocalBlobs, "try_read_into", lambda *_: False)
        final, *_ = await ask(archive, STUDY)
        assert (final.status, counts(final)) == (0, (None, 40, 0, 0))
        assert sorted(sink.objects) == sorted(map(dataset_of, files))
        assert 3 <= len(told) <= 10  # not at each
        assert max(told) == 16


async def test_what_was_moved_is_counted(open_archive: Any, serve: Any, sink: Any) -> None:
    figures = RetrieveFigures()
    async with (
        serve(sink, OPEN) as destination,
        open_archive(
            provide=lambda engine: [
                move_service(engine, Known(DEST=at(destination.port)), QUICK, figures=figures)
            ]
        ) as archive,
    ):
        for raw in slices(3):
            await stored(archive.engine, raw)
        await ask(archive, STUDY)
        sink.failing["commit"] = StorageFailedError("no")
        await ask(archive, STUDY)
        size = sum(map(len, sink.objects))
        assert figures == RetrieveFigures(requests=2, sent=3, failed=3, bytes_sent=size)


# ---------------------------------------------------------------- other people's


NAMES = ("CT_small.dcm", "MR_small_implicit.dcm", "JPEG-LL.dcm", "SC_rgb_rle.dcm", "rtplan.dcm")


@pytest.mark.peer("storescp")
@pytest.mark.parametrize(
    ("options", "syntax"), [(["+xa"], ""), (["+xi"], IMPLICIT), (["+xe"], ""), (["-pdu", "4096"], "")]
)
async def test_storescp_gets_what_it_takes(
    moving: Any, tmp_path: Path, options: list[str], syntax: str
) -> None:
    async with (
        storescp(tmp_path / "kept", *options) as (port, _),
        moving(STORESCP=at(port)) as (archive, _),
    ):
        studies = [(await stored(archive.engine, sample(name))).study_uid for name in NAMES]
        keys = identifier("STUDY", StudyInstanceUID="\\".join(dict.fromkeys(studies)))
        final, _, _ = await ask(archive, keys, to="STORESCP")
        assert (final.status, final.failed_suboperations) == (0, 0)
        assert final.completed_suboperations == len(NAMES)
        kept = by_uid((tmp_path / "kept").iterdir())
        before = by_uid(map(sample, NAMES))
        assert kept.keys() == before.keys()
        if options == ["+xa"]:
            assert kept == before
        for path in (tmp_path / "kept").iterdir():
            after = pydicom.dcmread(path)
            assert not syntax or after.file_meta.TransferSyntaxUID == syntax
            original = next(one for one in map(opened, NAMES) if one.SOPInstanceUID == after.SOPInstanceUID)
            if "PixelData" in original:
                assert np.array_equal(after.pixel_array, original.pixel_array)


@pytest.mark.peer("storescp", "movescu")
async def test_movescu_moves_to_storescp(moving: Any, tmp_path: Path) -> None:
    async with (
        storescp(tmp_path / "kept", "+xa") as (port, _),
        moving(STORESCP=at(port)) as (archive, _),
    ):
        files = slices(5)
        for raw in files:
            await stored(archive.engine, raw)
        done = await archive.run(
            "movescu", "-v", "-S", "-aem", "STORESCP", "-aec", "HOUNSFIELD", "-k", "QueryRetrieveLevel=STUDY",
            "-k", "StudyInstanceUID=1.2.3.4", "127.0.0.1", "PORT",
        )  # fmt: skip
        assert done.returncode == 0, done.stdout
        assert b"Success" in done.stdout, done.stdout
        assert by_uid((tmp_path / "kept").iterdir()) == by_uid(files)


@pytest.mark.peer("storescp")
async def test_storescp_dies_half_way_and_comes_back(moving: Any, tmp_path: Path) -> None:
    port = free_port()
    kept = tmp_path / "kept"
    kept.mkdir()

    async def begun() -> trio.Process:
        return await trio.lowlevel.open_process(["storescp", "-od", str(kept), str(port)])

    limits = replace(QUICK, retries=200, pause_s=0.01, pause_s_max=0.05)
    async with moving(limits=limits, STORESCP=at(port)) as (archive, _):
        files = slices(120)
        for raw in files:
            await stored(archive.engine, raw)
        process = await begun()
        answers: list[Any] = []

        async def asking() -> None:
            answers.append(await ask(archive, STUDY, to="STORESCP"))

        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(asking)
                await archive.until(lambda: len(list(kept.iterdir())) > 20)
                process.kill()
                await process.wait()
                assert not answers
                process = await begun()
        finally:
            process.kill()
            await process.wait()
        assert (answers[0][0].status, counts(answers[0][0])) == (0, (None, 120, 0, 0))
        assert len(list(kept.iterdir())) == 120


@pytest.mark.peer("storescp")
@pytest.mark.parametrize("option", ["--refuse", "--abort-after", "--abort-during"])
async def test_storescp_refuses_and_aborts(moving: Any, tmp_path: Path, option: str) -> None:
    port = free_port()
    process = await trio.lowlevel.open_process(["storescp", option, "-od", str(tmp_path), str(port)])
    try:
        limits = replace(QUICK, pause_s=0.05)
        async with moving(limits=limits, STORESCP=at(port)) as (archive, _):
            for raw in slices(3):
                await stored(archive.engine, raw)
            with trio.fail_after(PATIENCE_S):
                while True:
                    final, data, _ = await ask(archive, STUDY, to="STORESCP")
                    if final.error_comment != "the destination cannot be reached":
                        break  # it listens
        assert (final.status, counts(final), len(failed_uids(data))) == (0xA702, (None, 0, 3, 0), 3)
    finally:
        process.kill()
        await process.wait()


def opened(name: str) -> pydicom.Dataset:
    return pydicom.dcmread(io.BytesIO(sample(name)))
