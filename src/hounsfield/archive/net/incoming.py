"""What a peer may ask of us on an association that we requested, and where it goes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeAlias

from hounsfield.archive.wire import AcceptedContext, Buffer, CStoreRequest, NEventReportRequest

__all__ = ["IncomingObject", "Reports", "Storage"]

Reports: TypeAlias = Callable[[AcceptedContext, NEventReportRequest, bytes], int]
"""Takes what an N-EVENT-REPORT says; the status to answer (PS3.7 10.1.1.1.8)."""


class IncomingObject(Protocol):
    """One object that the peer sends us."""

    async def write(self, data: Buffer) -> None:
        """Take ``data``, which lives until this returns."""

    async def commit(self) -> tuple[int, str]:
        """All of it is here: the status to answer, and a comment for it or ""."""

    def abandon(self) -> None:
        """The rest will not come: forget it. Also called after ``commit``, and nothing then."""


class Storage(Protocol):
    """Where objects go that the peer sends on our association (C-GET, PS3.4 C.4.3)."""

    def begin(self, context: AcceptedContext, request: CStoreRequest) -> IncomingObject:
        """An object announces itself."""
