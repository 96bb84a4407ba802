"""The two ways in which studies of another AE come: C-GET, and C-MOVE to our own listener (PS3.4 C.4).

What comes goes straight into the archive; the peer has its success when it is durable.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import trio

from hounsfield.archive.app.importing.fates import Fate, fate_of
from hounsfield.archive.app.importing.sink import ServerLostError, Session
from hounsfield.archive.app.importing.work import Work
from hounsfield.archive.engine.errors import EngineError
from hounsfield.archive.engine.types import Source as From
from hounsfield.archive.engine.types import StoreResult
from hounsfield.archive.net.get_contexts import further_contexts, get_contexts
from hounsfield.archive.net.listener import Endpoint, Listener
from hounsfield.archive.net.policy import ListenerPolicy
from hounsfield.archive.net.providers import ObjectSession
from hounsfield.archive.net.query_retrieve import (
    Ended,
    QueryModel,
    RefusedError,
    identifier_bytes,
    proposal,
    retrieve,
)
from hounsfield.archive.net.scu import Offer, RemoteEntity, RequestorAssociation, ScuLimits, associate
from hounsfield.archive.net.statuses import answer_of, answer_to_error
from hounsfield.archive.wire import (
    AcceptedContext,
    Buffer,
    Category,
    CStoreRequest,
    PresentationContext,
    Service,
    describe_status,
)

PAUSES_S: Final = (1.0, 5.0, 20.0)
"""Before a study is asked for again, when the association was lost or the peer has no room for us."""
MODEL: Final = QueryModel.STUDY
MOVES_MAX: Final = 4
"""At once: for each of them the peer opens associations of its own to us."""
STUDY_UID: Final = "0020000D"
LEVEL: Final[dict[str, Any]] = {"00080052": {"vr": "CS", "Value": ["STUDY"]}}


@dataclass(frozen=True, slots=True, kw_only=True)
class EntityOptions:
    """How an AE is asked. ``listen``: where it moves objects to, None for C-GET; ``title``: what it calls us
    then.
    """

    limits: ScuLimits = field(default_factory=ScuLimits)
    character_set: str = ""
    listen: socket.socket | None = None
    listen_tls: ssl.SSLContext | None = None
    """What its association has to speak there; None: plain DICOM."""
    title: str = ""
    pauses_s: tuple[float, ...] = PAUSES_S


@dataclass(frozen=True, slots=True)
class WantedStudy:
    uid: str
    count: int
    classes: tuple[str, ...]


class Arrivals:
    """What came of one study, over all attempts; it takes the objects of a C-GET."""

    def __init__(self, work: Work, place: str) -> None:
        self.work = work
        self._place = place
        self._uids: set[str] = set()
        self._nameless = 0
        self.rejected = 0
        self.lost = False
        """Whether an object could not be handed over because our own server was away."""
        self.remote: RemoteEntity | None = None

    @property
    def count(self) -> int:
        """Objects that are durable."""
        return len(self._uids) + self._nameless

    def begin(self, context: AcceptedContext, request: CStoreRequest) -> _Incoming:
        """See :class:`~hounsfield.archive.net.incoming.Storage`."""
        assert self.remote is not None
        source = From("import", self.remote.called_ae, self.remote.calling_ae, _ip(self.remote.host))
        return _Incoming(self, context, request, source)

    def stored(self, result: StoreResult, size: int) -> None:
        """An object is durable; one that came before in another attempt is not counted again."""
        uid = result.sop_instance_uid
        if uid in self._uids:
            return
        if uid:
            self._uids.add(uid)
        else:
            self._nameless += 1
        fate, reason = fate_of(result)
        self.work.tally.object(self._place, fate, reason, size=size)
        progress = self.work.progress
        progress.object()
        progress.found(0, size)
        progress.done(0, size)

    def not_stored(self, error: EngineError) -> None:
        """The archive did not take one."""
        if isinstance(error, ServerLostError):
            self.lost = True
        else:
            self.rejected += 1
            self.work.tally.object(self._place, Fate.REJECTED, str(error))


class _Incoming:
    """One object of a C-GET: see :class:`~hounsfield.archive.net.incoming.IncomingObject`."""

    def __init__(
        self, arrivals: Arrivals, context: AcceptedContext, request: CStoreRequest, source: From
    ) -> None:
        self._arrivals = arrivals
        self._failure: EngineError | None = None
        self._size = 0
        self._session = arrivals.work.sink.begin(
            transfer_syntax_uid=context.transfer_syntax,
            sop_class_uid=request.affected_sop_class_uid,
            sop_instance_uid=request.affected_sop_instance_uid,
            source=source,
        )

    async def write(self, data: Buffer) -> None:
        if self._failure is None:
            self._size += len(data)
            try:
                await self._session.write(data)
            except EngineError as error:
                self._failure = error

    async def commit(self) -> tuple[int, str]:
        if self._failure is None:
            try:
                result = await self._session.commit()
            except EngineError as error:
                self._failure = error
            else:
                self._arrivals.stored(result, self._size)
                answer = answer_of(result)
                return answer.status, answer.comment or ""
        self._arrivals.not_stored(self._failure)
        answer = answer_to_error(self._failure)
        return answer.status, answer.comment or ""

    def abandon(self) -> None:
        self._session.abandon()


# ---------------------------------------------------------------- the two ways


class Way:
    """How the objects of a study come."""

    hint = ""

    def __init__(self, remote: RemoteEntity, options: EntityOptions) -> None:
        self._remote = remote
        self._options = options

    def at_once(self, jobs: int) -> int:
        """How many studies are fetched at once."""
        return jobs

    async def fetch(self, study: WantedStudy, arrivals: Arrivals) -> str:
        """Have the objects of a study come; what is wrong with what came, "" when nothing is. NetError."""
        raise NotImplementedError

    async def _ask(
        self,
        study: WantedStudy,
        sop_class: str,
        contexts: Sequence[PresentationContext],
        offer: Offer,
        arrivals: Arrivals | None,
    ) -> tuple[Ended | None, RequestorAssociation]:
        """One C-GET, or C-MOVE when nothing takes its objects, on an association of its own. NetError."""
        limits = self._options.limits
        async with associate(self._remote, contexts, limits, offer, storage=arrivals) as association:
            context = association.context_for(sop_class)
            model = {**LEVEL, STUDY_UID: {"vr": "UI", "Value": [study.uid]}}
            identifier = identifier_bytes(model, context)
            final: Ended | None = None
            destination = self._options.title if arrivals is None else ""
            steps = retrieve(association, context, identifier, destination=destination)
            async with aclosing(steps):
                async for step in steps:
                    if isinstance(step, Ended):
                        final = step
            return final, association


class _Getting(Way):
    """C-GET: on the association that asks."""

    hint = "if it provides no C-GET, have it send to us: --listen HOST:PORT"

    async def fetch(self, study: WantedStudy, arrivals: Arrivals) -> str:
        arrivals.remote = self._remote
        uid = MODEL.get_uid
        # Of known classes each syntax has a context of its own: a peer that converts need not.
        contexts, roles, _ = get_contexts(uid, study.classes)
        complaint, owed = "", 0
        for number, (proposed, our_roles) in enumerate([(contexts, roles), *further_contexts(uid)]):
            before = arrivals.count
            try:
                final, association = await self._ask(study, uid, proposed, Offer(roles=our_roles), arrivals)
            except RefusedError as error:
                if error.retry:
                    raise
                return complaint or _meaning(error.status, Service.GET)
            if number == 0:
                complaint = _complaint(final, Service.GET)
                owed = 0 if final is None else final.suboperations.failed
            else:  # what is not proposed any more fails now: what counts is what came
                owed -= arrivals.count - before
                complaint = complaint if owed > 0 else ""
            if not complaint or not owed or arrivals.lost:
                return complaint
            if not association.roles:
                return f"{complaint}; it let us take the SCP role for no class: try --listen HOST:PORT"
        return complaint


class _Moving(Way):
    """C-MOVE: on associations of its own, to our listener."""

    hint = "it provides no C-MOVE for studies"

    def __init__(self, remote: RemoteEntity, options: EntityOptions, received: _Received) -> None:
        super().__init__(remote, options)
        self._received = received

    def at_once(self, jobs: int) -> int:
        return min(jobs, MOVES_MAX)

    async def fetch(self, study: WantedStudy, arrivals: Arrivals) -> str:
        with self._received.counting(study.uid, arrivals):
            uid = MODEL.move_uid
            try:
                final, _ = await self._ask(study, uid, [proposal(1, uid)], Offer(), None)
            except RefusedError as error:
                if error.retry:
                    raise
                return _meaning(error.status, Service.MOVE)
        complaint = _complaint(final, Service.MOVE)
        if not complaint and final is not None and final.suboperations.done > arrivals.count:
            return (
                f"it says that it sent {final.suboperations.done} objects, and {arrivals.count} came here: "
                f"what address does it have of {self._options.title}?"
            )
        return complaint


class _Received:
    """Where moved objects go; it knows by their study whose they are."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._studies: dict[str, Arrivals] = {}

    @contextmanager
    def counting(self, study: str, arrivals: Arrivals) -> Iterator[None]:
        """While the block lasts, objects of ``study`` are those of ``arrivals``."""
        self._studies[study] = arrivals
        try:
            yield
        finally:
            del self._studies[study]

    def begin(
        self, *, transfer_syntax_uid: str, sop_class_uid: str, sop_instance_uid: str, source: From
    ) -> ObjectSession:
        """See :class:`~hounsfield.archive.net.providers.ObjectSink`."""
        session = self._work.sink.begin(
            transfer_syntax_uid=transfer_syntax_uid,
            sop_class_uid=sop_class_uid,
            sop_instance_uid=sop_instance_uid,
            source=From("import", source.calling_ae, source.called_ae, source.address),
        )
        return _Moved(session, self)

    def stored(self, result: StoreResult, size: int) -> None:
        arrivals = self._studies.get(result.study_uid) or Arrivals(self._work, "moved to us unasked")
        arrivals.stored(result, size)

    def not_stored(self, error: EngineError) -> None:
        """Of which study it was is not known: whoever waits tries again, or hears of it from the peer."""
        if isinstance(error, ServerLostError):
            for arrivals in self._studies.values():
                arrivals.lost = True


