"""Bytes of a file that is written past the page cache are missing, doubled or out of order."""

from __future__ import annotations

import errno
import os
import random
from pathlib import Path

import pytest

from hounsfield.storage_backends import drafts
from hounsfield.storage_backends.drafts import DIRECT_BYTES_MIN, STAGING_BYTES, Draft

DATA = random.Random(6).randbytes(4 * STAGING_BYTES + 12_345)


def written(path: Path, data: bytes, piece_bytes: int) -> bytes:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    draft = Draft(descriptor, len(data))
    try:
        for start in range(0, len(data), piece_bytes):
            piece = bytearray(data[start : start + piece_bytes])
            draft.write(piece)
            piece[:] = bytes(len(piece))  # its maker may use the memory again
        draft.sync()
    finally:
        draft.close()
        os.close(descriptor)
    return path.read_bytes()


@pytest.mark.parametrize("length", [0, 1, DIRECT_BYTES_MIN, 2 * STAGING_BYTES, len(DATA)])
@pytest.mark.parametrize("piece_bytes", [777_777, 4 << 20, 16 << 20])
def test_a_file_has_what_was_written(tmp_path: Path, length: int, piece_bytes: int) -> None:
    assert written(tmp_path / "file", DATA[:length], piece_bytes) == DATA[:length]


def test_a_file_system_that_takes_the_flag_and_no_direct_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.write
    refused = 0

    def picky(descriptor: int, view: memoryview) -> int:
        nonlocal refused
        if not refused:
            refused = 1
            raise OSError(errno.EINVAL, "no direct writes here")
        return write(descriptor, view)

    monkeypatch.setattr(drafts.os, "write", picky)
    assert written(tmp_path / "file", DATA, 1 << 20) == DATA
    assert refused


def test_short_writes_are_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(
        drafts.os, "write", lambda to, view: write(to, view[: max(4096, len(view) // 8192 * 4096)])
    )
    assert written(tmp_path / "file", DATA, 1 << 20) == DATA


def test_a_disk_that_fills_while_more_is_staged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    calls = 0

    def full(descriptor: int, view: memoryview) -> int:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise OSError(errno.ENOSPC, "full")
        return write(descriptor, view)

    monkeypatch.setattr(drafts.os, "write", full)
    with pytest.raises(OSError, match="full"):
        written(tmp_path / "file", DATA, 1 << 20)
    assert calls == 3, "nothing is written behind what failed"
    assert (tmp_path / "file").read_bytes() == DATA[: 2 * STAGING_BYTES]


def test_the_last_write_of_all_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    left = [2]

    def failing(descriptor: int, view: memoryview) -> int:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.EIO, "broken")
        return write(descriptor, view)

    monkeypatch.setattr(drafts.os, "write", failing)
    with pytest.raises(OSError, match="broken"):  # it was made beside, and the sync tells
        written(tmp_path / "file", DATA[: 3 * STAGING_BYTES], 1 << 20)


def test_across_a_network_nothing_is_written_directly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drafts, "file_system_type", lambda _: 0x6969)  # NFS
    monkeypatch.setattr(drafts, "turn_direct", lambda _: pytest.fail("it was turned direct"))
    assert written(tmp_path / "file", DATA, 1 << 20) == DATA
