"""Reports as documents in the archive: each version that is put forward or signed becomes a PDF and an SR
under its study, once."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Final, NamedTuple

import trio

from hounsfield.archive.plugins import Change, EngineError, Parts
from hounsfield.ris_plugin import reporting
from hounsfield.ris_plugin.context import Ris
from hounsfield.ris_plugin.distribution.said import Said, gather
from hounsfield.ris_plugin.following import Consumer, Heeded, leading
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
    report_id, number = event.body["report"], event.body["version"]
    with ris.reading() as view:
        said = gather(view, report_id, number)
    study = {"StudyInstanceUID": said.report.study_uid}
    found = await ris.archive.search("study", study, limit=1)
    shown = found[0] if found else {}
    files = await trio.to_thread.run_sync(_made, ris, said, report_id, shown)
    for data in files:
        stored = await ris.archive.store(data)
        if stored.outcome not in KEPT:
            raise EngineError(f"a document of a report was {stored.outcome}")
    from hounsfield.ris_plugin.distribution.objects import uid

    return Made(
        report_id,
        Document(version=number, pdf_uid=uid(report_id, "pdf", number), sr_uid=uid(report_id, "sr", number)),
    )


def _made(ris: Ris, said: Said, report_id: str, shown: Mapping[str, str]) -> tuple[bytes, bytes]:
    from hounsfield.ris_plugin.distribution import objects, printing  # a third of a second: who leads only

    version = said.version
    moment = ris.local(version.signed_ns or version.at_ns)
    earlier = [one for one in said.report.versions if one.number < version.number]
    settings = ris.settings
    text = objects.structured(
        said,
        report_id,
        shown,
        moment,
        organisation=settings.institution or settings.department,
        priors=earlier,
    )
    printed = printing.pdf(said, settings, ris.zone)
    return text, objects.encapsulated(said, report_id, shown, moment, printed)


def _note(change: Change, event: Heeded, made: Made) -> None:
    del event
    reporting.document(change, made.report, made.document)
