"""An archive over a real server on loopback: engine on a temporary directory, application, HTTP server."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import pydicom.data
import pytest
import trio

from hounsfield.archive.dicom import part10
from hounsfield.archive.engine.engine import Engine, EngineOptions, open_engine
from hounsfield.archive.engine.stores import Stores
from hounsfield.archive.engine.types import Source, StoreResult
from hounsfield.archive.web import WebSettings, create_app
from hounsfield.archive.web.http import HttpServer
from hounsfield.storage_backends.keyring import Keyring
from hounsfield.storage_backends.lmdb_store import LmdbLimits
from hounsfield.storage_backends.master_key import load_master_key


@dataclass
class Archive:
    engine: Engine
    port: int

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def base(self) -> str:
        return f"{self.origin}/dicom-web"

    def client(self, **options) -> httpx.AsyncClient:
        return httpx.AsyncClient(base_url=self.origin, timeout=60, **options)

    async def put(self, raw: bytes) -> StoreResult:
        """Store one Part 10 file straight into the engine."""
        found = part10.split(raw)
        session = self.engine.begin(transfer_syntax_uid=found.transfer_syntax_uid, source=Source("import"))
        await session.write(raw[found.offset :])
        return await session.commit()


@contextlib.asynccontextmanager
async def open_archive(
    directory: Path, engine_options: EngineOptions | None = None, **app_options
) -> AsyncIterator[Archive]:
    name = f"HOUNSFIELD_TEST_KEY_{os.getpid()}"
    os.environ[name] = os.urandom(32).hex()
    directory.mkdir(exist_ok=True)
    keyring = Keyring.create(directory / "keys", load_master_key(f"env:{name}"))
    options = replace(engine_options or EngineOptions(), index=LmdbLimits(map_bytes=1 << 30))
    stores = Stores.open(directory, keyring, options)
    try:
        async with open_engine(stores, options, owner="test") as engine:
            app = create_app(engine, **app_options)
            server = HttpServer(app)
            with socket.create_server(("127.0.0.1", 0), backlog=128) as sock:
                async with trio.open_nursery() as nursery:
                    await nursery.start(server.serve, [sock])
                    try:
                        yield Archive(engine, sock.getsockname()[1])
                    finally:
                        nursery.cancel_scope.cancel()
    finally:
        stores.close()


@pytest.fixture
async def archive(tmp_path: Path) -> AsyncIterator[Archive]:
    async with open_archive(tmp_path) as opened:
        yield opened


@pytest.fixture
def archives(tmp_path: Path):
    """``async with archives(directory=…, settings=…, tokens=…) as archive``."""
    return lambda directory=tmp_path, **options: open_archive(directory, **options)


@pytest.fixture(scope="session")
def sample() -> dict[str, bytes]:
    """The test files that pydicom carries, by name."""
    files = Path(pydicom.data.__file__).parent / "test_files"
    return {path.name: path.read_bytes() for path in sorted(files.rglob("*.dcm"))}


@pytest.fixture
def settings() -> type[WebSettings]:
    return WebSettings
