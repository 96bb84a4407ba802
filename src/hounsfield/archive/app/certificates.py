"""The certificates that the configuration names: whether all of them can be used, and when one ends."""

from __future__ import annotations

import ssl
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from hounsfield.archive.app.identities import token_verifier
from hounsfield.archive.app.plugins import listens_of
from hounsfield.archive.config import Config, DicomListener
from hounsfield.archive.errors import ConfigError, HounsfieldError
from hounsfield.archive.net.certificates import ends_at, list_ends_at
from hounsfield.archive.net.destinations import ClientTls, Destinations
from hounsfield.archive.net.errors import TlsError
from hounsfield.archive.net.policy import RemoteAe
from hounsfield.archive.net.tls import server_context

if TYPE_CHECKING:
    from hounsfield.archive.plugins import Listen

__all__ = [
    "ANNOUNCED_DAYS",
    "check_files",
    "client_tls",
    "days_left",
    "listener_context",
    "running_out",
    "stream_context",
]

ANNOUNCED_DAYS = 30
"""A certificate that ends within so many days is announced: renewing one takes a hospital weeks."""
LIST_ANNOUNCED_DAYS = 1
"""A revocation list likewise: many are made anew each day, and afterwards nobody gets in."""
_DAY_S = 86_400


def listener_context(entry: DicomListener) -> ssl.SSLContext | None:
    """The TLS context of a DICOM listener, None for a plain one. Raises TlsError."""
    if not entry.tls:
        return None
    return server_context(
        Path(entry.tls_certificate),
        Path(entry.tls_key),
        client_ca=Path(entry.tls_client_ca) if entry.tls_client_ca else None,
        client_crl=Path(entry.tls_client_crl) if entry.tls_client_crl else None,
    )


def stream_context(listen: Listen) -> ssl.SSLContext | None:
    """The TLS context of a plugin's listener, None for a plain one. Raises TlsError."""
    if not listen.tls_certificate:
        return None
    return server_context(
        Path(listen.tls_certificate),
        Path(listen.tls_key),
        client_ca=Path(listen.tls_client_ca) if listen.tls_client_ca else None,
    )


def client_tls(config: Config) -> ClientTls:
    """What we show and whom we trust when we call."""
    dicom = config.dicom
    return ClientTls(
        dicom.tls_client_certificate, dicom.tls_client_key, dicom.tls_client_ca, dicom.tls_client_crl
    )


def check_files(config: Config, entities: Iterable[RemoteAe]) -> None:
    """Raise ConfigError for the first file of certificates or keys, of DICOM, that cannot be used."""
    destinations = Destinations(dict, tls=client_tls(config))
    try:
        for entry in config.dicom.listeners:
            listener_context(entry)
        for ae in entities:
            destinations.entity(ae)
        token_verifier(config)
        for _, listen in listens_of(config):
            stream_context(listen)
    except HounsfieldError as error:
        raise ConfigError(str(error)) from error


def days_left(config: Config) -> list[tuple[float, str, Path]]:
    """Each certificate of ours: days until it ends (below 0: it has), the key that names it, its file; the
    first to end first. Files that cannot be read are left out: whoever uses them says so.
    """
    now = datetime.now(UTC)
    found = []
    for name, file in _files(config):
        if not file:
            continue
        try:
            end = ends_at(Path(file))
        except TlsError:
            continue
        found.append(((end - now).total_seconds() / _DAY_S, name, Path(file)))
    return sorted(found)


def running_out(config: Config) -> list[str]:
    """What must be announced: certificates that have ended, or will within :data:`ANNOUNCED_DAYS`, and
    revocation lists within :data:`LIST_ANNOUNCED_DAYS`.
    """
    found = [
        f"{name}: the certificate {path} "
        + (f"ends in {days:.0f} days" if days >= 0 else f"ended {-days:.0f} days ago")
        + ": renew it"
        for days, name, path in days_left(config)
        if days < ANNOUNCED_DAYS
    ]
    now = datetime.now(UTC)
    for name, file in _lists(config):
        try:
            hours = (list_ends_at(Path(file)) - now).total_seconds() / 3600
        except TlsError:
            continue
        if hours < 24 * LIST_ANNOUNCED_DAYS:
            when = f"ends in {hours:.0f} hours" if hours >= 0 else f"ended {-hours:.0f} hours ago"
            found.append(
                f"{name}: the revocation list {file} {when}, past its end nobody is trusted: renew it"
            )
    return found


def _files(config: Config) -> Iterator[tuple[str, str]]:
    for number, dicom in enumerate(config.dicom.listeners):
        yield f"dicom.listeners[{number}]", dicom.tls_certificate
    for number, http in enumerate(config.http.listeners):
        yield f"http.listeners[{number}]", http.tls_certificate
    yield "dicom.tls_client_certificate", config.dicom.tls_client_certificate
    for ae in config.aes:
        yield f"aes {ae.title!r}", ae.tls_certificate
    for name, listen in listens_of(config):
        yield name, listen.tls_certificate


def _lists(config: Config) -> Iterator[tuple[str, str]]:
    named = [
        *((f"dicom.listeners[{n}]", entry.tls_client_crl) for n, entry in enumerate(config.dicom.listeners)),
        ("dicom.tls_client_crl", config.dicom.tls_client_crl),
        *((f"aes {ae.title!r}", ae.tls_crl) for ae in config.aes),
    ]
    return ((name, file) for name, file in named if file)
