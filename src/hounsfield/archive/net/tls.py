"""TLS contexts for DICOM (PS3.15 B.12, BCP 195): version 1.2 and up, forward secrecy, AEAD ciphers."""

from __future__ import annotations

import ssl
from pathlib import Path

from hounsfield.archive.net.errors import TlsError

__all__ = ["client_context", "server_context"]

# TLS 1.2 with (EC)DHE and AEAD only; 1.3's suites are all of that kind and are not listed here.
_CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20:DHE+AESGCM:!aNULL"


def server_context(certificate: Path, key: Path, *, client_ca: Path | None = None) -> ssl.SSLContext:
    """A context for a listener. With ``client_ca`` callers must show a certificate of that authority.

    Raises TlsError naming the file at fault.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _harden(context)
    _load_chain(context, certificate, key)
    if client_ca is not None:
        _load_ca(context, client_ca)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def client_context(
    *, ca: Path | None = None, certificate: Path | None = None, key: Path | None = None
) -> ssl.SSLContext:
    """A context for calling: the peer's certificate must name its host, and be of ``ca`` or of the system's.

    ``certificate`` and ``key`` are what we show. Raises TlsError naming the file at fault.
    """
    context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH)
    _harden(context)
    if ca is not None:
        _load_ca(context, ca)
    if certificate is not None and key is not None:
        _load_chain(context, certificate, key)
    return context


def _harden(context: ssl.SSLContext) -> None:
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    context.set_ciphers(_CIPHERS)


def _load_chain(context: ssl.SSLContext, certificate: Path, key: Path) -> None:
    try:
        context.load_cert_chain(certificate, key)
    except (ssl.SSLError, OSError) as error:
        raise TlsError(f"{certificate} and {key} are not a PEM certificate and its key") from error


def _load_ca(context: ssl.SSLContext, ca: Path) -> None:
    try:
        context.load_verify_locations(ca)
    except (ssl.SSLError, OSError) as error:
        raise TlsError(f"{ca} holds no PEM certificates") from error
