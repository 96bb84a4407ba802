"""One import from beginning to end: the archive is opened, each source is brought in, figures are kept."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import trio

from hounsfield.archive.app.importing.fates import Tally
from hounsfield.archive.app.importing.sink import ServerGoneError, import_folder, open_sink
from hounsfield.archive.app.importing.state import STATE, ImportState
from hounsfield.archive.app.importing.work import (
    JOBS,
    PAUSES_S,
    ArchiveFullError,
    NoProgress,
    Progress,
    Source,
    Work,
)
from hounsfield.archive.app.offline import as_one_error
from hounsfield.archive.config import Config
from hounsfield.storage_backends.file_systems import make_private_directory


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportOptions:
    """How an import is done. ``state``: None for the archive's own; ``afresh``: read everything again."""

    jobs: int = JOBS
    state: Path | None = None
    afresh: bool = False
    pauses_s: tuple[float, ...] = PAUSES_S


async def run_import(
    config: Config,
    sources: Sequence[Source],
    tally: Tally,
    options: ImportOptions,
    *,
    progress: Progress | None = None,
    listing: Callable[[str, int | None], None] | None = None,
) -> None:
    """Bring ``sources`` in, one after the other, and count in ``tally``. With ``listing`` nothing is read.

    What one source cannot give is told to the tally, and the next follows. An archive that takes no more, or
    a server that does not come back, ends it: a complaint, too. Raises HounsfieldError, EngineError and
    StorageError when it cannot begin.
    """
    with as_one_error():
        async with open_sink(config) as sink:
            state = await trio.to_thread.run_sync(_opened, config, options, sink.state_key)
            state.blind = options.afresh
            if options.afresh and listing is None:
                state.forget()
            with contextlib.closing(state):
                shown = progress or NoProgress()
                work = Work(sink, state, tally, options.jobs, shown, options.pauses_s)
                for source in sources:
                    if listing is not None:
                        await source.show(work, listing)
                    elif not await _bring(source, work):
                        return


def _opened(config: Config, options: ImportOptions, key: bytes) -> ImportState:
    own = import_folder(config)
    if options.state is None:
        make_private_directory(own)
    return ImportState(options.state or own / STATE, key)


async def _bring(source: Source, work: Work) -> bool:
    """Whether another source is worth a try."""
    going_on = True

    def ended(group: BaseExceptionGroup[ArchiveFullError | ServerGoneError]) -> None:
        nonlocal going_on
        going_on = False
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        work.tally.complain(str(error), unreachable=isinstance(error, ServerGoneError))

    try:
        await source.bring(work)
    except* (ArchiveFullError, ServerGoneError) as group:
        ended(group)
    return going_on
