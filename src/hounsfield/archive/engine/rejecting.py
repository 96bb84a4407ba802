"""Rejection notes are followed, and what they hid can be had back: off the event loop."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import structlog
import trio

from hounsfield.archive.dicom.rejection import REASONS
from hounsfield.archive.engine.deletion import Deleting
from hounsfield.archive.engine.errors import EngineError, NotFoundError, RefusedError
from hounsfield.archive.engine.gate import Gate
from hounsfield.archive.engine.stores import Stores
from hounsfield.archive.errors import where
from hounsfield.archive.index.deletion import DeletionReport, Target
from hounsfield.archive.index.refused_notes import RefusedNote
from hounsfield.archive.index.rejections import RejectionError
from hounsfield.archive.index.rows import CorrectionRow
from hounsfield.storage_backends.api import Snapshot
from hounsfield.storage_backends.errors import StorageError

log = structlog.get_logger(__name__)

LOOK_S = 30.0  # for notes that could not be followed at once, or whose worker died: nobody waits for them


class Rejecting:
    """One worker's way to rejections. Any number of callers at once."""

    def __init__(self, stores: Stores, deleting: Deleting, gate: Gate, on_commit: Callable[[], None]) -> None:
        self._store = stores.store
        self._rejections = stores.rejections
        self._deleting = deleting
        self._gate = gate
        self._on_commit = on_commit

    async def follow_stored(self) -> None:
        """Follow the rejection notes that were stored just now. What fails is tried again by :meth:`run`.

        Raises nothing: the notes are stored, and their sender, or the worker, is not to fail for them.
        """
        try:
            with trio.CancelScope(shield=True):
                if await self._gate.heavy(self._rejections.resume):
                    self._on_commit()
        except (StorageError, OSError):
            pass
        except Exception as error:  # noqa: BLE001 - a defect, or threads that cannot be started
            log.error("rejection notes are not followed now", **where(error))

    async def run(self) -> None:
        """Follow what was left, now and then, until cancelled."""
        while True:
            await trio.sleep(LOOK_S)
            await self.follow_stored()

    async def all(self) -> list[dict[str, Any]]:
        """Every rejection that was ever made, oldest first; then the notes too large to be followed.

        Those have no ``id``, and ``not_followed`` says why.
        """
        return await self._gate.read(self._all)

    async def follow(self, sop_uid: str, *, actor: str) -> dict[str, Any]:
        """Follow a note that is here, whatever its reason. ``RefusedError``."""
        return await self._gate.heavy(self._follow, sop_uid, actor)

    async def undo(self, number: int, *, actor: str, reason: str) -> dict[str, Any]:
        """Bring back what a rejection hides. ``RefusedError``: it is not in force, or there is no reason."""
        return await self._gate.heavy(self._undo, number, actor, reason)

    async def delete(self, number: int, *, actor: str, reason: str) -> list[DeletionReport]:
        """Delete what a rejection hides, for good, with its note; what is sent again stays out of sight.

        Study by study; nothing is deleted when anything of it is on legal hold. What fails on the way, as a
        hold set meanwhile does, says what was deleted and what is left. Raises ``RefusedError``,
        ``NotFoundError`` when it hides nothing, ``HeldError`` for a legal hold, or what deleting raises.
        """
        hidden = await self._gate.read(self._hidden, number)
        if not hidden:
            raise NotFoundError("this rejection hides nothing that is here")
        targets = [Target(study_uid) for study_uid in sorted(hidden)]
        await self._deleting.refuse_held(targets)
        reports: list[DeletionReport] = []
        for target in targets:
            try:
                reports.append(await self._deleting.delete(target, reason=reason, actor=actor))
            except NotFoundError:
                continue  # undone or deleted meanwhile
            except EngineError as error:
                if not reports:
                    raise
                raise type(error)(_half_done(reports, len(targets), error)) from error
        if not reports:
            raise NotFoundError("this rejection hides nothing that is here any more")
        return reports

    # ------------------------------------------------------------ on threads

    def _all(self) -> list[dict[str, Any]]:
        with self._store.snapshot() as snapshot:
            made = [self._told(snapshot, row) for row in self._rejections.all(snapshot)]
            return made + [_told_refused(one) for one in self._rejections.refused(snapshot)]

    def _follow(self, sop_uid: str, actor: str) -> dict[str, Any]:
        try:
            row = self._rejections.follow(sop_uid, actor=actor)
        except RejectionError as error:
            raise RefusedError(str(error)) from error
        return self._made(row)

    def _undo(self, number: int, actor: str, reason: str) -> dict[str, Any]:
        try:
            row = self._rejections.undo(number, actor=actor, reason=reason, at_ns=time.time_ns())
        except RejectionError as error:
            raise RefusedError(str(error)) from error
        return self._made(row)

    def _hidden(self, number: int) -> dict[str, int]:
        with self._store.snapshot() as snapshot:
            try:
                row = self._rejections.get(snapshot, number)
            except RejectionError as error:
                raise RefusedError(str(error)) from error
            return self._rejections.hidden(snapshot, row)

    def _made(self, row: CorrectionRow) -> dict[str, Any]:
        self._on_commit()
        with self._store.snapshot() as snapshot:
            return self._told(snapshot, row)

    def _told(self, snapshot: Snapshot, row: CorrectionRow) -> dict[str, Any]:
        """A rejection as plain values. ``hidden``: objects that it keeps out of sight now, notes included."""
        objects = sum(len(sop_uids) for by_series in row.rejected.values() for sop_uids in by_series.values())
        return {
            "id": row.number,
            "code": row.code,
            "reason": REASONS.get(row.code, row.code),
            "note": row.note,
            "studies": sorted(row.rejected),
            "named": objects,
            "hidden": sum(self._rejections.hidden(snapshot, row).values()),
            "at_ns": row.at_ns,
            "actor": row.actor,
            "in_force": not row.reverted_ns,
            "undone_ns": row.reverted_ns,
            "undone_by": row.reverted_by,
            "undone_because": row.reverted_because,
            "not_followed": "",
        }


def _told_refused(refused: RefusedNote) -> dict[str, Any]:
    """A note that is not followed, in the shape of a rejection that hides nothing."""
    return {
        "id": None,
        "code": refused.code,
        "reason": REASONS.get(refused.code, refused.code),
        "note": refused.note.sop_uid,
        "studies": [],
        "named": 0,
        "hidden": 0,
        "at_ns": refused.at_ns,
        "actor": "",
        "in_force": False,
        "undone_ns": 0,
        "undone_by": "",
        "undone_because": "",
        "not_followed": refused.why,
    }


def _half_done(reports: Sequence[DeletionReport], studies: int, error: EngineError) -> str:
    """What is to be said when deleting stopped on its way: of itself the error says that nothing happened."""
    objects = sum(report.records for report in reports)
    why = str(error).replace("nothing was deleted", "nothing more was deleted")
    return (
        f"stopped half-way: {objects} objects of {len(reports)} of {studies} studies are deleted for good, "
        f"the rest is left, hidden as before; {why}"
    )
