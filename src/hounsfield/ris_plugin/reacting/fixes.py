"""What somebody decided of a study becomes corrections of the archive, once, and can be taken back.

A decision is a record (``fixing``, ``undoing``) before anything is asked of the archive. Each correction that
is made for it has the record's mark in its reason, so that what was made already is found again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from hounsfield.archive.plugins import Change
from hounsfield.ris_plugin.acquisition import reconciling
from hounsfield.ris_plugin.context import Ris
from hounsfield.ris_plugin.following import Consumer, Heeded
from hounsfield.ris_plugin.records.performed import MISMATCH

__all__ = ["consumers"]

REASON_CHARACTERS_MAX: Final = 900
"""An archive's reason has at most 1024 characters, of which some are the mark."""


@dataclass(frozen=True, slots=True)
class Done:
    """What became of a decision: ``numbers`` of corrections, or why the archive does not take it."""

    state: str
    numbers: tuple[int, ...] = ()
    refused: str = ""


def consumers(ris: Ris) -> list[Consumer]:
    """Who carries decisions out."""
    return [Consumer("fixes", {"study-fixing", "study-undoing"}, _act, partial(_carry_out, ris))]


def mark(record_id: str) -> str:
    """By which a correction of ours is known."""
    return f"[ris {record_id}]"


async def _carry_out(ris: Ris, event: Heeded) -> Done | None:
    with ris.reading() as view:
        mismatch = view.get(MISMATCH, event.body["mismatch"])
    if mismatch is None or mismatch.state not in ("fixing", "undoing"):
        return None
    if mismatch.state == "fixing":
        return await _fix(ris, event.body["mismatch"])
    ours = await _made(ris, event.body["mismatch"], mismatch.study_uid)
    await _revert(ris, [*ours.values()], mismatch.by, "taken back")
    return Done("undoing")


async def _fix(ris: Ris, mismatch_id: str) -> Done:
    with ris.reading() as view:
        fix = reconciling.wanted(view, mismatch_id)
        mismatch = view.get(MISMATCH, mismatch_id)
    assert mismatch is not None
    made = await _made(ris, mismatch_id, mismatch.study_uid)
    shown = await ris.archive.search("study", {"StudyInstanceUID": mismatch.study_uid}, limit=1)
    for wanted in fix.corrections:
        agreed = shown and not (mismatch.others and wanted["kind"] == "move-study")
        if wanted["kind"] in made or (agreed and _is_so(shown[0], wanted)):
            continue
        reason = f"{fix.reason[:REASON_CHARACTERS_MAX]} {mark(mismatch_id)}"
        try:
            number = await ris.archive.correct(actor=mismatch.by, reason=reason, **wanted)
        except ValueError as error:
            await _revert(ris, [*made.values()], mismatch.by, "not all of it could be made")
            return Done("fixing", refused=str(error))
        made[wanted["kind"]] = number
    return Done("fixing", tuple(sorted(made.values())))


def _is_so(shown: Mapping[str, str], wanted: Mapping[str, Any]) -> bool:
    """Whether the archive shows already what a correction is to make it show."""
    if wanted["kind"] == "move-study":
        patient = shown.get("PatientID", ""), shown.get("IssuerOfPatientID", "")
        return bool(patient == wanted["to_patient"])
    return all(shown.get(keyword, "") == text for keyword, text in wanted["values"].items())


async def _made(ris: Ris, mismatch_id: str, study_uid: str) -> dict[str, int]:
    """What was made for a decision, by kind."""
    rows = await ris.archive.corrections(study=study_uid)
    return {row["kind"]: row["id"] for row in rows if row["reason"].endswith(mark(mismatch_id))}


async def _revert(ris: Ris, numbers: list[int], actor: str, why: str) -> None:
    for number in sorted(numbers, reverse=True):
        await ris.archive.revert(number, actor=actor, reason=why)


def _act(change: Change, event: Heeded, done: Done | None) -> None:
    if done is None:
        return
    mismatch_id = event.body["mismatch"]
    if done.refused:
        reconciling.refused(change, mismatch_id, done.refused)
    elif done.state == "fixing":
        reconciling.fixed(change, mismatch_id, done.numbers)
    else:
        reconciling.undone(change, mismatch_id)
