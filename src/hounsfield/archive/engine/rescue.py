"""The data directory is lost, and its backups: from what a tier holds back to an archive that serves.

A tier has the wrapped root key, and with each pack its wrapped key (docs/decisions/0025-tiers.md), so that it
and the master key, or the recovery key, are enough to read what lies there. What is back are the packs of all
tiers: objects as they were received, under what their headers say. What only the data directory had is not:
objects in no tier, and the ledger, with corrections, rejections, holds and deletions. An object that was
deleted and is in a pack still is there again.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection
from pathlib import Path

from hounsfield.archive.engine.backup import BackupError, silent, write_file
from hounsfield.archive.engine.restore import Progress, RestoreReport, claim, make_index
from hounsfield.archive.engine.stores import Stores, StoresOptions
from hounsfield.archive.engine.tiers import open_place
from hounsfield.archive.index.tier_notes import ROOT_KEY, read_small
from hounsfield.storage_backends.file_systems import make_private_directory
from hounsfield.storage_backends.keyring import Keyring
from hounsfield.storage_backends.master_key import MasterKey, RecoveryKey


def restore_from_tier(
    data: Path,
    name: str,
    key: MasterKey | RecoveryKey,
    options: StoresOptions,
    *,
    without_tiers: Collection[str] = (),
    progress: Progress = silent,
) -> RestoreReport:
    """Make ``data``, an empty directory, an archive of what the tiers hold, all but its marker.

    ``name``: the tier whose root key is taken; the other configured ones give their packs, too, and
    ``TierAwayError`` is raised when one does not answer, unless it is among ``without_tiers`` or, as the
    others say, was never used.
    ``BackupError`` when there is no such tier, or no root key in it; ``MasterKeyError`` when ``key`` does not
    open that. Killed, the same goes on.
    """
    root = _root_of(name, options)
    claim(data, f"tier {name}")
    for folder in ("keys", "segments", "ledger"):
        make_private_directory(data / folder)
    write_file(data / "keys" / "root", root, replace=True)
    keyring = Keyring.open(data / "keys", key)
    shutil.rmtree(data / "index", ignore_errors=True)  # of an earlier try
    stores = Stores.open(data, keyring, options)
    report = RestoreReport(index_made_anew=True)
    try:
        progress("asking the tiers", 0, 1)
        far = stores.far_packs(without=without_tiers, fetch_keys=True)
        report.unused_tiers = sorted(far.unused)
        report.far_keys = report.keys = len(keyring.key_ids("segment"))
        make_index(stores, report, progress, far)
    finally:
        stores.close()
    return report


def _root_of(name: str, options: StoresOptions) -> bytes:
    for one in options.tiering.tiers:
        if one.name == name:
            store = open_place(one)
            try:
                root = read_small(store, ROOT_KEY)
            finally:
                store.close()
            if root is None:
                raise BackupError(f"tier {name} holds no root key: no archive ever put a pack there")
            return root
    known = ", ".join(one.name for one in options.tiering.tiers) or "none"
    raise BackupError(f"config.toml has no tier {name}: it has {known}")
