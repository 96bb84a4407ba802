"""Reads the body of each PDU but P-DATA-TF (PS3.8 9.3.2–9.3.8, PS3.7 D.3.3): bytes to frozen dataclass.

Lenient where devices are sloppy and nothing depends on it: padded or empty AE titles, UIDs with NULs or
spaces, no implementation version, unknown items, reserved fields. Strict about lengths (each item lies
exactly within its parent), about context ids (odd, once) and about items that would make a
meaning ambiguous (a second user identity). Raises ``InvalidPduError`` or
``RefusedRequestError``, nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator
from struct import Struct

from hounsfield.archive.wire.errors import InvalidPduError, RefusedRequestError
from hounsfield.archive.wire.limits import WireLimits
from hounsfield.archive.wire.pdus import (
    Abort,
    AbortReason,
    AssociateAccept,
    AssociateReject,
    AssociateRequest,
    AsynchronousOperations,
    CommonExtendedNegotiation,
    ExtendedNegotiation,
    PresentationContext,
    PresentationResult,
    RejectReason,
    RejectSource,
    RoleSelection,
    UnknownItem,
    UserIdentity,
    UserInformation,
)

__all__ = [
    "read_abort",
    "read_associate_accept",
    "read_associate_reject",
    "read_associate_request",
    "read_empty",
]

_ITEM = Struct(">BxH")  # type, reserved, length
_U16 = Struct(">H")
_U32 = Struct(">I")
_FIXED_BYTES = 68  # version, reserved, two AE titles, 32 reserved (PS3.8 Table 9-11)

# what may be absent, may be there once, and makes the PDU invalid when there twice
_ONCE = frozenset({0x10, 0x50, 0x30, 0x51, 0x52, 0x53, 0x55, 0x58, 0x59})


def _items(data: bytes, what: str) -> Iterator[tuple[int, bytes]]:
    """The items that fill ``data`` exactly."""
    position, end, seen = 0, len(data), 0
    while position < end:
        if end - position < 4:
            raise InvalidPduError(f"{what}: {end - position} bytes left over where an item should begin")
        item_type, length = _ITEM.unpack_from(data, position)
        position += 4
        if length > end - position:
            raise InvalidPduError(
                f"{what}: item {item_type:02X}H says {length} bytes where {end - position} are left"
            )
        if item_type in _ONCE:
            if seen >> item_type & 1:
                raise InvalidPduError(
                    f"{what}: item {item_type:02X}H appears twice", AbortReason.UNEXPECTED_PARAMETER
                )
            seen |= 1 << item_type
        yield item_type, data[position : position + length]
        position += length


class _Fields:
    """Reads length-prefixed fields of one item, in order, never past its end."""

    __slots__ = ("_data", "_position", "_what")

    def __init__(self, data: bytes, what: str) -> None:
        self._data = data
        self._position = 0
        self._what = what

    @property
    def left(self) -> int:
        return len(self._data) - self._position

    def take(self, count: int) -> bytes:
        if count > self.left:
            raise InvalidPduError(f"{self._what}: a field needs {count} bytes where {self.left} are left")
        start = self._position
        self._position = start + count
        return self._data[start : start + count]

    def u8(self) -> int:
        return self.take(1)[0]

    def u16(self) -> int:
        value: int = _U16.unpack(self.take(2))[0]
        return value

    def sized(self) -> bytes:
        return self.take(self.u16())

    def end(self) -> None:
        if self.left:
            raise InvalidPduError(f"{self._what}: {self.left} bytes too many")


def _uid(raw: bytes, limits: WireLimits, what: str) -> str:
    if len(raw) > limits.uid_bytes_max:
        raise InvalidPduError(f"{what}: a UID of {len(raw)} bytes (limit {limits.uid_bytes_max})")
    return raw.strip(b"\0 ").decode("latin-1")


def _ae_title(raw: bytes) -> str:
    """Leading and trailing spaces are not significant (PS3.8 Table 9-11); NULs are a known sloppiness."""
    return raw.strip(b"\0 ").decode("latin-1")


def _limit(over: bool, message: str, request: bool) -> None:
    if over:
        raise RefusedRequestError.limit(message) if request else InvalidPduError(message)


def _exactly(data: bytes, length: int, what: str) -> None:
    if len(data) != length:
        raise InvalidPduError(f"{what}: {len(data)} bytes, must be {length}")


# ---------------------------------------------------------------- associate request and accept


def read_associate_request(body: bytes, limits: WireLimits) -> AssociateRequest:
    """Parse an A-ASSOCIATE-RQ without its 6-byte PDU header (PS3.8 9.3.2)."""
    what = "A-ASSOCIATE-RQ"
    if len(body) < _FIXED_BYTES:
        raise InvalidPduError(f"{what}: {len(body)} bytes, at least {_FIXED_BYTES} are fixed")
    version = _U16.unpack_from(body)[0]
    if not version & 1:
        # PS3.8 9.3.2: bit 0 is version 1; other bits are other versions, not tested
        raise RefusedRequestError(
            f"{what}: protocol version bits {version:04X}H do not include version 1",
            AssociateReject(
                source=RejectSource.PROVIDER_ACSE, reason=RejectReason.PROTOCOL_VERSION_NOT_SUPPORTED
            ),
        )
    application_context = ""
    user = UserInformation(max_pdu_length=None)
    contexts: list[PresentationContext] = []
    for item_type, data in _items(body[_FIXED_BYTES:], what):
        if item_type == 0x20:
            contexts.append(_read_context(data, limits))
            _limit(
                len(contexts) > limits.presentation_contexts_max,
                f"{what}: more than {limits.presentation_contexts_max} presentation contexts",
                request=True,
            )
        elif item_type == 0x10:
            application_context = _uid(data, limits, what)
        elif item_type == 0x50:
            user = _read_user_information(data, limits, request=True)
    _unique([context.context_id for context in contexts], what)
    smallest = limits.peer_pdu_bytes_min
    stated = user.max_pdu_length
    _limit(
        stated is not None and 0 < stated < smallest,
        f"{what}: a maximum PDU length of {stated} is below {smallest}",
        request=True,
    )
    return AssociateRequest(
        called_ae=_ae_title(body[4:20]),
        calling_ae=_ae_title(body[20:36]),
        contexts=tuple(contexts),
        user=user,
        application_context=application_context,
        protocol_version=version,
    )


def read_associate_accept(body: bytes, limits: WireLimits) -> AssociateAccept:
    """Parse an A-ASSOCIATE-AC without its 6-byte PDU header (PS3.8 9.3.3)."""
    what = "A-ASSOCIATE-AC"
    if len(body) < _FIXED_BYTES:
        raise InvalidPduError(f"{what}: {len(body)} bytes, at least {_FIXED_BYTES} are fixed")
    application_context = ""
    user = UserInformation(max_pdu_length=None)
    results: list[PresentationResult] = []
    for item_type, data in _items(body[_FIXED_BYTES:], what):
        if item_type == 0x21:
            results.append(_read_result(data, limits))
            _limit(
                len(results) > limits.presentation_contexts_max,
                f"{what}: more than {limits.presentation_contexts_max} presentation contexts",
                request=False,
            )
        elif item_type == 0x10:
            application_context = _uid(data, limits, what)
        elif item_type == 0x50:
            user = _read_user_information(data, limits, request=False)
    _unique([result.context_id for result in results], what)
    stated = user.max_pdu_length
    _limit(
        stated is not None and 0 < stated < limits.peer_pdu_bytes_min,
        f"{what}: a maximum PDU length of {stated} is below {limits.peer_pdu_bytes_min}",
        request=False,
    )
    return AssociateAccept(
        called_ae=_ae_title(body[4:20]),
        calling_ae=_ae_title(body[20:36]),
        contexts=tuple(results),
        user=user,
        application_context=application_context,
        protocol_version=_U16.unpack_from(body)[0],
    )


def _unique(context_ids: list[int], what: str) -> None:
    if any(not context_id & 1 for context_id in context_ids):
        raise InvalidPduError(f"{what}: a presentation context id is even")
    if len(set(context_ids)) != len(context_ids):
        raise InvalidPduError(f"{what}: a presentation context id is used twice")


def _read_context(data: bytes, limits: WireLimits) -> PresentationContext:
    what = "presentation context"
    if len(data) < 4:
        raise InvalidPduError(f"{what}: {len(data)} bytes, at least 4")
    abstract = ""
    transfers: list[str] = []
    for item_type, value in _items(data[4:], what):
        if item_type == 0x30:
            abstract = _uid(value, limits, what)
        elif item_type == 0x40:
            transfers.append(_uid(value, limits, what))
            _limit(
                len(transfers) > limits.transfer_syntaxes_max,
                f"{what}: more than {limits.transfer_syntaxes_max} transfer syntaxes",
                request=True,
            )
    return PresentationContext(data[0], abstract, tuple(transfers))


def _read_result(data: bytes, limits: WireLimits) -> PresentationResult:
    what = "presentation context result"
    if len(data) < 4:
        raise InvalidPduError(f"{what}: {len(data)} bytes, at least 4")
    transfer = ""
    for item_type, value in _items(data[4:], what):
        if item_type == 0x40 and not transfer:
            transfer = _uid(value, limits, what)
    if data[2] == 0 and not transfer:
        raise InvalidPduError(f"{what}: accepted without a transfer syntax")
    return PresentationResult(data[0], data[2], transfer)


# ---------------------------------------------------------------- user information


def _read_user_information(data: bytes, limits: WireLimits, *, request: bool) -> UserInformation:
    what = "user information"
    max_pdu_length: int | None = None
    class_uid = version = ""
    operations: AsynchronousOperations | None = None
    identity: UserIdentity | None = None
    identity_response: bytes | None = None
    roles: list[RoleSelection] = []
    extended: list[ExtendedNegotiation] = []
    common: list[CommonExtendedNegotiation] = []
    unknown: list[UnknownItem] = []
    for count, (item_type, value) in enumerate(_items(data, what), 1):
        _limit(
            count > limits.user_items_max, f"{what}: more than {limits.user_items_max} items", request=request
        )
        fields = _Fields(value, f"{what} item {item_type:02X}H")
        if item_type == 0x51:
            max_pdu_length = _U32.unpack(fields.take(4))[0]
            fields.end()
        elif item_type == 0x52:
            class_uid = _uid(value, limits, what)
        elif item_type == 0x53:
            operations = AsynchronousOperations(fields.u16(), fields.u16())
            fields.end()
        elif item_type == 0x54:
            uid = _uid(fields.sized(), limits, what)
            roles.append(RoleSelection(uid, scu=fields.u8() == 1, scp=fields.u8() == 1))
            fields.end()
        elif item_type == 0x55:
            if len(value) > limits.version_name_bytes_max:
                raise InvalidPduError(f"{what}: an implementation version of {len(value)} bytes")
            version = value.strip(b"\0 ").decode("latin-1")
        elif item_type == 0x56:
            uid = _uid(fields.sized(), limits, what)
            extended.append(ExtendedNegotiation(uid, fields.take(fields.left)))
        elif item_type == 0x57 and request:
            common.append(_read_common_extended(fields, limits, what))
        elif item_type == 0x58 and request:
            identity = _read_identity(fields, limits, what)
        elif item_type == 0x59 and not request:
            identity_response = fields.sized()
            fields.end()
        else:
            unknown.append(UnknownItem(item_type, value))
    return UserInformation(
        max_pdu_length=max_pdu_length,
        implementation_class_uid=class_uid,
        implementation_version=version,
        asynchronous_operations=operations,
        roles=tuple(roles),
        extended=tuple(extended),
        common_extended=tuple(common),
        identity=identity,
        identity_response=identity_response,
        unknown=tuple(unknown),
    )


def _read_common_extended(fields: _Fields, limits: WireLimits, what: str) -> CommonExtendedNegotiation:
    sop_class = _uid(fields.sized(), limits, what)
    service_class = _uid(fields.sized(), limits, what)
    related: list[str] = []
    if fields.left:  # some senders leave the empty list out
        inner = _Fields(fields.sized(), what)
        while inner.left:
            related.append(_uid(inner.sized(), limits, what))
            if len(related) > limits.related_classes_max:
                raise RefusedRequestError.limit(
                    f"{what}: more than {limits.related_classes_max} related classes"
                )
    # what follows is reserved for versions to come and not tested (PS3.7 Table D.3-12)
    return CommonExtendedNegotiation(sop_class, service_class, tuple(related))


def _read_identity(fields: _Fields, limits: WireLimits, what: str) -> UserIdentity:
    identity_type = fields.u8()
    response_requested = fields.u8() != 0
    primary = fields.sized()
    secondary = fields.sized() if fields.left else b""  # only type 2 has one; some leave even its length out
    fields.end()
    if max(len(primary), len(secondary)) > limits.identity_bytes_max:
        raise RefusedRequestError.limit(f"{what}: a user identity over {limits.identity_bytes_max} bytes")
    return UserIdentity(identity_type, primary, secondary, response_requested)


# ---------------------------------------------------------------- the four-byte ones


def read_associate_reject(body: bytes) -> AssociateReject:
    """Parse an A-ASSOCIATE-RJ; unknown codes are kept as numbers (PS3.8 9.3.4)."""
    _exactly(body, 4, "A-ASSOCIATE-RJ")
    return AssociateReject(body[1], body[2], body[3])


def read_abort(body: bytes) -> Abort:
    """Parse an A-ABORT; unknown codes are kept as numbers (PS3.8 9.3.8)."""
    _exactly(body, 4, "A-ABORT")
    return Abort(body[2], body[3])


def read_empty(body: bytes, what: str) -> None:
    """Check an A-RELEASE-RQ or -RP, which say nothing but their type (PS3.8 9.3.6)."""
    _exactly(body, 4, what)
