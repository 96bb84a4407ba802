"""A query becomes answers: the most selective blind token narrows, opened rows decide.

Candidates come newest study first. Every candidate's rows are opened and verified with
``dicom.query.matches`` (PS3.4 C.2.2.2), so tokens only have to be complete, never exact.
"""

from __future__ import annotations

from hounsfield.archive.dicom.query import Query
from hounsfield.archive.engine.types import SearchPage


class Search:
    def __init__(self, catalog: object, hashes: object, store: object, gate: object) -> None: ...

    async def search(self, query: Query) -> SearchPage: ...
