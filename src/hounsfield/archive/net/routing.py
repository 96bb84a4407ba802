"""The way to a destination of a route: an association, opened for what waits."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager

from hounsfield.archive.engine.engine import Engine
from hounsfield.archive.engine.opening import Opening
from hounsfield.archive.engine.route_ways import Answer, Pair, Verdict, Way, WayError
from hounsfield.archive.engine.target_syntaxes import transcodable
from hounsfield.archive.engine.types import Instance
from hounsfield.archive.net.destinations import Destinations
from hounsfield.archive.net.errors import NetError
from hounsfield.archive.net.outgoing import (
    CONTEXTS_MAX,
    Accepted,
    Batch,
    Sent,
    UnfinishedError,
    batches_of,
    send,
)
from hounsfield.archive.net.scu import RequestorAssociation, ScuLimits, associate
from hounsfield.archive.wire import AcceptedContext, Category, PresentationContext
from hounsfield.storage_backends.errors import StorageError

__all__ = ["RouteWays"]

_GONE = "it is not stored any more"


class RouteWays:
    """Opens associations for routing. ``limits`` say how long a peer may take."""

    def __init__(self, engine: Engine, destinations: Destinations, limits: ScuLimits | None = None) -> None:
        self._engine = engine
        self._destinations = destinations
        self._limits = limits or ScuLimits()

    @asynccontextmanager
    async def open(self, to: str, pairs: Sequence[Pair], preferred: Sequence[str]) -> AsyncIterator[Way]:
        """A way to the AE ``to`` for objects of ``pairs``, the first of them in any case. WayError."""
        batches = batches_of(pairs)
        if not batches or pairs[0] not in batches[0].pairs:
            yield _NoWay()
            return
        batch = with_preferred(batches[0], preferred)
        try:
            remote = self._destinations.find(to)
            if remote is None:
                raise WayError(f"no AE {to} with an address is known: [[aes]], or `hounsfield ae add`")
            async with associate(remote, batch.contexts, self._limits) as association:
                opening = self._engine.opening()
                try:
                    yield _Association(self._engine, association, batch.pairs, preferred, opening)
                finally:
                    opening.close()
        except NetError as error:
            raise WayError(str(error)) from error


def with_preferred(batch: Batch, preferred: Sequence[str]) -> Batch:
    """``batch`` with a context for each preferred transfer syntax that its objects can be made."""
    contexts = list(batch.contexts)
    for sop_class in dict.fromkeys(sop_class for sop_class, _ in sorted(batch.pairs)):
        possible = {
            uid for known, stored in batch.pairs if known == sop_class for uid in transcodable(stored)
        }
        proposed = {one.transfer_syntaxes for one in contexts if one.abstract_syntax == sop_class}
        for uid in preferred:
            if uid in possible and (uid,) not in proposed and len(contexts) < CONTEXTS_MAX:
                contexts.append(PresentationContext(2 * len(contexts) + 1, sop_class, (uid,)))
    return Batch(contexts, batch.pairs)


class Preferring(Accepted):
    """What was accepted, with some transfer syntaxes chosen before others."""

    def __init__(self, contexts: Iterable[AcceptedContext], preferred: Sequence[str]) -> None:
        super().__init__(contexts)
        self._preferred = {uid: number for number, uid in enumerate(preferred)}

    def choices(self, instance: Instance) -> Iterator[AcceptedContext]:
        """As of :class:`Accepted`; the preferred ones first, in their order."""
        found = list(super().choices(instance))
        last = len(self._preferred)
        found.sort(key=lambda one: self._preferred.get(one.transfer_syntax, last))
        return iter(found)


class _NoWay:
    """For what cannot be proposed to anybody."""

    def carries(self, pair: Pair) -> bool:
        del pair
        return False

    async def send(self, instance: Instance) -> Answer:
        del instance
        raise WayError("nothing is carried here")


class _Association:
    """An association that is open."""

    def __init__(
        self,
        engine: Engine,
        association: RequestorAssociation,
        pairs: set[Pair],
        preferred: Sequence[str],
        opening: Opening,
    ) -> None:
        self._engine = engine
        self._association = association
        self._pairs = pairs
        contexts = association.contexts.values()
        self._accepted = Preferring(contexts, preferred) if preferred else Accepted(contexts)
        self._opening = opening

    def carries(self, pair: Pair) -> bool:
        return pair in self._pairs

    async def send(self, instance: Instance) -> Answer:
        try:
            sent = await send(
                self._association, self._engine, instance, accepted=self._accepted, opening=self._opening
            )
        except UnfinishedError as error:
            return _answer(error.sent, over=True)
        except NetError as error:
            raise WayError(str(error)) from error
        except (StorageError, OSError) as error:
            raise WayError(f"the index or the record cannot be read here ({type(error).__name__})") from error
        return _answer(sent)


def _answer(sent: Sent, *, over: bool = False) -> Answer:
    if sent.category is not Category.FAILURE:
        return Answer(Verdict.SENT, sent.reason, sent.status, sent.size)
    if sent.status is None and sent.reason == _GONE:
        return Answer(Verdict.PASSED_OVER, over=over)
    words = sent.reason if sent.status is None else f"{sent.status:04X}H: {sent.reason}"
    verdict = Verdict.LATER if sent.retry else Verdict.REFUSED
    return Answer(verdict, words, sent.status, over=over)
