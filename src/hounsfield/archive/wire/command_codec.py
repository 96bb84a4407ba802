"""Command sets to bytes and back: Implicit VR Little Endian, group 0000H only (PS3.7 6.3.1, E.1)."""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct
from struct import error as struct_error
from typing import Any

from hounsfield.archive.wire.commands import BY_CLASS, BY_COMMAND_FIELD, Carries, Command
from hounsfield.archive.wire.errors import LocalProtocolError, RemoteProtocolError
from hounsfield.archive.wire.pdus import Buffer

__all__ = ["decode_command", "encode_command"]

_ELEMENT = Struct("<HHI")
_SHORT = Struct("<HHIH")
_GROUP_LENGTH = Struct("<HHII")
_COMMAND_FIELD = 0x0100
_DATASET_TYPE = 0x0800
_NO_DATASET = 0x0101  # any other value means "a data set follows" (PS3.7 E.1-1)
_SOME_DATASET = 0x0001
_ERROR_COMMENT_CHARS = 64  # a VR of LO has no more


def decode_command(data: Buffer) -> Command:
    """The command that a whole command set says.

    Unknown elements, the group length's value and the order of elements are not tested. Raises
    ``RemoteProtocolError`` (answer: A-ABORT by the user) for anything that leaves a doubt.
    """
    raw = bytes(data)
    found: dict[int, bytes] = {}
    position, end = 0, len(raw)
    unpack = _ELEMENT.unpack_from
    try:
        while position < end:
            group, number, length = unpack(raw, position)
            position += 8
            if group or length > end - position:
                raise RemoteProtocolError(
                    f"command set: element ({group:04X},{number:04X}) of {length} bytes "
                    f"at {position - 8} of {end}"
                )
            if number in found:
                raise RemoteProtocolError(f"command set: element (0000,{number:04X}) appears twice")
            found[number] = raw[position : position + length]
            position += length
    except struct_error:
        raise RemoteProtocolError(
            f"command set: ends within an element's header, at {position} of {end}"
        ) from None
    command_field = _read_required_short(found, _COMMAND_FIELD)
    spec = BY_COMMAND_FIELD.get(command_field)
    if spec is None:
        raise RemoteProtocolError(f"command set: command field {command_field:04X}H is no DIMSE message")
    has_dataset = _read_required_short(found, _DATASET_TYPE) != _NO_DATASET
    if not has_dataset and spec.dataset is Carries.ALWAYS:
        raise RemoteProtocolError(f"{spec.name} without a data set")
    values: dict[str, Any] = {"has_dataset": has_dataset}
    for name, element, required in spec.elements:
        value = found.get(element.number)
        if value or (value is not None and required):
            values[name] = _READERS[element.vr](value, spec.name, element.number)
        elif required:
            raise RemoteProtocolError(f"{spec.name}: required element (0000,{element.number:04X}) is missing")
    return spec.cls(**values)


def encode_command(command: Command) -> bytes:
    """The command set, group length first; ``LocalProtocolError`` for values that do not fit."""
    spec = BY_CLASS[type(command)]
    if command.has_dataset is not (spec.dataset is Carries.ALWAYS) and spec.dataset is not Carries.MAYBE:
        raise LocalProtocolError(f"{spec.name} has {spec.dataset.value} a data set")
    parts: list[bytes] = [b""]
    # Command Field and Data Set Type lie between the elements of the row: put them in when passed
    pending_field = pending_dataset = True
    dataset_type = _SOME_DATASET if command.has_dataset else _NO_DATASET
    try:
        for name, element, required in spec.elements:
            number = element.number
            if pending_field and number > _COMMAND_FIELD:
                parts.append(_SHORT.pack(0, _COMMAND_FIELD, 2, spec.command_field))
                pending_field = False
            if pending_dataset and number > _DATASET_TYPE:
                parts.append(_SHORT.pack(0, _DATASET_TYPE, 2, dataset_type))
                pending_dataset = False
            value = getattr(command, name)
            if value is not None:
                if element.vr == "US":
                    parts.append(_SHORT.pack(0, number, 2, value))
                else:
                    encoded = _WRITERS[element.vr](value)
                    parts.append(_ELEMENT.pack(0, number, len(encoded)) + encoded)
            elif required:
                raise LocalProtocolError(f"{spec.name}: {name} must not be None")
    except (struct_error, OverflowError, UnicodeEncodeError):
        raise LocalProtocolError(f"{spec.name}: {name} does not fit its element") from None
    if pending_dataset:
        parts.append(_SHORT.pack(0, _DATASET_TYPE, 2, dataset_type))
    parts[0] = _GROUP_LENGTH.pack(0, 0, 4, sum(map(len, parts)))
    return b"".join(parts)


def _read_required_short(found: dict[int, bytes], number: int) -> int:
    value = found.get(number)
    if value is None:
        raise RemoteProtocolError(f"command set: required element (0000,{number:04X}) is missing")
    return _read_short(value, "command set", number)


def _read_short(value: bytes, what: str, number: int) -> int:
    if len(value) != 2:
        raise RemoteProtocolError(f"{what}: element (0000,{number:04X}) has {len(value)} bytes, must have 2")
    return value[0] | value[1] << 8


def _read_text(value: bytes, what: str, number: int) -> str:  # noqa: ARG001 - readers look alike
    return value.strip(b"\0 ").decode("latin-1")


def _read_tags(value: bytes, what: str, number: int) -> tuple[int, ...]:
    if len(value) % 4:
        raise RemoteProtocolError(
            f"{what}: element (0000,{number:04X}) has {len(value)} bytes, must have 4 each"
        )
    return tuple(
        value[i] << 16 | value[i + 1] << 24 | value[i + 2] | value[i + 3] << 8
        for i in range(0, len(value), 4)
    )


def _write_uid(value: str) -> bytes:
    raw = value.encode("latin-1")
    return raw + b"\0" if len(raw) & 1 else raw


def _write_text(value: str) -> bytes:
    raw = value.encode("latin-1")
    return raw + b" " if len(raw) & 1 else raw


def _write_comment(value: str) -> bytes:
    # a comment is for people: better cut and spelt badly than the response not sent
    return _write_text(value[:_ERROR_COMMENT_CHARS].encode("ascii", "replace").decode("ascii"))


def _write_tags(value: tuple[int, ...]) -> bytes:
    return b"".join((tag >> 16).to_bytes(2, "little") + (tag & 0xFFFF).to_bytes(2, "little") for tag in value)


_READERS: dict[str, Callable[[bytes, str, int], Any]] = {
    "UI": _read_text,
    "AE": _read_text,
    "LO": _read_text,
    "US": _read_short,
    "AT": _read_tags,
}
_WRITERS: dict[str, Callable[[Any], bytes]] = {
    "UI": _write_uid,
    "AE": _write_text,
    "LO": _write_comment,
    "AT": _write_tags,
}
