"""Where the master key comes from, and the recovery key that stands in for it.

A master key is 32 random bytes that live outside the data directory. It wraps one thing, the root
key of a :class:`~hounsfield.storage_backends.keyring.Keyring`; neither ever touches patient data.
"""

from __future__ import annotations

import base64
import hashlib
import os
import secrets
import shlex
import subprocess
from pathlib import Path
from typing import NoReturn

from hounsfield.storage_backends.errors import MasterKeyError
from hounsfield.storage_backends.file_systems import make_private_directory, publish_file, sync_ancestors

__all__ = ["MasterKey", "RecoveryKey", "create_master_key_file", "load_master_key"]

KEY_BYTES = 32
_SOURCE_BYTES_MAX = 4096  # no form of a key is longer than 100 bytes; do not read a device for ever
_COMMAND_SECONDS_MAX = 60  # a vault or a cloud KMS answers in seconds; a hung one must not hang the start
_RECOVERY_PREFIX = "HFR1"
_RECOVERY_CHECK_BYTES = 3  # 35 bytes are 56 base-32 characters without padding


class _Secret:
    """32 bytes that do not show themselves: not in ``repr``, not in a pickle, not in an exception."""

    __slots__ = ("_bytes", "source")
    wrap_name = ""

    def __init__(self, value: bytes, source: str) -> None:
        if len(value) != KEY_BYTES:
            raise MasterKeyError(f"the key from {source} has {len(value)} bytes; it must have {KEY_BYTES}")
        if len(set(value)) < 8:  # 32 random bytes have fewer distinct values once in 10^30
            raise MasterKeyError(f"the key from {source} is not random")
        self._bytes = value
        self.source = source

    def reveal(self) -> bytes:
        """The 32 bytes themselves: for deriving the wrapping key, nothing else."""
        return self._bytes

    def __repr__(self) -> str:
        return f"<{type(self).__name__} from {self.source}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a key is never serialised")


class MasterKey(_Secret):
    """The key that opens an archive's keyring at every start."""

    __slots__ = ()
    wrap_name = "master"

    @classmethod
    def generate(cls) -> MasterKey:
        return cls(secrets.token_bytes(KEY_BYTES), "a generator")


class RecoveryKey(_Secret):
    """The printed key that also opens the keyring when the master key is lost."""

    __slots__ = ()
    wrap_name = "recovery"

    @classmethod
    def generate(cls) -> RecoveryKey:
        return cls(secrets.token_bytes(KEY_BYTES), "a generator")

    def text(self) -> str:
        """What a person writes down: ``HFR1-XXXX-…`` (14 groups of 4), with a check for mistypes."""
        body = base64.b32encode(self._bytes + _recovery_check(self._bytes)).decode()
        return "-".join([_RECOVERY_PREFIX, *(body[i : i + 4] for i in range(0, len(body), 4))])

    @classmethod
    def from_text(cls, text: str) -> RecoveryKey:
        """Read :meth:`text` back; case, spaces and dashes do not matter. ``MasterKeyError`` on a mistype."""
        plain = "".join(text.upper().replace("-", " ").split())
        plain = plain.removeprefix(_RECOVERY_PREFIX)
        try:
            data = base64.b32decode(plain.replace("0", "O").replace("1", "I").replace("8", "B"))
        except ValueError:  # not base 32, or not even ASCII
            data = b""
        key, check = data[:KEY_BYTES], data[KEY_BYTES:]
        if len(key) != KEY_BYTES or check != _recovery_check(key):
            raise MasterKeyError("the recovery key is mistyped: compare it with the printed one")
        return cls(key, "a recovery key")


def _recovery_check(key: bytes) -> bytes:
    return hashlib.sha256(b"hounsfield recovery key" + key).digest()[:_RECOVERY_CHECK_BYTES]


