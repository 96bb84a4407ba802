"""Every blob store passes the same suite, and the local one fails as the contract says."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from hounsfield.storage_backends import local_blobs, local_writer
from hounsfield.storage_backends.api import BlobStore, NonBlockingReads, SpaceReserve, WritesBlocks
from hounsfield.storage_backends.errors import BlobNotFoundError, PoisonedError, StoreFullError
from hounsfield.storage_backends.local_blobs import LocalBlobLimits, LocalBlobs
from hounsfield.storage_backends.memory_blobs import MemoryBlobs
from hounsfield.storage_backends.testing import BLOB_CHECKS
from support.crash_disk import CrashDisk

FEW = LocalBlobLimits(open_files=3, reserve_bytes=0)


@pytest.fixture(params=["direct", "buffered", "refused", "memory", "crash disk"])
def open_blobs(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[], BlobStore]:
    if request.param == "refused":
        refuse_direct_writes(monkeypatch)
    if request.param in {"direct", "buffered", "refused"}:
        return lambda: LocalBlobs(tmp_path / "blobs", limits=FEW, direct=request.param != "buffered")
    store = MemoryBlobs() if request.param == "memory" else CrashDisk()
    return lambda: store


@pytest.mark.parametrize("check", BLOB_CHECKS, ids=lambda check: check.__name__)
def test_conformance(
    check: Callable[[Callable[[], BlobStore]], None], open_blobs: Callable[[], BlobStore]
) -> None:
    check(open_blobs)


def refuse_direct_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that takes O_DIRECT when a file is opened and no write with it."""
    real = os.pwritev

    def write(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return real(descriptor, buffers, offset)

    monkeypatch.setattr(local_writer.os, "pwritev", write)


@pytest.fixture(params=["direct", "buffered"])
def blobs(request: pytest.FixtureRequest, tmp_path: Path) -> LocalBlobs:
    return LocalBlobs(tmp_path / "blobs", limits=FEW, direct=request.param == "direct")


def pages(length: int) -> memoryview:
    """Memory that direct writes take as it is."""
    return memoryview(mmap.mmap(-1, length))


def test_optional_capabilities(blobs: LocalBlobs) -> None:
    assert isinstance(blobs.create("a"), WritesBlocks)
    assert isinstance(blobs, NonBlockingReads)
    assert isinstance(blobs, SpaceReserve)


def test_only_the_owner_can_read(blobs: LocalBlobs, tmp_path: Path) -> None:
    blobs.create("a/b/c").close()
    assert stat.S_IMODE((tmp_path / "blobs/a/b/c").stat().st_mode) == 0o600
    for folder in ("blobs", "blobs/a", "blobs/a/b"):
        assert stat.S_IMODE((tmp_path / folder).stat().st_mode) == 0o700


@pytest.mark.parametrize(
    ("number", "expected"),
    [(errno.ENOSPC, StoreFullError), (errno.EDQUOT, StoreFullError), (errno.EIO, PoisonedError)],
)
def test_a_failed_write_poisons(
    blobs: LocalBlobs, monkeypatch: pytest.MonkeyPatch, number: int, expected: type[Exception]
) -> None:
    writer = blobs.create("a")
    writer.append([b"before"])
    writer.sync()
    size = writer.size

    def fail(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(local_blobs.os, "pwritev", fail)
        with pytest.raises(expected):
            writer.append([b"lost"])
            writer.sync()
    for call in (lambda: writer.append([b"again"]), writer.sync):
        with pytest.raises(PoisonedError):
            call()
    assert blobs.read("a", 0, 6) == b"before"
    assert blobs.size("a") == size


def test_a_short_write_poisons(blobs: LocalBlobs, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = blobs.create("a")
    real = os.pwritev
    with monkeypatch.context() as patch:
        patch.setattr(local_writer.os, "pwritev", lambda fd, buffers, at: real(fd, [buffers[0][:4096]], at))
        with pytest.raises(StoreFullError):
            writer.append([pages(8192)])
    with pytest.raises(PoisonedError):
        writer.append([b"345"])
    with pytest.raises(PoisonedError):
        writer.sync()
    assert blobs.size("a") == 4096


def test_a_real_full_disk_poisons(blobs: LocalBlobs) -> None:
    """The kernel's own refusal, by the file size limit (EFBIG), which counts as full."""
    import resource
    import signal

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    writer = blobs.create("a")
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (12_288, before[1]))
        writer.append([pages(8192)])
        with pytest.raises(StoreFullError):
            writer.append([pages(8192)])
        with pytest.raises(PoisonedError):
            writer.append([b""])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("call", ["fdatasync", "fsync"])
def test_a_failed_sync_poisons_and_is_never_retried(
    blobs: LocalBlobs, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    writer = blobs.create("folder/a")
    writer.append([b"data"])

    def fail(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(local_blobs.os, call, fail)
        with pytest.raises(PoisonedError):
            writer.sync()
    for again in (writer.sync, lambda: writer.append([b"more"])):
        with pytest.raises(PoisonedError):
            again()


def test_the_first_sync_covers_every_new_name(blobs: LocalBlobs, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    real = os.fsync

    def record(descriptor: int) -> None:
        synced.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        real(descriptor)

    monkeypatch.setattr(local_blobs.os, "fsync", record)
    writer = blobs.create("a/b/c")
    synced.clear()  # what making the folders did: another process may have made them, and not got to that
    writer.append([b"1"])
    writer.sync()
    root = str(blobs._root)
    assert synced == [root + "/a/b", root + "/a", root]
    writer.append([b"2"])
    writer.sync()
    assert len(synced) == 3  # once is enough
    blobs.delete("a/b/c")
    assert synced[3:] == [root + "/a/b"]


def test_gather_writes_are_cut_at_what_the_kernel_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_writer, "_GATHER_BYTES_MAX", 10)
    monkeypatch.setattr(local_writer, "_IOV_MAX", 3)
    pieces = [b"123456789012345", b"", b"a", b"b", b"c", b"d", b"e" * 21]
    groups = list(local_writer._gather(pieces))
    assert b"".join(bytes(b) for group, _ in groups for b in group) == b"".join(pieces)
    for group, length in groups:
        assert 1 <= len(group) <= 3
        assert length == sum(map(len, group)) <= 10


def test_the_reserve_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    blobs = LocalBlobs(tmp_path, limits=LocalBlobLimits(reserve_bytes=1 << 62))
    with pytest.raises(StoreFullError, match="free some space"):
        blobs.require_space(1)
    LocalBlobs(tmp_path, limits=FEW).require_space(1)


def test_descriptors_are_bounded_and_not_closed_under_a_reader(tmp_path: Path) -> None:
    blobs = LocalBlobs(tmp_path, limits=FEW)
    for number in range(10):
        writer = blobs.create(f"b{number}")
        writer.append([b"%d" % number])
        writer.sync()
        writer.close()
    with blobs._files.borrow("b0", blobs._path) as descriptor:
        for number in range(1, 10):
            assert blobs.read(f"b{number}", 0, 1) == b"%d" % number
        assert blobs.statistics()["open_files"] == 3
        blobs.delete("b0")
        assert os.pread(descriptor, 1, 0) == b"0"
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)
    with pytest.raises(BlobNotFoundError):
        blobs.read("b0", 0, 1)
    blobs.close()
    assert blobs.statistics()["open_files"] == 0


def test_disk_of_blobs_that_another_process_deleted_is_given_back(tmp_path: Path) -> None:
    blobs, other = LocalBlobs(tmp_path, limits=FEW), LocalBlobs(tmp_path, limits=FEW)
    blobs.create("a").close()
    blobs.read("a", 0, 0)
    other.delete("a")
    assert blobs.release_deleted() == 1
    assert blobs.statistics()["open_files"] == 0


def test_a_read_that_would_wait_is_refused(blobs: LocalBlobs, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = blobs.create("a")
    writer.append([b"12345"])
    writer.sync()
    real = os.preadv

    def cold(fd: int, buffers: list[memoryview], offset: int, flags: int = 0) -> int:
        if flags & os.RWF_NOWAIT:
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
        return real(fd, buffers, offset)

    monkeypatch.setattr(local_blobs.os, "preadv", cold)
    assert not blobs.try_read_into("a", 0, bytearray(5))
    monkeypatch.setattr(local_blobs.os, "preadv", lambda *_: 3)  # the first page only
    assert not blobs.try_read_into("a", 0, bytearray(5))
    assert blobs.read("a", 0, 5) == b"12345"


def test_the_living_writer_of_a_blob_is_known(blobs: LocalBlobs) -> None:
    writer = blobs.create("a")
    assert blobs.is_being_written("a")
    writer.close()
    assert not blobs.is_being_written("a")


def test_a_dead_process_is_not_a_writer(tmp_path: Path) -> None:
    program = (
        "import os, sys\n"
        "from hounsfield.storage_backends.local_blobs import LocalBlobs\n"
        "blobs = LocalBlobs(sys.argv[1])\n"
        "writer = blobs.create('a')\n"
        "print(blobs.is_being_written('a'), flush=True)\n"
        "sys.stdin.read()\n"
        "os.kill(os.getpid(), 9)\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "True\n"
        blobs = LocalBlobs(tmp_path, limits=FEW)
        assert blobs.is_being_written("a")
        process.communicate()
    assert process.returncode == -9
    assert not blobs.is_being_written("a")
