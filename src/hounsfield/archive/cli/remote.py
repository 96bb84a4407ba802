"""What the commands that call somebody share: who the other side is, how to reach it, and as whom."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from hounsfield.archive.cli.options import Seconds, split_address
from hounsfield.archive.cli.output import EXIT_USAGE, Failed

if TYPE_CHECKING:
    import ssl

    from hounsfield.archive.config import Config, RemoteAE
    from hounsfield.archive.net.scu import RemoteEntity
    from hounsfield.archive.wire import UserIdentity

Command = TypeVar("Command", bound=Callable[..., Any])

# The item it is sent in has 65,535 at most, and the proposals of a hundred classes need ten thousand of them.
IDENTITY_BYTES_MAX = 50_000
TITLE_CHARS_SHOWN_MAX = 64


def remote_options(function: Command) -> Command:
    """Whom to call, and how: ``--calling --called --tls… --user --passcode --jwt --timeout``."""
    file = click.Path(path_type=Path, exists=True, dir_okay=False)
    for option in (
        click.option(
            "--timeout",
            type=Seconds(min=0.1, max=86_400),
            default=60.0,
            show_default=True,
            help="Seconds to wait for an answer.",
        ),
        click.option("--jwt", metavar="SOURCE", help="Our user's JSON Web Token: file:PATH or env:NAME."),
        click.option(
            "--passcode", metavar="SOURCE", help="Our user's passcode: file:PATH, env:NAME, or ask."
        ),
        click.option("--user", metavar="NAME", help="Tell the other side who our user is."),
        click.option("--tls-key", type=file, help="The key of that certificate (PEM)."),
        click.option("--tls-certificate", type=file, help="The certificate to show (PEM)."),
        click.option("--tls-crl", type=file, help="But none that this list of it revokes (PEM)."),
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
    tls_crl: Path | None,
    tls_certificate: Path | None,
    tls_key: Path | None,
    user: str | None,
    passcode: str | None,
    jwt: str | None,
) -> RemoteEntity:
    """Who ``target`` is. Raises Failed for a title nobody knows, BadParameter for an address that is none."""
    from hounsfield.archive.config import RemoteAE
    from hounsfield.archive.net.scu import RemoteEntity

    title, at, address = target.rpartition("@")
    if at or ":" in target:
        host, port = split_address(address, "target")
        ae = RemoteAE(title=title or config.archive.ae_title, host=host, port=port)
    else:
        ae = _known(target, config)
        if not ae.host:
            raise Failed(
                f"{target} only calls us: no address of it is known; write {target}@HOST:PORT", EXIT_USAGE
            )
    if bool(tls_certificate) != bool(tls_key):
        raise Failed("--tls-certificate and --tls-key go together: give both", EXIT_USAGE)
    context: ssl.SSLContext | None = None
    if tls_crl and not tls_ca:
        raise Failed("--tls-crl goes with --tls-ca, the authority whose list it is", EXIT_USAGE)
    if tls or tls_ca or tls_certificate or ae.tls:
        context = _tls(ae, config, (tls_ca, tls_crl), tls_certificate, tls_key)
    return RemoteEntity(
        ae.host,
        ae.port,
        called_ae=ae_title(called or ae.called_title or ae.title, "called"),
        calling_ae=ae_title(calling or ae.calling_title or config.archive.ae_title, "calling"),
        tls=context,
        identity=_identity(user, passcode, jwt),
    )


def _tls(
    ae: RemoteAE,
    config: Config,
    authority: tuple[Path | None, Path | None],
    certificate: Path | None,
    key: Path | None,
) -> ssl.SSLContext:
    """What the options say, else the AE's own entry, else the configuration for all."""
    from hounsfield.archive.net.tls import client_context

    if certificate is None:
        own = (ae.tls_certificate, ae.tls_key) if ae.tls_certificate else (
            config.dicom.tls_client_certificate, config.dicom.tls_client_key
        )  # fmt: skip
        certificate, key = (Path(name) if name else None for name in own)
    bindings = () if authority[0] else ae.certificates
    if authority[0] is None:
        dicom = config.dicom
        trusted = (ae.tls_ca, ae.tls_crl) if ae.tls_ca else (dicom.tls_client_ca, dicom.tls_client_crl)
        authority = (Path(trusted[0]) if trusted[0] else None, Path(trusted[1]) if trusted[1] else None)
    ca, crl = authority
    return client_context(ca=ca, crl=crl, certificate=certificate, key=key, bindings=bindings)


