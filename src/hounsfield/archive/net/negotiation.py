"""What we agree to: presentation contexts, and the user information items about them. Pure (PS3.8 9.3.3).

*Abstract syntaxes.* Verification, and storage. The rule for storage is *everything that may be an object*: a
UID below DICOM's own root is storage when it is in the storage arc (but for the few other services that have
their place there) or one of the dozen storage classes outside of it; a UID below any other root is taken for
a private storage class, unless the caller's common extended negotiation says that it is something else. So
next year's storage classes are stored this year.

*Transfer syntaxes.* Any, known or not: bytes are kept as they come, so the question is only which one of
several to take. Nobody may be made to convert what need not be. The *first* one proposed says what the
caller has:

1. first one native (uncompressed): the best native one offered: explicit VR little endian, implicit,
   deflated, big endian. Explicit VR keeps the VRs of private elements, which implicit VR loses for ever.
2. first one encapsulated: a lossless one before a lossy one, else in the caller's order.
3. first one unknown to us: that one.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from enum import Enum

from hounsfield.archive.dicom.part10 import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from hounsfield.archive.wire import (
    AssociateAccept,
    AssociateRequest,
    AsynchronousOperations,
    CommonExtendedNegotiation,
    ContextResult,
    ExtendedNegotiation,
    PresentationContext,
    PresentationResult,
    RoleSelection,
    UserInformation,
)
from hounsfield.codecs.registry import (
    DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN,
    EXPLICIT_VR_BIG_ENDIAN,
    EXPLICIT_VR_LITTLE_ENDIAN,
    IMPLICIT_VR_LITTLE_ENDIAN,
    lookup,
)

__all__ = ["VERIFICATION", "StorageRule", "choose_transfer_syntax", "is_storage", "negotiate"]

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

# Level 2 (full) storage; signature level 3 (bits are preserved); no coercion (PS3.4 Table B.3-1).
STORAGE_SUPPORT = bytes((2, 0, 3, 0, 0, 0))

_NATIVE_ORDER = (
    EXPLICIT_VR_LITTLE_ENDIAN.uid,
    IMPLICIT_VR_LITTLE_ENDIAN.uid,
    DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN.uid,
    EXPLICIT_VR_BIG_ENDIAN.uid,
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


class _Kind(Enum):
    NATIVE = 0
    ENCAPSULATED = 1
    UNKNOWN = 2


def choose_transfer_syntax(proposed: Collection[str]) -> str:
    """The one to take of ``proposed`` (not empty), by the rule in this module's text."""
    offered = list(proposed)
    first = offered[0]
    kind = _kind(first)
    if kind is _Kind.NATIVE:
        return next((uid for uid in _NATIVE_ORDER if uid in offered), first)
    if kind is _Kind.ENCAPSULATED:
        same = [uid for uid in offered if _kind(uid) is kind]
        return next((uid for uid in same if lookup(uid).lossless), first)
    return first


def _kind(uid: str) -> _Kind:
    syntax = lookup(uid)
    if not syntax.known:
        return _Kind.UNKNOWN
    return _Kind.ENCAPSULATED if syntax.encapsulated else _Kind.NATIVE


def negotiate(
    request: AssociateRequest,
    *,
    pdu_bytes_max: int,
    rule: StorageRule = StorageRule.EVERY_OBJECT,
    refused_sop_classes: Collection[str] = (),
) -> AssociateAccept:
    """The acceptance of ``request``: every context answered, and every user item that wants an answer."""
    user = request.user
    common = {item.sop_class_uid: item for item in user.common_extended}
    results = tuple(_answer(context, rule, refused_sop_classes, common) for context in request.contexts)
    stored = {
        context.abstract_syntax
        for context, result in zip(request.contexts, results, strict=True)
        if result.result == ContextResult.ACCEPTANCE and context.abstract_syntax != VERIFICATION
    }
    return AssociateAccept(
        called_ae=request.called_ae,
        calling_ae=request.calling_ae,
        contexts=results,
        user=UserInformation(
            max_pdu_length=pdu_bytes_max,
            implementation_class_uid=IMPLEMENTATION_CLASS_UID,
            implementation_version=IMPLEMENTATION_VERSION_NAME,
            # one at a time: acknowledged when durable; it is many associations that share a commit
            asynchronous_operations=(
                AsynchronousOperations(1, 1) if user.asynchronous_operations is not None else None
            ),
            # the caller may be the user of our services; that we use its own (C-GET) is for another day
            roles=tuple(
                RoleSelection(role.sop_class_uid, scu=role.scu, scp=False)
                for role in user.roles
                if role.sop_class_uid in stored or role.sop_class_uid == VERIFICATION
            ),
            extended=tuple(
                ExtendedNegotiation(item.sop_class_uid, STORAGE_SUPPORT)
                for item in user.extended
                if item.sop_class_uid in stored
            ),
        ),
    )


def _answer(
    context: PresentationContext,
    rule: StorageRule,
    refused: Collection[str],
    common: Mapping[str, CommonExtendedNegotiation],
) -> PresentationResult:
    abstract = context.abstract_syntax
    wanted = abstract == VERIFICATION or (abstract not in refused and is_storage(abstract, rule, common))
    # a refused context still names a transfer syntax, which is not significant (PS3.8 9.3.3.2)
    named = context.transfer_syntaxes[0] if context.transfer_syntaxes else ""
    if not wanted:
        return PresentationResult(context.context_id, ContextResult.ABSTRACT_SYNTAX_NOT_SUPPORTED, named)
    usable = [uid for uid in context.transfer_syntaxes if uid]
    if not usable:
        return PresentationResult(context.context_id, ContextResult.TRANSFER_SYNTAXES_NOT_SUPPORTED, named)
    return PresentationResult(context.context_id, ContextResult.ACCEPTANCE, choose_transfer_syntax(usable))
