"""Another application entity as the source of an import: studies are found with C-FIND, and come with C-GET.

Or with C-MOVE to a listener of our own, for those that provide no C-GET (PS3.4 C).
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from functools import partial
from typing import Any, Final

import trio

from hounsfield.archive.app.importing.entity_ways import (
    LEVEL,
    MODEL,
    STUDY_UID,
    Arrivals,
    EntityOptions,
    WantedStudy,
    Way,
    open_way,
)
from hounsfield.archive.app.importing.fates import Fate
from hounsfield.archive.app.importing.stretches import (
    STUDY_DATE,
    STUDY_TIME,
    Came,
    CutShortError,
    Stretch,
    Stretches,
)
from hounsfield.archive.app.importing.work import Work
from hounsfield.archive.dicom.from_json import ModelError
from hounsfield.archive.errors import HounsfieldError
from hounsfield.archive.net.errors import ConnectError, NetError, NoAcceptedContextError, RejectedError
from hounsfield.archive.net.query_retrieve import (
    Ended,
    RefusedError,
    UnreadableAnswer,
    find,
    identifier_bytes,
    proposal,
)
from hounsfield.archive.net.scu import RemoteEntity, RequestorAssociation, associate
from hounsfield.archive.wire import AcceptedContext, Category

FAILURES_MAX: Final = 20
"""Studies in a row of which nothing came."""
STUDIES_AHEAD: Final = 100_000
"""Studies found and not yet fetched: a peer is not kept waiting within a query."""
_IN_STUDY, _CLASSES = "00201208", "00080062"
_VRS: Final = {STUDY_DATE: "DA", STUDY_TIME: "TM"}
_TOO_MANY: Final = {0xA700, 0xB000}
"""Of failures: out of resources; a warning for the same. What is wrong with the query itself is no limit."""
_UNABLE: Final = 0xC000

Identifier = dict[str, Any]


class _SourceError(HounsfieldError):
    """Nothing more can be had of this AE."""

    def __init__(self, message: str, *, away: bool = False) -> None:
        super().__init__(message)
        self.away = away


class Entity:
    """One AE, and which of its studies are wanted."""

    def __init__(
        self, remote: RemoteEntity, identifier: Identifier, options: EntityOptions | None = None
    ) -> None:
        """``identifier``: the keys of the C-FIND at the level of studies, as a DICOM JSON object."""
        self._remote = remote
        self._identifier = {
            **identifier,
            **LEVEL,
            STUDY_UID: identifier.get(STUDY_UID, {"vr": "UI"}),
            _IN_STUDY: {"vr": "IS"},
            _CLASSES: {"vr": "UI"},
            **{key: identifier.get(key, {"vr": vr}) for key, vr in _VRS.items()},
        }
        self._options = options or EntityOptions()

    def __str__(self) -> str:
        return str(self._remote)

    async def bring(self, work: Work) -> None:
        """See :class:`~.work.Source`."""
        try:
            async with open_way(self._remote, self._options, work) as way:
                await self._bring(work, way)
        except* (_SourceError, NetError, CutShortError) as group:
            first: BaseException = group
            while isinstance(first, BaseExceptionGroup):
                first = first.exceptions[0]
            away = first.away if isinstance(first, _SourceError) else isinstance(first, ConnectError)
            work.tally.complain(str(first), unreachable=away)

    async def show(self, work: Work, tell: Callable[[str, int | None], None]) -> None:
        """See :class:`~.work.Source`."""
        try:
            async with aclosing(self._found(work)) as found:
                async for study in found:
                    if not work.state.has(self._id(work, study)):
                        tell(self._place(study), None)
        except (NetError, _SourceError, CutShortError) as error:
            work.tally.complain(f"{error}", unreachable=isinstance(error, ConnectError))

    async def _bring(self, work: Work, way: Way) -> None:
        give, take = trio.open_memory_channel[WantedStudy](STUDIES_AHEAD)
        turns = _InARow()

        async def search() -> None:
            async with give, aclosing(self._found(work)) as found:
                async for study in found:
                    work.progress.found(1, 0)
                    await give.send(study)

        async def fetch() -> None:
            async for study in take.clone():
                await self._study(work, way, study, turns)
                work.progress.done(1, 0)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(search)
            for _ in range(way.at_once(work.jobs)):
                nursery.start_soon(fetch)
        take.close()

    async def _found(self, work: Work) -> AsyncGenerator[WantedStudy, None]:
        """Every study, once. Raises NetError, _SourceError, CutShortError."""
        uid = MODEL.find_uid
        seen: set[str] = set()
        async with associate(self._remote, [proposal(1, uid)], self._options.limits) as association:
            context = association.context_for(uid)
            stretches = Stretches(
                partial(self._asked, association, context),
                {key: _text(self._identifier, key) for key in (STUDY_DATE, STUDY_TIME)},
                lambda text: work.tally.remarks.append(f"{self._remote}: {text}"),
                lambda text: work.tally.complain(f"{self._remote}: {text}"),
            )
            async with aclosing(stretches.studies()) as answers:
                async for answer in answers:
                    study = WantedStudy(
                        _text(answer, STUDY_UID), _number(_text(answer, _IN_STUDY)), _texts(answer, _CLASSES)
                    )
                    if study.uid and study.uid not in seen:
                        seen.add(study.uid)
                        yield study

    async def _asked(
        self, association: RequestorAssociation, context: AcceptedContext, stretch: Stretch, came: Came
    ) -> AsyncGenerator[Identifier, None]:
        """One C-FIND. See :data:`~.stretches.Ask`. Raises NetError, _SourceError."""
        days = {key: {"vr": _VRS[key], "Value": [value]} for key, value in stretch.matching().items()}
        try:
            identifier = identifier_bytes({**self._identifier, **days}, context, self._options.character_set)
        except ModelError as error:
            raise _SourceError(str(error)) from error
        try:
            async with aclosing(find(association, context, identifier)) as answers:
                async for answer in answers:
                    if isinstance(answer, UnreadableAnswer):
                        raise _SourceError(f"{self._remote}: an answer to the query cannot be read")
                    if not isinstance(answer, Ended):
                        yield answer
                    elif answer.category is not Category.SUCCESS:
                        came.failure = self._not_all(answer.meaning)
        except RefusedError as error:
            if error.status & 0xFF00 not in _TOO_MANY and error.status & 0xF000 != _UNABLE:
                raise
            came.failure = self._not_all(str(error))

    def _not_all(self, meaning: str) -> _SourceError:
        return _SourceError(f"{self._remote}: the query ended with {meaning}: not all was found")

    def _id(self, work: Work, study: WantedStudy) -> bytes:
        remote = self._remote
        return work.state.id(
            "study of an AE", remote.called_ae, remote.host, remote.port, study.uid, study.count
        )

    def _place(self, study: WantedStudy) -> str:
        return f"{self._remote}/{study.uid}"

    async def _study(self, work: Work, way: Way, study: WantedStudy, turns: _InARow) -> None:
        id_ = self._id(work, study)
        if work.state.has(id_):
            work.tally.before += 1
            return
        arrivals = Arrivals(work, self._place(study))
        try:
            complaint = await self._patiently(work, way, study, arrivals)
        except ModelError:
            complaint = "it lists a study whose UID is none"
        except NetError as error:
            complaint = str(error)
            if isinstance(error, NoAcceptedContextError):
                raise _SourceError(f"{error}; {way.hint}") from error
            if isinstance(error, ConnectError | RejectedError):
                raise _SourceError(str(error), away=isinstance(error, ConnectError)) from error
        if not complaint and arrivals.count < study.count:
            complaint = f"{study.count - arrivals.count} of its {study.count} instances did not come"
        if complaint:
            work.tally.object(self._place(study), Fate.UNREADABLE, complaint)
            turns.failed(complaint, got=arrivals.count > 0)
        elif not arrivals.rejected:
            turns.went_well()
            work.state.note(id_)

    async def _patiently(self, work: Work, way: Way, study: WantedStudy, arrivals: Arrivals) -> str:
        """Fetch a study; what is wrong with what came, "" when nothing is. Raises NetError."""
        pauses = list(self._options.pauses_s)
        while True:
            arrivals.lost = False
            try:
                complaint = await way.fetch(study, arrivals)
            except NetError as error:
                if not error.retry or not pauses:
                    raise
                complaint = ""
            else:
                if not arrivals.lost:
                    return complaint
            if arrivals.lost:  # it was our own server that went away
                await work.sink.available()
            elif pauses:
                await trio.sleep(pauses.pop(0))


class _InARow:
    """Failures one after the other."""

    def __init__(self) -> None:
        self._failures = 0

    def went_well(self) -> None:
        self._failures = 0

    def failed(self, why: str, *, got: bool) -> None:
        """Raises _SourceError when the next ones would fail as well."""
        self._failures = 0 if got else self._failures + 1
        if self._failures >= FAILURES_MAX:
            raise _SourceError(f"{FAILURES_MAX} studies in a row failed; the last one: {why}")


def _texts(answer: Identifier, key: str) -> tuple[str, ...]:
    values = answer.get(key, {}).get("Value") or ()
    return tuple(str(one).strip() for one in values if isinstance(one, str | int))


def _text(answer: Identifier, key: str) -> str:
    return next(iter(_texts(answer, key)), "")


def _number(text: str) -> int:
    return int(text) if text.isdigit() and len(text) < 10 else 0
