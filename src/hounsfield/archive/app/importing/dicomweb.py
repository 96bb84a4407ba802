"""A DICOMweb server as the source of an import: studies are searched, and fetched series by series.

What breaks off is not begun anew: the instances that did not come are asked for one by one.
"""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Final

import trio

from hounsfield.archive.app.importing.fates import Fate, fate_of
from hounsfield.archive.app.importing.stretches import (
    STUDY_DATE,
    STUDY_TIME,
    Came,
    CutShortError,
    Stretch,
    Stretches,
)
from hounsfield.archive.app.importing.web_client import (
    AwayError,
    Given,
    NotThereError,
    RefusedError,
    SearchEnd,
    TooManyError,
    WebClient,
    WebError,
    WebOptions,
    is_uid,
    value,
)
from hounsfield.archive.app.importing.work import Work
from hounsfield.archive.errors import HounsfieldError

FAILURES_MAX: Final = 20
"""Series in a row of which nothing came: the server has a fault of its own, and going on is of no use."""
STUDIES_AHEAD: Final = 50
_NAMES: Final = {
    "StudyDate": STUDY_DATE,
    "StudyTime": STUDY_TIME,
    STUDY_DATE: STUDY_DATE,
    STUDY_TIME: STUDY_TIME,
}
_KEYWORDS: Final = {STUDY_DATE: "StudyDate", STUDY_TIME: "StudyTime"}
_NO_UID: Final = "the server lists something whose UID is none"
_STUDY, _SERIES, _INSTANCE = "0020000D", "0020000E", "00080018"
_IN_STUDY, _IN_SERIES = "00201208", "00201209"  # how many instances


class _SourceError(HounsfieldError):
    """Nothing more can be had of this server."""

    def __init__(self, message: str, *, away: bool = False) -> None:
        super().__init__(message)
        self.away = away


@dataclass(frozen=True, slots=True)
class _Series:
    """What is fetched with one request: a series, or a whole study of a server that lists no series."""

    study: str
    uid: str
    count: int
    """Of instances, 0 when the server does not say."""
    is_doubtful: bool = False
    """Whether the list that it is from may have been cut short."""

    @property
    def path(self) -> str:
        return f"/studies/{self.study}" + (f"/series/{self.uid}" if self.uid else "")


class DicomWeb:
    """One server, and which of its studies are wanted."""

    def __init__(
        self, url: str, match: Sequence[tuple[str, str]] = (), options: WebOptions | None = None
    ) -> None:
        """``match``: keys of QIDO-RS, such as ("StudyDate", "20200101-20201231")."""
        self._url = url.rstrip("/")
        self._match = tuple(match)
        self._options = options or WebOptions()

    def __str__(self) -> str:
        return self._url

    async def bring(self, work: Work) -> None:
        """See :class:`~.work.Source`."""
        async with WebClient.open(self._url, self._options, work.jobs + 1) as client:
            try:
                await _Bringing(client, work, self._match).run()
            except* _SourceError as group:
                first: BaseException = group
                while isinstance(first, BaseExceptionGroup):
                    first = first.exceptions[0]
                assert isinstance(first, _SourceError)
                work.tally.complain(f"{self._url}: {first}", unreachable=first.away)

    async def show(self, work: Work, tell: Callable[[str, int | None], None]) -> None:
        """See :class:`~.work.Source`."""
        async with WebClient.open(self._url, self._options, 1) as client:
            try:
                async with aclosing(_studies(client, work, self._match)) as rows:
                    async for uid, count in rows:
                        if not work.state.has(_study_id(work, self._url, uid, count)):
                            tell(f"{self._url}/studies/{uid}", None)
            except (WebError, CutShortError) as error:
                work.tally.complain(f"{self._url}: {error}", unreachable=isinstance(error, AwayError))


def _study_id(work: Work, url: str, uid: str, count: int) -> bytes:
    """A study that has grown since is another one."""
    return work.state.id("web study", url, uid, count)