def listening_tls(listen: str | None, words: dict[str, Any]) -> ssl.SSLContext:
    """What ``--listen-tls`` means with these words of :func:`remote_options`: callers show a certificate of
    ``--tls-ca``, where that is given."""
    from hounsfield.archive.net.tls import server_context

    if listen is None:
        raise Failed("--listen-tls goes with --listen", EXIT_USAGE)
    if words["tls_certificate"] is None or words["tls_key"] is None:
        raise Failed("--listen-tls needs --tls-certificate and --tls-key", EXIT_USAGE)
    return server_context(
        words["tls_certificate"], words["tls_key"], client_ca=words["tls_ca"], client_crl=words["tls_crl"]
    )


def _identity(user: str | None, passcode: str | None, jwt: str | None) -> UserIdentity | None:
    """Who our user is (PS3.7 D.3.3.7); the peer is asked to say that it heard."""
    from hounsfield.archive.wire import IdentityType, UserIdentity

    if jwt is not None:
        if user is not None or passcode is not None:
            raise Failed("--jwt says by itself who the user is: leave out --user and --passcode", EXIT_USAGE)
        token = _field(secret(jwt, "--jwt"), "--jwt")
        return UserIdentity(IdentityType.JWT, token, response_requested=True)
    if user is None:
        if passcode is not None:
            raise Failed("--passcode goes with --user", EXIT_USAGE)
        return None
    name = _field(user, "--user")
    if passcode is None:
        return UserIdentity(IdentityType.USERNAME, name, response_requested=True)
    word = (
        click.prompt("Passcode", hide_input=True, err=True)
        if passcode == "ask"
        else secret(passcode, "--passcode", " or ask")
    )
    return UserIdentity(
        IdentityType.USERNAME_PASSCODE, name, _field(str(word), "--passcode"), response_requested=True
    )


def _field(text: str, option: str) -> bytes:
    """As it is sent. Raises Failed for what cannot be anybody's name or secret."""
    field = text.encode(errors="surrogateescape")
    if not text.strip():
        raise Failed(f"{option} is empty", EXIT_USAGE)
    if len(field) > IDENTITY_BYTES_MAX // 2:
        raise Failed(f"{option} is longer than {IDENTITY_BYTES_MAX // 2} bytes", EXIT_USAGE)
    return field


def secret(source: str, option: str, more: str = "") -> str:
    """What ``file:PATH`` or ``env:NAME`` holds: an argument is seen by everybody on the machine."""
    kind, _, name = source.partition(":")
    if kind == "file" and name:
        try:
            text = Path(name).expanduser().read_text("utf-8")
        except (OSError, UnicodeError) as error:
            raise Failed(f"{option}: {name} cannot be read", EXIT_USAGE) from error
        if not text.strip():
            raise Failed(f"{option}: {name} is empty", EXIT_USAGE)
    elif kind == "env" and name:
        text = os.environ.get(name, "")
        if not text:
            raise Failed(f"{option}: the environment has no {name}", EXIT_USAGE)
    else:
        raise Failed(f"{option} says where it is, not what it is: file:PATH or env:NAME{more}", EXIT_USAGE)
    return text.strip()


def ae_title(title: str, which: str) -> str:
    """A title as it is sent (PS3.5 6.2, VR AE). Raises Failed for one that cannot be."""
    title = title.strip(" ")
    if not 1 <= len(title) <= 16 or not (title.isascii() and title.isprintable()) or "\\" in title:
        shown = repr(title[:TITLE_CHARS_SHOWN_MAX])
        raise Failed(f"the {which} AE title {shown} must be 1 to 16 ASCII characters", EXIT_USAGE)
    return title


def _known(title: str, config: Config) -> RemoteAE:
    """The AE of that title: the configuration's, else one that the archive keeps."""
    for ae in config.aes:
        if ae.title == title:
            return ae
    import msgspec

    from hounsfield.archive.app.opening import open_archive
    from hounsfield.archive.config import RemoteAE
    from hounsfield.archive.errors import DataDirectoryError

    if not title:
        raise Failed("the target is empty: write AE@HOST:PORT, or the title of a known AE", EXIT_USAGE)
    hint = f"write AE@HOST:PORT, or `hounsfield ae add {title} HOST:PORT`"
    try:
        with open_archive(config) as archive:
            known = archive.call("ae-list")
    except DataDirectoryError as error:
        raise Failed(
            f"no AE {title} in config.toml, and no archive to ask ({error}); {hint}", EXIT_USAGE
        ) from error
    for body in known:
        if body["title"] == title:
            body.pop("configured", None)
            return msgspec.convert(body, RemoteAE)
    raise Failed(f"no AE {title} is known; {hint}", EXIT_USAGE)
