"""Deleting, and the holds that forbid it: what the command line, HTTP and the RIS call."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from hounsfield.archive.engine.errors import (
    HeldError,
    NotFoundError,
    OutOfResourcesError,
    RefusedError,
    StorageFailedError,
)
from hounsfield.archive.engine.gate import Gate
from hounsfield.archive.index.deletion import DeletionReport, Deletions, NothingToDeleteError, Target
from hounsfield.archive.index.holds import (
    Hold,
    HoldError,
    OnHoldError,
    add_hold,
    all_holds,
    release_hold,
    studies_held,
)
from hounsfield.archive.index.journal import Journal
from hounsfield.archive.index.recovery import RecoveryReport
from hounsfield.storage_backends.api import KeyValueStore
from hounsfield.storage_backends.errors import StorageError, StoreFullError


class Deleting:
    """Deletes within one engine. Any task may call it."""

    def __init__(
        self,
        deletions: Deletions,
        store: KeyValueStore,
        journal: Journal,
        gate: Gate,
        *,
        catch_up: Callable[[], RecoveryReport],
        on_commit: Callable[[], None],
    ) -> None:
        """``catch_up``: index what dead workers left. A further record of a deleted object may be there."""
        self._deletions = deletions
        self._store = store
        self._journal = journal
        self._gate = gate
        self._catch_up = catch_up
        self._on_commit = on_commit
        self.deleted_instances = 0
        self.deleted_bytes = 0

    async def look(self, target: Target) -> DeletionReport:
        """What :meth:`delete` would take, and the holds that forbid it. Raises ``NotFoundError``."""
        return await self._gate.heavy(self._look, target)

    def _look(self, target: Target) -> DeletionReport:
        try:
            return self._deletions.look(target, now_ns=time.time_ns())
        except NothingToDeleteError as error:
            raise NotFoundError(str(error)) from error

    async def refuse_held(self, targets: Sequence[Target]) -> None:
        """Raise ``HeldError`` when a legal hold forbids deleting any of ``targets``. Deletes nothing."""
        await self._gate.heavy(self._refuse_held, targets)

    def _refuse_held(self, targets: Sequence[Target]) -> None:
        holds = self._deletions.holds(targets, now_ns=time.time_ns())
        if holds:
            raise HeldError(str(OnHoldError(holds)))

    async def delete(self, target: Target, *, reason: str, actor: str) -> DeletionReport:
        """Delete ``target``: gone for every reader, for good, when this returns. All of it or nothing.

        What was deleted and is sent again is stored as new. Its disk space comes back by compaction. Raises
        ``NotFoundError``, ``HeldError`` (a legal hold), or ``StorageFailedError``.
        """
        report = await self._gate.heavy(self._delete, target, reason, actor)
        self.deleted_instances += report.instances
        self.deleted_bytes += report.stored_bytes
        self._on_commit()
        return report

    def _delete(self, target: Target, reason: str, actor: str) -> DeletionReport:
        try:
            self._catch_up()
            return self._deletions.delete(target, reason=reason, actor=actor, now_ns=time.time_ns())
        except NothingToDeleteError as error:
            raise NotFoundError(str(error)) from error
        except OnHoldError as error:
            raise HeldError(str(error)) from error
        except StoreFullError as error:
            raise OutOfResourcesError("even the reserve of the disk is used up: free some space") from error
        except (StorageError, OSError) as error:
            raise StorageFailedError(
                f"deleting failed ({type(error).__name__}): nothing was deleted; try again"
            ) from error

    # ------------------------------------------------------------ holds

    async def holds(self, *, ended: bool = False) -> list[Hold]:
        """The legal holds in force, oldest first; with ``ended`` those that were, too."""
        return await self._gate.read(self._holds, ended)

    def _holds(self, ended: bool) -> list[Hold]:
        now_ns = time.time_ns()
        with self._store.snapshot() as snapshot:
            found = all_holds(snapshot, self._journal)
        return [hold for hold in found if ended or hold.in_force(now_ns)]

    async def hold(
        self,
        *,
        study_uid: str = "",
        patient_id: str = "",
        issuer: str = "",
        by: str,
        why: str,
        until_ns: int = 0,
    ) -> Hold:
        """Set a legal hold on a study or a patient; nothing of it can be deleted from then on.

        Also on one that is not here yet. Raises ``RefusedError`` for a hold on nothing, or without a reason.
        """
        hold = Hold("", study_uid, patient_id, issuer, by, why, time.time_ns(), until_ns)
        try:
            return await self._gate.read(add_hold, self._journal, hold)
        except HoldError as error:
            raise RefusedError(str(error)) from error
        finally:
            self._on_commit()

    async def studies_held(self, hold: Hold) -> int:
        """How many studies that are here now a hold is on."""
        return await self._gate.read(self._studies_held, hold)

    def _studies_held(self, hold: Hold) -> int:
        with self._store.snapshot() as snapshot:
            return studies_held(snapshot, self._deletions.catalog, hold)

    async def release(self, hold_id: str, *, by: str, why: str) -> Hold:
        """End a hold. Raises ``RefusedError`` when it is not in force, or without a reason."""

        def release() -> Hold:
            return release_hold(self._journal, hold_id, by=by, why=why, now_ns=time.time_ns())

        try:
            return await self._gate.read(release)
        except HoldError as error:
            raise RefusedError(str(error)) from error
        finally:
            self._on_commit()
