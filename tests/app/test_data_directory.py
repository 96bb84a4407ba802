"""Whose directory it is: made once, locked; refused when foreign, of another layout, or on a share."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest

from hounsfield.archive.app.data_directory import (
    file_system_of,
    open_data_directory,
    refuse_network_file_system,
)
from hounsfield.archive.errors import DataDirectoryBusyError, DataDirectoryError

MOUNTS = """\
22 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw
30 22 0:50 / /srv/pacs rw,relatime shared:1 - nfs4 nas:/pacs rw
31 30 8:2 / /srv/pacs/local rw - xfs /dev/sdb1 rw
32 22 0:51 / /mnt/with\\040space rw - fuse.sshfs host:/ rw
"""


def test_an_empty_directory_becomes_ours(tmp_path: Path) -> None:
    with_lost_and_found = tmp_path / "disk"
    (with_lost_and_found / "lost+found").mkdir(parents=True)
    made = open_data_directory(with_lost_and_found, create=True)
    assert made.created
    made.close()
    again = open_data_directory(with_lost_and_found, create=False)
    assert not again.created
    again.close()


def test_a_second_lock_is_refused_and_names_the_holder(tmp_path: Path) -> None:
    first = open_data_directory(tmp_path / "d", create=True)
    with pytest.raises(DataDirectoryBusyError, match=f"process {os.getpid()}") as caught:
        open_data_directory(tmp_path / "d", create=True)
    assert caught.value.retry
    first.close()
    open_data_directory(tmp_path / "d", create=True).close()


def test_a_foreign_directory_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "letters.txt").write_text("mine")
    with pytest.raises(DataDirectoryError, match="not empty and not a Hounsfield data directory"):
        open_data_directory(tmp_path, create=True)
    assert [entry.name for entry in tmp_path.iterdir()] == ["letters.txt"]


def test_nothing_is_made_unless_asked(tmp_path: Path) -> None:
    with pytest.raises(DataDirectoryError, match="hounsfield init"):
        open_data_directory(tmp_path / "none", create=False)
    with pytest.raises(DataDirectoryError, match="hounsfield init"):
        open_data_directory(tmp_path, create=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("marker", ["", "{}", '{"layout": 99}', "[1]"])
def test_another_layout_is_refused(tmp_path: Path, marker: str) -> None:
    open_data_directory(tmp_path / "d", create=True).close()
    (tmp_path / "d" / "hounsfield.json").write_text(marker)
    with pytest.raises(DataDirectoryError):
        open_data_directory(tmp_path / "d", create=True)
    (tmp_path / "d" / "hounsfield.json").write_text('{"layout": 1}')
    open_data_directory(tmp_path / "d", create=True).close()  # and the lock was not kept


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/srv/pacs/data", "nfs4"),
        ("/srv/pacs/local/data", "xfs"),
        ("/srv/pacsdata", "ext4"),
        ("/mnt/with space/x", "fuse.sshfs"),
    ],
)
def test_the_file_system_is_the_deepest_mounts(path: str, kind: str) -> None:
    assert file_system_of(Path(path), MOUNTS) == kind


def test_network_file_systems_are_refused() -> None:
    for path in ("/srv/pacs/data", "/mnt/with space/x"):
        with pytest.raises(DataDirectoryError, match="network file system"):
            refuse_network_file_system(Path(path), MOUNTS)
    refuse_network_file_system(Path("/srv/pacs/local/data"), MOUNTS)


@pytest.mark.parametrize(
    "left", [(), ("keys",), ("keys", "index", "segments", "ledger", ".hounsfield.json.new")]
)
def test_an_interrupted_first_start_is_gone_on_with(tmp_path: Path, left: tuple[str, ...]) -> None:
    """A power cut in the middle of it is no reason to ask an administrator to clean up."""
    data = tmp_path / "data"
    data.mkdir()
    for name in left:
        (data / name).write_bytes(b"{") if name.startswith(".") else (data / name).mkdir()
    with contextlib.closing(open_data_directory(data, create=True)) as directory:
        assert directory.created
    with contextlib.closing(open_data_directory(data, create=True)) as directory:
        assert not directory.created


def test_directories_with_content_are_not_taken_for_our_beginnings(tmp_path: Path) -> None:
    data = tmp_path / "data"
    (data / "segments").mkdir(parents=True)
    (data / "segments" / "somebody's").write_bytes(b"file")
    with pytest.raises(DataDirectoryError, match="not empty"):
        open_data_directory(data, create=True)