def load_master_key(spec: str) -> MasterKey:
    """The master key that ``spec`` names, or ``MasterKeyError`` that says what is wrong with it.

    ``file:PATH`` | ``env:NAME`` | ``credential:NAME`` (systemd: ``$CREDENTIALS_DIRECTORY/NAME``) |
    ``command:WORDS`` (split as a shell would, run once without a shell; its standard output).

    The content is one of: 64 hexadecimal digits, base64 or base64url of 32 bytes (43 characters, or
    44 with its padding), both with white space around them ignored; or exactly 32 raw bytes. Text
    of 32 characters is refused: it is a passphrase, not a key.
    """
    scheme, colon, rest = spec.partition(":")
    if not colon or not rest:
        raise MasterKeyError("a master key is given as file:PATH, env:NAME, credential:NAME or command:WORDS")
    if scheme == "file":
        source = f"file {rest}"
        content = _read_file(Path(rest), source)
    elif scheme == "env":
        source = f"environment variable {rest}"
        value = os.environb.get(rest.encode())
        if value is None:
            raise MasterKeyError(f"the {source} that should hold the master key is not set")
        content = value
    elif scheme == "credential":
        source = f"systemd credential {rest}"
        folder = os.environ.get("CREDENTIALS_DIRECTORY")
        if not folder or "/" in rest or rest.startswith("."):
            raise MasterKeyError(f"there is no {source}: set LoadCredential= or LoadCredentialEncrypted=")
        content = _read_file(Path(folder) / rest, source)
    elif scheme == "command":
        source = "a command"
        content = _run(rest)
    else:
        raise MasterKeyError(
            f"unknown source of a master key {scheme!r}: use file, env, credential or command"
        )
    return MasterKey(_decoded(content, source), source)


def create_master_key_file(path: str | os.PathLike[str]) -> MasterKey:
    """Write a new random master key (64 hex digits) to a new 0600 file, durably, and return it."""
    target = Path(path)
    key = secrets.token_bytes(KEY_BYTES)
    try:
        make_private_directory(target.parent)
        made = publish_file(target, key.hex().encode() + b"\n")
    except OSError as error:
        raise MasterKeyError(f"cannot write the master key {target}: {error.strerror}") from error
    if not made:
        raise MasterKeyError(f"{target} exists already; a master key is never overwritten")
    sync_ancestors(target)  # it is needed from now on, and so are the directories just made for it
    return MasterKey(key, f"file {target}")


def _read_file(path: Path, source: str) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_SOURCE_BYTES_MAX)
    except OSError as error:
        raise MasterKeyError(f"cannot read the master key from {source}: {error.strerror}") from None


def _run(command: str) -> bytes:
    # Its words, output and errors may hold secrets: messages and tracebacks name none of them.
    try:
        words = shlex.split(command)
        done = subprocess.run(
            words, check=False, stdin=subprocess.DEVNULL, capture_output=True, timeout=_COMMAND_SECONDS_MAX
        )
    except subprocess.TimeoutExpired:
        problem = f"did not answer in {_COMMAND_SECONDS_MAX} s"
    except (OSError, ValueError):
        problem = "cannot be started"
    else:
        if done.returncode == 0:
            return done.stdout[:_SOURCE_BYTES_MAX]
        problem = f"ended with status {done.returncode}"
    raise MasterKeyError(f"the command that should print the master key {problem}")


def _decoded(content: bytes, source: str) -> bytes:
    text = content.strip()
    try:
        if len(text) == 2 * KEY_BYTES:
            return bytes.fromhex(text.decode("ascii"))
        if len(text) in {43, 44}:
            standard = text.rstrip(b"=").translate(bytes.maketrans(b"-_", b"+/")) + b"="
            return base64.b64decode(standard, validate=True)
    except ValueError:
        pass
    else:
        if len(content) == KEY_BYTES and not all(32 <= byte < 127 for byte in content):
            return content
    raise MasterKeyError(
        f"what {source} holds is not a master key: it must be 32 raw bytes, 64 hexadecimal digits, "
        "or base64 of 32 bytes"
    )
