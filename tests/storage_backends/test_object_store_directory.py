"""A directory as a tier: a disk that is not mounted, full, read-only or failing; writers that are killed."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from hounsfield.storage_backends import directory_store
from hounsfield.storage_backends.directory_store import DirectoryLimits, DirectoryStore
from hounsfield.storage_backends.errors import (
    BlobNotFoundError,
    StorageError,
    StoreFullError,
    UnreadableError,
)
from hounsfield.storage_backends.object_store import (
    TIER_MARKER,
    StoreAwayError,
    StoreRefusedError,
    TierMarkerMissingError,
    claim_tier,
)

LIMITS = DirectoryLimits(reserve_bytes=0)
ARCHIVE = bytes(range(16))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "tier").mkdir()
    return tmp_path / "tier"


@pytest.fixture
def store(root: Path) -> DirectoryStore:
    store = DirectoryStore(root, LIMITS)
    claim_tier(store, ARCHIVE, first_time=True)
    store.put("packs/ab/object", [b"content"], 7)
    return store


ACTS: dict[str, Callable[[DirectoryStore], object]] = {
    "put": lambda store: store.put("packs/ab/new", [b"new"], 3),
    "create": lambda store: store.create("packs/ab/new", b"new"),
    "read": lambda store: store.read("packs/ab/object", 0, 7),
    "read_into": lambda store: store.read_into("packs/ab/object", 0, bytearray(7)),
    "stream": lambda store: list(store.stream("packs/ab/object")),
    "size": lambda store: store.size("packs/ab/object"),
    "names": lambda store: list(store.names()),
    "delete": lambda store: store.delete("packs/ab/object"),
}


# ---------------------------------------------------------------- disks that are not there


@pytest.mark.parametrize("act", ACTS)
def test_an_empty_mount_point_is_not_an_empty_tier(store: DirectoryStore, root: Path, act: str) -> None:
    root.rename(root.with_name("unmounted"))
    root.mkdir()
    with pytest.raises(TierMarkerMissingError, match="mounted"):
        ACTS[act](store)
    assert list(root.iterdir()) == []  # nothing was written below the mount point
    with pytest.raises(TierMarkerMissingError):
        claim_tier(store, ARCHIVE, first_time=False)
    root.rmdir()
    root.with_name("unmounted").rename(root)
    ACTS[act](store)  # it is mounted again: nothing has to be opened anew


@pytest.mark.parametrize("act", ACTS)
def test_a_directory_that_is_gone(store: DirectoryStore, root: Path, act: str) -> None:
    """It is never made: on whose disk would it be?"""
    root.rename(root.with_name("elsewhere"))
    with pytest.raises(TierMarkerMissingError):
        ACTS[act](store)
    assert not root.exists()


def test_a_disk_that_goes_while_an_object_is_put(store: DirectoryStore, root: Path) -> None:
    """What was begun on it ends on it; nothing is written to what is there instead."""

    def pieces() -> object:
        yield b"ne"
        root.rename(root.with_name("unmounted"))
        root.mkdir()
        yield b"w"

    store.put("packs/ab/new", pieces(), 3)  # type: ignore[arg-type]
    assert list(root.iterdir()) == []
    assert (root.with_name("unmounted") / "packs/ab/new").read_bytes() == b"new"


@pytest.mark.parametrize("number", [errno.ESTALE, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.ENOTCONN])
def test_a_server_that_is_away(store: DirectoryStore, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    failing(monkeypatch, "preadv", number)
    with pytest.raises(StoreAwayError):
        store.read("packs/ab/object", 0, 7)
    failing(monkeypatch, "fsync", number)
    with pytest.raises(StoreAwayError):
        store.put("packs/ab/new", [b"new"], 3)


def test_a_disk_that_does_not_give_bytes_back(store: DirectoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, "preadv", errno.EIO)
    with pytest.raises(UnreadableError, match="another copy"):
        store.read("packs/ab/object", 0, 7)
    with pytest.raises(UnreadableError):
        list(store.stream("packs/ab/object"))


# ---------------------------------------------------------------- disks that take nothing


@pytest.mark.parametrize(
    "number,error",
    [
        (errno.ENOSPC, StoreFullError),
        (errno.EDQUOT, StoreFullError),
        (errno.EROFS, StoreRefusedError),
        (errno.EACCES, StoreRefusedError),
        (errno.EIO, StoreAwayError),  # of a disk that fails, or of a server that a soft mount gave up
    ],
)
@pytest.mark.parametrize("call", ["open", "write", "fsync", "rename", "mkdir"])
def test_a_disk_that_takes_nothing(
    store: DirectoryStore,
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    call: str,
    number: int,
    error: type[StorageError],
) -> None:
    """At every call of a put: the error says which, and nothing is left."""
    if call == "open":
        real = os.open

        def refused(path: object, flags: int, *rest: object, **named: object) -> int:
            if flags & os.O_CREAT:
                raise OSError(number, os.strerror(number))
            return real(path, flags, *rest, **named)  # type: ignore[arg-type]

        monkeypatch.setattr(directory_store.os, "open", refused)
    else:
        failing(monkeypatch, call, number)
    with pytest.raises(error):
        store.put("packs/cd/new", [b"new"], 3)
    monkeypatch.undo()
    assert sorted(store.names("packs/")) == ["packs/ab/object"]
    assert list((root / ".incoming").iterdir()) == []


def test_space_is_kept(root: Path) -> None:
    found = os.statvfs(root)
    free = found.f_bavail * found.f_frsize
    store = DirectoryStore(root, DirectoryLimits(reserve_bytes=free // 2))
    claim_tier(store, ARCHIVE, first_time=True)
    store.put("small", [b"1"], 1)
    with pytest.raises(StoreFullError, match="free some space"):
        store.put("large", [], free // 2 + free // 4)  # refused before a piece is asked for
    assert store.read("small", 0, 1) == b"1"
    store.delete("small")


def test_a_key_that_is_a_folder(store: DirectoryStore) -> None:
    with pytest.raises(StoreRefusedError):
        store.put("packs/ab", [b"1"], 1)
    with pytest.raises(StoreRefusedError):
        store.put("packs/ab/object/below", [b"1"], 1)
    with pytest.raises(BlobNotFoundError):
        store.read("packs/ab", 0, 1)
    assert store.read("packs/ab/object", 0, 7) == b"content"


def test_links_lead_nowhere(store: DirectoryStore, root: Path, tmp_path: Path) -> None:
    """Whoever may write into the directory does not get other files read or written."""
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "file").write_bytes(b"secret")
    (root / "packs" / "link").symlink_to(tmp_path / "secret" / "file")
    (root / "packs" / "folder").symlink_to(tmp_path / "secret")
    with pytest.raises(StoreRefusedError):
        store.read("packs/link", 0, 6)
    with pytest.raises(StoreRefusedError):
        store.put("packs/folder/new", [b"1"], 1)
    assert "packs/folder/file" not in set(store.names())
    assert [path.name for path in (tmp_path / "secret").iterdir()] == ["file"]


def test_files_of_others_are_no_objects(store: DirectoryStore, root: Path) -> None:
    (root / "lost+found").mkdir()
    (root / "packs" / "ab" / "a copy.txt~").write_text("x")
    (root / "packs" / ".nfs0001").write_text("x")
    assert sorted(store.names()) == sorted([TIER_MARKER, "packs/ab/object"])


# ---------------------------------------------------------------- durability


def test_an_object_is_synced_before_its_name_is_and_both_before_a_put_returns(
    store: DirectoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    fsync, rename = os.fsync, os.rename

    def synced(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        steps.append("file" if path.parent.name == ".incoming" else path.name)
        fsync(descriptor)

    def renamed(*arguments: object, **named: object) -> None:
        steps.append("rename")
        rename(*arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(directory_store.os, "fsync", synced)
    monkeypatch.setattr(directory_store.os, "rename", renamed)
    store.put("packs/cd/new", [b"new"], 3)
    assert steps == ["file", "rename", "cd", "packs", "tier"]
    steps.clear()
    store.delete("packs/cd/new")
    assert steps == ["cd"]


def test_a_file_system_without_links_still_has_one_creator(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(monkeypatch, "link", errno.EOPNOTSUPP)
    store = DirectoryStore(root, LIMITS)
    assert claim_tier(store, ARCHIVE, first_time=True)
    assert not store.create(TIER_MARKER, b"other")
    assert not claim_tier(store, ARCHIVE, first_time=False)


# ---------------------------------------------------------------- writers that are killed

_WRITER = """
import sys
from hounsfield.storage_backends.directory_store import DirectoryLimits, DirectoryStore

