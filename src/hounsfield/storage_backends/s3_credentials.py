"""Where the keys of a bucket come from. They are never shown: in no ``repr``, message, dump or pickle."""

from __future__ import annotations

import configparser
import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from hounsfield.storage_backends.object_store import StoreRefusedError

if TYPE_CHECKING:
    from obstore.store import S3Credential

__all__ = ["ANONYMOUS", "WHAT_THEY_ARE", "CredentialSource", "credential_source", "names_a_source"]

ANONYMOUS = "anonymous"
# What was given is not repeated: it may be a key, put in the wrong place.
WHAT_THEY_ARE = "credentials are default, anonymous, profile:NAME, file:PATH, env:NAME or credential:NAME"

_SCHEMES = frozenset({"profile", "file", "env", "credential"})
_SOURCE_BYTES_MAX = 16384  # two keys and a token are 2 KB; a file of profiles has some dozens
_READ_AGAIN = timedelta(minutes=10)  # so that keys that were replaced in a file are used without a restart


@dataclass(frozen=True, slots=True)
class _Keys:
    access_key_id: str
    secret_access_key: str
    token: str | None = None


class CredentialSource:
    """Gives obstore the keys whenever it asks, read afresh from where they are kept."""

    __slots__ = ("_read", "name")

    def __init__(self, name: str, read: Callable[[], _Keys]) -> None:
        self.name = name
        self._read = read

    def __call__(self) -> S3Credential:
        """The keys, and until when to use them without asking again. ``StoreRefusedError``."""
        keys = self._read()
        return {
            "access_key_id": keys.access_key_id,
            "secret_access_key": keys.secret_access_key,
            "token": keys.token,
            "expires_at": datetime.now(UTC) + _READ_AGAIN,
        }

    def __repr__(self) -> str:
        return f"<CredentialSource {self.name}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("keys are never serialised")


def names_a_source(spec: str) -> bool:
    """Whether ``spec`` says where keys are, rather than being some: only then may it be shown."""
    scheme, _, rest = spec.partition(":")
    return spec in {ANONYMOUS, "default"} or (scheme in _SCHEMES and bool(rest))


def credential_source(spec: str) -> CredentialSource | None:
    """The source that ``spec`` names, tried once; ``StoreRefusedError`` that says what is wrong with it.

    ``default``: the environment (``AWS_ACCESS_KEY_ID``, ``AWS_SECRET_ACCESS_KEY``, ``AWS_SESSION_TOKEN``),
    else the shared credentials file (``AWS_SHARED_CREDENTIALS_FILE`` or ``~/.aws/credentials``; the profile
    ``AWS_PROFILE`` or ``default``), else None: obstore asks the web identity, container or instance
    metadata service itself. | ``profile:NAME`` of the shared credentials file. | ``file:PATH``,
    ``env:NAME`` or ``credential:NAME`` (systemd: ``$CREDENTIALS_DIRECTORY/NAME``), whose content is
    ``ID:SECRET`` or ``ID:SECRET:TOKEN``. | ``anonymous``: None, and nothing is signed.
    """
    scheme, _, rest = spec.partition(":")
    if spec == ANONYMOUS:
        return None
    if spec == "default":
        return _default()
    if not names_a_source(spec):
        raise StoreRefusedError(WHAT_THEY_ARE)
    if scheme == "profile":
        path = _shared_file()
        source = CredentialSource(f"profile {rest} of {path}", lambda: _of_profile(path, rest))
    elif scheme == "env":
        source = CredentialSource(f"environment variable {rest}", lambda: _of_variable(rest))
    elif scheme == "credential":
        folder = os.environ.get("CREDENTIALS_DIRECTORY")
        if not folder:
            raise StoreRefusedError(
                f"credential {rest}: systemd set no $CREDENTIALS_DIRECTORY; see LoadCredential="
            )
        source = CredentialSource(f"credential {rest}", lambda: _of_file(Path(folder) / rest))
    else:
        source = CredentialSource(f"file {rest}", lambda: _of_file(Path(rest)))
    source()
    return source


def _default() -> CredentialSource | None:
    if os.environ.get("AWS_ACCESS_KEY_ID") and os.environ.get("AWS_SECRET_ACCESS_KEY"):
        return CredentialSource("the environment", _of_environment)
    path, profile = _shared_file(), os.environ.get("AWS_PROFILE") or "default"
    if os.environ.get("AWS_PROFILE") or _has_profile(path, profile):
        source = CredentialSource(f"profile {profile} of {path}", lambda: _of_profile(path, profile))
        source()
        return source
    return None


def _of_environment() -> _Keys:
    key, secret = os.environ.get("AWS_ACCESS_KEY_ID"), os.environ.get("AWS_SECRET_ACCESS_KEY")
    if not key or not secret:
        raise StoreRefusedError("AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY are not both set any more")
    return _Keys(key, secret, os.environ.get("AWS_SESSION_TOKEN") or None)


def _of_variable(name: str) -> _Keys:
    value = os.environ.get(name)
    if value is None:
        raise StoreRefusedError(f"the environment variable {name}, for the keys of a bucket, is not set")
    return _parsed(value, f"environment variable {name}")


def _of_file(path: Path) -> _Keys:
    return _parsed(_text(path), f"file {path}")


def _parsed(text: str, source: str) -> _Keys:
    parts = text.strip().split(":")
    if len(parts) not in (2, 3) or not all(parts) or any(len(part.split()) != 1 for part in parts):
        raise StoreRefusedError(f"the {source} does not hold ID:SECRET or ID:SECRET:TOKEN on one line")
    return _Keys(*parts)


def _shared_file() -> Path:
    return Path(os.environ.get("AWS_SHARED_CREDENTIALS_FILE") or Path.home() / ".aws" / "credentials")


def _has_profile(path: Path, profile: str) -> bool:
    try:
        return _profiles(path).has_option(profile, "aws_access_key_id")
    except StoreRefusedError:
        return False  # no such file, or nothing for us in it: the metadata services are asked


def _of_profile(path: Path, profile: str) -> _Keys:
    profiles = _profiles(path)
    key = profiles.get(profile, "aws_access_key_id", fallback="").strip()
    secret = profiles.get(profile, "aws_secret_access_key", fallback="").strip()
    if not key or not secret:
        raise StoreRefusedError(f"{path} has no profile {profile!r} with aws_access_key_id and its secret")
    return _Keys(key, secret, profiles.get(profile, "aws_session_token", fallback="").strip() or None)


def _profiles(path: Path) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None, default_section="")
    try:
        parser.read_string(_text(path))
    except configparser.Error as error:
        # The parser's own message shows the line, which may be a key.
        raise StoreRefusedError(f"{path} is not a file of profiles ({type(error).__name__})") from None
    return parser


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(_SOURCE_BYTES_MAX + 1)
        if len(content) > _SOURCE_BYTES_MAX:
            raise StoreRefusedError(f"{path} is larger than {_SOURCE_BYTES_MAX} bytes: it holds no keys")
        return content.decode()
    except OSError as error:
        raise StoreRefusedError(
            f"the keys of a bucket cannot be read from {path}: {error.strerror}"
        ) from None
    except UnicodeDecodeError:
        raise StoreRefusedError(f"{path} is not text") from None
