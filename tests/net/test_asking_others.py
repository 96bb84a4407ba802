"""What we ask of others is answered to whom it belongs, ends when it ends, and is never taken for more."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio
from pydicom.data import get_testdata_file

from hounsfield.archive.dicom import part10
from hounsfield.archive.dicom.commitment import STORAGE_COMMITMENT, Reference, report
from hounsfield.archive.dicom.from_json import ModelError
from hounsfield.archive.dicom.rewrite import element
from hounsfield.archive.net.commitment_requests import Awaited
from hounsfield.archive.net.errors import (
    AbortedError,
    ConnectionLostError,
    GivenUpError,
    NetError,
    RejectedError,
    TimedOutError,
)
from hounsfield.archive.net.get_contexts import CONTEXTS_MAX, DEFAULT_CLASSES, further_contexts, get_contexts
from hounsfield.archive.net.query_retrieve import (
    Ended,
    Extensions,
    QueryModel,
    RefusedError,
    find,
    identifier_bytes,
    model_of,
    proposal,
    retrieve,
)
from hounsfield.archive.net.received_files import FileStorage, ReceivedFile
from hounsfield.archive.net.scu import Offer, RemoteEntity, ScuLimits, associate
from hounsfield.archive.wire import (
    Abort,
    AcceptedContext,
    AssociateReject,
    AsynchronousOperations,
    Buffer,
    Category,
    CCancelRequest,
    CEchoRequest,
    CEchoResponse,
    CFindResponse,
    CGetResponse,
    CMoveResponse,
    CStoreRequest,
    CStoreResponse,
    ExtendedNegotiation,
    IdentityType,
    NEventReportRequest,
    NEventReportResponse,
    PresentationContext,
    RejectResult,
    RejectSource,
    ReleaseRequest,
    UserIdentity,
    UserInformation,
)
from hounsfield.codecs.registry import lookup
from support.scripted_scp import Script, ScriptedScp, scripted

FIND = QueryModel.STUDY.find_uid
MOVE = QueryModel.STUDY.move_uid
GET = QueryModel.STUDY.get_uid
CT = "1.2.840.10008.5.1.4.1.1.2"
EXPLICIT, IMPLICIT = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2"
PATIENCE_S = 30
KEYS = {"00080052": {"vr": "CS", "Value": ["STUDY"]}, "0020000D": {"vr": "UI"}}


def _to(port: int) -> RemoteEntity:
    return RemoteEntity("127.0.0.1", port, called_ae="SCP", calling_ae="US")


def _answer(number: int) -> bytes:
    context = AcceptedContext(1, FIND, EXPLICIT)
    return identifier_bytes({"0020000D": {"vr": "UI", "Value": [f"1.2.{number}"]}}, context)


async def _found(port: int, limits: ScuLimits | None = None, stop_after: int = 0) -> list[Any]:
    out: list[Any] = []
    with trio.fail_after(PATIENCE_S):
        async with associate(_to(port), [proposal(1, FIND)], limits) as association:
            context = association.context_for(FIND)
            async with aclosing(find(association, context, identifier_bytes(KEYS, context))) as answers:
                async for answer in answers:
                    out.append(answer)
                    if len(out) == stop_after:
                        break
    return out


# ---------------------------------------------------------------- C-FIND


async def test_matches_come_one_by_one_and_then_the_end() -> None:
    async def script(scp: ScriptedScp) -> None:
        await scp.accept()
        asked = await scp.message()
        assert model_of(asked.dataset, AcceptedContext(1, FIND, EXPLICIT)) == KEYS
        number = asked.command.message_id
        for each in range(3):
            await scp.say(1, CFindResponse(number, 0xFF00 + each % 2, FIND, has_dataset=True), _answer(each))
        await scp.say(1, CFindResponse(number, 0, FIND))

    async with scripted(script) as scp:
        *answers, end = await _found(scp.port)
        assert [one["0020000D"]["Value"] for one in answers] == [["1.2.0"], ["1.2.1"], ["1.2.2"]]
        assert isinstance(end, Ended)
        assert end.category is Category.SUCCESS
        await scp.ended.wait()
        assert isinstance(scp.endings[0], ReleaseRequest)


@pytest.mark.parametrize(
    ("status", "retry"),
    [(0xA700, True), (0xA900, False), (0xC001, False), (0x0122, False), (0x0211, False), (0x0124, False)],
)
async def test_a_refusal_says_why_and_whether_later_is_better(status: int, retry: bool) -> None:
    async def script(scp: ScriptedScp) -> None:
        await scp.accept()
        asked = await scp.message()
        comment = "the \x1b[2Jcatalog is away"
        await scp.say(
            1, CFindResponse(asked.command.message_id, status, FIND, (0x00100010,), error_comment=comment)
        )

    async with scripted(script) as scp:
        with pytest.raises(RefusedError) as raised:
            await _found(scp.port)
        assert (raised.value.status, raised.value.retry) == (status, retry)
        assert "catalog is away" in str(raised.value)
        assert "(0010,0010)" in str(raised.value)
        assert "\x1b" not in str(raised.value)


@pytest.mark.parametrize(("status", "category"), [(0xFE00, Category.CANCEL), (0xB000, Category.WARNING)])
async def test_other_ends_are_told_from_success(status: int, category: Category) -> None:
    async def script(scp: ScriptedScp) -> None:
        await scp.accept()
        asked = await scp.message()
        await scp.say(1, CFindResponse(asked.command.message_id, status, FIND))

    async with scripted(script) as scp:
        (end,) = await _found(scp.port)
        assert end.category is category


async def test_an_answer_that_is_cut_off_is_not_something_shorter() -> None:
    async def script(scp: ScriptedScp) -> None:
        await scp.accept()
        number = (await scp.message()).command.message_id
        pending = CFindResponse(number, 0xFF00, FIND, has_dataset=True)
        for raw in (_answer(117), _answer(117)[:-2], b"\0" * 41, _answer(118)):
            await scp.say(1, pending, raw)
        await scp.say(1, CFindResponse(number, 0, FIND))

    async with scripted(script) as scp:
        found = await _found(scp.port)
    uids = [one["0020000D"]["Value"][0] if isinstance(one, dict) else type(one).__name__ for one in found]
    assert uids == ["1.2.117", "UnreadableAnswer", "UnreadableAnswer", "1.2.118", "Ended"]


@pytest.mark.parametrize("source", [1, 2])
async def test_who_names_a_user_and_is_refused_is_told_what_that_may_mean(source: int) -> None:
    async def script(scp: ScriptedScp) -> None:
        await scp.refuse(AssociateReject(RejectResult.PERMANENT, RejectSource(source), 1))

    async with scripted(script) as scp:
        user = UserIdentity(IdentityType.USERNAME_PASSCODE, b"jane", b"wrong passcode")
        for identity, hint in ((user, "it may not take our user"), (None, "it gives no reason (permanent)")):
            with pytest.raises(RejectedError, match="it gives no reason") as raised:
                async with associate(replace(_to(scp.port), identity=identity), [proposal(1, FIND)]):
                    pass
            assert hint in str(raised.value)
            assert "jane" not in str(raised.value)


async def test_who_has_enough_cancels_and_releases_when_that_is_over() -> None:
    said: list[Any] = []

    async def script(scp: ScriptedScp) -> None:
        await scp.accept()
        asked = await scp.message()
        number = asked.command.message_id
        for each in range(5):
            await scp.say(1, CFindResponse(number, 0xFF00, FIND, has_dataset=True), _answer(each))
        cancelled = await scp.message()
        said.append(cancelled.command)
        assert cancelled.command == CCancelRequest(number)
        await scp.say(1, CFindResponse(number, 0xFF00, FIND, has_dataset=True), _answer(9))
        await scp.say(1, CFindResponse(number, 0xFE00, FIND))

    async with scripted(script) as scp:
        answers = await _found(scp.port, stop_after=2)
        assert len(answers) == 2
        await scp.ended.wait()
        assert len(said) == 1
        assert isinstance(scp.endings[0], ReleaseRequest)


async def test_a_cancelled_query_that_never_ends_is_aborted() -> None:
    async def script(scp: ScriptedScp) -> None:
        await scp.accept()
        asked = await scp.message()
        number = asked.command.message_id
        await scp.say(1, CFindResponse(number, 0xFF00, FIND, has_dataset=True), _answer(1))

    async with scripted(script) as scp:
        assert len(await _found(scp.port, ScuLimits(release_s=0.2), stop_after=1)) == 1
        await scp.ended.wait()
        assert isinstance(scp.endings[0], Abort)


async def _hangs(scp: ScriptedScp) -> None:
    await scp.accept()
    asked = await scp.message()
    await scp.say(1, CFindResponse(asked.command.message_id, 0xFF00, FIND, has_dataset=True), _answer(1))


async def _aborts_within_an_answer(scp: ScriptedScp) -> None:
    await scp.accept()
    asked = await scp.message()
    response = CFindResponse(asked.command.message_id, 0xFF00, FIND, has_dataset=True)
    await scp.begin_saying(1, response, _answer(1)[:4])
    await scp.abort()


async def _closes_within_an_answer(scp: ScriptedScp) -> None:
    await scp.accept()
    asked = await scp.message()
    response = CFindResponse(asked.command.message_id, 0xFF00, FIND, has_dataset=True)
    await scp.begin_saying(1, response, _answer(1)[:4])
    await scp.stream.aclose()


async def _releases_before_the_end(scp: ScriptedScp) -> None:
    await scp.accept()
    await scp.message()
    for buffer in scp.association.send(ReleaseRequest()):
        await scp.stream.send_all(buffer)


async def _answers_something_else(scp: ScriptedScp) -> None:
    await scp.accept()
    asked = await scp.message()
    await scp.say(1, CEchoResponse(asked.command.message_id, 0))


async def _answers_somebody_else(scp: ScriptedScp) -> None:
    await scp.accept()
    asked = await scp.message()
    await scp.say(1, CFindResponse(asked.command.message_id + 1, 0, FIND))


async def _answers_without_end(scp: ScriptedScp) -> None:
    await scp.accept()
    asked = await scp.message()
    response = CFindResponse(asked.command.message_id, 0xFF00, FIND, has_dataset=True)
    await scp.begin_saying(1, response, bytes(1 << 16))


@pytest.mark.parametrize(
    ("script", "error"),
    [
        (_hangs, TimedOutError),
        (_aborts_within_an_answer, AbortedError),
        (_closes_within_an_answer, ConnectionLostError),
        (_releases_before_the_end, ConnectionLostError),
        (_answers_something_else, AbortedError),
        (_answers_somebody_else, AbortedError),
        (_answers_without_end, AbortedError),
    ],
)
async def test_peers_that_misbehave_in_the_middle_are_named(script: Script, error: type[NetError]) -> None:
    limits = ScuLimits(response_s=0.3, release_s=0.3, identifier_bytes_max=4096)
    async with scripted(script) as scp:
        with pytest.raises(error) as raised:
            await _found(scp.port, limits)
        assert f"SCP@127.0.0.1:{scp.port}" in str(raised.value)


# ---------------------------------------------------------------- identifiers and negotiation


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT])
@pytest.mark.parametrize(
    ("declared", "name"),
    [
        ("", "DOE*"),
        ("", "МИРОН*"),
        ("ISO_IR 100", "MÜLLER^Jörg*"),
        ("ISO_IR 144", "МИРОН*"),
        ("ISO 2022 IR 6\\ISO 2022 IR 87", "YAMADA^TARO=山田^太郎"),
        ("GB18030", "王小东"),
        ("ISO_IR 192", "DOE*"),
    ],
)
def test_keys_read_as_they_were_written_in_every_character_set(syntax: str, declared: str, name: str) -> None:
    context = AcceptedContext(1, FIND, syntax)
    groups = dict(zip(("Alphabetic", "Ideographic"), name.split("="), strict=False))
    item = {"00400001": {"vr": "AE", "Value": ["CT1"]}, "00400006": {"vr": "PN", "Value": [groups]}}
    model: dict[str, Any] = {
        "00080052": {"vr": "CS", "Value": ["STUDY"]},
        "00100010": {"vr": "PN", "Value": [groups]},
        "00200013": {"vr": "IS", "Value": [7]},
        "00280010": {"vr": "US", "Value": [512]},
        "00400100": {"vr": "SQ", "Value": [item]},
        "0020000D": {"vr": "UI"},
    }
    raw = identifier_bytes(model, context, declared)
    read = model_of(raw, context)
    charset = read.pop("00080005", None)
    assert read == model
    assert (charset is not None) is bool(declared or not name.isascii())
    if declared:
        assert declared.encode() in raw


@pytest.mark.parametrize("declared", ["ISO_IR 100", "latin1"])
def test_what_a_character_set_does_not_have_is_not_sent_as_something_else(declared: str) -> None:
    model = {"00100010": {"vr": "PN", "Value": [{"Alphabetic": "МИРОН"}]}}
    with pytest.raises(ModelError) as raised:
        identifier_bytes(model, AcceptedContext(1, FIND, EXPLICIT), declared)
    assert "МИРОН" not in str(raised.value)


async def test_extensions_are_proposed_and_what_is_not_agreed_to_is_known() -> None:
    async def script(scp: ScriptedScp) -> None:
        await scp.accept(UserInformation(extended=(ExtendedNegotiation(FIND, b"\1\0\0"),)))
        assert scp.request is not None
        assert scp.request.user.extended == (ExtendedNegotiation(FIND, b"\1\0\1"),)

    asked = Extensions(relational=True, fuzzy=True)
    async with scripted(script) as scp:
        offer = Offer(extended=asked.negotiation(FIND))
        async with associate(_to(scp.port), [proposal(1, FIND)], offer=offer) as association:
            assert asked.missing(association.extended[FIND]) == ("fuzzy matching of names",)
    assert asked.missing(b"") == ("relational queries", "fuzzy matching of names")
    assert Extensions().negotiation(FIND) == ()


def test_a_get_proposes_every_usual_class_within_its_room() -> None:
    contexts, roles, left_out = get_contexts(GET)
    assert len(contexts) == CONTEXTS_MAX + 1
    assert len({context.context_id for context in contexts}) == len(contexts)
    assert all(context.context_id % 2 == 1 and context.context_id < 256 for context in contexts)
    assert contexts[0].abstract_syntax == GET
    assert {role.sop_class_uid for role in roles} == set(DEFAULT_CLASSES)
    assert all(role.scp and not role.scu for role in roles)
    assert not left_out
    for further, their_roles in further_contexts(GET):
        assert further[0] == contexts[0]
        assert len({context.context_id for context in further}) == len(further) == len(their_roles) + 1
        assert all(lookup(uid).encapsulated for context in further[1:] for uid in context.transfer_syntaxes)


def test_a_get_of_named_classes_has_a_context_for_each_syntax() -> None:
    contexts, roles, left_out = get_contexts(GET, [CT, "1.2.3"], [IMPLICIT, "1.2.840.10008.1.2.4.70"])
    assert [(one.abstract_syntax, one.transfer_syntaxes) for one in contexts[1:]] == [
        (CT, (IMPLICIT,)),
        (CT, ("1.2.840.10008.1.2.4.70",)),
        ("1.2.3", (IMPLICIT,)),
        ("1.2.3", ("1.2.840.10008.1.2.4.70",)),
    ]
    assert not left_out
    many, roles, left_out = get_contexts(GET, [f"1.2.{number}" for number in range(130)])
    assert (len(many), len(roles), len(left_out)) == (128, 127, 3)


# ---------------------------------------------------------------- several outstanding


def _object(number: int, failing: bool = False) -> AsyncIterator[tuple[Buffer, bool]]:
    async def pieces() -> AsyncIterator[tuple[Buffer, bool]]:
        await trio.lowlevel.checkpoint()
        yield b"%08d" % number, False
        if failing:
            raise OSError(5, "the disk is gone")
        yield b"%08d" % number, True

    return pieces()


CT_CONTEXT = PresentationContext(1, CT, (EXPLICIT,))


@pytest.mark.parametrize(
    ("agreed", "width"),
    [
        (AsynchronousOperations(3, 1), 3),
        (AsynchronousOperations(0, 1), 4),  # any number: ours
        (AsynchronousOperations(100, 1), 4),
        (AsynchronousOperations(1, 1), 1),
        (None, 1),
    ],
)
async def test_as_many_are_outstanding_as_was_agreed(agreed: Any, width: int) -> None:
    most = 0

    async def script(scp: ScriptedScp) -> None:
        nonlocal most
        await scp.accept(UserInformation(asynchronous_operations=agreed))
        left = 12
        while left:
            waiting = [await scp.message() for _ in range(min(width, left))]
            with trio.move_on_after(0.02) as scope:
                waiting.append(await scp.message())
            assert scope.cancelled_caught, "more than agreed"
            most = max(most, len(waiting))
            left -= len(waiting)
            for one in reversed(waiting):  # in any order (PS3.7 9.1)
                assert one.dataset[:8] == one.dataset[8:]
                status = 0xB000 + int(one.dataset[:8])
                await scp.say(1, CStoreResponse(one.command.message_id, status))

    async with scripted(script) as scp:
        with trio.fail_after(PATIENCE_S):
            async with associate(_to(scp.port), [CT_CONTEXT], offer=Offer(window=4)) as association:
                assert association.window == width
                context = association.context_for(CT)
                statuses: dict[int, int] = {}

                async def store(number: int) -> None:
                    response = await association.store(context, f"1.2.{number}", _object(number))
                    statuses[number] = response.status

                async with trio.open_nursery() as nursery:
                    for number in range(12):
                        nursery.start_soon(store, number)
    assert statuses == {number: 0xB000 + number for number in range(12)}
    assert most == width


async def test_all_that_were_outstanding_hear_of_an_abort() -> None:
    async def script(scp: ScriptedScp) -> None:
        await scp.accept(UserInformation(asynchronous_operations=AsynchronousOperations(8, 1)))
        for _ in range(4):
            await scp.message()
        await scp.abort()

    heard: list[NetError] = []
    async with scripted(script) as scp:
        with trio.fail_after(PATIENCE_S):
            async with associate(_to(scp.port), [CT_CONTEXT], offer=Offer(window=4)) as association:

                async def store(number: int) -> None:
                    try:
                        await association.store(association.context_for(CT), "1.2", _object(number))
                    except NetError as error:
                        heard.append(error)

                async with trio.open_nursery() as nursery:
                    for number in range(4):
                        nursery.start_soon(store, number)
                assert not association.usable
                with pytest.raises(AbortedError):
                    await association.store(association.context_for(CT), "1.2", _object(5))
    assert len(heard) == 4
    assert all(isinstance(error, AbortedError) and error.retry for error in heard)


async def test_who_is_within_an_object_hears_of_an_abort_that_another_heard_first() -> None:
    arrived, within, over = trio.Event(), trio.Event(), trio.Event()

    async def script(scp: ScriptedScp) -> None:
        await scp.accept(UserInformation(asynchronous_operations=AsynchronousOperations(8, 1)))
        await scp.message()
        arrived.set()
        await within.wait()
        await scp.abort()

    async def pieces() -> AsyncIterator[tuple[Buffer, bool]]:
        await arrived.wait()
        yield b"%08d" % 1, False
        within.set()
        await over.wait()
        yield b"%08d" % 1, True

    heard: list[NetError] = []
    async with scripted(script) as scp:
        with trio.fail_after(PATIENCE_S):
            async with associate(_to(scp.port), [CT_CONTEXT], offer=Offer(window=4)) as association:
                context = association.context_for(CT)

                async def store(object_: AsyncIterator[tuple[Buffer, bool]]) -> None:
                    try:
                        await association.store(context, "1.2", object_)
                    except NetError as error:
                        heard.append(error)
                    over.set()

                async with trio.open_nursery() as nursery:
                    nursery.start_soon(store, _object(0))
                    nursery.start_soon(store, pieces())
    assert [type(error) for error in heard] == [AbortedError, AbortedError]


async def test_an_object_that_breaks_off_fails_the_others_as_given_up() -> None:
    async def script(scp: ScriptedScp) -> None:
        await scp.accept(UserInformation(asynchronous_operations=AsynchronousOperations(8, 1)))

    heard: dict[int, BaseException] = {}
    async with scripted(script) as scp:
        with trio.fail_after(PATIENCE_S):
            async with associate(_to(scp.port), [CT_CONTEXT], offer=Offer(window=4)) as association:

                async def store(number: int) -> None:
                    pieces = _object(number, failing=number == 3)
                    try:
                        await association.store(association.context_for(CT), "1.2", pieces)
                    except (NetError, OSError) as error:
                        heard[number] = error

                async with trio.open_nursery() as nursery:
                    for number in range(4):
                        nursery.start_soon(store, number)
    assert isinstance(heard.pop(3), OSError)
    assert {type(error) for error in heard.values()} == {GivenUpError}
    assert len(heard) == 3


async def test_an_object_that_cannot_be_begun_harms_nobody() -> None:
    async def script(scp: ScriptedScp) -> None:
        await scp.accept()
        stored = await scp.message()
        await scp.say(1, CStoreResponse(stored.command.message_id, 0))

    async def nothing() -> AsyncIterator[tuple[Buffer, bool]]:
        raise OSError(2, "no such file")
        yield b"", True

    async with scripted(script) as scp:
        with trio.fail_after(PATIENCE_S):
            async with associate(_to(scp.port), [CT_CONTEXT]) as association:
                with pytest.raises(OSError, match="no such file"):
                    await association.store(association.context_for(CT), "1.2", nothing())
                assert association.usable
                response = await association.store(association.context_for(CT), "1.2", _object(1))
                assert response.status == 0
        await scp.ended.wait()
        assert isinstance(scp.endings[0], ReleaseRequest)


async def test_the_mover_is_named_in_what_is_sent_for_it() -> None:
    seen: list[CStoreRequest] = []

    async def script(scp: ScriptedScp) -> None:
        await scp.accept()
        stored = await scp.message()
        seen.append(stored.command)
        await scp.say(1, CStoreResponse(stored.command.message_id, 0))

    async with scripted(script) as scp, associate(_to(scp.port), [CT_CONTEXT]) as association:
        context = association.context_for(CT)
        await association.store(context, "1.2.3", _object(1), move_originator=("WORKSTATION", 77))
    assert (seen[0].move_originator_ae, seen[0].move_originator_message_id) == ("WORKSTATION", 77)


# ---------------------------------------------------------------- C-MOVE and C-GET


def _uids(*uids: str) -> bytes:
    context = AcceptedContext(1, MOVE, EXPLICIT)
    return identifier_bytes({"00080058": {"vr": "UI", "Value": list(uids)}}, context)


async def _steps(port: int, uid: str, destination: str = "", **more: Any) -> list[Any]:
    offer = Offer(roles=more.pop("roles", ()))
    contexts = more.pop("contexts", [proposal(1, uid)])
    with trio.fail_after(PATIENCE_S):
        async with associate(_to(port), contexts, ScuLimits(response_s=5), offer, **more) as association:
            context = association.context_for(uid)
            identifier = identifier_bytes(KEYS, context)
            return [
                step async for step in retrieve(association, context, identifier, destination=destination)
            ]


async def test_counts_of_a_move_are_told_live_and_what_failed_is_named() -> None:
    async def script(scp: ScriptedScp) -> None:
        await scp.accept()
        asked = await scp.message()
        assert asked.command.move_destination == "THERE"
        number = asked.command.message_id
        await scp.say(1, CMoveResponse(number, 0xFF00, MOVE, 2, 1, 0, 0))
        await scp.say(1, CMoveResponse(number, 0xFF00, MOVE, 1, 1, 1, 0))
        end = CMoveResponse(number, 0xB000, MOVE, None, 1, 1, 1, has_dataset=True)
        await scp.say(1, end, _uids("1.2.5", "1.2.6"))

    async with scripted(script) as scp:
        first, second, end = await _steps(scp.port, MOVE, "THERE")
        assert (first.remaining, first.done, second.failed, second.done) == (2, 1, 1, 2)
        assert (end.category, end.failed_uids) == (Category.WARNING, ("1.2.5", "1.2.6"))
        assert (end.suboperations.completed, end.suboperations.failed, end.suboperations.warned) == (1, 1, 1)


@pytest.mark.parametrize("status", [0xA701, 0xA702, 0xA801, 0xA900, 0xC123])
async def test_a_move_that_is_refused_is_an_error(status: int) -> None:
    async def script(scp: ScriptedScp) -> None:
        await scp.accept()
        asked = await scp.message()
        await scp.say(1, CMoveResponse(asked.command.message_id, status, MOVE))

    async with scripted(script) as scp:
        with pytest.raises(RefusedError) as raised:
            await _steps(scp.port, MOVE, "THERE")
        assert raised.value.status == status


def _ct() -> tuple[bytes, bytes]:
    path = get_testdata_file("CT_small.dcm")
    assert path is not None
    raw = Path(path).read_bytes()
    return raw, raw[part10.split(raw).offset :]


def _getting(directory: Path, files: list[ReceivedFile]) -> dict[str, Any]:
    contexts, roles, _ = get_contexts(GET, [CT], [EXPLICIT])
    return {"contexts": contexts, "roles": roles, "storage": FileStorage(directory, "SCP", files.append)}


@pytest.mark.parametrize("writable", [True, False])
async def test_objects_of_a_get_become_files_or_are_refused(tmp_path: Path, writable: bool) -> None:
    raw, dataset = _ct()
    directory = tmp_path / "out"
    if writable:
        directory.mkdir()
    statuses: list[int] = []

    async def script(scp: ScriptedScp) -> None:
        await scp.accept()
        assert scp.request is not None
        assert [(role.sop_class_uid, role.scu, role.scp) for role in scp.request.user.roles] == [
            (CT, False, True)
        ]
        asked = await scp.message()
        for number, uid in enumerate(("1.2.3", "../../etc/passwd")):
            await scp.say(3, CStoreRequest(number + 7, CT, uid), dataset)
            stored = await scp.message()
            assert stored.command.message_id_responded_to == number + 7
            statuses.append(stored.command.status)
        await scp.say(1, CGetResponse(asked.command.message_id, 0, GET, 0, 2, 0, 0))

    files: list[ReceivedFile] = []
    async with scripted(script) as scp:
        (end,) = await _steps(scp.port, GET, **_getting(directory, files))
    assert end.suboperations.completed == 2
    assert statuses == ([0, 0] if writable else [0xA700, 0xA700])
    assert len(files) == 2
    if not writable:
        assert all(file.path is None and "No such file" in file.error for file in files)
        return
    (path,) = (file for file in directory.rglob("*") if file.is_file())
    written = path.read_bytes()
    found = part10.split(written)
    assert written[found.offset :] == dataset
    assert found.transfer_syntax_uid == EXPLICIT
    original = part10.split(raw)
    assert path.name == f"{original.sop_instance_uid}.dcm"
    assert not list(directory.rglob("*.part"))


@pytest.mark.parametrize("uid", ["../../../up", "/tmp/absolute", "..", "", "1.2/3", "1.2\x003", "x" * 300])
async def test_no_uid_leads_out_of_the_directory(tmp_path: Path, uid: str) -> None:
    dataset = b"".join(
        element(tag, "UI", uid.encode(), implicit=False, little=True)
        for tag in (0x00080018, 0x0020000D, 0x0020000E)
    )

    async def script(scp: ScriptedScp) -> None:
        await scp.accept()
        asked = await scp.message()
        await scp.say(3, CStoreRequest(7, CT, uid[:60] or "1.2"), dataset)
        assert (await scp.message()).command.status == 0
        await scp.say(1, CGetResponse(asked.command.message_id, 0, GET, 0, 1, 0, 0))

    directory = tmp_path / "a" / "b"
    directory.mkdir(parents=True)
    files: list[ReceivedFile] = []
    async with scripted(script) as scp:
        await _steps(scp.port, GET, **_getting(directory, files))
    (written,) = (path for path in tmp_path.rglob("*") if path.is_file())
    assert written == files[0].path
    assert len(written.relative_to(directory).parts) == 3
    assert ".." not in written.parts


async def test_an_object_that_breaks_off_leaves_no_file(tmp_path: Path) -> None:
    async def script(scp: ScriptedScp) -> None:
        await scp.accept()
        await scp.message()
        await scp.begin_saying(3, CStoreRequest(7, CT, "1.2.3"), _ct()[1][:20_000])
        await scp.abort()

    files: list[ReceivedFile] = []
    async with scripted(script) as scp:
        with pytest.raises(AbortedError):
            await _steps(scp.port, GET, **_getting(tmp_path, files))
    assert not files
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------- what the peer asks of us


def test_only_reports_on_what_was_asked_count() -> None:
    context = AcceptedContext(1, STORAGE_COMMITMENT, EXPLICIT)
    one, two = Reference(CT, "1.2.1"), Reference(CT, "1.2.2")
    awaited = Awaited()
    asked = awaited.expect([one, two])

    def hear(uid: str, kind: int = 1, sop_class: str = STORAGE_COMMITMENT, data: bytes | None = None) -> int:
        request = NEventReportRequest(1, sop_class, f"{STORAGE_COMMITMENT}.1", kind, has_dataset=True)
        if data is None:
            data = report(uid, [one, Reference(CT, "1.2.99")], [], lookup(EXPLICIT))
        return awaited.hear(context, request, data)

    assert hear("1.2.3") == 0x0110  # somebody else's transaction
    assert hear(asked.transaction_uid, kind=3) == 0x0113
    assert hear(asked.transaction_uid, sop_class=CT) == 0x0118
    assert hear(asked.transaction_uid, data=b"nonsense") == 0x0115
    assert not awaited.complete
    assert awaited.unreported() == [one, two]
    assert hear(asked.transaction_uid) == 0
    assert awaited.complete
    assert awaited.committed() == [one]
    assert awaited.failed() == [(two, "the report does not mention it")]
    assert not awaited.unreported()


async def test_a_report_is_answered_and_what_nobody_provides_is_refused() -> None:
    answers: list[Any] = []

    async def script(scp: ScriptedScp) -> None:
        await scp.accept()
        await scp.say(1, CEchoRequest(1))
        answers.append((await scp.message()).command)
        await scp.say(1, NEventReportRequest(2, FIND, "1.2", 5, has_dataset=True), b"12345678")
        answers.append((await scp.message()).command)
        await scp.say(1, CStoreRequest(3, CT, "1.2.3"), b"12345678")
        answers.append((await scp.message()).command)

    heard: list[tuple[int, bytes]] = []

    def hear(context: AcceptedContext, report: NEventReportRequest, data: bytes) -> int:
        heard.append((report.event_type_id, data))
        return 0x0115

    async with scripted(script) as scp:
        with trio.fail_after(PATIENCE_S):
            async with associate(_to(scp.port), [proposal(1, FIND)], reports=hear) as association:
                await association.hear_until(lambda: bool(heard))
                with trio.move_on_after(0.2):
                    await association.hear_until(lambda: len(answers) == 3)
                assert association.usable  # who is cancelled between two messages harms nobody
    assert heard == [(5, b"12345678")]
    assert answers[0] == CEchoResponse(1, 0x0211)
    assert answers[1] == NEventReportResponse(2, 0x0115, FIND, "1.2", 5)
    assert answers[2] == CStoreResponse(3, 0x0211)
