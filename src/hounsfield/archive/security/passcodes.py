"""Passcodes as they are kept: scrypt (RFC 7914), with the parameters beside each hash."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os
import re
from typing import Final

from hounsfield.archive.errors import HounsfieldError

PASSCODE_CHARS_MIN: Final = 8
"""Shorter ones fall to whoever gets the hashes; NIST SP 800-63B 3.1.1 asks for as many."""
PASSCODE_BYTES_MAX: Final = 1024

# 32 MiB, three times: what OWASP asks for. Some 200 ms, so that a copy of the hashes is of little use.
_LOG_N: Final = 15
_R: Final = 8
_P: Final = 3
_MEMORY_BYTES_MAX: Final = 256 << 20
_SALT_BYTES: Final = 16
_HASH_BYTES: Final = 32
_SCHEME: Final = "scrypt"
_HASH: Final = re.compile(r"scrypt\$1[4-9]\$(8|16)\$[1-9]\$[A-Za-z0-9+/]{22}==\$[A-Za-z0-9+/]{43}=")


class PasscodeError(HounsfieldError):
    """A passcode that nobody should have."""

    mistaken = True


def hashed(passcode: str) -> str:
    """What to keep of ``passcode``. Blocking, for 200 ms. Raises PasscodeError for one that is too short."""
    data = passcode.encode()
    if len(passcode) < PASSCODE_CHARS_MIN or len(data) > PASSCODE_BYTES_MAX:
        raise PasscodeError(f"a passcode has {PASSCODE_CHARS_MIN} characters or more, and 1024 bytes at most")
    salt = os.urandom(_SALT_BYTES)
    digest = _scrypt(data, salt, _LOG_N, _R, _P)
    return "$".join((_SCHEME, str(_LOG_N), str(_R), str(_P), _text(salt), _text(digest)))


def is_hash(text: str) -> bool:
    """Whether ``text`` is what :func:`hashed` makes."""
    return bool(_HASH.fullmatch(text))


def fits(passcode: bytes, kept: str) -> bool:
    """Whether ``passcode`` is the one that ``kept`` was made of. Blocking, as long as hashing."""
    if len(passcode) > PASSCODE_BYTES_MAX:
        return False
    try:
        scheme, log_n, r, p, salt, digest = kept.split("$")
        wanted = base64.b64decode(digest, validate=True)
        found = _scrypt(passcode, base64.b64decode(salt, validate=True), int(log_n), int(r), int(p))
    except (ValueError, binascii.Error):
        return False
    return scheme == _SCHEME and hmac.compare_digest(found, wanted)


def _scrypt(data: bytes, salt: bytes, log_n: int, r: int, p: int) -> bytes:
    return hashlib.scrypt(
        data, salt=salt, n=1 << log_n, r=r, p=p, maxmem=_MEMORY_BYTES_MAX, dklen=_HASH_BYTES
    )


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


NOBODY: Final = "$".join(
    (_SCHEME, str(_LOG_N), str(_R), str(_P), _text(bytes(_SALT_BYTES)), _text(bytes(_HASH_BYTES)))
)
"""No passcode fits it, and finding that out takes as long as with anybody's."""
