"""Writes past the page cache: what reaches the kernel, what readers see, and where it is refused."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import random
import threading
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hounsfield.storage_backends import local_writer
from hounsfield.storage_backends.errors import PoisonedError, ShortReadError, StoreFullError
from hounsfield.storage_backends.keyring import Keyring
from hounsfield.storage_backends.local_blobs import LocalBlobLimits, LocalBlobs
from hounsfield.storage_backends.local_writer import BLOCK_BYTES, STAGING_BYTES
from hounsfield.storage_backends.segment_appending import RecordIn, SegmentLimits
from hounsfield.storage_backends.segment_scan import ScannedRecord
from hounsfield.storage_backends.segments import SegmentLog

NO_RESERVE = LocalBlobLimits(reserve_bytes=0)


class Writes:
    """Every write of this process: (offset, length, whether direct)."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: list[tuple[int, int, bool]] = []
        real = os.pwritev

        def write(descriptor: int, buffers: list[memoryview], offset: int) -> int:
            direct = bool(fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT)
            self.seen.append((offset, sum(map(len, buffers)), direct))
            return real(descriptor, buffers, offset)

        monkeypatch.setattr(local_writer.os, "pwritev", write)


@pytest.fixture
def blobs(tmp_path: Path) -> LocalBlobs:
    """A store whose directory takes direct writes; skips where it does not."""
    blobs = LocalBlobs(tmp_path / "data", limits=NO_RESERVE)
    blobs.create("probe").close()
    if not blobs.statistics()["writers_direct"]:
        pytest.skip("this file system takes no direct writes")
    return blobs


def pages(content: bytes) -> memoryview:
    buffer = mmap.mmap(-1, max(len(content), 1))
    buffer[: len(content)] = content
    return memoryview(buffer)[: len(content)]


def test_aligned_memory_is_written_from_where_it_is(
    blobs: LocalBlobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    writes = Writes(monkeypatch)
    writer = blobs.create("a")
    assert writer.append([pages(b"x" * 10_000)]) == 0
    assert writes.seen == [(0, 8192, True)]
    assert writer.size == 10_000
    writer.append([pages(b"y" * 4096)])  # a tail waits: what follows goes through the staging buffer
    assert len(writes.seen) == 1
    writer.sync()
    assert writes.seen[1:] == [(8192, 8192, True)]
    assert writer.size == 16_384
    assert blobs.read("a", 0, 16_384) == b"x" * 10_000 + b"y" * 4096 + bytes(16_384 - 14_096)
    assert writer.append([b"z" * (STAGING_BYTES + 1)]) == 16_384  # read-only memory: by the staging buffer
    assert writes.seen[2:] == [(16_384, STAGING_BYTES, True)]
    writer.sync()
    assert writes.seen[3:] == [(16_384 + STAGING_BYTES, 4096, True)]


def test_a_group_of_the_log_is_one_write(
    blobs: LocalBlobs, keyring: Keyring, monkeypatch: pytest.MonkeyPatch
) -> None:
    writes = Writes(monkeypatch)
    log = SegmentLog(blobs, keyring)
    for _ in range(3):
        log.append([RecordIn(1, [b"row", bytes(100_001)]) for _ in range(3)])
    assert [direct for *_, direct in writes.seen] == [True] * 3
    assert [offset % BLOCK_BYTES for offset, *_ in writes.seen] == [0] * 3


def test_a_record_larger_than_the_arena_is_not_padded_inside(
    blobs: LocalBlobs, keyring: Keyring, monkeypatch: pytest.MonkeyPatch
) -> None:
    writes = Writes(monkeypatch)
    log = SegmentLog(blobs, keyring, limits=SegmentLimits(arena_bytes=1))
    plain = random.Random(5).randbytes((5 << 20) + 777)
    refs = [log.append([RecordIn(1, [b"row", plain, b"tail"]), RecordIn(1, [b"b"])]) for _ in range(2)]
    assert len(writes.seen) > 6
    assert all(direct and not offset % BLOCK_BYTES for offset, _, direct in writes.seen)
    for group in refs:
        assert group[1].offset == group[0].offset + group[0].length
        assert log.open_part(group[0].part(1)) == plain
        for ref in group:
            log.verify(ref)
    found = list(log.scan(refs[0][0].segment))
    assert [item.ref for item in found if isinstance(item, ScannedRecord)] == refs[0] + refs[1]
    assert len(found) == 4


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.lists(
            st.integers(0, 9000) | st.sampled_from([4096, 8192, STAGING_BYTES, STAGING_BYTES + 4095]),
            min_size=1,
            max_size=4,
        ),
        min_size=1,
        max_size=6,
    ),
    st.sampled_from([1, 1 << 20]),
)
def test_any_groups_come_back(
    session_keyring: Keyring,
    tmp_path_factory: pytest.TempPathFactory,
    groups: list[list[int]],
    arena: int,
) -> None:
    source = memoryview(random.Random(2).randbytes(2 << 20))
    blobs = LocalBlobs(tmp_path_factory.mktemp("any"), limits=NO_RESERVE)
    log = SegmentLog(blobs, session_keyring, limits=SegmentLimits(arena_bytes=arena, segment_bytes=3 << 20))
    stored = []
    for number, sizes in enumerate(groups):
        records = [RecordIn(1, [b"row", source[number : number + size]]) for size in sizes]
        stored += list(zip(log.append(records), records, strict=True))
    for ref, record in stored:
        assert log.open_part(ref.part(1)) == record.parts[1]
        log.verify(ref)
    found = [item for segment in log.segment_ids() for item in log.scan(segment)]
    assert all(isinstance(item, ScannedRecord) for item in found)
    assert len(found) == len(stored)
    log.close()
    blobs.close()


