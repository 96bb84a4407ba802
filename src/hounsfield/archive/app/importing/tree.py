"""Files as the source of an import: folders (an Orthanc storage folder is one), DICOMDIRs, single files.

Links are not followed: what a link within a tree leads to is met there, and what lies outside is not meant.
"""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Final

import trio

from hounsfield.archive.app.importing.fates import Fate
from hounsfield.archive.app.importing.files import Files, Found
from hounsfield.archive.app.importing.reading import Seen
from hounsfield.archive.app.importing.recognising import BLOCK_BYTES, Kind, recognised
from hounsfield.archive.app.importing.work import Work
from hounsfield.archive.dicom.dicomdir import DICOMDIR_BYTES_MAX, DicomdirError, Locator, file_ids

AHEAD_MAX: Final = 20_000
"""Files that are known and not yet read: so much further than the reading the search is."""
BATCH: Final = 500
"""Files that the search hands on at once."""
_NOT_THERE = "listed by the DICOMDIR, and not there"
_LEADS_OUT = "the DICOMDIR names a file outside its folder, or none that can be"

Stray = tuple[str, Fate, str]
_NO_MORE: Final[list[Found | Stray]] = []


class Tree:
    """Everything below a folder, or one file; a DICOMDIR that is named stands for what it lists."""

    def __init__(self, root: Path, met: Met | None = None) -> None:
        """``met``: shared by the sources of one import, so that none reads what another did."""
        self._root = root.expanduser()
        self._met = met if met is not None else Met()

    def __str__(self) -> str:
        return str(self._root)

    async def bring(self, work: Work) -> None:
        """See :class:`~.work.Source`."""
        if not self._root.is_dir():
            await self._bring_file(work)
            return
        await self._bring_found(work, _batches(walk(self._root, self._met)))

    async def show(self, work: Work, tell: Callable[[str, int | None], None]) -> None:
        """See :class:`~.work.Source`."""
        for one in chain(walk(self._root, self._met), await trio.to_thread.run_sync(self._listed_here)):
            if isinstance(one, Found):
                if not work.state.has(work.state.id("file", one.path, one.seen.size, one.seen.mtime_ns)):
                    tell(one.path, one.seen.size)
            else:
                work.tally.object(*one)
            await trio.lowlevel.checkpoint()

    def _listed_here(self) -> Iterator[Found | Stray]:
        """What the file lists when it is a DICOMDIR: the only one that is read to show what would be."""
        if not self._root.is_file():
            return iter(())
        try:
            with self._root.open("rb") as file:
                data = file.read(BLOCK_BYTES)
                if recognised(data) is not Kind.DICOMDIR:
                    return iter(())
                data += file.read(DICOMDIR_BYTES_MAX)
            return self._stats(listed_files(self._root, data))
        except (OSError, DicomdirError) as error:
            return iter([(str(self._root), Fate.UNREADABLE, f"a DICOMDIR that cannot be followed: {error}")])

    async def _bring_file(self, work: Work) -> None:
        listed: list[bytes] = []
        for one in walk(self._root, self._met):
            if not isinstance(one, Found):
                work.tally.object(*one)
                continue
            work.progress.found(1, one.seen.size)
            await Files(work).take(one, listing=listed.append)
            work.progress.done(1, one.seen.size)
        for data in listed:
            try:
                found = await trio.to_thread.run_sync(listed_files, self._root, data)
            except DicomdirError as error:
                work.tally.object(
                    str(self._root), Fate.UNREADABLE, f"a DICOMDIR that cannot be followed: {error}"
                )
                continue
            await self._bring_found(work, _batches(self._stats(found)))

    def _stats(self, found: Iterable[Path | Stray]) -> Iterator[Found | Stray]:
        for one in found:
            if isinstance(one, Path):
                yield from walk(one, self._met)
            else:
                yield one

    async def _bring_found(self, work: Work, batches: Iterator[list[Found | Stray]]) -> None:
        files = Files(work)
        ahead = trio.Semaphore(AHEAD_MAX)
        give, take = trio.open_memory_channel[Found](math.inf)  # the semaphore bounds it

        async def search() -> None:
            async with give:
                while batch := await trio.to_thread.run_sync(next, batches, _NO_MORE, limiter=work.threads):
                    for one in batch:
                        if not isinstance(one, Found):
                            work.tally.object(*one)
                            continue
                        await ahead.acquire()
                        give.send_nowait(one)
                        work.progress.found(1, one.seen.size)

        async def read() -> None:
            async for one in take.clone():
                ahead.release()
                await files.take(one)
                work.progress.done(1, one.seen.size)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(search)
            for _ in range(work.jobs):
                nursery.start_soon(read)
        take.close()


