"""Corrections, off the event loop: what would change, changing it, taking it back, and what there were."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from hounsfield.archive.engine.correction_requests import CorrectionPlanner, Request
from hounsfield.archive.engine.gate import Gate
from hounsfield.archive.engine.stores import Stores
from hounsfield.archive.index.catalog import Place
from hounsfield.archive.index.correcting import CorrectionError, Outcome
from hounsfield.archive.index.corrections import KINDS, MERGE, PatientRef, View, is_hidden
from hounsfield.archive.index.refiling import StudyChange
from hounsfield.archive.index.rows import CorrectionRow, StudyRow

__all__ = ["Correcting", "CorrectionError", "Request"]


@dataclass(slots=True)
class Progress:
    """How far carrying a correction through has come."""

    done: int = 0
    studies: int = 0


class Correcting:
    """One worker's way to corrections. Any number of callers at once."""

    def __init__(self, stores: Stores, gate: Gate, on_commit: Callable[[], None]) -> None:
        self._stores = stores
        self._corrections = stores.corrections
        self._gate = gate
        self._on_commit = on_commit
        self.progress = Progress()

    async def look(self, request: Request) -> dict[str, Any]:
        """What a correction would change; nothing is changed. CorrectionError when it cannot be made."""
        return await self._gate.read(self._look, request)

    async def make(self, request: Request) -> dict[str, Any]:
        """Make a correction: durable, and shown everywhere, when this returns. CorrectionError."""
        return await self._gate.read(self._make, request)

    async def look_reverted(self, number: int, actor: str, reason: str) -> dict[str, Any]:
        """What taking a correction back would change; nothing is changed. CorrectionError."""
        return await self._gate.read(self._look_reverted, number, actor, reason)

    async def revert(self, number: int, actor: str, reason: str) -> dict[str, Any]:
        """Take a correction back: everything is as if it had never been made. CorrectionError."""
        return await self._gate.read(self._revert, number, actor, reason)

    async def all(self) -> list[dict[str, Any]]:
        """Every correction that was ever made, oldest first."""
        return await self._gate.read(self._list)

    async def in_force(self, *, study: str = "", patient: PatientRef = ("", "")) -> list[dict[str, Any]]:
        """The corrections in force that were made for a study or a patient, by number."""
        return await self._gate.read(self._in_force, study, patient)

    async def get(self, number: int) -> dict[str, Any]:
        """One correction. CorrectionError when there is none of that number."""
        return await self._gate.read(self._get, number)

    async def shown_at(self, received: Sequence[Place]) -> list[Place | None]:
        """Where objects that came just now with these UIDs are shown; None for one that is out of sight."""
        return await self._gate.read(self._shown_at, received)

    async def merge_of(self, patient: PatientRef) -> int:
        """The number of the merge that is in force for a patient. CorrectionError when there is none."""
        return await self._gate.read(self._merge_of, patient)

    # ------------------------------------------------------------ on threads

    def _look(self, request: Request) -> dict[str, Any]:
        planner = CorrectionPlanner(self._stores.catalog, self._corrections)
        at_ns = time.time_ns()
        return _told(
            self._corrections.preview(lambda snapshot, number: planner.plan(snapshot, number, request, at_ns))
        )

    def _make(self, request: Request) -> dict[str, Any]:
        planner = CorrectionPlanner(self._stores.catalog, self._corrections)
        at_ns = time.time_ns()
        row = self._corrections.make(
            lambda snapshot, number: planner.plan(snapshot, number, request, at_ns), self._noted
        )
        self._on_commit()
        return told(row)

    def _look_reverted(self, number: int, actor: str, reason: str) -> dict[str, Any]:
        at_ns = time.time_ns()
        return _told(
            self._corrections.preview(
                lambda snapshot, _: self._corrections.reverted(
                    snapshot, number, actor=actor, reason=reason, at_ns=at_ns
                )
            )
        )

    def _revert(self, number: int, actor: str, reason: str) -> dict[str, Any]:
        if not reason.strip():
            raise CorrectionError("say why: taking a correction back needs a reason")
        row = self._corrections.revert(
            number, actor=actor, reason=reason, at_ns=time.time_ns(), progress=self._noted
        )
        self._on_commit()
        return told(row)

    def _noted(self, done: int, studies: int) -> None:
        self.progress = Progress(done, studies)

    def _list(self) -> list[dict[str, Any]]:
        with self._stores.store.snapshot() as snapshot:
            return [told(row) for row in self._corrections.all(snapshot)]

    def _in_force(self, study: str, patient: PatientRef) -> list[dict[str, Any]]:
        with self._stores.store.snapshot() as snapshot:
            view = View(self._stores.catalog, snapshot)
            rows = (*view.of_study(study), *view.of_patient(patient))
            return [told(row) for row in rows if row.kind in KINDS]  # a rejection is no correction

    def _get(self, number: int) -> dict[str, Any]:
        with self._stores.store.snapshot() as snapshot:
            return told(self._corrections.get(snapshot, number))

    def _shown_at(self, received: Sequence[Place]) -> list[Place | None]:
        now_ns = time.time_ns()
        with self._stores.store.snapshot() as snapshot:
            view = self._stores.catalog.view(snapshot)
            if view is None:
                return list(received)
            routes = (view.route(*place, now_ns) for place in received)
            return [
                None if is_hidden(route.study_uid) else Place(*route[:2], place.sop_uid)
                for route, place in zip(routes, received, strict=True)
            ]

    def _merge_of(self, patient: PatientRef) -> int:
        with self._stores.store.snapshot() as snapshot:
            for row in reversed(View(self._stores.catalog, snapshot).of_patient(patient)):
                if row.kind == MERGE:
                    return row.number
        raise CorrectionError("this patient is merged into no other")


def told(row: CorrectionRow) -> dict[str, Any]:
    """A correction as plain values."""
    return {
        "id": row.number,
        "kind": row.kind,
        "at_ns": row.at_ns,
        "actor": row.actor,
        "reason": row.reason,
        "patient": list(row.patient),
        "study": row.study,
        "series": row.series,
        "instances": list(row.instances),
        "to_patient": list(row.to_patient),
        "to_study": row.to_study,
        "values": {f"{tag:08X}": text for tag, text in row.values.items()},
        "in_force": not row.reverted_ns,
        "reverted_ns": row.reverted_ns,
        "reverted_by": row.reverted_by,
        "reverted_because": row.reverted_because,
    }


def _told(outcome: Outcome) -> dict[str, Any]:
    """What would change, as plain values: each study before and after, and how many of what."""
    seen = [one for one in outcome.changes if not is_hidden(one.uid)]  # nobody is told of rejected objects
    changes = [_change(one) for one in seen]
    touched = [one.before or one.after for one in seen]
    return {
        "correction": told(outcome.row),
        "changes": changes,
        "studies": len(changes),
        "series": sum(row.series for row in touched if row is not None),
        "instances": sum(row.instances for row in touched if row is not None),
    }


def _change(one: StudyChange) -> dict[str, Any]:
    return {"study": one.uid, "before": _study(one.before), "after": _study(one.after)}


def _study(row: StudyRow | None) -> dict[str, Any] | None:
    if row is None:
        return None
    attributes = {f"{tag:08X}": text for tag, text in sorted(row.attributes.items())}
    return {"series": row.series, "instances": row.instances, "attributes": attributes}
