"""Backups of an archive, whether a server runs on it or not, and the way back."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator
from pathlib import Path

from hounsfield.archive.app.asking import ask, control_socket
from hounsfield.archive.app.data_directory import (
    DataDirectory,
    adopt,
    open_data_directory,
    refuse_network_file_system,
)
from hounsfield.archive.app.engine_options import engine_options
from hounsfield.archive.app.keys import data_path, open_keyring, open_master_key
from hounsfield.archive.config import Config
from hounsfield.archive.engine import rescue
from hounsfield.archive.engine.backup import Backup
from hounsfield.archive.engine.restore import Progress, Restore, RestoreReport, finish
from hounsfield.archive.engine.stores import INDEX
from hounsfield.archive.errors import NoServerError
from hounsfield.archive.index.tables import ALL_TABLES
from hounsfield.storage_backends.lmdb_store import LmdbStore
from hounsfield.storage_backends.master_key import RecoveryKey


@contextlib.contextmanager
def open_backup(config: Config, target: Path) -> Iterator[Backup]:
    """Backups of the archive into ``target``, beside its server or, when none runs, with the lock held."""
    data = data_path(config)
    held: DataDirectory | None = None
    try:
        ask(control_socket(config), "status")
    except NoServerError:
        held = open_data_directory(data, create=False)
    try:
        keyring = open_keyring(data, open_master_key(config, data), create=False)
        store = LmdbStore(data / INDEX, ALL_TABLES, limits=engine_options(config, workers=1).index)
        try:
            yield Backup(data, store, keyring, target.expanduser().absolute())
        finally:
            store.close()
    finally:
        if held is not None:
            held.close()


def open_restore(
    config: Config, backups: Path, *, snapshot: str, segments_from: Path | None, recovery: RecoveryKey | None
) -> Restore:
    """The snapshot to restore, opened with the configured master key or with the recovery key."""
    key = recovery or open_master_key(config, Path(config.archive.data).expanduser().absolute())
    return Restore.open(
        backups.expanduser().absolute(),
        key,
        snapshot=snapshot,
        segments_from=None if segments_from is None else segments_from.expanduser().absolute(),
    )


def restore(
    config: Config,
    opened: Restore,
    *,
    link: bool,
    reindex: bool,
    progress: Progress,
    without_tiers: Collection[str] = (),
) -> RestoreReport:
    """Make ``archive.data``, which must be empty, the archive that the snapshot is of."""
    data = Path(config.archive.data).expanduser().absolute()
    refuse_network_file_system(data)
    opened.check(progress, index=not reindex)
    options = engine_options(config, workers=1)
    report = opened.run(
        data, options, link=link, reindex=reindex, without_tiers=without_tiers, progress=progress
    )
    adopt(data)
    opened.finish(data)
    return report


def restore_from_tier(
    config: Config,
    name: str,
    *,
    recovery: RecoveryKey | None,
    without_tiers: Collection[str],
    progress: Progress,
) -> RestoreReport:
    """Make ``archive.data``, which must be empty, an archive of what the configured tiers hold."""
    data = Path(config.archive.data).expanduser().absolute()
    refuse_network_file_system(data)
    report = rescue.restore_from_tier(
        data,
        name,
        recovery or open_master_key(config, data),
        engine_options(config, workers=1),
        without_tiers=without_tiers,
        progress=progress,
    )
    adopt(data)
    finish(data)
    return report
