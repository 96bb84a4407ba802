"""The archive in this process, for commands that find no server running; locked while it is open."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import trio

from hounsfield.archive.app.ae_registry import AeRegistry
from hounsfield.archive.app.asking import Archive
from hounsfield.archive.app.auditing import AssociationAudit
from hounsfield.archive.app.certificates import client_tls
from hounsfield.archive.app.data_directory import open_data_directory
from hounsfield.archive.app.dicom import remote_aes
from hounsfield.archive.app.engine_options import engine_options
from hounsfield.archive.app.identities import Identities
from hounsfield.archive.app.keys import open_keyring, open_master_key
from hounsfield.archive.app.logs import set_up_logs
from hounsfield.archive.app.operations import Operations
from hounsfield.archive.app.plugins import configured_plugins, service_names
from hounsfield.archive.app.routing import RouteOperations
from hounsfield.archive.config import Config
from hounsfield.archive.engine.engine import Engine, EngineOptions, open_engine
from hounsfield.archive.engine.stores import Stores
from hounsfield.archive.engine.tier_oversight import TierOversight
from hounsfield.archive.errors import ControlError, alone
from hounsfield.archive.net.destinations import Destinations

SHOW_SECONDS = 0.5  # between two looks at how far a long operation is
_NEVER = 1e9  # seconds: longer than any command


@contextlib.contextmanager
def as_one_error() -> Iterator[None]:
    """Raise what a nursery wrapped, when it is one error: as a server's answer would."""
    try:
        yield
    except BaseExceptionGroup as group:
        raise alone(group) from None


@contextlib.contextmanager
def open_stores(config: Config, before: Callable[[], None] = lambda: None) -> Iterator[Stores]:
    """The locked stores of an archive that no server runs on. Raises DataDirectoryBusyError when one does.

    ``before`` is called with the lock held and nothing open yet. What the engine has to say goes to standard
    error, without names: standard output is the command's.
    """
    set_up_logs(level="warning", form=config.logs.format, salt=os.urandom(16), for_good=False)
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


class OpenedArchive(Archive):
    """An archive that no server runs on, opened and locked by this process."""

    running = False

    def __init__(self, config: Config, stores: Stores) -> None:
        super().__init__(config)
        self._stores = stores
        self._options: EngineOptions = _only_when_asked(engine_options(config, workers=1))

    def call(self, op: str, /, **args: Any) -> Any:
        with as_one_error():
            return trio.run(self._call, self._stores, op, args)

    def scrub(self, progress: Callable[[int, int], None]) -> dict[str, Any]:
        with as_one_error():
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

    def apply_tier_rules(self, progress: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
        async def apply(engine: Engine) -> dict[str, Any]:
            oversight = TierOversight(engine)
            asked = await oversight.apply()
            while asked["plan_asked"]:
                await engine.tiering.leading.run(engine.tiering.step)
                asked = await oversight.progress()
            return asked

        with as_one_error():
            return trio.run(self._shown, apply, TierOversight.progress, progress)

    def verify_tiers(self, progress: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
        async def verify(engine: Engine) -> dict[str, Any]:
            oversight = TierOversight(engine)
            asked = await oversight.verify()
            if asked["copies"]:
                await engine.tiering.leading.run(engine.tiering.step)
            return await oversight.verifying()

        with as_one_error():
            return trio.run(self._shown, verify, TierOversight.verifying, progress)

    async def _shown(
        self,
        work: Callable[[Engine], Awaitable[dict[str, Any]]],
        look: Callable[[TierOversight], Awaitable[dict[str, Any]]],
        progress: Callable[[dict[str, Any]], None],
    ) -> dict[str, Any]:
        """Leader work of tiers, as fast as it goes: nobody else uses the archive now."""
        async with open_engine(self._stores, self._options, owner="command line") as engine:
            engine.tiering.leading.bytes_per_second = 0
            oversight = TierOversight(engine)

            async def show() -> None:
                while True:
                    await trio.sleep(SHOW_SECONDS)
                    progress(await look(oversight))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(show)
                done = await work(engine)
                nursery.cancel_scope.cancel()
            return done

    async def _call(self, stores: Stores, op: str, args: dict[str, Any]) -> Any:
        async with open_engine(stores, self._options, owner="command line") as engine:
            table = {
                **Operations(engine).table(),
                **self._registry(engine).operations(),
                **Identities(engine).operations(),
                **AssociationAudit(engine.associations).operations(),
                **RouteOperations(engine, self._config, running=False).table(),
            }
            if op not in table:
                return await self._call_plugin(engine, op, args)
            return await table[op](**args)

    def _registry(self, engine: Engine) -> AeRegistry:
        return AeRegistry(engine, remote_aes(self._config), services=service_names(self._config))

    async def _call_plugin(self, engine: Engine, op: str, args: dict[str, Any]) -> Any:
        from hounsfield.archive.app.plugin_parts import started

        registry = self._registry(engine)
        await registry.refresh()
        config = self._config
        destinations = Destinations(
            lambda: registry.known, ae_title=config.archive.ae_title, tls=client_tls(config)
        )
        name, _, operation = op.partition(".")
        for configured in configured_plugins(config):
            if configured.plugin.name == name:
                parts = await started(
                    configured, engine, ae_title=config.archive.ae_title, destinations=lambda: destinations
                )
                if operation in parts.operations:
                    return await parts.operations[operation](**args)
        raise ControlError(f"{op!r} is not known here: put [plugins.{name}] into the configuration")


def _only_when_asked(options: EngineOptions) -> EngineOptions:
    """So that a command moves no pack beside what it was started for."""
    limits = replace(options.tiering.limits, check_s=_NEVER)
    return replace(options, tiering=replace(options.tiering, limits=limits))


@contextlib.contextmanager
def open_here(config: Config) -> Iterator[OpenedArchive]:
    """The archive of ``config.archive.data``, opened in this process. Raises DataDirectoryBusyError."""
    with open_stores(config) as stores:
        stores.catch_up(at_start=True)
        yield OpenedArchive(config, stores)
