"""TLS contexts for DICOM: PS3.15 B.12, BCP 195 (RFC 8996, RFC 9325).

Version 1.2 with ephemeral elliptic curves and an AEAD cipher, or 1.3; nothing older or weaker is offered or
taken, so there is nothing to be talked down to. Finite-field Diffie-Hellman is left out (RFC 9325 4.1).
"""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from pathlib import Path

from hounsfield.archive.net.certificates import FINGERPRINT, PeerCertificate
from hounsfield.archive.net.errors import TlsFileError

__all__ = ["client_context", "server_context", "why_no_tls"]

# For TLS 1.2; 1.3's suites are all of that kind and are not listed here. Level 2: keys of 112 bits of
# security (RSA 2048, curves of 224) and signatures of no less, whatever the system's own configuration says.
_CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20:!aNULL:@SECLEVEL=2"


def server_context(
    certificate: Path, key: Path, *, client_ca: Path | None = None, client_crl: Path | None = None
) -> ssl.SSLContext:
    """A context for a listener. With ``client_ca`` callers must show a certificate of that authority, and
    with ``client_crl`` one that its revocation list (PEM) does not name; past its end nobody is let in.

    Raises TlsFileError naming the file at fault.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _harden(context)
    _load_chain(context, certificate, key)
    if client_ca is not None:
        _load_ca(context, client_ca)
        context.verify_mode = ssl.CERT_REQUIRED
        if client_crl is not None:
            _load_crl(context, client_crl)
    return context


def client_context(
    *,
    ca: Path | None = None,
    crl: Path | None = None,
    certificate: Path | None = None,
    key: Path | None = None,
    bindings: Sequence[str] = (),
) -> ssl.SSLContext:
    """A context for calling: the peer's certificate must name its host, and be of ``ca`` or of the system's;
    and, with ``crl``, not one that this revocation list (PEM) of ``ca`` names; past its end nobody is called.

    With ``bindings`` (:attr:`RemoteAe.certificates`) it must be one of those instead of naming the host:
    few devices have a certificate with their address in it. Fingerprints alone need no authority: they name
    the very certificate. ``certificate`` and ``key`` are what we show.

    Raises TlsFileError naming the file at fault.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    _harden(context)
    if bindings:
        context.check_hostname = False
        context.sslobject_class = _bound_to(tuple(bindings))
    if bindings and all(binding.lower().startswith(FINGERPRINT) for binding in bindings):
        context.verify_mode = ssl.CERT_NONE  # the handshake fails unless the fingerprint fits
    elif ca is not None:
        _load_ca(context, ca)
        if crl is not None:
            _load_crl(context, crl)
    else:
        context.load_default_certs(ssl.Purpose.SERVER_AUTH)
    if certificate is not None and key is not None:
        _load_chain(context, certificate, key)
    return context


def why_no_tls(error: BaseException) -> str:
    """Why a handshake failed, in words for the log; "" when the peer only closed the connection."""
    cause = error.__cause__
    if isinstance(cause, ssl.SSLCertVerificationError):
        return f"the certificate: {getattr(cause, 'verify_message', '') or cause}"
    if isinstance(cause, ssl.SSLError) and cause.reason and not isinstance(cause, ssl.SSLEOFError):
        if cause.reason == "WRONG_VERSION_NUMBER":  # OpenSSL's word for bytes that are no record of TLS
            return "the other side speaks no TLS, or none that is known here"
        return cause.reason.lower().replace("_", " ")
    return ""


def _bound_to(bindings: tuple[str, ...]) -> type[ssl.SSLObject]:
    """A connection whose handshake fails unless the other side's certificate is one of ``bindings``."""

    class BoundConnection(ssl.SSLObject):
        def do_handshake(self) -> None:
            super().do_handshake()
            der = self.getpeercert(binary_form=True)
            if der is None or not PeerCertificate.of(der).is_one_of(bindings):
                raise ssl.SSLCertVerificationError("its certificate is not one that this AE is bound to")

    return BoundConnection


def _harden(context: ssl.SSLContext) -> None:
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION | ssl.OP_CIPHER_SERVER_PREFERENCE
    context.set_ciphers(_CIPHERS)


def _load_chain(context: ssl.SSLContext, certificate: Path, key: Path) -> None:
    try:
        # an encrypted key fails here: the default would ask on the terminal, and wait for ever
        context.load_cert_chain(certificate, key, password=lambda: b"")
    except (ssl.SSLError, OSError, ValueError) as error:
        raise TlsFileError(f"{certificate} and {key} are not a PEM certificate and its key") from error


def _load_ca(context: ssl.SSLContext, ca: Path) -> None:
    try:
        context.load_verify_locations(ca)
    except (ssl.SSLError, OSError) as error:
        raise TlsFileError(f"{ca} holds no PEM certificates") from error


def _load_crl(context: ssl.SSLContext, crl: Path) -> None:
    try:
        found = b"BEGIN X509 CRL" in crl.read_bytes()
        context.load_verify_locations(crl)
    except (ssl.SSLError, OSError) as error:
        raise TlsFileError(f"{crl} holds no PEM revocation list") from error
    if not found:
        raise TlsFileError(f"{crl} holds no PEM revocation list")
    context.verify_flags |= ssl.VerifyFlags.VERIFY_CRL_CHECK_LEAF