def pieces():
    for _ in range(1000):
        yield bytes(1 << 20)
        print("piece", flush=True)
        sys.stdin.readline()

DirectoryStore(sys.argv[1], DirectoryLimits(reserve_bytes=0)).put("packs/ab/object", pieces(), 1000 << 20)
"""


def test_a_writer_that_is_killed_leaves_what_was_there_and_a_file_that_goes_later(
    store: DirectoryStore, root: Path
) -> None:
    writer = subprocess.Popen(
        [sys.executable, "-c", _WRITER, str(root)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert writer.stdin and writer.stdout
    with writer:
        assert writer.stdout.readline() == b"piece\n"
        writer.send_signal(signal.SIGKILL)
    assert store.read("packs/ab/object", 0, 7) == b"content"
    assert store.size("packs/ab/object") == 7
    assert set(store.names()) == {TIER_MARKER, "packs/ab/object"}
    (left,) = (root / ".incoming").iterdir()
    now = [time.time()]
    other = DirectoryStore(root, LIMITS, clock=lambda: now[0])
    other.put("packs/ab/new", [b"1"], 1)
    assert left.exists()  # it may be somebody's who is only slow
    now[0] += LIMITS.stale_s + 60
    other.put("packs/ab/new", [b"1"], 1)
    assert not left.exists()


def test_a_writer_under_way_is_not_stale(store: DirectoryStore, root: Path) -> None:
    """However long ago it began."""

    def pieces() -> object:
        yield b"ne"
        (draft,) = (root / ".incoming").iterdir()
        os.utime(draft, (0, time.time() - LIMITS.stale_s + 600))
        DirectoryStore(root, LIMITS).put("packs/ab/other", [b"1"], 1)
        yield b"w"

    store.put("packs/ab/new", pieces(), 3)  # type: ignore[arg-type]
    assert store.read("packs/ab/new", 0, 3) == b"new"


def test_no_descriptor_is_lost(store: DirectoryStore) -> None:
    before = descriptors()
    for act in ACTS.values():
        act(store)
    for _ in range(3):
        stream = store.stream(TIER_MARKER)
        next(stream)
        del stream
        with pytest.raises(BlobNotFoundError):
            store.read("none", 0, 1)
        names = store.names()
        next(names)
        del names
        with pytest.raises(ValueError):
            store.put("new", [b"1"], 2)
    assert descriptors() == before


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def failing(monkeypatch: pytest.MonkeyPatch, call: str, number: int) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(directory_store.os, call, fail)
