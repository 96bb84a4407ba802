"""The rules between keys: what the archive refuses to open to a network.

Loopback is free of ceremony, so that a first try needs no certificate. Anything further away needs what a
hospital network needs; there is no switch that turns the rules off.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final, Protocol

from hounsfield.archive.config.entities import check_ae
from hounsfield.archive.config.sections import Config, DicomListener, HttpListener
from hounsfield.archive.errors import ConfigError, UnsafeConfigError

# What browsers send as Origin (RFC 6454 6.2); a slash at the end is forgiven.
_ORIGIN: Final = re.compile(
    r"[A-Za-z][A-Za-z0-9+.-]*://(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~-]+)(:[0-9]{1,5})?/?", re.ASCII
)


def is_loopback(host: str) -> bool:
    """Whether a listener on ``host`` can be reached from this machine only. Names, except localhost: no."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def check_safety(config: Config) -> list[str]:
    """Raise UnsafeConfigError for the first broken rule; else return what must be announced at start."""
    announcements: list[str] = []
    _check_networks(config)
    _check_entities(config)
    _check_origins(config)
    _check_identity(config)
    _check_client_tls(config)
    if not config.dicom.listeners and not config.http.listeners:
        raise ConfigError("nothing to listen on: give dicom.listeners or http.listeners at least one entry")
    for number, dicom in enumerate(config.dicom.listeners):
        announcements += _check_dicom(config, dicom, f"dicom.listeners[{number}] ({dicom.host}:{dicom.port})")
    for number, http in enumerate(config.http.listeners):
        _check_http(config, http, f"http.listeners[{number}] ({http.host}:{http.port})")
    for key, names in (("deletion_by", config.http.deletion_by), ("tiering_by", config.http.tiering_by)):
        if names and not config.http.bearer_token_file:
            raise ConfigError(
                f"http.{key} names holders of bearer tokens, and there are none: set http.bearer_token_file"
            )
    for font in config.rendered.fonts:
        if not Path(font).is_file():
            raise ConfigError(f"rendered.fonts: no such file: {font}")
    if not config.keys.master_key:
        announcements.append("no keys.master_key is set: the archive is sealed with a development key")
    return announcements


def _check_entities(config: Config) -> None:
    titles = [ae.title for ae in config.aes]
    asked_for = any(listener.tls_client_ca for listener in config.dicom.listeners)
    for ae in config.aes:
        check_ae(ae, f"aes {ae.title!r}")
        if titles.count(ae.title) > 1:
            raise ConfigError(f"aes: {ae.title!r} is listed more than once; keep one entry per title")
        if ae.certificates and ae.sources and not asked_for:
            raise ConfigError(
                f"aes {ae.title!r} is bound to a certificate, and nobody is asked for one: "
                "set tls_client_ca of the listener that it calls"
            )


def _check_dicom(config: Config, listener: DicomListener, name: str) -> list[str]:
    _check_tls_pair(listener, name)
    if is_loopback(listener.host):
        return []
    _refuse_development_key(config, name)
    if listener.identity_required and not listener.tls:
        raise UnsafeConfigError(
            f"{name} asks for passcodes and tokens, which anybody on its network could read: "
            "identity_required needs tls_certificate and tls_key"
        )
    dicom = config.dicom
    has_pairs = any(ae.sources for ae in config.aes)
    if not has_pairs and not (dicom.calling_titles and dicom.sources):
        missing = "dicom.calling_titles" if not dicom.calling_titles else "dicom.sources"
        raise UnsafeConfigError(
            f"{name} can be reached from other machines, which needs both an AE and "
            f"a source-address allow-list: set {missing} too, or give an [[aes]] entry "
            f"its sources; or listen on 127.0.0.1"
        )
    if bool(dicom.calling_titles) != bool(dicom.sources):
        missing = "dicom.calling_titles" if not dicom.calling_titles else "dicom.sources"
        raise UnsafeConfigError(
            f"{name}: dicom.calling_titles and dicom.sources go together beyond loopback: set {missing} too"
        )
    _refuse_everywhere((*dicom.sources, *(source for ae in config.aes for source in ae.sources)), name)
    if listener.tls:
        return []
    if not listener.plain:
        raise UnsafeConfigError(
            f"{name} would carry images and names unencrypted over a network: give it "
            f"tls_certificate and tls_key, or permit it with plain = true where devices speak nothing else"
        )
    return [f"{name} speaks plain DICOM: everything on it can be read by the network it is on"]


class StreamListener(Protocol):
    """Where a plugin listens for a protocol of its own."""

    @property
    def host(self) -> str: ...
    @property
    def sources(self) -> tuple[str, ...]: ...
    @property
    def plain(self) -> bool: ...
    @property
    def tls_certificate(self) -> str: ...
    @property
    def tls_key(self) -> str: ...
    @property
    def tls_client_ca(self) -> str: ...


