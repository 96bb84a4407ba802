"""Certificates as application entities show them: what binds one to an AE title, and when one ends."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.x509.oid import NameOID

from hounsfield.archive.net.errors import TlsError

__all__ = ["FINGERPRINT", "PeerCertificate", "ends_at", "list_ends_at", "normalized"]

FINGERPRINT = "sha256:"
_SUBJECT_CHARS_MAX = 200
_CRL_BEGIN = b"-----BEGIN X509 CRL-----"
_NEVER = datetime(9999, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class PeerCertificate:
    """What the other side showed in its TLS handshake; its chain was verified, or nobody asked for one."""

    fingerprint: str
    """SHA-256 of the whole certificate, 64 lower-case hexadecimal digits."""
    names: frozenset[str]
    """DNS names, addresses and common names in it, in lower case."""
    subject: str
    """Its distinguished name (RFC 4514), for people; printable."""

    @classmethod
    def of(cls, der: bytes) -> PeerCertificate:
        """Read a certificate; of one that cannot be read only the fingerprint is known."""
        fingerprint = hashlib.sha256(der).hexdigest()
        try:
            certificate = x509.load_der_x509_certificate(der)
            subject = certificate.subject.rfc4514_string()
            names = frozenset(_names(certificate))
        except ValueError:
            return cls(fingerprint, frozenset(), "")
        shown = "".join(c if c.isprintable() else "?" for c in subject)[:_SUBJECT_CHARS_MAX]
        return cls(fingerprint, names, shown)

    def is_one_of(self, bindings: Iterable[str]) -> bool:
        """Whether it is what an AE is bound to: :attr:`RemoteAe.certificates`."""
        for binding in map(normalized, bindings):
            if binding.startswith(FINGERPRINT):
                if binding.removeprefix(FINGERPRINT) == self.fingerprint:
                    return True
            elif binding in self.names:
                return True
        return False


def normalized(binding: str) -> str:
    """One way to write a binding: lower case, and a fingerprint without colons."""
    text = binding.strip().lower()
    if text.startswith(FINGERPRINT):
        return FINGERPRINT + text.removeprefix(FINGERPRINT).replace(":", "")
    return text


def ends_at(path: Path) -> datetime:
    """When the first certificate in a PEM file ends. Raises TlsError."""
    try:
        return x509.load_pem_x509_certificate(path.read_bytes()).not_valid_after_utc.astimezone(UTC)
    except (OSError, ValueError) as error:
        raise TlsError(f"{path} is no PEM certificate") from error


def list_ends_at(path: Path) -> datetime:
    """When the first revocation list of a PEM file ends: from then on nobody passes it. Raises TlsError."""
    try:
        lists = [
            x509.load_pem_x509_crl(_CRL_BEGIN + block) for block in path.read_bytes().split(_CRL_BEGIN)[1:]
        ]
        ends = [each.next_update_utc for each in lists if each.next_update_utc is not None]
        return min(ends, default=_NEVER).astimezone(UTC)
    except (OSError, ValueError) as error:
        raise TlsError(f"{path} is no PEM revocation list") from error


def _names(certificate: x509.Certificate) -> Iterable[str]:
    for attribute in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME):
        yield str(attribute.value).lower()
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return
    for name in found.value:
        if isinstance(name, x509.DNSName | x509.IPAddress):
            yield str(name.value).lower()
