"""A running archive as a plugin has it, and consumers of its journal that run until they have caught up."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pydicom
import trio
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian

from hounsfield.archive.app.plugin_archive import PluginArchive
from hounsfield.archive.engine.engine import Engine, EngineOptions, open_engine
from hounsfield.archive.engine.stores import Stores
from hounsfield.archive.net.destinations import Destinations
from hounsfield.archive.plugins import Change, Event, Stored, View
from hounsfield.ris_plugin import journal
from hounsfield.ris_plugin.actors import Actor
from hounsfield.ris_plugin.context import Ris
from hounsfield.ris_plugin.following import Consumer, follow
from hounsfield.ris_plugin.records.messages import CURSOR
from hounsfield.ris_plugin.settings import RisSettings
from support.archives import ct_slice, stores_in

Result = TypeVar("Result")


@dataclass
class Department:
    """A RIS on its archive."""

    ris: Ris
    stores: Stores
    engine: Engine

    async def do(self, action: Callable[..., Result], who: Actor, *arguments: Any, **more: Any) -> Result:
        """``action(change, who, …)`` in a transaction."""
        return await self.ris.commit(lambda change: action(change, who, *arguments, **more))

    async def commit(self, plan: Callable[[Change], Result]) -> Result:
        return await self.ris.commit(plan)

    def look(self, read: Callable[..., Result], *arguments: Any, **more: Any) -> Result:
        """``read(view, …)``."""
        with self.ris.reading() as view:
            return read(view, *arguments, **more)

    async def store(self, **said: Any) -> Stored:
        """Have an object stored, as if a device had sent it."""
        return await self.ris.archive.store(part10(**said))

    async def events(self) -> list[Event]:
        return list((await self.ris.archive.events("", 1000)).events)

    async def catch_up(self, *consumers: Consumer) -> None:
        """Run consumers until each has acted on all that there was, what the others said of it included."""
        async with trio.open_nursery() as nursery:
            for one in consumers:
                nursery.start_soon(follow, self.ris, one)
            while not await self._is_done(consumers):
                await trio.sleep(0.01)
            nursery.cancel_scope.cancel()

    async def _is_done(self, consumers: tuple[Consumer, ...]) -> bool:
        ends = self.look(_places, [one.name for one in consumers])
        for one, place in zip(consumers, ends, strict=True):
            page = await self.ris.archive.events(place, 1000)
            if page.more or any(event.kind.removeprefix("ris.") in one.kinds for event in page.events):
                return False
        return True


def _places(view: View, names: list[str]) -> list[str]:
    found = [view.first(CURSOR, "name", name) for name in names]
    return [one[1].cursor if one is not None else "" for one in found]


def part10(*, change: Callable[[Dataset], None] | None = None, **said: Any) -> bytes:
    """A DICOM file: a CT slice with these attributes, by keyword."""

    def apply(data: Dataset) -> None:
        for keyword, value in said.items():
            if value is None:
                delattr(data, keyword)
            else:
                setattr(data, keyword, value)
        if change is not None:
            change(data)

    raw = ct_slice(change=apply)
    out = io.BytesIO()
    data = pydicom.dcmread(io.BytesIO(raw), force=True)
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID
    pydicom.dcmwrite(out, data, enforce_file_format=True)
    return out.getvalue()


@asynccontextmanager
async def department(
    directory: Path, *, settings: RisSettings | None = None, options: EngineOptions | None = None
) -> AsyncIterator[Department]:
    """A department whose archive is in ``directory``, made when there is none yet."""
    given = options or EngineOptions()
    with stores_in(directory, given) as stores:
        async with open_engine(stores, given, owner="a test") as engine:
            archive = PluginArchive(
                engine, "ris", ae_title="HOUNSFIELD", destinations=lambda: Destinations(dict)
            )
            gather, journal.GATHER_SECONDS = journal.GATHER_SECONDS, 0.0  # type: ignore[misc]
            try:
                yield Department(Ris(archive, settings or RisSettings()), stores, engine)
            finally:
                journal.GATHER_SECONDS = gather  # type: ignore[misc]
