"""A C-MOVE sends what was asked for to whom it was asked for, and tells truly what arrived."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AsyncExitStack, aclosing
from typing import Any

import pytest
import trio
from tests.support.retrieving import (
    EXPLICIT,
    PATIENCE_S,
    PATIENT_MOVE,
    PATIENT_STUDY_MOVE,
    STUDY_MOVE,
    Known,
    at,
    dataset_of,
    failed_uids,
    free_port,
    identifier,
    sample,
    slices,
    stored,
)

from hounsfield.archive.engine.errors import OutOfResourcesError, StorageFailedError
from hounsfield.archive.index.deletion import Target
from hounsfield.archive.net.moving import move_service
from hounsfield.archive.net.policy import ListenerPolicy
from hounsfield.archive.net.scu import RemoteEntity, ScuLimits, associate
from hounsfield.archive.net.suboperations import RetrieveLimits
from hounsfield.archive.wire import CMoveRequest, CMoveResponse, PresentationContext

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


async def test_what_is_deleted_or_damaged_meanwhile_fails_alone(
    moving: Any, sink: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with moving(limits=RetrieveLimits(pause_s=0.001, poll_s=0.005)) as (archive, _):
        for raw in slices(4):
            await stored(archive.engine, raw)
        instances = archive.engine.instances

        async def gone(*name: str) -> Any:
            if name[2] == "1.2.3.4.1.2":
                await archive.engine.delete(Target(name[0], name[1], (name[2],)), reason="a test", actor="a test")
            return await instances(*name)

        monkeypatch.setattr(archive.engine, "instances", gone)
        final, data, _ = await ask(archive, identifier("STUDY", StudyInstanceUID="1.2.3.4"))
        assert (final.status, counts(final)) == (0xB000, (None, 3, 1, 0))
        assert failed_uids(data) == ["1.2.3.4.1.2"]
