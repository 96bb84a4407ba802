"""What a DIMSE status means (PS3.7 Annex C; PS3.4 B.2.3, C.4.1–C.4.3, F.7.2, F.8.2, J.3)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, IntEnum

__all__ = ["Category", "Service", "Status", "StatusMeaning", "describe_status"]


class Category(Enum):
    """PS3.7 C.1."""

    SUCCESS = "success"
    WARNING = "warning"
    FAILURE = "failure"
    CANCEL = "cancel"
    PENDING = "pending"


class Service(Enum):
    """Whose table to read: the same code means different things to different services."""

    ANY = "any"
    STORAGE = "storage"
    FIND = "find"
    MOVE = "move"
    GET = "get"


class Status(IntEnum):
    """The statuses that this archive sends, or acts on when it receives them."""

    SUCCESS = 0x0000
    NO_SUCH_ATTRIBUTE = 0x0105
    INVALID_ATTRIBUTE_VALUE = 0x0106
    ATTRIBUTE_LIST_ERROR = 0x0107
    PROCESSING_FAILURE = 0x0110
    DUPLICATE_SOP_INSTANCE = 0x0111
    NO_SUCH_SOP_INSTANCE = 0x0112
    NO_SUCH_EVENT_TYPE = 0x0113
    NO_SUCH_ARGUMENT = 0x0114
    INVALID_ARGUMENT_VALUE = 0x0115
    ATTRIBUTE_VALUE_OUT_OF_RANGE = 0x0116
    INVALID_SOP_INSTANCE = 0x0117
    NO_SUCH_SOP_CLASS = 0x0118
    CLASS_INSTANCE_CONFLICT = 0x0119
    MISSING_ATTRIBUTE = 0x0120
    MISSING_ATTRIBUTE_VALUE = 0x0121
    SOP_CLASS_NOT_SUPPORTED = 0x0122
    NO_SUCH_ACTION = 0x0123
    NOT_AUTHORIZED = 0x0124
    DUPLICATE_INVOCATION = 0x0210
    UNRECOGNIZED_OPERATION = 0x0211
    MISTYPED_ARGUMENT = 0x0212
    RESOURCE_LIMITATION = 0x0213
    OUT_OF_RESOURCES = 0xA700
    OUT_OF_RESOURCES_MATCHES = 0xA701
    OUT_OF_RESOURCES_SUBOPERATIONS = 0xA702
    MOVE_DESTINATION_UNKNOWN = 0xA801
    DATASET_DOES_NOT_MATCH_SOP_CLASS = 0xA900
    COERCION_OF_DATA_ELEMENTS = 0xB000
    ELEMENTS_DISCARDED = 0xB006
    DATASET_DOES_NOT_MATCH_SOP_CLASS_WARNING = 0xB007
    CANNOT_UNDERSTAND = 0xC000
    CANCEL = 0xFE00
    PENDING = 0xFF00
    PENDING_OPTIONAL_KEYS_NOT_SUPPORTED = 0xFF01


@dataclass(frozen=True, slots=True)
class StatusMeaning:
    """A code in words."""

    code: int
    category: Category
    meaning: str


_W, _F = Category.WARNING, Category.FAILURE

# PS3.7 Annex C, for every service
_GENERAL: dict[int, tuple[Category, str]] = {
    0x0000: (Category.SUCCESS, "success"),
    0x0001: (_W, "requested optional attributes are not supported"),
    0x0105: (_F, "no such attribute"),
    0x0106: (_F, "invalid attribute value"),
    0x0107: (_W, "attribute list error"),
    0x0110: (_F, "processing failure"),
    0x0111: (_F, "duplicate SOP instance"),
    0x0112: (_F, "no such SOP instance"),
    0x0113: (_F, "no such event type"),
    0x0114: (_F, "no such argument"),
    0x0115: (_F, "invalid argument value"),
    0x0116: (_W, "attribute value out of range"),
    0x0117: (_F, "invalid SOP instance"),
    0x0118: (_F, "no such SOP class"),
    0x0119: (_F, "class-instance conflict"),
    0x0120: (_F, "missing attribute"),
    0x0121: (_F, "missing attribute value"),
    0x0122: (_F, "refused: SOP class not supported"),
    0x0123: (_F, "no such action"),
    0x0124: (_F, "refused: not authorized"),
    0x0210: (_F, "duplicate invocation"),
    0x0211: (_F, "unrecognized operation"),
    0x0212: (_F, "mistyped argument"),
    0x0213: (_F, "resource limitation"),
    0xFE00: (Category.CANCEL, "cancelled"),
    0xFF00: (Category.PENDING, "pending"),
    0xFF01: (Category.PENDING, "pending, some optional keys are not supported"),
}

# by service: (mask, value) -> meaning; the most exact mask first (PS3.4 uses xx for "any")
_BY_SERVICE: dict[Service, tuple[tuple[int, int, Category, str], ...]] = {
    Service.STORAGE: (  # PS3.4 B.2.3
        (0xFFFF, 0xB000, _W, "coercion of data elements"),
        (0xFFFF, 0xB006, _W, "elements discarded"),
        (0xFFFF, 0xB007, _W, "data set does not match SOP class"),
        (0xFF00, 0xA700, _F, "refused: out of resources"),
        (0xFF00, 0xA900, _F, "error: data set does not match SOP class"),
        (0xF000, 0xC000, _F, "error: cannot understand"),
    ),
    Service.FIND: (  # PS3.4 C.4.1.1.4
        (0xFFFF, 0xA700, _F, "refused: out of resources"),
        (0xFFFF, 0xA710, _F, "invalid prior record key"),
        (0xFFFF, 0xA900, _F, "identifier does not match SOP class"),
        (0xF000, 0xC000, _F, "unable to process"),
    ),
    Service.MOVE: (  # PS3.4 C.4.2.1.5
        (0xFFFF, 0xA701, _F, "refused: out of resources, unable to calculate number of matches"),
        (0xFFFF, 0xA702, _F, "refused: out of resources, unable to perform sub-operations"),
        (0xFFFF, 0xA801, _F, "refused: move destination unknown"),
        (0xFFFF, 0xA900, _F, "identifier does not match SOP class"),
        (0xFFFF, 0xB000, _W, "sub-operations complete, one or more failures or warnings"),
        (0xF000, 0xC000, _F, "unable to process"),
    ),
    Service.GET: (  # PS3.4 C.4.3.1.4
        (0xFFFF, 0xA701, _F, "refused: out of resources, unable to calculate number of matches"),
        (0xFFFF, 0xA702, _F, "refused: out of resources, unable to perform sub-operations"),
        (0xFFFF, 0xA900, _F, "identifier does not match SOP class"),
        (0xFFFF, 0xB000, _W, "sub-operations complete, one or more failures or warnings"),
        (0xF000, 0xC000, _F, "unable to process"),
    ),
}


def describe_status(code: int, service: Service = Service.ANY) -> StatusMeaning:
    """The meaning of ``code``, for every one of the 65,536 there are.

    A code that no table has is judged by its class: Bxxx warn, FFxx are pending, all others are
    failures (PS3.7 C.1 to C.5).
    """
    for mask, value, category, meaning in _BY_SERVICE.get(service, ()):
        if code & mask == value:
            return StatusMeaning(code, category, meaning)
    known = _GENERAL.get(code)
    if known is not None:
        return StatusMeaning(code, *known)
    if code & 0xF000 == 0xB000:
        return StatusMeaning(code, _W, "warning of this service")
    if code & 0xFF00 == 0xFF00:
        return StatusMeaning(code, Category.PENDING, "pending")
    return StatusMeaning(code, _F, "failure of this service" if code & 0x8000 else "failure")
