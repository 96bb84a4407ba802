"""Who may call: called and calling AE titles, source addresses, limits. Pure: a request in, a verdict out.

AE titles are no secrets and prove nothing; with source addresses they keep out what does not belong, and TLS
with client certificates keeps out the rest.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from hounsfield.archive.net.certificates import PeerCertificate
from hounsfield.archive.net.sop_classes import StorageRule
from hounsfield.archive.wire import (
    APPLICATION_CONTEXT_UID,
    AssociateReject,
    AssociateRequest,
    IdentityType,
    RejectReason,
    RejectResult,
    RejectSource,
    UserIdentity,
)

__all__ = ["SERVICES", "ListenerPolicy", "Network", "Refusal", "RemoteAe", "networks", "over_limit", "within"]

SERVICES = ("echo", "store", "find", "move", "get", "commit")
"""What an AE may be allowed to use: the names of the services we provide, and two that need none."""

Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network


def networks(texts: Iterable[str]) -> tuple[Network, ...]:
    """``192.0.2.7`` and ``192.0.2.0/24`` as networks. ValueError for anything else."""
    return tuple(ipaddress.ip_network(text, strict=False) for text in texts)


@dataclass(frozen=True, slots=True)
class RemoteAe:
    """An application entity known by its title: where it listens ("" when it only calls), and from where it
    may call us (nowhere when empty).
    """

    title: str
    host: str = ""
    port: int = 104
    tls: bool = False
    """Whether it listens with TLS."""
    sources: tuple[str, ...] = ()
    comment: str = ""
    services: frozenset[str] = frozenset()
    """Of :data:`SERVICES`, those it may use here; all when empty. C-ECHO is always answered."""
    associations_max: int = 0
    """From it at once, over all workers; 0: no limit of its own."""
    refused_sop_classes: frozenset[str] = frozenset()
    refused_transfer_syntaxes: frozenset[str] = frozenset()
    preferred_transfer_syntaxes: tuple[str, ...] = ()
    """Taken before others when it offers them, the first one first."""
    called_title: str = ""
    """What we call it when we call it, "" for its title."""
    calling_title: str = ""
    """What we call ourselves then, "" for our own title."""
    tls_ca: str = ""
    """File of the authority that signed what it shows when we call it; "" for the archive's."""
    tls_crl: str = ""
    """File of what that authority revoked, "" for none; goes with ``tls_ca``."""
    tls_certificate: str = ""
    """File of the certificate that we show it, "" for the archive's; ``tls_key`` goes with it."""
    tls_key: str = ""
    certificates: tuple[str, ...] = ()
    """What the certificate that it shows, calling or called, must be: ``sha256:HEX`` or a name in it."""
    identity_required: bool = False
    """Whether a verified user has to be named in its associations (PS3.7 D.3.3.7)."""
    users: frozenset[str] = frozenset()
    """Those it may name; any verified one when empty."""
    commitment_to: str = ""
    """Title of the AE that is told the results of its storage commitment requests, "" for itself."""
    move_associations: int = 0
    """That one C-MOVE may open to it at once; 0: as many as ``[dicom]`` says."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why an association is refused: the PDU to answer with, and the words for the administrator."""

    reject: AssociateReject
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ListenerPolicy:
    """Who may call at one listening socket.

    A call is admitted when its title is in ``calling_titles`` (any, when empty) *and* its address in
    ``sources`` (any, when empty); or when it comes from a known AE's own sources. With both lists
    empty that admits everybody, which is what ``open`` permits (loopback); without it, only known AEs call.
    """

    ae_title: str = "HOUNSFIELD"
    check_called_title: bool = True
    called_titles: frozenset[str] = frozenset()
    calling_titles: frozenset[str] = frozenset()
    sources: tuple[Network, ...] = ()
    open: bool = True
    identity_required: bool = False
    storage_rule: StorageRule = StorageRule.EVERY_OBJECT
    coerces: bool = False
    refused_sop_classes: frozenset[str] = frozenset()

    def judge(
        self,
        request: AssociateRequest,
        address: str,
        known: Mapping[str, RemoteAe] | None = None,
        certificate: PeerCertificate | None = None,
    ) -> Refusal | None:
        """None when the call is admitted, else the first reason against it (PS3.8 9.3.4).

        ``certificate`` is what the caller showed in its TLS handshake.
        """
        if request.application_context != APPLICATION_CONTEXT_UID:
            return _refuse(
                RejectReason.APPLICATION_CONTEXT_NOT_SUPPORTED, "application context name not supported"
            )
        called, calling = request.called_ae.strip(), request.calling_ae.strip()
        if self.check_called_title and called != self.ae_title and called not in self.called_titles:
            return _refuse(RejectReason.CALLED_AE_NOT_RECOGNIZED, "called AE title not recognized")
        ae = (known or {}).get(calling)
        against = self._against_the_place(calling, address, ae) or _against_the_certificate(ae, certificate)
        return _refuse(RejectReason.CALLING_AE_NOT_RECOGNIZED, against) if against else None

    def _against_the_place(self, calling: str, address: str, ae: RemoteAe | None) -> str:
        if self.calling_titles or self.sources or self.open:
            title_fits = not self.calling_titles or calling in self.calling_titles
            if title_fits and (not self.sources or within(address, self.sources)):
                return ""
        else:
            title_fits = False
        if ae is not None and ae.sources:
            if within(address, networks(ae.sources)):
                return ""
            title_fits = True
        return (
            "source address not allowed for this AE title"
            if title_fits
            else "calling AE title not recognized"
        )

    def judge_user(
        self, user: str, ae: RemoteAe | None, offered: UserIdentity | None = None
    ) -> Refusal | None:
        """None when an association of ``ae`` may be ``user``'s (verified; "" when nobody is).

        ``offered`` is the identity that the caller sent, for the words of the refusal.
        A refusal is the one that PS3.7 D.3.3.7 has for failed authorization: permanent, by the ACSE related
        function of the service provider.
        """
        users = ae.users if ae is not None else frozenset()
        if user:
            against = "this user may not use this AE title" if users and user not in users else ""
        else:
            required = self.identity_required or bool(users) or (ae is not None and ae.identity_required)
            against = _unproved(offered) if required else ""
        if not against:
            return None
        return Refusal(
            AssociateReject(RejectResult.PERMANENT, RejectSource.PROVIDER_ACSE, RejectReason.ACSE_NO_REASON),
            against,
        )


