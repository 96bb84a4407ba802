"""What is provided beyond C-ECHO and C-STORE: services, their long operations, and whom they serve.

A :class:`Service` is a table: which abstract syntaxes it stands for, and which coroutine performs each of its
requests. A request runs in a task of its own, as an :class:`Operation`, while the association goes on being
read: for the C-CANCEL that ends it, for the responses to the requests that it makes itself (the C-STOREs
of a C-GET), and for further requests within the agreed window. When the association ends, the task is
cancelled.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

from hounsfield.archive.net.policy import Refusal, RemoteAe
from hounsfield.archive.net.providers import Counters
from hounsfield.archive.wire import (
    AcceptedContext,
    Buffer,
    Command,
    CStoreResponse,
    NEventReportRequest,
    NEventReportResponse,
    UserIdentity,
)
from hounsfield.codecs.registry import EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN

__all__ = [
    "Begin",
    "ExtendedAnswer",
    "Identified",
    "Identify",
    "LongProvider",
    "Operation",
    "Peer",
    "Service",
    "StoreAnswer",
    "Whole",
]


@dataclass(frozen=True, slots=True)
class Peer:
    """Who is at the other end of an association, and what was agreed with it."""

    calling_ae: str
    called_ae: str
    address: str
    ae: RemoteAe | None = None
    """What is known of the calling AE title; None for a stranger."""
    identity: str = ""
    """The user whose identity was verified (PS3.7 D.3.3.7); "" when none was."""
    extended: Mapping[str, bytes] = field(default_factory=dict)
    """SOP class extended negotiation, as we answered it, by SOP class UID (PS3.7 D.3.3.5)."""
    scp_of: frozenset[str] = frozenset()
    """SOP classes for which the peer took the SCP role: it takes our C-STORE for them (PS3.7 D.3.3.4)."""
    asynchronous: tuple[int, int] = (1, 1)
    """Operations the peer may have outstanding with us, and we with it; 0 is any number (PS3.7 D.3.3.3)."""


class StoreAnswer(Protocol):
    """The answer to a C-STORE that was sent, which is still to come. Wait for it once, or give it up."""

    async def response(self) -> CStoreResponse:
        """Wait for it. Raises NetError."""

    def give_up(self) -> None:
        """Nobody waits for it any more. Idempotent."""


class Operation(Protocol):
    """One request under way, as its provider sees it."""

    peer: Peer
    counters: Counters

    @property
    def cancelled(self) -> bool:
        """Whether a C-CANCEL-RQ for this request came (PS3.7 9.3.2.3)."""

    @property
    def contexts(self) -> Mapping[int, AcceptedContext]:
        """All accepted presentation contexts of the association by id."""

    async def respond(self, response: Command, identifier: Buffer | None = None) -> None:
        """Send a response, with ``identifier`` as its data set; whole, in one write when it fits.

        ``response.has_dataset`` must say whether there is one. Raises PeerGoneError.
        """

    async def answer(
        self, pending: Command, identifiers: Sequence[Buffer], final: Command | None = None
    ) -> None:
        """Send a response for each identifier, all alike, and then the last one, in few writes.

        As :meth:`respond` for each of them, a fifth of the work. Raises PeerGoneError.
        """

    async def store(
        self,
        context: AcceptedContext,
        sop_instance_uid: str,
        pieces: AsyncIterator[tuple[Buffer, bool]],
        *,
        sop_class_uid: str = "",
        move_originator: tuple[str, int] | None = None,
    ) -> CStoreResponse:
        """C-STORE to the peer, on this association, and its response (the sub-operation of a C-GET).

        ``pieces``: bytes, and whether they are the last. Raises NetError; whatever ``pieces`` raises comes
        through, and the association is over when a part of the object was sent already.
        """

    async def begin_store(
        self,
        context: AcceptedContext,
        sop_instance_uid: str,
        dataset: Buffer | AsyncIterator[tuple[Buffer, bool]],
        *,
        sop_class_uid: str = "",
        move_originator: tuple[str, int] | None = None,
    ) -> StoreAnswer:
        """As :meth:`store`, to the moment when all of it is sent. ``dataset``: whole, or pieces."""

    async def report(
        self, context: AcceptedContext, request: NEventReportRequest, dataset: Buffer
    ) -> NEventReportResponse:
        """N-EVENT-REPORT to the peer, on this association (PS3.7 10.1.1). Raises NetError.

        ``request.message_id`` is ours to choose: what it holds is replaced.
        """


LongProvider: TypeAlias = Callable[[Operation, AcceptedContext, Any, bytes], Awaitable[None]]
"""Performs one request: the operation, its context, the request, and its whole data set (``b""`` if none)."""

ExtendedAnswer: TypeAlias = Callable[[str, bytes], bytes | None]
"""SOP class UID and what the caller asks → what we agree to, None for no answer (PS3.7 D.3.3.5)."""


@dataclass(frozen=True, slots=True)
class Whole:
    """All of the answer to a request: a pending response for each of ``identifiers``, and the last one."""

    pending: Command
    identifiers: Sequence[Buffer]
    final: Command


Begin: TypeAlias = Callable[[Peer, AcceptedContext, Any, bytes], Whole | LongProvider]
"""The ``begin`` of a provider that may have the whole answer sooner than a task is begun for it: that, or
what performs the request. Waits for nothing, and does not raise."""


@dataclass(frozen=True, slots=True)
class Service:
    """A group of SOP classes that we provide as SCP. ``name`` is what a remote AE's ``services`` list."""

    name: str
    abstract_syntaxes: frozenset[str]
    providers: Mapping[type[Command], LongProvider]
    """By the class of the request."""
    extended: ExtendedAnswer | None = None
    transfer_syntaxes: tuple[str, ...] = (EXPLICIT_VR_LITTLE_ENDIAN.uid, IMPLICIT_VR_LITTLE_ENDIAN.uid)
    """Those that are taken, the best one first; no others."""
    used_by_us: frozenset[str] = frozenset()
    """Those of the abstract syntaxes of which we may be the user, and the caller the SCP (PS3.7 D.3.3.4)."""


@dataclass(frozen=True, slots=True)
class Identified:
    """A user whose identity holds, and the server's response, sent when asked for (PS3.7 D.3.3.7.2)."""

    name: str
    response: bytes = field(default=b"", repr=False)


Identify: TypeAlias = Callable[
    [UserIdentity | None, str, RemoteAe | None], Awaitable[Identified | Refusal | None]
]
"""The caller's identity item (None: it sent none), its address, its known AE → who it is, None for nobody
in particular, or why the association is refused. May take its time (a password hash), not raise."""
