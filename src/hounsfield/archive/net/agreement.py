"""What is agreed with one caller: the terms that hold for it, and, once answered, who it is."""

from __future__ import annotations

from collections.abc import Iterable

from hounsfield.archive.engine.types import Source
from hounsfield.archive.net.limits import NetLimits
from hounsfield.archive.net.negotiation import Terms
from hounsfield.archive.net.policy import ListenerPolicy, RemoteAe
from hounsfield.archive.net.services import Identified, Peer, Service
from hounsfield.archive.wire import AssociateAccept

__all__ = ["peer_of", "terms_for"]


def terms_for(
    ae: RemoteAe | None, policy: ListenerPolicy, services: Iterable[Service], limits: NetLimits
) -> Terms:
    """What may be agreed to with a caller, by our policy and by what is known of it, None for a stranger."""
    ae = ae or RemoteAe("")
    permitted: dict[str, Service] = {}
    refused: set[str] = set()
    for service in services:
        if _may_use(ae, service.name):
            permitted.update(dict.fromkeys(service.abstract_syntaxes, service))
        else:
            refused |= service.abstract_syntaxes
    return Terms(
        pdu_bytes_max=limits.pdu_bytes_max,
        rule=policy.storage_rule,
        storage=_may_use(ae, "store"),
        coerces=policy.coerces,
        services=permitted,
        refused_services=refused,
        refused_sop_classes=policy.refused_sop_classes | ae.refused_sop_classes,
        refused_transfer_syntaxes=ae.refused_transfer_syntaxes,
        preferred_transfer_syntaxes=ae.preferred_transfer_syntaxes,
        operations_max=(limits.operations_invoked_max, limits.operations_performed_max),
    )


def _may_use(ae: RemoteAe, service: str) -> bool:
    return not ae.services or service in ae.services


def peer_of(source: Source, accept: AssociateAccept, ae: RemoteAe | None, who: Identified | None) -> Peer:
    """Who is at the other end, by its request and our answer."""
    user = accept.user
    window = user.asynchronous_operations
    return Peer(
        calling_ae=source.calling_ae,
        called_ae=source.called_ae,
        address=source.address,
        ae=ae,
        identity=who.name if who else "",
        extended={item.sop_class_uid: item.information for item in user.extended},
        scp_of=frozenset(role.sop_class_uid for role in user.roles if role.scp),
        asynchronous=(window.invoked_max, window.performed_max) if window else (1, 1),
    )