class _Moved:
    """One moved object on its way."""

    def __init__(self, session: Session, received: _Received) -> None:
        self._session = session
        self._received = received
        self._size = 0
        self.abandon = session.abandon

    async def write(self, data: Buffer, /) -> None:
        self._size += len(data)
        try:
            await self._session.write(data)
        except EngineError as error:
            self._received.not_stored(error)
            raise

    async def commit(self) -> StoreResult:
        try:
            result = await self._session.commit()
        except EngineError as error:
            self._received.not_stored(error)
            raise
        self._received.stored(result, self._size)
        return result


@asynccontextmanager
async def open_way(remote: RemoteEntity, options: EntityOptions, work: Work) -> AsyncIterator[Way]:
    """C-GET, or with ``options.listen`` C-MOVE: the listener serves as long as the block lasts."""
    if options.listen is None:
        yield _Getting(remote, options)
        return
    received = _Received(work)
    policy = ListenerPolicy(ae_title=options.title, calling_titles=frozenset({remote.called_ae}))
    listener = Listener(received, [Endpoint(options.listen, policy, options.listen_tls)])
    async with trio.open_nursery() as nursery:
        await nursery.start(listener.serve)
        yield _Moving(remote, options, received)
        with trio.move_on_after(options.limits.release_s):
            await listener.drain()
        nursery.cancel_scope.cancel()


def _complaint(final: Ended | None, service: Service) -> str:
    """What a final response says is wrong, "" when nothing is."""
    if final is None:
        return "it did not say how it ended"
    failed = final.suboperations.failed
    if failed:
        return f"{failed} objects were not sent: {_meaning(final.status, service)}"
    well = final.category in {Category.SUCCESS, Category.WARNING}
    return "" if well else _meaning(final.status, service)


def _meaning(status: int, service: Service) -> str:
    """A status in our words: the peer's own may name somebody, and this is written to the report."""
    return f"{status:04X}H: {describe_status(status, service).meaning}"


def _ip(host: str) -> str:
    """Of an address only: rules about sources compare no names."""
    try:
        socket.inet_pton(socket.AF_INET6 if ":" in host else socket.AF_INET, host)
    except OSError:
        return ""
    return host
