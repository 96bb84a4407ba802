"""What every blob store must do."""

from __future__ import annotations

import mmap
import random
from collections.abc import Callable

from hounsfield.storage_backends.api import BlobStore, Buffer, NonBlockingReads
from hounsfield.storage_backends.errors import (
    BlobExistsError,
    BlobNotFoundError,
    PoisonedError,
    ShortReadError,
)
from hounsfield.storage_backends.testing.expectations import raises, run_all

__all__ = ["BLOB_CHECKS"]

OpenBlobs = Callable[[], BlobStore]


def what_is_appended_is_read(open_blobs: OpenBlobs) -> None:
    blobs = open_blobs()
    writer = blobs.create("segments/a")
    assert writer.name == "segments/a"
    assert writer.size == 0
    assert writer.append([b"one", bytearray(b"two"), memoryview(b"three")]) == 0
    assert writer.append([]) == 11
    assert writer.append([b"", b"four"]) == 11
    assert writer.size == 15
    writer.sync()
    size = writer.size
    writer.sync()
    assert writer.size == size
    assert blobs.read("segments/a", 0, 15) == b"onetwothreefour"
    assert blobs.read("segments/a", 3, 3) == b"two"
    assert blobs.read("segments/a", 15, 0) == b""
    assert size in (15, 4096)
    assert blobs.read("segments/a", 15, size - 15) == bytes(size - 15)
    buffer = bytearray(b"......")
    blobs.read_into("segments/a", 6, memoryview(buffer)[:5])
    assert buffer == b"three."
    assert blobs.size("segments/a") == size
    assert writer.append([b"five"]) == size
    writer.sync()
    assert blobs.read("segments/a", size, 4) == b"five"
    writer.close()
    writer.close()
    blobs.close()


def more_buffers_than_one_call_takes(open_blobs: OpenBlobs) -> None:
    blobs = open_blobs()
    writer = blobs.create("many")
    pieces = [number.to_bytes(4, "big") for number in range(5000)]
    writer.append(pieces)
    writer.sync()
    assert blobs.read("many", 0, 20_000) == b"".join(pieces)
    writer.close()
    blobs.close()


def any_appends_come_back(open_blobs: OpenBlobs) -> None:
    """Buffers of all lengths, from writable and read-only memory, aligned and not, in any groups."""
    blobs = open_blobs()
    choose = random.Random(11)  # noqa: S311
    writer = blobs.create("any")
    pages = memoryview(mmap.mmap(-1, 4 << 20))
    pages[:] = choose.randbytes(len(pages))
    expected: list[tuple[int, bytes]] = []
    unsynced: list[tuple[int, bytes]] = []
    lengths = (0, 1, 511, 4095, 4096, 4097, 8192, 100_000, (1 << 20) - 1, 1 << 20, (1 << 20) + 4097)
    for _ in range(60):
        buffers: list[Buffer] = []
        for _ in range(choose.randrange(4)):
            length = choose.choice(lengths)
            start = choose.choice((0, 4096, 4097, choose.randrange(1 << 20)))
            piece = pages[start : start + length]
            buffers.append(choose.choice((piece, bytes(piece), bytearray(piece))))
        before = writer.size
        assert writer.append(buffers) == before
        unsynced.append((before, b"".join(buffers)))
        assert writer.size == before + len(unsynced[-1][1])
        if choose.random() < 0.4:
            writer.sync()
            for at, content in unsynced:
                assert blobs.read("any", at, len(content)) == content
            expected += unsynced
            unsynced = []
            assert blobs.size("any") == writer.size
            end = expected[-1][0] + len(expected[-1][1])
            assert blobs.read("any", end, writer.size - end) == bytes(writer.size - end)
    for at, content in expected:
        assert blobs.read("any", at, len(content)) == content
    writer.close()
    blobs.close()


def synced_blobs_are_there_after_reopening(open_blobs: OpenBlobs) -> None:
    blobs = open_blobs()
    writer = blobs.create("deep/er/name")
    writer.append([b"kept"])
    writer.sync()
    writer.close()
    blobs.close()
    blobs = open_blobs()
    assert blobs.read("deep/er/name", 0, 4) == b"kept"
    with raises(BlobExistsError):
        blobs.create("deep/er/name")
    blobs.close()


def a_name_is_created_once(open_blobs: OpenBlobs) -> None:
    blobs = open_blobs()
    blobs.create("name").close()
    with raises(BlobExistsError):
        blobs.create("name")
    blobs.close()


def names_never_leave_the_store(open_blobs: OpenBlobs) -> None:
    blobs = open_blobs()
    for name in (
        "",
        "..",
        "../up",
        "/root",
        "a/../b",
        "a//b",
        "a/",
        ".hidden",
        "a/.hidden",
        "a\0b",
        "a b",
        "ä",
    ):
        with raises(ValueError):
            blobs.create(name)
        with raises(ValueError):
            blobs.read(name, 0, 1)
    assert blobs.names() == []
    blobs.close()


