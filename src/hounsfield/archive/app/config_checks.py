"""Whether a server would run with a configuration: the rules between its keys, and the files that it names.

Cheap at the start of a server, which has little of the network layer and none of the engine; whole before a
reload, and for `hounsfield config check`.
"""

from __future__ import annotations

from hounsfield.archive.app.listeners import check_token_file
from hounsfield.archive.app.plugins import check_plugins, listens_of
from hounsfield.archive.config import Config, check_safety


def check_for_start(config: Config) -> list[str]:
    """What must be announced. Raises HounsfieldError when a server must not start with this.

    Certificates are read by the workers, which say so when they cannot.
    """
    announcements = check_safety(config)
    _check_rules(config)
    announcements += check_plugins(config)
    check_token_file(config)
    return announcements


def check_whole(config: Config) -> list[str]:
    """As :func:`check_for_start`, and the certificates and keys of listeners, AEs and ours, too."""
    from hounsfield.archive.app.ae_registry import remote_ae
    from hounsfield.archive.app.certificates import check_files  # most of the network layer: not at start

    announcements = check_safety(config)
    check_token_file(config)
    check_files(config, map(remote_ae, config.aes))
    _check_rules(config)
    announcements += check_plugins(config)
    return announcements


def ending_certificates(config: Config) -> list[str]:
    """Those of ours that have ended, or will soon."""
    files = [config.dicom.tls_client_certificate, *(ae.tls_certificate for ae in config.aes)]
    files += [config.dicom.tls_client_crl, *(ae.tls_crl for ae in config.aes)]
    files += [each.tls_certificate for each in config.dicom.listeners]
    files += [each.tls_certificate for each in config.http.listeners]
    files += [each.tls_certificate for _, each in listens_of(config)]
    if not any(files):
        return []
    from hounsfield.archive.app.certificates import running_out

    return running_out(config)


def _check_rules(config: Config) -> None:
    if config.routes or config.coercions:
        from hounsfield.archive.app.route_options import check_rules  # most archives have none

        check_rules(config)
    if config.tiers or config.tier_rules:
        from hounsfield.archive.app.tier_options import check_tiers

        check_tiers(config)
