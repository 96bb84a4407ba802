"""What the command line asks of an archive to have objects deleted, held, and their disk back."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Any

from hounsfield.archive.engine.engine import Engine
from hounsfield.archive.errors import HounsfieldError
from hounsfield.archive.index.deletion import Target


class DeletionError(HounsfieldError):
    """What is to be deleted was not said in a way that can be understood; the text says how."""


class Deleting:
    """The operations over one engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def table(self) -> dict[str, Callable[..., Awaitable[Any]]]:
        """Every operation by the name it is asked for with."""
        return {
            "delete-look": self.look,
            "delete": self.delete,
            "hold-list": self.holds,
            "hold-add": self.hold,
            "hold-release": self.release,
            "compact-status": self._engine.compaction.status,
            "compact-due": self.due,
            "compact-segment": self.compact,
            "compact-finish": self._engine.compaction.finish,
        }

    async def look(self, **target: Any) -> dict[str, Any]:
        """What :meth:`delete` would take, and the holds that forbid it."""
        return asdict(await self._engine.deleting.look(_target(**target)))

    async def delete(self, *, reason: str, actor: str, **target: Any) -> dict[str, Any]:
        """Delete for good; see :meth:`Deleting.delete`."""
        return asdict(await self._engine.delete(_target(**target), reason=reason, actor=actor))

    async def holds(self, ended: bool = False) -> list[dict[str, Any]]:
        """The holds in force, with ``ended`` those that were, too."""
        return [hold.body() for hold in await self._engine.deleting.holds(ended=ended)]

    async def hold(self, **hold: Any) -> dict[str, Any]:
        """Set a hold; with the number of studies that it is on now."""
        held = await self._engine.deleting.hold(**hold)
        return {**held.body(), "studies": await self._engine.deleting.studies_held(held)}

    async def release(self, hold_id: str, by: str, why: str) -> dict[str, Any]:
        """End a hold."""
        return (await self._engine.deleting.release(hold_id, by=by, why=why)).body()

    async def due(self, everything: bool) -> list[str]:
        """The segments that a run would rewrite."""
        return [segment.hex() for segment in await self._engine.compaction.due(everything=everything)]

    async def compact(self, segment: str, throttled: bool) -> dict[str, Any]:
        """Rewrite one segment."""
        report = await self._engine.compaction.rewrite(bytes.fromhex(segment), throttled=throttled)
        return {
            "segment": segment,
            "bytes": report.size,
            "moved": report.moved,
            "moved_bytes": report.moved_bytes,
            "dropped": report.dropped,
            "damaged": report.damaged,
            "kept_because": report.kept_because,
        }


def _target(
    study: str = "",
    series: str = "",
    instances: list[str] | None = None,
    version: str = "",
    quarantined: str = "",
) -> Target:
    try:
        return Target(
            study, series, tuple(instances or ()), bytes.fromhex(version), bytes.fromhex(quarantined)
        )
    except ValueError as error:
        raise DeletionError(str(error)) from error
