"""Nobody is promised what it may not have, or what we cannot do: services, roles, windows, identities."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hounsfield.archive.net.agreement import terms_for
from hounsfield.archive.net.limits import NetLimits
from hounsfield.archive.net.negotiation import STORAGE_SUPPORT, Terms, negotiate
from hounsfield.archive.net.policy import ListenerPolicy, Refusal, RemoteAe
from hounsfield.archive.net.services import Identified, Service
from hounsfield.archive.net.sop_classes import VERIFICATION
from hounsfield.archive.wire import (
    AssociateReject,
    AssociateRequest,
    AsynchronousOperations,
    CEchoRequest,
    CFindRequest,
    CFindResponse,
    CGetRequest,
    ContextResult,
    CStoreRequest,
    ExtendedNegotiation,
    NEventReportRequest,
    PresentationContext,
    RoleSelection,
    UserIdentity,
    UserInformation,
)

IMPLICIT, EXPLICIT = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1"
DEFLATED, BIG, J2K = "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.4.90"
CT = "1.2.840.10008.5.1.4.1.1.2"
FIND, GET = "1.2.840.10008.5.1.4.1.2.2.1", "1.2.840.10008.5.1.4.1.2.2.3"
COMMITMENT = "1.2.840.10008.1.20.1"
ACCEPTED, USER_REJECTION = ContextResult.ACCEPTANCE, ContextResult.USER_REJECTION
NO_SYNTAX = ContextResult.TRANSFER_SYNTAXES_NOT_SUPPORTED
OPEN = ListenerPolicy()


async def _answer(operation: Any, context: Any, request: Any, identifier: bytes) -> None:
    await operation.respond(CFindResponse(request.message_id, 0, operation.peer.identity or FIND))


SERVICES = (
    Service(
        "find",
        frozenset({FIND}),
        {CFindRequest: _answer},
        lambda uid, asked: asked[:1] if uid == FIND else None,
    ),
    Service("get", frozenset({GET}), {CGetRequest: _answer}),
    Service(
        "commit",
        frozenset({COMMITMENT}),
        {NEventReportRequest: _answer},
        transfer_syntaxes=(EXPLICIT, IMPLICIT, BIG),
        used_by_us=frozenset({COMMITMENT}),
    ),
)


def terms(**ae: Any) -> Terms:
    return terms_for(RemoteAe("PEER", **ae), OPEN, SERVICES, NetLimits())


def request(*contexts: tuple[str, tuple[str, ...]], **user: Any) -> AssociateRequest:
    return AssociateRequest(
        called_ae="HOUNSFIELD",
        calling_ae="PEER",
        contexts=tuple(
            PresentationContext(2 * number + 1, abstract, transfer)
            for number, (abstract, transfer) in enumerate(contexts)
        ),
        user=UserInformation(max_pdu_length=16384, **user),
    )


def answers(words: AssociateRequest, agreed: Terms) -> list[tuple[int, str]]:
    return [(result.result, result.transfer_syntax) for result in negotiate(words, agreed).contexts]


# ---------------------------------------------------------------- presentation contexts


@pytest.mark.parametrize(
    ("abstract", "proposed", "expected"),
    [
        (FIND, (IMPLICIT,), (ACCEPTED, IMPLICIT)),
        (FIND, (IMPLICIT, EXPLICIT), (ACCEPTED, EXPLICIT)),
        (FIND, (J2K, DEFLATED, IMPLICIT), (ACCEPTED, IMPLICIT)),
        (FIND, (DEFLATED,), (NO_SYNTAX, DEFLATED)),  # an identifier is not compressed for us
        (FIND, (BIG,), (NO_SYNTAX, BIG)),
        (COMMITMENT, (BIG,), (ACCEPTED, BIG)),  # a service says what it can
        (FIND, (), (NO_SYNTAX, "")),
        (VERIFICATION, (IMPLICIT, EXPLICIT), (ACCEPTED, EXPLICIT)),
    ],
)
def test_services_take_their_own_transfer_syntaxes(
    abstract: str, proposed: tuple[str, ...], expected: tuple[int, str]
) -> None:
    assert answers(request((abstract, proposed)), terms()) == [expected]


@pytest.mark.parametrize(
    ("services", "expected"),
    [
        ((), [ACCEPTED] * 4),
        (("find",), [ACCEPTED, ACCEPTED, USER_REJECTION, USER_REJECTION]),
        (("store", "get"), [ACCEPTED, USER_REJECTION, ACCEPTED, ACCEPTED]),
        (("echo",), [ACCEPTED, USER_REJECTION, USER_REJECTION, USER_REJECTION]),
    ],
)
def test_an_ae_uses_the_services_of_its_entry(services: tuple[str, ...], expected: list[int]) -> None:
    words = request(*[(uid, (EXPLICIT,)) for uid in (VERIFICATION, FIND, GET, CT)])
    agreed = terms(services=frozenset(services))
    assert [result for result, _ in answers(words, agreed)] == expected


def test_an_ae_that_only_gets_is_taken_for_a_receiver() -> None:
    roles = (RoleSelection(CT, scu=True, scp=True),)
    agreed = terms(services=frozenset({"get"}))
    # both roles: it wants to store as well, which it may not
    assert answers(request((CT, (EXPLICIT,)), roles=roles), agreed) == [(USER_REJECTION, EXPLICIT)]
    roles = (RoleSelection(CT, scu=False, scp=True),)
    assert answers(request((CT, (EXPLICIT,)), roles=roles), agreed) == [(ACCEPTED, EXPLICIT)]


def test_an_ae_has_its_own_syntaxes_and_classes() -> None:
    words = request((CT, (EXPLICIT, J2K)), ("1.2.840.10008.5.1.4.1.1.4", (EXPLICIT,)))
    assert answers(words, terms())[0] == (ACCEPTED, EXPLICIT)
    assert answers(words, terms(preferred_transfer_syntaxes=(BIG, J2K)))[0] == (ACCEPTED, J2K)
    assert answers(words, terms(refused_transfer_syntaxes=frozenset({EXPLICIT}))) == [
        (ACCEPTED, J2K),
        (NO_SYNTAX, EXPLICIT),
    ]
    refused = answers(words, terms(refused_sop_classes=frozenset({CT})))
    assert [result for result, _ in refused] == [ContextResult.ABSTRACT_SYNTAX_NOT_SUPPORTED, ACCEPTED]


# ---------------------------------------------------------------- roles (PS3.7 D.3.3.4)


@pytest.mark.parametrize(
    ("abstract", "scu", "scp", "granted"),
    [
        (CT, True, False, (True, False)),
        (CT, False, True, (False, True)),  # it gets
        (CT, True, True, (True, True)),
        (FIND, True, True, (True, False)),  # we ask no caller for answers
        (COMMITMENT, True, False, (True, False)),
        (COMMITMENT, False, True, (False, True)),  # it tells what became of a request of ours
        (VERIFICATION, True, True, (True, False)),
    ],
)
def test_roles(abstract: str, scu: bool, scp: bool, granted: tuple[bool, bool]) -> None:
    words = request((abstract, (EXPLICIT,)), roles=(RoleSelection(abstract, scu, scp),))
    assert negotiate(words, terms()).user.roles == (RoleSelection(abstract, *granted),)


def test_who_may_not_get_is_not_granted_the_receivers_role() -> None:
    words = request((CT, (EXPLICIT,)), roles=(RoleSelection(CT, scu=True, scp=True),))
    agreed = terms(services=frozenset({"store", "find"}))
    assert negotiate(words, agreed).user.roles == (RoleSelection(CT, scu=True, scp=False),)


def test_no_role_is_answered_for_what_is_not_accepted_or_not_asked() -> None:
    words = request((FIND, (J2K,)), (CT, (EXPLICIT,)), roles=(RoleSelection(FIND, True, False),))
    assert negotiate(words, terms()).user.roles == ()


@pytest.mark.parametrize(
    ("scu", "proposed", "chosen"),
    [
        (False, (J2K, IMPLICIT, EXPLICIT), EXPLICIT),  # whatever is stored can be had in it
        (False, (J2K,), J2K),
        (True, (J2K, IMPLICIT, EXPLICIT), J2K),  # it has them compressed
    ],
)
def test_a_receiver_is_sent_native_objects_when_it_takes_them(
    scu: bool, proposed: tuple[str, ...], chosen: str
) -> None:
    words = request((CT, proposed), roles=(RoleSelection(CT, scu, scp=True),))
    assert answers(words, terms()) == [(ACCEPTED, chosen)]


# ---------------------------------------------------------------- windows (PS3.7 D.3.3.3), extended (D.3.3.5)


@given(st.integers(0, 0xFFFF), st.integers(0, 0xFFFF), st.integers(1, 100), st.integers(1, 100))
def test_a_window_is_within_what_both_take(invoked: int, performed: int, most: int, ours: int) -> None:
    words = request(asynchronous_operations=AsynchronousOperations(invoked, performed))
    window = negotiate(
        words, Terms(pdu_bytes_max=16384, operations_max=(most, ours))
    ).user.asynchronous_operations
    assert window is not None
    assert 1 <= window.invoked_max <= min(most, invoked or most)
    assert 1 <= window.performed_max <= min(ours, performed or ours)
    assert window.invoked_max in {invoked, most}
    assert window.performed_max in {performed, ours}


def test_a_window_is_not_spoken_of_unasked() -> None:
    assert negotiate(request((CT, (EXPLICIT,))), terms()).user.asynchronous_operations is None


def test_services_answer_their_extended_negotiation() -> None:
    asked = tuple(ExtendedNegotiation(uid, b"\1\1\1") for uid in (FIND, GET, CT, COMMITMENT, VERIFICATION))
    words = request(*[(uid, (EXPLICIT,)) for uid in (FIND, GET, CT, VERIFICATION)], extended=asked)
    assert negotiate(words, terms()).user.extended == (
        ExtendedNegotiation(FIND, b"\1"),  # as far as the service goes
        ExtendedNegotiation(CT, STORAGE_SUPPORT),
    )


# ---------------------------------------------------------------- in an association


async def test_who_may_not_store_does_not(serve: Any, sink: Any, peer_to: Any) -> None:
    known = {"PEER": RemoteAe("PEER", services=frozenset({"get"}))}
    async with serve(sink, OPEN, services=SERVICES, aes=known) as archive:
        peer = await peer_to(archive)
        await peer.associate(
            PresentationContext(3, CT, (EXPLICIT,)),
            user=UserInformation(max_pdu_length=16384, roles=(RoleSelection(CT, scu=False, scp=True),)),
        )
        await peer.say(3, CStoreRequest(1, CT, "1.2.3"), b"12345678")
        assert (await peer.response()).status == 0x0124
        assert sink.begun == 0


async def test_nothing_is_stored_on_another_services_context(serve: Any, sink: Any, peer_to: Any) -> None:
    async with serve(sink, OPEN, services=SERVICES) as archive:
        peer = await peer_to(archive)
        await peer.associate(
            PresentationContext(5, FIND, (EXPLICIT,)), PresentationContext(7, CT, (EXPLICIT,))
        )
        await peer.say(5, CStoreRequest(1, CT, "1.2.3"), b"12345678")
        assert (await peer.response()).status == 0x0122
        await peer.say(7, CFindRequest(2, FIND), b"12345678")  # and no query on a storage context
        assert (await peer.response()).status == 0x0211
        await peer.say(5, CGetRequest(3, FIND), b"12345678")
        assert (await peer.response()).status == 0x0211
        assert sink.begun == 0


ALICE = UserIdentity(2, b"alice", b"secret", response_requested=True)


async def _identify(identity: UserIdentity | None, address: str, ae: RemoteAe | None) -> Any:
    assert address == "127.0.0.1"
    if identity is None:
        return None if ae is None else Refusal(AssociateReject(1, 1, 1), "a user has to be named")
    if identity.secondary != b"secret":
        return Refusal(AssociateReject(1, 1, 1), "the user is not who it says")
    return Identified(identity.primary.decode(), b"ticket")


@pytest.mark.parametrize(
    ("identity", "calling", "response", "name"),
    [
        (None, "STRANGER", None, FIND),
        (ALICE, "PEER", b"ticket", "alice"),
        (UserIdentity(2, b"bob", b"secret"), "PEER", None, "bob"),  # not asked for (PS3.7 D.3.3.7.2)
    ],
)
async def test_an_identity_is_verified_and_answered_when_asked(
    serve: Any, sink: Any, peer_to: Any, identity: UserIdentity | None, calling: str, response: Any, name: str
) -> None:
    async with serve(
        sink, OPEN, services=SERVICES, identify=_identify, aes={"PEER": RemoteAe("PEER")}
    ) as archive:
        peer = await peer_to(archive)
        accept = await peer.associate(
            PresentationContext(5, FIND, (EXPLICIT,)),
            calling_ae=calling,
            user=UserInformation(max_pdu_length=16384, identity=identity),
        )
        assert accept.user.identity_response == response
        await peer.say(5, CFindRequest(1, FIND), b"12345678")
        assert (await peer.response()).affected_sop_class_uid == name  # what the operation knows of its peer


@pytest.mark.parametrize("identity", [None, UserIdentity(2, b"alice", b"wrong")])
async def test_without_its_identity_a_caller_is_refused(
    serve: Any, sink: Any, peer_to: Any, identity: UserIdentity | None
) -> None:
    async with serve(sink, OPEN, identify=_identify, aes={"PEER": RemoteAe("PEER")}) as archive:
        peer = await peer_to(archive)
        answer = await peer.request(
            PresentationContext(1, VERIFICATION, (EXPLICIT,)),
            user=UserInformation(max_pdu_length=16384, identity=identity),
        )
        assert answer == AssociateReject(1, 1, 1)
        (call,) = archive.observer.calls
        assert call.outcome == "refused"
        assert "alice" not in call.reason


async def test_an_archive_that_verifies_nobody_answers_no_identity(
    serve: Any, sink: Any, peer_to: Any
) -> None:
    async with serve(sink, OPEN) as archive:
        peer = await peer_to(archive)
        accept = await peer.associate(
            PresentationContext(1, VERIFICATION, (EXPLICIT,)),
            user=UserInformation(max_pdu_length=16384, identity=ALICE),
        )
        assert accept.user.identity_response is None
        await peer.say(1, CEchoRequest(1))
        assert (await peer.response()).status == 0