def missing_blobs_are_said_to_be_missing(open_blobs: OpenBlobs) -> None:
    blobs = open_blobs()
    with raises(BlobNotFoundError):
        blobs.read("none", 0, 1)
    with raises(BlobNotFoundError):
        blobs.read_into("none", 0, bytearray(1))
    with raises(BlobNotFoundError):
        blobs.size("none")
    with raises(BlobNotFoundError):
        blobs.delete("none")
    if isinstance(blobs, NonBlockingReads):
        with raises(BlobNotFoundError):
            blobs.try_read_into("none", 0, bytearray(1))
    blobs.close()


def short_ranges_are_refused(open_blobs: OpenBlobs) -> None:
    blobs = open_blobs()
    writer = blobs.create("short")
    writer.append([b"12345"])
    writer.sync()
    end = writer.size
    for offset, length in ((0, end + 1), (end, 1), (end - 1, 2), (end + 1000, 1)):
        with raises(ShortReadError):
            blobs.read("short", offset, length)
        with raises(ShortReadError):
            blobs.read_into("short", offset, bytearray(length))
    writer.close()
    blobs.close()


def names_are_sorted_and_by_prefix(open_blobs: OpenBlobs) -> None:
    blobs = open_blobs()
    for name in ("b/2", "a", "b/10", "c", "b/1", "bb"):
        blobs.create(name).close()
    assert blobs.names() == ["a", "b/1", "b/10", "b/2", "bb", "c"]
    assert blobs.names("b/") == ["b/1", "b/10", "b/2"]
    assert blobs.names("b/1") == ["b/1", "b/10"]
    assert blobs.names("none/") == []
    blobs.close()


def deleted_blobs_are_gone(open_blobs: OpenBlobs) -> None:
    blobs = open_blobs()
    writer = blobs.create("gone")
    writer.append([b"12345"])
    writer.sync()
    writer.close()
    assert blobs.read("gone", 0, 5) == b"12345"
    blobs.delete("gone")
    assert blobs.names() == []
    with raises(BlobNotFoundError):
        blobs.read("gone", 0, 5)
    writer = blobs.create("gone")
    writer.append([b"new"])
    writer.sync()
    assert blobs.read("gone", 0, 3) == b"new"
    writer.close()
    blobs.close()


def a_closed_writer_takes_nothing(open_blobs: OpenBlobs) -> None:
    blobs = open_blobs()
    writer = blobs.create("closed")
    writer.append([b"1"])
    writer.sync()
    writer.close()
    with raises(PoisonedError):
        writer.append([b"2"])
    with raises(PoisonedError):
        writer.sync()
    assert blobs.size("closed") == writer.size
    blobs.close()


def reading_without_waiting_is_exact_or_refused(open_blobs: OpenBlobs) -> None:
    blobs = open_blobs()
    if isinstance(blobs, NonBlockingReads):
        writer = blobs.create("warm")
        writer.append([bytes(range(256)) * 64])
        writer.sync()
        buffer = bytearray(100)
        if blobs.try_read_into("warm", 200, buffer):
            assert buffer == (bytes(range(256)) * 2)[200:300]
        writer.close()
    blobs.close()


def readers_and_a_writer_at_once(open_blobs: OpenBlobs) -> None:
    """Many threads read many blobs (more than a descriptor cache keeps) while they grow and vanish."""
    blobs = open_blobs()
    problems: list[BaseException] = []

    def content(number: int) -> bytes:
        return number.to_bytes(2, "big") * 500

    writers = [blobs.create(f"many/{number}") for number in range(40)]
    for number, writer in enumerate(writers):
        writer.append([content(number)])
        writer.sync()

    def read(seed: int) -> None:
        choose = random.Random(seed)  # noqa: S311
        try:
            for _ in range(300):
                number = choose.randrange(40)
                assert blobs.read(f"many/{number}", 0, 1000) == content(number)
        except BaseException as error:  # noqa: BLE001 - handed to the checking thread
            problems.append(error)

    def churn() -> None:
        try:
            for number in range(60):
                writer = blobs.create(f"churn/{number}")
                writer.append([b"x" * 100])
                writer.sync()
                writer.close()
                assert blobs.read(f"churn/{number}", 0, 100) == b"x" * 100
                blobs.delete(f"churn/{number}")
        except BaseException as error:  # noqa: BLE001
            problems.append(error)

    run_all([*(lambda seed=seed: read(seed) for seed in range(4)), churn])
    for writer in writers:
        writer.close()
    blobs.close()
    assert not problems, problems


BLOB_CHECKS: tuple[Callable[[OpenBlobs], None], ...] = (
    what_is_appended_is_read,
    more_buffers_than_one_call_takes,
    any_appends_come_back,
    synced_blobs_are_there_after_reopening,
    a_name_is_created_once,
    names_never_leave_the_store,
    missing_blobs_are_said_to_be_missing,
    short_ranges_are_refused,
    names_are_sorted_and_by_prefix,
    deleted_blobs_are_gone,
    a_closed_writer_takes_nothing,
    reading_without_waiting_is_exact_or_refused,
    readers_and_a_writer_at_once,
)
