"""What the command line asks of an archive about rejection notes: plain JSON in and out."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Any

from hounsfield.archive.engine.rejecting import Rejecting as Rejections


class Rejecting:
    """The operations over one engine."""

    def __init__(self, rejecting: Rejections) -> None:
        self._rejecting = rejecting

    def table(self) -> dict[str, Callable[..., Awaitable[Any]]]:
        """Every operation by the name it is asked for with."""
        return {
            "reject-list": self._rejecting.all,
            "reject-apply": self.apply,
            "reject-undo": self.undo,
            "reject-delete": self.delete,
        }

    async def apply(self, note: str, actor: str) -> dict[str, Any]:
        """Follow a rejection note that is here."""
        return await self._rejecting.follow(note, actor=actor)

    async def undo(self, number: int, actor: str, reason: str) -> dict[str, Any]:
        """Bring back what a rejection hides."""
        return await self._rejecting.undo(number, actor=actor, reason=reason)

    async def delete(self, number: int, actor: str, reason: str) -> list[dict[str, Any]]:
        """Delete what a rejection hides; a report for each study."""
        return [asdict(report) for report in await self._rejecting.delete(number, actor=actor, reason=reason)]
