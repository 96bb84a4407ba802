"""The master key at start: from the configured source, or a development key made on first use."""

from __future__ import annotations

import os
from pathlib import Path

from hounsfield.archive.config import Config
from hounsfield.archive.errors import ConfigError, DataDirectoryError
from hounsfield.storage_backends.keyring import Keyring
from hounsfield.storage_backends.master_key import MasterKey, create_master_key_file, load_master_key


def development_key_path() -> Path:
    """Where this user's development key is: below ``$XDG_STATE_HOME``, by default ``~/.local/state``."""
    state = os.environ.get("XDG_STATE_HOME") or Path("~/.local/state").expanduser()
    return Path(state) / "hounsfield" / "development-master.key"


def key_source(config: Config) -> str:
    """Where the master key comes from, in words that may be logged: never the words of a command."""
    spec = config.keys.master_key
    if not spec:
        return f"development key {development_key_path()}"
    return "a command" if spec.startswith("command:") else spec


def open_master_key(config: Config, data: Path) -> MasterKey:
    """The configured master key; with none configured the development key, made on first use (0600).

    The development key lies outside the data directory, so that a copy of the directory is not a copy of its
    key. Raises MasterKeyError, or ConfigError when the development key would land inside ``data``.
    """
    if config.keys.master_key:
        return load_master_key(config.keys.master_key)
    path = development_key_path()
    if path.resolve().is_relative_to(data.resolve()):
        raise ConfigError(
            f"the development key {path} would lie inside the data directory {data}: "
            f"set keys.master_key, or XDG_STATE_HOME to a place outside"
        )
    if not path.exists():
        return create_master_key_file(path)
    mode = path.stat().st_mode
    if mode & 0o077:
        raise ConfigError(f"the development key {path} can be read by others: `chmod 600 {path}`")
    return load_master_key(f"file:{path}")


def open_keyring(data: Path, master: MasterKey, *, create: bool) -> Keyring:
    """The keyring in ``data/keys``, made when there is none and nothing was stored yet.

    Raises MasterKeyError when ``master`` is not the key that wraps it, DataDirectoryError when it is missing
    although segments exist: a new one could not open them.
    """
    folder = data / "keys"
    if Keyring.exists(folder):
        return Keyring.open(folder, master)
    if not create or any((data / "segments").iterdir()):
        raise DataDirectoryError(
            f"the keyring {folder} is missing: restore it from a backup before anything else"
        )
    return Keyring.create(folder, master)
