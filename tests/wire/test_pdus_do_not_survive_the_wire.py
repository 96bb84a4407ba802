"""The danger: what we write is not what we, the standard or another implementation reads."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from pynetdicom import pdu as peer_pdu
from wire_strategies import aborts, associate_accepts, associate_rejects, associate_requests, encode

from hounsfield.archive.wire import (
    Abort,
    AssociateAccept,
    AssociateReject,
    AssociateRequest,
    AsynchronousOperations,
    CommonExtendedNegotiation,
    DataFragment,
    ExtendedNegotiation,
    LocalProtocolError,
    PresentationContext,
    PresentationResult,
    ReleaseReply,
    ReleaseRequest,
    RoleSelection,
    UnknownItem,
    UserIdentity,
    UserInformation,
    WireLimits,
)
from hounsfield.archive.wire.pdu_reader import (
    read_abort,
    read_associate_accept,
    read_associate_reject,
    read_associate_request,
)

LIMITS = WireLimits()


@given(associate_requests)
def test_request_round_trip(pdu: AssociateRequest) -> None:
    assert read_associate_request(encode(pdu)[6:], LIMITS) == pdu


@given(associate_accepts)
def test_accept_round_trip(pdu: AssociateAccept) -> None:
    assert read_associate_accept(encode(pdu)[6:], LIMITS) == pdu


@given(associate_rejects)
def test_reject_round_trip(pdu: AssociateReject) -> None:
    assert read_associate_reject(encode(pdu)[6:]) == pdu


@given(aborts)
def test_abort_round_trip(pdu: Abort) -> None:
    assert read_abort(encode(pdu)[6:]) == pdu


# ---------------------------------------------------------------- golden PDUs, byte by byte

GOLDEN_REQUEST = bytes.fromhex(
    "01 00 0000013a"  # A-ASSOCIATE-RQ, reserved, length 314
    "0001 0000"  # protocol version 1, reserved
    "41524348495645202020202020202020"  # called AE title  "ARCHIVE         "
    "43542d52304f4d312020202020202020"  # calling AE title "CT-R0OM1        "
    + "00"
    * 32  # reserved
    + "10 00 0015"  # application context item, length 21
    "312e322e3834302e31303030382e332e312e312e31"  # 1.2.840.10008.3.1.1.1
    "20 00 002e"  # presentation context item, length 46
    "01 00 00 00"  # context id 1, reserved
    "30 00 0011"  # abstract syntax, length 17
    "312e322e3834302e31303030382e312e31"  # 1.2.840.10008.1.1
    "40 00 0011"  # transfer syntax, length 17
    "312e322e3834302e31303030382e312e32"  # 1.2.840.10008.1.2
    "50 00 00a7"  # user information item, length 167
    "51 00 0004 00004000"  # maximum length 16384
    "52 00 0007 312e322e332e34"  # implementation class UID 1.2.3.4
    "53 00 0004 0002 0001"  # asynchronous operations window: 2 invoked, 1 performed
    "54 00 0015 0011"  # SCP/SCU role selection, length 21, UID length 17
    "312e322e3834302e31303030382e312e31 01 00"  # verification: SCU yes, SCP no
    "55 00 0004 54455354"  # implementation version name "TEST"
    "56 00 0016 0011"  # SOP class extended negotiation, length 22
    "312e322e3834302e31303030382e312e31 010203"  # verification: 01 02 03
    "57 00 0034 0011"  # SOP class common extended negotiation, length 52
    "312e322e3834302e31303030382e312e31 0011"  # SOP class; then service class
    "312e322e3834302e31303030382e342e32 000c"  # 1.2.840.10008.4.2; then related classes: 12 bytes
    "0003 312e32 0005 312e322e33"  # 1.2 and 1.2.3
    "58 00 000f 02 01"  # user identity, length 15: username and passcode, response requested
    "0005 616c696365 0004 70617373"  # "alice" "pass"
    "7e 00 0002 beef"  # an item nobody knows
)

REQUEST = AssociateRequest(
    called_ae="ARCHIVE",
    calling_ae="CT-R0OM1",
    contexts=(PresentationContext(1, "1.2.840.10008.1.1", ("1.2.840.10008.1.2",)),),
    user=UserInformation(
        max_pdu_length=16384,
        implementation_class_uid="1.2.3.4",
        implementation_version="TEST",
        asynchronous_operations=AsynchronousOperations(2, 1),
        roles=(RoleSelection("1.2.840.10008.1.1", scu=True, scp=False),),
        extended=(ExtendedNegotiation("1.2.840.10008.1.1", b"\1\2\3"),),
        common_extended=(
            CommonExtendedNegotiation("1.2.840.10008.1.1", "1.2.840.10008.4.2", ("1.2", "1.2.3")),
        ),
        identity=UserIdentity(2, b"alice", b"pass", response_requested=True),
        unknown=(UnknownItem(0x7E, b"\xbe\xef"),),
    ),
)

GOLDEN_ACCEPT = bytes.fromhex(
    "02 00 000000a4"  # A-ASSOCIATE-AC, length 164
    "0001 0000"
    "41524348495645202020202020202020"
    "43542d52304f4d312020202020202020" + "00" * 32 + "10 00 0015 312e322e3834302e31303030382e332e312e312e31"
    "21 00 0019"  # presentation context result, length 25
    "01 00 00 00"  # context id 1, reserved, acceptance, reserved
    "40 00 0011 312e322e3834302e31303030382e312e32"
    "50 00 0026"  # user information, length 38
    "51 00 0004 00004000"
    "52 00 0007 312e322e332e34"
    "55 00 0004 54455354"
    "59 00 0007 0005 746f6b656e"  # user identity response "token"
)
ACCEPT = AssociateAccept(
    called_ae="ARCHIVE",
    calling_ae="CT-R0OM1",
    contexts=(PresentationResult(1, 0, "1.2.840.10008.1.2"),),
    user=UserInformation(
        max_pdu_length=16384,
        implementation_class_uid="1.2.3.4",
        implementation_version="TEST",
        identity_response=b"token",
    ),
)


def _fix(golden: bytes) -> bytes:
    """The annotated lengths are checked, not computed."""
    assert int.from_bytes(golden[2:6], "big") == len(golden) - 6
    return golden


@pytest.mark.parametrize(
    ("golden", "pdu"),
    [
        (_fix(GOLDEN_REQUEST), REQUEST),
        (_fix(GOLDEN_ACCEPT), ACCEPT),
        (bytes.fromhex("03 00 00000004 00 02 03 02"), AssociateReject(2, 3, 2)),
        (
            bytes.fromhex("04 00 0000000a 00000006 03 03 deadbeef"),
            DataFragment(3, True, True, b"\xde\xad\xbe\xef"),
        ),
        (bytes.fromhex("04 00 00000008 00000004 05 00 cafe"), DataFragment(5, False, False, b"\xca\xfe")),
        (bytes.fromhex("05 00 00000004 00000000"), ReleaseRequest()),
        (bytes.fromhex("06 00 00000004 00000000"), ReleaseReply()),
        (bytes.fromhex("07 00 00000004 00 00 02 06"), Abort(2, 6)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_golden_bytes(golden: bytes, pdu: Any) -> None:
    assert encode(pdu) == golden


def test_golden_bytes_are_read() -> None:
    assert read_associate_request(GOLDEN_REQUEST[6:], LIMITS) == REQUEST
    assert read_associate_accept(GOLDEN_ACCEPT[6:], LIMITS) == ACCEPT


def test_pynetdicom_reads_and_writes_the_same_bytes() -> None:
    """Its decoder takes ours; its encoder, fed from that, gives ours back."""
    without_unknown = AssociateRequest(
        called_ae=REQUEST.called_ae,
        calling_ae=REQUEST.calling_ae,
        contexts=REQUEST.contexts,
        user=UserInformation(
            **{
                name: getattr(REQUEST.user, name)
                for name in UserInformation.__dataclass_fields__
                if name != "unknown"
            }
        ),
    )
    for ours, theirs in (
        (encode(without_unknown), peer_pdu.A_ASSOCIATE_RQ()),
        (GOLDEN_ACCEPT, peer_pdu.A_ASSOCIATE_AC()),
        (encode(AssociateReject(1, 1, 7)), peer_pdu.A_ASSOCIATE_RJ()),
        (encode(Abort(2, 1)), peer_pdu.A_ABORT_RQ()),
        (encode(ReleaseRequest()), peer_pdu.A_RELEASE_RQ()),
        (encode(ReleaseReply()), peer_pdu.A_RELEASE_RP()),
        (encode(DataFragment(7, False, True, b"data")), peer_pdu.P_DATA_TF()),
    ):
        theirs.decode(ours)
        assert theirs.encode() == ours
    request = peer_pdu.A_ASSOCIATE_RQ()
    request.decode(encode(without_unknown))
    assert request.called_ae_title.strip() == "ARCHIVE"
    assert request.calling_ae_title.strip() == "CT-R0OM1"
    assert request.user_information.maximum_length == 16384
    assert [str(cx.abstract_syntax) for cx in request.presentation_context] == ["1.2.840.10008.1.1"]


# ---------------------------------------------------------------- what sloppy devices send


def _request(*, ae: bytes = b"MODALITY".ljust(16), version: bytes = b"\0\1", items: bytes = b"") -> bytes:
    return version + b"\0\0" + b"ARCHIVE".ljust(16) + ae + bytes(range(32)) + items


@pytest.mark.parametrize(
    ("raw", "title"),
    [
        (b"MODALITY\0\0\0\0\0\0\0\0", "MODALITY"),
        (b"  MODALITY      ", "MODALITY"),
        (b"MODALITY \0 \0 \0 \0", "MODALITY"),
        (b"                ", ""),
        (b"EXACTLY SIXTEEN!", "EXACTLY SIXTEEN!"),
        (b"R\xd6NTGEN         ", "RÖNTGEN"),
    ],
)
def test_sloppy_ae_titles(raw: bytes, title: str) -> None:
    assert read_associate_request(_request(ae=raw), LIMITS).calling_ae == title


def test_sloppy_uids_unknown_items_and_missing_information() -> None:
    items = bytes.fromhex(
        "99 00 0003 010203"  # unknown, skipped
        "10 ff 0016 312e322e3834302e31303030382e332e312e312e31 00"  # reserved not zero, UID with NUL
        "20 00 001c 03 ff ff ff"
        "30 00 0006 312e322e33 20"  # UID with a space
        "98 00 0000"  # unknown within
        "40 00 0006 312e322e3400"
    )
    request = read_associate_request(_request(items=items, version=b"\0\3"), LIMITS)
    assert request.application_context == "1.2.840.10008.3.1.1.1"
    assert request.contexts == (PresentationContext(3, "1.2.3", ("1.2.4",)),)
    assert request.user == UserInformation(max_pdu_length=None)
    assert request.protocol_version == 3


def test_a_refused_context_needs_no_transfer_syntax() -> None:
    items = bytes.fromhex("21 00 0004 05 00 03 00")
    assert read_associate_accept(_request(items=items), LIMITS).contexts == (PresentationResult(5, 3, ""),)


def test_credentials_are_never_shown() -> None:
    shown = repr(REQUEST) + repr(ACCEPT)
    for secret in ("alice", "pass'", "token"):
        assert secret not in shown


# ---------------------------------------------------------------- what the format cannot say


@pytest.mark.parametrize(
    "pdu",
    [
        AssociateRequest(called_ae="SEVENTEEN LETTERS", calling_ae="A", contexts=()),
        AssociateRequest(called_ae="放射", calling_ae="A", contexts=()),
        AssociateRequest(called_ae="A", calling_ae="A", contexts=(PresentationContext(2, "1.2", ()),)),
        AssociateRequest(called_ae="A", calling_ae="A", contexts=(PresentationContext(257, "1.2", ()),)),
        AssociateRequest(called_ae="A", calling_ae="A", contexts=(PresentationContext(1, "1.2", ()),) * 2),
        AssociateRequest(
            called_ae="A", calling_ae="A", contexts=(), user=UserInformation(max_pdu_length=1 << 32)
        ),
        AssociateRequest(called_ae="A", calling_ae="A", contexts=(), user=UserInformation(max_pdu_length=-1)),
        AssociateRequest(
            called_ae="A",
            calling_ae="A",
            contexts=(),
            user=UserInformation(identity=UserIdentity(1, bytes(0x10000))),
        ),
        AssociateRequest(
            called_ae="A",
            calling_ae="A",
            contexts=(),
            user=UserInformation(extended=(ExtendedNegotiation("1.2", bytes(0xFFFF)),)),
        ),
        AssociateRequest(
            called_ae="A",
            calling_ae="A",
            contexts=(),
            user=UserInformation(asynchronous_operations=AsynchronousOperations(70000, 1)),
        ),
        AssociateReject(256, 1, 1),
        Abort(0, 256),
    ],
)
def test_what_cannot_be_written_is_our_error(pdu: Any) -> None:
    with pytest.raises(LocalProtocolError):
        encode(pdu)
