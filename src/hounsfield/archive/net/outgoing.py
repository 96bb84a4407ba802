"""Stored objects on their way to others: what is proposed for them, and one C-STORE for each.

What is *proposed* for a SOP class (PS3.8 7.1.1.13): a presentation context for each transfer syntax that its
objects are stored in, alone, so that no other is chosen where this one is taken; one for the uncompressed
syntaxes; one for those that compress without loss; and, where what is stored has lost something, one for
JPEG baseline.

What an object is *sent* in: as it is stored where the peer takes that, else in another syntax with the same
pixels, uncompressed before compressed. JPEG baseline is the last resort, and for 8-bit objects only that have
lost something before: it makes another object, with a UID of its own (PS3.3 C.7.6.1.1.5).
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, NamedTuple, Protocol

import structlog
import trio

from hounsfield.archive.dicom.cuts import Layout
from hounsfield.archive.engine.derivation import JPEG_BASELINE, SURELY_LOSSY
from hounsfield.archive.engine.engine import Engine
from hounsfield.archive.engine.errors import DamagedError, EngineError, NotFoundError, NotTranscodableError
from hounsfield.archive.engine.opening import Opening
from hounsfield.archive.engine.target_syntaxes import SAME_FRAMES, sop_uid_of, transcodable
from hounsfield.archive.engine.types import Instance
from hounsfield.archive.errors import where
from hounsfield.archive.net.errors import NetError
from hounsfield.archive.net.requests import NAMES_ANOTHER, names_another
from hounsfield.archive.net.services import StoreAnswer
from hounsfield.archive.wire import (
    AcceptedContext,
    Buffer,
    Category,
    CStoreResponse,
    PresentationContext,
    Service,
    describe_status,
)
from hounsfield.codecs.registry import (
    DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN,
    EXPLICIT_VR_LITTLE_ENDIAN,
    IMPLICIT_VR_LITTLE_ENDIAN,
    lookup,
)
from hounsfield.storage_backends.errors import StorageError

__all__ = [
    "CONTEXTS_MAX",
    "Accepted",
    "Batch",
    "Pair",
    "Parcel",
    "Sent",
    "Target",
    "UnfinishedError",
    "batches_of",
    "pack",
    "pair_of",
    "send",
]

log = structlog.get_logger(__name__)

CONTEXTS_MAX: Final = 128
"""In one association: context ids are odd and fit into a byte (PS3.8 9.3.2.2)."""
GATHERED_BYTES_MAX: Final = 1 << 20
"""Pieces of an object that is made anew are put together up to here, and leave in one write when they are all
of it."""
_OUT_OF_RESOURCES: Final = 0xA700  # A7xx: the same object may be taken later (PS3.4 B.2.3)

_ROOT: Final = "1.2.840.10008.1.2"
_NATIVE: Final = (EXPLICIT_VR_LITTLE_ENDIAN.uid, IMPLICIT_VR_LITTLE_ENDIAN.uid)
#: Compressed without loss, in the order of how many devices read it: JPEG lossless, JPEG 2000, JPEG-LS, RLE.
_COMPRESSED: Final = tuple(f"{_ROOT}{suffix}" for suffix in (".4.70", ".4.90", ".4.80", ".5"))
#: All that we can make without losing anything, in the order in which it is chosen. The later ones are
#: proposed by requestors of a C-GET only. Those that may lose something are written without loss.
LOSSLESS: Final = (
    *_NATIVE,
    DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN.uid,
    *_COMPRESSED,
    *(f"{_ROOT}.4.{number}" for number in (201, 202, 203, 91, 110, 112)),
)
_UID: Final = re.compile(r"[0-9.]{1,64}", re.ASCII)
_BITS_ALLOCATED, _LOSSY_IMAGE = 0x00280100, 0x00282110

Pair = tuple[str, str]
"""SOP class UID and stored transfer syntax UID: what decides about presentation contexts."""


# ---------------------------------------------------------------- what is proposed


class Batch(NamedTuple):
    """What one association proposes, and for which objects."""

    contexts: list[PresentationContext]
    pairs: set[Pair]


def pair_of(instance: Instance) -> Pair:
    """What the contexts for an instance depend on."""
    return instance.row.sop_class_uid, instance.row.transfer_syntax_uid


def batches_of(pairs: Iterable[Pair]) -> list[Batch]:
    """What to propose for objects of these, in batches of at most 128 contexts: one association each.

    What cannot be proposed, since its UIDs are none, is in no batch.
    """
    by_class: dict[str, dict[str, None]] = {}
    for sop_class, stored in pairs:
        if _UID.fullmatch(sop_class) and _UID.fullmatch(stored):
            by_class.setdefault(sop_class, {})[stored] = None
    batches: list[Batch] = []
    for sop_class, syntaxes in by_class.items():
        proposals = _proposals(tuple(syntaxes))[:CONTEXTS_MAX]
        if not batches or len(batches[-1].contexts) + len(proposals) > CONTEXTS_MAX:
            batches.append(Batch([], set()))
        contexts, carried = batches[-1]
        for proposal in proposals:
            contexts.append(PresentationContext(2 * len(contexts) + 1, sop_class, proposal))
        carried.update((sop_class, one) for one in syntaxes)
    return batches


@lru_cache(maxsize=256)
def _proposals(stored: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
    """The lists of transfer syntaxes to propose for objects of one SOP class that are stored in these."""
    possible = {uid for one in stored for uid in transcodable(one)}
    same = tuple(uid for one in stored for uid in SAME_FRAMES.get(one, ()))
    lossy = any(lookup(one).lossless is False for one in stored)
    others = (_NATIVE, dict.fromkeys((*same, *_COMPRESSED)), (JPEG_BASELINE,) if lossy else ())
    lists = (tuple(uid for uid in each if uid in possible and uid not in stored) for each in others)
    return (*((one,) for one in stored), *filter(None, lists))


# ---------------------------------------------------------------- what is chosen


class Accepted:
    """The contexts of one association in which objects can be sent."""

    def __init__(self, contexts: Iterable[AcceptedContext]) -> None:
        self._by_class: dict[str, dict[str, AcceptedContext]] = {}
        for context in contexts:
            self._by_class.setdefault(context.abstract_syntax, {}).setdefault(
                context.transfer_syntax, context
            )

    def choices(self, instance: Instance) -> Iterator[AcceptedContext]:
        """Where an instance can be sent, the best first; see this module's text."""
        sop_class, stored = pair_of(instance)
        here = self._by_class.get(sop_class)
        if not here:
            return
        possible = transcodable(stored)
        # What was deflated is known once it is inflated only: then it is refused there.
        without_frames = Layout(instance.row.layout) is Layout.HEADER_ONLY and not lookup(stored).deflated
        for uid in dict.fromkeys((stored, *SAME_FRAMES.get(stored, ()), *LOSSLESS)):
            if uid not in here or uid not in possible:
                continue
            if uid == stored or not (without_frames and lookup(uid).encapsulated):
                yield here[uid]
        if stored != JPEG_BASELINE and JPEG_BASELINE in here and _may_lose_again(instance):
            yield here[JPEG_BASELINE]


