"""Whether one caller is let in, and the place that it takes: counted from its request to its end."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hounsfield.archive.net.certificates import PeerCertificate
from hounsfield.archive.net.policy import Refusal, RemoteAe, over_limit
from hounsfield.archive.net.services import Identified
from hounsfield.archive.wire import (
    AssociateReject,
    AssociateRequest,
    RejectReason,
    RejectResult,
    RejectSource,
)

if TYPE_CHECKING:
    from hounsfield.archive.net.listener import Endpoint, Listener

__all__ = ["Admission"]

_CONGESTED = AssociateReject(
    RejectResult.TRANSIENT, RejectSource.PROVIDER_PRESENTATION, RejectReason.TEMPORARY_CONGESTION
)


class Admission:
    """See the module's text. :meth:`close` whatever :meth:`judge` said."""

    def __init__(
        self, listener: Listener, endpoint: Endpoint, address: str, certificate: PeerCertificate | None
    ) -> None:
        self.open = False
        """Whether it takes a place."""
        self.ae: RemoteAe | None = None
        """What is known of the calling AE title."""
        self.certificate = certificate
        self._listener = listener
        self._endpoint = endpoint
        self._address = address
        self._counted_title = ""

    async def judge(self, request: AssociateRequest, *, draining: bool) -> Identified | Refusal | None:
        """Who it is that calls, None for nobody in particular; or why it is refused (PS3.8 9.3.4).

        It is counted before the limits are looked at.
        """
        self._listener.association_opened(self._address)
        self.open = True
        self.ae = self._listener.aes.get(request.calling_ae.strip())
        if draining:  # another worker will take it, or we ourselves when we are back
            return Refusal(_CONGESTED, "the archive is shutting down")
        return self._refusal(request) or await self._identify(request)

    def close(self) -> None:
        """Give its place back. Idempotent."""
        if self.open:
            self.open = False
            self._listener.association_closed(self._address)
        if self._counted_title:
            self._listener.observer.entity_closed(self._counted_title)
            self._counted_title = ""

    def _refusal(self, request: AssociateRequest) -> Refusal | None:
        listener, limits, ae = self._listener, self._listener.limits, self.ae
        refusal = self._endpoint.policy.judge(request, self._address, listener.aes, self.certificate)
        if refusal is not None:
            return refusal
        if listener.observer.associations_open() > limits.associations_max:
            return over_limit(f"more than {limits.associations_max} associations")
        if listener.observer.associations_from(self._address) > limits.associations_per_address_max:
            return over_limit(
                f"more than {limits.associations_per_address_max} associations from one address"
            )
        if ae is not None:
            self._counted_title = ae.title  # without a limit, too: it may get one while this one is open
            listener.observer.entity_opened(ae.title)
            if 0 < ae.associations_max < listener.observer.associations_of(ae.title):
                return over_limit(f"more than {ae.associations_max} associations of this AE")
        return None

    async def _identify(self, request: AssociateRequest) -> Identified | Refusal | None:
        identify, offered = self._listener.identify, request.user.identity
        who = await identify(offered, self._address, self.ae) if identify else None
        if isinstance(who, Refusal):
            return who
        return self._endpoint.policy.judge_user(who.name if who else "", self.ae, offered) or who