async def _studies(
    client: WebClient, work: Work, match: Sequence[tuple[str, str]]
) -> AsyncGenerator[tuple[str, int], None]:
    """Every study, once: its UID and how many instances it has. Raises WebError, CutShortError."""

    async def ask(stretch: Stretch, came: Came) -> AsyncGenerator[dict[str, Any], None]:
        days = stretch.matching()
        asked = [one for one in match if _NAMES.get(one[0].replace(",", "")) not in days]
        asked += [(_KEYWORDS[key], days[key]) for key in days]
        end = SearchEnd()
        try:
            rows = client.search("/studies", [*asked, ("includefield", _IN_STUDY)], _STUDY, end)
            async with aclosing(rows):
                async for row in rows:
                    yield row
        except TooManyError as error:
            came.failure = error
        came.is_doubtful = end.is_doubtful

    stretches = Stretches(
        ask,
        {_NAMES.get(name.replace(",", ""), name): text for name, text in match},
        lambda text: work.tally.remarks.append(f"{client.url}: {text}"),
        lambda text: work.tally.complain(f"{client.url}: {text}"),
    )
    seen: set[str] = set()
    async with aclosing(stretches.studies()) as rows:
        async for row in rows:
            uid = value(row, _STUDY)
            if uid not in seen:
                seen.add(uid)
                yield uid, _number(value(row, _IN_STUDY))


class _Bringing:
    """One run over one server."""

    def __init__(self, client: WebClient, work: Work, match: Sequence[tuple[str, str]]) -> None:
        self._client = client
        self._work = work
        self._match = match
        self._failures = 0

    async def run(self) -> None:
        """Raises _SourceError when nothing more can be had."""
        give, take = trio.open_memory_channel[tuple[str, int]](STUDIES_AHEAD)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._search, give)
            for _ in range(self._work.jobs):
                nursery.start_soon(self._fetch, take.clone())
            take.close()

    async def _search(self, give: trio.MemorySendChannel[tuple[str, int]]) -> None:
        async with give:
            try:
                async with aclosing(_studies(self._client, self._work, self._match)) as rows:
                    async for study in rows:
                        self._work.progress.found(1, 0)
                        await give.send(study)
            except (WebError, CutShortError) as error:
                raise _SourceError(
                    f"the search for studies failed: {error}", away=isinstance(error, AwayError)
                ) from error

    async def _fetch(self, take: trio.MemoryReceiveChannel[tuple[str, int]]) -> None:
        async for uid, count in take:
            await self._study(uid, count)
            self._work.progress.done(1, 0)

    async def _study(self, uid: str, count: int) -> None:
        work = self._work
        place = f"{self._client.url}/studies/{uid}"
        if not is_uid(uid):
            work.tally.object(self._client.url, Fate.UNREADABLE, _NO_UID)
            return
        id_ = _study_id(work, self._client.url, uid, count)
        if work.state.has(id_):
            work.tally.before += 1
            return
        try:
            every = await self._series(uid, count)
        except WebError as error:
            self._failed(place, error)
            return
        whole = True
        for series in every:
            whole = await self._one(series) and whole
        if self._listed_short(every, count):
            work.tally.object(place, Fate.UNREADABLE, "its list of series is cut short")
            whole = False
        if whole and every:
            work.state.note(id_)
        elif not every:
            work.tally.object(place, Fate.UNREADABLE, "listed, and without a series")

    def _listed_short(self, every: Sequence[_Series], count: int) -> bool:
        return bool(every) and every[0].is_doubtful and 0 < sum(one.count for one in every) < count

    async def _series(self, study: str, count: int) -> list[_Series]:
        end = SearchEnd()
        try:
            rows = [
                row
                async for row in self._client.search(
                    f"/studies/{study}/series", [("includefield", _IN_SERIES)], _SERIES, end
                )
            ]
        except NotThereError:
            return [_Series(study, "", count)]
        return [
            _Series(study, uid, _number(value(row, _IN_SERIES)), end.is_doubtful)
            for uid, row in ((value(row, _SERIES) or "none", row) for row in rows)
        ]

    async def _one(self, series: _Series) -> bool:
        """Bring in a series, unless that was done; whether all of it is here."""
        work = self._work
        if series.uid and not is_uid(series.uid):
            work.tally.object(f"{self._client.url}/studies/{series.study}", Fate.UNREADABLE, _NO_UID)
            return False
        id_ = work.state.id("web series", self._client.url, series.study, series.uid, series.count)
        if work.state.has(id_):
            work.tally.before += 1
            return True
        coming = _Coming(self._client, work, series)
        try:
            await coming.run()
        except WebError as error:
            self._failed(coming.place, error, got=bool(coming.got))
            return False
        self._failures = 0
        if coming.whole:
            work.state.note(id_)
        return coming.whole

    def _failed(self, place: str, error: WebError, *, got: bool = False) -> None:
        """Note it. Raises _SourceError when the next ones would fail as well."""
        self._work.tally.object(place, Fate.UNREADABLE, str(error))
        self._failures = 0 if got else self._failures + 1
        if isinstance(error, AwayError | RefusedError):
            raise _SourceError(str(error), away=isinstance(error, AwayError))
        if self._failures >= FAILURES_MAX:
            raise _SourceError(f"{FAILURES_MAX} failures in a row; the last one: {error}")


