"""What ``echo`` and ``send`` share: who the other side is, and how to reach it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from hounsfield.archive.cli.options import split_address
from hounsfield.archive.cli.output import EXIT_USAGE, Failed

if TYPE_CHECKING:
    import ssl

    from hounsfield.archive.config import Config, RemoteAE
    from hounsfield.archive.net.scu import RemoteEntity

Command = TypeVar("Command", bound=Callable[..., Any])


def remote_options(function: Command) -> Command:
    """``--calling --called --tls --tls-ca --tls-certificate --tls-key --timeout``."""
    file = click.Path(path_type=Path, exists=True, dir_okay=False)
    for option in (
        click.option(
            "--timeout",
            type=click.FloatRange(min=0.1, max=86_400),
            default=60.0,
            show_default=True,
            help="Seconds to wait for an answer.",
        ),
        click.option("--tls-key", type=file, help="The key of that certificate (PEM)."),
        click.option("--tls-certificate", type=file, help="The certificate to show (PEM)."),
        click.option("--tls-ca", type=file, help="Trust certificates of this authority (PEM)."),
        click.option("--tls", is_flag=True, help="Speak TLS."),
        click.option("--called", metavar="TITLE", help="Call the other side by this AE title."),
        click.option("--calling", metavar="TITLE", help="Our AE title.  [default: archive.ae_title]"),
    ):
        function = option(function)
    return function


def resolve(
    target: str,
    config: Config,
    *,
    calling: str | None,
    called: str | None,
    tls: bool,
    tls_ca: Path | None,
    tls_certificate: Path | None,
    tls_key: Path | None,
) -> RemoteEntity:
    """Who ``target`` is. Raises Failed for a title nobody knows, BadParameter for an address that is none."""
    from hounsfield.archive.net.scu import RemoteEntity

    title, at, address = target.rpartition("@")
    if at or ":" in target:
        host, port = split_address(address, "target")
        title = title or config.archive.ae_title
    else:
        ae = _known(target, config)
        if not ae.host:
            raise Failed(
                f"{target} only calls us: no address of it is known; write {target}@HOST:PORT", EXIT_USAGE
            )
        host, port, title, tls = ae.host, ae.port, ae.title, tls or ae.tls
    if bool(tls_certificate) != bool(tls_key):
        raise Failed("--tls-certificate and --tls-key go together: give both", EXIT_USAGE)
    context: ssl.SSLContext | None = None
    if tls or tls_ca or tls_certificate:
        from hounsfield.archive.net.tls import client_context

        context = client_context(ca=tls_ca, certificate=tls_certificate, key=tls_key)
    return RemoteEntity(
        host,
        port,
        called_ae=_title(called or title, "called"),
        calling_ae=_title(calling or config.archive.ae_title, "calling"),
        tls=context,
    )


def _title(title: str, which: str) -> str:
    title = title.strip()
    if not 1 <= len(title) <= 16 or not title.isascii() or "\\" in title:
        raise Failed(f"the {which} AE title {title!r} must be 1 to 16 ASCII characters", EXIT_USAGE)
    return title


def _known(title: str, config: Config) -> RemoteAE:
    """The AE of that title: the configuration's, else one that the archive keeps."""
    for ae in config.aes:
        if ae.title == title:
            return ae
    import msgspec

    from hounsfield.archive.app.asking import open_archive
    from hounsfield.archive.config import RemoteAE
    from hounsfield.archive.errors import DataDirectoryError

    hint = f"write AE@HOST:PORT, or `hounsfield ae add {title} HOST:PORT`"
    try:
        with open_archive(config) as archive:
            known = archive.call("ae-list")
    except DataDirectoryError as error:
        raise Failed(f"no AE {title} in config.toml, and no archive to ask ({error}); {hint}") from error
    for body in known:
        if body["title"] == title:
            body.pop("configured", None)
            return msgspec.convert(body, RemoteAE)
    raise Failed(f"no AE {title} is known; {hint}", EXIT_USAGE)
