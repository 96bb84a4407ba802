"""Storage commitment: whether we are responsible for instances, and what we owe whom (PS3.4 J).

A request is a *fact* before it is acknowledged: whoever asked gets an answer, also after a crash or a lost
index. It is owed until it has been delivered, or given up. An instance is committed when its header opens
from the disk at the time of the answer and nothing is known against it: not merely when the index has it.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from hounsfield.archive.dicom.commitment import CommitmentRequest, FailureReason, Reference
from hounsfield.archive.engine.errors import EngineError
from hounsfield.archive.engine.gate import Gate
from hounsfield.archive.engine.undisturbed import UndisturbedRecords
from hounsfield.archive.index.catalog import Catalog
from hounsfield.archive.index.journal import Journal
from hounsfield.archive.index.rows import InstanceRow
from hounsfield.archive.index.suspects import FLAG_DAMAGED
from hounsfield.archive.index.tables import INSTANCE
from hounsfield.storage_backends.api import KeyValueStore, Snapshot
from hounsfield.storage_backends.errors import StorageError

__all__ = ["FACT_KIND", "Commitments", "Owed", "Verdict"]

FACT_KIND: Final = "commitment"
"""Of the facts that say what is owed; a fact's name is the asker's AE title and the transaction."""

#: Instances looked up in one snapshot and opened on one thread, of which there are a few: others read too.
_AT_ONCE: Final = 64

_Pairs = list[tuple[str, list[str]]]


@dataclass(frozen=True, slots=True)
class Owed:
    """A request that was acknowledged and not answered yet. ``at_ns``: when it came."""

    ae_title: str
    called_ae: str
    request: CommitmentRequest
    at_ns: int

    @property
    def name(self) -> str:
        """Of its fact."""
        return f"{self.ae_title}\\{self.request.transaction_uid}"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What we are responsible for, and what not, with a reason for each."""

    committed: tuple[Reference, ...]
    failed: tuple[tuple[Reference, FailureReason], ...]


class Commitments:
    """What is owed, and the judgement."""

    def __init__(  # noqa: PLR0917
        self,
        store: KeyValueStore,
        journal: Journal,
        catalog: Catalog,
        records: UndisturbedRecords,
        gate: Gate,
        on_commit: Callable[[], None],
    ) -> None:
        self._store = store
        self._journal = journal
        self._catalog = catalog
        self._records = records
        self._gate = gate
        self._on_commit = on_commit

    async def promise(self, owed: Owed) -> None:
        """Record durably that ``owed`` will be answered. Asked again, the same is owed once. StorageError."""
        await self._commit(owed.name, _body(owed), owed.at_ns)

    async def settle(self, owed: Owed) -> None:
        """It was answered, or is given up: nothing is owed any more."""
        await self._commit(owed.name, None, time.time_ns())

    async def _commit(self, name: str, body: dict[str, Any] | None, at_ns: int) -> None:
        await self._gate.read(self._journal.commit_fact, FACT_KIND, name, body, at_ns)
        self._on_commit()

    async def owed(self) -> list[Owed]:
        """Everything that is, oldest first."""

        def read() -> list[Owed]:
            with self._store.snapshot() as snapshot:
                return [_owed(body) for body in self._journal.state(snapshot, FACT_KIND)]

        return sorted(await self._gate.read(read), key=lambda one: one.at_ns)

    async def judge(self, references: Sequence[Reference]) -> Verdict:
        """Look at each of them now."""
        committed: list[Reference] = []
        failed: list[tuple[Reference, FailureReason]] = []
        for start in range(0, len(references), _AT_ONCE):
            some = references[start : start + _AT_ONCE]
            reasons = await self._gate.read(self._reasons_against, some)
            for one, reason in zip(some, reasons, strict=True):
                if reason is None:
                    committed.append(one)
                else:
                    failed.append((one, reason))
        return Verdict(tuple(committed), tuple(failed))

    def _reasons_against(self, references: Sequence[Reference]) -> list[FailureReason | None]:
        found: list[list[InstanceRow] | None] = []
        with self._store.snapshot() as snapshot:
            for one in references:
                try:
                    found.append(list(self._rows(snapshot, one.sop_instance_uid)))
                except StorageError:  # its row is damaged: the others have their answer
                    found.append(None)
        return [
            FailureReason.PROCESSING_FAILURE if rows is None else self._reason_against(one, rows)
            for one, rows in zip(references, found, strict=True)
        ]

    def _rows(self, snapshot: Snapshot, sop_uid: str) -> Iterator[InstanceRow]:
        """The instances of that UID, wherever they are filed; what was rejected is nowhere."""
        sop_hash = self._catalog.sop_hash(sop_uid)
        for series_key in self._catalog.places(snapshot, "instance", sop_uid):
            sealed = snapshot.get(INSTANCE, series_key + sop_hash)
            if sealed is not None:
                yield self._catalog.open_row(INSTANCE, series_key + sop_hash, sealed, InstanceRow)

    def _reason_against(self, one: Reference, rows: Sequence[InstanceRow]) -> FailureReason | None:
        if not rows:
            return FailureReason.NO_SUCH_OBJECT_INSTANCE
        named = [row for row in rows if row.sop_class_uid == one.sop_class_uid]
        if not named:
            return FailureReason.CLASS_INSTANCE_CONFLICT
        if any(self._is_sound(row) for row in named):
            return None
        return FailureReason.PROCESSING_FAILURE

    def _is_sound(self, row: InstanceRow) -> bool:
        if FLAG_DAMAGED in row.flags:
            return False
        try:
            self._records.header(row)
        except (EngineError, StorageError, OSError):
            return False
        return True


def _body(owed: Owed) -> dict[str, Any]:
    """A fact's body. The ledger keeps it for ever, so UIDs, which are much alike, are packed."""
    by_class: dict[str, list[str]] = {}
    for one in owed.request.references:
        by_class.setdefault(one.sop_class_uid, []).append(one.sop_instance_uid)
    return {
        "ae": owed.ae_title,
        "called": owed.called_ae,
        "transaction": owed.request.transaction_uid,
        "at_ns": owed.at_ns,
        "references": zlib.compress(msgspec.msgpack.encode(list(by_class.items())), 6),
    }


def _owed(body: Mapping[str, Any]) -> Owed:
    pairs = msgspec.msgpack.decode(zlib.decompress(body["references"]), type=_Pairs)
    references = tuple(Reference(sop_class, uid) for sop_class, uids in pairs for uid in uids)
    return Owed(body["ae"], body["called"], CommitmentRequest(body["transaction"], references), body["at_ns"])