def _may_lose_again(instance: Instance) -> bool:
    row = instance.row
    lossy = row.transfer_syntax_uid in SURELY_LOSSY or row.attributes.get(_LOSSY_IMAGE, "").strip() == "01"
    return lossy and row.attributes.get(_BITS_ALLOCATED, "").strip() == "8"


# ---------------------------------------------------------------- one object


class Target(Protocol):
    """Who takes objects: an association that we requested, or the requestor of a C-GET on its own."""

    @property
    def contexts(self) -> Mapping[int, AcceptedContext]:
        """The accepted presentation contexts by id."""

    async def begin_store(
        self,
        context: AcceptedContext,
        sop_instance_uid: str,
        dataset: Buffer | AsyncIterator[tuple[Buffer, bool]],
        *,
        sop_class_uid: str = "",
        move_originator: tuple[str, int] | None = None,
    ) -> StoreAnswer:
        """C-STORE one data set, whole or in pieces, to the moment when nothing of it is here any more.

        Raises NetError; what pieces raise comes through.
        """


@dataclass(frozen=True, slots=True)
class Sent:
    """What became of one object. ``category``: SUCCESS, WARNING or FAILURE.

    ``status`` is the peer's, None when it was not asked. ``reason`` holds no identifier. ``retry``: whether
    sending the same object again, later, may help.
    """

    category: Category
    status: int | None = None
    reason: str = ""
    retry: bool = False
    size: int = 0
    transfer_syntax_uid: str = ""


