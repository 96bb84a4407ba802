"""Series metadata prepared: DICOM JSON (PS3.18 F) made once, kept compressed and sealed, sent as it is.

An answer is found like this: one look at the index says what each series is now (its *stamp*), one at
the cache whether that is what was prepared. If it is, the compressed pieces are read, opened and sent. If
it is not, the series is built, piece by piece, while it is being sent: pieces that still hold are taken
over, only instances that came since are encoded, and whoever asks meanwhile shares the build.

The stamp is a hash of the series' sealed row: everything that changes a series (an object added, deleted,
replaced, corrected, moved) writes that row anew, and no two seals are alike. So nothing is ever served that
the index did not say when the request came.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import trio

from hounsfield.archive.dicom.json import JsonWriter
from hounsfield.archive.engine.errors import ClosedError, NotFoundError, OutOfResourcesError
from hounsfield.archive.engine.gate import Gate
from hounsfield.archive.engine.gzip_pieces import GzipJoin, gzip_length, pack, unpack
from hounsfield.archive.engine.prepared_build import ENCODING, Blocking, Plan, Series
from hounsfield.archive.engine.prepared_store import (
    HeadRow,
    MadePiece,
    MemberRow,
    PieceRow,
    PreparedLimits,
    PreparedStore,
    new_piece,
)
from hounsfield.archive.engine.types import Instance
from hounsfield.storage_backends.api import Buffer
from hounsfield.storage_backends.errors import StorageError

__all__ = ["Answer", "PreparedFigures", "PreparedMetadata"]

PACE = 1.0
"""A build that nobody waits for rests as long as it worked: it takes half of one core from ingest at most."""
LINKS_UNKNOWN = "/dicom-web"
"""Until the first request says where clients see this archive. To be right it would do as it is: a path
that begins with a slash is a reference that RFC 3986 resolves; but not every client resolves it."""
TIDY_S = 60.0
"""How often pieces that were dropped, and that nobody reads any more, are removed."""
READ_BYTES = 1 << 20
"""Of compressed pieces read from the cache at a time, when an answer is too long to be read whole."""


@dataclass(slots=True)
class PreparedFigures:
    """Since the start: answers sent as they were kept; series built; instances encoded for those; pieces
    taken over from what had been prepared before; series that could not be kept for want of room."""

    hits: int = 0
    builds: int = 0
    encoded: int = 0
    taken_over: int = 0
    not_kept: int = 0


@dataclass(eq=False)
class _Build:
    """A series being built, for whoever waits for it. Pieces appear in order."""

    series: Series
    links: str
    wanted: bool
    stamp: bytes | None = None
    pieces: list[MadePiece] = field(default_factory=list)
    done: bool = False
    error: Exception | None = None
    changed: trio.Event = field(default_factory=trio.Event)

    def tell(self) -> None:
        self.changed.set()
        self.changed = trio.Event()

    async def begun(self) -> None:
        """Return when there is a first piece; raises what ended the build before it."""
        while not self.pieces and not self.done:
            await self.changed.wait()
        if self.error is not None and not self.pieces:
            raise self.error


class PreparedMetadata:
    """Answers metadata requests, and builds what they need while :meth:`run` runs."""

    def __init__(self, blocking: Blocking, cache: PreparedStore, gate: Gate, limits: PreparedLimits) -> None:
        self._blocking = blocking
        self._cache = cache
        self._gate = gate
        self._limits = limits
        self._builds: dict[tuple[bytes, bytes, str], _Build] = {}
        self._slots = trio.Semaphore(limits.builds_max)
        self._nursery: trio.Nursery | None = None
        self._links = ""  # of the last answer
        self.figures = PreparedFigures()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Be there for builds, and tidy up, until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                task_status.started()
                while True:
                    await trio.sleep(TIDY_S)
                    with suppress(StorageError):
                        await self._gate.read(self._cache.remove_due)
            finally:
                self._nursery = None  # before it closes: what is asked for from here on is told so

    # ------------------------------------------------------------ answering

    async def open(
        self,
        study_uid: str,
        series_uid: str | None = None,
        *,
        links: str,
        known: frozenset[str] = frozenset(),
    ) -> Answer:
        """The metadata of a series, or of every series of a study: by series and instance number.

        ``links`` stands before the ``/studies/…`` of each BulkDataURI: where the asker sees this archive.
        What was prepared for another place is compressed anew, not encoded. ``known``: entity tags that the
        asker has (``*`` for any); then the answer may be ``unchanged``.
        ``NotFoundError`` when there is no such series, ``DamagedError`` when its first instances do not open
        (later ones fail the reading of the answer).
        """
        answer = await self._gate.read(self._look, study_uid, series_uid, links, known)
        if answer.unchanged or answer.bodies is not None:
            self.figures.hits += not answer.unchanged
            return answer
        build = self._source(answer, 0)
        if isinstance(build, _Build):
            await build.begun()
            # Of a study the other series may change until they are built: it has no tag before that.
            one = len(answer.series) == 1 and build.stamp is not None
            answer.etag = self._blocking.etag(links, [build.series.key, build.stamp or b""]) if one else ""
        return answer

    async def instance(
        self,
        study_uid: str,
        series_uid: str,
        sop_uid: str,
        *,
        links: str,
        known: frozenset[str] = frozenset(),
    ) -> Answer:
        """The metadata of one instance, as a list of one; made anew each time."""
        return await self._gate.read(self._one, study_uid, series_uid, sop_uid, links, known)

    def _one(
        self, study_uid: str, series_uid: str, sop_uid: str, links: str, known: frozenset[str]
    ) -> Answer:
        stamp, row = self._blocking.instance(study_uid, series_uid, sop_uid)
        etag = self._blocking.etag(links, [stamp, sop_uid.encode()])
        if etag in known or "*" in known:
            return Answer(self, etag, links, unchanged=True)
        text = self._blocking.text(Instance(study_uid, series_uid, row), links, JsonWriter())
        packed = pack(text, self._limits.level)
        made = new_piece(packed, [MemberRow(row.location.record_id, packed.length)])
        return Answer(self, etag, links, rows=[made.row], bodies=[packed.body])

    def _look(self, study_uid: str, series_uid: str | None, links: str, known: frozenset[str]) -> Answer:
        found = self._blocking.series(study_uid, series_uid)
        if not found:
            raise NotFoundError("no such study or series in this archive")
        etag = self._blocking.etag(links, [part for one in found for part in (one.key, one.stamp)])
        if etag in known or "*" in known:
            return Answer(self, etag, links, unchanged=True)
        self._remember(links)
        heads = [
            head if head is not None and self._blocking.holds(head, one, links) else None
            for one, head in zip(found, self._cache.heads([one.key for one in found]), strict=True)
        ]
        answer = Answer(self, etag, links, series=found, heads=heads)
        whole = [head for head in heads if head is not None]
        rows = [row for head in whole for row in head.pieces]
        if len(whole) == len(found) and _gzip_length(rows) <= self._limits.whole_bytes_max:
            bodies = self._cache.bodies(rows)
            if bodies is None:
                self._forget([one.key for one in found])
                answer.heads = [None] * len(found)
            else:
                answer.rows, answer.bodies = rows, bodies
        return answer

    def _remember(self, links: str) -> None:
        """What is prepared before it is asked for is prepared for where clients last saw this archive."""
        if links != self._links:
            self._links = links
            if self._cache.remembered_links() != links:
                with suppress(StorageError):
                    self._cache.remember_links(links)

    # ------------------------------------------------------------ sources of an answer

    def _source(self, answer: Answer, number: int) -> HeadRow | _Build:
        """Where the pieces of an answer's series come from; starts the build when they are not kept."""
        head = answer.heads[number]
        if head is not None:
            return head
        build = answer.builds.get(number)
        if build is None:
            build = answer.builds[number] = self._shared(answer.series[number], answer.links, wanted=True)
        return build

    async def pieces(self, answer: Answer) -> AsyncIterator[tuple[PieceRow, bytes]]:
        """Every piece of an answer, in order."""
        if answer.bodies is not None:
            for row, body in zip(answer.rows, answer.bodies, strict=True):
                yield row, body
            return
        for number in range(len(answer.series)):
            source = self._source(answer, number)
            if number + 1 < len(answer.series):
                self._source(answer, number + 1)  # one ahead: it is built while this one is sent
            if isinstance(source, _Build):
                at = 0
                while True:
                    while at < len(source.pieces):
                        made = source.pieces[at]
                        at += 1
                        if made.packed is not None:
                            yield made.row, made.packed.body
                        else:
                            yield made.row, (await self._read([made.row], source.series.key))[0]
                    if source.error is not None:
                        raise source.error
                    if source.done:
                        break
                    await source.changed.wait()
                del answer.builds[number]
            else:
                for group in _groups(source.pieces):
                    bodies = await self._read(group, answer.series[number].key)
                    for row, body in zip(group, bodies, strict=True):
                        yield row, body

    async def _read(self, rows: Sequence[PieceRow], key: bytes) -> list[bytes]:
        found = await self._gate.read(self._cache.bodies, rows)
        if found is None:
            await self._gate.read(self._forget, [key])
            raise OutOfResourcesError("prepared metadata went while it was being sent; ask again")
        return found

    def _forget(self, keys: Sequence[bytes]) -> None:
        """Rows of the cache are lost or do not open: without their heads, the series are built anew."""
        for key in keys:
            self._cache.drop(key)

    async def unpacked(self, row: PieceRow, body: bytes) -> bytes:
        """A piece's text."""
        return await self._gate.read(unpack, body, row.length)

    # ------------------------------------------------------------ building

    async def prepare(self, study_uid: str) -> None:
        """Have what is kept of a study be what it is now: the rest built, what is gone forgotten."""
        stale, gone, links = await self._gate.read(self._survey, study_uid)
        for key in gone:
            await self._gate.read(self._cache.drop, key)
        for series in stale:
            build = self._shared(series, links, wanted=False)
            while not build.done:
                await build.changed.wait()
        if gone:
            await self._gate.read(self._cache.remove_due)

    def _survey(self, study_uid: str) -> tuple[list[Series], list[bytes], str]:
        found = self._blocking.series(study_uid, None)
        keys = [one.key for one in found]
        heads = self._cache.heads(keys)
        kept = self._cache.keys_of(self._blocking.study_id(study_uid))
        stale = [
            one
            for one, head in zip(found, heads, strict=True)
            if head is None or not self._blocking.holds(head, one, None)
        ]
        links = self._cache.remembered_links() or LINKS_UNKNOWN
        return stale, [key for key in kept if key not in keys], links

    def _shared(self, series: Series, links: str, *, wanted: bool) -> _Build:
        """The build of a series as it is now: one for all who ask."""
        key = (series.key, series.stamp, links)
        build = self._builds.get(key)
        if build is None:
            if self._nursery is None:
                raise ClosedError("the archive is shutting down")
            build = self._builds[key] = _Build(series, links, wanted)
            self._nursery.start_soon(self._run_build, build)
        build.wanted = build.wanted or wanted
        return build

    async def _run_build(self, build: _Build) -> None:
        outcome: Exception | None = ClosedError("the archive is shutting down")
        try:
            async with self._slots:
                await self._build(build)
            outcome = None
        except Exception as error:  # noqa: BLE001 - it is raised where the answer is read
            outcome = error
        finally:
            build.error = outcome
            del self._builds[build.series.key, build.series.stamp, build.links]
            build.done = True
            build.tell()

    async def _build(self, build: _Build) -> None:
        self.figures.builds += 1
        head = (await self._gate.read(self._cache.heads, [build.series.key]))[0]
        plan = await self._gate.read(self._blocking.plan, build.series, build.links, head)
        build.stamp = plan.stamp
        keeping = _Keeping(self._cache, self._gate, self._limits)
        for planned in plan.pieces:
            if planned.kept is not None:
                self.figures.taken_over += 1
                build.pieces.append(MadePiece(planned.kept, (), None))
                build.tell()
                continue
            began = trio.current_time()
            lane = self._gate.heavy if self._blocking.is_heavy(planned) else self._gate.read
            made = await lane(self._blocking.make, plan, planned)
            if made is None:
                continue
            self.figures.encoded += planned.encoded
            build.pieces.append(made)
            build.tell()
            await keeping.keep(build.pieces)
            if not build.wanted:
                await trio.sleep(PACE * (trio.current_time() - began))
        await self._publish(build, plan, keeping)

    async def _publish(self, build: _Build, plan: Plan, keeping: _Keeping) -> None:
        if not plan.whole or plan.stamp is None or keeping.failed or not build.pieces:
            return
        rows = tuple(made.row for made in build.pieces)
        head = HeadRow(plan.stamp, ENCODING, plan.links, plan.corrections, time.time_ns(), rows)
        new = [made for made in build.pieces if made.packed is not None]
        if head.cost > self._limits.bytes_max:
            self.figures.not_kept += 1
            return
        try:
            await self._gate.read(self._cache.publish, build.series.key, head, new, keeping.ahead)
        except StorageError:
            self.figures.not_kept += 1  # a full disk: it is made anew each time