class Met:
    """What an import has met: no folder is walked twice, and no file by two names is read twice."""

    def __init__(self) -> None:
        self._folders: set[tuple[int, int]] = set()
        self._files: set[tuple[int, int]] = set()

    def folder(self, found: os.stat_result) -> bool:
        """Whether this folder is new."""
        return _add(self._folders, (found.st_dev, found.st_ino))

    def file(self, found: os.stat_result, *, always: bool = False) -> bool:
        """Whether this file is new, as far as it has several names, or ``always``."""
        return (found.st_nlink < 2 and not always) or _add(self._files, (found.st_dev, found.st_ino))


def _add(members: set[tuple[int, int]], one: tuple[int, int]) -> bool:
    if one in members:
        return False
    members.add(one)
    return True


def walk(root: Path, met: Met) -> Iterator[Found | Stray]:
    """Every file below ``root``, in order of names; ``root`` itself when it is a file. Blocking.

    What cannot be looked into is said in the place of files. A folder that was walked before, as in a loop of
    mounts, is passed over.
    """
    try:
        real = os.path.realpath(root, strict=True)
        found = os.stat(real)  # noqa: PTH116 - names that are no text are paths, too
    except OSError as error:
        yield str(root), Fate.UNREADABLE, f"cannot be read: {error.strerror}"
        return
    if stat.S_ISREG(found.st_mode):
        if met.file(found):
            yield Found(real, Seen.of(found))
        return
    if not stat.S_ISDIR(found.st_mode):
        yield real, Fate.NOT_DICOM, "neither a file nor a folder"
        return
    waiting = [real] if met.folder(found) else []
    while waiting:
        folder = waiting.pop()
        below: list[str] = []
        try:
            with os.scandir(folder) as entries:
                for entry in sorted(entries, key=lambda one: one.name):
                    yield from _look(entry, met, below)
        except OSError as error:
            yield folder, Fate.UNREADABLE, f"a folder that cannot be read: {error.strerror}"
        waiting += reversed(below)


def _look(entry: os.DirEntry[str], met: Met, below: list[str]) -> Iterator[Found | Stray]:
    try:
        if entry.is_symlink():
            yield entry.path, Fate.NOT_DICOM, "a link, which is not followed"
            return
        found = entry.stat(follow_symlinks=False)
    except OSError as error:
        yield entry.path, Fate.UNREADABLE, f"cannot be read: {error.strerror}"
        return
    if stat.S_ISDIR(found.st_mode):
        if met.folder(found):
            below.append(entry.path)
    elif not stat.S_ISREG(found.st_mode):
        yield entry.path, Fate.NOT_DICOM, "neither a file nor a folder"
    elif met.file(found):
        yield Found(entry.path, Seen.of(found))


def listed_files(dicomdir: Path, data: bytes) -> list[Path | Stray]:
    """The files that a DICOMDIR lists, each once, and what it lists that cannot be had. DicomdirError."""
    folder = dicomdir.resolve().parent
    locator = Locator(folder)
    found: dict[Path | Stray, None] = {}
    for components in file_ids(data, sound_only=False):
        if not Locator.is_sound(components):
            found[str(dicomdir), Fate.UNREADABLE, _LEADS_OUT] = None
            continue
        path = locator.find(components)
        found[path or (str(folder.joinpath(*components)), Fate.UNREADABLE, _NOT_THERE)] = None
    return list(found)


def _batches(found: Iterator[Found | Stray]) -> Iterator[list[Found | Stray]]:
    """Few at first, so that reading begins at once."""
    size = 1
    batch: list[Found | Stray] = []
    for one in found:
        batch.append(one)
        if len(batch) >= size:
            yield batch
            batch, size = [], min(2 * size, BATCH)
    if batch:
        yield batch