class _EndlessError(Exception):
    """The end of the object, a part of which was sent, cannot be read."""


class UnfinishedError(NetError):
    """An object could not be read to its end when a part of it was sent: the association has to be aborted.

    ``sent`` is what became of the object; for the others a new association does.
    """

    def __init__(self, sent: Sent) -> None:
        super().__init__(f"an object could not be sent to its end: {sent.reason}")
        self.sent = sent


async def send(
    target: Target,
    engine: Engine,
    instance: Instance,
    *,
    accepted: Accepted | None = None,
    opening: Opening | None = None,
    move_originator: tuple[str, int] | None = None,
) -> Sent:
    """C-STORE an instance as it is now: with its corrections, and not when it was deleted or rejected.

    ``accepted`` and ``opening`` are made when they are not given; who sends many objects makes them once.
    Raises NetError when the association is over: whether the object arrived is not known then.
    """
    own = engine.opening() if opening is None else None
    try:
        name = (instance.study_uid, instance.series_uid, instance.row.sop_uid)
        packed = await pack(engine, name, accepted or Accepted(target.contexts.values()), opening or own)
        return packed if isinstance(packed, Sent) else await packed.store(target, move_originator)
    finally:
        if own is not None:
            own.close()


async def pack(
    engine: Engine, name: tuple[str, str, str], accepted: Accepted, opening: Opening | None
) -> Parcel | Sent:
    """An instance as it is now, ready to be sent; or that it cannot be, and why not. Nothing is sent.

    ``name``: its study's, its series' and its own UID. What is packed is valid until ``opening`` opens
    another. :meth:`Parcel.aclose` it, or store it. StorageError, OSError when nothing can be said of it.
    """
    failed = Sent(Category.FAILURE, reason="the peer takes its SOP class in no transfer syntax that it has")
    try:
        (now,) = await engine.instances(*name)
        for context in accepted.choices(now):
            try:
                return await _packed(engine, now, context, opening)
            except NotTranscodableError as error:
                failed = Sent(Category.FAILURE, reason=str(error))
    except (StorageError, OSError):
        raise
    except Exception as error:  # noqa: BLE001 - a defect that one object meets fails no other
        return _unreadable(error)
    return failed


async def _packed(
    engine: Engine, instance: Instance, context: AcceptedContext, opening: Opening | None
) -> Parcel:
    syntax = context.transfer_syntax
    uid = sop_uid_of(instance, syntax)
    if syntax != instance.row.transfer_syntax_uid:
        pieces = engine.transcoded(instance, syntax)
    else:
        whole = None if opening is None else await opening.open(instance)
        if whole is not None:
            return Parcel(context, uid, [whole])
        pieces = engine.dataset(instance)
    first: list[Buffer] = []
    size = 0
    try:
        async for piece in pieces:
            first.append(piece)
            size += len(piece)
            if size > GATHERED_BYTES_MAX:
                return Parcel(context, uid, first, pieces)
    except BaseException:
        await _closed(pieces)
        raise
    return Parcel(context, uid, [first[0] if len(first) == 1 else b"".join(first)])


