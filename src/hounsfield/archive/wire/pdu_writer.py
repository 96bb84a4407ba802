"""Writes PDUs (PS3.8 9.3, PS3.7 D.3.3). Raises ``LocalProtocolError`` for what the format cannot say."""

from __future__ import annotations

from struct import Struct
from struct import error as struct_error

from hounsfield.archive.wire.errors import LocalProtocolError
from hounsfield.archive.wire.pdus import (
    Abort,
    AssociateAccept,
    AssociateReject,
    AssociateRequest,
    DataFragment,
    Pdu,
    PduType,
    ReleaseReply,
    ReleaseRequest,
    UserInformation,
)

__all__ = ["PDV_OVERHEAD", "data_header", "write_pdu"]

_PDU = Struct(">BxI")
_ITEM = Struct(">BxH")
_U16 = Struct(">H")
_DATA = Struct(">BxIIBB")  # P-DATA-TF header with the header of its only PDV: 12 bytes

PDV_OVERHEAD = 6
"""Of a P-DATA-TF's length, what its one PDV's header takes: length, context id, control (PS3.8 9.3.5.1)."""

_RELEASE_RQ = _PDU.pack(PduType.RELEASE_RQ, 4) + bytes(4)
_RELEASE_RP = _PDU.pack(PduType.RELEASE_RP, 4) + bytes(4)


def data_header(context_id: int, is_command: bool, last: bool, length: int) -> bytes:
    """The 12 bytes before ``length`` payload bytes of a P-DATA-TF with one PDV (PS3.8 9.3.5, E.2)."""
    return _DATA.pack(
        PduType.P_DATA_TF, length + PDV_OVERHEAD, length + 2, context_id, is_command | last << 1
    )


def write_pdu(pdu: Pdu) -> bytes:
    """One whole PDU, header included."""
    try:
        return _write(pdu)
    except (ValueError, OverflowError, struct_error) as error:  # a number too large for its field
        raise LocalProtocolError(f"{type(pdu).__name__} does not fit its format: {error}") from None


def _write(pdu: Pdu) -> bytes:
    match pdu:
        case DataFragment(context_id, is_command, last, data):
            return data_header(context_id, is_command, last, len(data)) + data
        case AssociateRequest():
            body = _fixed(pdu) + b"".join(
                _item(
                    0x20,
                    bytes((context.context_id, 0, 0, 0))
                    + _item(0x30, _text(context.abstract_syntax, "abstract syntax"))
                    + b"".join(
                        _item(0x40, _text(uid, "transfer syntax")) for uid in context.transfer_syntaxes
                    ),
                )
                for context in pdu.contexts
            )
            return _whole(PduType.ASSOCIATE_RQ, body + _item(0x50, _user(pdu.user)))
        case AssociateAccept():
            body = _fixed(pdu) + b"".join(
                _item(
                    0x21,
                    bytes((result.context_id, 0, result.result, 0))
                    + _item(0x40, _text(result.transfer_syntax, "transfer syntax")),
                )
                for result in pdu.contexts
            )
            return _whole(PduType.ASSOCIATE_AC, body + _item(0x50, _user(pdu.user)))
        case AssociateReject(result, source, reason):
            return _whole(PduType.ASSOCIATE_RJ, bytes((0, result, source, reason)))
        case ReleaseRequest():
            return _RELEASE_RQ
        case ReleaseReply():
            return _RELEASE_RP
        case Abort(source, reason):
            return _whole(PduType.ABORT, bytes((0, 0, source, reason)))


def _whole(pdu_type: PduType, body: bytes) -> bytes:
    return _PDU.pack(pdu_type, len(body)) + body


def _item(item_type: int, data: bytes) -> bytes:
    if len(data) > 0xFFFF:
        raise LocalProtocolError(
            f"item {item_type:02X}H would have {len(data)} bytes; an item's length has 16 bits"
        )
    return _ITEM.pack(item_type, len(data)) + data


def _sized(data: bytes, what: str) -> bytes:
    if len(data) > 0xFFFF:
        raise LocalProtocolError(f"{what} has {len(data)} bytes; its length has 16 bits")
    return _U16.pack(len(data)) + data


def _text(text: str, what: str) -> bytes:
    try:
        return text.encode("latin-1")
    except UnicodeEncodeError:
        raise LocalProtocolError(f"{what} has characters that no {what} can have") from None


def _ae_title(title: str, what: str) -> bytes:
    raw = _text(title, what)
    if len(raw) > 16:
        raise LocalProtocolError(f"{what} has {len(raw)} characters; at most 16 (PS3.8 9.3.2)")
    return raw.ljust(16)


def _fixed(pdu: AssociateRequest | AssociateAccept) -> bytes:
    for context in pdu.contexts:
        if not (0 < context.context_id < 256 and context.context_id & 1):
            raise LocalProtocolError(f"presentation context id {context.context_id} is not odd and in 1..255")
    if len({context.context_id for context in pdu.contexts}) != len(pdu.contexts):
        raise LocalProtocolError("a presentation context id is used twice")
    return b"".join(
        (
            _U16.pack(pdu.protocol_version),
            bytes(2),
            _ae_title(pdu.called_ae, "called AE title"),
            _ae_title(pdu.calling_ae, "calling AE title"),
            bytes(32),
            _item(0x10, _text(pdu.application_context, "application context name")),
        )
    )


def _user(user: UserInformation) -> bytes:
    parts: list[bytes] = []
    if user.max_pdu_length is not None:
        parts.append(_item(0x51, user.max_pdu_length.to_bytes(4, "big")))
    if user.implementation_class_uid:
        parts.append(_item(0x52, _text(user.implementation_class_uid, "implementation class UID")))
    if user.asynchronous_operations is not None:
        window = user.asynchronous_operations
        parts.append(_item(0x53, _U16.pack(window.invoked_max) + _U16.pack(window.performed_max)))
    for role in user.roles:
        uid = _sized(_text(role.sop_class_uid, "SOP class UID"), "SOP class UID")
        parts.append(_item(0x54, uid + bytes((role.scu, role.scp))))
    if user.implementation_version:
        parts.append(_item(0x55, _text(user.implementation_version, "implementation version")))
    for extended in user.extended:
        uid = _sized(_text(extended.sop_class_uid, "SOP class UID"), "SOP class UID")
        parts.append(_item(0x56, uid + extended.information))
    for common in user.common_extended:
        related = b"".join(
            _sized(_text(uid, "SOP class UID"), "SOP class UID")
            for uid in common.related_general_sop_class_uids
        )
        parts.append(
            _item(
                0x57,
                _sized(_text(common.sop_class_uid, "SOP class UID"), "SOP class UID")
                + _sized(_text(common.service_class_uid, "service class UID"), "service class UID")
                + _sized(related, "related general SOP classes"),
            )
        )
    if user.identity is not None:
        identity = user.identity
        parts.append(
            _item(
                0x58,
                bytes((identity.identity_type, identity.response_requested))
                + _sized(identity.primary, "user identity")
                + _sized(identity.secondary, "user identity"),
            )
        )
    if user.identity_response is not None:
        parts.append(_item(0x59, _sized(user.identity_response, "user identity response")))
    parts.extend(_item(item.item_type, item.data) for item in user.unknown)
    return b"".join(parts)
