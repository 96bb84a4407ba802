"""Every data key of an archive, wrapped, each in a file of its own.

    master key  ─┐
                 ├─ wraps ─ root key ─ wraps ─ segment keys, index keys, token keys …
    recovery key ┘

The root file is the only thing that a master or recovery key opens, so rotation rewrites one small
file, and a recovery key made at the start opens keys made years later
(docs/decisions/0002-one-root-key.md).

    root            JSON: format, root_id, wraps: {name: nonce ‖ sealed root key, base64}
    PURPOSE/ID.key  "HFKEY001" (8) ‖ nonce (12) ‖ AES-256-GCM(wrapping key, key) (32 + 16)

The associated data of a wrap is the root's id with the wrap's name, or with purpose and key id: a
file that is renamed or brought from another archive does not open.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import re
import secrets
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from hounsfield.storage_backends.errors import KeyDestroyedError, KeyringError, MasterKeyError
from hounsfield.storage_backends.file_systems import (
    locked_directory,
    make_private_directory,
    publish_file,
    sync_directory,
)
from hounsfield.storage_backends.master_key import MasterKey, RecoveryKey

__all__ = ["Keyring"]

KEY_BYTES = 32
CACHED_KEYS_MAX = 65_536  # 64 TiB of 1 GiB segments at ~200 bytes a key: 13 MB; past it the cache starts anew
_NONCE_BYTES = 12
_KEY_MAGIC = b"HFKEY001"
_DESTROYED_MAGIC = b"HFKEYDEL"  # what a destroyed key's file holds until its name is gone too
_KEY_FILE_BYTES = len(_KEY_MAGIC) + _NONCE_BYTES + KEY_BYTES + 16
_ROOT_FILE_BYTES_MAX = 65_536
_PURPOSE = re.compile(r"[a-z][a-z0-9-]{0,31}")
_KEY_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class Keyring:
    """The keys of one archive, each 32 random bytes under a purpose and an id. Thread-safe.

    Several processes may use and extend one directory at once: a key that another process made is
    found on disk when it is asked for. A key is on disk (file and directories synced) before
    :meth:`create_key` returns it.
    """

    def __init__(self, directory: Path, root_id: bytes, root_key: bytes) -> None:
        self._directory = directory
        self._root_id = root_id
        self._root_key = root_key
        self._wrapping = AESGCM(_derive(root_key, root_id, b"hounsfield/key/1"))
        self._keys: dict[tuple[str, str], bytes] = {}
        self._lock = threading.Lock()
        self._recovery: RecoveryKey | None = None

    def __repr__(self) -> str:
        return f"Keyring({str(self._directory)!r})"

    # -- the root

    @classmethod
    def create(cls, directory: str | os.PathLike[str], master: MasterKey) -> Keyring:
        """Make the root key of a new archive; ``KeyringError`` when the directory has one already.

        The recovery key made with it is handed out once by :meth:`take_recovery_key`.
        """
        folder = Path(directory)
        make_private_directory(folder)
        root_id, root_key = secrets.token_bytes(16), secrets.token_bytes(KEY_BYTES)
        recovery = RecoveryKey.generate()
        wraps = {key.wrap_name: _wrap_root(key, root_id, root_key) for key in (master, recovery)}
        if not _publish(folder / "root", _root_file(root_id, wraps)):
            raise KeyringError(f"{folder} holds the keys of an archive already; open it instead")
        keyring = cls(folder, root_id, root_key)
        keyring._recovery = recovery
        return keyring

    @classmethod
    def open(cls, directory: str | os.PathLike[str], master: MasterKey | RecoveryKey) -> Keyring:
        """Open the root key, or ``MasterKeyError`` when ``master`` is not the key that wrapped it."""
        folder = Path(directory)
        root_id, wraps = _read_root(folder)
        sealed = wraps.get(master.wrap_name)
        root_key = None if sealed is None else _unwrap_root(master, root_id, sealed)
        if root_key is None:
            raise MasterKeyError(
                f"the {master.wrap_name} key from {master.source} does not open {folder}: it is not the key "
                "this archive was made with (or last rotated to); nothing was changed"
            )
        return cls(folder, root_id, root_key)

    @classmethod
    def exists(cls, directory: str | os.PathLike[str]) -> bool:
        """Whether ``directory`` holds the keys of an archive."""
        return (Path(directory) / "root").exists()

    @classmethod
    def open_with_root(cls, directory: str | os.PathLike[str], root_key: bytes) -> Keyring:
        """Open with the root key itself, which another process of the archive handed over.

        No master key is needed, so a rotation in between does not matter.
        """
        folder = Path(directory)
        return cls(folder, _read_root(folder)[0], root_key)

    def reveal_root(self) -> bytes:
        """The root key: for handing it to another process of the same archive, nothing else."""
        return self._root_key

    @property
    def root_id(self) -> bytes:
        """What tells this archive's keyring from every other's."""
        return self._root_id

    def take_recovery_key(self) -> RecoveryKey | None:
        """The recovery key, once, from the keyring that made it; then and elsewhere None."""
        recovery, self._recovery = self._recovery, None
        return recovery

    def rewrap(self, new: MasterKey | RecoveryKey) -> None:
        """Let ``new`` open the root from now on, in place of the former key of its sort.

        Durable and atomic when this returns. Nothing else is rewritten. It does not help against
        somebody who had the former key *and* a copy of the root file: see docs/threat-model.md.
        """
        with self._root_wraps() as wraps:
            wraps[new.wrap_name] = _wrap_root(new, self._root_id, self._root_key)

    def wraps(self) -> list[str]:
        """The sorts of key that open the root now: ``master``, ``recovery``."""
        return sorted(_read_root(self._directory)[1])

    def opened_by(self, key: MasterKey | RecoveryKey) -> bool:
        """Whether ``key`` opens the root as it is on disk now."""
        root_id, wraps = _read_root(self._directory)
        sealed = wraps.get(key.wrap_name)
        return sealed is not None and _unwrap_root(key, root_id, sealed) == self._root_key

    def remove_recovery(self) -> bool:
        """Let no recovery key open the root from now on; False when none did. Durable and atomic."""
        with self._root_wraps() as wraps:
            return wraps.pop(RecoveryKey.wrap_name, None) is not None

    @contextmanager
    def _root_wraps(self) -> Iterator[dict[str, bytes]]:
        """The root file's wraps, for changing: written, durably and at once, when the block is left."""
        with locked_directory(self._directory):  # two who change it at once would undo each other
            root_id, wraps = _read_root(self._directory)
            if root_id != self._root_id:
                raise KeyringError(f"{self._directory} now holds another archive's keys; nothing was changed")
            before = dict(wraps)
            yield wraps
            if wraps != before:
                _publish(self._directory / "root", _root_file(root_id, wraps), replace=True)

    def derived_key(self, label: str) -> bytes:
        """A key for one use within this archive, the same at every start; ``label`` says which use."""
        return _derive(self._root_key, self._root_id, b"hounsfield/derived/1\0" + label.encode())

    # -- the keys

    def create_key(self, purpose: str, key_id: str) -> bytes:
        """A new random key, durable before this returns; ``KeyringError`` when the id is taken."""
        key = self._publish_key(purpose, key_id)
        if key is None:
            raise KeyringError(f"there is a {purpose} key {key_id!r} already")
        sync_directory(self._directory)
        with self._lock:
            self._remember(purpose, key_id, key)
        return key

    def ensure_key(self, purpose: str, key_id: str) -> bytes:
        """The key, made now if there is none; the same in every process, and durable."""
        return self.ensure_keys(purpose, (key_id,))[0]

    def ensure_keys(self, purpose: str, key_ids: Iterable[str]) -> list[bytes]:
        """Different keys, each as :meth:`ensure_key` gives it; folders are synced once for all of them."""
        keys: dict[str, bytes] = {}
        made: dict[str, bytes] = {}
        unsure: set[Path] = set()
        for key_id in key_ids:
            key = self._keys.get((purpose, key_id))
            # Looked for first: on a disk that is full nothing can be made, and reading must go on.
            if key is None and not self._path(purpose, key_id).exists():
                key = self._publish_key(purpose, key_id)
                if key is not None:
                    made[key_id] = key
                    unsure.add(self._directory)
            if key is None:
                key = self.key(purpose, key_id)  # its maker may not have come to syncing yet
                unsure |= {self._path(purpose, key_id).parent, self._directory}
            keys[key_id] = key
        for folder in unsure:
            sync_directory(folder)
        with self._lock:
            for key_id, key in made.items():
                self._remember(purpose, key_id, key)
        return list(keys.values())

    def key(self, purpose: str, key_id: str) -> bytes:
        """The 32 bytes of a key; ``KeyringError`` when it is missing or does not unwrap."""
        key = self._keys.get((purpose, key_id))
        if key is None:
            with self._lock:  # or a key that is being destroyed could be read before and kept after
                key = self._read_key(purpose, key_id)
                self._remember(purpose, key_id, key)
        return key

    def check_key(self, purpose: str, key_id: str) -> None:
        """Open a key from its file, whatever is in memory; ``KeyringError`` when it does not unwrap."""
        self._read_key(purpose, key_id)

    def wrapped_key(self, purpose: str, key_id: str) -> bytes:
        """The file of a key as it is, wrapped: for a place that holds what it seals. ``KeyringError``."""
        self._read_key(purpose, key_id)  # a damaged or destroyed one is not passed on
        return self._path(purpose, key_id).read_bytes()

    def take_wrapped(self, purpose: str, key_id: str, wrapped: bytes) -> bool:
        """Have the keyring hold a key that :meth:`wrapped_key` gave; False when it holds one of that id.

        ``KeyringError`` when it does not unwrap: it is damaged, destroyed, or another archive's.
        """
        self._unwrapped(purpose, key_id, wrapped)
        path = self._path(purpose, key_id)
        make_private_directory(path.parent)
        taken = _publish(path, wrapped)
        sync_directory(self._directory)
        return taken

    def wrapped_root(self) -> bytes:
        """The root file, as it is: what a master or recovery key opens."""
        return (self._directory / "root").read_bytes()

    def cached_key(self, purpose: str, key_id: str) -> bytes | None:
        """The key when it is in memory already, else None: never touches the disk."""
        return self._keys.get((purpose, key_id))

    def purposes(self) -> list[str]:
        """Every purpose that has keys, sorted."""
        return sorted(p.name for p in self._directory.iterdir() if p.is_dir() and _PURPOSE.fullmatch(p.name))

    def made_at(self, purpose: str, key_id: str) -> float:
        """When a key was made, in seconds since 1970; ``KeyringError`` when it is missing."""
        try:
            return self._path(purpose, key_id).stat().st_mtime
        except FileNotFoundError:
            raise KeyringError(f"no {purpose} key {key_id!r}: restore the keys from a backup") from None

    def key_ids(self, purpose: str) -> list[str]:
        """The ids of all keys of a purpose, sorted."""
        folder = self._directory / _checked(_PURPOSE, purpose)
        try:
            return sorted(path.stem for path in folder.iterdir() if path.suffix == ".key")
        except FileNotFoundError:
            return []

    def destroy_key(self, purpose: str, key_id: str) -> bool:
        """Make what the key seals unreadable for ever; False when there was none. Durable when it returns.

        The file is overwritten and synced, then its name removed and the folder synced. Killed anywhere, it
        opens as before or is destroyed (:meth:`key` raises ``KeyDestroyedError``, later ``KeyringError``),
        and doing it again finishes it. Other processes forget it with :meth:`forget_destroyed`. Copies
        elsewhere (backups, blocks that a disk keeps) are not reached: docs/threat-model.md.
        """
        path = self._path(purpose, key_id)
        with self._lock:
            self._keys.pop((purpose, key_id), None)
            found = _overwrite(path)
            try:
                path.unlink(missing_ok=True)
                if path.parent.is_dir():
                    sync_directory(path.parent)  # also when an earlier try did not come to that
            except OSError as error:
                raise KeyringError(f"cannot destroy {purpose} key {key_id!r}: {error.strerror}") from error
        return found

    def forget_destroyed(self, purpose: str) -> int:
        """Drop keys from memory that this or another process destroyed; how many."""
        with self._lock:
            gone = [pair for pair in self._keys if pair[0] == purpose and not self._path(*pair).exists()]
            for pair in gone:
                del self._keys[pair]
            return len(gone)

    def _publish_key(self, purpose: str, key_id: str) -> bytes | None:
        """A new key, None when there is one; its folder may not be durable yet."""
        path = self._path(purpose, key_id)
        make_private_directory(path.parent)
        key, nonce = secrets.token_bytes(KEY_BYTES), secrets.token_bytes(_NONCE_BYTES)
        sealed = self._wrapping.encrypt(nonce, key, self._bound_to(purpose, key_id))
        return key if _publish(path, _KEY_MAGIC + nonce + sealed) else None

    def _read_key(self, purpose: str, key_id: str) -> bytes:
        try:
            with self._path(purpose, key_id).open("rb") as file:
                data = file.read(_KEY_FILE_BYTES + 1)
        except FileNotFoundError:
            raise KeyringError(f"no {purpose} key {key_id!r}: restore the keys from a backup") from None
        return self._unwrapped(purpose, key_id, data)

    def _unwrapped(self, purpose: str, key_id: str, data: bytes) -> bytes:
        if data.startswith(_DESTROYED_MAGIC):
            raise KeyDestroyedError(f"{purpose} key {key_id!r} was destroyed, with what it sealed")
        if len(data) != _KEY_FILE_BYTES or not data.startswith(_KEY_MAGIC):
            raise KeyringError(f"the file of {purpose} key {key_id!r} is damaged: restore it from a backup")
        nonce, sealed = data[8 : 8 + _NONCE_BYTES], data[8 + _NONCE_BYTES :]
        try:
            return self._wrapping.decrypt(nonce, sealed, self._bound_to(purpose, key_id))
        except InvalidTag:
            raise KeyringError(
                f"{purpose} key {key_id!r} does not unwrap: its file was changed, or is of another archive"
            ) from None

    def _remember(self, purpose: str, key_id: str, key: bytes) -> None:
        """Keep a key in memory; the caller holds the lock."""
        if len(self._keys) >= CACHED_KEYS_MAX:
            self._keys.clear()
        self._keys[purpose, key_id] = key

    def _path(self, purpose: str, key_id: str) -> Path:
        return self._directory / _checked(_PURPOSE, purpose) / f"{_checked(_KEY_ID, key_id)}.key"

    def _bound_to(self, purpose: str, key_id: str) -> bytes:
        # Neither a purpose nor a key id can hold a zero byte, so no two pairs look alike.
        return b"\0".join([b"hounsfield/key/1", self._root_id, purpose.encode(), key_id.encode()])


