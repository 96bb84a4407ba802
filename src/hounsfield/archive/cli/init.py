"""``hounsfield init``."""

from __future__ import annotations

from pathlib import Path

import click

from hounsfield.archive.cli.options import config_options, effective_config, json_option
from hounsfield.archive.cli.output import out, print_json, remark


@click.command(
    "init",
    epilog="""\b
Examples:
  hounsfield init --data ./archive
  hounsfield init --data /srv/pacs --set keys.master_key=file:/etc/hounsfield/master.key --new-key""",
)
@config_options
@click.option(
    "--new-key", is_flag=True, help="Make the file that keys.master_key=file:PATH names; it must not exist."
)
@json_option
def command(
    *, config_file: Path | None, overrides: tuple[str, ...], data: str | None, new_key: bool, as_json: bool
) -> int:
    """Make an empty archive: the data directory, its keyring and a recovery key, which is printed once.

    The recovery key opens the archive when the master key is lost. It is stored nowhere: write it down.
    """
    from hounsfield.archive.app.data_directory import open_data_directory
    from hounsfield.archive.app.keys import key_source, make_master_key, open_keyring, open_master_key
    from hounsfield.archive.errors import DataDirectoryError
    from hounsfield.storage_backends.keyring import Keyring

    config = effective_config(config_file, overrides, data)
    if new_key:
        make_master_key(config, config.keys.master_key)
    directory = open_data_directory(Path(config.archive.data), create=True)
    try:
        if Keyring.exists(directory.path / "keys"):
            raise DataDirectoryError(f"{directory.path} is an archive already; nothing was changed")
        master = open_master_key(config, directory.path)
        recovery = open_keyring(directory.path, master, create=True).take_recovery_key()
    finally:
        directory.close()
    text = recovery.text() if recovery else None
    source = key_source(config)
    if as_json:
        print_json({"data": str(directory.path), "master_key": source, "recovery_key": text})
        return 0
    remark(f"made an archive in {directory.path}")
    remark(f"master key: {source}")
    if text:
        remark("recovery key, shown once; keep it where neither this machine nor its backups are:")
        out().print(text)
    return 0
