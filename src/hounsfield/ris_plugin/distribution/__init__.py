"""Reports as documents in the archive: each version that is put forward or signed becomes a PDF and an SR
under its study, once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Final, NamedTuple

import trio

from hounsfield.archive.plugins import Change, EngineError, Parts
from hounsfield.ris_plugin.context import Ris
from hounsfield.ris_plugin.distribution.said import BULK_MAX, Said, gather
from hounsfield.ris_plugin.following import Consumer, Heeded, leading
from hounsfield.ris_plugin.reading import reporting
from hounsfield.ris_plugin.records.reports import Document

__all__ = ["consumer", "parts"]

KINDS: Final = frozenset({"report-preliminary", "report-signed", "report-corrected", "report-addended"})
KEPT: Final = ("stored", "duplicate", "conflict")
"""``conflict``: there is one already, printed when a name or the letterhead was another."""


class Made(NamedTuple):
    """What a version became."""

    report: str
    document: Document


def consumer(ris: Ris) -> Consumer:
    """Makes the documents of each version."""
    return Consumer("distribution", KINDS, _note, prepare=partial(_prepare, ris))


def parts(ris: Ris) -> Parts:
    """The consumer, in the worker that leads."""
    return Parts(leading=leading(ris, consumer(ris)))


async def _prepare(ris: Ris, event: Heeded) -> Made:
    from hounsfield.ris_plugin.distribution.objects import uid

    report_id, number = event.body["report"], event.body["version"]
    with ris.reading() as view:
        said = gather(view, report_id, number, ris.settings.report_language)
    made = Document(
        version=number, pdf_uid=uid(report_id, "pdf", number), sr_uid=uid(report_id, "sr", number)
    )
    # Told again: what is there stays, though the letterhead or the images are others by now.
    missing = [one for one in (made.sr_uid, made.pdf_uid) if not await _is_here(ris, said, one)]
    if missing:
        said = replace(said, study=await _shown(ris, said), objects=await _objects(ris, said, report_id))
        files = await trio.to_thread.run_sync(_made, ris, said, report_id)
        for sop_uid in missing:
            stored = await ris.archive.store(files[0 if sop_uid == made.sr_uid else 1])
            if stored.outcome not in KEPT:
                raise EngineError(f"a document of a report was {stored.outcome}")
    return Made(report_id, made)


async def _is_here(ris: Ris, said: Said, sop_uid: str) -> bool:
    where = {"StudyInstanceUID": said.report.study_uid, "SOPInstanceUID": sop_uid}
    return bool(await ris.archive.search("instance", where, limit=1))


async def _shown(ris: Ris, said: Said) -> Mapping[str, str]:
    found = await ris.archive.search("study", {"StudyInstanceUID": said.report.study_uid}, limit=1)
    return found[0] if found else {}


async def _objects(ris: Ris, said: Said, report_id: str) -> tuple[Mapping[str, str], ...]:
    """All objects of the study, our own documents excepted."""
    from hounsfield.ris_plugin.distribution.objects import uid

    own = {uid(report_id, kind, "series") for kind in ("pdf", "sr")}
    study = {"StudyInstanceUID": said.report.study_uid}
    found: list[Mapping[str, str]] = []
    while True:
        page = await ris.archive.search("instance", study, limit=BULK_MAX, offset=len(found))
        found += page
        if len(page) < BULK_MAX:
            return tuple(one for one in found if one["SeriesInstanceUID"] not in own)


def _made(ris: Ris, said: Said, report_id: str) -> tuple[bytes, bytes]:
    from hounsfield.ris_plugin.distribution import objects, printing  # a third of a second: who leads only

    settings = ris.settings
    moment = ris.local(said.version.signed_ns or said.version.at_ns)
    organisation = settings.institution or settings.department
    text = objects.structured(said, report_id, moment, organisation=organisation)
    return text, objects.encapsulated(said, report_id, moment, printing.pdf(said, settings, ris.zone))


def _note(change: Change, event: Heeded, made: Made) -> None:
    del event
    reporting.document(change, made.report, made.document)