def test_readers_never_see_a_stale_page(blobs: LocalBlobs, keyring: Keyring) -> None:
    """The page cache is filled up to the end of the file, and asked for what is beyond, while it grows."""
    log = SegmentLog(blobs, keyring)
    choose = random.Random(9)
    (first,) = log.append([RecordIn(1, [b"row"])])
    name = f"segments/{first.segment.hex()}"
    done = threading.Event()
    problems: list[BaseException] = []

    def read_the_tail() -> None:
        buffer = bytearray(BLOCK_BYTES)
        try:
            while not done.is_set():
                end = blobs.size(name)
                blobs.read(name, max(end - 3 * BLOCK_BYTES, 0), min(end, 3 * BLOCK_BYTES))
                for beyond in (end, end + 3 * BLOCK_BYTES):
                    with suppress(ShortReadError):
                        blobs.read_into(name, beyond, buffer)
                blobs.try_read_into(name, end - BLOCK_BYTES, buffer)
        except BaseException as error:
            problems.append(error)

    readers = [threading.Thread(target=read_the_tail) for _ in range(2)]
    for reader in readers:
        reader.start()
    try:
        for _ in range(150):
            contents = [choose.randbytes(choose.choice((10, 3000, 4096, 70_000))) for _ in range(3)]
            blobs.read(name, blobs.size(name) - BLOCK_BYTES, BLOCK_BYTES)
            refs = log.append([RecordIn(1, [b"row", content]) for content in contents])
            for ref, content in zip(refs, contents, strict=True):
                assert log.open_part(ref.part(1)) == content
                opened = log.try_open_part(ref.part(1))
                assert opened is None or opened == content
    finally:
        done.set()
        for reader in readers:
            reader.join()
    assert not problems, problems
    assert all(isinstance(item, ScannedRecord) for item in log.scan(first.segment))


@pytest.mark.parametrize("where", ["open", "first write", "first write by sync"])
def test_where_direct_writes_are_refused_it_writes_as_others_do(
    blobs: LocalBlobs, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    before = blobs.statistics()
    if where == "open":
        real_control = fcntl.fcntl

        def control(descriptor: int, command: int, argument: int = 0) -> int:
            if command == fcntl.F_SETFL and argument & os.O_DIRECT:
                raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
            return int(real_control(descriptor, command, argument))

        monkeypatch.setattr(local_writer.fcntl, "fcntl", control)
    else:
        real = os.pwritev

        def write(descriptor: int, buffers: list[memoryview], offset: int) -> int:
            if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT:
                raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
            return real(descriptor, buffers, offset)

        monkeypatch.setattr(local_writer.os, "pwritev", write)
    writer = blobs.create("a")
    content = b"12345" if where == "first write by sync" else b"x" * 5000 + b"12345"
    assert writer.append([pages(content)]) == 0
    writer.sync()
    assert writer.block == 1
    assert writer.append([b"more"]) == writer.size - 4
    writer.sync()
    assert blobs.read("a", 0, len(content)) == content
    assert blobs.read("a", writer.size - 4, 4) == b"more"
    after = blobs.statistics()
    assert after["writers_direct"] == before["writers_direct"]
    assert after["writers_buffered"] == before["writers_buffered"] + 1


def test_a_refusal_later_is_a_failure(blobs: LocalBlobs, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = blobs.create("a")
    writer.append([pages(bytes(4096))])
    monkeypatch.setattr(
        local_writer.os, "pwritev", lambda *_: (_ for _ in ()).throw(OSError(errno.EINVAL, "no"))
    )
    with pytest.raises(PoisonedError):
        writer.append([pages(bytes(4096))])


def test_it_can_be_switched_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writes = Writes(monkeypatch)
    blobs = LocalBlobs(tmp_path / "data", limits=NO_RESERVE, direct=False)
    writer = blobs.create("a")
    writer.append([pages(b"x" * 4096), b"123"])
    writer.sync()
    assert writes.seen == [(0, 4099, False)]
    assert writer.size == blobs.size("a") == 4099
    assert blobs.statistics()["writers_buffered"] == 1


@pytest.mark.parametrize("length", [4096, 4100])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, 0])
def test_a_failed_or_short_direct_write_poisons(
    blobs: LocalBlobs, monkeypatch: pytest.MonkeyPatch, number: int, length: int
) -> None:
    """Also when it is the padded end that fails, which only sync writes."""
    writer = blobs.create("a")
    writer.append([b"before"])
    writer.sync()
    if length > 4096:
        writer.append([pages(bytes(4096))])

    def fail(_: int, __: list[memoryview], ___: int) -> int:
        if number:
            raise OSError(number, os.strerror(number))
        return 1

    with monkeypatch.context() as patch:
        patch.setattr(local_writer.os, "pwritev", fail)
        with pytest.raises(PoisonedError if number == errno.EIO else StoreFullError):
            writer.append([pages(bytes(length - 4096 or 4096))])
            writer.sync()
    for call in (lambda: writer.append([b"again"]), writer.sync):
        with pytest.raises(PoisonedError):
            call()
    assert blobs.read("a", 0, 6) == b"before"
    writer.close()


def test_staging_buffers_are_used_again(blobs: LocalBlobs) -> None:
    for number in range(20):
        writer = blobs.create(f"b{number}")
        writer.append([b"small"])
        if number % 2:
            writer.sync()
        writer.close()
    assert len(blobs._pool._free) == 1
