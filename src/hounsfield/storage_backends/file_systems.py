"""Directories and small files that are private and durable, and the file systems an index may live on."""

from __future__ import annotations

import ctypes
import fcntl
import os
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hounsfield.storage_backends.errors import NetworkFileSystemError

__all__ = [
    "NETWORK_FILE_SYSTEMS",
    "file_system_type",
    "locked_directory",
    "make_private_directory",
    "publish_file",
    "refuse_network_file_system",
    "sync_ancestors",
    "sync_directory",
    "write_private_file",
]

# statfs(2) f_type. FUSE is here because what stands behind it cannot be told.
NETWORK_FILE_SYSTEMS = {
    0x00006969: "NFS",
    0x0000517B: "SMB",
    0xFE534D42: "SMB2",
    0xFF534D42: "CIFS",
    0x65735546: "FUSE",
    0x00C36400: "Ceph",
    0x01021997: "9P",
    0x5346414F: "AFS",
    0x6B414653: "AFS",
    0x73757245: "Coda",
    0x0000564C: "NCP",
    0x0BD00BD0: "Lustre",
    0x01161970: "GFS2",
    0x7461636F: "OCFS2",
    0x47504653: "GPFS",
    0x786F4256: "VirtualBox shared folder",
}

_STATFS_BYTES = 512  # larger than struct statfs of any architecture; f_type is its first word


def file_system_type(path: Path) -> int | None:
    """The ``f_type`` of the file system ``path`` is on; None where it cannot be asked for."""
    if not sys.platform.startswith("linux"):
        return None
    buffer = ctypes.create_string_buffer(_STATFS_BYTES)
    library = ctypes.CDLL(None, use_errno=True)
    if library.statfs(os.fsencode(path), buffer):
        return None
    return ctypes.c_uint32.from_buffer(buffer).value  # little-endian machines: the low word of a long


def refuse_network_file_system(path: Path) -> None:
    """``NetworkFileSystemError`` when ``path`` is on one: memory maps and locks do not hold there."""
    name = NETWORK_FILE_SYSTEMS.get(file_system_type(path) or 0)
    if name is not None:
        raise NetworkFileSystemError(
            f"{path} is on {name}: an embedded index needs a local file system (or use PostgreSQL)"
        )


def make_private_directory(path: Path) -> None:
    """Bring ``path`` and what is missing above it into being, 0700 and durable; nothing when it is there."""
    if path.is_dir():
        return
    make_private_directory(path.parent)
    path.mkdir(mode=0o700, exist_ok=True)  # another process may have been faster
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Return when the names in a directory are durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_private_file(path: Path, data: bytes) -> None:
    """Bring a new 0600 file into being, synced, its name aside. ``OSError`` on a full disk, too."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        left = memoryview(data)
        while left:  # a disk that fills up takes a part, and says why at the next
            left = left[os.write(descriptor, left) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def publish_file(path: Path, data: bytes, *, replace: bool = False) -> bool:
    """Bring a whole, durable file into being under ``path``; False when one is there already. ``OSError``.

    A crash leaves it or not, never half of it, and perhaps a draft whose name ends in ``.new``.
    """
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}.new")
    try:
        write_private_file(draft, data)
        if replace:
            draft.replace(path)
        else:
            try:
                path.hardlink_to(draft)  # unlike a rename it never replaces what another process made
            except FileExistsError:
                return False
        sync_directory(path.parent)
    finally:
        with suppress(OSError):
            draft.unlink(missing_ok=True)
    return True


@contextmanager
def locked_directory(path: Path) -> Iterator[None]:
    """Hold a directory's lock, waiting for it: one process (or thread) at a time. No file is made for it."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def sync_ancestors(path: Path) -> None:
    """Return when the name of ``path`` and those of the directories it is in are durable.

    Whoever made these may have been killed before its own sync. What may not be read is somebody else's, was
    there before, and is left alone.
    """
    for folder in path.absolute().parents:
        try:
            sync_directory(folder)
        except PermissionError:
            return
