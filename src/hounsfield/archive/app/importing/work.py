"""What the sources of one import share: where objects go, what was done with, figures, and patience."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final, Protocol, TypeVar

import trio

from hounsfield.archive.app.importing.fates import Tally
from hounsfield.archive.app.importing.sink import ServerLostError, Sink
from hounsfield.archive.app.importing.state import ImportState
from hounsfield.archive.engine.errors import ClosedError, EngineError, OutOfResourcesError, StorageFailedError
from hounsfield.archive.errors import HounsfieldError

JOBS: Final = 8
PAUSES_S: Final = (0.5, 2.0, 8.0, 30.0)
"""Before an object is sent again that the archive had no room or no disk for at that moment."""

Result = TypeVar("Result")


class ArchiveFullError(HounsfieldError):
    """The archive has no room, or cannot store: going on is of no use."""


class Progress(Protocol):
    """Hears how far an import is."""

    def found(self, things: int, size: int) -> None:
        """So much more is to be looked at: files and bytes, or series."""

    def done(self, things: int, size: int) -> None:
        """So much of it has been."""

    def object(self) -> None:
        """An object is in the archive."""


class NoProgress:
    """Nobody looks."""

    def found(self, things: int, size: int) -> None:
        """See :class:`Progress`."""

    def done(self, things: int, size: int) -> None:
        """See :class:`Progress`."""

    def object(self) -> None:
        """See :class:`Progress`."""


@dataclass
class Work:
    """One import."""

    sink: Sink
    state: ImportState
    tally: Tally
    jobs: int = JOBS
    progress: Progress = field(default_factory=NoProgress)
    pauses_s: tuple[float, ...] = PAUSES_S

    def __post_init__(self) -> None:
        self.threads = trio.CapacityLimiter(self.jobs + 1)

    async def patiently(self, attempt: Callable[[], Awaitable[Result]]) -> Result:
        """Do ``attempt``; again when the server was lost, or the archive had no room at that moment.

        Raises what does not pass: EngineErrors that no retry helps, ArchiveFullError, ServerGoneError.
        """
        pauses = list(self.pauses_s)
        while True:
            try:
                return await attempt()
            except ServerLostError:
                await self.sink.available()
            except (OutOfResourcesError, StorageFailedError, ClosedError) as error:
                if not pauses:
                    raise ArchiveFullError(f"the archive takes no more: {error}") from error
                await trio.sleep(pauses.pop(0))


def is_for_good(error: BaseException) -> bool:
    """Whether an object that failed so is rejected, not to be sent again."""
    return isinstance(error, EngineError) and not error.retry


class Source(Protocol):
    """Where studies come from."""

    async def bring(self, work: Work) -> None:
        """Bring everything in that is not done with; what goes wrong is told to ``work.tally``.

        Raises only what ends the import: ArchiveFullError, ServerGoneError, StateError, ReportError.
        """

    async def show(self, work: Work, tell: Callable[[str, int | None], None]) -> None:
        """Tell what would be read: places, with their bytes where these are known."""
