"""What we agree to: presentation contexts, and the user information items about them. Pure (PS3.8 9.3.3).

*Abstract syntaxes.* Verification, those of our services, and storage: everything that may be an object
(:mod:`~hounsfield.archive.net.sop_classes`).

*Transfer syntaxes.* Services take their own. Storage takes any, known or not: bytes are kept as they come, so
the question is only which one of several to take. Nobody may be made to convert what need not be. The
*first* one proposed says what the caller has:

1. first one native (uncompressed): the best native one offered: explicit VR little endian, implicit,
   deflated, big endian. Explicit VR keeps the VRs of private elements, which implicit VR loses for ever.
2. first one encapsulated: a lossless one before a lossy one, else in the caller's order.
3. first one unknown to us: that one.

A caller that only takes objects in such a context (C-GET) gets the best native one that it offers: everything
but video can be had in it.

*Windows* (PS3.7 D.3.3.3). Both numbers are the requestor's: what it may have outstanding with us, and we with
it. Each is the smaller one of what it asks and what we take; a caller that asks nothing has one and one.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from enum import Enum

from hounsfield.archive.dicom.part10 import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from hounsfield.archive.net.services import Service
from hounsfield.archive.net.sop_classes import VERIFICATION, StorageRule, is_storage
from hounsfield.archive.wire import (
    AssociateAccept,
    AssociateRequest,
    AsynchronousOperations,
    CGetRequest,
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

__all__ = ["Terms", "choose_transfer_syntax", "negotiate"]

# Level 2 (full) storage; signature level 3 (bits are preserved); no coercion (PS3.4 Table B.3-1).
STORAGE_SUPPORT = bytes((2, 0, 3, 0, 0, 0))
#: With coercion on receipt: signatures over what is coerced do not hold as it is delivered.
STORAGE_SUPPORT_COERCING = bytes((2, 0, 1, 0, 1, 0))

_NATIVE_ORDER = (
    EXPLICIT_VR_LITTLE_ENDIAN.uid,
    IMPLICIT_VR_LITTLE_ENDIAN.uid,
    DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN.uid,
    EXPLICIT_VR_BIG_ENDIAN.uid,
)


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What may be agreed to with one caller."""

    pdu_bytes_max: int
    rule: StorageRule = StorageRule.EVERY_OBJECT
    storage: bool = True
    """Whether it may store at all."""
    coerces: bool = False
    """Whether what it stores may be coerced."""
    services: Mapping[str, Service] = field(default_factory=dict)
    """Those it may use, by abstract syntax."""
    refused_services: Collection[str] = ()
    """Abstract syntaxes of those that it may not use."""
    refused_sop_classes: Collection[str] = ()
    refused_transfer_syntaxes: Collection[str] = ()
    preferred_transfer_syntaxes: tuple[str, ...] = ()
    """Of the storage contexts: the first of these that is offered is taken, whatever the rules say."""
    operations_max: tuple[int, int] = (1, 1)
    """How many operations it may have outstanding with us, and we with it."""

    @property
    def sends(self) -> bool:
        """Whether we may be asked to store on the caller's association."""
        return any(CGetRequest in service.providers for service in self.services.values())


def negotiate(
    request: AssociateRequest, terms: Terms, identity_response: bytes | None = None
) -> AssociateAccept:
    """The acceptance of ``request``: every context answered, and every user item that wants an answer."""
    user = request.user
    common = {item.sop_class_uid: item for item in user.common_extended}
    asked = {role.sop_class_uid: role for role in user.roles}
    sends = terms.sends
    takers = {uid for uid, role in asked.items() if sends and role.scp and not role.scu}
    results = tuple(_answer(context, terms, common, takers) for context in request.contexts)
    accepted = {
        context.abstract_syntax
        for context, result in zip(request.contexts, results, strict=True)
        if result.result == ContextResult.ACCEPTANCE
    }
    return AssociateAccept(
        called_ae=request.called_ae,
        calling_ae=request.calling_ae,
        contexts=results,
        user=UserInformation(
            max_pdu_length=terms.pdu_bytes_max,
            implementation_class_uid=IMPLEMENTATION_CLASS_UID,
            implementation_version=IMPLEMENTATION_VERSION_NAME,
            asynchronous_operations=_window(user.asynchronous_operations, terms.operations_max),
            roles=tuple(_role(role, terms, sends) for uid, role in asked.items() if uid in accepted),
            extended=tuple(
                ExtendedNegotiation(item.sop_class_uid, agreed)
                for item in user.extended
                if item.sop_class_uid in accepted and (agreed := _extended(item, terms)) is not None
            ),
            identity_response=identity_response,
        ),
    )


