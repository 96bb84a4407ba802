"""Rows of objects that lie behind each other, as reindexing reads them: those of a series say the same.

What they say of study, series and source is decoded once for as long as the bytes are the same. Rows then
share these values, as they do when objects come in: nobody changes them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar

import msgspec
from msgspec import Raw, structs

from hounsfield.archive.index.rows import Attributes, ObjectRow, SourceRow

REMEMBERED_MAX: Final = 64  # values: those of the associations that sent at the same time
REMEMBERED_BYTES_MAX: Final = 16 << 10  # of one

_SHARED: Final = {"study": Attributes, "series": Attributes, "source": SourceRow}
_FIELDS: Final = structs.fields(ObjectRow)
_POSITIONS: Final = {name: [one.name for one in _FIELDS].index(name) for name in _SHARED}


def _undecoded(one: structs.FieldInfo) -> Any:
    kind = Raw if one.name in _SHARED else one.type
    return (one.name, kind) if one.required else (one.name, kind, one.default)


_decode: Final = msgspec.msgpack.Decoder(
    msgspec.defstruct("_Undecoded", [_undecoded(one) for one in _FIELDS], array_like=True, frozen=True)
).decode

Value = TypeVar("Value")


class _Remembered:
    """The values of one field, by their bytes."""

    def __init__(self, kind: Any) -> None:
        self._decode: Callable[[Any], Any] = msgspec.msgpack.Decoder(kind).decode
        self._values: dict[bytes, Any] = {}

    def value(self, raw: Raw) -> Any:
        key = bytes(raw)
        value = self._values.get(key)
        if value is None:
            value = self._decode(key)
            if len(key) <= REMEMBERED_BYTES_MAX:
                if len(self._values) == REMEMBERED_MAX:
                    self._values.clear()
                self._values[key] = value
        return value


class ObjectRows:
    """Decodes rows, best in the order in which they lie. Not thread-safe."""

    def __init__(self) -> None:
        self._remembered = [(_POSITIONS[name], _Remembered(kind)) for name, kind in _SHARED.items()]

    def decode(self, data: bytes) -> ObjectRow:
        """The row; ``msgspec.MsgspecError`` when the bytes are not one."""
        try:
            values = list(structs.astuple(_decode(data)))
            for position, remembered in self._remembered:
                values[position] = remembered.value(values[position])
        except UnicodeDecodeError as error:
            raise msgspec.DecodeError("a row holds text that is not UTF-8") from error
        return ObjectRow(*values)