class _Coming:
    """One series on its way."""

    def __init__(self, client: WebClient, work: Work, series: _Series) -> None:
        self._client = client
        self._work = work
        self._series = series
        self.place = f"{client.url}{series.path}"
        self.got: set[str] = set()
        """SOP Instance UIDs of what is durable here."""
        self._quarantined = 0  # perhaps without one
        self._refused: list[tuple[str, str]] = []
        """Of what the archive did not take, or what was no object: where it was, and why."""
        self._missing = 0  # asked for one by one, and told
        self.whole = False

    async def run(self) -> None:
        """Bring it in. Raises WebError when not all of it came."""
        failure: WebError | None = None
        try:
            await self._at_once()
        except (RefusedError, AwayError, NotThereError):
            raise
        except WebError as error:
            failure = error
        if failure is not None or self._refused or self._came < self._series.count:
            failure = await self._one_by_one(failure)
        for place, reason in self._refused:
            self._work.tally.object(place, Fate.REJECTED, reason)
        if failure is not None:
            raise failure
        untaken = len(self._refused) + self._missing
        if not self._came and not untaken:
            raise WebError("listed, and nothing of it came")
        if self._came + untaken < self._series.count:
            missing = self._series.count - self._came - untaken
            raise WebError(f"{missing} of its {self._series.count} instances did not come")
        self.whole = not untaken

    @property
    def _came(self) -> int:
        return len(self.got) + self._quarantined

    async def _at_once(self) -> None:
        """All of it with one request; another one only while nothing came."""

        async def attempt() -> None:
            try:
                await self._retrieve(self._series.path)
            except WebError as error:
                if self.got and error.retry:
                    raise WebError(str(error)) from error  # the rest is asked for one by one
                raise

        await self._client.patiently(attempt)

    async def _one_by_one(self, failure: WebError | None) -> WebError | None:
        """What did not come; ``failure`` when it cannot be found out what that is, None when all is well."""
        try:
            rows = [row async for row in self._client.search(f"{self._series.path}/instances", [], _INSTANCE)]
        except WebError as error:
            return failure or error
        if rows:
            self._refused.clear()  # each of them is asked for once more, alone
        for row in rows:
            uid = value(row, _INSTANCE)
            if uid in self.got:
                continue
            if not is_uid(uid):
                self._missing += 1
                self._work.tally.object(self.place, Fate.UNREADABLE, _NO_UID)
                continue
            series = self._series.uid or value(row, _SERIES)
            path = f"/studies/{self._series.study}/series/{series}/instances/{uid}"
            try:
                await self._client.patiently(lambda path=path: self._retrieve(path))
            except (RefusedError, AwayError):
                raise
            except WebError as error:
                self._missing += 1
                self._work.tally.object(f"{self._client.url}{path}", Fate.UNREADABLE, str(error))
        return None if rows else failure

    async def _retrieve(self, path: str) -> None:
        """Also again, when it was our own server that went away."""
        work = self._work

        async def attempt() -> None:
            given = Given()
            try:
                await self._client.retrieve(path, work, given)
            finally:
                self._note(given, f"{self._client.url}{path}")

        await work.patiently(attempt)

    def _note(self, given: Given, place: str) -> None:
        tally = self._work.tally
        for result, size in given.results:
            uid = result.sop_instance_uid
            if uid and uid in self.got:
                continue  # the server repeats itself, or we asked again
            if uid:
                self.got.add(uid)
            else:
                self._quarantined += 1
            fate, reason = fate_of(result)
            tally.object(self.place, fate, reason, size=size)
            self._work.progress.object()
            self._work.progress.found(0, size)
            self._work.progress.done(0, size)
        self._refused += [(place, reason) for reason in given.refused]


def _number(text: str) -> int:
    try:
        return max(0, math.floor(float(text)))
    except (ValueError, OverflowError):
        return 0