def _answer(
    context: PresentationContext,
    terms: Terms,
    common: Mapping[str, CommonExtendedNegotiation],
    takers: Collection[str],
) -> PresentationResult:
    abstract = context.abstract_syntax
    # a refused context still names a transfer syntax, which is not significant (PS3.8 9.3.3.2)
    named = context.transfer_syntaxes[0] if context.transfer_syntaxes else ""
    usable = [uid for uid in context.transfer_syntaxes if uid and uid not in terms.refused_transfer_syntaxes]
    service = terms.services.get(abstract)
    if abstract in terms.refused_services:
        return PresentationResult(context.context_id, ContextResult.USER_REJECTION, named)
    if service is not None:
        chosen = next((uid for uid in service.transfer_syntaxes if uid in usable), "")
    elif abstract == VERIFICATION:
        chosen = choose_transfer_syntax(usable) if usable else ""
    elif abstract in terms.refused_sop_classes or not is_storage(abstract, terms.rule, common):
        return PresentationResult(context.context_id, ContextResult.ABSTRACT_SYNTAX_NOT_SUPPORTED, named)
    elif not terms.storage and abstract not in takers:
        return PresentationResult(context.context_id, ContextResult.USER_REJECTION, named)
    else:
        orders = (terms.preferred_transfer_syntaxes, _NATIVE_ORDER if abstract in takers else ())
        best = (uid for order in orders for uid in order if uid in usable)
        chosen = next(best, "") or (choose_transfer_syntax(usable) if usable else "")
    if not chosen:
        return PresentationResult(context.context_id, ContextResult.TRANSFER_SYNTAXES_NOT_SUPPORTED, named)
    return PresentationResult(context.context_id, ContextResult.ACCEPTANCE, chosen)


def _window(asked: AsynchronousOperations | None, most: tuple[int, int]) -> AsynchronousOperations | None:
    """The item to answer with, if one was sent; an asked 0 is any number (PS3.7 D.3.3.3)."""
    if asked is None:
        return None
    invoked, performed = most
    return AsynchronousOperations(
        min(asked.invoked_max or invoked, invoked), min(asked.performed_max or performed, performed)
    )


def _role(role: RoleSelection, terms: Terms, sends: bool) -> RoleSelection:
    """The roles that the caller gets, for an accepted abstract syntax (PS3.7 D.3.3.4)."""
    uid = role.sop_class_uid
    service = terms.services.get(uid)
    if service is not None:
        return RoleSelection(uid, scu=role.scu, scp=role.scp and uid in service.used_by_us)
    if uid == VERIFICATION:
        return RoleSelection(uid, scu=role.scu, scp=False)
    return RoleSelection(uid, scu=role.scu and terms.storage, scp=role.scp and sends)


def _extended(item: ExtendedNegotiation, terms: Terms) -> bytes | None:
    """What is agreed about an accepted abstract syntax, None for nothing (PS3.7 D.3.3.5)."""
    service = terms.services.get(item.sop_class_uid)
    if service is not None:
        return service.extended(item.sop_class_uid, item.information) if service.extended else None
    if item.sop_class_uid == VERIFICATION:
        return None
    return STORAGE_SUPPORT_COERCING if terms.coerces else STORAGE_SUPPORT