def _unproved(offered: UserIdentity | None) -> str:
    if offered is None:
        return "a user has to be named and proved, and none was named"
    words: dict[int, str] = {
        IdentityType.USERNAME: "a user name without a passcode",
        IdentityType.USERNAME_PASSCODE: "a passcode, and no users are known (`hounsfield ae user add`)",
        IdentityType.KERBEROS: "a Kerberos ticket, which is not supported",
        IdentityType.SAML: "a SAML assertion, which is not supported",
        IdentityType.JWT: "a token, and no identity.jwt_keys are configured",
    }
    what = words.get(offered.identity_type, "something unknown")
    return f"a user has to be named and proved; what was sent is {what}"


def _against_the_certificate(ae: RemoteAe | None, certificate: PeerCertificate | None) -> str:
    if ae is None or not ae.certificates:
        return ""
    if certificate is None:
        return "this AE title is bound to a certificate, and none was shown"
    if certificate.is_one_of(ae.certificates):
        return ""
    return "the certificate shown is not one that this AE title is bound to"


def over_limit(what: str) -> Refusal:
    """A refusal because of a limit of ours: the caller may try again later."""
    return Refusal(
        AssociateReject(
            RejectResult.TRANSIENT, RejectSource.PROVIDER_PRESENTATION, RejectReason.LOCAL_LIMIT_EXCEEDED
        ),
        what,
    )


def _refuse(reason: int, words: str) -> Refusal:
    return Refusal(AssociateReject(RejectResult.PERMANENT, RejectSource.SERVICE_USER, reason), words)


def within(address: str, nets: tuple[Network, ...]) -> bool:
    """Whether an address is in one of the networks; what is no address is in none."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(ip, "ipv4_mapped", None)
    if mapped is not None:
        ip = mapped
    return any(ip in net for net in nets if net.version == ip.version)
