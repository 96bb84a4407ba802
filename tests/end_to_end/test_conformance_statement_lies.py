"""The conformance statement, proposed to a running server: it accepts what is written, and nothing else."""

from __future__ import annotations

import re

from pynetdicom import AE

from hounsfield.archive.app.conformance import PROVIDED, TABLES
from support.server import ArchiveServer

WORKLIST, PRINT, UPS = "1.2.840.10008.5.1.4.31", "1.2.840.10008.5.1.1.9", "1.2.840.10008.5.1.4.34.6.1"


def test_a_server_accepts_what_the_document_says_and_nothing_else(archive: ArchiveServer) -> None:
    storage = re.findall(r"\| ([0-9.]+) \|$", TABLES["storage-classes"](), re.MULTILINE)
    assert len(storage) > 150
    accepted: set[str] = set()
    proposed = sorted({*PROVIDED, *storage})
    for start in range(0, len(proposed), 100):
        entity = AE("ANYBODY")
        for uid in [*proposed[start : start + 100], WORKLIST, PRINT, UPS]:
            entity.add_requested_context(uid)
        association = entity.associate("127.0.0.1", archive.dicom_port, ae_title="HOUNSFIELD")
        assert association.is_established
        accepted |= {str(context.abstract_syntax) for context in association.accepted_contexts}
        association.release()
    assert accepted == set(proposed)
