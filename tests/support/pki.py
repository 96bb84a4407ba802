"""Certificate authorities, certificates and revocation lists for tests, made on the spot."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

DAY = timedelta(days=1)


@dataclass(frozen=True)
class Shown:
    """A certificate and its key, as files."""

    certificate: x509.Certificate
    pem: Path
    key: Path

    @property
    def pin(self) -> str:
        """As an AE entry binds it."""
        return f"sha256:{self.certificate.fingerprint(hashes.SHA256()).hex()}"


def _key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def _subject(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _write(
    directory: Path,
    name: str,
    certificate: x509.Certificate,
    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey,
) -> Shown:
    directory.mkdir(exist_ok=True)
    pem, secret = directory / f"{name}.pem", directory / f"{name}.key"
    pem.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    secret.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return Shown(certificate, pem, secret)


@dataclass
class Authority:
    """An authority of its own, and what it signs."""

    directory: Path
    name: str = "authority"
    own_key: ec.EllipticCurvePrivateKey = field(default_factory=_key)
    shown: Shown = field(init=False)

    def __post_init__(self) -> None:
        now = datetime.now(UTC)
        subject = _subject(self.name)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject)
            .public_key(self.own_key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - DAY)
            .not_valid_after(now + 100 * DAY)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(self.own_key, hashes.SHA256())
        )
        self.shown = _write(self.directory, self.name, certificate, self.own_key)

    @property
    def pem(self) -> Path:
        return self.shown.pem

    def sign(
        self,
        name: str,
        *,
        host: str = "127.0.0.1",
        days: float = 90,
        file: str = "",
        rsa_key: bool = False,
    ) -> Shown:
        """A certificate for ``name`` at ``host`` that ends in ``days``."""
        now = datetime.now(UTC)
        key = rsa.generate_private_key(65537, 2048) if rsa_key else _key()
        end = now + days * DAY
        alternative: list[x509.GeneralName] = [x509.DNSName(f"{name.lower()}.example.org")]
        if host:
            alternative.append(x509.IPAddress(ipaddress.ip_address(host)))
        certificate = (
            x509.CertificateBuilder()
            .subject_name(_subject(name))
            .issuer_name(self.shown.certificate.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(min(now, end) - DAY)
            .not_valid_after(end)
            .add_extension(x509.SubjectAlternativeName(alternative), critical=False)
            .sign(self.own_key, hashes.SHA256())
        )
        return _write(self.directory, file or name.lower(), certificate, key)

    def revoke(self, *shown: Shown, days: float = 1) -> Path:
        """A revocation list that names these, and ends in ``days``."""
        now = datetime.now(UTC)
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self.shown.certificate.subject)
            .last_update(now - DAY)
            .next_update(now + days * DAY)
        )
        for each in shown:
            builder = builder.add_revoked_certificate(
                x509.RevokedCertificateBuilder()
                .serial_number(each.certificate.serial_number)
                .revocation_date(now - DAY)
                .build()
            )
        path = self.directory / "revoked.pem"
        path.write_bytes(builder.sign(self.own_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
        return path
