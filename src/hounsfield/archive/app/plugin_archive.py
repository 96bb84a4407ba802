"""The archive as a plugin sees it: :class:`~hounsfield.archive.plugins.Archive` over one worker's engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, Final, TypeVar

import msgspec

from hounsfield.archive.app import plugin_terms
from hounsfield.archive.dicom.dictionary import KEYWORD_OF, TAG_OF
from hounsfield.archive.dicom.levels import Level
from hounsfield.archive.dicom.part10 import split
from hounsfield.archive.dicom.query import QueryError, parse_qido
from hounsfield.archive.dicom.recoding import recoded
from hounsfield.archive.engine.changes import Cursor, change_of, events_after
from hounsfield.archive.engine.corrections import CorrectionError
from hounsfield.archive.engine.corrections import Request as Correction
from hounsfield.archive.engine.engine import Engine
from hounsfield.archive.engine.errors import RefusedError
from hounsfield.archive.engine.tier_oversight import TierOversight
from hounsfield.archive.engine.types import Source
from hounsfield.archive.index import rows
from hounsfield.archive.index.corrections import KINDS
from hounsfield.archive.index.epochs import Epoch
from hounsfield.archive.index.named_patients import patients_named
from hounsfield.archive.net.destinations import Destinations
from hounsfield.archive.net.errors import NetError
from hounsfield.archive.net.scu import RequestorAssociation, associate
from hounsfield.archive.plugins import (
    Answer,
    Change,
    Event,
    Events,
    Outgoing,
    Stored,
    UnreachableError,
    View,
)
from hounsfield.archive.wire import NCreateRequest, NSetRequest, PresentationContext
from hounsfield.codecs.registry import EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN, lookup

__all__ = ["PluginArchive"]

Result = TypeVar("Result")

EVENTS_MAX: Final = 1000
"""In one answer: who wants more asks again."""
SEARCH_MAX: Final = 10_000
PIECE_BYTES: Final = 1 << 20
_NS: Final = 1_000_000_000


class PluginRecords:
    """The records of one plugin."""

    def __init__(self, engine: Engine, name: str) -> None:
        self._keeping = engine.record_keeping
        self._name = name

    def reading(self) -> AbstractContextManager[View]:
        return self._keeping.reading(self._name)

    async def commit(self, plan: Callable[[Change], Result]) -> Result:
        return await self._keeping.commit(self._name, plugin_terms.fenced(plan))


class PluginArchive:
    """The archive for one plugin. ``destinations``: whom it can call, when that is asked."""

    def __init__(
        self, engine: Engine, name: str, *, ae_title: str, destinations: Callable[[], Destinations]
    ) -> None:
        self._engine = engine
        self._name = name
        self._ae_title = ae_title
        self._destinations = destinations
        self._tiers = TierOversight(engine)
        self.records = PluginRecords(engine, name)

    @property
    def ae_title(self) -> str:
        return self._ae_title

    def leads(self) -> bool:
        return plugin_terms.leads()

    # ------------------------------------------------------------ objects

    async def search(
        self, level: str, matches: Mapping[str, str], *, limit: int = 100, offset: int = 0
    ) -> list[Mapping[str, str]]:
        if level not in {"study", "series", "instance"}:
            raise QueryError("search for study, series or instance")
        for keyword in matches:
            if keyword not in TAG_OF:
                raise QueryError(f"{keyword!r} is no keyword of PS3.6")
        words = [*matches.items(), ("includefield", "all"), ("limit", str(min(limit, SEARCH_MAX)))]
        words.append(("offset", str(offset)))
        query = parse_qido(Level[level.upper()], words)
        if query.warnings:  # what is not matched on would find everything
            raise QueryError(query.warnings[0])
        page = await self._engine.search(query)
        return [
            {
                KEYWORD_OF.get(tag, f"{tag:08X}"): text
                for attributes in (row.study, row.series, row.instance)
                for tag, text in (attributes or {}).items()
            }
            for row in page.rows
        ]

    async def patients_named(self, study: str) -> list[Mapping[str, str]]:
        found = await self._engine.read(partial(self._patients_named, study))
        return [{KEYWORD_OF[tag]: text for tag, text in one.items()} for one in found]

    def _patients_named(self, study: str) -> list[rows.Attributes]:
        stores = self._engine.stores
        with stores.store.snapshot() as snapshot:
            return patients_named(stores.indexer, stores.catalog, snapshot, study)

    async def store(self, data: bytes) -> Stored:
        part10 = split(data)
        session = self._engine.begin(
            transfer_syntax_uid=part10.transfer_syntax_uid,
            sop_class_uid=part10.sop_class_uid,
            sop_instance_uid=part10.sop_instance_uid,
            source=Source("plugin", self._name, self._ae_title),
        )
        try:
            view = memoryview(data)
            for at in range(part10.offset, len(data), PIECE_BYTES):
                await session.write(view[at : at + PIECE_BYTES])
            result = await session.commit()
        finally:
            session.abandon()
        return Stored(result.outcome.value, result.study_uid, result.series_uid, result.sop_instance_uid)

    async def correct(self, kind: str, *, actor: str, reason: str, **fields: Any) -> int:
        if kind not in KINDS:
            raise ValueError(f"there is no such kind of correction; these are: {', '.join(KINDS)}")
        plugin_terms.require()
        words: dict[str, Any] = dict(fields)
        for name in ("patient", "to_patient", "series", "instances"):
            if name in words:
                words[name] = tuple(words[name])
        try:
            words["values"] = {TAG_OF[keyword]: text for keyword, text in words.get("values", {}).items()}
        except KeyError as error:
            raise ValueError(f"{error.args[0]!r} is no keyword of PS3.6") from None
        try:
            made = await self._engine.correcting.make(
                Correction(kind=kind, actor=actor, reason=reason, **words)
            )
        except (CorrectionError, TypeError) as error:
            raise ValueError(str(error)) from error
        number: int = made["id"]
        return number

    async def revert(self, number: int, *, actor: str, reason: str) -> None:
        plugin_terms.require()
        try:
            await self._engine.correcting.revert(number, actor, reason)
        except CorrectionError as error:
            raise ValueError(str(error)) from error

    async def corrections(
        self, *, study: str = "", patient: tuple[str, str] = ("", "")
    ) -> list[Mapping[str, Any]]:
        rows = await self._engine.correcting.in_force(study=study, patient=patient)
        return [
            {**row, "values": {KEYWORD_OF[int(tag, 16)]: text for tag, text in row["values"].items()}}
            for row in rows
        ]

    async def prefetch(
        self,
        name: str,
        *,
        patient_id: str,
        at_ns: int,
        issuer: str = "",
        modality: str = "",
        body_part: str = "",
    ) -> None:
        try:
            await self._tiers.prefetch(self._own(name), patient_id, issuer, modality, body_part, at_ns / _NS)
        except RefusedError as error:
            raise ValueError(str(error)) from error

    async def forget_prefetch(self, name: str) -> None:
        await self._tiers.forget_prefetch(self._own(name))

    def _own(self, name: str) -> str:
        """No other plugin's, nor one of the command line."""
        return f"{self._name}/{name}"

    # ------------------------------------------------------------ events

    async def events(self, after: str, limit: int) -> Events:
        cursor = await self._cursor(after)
        stores = self._engine.stores
        page = await self._engine.read(
            partial(
                events_after,
                stores.store,
                stores.journal,
                cursor,
                min(limit, EVENTS_MAX),
                _told,
                size=_size,
            )
        )
        return Events([event for event, _ in page.events], str(page.next), page.more, page.again)

    async def latest(self) -> str:
        return str(await self._engine.changes.end())

    async def wait(self, after: str, seconds: float) -> bool:
        return await self._engine.changes.wait(await self._cursor(after), seconds)

    async def _cursor(self, text: str) -> Cursor:
        return Cursor.parse(text) if text else await self._engine.changes.start()

    # ------------------------------------------------------------ others

    async def send(self, ae_title: str, requests: Sequence[Outgoing]) -> list[Answer]:
        for one in requests:
            if one.operation not in {"create", "set"}:
                raise ValueError(f"{one.operation!r} is neither create nor set")
        plugin_terms.require()
        answers: list[Answer] = []
        try:
            remote = self._destinations().find(ae_title)
            if remote is None:
                raise UnreachableError(f"no address is known of {ae_title}; add it with `hounsfield ae add`")
            classes = dict.fromkeys(one.sop_class_uid for one in requests)
            contexts = [
                PresentationContext(
                    2 * number + 1, uid, (EXPLICIT_VR_LITTLE_ENDIAN.uid, IMPLICIT_VR_LITTLE_ENDIAN.uid)
                )
                for number, uid in enumerate(classes)
            ]
            async with associate(remote, contexts) as association:
                for one in requests:
                    answers += [await _ask(association, one)]
        except NetError as error:
            if not answers:
                raise UnreachableError(str(error)) from error
        return answers


