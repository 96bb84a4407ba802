"""Bearer tokens from a file (RFC 6750): who may use the HTTP services, until there are accounts.

One line per token: ``name:token``, or ``name:sha256:HEX`` with the token's SHA-256 in hexadecimal, so that
the file need not hold the token. Empty lines and lines that begin with ``#`` are skipped. Only the owner may
read the file. In memory there are only hashes.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import stat
from pathlib import Path
from typing import Final

from hounsfield.archive.errors import HounsfieldError

TOKEN_CHARS_MIN: Final = 16
"""Shorter tokens can be guessed over a network."""
TOKEN_CHARS_MAX: Final = 4096
FILE_BYTES_MAX: Final = 1 << 20
"""Some ten thousand tokens: more want accounts."""

_NAME: Final = re.compile(r"[0-9A-Za-z._@-]{1,64}", re.ASCII)
_TOKEN: Final = re.compile(r"[0-9A-Za-z._~+/-]+=*", re.ASCII)
_HASH: Final = re.compile(r"[0-9A-Fa-f]{64}", re.ASCII)
_HASHED: Final = "sha256:"


class TokenFileError(HounsfieldError):
    """The token file cannot be used: permissions, or a line that is not a name and a token."""


class BearerTokens:
    """The tokens of one file. Names may repeat: several tokens of one holder, while one replaces another."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._hashes = _read(path)
        self.generation = 0
        """How often the tokens were read anew: who was known before may not be now."""

    def reload(self) -> None:
        """Read the file anew. ``TokenFileError`` leaves the tokens as they were."""
        self._hashes = _read(self._path)
        self.generation += 1

    def __len__(self) -> int:
        return len(self._hashes)

    def identify(self, authorization: bytes) -> str | None:
        """The holder's name for an Authorization header's value, None when there is no such token.

        Every hash is compared, each in constant time.
        """
        scheme, _, token = authorization.partition(b" ")
        token = token.strip(b" ")
        if scheme.lower() != b"bearer" or not token or len(token) > TOKEN_CHARS_MAX:
            return None
        digest = hashlib.sha256(token).digest()
        found: str | None = None
        for name, held in self._hashes:
            if hmac.compare_digest(held, digest):
                found = name
        return found


def _read(path: Path) -> tuple[tuple[str, bytes], ...]:
    try:
        with path.open("rb") as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise TokenFileError("the bearer token file is not a regular file")
            if found.st_mode & 0o077:
                raise TokenFileError("the bearer token file is open to others than its owner: chmod 600 it")
            raw = file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise TokenFileError(
            f"the bearer token file cannot be read ({error.strerror}): check http.bearer_token_file"
        ) from None
    if len(raw) > FILE_BYTES_MAX:
        raise TokenFileError(f"the bearer token file is longer than {FILE_BYTES_MAX} bytes")
    hashes = []
    for number, line in enumerate(raw.decode("utf-8", "replace").splitlines(), start=1):
        text = line.strip()
        if text and not text.startswith("#"):
            hashes.append(_line(number, text))
    if not hashes:
        raise TokenFileError("the bearer token file holds no token: write lines of name:token")
    return tuple(hashes)


def _line(number: int, text: str) -> tuple[str, bytes]:
    name, colon, token = text.partition(":")
    name, token = name.strip(), token.strip()
    if not colon or not _NAME.fullmatch(name):
        raise TokenFileError(f"line {number} of the bearer token file is not name:token or name:sha256:HEX")
    if token.lower().startswith(_HASHED):
        digest = token[len(_HASHED) :]
        if not _HASH.fullmatch(digest):
            raise TokenFileError(
                f"line {number} of the bearer token file: a SHA-256 is 64 hexadecimal digits"
            )
        return name, bytes.fromhex(digest)
    if not TOKEN_CHARS_MIN <= len(token) <= TOKEN_CHARS_MAX or not _TOKEN.fullmatch(token):
        raise TokenFileError(
            f"line {number} of the bearer token file: a token is {TOKEN_CHARS_MIN} or more of letters, "
            "digits and -._~+/ (RFC 6750 2.1)"
        )
    return name, hashlib.sha256(token.encode("ascii")).digest()
