"""Instance Availability Notification: whom we owe the news of which study, and what the news is (PS3.4 R).

A study that is stable is owed to every AE that wants to hear of it, as a fact: the news survives a crash, and
is as of the moment at which it is delivered. A study that changes and is stable again is owed again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

import structlog

from hounsfield.archive.dicom.availability import AvailableSeries, AvailableStudy
from hounsfield.archive.dicom.references import Reference, referenced
from hounsfield.archive.dicom.selection import select
from hounsfield.archive.engine.errors import DamagedError, EngineError, NotFoundError
from hounsfield.archive.engine.gate import Gate
from hounsfield.archive.engine.retrieve import Retrieve
from hounsfield.archive.engine.types import Instance
from hounsfield.archive.index.corrections import is_hidden
from hounsfield.archive.index.journal import Journal
from hounsfield.codecs.registry import lookup
from hounsfield.storage_backends.api import KeyValueStore
from hounsfield.storage_backends.errors import StorageError

__all__ = ["FACT_KIND", "Availability", "News"]

log = structlog.get_logger(__name__)

FACT_KIND: Final = "availability"
"""Of the facts that say who is owed the news of what; a fact's name is the AE title and the study."""
_PERFORMED_STEPS: Final = 0x00081111


@dataclass(frozen=True, slots=True)
class News:
    """That a study is available, owed to an AE since ``at_ns``."""

    ae_title: str
    study_uid: str
    at_ns: int


class Availability:
    """Who is owed what. ``to``: the AEs that want to hear; it may be replaced at any time."""

    def __init__(
        self,
        store: KeyValueStore,
        journal: Journal,
        retrieve: Retrieve,
        gate: Gate,
        on_commit: Callable[[], None],
    ) -> None:
        self.to: tuple[str, ...] = ()
        self._store = store
        self._journal = journal
        self._retrieve = retrieve
        self._gate = gate
        self._on_commit = on_commit

    async def owe(self, study_uid: str) -> None:
        """Record that everybody who wants it is owed the news of a study. Never raises for the disk."""
        for title in () if is_hidden(study_uid) else self.to:
            now_ns = time.time_ns()
            body = {"ae": title, "study": study_uid, "at_ns": now_ns}
            try:
                await self._gate.read(
                    self._journal.commit_fact, FACT_KIND, _name(title, study_uid), body, now_ns
                )
            except (EngineError, StorageError) as error:
                log.warning("an AE is not told of a study", called_ae=title, error_type=type(error).__name__)
            else:
                self._on_commit()

    async def owed(self) -> list[News]:
        """Everything that is, oldest first."""

        def read() -> list[News]:
            with self._store.snapshot() as snapshot:
                bodies = list(self._journal.state(snapshot, FACT_KIND))
            return [News(body["ae"], body["study"], body["at_ns"]) for body in bodies]

        return sorted(await self._gate.read(read), key=lambda one: one.at_ns)

    async def settle(self, news: News) -> None:
        """It was told, or is given up."""
        name = _name(news.ae_title, news.study_uid)
        await self._gate.read(self._journal.commit_fact, FACT_KIND, name, None, time.time_ns())
        self._on_commit()

    async def study(self, study_uid: str) -> AvailableStudy | None:
        """What can be had of a study now, None when nothing can."""
        return await self._gate.read(self._study, study_uid)

    def _study(self, study_uid: str) -> AvailableStudy | None:
        try:
            found = self._retrieve.instances_blocking(study_uid)
        except NotFoundError:
            return None
        series: dict[str, list[Reference]] = {}
        first: dict[str, Instance] = {}
        for one in found:
            first.setdefault(one.series_uid, one)
            series.setdefault(one.series_uid, []).append(Reference(one.row.sop_class_uid, one.row.sop_uid))
        steps = dict.fromkeys(step for one in first.values() for step in self._steps(one))
        available = tuple(AvailableSeries(uid, tuple(instances)) for uid, instances in series.items())
        return AvailableStudy(study_uid, available, tuple(steps))

    def _steps(self, one: Instance) -> Iterable[Reference]:
        """The performed procedure steps that a series says it comes from (PS3.3 C.7.3.1)."""
        try:
            header = self._retrieve.header_blocking(one)
        except DamagedError:
            return
        model = select(header.head, lookup(header.transfer_syntax_uid), [(_PERFORMED_STEPS,)])
        yield from filter(all, referenced(model, _PERFORMED_STEPS))


def _name(title: str, study_uid: str) -> str:
    return f"{title}\\{study_uid}"