class Parcel:
    """One object ready to be sent on one association, of which nothing is sent yet."""

    def __init__(
        self,
        context: AcceptedContext,
        sop_instance_uid: str,
        first: list[Buffer],
        rest: AsyncIterator[Buffer] | None = None,
    ) -> None:
        self._context = context
        self._uid = sop_instance_uid
        self._first = first
        self._rest = rest
        self._size = 0
        self._unreadable: Exception | None = None
        self.begun = False
        """Whether the target has asked for its first bytes."""

    async def store(self, target: Target, move_originator: tuple[str, int] | None) -> Sent:
        """C-STORE it. Raises NetError when the association is over, or has to be: UnfinishedError."""
        answer = await self.begin(target, move_originator)
        return self.judged(await answer.response())

    async def begin(self, target: Target, move_originator: tuple[str, int] | None) -> StoreAnswer:
        """As :meth:`store`, to the moment when it is sent: for :meth:`judged`, the answer that is to come."""
        if self._rest is None:
            self.begun = True
            whole = self._first[0]
            self._size = len(whole)
            return await target.begin_store(self._context, self._uid, whole, move_originator=move_originator)
        failed: NetError | None = None
        answer: StoreAnswer | None = None
        give, take = trio.open_memory_channel[Buffer](0)
        async with trio.open_nursery() as nursery:  # the next piece is read while one is sent
            nursery.start_soon(self._read, give)
            try:
                answer = await self._streaming(target, self._streamed(take), move_originator)
            except NetError as error:
                failed = error
            nursery.cancel_scope.cancel()
        if failed is not None:
            raise failed
        assert answer is not None
        return answer

    async def doubted(self) -> Sent | None:
        """Read it to its end and send nothing: why it cannot be sent, None when it can. It is closed then."""
        try:
            if self._rest is not None:
                async for _ in self._rest:
                    pass
        except Exception as error:  # noqa: BLE001 - whatever it is, it is this object's
            return _unreadable(error)
        finally:
            await self.aclose()
        return None

    async def aclose(self) -> None:
        """Let go of what was not sent. Idempotent."""
        rest, self._rest = self._rest, None
        if rest is not None:
            await _closed(rest)

    async def _streaming(
        self,
        target: Target,
        pieces: AsyncGenerator[tuple[Buffer, bool], None],
        move_originator: tuple[str, int] | None,
    ) -> StoreAnswer:
        async with aclosing(pieces):
            try:
                return await target.begin_store(
                    self._context, self._uid, pieces, move_originator=move_originator
                )
            except _EndlessError as error:
                assert self._unreadable is not None
                raise UnfinishedError(_unreadable(self._unreadable)) from error

    async def _read(self, give: trio.MemorySendChannel[Buffer]) -> None:
        rest = self._rest
        assert rest is not None
        with give:  # no checkpoint: what it found out is told, whatever is cancelled meanwhile
            try:
                async for piece in rest:
                    await give.send(piece)
            except Exception as error:  # noqa: BLE001 - whatever it is, it is this object's
                self._unreadable = error
            finally:
                with trio.CancelScope(shield=True):
                    await self.aclose()

    async def _streamed(
        self, take: trio.MemoryReceiveChannel[Buffer]
    ) -> AsyncGenerator[tuple[Buffer, bool], None]:
        self.begun = True
        *before, held = self._first
        self._first = []
        for piece in before:
            self._size += len(piece)
            yield piece, False
        async for piece in take:
            self._size += len(held)
            yield held, False
            held = piece
        if self._unreadable is not None:
            raise _EndlessError from self._unreadable
        self._size += len(held)
        yield held, True

    def judged(self, response: CStoreResponse) -> Sent:
        """What its answer says."""
        meaning = describe_status(response.status, Service.STORAGE)
        category = meaning.category
        if category not in (Category.SUCCESS, Category.WARNING):
            category = Category.FAILURE
        elif names_another(response, self._uid):
            return Sent(
                Category.FAILURE,
                response.status,
                NAMES_ANOTHER,
                size=self._size,
                transfer_syntax_uid=self._context.transfer_syntax,
            )
        return Sent(
            category,
            response.status,
            "" if category is Category.SUCCESS else meaning.meaning,
            retry=category is Category.FAILURE and response.status & 0xFF00 == _OUT_OF_RESOURCES,
            size=self._size,
            transfer_syntax_uid=self._context.transfer_syntax,
        )


async def _closed(pieces: AsyncIterator[Buffer]) -> None:
    if isinstance(pieces, AsyncGenerator):
        await pieces.aclose()


def _unreadable(error: Exception) -> Sent:
    if isinstance(error, NotFoundError):
        reason = "it is not stored any more"
    elif isinstance(error, DamagedError):
        reason = "its stored record is damaged"
    elif isinstance(error, EngineError | StorageError | OSError):
        reason = "it cannot be read"
    else:
        log.error("an object could not be made ready to be sent", **where(error))
        reason = "a fault of the archive; see its log"
    return Sent(Category.FAILURE, reason=reason, retry=isinstance(error, EngineError) and error.retry)