class _Keeping:
    """Keeps the memory of one build bounded: pieces past a limit are stored before the others are made."""

    def __init__(self, cache: PreparedStore, gate: Gate, limits: PreparedLimits) -> None:
        self._cache = cache
        self._gate = gate
        self._limits = limits
        self._from = 0
        self._held = 0
        self.ahead: list[bytes] = []
        self.failed = False

    async def keep(self, pieces: list[MadePiece]) -> None:
        """The last of ``pieces`` was just made."""
        self._held += pieces[-1].row.body_bytes
        if self._held <= self._limits.held_bytes_max:
            return
        if not self.failed:
            held = [made for made in pieces[self._from :] if made.packed is not None]
            try:
                self.ahead += await self._gate.read(self._cache.put_ahead, held)
            except StorageError:
                self.failed = True
            else:
                pieces[self._from :] = [MadePiece(made.row, (), None) for made in pieces[self._from :]]
                self._from, self._held = len(pieces), 0
                return
        if self._held > self._limits.unstored_bytes_max:
            raise OutOfResourcesError("there is no room to prepare the metadata of so large a series")


# ---------------------------------------------------------------- answers


@dataclass(eq=False, slots=True)
class Answer:
    """Metadata on its way out, as one JSON list. ``etag`` is weak, and "" when what is sent has none yet."""

    owner: PreparedMetadata
    etag: str
    links: str
    unchanged: bool = False
    series: list[Series] = field(default_factory=list)
    heads: list[HeadRow | None] = field(default_factory=list)
    builds: dict[int, _Build] = field(default_factory=dict)
    rows: list[PieceRow] = field(default_factory=list)
    bodies: list[bytes] | None = None

    @property
    def gzip_bytes(self) -> int | None:
        """Length of the gzip form; None when it is not known yet."""
        return None if self.bodies is None else _gzip_length(self.rows)

    async def gzip(self) -> AsyncIterator[Sequence[Buffer]]:
        """The gzip form, in pieces of buffers."""
        join = GzipJoin()
        if self.bodies is not None:
            whole: list[Buffer] = []
            for row, body in zip(self.rows, self.bodies, strict=True):
                whole += (join.lead(row.length, row.crc_first, row.crc_between), body)
            yield (*whole, join.end())
            return
        async for row, body in self.owner.pieces(self):
            yield join.lead(row.length, row.crc_first, row.crc_between), body
        yield (join.end(),)

    async def identity(self) -> AsyncIterator[Sequence[Buffer]]:
        """The text itself, in pieces of buffers."""
        lead = b"["
        async for row, body in self.owner.pieces(self):
            yield lead, await self.owner.unpacked(row, body)
            lead = b","
        yield (b"]",)


def _gzip_length(rows: Sequence[PieceRow]) -> int:
    return gzip_length(row.body_bytes for row in rows)


def _groups(rows: Sequence[PieceRow]) -> list[list[PieceRow]]:
    groups: list[list[PieceRow]] = []
    size = READ_BYTES
    for row in rows:
        if size >= READ_BYTES:
            groups.append([])
            size = 0
        groups[-1].append(row)
        size += row.body_bytes
    return groups
