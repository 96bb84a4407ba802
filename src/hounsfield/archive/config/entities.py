"""The rules for one remote application entity, from config.toml or from `hounsfield ae`."""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path

from hounsfield.archive.config.sections import RemoteAE
from hounsfield.archive.errors import ConfigError

_TITLE = re.compile(r"^(?! *$)[ -\[\]-~]{1,16}$")  # PS3.5 6.2, VR AE
_UID = re.compile(r"(0|[1-9][0-9]*)(\.(0|[1-9][0-9]*))+")  # PS3.5 9.1
_UID_CHARS_MAX = 64
_HOST_CHARS_MAX = 253
_FINGERPRINT = re.compile(r"sha256:[0-9a-f]{64}")
_HASH = re.compile(r"(sha\d+|md5)[: =]")


def check_ae(ae: RemoteAE, name: str) -> None:
    """Raise ConfigError, beginning with ``name``, for the first key of ``ae`` that cannot be."""
    _check_titles(ae, name)
    if ae.host and not _is_host(ae.host):
        raise ConfigError(f"{name}: {ae.host[:_HOST_CHARS_MAX]!r} is no name or address of a host")
    if not ae.port:
        raise ConfigError(f"{name}: 0 is no port to call: 1 to 65535")
    for source in ae.sources:
        try:
            ipaddress.ip_network(source, strict=False)
        except ValueError:
            raise ConfigError(
                f"{name} sources: {source!r} is not an address or network; write 192.0.2.7 or 192.0.2.0/24"
            ) from None
    for key in ("refused_sop_classes", "refused_transfer_syntaxes", "preferred_transfer_syntaxes"):
        for uid in getattr(ae, key):
            if len(uid) > _UID_CHARS_MAX or not _UID.fullmatch(uid):
                raise ConfigError(f"{name} {key}: {uid!r} is no UID")
    both = set(ae.refused_transfer_syntaxes) & set(ae.preferred_transfer_syntaxes)
    if both:
        raise ConfigError(f"{name}: {min(both)} is among its refused and its preferred transfer syntaxes")
    _check_certificates(ae, name)


def _is_host(text: str) -> bool:
    """Whether a name or address is of a form that can be looked up (RFC 1035 2.3.4, RFC 3490)."""
    if not text.isprintable() or any(character in " /@[]" for character in text):
        return False
    try:
        return len(text.encode("idna")) <= _HOST_CHARS_MAX
    except UnicodeError:
        return False


def _check_titles(ae: RemoteAE, name: str) -> None:
    for key in ("title", "called_title", "calling_title", "commitment_to"):
        title = getattr(ae, key)
        if (title or key == "title") and not _TITLE.fullmatch(title):
            raise ConfigError(
                f"{name}: {title!r} is no AE title: 1 to 16 ASCII characters, no backslash, not only spaces"
            )


def _check_certificates(ae: RemoteAE, name: str) -> None:
    if bool(ae.tls_certificate) != bool(ae.tls_key):
        missing = "tls_key" if ae.tls_certificate else "tls_certificate"
        raise ConfigError(f"{name}: tls_certificate and tls_key go together: set {missing} too")
    if ae.tls_crl and not ae.tls_ca:
        raise ConfigError(f"{name}: tls_crl needs tls_ca, the authority whose list it is")
    for file in (ae.tls_ca, ae.tls_crl, ae.tls_certificate, ae.tls_key):
        if file and not Path(file).is_file():
            raise ConfigError(f"{name}: no such file: {file}")
    for binding in ae.certificates:
        text = binding.strip().lower()
        if not text or not text.isprintable():
            raise ConfigError(f"{name} certificates: {binding!r} is neither sha256:HEX nor a name")
        if _HASH.match(text) and not _FINGERPRINT.fullmatch(text[:7] + text[7:].replace(":", "")):
            raise ConfigError(
                f"{name} certificates: {binding!r}: write sha256: and 64 hexadecimal digits, "
                "as `openssl x509 -noout -fingerprint -sha256` gives them"
            )
