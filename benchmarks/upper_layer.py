"""The few DICOM upper layer messages that the load generator and the bare acceptor need, written by hand.

Nothing of `hounsfield.archive.wire` is used: what measures the archive must not share its mistakes.
References are to PS3.8 9.3 (PDUs) and PS3.7 9.3.1 to 9.3.4 (C-STORE, C-FIND, C-GET, C-MOVE).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

APPLICATION_CONTEXT = b"1.2.840.10008.3.1.1.1"
IMPLEMENTATION_CLASS_UID = b"2.25.190446363527459130178441170286012344777"

ASSOCIATE_RQ, ASSOCIATE_AC, ASSOCIATE_RJ, P_DATA, RELEASE_RQ, RELEASE_RP, ABORT = range(1, 8)
PDU_HEADER = struct.Struct(">BxI")
PDV_HEADER = struct.Struct(">IBB")
RELEASE_RQ_PDU = PDU_HEADER.pack(RELEASE_RQ, 4) + bytes(4)
RELEASE_RP_PDU = PDU_HEADER.pack(RELEASE_RP, 4) + bytes(4)

# A P-DATA-TF PDU header and one PDV header: what each fragment costs on the wire.
FRAGMENT_OVERHEAD = PDU_HEADER.size + PDV_HEADER.size
# The maximum length that is negotiated counts what follows the PDU's own header (PS3.8 D.1).
PDV_OVERHEAD = PDV_HEADER.size

C_STORE_RQ, C_STORE_RSP = 0x0001, 0x8001


class RefusedError(Exception):
    """The peer rejected, aborted or broke the association. The message says how."""


def associate_request(
    *,
    called_ae: str,
    calling_ae: str,
    contexts: list[tuple[int, str, list[str]]],
    max_pdu: int,
    roles: Sequence[tuple[str, bool, bool]] = (),
    window: int = 1,
) -> bytes:
    """A-ASSOCIATE-RQ with presentation contexts (id, abstract syntax, transfer syntaxes), and with roles of
    the requestor (SOP class, as SCU, as SCP; PS3.7 D.3.3.4). With a `window` of more than one it asks for so
    many operations at once (PS3.7 D.3.3.3).
    """
    items = [_item(0x10, APPLICATION_CONTEXT)]
    for context_id, abstract, transfers in contexts:
        body = struct.pack(">B3x", context_id) + _item(0x30, abstract.encode())
        body += b"".join(_item(0x40, uid.encode()) for uid in transfers)
        items.append(_item(0x20, body))
    user = (
        _item(0x51, struct.pack(">I", max_pdu))
        + _item(0x52, IMPLEMENTATION_CLASS_UID)
        + (_item(0x53, struct.pack(">HH", window, 1)) if window > 1 else b"")
        + b"".join(
            _item(0x54, struct.pack(">H", len(uid)) + uid.encode() + bytes((scu, scp)))
            for uid, scu, scp in roles
        )
        + _item(0x55, b"HFBENCH")
    )
    items.append(_item(0x50, user))
    return _associate(
        ASSOCIATE_RQ, called_ae.encode().ljust(16), calling_ae.encode().ljust(16), b"".join(items)
    )


def associate_accept(request: bytes, *, max_pdu: int) -> bytes:
    """A-ASSOCIATE-AC that accepts every context of `request` (a whole PDU) with its first transfer syntax."""
    items = [_item(0x10, APPLICATION_CONTEXT)]
    for kind, body in _items(request[74:]):
        if kind == 0x20:
            transfer = next(value for sub, value in _items(body[4:]) if sub == 0x40)
            items.append(_item(0x21, body[:1] + bytes(3) + _item(0x40, transfer)))
    items.append(_item(0x50, _item(0x51, struct.pack(">I", max_pdu)) + _item(0x52, IMPLEMENTATION_CLASS_UID)))
    return _associate(ASSOCIATE_AC, request[10:26], request[26:42], b"".join(items))


def parse_accept(pdu: bytes) -> tuple[dict[int, str], int]:
    """Accepted context id → transfer syntax, and the acceptor's maximum length (0: no limit).

    Raises RefusedError for any other PDU.
    """
    if pdu[0] == ASSOCIATE_RJ:
        result, source, reason = pdu[7:10]
        raise RefusedError(
            f"association rejected: result {result}, source {source}, reason {reason} (PS3.8 9.3.4)"
        )
    if pdu[0] == ABORT:
        raise RefusedError(f"association aborted: source {pdu[8]}, reason {pdu[9]} (PS3.8 9.3.8)")
    if pdu[0] != ASSOCIATE_AC:
        raise RefusedError(f"answer to A-ASSOCIATE-RQ is PDU type {pdu[0]}")
    accepted: dict[int, str] = {}
    maximum = 0
    for kind, body in _items(pdu[74:]):
        if kind == 0x21 and body[2] == 0:
            accepted[body[0]] = (
                next(value for sub, value in _items(body[4:]) if sub == 0x40).decode().rstrip("\0")
            )
        elif kind == 0x50:
            maximum = next(struct.unpack(">I", value)[0] for sub, value in _items(body) if sub == 0x51)
    return accepted, maximum


def granted_window(pdu: bytes) -> int:
    """How many operations the acceptor lets the requestor have outstanding, by its A-ASSOCIATE-AC."""
    for kind, body in _items(pdu[74:]):
        if kind == 0x50:
            for sub, value in _items(body):
                if sub == 0x53:
                    return int.from_bytes(value[:2], "big") or 0xFFFF  # 0: any number (PS3.7 D.3.3.3)
    return 1


def store_request(sop_class_uid: str, sop_instance_uid: str, message_id: int) -> bytes:
    """C-STORE-RQ command set, medium priority, a data set follows."""
    return _command(
        (0x0002, _even(sop_class_uid)),
        (0x0100, struct.pack("<H", C_STORE_RQ)),
        (0x0110, struct.pack("<H", message_id)),
        (0x0700, struct.pack("<H", 0)),
        (0x0800, struct.pack("<H", 1)),
        (0x1000, _even(sop_instance_uid)),
    )


def request_command(field: int, sop_class_uid: str, message_id: int, *, destination: str = "") -> bytes:
    """C-FIND-RQ, C-GET-RQ or, with a destination, C-MOVE-RQ command set; an identifier follows."""
    elements = [
        (0x0002, _even(sop_class_uid)),
        (0x0100, struct.pack("<H", field)),
        (0x0110, struct.pack("<H", message_id)),
    ]
    if destination:
        elements.append((0x0600, destination.encode().ljust(len(destination) + len(destination) % 2)))
    elements += [(0x0700, struct.pack("<H", 0)), (0x0800, struct.pack("<H", 1))]
    return _command(*elements)


def store_response(sop_class_uid: bytes, sop_instance_uid: bytes, message_id: int, status: int = 0) -> bytes:
    """C-STORE-RSP command set."""
    return _command(
        (0x0002, sop_class_uid),
        (0x0100, struct.pack("<H", C_STORE_RSP)),
        (0x0120, struct.pack("<H", message_id)),
        (0x0800, struct.pack("<H", 0x0101)),
        (0x0900, struct.pack("<H", status)),
        (0x1000, sop_instance_uid),
    )


def get_response(sop_class_uid: str, message_id: int, completed: int) -> bytes:
    """The last C-GET-RSP command set: success, so many sub-operations completed."""
    return _command(
        (0x0002, _even(sop_class_uid)),
        (0x0100, struct.pack("<H", 0x8010)),
        (0x0120, struct.pack("<H", message_id)),
        (0x0800, struct.pack("<H", 0x0101)),
        (0x0900, struct.pack("<H", 0)),
        (0x1021, struct.pack("<H", completed)),
    )


def command_pdu(context_id: int, command: bytes) -> bytes:
    """One P-DATA-TF PDU with a whole command set as its only PDV."""
    body = PDV_HEADER.pack(len(command) + 2, context_id, 3) + command
    return PDU_HEADER.pack(P_DATA, len(body)) + body


def parse_command(command: bytes | bytearray | memoryview) -> dict[int, bytes]:
    """Element number in group 0000 → value, of a command set (Implicit VR Little Endian, PS3.7 6.3.1)."""
    values = {}
    offset = 0
    while offset + 8 <= len(command):
        group, element, length = struct.unpack_from("<HHI", command, offset)
        if group != 0:
            break
        values[element] = bytes(command[offset + 8 : offset + 8 + length])
        offset += 8 + length
    return values


def _associate(kind: int, called: bytes, calling: bytes, items: bytes) -> bytes:
    body = struct.pack(">H2x", 1) + called + calling + bytes(32) + items
    return PDU_HEADER.pack(kind, len(body)) + body


def _item(kind: int, body: bytes) -> bytes:
    return struct.pack(">BxH", kind, len(body)) + body


def _items(data: bytes) -> list[tuple[int, bytes]]:
    found = []
    offset = 0
    while offset + 4 <= len(data):
        kind, length = struct.unpack_from(">BxH", data, offset)
        found.append((kind, data[offset + 4 : offset + 4 + length]))
        offset += 4 + length
    return found


def _even(uid: str) -> bytes:
    value = uid.encode()
    return value + b"\0" * (len(value) & 1)


def _command(*elements: tuple[int, bytes]) -> bytes:
    body = b"".join(struct.pack("<HHI", 0, element, len(value)) + value for element, value in elements)
    return struct.pack("<HHII", 0, 0, 4, len(body)) + body
