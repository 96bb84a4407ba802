"""What is owed to other AEs is delivered on associations that we request, until somebody takes it.

One process of the archive does it, by lease; each AE has a task of its own, so one that is away, refuses or
hangs keeps nobody else waiting. What is owed is durable and stays so until it is delivered or given up.
"""

from __future__ import annotations

import math
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import structlog
import trio

from hounsfield.archive.engine.leadership import Leadership
from hounsfield.archive.errors import where
from hounsfield.archive.net.errors import NetError
from hounsfield.archive.net.scu import Offer, RemoteEntity, RequestorAssociation, ScuLimits, associate
from hounsfield.archive.wire import PresentationContext
from hounsfield.storage_backends.errors import StorageError

__all__ = ["CallingBack", "CallingBackLimits", "Debt", "DeclinedError"]

log = structlog.get_logger(__name__)

_NS = 1_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class CallingBackLimits:
    """How patiently; times in seconds."""

    age_s: float = 0.0
    """What is younger is left alone: it may be delivered in another way."""
    poll_s: float = 2.0
    """Between two looks at what is owed; one costs 20 µs when that is nothing."""
    pause_s: float = 10.0
    """Before an AE is called again that could not be reached; doubled each time."""
    pause_s_max: float = 600.0
    give_up_s: float = 7 * 86_400.0
    """A device that was away for a week has asked again, or is gone."""


class DeclinedError(NetError):
    """The AE took what it was told, and answered that it failed."""


class Debt(Protocol):
    """Something that is owed to an AE since a moment."""

    @property
    def ae_title(self) -> str: ...

    @property
    def at_ns(self) -> int: ...


Owed = TypeVar("Owed", bound=Debt)


@dataclass(slots=True)
class _Trouble:
    """With one AE: how often it was called in vain, and when it is called again (trio's clock)."""

    attempts: int = 0
    again_at: float = -math.inf


class CallingBack(Generic[Owed]):
    """One worker's part in it; ``run`` in each of them."""

    def __init__(
        self,
        what: str,
        *,
        owed: Callable[[], Awaitable[Sequence[Owed]]],
        settle: Callable[[Owed], Awaitable[None]],
        contexts: Sequence[PresentationContext],
        tell: Callable[[RequestorAssociation, Owed], Awaitable[None]],
        find: Callable[[str], RemoteEntity | None],
        leadership: Leadership,
        limits: CallingBackLimits,
        takes_s: Callable[[Owed], float] = lambda _: 0.0,
        offer: Offer | None = None,
        scu_limits: ScuLimits | None = None,
    ) -> None:
        """``what`` is owed, for the log. ``owed`` lists it; ``tell`` brings an AE one of it and settles it,
        or raises NetError, DeclinedError when the AE took it and answered that it failed. ``settle`` is
        called for what is given up. ``find`` says whom to call for an AE title. ``takes_s``: how long one of
        it may take to be delivered; it is left alone for twice that beyond ``age_s``.
        """
        self._what = what
        self._owed = owed
        self._settle = settle
        self._contexts = contexts
        self._tell = tell
        self._find = find
        self._offer = offer
        self._scu_limits = scu_limits
        self._leadership = leadership
        self._limits = limits
        self._takes_s = takes_s
        self._troubles: dict[str, _Trouble] = {}
        self._busy: set[str] = set()
        self._hurried: list[Owed] = []
        self._rung = trio.Event()
        self.given_up = 0

    def hurry(self, debt: Owed) -> None:
        """Call its AE now, once, from this process: the other way to deliver it is gone.

        Before it is as old as what whoever leads takes up: half of that is left for it.
        """
        self._hurried.append(debt)
        self._rung.set()

    async def run(self) -> None:
        """Work until cancelled."""
        async with self._leadership, trio.open_nursery() as nursery:
            while True:
                self._take_hurried(nursery.start_soon)
                try:
                    if await self._leadership.lead():
                        await self._look(nursery.start_soon)
                except (StorageError, OSError) as error:  # a full disk ends no worker
                    log.error("what is owed cannot be seen to", what=self._what, **where(error))
                with trio.move_on_after(self._limits.poll_s):
                    await self._rung.wait()

    def _take_hurried(self, start: Callable[..., None]) -> None:
        self._rung = trio.Event()
        by_ae: dict[str, list[Owed]] = {}
        for one in self._hurried:
            by_ae.setdefault(one.ae_title, []).append(one)
        self._hurried = []
        for title, waiting in by_ae.items():
            if title not in self._busy:
                self._busy.add(title)
                start(self._call_in_time, title, waiting)

    async def _call_in_time(self, title: str, waiting: Sequence[Owed]) -> None:
        with trio.move_on_after(max(map(self._age_s, waiting)) / 2):
            await self._call(title, waiting, self._troubles.setdefault(title, _Trouble()))

    def _age_s(self, debt: Owed) -> float:
        """What is younger is left alone."""
        return self._limits.age_s + 2 * self._takes_s(debt)

    async def _look(self, start: Callable[..., None]) -> None:
        limits = self._limits
        by_ae: dict[str, list[Owed]] = {}
        busy = set(self._busy)  # what these have delivered by the time it is read may still be listed
        for one in await self._owed():
            age = (time.time_ns() - one.at_ns) / _NS
            if age >= limits.give_up_s:
                self.given_up += 1
                log.error("what was owed was never taken", what=self._what, called_ae=one.ae_title)
                await self._settle(one)
            elif age >= self._age_s(one):
                by_ae.setdefault(one.ae_title, []).append(one)
        for title in self._troubles.keys() - by_ae.keys() - self._busy:
            del self._troubles[title]
        for title, waiting in by_ae.items():
            trouble = self._troubles.setdefault(title, _Trouble())
            if title not in self._busy | busy and trio.current_time() >= trouble.again_at:
                self._busy.add(title)
                start(self._call, title, waiting, trouble)

    async def _call(self, title: str, waiting: Sequence[Owed], trouble: _Trouble) -> None:
        try:
            remote = self._find(title)
            if remote is None:
                raise NetError(f"no address is known of {title}; add it with `hounsfield ae add`")
            await self._deliver(remote, waiting)
            trouble.attempts = 0
        except (NetError, StorageError) as error:
            limits = self._limits
            pause = min(limits.pause_s * 2.0**trouble.attempts, limits.pause_s_max)
            trouble.attempts = min(trouble.attempts + 1, 30)
            trouble.again_at = trio.current_time() + pause
            log.warning("a call back was in vain", what=self._what, called_ae=title, reason=str(error))
        finally:
            self._busy.discard(title)

    async def _deliver(self, remote: RemoteEntity, waiting: Sequence[Owed]) -> None:
        """All of it on one association. What is declined keeps nothing else back, and is raised last."""
        declined: DeclinedError | None = None
        async with associate(remote, self._contexts, self._scu_limits, self._offer) as association:
            for one in waiting:
                try:
                    await self._tell(association, one)
                except DeclinedError as error:
                    declined = error
        if declined is not None:
            raise declined
