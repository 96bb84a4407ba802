"""The data directory: whose it is, that one server has it, and what stands in it.

::

    DATA/
      hounsfield.json   what this directory is, and of which layout version
      lock              flock()ed by the supervisor and, by inheritance, its workers
      control.sock      how the command line talks to a running server (0600)
      keys/             wrapped keys            index/    the sealed index
      segments/         sealed objects          ledger/   sealed facts
      derived/          what can be made again at any time (prepared metadata); need not be backed up
      import/           the doors of `hounsfield import`, and what it has done with; need not be backed up
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hounsfield import __version__
from hounsfield.archive.errors import DataDirectoryBusyError, DataDirectoryError
from hounsfield.storage_backends.file_systems import make_private_directory, sync_ancestors, sync_directory

LAYOUT_VERSION = 1
MARKER = "hounsfield.json"
LOCK = "lock"
CONTROL_SOCKET = "control.sock"
IMPORT = "import"
_MARKER_DRAFT = f".{MARKER}.new"
SUBDIRECTORIES = ("keys", "index", "segments", "ledger", "derived")

# File systems on which another machine may write at the same time, or whose locks and memory maps are not
# those of a local disk. The index does not survive them.
_NETWORK = frozenset(
    {
        "9p", "afs", "beegfs", "ceph", "cifs", "coda", "davfs", "gfs", "gfs2", "glusterfs", "gpfs",
        "lustre", "ncpfs", "nfs", "nfs4", "ocfs2", "orangefs", "pvfs2", "smb", "smb2", "smb3",
        "smbfs", "fuse.ceph", "fuse.curlftpfs", "fuse.davfs2", "fuse.glusterfs", "fuse.juicefs",
        "fuse.rclone", "fuse.s3fs", "fuse.sshfs",
    }
)  # fmt: skip
_IGNORED = frozenset({LOCK, CONTROL_SOCKET, "lost+found"})


@dataclass(frozen=True)
class DataDirectory:
    """A locked data directory. Workers inherit ``lock_fd``, so the lock outlives a killed supervisor."""

    path: Path
    lock_fd: int
    created: bool

    def close(self) -> None:
        """Give up the lock (once no worker holds it either)."""
        with contextlib.suppress(OSError):
            os.close(self.lock_fd)


def file_system_of(path: Path, mountinfo: str | None = None) -> str:
    """The type of the file system that ``path`` is on, or "" when the kernel does not say."""
    if mountinfo is None:
        try:
            mountinfo = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""
    best, kind = "", ""
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        fields = left.split()
        if len(fields) < 5 or not right:
            continue
        mount = fields[4].replace("\\040", " ")
        if Path(path).is_relative_to(mount) and len(mount) >= len(best):
            best, kind = mount, right.split()[0]
    return kind


def refuse_network_file_system(path: Path, mountinfo: str | None = None) -> None:
    """Raise DataDirectoryError when ``path`` is on a file system that other machines share."""
    kind = file_system_of(path, mountinfo)
    if kind in _NETWORK:
        raise DataDirectoryError(
            f"{path} is on a network file system ({kind}), where the index is not safe: "
            f"put the data directory on a local disk"
        )


def open_data_directory(path: Path, *, create: bool) -> DataDirectory:
    """Lock ``path``, which is made and initialised when it is missing or empty and ``create`` is true.

    Raises DataDirectoryBusyError when somebody has it, DataDirectoryError when it cannot be ours.
    """
    path = path.expanduser().absolute()
    if not path.exists():
        if not create:
            raise DataDirectoryError(f"no data directory {path}: `hounsfield init --data {path}` makes one")
        try:
            make_private_directory(path)
        except OSError as error:
            raise DataDirectoryError(
                f"cannot make the data directory {path}: {error.strerror}; give another with --data"
            ) from error
    path = path.resolve()
    refuse_network_file_system(path)
    foreign = not (path / MARKER).exists() and any(not _is_ours(path / entry) for entry in _names(path))
    if foreign:
        raise DataDirectoryError(
            f"{path} is not empty and not a Hounsfield data directory: give an empty or a new one"
        )
    if not create and not (path / MARKER).exists():
        raise DataDirectoryError(
            f"{path} is empty, not a data directory yet: run `hounsfield init --data {path}`"
        )
    lock_fd = _lock(path)
    try:
        created = not (path / MARKER).exists()
        if created:
            _initialise(path)
        else:
            _check_version(path)
    except BaseException:
        os.close(lock_fd)
        raise
    return DataDirectory(path, lock_fd, created)


def _is_ours(entry: Path) -> bool:
    """Whether this may stand in a directory that becomes ours: an interrupted start leaves its beginnings."""
    if entry.name in SUBDIRECTORIES:
        return entry.is_dir() and not any(entry.iterdir())
    return entry.name in _IGNORED or entry.name == _MARKER_DRAFT


def _names(path: Path) -> Iterator[str]:
    try:
        yield from (entry.name for entry in path.iterdir())
    except OSError as error:
        raise DataDirectoryError(f"cannot use the data directory {path}: {error.strerror}") from error


def _lock(path: Path) -> int:
    try:
        fd = os.open(path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise DataDirectoryError(f"cannot write in the data directory {path}: {error.strerror}") from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = os.pread(fd, 32, 0).decode("ascii", "replace").strip()
        os.close(fd)
        if error.errno not in (errno.EAGAIN, errno.EACCES):
            raise DataDirectoryError(f"cannot lock {path}: {error.strerror}") from error
        by = f" (process {holder})" if holder else ""
        raise DataDirectoryBusyError(
            f"another Hounsfield{by} is running on {path}: stop it first, or use another data directory"
        ) from error
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    return fd


def _initialise(path: Path) -> None:
    path.chmod(0o700)
    for name in SUBDIRECTORIES:
        (path / name).mkdir(mode=0o700, exist_ok=True)
    marker = {"format": "hounsfield data directory", "layout": LAYOUT_VERSION, "created_by": __version__}
    # What the marker stands for is durable before it: the marker makes the directory ours.
    sync_ancestors(path)
    sync_directory(path)
    temporary = path / _MARKER_DRAFT
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(marker, file)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path / MARKER)
    sync_directory(path)


def adopt(path: Path) -> None:
    """Make a directory that a restore has filled a data directory. It is durable when this returns."""
    _initialise(path)


def _check_version(path: Path) -> None:
    try:
        marker = json.loads((path / MARKER).read_text(encoding="utf-8"))
        layout = marker["layout"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataDirectoryError(f"{path / MARKER} is damaged: restore it from a backup") from error
    if layout != LAYOUT_VERSION:
        raise DataDirectoryError(
            f"{path} has layout {layout}, this release knows {LAYOUT_VERSION}: "
            f"use the release that wrote it, or a newer one"
        )