async def _ask(association: RequestorAssociation, one: Outgoing) -> Answer:
    context = association.context_for(one.sop_class_uid)
    syntax = lookup(context.transfer_syntax)
    dataset = one.dataset
    if syntax != EXPLICIT_VR_LITTLE_ENDIAN:
        dataset = recoded(dataset, b"", EXPLICIT_VR_LITTLE_ENDIAN, syntax).before
    make: Any = NCreateRequest if one.operation == "create" else NSetRequest
    request = make(
        association.next_message_id(),
        one.sop_class_uid,
        one.sop_instance_uid or None,
        has_dataset=bool(dataset),
    )
    response, answered = await association.ask(context, request, dataset)
    said: Any = response
    return Answer(
        said.status,
        answered,
        said.affected_sop_instance_uid or "",
        said.error_comment or "",
        said.error_id,
        said.attribute_identifiers or (),
    )


def _told(epoch: Epoch, sequence: int, event: rows.Event) -> tuple[Event, int] | None:
    """What a plugin is told of an event: what the change feed tells, and what plugins said."""
    said = event.fact and "." in event.kind
    body = event.body if said else change_of(event)
    if body is None:
        return None
    cursor = str(Cursor(epoch.epoch_id, sequence))
    return Event(cursor, event.kind, event.at_ns, body), len(msgspec.msgpack.encode(body))


def _size(told: tuple[Event, int]) -> int:
    return told[1]