# ---------------------------------------------------------------- wrapping the root


def _derive(secret: bytes, salt: bytes, info: bytes) -> bytes:
    return HKDF(algorithm=hashes.SHA256(), length=KEY_BYTES, salt=salt, info=info).derive(secret)


def _wrap_root(by: MasterKey | RecoveryKey, root_id: bytes, root_key: bytes) -> bytes:
    nonce = secrets.token_bytes(_NONCE_BYTES)
    wrapping, bound_to = _root_wrapping(by, root_id)
    return nonce + wrapping.encrypt(nonce, root_key, bound_to)


def _unwrap_root(by: MasterKey | RecoveryKey, root_id: bytes, sealed: bytes) -> bytes | None:
    wrapping, bound_to = _root_wrapping(by, root_id)
    try:
        return wrapping.decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], bound_to)
    except InvalidTag:
        return None


def _root_wrapping(by: MasterKey | RecoveryKey, root_id: bytes) -> tuple[AESGCM, bytes]:
    bound_to = b"hounsfield/root/1\0" + by.wrap_name.encode() + b"\0" + root_id
    return AESGCM(_derive(by.reveal(), root_id, bound_to)), bound_to


def _root_file(root_id: bytes, wraps: dict[str, bytes]) -> bytes:
    fields = {
        "format": "hounsfield keyring 1",
        "root_id": root_id.hex(),
        "wraps": {name: base64.b64encode(sealed).decode() for name, sealed in sorted(wraps.items())},
    }
    return json.dumps(fields, indent=2).encode() + b"\n"


