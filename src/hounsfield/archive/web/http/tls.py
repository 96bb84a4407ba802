"""TLS: contexts with sane defaults, and what an application may know of the peer's certificate."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

from .errors import TlsConfigError


def server_context(
    certificate: Path, key: Path, *, client_ca: Path | None = None, require_client_certificate: bool = True
) -> ssl.SSLContext:
    """A context for :class:`~.server.HttpServer`: TLS 1.2 and up, forward secrecy, no compression, HTTP/1.1
    by ALPN.

    ``client_ca`` asks clients for a certificate of that authority (mutual TLS); without
    ``require_client_certificate`` they may do without. Raises :class:`TlsConfigError` naming the file at
    fault.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION | ssl.OP_CIPHER_SERVER_PREFERENCE
    # TLS 1.2 with (EC)DHE and AEAD only; 1.3's suites are all of that kind and are not listed here.
    context.set_ciphers("ECDHE+AESGCM:ECDHE+CHACHA20:!aNULL")
    context.set_alpn_protocols(["http/1.1"])
    for path in filter(None, (certificate, key, client_ca)):
        if not path.is_file():
            raise TlsConfigError(f"{path} is missing or not a file: check the TLS settings")
    try:
        context.load_cert_chain(certificate, key)
    except (ssl.SSLError, OSError) as error:
        raise TlsConfigError(f"{certificate} and {key} are not a PEM certificate and its key") from error
    if client_ca is not None:
        try:
            context.load_verify_locations(client_ca)
        except (ssl.SSLError, OSError) as error:
            raise TlsConfigError(f"{client_ca} holds no PEM certificates") from error
        context.verify_mode = ssl.CERT_REQUIRED if require_client_certificate else ssl.CERT_OPTIONAL
    return context


def peer_info(tls: ssl.SSLSocket) -> dict[str, Any]:
    """ASGI's ``tls`` extension for a socket whose handshake is done."""
    der = tls.getpeercert(binary_form=True)
    name = None
    chain: list[str] = []
    if der:
        from cryptography import x509

        name = x509.load_der_x509_certificate(der).subject.rfc4514_string()
        chain.append(ssl.DER_cert_to_PEM_cert(der))
    version = {"TLSv1.2": 0x0303, "TLSv1.3": 0x0304}.get(tls.version() or "")
    return {
        "server_cert": None,
        "client_cert_chain": chain,
        "client_cert_name": name,
        "client_cert_error": None,
        "tls_version": version,
        "cipher_suite": None,
    }
