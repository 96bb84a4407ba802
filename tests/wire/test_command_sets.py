"""The danger: a command that is misread, or that another implementation misreads."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pynetdicom import dimse_messages
from pynetdicom.dsutils import decode as peer_decode
from pynetdicom.dsutils import encode as peer_encode
from wire_strategies import CT, commands

from hounsfield.archive.wire import (
    Abort,
    CEchoRequest,
    CFindRequest,
    Command,
    CStoreRequest,
    CStoreResponse,
    LocalProtocolError,
    NGetRequest,
    Priority,
    RemoteProtocolError,
    decode_command,
    encode_command,
)
from hounsfield.archive.wire.commands import BY_CLASS, BY_COMMAND_FIELD, ELEMENTS

# PS3.7 Table E.1-1, by keyword; the numbers come from pydicom's dictionary
KEYWORDS = {
    "affected_sop_class_uid": "AffectedSOPClassUID",
    "requested_sop_class_uid": "RequestedSOPClassUID",
    "message_id": "MessageID",
    "message_id_responded_to": "MessageIDBeingRespondedTo",
    "move_destination": "MoveDestination",
    "priority": "Priority",
    "status": "Status",
    "offending_elements": "OffendingElement",
    "error_comment": "ErrorComment",
    "error_id": "ErrorID",
    "affected_sop_instance_uid": "AffectedSOPInstanceUID",
    "requested_sop_instance_uid": "RequestedSOPInstanceUID",
    "event_type_id": "EventTypeID",
    "attribute_identifiers": "AttributeIdentifierList",
    "action_type_id": "ActionTypeID",
    "remaining_suboperations": "NumberOfRemainingSuboperations",
    "completed_suboperations": "NumberOfCompletedSuboperations",
    "failed_suboperations": "NumberOfFailedSuboperations",
    "warning_suboperations": "NumberOfWarningSuboperations",
    "move_originator_ae": "MoveOriginatorApplicationEntityTitle",
    "move_originator_message_id": "MoveOriginatorMessageID",
}

STORE = CStoreRequest(7, CT, "1.2.3.4.5")
GOLDEN_STORE = bytes.fromhex(
    "0000 0000 04000000 5c000000"  # (0000,0000) group length 92
    "0000 0200 1a000000 312e322e3834302e31303030382e352e312e342e312e312e3200"  # SOP class, with NUL
    "0000 0001 02000000 0100"  # command field: C-STORE-RQ
    "0000 1001 02000000 0700"  # message id 7
    "0000 0007 02000000 0000"  # priority: medium
    "0000 0008 02000000 0100"  # a data set follows
    "0000 0010 0a000000 312e322e332e342e3500"  # affected SOP instance UID
)


def test_golden_command() -> None:
    assert int.from_bytes(GOLDEN_STORE[8:12], "little") == len(GOLDEN_STORE) - 12
    assert encode_command(STORE) == GOLDEN_STORE
    assert decode_command(GOLDEN_STORE) == STORE
    assert decode_command(memoryview(GOLDEN_STORE)) == STORE


def test_the_elements_are_those_of_the_data_dictionary() -> None:
    from pydicom.datadict import dictionary_VR, tag_for_keyword

    assert set(KEYWORDS) == set(ELEMENTS)
    for name, keyword in KEYWORDS.items():
        tag = tag_for_keyword(keyword)
        assert tag == ELEMENTS[name].number, name
        assert dictionary_VR(tag) == ELEMENTS[name].vr, name


def test_every_message_of_the_standard_is_there_with_its_elements() -> None:
    fixed = {"CommandGroupLength", "CommandField", "CommandDataSetType"}
    table = dimse_messages._COMMAND_SET_KEYWORDS
    assert {spec.name for spec in BY_CLASS.values()} == set(table)
    for spec in BY_CLASS.values():
        ours = {KEYWORDS[name] for name, _, _ in spec.elements}
        theirs = set(table[spec.name]) - fixed
        # pynetdicom leaves some elements out that PS3.7 has: Table 9.3-2 and 10.3-10
        extra = {"N-CREATE-RSP": {"AttributeIdentifierList"}}.get(spec.name, set())
        assert ours - extra == theirs, spec.name
    assert {field ^ 0x8000 for field in BY_COMMAND_FIELD if field & 0x8000} | {0x0FFF} == {
        field for field in BY_COMMAND_FIELD if not field & 0x8000
    }


@given(commands())
def test_round_trip(command: Command) -> None:
    assert decode_command(encode_command(command)) == command


@given(commands())
def test_pynetdicom_reads_what_we_write_and_we_what_it_writes(command: Command) -> None:
    from io import BytesIO

    raw = encode_command(command)
    dataset = peer_decode(BytesIO(raw), True, True)
    assert dataset.CommandGroupLength == len(raw) - 12
    assert dataset.CommandField == BY_CLASS[type(command)].command_field
    assert (dataset.CommandDataSetType != 0x0101) is command.has_dataset
    for name, _, _ in BY_CLASS[type(command)].elements:
        value = getattr(command, name)
        if value is None:
            assert KEYWORDS[name] not in dataset
        elif isinstance(value, int):
            assert getattr(dataset, KEYWORDS[name]) == value
    if raw.isascii():
        again = peer_encode(dataset, True, True)
        assert again is not None
        assert decode_command(again) == command


@given(st.binary(max_size=200))
def test_garbage_is_refused_or_read_never_worse(raw: bytes) -> None:
    try:
        decode_command(raw)
    except RemoteProtocolError as error:
        assert error.reply == Abort()


@given(commands(), st.data())
def test_damage_is_refused_or_read_never_worse(command: Command, data: st.DataObject) -> None:
    raw = bytearray(encode_command(command))
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        decode_command(raw[: data.draw(st.integers(0, len(raw)))])
    except RemoteProtocolError as error:
        assert error.reply == Abort()


def _element(number: int, value: bytes, group: int = 0) -> bytes:
    return (
        group.to_bytes(2, "little") + number.to_bytes(2, "little") + len(value).to_bytes(4, "little") + value
    )


ECHO = {0x0002: b"1.2.840.10008.1.1\0", 0x0100: b"\x30\0", 0x0110: b"\1\0", 0x0800: b"\1\1"}


def _command(changes: dict[int, bytes | None], extra: bytes = b"") -> bytes:
    elements = {number: value for number, value in (ECHO | changes).items() if value is not None}
    return b"".join(_element(number, value) for number, value in elements.items()) + extra


def test_a_sloppy_command_is_read() -> None:
    """No group length, any order, unknown elements, spaces for NULs, no priority."""
    raw = _command({0x0002: b" " + CT.encode() + b"  ", 0x0100: b"\x20\0", 0x0800: b"\0\0", 0x0010: b"old"})
    assert decode_command(raw) == CFindRequest(1, CT, Priority.MEDIUM)


def test_an_empty_uid_is_there_and_empty() -> None:
    """So that the service can answer with a status instead of losing the association."""
    command = decode_command(_command({0x0100: b"\1\0", 0x1000: b"", 0x0800: b"\0\0"}))
    assert isinstance(command, CStoreRequest)
    assert command.affected_sop_instance_uid == ""


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (_command({0x0100: None}), "(0000,0100) is missing"),
        (_command({0x0800: None}), "(0000,0800) is missing"),
        (_command({0x0110: None}), "(0000,0110) is missing"),
        (_command({0x0002: None, 0x0100: b"\x20\0", 0x0800: b"\0\0"}), "(0000,0002) is missing"),
        (_command({0x0110: b""}), "must have 2"),
        (_command({0x0110: b"\1\0\0\0"}), "must have 2"),
        (_command({0x0100: b"\x03\0"}), "no DIMSE message"),
        (_command({0x0100: b"\x01\0", 0x1000: b"1.2\0"}), "without a data set"),
        (_command({}, _element(0x0110, b"\2\0")), "appears twice"),
        (_command({}, _element(0x0010, b"x", group=8)), "element (0008,0010)"),
        (_command({}, b"\0\0\0"), "within an element's header"),
        (_command({}, _element(0x0010, b"x")[:-1]), "element (0000,0010)"),
        (_command({}, b"\0\0\x10\0\xff\xff\xff\xff"), "element (0000,0010)"),
        (
            _command({0x0100: b"\x10\x01", 0x0003: b"1.2\0", 0x1001: b"1.2\0", 0x1005: b"\1\2\3"}),
            "must have 4 each",
        ),
        (b"", "is missing"),
    ],
)
def test_what_leaves_a_doubt_is_refused(raw: bytes, says: str) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        decode_command(raw)
    assert says in str(caught.value)


def test_messages_of_errors_name_no_patient() -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        decode_command(_command({0x0100: b"\3\0", 0x1000: b"DOE^JANE"}))
    assert "DOE" not in str(caught.value)


@pytest.mark.parametrize(
    "command",
    [
        CEchoRequest(70000),
        CEchoRequest(-1),
        CEchoRequest(1, "放"),
        CEchoRequest(1, has_dataset=True),
        CStoreRequest(1, CT, "1.2", has_dataset=False),
        NGetRequest(1, CT, "1.2", (1 << 32,)),
        CStoreRequest(1, CT, None),  # type: ignore[arg-type]
    ],
)
def test_what_cannot_be_written_is_our_error(command: Command) -> None:
    with pytest.raises(LocalProtocolError):
        encode_command(command)


def test_a_long_comment_is_cut_not_refused() -> None:
    command = decode_command(encode_command(CStoreResponse(1, 0xA700, error_comment="größer " * 30)))
    assert isinstance(command, CStoreResponse)
    assert command.error_comment == ("gr??er " * 30)[:64].strip()
