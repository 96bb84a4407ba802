"""The archive in this process, for commands that find no server running; locked while it is open."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import trio

from hounsfield.archive.app.ae_registry import AeRegistry
from hounsfield.archive.app.control import ask
from hounsfield.archive.app.data_directory import CONTROL_SOCKET, open_data_directory
from hounsfield.archive.app.dicom import remote_aes
from hounsfield.archive.app.engine_options import engine_options
from hounsfield.archive.app.keys import open_keyring, open_master_key
from hounsfield.archive.app.operations import Operations
from hounsfield.archive.config import Config
from hounsfield.archive.engine.engine import EngineOptions, Stores, open_engine
from hounsfield.archive.errors import NoServerError

SHOW_SECONDS = 0.5  # between two looks at how far a long operation is


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Raise what a nursery wrapped, when it is one error: as a server's answer would."""
    try:
        yield
    except BaseExceptionGroup as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
            error = error.exceptions[0]
        raise error from None


@contextlib.contextmanager
def open_stores(config: Config, before: Callable[[], None] = lambda: None) -> Iterator[Stores]:
    """The locked stores of an archive that no server runs on. Raises DataDirectoryBusyError when one does.

    ``before`` is called with the lock held and nothing open yet.
    """
    directory = open_data_directory(Path(config.archive.data), create=False)
    try:
        before()
        keyring = open_keyring(directory.path, open_master_key(config, directory.path), create=False)
        stores = Stores.open(directory.path, keyring, engine_options(config, workers=1))
        try:
            yield stores
        finally:
            stores.close()
    finally:
        directory.close()


class Archive:
    """An archive that answers :meth:`call`: through its server when one runs, else in this process."""

    def __init__(self, config: Config, stores: Stores | None) -> None:
        self._config = config
        self._stores = stores
        self._options: EngineOptions = engine_options(config, workers=1)

    @property
    def running(self) -> bool:
        """Whether a server answers."""
        return self._stores is None

    def call(self, op: str, /, **args: Any) -> Any:
        """Do one operation; its result. Blocking. Raises HounsfieldError, EngineError or StorageError."""
        if self._stores is None:
            return ask(control_socket(self._config), op, **args)
        with _alone():
            return trio.run(self._call, self._stores, op, args)

    def scrub(self, progress: Callable[[int, int], None]) -> dict[str, Any]:
        """Do what was asked of the scrub here and now; its status then. Only when no server runs.

        ``progress(bytes_done, bytes_in_all)``.
        """
        if self._stores is None:
            raise ValueError("a server runs: it scrubs by itself")
        with _alone():
            return trio.run(self._scrub, self._stores, progress)

    async def _scrub(self, stores: Stores, progress: Callable[[int, int], None]) -> dict[str, Any]:
        async with open_engine(stores, self._options, owner="command line") as engine:

            async def show() -> None:
                while True:
                    status = await engine.scrub.status()
                    progress(status["pass_bytes"], status["bytes_stored"])
                    await trio.sleep(SHOW_SECONDS)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(show)
                await engine.scrub.now()
                nursery.cancel_scope.cancel()
            return await engine.scrub.status()

    async def _call(self, stores: Stores, op: str, args: dict[str, Any]) -> Any:
        async with open_engine(stores, self._options, owner="command line") as engine:
            registry = AeRegistry(engine, remote_aes(self._config))
            return await {**Operations(engine).table(), **registry.operations()}[op](**args)


@contextlib.contextmanager
def open_archive(config: Config) -> Iterator[Archive]:
    """The archive of ``config.archive.data``: by its server when one runs, else locked and opened here."""
    try:
        ask(control_socket(config), "status")
    except NoServerError:
        with open_stores(config) as stores:
            stores.catch_up(at_start=True)
            yield Archive(config, stores)
    else:
        yield Archive(config, None)


def control_socket(config: Config) -> Path:
    """Where the server of this configuration's data directory listens for commands."""
    return Path(config.archive.data).expanduser().absolute() / CONTROL_SOCKET
