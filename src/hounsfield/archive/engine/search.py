"""Searching, off the event loop: pages of answers from the index's planner."""

from __future__ import annotations

from itertools import islice

from hounsfield.archive.dicom.query import Query
from hounsfield.archive.engine.gate import Gate
from hounsfield.archive.engine.types import SearchPage
from hounsfield.archive.index.planner import Planner

ANSWERS_DEFAULT = 1000  # to a query without a limit; the caller says when there were more


class Search:
    """Answers queries."""

    def __init__(self, planner: Planner, gate: Gate) -> None:
        self._planner = planner
        self._gate = gate

    async def search(self, query: Query) -> SearchPage:
        """The page that the query's offset and limit ask for, newest study first."""
        return await self._gate.read(self.search_blocking, query)

    def search_blocking(self, query: Query) -> SearchPage:
        """As :meth:`search`, on a thread of the caller's."""
        limit = ANSWERS_DEFAULT if query.limit is None else query.limit
        found = list(islice(self._planner.find(query), query.offset, query.offset + limit + 1))
        return SearchPage(tuple(found[:limit]), more=len(found) > limit)