def _read_root(folder: Path) -> tuple[bytes, dict[str, bytes]]:
    try:
        with (folder / "root").open("rb") as file:
            data = file.read(_ROOT_FILE_BYTES_MAX)
    except FileNotFoundError:
        raise KeyringError(
            f"{folder} holds no keys: wrong data directory, or it was never initialised"
        ) from None
    try:
        fields = json.loads(data)
        known = fields["format"] == "hounsfield keyring 1"
        root_id = bytes.fromhex(fields["root_id"])
        wraps = {name: base64.b64decode(text, validate=True) for name, text in fields["wraps"].items()}
        if len(root_id) != 16 or any(len(wrap) != _NONCE_BYTES + KEY_BYTES + 16 for wrap in wraps.values()):
            raise ValueError
    except (ValueError, KeyError, TypeError, AttributeError, binascii.Error):
        raise KeyringError(f"{folder / 'root'} is damaged: restore it from a backup") from None
    if not known:
        raise KeyringError(f"{folder / 'root'} is of a format that this release does not know")
    return root_id, wraps


# ---------------------------------------------------------------- files


def _checked(pattern: re.Pattern[str], name: str) -> str:
    if not pattern.fullmatch(name):
        raise ValueError(f"not a name for a key: {name!r}")
    return name


def _overwrite(path: Path) -> bool:
    """Replace a key file's bytes in place, as well as it goes; False when there is no such file.

    In place, so that a draft which a crash left behind (the same file under another name) goes too.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return False
    except OSError:
        return True  # it can only be unlinked
    try:
        os.pwrite(descriptor, _DESTROYED_MAGIC + secrets.token_bytes(_KEY_FILE_BYTES - 8), 0)
        os.fsync(descriptor)
    except OSError:
        pass  # a full or failing disk: taking the name away is what is left, and is done next
    finally:
        os.close(descriptor)
    return True


def _publish(path: Path, data: bytes, *, replace: bool = False) -> bool:
    """Bring a whole, synced file into being under ``path``; False when one is there already."""
    try:
        return publish_file(path, data, replace=replace)
    except OSError as error:
        raise KeyringError(f"cannot store {path.name} in {path.parent}: {error.strerror}") from error
