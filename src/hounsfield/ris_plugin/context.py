"""What every part of the RIS in one worker is given: the archive, the settings, the clock."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from typing import TypeVar
from zoneinfo import ZoneInfo

from hounsfield.archive.plugins import Archive, Change, View
from hounsfield.ris_plugin.journal import Journal
from hounsfield.ris_plugin.records.base import NS
from hounsfield.ris_plugin.settings import RisSettings

Result = TypeVar("Result")


@dataclass(frozen=True)
class Ris:
    """One worker's RIS."""

    archive: Archive
    settings: RisSettings
    now_ns: Callable[[], int] = field(default=time.time_ns)

    @cached_property
    def zone(self) -> ZoneInfo:
        """The department's time zone."""
        return ZoneInfo(self.settings.time_zone)

    @cached_property
    def journal(self) -> Journal:
        """The archive's journal, read once for all who follow it."""
        return Journal(self.archive)

    def reading(self) -> AbstractContextManager[View]:
        """The records as they are now."""
        return self.archive.records.reading()

    async def commit(self, plan: Callable[[Change], Result]) -> Result:
        """Make a transaction."""
        return await self.archive.records.commit(plan)

    def local(self, moment_ns: int) -> datetime:
        """A moment in the department's time zone."""
        return datetime.fromtimestamp(moment_ns / NS, UTC).astimezone(self.zone)
