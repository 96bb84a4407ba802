"""Reading everything once must give the right bytes and leave the page cache as it was."""

from __future__ import annotations

import errno
import os
import random
from pathlib import Path

import pytest

from hounsfield.storage_backends import local_background
from hounsfield.storage_backends.api import BackgroundReads
from hounsfield.storage_backends.errors import BlobNotFoundError, ShortReadError
from hounsfield.storage_backends.local_background import BackgroundBlobs
from hounsfield.storage_backends.local_blobs import LocalBlobs


@pytest.fixture(params=["direct", "cached", "refused when read"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "cached":
        monkeypatch.setattr(local_background, "turn_direct", lambda _: False)
    elif request.param == "refused when read":
        real = os.preadv
        refused: set[int] = set()

        def turn(descriptor: int) -> bool:
            refused.add(descriptor)
            return True

        def preadv(descriptor: int, buffers: object, offset: int) -> int:
            if descriptor in refused:
                refused.clear()
                raise OSError(errno.EINVAL, "Invalid argument")
            return real(descriptor, buffers, offset)  # type: ignore[arg-type]

        monkeypatch.setattr(local_background, "turn_direct", turn)
        monkeypatch.setattr(os, "preadv", preadv)
    return str(request.param)


def _blob(blobs: LocalBlobs, name: str, data: bytes) -> None:
    writer = blobs.create(name)
    writer.append([data])
    writer.sync()
    writer.close()


def test_every_range_is_right(tmp_path: Path, way: str) -> None:
    blobs = LocalBlobs(tmp_path, direct=False)
    choose = random.Random(7)
    data = choose.randbytes(local_background.WINDOW_BYTES * 2 + 777)
    _blob(blobs, "segments/a", data)
    _blob(blobs, "segments/b", b"other")
    assert isinstance(blobs, BackgroundReads)
    reader = blobs.for_background()
    for _ in range(60):
        offset = choose.randrange(len(data))
        length = choose.randrange(min(len(data) - offset, 300_000) + 1)
        assert reader.read("segments/a", offset, length) == data[offset : offset + length]
        assert choose.random() > 0.1 or reader.read("segments/b", 1, 4) == b"ther"
    for offset, length in ((len(data) - 1, 2), (len(data), 1), (len(data) + 5000, 1)):
        with pytest.raises(ShortReadError):
            reader.read("segments/a", offset, length)
    with pytest.raises(BlobNotFoundError):
        reader.read("segments/none", 0, 1)
    assert reader.read("segments/a", 0, 0) == b""
    assert reader.size("segments/a") == len(data)
    reader.close()
    assert reader.read("segments/a", 5, 5) == data[5:10]
    reader.close()


def test_what_grew_since_is_read(tmp_path: Path, way: str) -> None:
    blobs = LocalBlobs(tmp_path, direct=False)
    writer = blobs.create("a")
    writer.append([b"first"])
    writer.sync()
    reader = blobs.for_background()
    assert reader.read("a", 0, 5) == b"first"
    writer.append([b"second"])
    writer.sync()
    assert reader.read("a", 3, 8) == b"stsecond"
    writer.close()
    reader.close()


def test_a_walk_reads_each_byte_once_and_keeps_one_file_open(tmp_path: Path) -> None:
    blobs = LocalBlobs(tmp_path, direct=False)
    size = local_background.WINDOW_BYTES + 4096
    for name in ("a", "b"):
        _blob(blobs, name, bytes(size))
    reader = blobs.for_background()
    assert isinstance(reader, BackgroundBlobs)
    before = len(list(Path("/proc/self/fd").iterdir()))
    for name in ("a", "b"):
        for offset in range(0, size, 65536):
            reader.read(name, offset, min(65536, size - offset))
    assert reader.bytes_read == 2 * size
    assert len(list(Path("/proc/self/fd").iterdir())) == before + 1
    reader.close()
    assert len(list(Path("/proc/self/fd").iterdir())) == before
