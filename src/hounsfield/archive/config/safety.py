"""The rules between keys: what the archive refuses to open to a network.

Loopback is free of ceremony, so that a first try needs no certificate. Anything further away needs what a
hospital network needs; there is no switch that turns the rules off.
"""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import Final

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
    _check_origins(config)
    if not config.dicom.listeners and not config.http.listeners:
        raise ConfigError("nothing to listen on: give dicom.listeners or http.listeners at least one entry")
    for number, dicom in enumerate(config.dicom.listeners):
        announcements += _check_dicom(config, dicom, f"dicom.listeners[{number}] ({dicom.host}:{dicom.port})")
    for number, http in enumerate(config.http.listeners):
        _check_http(config, http, f"http.listeners[{number}] ({http.host}:{http.port})")
    if config.http.deletion_by and not config.http.bearer_token_file:
        raise ConfigError(
            "http.deletion_by names holders of bearer tokens, and there are none: set http.bearer_token_file"
        )
    for font in config.rendered.fonts:
        if not Path(font).is_file():
            raise ConfigError(f"rendered.fonts: no such file: {font}")
    if not config.keys.master_key:
        announcements.append("no keys.master_key is set: the archive is sealed with a development key")
    titles = [ae.title for ae in config.aes]
    for title in titles:
        if titles.count(title) > 1:
            raise ConfigError(f"aes: {title!r} is listed more than once; keep one entry per title")
    return announcements


def _check_dicom(config: Config, listener: DicomListener, name: str) -> list[str]:
    _check_tls_pair(listener, name)
    if is_loopback(listener.host):
        return []
    _refuse_development_key(config, name)
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
    for source in (*dicom.sources, *(source for ae in config.aes for source in ae.sources)):
        if ipaddress.ip_network(source, strict=False).prefixlen == 0:
            raise UnsafeConfigError(
                f"{name}: the source {source} lets every address in; name the networks you mean"
            )
    if listener.tls:
        return []
    if not listener.plain:
        raise UnsafeConfigError(
            f"{name} would carry images and names unencrypted over a network: give it "
            f"tls_certificate and tls_key, or permit it with plain = true where devices speak nothing else"
        )
    return [f"{name} speaks plain DICOM: everything on it can be read by the network it is on"]


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
    for file in (listener.tls_certificate, listener.tls_key):
        if file and not Path(file).is_file():
            raise ConfigError(f"{name}: no such file: {file}")


def _refuse_development_key(config: Config, name: str) -> None:
    if not config.keys.master_key:
        raise UnsafeConfigError(
            f"{name} can be reached from other machines, and the archive would be sealed with "
            f'a development key: set keys.master_key, for example "file:/etc/hounsfield/master.key", '
            f"or listen on 127.0.0.1"
        )


def _check_networks(config: Config) -> None:
    lists = [("dicom.sources", config.dicom.sources), ("http.trusted_proxies", config.http.trusted_proxies)]
    lists += [(f"aes {ae.title!r} sources", ae.sources) for ae in config.aes]
    for name, sources in lists:
        for source in sources:
            try:
                ipaddress.ip_network(source, strict=False)
            except ValueError:
                raise ConfigError(
                    f"{name}: {source!r} is not an address or network; write 192.0.2.7 or 192.0.2.0/24"
                ) from None


def _check_origins(config: Config) -> None:
    for origin in config.http.cors_origins:
        if origin != "*" and not _ORIGIN.fullmatch(origin):
            raise ConfigError(
                f"http.cors_origins: {origin!r} is not an origin; write https://viewer.example, or * for all"
            )
