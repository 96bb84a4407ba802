"""Every PDU and every command that can exist, as hypothesis strategies; and the way to a given state."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from hypothesis import strategies as st

from hounsfield.archive.wire import (
    NEED_DATA,
    Abort,
    AssociateAccept,
    AssociateReject,
    AssociateRequest,
    Association,
    AsynchronousOperations,
    Command,
    CommonExtendedNegotiation,
    DataFragment,
    Event,
    ExtendedNegotiation,
    PresentationContext,
    PresentationResult,
    ReleaseReply,
    ReleaseRequest,
    Role,
    RoleSelection,
    State,
    UnknownItem,
    UserIdentity,
    UserInformation,
    WireLimits,
)
from hounsfield.archive.wire.commands import BY_CLASS, ELEMENTS, Carries

_BYTE = st.integers(0, 255)
_SHORT = st.integers(0, 0xFFFF)
_WORD = st.characters(codec="latin-1", exclude_characters="\0 ")


def _text(least: int, most: int) -> st.SearchStrategy[str]:
    """Text without padding at its ends."""
    return st.text(st.characters(codec="latin-1"), min_size=least, max_size=most).filter(
        lambda text: text == text.strip("\0 ")
    )


ae_titles = _text(0, 16)
uids = st.one_of(st.from_regex(r"[012](\.(0|[1-9][0-9]{0,5})){1,8}", fullmatch=True), _text(1, 64))
context_ids = st.integers(0, 127).map(lambda n: 2 * n + 1)

contexts = st.lists(
    st.builds(PresentationContext, context_ids, uids, st.lists(uids, max_size=4).map(tuple)),
    max_size=6,
    unique_by=lambda context: context.context_id,
).map(tuple)
results = st.lists(
    st.one_of(
        st.builds(PresentationResult, context_ids, st.just(0), uids),
        st.builds(PresentationResult, context_ids, st.integers(1, 4), st.one_of(st.just(""), uids)),
    ),
    max_size=6,
    unique_by=lambda result: result.context_id,
).map(tuple)

_KNOWN_ITEMS = {0x51, 0x52, 0x53, 0x54, 0x55, 0x56, 0x57, 0x58, 0x59, 0x10, 0x30, 0x50}


def user_information(*, request: bool) -> st.SearchStrategy[UserInformation]:
    return st.builds(
        UserInformation,
        max_pdu_length=st.one_of(st.none(), st.just(0), st.integers(64, 0xFFFFFFFF)),
        implementation_class_uid=st.one_of(st.just(""), uids),
        implementation_version=_text(0, 16),
        asynchronous_operations=st.one_of(st.none(), st.builds(AsynchronousOperations, _SHORT, _SHORT)),
        roles=st.lists(st.builds(RoleSelection, uids, st.booleans(), st.booleans()), max_size=3).map(tuple),
        extended=st.lists(st.builds(ExtendedNegotiation, uids, st.binary(max_size=8)), max_size=3).map(tuple),
        common_extended=st.lists(
            st.builds(CommonExtendedNegotiation, uids, uids, st.lists(uids, max_size=3).map(tuple)),
            max_size=2,
        ).map(tuple)
        if request
        else st.just(()),
        identity=st.one_of(
            st.none(),
            st.builds(
                UserIdentity, st.integers(1, 5), st.binary(max_size=40), st.binary(max_size=40), st.booleans()
            ),
        )
        if request
        else st.none(),
        identity_response=st.none() if request else st.one_of(st.none(), st.binary(max_size=40)),
        unknown=st.lists(
            st.builds(UnknownItem, _BYTE.filter(lambda n: n not in _KNOWN_ITEMS), st.binary(max_size=8)),
            max_size=2,
        ).map(tuple),
    )


associate_requests = st.builds(
    AssociateRequest,
    called_ae=ae_titles,
    calling_ae=ae_titles,
    contexts=contexts,
    user=user_information(request=True),
    application_context=uids,
    protocol_version=_SHORT.map(lambda bits: bits | 1),
)
associate_accepts = st.builds(
    AssociateAccept,
    called_ae=ae_titles,
    calling_ae=ae_titles,
    contexts=results,
    user=user_information(request=False),
    application_context=uids,
    protocol_version=_SHORT,
)
associate_rejects = st.builds(AssociateReject, _BYTE, _BYTE, _BYTE)
aborts = st.builds(Abort, _BYTE, _BYTE)

_VALUES: dict[str, st.SearchStrategy[Any]] = {
    "US": _SHORT,
    "UI": _text(1, 64),
    "AE": _text(1, 16),
    "LO": st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=64),
    "AT": st.lists(st.integers(0, 0xFFFFFFFF), min_size=1, max_size=5).map(tuple),
}


@st.composite
def commands(draw: st.DrawFn) -> Command:
    """Any command, with any permitted set of its elements."""
    spec = draw(st.sampled_from(list(BY_CLASS.values())))
    values: dict[str, Any] = {}
    required = {name for name, _, required in spec.elements if required}
    for field in fields(spec.cls):
        if field.name == "has_dataset":
            values["has_dataset"] = {Carries.ALWAYS: True, Carries.NEVER: False}.get(
                spec.dataset, draw(st.booleans())
            )
            continue
        value = _VALUES[ELEMENTS[field.name].vr]
        if field.name not in required and field.default is None:
            value = st.one_of(st.none(), value)
        if field.name == "affected_sop_class_uid" and field.default is not None:
            value = value.filter(bool)
        values[field.name] = draw(value)
    if spec.name == "C-ECHO-RSP" and values["affected_sop_class_uid"] is None:
        values["affected_sop_class_uid"] = "1.2.840.10008.1.1"
    return spec.cls(**values)


# ---------------------------------------------------------------- associations in a state

VERIFICATION = "1.2.840.10008.1.1"
CT = "1.2.840.10008.5.1.4.1.1.2"
IMPLICIT = "1.2.840.10008.1.2"
EXPLICIT = "1.2.840.10008.1.2.1"

REQUEST = AssociateRequest(
    called_ae="ARCHIVE",
    calling_ae="MODALITY",
    contexts=(
        PresentationContext(1, VERIFICATION, (IMPLICIT,)),
        PresentationContext(3, CT, (EXPLICIT, IMPLICIT)),
        PresentationContext(5, "1.2.3", (EXPLICIT,)),
    ),
    user=UserInformation(implementation_class_uid="1.2.3.4", implementation_version="TEST"),
)
ACCEPT = AssociateAccept(
    called_ae="ARCHIVE",
    calling_ae="MODALITY",
    contexts=(
        PresentationResult(1, 0, IMPLICIT),
        PresentationResult(3, 0, EXPLICIT),
        PresentationResult(5, 3),
    ),
    user=UserInformation(implementation_class_uid="1.2.3.4", implementation_version="TEST"),
)


def wire(buffers: list[Any]) -> bytes:
    return b"".join(bytes(buffer) for buffer in buffers)


def established(
    role: Role,
    limits: WireLimits | None = None,
    *,
    peer_max: int | None = 256 * 1024,
    our_max: int | None = 256 * 1024,
) -> Association:
    """An association in Sta6, on which contexts 1 and 3 are accepted and 5 is not."""
    association = Association(role, limits)
    ours, theirs = UserInformation(max_pdu_length=our_max), UserInformation(max_pdu_length=peer_max)
    request = _with_user(REQUEST, ours if role is Role.REQUESTOR else theirs)
    accept = _with_user(ACCEPT, ours if role is Role.ACCEPTOR else theirs)
    if role is Role.ACCEPTOR:
        association.receive_data(encode(request))
        assert association.next_event() == request
        association.send(accept)
    else:
        association.send(request)
        association.receive_data(encode(accept))
        assert association.next_event() == accept
    assert association.state is State.ESTABLISHED
    return association


def _with_user(pdu: Any, user: UserInformation) -> Any:
    values = {field.name: getattr(pdu, field.name) for field in fields(pdu)}
    return type(pdu)(**(values | {"user": user}))


def encode(pdu: Any) -> bytes:
    from hounsfield.archive.wire.pdu_writer import write_pdu

    return write_pdu(pdu)


def in_state(state: State, role: Role | None = None) -> Association:
    """An association that has come to ``state`` by permitted steps."""
    if state is State.IDLE:
        return Association(Role.REQUESTOR)
    if state is State.AWAITING_ASSOCIATE_RQ:
        return Association(Role.ACCEPTOR)
    if state is State.AWAITING_LOCAL_ASSOCIATE:
        association = Association(Role.ACCEPTOR)
        association.receive_data(encode(REQUEST))
        association.next_event()
    elif state is State.AWAITING_ASSOCIATE_REPLY:
        association = Association(Role.REQUESTOR)
        association.send(REQUEST)
    elif state in (State.COLLISION_REQUESTOR_LOCAL, State.COLLISION_REQUESTOR_REMOTE):
        association = established(Role.REQUESTOR)
        association.send(ReleaseRequest())
        _take(association, ReleaseRequest())
        if state is State.COLLISION_REQUESTOR_REMOTE:
            association.send(ReleaseReply())
    elif state in (State.COLLISION_ACCEPTOR_REMOTE, State.COLLISION_ACCEPTOR_LOCAL):
        association = established(Role.ACCEPTOR)
        association.send(ReleaseRequest())
        _take(association, ReleaseRequest())
        if state is State.COLLISION_ACCEPTOR_LOCAL:
            _take(association, ReleaseReply())
    else:
        association = established(role or Role.ACCEPTOR)
        if state is State.AWAITING_RELEASE_RP:
            association.send(ReleaseRequest())
        elif state in (State.AWAITING_LOCAL_RELEASE, State.AWAITING_CLOSE):
            _take(association, ReleaseRequest())
            if state is State.AWAITING_CLOSE:
                association.send(ReleaseReply())
    assert association.state is state
    return association


def _take(association: Association, pdu: Any) -> None:
    association.receive_data(encode(pdu))
    assert association.next_event() == pdu


def events(association: Association) -> list[Event]:
    """All events that are there."""
    found: list[Event] = []
    while (event := association.next_event()) is not NEED_DATA:
        found.append(keep(event))
        if type(event).__name__ == "TransportClosed":
            break
    return found


def keep(event: Event) -> Event:
    """The event with its payload copied, so that it outlives the receive buffer."""
    if isinstance(event, DataFragment):
        return DataFragment(event.context_id, event.is_command, event.last, bytes(event.data))
    return event


def coalesce(found: list[Any]) -> list[Any]:
    """Joins adjacent fragments of one value: where they were cut is not part of what was said."""
    joined: list[Any] = []
    for event in found:
        before = joined[-1] if joined else None
        if (
            isinstance(event, DataFragment)
            and isinstance(before, DataFragment)
            and not before.last
            and (before.context_id, before.is_command) == (event.context_id, event.is_command)
        ):
            joined[-1] = DataFragment(
                event.context_id, event.is_command, event.last, bytes(before.data) + bytes(event.data)
            )
        else:
            joined.append(event)
    return joined
