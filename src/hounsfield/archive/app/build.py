"""Wiring: from a worker's resources to its services. The only place where the archive's objects meet."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import trio

from hounsfield.archive.app.data_directory import IMPORT
from hounsfield.archive.app.dicom import DicomService
from hounsfield.archive.app.engine_options import engine_options
from hounsfield.archive.app.http import HttpService
from hounsfield.archive.app.importing.doors import ImportDoor
from hounsfield.archive.app.lean_structlog import structlog
from hounsfield.archive.app.operations import Operations
from hounsfield.archive.app.plugin_parts import PluginHost
from hounsfield.archive.app.resources import Resources, Services
from hounsfield.archive.app.route_options import coercions_of
from hounsfield.archive.app.routing import RoutingService
from hounsfield.archive.app.sampling import Sampler
from hounsfield.archive.app.tier_operations import tier_metrics
from hounsfield.archive.config import Config
from hounsfield.archive.engine.engine import Engine, open_engine
from hounsfield.archive.engine.stores import Stores
from hounsfield.archive.index import leases
from hounsfield.storage_backends.file_systems import make_private_directory
from hounsfield.storage_backends.keyring import Keyring


@asynccontextmanager
async def build_services(resources: Resources) -> AsyncIterator[Services]:
    """Everything one worker runs, opened; closed again when the block is left."""
    boot = resources.boot
    directory = Path(boot.directory)
    options = engine_options(resources.config, boot.workers)
    keyring = Keyring.open_with_root(directory / "keys", boot.root_key)
    stores = await trio.to_thread.run_sync(Stores.open, directory, keyring, options)
    try:
        await _recover(stores, first=boot.first)
        # Who was in this place before has ended: what it led is free.
        await trio.to_thread.run_sync(leases.end_those_of, stores.store, f"worker {boot.worker} ")
        owner = f"worker {boot.worker} {os.getpid()}"
        async with open_engine(
            stores, options, owner=owner, on_commit=resources.wakeups.notify_others
        ) as engine:
            yield await _services(resources, engine)
    finally:
        stores.close()


async def _recover(stores: Stores, *, first: bool) -> None:
    """Index what dead processes made durable and did not index; ``first``: nobody else is here yet."""
    report = await trio.to_thread.run_sync(partial(stores.catch_up, at_start=first))
    if report.records or report.facts or report.damaged:
        structlog.get_logger().warning(
            "recovered what was durable and not indexed",
            records=report.records,
            count=report.facts,
            segment=report.segments,
            detail={"damage": dict(report.damage)} if report.damage else None,
        )
    if report.given_up:
        structlog.get_logger().warning(
            "removed what was never received whole", count=report.given_up, bytes=report.given_up_bytes
        )


async def _services(resources: Resources, engine: Engine) -> Services:
    services = Services()
    engine.use_coercions(coercions_of(resources.config))
    sampler = Sampler(resources.board)
    sampler.add_engine(engine)
    services.background.append(sampler.run)
    services.operations |= Operations(engine).table()
    _let_imports_in(resources, engine, services)

    plugins = PluginHost(resources, engine)
    await plugins.start()
    dicom = DicomService(resources, engine, plugins.services())
    plugins.use(dicom.destinations)
    await dicom.start()
    services.listeners.append(dicom.listener.serve)
    services.drains.append(dicom.listener.drain)
    services.background += dicom.background()
    services.operations |= dicom.operations()
    sampler.add(dicom.figures)

    routing = RoutingService(resources, engine, dicom.destinations)
    await routing.load(resources.config)  # before anything is received
    services.background.append(routing.run)
    services.drains.append(routing.drain)
    services.operations |= routing.operations()

    tiers = tier_metrics(engine)
    http = HttpService(
        resources,
        engine,
        lambda: (*routing.metrics(), *tiers(), *plugins.metrics()),
        plugins=plugins.routes(),
    )
    services.background.append(partial(engine.changes.hear, resources.wakeups.wait))
    services.listeners += http.listeners()
    services.drains.append(http.drain)
    sampler.add(http.figures)

    services.listeners += plugins.listeners()
    services.drains += plugins.drains()
    services.background += plugins.background()
    services.operations |= plugins.operations()

    async def reload(message: dict[str, Any]) -> None:
        config = msgspec.convert(message["config"], Config)
        await dicom.load(config)
        await routing.load(config)
        engine.use_coercions(coercions_of(config))
        http.reload()
        plugins.load(config)

    services.reload = reload
    return services


def _let_imports_in(resources: Resources, engine: Engine, services: Services) -> None:
    """The door of `hounsfield import` into this worker."""
    folder = Path(resources.boot.directory) / IMPORT
    make_private_directory(folder)
    door = ImportDoor(engine, folder / f"{resources.boot.worker}.sock")
    services.listeners.append(door.serve)
    services.drains.append(door.drain)
