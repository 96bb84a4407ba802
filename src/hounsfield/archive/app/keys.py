"""The master key at start (configured, or a development key made on first use), and what is done to keys."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hounsfield.archive.app.data_directory import MARKER
from hounsfield.archive.app.tier_options import check_tiers
from hounsfield.archive.config import Config
from hounsfield.archive.errors import ConfigError, DataDirectoryError
from hounsfield.storage_backends.errors import KeyringError, MasterKeyError
from hounsfield.storage_backends.keyring import Keyring
from hounsfield.storage_backends.master_key import (
    MasterKey,
    RecoveryKey,
    create_master_key_file,
    load_master_key,
)
from hounsfield.storage_backends.segment_format import SEGMENT_NAME

SEGMENT = "segment"


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
        keyring = Keyring.open(folder, master)
        _refuse_new_index_keys(data, keyring)
        return keyring
    if not create or any((data / "segments").iterdir()):
        raise DataDirectoryError(
            f"the keyring {folder} is missing: restore it from a backup before anything else"
        )
    return Keyring.create(folder, master)


def _refuse_new_index_keys(data: Path, keyring: Keyring) -> None:
    """An index whose keys are gone must not get new ones: nothing in it would be found, without a word."""
    if not (data / "index" / "data.mdb").exists() or not any((data / "segments").iterdir()):
        return
    for purpose in ("index", "token"):
        if not keyring.key_ids(purpose):
            raise DataDirectoryError(
                f"the {purpose} keys in {data / 'keys' / purpose} are missing: restore keys/ from a backup, "
                "or if there is none run `hounsfield reindex`, which makes a new index with new keys"
            )


# ---------------------------------------------------------------- for `hounsfield keys`


@dataclass(frozen=True, slots=True)
class KeyState:
    """One key: which, when it was made, the bytes of the file that it seals, and what is wrong with it."""

    purpose: str
    key_id: str
    made_at: float
    seals: str = ""
    seals_bytes: int = 0
    problem: str = ""


def data_path(config: Config) -> Path:
    """The data directory of an archive that exists. Raises DataDirectoryError."""
    data = Path(config.archive.data).expanduser().absolute()
    if not (data / MARKER).exists():
        raise DataDirectoryError(f"no archive in {data}: give its data directory with --data")
    return data


def keyring_of(config: Config) -> Keyring:
    """The keyring of an archive, whether a server runs on it or not. Raises MasterKeyError."""
    data = data_path(config)
    return open_keyring(data, open_master_key(config, data), create=False)


def key_states(data: Path, keyring: Keyring) -> list[KeyState]:
    """Every key there is or should be, each opened from its file; by purpose and age."""
    sealed = {path.name: path for path in _sealed_files(data)}
    states = []
    for purpose in keyring.purposes():
        for key_id in keyring.key_ids(purpose):
            problem, made_at = "", 0.0
            try:
                made_at = keyring.made_at(purpose, key_id)
                keyring.check_key(purpose, key_id)
            except KeyringError as error:
                problem = str(error)
            file = sealed.get(key_id) if purpose == SEGMENT else None
            if purpose == SEGMENT and file is None and not problem:
                problem = "seals nothing that is here"
            where = str(file.relative_to(data)) if file else ""
            size = file.stat().st_size if file else 0
            states.append(KeyState(purpose, key_id, made_at, where, size, problem))
    have = {state.key_id for state in states if state.purpose == SEGMENT}
    for name, path in sorted(sealed.items()):
        if name not in have:
            where = str(path.relative_to(data))
            text = "the key is missing: restore keys/ from a backup"
            states.append(KeyState(SEGMENT, name, 0.0, where, path.stat().st_size, text))
    return sorted(states, key=lambda state: (state.purpose, state.made_at, state.key_id))


def _sealed_files(data: Path) -> Iterator[Path]:
    for folder in ("segments", "ledger"):
        for path in sorted((data / folder).glob("*")):
            if SEGMENT_NAME.fullmatch(path.name) and path.stat().st_size:
                yield path


def rotate_master(
    config: Config, to: str, *, make: bool, recovery: RecoveryKey | None = None
) -> tuple[bool, Keyring]:
    """Let the key that ``to`` names open the archive in place of the present one; False when it does already.

    ``make``: write a new key to the file that ``to`` names, which must not exist. ``recovery`` opens the
    keyring when the present master key is lost. A running server goes on; the configuration must name ``to``
    before its next start. Killed anywhere, one of the two keys opens the archive, and doing it again (without
    ``make``, if the file is there) finishes it.
    """
    data = data_path(config)
    check_tiers(config)  # they are to have the new one, and nobody should find out later that they cannot
    if make:
        make_master_key(config, to)
    new = load_master_key(to)
    try:
        return False, Keyring.open(data / "keys", new)
    except MasterKeyError:
        keyring = Keyring.open(data / "keys", recovery) if recovery else keyring_of(config)
    keyring.rewrap(new)
    if not keyring.opened_by(new):  # from disk again
        raise KeyringError(
            f"{data / 'keys/root'} does not open with the new key; keep the old one and a backup"
        )
    return True, keyring


def make_master_key(config: Config, spec: str) -> MasterKey:
    """A new master key in the file that ``file:PATH`` names, outside the data. Raises ConfigError."""
    scheme, _, path = spec.partition(":")
    if scheme != "file" or not path:
        raise ConfigError("--new-key needs a source file:PATH: it says where the key is to be written")
    if Path(path).resolve().is_relative_to(Path(config.archive.data).resolve()):
        raise ConfigError(f"the master key {path} lies inside the data directory: put it elsewhere")
    return create_master_key_file(path)


@dataclass(frozen=True, slots=True)
class MustSave:
    """One thing without which the archive cannot be opened again, and how to see that the copy is good."""

    what: str
    where: str
    why: str
    test: str


def must_save(config: Config, keyring: Keyring) -> list[MustSave]:
    """Everything that has to be kept somewhere else."""
    data = data_path(config)
    recovery = "recovery" in keyring.wraps()
    return [
        MustSave(
            "segments and ledger",
            f"{data / 'segments'}, {data / 'ledger'}",
            "the objects and facts themselves, sealed",
            "hounsfield restore BACKUP --data EMPTY-DIRECTORY",
        ),
        MustSave(
            "keyring",
            str(data / "keys"),
            "the wrapped keys of all of it; without it the rest is noise",
            "hounsfield keys check",
        ),
        MustSave(
            "index",
            str(data / "index"),
            "can be made anew (hounsfield reindex); a copy saves that time",
            "hounsfield fsck --quick",
        ),
        MustSave(
            "master key",
            key_source(config),
            "opens the keyring at every start; keep it apart from the above",
            "hounsfield keys check --set keys.master_key=file:COPY",
        ),
        MustSave(
            "recovery key",
            "on paper, where neither this machine nor its backups are" if recovery else "there is none",
            "opens the keyring when the master key is lost"
            if recovery
            else "make one: hounsfield keys recovery new",
            "hounsfield keys recovery check",
        ),
    ]  # fmt: skip