def check_stream_listener(config: Config, listener: StreamListener, name: str) -> list[str]:
    """What must be announced of a listener of a plugin. Raises UnsafeConfigError and ConfigError."""
    if bool(listener.tls_certificate) != bool(listener.tls_key):
        missing = "tls_key" if listener.tls_certificate else "tls_certificate"
        raise ConfigError(f"{name}: tls_certificate and tls_key go together: set {missing} too")
    if listener.tls_client_ca and not listener.tls_certificate:
        raise ConfigError(f"{name}: tls_client_ca needs tls_certificate and tls_key")
    _check_files(name, (listener.tls_certificate, listener.tls_key, listener.tls_client_ca))
    _check_sources(f"{name} sources", listener.sources)
    if is_loopback(listener.host):
        return []
    _refuse_development_key(config, name)
    if not listener.sources:
        raise UnsafeConfigError(
            f"{name} can be reached from other machines, which needs a source-address allow-list: "
            "set its sources; or listen on 127.0.0.1"
        )
    _refuse_everywhere(listener.sources, name)
    if listener.tls_certificate:
        return []
    if not listener.plain:
        raise UnsafeConfigError(
            f"{name} would carry names unencrypted over a network: give it tls_certificate and tls_key, or "
            "permit it with plain = true where others speak nothing else"
        )
    return [f"{name} has no TLS: everything on it can be read by the network it is on"]


def _check_http(config: Config, listener: HttpListener, name: str) -> None:
    _check_tls_pair(listener, name)
    if is_loopback(listener.host):
        return
    _refuse_development_key(config, name)
    if not listener.tls:
        raise UnsafeConfigError(
            f"{name} can be reached from other machines, which needs TLS: set tls_certificate and tls_key, "
            f"or listen on 127.0.0.1 behind a proxy that has them"
        )
    if not config.http.bearer_token_file:
        raise UnsafeConfigError(
            f"{name} can be reached from other machines, which needs authentication: "
            f"set http.bearer_token_file"
        )


def _check_tls_pair(listener: DicomListener | HttpListener, name: str) -> None:
    if bool(listener.tls_certificate) != bool(listener.tls_key):
        missing = "tls_key" if listener.tls_certificate else "tls_certificate"
        raise ConfigError(f"{name}: tls_certificate and tls_key go together: set {missing} too")
    if isinstance(listener, DicomListener) and listener.tls_client_ca and not listener.tls:
        raise ConfigError(f"{name}: tls_client_ca needs tls_certificate and tls_key")
    files = [listener.tls_certificate, listener.tls_key]
    if isinstance(listener, DicomListener):
        if listener.tls_client_crl and not listener.tls_client_ca:
            raise ConfigError(f"{name}: tls_client_crl needs tls_client_ca")
        files += [listener.tls_client_ca, listener.tls_client_crl]
    _check_files(name, files)


def _check_files(name: str, files: Iterable[str]) -> None:
    for file in files:
        if file and not Path(file).is_file():
            raise ConfigError(f"{name}: no such file: {file}")


def _check_client_tls(config: Config) -> None:
    dicom = config.dicom
    if bool(dicom.tls_client_certificate) != bool(dicom.tls_client_key):
        missing = "tls_client_key" if dicom.tls_client_certificate else "tls_client_certificate"
        raise ConfigError(
            f"dicom.tls_client_certificate and dicom.tls_client_key go together: set dicom.{missing} too"
        )
    if dicom.tls_client_crl and not dicom.tls_client_ca:
        raise ConfigError("dicom.tls_client_crl needs dicom.tls_client_ca, the authority whose list it is")
    files = (dicom.tls_client_certificate, dicom.tls_client_key, dicom.tls_client_ca, dicom.tls_client_crl)
    _check_files("dicom", files)


def _check_identity(config: Config) -> None:
    identity = config.identity
    if identity.jwt_keys or identity.jwt_secret_file:
        for key in ("jwt_issuer", "jwt_audience", "jwt_user_claim"):
            if not getattr(identity, key):
                raise ConfigError(
                    f"identity.{key} is not set: a token would be taken that was made for somebody else"
                )
    _check_files("identity", (*identity.jwt_keys, identity.jwt_secret_file))


def _refuse_development_key(config: Config, name: str) -> None:
    if not config.keys.master_key:
        raise UnsafeConfigError(
            f"{name} can be reached from other machines, and the archive would be sealed with "
            f'a development key: set keys.master_key, for example "file:/etc/hounsfield/master.key", '
            f"or listen on 127.0.0.1"
        )


def _check_networks(config: Config) -> None:
    _check_sources("dicom.sources", config.dicom.sources)
    _check_sources("http.trusted_proxies", config.http.trusted_proxies)


def _check_sources(name: str, sources: Iterable[str]) -> None:
    for source in sources:
        try:
            ipaddress.ip_network(source, strict=False)
        except ValueError:
            raise ConfigError(
                f"{name}: {source!r} is not an address or network; write 192.0.2.7 or 192.0.2.0/24"
            ) from None


def _refuse_everywhere(sources: Iterable[str], name: str) -> None:
    for source in sources:
        if ipaddress.ip_network(source, strict=False).prefixlen == 0:
            raise UnsafeConfigError(
                f"{name}: the source {source} lets every address in; name the networks you mean"
            )


def _check_origins(config: Config) -> None:
    for origin in config.http.cors_origins:
        if origin != "*" and not _ORIGIN.fullmatch(origin):
            raise ConfigError(
                f"http.cors_origins: {origin!r} is not an origin; write https://viewer.example, or * for all"
            )
