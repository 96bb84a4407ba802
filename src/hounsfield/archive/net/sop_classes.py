"""Which SOP classes are objects to be stored. Pure.

The rule is *everything that may be an object*: a UID below DICOM's own root is storage when it is in the
storage arc (but for the few other services that have their place there) or one of the dozen storage classes
outside of it; a UID below any other root is taken for a private storage class, unless the caller's common
extended negotiation (PS3.7 D.3.3.6) says that it is something else. So next year's storage classes are stored
this year.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum

from hounsfield.archive.wire import CommonExtendedNegotiation

__all__ = ["STORAGE_SERVICE_CLASS", "VERIFICATION", "StorageRule", "is_storage"]

VERIFICATION = "1.2.840.10008.1.1"
STORAGE_SERVICE_CLASS = "1.2.840.10008.4.2"

_DICOM_ROOT = "1.2.840.10008."
_STORAGE_ARC = "1.2.840.10008.5.1.4.1.1."

# In the storage arc, and other services all the same (PS3.6 Table A-1).
_NOT_STORAGE = frozenset(
    f"{_STORAGE_ARC}{suffix}"
    for suffix in (
        "200.4", "200.5", "200.6",  # protocol approval query and retrieve
        "201.1.1", "201.2", "201.3", "201.4", "201.5", "201.6",  # inventory and repository services
    )
)  # fmt: skip

# Outside of it, and storage all the same.
_STORAGE_ELSEWHERE = frozenset(
    {
        "1.2.840.10008.5.1.1.27",  # stored print (retired)
        "1.2.840.10008.5.1.1.29",  # hardcopy grayscale (retired)
        "1.2.840.10008.5.1.1.30",  # hardcopy colour (retired)
        "1.2.840.10008.5.1.4.34.1",  # RT beams delivery instruction (trial)
        "1.2.840.10008.5.1.4.34.7",  # RT beams delivery instruction
        "1.2.840.10008.5.1.4.34.10",  # RT brachy application setup delivery instruction
        "1.2.840.10008.5.1.4.38.1",  # hanging protocol
        "1.2.840.10008.5.1.4.39.1",  # colour palette
        "1.2.840.10008.5.1.4.43.1",  # generic implant template
        "1.2.840.10008.5.1.4.44.1",  # implant assembly template
        "1.2.840.10008.5.1.4.45.1",  # implant template group
    }
)


class StorageRule(Enum):
    """Which abstract syntaxes are taken for storage classes."""

    EVERY_OBJECT = "every-object"
    """Everything that may be an object: see this module's text."""
    STANDARD_ONLY = "standard-only"
    """The same, without private classes."""


def is_storage(
    abstract_syntax: str,
    rule: StorageRule = StorageRule.EVERY_OBJECT,
    common: Mapping[str, CommonExtendedNegotiation] | None = None,
) -> bool:
    """Whether objects of this SOP class are taken. ``common``: what the caller says about its classes."""
    if abstract_syntax.startswith(_DICOM_ROOT):
        if abstract_syntax.startswith(_STORAGE_ARC):
            return abstract_syntax not in _NOT_STORAGE
        return abstract_syntax in _STORAGE_ELSEWHERE
    if rule is StorageRule.STANDARD_ONLY or not abstract_syntax:
        return False
    said = common.get(abstract_syntax) if common else None
    return said is None or said.service_class_uid == STORAGE_SERVICE_CLASS
